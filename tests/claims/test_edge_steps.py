"""One step at the edge: verdicts, and certificates that see what is wrong."""

import pytest

from smoothlab.claims import edge_steps
from tests.claims.holding import all_support, holds


@pytest.mark.parametrize("name", [claim.name for claim in edge_steps.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(edge_steps, name)


@pytest.mark.parametrize("what", ["gradient_norms", "expected_losses", "hybrid_steps"])
def test_another_number_of_directions_is_seen(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = edge_steps.averaged
    assert all_support(getattr(edge_steps, what)())
    monkeypatch.setattr(edge_steps, "averaged", lambda a, q: right(a, q + 1))
    assert not all_support(getattr(edge_steps, what)())


def test_another_gram_matrix_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = edge_steps.coupled_radius
    assert all_support(edge_steps.on_ritz_vectors())
    monkeypatch.setattr(edge_steps, "coupled_radius", lambda values, gram, *rest: right(values, 0.99 * gram, *rest))
    assert not all_support(edge_steps.on_ritz_vectors())
