"""Lemma B.1 and B.1'."""

import pytest

from smoothlab.claims import lemma_b1
from tests.claims.holding import holds, mutated


@pytest.mark.parametrize("name", [claim.name for claim in lemma_b1.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(lemma_b1, name)


@pytest.mark.parametrize("number", mutated(lemma_b1))
def test_false_on_purpose_is_caught(number: int) -> None:
    statement = lemma_b1.STATEMENTS[number]
    assert statement.falsify(1, statement.known / 2).broken
