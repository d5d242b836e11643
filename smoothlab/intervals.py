"""Intervals for sums of squares seen through random probes; numpy and scipy only.

A probe g with independent N(0, 1) entries gives X = ||B g||^2 = sum s_j^2 chi^2_1, s_j the singular values of B.
The mean of m such X estimates ||B||_F^2. Its relative variance is 2 / (m nu), with the effective rank
nu = (sum s^2)^2 / sum s^4 >= 1. A sample variance of few X is a poor guide to nu (a t interval on 5 probes covers
81 to 92 %), but the Gram matrix K of the images B g_i is a good one: E K_ij^2 = sum s^4 for i != j, over
m (m - 1) / 2 pairs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
"""Confidence level of every interval that smoothlab reports."""

_INNER = 0.98  # level of one look: the rest is spent on stopping when the interval is short enough


class Interval(NamedTuple):
    """A value with a two-sided interval."""

    value: float
    low: float
    high: float


def effective_rank(gram: NDArray[np.float64], *, cautious: bool = True) -> float:
    """An estimate of nu = (sum s^2)^2 / sum s^4 from the Gram matrix [m, m] of m >= 2 images.

    nu_hat = (mean K_ii)^2 / mean_{i != j} K_ij^2 - 2/m (the mean's own variance), at least 1, its least possible
    value; a cautious one, for intervals, is divided by 1 + 4/m because few images may overstate it.
    """
    m = len(gram)
    if m < 2:
        return 1.0
    squares = np.diag(gram)
    fourth = float((gram**2).sum() - (squares**2).sum()) / (m * (m - 1))
    if fourth <= 0.0:
        return 1.0
    shrink = 1 + 4 / m if cautious else 1.0
    return float(max(1.0, (squares.mean() ** 2 / fourth - 2 / m) / shrink))


def sum_of_squares(squares: ArrayLike, nu: float, known: float = 0.0) -> Interval:
    """Interval for known + E X from m independent X = ||B g||^2 of effective rank nu; m >= 2, or 0 when B = 0.

    Satterthwaite: m X_mean nu / E X is close to chi-square with m nu degrees of freedom (exact for equal singular
    values); (m - 1) nu are used, as nu is estimated, at the level 0.98, as callers stop when the interval is short.
    Simulated coverage: benchmarks/coverage.py.
    """
    x = np.asarray(squares, dtype=float)
    if not len(x):
        return Interval(known, known, known)
    mean = float(x.mean())
    dof = (len(x) - 1) * nu
    tail = (1 - _INNER) / 2
    low, high = (dof * mean / stats.chi2.ppf(q, dof) for q in (1 - tail, tail))
    return Interval(known + mean, known + float(low), known + float(high))


def mean_of_forms(forms: ArrayLike, frobenius_squared: float, known: float = 0.0) -> Interval:
    """Interval for known + tr B from m forms g'Bg, whose variance is 2 ||B||_F^2 (Gaussian probes); m = 0 when B = 0.

    `frobenius_squared` is an upper confidence bound of ||B||_F^2, from the same probes.
    """
    x = np.asarray(forms, dtype=float)
    if not len(x):
        return Interval(known, known, known)
    mean = float(x.mean())
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * (2 * frobenius_squared / len(x)) ** 0.5
    return Interval(known + mean, known + mean - half, known + mean + half)


def spectral_upper(
    projected: NDArray[np.float64], coupling: float, rest: float, dim: int, ritz: NDArray[np.float64]
) -> float:
    """One-sided 95 % upper bound of ||H||_2; the smaller of two bounds, each at 97.5 %.

    (a) H = [[T, S'], [S, B]] gives ||H|| <= ||[[t, s], [s, b]]|| with t = ||T||, s = ||S|| <= `coupling`, b = `rest`,
    an upper confidence bound of ||B||_F. Good when deflation leaves little.
    (b) After k Lanczos steps from a uniformly random start, (lambda_1 - theta_1) / (lambda_1 - lambda_d) > e with
    probability at most 1.648 sqrt(d) exp(-sqrt(e) (2k - 1)) (Kuczynski and Wozniakowski 1992, Theorem 4.2), for either
    end of the spectrum. Good when the spectrum is broad.

    Args:
        projected: T = Q'HQ [k, k].
        coupling: upper bound of ||(I - QQ')HQ||.
        rest: upper bound of ||(I - QQ')H(I - QQ')||_F.
        dim: dimension d.
        ritz: the k Ritz values of k Lanczos steps from a random start.
    """
    t = float(np.abs(np.linalg.eigvalsh(projected)).max())
    block = float(np.linalg.norm(np.array([[t, coupling], [coupling, rest]]), 2))
    tail = (1 - LEVEL) / 4  # two bounds, two ends of the spectrum
    error = (np.log(1.648 * dim**0.5 / tail) / (2 * len(ritz) - 1)) ** 2
    if 2 * error >= 1:
        return block
    spread = float(ritz.max() - ritz.min()) / (1 - 2 * error)
    return min(block, max(ritz.max() + error * spread, -ritz.min() + error * spread))
