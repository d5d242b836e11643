"""Variants of zeroth-order steps at equal forward passes: `python -m benchmarks.variants --data-dir DIR [--table]`.

`micro` on SST-2, the base model by zeroth-order steps. Each arm is a variant (`smoothlab.zeroth.variants`) with its
directions; plain arms stand beside those whose directions are other ones. An arm takes as many steps as `FORWARDS`
evaluations of a minibatch's loss pay for, at three rates a factor 3 apart, for each of three seeds, which fix
minibatches, items and directions alike in all arms. Every run is one of `smoothlab finetune`, recorded as NAME.jsonl;
finished ones are not run again. `--table` prints the loss on the dev items after the last forward pass, at the rate
with the lowest, and the test accuracy of the weights that are best on dev, both less those of the plain arm.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smoothlab import record_files, records
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.stats.intervals import Interval
from smoothlab.stats.samples import mean, paired

Row = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "variants"
FORWARDS = 240
SEEDS = (0, 1, 2)
BASE = Finetune(
    data="sst2", method="zo", train=1000, dev=250, test=872, batch=16, parts=1, patience=0, distribution="rademacher"
)
SLOPE = 4.0
"""Root mean square slope of a plain step at the start (12 steps, seed 0): rates of normalized steps are times that."""


@dataclass(frozen=True)
class Arm:
    """A kind of step.

    Attributes:
        run: as `finetune` takes it.
        rates: of the base model, a factor 3 apart.
        beside: the plain arm that it is compared with.
    """

    run: Finetune
    rates: tuple[float, ...]
    beside: str


def thrice(middle: float) -> tuple[float, ...]:
    """Three rates, a factor 3 apart, to two digits."""
    return tuple(float(f"{middle * factor:.1e}") for factor in (1 / 3, 1, 3))


FOUR = replace(BASE, q=4, sides=1)
LOW = replace(BASE, distribution="lowrank(2)")
ARMS: dict[str, Arm] = {
    "plain": Arm(BASE, thrice(3e-4), "plain"),
    "momentum": Arm(replace(BASE, variant="momentum(0.9)"), thrice(3e-4), "plain"),
    "adaptive": Arm(replace(BASE, variant="adaptive(0.99)"), thrice(3e-4 * SLOPE), "plain"),
    "plain4": Arm(FOUR, thrice(4 * 3e-4), "plain"),  # an average of four has a quarter of the noise
    "spread": Arm(replace(FOUR, variant="spread"), thrice(4 * 3e-4 * SLOPE), "plain"),
    "lowrank": Arm(LOW, thrice(3e-4), "plain"),
    "subspace": Arm(replace(LOW, variant="subspace(50)"), thrice(3e-4), "plain"),
}
"""Arms; `plain4` and `lowrank` have the directions of `spread` and `subspace`, and no variant."""


def experiment(name: str, seed: int, data_dir: Path) -> Finetune:
    """The run of an arm with a seed: three rates, as many steps as the forward passes pay for."""
    arm = ARMS[name]
    steps = FORWARDS // arm.run.evaluations
    tried = ",".join(f"{rate:g}" for rate in arm.rates)
    return replace(
        arm.run, data_dir=data_dir, seed=seed, steps=steps, eval_every=-(-steps // 3), search=(f"eta_x={tried}",)
    )


def make(names: Sequence[str], seeds: Sequence[int], data_dir: Path, folder: Path) -> None:
    """Make the runs that are missing, all arms of one seed before the next."""
    for seed in seeds:
        for name in names:
            try:
                records.run(
                    experiment(name, seed, data_dir), folder / f"{name}-{seed}.jsonl",
                    environment=records.environment(device="cpu", dtype="float32", threads=1),
                )  # fmt: skip
            except BadInput as error:  # a rate at which one arm diverges; the others go on
                print(f"{name}-{seed}: {error}", flush=True)


def rows_of(name: str, seed: int, folder: Path) -> list[Row] | None:
    """Rows of a finished run; None without one."""
    path = folder / f"{name}-{seed}.jsonl"
    if not path.exists() or not (contents := record_files.read(path)).finished:
        return None
    return contents.rows


def last_loss(rows: Sequence[Row]) -> tuple[float, float]:
    """Loss on dev after the last step, at the rate where it is lowest, and that rate."""
    last: dict[int, Row] = {}
    for row in rows:
        if row["part"] == "dev":
            last[row["trial"]] = row
    best = min(last.values(), key=lambda row: row["dev_loss"])
    return best["dev_loss"], best["eta_x"]


def answers(rows: Sequence[Row]) -> list[int]:
    """Right and wrong answers on test."""
    return [int(answer) for answer in rows[-1]["right"]]


def table(folder: Path) -> Iterator[str]:
    """Rows of Markdown; differences are over the seeds that both arms have, with 95 % intervals."""
    yield "| arm | seeds | rates chosen | dev loss at 0 | after the last | less plain's | test accuracy | less plain's |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, arm in ARMS.items():
        pairs = []
        for seed in SEEDS:
            both = rows_of(name, seed, folder), rows_of(arm.beside, seed, folder)
            if both[0] is not None and both[1] is not None:
                pairs.append((both[0], both[1]))
        if not pairs:
            continue
        own, plain = zip(*pairs, strict=True)
        losses, beside = [last_loss(rows) for rows in own], [last_loss(rows)[0] for rows in plain]
        starts = [rows[0]["dev_loss"] for rows in own]
        right, other = [answers(rows) for rows in own], [answers(rows) for rows in plain]
        cells = [name, str(len(pairs)), ", ".join(f"{rate:g}" for _, rate in losses), f"{mean_of(starts):.4f}",
                 f"{mean_of([loss for loss, _ in losses]):.4f}"]  # fmt: skip
        if name == arm.beside or len(pairs) < 2:
            cells += ["", f"{100 * mean_of([mean_of(row) for row in right]):.1f} %", ""]
        else:
            apart = mean([loss - other_loss for (loss, _), other_loss in zip(losses, beside, strict=True)])
            cells += [written(apart, 1, 4), f"{100 * mean_of([mean_of(row) for row in right]):.1f} %",
                      written(paired(right, other), 100, 1)]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def mean_of(values: Sequence[float]) -> float:
    """Mean of one number or more."""
    return sum(values) / len(values)


def written(interval: Interval, factor: float, digits: int) -> str:
    """A difference with its interval, times a factor."""
    value, low, high = (factor * number for number in interval)
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with sst2/")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--table", action="store_true", help="print what is measured, and measure nothing")
    args = parser.parse_args()
    if args.table:
        print("\n".join(table(args.out)))
        return
    if args.data_dir is None:
        parser.error("--data-dir is needed, the folder with sst2/")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    make(args.arms, args.seeds, args.data_dir, args.out)


if __name__ == "__main__":
    main()
