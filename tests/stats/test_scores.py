"""z-scores: of the right size on samples that meet their assumptions, and large where the truth is another."""

import numpy as np
import pytest
from scipy import stats

from smoothlab.stats import scores


def test_the_limit_is_bonferronis() -> None:
    assert scores.limit(0.05, 1) == pytest.approx(1.959964, abs=1e-6)
    assert 2 * 50 * stats.norm.sf(scores.limit(1e-3, 50)) == pytest.approx(1e-3)


def test_clusters_of_normal_numbers_are_accused_as_often_as_the_level_says() -> None:
    rng, level, n = np.random.default_rng(0), 0.02, 1000
    means = rng.normal(1.0, 1.0, (n, 40, 5)) + rng.normal(0.0, 1.0, (n, 40, 1))  # draws of a cluster depend
    found = sum(abs(scores.clustered(sample, 1.0).z) > scores.limit(level, 1) for sample in means)
    assert stats.binomtest(int(found), n, level).pvalue > 1e-4


def test_another_truth_and_a_sample_that_does_not_vary_are_seen() -> None:
    sample = np.random.default_rng(0).normal(1.0, 1.0, (40, 100))
    assert abs(scores.clustered(sample, 1.0).z) < 4 < abs(scores.clustered(sample, 1.2).z)
    assert scores.clustered(sample, 1.2).z < 0
    still = np.ones((40, 3))
    assert scores.clustered(still, 1.0).z == 0 and scores.clustered(still, 1.01).z == -scores.LARGEST
    score = scores.clustered(sample, 1.0)
    assert score.low < score.value < score.high


@pytest.mark.parametrize("p", [0.01, 0.3])
def test_hoeffdings_bound_is_above_the_binomial_tail(p: float) -> None:
    for n in (5, 100):
        for hits in range(n + 1):
            values = np.repeat([1.0, 0.0], [hits, n - hits])
            exact = stats.binom.sf(hits - 1, n, p)
            assert scores.mean_of_bounded(values, p) <= scores.of_probability(exact) + 1e-6
    assert scores.mean_of_bounded(np.ones(20), p) > 4


def test_counts_and_fits() -> None:
    assert scores.count(50, 100, 0.5) < 0.2 and scores.count(90, 100, 0.5) > 6
    rng = np.random.default_rng(0)
    assert scores.normal_fit(rng.normal(size=2000)) < 4 < scores.normal_fit(rng.uniform(-1.7, 1.7, 2000))
    assert scores.of_probability(0.0) == scores.LARGEST and scores.of_probability(1.0) == 0.0
