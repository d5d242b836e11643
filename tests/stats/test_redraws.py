"""Intervals and shares of means of replicates, against distributions whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from smoothlab.stats.redraws import mean_of_replicates, shares


def test_shares_of_known_components() -> None:
    """Replicates of sampling variance 4 and probe variance 9 over m = 3: shares 4/7 and 3/7."""
    rng = np.random.default_rng(3)
    x = 5 + 2 * rng.standard_normal((20_000, 1)) + 3 * rng.standard_normal((20_000, 3))
    split = shares(x.tolist())
    assert split.sampling == pytest.approx(4 / 7, abs=0.02)
    assert split.sampling + split.probes == 1.0


@pytest.mark.parametrize("count", [8, 30, 100])
@pytest.mark.parametrize("degrees", [1, 4, 40])
def test_mean_of_skewed_replicates_is_covered(count: int, degrees: int) -> None:
    """Chi-square replicates: at least the 95 % of the whole procedure with one look at the level 0.98."""
    rng = np.random.default_rng(count + degrees)
    hits = 0
    for _ in range(1000):
        interval = mean_of_replicates(rng.chisquare(degrees, (count, 1)).tolist())
        hits += interval.low <= degrees <= interval.high
    assert hits >= stats.binom.ppf(1e-3, 1000, 0.95)


def test_equal_replicates_have_no_width() -> None:
    assert mean_of_replicates([[2.0], [2.0]]) == (2.0, 2.0, 2.0)


def test_limits_solve_halls_transformation() -> None:
    """g(t) = t + s t^2/3 + s^2 t^3/27 + s/6 of the studentized distances is Student's quantile at 0.98."""
    x = np.array([1.0, 2.0, 4.0, 9.0])
    interval = mean_of_replicates(x[:, None].tolist())
    error = x.std(ddof=1) / 2
    s = stats.skew(x) / 2
    for limit, sign in ((interval.low, 1), (interval.high, -1)):
        t = (x.mean() - limit) / error
        assert t + s * t**2 / 3 + s**2 * t**3 / 27 + s / 6 == pytest.approx(sign * stats.t.ppf(0.99, 3), rel=1e-9)


def test_shares_are_those_of_a_one_way_analysis_of_variance() -> None:
    """Means 2, 7, 2 of the rows vary by 25/3, of which the rows' own variances 2, 8, 0 explain 10/6."""
    split = shares([[1.0, 3.0], [5.0, 9.0], [2.0, 2.0]])
    assert split.probes == pytest.approx((10 / 3 / 2) / (25 / 3))
    assert split.sampling == pytest.approx(1 - 0.2)
