"""Stability limits of learning rates by trying: short runs from the same weights, each at a rate of its own.

A run is stable if the loss after its steps is at most 1 % above the loss at its start; both are the mean of the first
minibatches. Each run has a number of its own, which fixes its zeroth-order directions and its minibatches: single runs
differ, and the limit is the rate at which half of them are unstable. Rates a factor 3 apart are tried until both kinds
have been seen, then rates around the median of the limit's distribution (`smoothlab.stats.thresholds`), until its
interval is short or the budget is spent. The weights, the optimizer and the trainer are afterwards as before, to the
bit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from smoothlab.divergence import Diverged
from smoothlab.errors import BadInput
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.stats.intervals import Interval
from smoothlab.stats.thresholds import next_level, threshold
from smoothlab.trainer import Trainer

JUDGED = 4
"""Minibatches whose mean loss a run starts and ends with."""
ABANDONED = 4.0
"""Multiple of the loss at the start at which a run ends at once as unstable."""
FACTOR = 3.0
"""Factor between rates until stable and unstable runs have been seen."""
MOST_FACTORS = 14
"""Largest number of such factors: the rates then span 4.8e6."""
NARROW = 2.25
"""Ratio of the interval's ends at which trying stops: the limit is then known to a factor of 1.5."""
DRIFT = 0.01
"""Rise of the loss, relative to its start, that is no sign of instability: runs at small rates rise by chance."""
BACKWARD = 2.0
"""Forward passes that a backward pass costs."""


@dataclass(frozen=True)
class Trial:
    """One short run.

    Attributes:
        rate: the rate that was tried.
        number: number of the run, which fixes its directions and minibatches.
        start: mean loss of the first minibatches before.
        end: the same after; infinite if the run was abandoned.
        steps: steps that were made.
    """

    rate: float
    number: int
    start: float
    end: float
    steps: int

    @property
    def unstable(self) -> bool:
        """Whether the loss ends above its start, by more than runs at small rates drift."""
        return not self.end <= self.start + DRIFT * abs(self.start)


@dataclass
class Tries:
    """Short runs of a trainer from its present weights.

    Attributes:
        trainer: the trainer, which is afterwards as before.
        steps: steps of a run.
        abandoned: multiple of the loss at the start at which a run ends as unstable.
        forwards: cost so far, in forward passes of one minibatch.
    """

    trainer: Trainer
    steps: int = 20
    abandoned: float = ABANDONED
    forwards: float = field(default=0.0, init=False)
    _start: float | None = field(default=None, init=False)

    @property
    def start(self) -> float:
        """Mean loss of the first minibatches at the present weights."""
        if self._start is None:
            self._start = self._loss()
            if not math.isfinite(self._start):
                raise self.trainer.diverged(self._start)
        return self._start

    def run(self, rate: float, rates: Mapping[str, float], number: int) -> Trial:
        """One run at rates by block; `rate` is what the trial is known by.

        Raises:
            BadInput: what the optimizer refuses at the first step: mu below rounding, a loss that is no function of a
                block.
        """
        start, end, steps_made, cost = self.start, math.inf, 0, forwards_of_step(self.trainer.optimizer)
        at_start = max(abs(start), torch.finfo(torch.float32).eps)
        with self.trainer.on_trial(rates, number=number, first=number * self.steps):
            try:
                for _ in range(self.steps):
                    steps_made += 1
                    loss = self.trainer.update()
                    if steps_made == 1:  # that of the weights at the start, which a long mu moves far away from them
                        at_start = max(at_start, abs(loss))
                    if not loss <= self.abandoned * at_start:
                        break
                else:
                    end = self._loss()
            except Diverged:
                pass
        self.forwards += steps_made * cost
        return Trial(rate, number, start, end if math.isfinite(end) else math.inf, steps_made)

    def _loss(self) -> float:
        self.forwards += JUDGED
        with torch.no_grad():
            return sum(float(self.trainer.minibatch_loss(number)()) for number in range(JUDGED)) / JUDGED


@dataclass(frozen=True)
class Limit:
    """A stability limit and the runs that it rests on; `flag` says what makes it doubtful."""

    limit: Interval
    trials: tuple[Trial, ...]
    flag: str | None = None


def stability_limit(
    tries: Tries,
    rates: Callable[[float], Mapping[str, float]],
    guess: float,
    *,
    budget: Callable[[], float] = lambda: math.inf,
    cost: float = 0.0,
    runs: int = 40,
    prior: Interval | None = None,
    names: str = "the rate",
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Limit:
    """The rate at which half of all runs are unstable, with its 95 % interval.

    Args:
        tries: makes the runs.
        rates: learning rates by block at a value of the rate that is looked for.
        guess: rate of the first run, which is made whatever is left of the budget.
        budget: what is left of it, in a unit such as seconds. A further run is made if as much is left as the longest
            run before has taken.
        cost: what a run takes at least, in the same unit; abandoned ones take less.
        runs: runs at most.
        prior: a predicted limit, see `threshold`.
        names: the rate's name, for errors.
        on_trial: called with each run that was made.

    Raises:
        BadInput: stable and unstable rates are not both found. Where all are stable, a predicted limit stands.
    """
    trials: list[Trial] = []
    rate, longest = guess, cost
    while len(trials) < runs and (not trials or longest <= budget()):
        before = budget()
        trials.append(tries.run(rate, rates(rate), len(trials)))
        on_trial(trials[-1])
        longest = max(longest, before - budget())
        unstable = [trial.unstable for trial in trials]
        if all(unstable) or not any(unstable):
            rate = trials[-1].rate * (1 / FACTOR if unstable[0] else FACTOR)
            if len(trials) <= MOST_FACTORS:
                continue
            if prior is None or unstable[0] or _unmoved(trials):
                raise _one_sided(trials, names)
            highest = trials[-1].rate
            return Limit(
                Interval(prior.value, prior.low, max(prior.high, highest)), tuple(trials),
                f"no {names} up to {highest:.3g} makes the loss rise: the prediction stands",
            )  # fmt: skip
        limit = threshold([trial.rate for trial in trials], unstable, prior)
        if limit.high <= NARROW * limit.low:
            break
        rate = next_level(limit, len(trials))
    unstable = [trial.unstable for trial in trials]
    flag = None
    if all(unstable) or not any(unstable):
        flag = f"only {'un' * unstable[0]}stable runs"
    return Limit(threshold([trial.rate for trial in trials], unstable, prior), tuple(trials), flag)


def _unmoved(trials: Sequence[Trial]) -> bool:
    """Whether no run has changed the loss by a bit."""
    return all(trial.end == trial.start for trial in trials)


def forwards_of_step(optimizer: HybridSGD) -> float:
    """Forward passes of one minibatch that a training step costs; moves of the weights are not counted."""
    oracles = [group["oracle"] for group in optimizer.param_groups]
    cost, shared = 0.0, False
    if None in oracles:
        cost, shared = 1.0 + BACKWARD, True
    for oracle in oracles:
        if oracle is not None:
            cost += oracle.sides * getattr(oracle, "q", 1)
            cost += oracle.sides == 1 and not shared  # f(x, y), which an exact gradient computes anyway
    return cost


def _one_sided(trials: list[Trial], names: str) -> BadInput:
    """The error for trials that are all stable or all unstable: why no limit was found, and what to do."""
    first, last, start = trials[0].rate, trials[-1].rate, trials[0].start
    if all(trial.unstable for trial in trials):
        return BadInput(
            f"the loss, {start:.4g} at the start, rises at every {names} from {first:.3g} down to {last:.3g}: it may "
            "be at its floor; take weights from earlier in training, or measure curvature with smoothlab smoothness"
        )
    if _unmoved(trials):
        return BadInput(
            f"the loss, {start:.4g}, stays the same to the bit at every {names} from {first:.3g} to {last:.3g}: its "
            "gradient is 0, or it does not depend on the block; look at the groups and at the data"
        )
    return BadInput(
        f"no {names} from {first:.3g} up to {last:.3g} makes the loss, {start:.4g} at the start, rise: there is no "
        "limit to advise on; measure curvature with smoothlab smoothness, or give a larger rate to begin with"
    )
