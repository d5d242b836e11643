"""Exact values of the instrument's constants and formulas, which statistical tests leave room to change.

Most of them were found by mutants that no test saw (tests/mutation_runs.py).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian.basis import Basis, Projection
from smoothlab.hessian.deflation import Deflation, first_look, gram_matrix
from smoothlab.hessian.estimates import doubt, frobenius_estimate
from smoothlab.hessian.exact import ExactHessian, frobenius
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian, Scheme, Step
from smoothlab.hessian.layers import LayerRows
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.minibatch import Minibatch
from smoothlab.stats.intervals import Interval, half_width
from smoothlab.stats.probes import effective_rank, lanczos_reach, mean_of_forms, spectral_upper
from smoothlab.theory.constants import Array, Ell
from smoothlab.theory.theorems import (
    Descent,
    Printed,
    Setting,
    descent,
    in_expectation,
    theorem_c1,
    with_high_probability,
)
from smoothlab.zeroth.distributions import Rademacher
from smoothlab.zeroth.estimators import ZerothOrder
from tests.cases import DenseHessian

EPS = torch.finfo(torch.float64).eps

# hessian: rounding


class Rounded(ExactHessian):
    """Products with an independent rounding error of relative size `size` each."""

    size = 1e-3

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        (image,) = super().product(v, along, wrt)
        self.calls = getattr(self, "calls", 0) + 1
        generator = torch.Generator().manual_seed(self.calls)
        error = torch.randn(len(image), dtype=image.dtype, generator=generator)
        return (image + error * (self.size * image.norm() / error.norm()),)


def test_the_noise_of_an_exact_product_is_the_size_of_one_rounding_error() -> None:
    """Two independent errors of norm s ||Hv|| differ by sqrt(2) s ||Hv||, to 1/sqrt(2 d) in relative terms."""
    w = nn.Parameter(torch.linspace(1, 2, 20_000, dtype=torch.float64))
    hessian = Rounded(lambda: w.pow(3).sum(), [Block("w", (w,))])
    v = torch.ones_like(w)
    (image,) = hessian.product(v, "w", ["w"])
    noise, spent = hessian.noise(v, image, "w")
    assert noise == pytest.approx(1e-3, rel=5 / math.sqrt(2 * 20_000)) and spent == 1
    assert hessian.noise(v, torch.zeros_like(w), "w") == (0.0, 1)


def test_a_given_step_is_not_checked_and_its_rounding_is_divided_by_it() -> None:
    w = nn.Parameter(torch.linspace(1, 2, 7, dtype=torch.float64))
    v = torch.ones_like(w)
    for scheme, factor in (("forward", math.sqrt(2)), ("central", 1 / math.sqrt(2))):
        hessian = FiniteDifferenceHessian(lambda: w.pow(3).sum(), [Block("w", (w,))], h=1e-3, scheme=scheme)
        noise = hessian.gradient_noise(v, "w")
        assert hessian.rounding(v, "w") == pytest.approx(factor * noise / 1e-3, rel=1e-12)
        assert hessian.steps["w"] == Step(h=1e-3, noise=noise, error=None, kinks=False)


class Kinked(nn.Module):
    """f = <c, b> + sum_k J_k relu(side_k (a - t_k ulp)), at a = 0 and b = (1, 0, ...): d f/da jumps at each t_k.

    ulp is eps times the block's norm, so that `length` ulp is the length of the k-th move of `gradient_noise` along a.
    """

    def __init__(self, kinks: dict[float, float], constant: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1 + len(constant), dtype=torch.float64))
        with torch.no_grad():
            self.w[1] = 1.0
        self.kinks, self.constant = kinks, constant

    def forward(self) -> Tensor:
        loss = self.w[1:] @ self.constant
        for ulp, jump in self.kinks.items():
            loss = loss + jump * torch.relu(math.copysign(1.0, ulp) * self.w[0] - abs(ulp) * EPS)
        return loss

    def noise(self) -> float:
        along = torch.zeros_like(self.w)
        along[0] = 3.0
        return FiniteDifferenceHessian(self, [Block("w", (self.w,))]).gradient_noise(along.detach(), "w")


@pytest.mark.parametrize(
    ("kinks", "expected"),
    [
        ({40.0: 1.0}, 0.0),  # beyond the moves of 16 and 32 ulp
        ({-1.5: 1.0}, 0.0),  # the first move is enough
        ({20.0: 1.0, -3.0: 1.0}, 0.0),  # moves of -1 and -2
        ({12.0: 1.0, -1.5: 1.0, 0.6: 5.0, -0.1: 3.0}, 0.0),  # moves of 1/4 and 1/2
        ({0.4: 1.0, -1.5: 1.0, -0.2: 5.0}, 0.0),  # moves of -1/16 and -1/8
        ({0.4: 1.0, -0.1: 1.0, 10.0: 7.0}, 1.0),  # all of them: the root mean square of the last three
        ({0.4: 2.0, -0.1: 1.0, -0.7: 3.0}, math.sqrt((4**2 + 2**2 + 1) / 3)),
    ],
)
def test_gradient_noise_shortens_its_move_until_no_kink_is_met(kinks: dict[float, float], expected: float) -> None:
    """Without rounding the second difference is a kink's jump J, whose share of the noise is J/sqrt(6)."""
    assert Kinked(kinks, torch.zeros(1).double()).noise() == pytest.approx(expected / math.sqrt(6), rel=1e-12)


@pytest.mark.parametrize(("times", "short"), [(3.9, False), (4.1, True)])
def test_a_second_difference_of_four_times_the_backward_passs_rounding_is_a_kink(times: float, short: bool) -> None:
    constant = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = constant[(3 / 7) * constant * (7 / 3) != constant]  # those that the two factors round
    backward = float(((3 / 7) * constant * (7 / 3) - constant).norm()) / math.sqrt(2)
    assert backward > EPS * float(constant.norm()) / math.sqrt(12)
    noise = Kinked({20.0: times * backward * math.sqrt(6)}, constant).noise()
    assert noise == pytest.approx(backward * (1 if short else times), rel=1e-2)


def test_gradient_noise_is_at_least_the_error_of_storing_the_gradient() -> None:
    """Powers of two survive 3/7 and 7/3, and nothing else rounds: what is left is eps ||g||/sqrt(12)."""
    constant = torch.tensor([4.0, 8.0], dtype=torch.float64)
    assert torch.equal((3 / 7) * constant * (7 / 3), constant)
    expected = EPS * math.sqrt(80) / math.sqrt(12)
    assert Kinked({}, constant).noise() == pytest.approx(expected, rel=1e-12)


# hessian: the chosen step


class Known(FiniteDifferenceHessian):
    """Differences whose gradients' rounding error is known, and far above the real one."""

    known = 1e-9

    def gradient_noise(self, v: Tensor, along: str) -> float:
        return self.known


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize(("known", "longest"), [(1e-11, None), (1e-9, None), (1e-5, 0.3), (1e-6, 0.3), (1e-7, 0.3)])
def test_the_chosen_step_has_the_least_of_truncation_and_rounding(
    scheme: Scheme, known: float, longest: float | None
) -> None:
    """f = sum w^2/2 + w^3/6 + w^4/24: along u, the quotients are Hu + (h/2) T[u, u] (forward) + (h^2/6) F[u, u, u]."""
    d = 50
    w = nn.Parameter(torch.linspace(-1.0, 2.0, d, dtype=torch.float64))
    hessian = Known(lambda: (w**2 / 2 + w**3 / 6 + w**4 / 24).sum(), [Block("w", (w,))], scheme=scheme)
    hessian.known = known
    v = 3.0 * torch.linspace(0.5, 1.5, d, dtype=torch.float64)
    u, order = v / v.norm(), 1 if scheme == "forward" else 2

    def quotient(h: float) -> Tensor:
        odd = h / 2 * (1 + w) * u**2 if scheme == "forward" else 0.0
        return ((1 + w + w**2 / 2) * u + odd + h**2 / 6 * u**3).detach()

    step = hessian.choose_step(v, "w", longest)
    longest = longest or 16 * float(w.detach().norm()) * EPS ** (1 / (order + 1))
    floor = known * (math.sqrt(2) if scheme == "forward" else math.sqrt(0.5))
    errors = {}
    for i in range(5):  # the gap of two quotients holds 1 - 4^-p of the longer one's truncation
        h = longest / 4**i
        truncation = float((quotient(h) - quotient(h / 4)).norm()) / (4**order - 1)
        errors[h / 4] = truncation + floor / (h / 4)
    best = min(errors, key=errors.__getitem__)
    assert step.h == pytest.approx(best, rel=1e-12) and step.noise == known and not step.kinks
    assert step.error == pytest.approx(errors[best] / float(quotient(best).norm()), rel=1e-3)


class Planted(Known):
    """Quotients along v whose neighbors differ by prescribed gaps, the last of them `size` long."""

    def __init__(self, gaps: Sequence[float], scheme: Scheme, size: float = 1.0, known: float = 0.0) -> None:
        w = nn.Parameter(torch.full((4,), 1.5, dtype=torch.float64))  # ||w|| = 3
        super().__init__(lambda: w.sum(), [Block("w", (w,))], scheme=scheme)
        self.known, self.moves = known, list[float]()
        self.quotients = [size + sum(gaps[i:]) for i in range(len(gaps) + 1)]

    def difference(self, v: Tensor, along: str, h: float, wrt: Sequence[str], squared: float) -> tuple[Tensor, ...]:
        self.moves.append(h * squared**0.5)
        return (v * self.quotients[len(self.moves) - 1],)


def geometric(*ratios: float, first: float = 1.0) -> list[float]:
    """Gaps, each so many times shorter than the one before."""
    return [first / math.prod(ratios[:i]) for i in range(len(ratios) + 1)]


@pytest.mark.parametrize(
    ("gaps", "order", "kinks"),
    [
        (geometric(4, 4, 4, 4), 1, False),
        (geometric(2.1, 2.1, 2.1, 2.1), 1, False),
        (geometric(1.9, 1.9, 1.9, 1.9), 1, True),
        (geometric(16, 16, 16, 16), 2, False),
        (geometric(4.1, 4.1, 4.1, 4.1), 2, False),
        (geometric(3.9, 3.9, 3.9, 3.9), 2, True),
        (geometric(1, 1, 9, 9), 1, False),  # the third of the sorted ratios decides
        (geometric(9, 1, 1.9, 1), 1, True),
        (geometric(9, 1, 2.1, 1), 1, False),
        (geometric(1, 1, 1, 1, first=0.0105), 1, True),  # against 1 % of the product, 1 + 4 gaps
        (geometric(1, 1, 1, 1, first=0.0103), 1, False),
        ([0.0] * 5, 1, False),
    ],
)
def test_kinks_are_differences_that_do_not_shrink_as_smoothness_demands(
    gaps: list[float], order: int, kinks: bool
) -> None:
    hessian = Planted(gaps, "forward" if order == 1 else "central")
    v = torch.tensor([0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    step = hessian.choose_step(v, "w")
    assert step.kinks is kinks and (step.error is None) is kinks
    assert hessian.moves == pytest.approx([48 * EPS ** (1 / (order + 1)) / 4**i for i in range(6)], rel=1e-12)


@pytest.mark.parametrize(("times", "kinks"), [(3.9, False), (4.1, True)])
def test_only_differences_of_four_roundings_are_looked_at_for_kinks(times: float, kinks: bool) -> None:
    known, longest = 1e-11, 48 * EPS**0.5
    floors = [math.sqrt(2) * known * 4**i / longest for i in range(6)]
    gaps = [times * (a + b) for a, b in zip(floors, floors[1:], strict=False)]
    assert gaps[-1] > 0.01
    v = torch.tensor([0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    assert Planted(gaps, "forward", known=known).choose_step(v, "w").kinks is kinks


def test_kinks_are_looked_for_up_to_8_percent_of_the_weights() -> None:
    v = torch.tensor([0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    for gaps, kinks in ((geometric(1, 1, 1, 1), True), (geometric(16, 16, 16, 16), False)):
        hessian = Planted(gaps, "central")
        assert hessian.has_kinks(v, "w") is kinks
        assert hessian.moves[0] == pytest.approx(0.08 * 3, rel=1e-12)


def test_a_product_that_is_zero_has_no_relative_rounding_error() -> None:
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    hessian = FiniteDifferenceHessian(lambda: w.sum(), [Block("w", (w,))], h=1e-3)
    assert hessian.noise(torch.ones_like(w), torch.zeros_like(w), "w")[0] == 0.0


# theorems


def ell(value: float, slope: float = 0.0) -> Ell:
    """ell(u) = value + slope u."""

    def function(u: ArrayLike) -> Array:
        return value + slope * np.asarray(u, dtype=float)

    return function


SETTING = Setting(ell(1.5), ell(0.5), gap=2.0, n=3, d=5, sigma2_x=0.7, sigma2_y=1.1, spread=0.4)


def noise(s: Setting, eta_x: float, eta_y: float, mu: float, l_x: float, l_y: float) -> float:
    """B.6' as its docstring has it."""
    theta = s.n * max(eta_x * l_x, eta_y * l_y)
    beta2, v = (mu * l_x) ** 2 * s.d, (mu * l_x) ** 2 * s.d * (s.d + 2) * (s.d + 4) / 2
    of_sums = theta**2 * (eta_x * s.sigma2_x + eta_y * s.sigma2_y)
    return (
        of_sums
        + 6 * s.n * (s.d + 1) * l_x * eta_x**2 * s.sigma2_x
        + 3 * s.n * eta_x * beta2
        + 2 * s.n * eta_x**2 * l_x * v
    )


@pytest.mark.parametrize(("eta_x", "eta_y", "theta"), [(1e-3, 1e-2, 0.015), (1e-2, 1e-2, 0.045)])
def test_descent_of_one_epoch_is_b6_corrected(eta_x: float, eta_y: float, theta: float) -> None:
    for mu in (0.0, 0.3):
        found = descent(SETTING, eta_x, eta_y, mu, 1.5, 0.5)
        assert found.theta == pytest.approx(theta, rel=1e-12) and found.drift == pytest.approx(9 * eta_x, rel=1e-12)
        assert found.decrease_x == pytest.approx(3 * eta_x / 4, rel=1e-12)
        assert found.decrease_y == pytest.approx(9 * eta_y / 8, rel=1e-12)
        assert found.noise == pytest.approx(noise(SETTING, eta_x, eta_y, mu, 1.5, 0.5), rel=1e-12)


def test_b6_holds_up_to_theta_an_eighth_and_drift_a_64th() -> None:
    above = math.nextafter(1.0, 2.0)
    for theta, drift, holds in ((1, 1, True), (above, 1, False), (1, above, False), (0, 0, True)):
        assert Descent(theta / 8, drift / 64, 0.0, 0.0, 0.0).holds is holds


@pytest.mark.parametrize(
    ("changes", "eps", "eta"),
    [
        ({"n": 60, "sigma2_x": 0.0, "sigma2_y": 0.0}, 0.1, 1 / (8 * 60 * 2)),
        ({"sigma2_x": 0.0, "sigma2_y": 0.0}, 0.1, 1 / (64 * 2 * 6)),
        ({"sigma2_x": 0.0}, 0.01, 0.01 / (4 * math.sqrt(3 * 1.1) * 2)),
        ({}, 0.1, 0.01 / (96 * 6 * 2 * 0.7)),
    ],
)
def test_each_bound_of_the_expectation_theorems_rate(changes: dict[str, float], eps: float, eta: float) -> None:
    """Its rate is the least of four; T = 16 Delta/(n eta eps^2), and mu's noise is n eta eps^2/16."""
    s = replace(SETTING, **changes)  # type: ignore[arg-type]
    found = in_expectation(s, eps, 2.0)
    assert found.eta_x == found.eta_y == pytest.approx(eta, rel=1e-12)
    assert found.T == math.ceil(16 * 2.0 / (s.n * found.eta_x * eps**2))
    of_mu = noise(s, eta, eta, found.mu, 2.0, 2.0) - noise(s, eta, eta, 0.0, 2.0, 2.0)
    assert of_mu == pytest.approx(s.n * eta * eps**2 / 16, rel=1e-6)
    assert (found.eps, found.delta, found.n, found.L_x, found.L_y) == (eps, 0.0, s.n, 2.0, 2.0)
    assert found.F == found.G == math.inf and found.gradients == s.n * found.T


@pytest.mark.parametrize(
    ("changes", "eps", "delta"),
    [
        ({}, 0.1, 0.2),
        ({"ell_y": ell(9.0)}, 0.1, 0.2),  # y is the steeper block
        ({"spread": 300.0}, 10.0, 0.2),  # the way in one epoch decides
        ({"sigma2_x": 0.0, "sigma2_y": 0.0, "spread": 0.0}, 5.0, 0.2),
        ({"sigma2_x": 0.0, "sigma2_y": 900.0}, 0.3, 0.5),
        ({"ell_x": ell(1.0, 0.1)}, 0.1, 0.2),
        ({}, 100.0, 0.5),  # so little is asked for that a quarter of r is mu's bound
        ({"d": 1, "n": 50, "sigma2_x": 0.0, "sigma2_y": 0.0, "spread": 0.0}, 1.0, 0.3),
        # theta of y, whose rate is two thirds of x's, decides: eta is above 1/(8 n max(L_x, L_y))
        ({"ell_y": ell(900.0), "d": 1, "n": 50, "sigma2_x": 0.0, "sigma2_y": 0.0, "spread": 0.0}, 1.0, 0.3),
    ],
)
def test_the_high_probability_theorems_rate_is_the_largest_that_meets_its_conditions(
    changes: dict[str, float], eps: float, delta: float
) -> None:
    s = replace(SETTING, **changes)  # type: ignore[arg-type]
    found = with_high_probability(s, eps, delta)
    l_x, l_y = found.L_x, found.L_y
    assert found.F == pytest.approx(4 * 2.0 / delta)
    r, g_max = found.G / math.sqrt(max(l_x, l_y)), 2 * found.G + s.spread

    def epochs(eta: float) -> int:
        return math.ceil(16 * 2.0 / (delta * eps**2 * s.n * eta))

    def mu(eta: float) -> float:
        """A quarter of Delta/T, and a quarter of r."""
        unit = noise(s, eta, 2 * eta / 3, 1.0, l_x, l_y) - noise(s, eta, 2 * eta / 3, 0.0, l_x, l_y)
        root = math.sqrt(s.d)
        return min(math.sqrt(2.0 / (4 * epochs(eta)) / unit), r / (4 * math.sqrt(l_x) * root))

    def meets(eta: float) -> bool:
        eta_y, root = 2 * eta / 3, math.sqrt(s.d)
        way = math.sqrt(l_x) * eta * s.d * (g_max + mu(eta) * l_x * root / 2) + math.sqrt(l_y) * eta_y * g_max
        return (
            s.n * max(eta * l_x, eta_y * l_y) <= 1 / 8
            and eta * l_x * (s.d + 1) <= 1 / 64
            and noise(s, eta, eta_y, mu(eta), l_x, l_y) * epochs(eta) <= 2.0
            and s.n * way + math.sqrt(l_x) * root * mu(eta) <= r
        )

    assert meets(found.eta_x * (1 - 1e-9)) and not meets(found.eta_x * (1 + 1e-9))
    assert found.eta_y == pytest.approx(2 * found.eta_x / 3, rel=1e-12)
    assert found.T == epochs(found.eta_x) and found.mu == pytest.approx(mu(found.eta_x), rel=1e-9)
    assert (found.eps, found.delta, found.n) == (eps, delta, s.n)


def test_c1_without_noise_has_the_rates_of_smoothness_and_its_largest_mu() -> None:
    """L_x = 3/2, L_y = 1/2, n = 3, d = 5: eta_x = 1/(384 L_x n d) (n d > 1/192), eta_y = 1/(2 L_y n)."""
    s = replace(SETTING, sigma2_x=0.0, sigma2_y=0.0)
    found = theorem_c1(s, 0.5, 0.1, T=7)
    assert found.eta_x == pytest.approx(1 / (384 * 1.5 * 15), rel=1e-12) and found.T == 7
    assert found.eta_y == pytest.approx(1 / 3, rel=1e-12)
    assert found.mu == pytest.approx(min(found.G / (1.5 * 5**1.5), 1 / (3 * 1.5 * 7 * 15 * found.G)), rel=1e-12)
    assert found.F == pytest.approx(80 * (2 + found.sigma_prime), rel=1e-9)
    assert found.sigma_prime == pytest.approx(7 * 3 * found.eta_x * found.mu * 3 * 1.5 * 5 * found.G, rel=1e-9)
    assert found.G == pytest.approx(math.sqrt(2 * 1.5 * found.F), rel=1e-9)
    assert theorem_c1(s, 0.5, 0.1, T=7, mu=0.0).mu == 0.0 != theorem_c1(s, 0.5, 0.1, T=7, mu=1e-5).mu == 1e-5
    eta = min(found.eta_x / 4, 3 * found.eta_y / 8)
    rest = found.G**2 / 8 + (2 + 2 * found.eta_x + found.eta_y) / (3 * eta)
    assert found.required == pytest.approx(2 / 0.1 + rest, rel=1e-12)


def test_readings_of_g_and_l() -> None:
    """ell = 1 + u/10 at level 8: G^2 = 2 ell(G) 8, or 2 ell(2G) 8, and L = ell(G), or ell(2G)."""
    s = replace(SETTING, ell_x=ell(1.0, 0.1), ell_y=ell(0.5, 0.05))
    for reading, stretch in (("printed", 1.0), ("doubled", 2.0)):
        g, l_x, l_y = s.smoothness(8.0, reading)  # type: ignore[arg-type]
        assert g**2 == pytest.approx(2 * (1 + 0.1 * stretch * g) * 8, rel=1e-8)
        assert (l_x, l_y) == (pytest.approx(1 + 0.1 * stretch * g), pytest.approx(0.5 + 0.05 * stretch * g))
    g, l_x, l_y = s.smoothness(8.0, "sharp")
    assert 10 * g - 100 * math.log1p(g / 10) == pytest.approx(8, rel=1e-6), "T1: the integral of u/ell(u) up to G"
    assert (l_x, l_y) == (pytest.approx(1 + 0.1 * g), pytest.approx(0.5 + 0.05 * g))
    assert s.sigma2 == pytest.approx(1.8)


def test_the_least_setting_is_accepted() -> None:
    assert replace(SETTING, n=1, d=1, gap=1e-300, sigma2_x=0.0, sigma2_y=0.0, spread=0.0).sigma2 == 0.0


def test_c1s_condition_is_met_where_both_sides_are_equal() -> None:
    common = {"eps": 0.5, "delta": 0.1, "n": 1, "eta_x": 1.0, "eta_y": 1.0, "mu": 0.0, "F": 1.0, "G": 1.0}
    for required, holds in ((2.0, True), (math.nextafter(2.0, 3.0), False)):
        assert Printed(T=8, L_x=1.0, L_y=1.0, H=1.0, sigma_prime=0.0, required=required, **common).holds is holds  # type: ignore[arg-type]


def test_a_mu_beyond_eq_3_is_refused_and_one_below_is_taken() -> None:
    s = replace(SETTING, sigma2_x=0.0, sigma2_y=0.0)
    largest = theorem_c1(s, 0.5, 0.1, T=7).mu
    assert theorem_c1(s, 0.5, 0.1, T=7, mu=0.9 * largest).mu == 0.9 * largest
    with pytest.raises(BadInput, match="allows 0 to"):
        theorem_c1(s, 0.5, 0.1, T=7, mu=1.1 * largest)


# intervals, norms, deflation


def test_effective_rank_by_hand() -> None:
    """Two images with ||a||^2 = 2, ||b||^2 = 3, <a, b> = 1: (5/2)^2/1 - 2/2 = 21/4.

    Cautiously a third of it. Of nine images of square 3 and products 1 it is 9 - 2/9 = 79/9; beside Lanczos vectors
    10/(10 + 79/9) = 90/169 of 4/9 and half of the rest divide it, by 1 + 4/9 (90 + 79/2)/169 = 2039/1521.
    """
    gram = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert effective_rank(gram, cautious=False) == pytest.approx(21 / 4, rel=1e-12)
    assert effective_rank(gram) == pytest.approx(7 / 4, rel=1e-12)
    nine = np.ones((9, 9)) + 2 * np.eye(9)
    assert effective_rank(nine) == pytest.approx(79 / 13, rel=1e-12)
    assert effective_rank(nine, deflated=True) == pytest.approx(79 / 9 * 1521 / 2039, rel=1e-12)


def test_the_interval_of_a_trace_by_hand() -> None:
    """Mean 3 of three forms, ||B||_F^2 = 8: known + 3 -+ 1.96 sqrt(2 8/3)."""
    half = 1.959963984540054 * math.sqrt(16 / 3)
    assert mean_of_forms([1.0, 2.0, 6.0], 8.0, known=1.0) == pytest.approx((4.0, 4 - half, 4 + half), rel=1e-12)


def test_a_norm_from_its_square_and_the_flags_of_its_floor() -> None:
    for square, limits in (
        (Interval(4.0, 1.0, 9.0), (2.0, 0.5, 3.5)),
        (Interval(-1.0, -4.0, 0.04), (0.0, 0.0, 0.7)),
        (Interval(0.25, 0.16, 0.36), (0.5, 0.0, 1.1)),
    ):
        e = frobenius_estimate("a", "a", square, 1, 0.5, True)
        assert (e.value, e.low, e.high) == pytest.approx(limits)
    below = math.nextafter(2.0, 0.0)
    for value, reached, flag in (
        (2.0, True, None),
        (-2.0, True, None),
        (2.0, False, "precision not reached"),
        (below, True, "below floor"),
        (-below, False, "below floor"),
    ):
        assert doubt(value, 1.0, reached) == flag


def test_the_relative_half_width_of_a_norm() -> None:
    assert half_width(Interval(4.0, 1.0, 9.0)) == 0.5
    assert half_width(Interval(0.25, 0.04, 0.49)) == pytest.approx(0.5)
    assert half_width(Interval(4.0, -1.0, 9.0)) == 0.75
    assert half_width(Interval(0.0, 0.0, 1.0)) == half_width(Interval(-1.0, -2.0, 1.0)) == 0.0


def test_a_gram_matrix_by_hand() -> None:
    rows = [torch.tensor(row, dtype=torch.float64) for row in ([1.0, 2.0], [3.0, -1.0], [0.0, 4.0])]
    assert gram_matrix(rows).tolist() == [[5.0, 1.0, 8.0], [1.0, 10.0, -4.0], [8.0, -4.0, 16.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_left_below_100_roundings_of_a_vector_lies_in_the_span(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    for size in (99, 101):
        w = torch.tensor([0.0, 0.0, 1.0], dtype=dtype) * size * eps
        assert Basis(3, w).add(w, Projection(np.zeros(0), 1.0, size * eps)) is (size == 101)


def test_one_step_of_a_run_has_the_noise_of_its_dot_products_at_least() -> None:
    for dtype, units in ((torch.float64, 256), (torch.float32, 64)):
        run = Deflation(DenseHessian(np.eye(5), dtype=dtype), "a", [0], [])
        assert (run.draws, run.hvps, run.lanczos, run.captured, run.noise) == (0, 0, 0, 0.0, 0.0)
        run.krylov(1)
        assert run.noise == units * torch.finfo(dtype).eps and run.hvps == run.lanczos == 1


class Rough(DenseHessian):
    """Says that its products have a relative rounding error of 1/8, found by two more products."""

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        return 0.125, 2


def test_estimates_of_a_block_taken_whole_by_hand() -> None:
    """H = diag(3, 4) seen by two Lanczos steps: ||H||_F = 5, ||H||_2 = 4, tr H = 7, each with its share of rounding."""
    frobenius, spectral, trace = Rough(np.diag([3.0, 4.0])).norms()
    assert [e.hvps for e in (frobenius, spectral, trace)] == [4, 4, 4]
    assert [e.flag for e in (frobenius, spectral, trace)] == [None, None, None]
    for e, value, low, high, floor in (
        (frobenius, 5.0, 4.375, 5.625, 0.625),
        (spectral, 4.0, 3.5, 4.625, 0.5),  # above: the rounding of both images, 5/8
        (trace, 7.0, 6.375, 7.625, 0.625),
    ):
        assert (e.value, e.low, e.high, e.floor) == pytest.approx((value, low, high, floor), rel=1e-12)


def test_the_least_settings_are_accepted_and_a_spent_budget_is_flagged() -> None:
    """One Lanczos step and five probes are the least budget: its block of 40 dimensions is not known to 5 % then."""
    hessian = DenseHessian(np.diag(np.linspace(-1.0, 1.0, 40)))
    frobenius = hessian.norms(lanczos=1, budget=7)[0]
    assert frobenius.hvps == 7 and frobenius.flag == "precision not reached"
    with pytest.raises(BadInput, match=r"a budget of at least lanczos \+ 6"):
        hessian.norms(lanczos=1, budget=6)


@pytest.mark.parametrize("trace", [0.0, 1.0, -0.5, math.nan])
def test_a_precision_of_the_trace_outside_0_and_1_is_refused(trace: float) -> None:
    with pytest.raises(BadInput, match="of the trace: use one in"):
        DenseHessian(np.eye(4)).norms(trace=trace)
    assert DenseHessian(np.eye(4)).norms(trace=0.5)[2].value == pytest.approx(4.0)


def test_large_blocks_are_measured_first_and_given_out_in_the_order_asked_for() -> None:
    hessian = DenseHessian(np.diag(np.arange(1.0, 11.0)), 3, 7)
    yielded = [e.block for e in hessian.norms_by_block(["a", "b"], (), 0.05, (0,))]
    assert list(dict.fromkeys(yielded)) == ["b", "a"]
    assert list(dict.fromkeys(e.block for e in hessian.norms(["a", "b"]))) == ["a", "b"]


@pytest.mark.parametrize(("precision", "probes"), [(0.099, 5), (0.1, 4), (0.5, 4)])
def test_a_precision_of_10_percent_is_loose(precision: float, probes: int) -> None:
    assert first_look(precision) == probes


@pytest.mark.parametrize("dim", [2, 3, 20])
def test_the_reach_of_one_lanczos_step_by_hand(dim: int) -> None:
    """1 + ((x - a)/b)^2 = 1/c at x = a +- b sqrt(1/c - 1), c the 2.5 % quantile of Beta(1/2, (d - 1)/2)."""
    c = float(stats.beta.ppf(0.025, 0.5, (dim - 1) / 2))
    reach = lanczos_reach([3.0], [0.5], dim)
    expected = 0.5 * math.sqrt(1 / c - 1)
    assert (reach.lowest, reach.highest) == pytest.approx((3.0 - expected, 3.0 + expected), rel=1e-9)


def test_rows_of_layers_forget_their_probes_as_images_join_the_basis() -> None:
    hessian = DenseHessian(np.diag(np.arange(1.0, 41.0)))
    params = (torch.zeros(15, dtype=torch.float64), torch.zeros(25, dtype=torch.float64))
    hessian.blocks = {"a": Block("a", params)}
    layers = [Block("early", params[:1]), Block("late", params[1:])]
    run = Deflation(hessian, "a", [0], [], LayerRows(hessian.blocks["a"], layers))
    run.krylov(3)
    for _ in range(4):
        run.probe()
    assert run.rows is not None and len(run.rows.squares) == len(run.rows.forms) == 4
    run.extend()
    assert len(run.rows.squares) == len(run.rows.forms) == len(run.squares) == 0


# optim


def test_no_gradient_is_clipped_to_nothing() -> None:
    with pytest.raises(BadInput, match="clip"):
        HybridSGD([{"params": [nn.Parameter(torch.zeros(1))]}], clip=0.0)


def test_an_exact_gradient_of_infinite_norm_is_refused() -> None:
    """The loss and the weights are finite: the root's slope at 0 is not."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    with pytest.raises(BadInput, match="the exact gradient's norm is inf at step 0"):
        HybridSGD([{"params": [w]}]).step(lambda: w.sqrt().sum())


def test_the_default_perturbation_is_a_thousandth() -> None:
    assert ZerothOrder().mu == 1e-3


def test_the_defaults_of_hybrid_sgd_are_plain_steps_of_a_thousandth() -> None:
    """f = <w, (1, 2)>: -0.001 (1, 2) at every step, without momentum or weight decay."""
    w = nn.Parameter(torch.tensor([5.0, -3.0], dtype=torch.float64))
    slope = torch.tensor([1.0, 2.0], dtype=torch.float64)
    optimizer = HybridSGD([{"params": [w]}])
    assert (optimizer.seed, optimizer.clip, optimizer.log, optimizer.steps) == (0, None, None, 0)
    for step in (1, 2, 3):
        before = w.detach().clone()
        assert float(optimizer.step(lambda: w @ slope)) == float(before @ slope)
        assert (w - before).tolist() == pytest.approx([-1e-3, -2e-3], rel=1e-9) and optimizer.steps == step
    assert optimizer.last is not None and optimizer.last.norm == pytest.approx(math.sqrt(5), rel=1e-12)


def test_clipping_scales_a_longer_gradient_to_its_norm() -> None:
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer = HybridSGD([{"params": [w]}], lr=1.0, clip=2.0)
    optimizer.step(lambda: w @ slope)
    assert w.tolist() == pytest.approx([-1.2, -1.6], rel=1e-5) and optimizer.last.norm == pytest.approx(5.0)  # type: ignore[union-attr]


class Scripted(Deflation):
    """A run of 12 Lanczos steps on a block of `dim` whose probes never narrow the interval: part `share` is probed."""

    def __init__(self, share: float, dim: int, gram: np.ndarray) -> None:
        super().__init__(DenseHessian(np.diag(np.arange(1.0, dim + 1))), "a", [0], [])
        self.krylov(12)
        self.share, self.gram, self.extended = share, gram, list[int]()

    def probe(self) -> None:
        self.hvps += 1
        self.squares.append(4 * self.share)
        self.images.append((torch.zeros(0), Projection(np.zeros(0), 0.0, 0.0)))

    def extend(self) -> None:
        self.extended.append(len(self.squares))
        self.hvps += len(self.images)
        self.squares, self.images = [], []

    def frobenius_squared(self) -> tuple[Interval, Interval]:
        return Interval(4.0, 1.0, 9.0), Interval(4 * self.share, 0.0, 9.0)


BROAD = np.array([[2.0, 1.0], [1.0, 3.0]])
"""Of effective rank 21/4."""
NONE = np.zeros((0, 0))
"""Of effective rank 1."""


@pytest.mark.parametrize(
    ("ratio", "gram", "dim", "budget", "extended"),
    [
        (2.79, NONE, 40, 40, []),  # 2 (0.98 2.79)^2 = 14.95 probes are needed, 5 are there, 5 + 5 it costs
        (
            2.80,
            NONE,
            40,
            40,
            [5, 5],
        ),  # 15.06: twice, from 17 to 22 and from 27 to 32 products; 37 + 5 + 5 would be too many
        (2.79 * math.sqrt(21 / 4), BROAD, 40, 40, []),
        (2.80 * math.sqrt(21 / 4), BROAD, 40, 40, [5, 5]),
        (2.80, NONE, 40, 27, [5]),  # 12 and 5 are spent, and 5 + 5 are left
        (2.80, NONE, 40, 26, []),
        (2.80, NONE, 18, 27, [5]),  # Q may not fill the block
        (2.80, NONE, 17, 27, []),
    ],
)
def test_the_images_join_q_where_more_probes_would_cost_more(
    ratio: float, gram: np.ndarray, dim: int, budget: int, extended: list[int]
) -> None:
    run = Scripted(0.01 * ratio, dim, gram)
    assert run.probe_until(0.01, budget) is False
    assert run.extended == extended and run.hvps >= budget


def test_a_run_stops_at_a_loose_precision_after_four_probes_and_at_its_budget_after_two() -> None:
    """The half-width is (3 - 1)/(2 2) = 1/2 of the norm."""
    run = Scripted(0.01, 40, NONE)
    assert run.probe_until(0.5, 40) is True and len(run.squares) == 4
    run = Scripted(0.01, 40, NONE)
    assert run.probe_until(0.499, 40) is False and len(run.squares) == 28
    run = Scripted(0.01, 40, NONE)
    assert run.probe_until(0.5, 12) is False and len(run.squares) == 2


def test_the_defaults_of_the_norms_are_those_of_the_documents() -> None:
    """A half-width of 5 %, 12 Lanczos steps, at most 100 products, seed 0; plain probes are Gaussian."""
    hessian = DenseHessian(np.diag(1.0 / np.arange(1.0, 201)) + 0.01, 150, 50)
    assert hessian.norms() == hessian.norms(["a", "b"], cross=(), precision=0.05, lanczos=12, budget=100, seed=(0,))
    spent = hessian.norms(["a"], precision=1e-6)
    assert spent == hessian.norms(["a"], precision=1e-6, budget=100) and spent[0].hvps == 100


@pytest.mark.parametrize(("a", "b", "floor"), [(3.0, 1.0, 3 * math.sqrt(8) / 16), (1.0, 9.0, math.sqrt(8) / 16)])
def test_the_rounding_of_a_cross_block_is_the_larger_blocks_per_coordinate(a: float, b: float, floor: float) -> None:
    """Diagonal blocks a I of 8 and b I of 2 dimensions, a's directions: 1/8 ||a I||_F sqrt(2/8)."""
    h = np.diag([a] * 8 + [b] * 2)
    h[0, 8] = h[8, 0] = 0.5
    cross = Rough(h, 8, 2).norms(cross=[("b", "a")])[-1]
    assert (cross.block, cross.wrt, cross.quantity, cross.hvps) == ("a", "b", "frobenius", 10)
    assert (cross.value, cross.low, cross.high) == pytest.approx((0.5, max(0.5 - floor, 0), 0.5 + floor), rel=1e-9)
    flag = None
    if cross.value < 2 * floor:
        flag = "below floor"
    assert cross.floor == pytest.approx(floor, rel=1e-9) and cross.flag == flag


class Slope(torch.autograd.Function):
    """2 w, whose own derivative fails with a message."""

    message = ""

    @staticmethod
    def forward(context: Any, w: Tensor) -> Tensor:
        return 2 * w

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError(Slope.message)


class Square(torch.autograd.Function):
    """w^2."""

    @staticmethod
    def forward(context: Any, w: Tensor) -> Tensor:
        context.save_for_backward(w)
        return w**2

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * Slope.apply(context.saved_tensors[0])


def test_a_missing_second_derivative_is_told_and_other_errors_stay_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    hessian = ExactHessian(lambda: Square.apply(w).sum(), [Block("w", (w,))])
    assert hessian.loss == 5.0
    kinds: dict[str, type[Exception]] = {
        "derivative for x": BadInput,
        "Double backward": BadInput,
        "gone": RuntimeError,
    }
    for message, kind in kinds.items():
        monkeypatch.setattr(Slope, "message", message)
        with pytest.raises(kind, match=message):
            hessian.product(torch.ones_like(w), "w", ["w"])


# hessian: what 16 bits, cross blocks and couplings change


def test_projections_in_16_bits_do_not_overflow() -> None:
    """Squares of 300 are above the largest number of fp16, the norm 600 is not."""
    basis = Basis(4, torch.zeros(1, dtype=torch.float16))
    w = torch.full((4,), 300.0, dtype=torch.float16)
    assert basis.project_out(w).before == 600.0


def test_a_cross_image_that_is_not_finite_is_refused() -> None:
    matrix = np.eye(4)
    matrix[0, 3] = matrix[3, 0] = np.nan
    run = Deflation(DenseHessian(matrix, 2, 2), "a", (0,), ["b"])
    with pytest.raises(BadInput, match="a Hessian-vector product of block 'a' is not finite"):
        run.krylov(1)


def test_the_spectral_bound_takes_the_coupling_of_the_basis_with_the_rest() -> None:
    """[[t, s], [s, b]] with s = ||(I - Q'Q) H Q'||_F as dense algebra has it, where little is left beside Q."""
    spectrum = np.concatenate([[10.0, 8.0, 6.0], np.full(60, 1e-3)])
    hessian = DenseHessian(np.diag(spectrum))
    estimate = hessian.norms(lanczos=2, budget=60)[1]
    run = Deflation(hessian, "a", [0, *b"a"], [])
    run.krylov(2)
    run.probe_until(0.05, 60)
    q, h = run.basis.rows.numpy(), hessian.matrix.numpy()
    outside = h @ q.T - q.T @ (q @ h @ q.T)
    rest = run.frobenius_squared()[1].high ** 0.5
    bound = spectral_upper(q @ h @ q.T, float(np.linalg.norm(outside)), rest, run.reach())
    assert estimate.high == pytest.approx(bound, rel=1e-10)
    assert bound < max(run.reach().highest, -run.reach().lowest)  # the bound by blocks is the smaller one


def test_frobenius_is_the_norm_of_all_parameters_that_require_a_gradient() -> None:
    """||diag(3, 12)||_F of w^4/4 at 1 and 2; the frozen parameter is left out."""
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    estimate = frobenius(lambda: (w**4).sum() / 4, [w, frozen])
    assert (estimate.block, estimate.quantity) == ("params", "frobenius")
    assert estimate.value == pytest.approx(math.hypot(3, 12), rel=1e-12)


# zeroth


def test_estimators_with_the_same_formula_are_equal_whatever_they_keep_of_a_model() -> None:
    first, second = ZerothOrder(layers=nn.Linear(1, 1)), ZerothOrder(layers=nn.Linear(2, 2))
    assert first == second
    assert "layers" not in repr(first) and "_perturbations" not in repr(first)


def test_a_slope_of_zero_asks_whether_the_weights_have_outgrown_the_step() -> None:
    """In fp32, mu = 1e-3 moves a weight of 1 and not one of 1e9: after such a growth all slopes would be 0."""
    w = nn.Parameter(torch.ones(8))
    block, oracle = Block("w", (w,)), ZerothOrder(mu=1e-3)
    oracle(lambda: w.sum(), block, (0,))
    with torch.no_grad():
        w.fill_(1e9)
    with pytest.raises(BadInput, match=r"rounding lets 0 % of the step through; use mu of at least"):
        oracle(lambda: w.sum(), block, (1,))


# optim


def test_one_sided_slopes_start_from_the_loss_as_it_is_without_a_graph() -> None:
    """A loss that is higher by 500 units of rounding with a graph: taken for f(x), it would lower slopes by 1e-9."""
    x = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    y = nn.Parameter(torch.full((1,), 0.25, dtype=torch.float64))
    oracle = ZerothOrder(mu=1e-4, sides=1, distribution=Rademacher())
    groups = [{"params": [x], "name": "x", "lr": 1.0, "oracle": oracle}, {"params": [y], "name": "y", "lr": 1.0}]
    HybridSGD(groups).step(lambda: x.sum() + y.sum() + 500 * EPS * torch.is_grad_enabled())
    # The slope along a direction of entries 1 and -1 is their sum, 1 or 3 in modulus, as is each entry of the step.
    slope = abs(x.tolist()[0])
    assert slope == pytest.approx(round(slope), abs=1e-10)


def test_a_loss_that_writes_a_weight_leaves_it_as_it_was() -> None:
    """Writing an entry that the loss does not read gives equal losses: only the count of writes shows it."""
    x = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = HybridSGD([{"params": [x], "name": "x", "lr": 1.0, "oracle": ZerothOrder()}])

    def writing(entry: int) -> Tensor:
        with torch.no_grad():
            x[entry] += 1
        return x[:2].sum()

    for entry in (0, 2):
        with pytest.raises(BadInput, match=r"the loss writes to a parameter of shape \(3,\) while it is computed"):
            optimizer.step(lambda entry=entry: writing(entry))
        assert x.tolist() == [1.0, 1.0, 1.0]


def test_gradients_of_parts_are_added_two_by_two() -> None:
    """In fp32, (1e8 + 1) + (-1e8 + 1) is 0; another order gives 1 or 2."""
    y = nn.Parameter(torch.zeros(1))
    optimizer = HybridSGD([{"params": [y], "name": "y", "lr": 4.0}])
    optimizer.step([lambda c=c: c * y.sum() for c in (1e8, 1.0, -1e8, 1.0)])
    assert y.tolist() == [0.0]


# hessian: what is counted and kept


def test_central_differences_divide_by_the_step_as_given_where_they_are_asked_to() -> None:
    """On a quadratic with eigenvalues 2 and 6, (g(h v) - g(-h v)) / (2 h) is H v."""
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    loss = lambda: w[0] ** 2 + 3 * w[1] ** 2  # noqa: E731
    hessian = FiniteDifferenceHessian(loss, [Block("w", (w,))], h=0.5, scheme="central", effective=False)
    (image,) = hessian.product(torch.tensor([1.0, 0.0], dtype=torch.float64), "w", ["w"])
    assert image.tolist() == pytest.approx([2.0, 0.0], abs=1e-12)


def test_a_quadratic_form_counts_one_product() -> None:
    run = Deflation(DenseHessian(np.diag([1.0, 2.0, 3.0])), "a", (0,), {})
    assert run.form(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)) == 3.0
    assert run.hvps == 1


def test_sixteen_images_of_probes_are_kept() -> None:
    run = Deflation(DenseHessian(np.diag(np.ones(400))), "a", (0,), {})
    for _ in range(20):
        run.probe()
    assert (len(run.images), run.gram.shape, len(run.squares)) == (16, (16, 16), 20)


# zeroth and optim: what a step returns, refuses and shares


def test_an_estimators_first_call_leaves_the_weights_of_a_loss_that_writes_them() -> None:
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def writing() -> Tensor:
        with torch.no_grad():
            w[1] += 1
        return w[0]

    with pytest.raises(BadInput, match=r"the loss writes to a parameter of shape \(2,\) while it is computed"):
        ZerothOrder()(writing, Block("w", (w,)), (0,))
    assert w.tolist() == [1.0, 1.0]


def test_a_zeroth_order_step_returns_the_mean_of_the_last_directions_two_sides() -> None:
    """Of a linear loss that is f itself, whatever was evaluated before."""
    x = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = HybridSGD([{"params": [x], "name": "x", "lr": 0.0, "oracle": ZerothOrder(mu=0.5, q=3)}])
    assert float(optimizer.step(lambda: x.sum() + 5)) == pytest.approx(8.0, rel=1e-14)


def test_a_loss_that_changes_after_a_hundred_steps_is_refused() -> None:
    """Every 128 steps f(x, y) is evaluated again: no sign but the value shows this loss's change."""
    x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = HybridSGD([{"params": [x], "name": "x", "lr": 0.0, "oracle": ZerothOrder(sides=1)}])
    calls = iter(range(10**6))

    def drifting() -> Tensor:
        call = next(calls)
        return x.sum() + max(call - 200, 0)

    with pytest.raises(BadInput, match="the loss on block 'x' gives .* at the same weights"):
        for _ in range(140):
            optimizer.step(drifting)
    assert optimizer.steps <= 128


class Twice:
    """Another process with the same part: sums are doubled."""

    count = 2

    def sum(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.mul_(2)


def test_the_mean_over_two_processes_with_the_same_part_is_that_parts() -> None:
    y = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    minibatch = Minibatch([lambda: (y**2).sum()], Twice(), Block("y", (y,)))
    assert minibatch.differentiate([y]) == 9.0
    assert y.grad is not None and y.grad.tolist() == [6.0]


@pytest.mark.parametrize(("n", "d"), [(0, 1), (1, 0)])
def test_a_setting_without_components_or_dimensions_is_refused(n: int, d: int) -> None:
    with pytest.raises(BadInput, match=f"n = {n} and d = {d}: both must be at least 1"):
        replace(SETTING, n=n, d=d)
