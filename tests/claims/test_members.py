"""The fast members against smoothlab.objectives, and ridges against autograd."""

import numpy as np
import pytest
import torch

from smoothlab.claims import lemma_b2
from smoothlab.claims.members import Coupled, Product
from smoothlab.claims.ridge import Ridge
from smoothlab.objectives import Cosh, CosineCoupling, LogCoshCoupling, ProductCoupling, Quadratic, objective
from smoothlab.theory.constants import largest, phi

X, Y = np.array([-1.3, 0.2, 2.0]), np.array([0.7, -2.0, 0.1])
U = np.array([0.0, 0.5, 30.0])


@pytest.mark.parametrize("bend", [0.0, 1.0])
def test_coupled_members_are_the_objectives(bend: float) -> None:
    numbers = (1.5, 0.5, 0.3, 1.1, 2.0, 0.7, 1.2, bend)
    f = Coupled(*(np.array(v) for v in numbers))
    kind = LogCoshCoupling if bend else CosineCoupling
    truth = objective(Cosh(1.5, 0.5), Cosh(0.3, 1.1), kind(2.0, 0.7, 1.2), d_x=1, d_y=1)
    z = torch.from_numpy(np.stack([X, Y], -1))
    np.testing.assert_allclose(f.value(X, Y), truth.value(z), rtol=1e-12)
    np.testing.assert_allclose(np.stack(f.gradient(X, Y), -1), truth.gradient(z), rtol=1e-12)
    np.testing.assert_allclose(f.ell(U), (truth.ell_x(U), truth.ell_y(U)), rtol=1e-12)
    below = lemma_b2.phi_from_below(Coupled(*(np.full(3, v) for v in numbers)), U)
    exact = phi(largest(truth.ell_x, truth.ell_y), U)
    assert (below <= exact * (1 + 1e-9)).all() and (below >= 0.99 * exact).all()


def test_product_members_are_the_objectives() -> None:
    f = Product(np.array(2.0), np.array(0.5), np.array(1.0))
    truth = objective(Quadratic(2.0), Quadratic(0.5), ProductCoupling(1.0), d_x=1, d_y=1)
    z = torch.from_numpy(np.stack([X, Y], -1))
    np.testing.assert_allclose(np.stack(f.gradient(X, Y), -1), truth.gradient(z), rtol=1e-12)
    np.testing.assert_allclose(f.ell_x(U), truth.ell_x(U), rtol=1e-12)


def test_ridges_against_autograd() -> None:
    m, m_y, k, stretch = 0.2, 0.03, 4.0, 30.0

    def f(z: torch.Tensor) -> torch.Tensor:
        x, y = z
        return m * x**2 / 2 + m_y * y**2 / 2 + torch.exp(-((k * y - x) ** 2) / 2) * torch.cosh(x)

    fast = Ridge(*(np.array(v) for v in (m, m_y, k)))
    for x, y in zip(X, Y, strict=True):
        z, s = torch.tensor([x, y], dtype=torch.float64), k * y - x
        g, h = torch.func.grad(f)(z).numpy(), torch.func.jacrev(torch.func.grad(f))(z).numpy()
        assert float(fast.value(x, s)) == pytest.approx(float(f(z)), rel=1e-12)
        np.testing.assert_allclose(fast.gradient(x, s), g, rtol=1e-10)
        need = float(fast.needed(x, s, np.array(stretch * k**2)))
        for more, positive in ((1e-6, True), (-1e-6, False)):
            D = np.diag([need * (1 + more), stretch * k**2])
            assert (min(np.linalg.eigvalsh(D - h)[0], np.linalg.eigvalsh(D + h)[0]) >= -1e-9) == positive
