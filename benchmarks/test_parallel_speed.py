"""What a zeroth-order step of q directions costs where its 2q evaluations share forward passes.

`python -m benchmarks.test_parallel_speed --models micro opt-125m --out FILE` takes micro and random models of the
shapes of `benchmarks.test_forward_speed`. A ratio is a step with k evaluations a pass over the same step with one
evaluation after the other, timed beside it in the same repetition, by the CPU time of the process. The minibatch is
random rows of 32 tokens; the loss is that of `smoothlab finetune`.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from benchmarks.test_forward_speed import LENGTH, MU, SHAPES, made
from benchmarks.timing import Ratios, cpu_seconds, ratio_row, recorded, table
from smoothlab.llm.encoding import Encoded
from smoothlab.llm.evaluate import batch, choice_loss, repeated_choice_loss
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.records import Row
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.rng import stream_name


class ChoiceLoss:
    """The loss of `smoothlab finetune` on random rows."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        ids = torch.randint(5, 4000, (rows, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
        labels = tuple(i % 2 for i in range(rows))
        items = Encoded(tuple(map(tuple, ids)), (((10,), (11,)),) * rows, labels, "verbalizer", 1)
        self._model, self._minibatch = model, batch(items, range(rows), "cpu")

    def __call__(self) -> Tensor:
        """The mean loss."""
        return choice_loss(self._model, self._minibatch)

    def repeated(self, count: int) -> Tensor:
        """The losses [count] of repetitions."""
        return repeated_choice_loss(self._model, self._minibatch, count)


@dataclass(frozen=True)
class ParallelSpeed(Ratios):
    """Cost of steps with several evaluations a forward pass.

    Attributes:
        models: micro, or names of SHAPES.
        batches: rows of the minibatches.
        q: directions of a step, which has 2q evaluations.
        parallel: evaluations a pass.
        repetitions: interleaved repetitions of every step.
    """

    name: ClassVar[str] = "speed_parallel"
    models: tuple[str, ...] = ("micro",)
    batches: tuple[int, ...] = (1, 4, 16)
    q: int = 4
    parallel: tuple[int, ...] = (2, 8)
    repetitions: int = 9

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Each step on each minibatch of each model."""
        for name in self.models:
            model = made(name)
            for rows in self.batches:
                yield from self._rows_of(name, model, rows)

    def _rows_of(self, name: str, model: nn.Module, rows: int) -> Iterator[Row]:
        """One minibatch of one model."""
        base, loss = partition(model)["base"], ChoiceLoss(model, rows)

        def step(parallel: int) -> Callable[[], Any]:
            oracle = ZerothOrder(MU, 2, LowRank(1), self.q, perturb="forward", parallel=parallel)
            optimizer = HybridSGD([{"params": base.params, "oracle": oracle}], 1e-9)
            optimizer.step(loss)  # memory is taken, and the checks of a first call are made, before the clock runs
            return lambda: optimizer.step(loss)

        single, several = step(1), {k: step(k) for k in self.parallel}
        ratios: dict[int, list[float]] = {k: [] for k in several}
        times: dict[int, list[float]] = {k: [] for k in several}
        for _ in range(self.repetitions):
            before = cpu_seconds(single)
            for k, job in several.items():
                seconds = cpu_seconds(job)
                after = cpu_seconds(single)
                ratios[k].append(seconds / statistics.mean((before, after)))
                times[k].append(seconds)
                before = after
        more = {"model": name, "dim_x": base.dim, "batch": rows, "load": list(os.getloadavg())}
        for k in several:
            what = f"two-sided zeroth-order, q = {self.q}, {k} evaluations a pass, {rows} x {LENGTH} tokens"
            yield ratio_row(what, ratios[k], times[k], **(more | {"unit": "steps with one evaluation a pass"}))


def measure(experiment: ParallelSpeed, out: Path) -> list[Row]:
    """Run, record, and return the rows."""
    return recorded(experiment, out, stream=stream_name())


show = partial(table, names=("model", "what"), number=".3f", more={"unit": ""})
"""The rows as a table."""


@pytest.mark.slow
def test_evaluations_of_a_small_minibatch_share_a_pass_at_a_gain(tmp_path: Path) -> None:
    rows = measure(ParallelSpeed(batches=(1,)), tmp_path / "speed.jsonl")
    assert max(row["value"] for row in rows) < 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=("micro", *SHAPES), default=ParallelSpeed.models)
    parser.add_argument("--batches", nargs="+", type=int, default=ParallelSpeed.batches)
    parser.add_argument("--repetitions", type=int, default=ParallelSpeed.repetitions)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_parallel.jsonl"))
    args = parser.parse_args()
    experiment = ParallelSpeed(tuple(args.models), tuple(args.batches), repetitions=args.repetitions)
    print(show(measure(experiment, args.out)))


if __name__ == "__main__":
    main()
