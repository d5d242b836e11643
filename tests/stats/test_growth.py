"""fit_growth: its estimates against scipy and by hand, their units, what is left out, and what is refused."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import nnls

from smoothlab.errors import BadInput
from smoothlab.stats.growth import FORMS, METHODS, PARAMETERS, Form, Method, fit_growth
from smoothlab.stats.growth_fits import RHO

RNG = np.random.default_rng(0)
U = np.exp(0.5 * RNG.standard_normal(30))
L = 40 + 7 * U + 3 * RNG.standard_normal(30)


def test_least_squares_equal_scipys_nnls_in_the_units_of_the_points() -> None:
    for u, curvature in ((U, L), (1e-6 * U, 1e9 * L), (U, L.max() - L)):
        fit = fit_growth(u, curvature, resamples=20)
        expected = nnls(np.stack([np.ones(30), u], 1), curvature)[0]
        assert [fit.parameters[name].value for name in ("L0", "L1")] == pytest.approx(expected.tolist(), rel=1e-9)


def test_constants_are_mean_median_and_maximum() -> None:
    odd = L[:29]
    for method, statistic in (("least-squares", np.mean), ("median", np.median), ("envelope", np.max)):
        fit = fit_growth(U[:29], odd, form="constant", method=method, resamples=20)
        assert fit.parameters["L0"].value == pytest.approx(float(statistic(odd)), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_other_units_change_the_coefficients_alone(form: Form, method: Method) -> None:
    plain = fit_growth(U, L, form=form, method=method, resamples=40)
    scaled = fit_growth(100 * U, 5 * L, form=form, method=method, resamples=40)
    rho = plain.parameters.get("rho", (1.0,))[0]
    factors = {"L0": 5.0, "L1": 5 / 100, "c": 5 / 100**rho, "rho": 1.0}
    for name in PARAMETERS[form]:  # an L0 of 0 is reached up to the search's tolerance
        expected = factors[name] * plain.parameters[name].value
        assert scaled.parameters[name].value == pytest.approx(expected, rel=1e-4, abs=1e-7)
    at = np.array([0.5, 1.0, 3.0])
    assert scaled(100 * at) == pytest.approx(5 * plain(at), rel=1e-6)
    if method != "envelope":
        assert np.array(scaled.band(100 * at)) == pytest.approx(5 * np.array(plain.band(at)), rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_their_values_and_stay_in_range(form: Form, method: Method) -> None:
    fit = fit_growth(U, L, form=form, method=method, resamples=60)
    assert (fit.points, fit.below_floor) == (30, 0)
    low, high = fit.band(U)
    if method == "envelope":
        assert all(math.isnan(found.low) and math.isnan(found.high) for found in fit.parameters.values())
        assert np.isnan(low).all() and (fit(U) >= L * (1 - 1e-9)).all()
        return
    for name, found in fit.parameters.items():
        least, most = RHO if name == "rho" else (0, math.inf)
        assert least <= found.low <= found.value <= found.high <= most
    assert (low <= fit(U)).all() and (fit(U) <= high).all() and (low < high).all()


def test_the_envelope_is_exceeded_as_often_as_a_scenario_program() -> None:
    """Beta(2, n - 1) of two parameters by its binomial tail: P(at most 1 of n exceed) = 5 %, n the number of blocks."""
    fit = fit_growth(U, L, method="envelope")
    n = 30 // fit.block_length
    assert stats.binom.cdf(1, n, fit.exceeded_by) == pytest.approx(0.05)
    constant = fit_growth(U, L, form="constant", method="envelope")
    assert (1 - constant.exceeded_by) ** n == pytest.approx(0.05)
    assert math.isnan(fit_growth(U, L, form="power", method="envelope").exceeded_by)
    assert math.isnan(fit_growth(U, L, method="median", resamples=20).exceeded_by)


def test_the_limit_of_exceeding_holds_for_independent_points() -> None:
    """200 envelopes of 25 independent points: at least 95 % of them within the limit, at a z-score of 3."""
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        u, fresh = rng.random(25), rng.random(500)
        bound = fit_growth(u, (1 + u) * rng.random(25), method="envelope")
        hits += ((1 + fresh) * rng.random(500) > bound(fresh)).mean() <= bound.exceeded_by
    assert hits >= 200 * 0.95 - 3 * (200 * 0.95 * 0.05) ** 0.5


def test_points_below_their_floor_are_left_out_and_counted() -> None:
    floors = np.where(np.arange(30) % 3 == 0, L, 0.0)  # L < 2 L
    fit, kept = fit_growth(U, L, floors=floors, resamples=30), np.arange(30) % 3 != 0
    assert (fit.points, fit.below_floor) == (20, 10)
    assert fit.parameters == fit_growth(U[kept], L[kept], resamples=30).parameters
    assert fit_growth(U, L, floors=L / 2, resamples=20).below_floor == 0  # twice the floor is not below it


def test_the_same_seed_gives_the_same_intervals() -> None:
    one, other = (fit_growth(U, L, resamples=50, seed=seed).parameters for seed in (1, 2))
    assert one == fit_growth(U, L, resamples=50, seed=1).parameters != other


def test_the_order_of_the_points_decides_the_block_length() -> None:
    """Residuals that wander along the run need longer blocks than the same residuals shuffled."""
    wandering = 40 + 7 * U + 3 * np.sin(np.arange(30) / 3)
    shuffled = RNG.permutation(30)
    assert fit_growth(U, wandering, resamples=20).block_length >= 4
    assert fit_growth(U[shuffled], wandering[shuffled], resamples=20).block_length < 4


def test_few_points_have_values_and_no_intervals() -> None:
    fit = fit_growth(U[:5], L[:5])
    assert fit.parameters["L0"].value > 0
    assert math.isnan(fit.parameters["L0"].low) and math.isnan(fit.parameters["L1"].high)
    assert np.isnan(fit.band([1.0])).all()


@pytest.mark.parametrize(
    ("u", "curvature", "options", "words"),
    [
        (U[:2], L[:2], {}, r"2 points for 2 parameters \(L0, L1\): measure at 3 steps or more, 8 for intervals"),
        (U[:3], L[:3], {"form": "power"}, r"3 points for 3 parameters \(L0, c, rho\): measure at 4 steps"),
        (U[:0], L[:0], {"form": "constant"}, "0 points for 1 parameters"),
        (np.full(30, 0.2), L, {}, "30 points have 1 different gradient norms, about 0.2: the slope is not identified"),
        (np.where(U > 1, 1, 2), L, {"form": "power"}, "2 different gradient norms"),
        (np.where(U == U[2], 0, U), L, {"form": "power"}, "a gradient norm is 0"),
        (U, np.where(L == L[4], -1, L), {}, "curvature -1.0 of point 5: norms are finite and not negative"),
        (np.where(U == U[7], np.nan, U), L, {}, "gradient norm nan of point 8"),
        (U, np.where(L == L[0], np.inf, L), {}, "curvature inf of point 1"),
        (U, L[:29], {}, r"gradient norms of shape \(30,\) and curvatures of shape \(29,\)"),
        (U, L, {"floors": L}, "all 30 points are below twice their rounding floor: measure with exact products"),
        (U, L, {"form": "cubic"}, "form 'cubic' is unknown: use one of constant, linear, power"),
        (U, L, {"method": "ridge"}, "method 'ridge' is unknown: use one of least-squares, median, envelope"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(u, curvature, options, words) -> None:
    with pytest.raises(BadInput, match=words) as refusal:
        fit_growth(u, curvature, **options)
    assert "\n" not in str(refusal.value)
