"""The pathwise edge against closed forms, quadrature, and runs that no code of the package makes."""

import mpmath
import numpy as np
import pytest

from smoothlab.errors import BadInput
from smoothlab.experiments.quadratic.closed_forms import typical_limit
from smoothlab.theory.edge import Spectrum, mean_square_edge
from smoothlab.theory.pathwise import lyapunov_exponent, pathwise_edge, run_edge


@pytest.mark.parametrize("rate", [0.1, 0.667, 1.0, 2.4212495, 5.0])
def test_one_direction_in_closed_form(rate: float) -> None:
    """E log |1 - c v^2| = log c - gamma - log 2 + (1/c) 2F2(1, 1; 3/2, 2; -1/(2c))."""
    closed = mpmath.log(rate) - mpmath.euler - mpmath.log(2)
    closed += mpmath.hyp2f2(1, 1, 1.5, 2, -1 / (2 * mpmath.mpf(rate))) / rate
    assert lyapunov_exponent(rate) == pytest.approx(float(closed), abs=1e-8)


@pytest.mark.parametrize("q", [2, 5, 40, 1000])
def test_averages_by_sampling(q: int) -> None:
    x = np.random.default_rng(q).chisquare(q, 400_000) / q
    for rate in (0.5, 1.9):
        logs = np.log(np.abs(1 - rate * x))
        score = (logs.mean() - lyapunov_exponent(rate, q)) / (logs.std() / len(x) ** 0.5)
        assert abs(score) < 4.5


def test_the_edge_of_one_eigenvalue() -> None:
    edge = pathwise_edge(Spectrum.of([2.0, 0.0]))
    assert edge.value == edge.low == edge.high == pytest.approx(2.4212495 / 2, rel=1e-7)
    assert pathwise_edge(Spectrum.of([1.0]), q=10**4).value == pytest.approx(2, rel=1e-3)  # gradient descent's


@pytest.mark.parametrize("d", [2, 10])
def test_equal_eigenvalues_against_quadrature(d: int) -> None:
    """E log ||z+||/||z|| is the same at every z: its root by quadrature has a z-score below 3, on the log scale."""
    edge = pathwise_edge(Spectrum.of([1.0] * d), replicas=64, steps=200, seed=d)
    truth = typical_limit(d)
    assert edge.low < edge.value < edge.high
    error = np.log(edge.high / edge.low) / 2 / 1.96
    assert abs(np.log(edge.value / truth)) < 3 * error


@pytest.mark.check
def test_coverage_of_both_intervals() -> None:
    """95 % intervals of 100 simulations each hold the truth as often as their rate allows (z > -3)."""
    spectrum, hits, medians = Spectrum.of([1.0, 1.0, 1.0]), 0, 0
    truth = typical_limit(3)
    median = run_edge(spectrum, replicas=10_000, steps=20, seed=10**6).value
    for seed in range(100):
        edge = pathwise_edge(spectrum, replicas=32, steps=100, seed=seed)
        hits += edge.low <= truth <= edge.high
        runs = run_edge(spectrum, replicas=64, steps=20, seed=seed)
        medians += runs.low <= median <= runs.high
    least = 100 * 0.95 - 3 * (100 * 0.95 * 0.05) ** 0.5
    assert hits >= least and medians >= least
    assert hits < 100 or medians < 100


def test_a_run_of_some_steps_by_plain_loops() -> None:
    """The median of f(z_N)/f(z_0) is below 1 under the interval and above 1 over it."""
    values = np.array([1.0, 0.01, 0.001])
    edge = run_edge(Spectrum.of(values.tolist()), q=2, replicas=400, steps=20, seed=1)
    rng = np.random.default_rng(5)
    medians = []
    for rate in (0.8 * edge.low, 1.25 * edge.high):
        grown = []
        for _ in range(300):
            z = rng.standard_normal(3)
            start = values @ z**2
            for _ in range(20):
                v = rng.standard_normal((2, 3))
                z = z - rate * v.T @ (v @ (values * z)) / 2
            grown.append(values @ z**2 / start)
        medians.append(np.median(grown))
    assert medians[0] < 0.8 and medians[1] > 1.25


def test_it_is_above_the_mean_square_edge_and_meets_it_where_the_spectrum_is_broad() -> None:
    quick = {"replicas": 16, "steps": 60}
    narrow, broad = Spectrum.of([1.0, 0.1, 0.1]), Spectrum((1.0,), 10**6, trace=50.0, frobenius=3.0)
    assert pathwise_edge(narrow, **quick).low > 1.5 * mean_square_edge(narrow).high
    assert pathwise_edge(broad, **quick).value == pytest.approx(mean_square_edge(broad).value, rel=0.08)


def test_directions_of_your_own() -> None:
    """Random signs in one dimension are the exact gradient: 2/lambda."""
    signs = pathwise_edge(
        Spectrum.of([1.0]), replicas=8, steps=20, draw=lambda rng, shape: rng.choice([-1.0, 1.0], size=shape)
    )
    assert signs.value == pytest.approx(2, rel=0.02)


def test_refusals() -> None:
    with pytest.raises(BadInput, match="use at least 1 direction"):
        pathwise_edge(Spectrum.of([1.0]), q=0)
    with pytest.raises(BadInput, match="give the trace"):
        run_edge(Spectrum((1.0,), 10))
