"""What a measuring point costs beside an earlier version: `python -m benchmarks.point_cost --old DIR`.

DIR holds the earlier version (`git worktree add DIR 78c65ff`). A repetition measures the same point, base + LoRA +
cross block, with the earlier version and with this one, each in a process of its own and on one thread, so that what
else the machine does meets both alike; CPU time is compared, and the largest resident memory that no file backs, in
units of the weights. With `--together` both run at the same time, as what else a busy machine does changes from one
minute to the next; that takes the memory of both. `--model FOLDER` takes a causal language model instead of `micro`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.timing import Ratios, ratio_row
from smoothlab.records import Row, environment, load, run

ROOT = Path(__file__).parents[1]
CPU, MEMORY = 0.6, 10.0
"""Aims: CPU time in units of the earlier version's, and memory in units of the weights."""


def points(versions: Sequence[Path], arguments: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """One point with the version in each folder, all at the same time."""
    started = [_start(version, arguments, seed) for version in versions]
    records: list[dict[str, Any]] = []
    for process in started:
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"benchmarks/point.py ended with status {process.returncode}; see its error above")
        records.append(json.loads(output.splitlines()[-1]))
    return records


def _start(version: Path, arguments: Sequence[str], seed: int) -> "subprocess.Popen[str]":
    """A process that measures one point with the version in a folder."""
    command = [sys.executable, str(ROOT / "benchmarks" / "point.py"), *arguments, "--seeds", str(seed)]
    paths = {"PYTHONPATH": str(version.resolve()), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **paths})


@dataclass(frozen=True)
class PointCost(Ratios):
    """CPU time and memory of a measuring point relative to an earlier version's.

    Attributes:
        old: folder of the earlier version; None measures this version's memory alone.
        model: "micro" or the name of a folder's model.
        arguments: of `benchmarks.point`.
        repetitions: points, each with probes of its own.
        together: both versions at the same time instead of one after the other.
    """

    name: ClassVar[str] = "point_cost"
    old: Path | None
    model: str
    arguments: tuple[str, ...]
    repetitions: int
    together: bool = False

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Ratio of CPU times, memory of each version, and what each measured."""
        measured: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
        for seed in range(self.repetitions):
            if self.old is not None and self.together:
                pair = points([self.old, ROOT], self.arguments, seed)
                measured["old"].append(pair[0])
                measured["new"].append(pair[1])
                continue
            if self.old is not None:
                measured["old"] += points([self.old], self.arguments, seed)
            measured["new"] += points([ROOT], self.arguments, seed)
        seconds = {version: [p["cpu_seconds"] for p in records] for version, records in measured.items()}
        if self.old is not None:
            ratios = [new / old for new, old in zip(seconds["new"], seconds["old"], strict=True)]
            yield ratio_row("CPU time", ratios, seconds["new"], unit="the earlier version's", target=CPU)
        for version, records in measured.items():
            if records:
                sizes = [p["peak_bytes"] / p["parameter_bytes"] for p in records]
                yield ratio_row(f"memory, {version}", sizes, seconds[version], unit="weights", target=MEMORY)
        for version, records in measured.items():
            for p in records:
                yield {"what": f"point, {version}", **p}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="folder of the earlier version; without it, this version alone")
    parser.add_argument("--model", default="micro", help="micro, or a folder with a causal language model")
    parser.add_argument("--batch", type=int, default=4, help="items of a folder's model, up to 8")
    parser.add_argument("--layers", type=int, help="the first layers of a folder's model only")
    parser.add_argument("--precision", type=float, default=0.05)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--together", action="store_true", help="both versions at the same time")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "point_cost_micro.jsonl")
    args = parser.parse_args()
    arguments = ["--model", args.model, "--batch", str(args.batch), "--precision", str(args.precision)]
    if args.layers is not None:
        arguments += ["--layers", str(args.layers)]
    settings = environment(device="cpu", dtype="float32", threads=1, batch=args.batch, layers=args.layers)
    experiment = PointCost(args.old, Path(args.model).name, tuple(arguments), args.repetitions, args.together)
    run(experiment, args.out, environment=settings, overwrite=True)
    for row in load(args.out).to_dict("records"):
        if not row["what"].startswith("point"):
            ratios = ", ".join(f"{ratio:.3g}" for ratio in row["raw"])
            median = statistics.median(row["raw"])
            print(f"{row['what']:12s} {median:.3g} {row['unit']} ({ratios}); aim {row['target']:g}")


if __name__ == "__main__":
    main()
