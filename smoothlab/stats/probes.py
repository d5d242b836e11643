"""Intervals for sums of squares seen through random probes (Hutchinson), and spectral bounds from Lanczos steps.

A probe g with independent N(0, 1) entries gives X = ||B g||^2 = sum s_j^2 chi^2_1, s_j the singular values of B.
The mean of m such X estimates ||B||_F^2. Its relative variance is 2 / (m nu), with the effective rank
nu = (sum s^2)^2 / sum s^4 >= 1. A sample variance of few X is a poor guide to nu (a t interval on 5 probes covers
81 to 92 %), but the Gram matrix K of the images B g_i is a good one: E K_ij^2 = sum s^4 for i != j, over
m (m - 1) / 2 pairs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from smoothlab.stats.intervals import TAIL, Interval, Z

_FEW_LEVEL, _MANY_LEVEL = 0.98, 0.96  # of one look: the rest is spent on stopping when the interval is short enough
_LOW_RANK = 10.0  # effective rank at which images are half as if few directions made them


def _low(nu: float) -> float:
    """Weight between the rules for few and for many directions at effective rank nu: 1 for one, to 0 for many."""
    return _LOW_RANK / (_LOW_RANK + nu)


def effective_rank(gram: NDArray[np.float64], *, cautious: bool = True, deflated: bool = False) -> float:
    """An estimate of nu = (sum s^2)^2 / sum s^4 from the Gram matrix [m, m] of m >= 2 images.

    nu_hat = (mean K_ii)^2 / mean_{i != j} K_ij^2 - 2/m (the mean's own variance), at least 1, its least possible
    value; a cautious one, for intervals, is divided by 1 + 4/m because few images may overstate it.

    Where Lanczos vectors have taken out what dominates (`deflated`), many directions of like size are left, and all
    m (m - 1)/2 products K_ij are nearly independent: the divisor falls towards 1 + 16/(m (m - 1)) as nu_hat grows. Both
    are 1.8 for five images, and 1.25 and 1.07 for 16.
    """
    m = len(gram)
    if m < 2:
        return 1.0
    squares = np.diag(gram)
    # Off the diagonal only: E K_ii^2 = 2 sum s^4 + (sum s^2)^2 has more than the fourth powers.
    fourth = float((gram**2).sum() - (squares**2).sum()) / (m * (m - 1))
    if fourth <= 0.0:  # images of 0, or orthogonal up to rounding
        return 1.0
    nu = max(1.0, float(squares.mean() ** 2 / fourth - 2 / m))
    if cautious:
        low = _low(nu) if deflated else 1.0
        nu = max(1.0, nu / (1 + 4 / m * (low + (1 - low) * min(1.0, 4 / (m - 1)))))
    return nu


def sum_of_squares(squares: ArrayLike, nu: float, known: float = 0.0, *, deflated: bool = False) -> Interval:
    """Interval for known + E X from m independent X = ||B g||^2 of effective rank nu; m >= 2, or 0 when B = 0.

    Satterthwaite: m X_mean nu / E X is close to chi-square with m nu degrees of freedom (exact for equal singular
    values); (m - 1) nu are used, as nu is estimated, at the level 0.98, as callers stop when the interval is short.
    Where Lanczos vectors have taken out what dominates (`deflated`), a nu that is too high hardly comes with a mean
    that is too low, and the level falls towards 0.96 with growing nu and m. Simulated coverage: benchmarks/coverage.py.
    """
    x = np.asarray(squares, dtype=float)
    if not len(x):
        return Interval(known, known, known)
    mean = float(x.mean())
    dof = (len(x) - 1) * nu
    tail = (1 - (level(len(x), nu) if deflated else _FEW_LEVEL)) / 2
    low, high = dof * mean / (2 * special.gammaincinv(dof / 2, [1 - tail, tail]))  # chi-square quantiles
    return Interval(known + mean, known + float(low), known + float(high))


def level(m: int, nu: float) -> float:
    """Level of the interval of one look, after m >= 2 probes of what deflation left, of effective rank nu."""
    few = min(1.0, _low(nu) + 20 / (m * (m - 1)))
    return _MANY_LEVEL + (_FEW_LEVEL - _MANY_LEVEL) * few


def probes_needed(share: float, nu: float, precision: float) -> float:
    """Probes m for a half-width `precision` of ||H||_F where they see the share s of its square, of effective rank nu.

    m = 2 (0.98 s / precision)^2 / nu, from the relative standard deviation s sqrt(2 / (m nu)) of the square.
    """
    return 2 * (0.98 * share / precision) ** 2 / nu


def mean_of_forms(forms: ArrayLike, frobenius_squared: float, known: float = 0.0) -> Interval:
    """Interval for known + tr B from m forms g'Bg, whose variance is 2 ||B||_F^2 (Gaussian probes); m = 0 when B = 0.

    `frobenius_squared` is an upper confidence bound of ||B||_F^2, from the same probes.
    """
    x = np.asarray(forms, dtype=float)
    if not len(x):
        return Interval(known, known, known)
    mean = float(x.mean())
    half = Z * (2 * frobenius_squared / len(x)) ** 0.5
    return Interval(known + mean, known + mean - half, known + mean + half)


class Reach(NamedTuple):
    """Lower and upper limit of the eigenvalue of the largest modulus, with 97.5 % confidence."""

    lowest: float
    highest: float


def lanczos_reach(diagonal: ArrayLike, residuals: ArrayLike, dim: int) -> Reach:
    """Limits of the eigenvalue lambda of H of the largest modulus, from k Lanczos steps from a random start g.

    Let u be its eigenvector and p_0 = 1, ..., p_k the orthonormal polynomials of the Lanczos steps (their recurrence
    has the entries of the tridiagonal matrix; ||p_j(H) g|| = ||g||). For every polynomial p of degree k
        p(lambda)^2 <u, g>^2 <= ||p(H) g||^2,
    and the best of them, Christoffel's, gives sum_j p_j(lambda)^2 <= ||g||^2 / <u, g>^2. The right side does not depend
    on p, so p may be chosen after the steps; u is one fixed direction, so <u, g>^2 / ||g||^2 has the distribution
    Beta(1/2, (d - 1)/2), and falls below its 2.5 % quantile c (about 1e-3 / d) with that probability. The sum grows
    beyond the Ritz values; where it passes 1/c is the limit. (The event is that of van Dorsselaer, Hochstenbach and van
    der Vorst, SIAM J. Matrix Anal. Appl. 22, 2000, who use p_k alone; Kuczynski and Wozniakowski, 1992, bound the
    polynomial without looking at the spectrum, which loses most where it is broad.)

    Args:
        diagonal: of the tridiagonal matrix [k].
        residuals: the k norms left by orthogonalizing each image; the first k - 1 are its off-diagonal. Zeros, where
            the Krylov space closed, must have been replaced by an upper limit of the rounding.
        dim: dimension d.
    """
    a, b = np.asarray(diagonal, dtype=float), np.asarray(residuals, dtype=float)
    ritz = np.linalg.eigvalsh(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1))
    steps = list(zip(a.tolist(), b.tolist(), strict=True))
    size = float(np.abs(ritz).max() + b.max())
    if size == 0.0 or dim == 1:  # H = 0 as far as was seen, or the single Ritz value is the eigenvalue
        return Reach(float(ritz[0]), float(ritz[-1]))
    threshold = 1 / float(special.betaincinv(0.5, (dim - 1) / 2, TAIL))

    def limit(end: float, outward: int) -> float:
        # All zeros of the polynomials lie between the extreme Ritz values, so that the sum only grows outwards.
        inside, outside = 0.0, 1e-12 * size
        while _christoffel(end + outward * outside, steps) < threshold:
            inside, outside = outside, 2 * outside
        for _ in range(40):
            middle = (inside + outside) / 2
            if _christoffel(end + outward * middle, steps) < threshold:
                inside = middle
            else:
                outside = middle
        return end + outward * outside  # the end that is surely beyond

    return Reach(limit(float(ritz[0]), -1), limit(float(ritz[-1]), 1))


def _christoffel(x: float, steps: list[tuple[float, float]]) -> float:
    """Sum of p_j(x)^2, j = 0, ..., k; it stops at 1e200, beyond any limit."""
    previous, current, total, previous_norm = 0.0, 1.0, 1.0, 0.0
    for a, b in steps:
        previous, current, previous_norm = current, ((x - a) * current - previous_norm * previous) / b, b
        total += current * current
        if total > 1e200:
            break
    return total


def spectral_upper(projected: NDArray[np.float64], coupling: float, remainder: float, reach: Reach) -> float:
    """One-sided 95 % upper bound of ||H||_2; the smaller of two bounds, each at 97.5 %.

    (a) H = [[T, S'], [S, B]] gives ||H|| <= ||[[t, s], [s, b]]|| with t = ||T||, s = ||S|| <= `coupling`, and b =
    `remainder`, an upper confidence bound of ||B||_F. Good when deflation leaves little.
    (b) `lanczos_reach`. Good when the spectrum is broad.

    Args:
        projected: T = Q'HQ [k, k].
        coupling: upper bound of ||(I - QQ')HQ||.
        remainder: upper bound of ||(I - QQ')H(I - QQ')||_F.
        reach: of k Lanczos steps from a random start.
    """
    t = float(np.abs(np.linalg.eigvalsh(projected)).max())
    block = float(np.linalg.norm(np.array([[t, coupling], [coupling, remainder]]), 2))
    # ||T|| <= ||H|| for certain, whatever chance makes of both bounds.
    return max(t, min(block, max(reach.highest, -reach.lowest)))
