"""What Figure 1 says of real training: from records, those of this project and made-up ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from smoothlab import records
from smoothlab.claims import figure_1
from smoothlab.stats import ranks
from smoothlab.stats.intervals import Interval
from tests.claims.holding import claim

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
RECORDS = [RESULTS / "fig1b_micro_sst2.jsonl", RESULTS / "fast_1b_micro_sst2.jsonl"]
RISING = list(np.linspace(1, 3, 20))


def written(path: Path, base: Sequence[float], peft: Sequence[float], floor: float = 1e-9) -> Path:
    """Records of a run whose gradient norm rises; values have intervals of 10 % each way."""
    out = records.Writer(path, "smoothness", {}, {})
    for step, values in enumerate(zip(base, peft, strict=True)):
        for block, value in zip(("base", "peft"), values, strict=True):
            for quantity in ("frobenius", "spectral"):
                out.write({
                    "step": step, "protocol": "estimated", "block": block, "wrt": block, "quantity": quantity,
                    "value": value, "low": 0.9 * value, "high": 1.1 * value, "floor": floor, "flag": None,
                    "grad_norm": 1.0 + step, "dim": 100,
                })  # fmt: skip
    out.end()
    return path


@pytest.mark.parametrize("name", ["l-grows", "lora-smaller"])
def test_verdicts(name: str) -> None:
    entry = claim(figure_1, name)
    assert entry.finding(0, RECORDS).verdict == entry.verdict
    assert entry.finding(0).verdict == "open", "without records nothing is known"


def test_a_run_that_shows_nothing_leaves_growth_open_and_one_that_falls_refutes_it(tmp_path: Path) -> None:
    rng, grows = np.random.default_rng(1), claim(figure_1, "l-grows")
    rising = written(tmp_path / "rising.jsonl", RISING, RISING)
    flat = written(tmp_path / "flat.jsonl", list(rng.uniform(1, 2, 20)), RISING)
    falling = written(tmp_path / "falling.jsonl", RISING[::-1], RISING)
    assert grows.finding(0, [rising]).verdict == "holds"
    assert grows.finding(0, [rising, flat]).verdict == "open"
    assert grows.finding(0, [falling]).verdict == "false as printed"
    assert grows.finding(0, [rising, falling]).verdict == "open"


def test_ratios_that_are_not_apart_leave_it_open(tmp_path: Path) -> None:
    smaller = claim(figure_1, "lora-smaller")
    for factor, verdict in ((2.0, "holds"), (1.05, "open"), (0.5, "false as printed")):
        path = written(tmp_path / f"{factor}.jsonl", [factor * value for value in RISING], RISING)
        assert smaller.finding(0, [path]).verdict == verdict


@pytest.mark.check
def test_the_interval_of_a_rank_correlation_covers_where_neighbors_are_alike() -> None:
    """Two autoregressive series with nothing to do with each other: 95 % of 200 intervals hold 0, within 3 %."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((200, 2, 60))
    series = np.zeros_like(noise)
    for t in range(60):
        series[..., t] = 0.3 * series[..., t - 1] * (t > 0) + noise[..., t]
    found = [ranks.spearman_of_series(x, y) for x, y in series]
    assert sum(one.low <= 0 <= one.high for one in found) >= 184
    assert all(isinstance(one, Interval) and one.low <= one.value <= one.high for one in found)


def test_a_correlation_that_the_step_explains_is_gone_given_the_step() -> None:
    rng, step = np.random.default_rng(2), np.arange(400.0)
    x, y = (step + 60 * rng.standard_normal(400) for _ in range(2))
    assert ranks.spearman_of_series(x, y).low > 0.5
    assert abs(ranks.partial_spearman(x, y, step)) < 0.2
    assert ranks.partial_spearman(x, x + rng.standard_normal(400), step) > 0.9
