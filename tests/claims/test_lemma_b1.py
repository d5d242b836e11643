"""Lemma B.1 and B.1'."""

import pytest

from smoothlab.claims import lemma_b1
from smoothlab.claims.search import Statement
from tests.claims.holding import holds, true_statements


@pytest.mark.parametrize("name", [claim.name for claim in lemma_b1.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(lemma_b1, name)


@pytest.mark.parametrize("statement", true_statements(lemma_b1), ids=lambda statement: statement.what)
def test_false_on_purpose_is_caught(statement: Statement) -> None:
    assert statement.known is not None and statement.falsify(1, statement.known / 2).broken
