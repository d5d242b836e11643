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
