"""Means of replicates with two sources of error: minibatches, which differ between replicates, and probes within."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from smoothlab.stats.intervals import Interval

_INNER = 0.98  # level of one look: the rest is spent on stopping when the interval is short enough


class Shares(NamedTuple):
    """Shares of the variance of a mean of replicates; they add to 1."""

    sampling: float
    probes: float


def mean_of_replicates(replicates: Sequence[Sequence[float]]) -> Interval:
    """Interval for the mean of n >= 2 independent replicates, each the mean of its row [n, m].

    Replicates of a sum of squares are skewed to the right, and the t interval misses on that side: a mean that came out
    low comes with a standard deviation that came out low. Hall's transformation (J. R. Stat. Soc. B 54, 1992) of the
    studentized mean, g(t) = t + s t^2/3 + s^2 t^3/27 + s/6 with s = skewness / sqrt(n), takes the skewness out and is
    inverted in closed form. Student's quantile at the level 0.98 is used, as callers stop when the interval is short.
    """
    x = np.asarray(replicates, dtype=float).mean(1)
    n, middle, deviation = len(x), float(x.mean()), float(x.std(ddof=1))
    error = deviation / n**0.5
    if error <= 1e-15 * abs(middle):  # equal replicates
        return Interval(middle, middle, middle)
    s = float(((x - middle) ** 3).mean() / x.var() ** 1.5) / math.sqrt(n)
    t = float(special.stdtrit(n - 1, (1 + _INNER) / 2))

    def studentized(z: float) -> float:
        if abs(s) < 1e-6:
            return z
        root: float = math.cbrt(1 + s * (z - s / 6))
        return 3 / s * (root - 1)

    return Interval(middle, middle - error * studentized(t), middle - error * studentized(-t))


def shares(replicates: Sequence[Sequence[float]]) -> Shares:
    """Shares of the variance of the mean that are due to sampling and to the probes, from replicates [n, m].

    The variance of a row's mean is that of sampling plus that of the probes over m, which the variance within rows
    estimates (one-way analysis of variance). With one column all is sampling.
    """
    x = np.asarray(replicates, dtype=float)
    variance = float(x.mean(1).var(ddof=1))
    if x.shape[1] < 2 or variance == 0.0:
        return Shares(1.0, 0.0)
    within = float(x.var(axis=1, ddof=1).mean()) / x.shape[1]
    probes = min(within / variance, 1.0)
    return Shares(1 - probes, probes)
