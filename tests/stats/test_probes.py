"""Intervals by themselves: exact statements are simulated, bounds are checked to bound."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage
from smoothlab.stats import probes
from smoothlab.stats.intervals import LEVEL, Interval
from smoothlab.stats.probes import (
    effective_rank,
    lanczos_reach,
    mean_of_forms,
    spectral_upper,
    sum_of_squares,
)
from tests.mutations import mutate


def least(n: int, share: float) -> int:
    """Hits in n trials that a true coverage of `share` undercuts once in a thousand times."""
    return int(stats.binom.ppf(1e-3, n, share))


def most(n: int, share: float) -> int:
    """The same from above."""
    return int(stats.binom.isf(1e-3, n, share))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def hits(n: int, m: int, equal: int, nu: float, deflated: bool = False) -> int:
    """How many of n intervals from m sums over `equal` singular values 1 hold the true sum of squares."""
    squares = np.random.default_rng([m, equal]).chisquare(equal, (n, m))
    found = [sum_of_squares(x, nu, known=3.0, deflated=deflated) for x in squares]
    return sum(i.low <= 3.0 + equal <= i.high for i in found)


@pytest.mark.parametrize("equal", [1, 2, 10])
@pytest.mark.parametrize("m", [2, 5, 20])
@pytest.mark.parametrize("deflated", [False, True])
def test_with_equal_singular_values_the_statement_is_chi_square(deflated: bool, m: int, equal: int) -> None:
    # m X_mean has m nu degrees of freedom exactly; (m - 1) nu are used, so coverage can be told from chi-square.
    tail = (1 - (probes.level(m, equal) if deflated else 0.98)) / 2
    less, n = (m - 1) * equal, 1000
    low, high = (stats.chi2.ppf(q, less) * m / (m - 1) for q in (tail, 1 - tail))
    coverage = float(np.diff(stats.chi2.cdf([low, high], m * equal)).item())
    assert coverage > LEVEL
    assert least(n, coverage) <= hits(n, m, equal, equal, deflated) <= most(n, coverage)


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
    cautious, deflated = (np.array([effective_rank(g, deflated=d) for g in grams]) for d in (False, True))
    assert 0.6 * nu < np.median(plain) < 1.6 * nu  # five images see a short tail too flat
    assert (cautious <= plain).all() and (cautious >= 1).all()
    assert np.median(cautious) < 1.05 * nu
    assert (cautious <= deflated * (1 + 1e-12)).all() and (deflated <= plain).all()


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


def test_the_level_of_one_look_is_98_percent_and_falls_with_the_rank_of_what_deflation_left() -> None:
    """What an interval covers is told by its ends: with many degrees of freedom (m - 1) nu and m nu are alike."""
    m, nu = 400, 10.0
    for deflated, expected in ((False, 0.98), (True, 0.97)):
        found = sum_of_squares(np.ones(m), nu, deflated=deflated)
        held = stats.chi2.cdf([m * nu / found.high, m * nu / found.low], m * nu)
        assert np.diff(held).item() == pytest.approx(expected, abs=5e-4)
    assert [probes.level(10**4, nu) for nu in (0.0, 10.0, 1e9)] == pytest.approx([0.98, 0.97, 0.96], abs=1e-6)
    assert probes.level(5, 1e9) == pytest.approx(0.98), "five probes say little of the rank"
    exact = [3 * 2.0 * 7 / 3 / stats.chi2.ppf(q, 3 * 2.0) for q in (0.99, 0.01)]
    assert sum_of_squares([1.0, 2.0, 4.0, 7 / 3], 2.0)[1:] == pytest.approx(exact)


# The reach of Lanczos steps


def lanczos(eigenvalues: np.ndarray, start: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal and residuals [k] of Lanczos steps on diag(eigenvalues), orthogonalized twice."""
    rows, diagonal, residuals = [start / np.linalg.norm(start)], [], []
    for _ in range(k):
        w = eigenvalues * rows[-1]
        diagonal.append(float(rows[-1] @ w))
        for _ in range(2):
            w -= np.array(rows).T @ (np.array(rows) @ w)
        residuals.append(max(float(np.linalg.norm(w)), 1e-13 * float(np.abs(eigenvalues).max())))
        rows.append(w / residuals[-1])
    return np.array(diagonal), np.array(residuals)


def reaches(eigenvalues: np.ndarray, k: int, runs: int) -> list[probes.Reach]:
    starts = normal(3, runs, len(eigenvalues))
    return [probes.lanczos_reach(*lanczos(eigenvalues, start, k), len(eigenvalues)) for start in starts]


def holds(found: probes.Reach, eigenvalues: np.ndarray) -> bool:
    """Whether the eigenvalue of the largest modulus lies within, up to rounding."""
    top = eigenvalues[np.abs(eigenvalues).argmax()]
    return found.lowest - 1e-12 <= top <= found.highest + 1e-12


_I = np.arange(1, 601)
_MP = np.linalg.eigvalsh(np.cov(normal(5, 600, 2400)))
SPREAD = {
    "flat": np.where(_I % 2, 1.0, -1.0),
    "uniform": np.linspace(-1, 1, 600),
    "hidden top": np.where(_I == 1, 1.0, 0.9 - 1e-4 * _I),
    "negative top": np.where(_I == 1, -1.0, np.linspace(0, 0.95, 600)),
    "power law": _I**-0.5,
    "power law of both signs": (-1.0) ** _I * _I**-0.5,
    "bulk and outliers": np.concatenate([_MP[:-5], [3.0, 3.5, 4.0, 5.0, 8.0]]),
    "bulk and a near outlier": np.concatenate([_MP[:-1], [1.05 * _MP[-1]]]),
    "indefinite": np.concatenate([np.linspace(0.2, 1, 40), -np.linspace(0.1, 0.8, 60), np.full(500, 0.01)]),
    "clusters": np.repeat([1.0, 0.95, 0.5, 0.02], [1, 9, 90, 500]),
}


@pytest.mark.parametrize("runs", [60, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("k", [2, 6, 12])
@pytest.mark.parametrize("spectrum", SPREAD)
def test_the_reach_of_lanczos_steps_holds_the_largest_eigenvalue(spectrum: str, k: int, runs: int) -> None:
    found = reaches(SPREAD[spectrum], k, runs)
    assert sum(holds(r, SPREAD[spectrum]) for r in found) >= least(runs, 0.975)
    assert all(r.lowest < r.highest for r in found)


OUTLIER = np.concatenate([[2.5], np.linspace(-1, 1, 59)])


def test_its_confidence_is_the_one_stated_where_nothing_hides_the_eigenvalue() -> None:
    """A far outlier is told from the bulk by every polynomial: then the limit is missed as often as <u, g> is small."""
    n = 800
    hits = sum(holds(r, OUTLIER) for r in reaches(OUTLIER, 4, n))
    assert least(n, 0.975) <= hits <= most(n, 0.983)


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("lanczos_reach", "TAIL", "TAIL * 4"),
        ("lanczos_reach", "(dim - 1) / 2", "(dim - 1) / 20"),
        ("_christoffel", "total += current * current", "total += 9 * current * current"),
    ],
)
def test_a_careless_reach_would_be_seen(where: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, (probes, where), old, new)
    n = 400
    assert sum(holds(r, OUTLIER) for r in reaches(OUTLIER, 4, n)) < least(n, 0.975)


def test_its_polynomials_are_those_of_the_steps() -> None:
    """||p_j(H) g|| = ||g|| and orthogonal, by a dense computation; and no polynomial of degree k does better."""
    h, start = np.linspace(-1, 2, 30), normal(1, 30)
    start /= np.linalg.norm(start)
    diagonal, residuals = lanczos(h, start, 5)
    steps = list(zip(diagonal, residuals, strict=True))
    sums = np.array([[probes._christoffel(x, steps[:j]) for x in h] for j in range(6)])
    assert np.diff(sums, axis=0, prepend=0) @ start**2 == pytest.approx(np.ones(6))
    powers = np.vander(h, 6) * start[:, None]  # of p with coefficients c: p(H) g = powers c
    at = np.vander([2.4], 6)[0]
    largest = at @ np.linalg.solve(powers.T @ powers, at)  # max of p(2.4)^2 / ||p(H) g||^2
    assert probes._christoffel(2.4, steps) == pytest.approx(largest)


def test_a_closed_krylov_space_leaves_no_doubt() -> None:
    found = lanczos_reach([1.0, -0.5], [0.3, 1e-14], 1000)
    ritz = np.linalg.eigvalsh([[1.0, 0.3], [0.3, -0.5]])
    assert found == pytest.approx(tuple(ritz), abs=1e-9)
    assert lanczos_reach([0.0], [0.0], 10) == (0.0, 0.0)
    assert lanczos_reach([-2.0], [0.0], 1) == (-2.0, -2.0)


def test_the_smaller_of_two_spectral_bounds_is_used() -> None:
    t = np.diag([1.0, -0.4])
    block = float(np.linalg.norm([[1.0, 0.5], [0.5, 0.8]], 2))
    assert spectral_upper(t, 0.5, 0.8, probes.Reach(-9.0, 2.0)) == pytest.approx(block)
    assert spectral_upper(t, 0.5, 80.0, probes.Reach(-1.5, 1.2)) == 1.5
    assert spectral_upper(t, 0.5, 80.0, probes.Reach(-0.5, 0.7)) == 1.0, "never below a Ritz value"


@pytest.mark.check
def test_the_coverage_benchmark_tells_biases_and_cross_blocks_and_goes_on_by_whole_spectra() -> None:
    experiment = coverage.Coverage(simulations=4, only=("cross, dense", "low rank 3"))
    rows = list(experiment.rows([]))
    told = [(row["spectrum"], row["quantity"]) for row in rows]
    assert told == [("low rank 3", q) for q in ("frobenius", "spectral", "trace")] + [("cross, dense", "cross")]
    assert experiment.standing(rows) == rows and experiment.standing([*rows[:2], rows[3]]) == [rows[3]]
    other = [{**row, "spectrum": "flat"} for row in rows[:3]]
    assert experiment.standing([*other, None, *rows[1:3], rows[3], None]) == [*other, rows[3]]
    assert list(experiment.rows(rows[:3])) == rows[3:], "by whole spectra, from the same seeds"
    matrix = coverage.couplings()["cross, dense"]
    truth = float(np.linalg.norm(matrix[:120, 120:]))
    hessian = coverage.Coupled(matrix)
    found = [hessian.norms(cross=[("b", "a")], seed=(i,))[-1].value for i in range(4)]
    error = np.std(found, ddof=1) / 2
    assert rows[3]["truth"] == pytest.approx(truth) and rows[3]["bias"] == pytest.approx(np.mean(found) / truth - 1)
    assert rows[3]["bias_z"] == pytest.approx((np.mean(found) - truth) / error)
    assert rows[1]["bound"] == pytest.approx(1) and rows[0]["bias_z"] is None and abs(rows[0]["bias"]) < 1e-12
