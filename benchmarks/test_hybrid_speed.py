"""What a hybrid step costs on `micro`, in first-order steps of its PEFT module, beside the parts it is made of.

`make bench` runs it and writes benchmarks/results/speed_hybrid.jsonl; `python -m benchmarks.test_hybrid_speed
--repetitions 3 --out FILE` is a short look. Everything is a ratio within one run: a repetition times every item once
between two first-order steps, which are torch's own: backward, then SGD. "parts" is what a one-sided step is made of:
one first-order step, one forward pass and two passes over the weights, each timed alone.
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
from torch import Tensor

from benchmarks.test_forward_speed import parts_of
from benchmarks.timing import Ratios, ratio_row, recorded, table, timed
from smoothlab.blocks import Block
from smoothlab.llm.adapters import attach
from smoothlab.llm.evaluate import batch, choice_loss, encode
from smoothlab.llm.models import load_lm
from smoothlab.llm.partition import partition
from smoothlab.llm.tasks import load_choices
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.records import Row
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distributions import Gaussian, Rademacher
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.perturbation import Perturbation
from smoothlab.zeroth.rng import stream_name

MU = 1e-3
PARTS = 1.15
"""Largest ratio of a one-sided hybrid step to the sum of its parts."""
PASSES, IN_PARTS = "two passes over the weights", "one-sided, in its parts"


@dataclass(frozen=True)
class HybridSpeed(Ratios):
    """Cost of hybrid steps.

    Attributes:
        repetitions: interleaved repetitions of every item.
        peft: method of the PEFT module.
        batch: items in the minibatch.
    """

    name: ClassVar[str] = "speed_hybrid"
    repetitions: int = 15
    peft: str = "lora"
    batch: int = 16

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Each item in first-order steps, then the one-sided step in its parts."""
        loaded = load_lm("micro", seed=0)
        splits = load_choices("builtin", None, sizes=(self.batch, 4, 4))
        items = encode(loaded.tokenizer, splits.train, loaded.max_length, splits.kind)
        model = attach(loaded.model, self.peft, seed=0, measured=False)
        blocks, inputs = partition(model), batch(items, range(self.batch), "cpu")
        base, peft = blocks["base"], list(blocks["peft"].params)
        for p in base.params:
            p.requires_grad_(False)

        def loss() -> Tensor:
            return choice_loss(model, inputs)

        first_order, forward = parts_of(peft, loss)
        jobs = {"forward": forward} | _jobs(base, peft, loss)
        for job in (first_order, *jobs.values()):
            job()  # memory is taken, and the checks of a first call are made, before the clock runs
        times: dict[str, list[float]] = {name: [] for name in jobs}
        ratios: dict[str, list[float]] = {name: [] for name in (*jobs, IN_PARTS)}
        steps: list[float] = []
        for _ in range(self.repetitions):
            before = timed(first_order)
            for name, job in jobs.items():
                times[name].append(timed(job))
                after = timed(first_order)
                ratios[name].append(times[name][-1] / statistics.mean((before, after)))
                steps.append(before)
                before = after
            parts = 1 + ratios["forward"][-1] + ratios[PASSES][-1]
            ratios[IN_PARTS].append(ratios["hybrid, one-sided"][-1] / parts)
        more = {"dim_x": base.dim, "dim_y": blocks["peft"].dim, "load": list(os.getloadavg())}
        yield ratio_row("first-order", [1.0], steps, unit="first-order steps", **more)
        for name in jobs:
            yield ratio_row(name, ratios[name], times[name], unit="first-order steps", **more)
        yield ratio_row(IN_PARTS, ratios[IN_PARTS], [], unit="parts", target=PARTS, **more)


def _jobs(base: Block, peft: Sequence[Tensor], loss: Callable[[], Tensor]) -> dict[str, Callable[[], Any]]:
    """Steps of HybridSGD, and what a one-sided one does with the weights."""

    def hybrid(oracle: ZerothOrder | None) -> Callable[[], Any]:
        groups: list[dict[str, Any]] = [{"params": peft}]
        if oracle is not None:
            groups.insert(0, {"params": base.params, "oracle": oracle})
        optimizer = HybridSGD(groups, 1e-9)
        return lambda: optimizer.step(loss)

    perturbation, gradient = Perturbation(base), Directional(Gaussian(), (((0,), 1.0),))

    def passes() -> None:
        with perturbation.along(Gaussian(), (((0,), 1.0),), MU):
            pass
        gradient.add_to(base, 1e-9)

    return {
        PASSES: passes,
        "first-order, HybridSGD": hybrid(None),
        "hybrid, one-sided": hybrid(ZerothOrder(MU, 1)),
        "hybrid, two-sided": hybrid(ZerothOrder(MU, 2)),
        "hybrid, one-sided, z kept": hybrid(ZerothOrder(MU, 1, keep=True)),
        "hybrid, one-sided, Rademacher": hybrid(ZerothOrder(MU, 1, Rademacher())),
    }


def measure(experiment: HybridSpeed, out: Path) -> list[Row]:
    """Run, record, and return the rows."""
    return recorded(experiment, out, stream=stream_name())


show = partial(table, names=("what",), number=".3f", more={"unit": ""})
"""The rows as a table."""


@pytest.mark.slow
def test_a_one_sided_step_costs_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(__file__).with_name("results") / "speed_hybrid.jsonl"
    rows = measure(HybridSpeed(), out)
    with capsys.disabled():
        print("\n" + show(rows))
    values = {row["what"]: row["value"] for row in rows}
    assert values[IN_PARTS] <= PARTS


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=HybridSpeed.repetitions)
    parser.add_argument("--peft", default=HybridSpeed.peft)
    parser.add_argument("--batch", type=int, default=HybridSpeed.batch)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_hybrid.jsonl"))
    args = parser.parse_args()
    print(show(measure(HybridSpeed(args.repetitions, args.peft, args.batch), args.out)))


if __name__ == "__main__":
    main()
