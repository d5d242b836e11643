"""Runs of 200 steps at shares of the limits a factor 2 apart."""

import math

import pytest

from smoothlab.experiments.advise.comparing import FACTORS, STEPS, compare
from smoothlab.experiments.advise.trying import Tries
from smoothlab.zeroth.estimators import ZerothOrder
from tests.experiments.advise.quadratics import trainer_of


@pytest.mark.parametrize(("rate", "best"), [(0.25, 1.0), (0.5, 0.5), (0.12, 2.0)])
def test_the_factor_of_the_lowest_loss_is_chosen(rate: float, best: float) -> None:
    """f = 2 x^2, where 1/lambda = 0.25 is the best rate, to the bit."""
    seen = []
    factor, runs = compare(Tries(trainer_of([4.0]), STEPS), lambda factor: {"base": factor * rate}, on_run=seen.append)
    assert factor == best and seen == runs and [run.factor for run in runs] == list(FACTORS)


def test_the_lowest_factor_is_chosen_where_no_run_is_stable() -> None:
    factor, runs = compare(Tries(trainer_of([4.0]), STEPS), lambda factor: {"base": 1e3 * factor})
    assert factor == min(FACTORS) and all(math.isinf(run.loss_after) for run in runs)
    assert str(runs[1]).startswith("0.5 times the usual rates: the loss goes from 2 to inf in ")


def test_a_budget_that_two_runs_have_spent_has_no_third() -> None:
    tries = Tries(trainer_of([4.0]), STEPS)
    factor, runs = compare(tries, lambda factor: {"base": 0.2 * factor}, budget=lambda: 1500.0 - tries.forwards)
    assert [run.factor for run in runs] == [1.0, 0.5] and factor == 1.0  # of 600 forwards and four losses each


def test_the_runs_are_the_beginning_of_the_training() -> None:
    trainer = trainer_of([1.0] * 5, oracle=ZerothOrder(), slopes=(0.1, -0.1, 0.3))
    tries = Tries(trainer, STEPS)
    _, runs = compare(tries, lambda factor: {"base": 1e-2 * factor})
    trainer._rates = {"base": 1e-2}
    for _ in range(STEPS):
        trainer.update()
    assert runs[0].loss_after == tries._loss()
