"""Lemma B.2, T1 and T2."""

import pytest

from smoothlab.claims import lemma_b2
from smoothlab.claims.search import Statement
from tests.claims.holding import holds, true_statements


@pytest.mark.parametrize("name", [claim.name for claim in lemma_b2.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(lemma_b2, name)


@pytest.mark.parametrize("statement", true_statements(lemma_b2), ids=lambda statement: statement.what)
def test_false_on_purpose_is_caught(statement: Statement) -> None:
    assert statement.known is not None and statement.falsify(1, statement.known / 2).broken
