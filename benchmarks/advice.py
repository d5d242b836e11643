"""Advice on rates against what runs show: predicted and tried limits beside true edges, advised rates beside the best.

A case is a method on `micro` and the built-in data. Its true edge is the smallest rate on a grid of factor 1.2 at which
at least half of 8 runs of 60 steps stand above their start (mean loss of the first four minibatches; runs are from the
same weights, with directions and minibatches of their own). It is found by bisection from the prediction on, so that an
edge above other edges would be missed. Beside it stand what `smoothlab advise` says (predicted, tried, both), a
learning-rate range test, and the loss after 200 steps at the advised rate and at shares of the true edge.

    python -m benchmarks.advice     # continues benchmarks/results/advice_micro.jsonl, case by case
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from smoothlab import records
from smoothlab.divergence import Diverged
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.advice import Rate, advise, rates_of
from smoothlab.experiments.advise.trying import Trial, Tries
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.settings import SettingsExperiment
from smoothlab.trainer import Trainer

Row = dict[str, Any]
OUT = Path(__file__).parent / "results" / "advice_micro.jsonl"
GRID = 1.2
RUNS, STEPS = 8, 60
LONG = 200
LOST = 4.0
"""Times the loss at the start at which a run is taken for unstable without its other steps."""
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Of the true edge, the rates of the sweep of 200 steps."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "zo": ("eta_x", {"method": "zo"}),
    "lora-sgd": ("eta_y", {"method": "fo-peft", "optimizer": "sgd"}),
    "lora-adam": ("eta_y", {"method": "fo-peft"}),
    "hybrid-x": ("eta_x", {"method": "hybrid"}),
    "hybrid-both": ("both", {"method": "hybrid"}),
    "hybrid-y": ("eta_y", {"method": "hybrid"}),
    "prompt-adam": ("eta_y", {"method": "fo-peft", "peft": "prompt"}),
    "prompt-sgd": ("eta_y", {"method": "fo-peft", "peft": "prompt", "optimizer": "sgd"}),
    "zo-q4": ("eta_x", {"method": "zo", "q": 4}),
    "full-sgd": ("eta_x", {"method": "fo-full", "optimizer": "sgd"}),
    "full-adam": ("eta_x", {"method": "fo-full"}),
}
"""Which rate is swept, and the options of the run. In hybrid slices the other rate is half of its advised limit."""


@dataclass(frozen=True)
class AdviceBenchmark(SettingsExperiment):
    """Advised rates against true edges.

    Attributes:
        cases: names of cases.
        batch: items in a minibatch.
        seed: seed of data, modules and minibatches.
    """

    name: ClassVar[str] = "advice"
    batch: int = 8
    seed: int = 0

    def points(self) -> list[Row]:
        """Advice and edges of all cases, then their runs of 200 steps."""
        parts = [f"{part}/{name}" for name in CASES for part in ("advice", "edge")]
        return [{"setting": setting} for setting in [*parts, *(f"long/{name}" for name in CASES)]]

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """Unused: what is measured depends on rows before."""
        raise NotImplementedError

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Rows of the settings that `done` lacks; edges need the advice, long runs the edge."""
        known = list(done)
        finished = {row["setting"] for row in done}
        for point in self.points():
            part, _, name = point["setting"].partition("/")
            if point["setting"] in finished:
                continue
            before = [row for row in known if row["setting"].endswith("/" + name)]
            for row in getattr(Case(name, self, before), part)():
                known.append({"setting": point["setting"], **row})
                yield known[-1]


class Case:
    """One method: its advice, its true edge, and runs of 200 steps."""

    def __init__(self, name: str, run: AdviceBenchmark, before: Sequence[Row]) -> None:
        self.swept, options = CASES[name]
        self.trainer: Trainer = Finetune(batch=run.batch, seed=run.seed, **options).setup().trainer()
        self.known: dict[str, Rate] = {rate.option: rate for rate in rates_of(self.trainer)}
        self.before = before

    def advice(self) -> Iterator[Row]:
        """Predicted and tried within the time of 100 steps."""
        try:
            advice = advise(self.trainer, by="confirm")
        except BadInput as error:
            yield {"part": "advice", "failed": str(error)}
            return
        yield {"part": "cost", "forwards": round(advice.forwards), "training_steps": round(advice.steps, 1),
               "seconds": round(advice.seconds, 3)}  # fmt: skip
        for advised in advice.advised:
            yield {"part": "advice", "option": advised.option, "measured": advised.value, "low": advised.low,
                   "high": advised.high, "source": advised.source, "flag": advised.flag}  # fmt: skip
        yield from advice.rows

    def edge(self) -> Iterator[Row]:
        """The runs of the sweep, the true edge, and the range test."""
        limits = [row["value"] for row in self.before if row["part"] == "limit" and row["option"] == self.swept]
        edge = yield from self._edge(self.base, 2.0 if self.swept == "both" else limits[-1])
        yield {"part": "edge", "option": self.swept, "measured": edge, "low": edge / GRID, "high": edge}
        yield self._range_test(self.base, edge)

    def long(self) -> Iterator[Row]:
        """The loss after 200 steps at shares of the true edge and at the advised rate."""
        edge = next(row["measured"] for row in self.before if row["part"] == "edge")
        tries = Tries(self.trainer, LONG, abandoned=LOST)
        rates = {f"{share:g} of the edge": share * edge for share in SHARES}
        rates["advised"] = 1.0 if self.swept == "both" else self.base[self.swept]
        for name, rate in rates.items():
            trial = tries.run(rate, self.rates(self.base, rate), 0)
            yield {"part": "long", "option": self.swept, "source": name, **_run(trial)}

    @property
    def base(self) -> dict[str, float]:
        """Advised rates by option."""
        rows = [row for row in self.before if row["part"] == "advice" and row.get("option") in self.known]
        return {row["option"]: row["measured"] for row in rows}

    def rates(self, base: Mapping[str, float], rate: float) -> dict[str, float]:
        """Rates by block where the swept one is `rate`; both are scaled together, from the advised ones."""
        chosen = dict(base)
        if self.swept == "both":
            chosen = {option: value * rate for option, value in base.items()}
        else:
            chosen[self.swept] = rate
        return {name: chosen[option] for option, known in self.known.items() for name in known.names}

    def _edge(self, base: Mapping[str, float], guess: float) -> Iterator[Row]:
        """The true edge; yields a row a run."""
        tries = Tries(self.trainer, STEPS, abandoned=LOST)
        known: dict[int, bool] = {}
        k = round(math.log(guess, GRID))
        jump = 6  # 1.2^6 = 2.99
        while not (False in known.values() and True in known.values()):
            if k in known:
                break
            known[k] = yield from self._unstable(tries, base, k)
            k += -jump if known[k] else jump
        stable = max(k for k, unstable in known.items() if not unstable)
        above = min(k for k, unstable in known.items() if unstable and k > stable)
        while above - stable > 1:
            middle = (above + stable) // 2
            known[middle] = yield from self._unstable(tries, base, middle)
            if known[middle]:
                above = middle
            else:
                stable = middle
        return GRID**above

    def _unstable(self, tries: Tries, base: Mapping[str, float], k: int) -> Iterator[Row]:
        """Whether half of the runs at GRID^k are unstable; runs end when that is decided."""
        rate, above, below = GRID**k, 0, 0
        for number in range(RUNS):
            trial = tries.run(rate, self.rates(base, rate), number)
            above, below = above + trial.unstable, below + (not trial.unstable)
            yield {"part": "sweep", "option": self.swept, **_run(trial)}
            if 2 * above >= RUNS or 2 * below > RUNS:
                break
        return 2 * above >= RUNS

    def _range_test(self, base: Mapping[str, float], edge: float) -> Row:
        """The rate grows by 1.1 a step from 1e-5 of the edge until the training loss is 4 times its start.

        `measured` is the last rate, `rate` that of the lowest mean of five training losses.
        """
        losses, rates = [], []
        with self.trainer.on_trial(self.rates(base, 1e-5 * edge)):
            try:
                for number in range(140):
                    rate = 1e-5 * edge * 1.1**number
                    self.trainer._rates = self.rates(base, rate)
                    losses.append(self.trainer.update())
                    rates.append(rate)
                    if losses[-1] > 4 * losses[0]:
                        break
            except Diverged:
                pass
        smooth = [sum(losses[max(0, n - 4) : n + 1]) / len(losses[max(0, n - 4) : n + 1]) for n in range(len(losses))]
        lowest = rates[smooth.index(min(smooth))]
        return {"part": "range", "option": self.swept, "measured": rates[-1], "reference": edge,
                "rate": lowest, "steps": len(losses)}  # fmt: skip


def _run(trial: Trial) -> Row:
    return {"rate": trial.rate, "run": trial.number, "loss_before": trial.start, "loss_after": trial.end,
            "steps": trial.steps}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    records.run(AdviceBenchmark(), OUT, environment=records.environment(device="cpu", threads=1))
