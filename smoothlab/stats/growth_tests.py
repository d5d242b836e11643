"""Tests of how L grows with the gradient norm u: whether it does, less than quadratically, alike in two blocks.

Each is a regression by plain least squares, free to be negative, with the block bootstrap's interval; a p-value is
below 2.5 % exactly where the interval lies beyond 0. Simulated sizes: benchmarks/fit_coverage.py.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from smoothlab.errors import BadInput
from smoothlab.stats.block_bootstrap import SHORTEST, interval, longest, p_value, picks
from smoothlab.stats.growth import RESAMPLES, check, line_dependence, sampled, scale, usable
from smoothlab.stats.intervals import Interval

Array = NDArray[np.float64]


class GrowthTest(NamedTuple):
    """A test: its null hypothesis is refused where the p-value is small.

    Attributes:
        name: grows, sub-quadratic or same.
        null: the hypothesis that is tested, in words.
        value: the estimate that is compared with 0; NaN for several at once.
        low: end of its 95 % interval.
        high: end of its 95 % interval.
        p_value: one-sided for grows and sub-quadratic; NaN for fewer than 8 points.
    """

    name: str
    null: str
    value: float
    low: float
    high: float
    p_value: float


def grows(u: Array, L: Array, resamples: int = RESAMPLES, seed: int = 0) -> GrowthTest:
    """Whether L1 > 0 in L = L0 + L1 u, against L1 <= 0, for usable points in the order of the steps."""
    check(u, "linear")
    estimated, test = _slope(u, [u], L, resamples, seed, above=True)
    return GrowthTest("grows", "L1 <= 0", *estimated, test)


def sub_quadratic(u: Array, L: Array, resamples: int = RESAMPLES, seed: int = 0) -> GrowthTest:
    """Whether rho < 2 in L = L0 + c u^rho with c > 0, against rho >= 2, for usable points in the order of the steps.

    The score of rho at 2: the coefficient of u^2 log u beside 1 and u^2, which is c (rho - 2) to first order. Where L
    does not grow, c = 0 and the test has nothing to refuse.
    """
    check(u, "power")
    v = u / scale(u)
    estimated, test = _slope(u, [v**2, v**2 * np.log(v)], L, resamples, seed, above=False)
    return GrowthTest("sub-quadratic", "rho >= 2", *estimated, test)


def same(
    first: tuple[Array, Array], second: tuple[Array, Array], resamples: int = RESAMPLES, seed: int = 0
) -> GrowthTest:
    """Whether (L0, L1) of two blocks, measured at the same steps, are equal: Hotelling's test of both differences.

    Args:
        first: u and L of one block.
        second: those of the other one, at the same steps.
        resamples: number of bootstrap samples, the same steps of both blocks.
        seed: seed of the bootstrap.
    """
    for u, _ in (first, second):
        check(u, "linear")
    series = longest([line_dependence(*first), line_dependence(*second)])
    null = "(L0, L1) of both blocks are equal"
    if series.n < SHORTEST:
        return GrowthTest("same", null, math.nan, math.nan, math.nan, math.nan)
    chosen = picks(series.n, series.length, resamples, np.random.default_rng(seed))
    estimates, draws = [], []
    for u, L in (first, second):
        estimates.append(_regressed([u[None]], L[None])[0])
        draws.append(_regressed([u[chosen]], L[chosen]))
    difference = estimates[0] - estimates[1]
    covariance = np.cov((draws[0] - draws[1]).T) * series.stretch(2) ** 2
    distance = float(difference @ np.linalg.pinv(covariance, hermitian=True) @ difference)
    degrees = max(series.degrees(2), 2.0)
    p = float(stats.f.sf(distance * (degrees - 1) / (2 * degrees), 2, degrees - 1))
    return GrowthTest("same", null, math.nan, math.nan, math.nan, p)


def growth_tests(
    gradient_norms: ArrayLike, curvatures: ArrayLike, *, floors: ArrayLike | None = None, resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[GrowthTest, GrowthTest]:  # fmt: skip
    """Test whether a Hessian norm grows with the gradient norm, and whether it grows less than quadratically.

    >>> import numpy as np
    >>> from smoothlab import growth_tests
    >>> u = np.linspace(0.1, 2.0, 40)
    >>> grows, sub_quadratic = growth_tests(u, 3 + 2 * u + 0.1 * np.sin(40 * u))
    >>> bool(grows.p_value < 0.001), bool(sub_quadratic.p_value < 0.001)
    (True, True)

    Args:
        gradient_norms: u, in the order of the steps, [n].
        curvatures: L at the same steps, [n].
        floors: rounding floors of the curvatures, [n]; points under twice their floor are left out.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        BadInput: fewer than 4 points, a value that is negative or not finite, or gradient norms that do not differ.
    """
    u, L, _ = usable(gradient_norms, curvatures, floors)
    return grows(u, L, resamples, seed), sub_quadratic(u, L, resamples, seed)


def _slope(
    u: Array, columns: list[Array], L: Array, resamples: int, seed: int, *, above: bool
) -> tuple[Interval, float]:
    """The last column's coefficient beside a constant and the others, with its interval, and its one-sided p-value."""
    series = line_dependence(u, L)
    estimate = float(_regressed([column[None] for column in columns], L[None])[0, -1])
    drawn = sampled(series, resamples, seed, L, *columns)
    estimated = interval(estimate, _regressed(drawn[1:], drawn[0])[:, -1], series, len(columns) + 1)
    return estimated, p_value(estimated, series, len(columns) + 1, above=above)


def _regressed(columns: list[Array], L: Array) -> Array:
    """Coefficients of a constant and the columns [samples, n] by least squares, [samples, 1 + columns]."""
    design = np.stack([np.ones_like(L), *columns], axis=-1)
    try:
        return np.asarray(np.einsum("spn,sn->sp", np.linalg.pinv(design), L))
    except np.linalg.LinAlgError:
        raise BadInput("the least-squares fit of a bootstrap sample failed: give more points") from None
