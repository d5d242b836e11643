"""Algorithm 1 on quadratics in closed form: E ||grad f(z_t)||^2 of each block, for any rate, order and estimator.

f_i(x, y) = L_x ||x||^2/2 + L_y ||y||^2/2 + <c_i, z>: the blocks do not see each other. For one block, with x_k what it
is after k steps of an epoch, c the shift of the step, and an estimate ghat of mean g = L x + c and E ||ghat||^2 =
m ||g||^2 (theory.md D: m = 1 exact, d + 2 Gaussian, d sphere and signs; of q averaged directions 1 + (m - 1)/q),

    E ||x_{k+1}||^2 = (1 - 2 eta L + eta^2 m L^2) E ||x_k||^2 + (2 eta^2 m L - 2 eta) E <x_k, c> + eta^2 m sigma^2.

The mean of x_k given the orders is linear in the shifts: with r = 1 - eta L, an earlier shift c' of j steps ago is in
it with -eta r^j, and E <c', c> is 0 with replacement, -sigma^2/(n - 1) for another summand, sigma^2 for the same one.
Reshuffled, only those of the same epoch count (an order is independent of the past, and E c = 0); shuffled once, those
of all epochs before do too, and E <x_k, c> goes to its limit as R^t, R = r^n. Hence q_t = E ||x_t||^2 has

    q_{t+1} = A q_t + B - C R^t,   A = (1 - 2 eta L + eta^2 m L^2)^n,   C = 0 but for "once",

at any mu of the two-sided estimate. The one-sided one adds (mu/2) L ||v||^2 v, which is odd in v: of mean 0 and not
correlated with <g, v> v, so that eta^2 (mu^2/4) L^2 E ||v||^6/q is added to each step, with d (d + 2)(d + 4) for
Gaussian directions and d^3 on the sphere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from smoothlab.algorithm1.sampling import matrix_shape
from smoothlab.theory.theorems import smallest_integers
from smoothlab.zeroth.distributions import named
from smoothlab.zeroth.expectations import Shapes

Array = NDArray[np.float64]
Order = Literal["reshuffle", "once", "replace"]
Rule = Literal["one", "two"]
STAGES, BUDGET = 3, 225  # of the search for rates: how often it zooms in, and the rates or pairs tried each time
SPAN = 1e-12  # the smallest rate that is tried, in the largest one


def moment(d: int, distribution: str, q: int = 1) -> float:
    """m of q averaged directions of a distribution; "exact" is 1. x has the shape of `matrix_shape`.

    >>> moment(10, "gaussian"), moment(10, "sparse(0.5)"), moment(10, "lowrank(1)")
    (12.0, 15.0, 28.0)

    Raises:
        BadInput: no closed form is known for the distribution.
    """
    if distribution == "exact":
        return 1.0
    single, _ = named(distribution).second_moment(shapes_of_x(d, distribution))
    return 1 + (single - 1) / q


def shapes_of_x(d: int, distribution: str) -> Shapes:
    """x as one tensor, as closed forms take it."""
    return (matrix_shape(distribution, d) or (d,),)


@dataclass(frozen=True)
class Block:
    """A block of the quadratic."""

    L: float  # its curvature
    start: float  # ||grad f(z_0)||^2 of the block
    n: int  # number of components
    sigma2: float  # sigma^2 of the block
    moment: float  # m
    order: Order = "reshuffle"  # how an epoch goes through the components
    extra: float = 0.0  # what the one-sided estimate adds to E ||ghat||^2

    def coefficients(self, eta: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """A, B, C and R of the module's text at each rate, for the squared gradient L^2 q_t."""
        eta = np.asarray(eta, dtype=float)
        L, n, m, order = self.L, self.n, self.moment, self.order
        r, step = 1 - eta * L, 1 - 2 * eta * L + (eta * L) ** 2 * m
        cross = 0.0 if order == "replace" or n == 1 else -self.sigma2 / (n - 1)
        bend, fresh = 2 * eta**2 * m * L - 2 * eta, eta**2 * (m * self.sigma2 + self.extra)
        powers = r[..., None] ** np.arange(n)
        sums = np.concatenate([np.zeros((*eta.shape, 1)), np.cumsum(powers, -1)], -1)  # [..., k]: 1 + ... + r^(k - 1)
        b, c = np.zeros_like(eta), np.zeros_like(eta)
        epoch_sum = sums[..., n]
        for k in range(n):
            # E <x_k, c>, from earlier steps of this epoch and of those before it.
            inner = -eta * cross * sums[..., k]
            older = np.zeros_like(eta)
            if order == "once" and n > 1:
                older = -eta * powers[..., k] * ((self.sigma2 - cross) * powers[..., n - 1 - k] + cross * epoch_sum)
                older = np.divide(older, 1 - r**n, out=np.zeros_like(eta), where=eta > 0)
            b = step * b + bend * (inner + older) + fresh
            c = step * c + bend * older
        return step**n, b * L**2, c * L**2, r**n

    def floor(self, eta: ArrayLike) -> Array:
        """The limit of E ||grad f(z_t)||^2; infinite where it diverges in mean square."""
        a, b, _, _ = self.coefficients(eta)
        return np.where(a < 1, b / np.where(a < 1, 1 - a, 1.0), math.inf)

    def average(self, eta: ArrayLike, epochs: ArrayLike) -> Array:
        """(1/T) sum_{t < T} E ||grad f(z_t)||^2 at each pair of a rate and T."""
        return self.averages(eta)(epochs)

    def averages(self, eta: ArrayLike) -> Callable[[ArrayLike], Array]:
        """(1/T) sum_{t < T} E ||grad f(z_t)||^2 as a function of T, for many T at the same rates."""
        if self.order == "once":
            return lambda epochs: self._powers(eta, epochs)[0] / np.asarray(epochs, dtype=float)
        a, b, _, _ = self.coefficients(eta)
        # The geometric sum of A^t; A = 1 (a rate of 0) and A = 0 are limits that `where` takes instead.
        with np.errstate(divide="ignore", invalid="ignore"):
            rate, end = np.log(a), np.where(a == 1, self.start, b / (1 - a))

        def at(epochs: ArrayLike) -> Array:
            T = np.asarray(epochs, dtype=float)
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                # 1 - A^T by expm1: at small rates A is so close to 1 that the difference would keep no digits.
                mass = np.where(a == 1, 1.0, -np.expm1(T * rate) / (T * (1 - a)))
                return np.where(a > 0, end + (self.start - end) * mass, end + (self.start - end) / T)

        return at

    def at(self, eta: ArrayLike, epochs: ArrayLike) -> Array:
        """E ||grad f(z_T)||^2."""
        return self._powers(eta, epochs)[1]

    def _powers(self, eta: ArrayLike, epochs: ArrayLike) -> tuple[Array, Array]:
        """Sum over t < T, and the value at T, by powers of the matrix that takes (sum, q, R^t, 1) one epoch on."""
        eta, T = np.broadcast_arrays(np.asarray(eta, dtype=float), np.asarray(epochs))
        a, b, c, ratio = self.coefficients(eta)
        total, last = np.empty(eta.shape), np.empty(eta.shape)
        for i in np.ndindex(eta.shape):
            epoch = np.array([[1, 1, 0, 0], [0, a[i], -c[i], b[i]], [0, 0, ratio[i], 0], [0, 0, 0, 1.0]])
            total[i], last[i], *_ = np.linalg.matrix_power(epoch, int(T[i])) @ [0, self.start, 1, 1]
        return total, last


def epochs_to(level: float, x: Block, y: Block, eta_x: ArrayLike, eta_y: ArrayLike) -> Array:
    """The smallest T with (1/T) sum_{t < T} E ||grad f(z_t)||^2 <= level at each pair of rates, or infinity.

    For a level below both blocks' start, where the average falls with T if it can get there: both floors are then below
    their block's start.
    """
    eta_x, eta_y = np.broadcast_arrays(np.asarray(eta_x, dtype=float), np.asarray(eta_y, dtype=float))
    reached = x.floor(eta_x) + y.floor(eta_y) < level
    of_x, of_y = x.averages(eta_x), y.averages(eta_y)
    epochs = smallest_integers(lambda T: ~reached | (of_x(T) + of_y(T) <= level), eta_x.shape)
    return np.where(reached & (epochs <= 2.0**59), epochs, math.inf)


@dataclass(frozen=True)
class Tuned:
    """Rates with the smallest T that a search found."""

    eta_x: float
    eta_y: float
    T: float


def tuned(level: float, x: Block, y: Block, rule: Rule) -> Tuned:
    """The best single rate, or the best pair, by searches of the same budget over the same span.

    A grid on the log scale from SPAN times 2/min(L_x, L_y) up, then twice around the best point, by one spacing of the
    grid each way: 225 single rates, or 15 x 15 pairs, each time.
    """
    top = 2 / min(x.L, y.L)
    low, high = np.full(2, SPAN * top), np.full(2, top)  # of both rates
    for _ in range(STAGES):
        if rule == "one":
            grid = np.geomspace(low, high, BUDGET)
            pairs = grid
        else:
            grid = np.geomspace(low, high, math.isqrt(BUDGET))
            pairs = np.stack(np.meshgrid(*grid.T, indexing="ij"), -1).reshape(-1, 2)
        times = epochs_to(level, x, y, pairs[:, 0], pairs[:, 1])
        # Of equals the middle pair, as T is whole.
        fastest = np.flatnonzero(times == times.min())
        best = pairs[fastest[len(fastest) // 2]]
        width = grid[1] / grid[0]
        low, high = best / width, np.minimum(best * width, top)
    return Tuned(float(best[0]), float(best[1]), float(times.min()))


def gain_exact(ratio: float) -> float:
    """T of the best single rate over that of two: exact gradients, n = 1, blocks of equal gradients, eps -> 0.

    A block's gradients sum up to start/(1 - (1 - u)^2) = start/(u (2 - u)), u = eta L: 1 at u = 1, which two rates
    reach for both. With one rate and u = eta L_x, minimize [1/(u (2 - u)) + ratio^2/(u (2 ratio - u))]/2: 1 at ratio 1,
    about ratio/8 + sqrt(ratio)/4 for large ones.
    """

    def sum_of_blocks(u: float) -> float:
        return (1 / (u * (2 - u)) + ratio**2 / (u * (2 * ratio - u))) / 2

    best = optimize.minimize_scalar(sum_of_blocks, bounds=(1e-9, 2 - 1e-9), method="bounded", options={"xatol": 1e-12})
    return float(best.fun)
