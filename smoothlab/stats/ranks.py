"""Rank correlations with intervals."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from smoothlab.stats.block_bootstrap import picks
from smoothlab.stats.intervals import TAIL, Interval, Z

BLOCK, TIMES = 4, 1000  # of the bootstrap: consecutive points that are drawn together, and how often


class Correlation(NamedTuple):
    """Spearman's rank correlation of n points with its 95 % interval."""

    rho: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Read it as ``+0.62 (+0.10 to +0.87), n = 12``."""
        return f"{self.rho:+.2f} ({self.low:+.2f} to {self.high:+.2f}), n = {self.n}"


def spearman(x: ArrayLike, y: ArrayLike) -> Correlation | None:
    """Spearman's rank correlation with a 95 % interval; None for fewer than 4 points or a constant.

    Interval: Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of Bonett and Wright (Psychometrika 65, 2000). At
    |rho| = 1, where z is infinite, z is taken half-way to the next possible value, |rho| = 1 - 6 / (n (n^2 - 1)), and
    the limit on that side is 1. Points are taken as independent; those of one training run are not, so that there the
    interval is too narrow.
    """
    data = np.array([x, y], dtype=float)
    data = data[:, np.isfinite(data).all(axis=0)]
    n = data.shape[1]
    if n < 4 or (data == data[:, :1]).all(axis=1).any():  # n = 3 has no variance, and a constant no ranks
        return None
    rho = float(stats.spearmanr(*data).statistic)
    limit = 1 - 6 / (n * (n**2 - 1))
    z = np.arctanh(np.clip(rho, -limit, limit))
    half = Z * np.sqrt((1 + rho**2 / 2) / (n - 3))
    low, high = np.tanh(z - half), np.tanh(z + half)
    return Correlation(rho, -1.0 if rho < -limit else float(low), 1.0 if rho > limit else float(high), n)


def spearman_of_series(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Interval:
    """Spearman's, with the wider ends of Fisher's interval and of a moving-block bootstrap, which keeps neighbors."""
    correlation = spearman(x, y)
    if correlation is None:
        return Interval(float("nan"), -1.0, 1.0)
    pair = np.array([x, y], dtype=float)
    n, rng = pair.shape[1], np.random.default_rng(seed)
    chosen = picks(n, BLOCK, TIMES, rng, circular=False)
    # Ranked anew, as a sample draws some points twice; a sample of equal points is NaN, and is left out below.
    a, b = stats.rankdata(pair[:, chosen], axis=2)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    resampled = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    low, high = np.nanquantile(resampled, [TAIL, 1 - TAIL]).tolist()
    return Interval(correlation.rho, min(correlation.low, low), max(correlation.high, high))


def partial_spearman(x: ArrayLike, y: ArrayLike, step: ArrayLike) -> float:
    """Rank correlation without the part of both ranks that is linear in the step's; NaN if nothing is left."""
    correlations = np.corrcoef(stats.rankdata(np.array([x, y, step], dtype=float), axis=1))
    of_x_and_y, a, b = float(correlations[0, 1]), float(correlations[0, 2]), float(correlations[1, 2])
    unexplained = (1 - a**2) * (1 - b**2)
    return (of_x_and_y - a * b) / unexplained**0.5 if unexplained > 1e-12 else float("nan")
