"""Families and couplings: any two with any coupling, exact sublevel constants, and what is refused."""

import math

import numpy as np
import pytest
import torch

from smoothlab.errors import BadInput
from smoothlab.objectives import (
    Barrier,
    Cosh,
    CosineCoupling,
    Exponential,
    LogCoshCoupling,
    Oscillating,
    Power,
    Quadratic,
    QuadraticCoupling,
    objective,
)
from smoothlab.objectives.checks import derivatives, scaled_hessian
from smoothlab.objectives.sublevel import sample
from tests.cases import COUPLINGS, FAMILIES

families = pytest.mark.parametrize("name", FAMILIES)


def check_combination(x: str, y: str, coupling: str, levels: tuple[float, ...], points: int) -> None:
    """Derivatives, Definition 2.1 with both signs, f >= f*, and the gradient's bound on sublevel sets."""
    i = list(FAMILIES).index(y)
    f = objective(FAMILIES[x], FAMILIES[y], COUPLINGS[coupling], d_x=1 + i % 3, d_y=3 - i % 3)
    for level in levels:
        z = sample(f, level, points, seed=i)
        assert derivatives(f, z[::15]).passed
        assert bool((f.value(z) >= 0).all()) and bool((f.value(z) <= level * (1 + 1e-9)).all())
        assert float(torch.linalg.eigvalsh(scaled_hessian(f, z)).abs().max()) <= 1 + 1e-9
        assert float(f.gradient(z).norm(dim=-1).max()) <= f.constants(level).G * (1 + 1e-8)


@pytest.mark.parametrize("coupling", COUPLINGS)
@families
def test_any_two_families_with_any_coupling(name: str, coupling: str) -> None:
    shift = list(FAMILIES).index(name) + list(COUPLINGS).index(coupling)
    for y in np.roll(list(FAMILIES), shift)[:2]:
        check_combination(name, str(y), coupling, ((1e-3, 10.0, 1e4)[shift % 3],), 100)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", COUPLINGS)
@families
def test_all_combinations_at_all_levels(name: str, coupling: str) -> None:
    for y in FAMILIES:
        check_combination(name, y, coupling, (1e-3, 10.0, 1e4), 1000)


@families
def test_each_bound_is_non_decreasing_sub_quadratic_and_quiet(name: str) -> None:
    psi = FAMILIES[name]
    u = np.concatenate([[0.0], np.geomspace(1e-300, 1e300, 2001)])
    with np.errstate(all="raise", under="ignore"):
        values = psi.ell(u)
    assert values.shape == u.shape and psi.ell(2.0).shape == () and (values[1:] >= values[:-1] * (1 - 1e-12)).all()
    for coupling in COUPLINGS.values():
        f = objective(psi, psi, coupling)
        with np.errstate(all="raise", under="ignore"):
            for ell in (f.ell_x, f.ell_y):
                assert (ell(u)[1:] >= ell(u)[:-1] * (1 - 1e-12)).all() and (ell(u) >= values).all()
    far = np.geomspace(1e20, 1e120, 11)
    with np.errstate(over="ignore"):
        assert (np.diff(np.log(psi.ell(far)) - 2 * np.log(far)) < 0).all()


@families
def test_families_are_even_with_minimum_0_and_reach_no_farther_than_said(name: str) -> None:
    psi, draw = FAMILIES[name], torch.Generator().manual_seed(0)
    for level in (1e-6, 1.0, 50.0):
        edge = psi.edge(level)
        top = torch.tensor(edge, dtype=torch.float64)
        assert float(psi.value(top)) >= level * (1 - 1e-12)
        t = (2 * torch.rand(2000, 4, generator=draw, dtype=torch.float64) - 1) * edge
        assert torch.equal(psi.value(t), psi.value(-t)) and bool((psi.value(t) > 0).all())
        slope, length = psi.slope(t), t.norm(dim=-1)
        along = (slope * t).sum(-1)
        assert bool((along >= psi.floor * length.square() * (1 - 1e-12) - psi.deficit(4)).all())
        assert bool((length.numpy() <= psi.reach(slope.norm(dim=-1).numpy(), 4) * (1 + 1e-12)).all())
        sampled = psi.curvature(t[psi.value(t) <= level]).abs().max()
        assert float(sampled) <= psi.sublevel_curvature(level) * (1 + 1e-6)


def test_reach_and_deficit_of_powers_are_attained() -> None:
    """With all entries alike: tight in every dimension."""
    psi, dim = Power(0.7, 4.0), 9
    t = torch.ones(dim, dtype=torch.float64)
    assert float(t.norm()) == pytest.approx(float(psi.reach(float(psi.slope(t).norm()), dim)))
    r = math.sqrt(dim) * (2 / psi.p) ** (1 / (psi.p - 2))
    t *= r / math.sqrt(dim)
    assert float((psi.slope(t) * t).sum()) == pytest.approx(psi.floor * r**2 - psi.deficit(dim))


@pytest.mark.parametrize("level", [0.01, 1.0, 100.0])
def test_exact_sublevel_constants(level: float) -> None:
    """theory.md E: cosh L0 + L1^2 F, powers of p = 4 6 sqrt(c F), quadratics L."""
    assert Cosh(2.0, 0.5).sublevel_curvature(level) == pytest.approx(2 + level / 4, rel=1e-12)
    assert Power(3.0, 4.0).sublevel_curvature(level) == pytest.approx(6 * math.sqrt(3 * level), rel=1e-12)
    assert Quadratic(7.0).sublevel_curvature(level) == 7
    # T1 reproduces them, where this block's ell is the larger one: ell_x(G) is the exact constant.
    for psi in (Cosh(2.0, 0.5), Power(3.0, 4.0), Quadratic(7.0)):
        f = objective(psi, psi, d_x=1, d_y=1)
        assert f.constants(level).L_x == pytest.approx(psi.sublevel_curvature(level), rel=1e-8)


def test_values_keep_their_digits_near_0_and_do_not_overflow_early() -> None:
    t = torch.tensor([1e-9, 0.3, 300.0], dtype=torch.float64)
    value = LogCoshCoupling(1.0).phi(t)[0]
    assert value[0] == pytest.approx(0.5e-18) and value[2] == pytest.approx(300 - math.log(2), rel=1e-15)
    assert value[1] == pytest.approx(math.log(math.cosh(0.3)), rel=1e-14)
    small = t[0]
    for psi, curvature in (
        (Cosh(2.0, 3.0), 2.0),
        (Oscillating(0.3, 1.75), 1.0),
        (Exponential(), 2.0),
        (Barrier(1.5), 3.0),
    ):
        assert float(psi.value(small)) == pytest.approx(curvature / 2 * 1e-18, rel=1e-9, abs=0)
    far = torch.full((1, 5), 1e3, dtype=torch.float64)
    f = objective(Cosh(1.0, 2.0), Exponential())
    assert float(f.value(far)) == math.inf and bool(f.gradient(far).isposinf().all())


def test_outside_its_domain_a_barrier_is_infinite_and_has_no_gradient() -> None:
    f = objective(Barrier(0.5), Quadratic(1.0), LogCoshCoupling(1.0))
    z = torch.zeros(3, 5, dtype=torch.float64)
    z[1, 0], z[2, 2] = 1.0, -1.5
    assert f.inside(z).tolist() == [True, False, False] and f.value(z).tolist() == [0, math.inf, math.inf]
    assert f.gradient(z)[:, :3].isnan().any(-1).tolist() == [False, True, True]
    assert f.hessian(z).isnan().any(-1).any(-1).tolist() == [False, True, True]
    z = f.at_level(torch.ones(5), 1e3)
    assert bool(f.inside(z)) and float(f.value(z)) == pytest.approx(1e3)


def test_infinite_gaussian_moments_are_said_with_the_reason() -> None:
    y = Cosh(1.0, 1.0)
    for psi in (Quadratic(1.0), Power(1.0, 3.0), Oscillating(0.3, 1.5)):
        assert objective(psi, y).gaussian_moments == "finite" and objective(psi, y).gaussian_reason == ""
    for psi in (Cosh(1.0, 1.0), Exponential(), Barrier()):
        f = objective(psi, Quadratic(1.0))
        assert f.gaussian_moments == "infinite" and "Sphere" in f.gaussian_reason and "\n" not in f.gaussian_reason


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quadratic(0.0), "curvature L"),
        (lambda: Quadratic(math.inf), "curvature L"),
        (lambda: Cosh(-1.0, 1.0), "L0"),
        (lambda: Cosh(1.0, 0.0), "L1"),
        (lambda: Power(1.0, 2.0), "above 2"),
        (lambda: Power(0.0, 3.0), "factor c"),
        (lambda: Power(1.0, math.nan), "above 2"),
        (lambda: Oscillating(0.3, 2.0), "1 <= m < 2"),
        (lambda: Oscillating(0.7, 1.5), "below 1"),
        (lambda: Barrier(math.nan), "exponent p"),
        (lambda: CosineCoupling(0.0), "strength c"),
        (lambda: QuadraticCoupling(1.0, 0.0), "length p"),
        (lambda: LogCoshCoupling(1.0, 1.0, -2.0), "length q"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)
