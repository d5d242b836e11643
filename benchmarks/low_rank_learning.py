"""Do low-rank directions learn as well as Gaussian ones at equal forward passes? Zeroth-order steps on two models.

For each distribution (low rank inside the forward pass), learning rate and seed (of minibatches, their order and
directions): the mean loss of twelve training minibatches before and after the steps. Steps of all are two-sided with
one direction, so that equal steps are equal forward passes. On `micro` rates are of a grid; with `--advised`, and on a
folder's model, each distribution has the rate that `smoothlab advise --by predict` gives it. The table has each
distribution at its best rate, and its difference to Gaussian directions, paired by seed.

    python -m benchmarks.low_rank_learning           # continues benchmarks/results/low_rank_learning.jsonl
    python -m benchmarks.low_rank_learning --advised # ..._advised.jsonl: ten minutes
    python -m benchmarks.low_rank_learning --model out/smollm2 --data-dir DIR   # ..._smollm2.jsonl: an hour
    python -m benchmarks.low_rank_learning --table [--model out/smollm2]        # prints the table of what is there
"""

import argparse
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch

from smoothlab import records
from smoothlab.divergence import Diverged
from smoothlab.experiments.advise.advice import advise
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.settings import SettingsExperiment
from smoothlab.stats import samples
from smoothlab.trainer import Trainer

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
PERTURB = {"gaussian": "weights", "lowrank(1)": "forward", "lowrank(4)": "forward"}
"""Distributions, and how the loss is evaluated along each."""
JUDGED = 12
"""Minibatches whose mean loss a run is judged by."""


@dataclass(frozen=True)
class LowRankLearning(SettingsExperiment):
    """Losses after zeroth-order steps along directions of several distributions.

    Attributes:
        seeds: seeds of minibatches and directions.
        rates: learning rates; 0 stands for the one that is advised for each distribution.
        steps: steps of a run.
        model: name or folder of the model.
        data: its task.
        data_dir: folder with the task's files; "" for the built-in one.
        batch: items in a minibatch.
    """

    name: ClassVar[str] = "low_rank_learning"
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4)
    steps: int = 200
    model: str = "micro"
    data: str = "builtin"
    data_dir: str = ""
    batch: int = 16

    def points(self) -> list[Row]:
        """Rate by rate, and seed by seed, so that a part of the runs compares all distributions."""
        points: list[Row] = []
        for rate in self.rates:
            for seed in self.seeds:
                for name in PERTURB:
                    setting = f"{name}/{f'{rate:g}' if rate else 'advised'}/{seed}"
                    points.append({"setting": setting, "distribution": name, "rate": rate, "seed": seed})
        return points

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """One row a run; a diverged one has no loss after."""
        for point in points:
            rate = point["rate"] or self._advised(point["distribution"])
            trainer = self._trainer(point["distribution"], point["seed"], rate)
            before, after = loss_of(trainer), math.inf
            try:
                for _ in range(self.steps):
                    trainer.update()
                after = loss_of(trainer)
            except Diverged:
                pass
            yield {**point, "rate": rate, "steps": self.steps, "loss_before": before, "loss_after": after}

    @functools.cache  # noqa: B019  # one object a process
    def _advised(self, distribution: str) -> float:
        """The rate advised for a distribution, to two digits; predicted, so that no clock has a say in it."""
        advice = advise(self._trainer(distribution, 0, 1e-4), by="predict", budget=1e6)
        return float(f"{advice['eta_x'].value:.1e}")

    def _trainer(self, distribution: str, seed: int, rate: float) -> Trainer:
        run = Finetune(
            method="zo", distribution=distribution, perturb=PERTURB[distribution],  # type: ignore[arg-type]
            eta_x=rate, seed=seed, model=self.model, data=self.data, batch=self.batch,
            data_dir=Path(self.data_dir) if self.data_dir else None, dev=1, test=1,
        )  # fmt: skip
        return run.setup().trainer()


def loss_of(trainer: Trainer) -> float:
    """Mean loss of the first minibatches."""
    with torch.no_grad():
        return sum(float(trainer.minibatch_loss(number)()) for number in range(JUDGED)) / JUDGED


def table(path: Path) -> str:
    """Markdown: each distribution at its best rate, and its paired difference to Gaussian directions."""
    lines = [
        "| directions | best rate | change of the loss | less that of Gaussian ones |",
        "| --- | --- | --- | --- |",
    ]
    rows = records.load(path)
    rows["change"] = rows["loss_after"].fillna(math.inf) - rows["loss_before"]
    best: dict[str, pd.Series] = {}
    for name in PERTURB:
        of_distribution = rows[rows["distribution"] == name]
        rate = of_distribution.groupby("rate")["change"].mean().idxmin()
        best[name] = of_distribution[of_distribution["rate"] == rate].set_index("seed")["change"]
        # a record that is not finished pairs the seeds that both have
        cells = [_as_text(best[name]), _as_text((best[name] - best["gaussian"]).dropna())]
        lines.append(f"| {name} | {rate:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _as_text(values: pd.Series) -> str:
    value, low, high = samples.mean(values.to_numpy())
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", help="micro, or a folder with a causal language model")
    parser.add_argument("--data-dir", default="", help="folder with sst2/, which a folder's model is trained on")
    parser.add_argument("--advised", action="store_true", help="rates that are advised, on micro too")
    parser.add_argument("--table", action="store_true", help="print what is measured, and measure nothing")
    args = parser.parse_args()
    experiment, name = LowRankLearning(), "low_rank_learning.jsonl"
    if args.advised:
        experiment, name = LowRankLearning(rates=(0.0,)), "low_rank_learning_advised.jsonl"
    if args.model != "micro":
        experiment = LowRankLearning(
            rates=(0.0,), steps=100, model=args.model, data="sst2", data_dir=args.data_dir, batch=8
        )  # fmt: skip
        name = f"low_rank_learning_{Path(args.model).name}.jsonl"
    if args.table:
        print(table(RESULTS / name))
        return
    torch.set_num_threads(1)
    records.run(experiment, RESULTS / name, environment=records.environment(device="cpu", threads=1))


if __name__ == "__main__":
    main()
