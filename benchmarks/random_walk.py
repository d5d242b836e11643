"""Zeroth-order limits of runs of 20, 60 and 240 steps beside those of the random walk, uncorrected.

The small GELU networks of benchmarks/advice.py, of other seeds than those on which advice is judged there. The
geometric mean of true over predicted limits is `PULLED_BACK` of smoothlab/experiments/advise/predicting.py.

    python -m benchmarks.random_walk     # continues benchmarks/results/random_walk.jsonl
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from benchmarks.advice import AdviceBenchmark, Case, Work
from smoothlab import records
from smoothlab.blocks import differentiable
from smoothlab.experiments.advise import random_walk
from smoothlab.experiments.settings import SettingsExperiment
from smoothlab.zeroth.moments import outer_moment

Row = dict[str, Any]
CASES = [(method, seed, steps) for steps in (20, 60, 240) for seed in (3, 4, 5, 6) for method in ("zo", "zo-q4")]
"""Method, seed and steps of a run."""
PAIRS = [(minibatch, direction) for minibatch in range(4) for direction in range(2)]


@dataclass(frozen=True)
class RandomWalk(SettingsExperiment):
    """True limits over the random walk's.

    Attributes:
        batch: items in a minibatch.
    """

    name: ClassVar[str] = "random_walk"
    batch: int = 64

    def points(self) -> list[Row]:
        """One a network, q and length of runs."""
        return [{"setting": f"{method}-{seed} {steps}", "case": (method, seed, steps)} for method, seed, steps in CASES]

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """The edge of runs, and the walk's limit with its standard error on the log scale."""
        for point in points:
            method, seed, steps = point["case"]
            case = Case(Work(method, seed), AdviceBenchmark("network", self.batch, steps=steps), [])
            block, oracle = case.trainer.blocks["base"], case.trainer.optimizer.param_groups[0]["oracle"]
            isotropic = outer_moment(oracle, block.dim, block.shapes).isotropic
            with differentiable([block]):
                curve = random_walk.displacements(case.trainer, block, oracle.distribution, PAIRS)
            limit = random_walk.walk_limit(curve, isotropic, steps)
            edge = returned(case.sweep("sweep", limit, 0))
            yield {
                "setting": point["setting"], "steps": steps, "measured": edge, "reference": limit,
                "ratio": edge / limit, "error": random_walk.sampling_error(curve, isotropic, steps),
            }  # fmt: skip


def returned(rows: Iterator[Row]) -> Any:
    """The value that a generator returns after its rows."""
    while True:
        try:
            next(rows)
        except StopIteration as end:
            return end.value


def main() -> None:
    """Continue the benchmark in one thread, and print the ratios' geometric mean and spread."""
    torch.set_num_threads(1)
    out = Path(__file__).parent / "results" / "random_walk.jsonl"
    records.run(RandomWalk(), out, environment=records.environment(device="cpu", threads=1))
    logs = np.log([row["ratio"] for row in records.load(out).to_dict("records")])
    print(f"true over predicted: {np.exp(logs.mean()):.2f}, {np.exp(logs.min()):.2f} to {np.exp(logs.max()):.2f}")


if __name__ == "__main__":
    main()
