"""The exact recursion of quadratics against enumeration of all orders and signs, the engine, 60 digits, brute force."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product

import mpmath
import numpy as np
import pytest
import torch

from smoothlab.algorithm1.quadratics import Block, epochs_to, gain_exact, moment, tuned
from smoothlab.experiments.rates import counterexample
from smoothlab.experiments.rates.runs import Quadratics

NOISY = Quadratics(4, 3, 1.3, 0.5, 0.8, 0.4)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tasks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def enumerated(
    order: str, shifts: np.ndarray, x0: np.ndarray, L: float, eta: float, epochs: int, q: int, mu: float = 0.0
) -> float:
    """E ||grad f(z_T)||^2 over all orders and all signs of q directions a step."""
    n, d = shifts.shape
    every = [sum(one, ()) for one in product(permutations(range(n)), repeat=epochs)]
    if order == "once":
        every = [one * epochs for one in permutations(range(n))]
    if order == "replace":
        every = list(product(range(n), repeat=n * epochs))
    signs = np.array(list(product((-1.0, 1.0), repeat=d * q))).reshape(-1, q, d)
    total = 0.0
    for sequence in every:
        x = x0[None]
        for i in sequence:
            slopes = np.einsum("sd,vqd->svq", L * x + shifts[i], signs) + mu / 2 * L * d  # ||v||^2 = d
            x = (x[:, None] - eta / q * np.einsum("svq,vqd->svd", slopes, signs)).reshape(-1, d)
        total += float((x**2).sum(1).mean())
    return L**2 * total / len(every)


@pytest.mark.parametrize("order", ["reshuffle", "once", "replace"])
@pytest.mark.parametrize(("n", "d", "epochs", "q", "mu"), [(2, 2, 2, 1, 0.0), (3, 1, 2, 1, 0.0), (2, 1, 3, 2, 0.0),
                                                           (2, 2, 2, 1, 0.7), (2, 2, 1, 2, 0.7)])  # fmt: skip
def test_the_recursion_is_the_mean_over_all_orders_and_signs(
    order: str, n: int, d: int, epochs: int, q: int, mu: float
) -> None:
    rng, L, eta = np.random.default_rng(n), 1.3, 0.17  # noqa: N806
    shifts = rng.normal(size=(n, d))
    shifts -= shifts.mean(0)
    x0 = rng.normal(size=d)
    extra = (mu * L) ** 2 / 4 * d**3 / q
    sigma2 = float((shifts**2).sum(1).mean())
    block = Block(L, L**2 * float(x0 @ x0), n, sigma2, moment(d, "rademacher", q), order, extra)  # type: ignore[arg-type]
    assert float(block.at(eta, epochs)) == pytest.approx(
        enumerated(order, shifts, x0, L, eta, epochs, q, mu), rel=1e-12
    )
    every = [float(block.at(eta, t)) for t in range(epochs)]
    assert float(block.average(eta, epochs)) == pytest.approx(sum(every) / epochs, rel=1e-12)


@pytest.mark.parametrize("order", ["reshuffle", "once", "replace"])
@pytest.mark.parametrize(("oracle", "distribution", "mu"), [("exact", "gaussian", 0.0), ("two-sided", "gaussian", 0.0),
                                                   ("two-sided", "sphere", 0.0),
                                                   ("one-sided", "gaussian", 0.9)])  # fmt: skip
def test_algorithm_1_has_the_means_of_the_recursion(order: str, oracle: str, distribution: str, mu: float) -> None:
    this = replace(NOISY, order=order, oracle=oracle, distribution=distribution, mu=mu)
    eta, T = (0.03, 0.2), 25  # noqa: N806
    found = this.run(*eta, T, 1500, (0, f"{order}/{oracle}"), keep=(T,))

    def score(values: np.ndarray, truth: float) -> float:
        return abs(values.mean() - truth) / values.std(ddof=1) * len(values) ** 0.5

    last = (found.kept_x + found.kept_y)[0]
    assert score(found.average, this.average(*eta, T)) < 4.5, "one in 150,000 of normal means is beyond"
    assert score(last, float(this.at(*eta, T))) < 4.5
    if oracle != "exact":
        other = replace(this, distribution="sphere" if distribution == "gaussian" else "gaussian", mu=0.0)
        assert score(last, float(other.at(*eta, T))) > 4.5, "other moments are seen not to be those"


def test_several_directions_have_the_means_of_the_recursion() -> None:
    for order in ("reshuffle", "replace"):
        this = replace(NOISY, q=3, order=order)
        found = this.run(0.05, 0.0, 12, 2000, (1, order), keep=(10, 11)).kept_x
        for t, values in zip((10, 11), found, strict=True):
            truth = float(this.x.at(0.05, t))
            assert abs(values.mean() - truth) / values.std(ddof=1) * len(values) ** 0.5 < 4.5
        assert not found.mean() == pytest.approx(float(replace(this, q=1).x.at(0.05, 10)), rel=0.05)


def test_long_runs_keep_their_digits() -> None:
    """The 32 million epochs of theory.md's instance against 60 digits."""
    one = counterexample.INSTANCES["long"]
    h, block = one.printed(), one.quadratics.x
    with mpmath.workdps(60):
        eta, d, s2 = mpmath.mpf(h.eta_x), one.d, mpmath.mpf(one.sigma) ** 2
        step = 1 - 2 * eta + eta**2 * (d + 2)
        fresh = eta**2 * (d + 2) * s2
        b = step * fresh + fresh + (2 * eta**2 * (d + 2) - 2 * eta) * eta * s2
        end, start = b / (1 - step**2), 2 * mpmath.mpf(one.gap)
        truth = end + (start - end) * (1 - step ** (2 * h.T)) / (h.T * (1 - step**2))
    assert float(block.average(h.eta_x, h.T)) == pytest.approx(float(truth), rel=1e-9)
    assert float(block._powers(h.eta_x, h.T)[0]) / h.T == pytest.approx(float(truth), rel=1e-6)


def test_smallest_t_and_best_rates_are_those_of_brute_force() -> None:
    x, y = NOISY.x, NOISY.y
    for eta_x, eta_y in [(0.02, 0.1), (0.05, 0.02), (0.1, 0.4)]:
        T = float(epochs_to(0.45, x, y, eta_x, eta_y))  # noqa: N806
        values = [float(x.average(eta_x, t) + y.average(eta_y, t)) for t in range(1, 400)]
        met = [t for t, value in enumerate(values, 1) if value <= 0.45]
        assert (met[0] if met else math.inf) == T
    etas = np.geomspace(1e-4, 1, 4_001)
    assert tuned(0.1, x, y, "one").T == epochs_to(0.1, x, y, etas, etas).min()
    grid = np.geomspace(1e-3, 1, 201)
    best = epochs_to(0.1, x, y, grid[:, None], grid[None]).min()
    assert tuned(0.1, x, y, "two").T <= 1.01 * best and tuned(0.1, x, y, "two").T <= tuned(0.1, x, y, "one").T
    assert math.isinf(tuned(0.0, x, y, "two").T)


def test_what_two_rates_buy_has_its_closed_form() -> None:
    assert gain_exact(1.0) == pytest.approx(1) and gain_exact(1e4) == pytest.approx(1e4 / 8 + 25, rel=1e-3)
    for kappa in (3.0, 100.0):
        problem = Quadratics(1, 1, 1.0, 1 / kappa, oracle="exact")
        one, two = (tuned(1e-6, problem.x, problem.y, rule) for rule in ("one", "two"))  # type: ignore[arg-type]
        assert one.T / two.T == pytest.approx(gain_exact(kappa), rel=1e-3)


def test_a_reshuffled_floor_is_cubic_in_the_rate() -> None:
    for n in (4, 16):
        block, eta = Block(1.0, 0.0, n, 1.0, 1.0), 1e-3 / n
        assert float(block.floor(eta)) == pytest.approx(eta**3 * n * (n + 1) / 24, rel=0.01)
        assert float(replace(block, order="replace").floor(eta)) == pytest.approx(eta / 2, rel=0.01)
