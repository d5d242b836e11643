"""Constants of Theorem C.1 and of the corrected theorems; what they promise against an exact recursion.

The recursion: f_{1,2} = L ||x||^2/2 + L y^2/2 +- <a, x> with n = 2, y_0 = 0, exact zeroth-order moments of Gaussian
directions (two-sided, any mu; one-sided as mu -> 0): E ||ghat||^2 = (d + 2) ||g||^2. The sign of the first component
is independent of the past, so that q_t = E ||x_t||^2 has q_{t+1} = rho^2 q_t + c.
"""

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import ArrayLike

from smoothlab.errors import BadInput
from smoothlab.theorems import Setting, descent, in_expectation, theorem_c1, with_high_probability
from smoothlab.theory import Array
from tests.cases import OBJECTIVES


def one(u: ArrayLike) -> Array:
    return np.ones_like(np.asarray(u, dtype=float))


def affine(u: ArrayLike) -> Array:
    return 1 + np.asarray(u, dtype=float)


@dataclass(frozen=True)
class Pair:
    """The recursion. `noise` is ||a||^2 = sigma^2."""

    d: int
    noise: float
    gap: float
    L: float = 1.0

    @property
    def setting(self) -> Setting:
        return Setting(lambda u: self.L * one(u), lambda u: self.L * one(u), self.gap, 2, self.d, self.noise, 0.0)

    def step(self, eta: float, moment: float = 2.0) -> tuple[float, float]:
        """rho^2 and c; `moment` is E ||ghat||^2/||g||^2 - d."""
        second = eta**2 * (self.d + moment)
        rho = 1 - 2 * eta * self.L + second * self.L**2
        return rho**2, rho * second * self.noise - 2 * eta**2 * self.noise + second * self.noise * (
            1 + 2 * self.L * eta
        )

    def after(self, eta: float, q: float | None = None, moment: float = 2.0) -> float:
        """E f(z_1) - f* after one epoch from ||x_0||^2 = q."""
        shrink, c = self.step(eta, moment)
        return self.L / 2 * (shrink * (2 * self.gap / self.L if q is None else q) + c)

    def average(self, eta: float, epochs: int) -> float:
        """(1/T) sum_{t < T} E ||grad f(z_t)||^2."""
        shrink, c = self.step(eta)
        end, start = c / (1 - shrink), 2 * self.gap / self.L
        return self.L**2 * (end + (start - end) * -math.expm1(epochs * math.log(shrink)) / (epochs * (1 - shrink)))


def simulated(pair: Pair, eta: float, q: float, replicas: int, seed: int) -> Array:
    """f(z_1) - f* of Algorithm 1, literally, two-sided with mu = 0.3."""
    rng, mu = np.random.default_rng(seed), 0.3
    a = np.full(pair.d, math.sqrt(pair.noise / pair.d))
    x = np.tile(np.r_[math.sqrt(q), np.zeros(pair.d - 1)], (replicas, 1))
    sign = rng.choice([-1.0, 1.0], size=replicas)
    for c in (sign[:, None] * a, -sign[:, None] * a):
        v = rng.normal(size=x.shape)
        up, down = ((pair.L / 2 * (x + s * v) ** 2 + c * (x + s * v)).sum(1) for s in (mu, -mu))
        x -= eta * ((up - down) / (2 * mu))[:, None] * v
    return pair.L / 2 * (x**2).sum(1)


@pytest.mark.parametrize(("d", "noise", "q", "L"), [(3, 4.0, 1.0, 1.0), (1, 1.0, 0.0, 2.0), (8, 0.5, 3.0, 0.5)])
def test_the_recursion_is_algorithm_1(d: int, noise: float, q: float, L: float) -> None:  # noqa: N803
    pair, eta = Pair(d, noise, 1.0, L), 0.05
    f = simulated(pair, eta, q, 40_000, seed=d)

    def score(truth: float) -> float:
        return abs(f.mean() - truth) / f.std(ddof=1) * len(f) ** 0.5

    assert score(pair.after(eta, q)) < 4.5, "one in 150,000 of normal means is beyond"
    assert score(pair.after(eta, q, moment=0.0)) > 4.5, "the sphere's moments are seen not to be those"


# As printed


@pytest.mark.parametrize("ell", [one, affine])
@pytest.mark.parametrize("sigma2", [0.0, 1.0])
def test_constants_of_c1_satisfy_their_own_equations(ell, sigma2: float) -> None:  # type: ignore[no-untyped-def]
    s = Setting(ell, lambda u: 2 * ell(u), 1.0, 8, 10, sigma2, sigma2 / 2)
    r = theorem_c1(s, 0.1, 0.1)
    sigma, T, n = math.sqrt(s.sigma2), r.T, 8
    noisy = math.sqrt(2 / T) / (sigma * n) if sigma else math.inf
    assert r.eta_x == pytest.approx(min(1 / (2 * r.L_x * n), 1 / (384 * r.L_x * n * 10), noisy / r.L_x))
    assert r.eta_y == pytest.approx(min(1 / (2 * r.L_y * n), noisy / r.L_y))
    assert r.mu <= min(r.G / (r.L_x * 10**1.5), 1 / (3 * r.L_x * T * n * 10 * r.G)) * (1 + 1e-9)
    noise = s.sigma2 / 2 * n**2 * (r.eta_x**3 * r.L_x**2 + r.eta_y**3 * r.L_y**2)
    assert r.sigma_prime == pytest.approx(T * (noise + 3 * r.eta_x * r.mu * n * r.L_x * 10 * r.G))
    assert r.sigma_prime <= (2 * r.eta_x + r.eta_y) * (1 + 1e-9), "true arithmetic (theory.md B)"
    assert r.F == pytest.approx(80 * (1 + r.sigma_prime), rel=1e-9)
    assert r.G**2 == pytest.approx(2 * float(2 * ell(r.G)) * r.F, rel=1e-8)
    assert (r.L_x, r.L_y) == (pytest.approx(float(ell(r.G))), pytest.approx(2 * float(ell(r.G))))
    assert pytest.approx(2 * math.sqrt((200 * r.G**2 * 10 / n + 2 * r.G**2 + 2 * s.sigma2 / n) * T / 0.1)) == r.H
    eta = min(r.eta_x / 4, 3 * r.eta_y / 8)
    assert r.required == pytest.approx(20 + r.G**2 / 8 + (1 + 2 * r.eta_x + r.eta_y) / (n * eta))
    assert r.holds and not theorem_c1(s, 0.1, 0.1, T=T - 1).holds
    assert r.gradients == n * T


def test_t_of_c1_is_eps_to_the_minus_4_without_n_or_d() -> None:
    """theory.md B: T eps^4 = 8.008 -> 8 Delta^2 sigma^2 L^2, so nT is n eps^-4, not eps^-4."""
    for eps, expected in ((1e-2, 8.008), (1e-3, 8.00008)):
        s = Setting(one, one, 1.0, 32, 10, 1.0, 0.0)
        assert theorem_c1(s, eps, 0.1).T * eps**4 == pytest.approx(expected, rel=1e-4)
    for n, d in product((2, 512), (1, 10_000)):
        s = Setting(one, one, 1.0, n, d, 1.0, 0.0)
        assert theorem_c1(s, 1e-4, 0.1).T * 1e-16 == pytest.approx(8, rel=1e-5)
    # At moderate eps the term in 384 d rules, 5,000 times "eps^-4/n" = 312.5.
    s = Setting(one, one, 1.0, 32, 10, 1.0, 0.0)
    assert theorem_c1(s, 0.1, 0.1).T == pytest.approx(1536 * 10 * 100, rel=0.01)


def test_t_of_c1_hides_delta_in_l_of_f() -> None:
    """theory.md B: F is 1/delta, so that (L0, L1)-smooth f need T in proportion to delta^-2."""
    s = Setting(affine, affine, 1.0, 32, 10, 1.0, 0.0)
    first, second = (theorem_c1(s, 1e-3, delta, reading="doubled").T for delta in (0.1, 0.05))
    assert second / first == pytest.approx(3.99, abs=0.01)
    t = [theorem_c1(s, 1e-2, 0.1, reading=r).T for r in ("sharp", "printed", "doubled")]  # type: ignore[arg-type]
    assert t[0] < t[1] < t[2]
    logarithm = theorem_c1(s, 1.0, 0.001, tail="ln")
    assert logarithm.required < theorem_c1(s, 1.0, 0.001, T=logarithm.T).required - 1900


@pytest.mark.parametrize(("sigma", "eps"), [(10.0, 0.05), (100.0, 0.5)])
def test_c1_as_printed_is_false(sigma: float, eps: float) -> None:
    """All of Eq. (3) and T's condition met, and (1/T) sum E ||grad f||^2 is far above eps^2: exact recursion."""
    pair = Pair(100, sigma**2, 0.5)
    r = theorem_c1(pair.setting, eps, 0.1, mu=0.0)
    assert r.holds and pair.average(r.eta_x, r.T) > 20 * eps**2
    # Not for want of epochs: the floor stays.
    assert pair.average(r.eta_x, 10 * r.T) > 20 * eps**2
    right = in_expectation(pair.setting, eps, 1.0)
    assert pair.average(right.eta_x, right.T) <= eps**2


@pytest.mark.parametrize("d", [1, 5])
def test_b6_as_printed_is_false(d: int) -> None:
    """At grad f = 0: E f(z_1) - f* is (d + 1)/(n eta) times the printed right-hand side; B.6' holds."""
    eta = 1 / (384 * 2 * d)
    pair = Pair(d, 1.0, 1.0)
    printed = 1.0 * 2**2 / 2 * eta**3
    assert pair.after(eta, 0.0) / printed == pytest.approx((d + 1) / (2 * eta), rel=0.01)
    proven = descent(pair.setting, eta, 1e-6, 0.0, 1.0, 1.0)
    assert proven.holds and pair.after(eta, 0.0) <= proven.noise


# Corrected


@pytest.mark.parametrize("d", [1, 10, 100])
@pytest.mark.parametrize("q", [0.0, 0.1, 100.0])
def test_b6_corrected_bounds_every_epoch(d: int, q: float) -> None:
    for L, noise in product((0.1, 1.0, 10.0), (0.0, 1.0, 100.0)):  # noqa: N806
        pair = Pair(d, noise, 1.0, L)
        eta = min(1 / (16 * L), 1 / (64 * L * (d + 1)))
        r = descent(pair.setting, eta, eta, 0.0, L, L)
        assert r.holds and not descent(pair.setting, 2.001 * eta, eta, 0.0, L, L).holds
        assert pair.after(eta, q) <= L / 2 * q - r.decrease_x * L**2 * q + r.noise + 1e-15


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01])
def test_the_corrected_theorem_in_expectation_keeps_its_promise(eps: float) -> None:
    for d, noise, gap, L in product((1, 100), (0.0, 1.0, 1e4), (0.01, 1.0), (0.1, 10.0)):  # noqa: N806
        pair = Pair(d, noise, gap, L)
        r = in_expectation(pair.setting, eps, L)
        assert pair.average(r.eta_x, r.T) <= eps**2
        s, epoch = pair.setting, descent(pair.setting, r.eta_x, r.eta_y, r.mu, L, L)
        assert epoch.holds
        rest = 4 * (s.gap / r.T + epoch.noise) / (s.n * r.eta_x)
        assert rest <= eps**2 * (1 + 1e-9), "the proof's own sum"
    slow, fast = (in_expectation(replace(s, n=n), eps, 1.0).gradients for n in (64, 2))
    assert fast <= slow


@pytest.mark.parametrize("name", ["E1", "E3", "E4", "E7", "E9"])
def test_the_corrected_high_probability_theorem_meets_its_hypotheses(name: str) -> None:
    f, eps, delta = OBJECTIVES[name], 0.1, 0.1
    s = f.setting(1.0)
    r = with_high_probability(s, eps, delta)
    known = f.constants(40.0)
    assert r.F == pytest.approx(40) and r.G == pytest.approx(known.G)
    assert (r.L_x, r.L_y) == (pytest.approx(known.L_x_near), pytest.approx(known.L_y_near))
    epoch = descent(s, r.eta_x, r.eta_y, r.mu, r.L_x, r.L_y)
    assert epoch.holds and epoch.noise * r.T <= s.gap
    top, d, n = 2 * r.G + s.spread, s.d, s.n
    way = math.sqrt(r.L_x) * r.eta_x * d * (top + r.mu * r.L_x * math.sqrt(d) / 2) + math.sqrt(r.L_y) * r.eta_y * top
    assert n * way + math.sqrt(r.L_x * d) * r.mu <= known.radius * (1 + 1e-9)
    assert r.T >= 16 * s.gap / (delta * eps**2 * n * min(r.eta_x, 1.5 * r.eta_y)) * (1 - 1e-12)


def test_exponents_of_the_corrected_theorems() -> None:
    """nT is d sigma_x^2 eps^-4 in expectation, and delta^-2 times that with high probability."""
    s = Setting(one, one, 1.0, 2, 1000, 1.0, 0.0)
    base = in_expectation(s, 1e-4, 1.0).gradients
    assert in_expectation(s, 5e-5, 1.0).gradients / base == pytest.approx(16, rel=1e-3)
    assert in_expectation(replace(s, d=2001), 1e-4, 1.0).gradients / base == pytest.approx(2, rel=1e-3)
    base = with_high_probability(s, 1e-4, 0.1).gradients
    assert with_high_probability(s, 5e-5, 0.1).gradients / base == pytest.approx(16, rel=1e-3)
    assert with_high_probability(s, 1e-4, 0.05).gradients / base == pytest.approx(4, rel=1e-3)


def test_bad_input_is_refused() -> None:
    s = Setting(one, one, 1.0, 2, 10, 1.0, 0.0)
    for eps, delta in ((0.0, 0.1), (math.nan, 0.1), (math.inf, 0.1), (0.1, 0.0), (0.1, 1.0), (0.1, math.nan)):
        for theorem in (theorem_c1, with_high_probability):
            with pytest.raises(BadInput, match="eps is|delta is"):
                theorem(s, eps, delta)
    with pytest.raises(BadInput, match="T is 0"):
        theorem_c1(s, 0.1, 0.1, T=0)
    for mu in (-1e-9, 1.0, math.nan):
        with pytest.raises(BadInput, match="mu is"):
            theorem_c1(s, 0.1, 0.1, T=10, mu=mu)
    for smoothness in (0.0, math.inf, math.nan):
        with pytest.raises(BadInput, match="smoothness"):
            in_expectation(s, 0.1, smoothness)
    for bad, message in (
        ({"gap": 0.0}, "gap"),
        ({"gap": math.nan}, "gap"),
        ({"n": 0}, "n = 0"),
        ({"d": -1}, "d = -1"),
        ({"sigma2_x": -1.0}, "sigma_x"),
        ({"spread": math.inf}, "spread"),
    ):
        with pytest.raises(BadInput, match=message):
            replace(s, **bad)
