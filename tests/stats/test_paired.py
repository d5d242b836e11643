"""Differences of accuracy, paired by item: their interval covers."""

import numpy as np
import pytest

from smoothlab.stats.samples import paired


@pytest.mark.parametrize(("seeds", "items", "spread"), [(1, 100, 0.0), (1, 872, 0.0), (3, 100, 0.3), (3, 872, 0.1)])
def test_the_paired_interval_covers(seeds: int, items: int, spread: float) -> None:
    """Items of differing difficulty, seeds of differing luck, answers of both methods alike: 95 % within 3 sigma."""
    rng = np.random.default_rng(0)
    runs, shift = 1000, 0.3

    def answers(difficulty: np.ndarray, coins: np.ndarray, ability: np.ndarray) -> np.ndarray:
        return coins < 1 / (1 + np.exp(-(ability + difficulty)))

    u = rng.normal(0.5, 1.5, 200_000)
    luck = rng.normal(0, spread, (2, len(u)))
    truth = np.mean(1 / (1 + np.exp(-(shift + luck[0] + u))) - 1 / (1 + np.exp(-(luck[1] + u))))
    inside = 0
    for _ in range(runs):
        u, e = rng.normal(0.5, 1.5, items), rng.normal(0, spread, (2, seeds, 1))
        coins, own = rng.random((seeds, items)), rng.random((seeds, items))
        other = np.where(rng.random((seeds, items)) < 0.7, coins, own)
        found = paired(answers(u, coins, shift + e[0]), answers(u, other, e[1]))
        inside += found.low <= truth <= found.high
    assert inside / runs > 0.95 - 3 * (0.95 * 0.05 / runs) ** 0.5


def test_few_disagreements_leave_an_interval() -> None:
    same = np.ones((1, 50))
    found = paired(same, same)
    assert found.value == 0 and found.low < -0.03 and found.high > 0.03
