"""Advice on rates against what runs show: predicted and tried limits beside true edges, advised rates beside the best.

A case is a method on a model: `micro` with the built-in data, or a small GELU network, fitted for some steps to labels
of another random network, on which sweeps take seconds. Its true edge is the smallest rate on a grid of factor 1.2 at
which at least half of 8 runs of 60 steps stand above their start (mean loss of the first four minibatches; runs are
from the same weights, with directions and minibatches of their own). It is found by bisection from the prediction on,
so that an edge above other edges would be missed. Beside it stand what `smoothlab advise` says (predicted, tried,
both), a learning-rate range test, and the loss after 200 steps at the advised rate and at shares of the true edge.
How well the true edge is known shows a second sweep with runs of other directions and minibatches.
SmolLM2-135M on SST-2 has three runs a rate, rates a factor 2 apart, and no runs of 200 steps: an hour a case. Three
small models of other kinds, which `python -m benchmarks.trained_models` has trained on SST-2, are trained on it
further, and one of them on COPA.

    python -m benchmarks.advice [micro|network|trained|smollm2]   # continues benchmarks/results/advice_*.jsonl by case
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from benchmarks.trained_models import FOLDER, SHAPES
from smoothlab import records
from smoothlab.blocks import Block
from smoothlab.divergence import Diverged
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.advice import Rate, advise, rates_of
from smoothlab.experiments.advise.trying import Trial, Tries
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.setup import OPTIMIZERS
from smoothlab.experiments.settings import SettingsExperiment
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.trainer import Trainer, reshuffled
from smoothlab.zeroth.estimators import ZerothOrder

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
LONG = 200
LEVELS = 10
"""Rates a factor 3 apart at which an edge is looked for; below, single runs rise by chance as often as not."""
LOST = 4.0
"""Multiple of the loss at the start at which a run ends at once as unstable."""
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Rates of the sweep of 200 steps, as shares of the true edge."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
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
"""Which rate is swept, and the options of the run. In hybrid slices the other rate is the advised one."""
NETWORK = ("zo", "zo-q4", "full-sgd", "full-adam", "lora-sgd", "lora-adam", "hybrid-x", "hybrid-y", "hybrid-both")
"""Methods on the network, whose last layer stands for the PEFT module."""
TRAINED = ("zo", "lora-sgd", "lora-adam", "hybrid-x", "hybrid-y", "hybrid-both")
"""Methods on each of the trained models."""


class Work(NamedTuple):
    """What a case trains: a method of METHODS, the seed, and where they vary the model's folder and the data."""

    method: str
    seed: int = 0
    model: str = ""
    data: str = "sst2"


def _trained() -> dict[str, Work]:
    """Cases of the three trained models: SST-2 for all of them, COPA for the last one."""
    cases = {}
    for kind in SHAPES:
        folder = str(FOLDER / kind / "model")
        cases |= {f"{kind}-{name}": Work(name, model=folder) for name in TRAINED}
    return cases | {f"llama-copa-{name}": Work(name, model=folder, data="copa") for name in TRAINED[:3]}


CASES: dict[str, dict[str, Work]] = {
    "smollm2": {name: Work(name, model="out/smollm2") for name in ("lora-sgd", "lora-adam", "hybrid-x", "zo")},
    "micro": {name: Work(name) for name in METHODS},
    "network": {f"{name}-{seed}": Work(name, seed) for seed in range(3) for name in NETWORK},
    "trained": _trained(),
}
"""Cases by kind of model."""


@dataclass(frozen=True)
class AdviceBenchmark(SettingsExperiment):
    """Advised rates against true edges.

    Attributes:
        model: which of CASES are measured.
        batch: items in a minibatch.
        grid: factor between rates of a sweep.
        runs: runs at a rate.
        steps: steps of a run.
        data_dir: folder with sst2/ and copa/, for the 135M model and the trained ones.
    """

    name: ClassVar[str] = "advice"
    model: str = "micro"
    batch: int = 8
    grid: float = 1.2
    runs: int = 8
    steps: int = 60
    data_dir: str = ""

    def points(self) -> list[Row]:
        """Advice and edges of all cases, then their runs of 200 steps, then the second sweeps."""
        parts = [f"{part}/{name}" for name in CASES[self.model] for part in ("advice", "edge")]
        if self.model != "smollm2":
            parts += [f"{part}/{name}" for part in ("long", "again") for name in CASES[self.model]]
        return [{"setting": setting} for setting in parts]

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """Not used: what is measured depends on earlier rows."""
        raise NotImplementedError

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Rows of the settings that `done` lacks; edges need the advice, long runs the edge."""
        all_rows = list(done)
        finished = {row["setting"] for row in done}
        for point in self.points():
            part, _, name = point["setting"].partition("/")
            if point["setting"] in finished:
                continue
            case_rows = [row for row in all_rows if row["setting"].endswith("/" + name)]
            for row in getattr(Case(CASES[self.model][name], self, case_rows), part)():
                all_rows.append({"setting": point["setting"], **row})
                yield all_rows[-1]


class Case:
    """One method: its advice, its true edge, runs of 200 steps, and its edge again."""

    def __init__(self, work: Work, run: AdviceBenchmark, before: Sequence[Row]) -> None:
        self.work = work
        self.swept, options = METHODS[work.method]
        self.trainer: Trainer
        if run.model == "network":
            self.trainer = network(run.batch, work.seed, **options)
        else:
            if work.model:
                data_dir = None if work.data == "builtin" else Path(run.data_dir)
                options = options | {"model": work.model, "data": work.data, "data_dir": data_dir}
            self.trainer = Finetune(batch=run.batch, seed=work.seed, **options).setup().trainer()
        self.rates_by_option: dict[str, Rate] = {rate.option: rate for rate in rates_of(self.trainer)}
        self.before = before
        self.grid, self.runs, self.steps = run.grid, run.runs, run.steps

    def advice(self) -> Iterator[Row]:
        """Predicted and tried within the budget that `advise` takes by default."""
        try:
            advice = advise(self.trainer, by="confirm")
        except BadInput as error:
            yield {"part": "advice", "failed": str(error)}
            return
        yield {"part": "cost", "forwards": round(advice.forwards), "training_steps": round(advice.steps, 1),
               "budget": advice.budget, "seconds": round(advice.seconds, 3)}  # fmt: skip
        for advised in advice.advised:
            yield {"part": "advice", "option": advised.option, "measured": advised.value, "low": advised.low,
                   "high": advised.high, "source": advised.source, "flag": advised.flag}  # fmt: skip
        yield from advice.rows

    def edge(self) -> Iterator[Row]:
        """The runs of the sweep, the true edge, and the range test."""
        edge = yield from self.sweep("sweep", self.guess, 0)
        yield {"part": "edge", "option": self.swept, "measured": edge, "low": edge / self.grid, "high": edge}
        if math.isfinite(edge):
            yield self._range_test(self.base, edge)

    def long(self) -> Iterator[Row]:
        """The loss after 200 steps at shares of the true edge and at the advised rate."""
        edge = next(row["measured"] for row in self.before if row["part"] == "edge")
        if edge is None or not math.isfinite(edge):
            yield {"part": "long", "option": self.swept, "failed": "no edge was found"}
            return
        tries = Tries(self.trainer, LONG, abandoned=LOST)
        rates = {f"{share:g} of the edge": share * edge for share in SHARES}
        rates["advised"] = 1.0 if self.swept == "both" else self.base[self.swept]
        for name, rate in rates.items():
            trial = tries.run(rate, self.rates(self.base, rate), 0)
            yield {"part": "long", "option": self.swept, "source": name, **_run(trial)}

    def again(self) -> Iterator[Row]:
        """The same sweep from the same rate on, with other runs; `reference` is the first one's edge."""
        first = next(row["measured"] for row in self.before if row["part"] == "edge")
        edge = yield from self.sweep("second sweep", self.guess, self.runs)
        yield {"part": "second edge", "option": self.swept, "measured": edge, "low": edge / self.grid, "high": edge,
               "reference": first}  # fmt: skip

    @property
    def guess(self) -> float:
        """The limit that advice rests on, where sweeps begin; of both rates scaled together, twice the advised ones."""
        limits = [
            row["value"] for row in self.before
            if row["part"] == "limit" and row["option"] == self.swept and row["low"] is not None
        ]  # fmt: skip
        return 2.0 if self.swept == "both" else float(limits[-1])

    @property
    def base(self) -> dict[str, float]:
        """Advised rates by option."""
        rows = [row for row in self.before if row["part"] == "advice" and row.get("option") in self.rates_by_option]
        return {row["option"]: row["measured"] for row in rows}

    def rates(self, base: Mapping[str, float], rate: float) -> dict[str, float]:
        """Rates by block where the swept one is `rate`; both are scaled together, from the advised ones."""
        chosen = dict(base)
        if self.swept == "both":
            chosen = {option: value * rate for option, value in base.items()}
        else:
            chosen[self.swept] = rate
        return {name: chosen[option] for option, rated in self.rates_by_option.items() for name in rated.names}

    def sweep(self, part: str, guess: float, first: int) -> Iterator[Row]:
        """Yield a row a run, and return the true edge; runs are numbered from `first` on."""
        tries = Tries(self.trainer, self.steps, abandoned=LOST)
        unstable_levels: dict[int, bool] = {}
        k = round(math.log(guess, self.grid))
        jump = max(2, round(math.log(3, self.grid)))
        while not (False in unstable_levels.values() and True in unstable_levels.values()):
            if k in unstable_levels:
                break
            unstable_levels[k] = yield from self._unstable(tries, part, k, first)
            k += -jump if unstable_levels[k] else jump
            if len(unstable_levels) > LEVELS:
                return math.nan
        stable = max(k for k, unstable in unstable_levels.items() if not unstable)
        above = min(k for k, unstable in unstable_levels.items() if unstable and k > stable)
        while above - stable > 1:
            middle = (above + stable) // 2
            unstable_levels[middle] = yield from self._unstable(tries, part, middle, first)
            if unstable_levels[middle]:
                above = middle
            else:
                stable = middle
        return self.grid**above

    def _unstable(self, tries: Tries, part: str, k: int, first: int) -> Iterator[Row]:
        """Whether half of the runs at grid^k are unstable; runs end when that is decided."""
        rate, above, below = self.grid**k, 0, 0
        for number in range(first, first + self.runs):
            trial = tries.run(rate, self.rates(self.base, rate), number)
            above, below = above + (trial.end > trial.start), below + (trial.end <= trial.start)
            yield {"part": part, "option": self.swept, **_run(trial)}
            if 2 * above >= self.runs or 2 * below > self.runs:
                break
        return 2 * above >= self.runs

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


def network(batch: int, seed: int, *, method: str, optimizer: str = "adam", q: int = 1) -> Trainer:
    """A GELU network of 3,300 parameters after 15 Adam steps on 512 points that another network labels."""
    torch.manual_seed(seed)
    points = torch.randn(512, 16)
    teacher, student = _layers(), _layers()
    labels = teacher(4 * points).argmax(1)
    fitted = torch.optim.Adam(student.parameters(), 3e-3)
    for step in range(15):
        numbers = torch.tensor(reshuffled(512, 32, seed, step))
        fitted.zero_grad()
        torch.nn.functional.cross_entropy(student(points[numbers]), labels[numbers]).backward()
        fitted.step()
    blocks = {
        "base": Block("base", tuple(student[:4].parameters())),
        "peft": Block("peft", tuple(student[4:].parameters())),
    }
    trained = {"zo": ("base",), "fo-full": ("base",), "fo-peft": ("peft",), "hybrid": ("base", "peft")}[method]
    student.requires_grad_(False)
    groups = []
    for name in trained:
        for p in blocks[name].params:
            p.requires_grad_(True)
        zeroth = name == "base" and method != "fo-full"
        oracle = ZerothOrder(mu=1e-3, q=q) if zeroth else None
        groups.append({"params": list(blocks[name].params), "name": name, "lr": 1e-3, "oracle": oracle})

    def loss(model: Any, numbers: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(points[numbers]), labels[numbers])

    return Trainer(
        student, {name: blocks[name] for name in trained},
        lambda step: [torch.tensor(reshuffled(512, batch, seed + 1, step))], loss,
        HybridSGD(groups, seed=seed, exact=OPTIMIZERS[optimizer]),
    )  # fmt: skip


def _layers() -> torch.nn.Sequential:
    gelu = torch.nn.GELU
    return torch.nn.Sequential(torch.nn.Linear(16, 48), gelu(), torch.nn.Linear(48, 48), gelu(), torch.nn.Linear(48, 2))


def _run(trial: Trial) -> Row:
    return {"rate": trial.rate, "run": trial.number, "loss_before": trial.start, "loss_after": trial.end,
            "steps": trial.steps}  # fmt: skip


def main() -> None:
    """Continue the benchmark of one model, in one thread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=CASES, default="micro")
    parser.add_argument("--data-dir", default="", help="folder with sst2/ and copa/, for smollm2 and trained")
    parser.add_argument("--out", type=Path, help="record file; benchmarks/results/advice_MODEL.jsonl by default")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sizes: dict[str, dict[str, Any]] = {
        "micro": {}, "network": {"batch": 64}, "trained": {"data_dir": chosen.data_dir},
        "smollm2": {"grid": 2.0, "runs": 3, "data_dir": chosen.data_dir},
    }  # fmt: skip
    experiment = AdviceBenchmark(chosen.model, **sizes[chosen.model])
    out = chosen.out or RESULTS / f"advice_{chosen.model}.jsonl"
    records.run(experiment, out, environment=records.environment(device="cpu", threads=1))


if __name__ == "__main__":
    main()
