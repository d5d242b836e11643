"""Step sizes and horizons: Theorem C.1 as printed, and the corrected theorems beside it.

Algorithm 1 on f = (1/n) sum_i f_i with x [d] by zeroth-order and y by exact gradients, T epochs of n steps, gap
Delta = f(z_0) - f*, and sigma^2 = sigma_x^2 + sigma_y^2 of Assumption 3.3. Readings
and proofs: theory.md A and B.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from smoothlab.errors import BadInput
from smoothlab.theory.constants import Ell, constants, gradient_bound, gradient_bound_printed, largest

Reading = Literal["printed", "doubled", "sharp"]
"""G and L: by Lemma B.3 with ell(u), L = ell(G); with ell(2u), L = ell(2G) as the proofs use; G by T1, L = ell(G)."""


@dataclass(frozen=True)
class Setting:
    """The problem, as the theorems take it.

    Attributes:
        ell_x: of f and of every component, at ||grad f|| (for shifts <c_i, z>, of equal Hessians, both are the same;
            for sums whose components curve differently the components' is the larger one, the paper's L_{x,max}).
        ell_y: likewise.
        gap: Delta = f(z_0) - f*.
        n: number of components.
        d: dimension of x, the block that is perturbed.
        sigma2_x: sigma_x^2; B.6' needs it at the start of each epoch only, so that where variances are unbounded, that
            of a sublevel set will do for an iterate that is stopped when it leaves the set.
        sigma2_y: sigma_y^2.
        spread: max_i sup_z ||grad f_i - grad f||, for the high-probability theorem: where ||grad f|| <= 2G.
    """

    ell_x: Ell
    ell_y: Ell
    gap: float
    n: int
    d: int
    sigma2_x: float
    sigma2_y: float
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.gap < math.inf:
            raise BadInput(f"the gap f(z_0) - f* is {self.gap}: give a positive number")
        if self.n < 1 or self.d < 1:
            raise BadInput(f"n = {self.n} and d = {self.d}: both must be at least 1")
        if not all(0 <= s < math.inf for s in (self.sigma2_x, self.sigma2_y, self.spread)):
            raise BadInput(
                f"sigma_x^2 = {self.sigma2_x}, sigma_y^2 = {self.sigma2_y} and the spread = {self.spread} "
                "must be finite and not negative"
            )

    @property
    def sigma2(self) -> float:
        """sigma^2."""
        return self.sigma2_x + self.sigma2_y

    def smoothness(self, level: float, reading: Reading) -> tuple[float, float, float]:
        """G, L_x, L_y on f - f* <= level."""
        ell = largest(self.ell_x, self.ell_y)
        stretch = 2.0 if reading == "doubled" else 1.0
        g = gradient_bound(ell, level) if reading == "sharp" else gradient_bound_printed(ell, level, stretch)
        return g, float(np.asarray(self.ell_x(stretch * g))), float(np.asarray(self.ell_y(stretch * g)))


@dataclass(frozen=True)
class Horizon:
    """The rates and the number of epochs that a theorem asks for, and what it promises."""

    eps: float  # (1/T) sum ||grad f||^2 <= eps^2
    delta: float  # with probability at least 1 - delta; 0 for a theorem in expectation
    n: int  # number of components
    T: int  # epochs
    eta_x: float  # learning rate of x
    eta_y: float  # learning rate of y
    mu: float  # perturbation
    F: float  # level that the iterates stay below; infinite where smoothness is global
    G: float  # bound of ||grad f|| there
    L_x: float  # smoothness there
    L_y: float  # smoothness there

    @property
    def gradients(self) -> int:
        """Component gradients of y, nT; function evaluations for x are twice that."""
        return self.n * self.T


@dataclass(frozen=True)
class Printed(Horizon):
    """Theorem C.1 as printed, which is false (theory.md B)."""

    H: float  # threshold of the noise, Eq. (6): 2 sqrt([200 G^2 d/n + 2 G^2 + 2 sigma^2/n] T/delta)
    sigma_prime: float  # Eq. (4), at most 2 eta_x + eta_y
    required: float  # what eps^2 T must reach; T is the smallest integer where it does, unless T was given

    @property
    def holds(self) -> bool:
        """Whether T meets its condition."""
        return self.eps**2 * self.T >= self.required


def theorem_c1(
    setting: Setting, eps: float, delta: float, *, T: int | None = None, mu: float | None = None,
    reading: Reading = "printed",
) -> Printed:  # fmt: skip
    """All constants of Theorem C.1, with the largest eta_x, eta_y, mu of Eq. (3).

        Eq. (3)  eta_x = min{1/(2 L_x n), 1/(384 L_x n d), sqrt(2/T)/(sigma n L_x)}
                 eta_y = min{1/(2 L_y n), sqrt(2/T)/(sigma n L_y)}
                 mu = min{G/(L_x d^1.5), 8G/(L_x d^1.5), 1/(3 L_x T n d G)}   (the derivation needs G/(9 L_x d^1.5))
        Eq. (4)  sigma' = [(sigma^2/2) n^2 (eta_x^3 L_x^2 + eta_y^3 L_y^2) + o(mu)] T,  o(mu) = 3 eta_x mu n L_x d G
        Eq. (7)  F = (8/delta)(Delta + sigma')   (scan; the header shows 3[...], with which P(tau < T) <= delta fails)
        T        eps^2 T >= 2/delta + G^2/8 + (Delta + 2 eta_x + eta_y)/(n min{eta_x/4, 3 eta_y/8})

    G, L_x, L_y are those of f - f* <= F, so that F is the solution of its own equation: its right-hand side is at
    least 8 Delta/delta, and at most (8/delta)(Delta + 2 eta_x + eta_y) there. T enters the rates: the smallest T is
    looked for by doubling, then bisection. The proof has ln(2/delta) where T's condition has 2/delta.

    Args:
        setting: the problem.
        eps: accuracy.
        delta: probability of failure.
        T: epochs; by default the smallest that meets the condition.
        mu: perturbation, at most that of Eq. (3), which is the default; 0 for the limit.
        reading: of G and L.

    Raises:
        BadInput: eps, delta, T or mu out of range.
    """
    _accuracy(eps, delta)
    if T is not None and T < 1:
        raise BadInput(f"T is {T}: give at least one epoch")
    if T is None:
        T = smallest_integer(lambda epochs: _printed(setting, eps, delta, epochs, mu, reading).holds)
    return _printed(setting, eps, delta, T, mu, reading)


def _printed(s: Setting, eps: float, delta: float, T: int, mu: float | None, reading: Reading) -> Printed:
    sigma = math.sqrt(s.sigma2)
    noisy = math.sqrt(2 / T) / (sigma * s.n) if sigma else math.inf

    def at(level: float) -> tuple[float, ...]:
        g, l_x, l_y = s.smoothness(level, reading)
        eta_x = min(1 / (2 * s.n), 1 / (384 * s.n * s.d), noisy) / l_x
        eta_y = min(1 / (2 * s.n), noisy) / l_y
        largest_mu = min(g / (l_x * s.d**1.5), 1 / (3 * l_x * T * s.n * s.d * g))  # 8G/... is never the smaller one
        step = largest_mu if mu is None else mu
        if not 0 <= step <= largest_mu * (1 + 1e-9):
            raise BadInput(f"mu is {mu}: Eq. (3) allows 0 to {largest_mu:.3g} here")
        remainder = 3 * eta_x * step * s.n * l_x * s.d * g
        noise = s.sigma2 / 2 * s.n**2 * (eta_x**3 * l_x**2 + eta_y**3 * l_y**2) + remainder
        return g, l_x, l_y, eta_x, eta_y, step, noise * T

    low = 8 * s.gap / delta
    _, _, _, eta_x, eta_y, _, _ = at(low)
    high = 8 / delta * (s.gap + 2 * eta_x + eta_y) * (1 + 1e-9)
    F = float(optimize.brentq(lambda level: level - 8 / delta * (s.gap + at(level)[6]), low, high, rtol=1e-12))
    g, l_x, l_y, eta_x, eta_y, step, prime = at(F)
    H = 2 * math.sqrt((200 * g**2 * s.d / s.n + 2 * g**2 + 2 * s.sigma2 / s.n) * T / delta)
    required = 2 / delta + g**2 / 8 + (s.gap + 2 * eta_x + eta_y) / (s.n * min(eta_x / 4, 3 * eta_y / 8))
    return Printed(eps, delta, s.n, T, eta_x, eta_y, step, F, g, l_x, l_y, H, prime, required)


def smallest_integer(holds: Callable[[int], bool]) -> int:
    """The smallest T >= 1 with a property that every larger integer has too, exact for any size.

    Raises:
        BadInput: no T up to 2^200 has it.
    """
    smallest = smallest_integers(lambda T: np.array([holds(T[0])]), (1,), object, 200, tolerance=0)[0]
    if smallest == 1 << 200 and not holds(smallest):
        raise BadInput("no T below 1e60 meets the theorem's condition: give a larger eps")
    return int(smallest)


def smallest_integers(
    holds: Callable[[Any], NDArray[np.bool_]], shape: tuple[int, ...], dtype: type = float, doublings: int = 60,
    tolerance: float = 1e-12,
) -> Any:  # fmt: skip
    """The smallest T >= 1 of each entry with a property that larger ones have too: by doubling, then bisection.

    To one, or to a relative tolerance; 2^doublings where no T has the property.
    """
    low: Any = np.zeros(shape, dtype)
    high: Any = np.ones(shape, dtype)
    for _ in range(doublings):
        short = ~holds(high)
        if not short.any():
            break
        low, high = np.where(short, high, low), np.where(short, 2 * high, high)
    while (high - low > np.maximum(1, tolerance * high)).any():
        middle = (low + high) // 2
        met = holds(np.maximum(middle, 1)) & (middle >= 1)
        low, high = np.where(met, low, middle), np.where(met, middle, high)
    return high


@dataclass(frozen=True)
class Descent:
    """B.6' (theory.md B), what one epoch does if all f_i are block-smooth with diag(L_x, L_y) where it goes:

    E f(z_{t+1}) <= f(z_t) - decrease_x ||grad_x f||^2 - decrease_y ||grad_y f||^2 + noise
    """  # noqa: D205, D400, D415

    theta: float  # n max(eta_x L_x, eta_y L_y), at most 1/8
    drift: float  # eta_x L_x (d + 1), at most 1/64
    decrease_x: float  # n eta_x/4
    decrease_y: float  # 3 n eta_y/8
    # theta^2 (eta_x sigma_x^2 + eta_y sigma_y^2) + 6 n (d + 1) L_x eta_x^2 sigma_x^2 + 3 n eta_x beta^2 + 2 n eta_x^2
    # L_x v, with beta = mu L_x sqrt(d) and v = mu^2 L_x^2 d (d + 2)(d + 4)/2
    noise: float

    @property
    def holds(self) -> bool:
        """Whether the conditions are met."""
        return self.theta <= 1 / 8 and self.drift <= 1 / 64


def descent(setting: Setting, eta_x: float, eta_y: float, mu: float, l_x: float, l_y: float) -> Descent:
    """B.6' at these rates, perturbation and smoothness."""
    n, d = setting.n, setting.d
    theta = n * max(eta_x * l_x, eta_y * l_y)
    noise = theta**2 * (eta_x * setting.sigma2_x + eta_y * setting.sigma2_y)
    noise += 6 * n * (d + 1) * l_x * eta_x**2 * setting.sigma2_x
    noise += mu**2 * _perturbed(n, d, eta_x, l_x)
    return Descent(theta, eta_x * l_x * (d + 1), n * eta_x / 4, 3 * n * eta_y / 8, noise)


def _perturbed(n: int, d: int, eta_x: float, l_x: float) -> float:
    """The terms of B.6' in mu^2."""
    return 3 * n * eta_x * l_x**2 * d + n * eta_x**2 * l_x**3 * d * (d + 2) * (d + 4)


def in_expectation(setting: Setting, eps: float, smoothness: float) -> Horizon:
    """The corrected theorem in expectation, f_i block-smooth with diag(L, L) everywhere (theory.md B, proven).

    eta = min{1/(8nL), 1/(64 L (d + 1)), eps/(4 sqrt(n) L sigma), eps^2/(96 (d + 1) L sigma_x^2)}. B.6' summed gives
    (1/T) sum E ||grad f||^2 <= 4 Delta/(n eta T) + 4 noise/(n eta): with T = 16 Delta/(n eta eps^2) and mu as large as
    its terms allow, four parts of eps^2/4.

        nT = O(L Delta [d sigma_x^2 eps^-4 + sqrt(n) sigma eps^-3 + (n + d) eps^-2])

    If sigma holds where f - f* <= F only (components that curve differently), all of it stays true of the iterate that
    is stopped at tau = min{t: f(z_t) - f* > F}: (1/T) sum_{t < tau}; and as noise T <= 3 Delta, E f(z_tau) - f* <=
    4 Delta, so that P(tau < T) <= 4 Delta/F by Markov.

    Args:
        setting: the problem; its ell are not used.
        eps: accuracy.
        smoothness: L.

    Raises:
        BadInput: eps or L is not positive and finite.
    """
    _accuracy(eps, 0.5)
    if not 0 < smoothness < math.inf:
        raise BadInput(f"the smoothness L is {smoothness}: give a positive number")
    s, L = setting, smoothness
    eta = min(1 / (8 * s.n * L), 1 / (64 * L * (s.d + 1)))
    if s.sigma2:
        eta = min(eta, eps / (4 * math.sqrt(s.n * s.sigma2) * L))
    if s.sigma2_x:
        eta = min(eta, eps**2 / (96 * (s.d + 1) * L * s.sigma2_x))
    T = math.ceil(16 * s.gap / (s.n * eta * eps**2))
    mu = math.sqrt(eps**2 / 4 * s.n * eta / 4 / _perturbed(s.n, s.d, eta, L))
    return Horizon(eps, 0.0, s.n, T, eta, eta, mu, math.inf, math.inf, L, L)


def best_constant(setting: Setting, T: int, smoothness: float, variance: float | None = None) -> tuple[float, float]:
    """The constant rate with the least bound of (1/T) sum E ||grad f||^2 over T epochs, and that bound, as mu -> 0.

    B.6' summed, with w = d + 1 (`in_expectation`; theory.md B):

        bound(eta) = 4 Delta/(n eta T) + 4 n eta^2 L^2 sigma^2 + 24 w L eta sigma_x^2,  eta <= 1/(8nL), 1/(64 L w).

    Each part is convex in eta: the best rate is where the derivative is 0, or the largest allowed one. Where the last
    part rules it is sqrt(Delta/(6 n T w L sigma_x^2)). The proof uses w through E ||ghat - g||^2 <= w ||g||^2 only, so
    that other directions put their own variance in its place: (m - 1)/q with E ||ghat||^2 = m ||g||^2 for one of q.

    >>> from smoothlab.theory.constants import ones
    >>> eta, bound = best_constant(Setting(ones, ones, 0.5, 4, 3, 0.75, 0.25), 10**6, 1.0)
    >>> round(eta / (0.5 / (6 * 4 * 10**6 * 4 * 0.75)) ** 0.5, 2)
    1.0

    Args:
        setting: the problem; its ell are not used.
        T: epochs.
        smoothness: L.
        variance: w; d + 1 by default, that of one Gaussian direction.

    Raises:
        BadInput: T, L or w is out of range.
    """
    w = setting.d + 1.0 if variance is None else variance
    if T < 1 or not 0 < smoothness < math.inf or not 0 <= w < math.inf:
        raise BadInput(f"T = {T}, L = {smoothness}, variance {w}: use at least one epoch, L > 0 and a variance >= 0")
    s, L = setting, smoothness
    largest_rate = 1 / (8 * s.n * L)
    if w:
        largest_rate = min(largest_rate, 1 / (64 * L * w))
    quadratic, linear = 4 * s.n * L**2 * s.sigma2, 24 * w * L * s.sigma2_x

    def slope(eta: float) -> float:
        return -4 * s.gap / (s.n * T * eta**2) + 2 * quadratic * eta + linear

    eta = largest_rate
    if slope(largest_rate) > 0:
        eta = float(optimize.brentq(slope, 1e-12 * largest_rate, largest_rate, xtol=1e-15 * largest_rate, rtol=1e-12))
    return eta, 4 * s.gap / (s.n * eta * T) + quadratic * eta**2 + linear * eta


def with_high_probability(setting: Setting, eps: float, delta: float) -> Horizon:
    """The corrected high-probability theorem under Definition 2.1, sphere directions (theory.md B, proven).

    F = 4 Delta/delta; G by T1; D = diag(L_x, L_y) = ell(2G), which holds for every f_i within r = G/sqrt(max(L_x, L_y))
    of the sublevel set in the norm ||s||_D (B.1 corrected), and G_max = 2G + spread. Conditions: those of B.6',

        n [sqrt(L_x) eta_x d (G_max + mu L_x sqrt(d)/2) + sqrt(L_y) eta_y G_max] + sqrt(L_x d) mu <= r

    and noise <= Delta/T; then (1/T) sum ||grad f||^2 <= eps^2 with probability >= 1 - delta for
    T = 16 Delta/(delta eps^2 n min(eta_x, 3 eta_y/2)). Here eta_y = 2 eta_x/3, a quarter of Delta/T and of r is mu's,
    and eta_x is the largest that meets them, by bisection: every condition is easier with a smaller one.

    At small eps the noise 6 n (d + 1) L_x eta_x^2 sigma_x^2 T <= 3 Delta/4 rules, and

        nT = 2048 (d + 1) Delta L_x(F) sigma_x(F)^2 eps^-4 delta^-2,   F = 4 Delta/delta.

    So nT is delta^-2 exactly where ell_x and sigma are bounded, whatever ell_y is (`delta_exponent`); with ell affine
    in both blocks it is delta^-3, since L_x(F) grows as F.
    """
    _accuracy(eps, delta)
    s, F = setting, 4 * setting.gap / delta
    c = constants(s.ell_x, s.ell_y, F)
    l_x, l_y, r, g_max = c.L_x_near, c.L_y_near, c.radius, 2 * c.G + s.spread

    def at(eta: float) -> tuple[bool, Horizon]:
        T = math.ceil(16 * s.gap / (delta * eps**2 * s.n * eta))
        mu = math.sqrt(s.gap / (4 * T) / _perturbed(s.n, s.d, eta, l_x))
        mu = min(mu, r / (4 * math.sqrt(l_x * s.d)))  # so mu l_x sqrt(d) <= G/4, far below the gradients' bound
        step = math.sqrt(l_x) * s.d * (g_max + mu * l_x * math.sqrt(s.d) / 2) + math.sqrt(l_y) * g_max * 2 / 3
        epoch = descent(s, eta, 2 * eta / 3, mu, l_x, l_y)
        fits = epoch.holds and epoch.noise * T <= s.gap and s.n * eta * step + math.sqrt(l_x * s.d) * mu <= r
        return fits, Horizon(eps, delta, s.n, T, eta, 2 * eta / 3, mu, F, c.G, l_x, l_y)

    high = 1 / (8 * s.n * min(l_x, l_y))
    low = high
    while not at(low)[0]:
        low /= 2
    for _ in range(60):
        middle = math.sqrt(low * high)
        if at(middle)[0]:
            low = middle
        else:
            high = middle
    return at(low)[1]


def delta_exponent(rho_x: float, rho: float, growth: float = 0.0) -> float:
    """Exponent of nT in delta for `with_high_probability`, eps -> 0 first, then delta -> 0.

    With ell_x of order u^rho_x and max(ell_x, ell_y) of order u^rho, Phi(G) = F gives G of order F^(1/(2 - rho)), hence
    L_x(F) = ell_x(2G) of order F^(rho_x/(2 - rho)), F = 4 Delta/delta; and with sigma_x^2 of order F^growth on
    f - f* <= F, nT ~ L_x(F) sigma_x(F)^2 delta^-2 has the exponent

        -(2 + rho_x/(2 - rho) + growth).

    -2 where ell_x is bounded (rho_x = 0, ell_y may be what it likes) and sigma is, too; -2 - 1/3 for 1 + sqrt(u), -3
    for affine ell in both blocks, where slopes at delta of 0.01 to 0.2 are still -2.92 to -2.97; -3 for quadratics with
    Hessians of their own (rho = 0, growth 1), -5 for sums of exponentials (rho = 1, growth 2). Slowly varying factors,
    as of ell = 1 + log(1 + u), change none of it.

    Args:
        rho_x: index of ell_x, from 0 to rho.
        rho: index of the larger ell, below 2.
        growth: index of sigma_x^2 in F.

    Raises:
        BadInput: an index out of range.
    """
    if not (0 <= rho_x <= rho < 2 and growth >= 0):
        raise BadInput(f"rho_x = {rho_x}, rho = {rho}, growth = {growth}: use 0 <= rho_x <= rho < 2 and growth >= 0")
    return -(2 + rho_x / (2 - rho) + growth)


def _accuracy(eps: float, delta: float) -> None:
    if not 0 < eps < math.inf:
        raise BadInput(f"eps is {eps}: give a positive number")
    if not 0 < delta < 1:
        raise BadInput(f"delta is {delta}: give a probability between 0 and 1")
