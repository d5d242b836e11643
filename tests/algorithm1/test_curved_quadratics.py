"""The recursion of quadratics with Hessians of their own, against all orders, Algorithm 1 and its fixed point."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from smoothlab.algorithm1.curved_quadratics import Moments, fourth_moments, linearized
from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.algorithm1.quadratics import moment
from smoothlab.algorithm1.sampling import matrix_shape
from smoothlab.experiments.rates import exponents
from smoothlab.experiments.rates.experiment import Rates
from smoothlab.objectives import QuadraticSum, quadratic_sum
from smoothlab.zeroth.distributions import named
from smoothlab.zeroth.names import DISTRIBUTIONS
from tests.cases import CURVED

F = quadratic_sum(1.0, 0.6, 0.5, sigma=1.0, d_x=3, d_y=1, n=4)
START = np.array([0.5, -0.4, 0.3, 0.6])


@pytest.mark.parametrize(("q", "distribution"), [(1, "gaussian"), (3, "sphere"), (2, "gaussian")])
def test_algorithm_1_has_the_means_of_the_recursion(q: int, distribution: str) -> None:
    keep = (1, 2, 4)
    how = Algorithm1(0.1, 0.2, 4, distribution=distribution, q=q, keep=keep, mu=0.1)  # type: ignore[arg-type]
    found = how.run(F, torch.from_numpy(START), 4000, seed=q)
    squares = found.kept_x + found.kept_y

    def scores(recursion: Moments) -> np.ndarray:
        truth = recursion.gradients(0.1, 0.2, 4)[list(keep)]
        return np.abs(squares.mean(1) - truth) / squares.std(1) * squares.shape[1] ** 0.5

    assert (scores(Moments(F, START, distribution=distribution, q=q)) < 4.5).all()
    assert scores(Moments(F, START, distribution=distribution, q=3 * q)).max() > 4.5, "other q are seen not to be it"


@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "sparse(0.5)", "lowrank(1)"])
def test_fourth_moments_are_those_of_the_engines_directions(distribution: str) -> None:
    """E vv'Svv' of 60,000 directions, within 5 standard errors in each entry; its trace is E ||ghat||^2."""
    d, count = 6, 60_000
    v = torch.empty(count, d).double()
    generator = torch.Generator().manual_seed(2)
    named(distribution).fill_replicas(v, torch.empty(v.shape), generator, matrix_shape(distribution, d))
    a = np.random.default_rng(3).normal(size=(d, d))
    s = a @ a.T / d
    expected = (fourth_moments(distribution, d) @ s.reshape(-1)).reshape(d, d)
    assert np.trace(expected) == pytest.approx(moment(d, distribution) * np.trace(s), rel=1e-12)
    values = torch.einsum("ri,ij,rj->r", v, torch.from_numpy(s), v)[:, None, None] * v[:, :, None] * v[:, None, :]
    errors = (values.std(0) / count**0.5).numpy()
    assert (np.abs(values.mean(0).numpy() - expected) <= 5 * errors + 1e-6).all()


@pytest.mark.parametrize("distribution", ["coordinate", "sparse(0.5)", "lowrank(1)", "rademacher"])
def test_other_directions_have_the_means_of_their_recursion(distribution: str) -> None:
    """With three averaged; Gaussian directions are seen not to be of low rank."""
    f, start = quadratic_sum(1.0, 0.6, 0.9, sigma=1.0, d_x=6, d_y=1, n=2), np.linspace(-0.5, 0.6, 7)
    keep, eta = (1, 3, 6), 0.2
    how = Algorithm1(eta, eta, 6, distribution=distribution, q=3, keep=keep, shape=matrix_shape(distribution, 6))
    found = how.run(f, torch.from_numpy(start), 4000, seed=1)
    squares = found.kept_x + found.kept_y
    truth = Moments(f, start, distribution=distribution, q=3).gradients(eta, eta, 6)[list(keep)]
    scores = np.abs(squares.mean(1) - truth) / squares.std(1) * squares.shape[1] ** 0.5
    assert (scores < 4.5).all()
    other = Moments(f, start, q=3).gradients(eta, eta, 6)[list(keep)]
    if distribution == "lowrank(1)":
        assert (np.abs(squares.mean(1) - other) / squares.std(1) * squares.shape[1] ** 0.5).max() > 4.5


def test_averages_over_a_budget_and_the_best_rate_for_it() -> None:
    recursion = Moments(F, START)
    for epochs in (1, 2, 7, 12):
        loop = recursion.gradients(0.05, 0.05, epochs)[:epochs].mean()
        assert recursion.average(0.05, epochs) == pytest.approx(loop, rel=1e-12)
    eta, least = recursion.best_for(40)
    assert least == pytest.approx(recursion.average(eta, 40), rel=1e-12)
    for rate in np.geomspace(eta / 30, 30 * eta, 61):
        value = recursion.average(float(rate), 40)
        assert not value < least * (1 - 1e-9)
    assert recursion.average(eta / 1.3, 40) > least < recursion.average(1.3 * eta, 40)


def test_exact_gradients_are_the_mean_over_all_orders() -> None:
    total = 0.0
    for order in permutations(range(4)):
        z = torch.from_numpy(START)
        for i in order:
            z = z - 0.3 * F.gradient_of(z, i)
        total += float(F.gradient(z).square().sum())
    assert Moments(F, START, "exact").gradients(0.3, 0.3, 1)[1] == pytest.approx(total / 24, rel=1e-12)
    same = QuadraticSum("same", 3, 1, F.mean.expand(4, 4, 4), F.shifts)
    assert Moments(same, START, "exact").gradients(0.3, 0.3, 1)[1] != pytest.approx(total / 24, rel=0.01)


def test_the_floor_of_reshuffled_exact_gradients_is_that_of_the_mean() -> None:
    """E grad f -> -(eta/2) mean H_i c_i, which does not vanish with n: eta^2, not the eta^3 of equal Hessians."""
    mean = torch.einsum("nij,nj->i", F.hessians, F.shifts) / F.n
    for eta in (1e-4, 1e-5):
        recursion = Moments(F, START, "exact")
        end = np.linalg.matrix_power(recursion.epoch(eta, eta), 1 << 26) @ recursion.start
        expected = eta**2 / 4 * float(mean.square().sum())
        assert recursion.square @ end == pytest.approx(expected, rel=200 * eta)
    same = Moments(QuadraticSum("same", 3, 1, F.mean.expand(4, 4, 4), F.shifts), START, "exact")
    floors = [same.square @ np.linalg.matrix_power(same.epoch(e, e), 1 << 26) @ same.start for e in (1e-3, 1e-4)]
    assert floors[0] / floors[1] == pytest.approx(1000, rel=0.02)


def test_the_first_epoch_below_a_level() -> None:
    recursion = Moments(F, START)
    averages = np.cumsum(recursion.gradients(0.05, 0.05, 300)) / np.arange(1, 302)
    for level in (0.3, 0.15):
        assert recursion.epochs_to(level, 0.05, 0.05) == 1 + int((averages <= level).argmax())
    assert recursion.epochs_to(1e-6, 0.05, 0.05) == math.inf, "below the floor"
    assert recursion.epochs_to(0.1, 3.0, 3.0) == math.inf, "diverges"
    eta, T = recursion.best(0.15)  # noqa: N806
    for rate in (0.8 * eta, 1.25 * eta):
        assert recursion.epochs_to(0.15, rate, rate) >= T


def test_linearized_sums_have_the_components_derivatives_at_the_minimum() -> None:
    for f in CURVED.values():
        flat = linearized(f)
        assert flat.variances(0.0) == pytest.approx([float(s) for s in f.variance(f.center)])
        for i in range(f.n):
            assert torch.allclose(flat.gradient_of(f.center, i), f.gradient_of(f.center, i))
            assert torch.allclose(flat.hessian_of(f.center, i), f.hessian_of(f.center, i))


@pytest.mark.check
def test_exponents_measured_on_sums_that_curve_differently() -> None:
    for series in ("zo-quadratics", "zo-log-cosh", "zo-exponentials"):
        point = {"series": series, "setting": series, "axis": "eps", "values": [0.4, 0.3, 0.2]}
        *steps, last = exponents.measured(Rates(), point)
        assert last["low"] < last["measured"] < last["high"] and abs(last["measured"] - last["linearized"]) < 0.2
        assert -4.1 < last["measured"] < -3.1
        if series == "zo-quadratics":
            assert last["low"] <= last["reference"] <= last["high"]
            assert sum(row["low"] <= row["reference"] <= row["high"] for row in steps) >= 2
