"""Tests of growth: their estimates are those of plain regressions; they refuse what is false and not what is true."""

import math

import numpy as np
import pytest
from scipy import special, stats

from benchmarks.fit_coverage import FitCoverage, autoregressive
from smoothlab.errors import BadInput
from smoothlab.stats.growth_tests import grows, growth_tests, same, sub_quadratic

RNG = np.random.default_rng(0)
U = 0.3 + 2 * special.ndtr(autoregressive(RNG, 60, 0.7))
NOISE = 0.3 * RNG.standard_normal(60)


def test_the_slope_is_that_of_scipys_regression() -> None:
    falling = 5 - U + NOISE
    found = grows(U, falling)
    assert found.value == pytest.approx(stats.linregress(U, falling).slope, rel=1e-9)
    assert found.p_value > 0.99 and found.high < 0  # a fall is no growth, and its interval says so


def test_the_score_of_an_exponent_is_a_regression_on_two_powers() -> None:
    L, v = 1 + 2 * U + NOISE, U / np.exp(np.log(U).mean())
    design = np.stack([np.ones(60), v**2, v**2 * np.log(v)], 1)
    assert sub_quadratic(U, L).value == pytest.approx(np.linalg.lstsq(design, L, rcond=None)[0][2], rel=1e-8)


@pytest.mark.parametrize(
    ("L", "rising", "slow"),
    [
        (3 + 2 * U, True, True),
        (3 + 2 * U**3, True, False),
        (9 - U, False, None),
        (3 + 0 * U, False, None),
    ],
    ids=["linear", "cubic", "falls", "constant"],
)
def test_growth_and_its_order_are_seen(L: np.ndarray, rising: bool, slow: bool | None) -> None:
    tests = growth_tests(U, L + NOISE)
    assert [test.name for test in tests] == ["grows", "sub-quadratic"]
    assert (tests[0].p_value < 0.01) == rising
    if slow is not None:
        assert (tests[1].p_value < 0.025) == slow
    for test, above in zip(tests, (True, False), strict=True):
        assert (test.p_value < 0.025) == (test.low > 0 if above else test.high < 0)


def test_other_units_leave_the_p_values() -> None:
    L = 3 + 2 * U + NOISE
    for one, other in zip(growth_tests(U, L), growth_tests(1e-4 * U, 1e6 * L), strict=True):
        assert one.p_value == pytest.approx(other.p_value, rel=1e-5)


def test_two_blocks_are_compared_at_their_common_steps() -> None:
    """Errors that both blocks share cancel: a difference far below them is seen, and equal curves are not refused."""
    first, shared = 3 + 2 * U + NOISE, 0.01 * RNG.standard_normal(60)
    assert same((U, first), (U, first + shared)).p_value > 0.05
    assert same((U, first), (U, first + shared + 0.05)).p_value < 1e-3
    assert same((U, first), (U, first + 0.05 * U + shared)).p_value < 1e-3
    assert same((U, first), (2 * U, first + shared)).p_value < 1e-3  # L1 halves


def test_fewer_than_eight_points_have_no_p_value() -> None:
    for test in growth_tests(U[:6], (3 + U + NOISE)[:6]):
        assert math.isnan(test.p_value) and math.isfinite(test.value)
    assert math.isnan(same((U[:6], U[:6]), (U[:6], U[:6])).p_value)


def test_points_that_decide_nothing_are_refused() -> None:
    with pytest.raises(BadInput, match="3 points for 3 parameters"):
        growth_tests(U[:3], U[:3])
    with pytest.raises(BadInput, match="the slope is not identified"):
        growth_tests(np.full(60, 0.5), U)
    with pytest.raises(BadInput, match="all 60 points are below twice their rounding floor"):
        growth_tests(U, U, floors=U)


@pytest.mark.check
@pytest.mark.parametrize(("n", "r", "least", "most"), [(20, 0.0, 0.93, 0.06), (40, 0.9, 0.88, 0.06)])
def test_intervals_cover_and_tests_have_their_size(n: int, r: float, least: float, most: float) -> None:
    """60 series, in small what benchmarks/fit_coverage.py does, with limits at a probability of 1e-3.

    With blocks of one point 35 to 87 % of the intervals cover where r = 0.9, and 23 % of flat series seem to grow.
    """
    for row in FitCoverage(60, 149, (n,), (r,), ("stationary",), medians=False).rows([]):
        count = round(row["value"] * row["simulations"])
        if row["part"] in ("coverage", "exceeded"):
            assert count >= stats.binom.ppf(1e-3, 60, least), row
        if row["part"] == "size":
            assert count <= stats.binom.ppf(1 - 1e-3, 60, most), row
        if row["part"] == "power" and row["quantity"] == "grows":
            assert count > 48
