"""Thresholds from single yes-or-no responses: the posterior by another integration, and its simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from smoothlab.stats.intervals import Interval
from smoothlab.stats.thresholds import BEYOND, LAPSE, SPREADS, next_level, threshold


def test_the_interval_is_that_of_the_posterior_by_plain_sums() -> None:
    """Every point of a finer grid and every spread in loops, with the error function of the standard library."""
    levels, responses = [1.0, 3.0, 1.7, 2.5], [False, True, False, True]
    points = np.linspace(-BEYOND, math.log(3) + BEYOND, 1001)
    weights = np.zeros_like(points)
    for spread in SPREADS:
        for number, point in enumerate(points):
            product = 1.0
            for level, response in zip(levels, responses, strict=True):
                chance = math.erfc((point - math.log(level)) / spread / 2**0.5) / 2
                product *= LAPSE / 2 + (1 - LAPSE) * (chance if response else 1 - chance)
            weights[number] += product
    cumulative = np.cumsum(weights) / weights.sum()
    expected = [math.exp(points[np.searchsorted(cumulative, p)]) for p in (0.5, 0.025, 0.975)]
    assert list(threshold(levels, responses)) == pytest.approx(expected, rel=0.03)  # one step of the coarser grid


def test_without_responses_a_prior_is_what_is_known() -> None:
    prior = Interval(2.0, 1.0, 4.0)
    assert list(threshold([], [], prior)) == pytest.approx(list(prior), rel=0.03)


def test_a_prior_that_is_far_off_is_given_up() -> None:
    levels, responses = [1.0, 1.3, 1.5, 1.9, 1.2, 1.7] * 3, [False, False, True, True, False, True] * 3
    seen = threshold(levels, responses)
    both = threshold(levels, responses, Interval(10.0, 4.0, 25.0))
    assert abs(math.log(both.value / seen.value)) < math.log(1.25)


@pytest.mark.parametrize("response", [True, False])
def test_responses_of_one_kind_leave_the_interval_open(response: bool) -> None:
    interval = threshold([1.0, 3.0], [response, response])
    assert (interval.low == 0.0) == response and (interval.high == math.inf) == (not response)


@pytest.mark.check
@pytest.mark.parametrize("spread", [0.05, 0.3, 0.6, 1.5])
def test_simulated_coverage_of_levels_chosen_one_after_the_other(spread: float) -> None:
    """120 runs of 10 responses: as many intervals hold 1 as 95 % coverage lets expect in all but 0.1 % of cases."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(120):
        levels: list[float] = []
        responses: list[bool] = []
        level = math.exp(rng.uniform(-2, 2))
        for _ in range(10):
            levels.append(level)
            responses.append(bool(math.log(level) > spread * rng.standard_normal()))
            if all(responses):
                level /= 3
            elif not any(responses):
                level *= 3
            else:
                level = next_level(threshold(levels, responses), len(levels))
        interval = threshold(levels, responses)
        held += interval.low <= 1 <= interval.high
    assert held >= stats.binom.ppf(1e-3, 120, 0.95)
