"""The hybrid step's edge against its second-moment map built as a matrix, and one step against the same."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothlab import Algorithm1
from smoothlab.errors import BadInput
from smoothlab.objectives import QuadraticSum
from smoothlab.theory.coupled_edge import (
    HybridGradient,
    coupled_edge,
    coupled_radius,
    hybrid_gradient_norm_edge,
    second_moment_radius,
)
from smoothlab.theory.edge import GAUSSIAN, OuterMoment, Spectrum, exact_edge, mean_square_edge
from tests.theory.second_moments import Array, outer, radius, rotated, squares, step_map

some = settings(deadline=None, derandomize=True, max_examples=25)


def parts(h: Array, d_x: int) -> tuple[Array, Array]:
    """Positive eigenvalues, and the Gram matrix of their vectors' x parts."""
    values, vectors = np.linalg.eigh(h)
    keep = values > 1e-10 * values.max()
    x = vectors[:d_x, keep]
    return values[keep], x.T @ x


@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("spectrum", [[3.0, 1.0, 0.5, 0.2, 0.1], [4.0, 1.0, 0.3, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0, 0.0]])
def test_both_radii_are_that_of_the_map(spectrum: list[float], q: int) -> None:
    """Two ways to it, on the range of H, at random rates on both sides of 1."""
    moment = OuterMoment(1 + 1 / q, 1 / q)
    for seed in range(4):
        h, rng = rotated(spectrum, seed), np.random.default_rng(seed)
        eta_x, eta_y = rng.uniform(0.05, 1.2, 2) / spectrum[0]
        truth = radius(step_map(h, eta_x, squares(3, q), eta_y, 2), h)
        assert second_moment_radius(h, 3, eta_x, eta_y, moment) == pytest.approx(truth, rel=1e-9)
        assert coupled_radius(*parts(h, 3), eta_x, eta_y, moment) == pytest.approx(truth, rel=1e-7)


@pytest.mark.parametrize("kurtosis", [1.0, 30.0])
def test_directions_that_see_the_basis(kurtosis: float) -> None:
    h = rotated([3.0, 1.0, 0.5, 0.2, 0.1], 0)
    truth = radius(step_map(h, 0.1, squares(3, 2, kurtosis), 0.3, 2), h)
    assert second_moment_radius(h, 3, 0.1, 0.3, OuterMoment(1.5, 0.5, (kurtosis - 3) / 2)) == pytest.approx(truth)


@pytest.mark.parametrize("ratio", [0.01, 1.0, 5.0, 300.0])
def test_stable_below_the_edge_and_not_above(ratio: float) -> None:
    for seed in range(3):
        h = rotated([3.0, 1.0, 0.5, 0.2, 0.1], seed)
        eta_x, eta_y = coupled_edge(*parts(h, 3), ratio, GAUSSIAN)
        assert eta_y == ratio * eta_x
        below, above = (radius(step_map(h, c * eta_x, squares(3), c * eta_y, 2), h) for c in (0.99, 1.01))
        assert below < 1 < above


@given(st.lists(st.floats(0.05, 1.0), min_size=5, max_size=5), st.integers(0, 100), st.floats(-2, 2))
@some
def test_the_edge_lies_between_the_losss_and_the_means(values: list[float], seed: int, exponent: float) -> None:
    """lambda_max(L^(1/2) H L^(1/2) + noise) < 2 shows that E f falls, and 2/lambda_max(L H) is the edge of E z."""
    h, ratio = rotated(values, seed), 10.0**exponent
    eta_x, _ = coupled_edge(*parts(h, 3), ratio, GAUSSIAN)
    root = np.sqrt(np.r_[np.ones(3), np.full(2, ratio)])
    mean = root[:, None] * h * root
    noisy = mean.copy()
    noisy[:3, :3] += h[:3, :3] + np.trace(h[:3, :3]) * np.eye(3)
    least, most = (2 / float(np.linalg.eigvalsh(m)[-1]) for m in (noisy, mean))
    assert least <= eta_x * (1 + 1e-6) and eta_x <= most * (1 + 1e-6)


def test_coupling_lowers_an_edge_or_raises_it() -> None:
    """Of a strongly coupled pair: x's edge falls where y's rate is large, and rises a little where y follows slowly."""
    h = np.array([[1.0, 0.9], [0.9, 1.0]])
    alone = mean_square_edge(Spectrum.of([1.0])).value
    assert coupled_edge(*parts(h, 1), 3.0, GAUSSIAN)[0] < 0.9 * alone
    assert coupled_edge(*parts(h, 1), 0.5, GAUSSIAN)[0] == pytest.approx(1.06 * alone, rel=2e-3)


def test_without_coupling_it_separates() -> None:
    h = np.zeros((5, 5))
    h[:3, :3], h[3:, 3:] = rotated([3.0, 1.0, 0.2], 0), rotated([2.0, 0.5], 1)
    x, y = mean_square_edge(Spectrum.of([3.0, 1.0, 0.2])).value, exact_edge(2.0)
    assert coupled_edge(*parts(h, 3), 1.01 * y / x, GAUSSIAN)[1] == pytest.approx(y, rel=1e-6)
    assert coupled_edge(*parts(h, 3), 0.99 * y / x, GAUSSIAN)[0] == pytest.approx(x, rel=1e-6)


def test_the_rest_by_its_trace() -> None:
    """x with 12 small eigenvalues that are left out: the edge within 3 %, and the side of 1 is the whole's."""
    d, k = 16, 4
    h = np.zeros((d, d))
    h[:k, :k] = rotated([3.0, 1.0, 0.5, 0.2], 0)  # two of x, two of y
    order = [0, 1, *range(4, d), 2, 3]  # x first
    h[range(4, d), range(4, d)] = np.linspace(0.02, 0.1, d - k)
    whole = h[np.ix_(order, order)]
    few, gram = parts(h[:k, :k], 2)
    trace = float(np.trace(h[4:, 4:]))
    for ratio in (0.3, 3.0):
        eta_x, eta_y = coupled_edge(few, gram, ratio, GAUSSIAN, rest_trace=trace)
        truth = coupled_edge(*parts(whole, d - 2), ratio, GAUSSIAN)[0]
        assert eta_x == pytest.approx(truth, rel=0.03)
        without = coupled_edge(few, gram, ratio, GAUSSIAN)[0]
        assert without >= eta_x
        for c in (0.9, 1.1):
            rates = c * eta_x, c * eta_y
            assert (coupled_radius(few, gram, *rates, GAUSSIAN, rest_trace=trace) < 1) == (
                second_moment_radius(whole, d - 2, *rates, GAUSSIAN) < 1
            )
    assert math.isinf(coupled_radius(few, gram, 2.1 / trace, 0.0, GAUSSIAN, rest_trace=trace))


def test_minibatches_by_every_draw() -> None:
    """A mean over batches and over all nodes of the directions; at the same mean Hessian the radius only grows."""
    batches = np.stack([rotated([3.0, 1.0, 0.4], seed) for seed in range(3)])
    mean = batches.mean(0)
    truth = np.mean([step_map(h, 0.2, squares(2, 2), 0.4, 1) for h in batches], 0)
    found = second_moment_radius(batches, 2, 0.2, 0.4, OuterMoment(1.5, 0.5))
    assert found == pytest.approx(radius(truth, mean), rel=1e-9)
    assert found > second_moment_radius(mean, 2, 0.2, 0.4, OuterMoment(1.5, 0.5))


@pytest.mark.parametrize("ratio", [0.0, 0.2, 2.0, math.inf])
def test_the_gradients_norm_after_a_hybrid_step(ratio: float) -> None:
    """E ||g+||^2 by the cubature rule's mean; at the edge it is ||g||^2."""
    h = rotated([3.0, -1.0, 0.6, 0.3, -0.1], 2)
    g = np.linalg.eigh(h)[1] @ np.array([0.1, 0.3, 0.2, -0.4, 2.0])
    gradient = HybridGradient.of(h, g, 3)
    eta_x, eta_y = hybrid_gradient_norm_edge(gradient, ratio, OuterMoment(1.5, 0.5))
    moved = squares(3, 2)

    def truth(x: float, y: float) -> float:
        mean = g - h @ np.r_[x * g[:3], y * g[3:]]
        noise = outer(moved, np.outer(g[:3], g[:3])) - np.outer(g[:3], g[:3])
        return float(mean @ mean + x * x * np.trace(h[:, :3] @ noise @ h[:3, :])) / float(g @ g)

    assert truth(eta_x, eta_y) == pytest.approx(1, abs=1e-12)
    assert truth(0.9 * eta_x, 0.9 * eta_y) < 1 < truth(1.1 * eta_x, 1.1 * eta_y)
    assert gradient.ratio_of_squares(0.1, 0.2, OuterMoment(1.5, 0.5)) == pytest.approx(truth(0.1, 0.2), rel=1e-12)


def test_a_hybrid_step_of_algorithm_1() -> None:
    """E ||g+||^2/||g||^2 of 40,000 replicas, z-score below 4.5; without the cross block's norm it is far above."""
    h = rotated([3.0, 1.0, 0.6, 0.3, 0.1], 4)
    z0 = np.array([1.0, -0.5, 0.3, 0.2, 1.0])
    f = QuadraticSum("one", 3, 2, torch.tensor(h)[None], torch.zeros(1, 5, dtype=torch.float64))
    gradient = HybridGradient.of(h, h @ z0, 3)
    eta = hybrid_gradient_norm_edge(gradient, 0.7)
    run = Algorithm1(*eta, 1, oracle="two-sided", keep=(1,), precision="float64")
    result = run.run(f, torch.tensor(z0), replicas=40_000, seed=1)
    squared = (result.kept_x[0] + result.kept_y[0]) / (gradient.g_x**2 + gradient.g_y**2)
    error = squared.std() / len(squared) ** 0.5
    assert abs(squared.mean() - 1) < 4.5 * error
    alone = float(np.linalg.norm(h[:3, :3]))
    wrong = HybridGradient(**{**vars(gradient), "frobenius": alone}).ratio_of_squares(*eta, GAUSSIAN)
    assert squared.mean() - wrong > 4.5 * error


ONE = np.ones(1), np.full((1, 1), 0.5)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "shapes": (lambda: coupled_edge(np.ones(2), np.eye(3), 1.0, GAUSSIAN), "give [k] and [k, k]"),
    "negative": (
        lambda: coupled_edge(np.array([1.0, -1.0]), np.eye(2) / 2, 1.0, GAUSSIAN),
        "Ritz value is -1",
    ),
    "gram": (lambda: coupled_edge(np.ones(1), np.full((1, 1), 1.5), 1.0, GAUSSIAN), "eigenvalues from 1.5 to 1.5"),
    "rest": (lambda: coupled_edge(*ONE, 1.0, GAUSSIAN, rest_trace=-3.0), "trace of the rest is -3"),
    "ratio": (lambda: coupled_edge(*ONE, 0.0, GAUSSIAN), "use a positive number"),
    "basis": (lambda: coupled_edge(*ONE, 1.0, OuterMoment(2, 1, 1)), "see the basis"),
    "zero": (lambda: second_moment_radius(np.zeros((2, 2)), 1, 0.1, 0.1, GAUSSIAN), "the mean Hessian is 0"),
    "asymmetric": (lambda: second_moment_radius(np.triu(np.ones((2, 2))), 1, 0.1, 0.1, GAUSSIAN), "not symmetric"),
    "large": (lambda: second_moment_radius(np.eye(41), 1, 0.1, 0.1, GAUSSIAN), "with d from 1 to 40"),
    "kernels": (
        lambda: second_moment_radius(np.stack([np.diag([1.0, 1.0]), np.diag([1.0, -1.0])]), 1, 0.1, 0.1, GAUSSIAN),
        "where the mean does not",
    ),
    "downwards": (
        lambda: hybrid_gradient_norm_edge(HybridGradient.of(-np.eye(2), np.ones(2), 1), 1.0),
        "curves downwards along the step",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_one_line(what: str) -> None:
    call, words = REFUSED[what]
    with pytest.raises(BadInput) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
