"""Do PEFT methods differ by lambda_max alone? Their curvature beside their best learning rates.

For each PEFT method of `smoothlab.llm.peft_methods` and each seed (of module, minibatches and their order): lambda_max
of the PEFT block's Hessian at the start (mean loss of four minibatches), the predicted edge 2/lambda_max of plain SGD,
the mean loss of twelve minibatches after 100 steps at rates 2^k around that edge (the grid grows until the best rate is
between worse ones), and lambda_max after 100 steps at the best rate. If variants of LoRA differed by lambda_max alone,
as arXiv:2602.04998 suggests, best rate times lambda_max would be one number for all of them: `table` tests that.

`micro` has every method that can be trained, on the built-in data; SmolLM2-135M eight of them, on SST-2 in minibatches
of two and with one seed.

    python -m benchmarks.peft_edges                             # continues benchmarks/results/peft_edges.jsonl
    python -m benchmarks.peft_edges smollm2 --data-dir DIR      # the same in peft_edges_smollm2.jsonl
    python -m benchmarks.peft_edges [smollm2] --table           # prints the table of what is there
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.stats import f_oneway, linregress
from scipy.stats import t as student
from torch import Tensor

from smoothlab import record_files, records
from smoothlab.blocks import differentiable
from smoothlab.divergence import Diverged
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.settings import SettingsExperiment
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.exact import ExactHessian
from smoothlab.llm.peft_methods import PEFT_METHODS
from smoothlab.stats import samples
from smoothlab.stats.intervals import Interval
from smoothlab.trainer import Trainer

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
LORA_VARIANTS = ("lora", "rslora", "adalora", "vera", "loha", "lokr", "hira", "gralora", "randlora", "miss", "pvera",
                 "dora", "delora", "glora", "vblora", "unilora", "tinylora")  # fmt: skip
"""Methods that add a product of small matrices to weights; measured first."""
EIGHT = ("lora", "rslora", "adalora", "vera", "loha", "lokr", "gralora", "miss")
"""Variants of LoRA on the real model."""
BELOW = 3
"""Powers of 2 below the predicted edge at which rates are tried first, beside the edge itself."""
MOST = 8
"""Further rates, at most, where the best one is at an end of the grid."""
LANCZOS, MEASURED = 10, 4
"""Lanczos steps of lambda_max, and minibatches whose mean loss has this curvature."""
JUDGED = 12
"""Minibatches whose mean loss a run is judged by."""
LOST = 4.0
"""Multiple of the loss at the start at which a run ends at once."""


@dataclass(frozen=True)
class PeftEdges(SettingsExperiment):
    """Predicted edges and best learning rates by PEFT method.

    Attributes:
        model: the model, a name that `finetune` knows or a folder.
        data: its task.
        data_dir: folder with sst2/, for that task.
        seeds: seeds of module and minibatches.
        steps: steps of a run.
        batch: items in a minibatch.
        methods: PEFT methods; by default all that can be trained.
    """

    name: ClassVar[str] = "peft_edges"
    model: str = "micro"
    data: str = "builtin"
    data_dir: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 100
    batch: int = 8
    methods: tuple[str, ...] = tuple(name for name, method in PEFT_METHODS.items() if method.attaches(measured=False))

    def points(self) -> list[Row]:
        """Seed by seed, variants of LoRA before the other methods."""
        names = [name for name in LORA_VARIANTS if name in self.methods]
        names += [name for name in self.methods if name not in LORA_VARIANTS]
        points = []
        for seed in self.seeds:
            points += [{"setting": f"{name}/{seed}", "peft": name, "seed": seed} for name in names]
        return points

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """Rows of each method and seed: its edge at the start, its runs, the best rate, and the edge after it."""
        for point in points:
            try:
                for row in MethodRuns(self, point["peft"], point["seed"]).rows():
                    yield {**point, **row}
            except BadInput as error:
                yield {**point, "part": "refused", "failed": str(error)}


class MethodRuns:
    """Runs of one PEFT method with one seed."""

    def __init__(self, experiment: PeftEdges, peft: str, seed: int) -> None:
        self.steps, self.seed = experiment.steps, seed
        run = Finetune(
            model=experiment.model, data=experiment.data,
            data_dir=Path(experiment.data_dir) if experiment.data_dir else None,
            method="fo-peft", peft=peft, optimizer="sgd", batch=experiment.batch, seed=seed, dev=1, test=1,
        )  # fmt: skip
        self.trainer: Trainer = run.setup().trainer()
        self.measurable = not PEFT_METHODS[peft].refusal
        self.start = self.loss()
        self.weights: Mapping[str, Tensor] = {}  # after the best run so far

    def rows(self) -> Iterator[Row]:
        """Rows of all that is measured."""
        before, center = self.edge("start"), 0
        yield before
        if before.get("measured"):
            center = round(math.log2(before["measured"]))
        losses: dict[int, float] = {}
        powers = list(range(center - BELOW, center + 1))
        while powers:
            k = powers.pop(0)
            row = self.run(2.0**k, min(losses.values(), default=math.inf))
            losses[k] = row["loss_after"]
            yield row
            if not powers and len(losses) < BELOW + 1 + MOST:
                powers = further(losses, self.start)
        best = min(losses, key=lambda power: losses[power])
        if not math.isfinite(losses[best]):
            yield {"part": "refused", "failed": f"every rate down to {2.0**best:g} diverges"}
            return
        yield {"part": "best", "measured": 2.0**best, "low": 2.0 ** (best - 0.5), "high": 2.0 ** (best + 0.5),
               "loss_before": self.start, "loss_after": losses[best], "reference": before.get("measured")}  # fmt: skip
        with self.trainer.on_trial():
            self.trainer.load_weights(self.weights, self.steps)
            yield self.edge("end")

    def edge(self, part: str) -> Row:
        """Predicted edge 2/lambda_max at the present weights and lambda_max, or why there is none."""
        block = self.trainer.blocks["peft"]
        if not self.measurable:
            return {"part": part, "dim": block.dim, "failed": "its derivatives are not the loss's"}
        with differentiable([block]):
            run = Deflation(ExactHessian(self.mean_loss, [block]), block.name, [self.seed], ())
            run.krylov(LANCZOS)
        largest = float(np.linalg.eigvalsh(run.projected())[-1])
        if largest <= 0:
            return {"part": part, "dim": block.dim, "value": largest, "failed": "no curvature is positive"}
        return {"part": part, "dim": block.dim, "measured": 2 / largest, "low": 2 / max(run.reach().highest, largest),
                "high": 2 / largest, "value": largest}  # fmt: skip

    def run(self, rate: float, lowest_loss: float) -> Row:
        """One run at a rate; its weights are kept if its loss is below `lowest_loss`. Runs ended early have no loss."""
        end, steps_made = math.inf, 0
        with self.trainer.on_trial({"peft": rate}):
            try:
                for _ in range(self.steps):
                    steps_made += 1
                    if not self.trainer.update() <= LOST * self.start:
                        break
                else:
                    end = self.loss()
            except Diverged:
                pass
            if not math.isfinite(end):
                end = math.inf
            if end < lowest_loss:
                self.weights = self.trainer.weights()
        return {"part": "run", "rate": rate, "loss_before": self.start, "steps": steps_made, "loss_after": end}

    def mean_loss(self) -> Tensor:
        """Mean loss of the first minibatches that curvature is measured on; one minibatch alone has another Hessian."""
        return torch.stack([self.trainer.minibatch_loss(number)() for number in range(MEASURED)]).mean()

    def loss(self) -> float:
        """Mean loss of the first minibatches that runs are judged by."""
        with torch.no_grad():
            return sum(float(self.trainer.minibatch_loss(number)()) for number in range(JUDGED)) / JUDGED


def further(losses: Mapping[int, float], start: float) -> list[int]:
    """Powers of 2 of the rates to try next, given losses at some powers and at the start; none if the best is known.

    The best rate must have worse ones on both sides. Of two runs above the stable rates one may end well by chance, so
    that the two lowest rates must both have lowered the loss, the lower one less.

    >>> further({0: 0.6, 1: 0.5, 2: 0.9}, 1.0), further({0: 0.4, 1: 0.5}, 1.0), further({0: 1.7, 1: 0.7, 2: 0.8}, 1.0)
    ([], [-1], [-1])
    """
    best = min(losses, key=lambda power: (losses[power], power))
    lowest, second = sorted(losses)[:2]
    powers = {best - 1, best + 1}
    if not losses[second] <= losses[lowest] <= start:
        powers.add(lowest - 1)
    return sorted(powers - losses.keys())


@dataclass(frozen=True)
class Summary:
    """One PEFT method over its seeds.

    Attributes:
        peft: the method.
        seeds: seeds that have a best rate and an edge at the start; where none has an edge, those with a best rate.
        dim: parameters of the module.
        edges: predicted edges at the start, one a seed, or none at all.
        later: predicted edges after the steps at the best rate.
        rates: best rates, one a seed.
        stable: largest rates of which a run was not ended, one a seed.
        unstable_above: whether in every seed a rate above that was tried.
        losses: mean losses after the steps at the best rate, as differences from those at the start.
        reason: why there is no edge at the start, where there is none.
    """

    peft: str
    seeds: tuple[int, ...]
    dim: int
    edges: tuple[float, ...]
    later: tuple[float, ...]
    rates: tuple[float, ...]
    stable: tuple[float, ...]
    unstable_above: bool
    losses: tuple[float, ...]
    reason: str = ""

    @property
    def ratios(self) -> list[float]:
        """Best rates in units of the predicted edge of the same seed: best rate times lambda_max/2."""
        return self._over_edges(self.rates)

    @property
    def stable_ratios(self) -> list[float]:
        """The largest stable rates in units of the same edges."""
        return self._over_edges(self.stable)

    def _over_edges(self, rates: Sequence[float]) -> list[float]:
        return [rate / edge for rate, edge in zip(rates, self.edges, strict=True)] if self.edges else []


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """The methods that have a best rate, in the order of the records."""
    result = []
    for peft in dict.fromkeys(row["peft"] for row in rows):
        of_method = [row for row in rows if row["peft"] == peft]
        starts = {row["seed"]: row for row in of_method if row["part"] == "start"}
        best = {row["seed"]: row for row in of_method if row["part"] == "best"}
        with_edge = [seed for seed in best if starts[seed].get("measured")]
        seeds = with_edge or list(best)
        if not seeds:
            continue
        runs = {seed: [row for row in of_method if row["part"] == "run" and row["seed"] == seed] for seed in seeds}
        stable = {seed: max(run["rate"] for run in seed_runs if _ended_well(run)) for seed, seed_runs in runs.items()}
        ends = [row for row in of_method if row["part"] == "end" and row["seed"] in seeds]
        reasons = [row["failed"] for row in starts.values() if row.get("failed")]
        result.append(Summary(
            peft, tuple(seeds), starts[seeds[0]]["dim"],
            tuple(starts[seed]["measured"] for seed in with_edge),
            tuple(row["measured"] for row in ends if row.get("measured")),
            tuple(best[seed]["measured"] for seed in seeds), tuple(stable.values()),
            all(any(run["rate"] > stable[seed] for run in seed_runs) for seed, seed_runs in runs.items()),
            tuple(best[seed]["loss_after"] - best[seed]["loss_before"] for seed in seeds),
            "; ".join(dict.fromkeys(reasons)),
        ))  # fmt: skip
    return result


def _ended_well(run: Row) -> bool:
    return run["loss_after"] is not None and math.isfinite(run["loss_after"])


def geometric(values: Sequence[float]) -> Interval | None:
    """Geometric mean with Student's t interval of the logarithms; no interval from one value, None from none."""
    if not values:
        return None
    logarithms = np.log(values)
    if len(values) == 1:
        return Interval(values[0], math.nan, math.nan)
    return Interval(*np.exp(samples.mean(logarithms)))


def comparison(chosen: Sequence[Summary], *, stable: bool) -> Row:
    """Whether best rates, or the largest stable ones, in units of the edge are the same for all methods.

    All is on the log scale. `slope` is that of rates over edges, with Student's 95 % interval: 1 if methods differ by
    lambda_max alone. `spread_of_rates` and `spread_of_ratios` are standard deviations among methods, as factors:
    lambda_max explains what the second is smaller by. `p_value` is that of the F test of one number for all methods,
    seeds being the repetitions; None with a single seed.
    """
    usable = [summary for summary in chosen if summary.ratios]
    ratios = [np.log2(summary.stable_ratios if stable else summary.ratios) for summary in usable]
    rates = [float(np.log2(summary.stable if stable else summary.rates).mean()) for summary in usable]
    edges = [float(np.log2(summary.edges).mean()) for summary in usable]
    line = linregress(edges, rates)
    half = student.ppf(0.975, len(usable) - 2) * line.stderr
    repeated = [ratio for ratio in ratios if len(ratio) > 1]
    return {
        "methods": len(usable), "slope": round(float(line.slope), 3),
        "low": round(float(line.slope - half), 3), "high": round(float(line.slope + half), 3),
        "spread_of_rates": round(2 ** float(np.std(rates, ddof=1)), 2),
        "spread_of_ratios": round(2 ** float(np.std([ratio.mean() for ratio in ratios], ddof=1)), 2),
        "p_value": float(f_oneway(*repeated).pvalue) if len(repeated) > 1 else None,
    }  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line a method, then the comparison of variants of LoRA and of all methods."""
    lines = [
        "| method | parameters | 2/lambda_max at the start | after the steps | best rate | best rate / edge | "
        "largest stable rate / edge | loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    chosen = summaries(rows)
    for summary in chosen:
        loss = sum(summary.losses) / len(summary.losses)
        columns = (summary.edges, summary.later, summary.rates, summary.ratios)
        cells = [_as_text(geometric(values)) for values in columns]
        stable = _as_text(geometric(summary.stable_ratios))
        if summary.stable_ratios and not summary.unstable_above:
            stable = f"at least {stable}"
        lines.append(f"| {summary.peft} | {summary.dim:,} | {' | '.join(cells)} | {stable} | {loss:+.3f} |")
    for name, group in {
        "variants of LoRA": [summary for summary in chosen if summary.peft in LORA_VARIANTS], "all methods": chosen,
    }.items():  # fmt: skip
        if len([summary for summary in group if summary.ratios]) > 2:
            lines += [
                f"\n{name}, {which} rate: {json.dumps(comparison(group, stable=which != 'best'))}"
                for which in ("best", "largest stable")
            ]
    return "\n".join(lines)


def _as_text(interval: Interval | None) -> str:
    if interval is None:
        return "none"
    value, low, high = map(_number, interval)
    return value if math.isnan(interval.low) else f"{value} ({low} to {high})"


def _number(value: float) -> str:
    """Two significant digits, without an exponent from 100 to 100,000."""
    return f"{float(f'{value:.2g}'):,.0f}" if 100 <= value < 1e5 else f"{value:.2g}"


def main() -> None:
    """Continue the record of one model, in one thread, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=("micro", "smollm2"), default="micro")
    parser.add_argument("--data-dir", default="", help="folder with sst2/, for smollm2")
    parser.add_argument("--table", action="store_true", help="print what is on record")
    chosen = parser.parse_args()
    experiment, out = PeftEdges(), RESULTS / "peft_edges.jsonl"
    if chosen.model == "smollm2":
        experiment = PeftEdges("out/smollm2", "sst2", chosen.data_dir, seeds=(0,), batch=2, methods=EIGHT)
        out = RESULTS / "peft_edges_smollm2.jsonl"
    if chosen.table:
        print(table([row for row in record_files.read(out).rows if row is not None]))
        return
    torch.set_num_threads(1)
    records.run(experiment, out, environment=records.environment(device="cpu", threads=1))


if __name__ == "__main__":
    main()
