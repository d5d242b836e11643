"""The share of the stability limits that trains best, by runs of 200 steps at shares a factor 2 apart.

A limit says where a run fails, and not how far below it a run learns most: on small networks that was between an eighth
and a half of the limit. The runs here have the minibatches and the zeroth-order directions of the training to come,
whose beginning they are. All rates are scaled together, since a module's rate and the base model's act on one another.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from smoothlab.experiments.advise.trying import Tries

STEPS = 200
"""Steps of a run."""
FACTORS = (1.0, 0.5, 2.0)
"""Factors of the usual shares of the limits that are compared."""
HIGHEST = 0.75
"""Share of a limit beyond which no rate is set: a run of a few hundred steps may do well there, and fail later."""


class Compared(NamedTuple):
    """One run at a factor of the advised rates.

    Attributes:
        factor: times the usual shares of the limits.
        loss_before: mean loss of the first minibatches before.
        loss_after: the same after; infinite if the run was abandoned.
        steps: steps that were made.
    """

    factor: float
    loss_before: float
    loss_after: float
    steps: int

    def __str__(self) -> str:
        rates = f"{self.factor:g} times the usual rates" if self.factor != 1 else "the usual rates"
        return f"{rates}: the loss goes from {self.loss_before:.3g} to {self.loss_after:.3g} in {self.steps} steps"


def times(usual: float, factor: float) -> float:
    """A rate at `factor` times the usual share of its limit, at most HIGHEST, in units of the rate at the usual share.

    >>> times(0.25, 2.0), times(0.5, 2.0)
    (2.0, 1.5)
    """
    return min(factor, HIGHEST / usual)


def compare(
    tries: Tries,
    rates: Callable[[float], Mapping[str, float]],
    *,
    budget: Callable[[], float] = lambda: math.inf,
    on_run: Callable[[Compared], None] = lambda run: None,
) -> tuple[float, list[Compared]]:
    """The factor of the lowest loss, the first of equal ones, and all runs; the lowest factor where no run is stable.

    Args:
        tries: makes the runs.
        rates: learning rates by block at a factor.
        budget: what is left of it, in a unit such as seconds. A further run is made if as much is left as the longest
            run before has taken.
        on_run: called with each run that was made.
    """
    runs: list[Compared] = []
    longest = 0.0
    for factor in FACTORS:
        before = budget()
        if longest > before:
            break
        trial = tries.run(factor, rates(factor), 0)  # run 0 draws what the training will draw
        runs.append(Compared(factor, trial.start, trial.end, trial.steps))
        on_run(runs[-1])
        longest = max(longest, before - budget())
    best = min(runs, key=lambda run: run.loss_after)
    if not math.isfinite(best.loss_after):
        return min(FACTORS), runs
    return best.factor, runs
