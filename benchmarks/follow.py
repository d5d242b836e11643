"""Rates that follow the curvature (`finetune --follow K`) against constant ones, on `micro` with the built-in task.

Plain SGD on LoRA alone (fo-peft) and beside zeroth-order steps of the base model (hybrid), from the same weights and on
the same minibatches: constant rates on a grid, and followed rates that begin below the grid's best. A run is judged by
the mean loss of the first twelve minibatches after its steps. What following costs in gradients stands beside it.

    python -m benchmarks.follow             # continues benchmarks/results/follow.jsonl, setting by setting
    python -m benchmarks.follow --table     # prints the comparison of what is there
"""

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from smoothlab import record_files, records
from smoothlab.divergence import Diverged
from smoothlab.experiments.advise.trying import BACKWARD, forwards_of_step
from smoothlab.experiments.finetune.config import Method
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.following import followed
from smoothlab.experiments.settings import SettingsExperiment
from smoothlab.stats import samples

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "follow.jsonl"
GRIDS: dict[Method, dict[str, tuple[float, ...]]] = {
    "fo-peft": {"peft": (0.125, 0.25, 0.5, 1.0, 2.0)},
    "hybrid": {"base": (3e-4, 1e-3), "peft": (0.25, 0.5, 1.0)},
}
"""Constant rates by block."""
START_RATES = {"base": 1e-4, "peft": 0.1}
"""Rates at which followed runs begin."""
JUDGED, LOST = 12, 4.0
"""Minibatches that a run is judged by; times the loss at the start at which it ends as diverged."""


@dataclass(frozen=True)
class FollowBenchmark(SettingsExperiment):
    """Followed rates against constant ones.

    Attributes:
        seeds: seeds of modules, minibatches and directions.
        steps: steps of a run.
        every: steps between two settings of followed rates.
        batch: items in a minibatch.
    """

    name: ClassVar[str] = "follow"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 100
    every: tuple[int, ...] = (25, 50)
    batch: int = 8

    def points(self) -> list[Row]:
        """Methods seed by seed."""
        points = []
        for seed, method, part in itertools.product(self.seeds, GRIDS, ("followed", "constant")):
            points.append({"setting": f"{part}/{method}/{seed}", "method": method, "seed": seed})
        return points

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """Rows of the followed runs and of the constant ones."""
        for point in points:
            runs = Runs(self, point["method"], point["seed"])
            rows = [runs.constant()]
            if point["setting"].startswith("followed"):
                rows = [runs.followed(every) for every in self.every]
            for row in itertools.chain(*rows):
                yield {**point, **row}


class Runs:
    """Runs of one method and seed, all from the same weights."""

    def __init__(self, experiment: FollowBenchmark, method: Method, seed: int) -> None:
        self.steps, self.seed, self.grid = experiment.steps, seed, GRIDS[method]
        run = Finetune(method=method, peft="lora", optimizer="sgd", batch=experiment.batch, seed=seed, dev=1, test=1)
        self.trainer = run.setup().trainer()
        self.start = self.loss()

    def constant(self) -> Iterator[Row]:
        """A row for each combination of the grid's rates."""
        for values in itertools.product(*self.grid.values()):
            rates = dict(zip(self.grid, values, strict=True))
            with self.trainer.on_trial(rates):
                yield {"part": "constant", **_named(rates), **self.run()}

    def followed(self, every: int) -> Iterator[Row]:
        """Rows of the rates, and of the run."""
        gradients = 0.0
        with self.trainer.on_trial(START_RATES):
            chosen: list[Row] = []
            row = self.run(every, chosen)
            for rate in chosen:
                gradients += rate["gradients"]
                yield {"part": "rate", "every": every, **rate}
            forwards = gradients * (1 + BACKWARD)
            steps = self.steps * forwards_of_step(self.trainer.optimizer)
            yield {"part": "followed", "every": every, **row, "gradients": gradients, "cost": forwards / steps}

    def run(self, every: int = 0, chosen: list[Row] | None = None) -> Row:
        """The steps of a run at the trainer's rates; with `every` these follow curvature, as rows in `chosen` say."""
        end, number = math.inf, 0
        limits: dict[str, list[float]] = {}
        try:
            for number in range(1, self.steps + 1):
                if chosen is not None and (number - 1) % every == 0:
                    for row in followed(self.trainer, self.seed, every, limits):
                        chosen.append({"step": number - 1, **row})
                if not self.trainer.update() <= LOST * self.start:
                    break
            else:
                end = self.loss()
        except Diverged:
            pass
        if not math.isfinite(end):
            end = math.inf
        return {"loss_before": self.start, "loss_after": end, "steps": number}

    def loss(self) -> float:
        """Mean loss of the first minibatches."""
        with torch.no_grad():
            return sum(float(self.trainer.minibatch_loss(number)()) for number in range(JUDGED)) / JUDGED


def _named(rates: Mapping[str, float]) -> Row:
    options = {"base": "eta_x", "peft": "eta_y"}
    return {options[name]: value for name, value in rates.items()}


def table(rows: Sequence[Row]) -> str:
    """Markdown: for each method the constant rates of least mean loss, and followed rates beside them."""
    lines = ["| method | rates | loss, by seed | less than the best constant (95 %) | cost of following |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for method in dict.fromkeys(row["method"] for row in rows):
        losses: dict[str, dict[int, float]] = {}
        costs: dict[str, list[float]] = {}
        for row in rows:
            if row["method"] != method or row["part"] not in ("constant", "followed"):
                continue
            name = f"followed every {row.get('every')}"
            if row["part"] == "constant":
                name = ", ".join(f"{option} {row[option]:g}" for option in ("eta_x", "eta_y") if option in row)
            loss = row["loss_after"]
            losses.setdefault(name, {})[row["seed"]] = math.inf if loss is None else loss
            costs.setdefault(name, []).append(row.get("cost") or 0.0)
        constant = {name: values for name, values in losses.items() if not name.startswith("followed")}
        best = min(constant, key=lambda name: sum(constant[name].values()) / len(constant[name]))
        for name, values in losses.items():
            if name != best and name in constant:
                continue
            cells = [method, name, ", ".join(f"{loss:.3f}" for loss in values.values())]
            gains = [losses[best][seed] - loss for seed, loss in values.items()]
            cost = sum(costs[name]) / len(costs[name])
            cells += [_as_text(gains) if name != best else "", f"{cost:.2f} of the steps'"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _as_text(gains: Sequence[float]) -> str:
    if len(gains) < 2 or not all(map(math.isfinite, gains)):
        return ", ".join(f"{gain:+.3f}" for gain in gains)
    value, low, high = samples.mean(gains)
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    if "--table" in sys.argv:
        print(table([row for row in record_files.read(RESULTS).rows if row is not None]))
    else:
        torch.set_num_threads(1)
        records.run(FollowBenchmark(), RESULTS, environment=records.environment(device="cpu", threads=1))
