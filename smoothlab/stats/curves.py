"""Intervals of `smoothlab rates`: shares, quantiles, quotients, first times of a mean curve, fitted exponents.

All at `smoothlab.stats.intervals.LEVEL` (95 %). Simulated coverage: tests/experiments/test_rates.py.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from smoothlab.stats.intervals import LEVEL, Interval

Array = NDArray[np.float64]
_TAIL = (1 - LEVEL) / 2
_Z = float(stats.norm.ppf(1 - _TAIL))


def share(count: int, of: int) -> Interval:
    """Clopper and Pearson (1934): of a probability, from how often something came true; never too short."""
    low = float(stats.beta.ppf(_TAIL, count, of - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(1 - _TAIL, count + 1, of - count)) if count < of else 1.0
    return Interval(count / of, low, high)


def quantile(values: ArrayLike, p: float) -> Interval:
    """Interval for the p-quantile of any distribution from two order statistics; infinite where n is too small."""
    x = np.sort(np.asarray(values, dtype=float))
    n = len(x)
    below, above = (int(stats.binom.ppf(q, n, p)) for q in (_TAIL, 1 - _TAIL))
    low = float(x[below - 1]) if below else -math.inf
    high = float(x[above]) if above < n else math.inf
    return Interval(float(x[min(n - 1, math.ceil(p * n - 1e-9) - 1)]), low, high)


def quotient(top: Interval, bottom: Interval) -> Interval:
    """Interval for the quotient of two independent positive estimates, from theirs: errors on the log scale add up."""
    value = top.value / bottom.value
    down = math.hypot(math.log(top.value / top.low), math.log(bottom.high / bottom.value))
    up = math.hypot(math.log(top.high / top.value), math.log(bottom.value / bottom.low))
    return Interval(value, value * math.exp(-down), value * math.exp(up))


def first_time(running: Array, level: float) -> Interval:
    """The first T at which the mean over replicas of a running average is at most the level.

    The average over t < T is row T - 1. The interval goes from the first T at which the mean's lower end is at most the
    level, to one after the last T at which its upper end is above it: each misses a true T with probability 2.5 %.
    Infinite where the run was too short to tell.

    Args:
        running: [T, R], R at least 2.
        level: eps^2.
    """
    count = running.shape[1]
    middle = running.mean(1)
    half = float(stats.t.ppf(1 - _TAIL, count - 1)) * running.std(1, ddof=1) / math.sqrt(count)

    def first(values: Array) -> float:
        under = values <= level
        return float(under.argmax() + 1) if under.any() else math.inf

    above = np.flatnonzero(middle + half > level)
    last = float(above[-1] + 2) if len(above) else 1.0
    return Interval(first(middle), first(middle - half), last if last <= len(running) else math.inf)


def exponent(x: ArrayLike, found: list[Interval], also: ArrayLike, unit: ArrayLike = 1.0) -> tuple[Interval, float]:
    """Slope of log y against log x by weighted least squares, and that of other values with the same weights.

    Every y has an independent error: the longer half of its interval on the log scale, with half a unit of counting.

    Args:
        x: positive, at least two of them.
        found: positive, with finite ends.
        also: exact values [len(x)] that the line is compared with: where the relation is no power, the slope of the
            best line depends on the weights.
        unit: y is counted in multiples of it, [len(x)] or one number.
    """
    X, Y = np.log(np.asarray(x, dtype=float)), np.log([one.value for one in found])  # noqa: N806
    units = np.broadcast_to(np.asarray(unit, dtype=float), len(found))
    sides = [
        (math.log((one.high + half) / one.value), -math.log(max(one.low - half, one.low / 2) / one.value))
        for one, half in zip(found, units / 2, strict=True)
    ]
    errors = np.array([max(both) / _Z for both in sides])
    w = errors**-2
    X = X - (w @ X) / w.sum()  # noqa: N806
    spread = float(w @ X**2)
    slope = float((w * X) @ Y) / spread
    half = _Z / math.sqrt(spread)
    return Interval(slope, slope - half, slope + half), float((w * X) @ np.log(np.asarray(also, dtype=float))) / spread


def verdict(found: Interval, bound: float, *, at_most: bool = True) -> str:
    """Whether a bound holds: "holds", "fails", or "open" where the interval has it inside."""
    low, high = (found.low, found.high) if at_most else (-found.high, -found.low)
    bound = bound if at_most else -bound
    return "holds" if high <= bound else "fails" if low > bound else "open"
