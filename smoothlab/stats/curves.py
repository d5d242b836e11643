"""Intervals of curves over replicas of a run: the first time of a mean curve, and fitted exponents."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from smoothlab.stats.intervals import TAIL, Interval, Z

Array = NDArray[np.float64]


def first_time(running: Array, level: float) -> Interval:
    """The first T at which the mean over replicas of a running average is at most the level.

    The average over t < T is row T - 1. The interval goes from the first T at which the mean's lower end is at most the
    level, to one after the last T at which its upper end is above it: each misses a true T with probability 2.5 %.
    Infinite where the run was too short to show it.

    Args:
        running: [T, R], R at least 2.
        level: eps^2.
    """
    count = running.shape[1]
    middle = running.mean(1)
    half = float(stats.t.ppf(1 - TAIL, count - 1)) * running.std(1, ddof=1) / math.sqrt(count)

    def first(values: Array) -> float:
        under = values <= level
        return float(under.argmax() + 1) if under.any() else math.inf

    # The last row above the level, not the first below it: the upper end may pass the level more than once.
    above = np.flatnonzero(middle + half > level)
    last = float(above[-1] + 2) if len(above) else 1.0
    return Interval(first(middle), first(middle - half), last if last <= len(running) else math.inf)


def exponent(
    x: ArrayLike, estimates: Sequence[Interval], also: ArrayLike, unit: ArrayLike = 1.0
) -> tuple[Interval, float]:
    """Slope of log y against log x by weighted least squares, and that of other values with the same weights.

    Every y has an independent error: the longer half of its interval on the log scale, with half a unit of counting.

    Args:
        x: positive, at least two of them.
        estimates: y, positive, with finite ends.
        also: exact values [len(x)] that the line is compared with: where the relation is no power, the slope of the
            best line depends on the weights.
        unit: y is counted in multiples of it, [len(x)] or one number.
    """
    value, low, high = np.array(estimates, dtype=float).T
    half = np.broadcast_to(np.asarray(unit, dtype=float), len(value)) / 2
    up = np.log((high + half) / value)
    # An estimate of few units less half of one may be 0 or below, which has no logarithm.
    down = -np.log(np.maximum(low - half, low / 2) / value)
    weights = (np.maximum(up, down) / Z) ** -2
    centered = np.log(np.asarray(x, dtype=float))
    centered = centered - (weights @ centered) / weights.sum()
    spread = float(weights @ centered**2)
    slope = float((weights * centered) @ np.log(value)) / spread
    reference = float((weights * centered) @ np.log(np.asarray(also, dtype=float))) / spread
    half_width = Z / math.sqrt(spread)
    return Interval(slope, slope - half_width, slope + half_width), reference


def verdict(estimate: Interval, bound: float, *, at_most: bool = True) -> str:
    """Whether a bound holds: "holds", "fails", or "open" where the interval has it inside."""
    if at_most:
        holds, fails = estimate.high <= bound, estimate.low > bound
    else:
        holds, fails = estimate.low >= bound, estimate.high < bound
    if holds:
        return "holds"
    return "fails" if fails else "open"
