"""Bootstrap of a series by circular blocks, which keep neighboring points together: intervals and p-values.

Points along a training run are alike where they are near. Blocks of consecutive points carry that dependence into the
samples if they are long enough (Künsch, Ann. Stat. 17, 1989; circular: Politis and Romano, 1992).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from smoothlab.stats.intervals import TAIL, Interval, Z

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
MOST_CORRELATED = 0.97  # beyond it a series of the usual length shows next to nothing of its own spread
FEWEST_BLOCKS = 4  # a bootstrap of fewer blocks has no spread to speak of
SHORTEST = 8
"""Fewest points with an interval: fewer show neither their spread nor their dependence."""


def picks(n: int, length: int, times: int, rng: np.random.Generator, *, circular: bool = True) -> Indices:
    """Indices of `times` bootstrap samples of n points, each of consecutive blocks that begin anywhere, [times, n].

    Args:
        n: number of points.
        length: points in a block.
        times: number of samples.
        rng: generator of the beginnings.
        circular: the first point follows the last one, so that every point is drawn equally often.
    """
    beginnings = n if circular else n - length + 1
    starts = rng.integers(0, beginnings, (times, -(-n // length)))
    return (starts[..., None] + np.arange(length)).reshape(times, -1)[:, :n] % n


class Dependence(NamedTuple):
    """Length over which neighbors stay alike in a series of n points.

    Attributes:
        n: number of points.
        length: points in a block.
        correlation: of neighbors, corrected for its bias.
    """

    n: int
    length: int
    correlation: float

    @property
    def blocks(self) -> float:
        """Number of blocks in the series."""
        return self.n / self.length

    def stretch(self, parameters: int) -> float:
        """Factor by which distances from an estimate to its bootstrap quantiles are too short; see `interval`."""
        n, b, r = self.n, self.length, self.correlation
        # Blocks of b points miss what points of different blocks share, and samples that the mean is their own.
        fraction = 1 - 2 * r * (1 - r**b) / (b * (1 - r * r))
        if b > 1:
            fraction *= 1 - b / n
        return math.sqrt(n / (n - parameters) / fraction)

    def degrees(self, parameters: int) -> float:
        """Degrees of freedom of the spread between blocks, at least 1."""
        return max(self.blocks - parameters, 1.0)


def dependence(residuals: ArrayLike) -> Dependence:
    """Block length for a series of residuals, by the rule of a first-order autoregression.

    The length ceil((6 r^2 / (1 - r^2)^2)^(1/3) n^(1/3)) makes the mean squared error of the bootstrap's variance least
    where the correlation falls as r^k (Politis and White, Econom. Rev. 23, 2004; Patton, Politis and White 2009), but
    at least `FEWEST_BLOCKS` blocks are left. r is the correlation of neighbors, corrected for its bias of
    -(2 + 4 r)/n in residuals of a regression (Kendall, Biometrika 41, 1954), and between 0 and `MOST_CORRELATED`.

    Args:
        residuals: in the order of the steps, [n].
    """
    e = np.asarray(residuals, dtype=float)
    e = e - e.mean()
    n, power = len(e), float(e @ e)
    r = 0.0
    if power > 0:
        r = float(e[1:] @ e[:-1]) / power
        r = min(max(r + (2 + 4 * r) / n, 0.0), MOST_CORRELATED)
    best = math.ceil((6 * r**2 / (1 - r**2) ** 2) ** (1 / 3) * n ** (1 / 3))
    return Dependence(n, max(min(best, n // FEWEST_BLOCKS), 1), r)


def longest(several: list[Dependence]) -> Dependence:
    """The dependence with the longest blocks and the strongest correlation among those of several series."""
    return Dependence(
        several[0].n, max(series.length for series in several), max(series.correlation for series in several)
    )


def interval(estimate: float, draws: Array, series: Dependence, parameters: int) -> Interval:
    """Percentile interval of bootstrap draws, expanded to the spread of few and dependent blocks.

    Ends are estimate + f (quantile - estimate), f the product of Student's over the normal quantile (Hesterberg, Am.
    Stat. 69, 2015), with as many degrees of freedom as there are blocks less parameters, and of sqrt(n/(n - p) / s),
    where s is the fraction of the variance that blocks of length b show in a first-order autoregression,
    1 - 2 r (1 - r^b)/(b (1 - r^2)), times 1 - b/n.

    Args:
        estimate: from the points themselves.
        draws: estimates from the bootstrap samples, [times].
        series: the points' dependence.
        parameters: number of parameters of the fit, p.
    """
    if series.n < SHORTEST:
        return Interval(estimate, math.nan, math.nan)
    factor = series.stretch(parameters) * float(stats.t.ppf(1 - TAIL, series.degrees(parameters))) / Z
    low, high = np.quantile(draws, [TAIL, 1 - TAIL]).tolist()
    # The draws may all lie on one side, at a bound of the parameter.
    return Interval(
        estimate, estimate - factor * max(estimate - low, 0.0), estimate + factor * max(high - estimate, 0.0)
    )


def p_value(bounded: Interval, series: Dependence, parameters: int, *, above: bool) -> float:
    """One-sided p-value against "the parameter is at most 0" (`above`) or "at least 0", as `interval` has it.

    It is below 2.5 % exactly where the interval lies beyond 0: Student's distribution with the scale of that side.

    Args:
        bounded: estimate with its `interval`.
        series: dependence that the interval was made with.
        parameters: number of parameters that the interval was made with.
        above: the alternative is a positive parameter.
    """
    if math.isnan(bounded.low):
        return math.nan
    degrees = series.degrees(parameters)
    half = bounded.value - bounded.low if above else bounded.high - bounded.value
    distance = bounded.value if above else -bounded.value
    if half == 0:  # every sample gave the same
        return float(distance <= 0)
    return float(stats.t.sf(distance / half * stats.t.ppf(1 - TAIL, degrees), degrees))
