"""Do low-rank directions learn as well as Gaussian ones at equal forward passes? Zeroth-order steps on `micro`.

For each distribution (low rank inside the forward pass), learning rate and seed (of minibatches, their order and
directions): the mean loss of twelve training minibatches before and after the steps. Steps of all are two-sided with
one direction, so that equal steps are equal forward passes. The table has each distribution at its best rate, and its
difference to Gaussian directions, paired by seed.

    python -m benchmarks.low_rank_learning           # continues benchmarks/results/low_rank_learning.jsonl
    python -m benchmarks.low_rank_learning --table   # prints the table of what is there
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from smoothlab import records
from smoothlab.divergence import Diverged
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.settings import SettingsExperiment
from smoothlab.stats import samples
from smoothlab.trainer import Trainer

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "low_rank_learning.jsonl"
PERTURB = {"gaussian": "weights", "lowrank(1)": "forward", "lowrank(4)": "forward"}
"""Distributions, and how the loss is evaluated along each."""
JUDGED = 12
"""Minibatches whose mean loss a run is judged by."""


@dataclass(frozen=True)
class LowRankLearning(SettingsExperiment):
    """Losses after zeroth-order steps along directions of several distributions.

    Attributes:
        seeds: seeds of minibatches and directions.
        rates: learning rates.
        steps: steps of a run.
    """

    name: ClassVar[str] = "low_rank_learning"
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4)
    steps: int = 200

    def points(self) -> list[Row]:
        """Rate by rate, and seed by seed, so that a part of the runs compares all distributions."""
        points = []
        for rate in self.rates:
            for seed in self.seeds:
                for name in PERTURB:
                    setting = f"{name}/{rate:g}/{seed}"
                    points.append({"setting": setting, "distribution": name, "rate": rate, "seed": seed})
        return points

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """One row a run; a diverged one has no loss after."""
        for point in points:
            run = Finetune(
                method="zo", distribution=point["distribution"], perturb=PERTURB[point["distribution"]],  # type: ignore[arg-type]
                eta_x=point["rate"], seed=point["seed"], dev=1, test=1,
            )  # fmt: skip
            trainer = run.setup().trainer()
            before, after = loss_of(trainer), math.inf
            try:
                for _ in range(self.steps):
                    trainer.update()
                after = loss_of(trainer)
            except Diverged:
                pass
            yield {**point, "steps": self.steps, "loss_before": before, "loss_after": after}


def loss_of(trainer: Trainer) -> float:
    """Mean loss of the first minibatches."""
    with torch.no_grad():
        return sum(float(trainer.minibatch_loss(number)()) for number in range(JUDGED)) / JUDGED


def table(path: Path = RESULTS) -> str:
    """Markdown: each distribution at its best rate, and its paired difference to Gaussian directions."""
    lines = [
        "| directions | best rate | change of the loss | less that of Gaussian ones |",
        "| --- | --- | --- | --- |",
    ]
    rows = records.load(path)
    rows["change"] = rows["loss_after"].fillna(math.inf) - rows["loss_before"]
    best: dict[str, np.ndarray] = {}
    for name in PERTURB:
        own = rows[rows["distribution"] == name]
        rate = own.groupby("rate")["change"].mean().idxmin()
        best[name] = own[own["rate"] == rate].sort_values("seed")["change"].to_numpy()
        cells = [_shown(best[name]), _shown(best[name] - best["gaussian"])]
        lines.append(f"| {name} | {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(values: np.ndarray) -> str:
    value, low, high = samples.mean(values)
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    if "--table" in sys.argv:
        print(table())
    else:
        torch.set_num_threads(1)
        records.run(LowRankLearning(), RESULTS, environment=records.environment(device="cpu", threads=1))
