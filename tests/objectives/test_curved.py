"""Finite sums whose components curve differently: every check, exact constants, and wrong claims that are seen."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.objectives import (
    ExponentialSum,
    FiniteSum,
    LogCoshSum,
    QuadraticSum,
    check_all,
    exponential_sum,
    log_cosh_sum,
    quadratic_sum,
)
from smoothlab.objectives.checks import component, components, definition, derivatives, scatter
from smoothlab.objectives.psi import Array, Side
from smoothlab.objectives.quadratic_sums import largest_on_ball
from smoothlab.objectives.sublevel import climb, sample
from smoothlab.theory.constants import constants
from tests.cases import CURVED

LEVEL = 10.0
names = pytest.mark.parametrize("name", CURVED)


@names
@pytest.mark.check
def test_every_sum_passes_every_check(name: str) -> None:
    checks = check_all(CURVED[name], LEVEL, 4000)
    assert [check.name for check in checks if not check.passed] == []
    assert [check.name for check in checks][-3:] == [
        "definition 2.1, Hess f_i <= D", "definition 2.1, Hess f_i >= -D", "sigma",
    ]  # fmt: skip


@names
def test_points_of_the_sublevel_set_keep_to_every_claim(name: str) -> None:
    """A quick look at 300 points; the searches are in the test above."""
    f = CURVED[name]
    z = sample(f, LEVEL, 300)
    assert derivatives(f, z[::30]).passed
    u = f.gradient(z).norm(dim=-1)
    for view, ell_x, ell_y in [(f, f.ell_x, f.ell_y)] + [
        (component(f, i), f.component_ell_x, f.component_ell_y) for i in range(f.n)
    ]:
        D = np.concatenate(
            [np.repeat(ell_x(u.numpy())[:, None], f.d_x, 1), np.repeat(ell_y(u.numpy())[:, None], f.d_y, 1)], 1
        )  # noqa: E501, N806
        root = torch.from_numpy(D).rsqrt()
        scaled = root.unsqueeze(-1) * view.hessian(z) * root.unsqueeze(-2)
        assert float(torch.linalg.eigvalsh(scaled).abs().max()) <= 1 + 1e-9
    sigmas = f.variance(z)
    assert all(bool((s <= most * (1 + 1e-9)).all()) for s, most in zip(sigmas, f.variances(LEVEL), strict=True))
    assert bool((f.value(z) >= f.f_star - 1e-14).all()) and float(f.gradient(f.center).norm()) < 1e-15
    apart = torch.stack([f.gradient_of(z, i) - f.gradient(z) for i in range(f.n)])
    assert float(apart.sum(0).abs().max()) < 1e-9, "gradients of components have the mean of f"
    far = apart.norm(dim=-1).amax(0)
    assert all(float(one) <= f.spread(float(at)) * (1 + 1e-9) for one, at in zip(far, u, strict=True))


def test_components_curve_differently() -> None:
    for f in CURVED.values():
        z = f.at_level(torch.ones(f.dim).double(), 1.0)
        hessians = torch.stack([f.hessian_of(z, i) for i in range(f.n)])
        assert float((hessians - hessians[0]).norm(dim=(1, 2)).max()) > 0.01 * float(hessians[0].norm())
    indefinite = CURVED["indefinite quadratics"]
    assert isinstance(indefinite, QuadraticSum)
    assert float(torch.linalg.eigvalsh(indefinite.hessians).min()) < -0.3


def test_components_by_number_or_one_for_each_point_are_the_same() -> None:
    for f in CURVED.values():
        z, i = torch.randn(6, f.dim, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % f.n
        for call in (f.value_of, f.gradient_of, f.hessian_of):
            together = call(z, i)
            for k in range(6):
                assert torch.allclose(together[k], call(z[k], int(i[k])), rtol=1e-13)


def test_minima_and_variances_there_are_those_of_the_formulas() -> None:
    f = log_cosh_sum(0.5, (0.6, 0.8), 1.0, n=6)  # ||a||^2 = 1
    assert f.f_star == pytest.approx(float(torch.log(torch.cosh(f.offsets)).mean()), rel=1e-14)
    assert sum(float(s) for s in f.variance(f.center)) == pytest.approx(
        float(torch.tanh(f.offsets).square().mean()), rel=1e-13
    )
    assert f.variances() == (pytest.approx(0.36), pytest.approx(0.64)) == f.variances(3.0)
    q = quadratic_sum(sigma=0.7, n=5)
    assert sum(float(s) for s in q.variance(q.center)) == pytest.approx(0.49, rel=1e-13) and q.f_star == 0
    e = exponential_sum(1.0, (0.3, 0.4), 2.0)
    assert e.f_star == 2.0 == float(e.value(e.center))
    assert sum(float(s) for s in e.variance(e.center)) == pytest.approx(4 * 0.25, rel=1e-13)


def test_a_log_cosh_ell_is_attained_and_its_sigma_approached() -> None:
    """Two components, one direction a of length 1 along x = y: Hess f_1 = m + aa' on the line a'z = b."""
    root = 1 / math.sqrt(2)
    a, b = torch.tensor([[root, root]] * 2, dtype=torch.float64), torch.tensor([9.0, -9.0]).double()
    f = LogCoshSum("pair", 1, 1, (0.5, 0.5), a, b)
    z = torch.tensor([9.0 * root, 9.0 * root], dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(f.hessian_of(z, 0))[-1]) == pytest.approx(1.5, rel=1e-12)
    assert f.component_ell_x(0.0) == pytest.approx(1.5) and f.component_ell_y(7.0) == pytest.approx(1.5)
    assert sum(float(s) for s in f.variance(f.center)) == pytest.approx(sum(f.variances()), rel=1e-6)
    assert f.spread() == pytest.approx(float((f.gradient_of(f.center, 0) - f.gradient(f.center)).norm()), rel=1e-6)


@pytest.mark.parametrize("name", ["quadratics", "indefinite quadratics"])
def test_the_variance_of_quadratics_is_found_by_search(name: str) -> None:
    f = CURVED[name]
    for side, most in enumerate(f.variances(LEVEL)):
        best = climb(f, LEVEL, lambda z, side=side: f.variance(z)[side], sample(f, LEVEL, 3000))[0]  # type: ignore[misc]
        assert 0.99 * most < float(f.variance(best)[side]) <= most * (1 + 1e-9)
    assert f.variances() == (math.inf, math.inf) and f.spread() == math.inf
    same = quadratic_sum(bend=0.0, sigma=0.5, n=3)
    assert sum(same.variances()) == pytest.approx(0.25)
    assert same.spread() == pytest.approx(float(same.shifts.norm(dim=1).max()))


def test_the_largest_quadratic_on_a_ball() -> None:
    """Against 40,000 points of the sphere of the ball, and in closed form where b is 0 or along an eigenvector."""
    rng = np.random.default_rng(0)
    root, b = rng.normal(size=(2, 2)), rng.normal(size=2)
    a, angle = root @ root.T, np.linspace(0, 2 * math.pi, 40_001)
    w = 1.7 * np.stack([np.cos(angle), np.sin(angle)], -1)
    on_sphere = np.einsum("ki,ij,kj->k", w, a, w) + 2 * w @ b
    assert largest_on_ball(a, b, 1.7**2) == pytest.approx(on_sphere.max(), rel=1e-7)
    assert largest_on_ball(np.diag([1.0, 3.0]), np.zeros(2), 4.0) == 12.0
    assert largest_on_ball(np.diag([1.0, 3.0]), np.array([0.0, 2.0]), 4.0) == pytest.approx(12 + 8, rel=1e-9)
    # The hard case: b has no part along the top eigenvector. w = (1/2, sqrt(15)/2): 1/4 + 45/4 + 1 = 12.5
    assert largest_on_ball(np.diag([1.0, 3.0]), np.array([1.0, 0.0]), 4.0) == pytest.approx(12.5, rel=1e-9)


def test_exponentials_of_one_pair_have_their_closed_forms() -> None:
    """d_x = d_y = 1, a = (.6, .8), m = 1: along a f = t^2/2 + cosh t, so that sinh t <= u, e^t <= u + sqrt(1 + u^2)."""
    a = torch.tensor([[0.6, 0.8], [-0.6, -0.8]], dtype=torch.float64)
    f = ExponentialSum("pair", 1, 1, (1.0, 1.0), a, torch.zeros(2).double())
    for u in (0.5, 3.0, 100.0):
        top = min(u + math.hypot(1, u), math.exp(u))
        assert f.component_ell_x(u) == pytest.approx(1 + 0.6 * 1.4 * top)
        assert f.component_ell_y(u) == pytest.approx(1 + 0.8 * 1.4 * top)
        assert f.ell_x(u) == pytest.approx(1 + 0.6 * 1.4 * min(math.hypot(1, u), math.cosh(u)))
        assert f.spread(u) == pytest.approx(top)
    # (c^2/2)(e^2t + e^-2t) at the level: by cosh t = 1 + F, or t = sqrt(2F)
    assert f.variances(0.5)[0] == pytest.approx(0.36 * math.cosh(2 * math.acosh(1.5)))
    assert f.variances(20.0)[1] == pytest.approx(0.64 * math.cosh(2 * math.acosh(21.0)))
    assert "Sphere" in f.gaussian_reason and f.gaussian_moments == "infinite"


def test_the_ell_of_exponentials_grows_linearly_and_not_faster() -> None:
    f = CURVED["exponentials"]
    far = np.array([1e6, 1e8, 1e10])
    for ell in (f.ell_x, f.ell_y, f.component_ell_x, f.component_ell_y):
        np.testing.assert_allclose(ell(far)[1:] / ell(far)[:-1], 100, rtol=1e-6)
        u = np.geomspace(1e-9, 1e12, 500)
        assert (np.diff(ell(u)) >= 0).all()
        assert (f.component_ell_x(u) >= f.ell_x(u)).all()


# Breaking it on purpose


@dataclass(frozen=True)
class Shrunk(QuadraticSum):
    """Quadratics that claim less than their components' ell, and less than their variance."""

    factor: float = 1.0
    share: float = 1.0

    def component_ell(self, u: ArrayLike, side: Side) -> Array:
        return super().component_ell(u, side) * self.factor

    def variances(self, level: float = math.inf) -> tuple[float, float]:
        return (super().variances(level)[0] * self.share, super().variances(level)[1])

    def gradient_of(self, z: Tensor, i: int | Tensor) -> Tensor:
        return super().gradient_of(z, i) * (1 + (self.factor == 0) * 1e-7)


@pytest.mark.check
def test_claims_a_little_too_small_are_refuted() -> None:
    f = CURVED["quadratics"]
    assert isinstance(f, QuadraticSum)
    z = sample(f, LEVEL, 300)
    slack = components(f, z, LEVEL, 1).slack
    wrong = Shrunk("wrong", f.d_x, f.d_y, f.hessians, f.shifts, factor=0.99 * (1 - slack))
    check = components(wrong, z, LEVEL, 1)
    assert not check.passed and check.witness is not None and check.slack == pytest.approx(1 - 1 / 0.99, rel=0.05)
    assert definition(wrong, z, LEVEL, 1).passed, "f itself keeps its own ell"
    assert not scatter(replace(wrong, share=0.99), z, LEVEL).passed and scatter(wrong, z, LEVEL).passed
    assert not derivatives(replace(wrong, factor=0.0), z[:5]).passed


def test_the_ell_of_the_mean_is_too_small_for_components() -> None:
    """What the theorems take (L_max of the paper) is the components': with f's own every component breaks it."""
    f = CURVED["quadratics"]
    assert isinstance(f, QuadraticSum)
    wrong = Shrunk("mean", f.d_x, f.d_y, f.hessians, f.shifts, factor=float(f.ell_x(0.0) / f.component_ell_x(0.0)))
    assert not components(wrong, sample(f, LEVEL, 100), LEVEL, 1).passed
    setting = f.setting(1.0, LEVEL)
    assert setting.ell_x(0.0) == f.component_ell_x(0.0) and setting.sigma2 == pytest.approx(sum(f.variances(LEVEL)))


# What the theorems are given


def test_settings_say_where_sigma_is_bounded() -> None:
    for name, f in CURVED.items():
        here = f.setting(1.0, 8.0)
        g = constants(f.component_ell_x, f.component_ell_y, 8.0).G
        assert here.spread == pytest.approx(f.spread(2 * g)) and (here.sigma2_x, here.sigma2_y) == f.variances(8.0)
        if name == "log cosh":
            assert f.setting(1.0).sigma2 == here.sigma2
        else:
            with pytest.raises(BadInput, match="unbounded, so Assumption 3.3 fails: give the level F"):
                f.setting(1.0)


def test_bad_input_is_refused() -> None:
    for make, bad, message in (
        (log_cosh_sum, {"n": 3}, "n is 3: components come in pairs"),
        (exponential_sum, {"n": 5}, "n is 5: components come in pairs"),
        (log_cosh_sum, {"d_x": 0}, "d_x is 0"),
        (log_cosh_sum, {"mass": 0.0}, "m_x"),
        (log_cosh_sum, {"mass": (1.0, -1.0)}, "m_y"),
        (log_cosh_sum, {"offset": 0.0}, "offset b is 0.0"),
        (exponential_sum, {"c": -1.0}, "strength c"),
        (exponential_sum, {"lengths": (0.0, 1.0)}, "a|| in x is 0.0"),
        (quadratic_sum, {"bend": -0.1}, "bend is -0.1"),
        (quadratic_sum, {"sigma": math.inf}, "sigma is inf"),
        (quadratic_sum, {"n": 1}, "n = 1: one component"),
        (quadratic_sum, {"l_y": 0.0}, "l_y is 0.0"),
    ):
        with pytest.raises(BadInput, match=message.replace("|", r"\|")):
            make(**bad)  # type: ignore[operator]
    a = torch.eye(2).double()
    with pytest.raises(BadInput, match="not paired"):
        LogCoshSum("alone", 1, 1, (1.0, 1.0), a, torch.ones(2).double())
    with pytest.raises(BadInput, match="not positive definite"):
        QuadraticSum("saddle", 1, 1, torch.diag(torch.tensor([1.0, -1.0]))[None].double(), torch.zeros(1, 2).double())
    for f in CURVED.values():
        for call in (f.value, f.gradient):
            with pytest.raises(BadInput, match="last dimension"):
                call(torch.zeros(9).double())


def test_sums_serve_as_losses_on_blocks() -> None:
    for f in CURVED.values():
        assert isinstance(f, FiniteSum)
        blocks = f.blocks()
        z = torch.full((f.dim,), 0.5).double()
        assert f.loss(blocks)().item() == pytest.approx(float(f.value(z)))
        g = torch.autograd.grad(f.loss(blocks, 1)(), blocks["x"].params)[0]
        assert torch.allclose(g, f.gradient_of(z, 1)[: f.d_x])
        with pytest.raises(BadInput, match="no component"):
            f.loss(blocks, f.n)
