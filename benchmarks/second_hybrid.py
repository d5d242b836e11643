"""LoRA, LoRA-GA, BOFT, their mix, unitary adapters and DoRA at equal tuning: `python -m benchmarks.second_hybrid`.

On `micro`, for each data set: the advised rate of each method (seed 0), then runs of `finetune --method fo-peft` that
try a third of it, itself and three times it on dev (all seeds), then curvature along a run at the rate that seed 0
selected. Every run is a record file of its own in benchmarks/results/second_hybrid, and the files are the benchmark's
memory: the same command makes those that are missing, one after another, in one thread.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.timing import cpu_seconds
from smoothlab import record_files, records
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.experiment import Advise
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.smoothness import Smoothness

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "second_hybrid"
METHODS = ("lora", "lora-ga", "boft", "boft-ga", "unitary", "dora")
DATA = ("builtin", "sst2")
SEEDS = (0, 1, 2)
FACTORS = (1 / 3, 1.0, 3.0)
"""Of the advised rate, the rates that are tried."""
UNMEASURED = ("dora",)
"""Its gradient is not its loss's, so that neither curvature nor advice is measured: it tries LoRA's rates."""


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a training step of each method, and the memory that it keeps, side by side.

    Attributes:
        batch: items in a minibatch.
        repetitions: steps that are timed; the methods take turns.
    """

    name: ClassVar[str] = "second_hybrid_cost"
    unit: ClassVar[str] = "what"
    batch: int = 16
    repetitions: int = 15

    def place(self, row: Row) -> int:
        """One for all rows."""
        return 0

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Times belong to one run: a stopped one starts again."""
        return []

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Median times of a step, trained parameters, and bytes that autograd keeps for the backward pass."""
        trainers = {}
        for method in METHODS:
            trainers[method] = Finetune(method="fo-peft", peft=method, batch=self.batch, parts=1).setup().trainer()
            trainers[method].update()
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for _ in range(self.repetitions):
            for method, trainer in trainers.items():
                seconds[method].append(cpu_seconds(trainer.update))
        for method, trainer in trainers.items():
            times = seconds[method]
            yield {"what": method, "unit": "seconds", "value": statistics.median(times), "raw": times}
            yield {"what": method, "unit": "parameters", "value": trainer.blocks["peft"].dim}
            yield {"what": method, "unit": "bytes", "value": kept_bytes(trainer.minibatch_loss(0))}
        median = {method: statistics.median(times) for method, times in seconds.items()}
        ratio = median["boft-ga"] / (median["boft"] + median["lora"])
        yield {"what": "boft-ga / (boft + lora)", "unit": "steps", "value": ratio, "target": 1.1}


def kept_bytes(loss: Any) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass; shared memory counts once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    del value
    return sum(storages.values())


@dataclass(frozen=True)
class Plan:
    """The runs and their order.

    Attributes:
        data_dir: folder with the files of the named tasks.
        steps: training steps of a run.
        batch: items in a minibatch.
        points: measuring points of curvature along a run.
        folder: of the record files.
    """

    data_dir: Path | None
    steps: int = 150
    batch: int = 16
    points: int = 3
    folder: Path = RESULTS

    def make(self, data: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> None:
        """Make the runs that are missing."""
        self._record("cost", Cost())
        for name in data:
            for seed in seeds:
                for method in methods:
                    if seed == seeds[0] and method not in UNMEASURED:
                        self._record(f"{name}-{method}-advice", Advise(**self._options(name, method, 0)))
                    self._record(f"{name}-{method}-{seed}", self._finetune(name, method, seed))
                if seed == seeds[0]:
                    for method in methods:
                        if method not in UNMEASURED:
                            self._record(f"{name}-{method}-curvature", self._curvature(name, method))

    def starts(self, data: Sequence[str], seeds: Sequence[int]) -> None:
        """Curvature of each module before its first step, where the base model's is the same under all methods."""
        for name in data:
            for seed in seeds:
                for method in METHODS:
                    if method not in UNMEASURED:
                        self._record(f"{name}-{method}-start-{seed}", self._start(name, method, seed))

    def _start(self, data: str, method: str, seed: int) -> Smoothness:
        options = self._options(data, method, seed) | {"steps": 0}
        return Smoothness(
            **options, head="lm", train=1000, measure=("peft",), points=1, precision=0.1, path=False, optimizer="adam"
        )

    def start_table(self, data: Sequence[str]) -> Iterator[str]:
        """Rows of Markdown: norms of the module's Hessian at the start, a minibatch a cell."""
        yield "| data, method | Frobenius norm | spectral norm | gradient's norm |"
        yield "| --- | --- | --- | --- |"
        for name in data:
            for method in METHODS:
                names = [f"{name}-{method}-start-{seed}" for seed in SEEDS]
                rows = [row for done in names if self._finished(done) for row in self._rows(done)]
                cells: dict[str, list[str]] = {"frobenius": [], "spectral": [], "gradient": []}
                for row in rows:
                    if row["quantity"] in cells:
                        cells[row["quantity"]].append(f"{row['value']:.3g} ({row['low']:.3g} to {row['high']:.3g})")
                    if row["quantity"] == "frobenius":
                        cells["gradient"].append(f"{row['grad_norm']:.3g}")
                if rows:
                    yield f"| {name}, {method} | {' | '.join(', '.join(values) for values in cells.values())} |"

    def table(self, data: Sequence[str]) -> Iterator[str]:
        """Rows of Markdown: what the runs that are made say."""
        yield "| data, method, seed | rates tried | chosen | dev at 0, best (step) | test | norms at 0, at the end |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for name in data:
            for method in METHODS:
                for seed in SEEDS:
                    if self._finished(f"{name}-{method}-{seed}"):
                        yield f"| {name}, {method}, {seed} | {self._cells(name, method, seed)} |"

    def _cells(self, data: str, method: str, seed: int) -> str:
        rows = self._rows(f"{data}-{method}-{seed}")
        test = next(row for row in rows if row["part"] == "test")
        tried = ", ".join(f"{rate:g}" for rate in self.rates(data, method))
        chosen = [row for row in rows if row["part"] == "dev" and row["trial"] == test["trial"]]
        dev = f"{chosen[0]['accuracy']:.2f}, {test['dev_accuracy']:.2f} ({test['steps_to_best']})"
        accuracy = f"{100 * test['accuracy']:.1f} % ({100 * test['low']:.1f} to {100 * test['high']:.1f})"
        curvature = ""
        if seed == SEEDS[0] and self._finished(f"{data}-{method}-curvature"):
            curvature = "; ".join(_norms(self._rows(f"{data}-{method}-curvature")))
        return f"{tried} | {test['eta_y']:g} | {dev} | {accuracy} | {curvature}"

    def _finished(self, name: str) -> bool:
        path = self.folder / f"{name}.jsonl"
        return path.exists() and record_files.read(path).finished

    def rates(self, data: str, method: str) -> tuple[float, ...]:
        """The rates that are tried, to two digits."""
        if method in UNMEASURED:
            method = "lora"
        rows = self._rows(f"{data}-{method}-advice")
        advised = next(row["value"] for row in rows if row["part"] == "advice" and row["option"] == "eta_y")
        return tuple(float(f"{factor * advised:.1e}") for factor in FACTORS)

    def _options(self, data: str, method: str, seed: int) -> Row:
        where = None if data == "builtin" else self.data_dir
        return {
            "method": "fo-peft", "peft": method, "data": data, "data_dir": where, "seed": seed, "batch": self.batch,
            "steps": self.steps,
        }  # fmt: skip

    def _finetune(self, data: str, method: str, seed: int) -> Finetune:
        tried = ",".join(f"{rate:g}" for rate in self.rates(data, method))
        return Finetune(
            **self._options(data, method, seed), search=(f"eta_y={tried}",), eval_every=self.steps // 4, patience=0,
            test=300, parts=1,
        )  # fmt: skip

    def _curvature(self, data: str, method: str) -> Smoothness:
        selected = next(row for row in self._rows(f"{data}-{method}-0") if row["part"] == "test")
        return Smoothness(
            **self._options(data, method, 0), head="lm", train=1000, optimizer="adam", eta_y=selected["eta_y"],
            points=self.points, minibatch="fixed", precision=0.1, path=False,
        )  # fmt: skip

    def _rows(self, name: str) -> list[Row]:
        return record_files.read(self.folder / f"{name}.jsonl").rows

    def _record(self, name: str, experiment: Any) -> None:
        try:
            records.run(
                experiment, self.folder / f"{name}.jsonl",
                environment=records.environment(device="cpu", dtype="float32", threads=1),
            )  # fmt: skip
        except BadInput as error:  # the next runs do not need this one, or say so themselves
            print(f"{name}: {error}")


def _norms(rows: Sequence[Row]) -> Iterator[str]:
    """Norms of each block at the measuring points, with their intervals."""
    series: dict[str, list[str]] = {}
    for row in rows:
        if row["quantity"] in ("frobenius", "spectral", "cross"):
            name = f"{row['quantity']} {row['block']}"
            values = f"{row['value']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
            series.setdefault(name, []).append(values)
    for name, values in series.items():
        yield f"{name} {', '.join(values)}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with sst2/; without it builtin alone is run")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--points", type=int, default=3, help="measuring points of curvature along a run")
    parser.add_argument("--starts", action="store_true", help="measure curvature at the start alone")
    parser.add_argument("--table", action="store_true", help="print what is measured, and measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = DATA if args.data_dir is not None else DATA[:1]
    RESULTS.mkdir(parents=True, exist_ok=True)
    plan = Plan(args.data_dir, args.steps, args.batch, args.points)
    if args.table:
        print("\n".join([*plan.table(data), "", *plan.start_table(data)]))
        return
    if args.starts:
        plan.starts(data, args.seeds)
        return
    plan.make(data, args.methods, args.seeds)


if __name__ == "__main__":
    main()
