"""Example 2.3 in closed form: f(x, y) = a ||x||^2 + b ||y||^2, curvatures 2a and 2b, a >= b > 0.

Exact gradients multiply x by 1 - 2a eta_x and y by 1 - 2b eta_y at each step. With x moved by a zeroth-order estimate
(mu = 0, or two-sided at any mu: f is quadratic) and s = 2a eta_x,

    E ||x+||^2 / ||x||^2 = 1 - 2s + s^2 m,   m = d + 2 for Gaussian directions, d for signs and the sphere,

because E||ghat||^2 = m ||g||^2 (theory.md D): stable in mean square for s < 2/m, fastest at s = 1/m, by 1 - 1/m a step.
"""

import math
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from smoothlab.theory.theorems import smallest_integer

Array = NDArray[np.float64]
Rule = Literal["small", "large", "best", "two"]
RULES: tuple[Rule, ...] = ("small", "large", "best", "two")
"""One rate 1/(2a); one rate 1/(2b); the best single rate 1/(a + b) = 2/(2a + 2b); 1/(2a) for x and 1/(2b) for y."""
GRID = (3000, 300)  # places of <u, v> and of the length of what is orthogonal to it
REACH = 9.0  # standard deviations; what lies beyond has probability 10^-18


def rates(rule: Rule, a: float, b: float) -> tuple[float, float]:
    """eta_x and eta_y."""
    return {
        "small": (1 / (2 * a), 1 / (2 * a)),
        "large": (1 / (2 * b), 1 / (2 * b)),
        "best": (1 / (a + b), 1 / (a + b)),
        "two": (1 / (2 * a), 1 / (2 * b)),
    }[rule]


def factors(a: float, b: float, eta_x: float, eta_y: float) -> tuple[float, float]:
    """Factors of |x| and |y| in an exact step; below 1 the block converges, above 1 it diverges."""
    return abs(1 - 2 * a * eta_x), abs(1 - 2 * b * eta_y)


def steps(square_x: float, square_y: float, eps: float) -> float:
    """Smallest k with (square_x^k + square_y^k)/2 <= eps^2: from ||x|| = ||y|| to eps times that; or infinite."""
    slower = max(square_x, square_y)
    if slower >= 1:
        return math.inf
    return float(smallest_integer(lambda k: (square_x**k + square_y**k) / 2 <= eps**2))


def mean_square(s: float, m: float) -> float:
    """E ||x+||^2 / ||x||^2 of one zeroth-order step, s = 2a eta_x."""
    return 1 - 2 * s + s * s * m


def best_single(a: float, b: float, m: float) -> float:
    """The rate eta for both blocks whose slower mean square factor is smallest: x zeroth-order, y exact."""

    def slower_factor(eta: float) -> float:
        return max(mean_square(2 * a * eta, m), (1 - 2 * b * eta) ** 2)

    largest_rate = min(1 / (a * m), 1 / b)  # beyond it one of them grows
    best = optimize.minimize_scalar(
        slower_factor, bounds=(0, largest_rate), method="bounded", options={"xatol": 1e-12 * largest_rate}
    )
    return float(best.x)


@cache
def _normal_parts(d: int) -> tuple[Array, Array, Array]:
    """<u, v>^2 and ||v||^2 - <u, v>^2 for a unit vector u and Gaussian v, and their weights: midpoint rules."""
    along = (np.arange(GRID[0]) + 0.5) / GRID[0] * REACH
    across, density = np.zeros(1), np.ones(1)
    if d > 1:  # in one dimension nothing is orthogonal to u
        smallest = max(0.0, (d - 1) ** 0.5 - REACH)
        across = smallest + (np.arange(GRID[1]) + 0.5) / GRID[1] * ((d - 1) ** 0.5 + REACH - smallest)
        density = stats.chi.pdf(across, d - 1)
    weights = stats.norm.pdf(along)[:, None] * density
    return along[:, None] ** 2, across[None] ** 2, weights / weights.sum()


def typical(s: float, d: int) -> float:
    """E log(||x+||^2 / ||x||^2) of a Gaussian step, by quadrature: below 0 almost every run converges.

    The quotient is 1 - 2 s w + s^2 w (w + r), w ~ chi^2_1 and r ~ chi^2_{d-1} independent, at every x: quotients of
    different steps are independent, and log ||x_t||^2 is a random walk.
    """
    w, r, weights = _normal_parts(d)
    # a step may land on the minimum, where the logarithm is -infinity at a single point of the grid
    return float((weights * np.log(np.maximum((1 - s * w) ** 2 + s * s * w * r, 1e-300))).sum())


@cache
def typical_limit(d: int) -> float:
    """The s where `typical` is 0: largest rate with which almost every run converges."""
    start = 2 / (d + 2)
    return float(optimize.brentq(lambda s: typical(s, d), start / 2, 4 * start + 4 / d, xtol=1e-6))


def spread(s: float, d: int, steps: float) -> float:
    """Var ||x_k||^2 / (E ||x_k||^2)^2 after k Gaussian steps: of a product of independent quotients.

    Where it is large the mean is carried by a few runs in many, and a sample does not show it.
    """
    w, r, weights = _normal_parts(d)
    quotient = (1 - s * w) ** 2 + s * s * w * r
    step = math.log(float((weights * quotient**2).sum()) / mean_square(s, d + 2) ** 2)
    return math.expm1(min(step * steps, 700.0))  # beyond 709 it overflows
