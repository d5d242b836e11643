"""Finite sums: as a batched function, as a Loss on Blocks, along rays, with exact sigma."""

import numpy as np
import pytest
import torch

from smoothlab.blocks import Block, flatten
from smoothlab.errors import BadInput
from smoothlab.hessian.exact import ExactHessian
from smoothlab.objectives import Cosh, Objective, Quadratic, QuadraticCoupling, objective
from smoothlab.zeroth.estimators import ZerothOrder
from tests.cases import OBJECTIVES

names = pytest.mark.parametrize("name", OBJECTIVES)


def points(f: Objective, *shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, f.dim, generator=draw, dtype=torch.float64) * 1.6 - 0.8


@names
def test_batches_of_any_shape_are_points_one_by_one(name: str) -> None:
    f = OBJECTIVES[name]
    z = points(f, 2, 3)
    assert f.value(z).shape == (2, 3) and f.gradient(z).shape == z.shape and f.hessian(z).shape == (2, 3, f.dim, f.dim)
    for i, j in np.ndindex(2, 3):
        assert torch.allclose(f.value(z[i, j]), f.value(z)[i, j], rtol=1e-14)
        assert torch.allclose(f.gradient(z[i, j]), f.gradient(z)[i, j], rtol=1e-13)
    assert f.value(points(f, 0)).shape == (0,)
    assert float(f.value(torch.zeros(f.dim, dtype=torch.float64))) == f.f_star == 0
    assert not f.gradient(f.center).any()


@names
def test_losses_on_blocks_are_the_components(name: str) -> None:
    f = OBJECTIVES[name]
    z = points(f)
    blocks = f.blocks(z)
    assert [(b.name, b.dim) for b in blocks.values()] == [("x", f.d_x), ("y", f.d_y)]
    params = [*blocks["x"].params, *blocks["y"].params]
    whole = flatten(torch.autograd.grad(f.loss(blocks)(), params))
    assert torch.allclose(whole, f.gradient(z), rtol=1e-12)
    for i in range(f.n):
        assert torch.allclose(flatten(torch.autograd.grad(f.loss(blocks, i)(), params)), whole + f.shifts[i])
    mean = sum(f.loss(blocks, i)() for i in range(f.n)) / f.n
    assert torch.allclose(mean, f.value(z), rtol=1e-12)


def test_they_serve_hessians_and_estimators() -> None:
    f = OBJECTIVES["E9"]
    z = points(f)
    blocks = f.blocks(z)
    hessian = ExactHessian(f.loss(blocks, 0), [*blocks.values()])
    v = torch.randn(f.d_x, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h_xx, h_yx = hessian.product(v, "x", ("x", "y"))
    assert torch.allclose(torch.cat([h_xx, h_yx]), f.hessian(z)[:, : f.d_x] @ v)
    estimate = ZerothOrder(1e-4)(f.loss(blocks, 0), blocks["x"], (3,))
    ((seed, coefficient),) = estimate.terms
    v = estimate.distribution.draw(blocks["x"], seed)
    assert coefficient == pytest.approx(float((f.gradient(z) + f.shifts[0])[: f.d_x] @ v), rel=1e-6)


@pytest.mark.parametrize("coupling", [None, QuadraticCoupling(2.0, 0.7, 1.3)])
def test_curvatures_of_quadratics_are_exact(coupling: QuadraticCoupling | None) -> None:
    f = objective(Quadratic(3.0), Quadratic(0.2), coupling, d_x=4, d_y=3)
    v = points(f, 6, seed=1)[:, :4]
    h_xx = f.hessian(f.center)[:4, :4]
    assert torch.allclose(f.curvature_along(v), torch.einsum("ni,ij,nj->n", v, h_xx, v))
    with pytest.raises(BadInput, match="not quadratic"):
        OBJECTIVES["E9"].curvature_along(points(OBJECTIVES["E9"]))


@pytest.mark.parametrize("n", [2, 3, 100])
def test_sigma_is_exact_whole_or_by_block(n: int) -> None:
    f = objective(Quadratic(1.0), Quadratic(1.0), n=n, sigma=3.0, d_x=50, d_y=1, seed=n)
    assert f.sigma2 == pytest.approx(9, rel=1e-13) and f.shifts.sum(0).abs().max() < 1e-13 * n
    f = objective(Quadratic(1.0), Quadratic(1.0), n=n, sigma=(2.0, 0.0), seed=n)
    assert (f.sigma2_x, f.sigma2_y) == (pytest.approx(4, rel=1e-13), 0)
    assert not torch.equal(f.shifts, objective(Quadratic(1.0), Quadratic(1.0), n=n, sigma=(2.0, 0.0), seed=0).shifts)
    setting = f.setting(0.5)
    assert (setting.n, setting.d, setting.gap, setting.sigma2) == (n, 3, 0.5, pytest.approx(4))
    assert setting.spread == pytest.approx(float(f.shifts.norm(dim=1).max()))


@names
@pytest.mark.parametrize("level", [1e-9, 0.5, 1e5])
def test_points_at_a_level(name: str, level: float) -> None:
    f = OBJECTIVES[name]
    z = f.at_level(points(f, 10), level)
    assert torch.allclose(f.value(z), torch.full((10,), level, dtype=torch.float64), rtol=1e-9, atol=0)
    assert torch.equal(z.sign(), points(f, 10).sign())


def test_bad_input_is_refused() -> None:
    q = Quadratic(1.0)
    for bad, message in (
        ({"d_x": 0}, "d_x"),
        ({"d_y": 2.5}, "d_y"),
        ({"n": 0}, "n is 0"),
        ({"sigma": -1.0, "n": 2}, "sigma"),
        ({"sigma": float("nan"), "n": 2}, "sigma"),
        ({"sigma": (1.0, 1.0, 1.0), "n": 2}, "pair"),
        ({"sigma": 1.0}, "n = 1"),
    ):
        with pytest.raises(BadInput, match=message):
            objective(q, q, **bad)
    f = OBJECTIVES["barrier"]
    for z0 in (torch.ones(5), torch.zeros(4), torch.zeros(2, 5), torch.full((5,), torch.nan)):
        with pytest.raises(BadInput, match="z0 must be|last dimension"):
            f.blocks(z0)
    with pytest.raises(BadInput, match="no component 8"):
        f.loss(f.blocks(), 8)
    with pytest.raises(BadInput, match="last dimension"):
        f.value(torch.zeros(3))
    with pytest.raises(BadInput, match="level"):
        f.constants(-1.0)


def test_values_follow_the_blocks_as_they_move() -> None:
    f = objective(Cosh(1.0, 1.0), Quadratic(1.0), n=2, sigma=1.0)
    blocks = f.blocks()
    loss = f.loss(blocks, 1)
    before = loss().item()
    blocks["x"].params[0].data.mul_(2)
    assert loss().item() > before + 0.1 and isinstance(blocks["x"], Block)
