"""Variants of zeroth-order steps at equal forward passes: `python -m benchmarks.variants --data-dir DIR [--table]`.

`micro`, which has read novels and reviews, learns WikiText's language (part text), or SST-2 (part sst2), and the real
model of `benchmarks.real_model` learns SST-2 (part smollm2): the base model by zeroth-order steps. Each arm is a
variant (`smoothlab.zeroth.variants`) with its directions; plain arms stand beside those whose directions are other
ones. An arm takes as many steps as `FORWARDS` evaluations of a minibatch's loss pay for, at three rates a factor 3
apart, for each of three seeds, which fix minibatches, items and directions alike in all arms. The real model has the
two variants that are best on text, and tries rates with the first seed alone; the others take the rate whose loss on
dev was lowest. Every run is one of `smoothlab finetune`, recorded as PART-ARM-SEED.jsonl; finished ones are not run
again. `--table` prints the loss on the dev items after the last forward pass, at the rate with the lowest, and the test
loss (accuracy on sst2) of the weights that are best on dev, both less those of the arm's plain one.
"""

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smoothlab import record_files, records
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.stats.intervals import Interval
from smoothlab.stats.samples import mean, paired

Row = dict[str, Any]
RESULTS = Path(__file__).with_name("results") / "variants"
FORWARDS = {"text": 360, "sst2": 360, "smollm2": 80}
"""Evaluations of a minibatch's loss in a run."""
SEEDS = (0, 1, 2)
TEXT = Path("out/variants/wikitext.jsonl")
"""Paragraphs of WikiText-2, made from text/wikitext2_valid.txt.gz of --data-dir."""
LONG = 400
"""Characters that a line of WikiText has to be a paragraph, and no heading."""
_ZEROTH = Finetune(method="zo", train=1000, parts=1, patience=0, distribution="rademacher")
PARTS: dict[str, Finetune] = {
    "text": replace(_ZEROTH, data=str(TEXT), max_length=96, batch=4, dev=64, test=64),
    "sst2": replace(_ZEROTH, data="sst2", batch=16, dev=250, test=872),
    "smollm2": replace(_ZEROTH, model="out/smollm2", data="sst2", batch=8, dev=64, test=200),
}
"""What is learned."""
SLOPES = {"text": 3.2, "sst2": 4.0, "smollm2": 20.0}
"""Root mean square slopes of plain steps at the start (12 steps, seed 0): rates of normalized steps are times that.

The real model's is the norm of its gradient, which is 29 at the start, 16 after 25 steps and 15 after 50 (hybrid).
"""


@dataclass(frozen=True)
class Arm:
    """A kind of step.

    Attributes:
        options: of `finetune`.
        factor: its rates over those of a plain step along one direction.
        normalized: whether the update does not scale with the loss.
        beside: the arm that it is compared with.
    """

    options: Row
    factor: float = 1.0
    normalized: bool = False
    beside: str = "plain"


FOUR = {"q": 4, "sides": 1}
LOW = {"distribution": "lowrank(2)"}
ARMS: dict[str, Arm] = {
    "plain": Arm({}),
    "momentum": Arm({"variant": "momentum(0.9)"}),
    "adaptive": Arm({"variant": "adaptive(0.99)"}, normalized=True),
    "plain4": Arm(FOUR, factor=4.0),  # an average of four has a quarter of the noise
    "spread": Arm(FOUR | {"variant": "spread"}, factor=4.0, normalized=True, beside="plain4"),
    "lowrank": Arm(LOW),
    "subspace": Arm(LOW | {"variant": "subspace(50)"}, beside="lowrank"),
    "lowrank4": Arm(FOUR | LOW, factor=4.0),
    "muon": Arm(FOUR | LOW | {"variant": "muon"}, factor=133.0, beside="lowrank4"),  # 0.04, a length of its own
}
"""Arms; `plain4`, `lowrank` and `lowrank4` have the directions of `spread`, `subspace` and `muon`, and no variant."""
MIDDLE = {"text": 3e-4, "sst2": 3e-4, "smollm2": 6e-5}
"""Rate of plain steps in the middle.

On text the one that lowers the loss most in 80 steps (of 1e-4, 3e-4, 1e-3; seed 0); on the real model half of the
largest at which 60 steps were stable (benchmarks.advice).
"""
BEST = ("plain", "adaptive", "plain4", "spread")
"""Arms of the real model: the two variants with the lowest losses on text, and the plain steps beside them."""


def rates(part: str, arm: Arm) -> tuple[float, ...]:
    """Three rates, a factor 3 apart, to two digits."""
    middle = MIDDLE[part] * arm.factor
    if arm.normalized:
        middle *= SLOPES[part]
    return tuple(float(f"{middle * factor:.1e}") for factor in (1 / 3, 1, 3))


def experiment(part: str, name: str, seed: int, data_dir: Path, folder: Path) -> Finetune:
    """The run of an arm with a seed: three rates, as many steps as the forward passes pay for."""
    run = replace(PARTS[part], **ARMS[name].options, seed=seed)
    if part != "text":
        run = replace(run, data_dir=data_dir)
    steps = FORWARDS[part] // run.evaluations
    run = replace(run, steps=steps, eval_every=-(-steps // 3))
    if part == "smollm2":
        run = replace(run, eval_every=-(-steps // 2))  # an evaluation takes as long as a dozen steps
        first = rows_of(part, name, SEEDS[0], folder)
        if seed != SEEDS[0] and first is not None:
            return replace(run, eta_x=last_loss(first)[1])
    tried = ",".join(f"{rate:g}" for rate in rates(part, ARMS[name]))
    return replace(run, search=(f"eta_x={tried}",))


def write_text(data_dir: Path) -> None:
    """Make `TEXT`."""
    TEXT.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(data_dir / "text" / "wikitext2_valid.txt.gz", "rt", encoding="utf-8") as lines:
        paragraphs = [line.strip() for line in lines if len(line) > LONG]
    TEXT.write_text("".join(json.dumps({"text": text}) + "\n" for text in paragraphs), encoding="utf-8")


def make(part: str, names: Sequence[str], seeds: Sequence[int], data_dir: Path, folder: Path) -> None:
    """Make the runs that are missing, all arms of one seed before the next."""
    for seed in seeds:
        for name in names:
            try:
                records.run(
                    experiment(part, name, seed, data_dir, folder), folder / f"{part}-{name}-{seed}.jsonl",
                    environment=records.environment(device="cpu", dtype="float32", threads=1),
                )  # fmt: skip
            except BadInput as error:  # a rate at which one arm diverges; the others go on
                print(f"{part}-{name}-{seed}: {error}", flush=True)


def rows_of(part: str, name: str, seed: int, folder: Path) -> list[Row] | None:
    """Rows of a finished run; None without one."""
    path = folder / f"{part}-{name}-{seed}.jsonl"
    if not path.exists():
        return None
    contents = record_files.read(path)
    if not contents.finished:
        return None
    return [row for row in contents.rows if row is not None]


def last_loss(rows: Sequence[Row]) -> tuple[float, float]:
    """Loss on dev after the last step, at the rate where it is lowest, and that rate."""
    last: dict[int, Row] = {}
    for row in rows:
        if row["part"] == "dev":
            last[row["trial"]] = row
    best = min(last.values(), key=lambda row: row["dev_loss"])
    return best["dev_loss"], best["eta_x"]


def table(part: str, folder: Path) -> Iterator[str]:
    """Rows of Markdown; differences are over the seeds that both arms have, with 95 % intervals."""
    score = "loss" if part == "text" else "accuracy"
    yield f"| arm | seeds | rates chosen | dev loss at 0, at the end | difference | test {score} | difference |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, arm in ARMS.items():
        pairs = []
        for seed in SEEDS:
            two_arms = rows_of(part, name, seed, folder), rows_of(part, arm.beside, seed, folder)
            if two_arms[0] is not None and two_arms[1] is not None:
                pairs.append((two_arms[0], two_arms[1]))
        if pairs:
            cells = [name, str(len(pairs)), *_cells(pairs, score)]
            if name == arm.beside:
                cells[4] = cells[6] = ""
            yield f"| {' | '.join(cells)} |"


def _cells(pairs: Sequence[tuple[list[Row], list[Row]]], score: str) -> Iterator[str]:
    """Cells of an arm from its rows and those of the plain one, by seed."""
    losses, plain = ([last_loss(rows) for rows in side] for side in zip(*pairs, strict=True))
    yield ", ".join(f"{rate:g}" for _, rate in losses)
    start = np.mean([rows[0]["dev_loss"] for rows, _ in pairs])
    yield f"{start:.4f}, {np.mean([loss for loss, _ in losses]):.4f}"
    yield difference_text([loss for loss, _ in losses], [loss for loss, _ in plain])
    tests, beside = ([rows[-1][score] for rows in side] for side in zip(*pairs, strict=True))
    yield f"{np.mean(tests):.4f}"
    if score == "loss":
        yield difference_text(tests, beside)
        return
    answers, plain_answers = ([[*map(int, rows[-1]["right"])] for rows in side] for side in zip(*pairs, strict=True))
    yield as_text(paired(answers, plain_answers))


def difference_text(values: Sequence[float], plain: Sequence[float]) -> str:
    """The mean difference over seeds with Student's interval, which one seed does not give."""
    differences = np.subtract(values, plain)
    if len(differences) < 2:
        return f"{differences[0]:+.4f}"
    return as_text(mean(differences))


def as_text(interval: Interval) -> str:
    """A difference with its interval."""
    return f"{interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with text/ and sst2/")
    parser.add_argument("--part", choices=list(PARTS), default="text")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="default: all, on the real model the best")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--table", action="store_true", help="print what is measured, and measure nothing")
    args = parser.parse_args()
    if args.table:
        print("\n".join(table(args.part, args.out)))
        return
    if args.data_dir is None:
        parser.error("--data-dir is needed, the folder with text/ and sst2/")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "text":
        write_text(args.data_dir)
    arms = args.arms or (BEST if args.part == "smollm2" else ARMS)
    make(args.part, list(arms), args.seeds, args.data_dir, args.out)


if __name__ == "__main__":
    main()
