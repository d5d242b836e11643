"""Stability limits by trying, on quadratics whose limits are known; and that nothing is left of the runs."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from smoothlab.errors import BadInput
from smoothlab.experiments.advise.trying import Tries, forwards_of_step, stability_limit
from smoothlab.trainer import Trainer
from smoothlab.zeroth.estimators import ZerothOrder
from tests.experiments.advise.quadratics import hybrid, trainer_of


def limit_of(trainer: Trainer, guess: float = 0.01, steps: int = 20, runs: int = 12) -> tuple[float, float, float]:
    result = stability_limit(Tries(trainer, steps), lambda rate: {"base": rate}, guess, runs=runs)
    assert result.flag is None
    return tuple(result.limit)


@pytest.mark.parametrize("guess", [1e-4, 0.4, 50.0])
def test_gradient_descents_limit_is_two_over_the_largest_eigenvalue(guess: float) -> None:
    """From below and above; a single direction decides, as lambda = 1 shrinks at every rate below 2."""
    value, low, high = limit_of(trainer_of([4.0, 1.0]), guess, steps=20, runs=14)
    assert low <= 0.5 <= high and abs(math.log(value / 0.5)) < math.log(1.5)  # where trying stops


def test_adams_runs_begin_without_its_moments() -> None:
    """Adam's first steps have the length of the rate: from 1 to 0 in 20 steps it takes at least 1/20, below 0.5."""
    trainer = trainer_of([4.0], exact=partial(torch.optim.Adam))
    for _ in range(3):
        trainer.update()
    before = trainer.optimizer.state_dict()["exact"]["state"][0]["exp_avg"].clone()
    value, *_ = limit_of(trainer, 0.01)
    after = trainer.optimizer.state_dict()["exact"]["state"][0]["exp_avg"]
    assert value > 0.1 and torch.equal(before, after)


@pytest.mark.parametrize("q", [1, 4])
def test_the_limit_of_zeroth_order_steps_is_that_of_many_runs_in_numpy(q: int) -> None:
    """H = I in 12 dimensions: the rate at which half of 200 independent runs of 20 steps stand above their start."""
    rng, dim, steps = np.random.default_rng(1), 12, 20
    drawn = rng.standard_normal((steps, 200, q, dim))

    def above(rate: float) -> float:
        x = np.ones((200, dim))
        for z in drawn:
            x = x - rate * (np.einsum("rqd,rd->rq", z, x)[..., None] * z).mean(1)
        return float(((x**2).sum(1) > dim).mean())

    rates = np.geomspace(0.02, 2.0, 60)
    truth = float(np.interp(0.5, [above(rate) for rate in rates], rates))
    value, low, high = limit_of(trainer_of([1.0] * dim, oracle=ZerothOrder(mu=1e-4, q=q)), 0.03, runs=12)
    assert low <= truth <= high and abs(math.log(value / truth)) < math.log(1.4)


@pytest.mark.parametrize("zeroth", [True, False])
def test_nothing_is_left_of_the_runs(zeroth: bool) -> None:
    trainer, twin = (trainer_of([4.0, 1.0], oracle=ZerothOrder() if zeroth else None) for _ in range(2))
    seen: list[int] = []
    trainer.on_step = lambda step, loss: seen.append(step)
    for each in (trainer, twin):
        each.update()
    tries = Tries(trainer, 5)
    tries.run(1e6, {"base": 1e6}, 3)
    tries.run(1e-3, {"base": 1e-3}, 4)
    assert seen == [1] and trainer.step == 1 and trainer.losses == twin.losses
    for each in (trainer, twin):
        for _ in range(4):
            each.update()
    assert trainer.losses == twin.losses
    assert torch.equal(trainer.blocks["base"].params[0], twin.blocks["base"].params[0])


def test_runs_of_other_numbers_see_other_directions_and_minibatches() -> None:
    trainer = trainer_of([1.0] * 5, oracle=ZerothOrder(), slopes=(0.1, -0.1, 0.3))
    tries = Tries(trainer, 5)
    ends = [tries.run(0.01, {"base": 0.01}, number).end for number in (0, 1, 0)]
    assert ends[0] == ends[2] != ends[1]


def test_an_unstable_run_costs_few_steps_and_a_budget_is_kept() -> None:
    trainer = trainer_of([1.0] * 5)
    tries = Tries(trainer, 30)
    assert tries.run(100.0, {"base": 100.0}, 0).steps < 4
    limited = Tries(trainer, 30)
    result = stability_limit(limited, lambda rate: {"base": rate}, 1e-4, budget=lambda: 200.0 - limited.forwards)
    # Runs of 94 forwards: the first has the loss at the start, too, and a third is not begun with 8 left.
    assert limited.forwards == 192 and result.flag == "only stable runs" and result.limit.high == math.inf
    unaffordable = Tries(trainer, 30)
    stability_limit(unaffordable, lambda rate: {"base": rate}, 1e-4, budget=lambda: -unaffordable.forwards, cost=94)
    assert unaffordable.forwards == 98  # the first run is made whatever the budget


def test_a_long_mu_makes_no_run_unstable() -> None:
    """At x +- 3 z the loss is many times that at x: steps are told from it, not from the weights that they lead to."""
    tries = Tries(trainer_of([1.0] * 20, oracle=ZerothOrder(mu=3.0)))
    assert not tries.run(1e-3, {"base": 1e-3}, 0).unstable
    assert tries.run(1.0, {"base": 1.0}, 0).unstable


def test_the_forward_passes_of_a_step() -> None:
    assert forwards_of_step(trainer_of([1.0]).optimizer) == 3
    assert forwards_of_step(trainer_of([1.0], oracle=ZerothOrder(q=4)).optimizer) == 8
    assert forwards_of_step(trainer_of([1.0], oracle=ZerothOrder(sides=1)).optimizer) == 2
    assert forwards_of_step(hybrid().optimizer) == 5


BAD = {
    "at its floor": (lambda: trainer_of([1.0], start=0.0, slopes=(1.0, -1.0)), "floor"),
    "gradient 0": (lambda: trainer_of([1.0], start=0.0), "same to the bit"),
    "no curvature": (lambda: trainer_of([0.0], slopes=(1e-9,)), "makes the loss"),
    "mostly negative spectrum": (lambda: trainer_of([-1.0, -1.0]), "makes the loss"),
}


@pytest.mark.parametrize("case", BAD)
def test_where_there_is_no_limit_one_line_says_why(case: str) -> None:
    make, words = BAD[case]
    with pytest.raises(BadInput, match=words) as caught:
        limit_of(make(), 0.1, steps=4, runs=40)
    assert "\n" not in str(caught.value)
