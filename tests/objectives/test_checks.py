"""The checks that every objective joins, on those of tests/cases.py; false claims and broken code are seen."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.experiments.rates.config import FAMILIES, RatesConfig
from smoothlab.objectives import OBJECTIVES as TABLE
from smoothlab.objectives import Check, Cosh, Function, Objective, Quadratic, build, check_all, objective
from smoothlab.objectives.checks import definition, derivatives, sigma, t1, t2
from smoothlab.objectives.psi import Array, Side
from smoothlab.objectives.sublevel import climb, sample
from tests.cases import OBJECTIVES

LEVEL = 10.0
VARIANTS = ("E5b", "E6b", "powers, product", "quadratic, hidden")
"""Objectives of the same families as others, at other constants."""
names = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.check) if n in VARIANTS else n for n in OBJECTIVES]
)
POINTS = 10_000


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@names
def test_every_objective_passes_every_check(name: str) -> None:
    checks = check_all(OBJECTIVES[name], LEVEL, POINTS)
    assert len(checks) == 7
    for check in checks:
        assert check.passed and check.witness is None, str(check)
    for check in checks[:4]:
        assert check.points >= 0.99 * POINTS, str(check)


def extremes(f: Objective) -> list[float]:
    """The largest ||grad f||, ||H_xx|| and ||H_yy|| that samples and searches find on f - f* <= LEVEL."""

    def block(rows: slice) -> Callable[[Tensor], Tensor]:
        return lambda z: torch.linalg.eigvalsh(f.hessian(z)[..., rows, rows]).abs().amax(-1)

    z = sample(f, LEVEL, 10_000)
    scores = (lambda z: f.gradient(z).norm(dim=-1), block(slice(None, f.d_x)), block(slice(f.d_x, None)))
    return [float(score(climb(f, LEVEL, score, z)[0])) for score in scores]


@names
def test_gradients_and_curvatures_found_are_within_the_bounds(name: str) -> None:
    """max ||grad f|| found <= G by T1 <= by ell(u) <= by ell(2u); sup H_xx <= ell_x(G), sup H_yy <= ell_y(G)."""
    f = OBJECTIVES[name]
    (gradient, h_xx, h_yy), known = extremes(f), f.constants(LEVEL)
    assert 0 < gradient <= known.G * (1 + 1e-9) <= known.G_printed * (1 + 2e-9) <= known.G_doubled * (1 + 3e-9)
    assert h_xx <= known.L_x * (1 + 1e-9) and h_yy <= known.L_y * (1 + 1e-9)
    if f.coupling is None:  # the search finds the exact sublevel constants, in each block alone
        assert h_xx == pytest.approx(f.x.sublevel_curvature(LEVEL), rel=1e-3)
        assert h_yy == pytest.approx(f.y.sublevel_curvature(LEVEL), rel=1e-3)


def test_t1_is_attained_by_cosh() -> None:
    """theory.md B.3: 40.0 by ell(2u), 20.0 by ell(u), 10.9545 by T1, which is exact."""
    (gradient, *_), known = extremes(OBJECTIVES["cosh alone"]), OBJECTIVES["cosh alone"].constants(LEVEL)
    assert gradient == pytest.approx(math.sqrt(120), rel=1e-6)
    assert known.G == pytest.approx(math.sqrt(120), rel=1e-9)
    assert (round(known.G_printed, 1), round(known.G_doubled, 1)) == (20.0, 40.0)


@pytest.mark.parametrize("name", TABLE)
def test_every_objective_of_the_table_passes_every_check(name: str) -> None:
    """To add one is an entry in `smoothlab.objectives.OBJECTIVES`; the command line offers it at once."""
    f = build(name, ratio=3.0, d=2, n=4)
    assert f.name == name and (f.d_x, f.d_y, f.n) == (2, 1, 4)
    assert TABLE[name].steep == (f.gaussian_moments == "infinite")
    for check in check_all(f, LEVEL, 1000):
        assert check.passed, str(check)


def test_the_command_line_offers_the_table() -> None:
    annotation = get_type_hints(RatesConfig)["families"]
    assert get_args(get_args(annotation)[0]) == tuple(TABLE) == RatesConfig.choices["families"]
    assert all(f"{name}: {entry.description}" in FAMILIES for name, entry in TABLE.items())


# Breaking it on purpose


@dataclass(frozen=True)
class Shrunk(Objective):
    """An objective that claims less than its ell."""

    factor: float = 1.0

    def ell(self, u: ArrayLike, side: Side) -> Array:
        return super().ell(u, side) * self.factor


def shrunk(f: Objective, factor: float) -> Shrunk:
    return Shrunk(f.name, f.d_x, f.d_y, f.x, f.y, f.coupling, f.shifts, factor)


QUICK = ("E3", "E6b", "E8", "E9", "quadratic, hidden")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OBJECTIVES])
def test_an_ell_one_percent_too_small_is_refuted_by_the_point_shown(name: str) -> None:
    f = OBJECTIVES[name]
    z = sample(f, LEVEL, 2000)
    slack = definition(f, z, LEVEL, 1).slack
    check = definition(shrunk(f, 0.99 * (1 - slack)), z, LEVEL, 1)
    assert not check.passed and check.witness is not None
    assert check.slack == pytest.approx(1 - 1 / 0.99, rel=0.2)
    w = check.witness
    assert w.measured > w.allowed and float(f.value(w.z)) <= LEVEL * (1 + 1e-12)
    assert w.gradient_norm == pytest.approx(float(f.gradient(w.z).norm()))
    assert w.ell_x == pytest.approx(0.99 * (1 - slack) * float(f.ell_x(w.gradient_norm)))
    assert "FALSE" in str(check) and "||grad f||" in str(check) and "ell_x" in str(check)


@pytest.mark.parametrize("name", ["E3", "E4", "E5", "cosh alone"])
def test_an_ell_halved_is_refuted(name: str) -> None:
    checks = by_name(check_all(shrunk(OBJECTIVES[name], 0.5), LEVEL, 2000))
    assert not checks["definition 2.1, Hess f <= D (as printed)"].passed
    assert not checks["T2"].passed
    if name != "E4":  # where lM is tight along one block only
        assert not checks["T1"].passed and checks["T1"].witness is not None
    assert checks["definition 2.1, Hess f >= -D"].passed, "convex, or nearly"


def test_a_minimum_claimed_too_high_is_refuted_by_t1_and_t2() -> None:
    known = OBJECTIVES["E3"]
    f = Function("raised", known.value, known.ell_x, known.ell_y, known.d_x, known.d_y, f_star=1e-6)
    z = sample(known, LEVEL, 2000)
    assert not t1(f, z).passed and not t2(f, z).passed


@dataclass(frozen=True)
class Crooked(Cosh):
    """A wrong second derivative, by one part in a million."""

    def curvature(self, t: Tensor) -> Tensor:
        return super().curvature(t) * (1 + 1e-6)


@dataclass(frozen=True)
class Bent(Cosh):
    """A wrong first derivative."""

    def slope(self, t: Tensor) -> Tensor:
        return super().slope(t) + 1e-6 * t


@pytest.mark.parametrize("family", [Crooked, Bent])
def test_wrong_derivatives_are_seen(family: type[Cosh]) -> None:
    f = objective(family(1.0, 0.5), Quadratic(3.0))
    check = derivatives(f, sample(f, LEVEL, 100))
    assert not check.passed and -1e-4 < check.slack < -1e-8


def test_shifts_that_are_off_are_seen() -> None:
    f = OBJECTIVES["E1"]
    z = sample(f, LEVEL, 10)
    assert sigma(f, z).passed
    assert not sigma(replace(f, shifts=f.shifts + 1e-6), z).passed, "they do not sum to 0"

    @dataclass(frozen=True)
    class Misstated(Objective):
        @property
        def sigma2(self) -> float:
            return super().sigma2 * (1 + 1e-6)

    wrong = Misstated(f.name, f.d_x, f.d_y, f.x, f.y, f.coupling, f.shifts)
    assert not sigma(wrong, z).passed


# A user's own function


def dented(z: Tensor) -> Tensor:
    """x^2/2 + y^2/2 with a slope that falls by 2.5 at x = 3: f_xx = 1 - 10 exp(-(x - 3)^2/0.02) (theory.md B)."""
    x, width = z[0], math.sqrt(0.02)
    s, s0 = (x - 3) / width, -3 / width

    def primitive(t: Tensor) -> Tensor:
        return t * torch.erf(t) + torch.exp(-t.square()) / math.sqrt(math.pi)  # of erf

    half = 10 * width**2 * math.sqrt(math.pi) / 2
    dent = half * (primitive(s) - primitive(torch.tensor(s0, dtype=z.dtype)) + (s - s0))
    return z.square().sum() / 2 - dent


def test_the_one_sided_definition_alone_lets_a_false_claim_pass() -> None:
    """theory.md B: ell = 1 satisfies Definition 2.1 as printed, and the gradient is not 1-Lipschitz."""
    one = lambda u: np.ones_like(np.asarray(u, dtype=float))  # noqa: E731
    claim = Function("dented", dented, one, one, 1, 1)
    checks = by_name(check_all(claim, LEVEL, 2000))
    assert checks["definition 2.1, Hess f <= D (as printed)"].passed
    below = checks["definition 2.1, Hess f >= -D"]
    assert not below.passed and below.witness is not None
    assert float(below.witness.z[0]) == pytest.approx(3, abs=1e-3)
    assert below.witness.eigenvalue == pytest.approx(-9, rel=1e-4) and below.witness.allowed == pytest.approx(-1)
    assert "-9" in str(below) and "(3," in str(below).replace("3.00000", "3").replace("2.99999", "3")
    assert checks["T1"].passed and checks["T2"].passed, "the one-sided bound suffices for both (theory.md B.2)"


@pytest.mark.parametrize("name", ["E7", pytest.param("E9", marks=pytest.mark.check)])
def test_a_function_in_torch_gets_the_same_checks(name: str) -> None:
    f = OBJECTIVES[name]
    away = torch.linspace(-1, 1, f.dim, dtype=torch.float64)
    claim = Function("own", lambda z: f.value(z - away) - 2, f.ell_x, f.ell_y, f.d_x, f.d_y, -2.0, away)
    own, built_in = by_name(check_all(claim, LEVEL, 1000)), by_name(check_all(f, LEVEL, 1000))
    assert len(own) == 5
    for check in own.values():
        assert check.passed, str(check)
        assert check.slack == pytest.approx(built_in[check.name].slack, rel=0.1, abs=1e-6)


def test_functions_that_are_not_coercive_are_found_out() -> None:
    two = lambda u: 2 + np.asarray(u, dtype=float)  # noqa: E731
    bounded = Function("bounded", lambda z: z @ z / (1 + z @ z), two, two, 1, 1)
    with pytest.raises(BadInput, match="not coercive"):
        check_all(bounded, LEVEL, 100)
    returning = Function("returning", lambda z: z @ z * torch.exp(-z @ z / 50), two, two, 1, 1)
    assert not by_name(check_all(returning, LEVEL, 100))["coercivity"].passed


def test_bad_input_is_refused() -> None:
    one = lambda u: u  # noqa: E731
    with pytest.raises(BadInput, match="at least one entry"):
        Function("none", lambda z: z @ z, one, one, 2, 0)
    for level, points in ((0.0, 10), (math.inf, 10), (1.0, 0), (math.nan, 10)):
        with pytest.raises(BadInput, match="positive"):
            check_all(OBJECTIVES["E1"], level, points)


def test_the_search_finds_a_narrow_peak() -> None:
    """Of width 1e-3 in five dimensions, seen by no sample point but up its slope."""
    f = OBJECTIVES["E1"]
    peak = torch.full((5,), 0.3, dtype=torch.float64)
    score = lambda z: 1 / (1 + ((z - peak) / 1e-3).square().sum(-1))  # noqa: E731
    start = sample(f, LEVEL, 1000)
    assert float(score(start).max()) < 1e-4
    assert float(score(climb(f, LEVEL, score, start))[0]) > 0.9
