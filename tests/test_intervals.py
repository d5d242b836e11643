"""Intervals by themselves: exact statements are simulated, bounds are checked to bound."""

import numpy as np
import pytest
from scipy import stats

from smoothlab import intervals
from smoothlab.intervals import Interval, effective_rank, mean_of_forms, spectral_upper, sum_of_squares


def least(n: int, share: float) -> int:
    """Hits in n trials that a true coverage of `share` undercuts once in a thousand times."""
    return int(stats.binom.ppf(1e-3, n, share))


def most(n: int, share: float) -> int:
    """The same from above."""
    return int(stats.binom.isf(1e-3, n, share))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def hits(n: int, m: int, equal: int, nu: float) -> int:
    """How many of n intervals from m sums over `equal` singular values 1 hold the true sum of squares."""
    squares = np.random.default_rng([m, equal]).chisquare(equal, (n, m))
    found = [sum_of_squares(x, nu, known=3.0) for x in squares]
    return sum(i.low <= 3.0 + equal <= i.high for i in found)


@pytest.mark.parametrize("equal", [1, 2, 10])
@pytest.mark.parametrize("m", [2, 5, 20])
def test_with_equal_singular_values_the_statement_is_chi_square(m: int, equal: int) -> None:
    # m X_mean has m nu degrees of freedom exactly; (m - 1) nu are used, so coverage can be told from chi-square.
    tail = (1 - intervals._INNER) / 2
    less, n = (m - 1) * equal, 1000
    low, high = (stats.chi2.ppf(q, less) * m / (m - 1) for q in (tail, 1 - tail))
    coverage = float(np.diff(stats.chi2.cdf([low, high], m * equal)).item())
    assert coverage > intervals.LEVEL
    assert least(n, coverage) <= hits(n, m, equal, equal) <= most(n, coverage)


def test_an_interval_that_counts_too_many_degrees_of_freedom_is_caught() -> None:
    assert hits(500, 5, 2, nu=2.0) >= least(500, 0.93)
    assert hits(500, 5, 2, nu=6.0) < least(500, 0.93)


def test_what_is_known_shifts_and_scale_scales() -> None:
    x = [1.0, 2.0, 4.0]
    plain = sum_of_squares(x, 2.0)
    assert plain.value == pytest.approx(7 / 3) and plain.low < plain.value < plain.high
    assert sum_of_squares(x, 2.0, known=5.0) == pytest.approx([5 + y for y in plain])
    assert sum_of_squares(np.multiply(x, 7), 2.0) == pytest.approx([7 * y for y in plain])
    assert sum_of_squares([], 1.0, known=5.0) == Interval(5.0, 5.0, 5.0)
    assert mean_of_forms([], 0.0, known=-5.0) == Interval(-5.0, -5.0, -5.0)
    assert sum_of_squares([0.0, 0.0], 1.0, known=5.0) == Interval(5.0, 5.0, 5.0)
    widths = [np.ptp(sum_of_squares(x, nu)) for nu in (1.0, 2.0, 20.0)]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("m", [5, 16])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_effective_rank_is_seen_in_the_gram_matrix_and_cautiously_not_overstated(power: float, m: int) -> None:
    s2 = np.arange(1.0, 61) ** (-2 * power)
    nu = s2.sum() ** 2 / (s2**2).sum()
    images = normal(1, 200, m, 60) * s2**0.5
    grams = images @ images.transpose(0, 2, 1)
    plain = np.array([effective_rank(g, cautious=False) for g in grams])
    cautious = np.array([effective_rank(g) for g in grams])
    assert 0.6 * nu < np.median(plain) < 1.6 * nu  # five images see a short tail too flat
    assert (cautious <= plain).all() and (cautious >= 1).all()
    assert np.median(cautious) < 1.05 * nu


def test_effective_rank_of_degenerate_images_is_one() -> None:
    for gram in (np.zeros((0, 0)), np.ones((1, 1)), np.zeros((4, 4)), np.diag([1.0, 2.0]), np.ones((5, 5))):
        assert effective_rank(gram) == 1.0


@pytest.mark.parametrize("rank", [1, 4, 40])
def test_interval_of_a_trace_covers(rank: int) -> None:
    n, m = 1000, 6
    eigenvalues = np.linspace(-1.0, 2.0, rank) if rank > 1 else np.array([1.0])
    forms = (normal(2, n, m, rank) ** 2) @ eigenvalues
    upper = float((eigenvalues**2).sum()) * 1.5  # as an upper confidence bound is
    found = [mean_of_forms(x, upper, known=1.0) for x in forms]
    assert sum(i.low <= 1.0 + eigenvalues.sum() <= i.high for i in found) >= least(n, 0.95)


def _lanczos(matrix: np.ndarray, start: np.ndarray, k: int) -> np.ndarray:
    """Orthonormal rows [k, d] of the Krylov space of `start`."""
    rows = [start / np.linalg.norm(start)]
    while len(rows) < k:
        w = matrix @ rows[-1]
        for _ in range(2):
            w -= np.array(rows).T @ (np.array(rows) @ w)
        rows.append(w / np.linalg.norm(w))
    return np.array(rows)


SPREAD = {
    "flat": np.linspace(-1, 1, 40),
    "hidden top": np.array([1.0, *np.full(39, 0.9)]),
    "negative top": np.array([-1.0, *np.linspace(0, 0.95, 39)]),
    "power law": 1 / np.arange(1.0, 41),
}


@pytest.mark.parametrize("spectrum", SPREAD)
@pytest.mark.parametrize("k", [2, 6, 20])
def test_spectral_upper_bounds(spectrum: str, k: int) -> None:
    h, n = np.diag(SPREAD[spectrum]), 100
    bounded, certain = 0, 0
    for start in normal(3, n, 40):
        q = _lanczos(h, start, min(k, 2 if spectrum == "hidden top" else k))
        t = q @ h @ q.T
        rest = np.eye(40) - q.T @ q
        coupling, b = np.linalg.norm(rest @ h @ q.T), np.linalg.norm(rest @ h @ rest)
        ritz = np.linalg.eigvalsh(t)
        bounded += spectral_upper(t, coupling, b, 40, ritz) >= 1 - 1e-12
        certain += spectral_upper(t, coupling, b, 40, ritz[:1]) >= 1 - 1e-12
    assert bounded >= least(n, 0.95)
    assert certain == n, "one step says nothing by itself; the norm of the blocks is a bound without chance"


def test_the_lanczos_bound_is_used_where_the_block_bound_is_loose() -> None:
    d, k = 10_000, 30
    t = np.diag(np.linspace(-1.0, 1.0, k))
    loose = spectral_upper(t, 0.5, 80.0, d, np.array([1.0]))
    assert loose == pytest.approx(np.linalg.norm([[1.0, 0.5], [0.5, 80.0]], 2))
    error = (np.log(1.648 * d**0.5 / 0.0125) / (2 * k - 1)) ** 2
    assert spectral_upper(t, 0.5, 80.0, d, np.diag(t)) == pytest.approx(1 + error * 2 / (1 - 2 * error))
