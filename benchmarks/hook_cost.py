"""What SmoothnessHook adds to first-order training of LoRA: `python -m benchmarks.hook_cost --model FOLDER`.

Measures the LoRA block to 20 % every 50th step. CPU time on one thread of single steps, before and after each point,
and of the points; 50 of the steps with a point are then compared with 50 without. The first point checks the gradient
and the padding more closely than later ones do, and is given apart.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from benchmarks.point import language_model
from benchmarks.timing import Ratios, cpu_seconds, ratio_row
from smoothlab.hessian.hook import SmoothnessHook
from smoothlab.records import Row, environment, load, run

EVERY = 50
TARGET = 1.3


@dataclass(frozen=True)
class HookCost(Ratios):
    """CPU time of 50 training steps with a point of the hook, relative to 50 without.

    Attributes:
        folder: a causal language model's.
        batch: items of a minibatch.
        points: measuring points.
        precision: relative half-width of the Frobenius norm's interval.
    """

    name: ClassVar[str] = "hook_cost"
    folder: Path
    batch: int
    points: int
    precision: float

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """The ratio at the first point and at later ones."""
        model, loss, blocks = language_model(self.folder, self.batch, None)
        base, peft = blocks
        for p in base.params:  # first-order LoRA trains nothing else
            p.requires_grad_(False)
        optimizer = torch.optim.SGD(peft.params, lr=1e-2)

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        step()  # memory is taken before the clock runs
        hook = SmoothnessHook(model, [peft], at=range(self.points), precision=self.precision)
        steps, points = [], []
        for i in range(self.points):
            steps += [cpu_seconds(step), cpu_seconds(step)]
            points.append(cpu_seconds(lambda i=i: hook(i, loss)))  # type: ignore[misc]
        steps += [cpu_seconds(step), cpu_seconds(step)]
        ratios = [1 + point / (EVERY * statistics.median(steps)) for point in points]
        yield ratio_row("first point", ratios[:1], points[:1], unit="50 steps", target=TARGET)
        if ratios[1:]:
            yield ratio_row("later points", ratios[1:], points[1:], unit="50 steps", target=TARGET)
        yield {"what": "step", "unit": "seconds", "value": statistics.median(steps), "raw": steps}
        for row in hook.rows:
            yield {"what": "estimate", **row}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder with a causal language model")
    parser.add_argument("--batch", type=int, default=4, help="items of a minibatch, up to 8")
    parser.add_argument("--points", type=int, default=2)
    parser.add_argument("--precision", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hook_cost.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = environment(device="cpu", dtype="float32", threads=1, batch=args.batch)
    run(HookCost(args.model, args.batch, args.points, args.precision), args.out, environment=settings, overwrite=True)
    for row in load(args.out).to_dict("records"):
        if row["what"] != "estimate":
            print(f"{row['what']:12s} {row['value']:.3g} {row['unit']}")


if __name__ == "__main__":
    main()
