"""Fits of L0 + c phi against scipy's solvers: nnls, and the linear programs that quantile and envelope fits are."""

import numpy as np
import pytest
from scipy.optimize import linprog, nnls

from smoothlab.stats import growth_fits
from smoothlab.stats.growth_fits import RHO, Fit, envelope, golden, least_squares, median, power

RNG = np.random.default_rng(0)
N = 25
U = np.exp(0.6 * RNG.standard_normal(N))
SETS = {
    "rises": 1 + 2 * U + 0.3 * np.abs(RNG.standard_normal(N)),
    "falls": 5 / (1 + U),
    "through zero": np.maximum(3 * U - 1.5, 0) + 0.01,
    "flat": 2 + 0.1 * RNG.random(N),
    "outlier": np.where(np.arange(N) == 7, 50.0, 1 + U),
    "zeros": np.zeros(N),
    "small": 1e-9 * (1 + U),
}


def program(phi: np.ndarray, L: np.ndarray, kind: str) -> tuple[np.ndarray, float]:
    """(L0, c) and the least loss by scipy's linear programs: sum of |residuals|, or the mean of a curve above L."""
    n, design = len(L), np.stack([np.ones_like(phi), phi], 1)
    if kind == "envelope":
        done = linprog(design.mean(0), A_ub=-design, b_ub=-L, bounds=[(0, None)] * 2)
        return done.x, done.fun
    cost = np.concatenate([np.zeros(2), np.ones(2 * n)])
    done = linprog(cost, A_eq=np.hstack([design, np.eye(n), -np.eye(n)]), b_eq=L, bounds=[(0, None)] * (2 + 2 * n))
    return done.x[:2], done.fun


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("phi", [U, U**3, np.log1p(U)], ids=["u", "u^3", "log"])
def test_least_squares_are_scipys_nnls(name: str, phi: np.ndarray) -> None:
    L = SETS[name]
    found, (expected, residual) = least_squares(phi[None], L[None]), nnls(np.stack([np.ones(N), phi], 1), L)
    assert [found.L0[0], found.c[0]] == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12 * L.max())
    assert found.loss[0] == pytest.approx(residual**2, rel=1e-9, abs=1e-20 + 1e-12 * L.max() ** 2)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("phi", [U, U**3, np.log1p(U)], ids=["u", "u^3", "log"])
@pytest.mark.parametrize(("fit", "kind"), [(median, "median"), (envelope, "envelope")], ids=["median", "envelope"])
def test_searches_find_the_optimum_of_the_linear_program(fit: Fit, kind: str, name: str, phi: np.ndarray) -> None:
    """The loss is convex: a bracket of 4e-14 leaves it within 1e-11 of the program's, whose own tolerance is 1e-9."""
    size = max(SETS[name].max(), 1e-300)
    L = SETS[name] / size  # linprog's tolerances are absolute
    found = fit(phi[None], L[None], growth_fits.SEARCHED)
    assert found.loss[0] == pytest.approx(program(phi, L, kind)[1], rel=1e-8, abs=1e-8)
    assert found.L0[0] >= 0 and found.c[0] >= 0


@pytest.mark.parametrize("name", SETS)
def test_no_point_lies_above_the_envelope_and_one_lies_on_it(name: str) -> None:
    L = SETS[name]
    found = envelope(U[None], L[None])
    over = found.L0 + found.c * U - L
    assert over.min() >= -1e-12 * L.max() and over.min() <= 1e-9 * L.max() + 1e-300


def test_the_median_leaves_an_outlier_alone_and_least_squares_do_not() -> None:
    L = SETS["outlier"][None]
    robust, plain = median(U[None], L), least_squares(U[None], L)
    assert [robust.L0[0], robust.c[0]] == pytest.approx([1, 1], abs=1e-9)
    assert np.abs(plain.L0[0] + plain.c[0] * U - 1 - U).max() > 1


@pytest.mark.parametrize("fit", [least_squares, median, envelope], ids=["least-squares", "median", "envelope"])
def test_samples_together_are_samples_alone(fit: Fit) -> None:
    L = np.stack([values for name, values in SETS.items() if name != "small"])
    phi = np.tile(U, (len(L), 1))
    phi[1] = 2.0  # one sample whose points are all alike
    found = fit(phi, L, growth_fits.SEARCHED)
    for i in range(len(L)):
        alone = fit(phi[i : i + 1], L[i : i + 1], growth_fits.SEARCHED)
        assert (found.L0[i], found.c[i]) == pytest.approx((alone.L0[0], alone.c[0]), rel=1e-9, abs=1e-12)
        assert np.isfinite(found.loss[i])


@pytest.mark.parametrize("rho", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("fit", [least_squares, median, envelope], ids=["least-squares", "median", "envelope"])
def test_a_power_without_noise_is_found_again(fit: Fit, rho: float) -> None:
    curves, found = power(U[None], (2 + 3 * U**rho)[None], fit)
    assert (curves.L0[0], curves.c[0], found[0]) == pytest.approx((2, 3, rho), rel=1e-5)


@pytest.mark.parametrize("name", ["rises", "through zero", "outlier"])
@pytest.mark.parametrize("fit", [least_squares, median, envelope], ids=["least-squares", "median", "envelope"])
def test_the_exponent_leaves_no_more_loss_than_any_of_a_dense_grid(fit: Fit, name: str) -> None:
    L = SETS[name]
    curves, rho = power(U[None], L[None], fit)
    grid = np.linspace(*RHO, 150)
    losses = fit(U ** grid[:, None], np.tile(L, (150, 1)), growth_fits.SEARCHED).loss
    assert RHO[0] <= rho[0] <= RHO[1]
    assert curves.loss[0] <= losses.min() * (1 + 1e-9) + 1e-12


def test_many_samples_are_refined_less_and_still_to_a_thousandth() -> None:
    L = 2 + 3 * U**1.3
    many, one = power(np.tile(U, (3, 1)), np.tile(L, (3, 1)), least_squares), power(U[None], L[None], least_squares)
    assert many[1] == pytest.approx(one[1][0], rel=2e-3)
    assert one[1][0] == pytest.approx(1.3, rel=1e-7)


def test_golden_sections_find_minima_inside_and_at_the_ends() -> None:
    lows, highs, minima = np.zeros(3), np.ones(3), np.array([0.3, 0.0, 1.0])
    where, value = golden(lambda x: np.abs(x - minima), lows, highs)
    assert where == pytest.approx(minima, abs=1e-12) and value == pytest.approx(np.zeros(3), abs=1e-12)
