"""LoRA, LoRA-GA, BOFT, their mix, unitary adapters and DoRA at equal tuning: `python -m benchmarks.second_hybrid`.

For each case, a model and a data set: the advised rate of each method (seed 0), then runs of `finetune --method
fo-peft` that try a third of it, itself and three times it on dev (all seeds), then curvature along a run at the rate
that seed 0 selected. COPA, which has too few items to select by, and sums, whose evaluation takes longer than their
training, take the rates that SST-2 selected with the same model. Sums are questions like "What is 38 + 54?", whose
answers are generated. Every run is a record file of its own in benchmarks/results/second_hybrid, and the files are the
benchmark's memory: the same command makes those that are missing, one after another, in one thread. Cases of
SmolLM2-135M need its folder (`python -m benchmarks.real_model`).
"""

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
SEEDS = (0, 1, 2)
FACTORS = (1 / 3, 1.0, 3.0)
"""Factors of the advised rate that are tried."""
UNMEASURED = ("dora",)
"""Methods whose gradient is not the loss's, without curvature and advice: they try the rates of LoRA."""


SUMS = Path("out") / "sums.jsonl"
PUBLISHED = ("sst2", "copa")
"""Data sets whose files --data-dir holds."""


@dataclass(frozen=True)
class Case:
    """A model, a data set, and the length of a run.

    Attributes:
        data: a task, or a file.
        model: its name or folder.
        steps: training steps of a run.
        batch: items in a minibatch.
        dev: items to select by, at most.
        test: items to test on, at most.
        rates_of: case whose selected rates are taken; None tries three.
        evaluations: of a run on dev, after the first, at equal distances.
        answer_tokens: tokens of a generated answer, at most.
    """

    data: str
    model: str = "micro"
    steps: int = 300
    batch: int = 16
    dev: int = 100
    test: int = 300
    rates_of: str | None = None
    evaluations: int = 4
    answer_tokens: int = 16


SMOLLM2: dict[str, Any] = {"model": "out/smollm2", "steps": 50, "batch": 8, "dev": 64, "test": 200}
CASES = {
    "builtin": Case("builtin"),
    "sst2": Case("sst2"),
    "smollm2-sst2": Case("sst2", **SMOLLM2),
    "smollm2-copa": Case("copa", rates_of="smollm2-sst2", **SMOLLM2),
    "smollm2-sums": Case(str(SUMS), rates_of="smollm2-sst2", evaluations=1, answer_tokens=6, **SMOLLM2),
}
"""Cases in the order in which they are run."""


def write_sums(path: Path, count: int = 2000, seed: int = 0) -> None:
    """Questions for the sum of two numbers below 100, each pair once, and their answers; left alone where it is there.

    Args:
        path: JSON Lines file of prompts and completions.
        count: questions.
        seed: of the pairs that are drawn.
    """
    if path.exists():
        return
    pairs = random.Random(seed).sample(list(itertools.product(range(100), repeat=2)), count)
    lines = [json.dumps({"prompt": f"What is {a} + {b}?", "completion": f" {a + b}"}) for a, b in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


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
        points: measuring points of curvature along a run.
        folder: of the record files.
        cases: by name.
    """

    data_dir: Path | None
    points: int = 3
    folder: Path = RESULTS
    cases: Mapping[str, Case] = field(default_factory=lambda: CASES)

    def make(self, cases: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> None:
        """Make the runs that are missing, case by case."""
        self._record("cost", Cost())
        for case in cases:
            if self.cases[case].data == str(SUMS):
                write_sums(SUMS)
            for seed in seeds:
                for method in methods:
                    self.run(case, method, seed)
            for method in methods:
                self.curvature(case, method)

    def run(self, case: str, method: str, seed: int) -> None:
        """One run, after the advice that its rates come from."""
        if self.cases[case].rates_of is None and method not in UNMEASURED:
            self._record(f"{case}-{method}-advice", Advise(**self._options(case, method, 0)))
        if self._ready(case, method):
            self._record(f"{case}-{method}-{seed}", self._finetune(case, method, seed))

    def curvature(self, case: str, method: str) -> None:
        """Curvature along the run of seed 0, at the rate that it selected."""
        if method not in UNMEASURED and self._finished(f"{case}-{method}-{SEEDS[0]}"):
            self._record(f"{case}-{method}-curvature", self._curvature(case, method))

    def starts(self, cases: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> None:
        """Curvature of each module before its first step, where the base model's is the same under all methods."""
        for case, seed, method in itertools.product(cases, seeds, methods):
            if method not in UNMEASURED:
                self._record(f"{case}-{method}-start-{seed}", self._start(case, method, seed))

    def _start(self, case: str, method: str, seed: int) -> Smoothness:
        options = self._options(case, method, seed) | {"steps": 0}
        return Smoothness(
            **options, head="lm", train=1000, measure=("peft",), points=1, precision=0.1, path=False, optimizer="adam"
        )

    def start_table(self, cases: Sequence[str]) -> Iterator[str]:
        """Rows of Markdown: norms of the module's Hessian at the start, a minibatch a cell."""
        yield "| data, method | Frobenius norm | spectral norm | gradient's norm |"
        yield "| --- | --- | --- | --- |"
        for case, method in itertools.product(cases, METHODS):
            names = [f"{case}-{method}-start-{seed}" for seed in SEEDS]
            rows = [row for name in names if self._finished(name) for row in self._rows(name)]
            cells: dict[str, list[str]] = {"frobenius": [], "spectral": [], "gradient": []}
            for row in rows:
                if row["quantity"] in cells:
                    cells[row["quantity"]].append(f"{row['value']:.3g} ({row['low']:.3g} to {row['high']:.3g})")
                if row["quantity"] == "frobenius":
                    cells["gradient"].append(f"{row['grad_norm']:.3g}")
            if rows:
                yield f"| {case}, {method} | {' | '.join(', '.join(values) for values in cells.values())} |"

    def table(self, cases: Sequence[str]) -> Iterator[str]:
        """Rows of Markdown: what the runs that are made say."""
        yield "| case, method, seed | rates tried | chosen | dev at 0, best (step) | test | norms at 0, at the end |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for case, method, seed in itertools.product(cases, METHODS, SEEDS):
            if self._finished(f"{case}-{method}-{seed}"):
                yield f"| {case}, {method}, {seed} | {self._cells(case, method, seed)} |"

    def _cells(self, case: str, method: str, seed: int) -> str:
        rows = self._rows(f"{case}-{method}-{seed}")
        test = next(row for row in rows if row["part"] == "test")
        tried = ", ".join(f"{rate:g}" for rate in self.rates(case, method))
        chosen = [row for row in rows if row["part"] == "dev" and row["trial"] == test["trial"]]
        if "accuracy" in test:
            dev = f"{chosen[0]['accuracy']:.2f}, {test['dev_accuracy']:.2f} ({test['steps_to_best']})"
            result = f"{100 * test['accuracy']:.1f} % ({100 * test['low']:.1f} to {100 * test['high']:.1f})"
        else:
            best = min(row["dev_loss"] for row in chosen)
            dev = f"loss {chosen[0]['dev_loss']:.3f}, {best:.3f} ({test['step']})"
            result = f"{100 * test['exact_match']:.1f} % exact, loss {test['loss']:.3f}"
        curvature = ""
        if seed == SEEDS[0] and self._finished(f"{case}-{method}-curvature"):
            curvature = "; ".join(_norms(self._rows(f"{case}-{method}-curvature")))
        return f"{tried} | {test['eta_y']:g} | {dev} | {result} | {curvature}"

    def _finished(self, name: str) -> bool:
        path = self.folder / f"{name}.jsonl"
        has_lines = path.exists() and path.stat().st_size  # a run that has just been started has no line yet
        return bool(has_lines) and record_files.read(path).finished

    def _ready(self, case: str, method: str) -> bool:
        """Whether what the rates of a run come from is there."""
        source = self.cases[case].rates_of
        if source is not None:
            return self._finished(f"{source}-{method}-{SEEDS[0]}")
        return self._finished(f"{case}-{'lora' if method in UNMEASURED else method}-advice")

    def rates(self, case: str, method: str) -> tuple[float, ...]:
        """The rates that are tried, to two digits, or the one that another case selected."""
        source = self.cases[case].rates_of
        if source is not None:
            return (self._selected(source, method),)
        if method in UNMEASURED:
            method = "lora"
        rows = self._rows(f"{case}-{method}-advice")
        advised = next(row["value"] for row in rows if row["part"] == "advice" and row["option"] == "eta_y")
        return tuple(float(f"{factor * advised:.1e}") for factor in FACTORS)

    def _selected(self, case: str, method: str) -> float:
        rows = self._rows(f"{case}-{method}-{SEEDS[0]}")
        return float(next(row["eta_y"] for row in rows if row["part"] == "test"))

    def _options(self, name: str, method: str, seed: int) -> Row:
        case = self.cases[name]
        return {
            "method": "fo-peft", "peft": method, "model": case.model, "data": case.data, "seed": seed,
            "data_dir": self.data_dir if case.data in PUBLISHED else None, "batch": case.batch, "steps": case.steps,
        }  # fmt: skip

    def _finetune(self, name: str, method: str, seed: int) -> Finetune:
        case, rates = self.cases[name], self.rates(name, method)
        options = self._options(name, method, seed)
        if len(rates) > 1:
            options["search"] = ("eta_y=" + ",".join(f"{rate:g}" for rate in rates),)
        else:
            options["eta_y"] = rates[0]
        return Finetune(
            **options, eval_every=max(1, case.steps // case.evaluations), patience=0, dev=case.dev, test=case.test,
            parts=1, answer_tokens=case.answer_tokens,
        )  # fmt: skip

    def _curvature(self, case: str, method: str) -> Smoothness:
        return Smoothness(
            **self._options(case, method, 0), head="lm", train=1000, optimizer="adam",
            eta_y=self._selected(case, method), points=self.points, minibatch="fixed", precision=0.1, path=False,
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
    parser.add_argument("--data-dir", type=Path, help="folder with sst2/ and copa/; without it the hub's files")
    parser.add_argument("--cases", nargs="+", default=tuple(CASES), choices=CASES)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--points", type=int, default=3, help="measuring points of curvature along a run")
    parser.add_argument("--starts", action="store_true", help="measure curvature at the start alone")
    parser.add_argument("--table", action="store_true", help="print what is measured, and measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    plan = Plan(args.data_dir, args.points)
    if args.table:
        print("\n".join([*plan.table(args.cases), "", *plan.start_table(args.cases)]))
    elif args.starts:
        plan.starts(args.cases, args.methods, args.seeds)
    else:
        plan.make(args.cases, args.methods, args.seeds)


if __name__ == "__main__":
    main()
