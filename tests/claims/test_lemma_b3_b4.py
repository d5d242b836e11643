"""Lemmas B.3 and B.4."""

import numpy as np
import pytest
import torch

from smoothlab.claims import lemma_b3_b4
from smoothlab.claims.lemma_b3_b4 import Crossed, bound, definition_dense
from smoothlab.claims.search import Statement
from smoothlab.theory import constants
from tests.claims.holding import holds, true_statements


@pytest.mark.parametrize("name", [claim.name for claim in lemma_b3_b4.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(lemma_b3_b4, name)


@pytest.mark.parametrize("statement", true_statements(lemma_b3_b4), ids=lambda statement: statement.what)
def test_false_on_purpose_is_caught(statement: Statement) -> None:
    assert statement.known is not None and statement.falsify(1, statement.known / 2).broken


def test_crossed_members_against_autograd_and_their_ell(monkeypatch) -> None:
    p, q, m = 0.7, 1.3, 0.2

    def f(z: torch.Tensor) -> torch.Tensor:
        return torch.cosh(p * z[0] + q * z[1]) - 1 + m * z @ z / 2

    fast = Crossed(np.array(p), np.array(q), np.array(m))
    for x, y in ((-1.3, 0.4), (2.0, 1.1)):
        z = torch.tensor([x, y], dtype=torch.float64)
        g, h = torch.func.grad(f)(z).numpy(), torch.func.jacrev(torch.func.grad(f))(z).numpy()
        assert float(fast.value(np.array(x), np.array(y))) == pytest.approx(float(f(z)))
        np.testing.assert_allclose(fast.gradient(np.array(x), np.array(y)), g, rtol=1e-12)
        assert np.linalg.eigvalsh(np.diag(fast.ell(np.linalg.norm(g))) - h)[0] >= -1e-12
    assert definition_dense().supports
    ell = Crossed.ell
    monkeypatch.setattr(Crossed, "ell", lambda self, u: tuple(0.99 * one for one in ell(self, u)))
    assert not definition_dense().supports, "a smaller ell is seen to be none"


@pytest.mark.parametrize("stretch", [1.0, 2.0])
def test_the_fast_bound_is_that_of_lemma_b3(stretch: float) -> None:
    f = Crossed(np.full(3, 0.7), np.full(3, 1.3), np.full(3, 0.2))
    levels = np.array([0.1, 3.0, 400.0])
    both = constants.largest(*(lambda u, k=k: Crossed(0.7, 1.3, 0.2).ell(np.asarray(u))[k] for k in (0, 1)))  # type: ignore[arg-type]
    truth = [constants.gradient_bound_printed(both, level, stretch) for level in levels]
    np.testing.assert_allclose(bound(f.ell, levels, stretch), truth, rtol=1e-9)
