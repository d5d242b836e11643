"""Lemma B.2, T1 and T2."""

import pytest

from smoothlab.claims import lemma_b2
from tests.claims.holding import holds, mutated


@pytest.mark.parametrize("name", [claim.name for claim in lemma_b2.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(lemma_b2, name)


@pytest.mark.parametrize("number", mutated(lemma_b2))
def test_false_on_purpose_is_caught(number: int) -> None:
    statement = lemma_b2.STATEMENTS[number]
    assert statement.falsify(1, statement.known / 2).broken
