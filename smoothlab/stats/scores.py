"""z-scores of samples against a known truth, on one scale: that of a two-sided normal test.

A suite of m comparisons has the size alpha as a whole if each one has alpha / m (Bonferroni): `limit`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from smoothlab.stats.samples import mean

LARGEST = 99.0
"""z-score that stands for anything that cannot be chance; a finite number, as records hold no infinity."""
EQUAL = 1e-9
"""Relative difference of numbers that count as equal where a sample does not vary."""


class Score(NamedTuple):
    """The mean of a sample beside its truth.

    Attributes:
        z: signed z-score.
        value: mean of the sample.
        low: lower end of its 95 % interval.
        high: upper end.
        error: standard error of the mean.
    """

    z: float
    value: float
    low: float
    high: float
    error: float


def limit(alpha: float, comparisons: int) -> float:
    """The |z| that any of `comparisons` normal numbers exceeds with probability at most alpha: Bonferroni's bound."""
    return float(-special.ndtri(alpha / comparisons / 2))


def of_probability(p: float) -> float:
    """|z| of a two-sided p-value."""
    if p >= 1:
        return 0.0
    return LARGEST if p <= 0 else min(float(-special.ndtri_exp(math.log(p / 2))), LARGEST)


def clustered(values: Sequence[Sequence[float]] | NDArray[np.float64], truth: float) -> Score:
    """The mean of values [clusters, n] against `truth`: draws of one cluster may depend on each other.

    Student's t of the clusters' means with Hall's (1992) monotone correction for skewness, as squares are skew:
    t + s t^2/(3 sqrt(n)) + s^2 t^3/(27 n) + s/(6 sqrt(n)); the t distribution's tail makes it a normal z-score.
    """
    means = np.asarray(values, dtype=float).mean(1)
    n, spread = len(means), float(means.std(ddof=1))
    value, size = float(means.mean()), EQUAL * (1 + abs(truth))
    if spread < size:
        z = 0.0 if abs(value - truth) < size else math.copysign(LARGEST, value - truth)
        return Score(z, value, value, value, 0.0)
    u, skew = (value - truth) / spread, float(stats.skew(means))
    t = math.sqrt(n) * (u + skew * u**2 / 3 + skew**2 * u**3 / 27) + skew / (6 * math.sqrt(n))
    z = math.copysign(of_probability(2 * float(special.stdtr(n - 1, -abs(t)))), t)
    interval = mean(means)
    return Score(z, value, interval.low, interval.high, spread / math.sqrt(n))


def mean_of_bounded(values: NDArray[np.float64], expected: float) -> float:
    """|z| for numbers in [0, 1] whose mean is above `expected`: Hoeffding's (1963) bound, true for every distribution.

    P(mean >= x) <= exp(-n KL(x || p)) for independent numbers of mean at most p.
    """
    x, p = float(np.mean(values)), min(max(expected, 1e-12), 1 - 1e-12)
    if x <= p:
        return 0.0
    kl = x * math.log(x / p)
    if x < 1:
        kl += (1 - x) * math.log((1 - x) / (1 - p))
    return of_probability(math.exp(-np.size(values) * kl))


def count(successes: int, of: int, probability: float) -> float:
    """|z| of a binomial count, exact, two-sided."""
    return of_probability(float(stats.binomtest(successes, of, probability).pvalue))


def normal_fit(values: NDArray[np.float64]) -> float:
    """|z| of the Kolmogorov-Smirnov test that numbers are standard normal."""
    return of_probability(float(stats.kstest(values, "norm").pvalue))
