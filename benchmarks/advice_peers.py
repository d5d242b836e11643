"""Other ways to choose a learning rate, beside the advised ones: what each costs, and how far it misses.

For the cases of `python -m benchmarks.advice` whose true edge and runs of 200 steps are on record:

- the grid of the paper's Table 2: its legible rates of the PEFT module, 1e-4 to 8e-3, and the base model's 1e-7; one
  run of 200 steps each, and the rate of the lowest loss is taken;
- a learning-rate range test: the rate grows by 1.1 a step until the loss is four times its start; a tenth of the rate
  at which the smoothed loss was lowest is taken;
- "LoRA's rate is ten times the full model's": full fine-tuning is tuned first, by runs of 200 steps at rates a factor
  3 apart, until its best rate has worse ones on both sides.

The rate that each way takes is run for 200 steps as the advised one was: from the same weights, on the same minibatches
and directions. A way's cost is in training steps of the method, range tests and runs alike.

    python -m benchmarks.advice_peers [network|trained|micro]   # continues benchmarks/results/advice_peers_*.jsonl
    python -m benchmarks.advice_peers --table                   # prints what is there
"""

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.advice import CASES, LONG, LOST, RESULTS, AdviceBenchmark, Case
from smoothlab import record_files, records
from smoothlab.experiments.advise.trying import Trial, Tries
from smoothlab.experiments.settings import SettingsExperiment

Row = dict[str, Any]
TABLE_2 = {"eta_y": (1e-4, 1e-3, 2e-3, 8e-3), "eta_x": (1e-7,)}
"""Legible rates of the paper's Table 2, OPT-1.3b, by option."""
BELOW_LOWEST = 10
"""The range test's rate is the one at which the smoothed loss was lowest, divided by this."""
FULL = {"lora-sgd": ("full-sgd", 1e-2), "lora-adam": ("full-adam", 1e-4)}
"""Full fine-tuning with the same optimizer, and the first rate that is tried."""
TIMES = 10
"""LoRA's rate in units of the full model's."""
MOST = 12
"""Runs of full fine-tuning at most."""
CLOSE = 1.05
"""Multiple of the lowest loss within which a rate counts as good as the best."""


@dataclass(frozen=True)
class AdvicePeers(SettingsExperiment):
    """Other ways to choose rates, on the cases of one kind of model.

    Attributes:
        model: which of the cases of `benchmarks.advice`.
        batch: items in a minibatch.
        data_dir: folder with sst2/ and copa/.
    """

    name: ClassVar[str] = "advice_peers"
    model: str = "network"
    batch: int = 8
    data_dir: str = ""

    def points(self) -> list[Row]:
        """Cases with runs of 200 steps on record; full fine-tuning is in no table of the paper."""
        recorded = {row["setting"] for row in on_record(self.model) if row["part"] == "long" and "failed" not in row}
        return [
            {"setting": name} for name, work in CASES[self.model].items()
            if f"long/{name}" in recorded and not work.method.startswith("full")
        ]  # fmt: skip

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """Rows of each case: the runs that a way takes, and the rate that it ends with."""
        advised = on_record(self.model)
        run = AdviceBenchmark(self.model, self.batch, data_dir=self.data_dir)
        for point in points:
            before = [row for row in advised if row["setting"].endswith("/" + point["setting"])]
            for row in CasePeers(Case(CASES[self.model][point["setting"]], run, before), run).rows():
                yield {**point, **row}


class CasePeers:
    """The other ways on one case."""

    def __init__(self, case: Case, run: AdviceBenchmark) -> None:
        self.case, self.setup = case, run
        self.edge = next(row["measured"] for row in case.before if row["part"] == "edge")
        self.tries = Tries(case.trainer, LONG, abandoned=LOST)

    def rows(self) -> Iterator[Row]:
        """Rows of all ways that apply."""
        yield from self.table_2()
        yield from self.range_test()
        if self.case.work.method in FULL and self.setup.model != "network":  # a network's last layer is no LoRA
            yield from self.ten_times(*FULL[self.case.work.method])

    def table_2(self) -> Iterator[Row]:
        """The rates of the paper's Table 2, the base model's at 1e-7."""
        options = list(self.case.rates_by_option)
        swept = "eta_y" if "eta_y" in options else "eta_x"
        trials = []
        for rate in TABLE_2[swept]:
            base = {option: rate if option == swept else TABLE_2[option][0] for option in options}
            swept_rate = 1.0 if self.scales_both else base[self.case.swept]
            trials.append(self.tries.run(rate, self.case.rates(base, swept_rate), 0))
            yield row_of("Table 2", trials[-1])
        best = min(trials, key=lambda trial: trial.end)
        # Where both rates are scaled together, or x is swept, Table 2's rate of y is no share of this edge.
        same_rate = not self.scales_both and swept == self.case.swept
        reference = self.edge if same_rate else None
        yield {**row_of("Table 2", best), "part": "chosen", "reference": reference,
               "training_steps": sum(trial.steps for trial in trials)}  # fmt: skip

    def range_test(self) -> Iterator[Row]:
        """A tenth of the rate of the lowest smoothed loss."""
        ranged = [row for row in self.case.before if row["part"] == "range"]
        if not ranged:
            return
        rate = ranged[0]["rate"] / BELOW_LOWEST
        yield {**self.chosen("range test", rate), "training_steps": ranged[0]["steps"]}

    def ten_times(self, full: str, first: float) -> Iterator[Row]:
        """Ten times the best rate of full fine-tuning."""
        case = Case(self.case.work._replace(method=full), self.setup, ())
        tries, trials = Tries(case.trainer, LONG, abandoned=LOST), dict[int, Trial]()
        powers = [0, 1, -1]
        while powers and len(trials) < MOST:
            power = powers.pop(0)
            rate = first * 3.0**power
            trials[power] = tries.run(rate, case.rates({case.swept: rate}, rate), 0)
            yield {**row_of(full, trials[power]), "option": case.swept}
            if not powers:
                best = min(trials, key=lambda number: (trials[number].end, number))
                powers = [number for number in (best + 1, best - 1) if number not in trials]
        rate = TIMES * min(trials.values(), key=lambda trial: trial.end).rate
        yield {**self.chosen("10 x full rate", rate), "training_steps": sum(trial.steps for trial in trials.values())}

    @property
    def scales_both(self) -> bool:
        """Whether both rates are scaled together from the advised ones."""
        return self.case.swept == "both"

    def chosen(self, source: str, rate: float) -> Row:
        """A run of 200 steps at the rate that a way has led to."""
        trial = self.tries.run(rate, self.case.rates(self.case.base, rate), 0)
        return {**row_of(source, trial), "part": "chosen", "option": self.case.swept, "reference": self.edge}


def row_of(source: str, trial: Trial) -> Row:
    """A run of a way."""
    return {"part": "run", "source": source, "rate": trial.rate, "loss_before": trial.start, "loss_after": trial.end,
            "steps": trial.steps}  # fmt: skip


def on_record(model: str) -> list[Row]:
    """Rows of `python -m benchmarks.advice MODEL`."""
    return rows_in(RESULTS / f"advice_{model}.jsonl")


def rows_in(path: Path) -> list[Row]:
    """Rows of a record file; none if it is not there."""
    return [row for row in record_files.read(path).rows if row is not None] if path.exists() else []


@dataclass(frozen=True)
class Peer:
    """One way to choose a rate, over the cases of one kind of model.

    Attributes:
        name: the way.
        steps: training steps that it takes, a number a case.
        factors: the rate it takes over the true edge, where it varies the rate that the edge is of.
        good: cases in which its loss after 200 steps is within 5 % of the lowest of the sweep.
        descent: median, over the cases, of the descent of its loss over that of the lowest.
        cases: how many there are.
    """

    name: str
    steps: Sequence[float]
    factors: Sequence[float]
    near_best: int
    descent: float
    cases: int


def peers_of(model: str) -> list[Peer]:
    """The ways that are on record for a kind of model, the advised rates first."""
    advised, peers = on_record(model), rows_in(RESULTS / f"advice_peers_{model}.jsonl")
    chosen: dict[str, list[Row]] = {"advice": []}
    lowest: dict[str, float] = {}
    for setting in dict.fromkeys(row["setting"] for row in peers):
        case = [row for row in advised if row["setting"].endswith("/" + setting)]
        long = [row for row in case if row["part"] == "long"]
        lowest[setting] = min(lost(row) for row in long)
        edge = next(row["measured"] for row in case if row["part"] == "edge")
        cost = next(row["training_steps"] for row in case if row["part"] == "cost")
        advised_row = next(row for row in long if row["source"] == "advised")
        chosen["advice"].append({**advised_row, "setting": setting, "reference": edge, "training_steps": cost})
    for row in peers:
        if row["part"] == "chosen":
            chosen.setdefault(row["source"], []).append(row)
    result = []
    for name, rows in chosen.items():
        falls = [(row["loss_before"] - lost(row), row["loss_before"] - lowest[row["setting"]]) for row in rows]
        result.append(Peer(
            name, [row["training_steps"] for row in rows],
            [row["rate"] / row["reference"] for row in rows if row["reference"]],
            sum(lost(row) <= CLOSE * lowest[row["setting"]] for row in rows),
            statistics.median(fall / largest for fall, largest in falls), len(rows),
        ))  # fmt: skip
    return result


def lost(row: Row) -> float:
    """The loss that a run ends with; an abandoned one counts as LOST times the loss at its start."""
    end = row["loss_after"]
    return LOST * row["loss_before"] if end is None or not math.isfinite(end) else end


def table(models: Sequence[str]) -> str:
    """Markdown: a line a kind of model and way."""
    lines = [
        "| models | way | training steps | its rate over the edge | within 5 % of the best | share of its descent |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model in models:
        for peer in peers_of(model):
            steps = f"{min(peer.steps):,.0f} to {max(peer.steps):,.0f}" if peer.steps else ""
            factors = f"{min(peer.factors):.2g} to {max(peer.factors):.2g}" if peer.factors else ""
            near_best = f"{peer.near_best} of {peer.cases}"
            lines.append(f"| {model} | {peer.name} | {steps} | {factors} | {near_best} | {peer.descent:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Continue the record of one kind of model, in one thread, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=("network", "trained", "micro"), default="network")
    parser.add_argument("--data-dir", default="", help="folder with sst2/ and copa/, for trained")
    parser.add_argument("--table", action="store_true", help="print what is on record")
    chosen = parser.parse_args()
    if chosen.table:
        print(table([model for model in CASES if (RESULTS / f"advice_peers_{model}.jsonl").exists()]))
        return
    torch.set_num_threads(1)
    sizes: dict[str, dict[str, Any]] = {
        "network": {"batch": 64}, "trained": {"data_dir": chosen.data_dir}, "micro": {},
    }  # fmt: skip
    experiment = AdvicePeers(chosen.model, **sizes[chosen.model])
    out = RESULTS / f"advice_peers_{chosen.model}.jsonl"
    records.run(experiment, out, environment=records.environment(device="cpu", threads=1))


if __name__ == "__main__":
    main()
