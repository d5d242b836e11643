"""Block bootstrap: its samples, its block length, and its intervals and p-values, which agree."""

import numpy as np
import pytest
from scipy import stats

from smoothlab.stats.block_bootstrap import FEWEST_BLOCKS, Dependence, dependence, interval, longest, p_value, picks


def autoregressive(rng: np.random.Generator, shape: tuple[int, int], r: float) -> np.ndarray:
    """Stationary series of variance 1 whose neighbors have the correlation r, one a row."""
    noise = rng.standard_normal(shape)
    series = noise.copy()
    for t in range(1, shape[1]):
        series[:, t] = r * series[:, t - 1] + (1 - r * r) ** 0.5 * noise[:, t]
    return series


@pytest.mark.parametrize("circular", [True, False])
def test_samples_are_blocks_of_consecutive_points(circular: bool) -> None:
    chosen = picks(20, 6, 500, np.random.default_rng(0), circular=circular)
    assert chosen.shape == (500, 20) and chosen.min() == 0 and chosen.max() == 19
    steps = np.diff(chosen, axis=1)
    inside = [t for t in range(19) if (t + 1) % 6]
    assert set(np.unique(steps[:, inside])) == ({1, -19} if circular else {1})
    assert len(np.unique(steps[:, 5])) > 10  # from one block to the next


def test_circular_samples_draw_every_point_equally_often() -> None:
    """Chi-square of counts of 20,000 drawn blocks' beginnings; the blocks that do not wrap miss the ends."""
    counts = np.bincount(picks(10, 4, 20_000, np.random.default_rng(1))[:, 0], minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-3
    ends = np.bincount(picks(10, 4, 20_000, np.random.default_rng(1), circular=False).ravel(), minlength=10)
    assert ends[0] < 0.6 * ends[5]


def test_the_block_length_is_that_of_the_rule() -> None:
    """r = 0.5 and n = 8,000: (6 r^2/(1 - r^2)^2)^(1/3) n^(1/3) = 27.7, within three standard errors of r."""
    series = autoregressive(np.random.default_rng(2), (1, 8000), 0.5)[0]
    found = dependence(series)
    error = 3 * ((1 - 0.5**2) / 8000) ** 0.5
    assert found.correlation == pytest.approx(0.5, abs=error)
    assert found.length == pytest.approx(1.387 * 20, abs=2.5) and found.blocks == 8000 / found.length


def test_the_bias_of_the_correlation_is_taken_out() -> None:
    """Mean corrected correlation of residuals of a line through 40 points, r = 0.5: plain it is 0.1 too low."""
    series = autoregressive(np.random.default_rng(3), (400, 40), 0.5)
    time = np.arange(40.0)
    found = []
    for row in series:
        found.append(dependence(row - np.polyval(np.polyfit(time, row, 1), time)).correlation)
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("values", [[1.0] * 12, [1.0, -1.0] * 6])
def test_constant_and_alternating_residuals_have_blocks_of_one(values: list[float]) -> None:
    assert dependence(values) == Dependence(12, 1, 0.0)


def test_at_least_four_blocks_are_left() -> None:
    found = dependence(np.linspace(-1, 1, 21) ** 3)
    assert found.length == 21 // FEWEST_BLOCKS and found.blocks >= FEWEST_BLOCKS


def test_the_longest_of_several_dependences() -> None:
    assert longest([Dependence(20, 3, 0.5), Dependence(20, 2, 0.7)]) == Dependence(20, 3, 0.7)


def test_variance_that_blocks_do_not_see_is_put_back() -> None:
    """s of r = 0.5, b = 2 by hand: 1 - 2 * 0.5 * 0.75 / (2 * 0.75) = 0.5, times 1 - 2/20; n/(n - p) = 20/18."""
    assert Dependence(20, 2, 0.5).stretch(2) == pytest.approx((20 / 18 / 0.45) ** 0.5)
    assert Dependence(20, 1, 0.0).stretch(2) == pytest.approx((20 / 18) ** 0.5)


def test_ends_are_expanded_by_students_quantile() -> None:
    draws = np.linspace(0.0, 1.0, 1001)  # quantiles 0.025 and 0.975
    series = Dependence(10, 1, 0.0)
    found = interval(0.4, draws, series, 2)
    factor = (10 / 8) ** 0.5 * stats.t.ppf(0.975, 8) / stats.norm.ppf(0.975)
    assert found == pytest.approx((0.4, 0.4 - factor * 0.375, 0.4 + factor * 0.575))
    assert np.isnan(interval(0.4, draws, Dependence(7, 1, 0.0), 2).low)


@pytest.mark.parametrize("above", [True, False])
def test_a_p_value_is_small_exactly_where_the_interval_lies_beyond_zero(above: bool) -> None:
    rng, series = np.random.default_rng(4), Dependence(20, 2, 0.3)
    sides = set()
    for middle in np.linspace(-12, 12, 61):
        found = interval(middle, middle + rng.standard_normal(400), series, 2)
        beyond = found.low > 0 if above else found.high < 0
        assert (p_value(found, series, 2, above=above) < 0.025) == beyond
        sides.add(bool(beyond))
    assert sides == {True, False}


def test_p_values_of_samples_that_are_all_equal() -> None:
    series, draws = Dependence(20, 1, 0.0), np.full(99, 2.0)
    assert p_value(interval(2.0, draws, series, 2), series, 2, above=True) == 0
    assert p_value(interval(2.0, draws, series, 2), series, 2, above=False) == 1


@pytest.mark.check
@pytest.mark.parametrize(("r", "least"), [(0.0, 0.93), (0.5, 0.91), (0.9, 0.85)])
def test_intervals_of_a_mean_cover(r: float, least: float) -> None:
    """300 series of 60 points, their mean: plain percentiles of single points cover 36 % where r = 0.9."""
    series = autoregressive(np.random.default_rng(5), (300, 60), r)
    hits = plain = 0
    for seed, row in enumerate(series):
        found = dependence(row - row.mean())
        draws = row[picks(60, found.length, 400, np.random.default_rng(seed))].mean(1)
        ends = interval(row.mean(), draws, found, 1)
        hits += ends.low <= 0 <= ends.high
        low, high = np.quantile(row[picks(60, 1, 400, np.random.default_rng(seed))].mean(1), [0.025, 0.975])
        plain += low <= 0 <= high
    assert hits >= stats.binom.ppf(1e-3, 300, least)
    if r == 0.9:
        assert plain < 150
