"""Advice on learning rates and mu from a trainer: limits predicted, tried, or both, within the time of some steps."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from smoothlab.blocks import Block
from smoothlab.divergence import RATE_OPTIONS
from smoothlab.errors import BadInput
from smoothlab.experiments.advise import comparing
from smoothlab.experiments.advise.config import AMPLE, FRACTION, By, default_budget, default_run
from smoothlab.experiments.advise.perturbation import BestPerturbation, best_perturbation
from smoothlab.experiments.advise.predicting import BESIDE, Prediction, expected_gradients, predicted_limit
from smoothlab.experiments.advise.trying import BACKWARD, JUDGED, Limit, Trial, Tries, forwards_of_step, stability_limit
from smoothlab.stats.intervals import Interval
from smoothlab.stats.thresholds import threshold
from smoothlab.trainer import Trainer
from smoothlab.zeroth.estimators import ZerothOrder

Row = dict[str, Any]
AFFORDABLE = 0.85
"""Largest share of the time for a rate that a prediction may be expected to take, as it may take longer."""
RUNS = {"zeroth": 0, "exact": 3, "adam": 3}
"""Runs for which a prediction leaves time, by the kind of steps, if it averages over fewer minibatches.

A random walk says more about the limit than runs in the same time; a largest eigenvalue, however exact, gives the limit
to a factor of 3.
"""
TIMED = 3
"""Steps that are timed."""
MINIBATCHES = 4
"""Minibatches that a prediction averages over, at most."""
COMPARING = 1 / 3
"""Share of an ample budget that is kept for comparing rates by longer runs."""


class Advised(NamedTuple):
    """An advised rate or mu.

    Attributes:
        option: name of what is advised: eta_x, eta_y, mu, or a block with a rate of its own.
        value: the advice.
        low: lower end of its 95 % interval. That of a rate is the interval of its limit times the advised fraction of
            the limit, and does not cover the question which fraction learns most.
        high: upper end.
        source: "predicted", "tried" or "predicted and tried".
        weakest: the assumption that is most in doubt.
        flag: None, or what makes the advice doubtful.
    """

    option: str
    value: float
    low: float
    high: float
    source: str
    weakest: str
    flag: str | None = None


@dataclass(frozen=True)
class Advice:
    """Result of `advise`.

    Attributes:
        advised: rates and mu.
        rows: all that was measured, as flat records.
        forwards: cost in forward passes of one minibatch.
        seconds: cost in seconds.
        steps: cost in training steps, by time.
        budget: largest cost that was allowed, in training steps.
    """

    advised: tuple[Advised, ...]
    rows: tuple[Row, ...]
    forwards: float
    seconds: float
    steps: float
    budget: float

    def __getitem__(self, option: str) -> Advised:
        for advised in self.advised:
            if advised.option == option:
                return advised
        raise KeyError(option)


@dataclass
class Rate:
    """A learning rate that is advised on, and the groups that have it."""

    option: str
    names: list[str]
    block: Block
    kind: str
    configured: float


class Clock:
    """Seconds since the start, and what steps and forward passes of a trainer take.

    Steps are counted in the processor's time on a CPU: other programs that want it too slow some steps and not others.
    """

    def __init__(self, trainer: Trainer) -> None:
        on_cpu = all(p.device.type == "cpu" for block in trainer.blocks.values() for p in block.params)
        self._now = time.process_time if on_cpu else time.perf_counter
        self._first_tick, self._started = self._now(), time.perf_counter()
        self.forwards = 0.0
        loss = trainer.minibatch_loss(0)
        with trainer.on_trial(dict.fromkeys(trainer.blocks, 0.0)):
            trainer.update()  # the first step looks closer than the others, and warms up
            started = self._now()
            for _ in range(TIMED):
                trainer.update()
            self.step = (self._now() - started) / TIMED
        started = self._now()
        with torch.no_grad():
            for _ in range(TIMED):
                loss()
        self.forward = (self._now() - started) / TIMED
        self.cost = forwards_of_step(trainer.optimizer)
        self.forwards += (TIMED + 1) * self.cost + TIMED

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    @property
    def steps(self) -> float:
        """Time spent since the start, in training steps."""
        return (self._now() - self._first_tick) / self.step


def advise(
    trainer: Trainer,
    *,
    by: By = "auto",
    budget: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda news: None,
) -> Advice:
    """Advises on the learning rates of a trainer's groups and on mu, from its present weights, which stay to the bit.

    >>> import torch
    >>> from smoothlab import Block, HybridSGD, Trainer, advise
    >>> x = torch.ones(3, requires_grad=True, dtype=torch.float64)
    >>> optimizer = HybridSGD([{"params": [x], "lr": 0.1, "name": "x"}])
    >>> loss = lambda model, batch: 2 * x.square().sum()
    >>> trainer = Trainer(None, {"x": Block("x", (x,))}, lambda step: [0], loss, optimizer)
    >>> advice = advise(trainer, budget=1e6)["x"]
    >>> advice.low <= 0.25 <= advice.high   # half of 2/lambda
    True

    Args:
        trainer: any trainer without a seed log.
        by: "predict": from measured curvature; "try": short runs; "confirm": both; "auto": both where the prediction
            leaves time for runs, else runs.
        budget: training steps whose time may be spent. No run begins that would end after it, at the pace of those
            before. What no advice can do without is done whatever the budget: steps that are timed, mu, and for each
            rate a prediction (with "predict" and "confirm") or a run. By default 100 for a model of 135 million
            parameters or more, and in proportion more for a smaller one, at most 2,000.
        steps: steps of a short run; by default 60 where the budget is at least 1,000, else 20. With such a budget,
            and without "predict", a third of it is kept for up to three runs of 200 steps at rates a factor 2 apart,
            of which the best are advised (`smoothlab.experiments.advise.comparing`).
        seed: seed of probes and directions.
        tell: called with a line about each run that was made.

    Raises:
        BadInput: there is no limit to advise on: the loss is at its floor or does not depend on a block, or, with
            "predict", curvature sets none; the message says what to do instead.
    """
    if budget is None:
        budget = default_budget(_parameters(trainer))
    if steps is None:
        steps = default_run(budget)
    return _Adviser(trainer, by, budget, steps, seed, tell).advice()


def _parameters(trainer: Trainer) -> int:
    """Parameters of a trainer's model, or of its blocks where it has no model."""
    if isinstance(trainer.model, torch.nn.Module):
        return sum(p.numel() for p in trainer.model.parameters())
    return sum(block.dim for block in trainer.blocks.values())


class _Adviser:
    def __init__(
        self, trainer: Trainer, by: By, budget: float, steps: int, seed: int, tell: Callable[[str], None]
    ) -> None:
        self.trainer, self.by, self.budget, self.seed, self.tell = trainer, by, budget, seed, tell
        self.rows: list[Row] = []
        self.advised: list[Advised] = []
        self.clock = Clock(trainer)
        self.tries, self.comparing = Tries(trainer, steps), Tries(trainer, comparing.STEPS)

    def advice(self) -> Advice:
        rates = rates_of(self.trainer)
        reserved = COMPARING * self.budget if self.by != "predict" and self.budget >= AMPLE else 0.0
        with self._best_mu():
            chosen = {name: 0.0 for rate in rates for name in rate.names}
            for number, rate in enumerate(rates):
                share = (self.budget - reserved - self.clock.steps) / (len(rates) - number)
                advised = self._advise(rate, chosen, self.clock.steps + share)
                self.advised.append(advised)
                chosen |= dict.fromkeys(rate.names, advised.value)
            cost = len(comparing.FACTORS) * (comparing.STEPS + self._cost_of_losses())
            if reserved and cost <= self.budget - self.clock.steps:
                self._compare(rates)
        clock, forwards = self.clock, self.clock.forwards + self.tries.forwards + self.comparing.forwards
        return Advice(tuple(self.advised), tuple(self.rows), forwards, clock.seconds, clock.steps, self.budget)

    def _compare(self, rates: Sequence[Rate]) -> None:
        """Scale the advised rates by the factor whose run of 200 steps ends with the lowest loss."""
        usual = {advised.option: advised for advised in self.advised}

        def scaled(factor: float) -> dict[str, Advised]:
            scaled_rates = {}
            for rate in rates:
                advised, times = usual[rate.option], comparing.times(FRACTION[rate.kind], factor)
                ends = {name: times * getattr(advised, name) for name in ("value", "low", "high")}
                scaled_rates[rate.option] = advised._replace(**ends)
            return scaled_rates

        def by_block(factor: float) -> dict[str, float]:
            return {name: scaled(factor)[rate.option].value for rate in rates for name in rate.names}

        best, runs = comparing.compare(
            self.comparing, by_block, budget=lambda: self.budget - self.clock.steps,
            on_run=lambda run: self.tell(f"{run}; {self._spent()}"),
        )  # fmt: skip
        self.rows += [{"part": "comparison", **run._asdict()} for run in runs]
        self.advised = list((usual | scaled(best)).values())

    @contextmanager
    def _best_mu(self) -> Iterator[None]:
        """Inside the context the zeroth-order groups have the best mu."""
        replaced = []
        try:
            for group in self.trainer.optimizer.param_groups:
                oracle = group["oracle"]
                if isinstance(oracle, ZerothOrder):
                    best = self._perturbation(group, oracle)
                    replaced.append((group, oracle))
                    group["oracle"] = replace(oracle, mu=best.mu.value)
            yield
        finally:
            for group, oracle in replaced:
                group["oracle"] = oracle

    def _perturbation(self, group: Mapping[str, Any], oracle: ZerothOrder) -> BestPerturbation:
        block = Block(group["name"], tuple(group["params"]))
        loss = self.trainer.minibatch_loss(0)
        best = best_perturbation(loss, block, oracle.distribution, oracle.sides, seed=(self.seed, 2))
        self.clock.forwards += best.evaluations
        weakest = "that the loss bends alike along all directions"
        self.advised.append(Advised("mu", *best.mu, "differences of the loss", weakest, best.flag))
        self.rows.append({
            "part": "perturbation", "option": "mu", "block": block.name, "value": best.mu.value, "low": best.mu.low,
            "high": best.mu.high, "error": best.error, "slope": best.slope, "noise": best.noise, "flag": best.flag,
        })  # fmt: skip
        return best

    def _advise(self, rate: Rate, chosen: Mapping[str, float], until: float) -> Advised:
        """Advise on one rate, the others as chosen; `until` is the largest total cost afterwards, in steps."""
        prediction, reason = self._predicted(rate, chosen, until)
        tried = None
        if self.by != "predict":
            tried = self._tried(rate, chosen, prediction, until)
        if tried is None:
            assert prediction is not None
            flag = "no time was left to try" if self.by != "predict" else "no run has confirmed it"
            return self._advised(rate, prediction.limit, "predicted", prediction.weakest, flag)
        source, weakest = "tried", "that the limit of short runs is that of long ones"
        if prediction is not None:
            source, weakest = "predicted and tried", prediction.weakest
        return self._advised(rate, tried.limit, source, weakest, "; ".join(filter(None, (tried.flag, reason))) or None)

    def _predicted(self, rate: Rate, chosen: Mapping[str, float], until: float) -> tuple[Prediction | None, str | None]:
        """The prediction, or None with the reason."""
        if self.by == "try":
            return None, None
        minibatches = self._affordable(rate, chosen, until)
        if self.by == "auto" and not minibatches:
            return None, None
        try:
            prediction = predicted_limit(
                self.trainer, rate.block, rates=chosen, minibatches=max(minibatches, 1), seed=(self.seed, 3),
                steps=self.tries.steps,
            )  # fmt: skip
        except BadInput as error:
            if self.by == "predict":
                raise
            return None, f"not predicted: {error}"
        self.clock.forwards += prediction.gradients * (1 + BACKWARD)
        self._limit(rate, prediction.limit, "predicted", prediction.condition, None)
        return prediction, None

    def _affordable(self, rate: Rate, chosen: Mapping[str, float], until: float) -> int:
        """Minibatches whose curvature may be measured, at most 4; 0: a prediction takes too long."""
        gradient = (1 + BACKWARD) * self.clock.forward / self.clock.step
        available = AFFORDABLE * (until - self.clock.steps)
        if rate.kind == "zeroth" and any(chosen.values()):
            available -= BESIDE
        for runs in range(RUNS[rate.kind], -1, -1):
            for minibatches in range(MINIBATCHES, 0, -1):
                cost = expected_gradients(self.trainer, rate.block, minibatches) * gradient
                if cost + runs * self._cost_of_run() <= available:
                    return minibatches
        return 0

    def _cost_of_run(self) -> float:
        """Cost of a run in steps, with the loss at the start, which only the first run computes."""
        return self.tries.steps + self._cost_of_losses()

    def _cost_of_losses(self) -> float:
        """Cost in steps of the losses at the start and at the end of a run."""
        return 2 * JUDGED * self.clock.forward / self.clock.step

    def _spent(self) -> str:
        return f"{self.clock.steps:.0f} of {self.budget:g} steps' time is spent"

    def _tried(
        self, rate: Rate, chosen: Mapping[str, float], prediction: Prediction | None, until: float
    ) -> Limit | None:
        """The limit by short runs, or None where no time is left for them and there is a prediction."""
        cost = self._cost_of_run()
        if prediction is not None and until - self.clock.steps < cost:
            return None
        guess, prior, shorter = rate.configured or 1e-4, None, 1.0
        if prediction is not None:
            shorter = prediction.shorter
            prior = _scaled(prediction.limit, shorter)
            guess = math.sqrt(prior.low * prior.high)  # limits lie as often above it as below
        limit = stability_limit(
            self.tries, lambda value: {**chosen, **dict.fromkeys(rate.names, value)}, guess,
            budget=lambda: until - self.clock.steps, cost=cost, prior=prior, names=rate.option,
            on_trial=lambda trial: self._report_trial(rate, trial),
        )  # fmt: skip
        for trial in limit.trials:
            self.rows.append({
                "part": "trial", "option": rate.option, "block": rate.block.name, "rate": trial.rate,
                "run": trial.number, "loss_before": trial.start, "loss_after": trial.end, "steps": trial.steps,
            })  # fmt: skip
        unstable = [trial.unstable for trial in limit.trials]
        tried_limit = threshold([trial.rate for trial in limit.trials], unstable)
        limit = replace(limit, limit=_scaled(limit.limit, 1 / shorter))
        self._limit(rate, _scaled(tried_limit, 1 / shorter), "tried", "loss above its start", limit.flag)
        if prediction is not None:
            self._limit(rate, limit.limit, "predicted and tried", "loss above its start", limit.flag)
        return limit

    def _report_trial(self, rate: Rate, trial: Trial) -> None:
        verdict = "unstable" if trial.unstable else "stable"
        self.tell(f"{rate.option} {trial.rate:.3g} is {verdict} over {self.tries.steps} steps; {self._spent()}")

    def _limit(self, rate: Rate, limit: Interval, source: str, condition: str, flag: str | None) -> None:
        self.rows.append({
            "part": "limit", "option": rate.option, "block": rate.block.name, "source": source,
            "condition": condition, "value": limit.value, "low": limit.low, "high": limit.high, "flag": flag,
        })  # fmt: skip

    def _advised(self, rate: Rate, limit: Interval, source: str, weakest: str, flag: str | None) -> Advised:
        value, low, high = (FRACTION[rate.kind] * end for end in limit)
        return Advised(rate.option, value, low, high, source, weakest, flag)


def _scaled(limit: Interval, factor: float) -> Interval:
    """The limit times a factor, as for runs of another length."""
    return Interval(*(factor * end for end in limit))


def rates_of(trainer: Trainer) -> list[Rate]:
    """Learning rates of a trainer's groups: those of exact gradients first, as their limits cost least."""
    rates: dict[str, Rate] = {}
    groups: Sequence[Mapping[str, Any]] = trainer.optimizer.param_groups
    for group in sorted(groups, key=lambda group: group["oracle"] is not None):
        option = RATE_OPTIONS.get(group["name"], group["name"]).removeprefix("--").replace("-", "_")
        kind = "zeroth" if group["oracle"] is not None else "adam" if "betas" in group else "exact"
        params = tuple(group["params"])
        if option in rates:
            rate = rates[option]
            params = rate.block.params + params
            rate.names.append(group["name"])
            rate.block = Block(rate.block.name + "+" + group["name"], params)
        else:
            rates[option] = Rate(option, [group["name"]], Block(group["name"], params), kind, group["lr"])
    return list(rates.values())
