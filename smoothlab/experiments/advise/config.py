"""Options and defaults of advice on learning rates; loads no torch, for the command line."""

from typing import Literal

By = Literal["auto", "predict", "try", "confirm"]
"""From curvature (predict), by short runs (try), both (confirm), or both where there is time (auto)."""
FRACTION = {"zeroth": 0.25, "exact": 0.5, "adam": 0.25}
"""Advised rate in units of its stability limit, by the kind of steps."""
BUDGET, MOST_STEPS, LARGE = 100, 2000, 135e6
"""By default advice takes the time of 100 training steps on models of 135 million parameters or more, and of more
steps, in proportion and up to 2,000, on smaller ones, where that still takes only a minute or two."""
SHORT_RUN, LONG_RUN, AMPLE = 20, 60, 1000
"""Steps of a run that tries rates: 60 where the budget is at least 1,000 steps, else 20."""


def default_budget(parameters: int) -> int:
    """Training steps whose time advice on a model of so many parameters may take."""
    return int(min(max(BUDGET, BUDGET * LARGE / max(parameters, 1)), MOST_STEPS))


def default_run(budget: float) -> int:
    """Steps of a short run within a budget of so many steps."""
    return LONG_RUN if budget >= AMPLE else SHORT_RUN
