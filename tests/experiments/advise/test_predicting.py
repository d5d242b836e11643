"""Predicted limits on quadratics, where they are known exactly; and what is refused."""

import math
from functools import partial

import pytest
import torch

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.experiments.advise import random_walk
from smoothlab.experiments.advise.predicting import PULLED_BACK, Prediction, expected_gradients, predicted_limit
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.theory.edge import adam_edge
from smoothlab.trainer import Trainer
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from tests.experiments.advise.quadratics import hybrid, raised, trainer_of

SPECTRUM = [4.0, 2.0, 1.0, 0.5, 0.5, 0.25]


def predicted(trainer: Trainer, name: str = "base") -> Prediction:
    return predicted_limit(trainer, trainer.blocks[name])


def test_gradient_descent_is_predicted_by_two_over_the_largest_eigenvalue() -> None:
    prediction = predicted(trainer_of(SPECTRUM))
    assert prediction.condition == "exact" and prediction.limit.value == pytest.approx(0.5, rel=1e-6)
    assert prediction.limit.low < 0.5 < prediction.limit.high


def test_momentum_raises_it_by_one_plus_momentum() -> None:
    trainer = trainer_of(SPECTRUM, exact=partial(torch.optim.SGD, momentum=0.5))
    assert predicted(trainer).limit.value == pytest.approx(0.75, rel=1e-6)


def test_adam_is_predicted_from_its_preconditioner_after_a_few_steps() -> None:
    """One direction: P = sqrt(vhat) + eps of ten steps' gradients, in numbers."""
    rate, b1, b2, curvature = 1e-3, 0.9, 0.999, 4.0
    trainer = trainer_of([curvature], exact=partial(torch.optim.Adam))
    x, m, v = 1.0, 0.0, 0.0
    for step in range(1, 11):
        g = curvature * x
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x -= 0.1 * rate * (m / (1 - b1**step)) / (math.sqrt(v / (1 - b2**step)) + 1e-8)
    expected = adam_edge(curvature / (math.sqrt(v / (1 - b2**10)) + 1e-8))
    assert predicted(trainer).limit.value == pytest.approx(expected, rel=1e-6)
    assert trainer.step == 0 and float(trainer.blocks["base"].params[0].detach()) == 1.0


def test_zeroth_order_steps_are_predicted_by_their_random_walk() -> None:
    """f = ||x||^2/2 in 2,000 dimensions: the mean-square edge is 2/(d + 2), however many steps a run takes."""
    prediction = predicted(trainer_of([1.0] * 2000, oracle=ZerothOrder()))
    assert prediction.condition == "random walk"
    assert prediction.limit.value / PULLED_BACK == pytest.approx(2 / 2002, rel=4 * random_walk.STEPS / 2000)
    assert prediction.limit.low < 2 / 2002 < prediction.limit.high


@pytest.mark.parametrize("distribution", [LowRank(1), LowRank(4), LowRank(1, generator="portable")])
def test_low_rank_steps_are_predicted_from_the_length_of_their_estimates(distribution: LowRank) -> None:
    """f = ||X||^2/2, X [60, 5]: E ||ghat||^2 = e ||g||^2, 434 for rank 1; many steps lead in Gaussian ones."""
    x = torch.ones(60, 5, dtype=torch.float64, requires_grad=True)
    group = {"params": [x], "lr": 1e-3, "name": "base", "oracle": ZerothOrder(distribution=distribution)}
    block = Block("base", (x,))
    trainer = Trainer(None, {"base": block}, lambda step: [0], lambda *_: x.square().sum() / 2, HybridSGD([group]))
    directions = Gaussian(generator=distribution.generator)
    pairs = [(number, k) for number in range(3) for k in range(2)]
    curve = random_walk.displacements(trainer, block, directions, pairs)
    e, _ = distribution.second_moment(((60, 5),))
    assert predicted(trainer).limit.value == PULLED_BACK * random_walk.walk_limit(curve, (e - 1) / 300)


@pytest.mark.parametrize(("spectrum", "low", "high"), [([4.0, 1.0, 1.0, 1.0], 1.4, 1.7), ([1.0] * 2000, 0.95, 1.05)])
def test_the_limit_of_shorter_runs_is_the_walks(spectrum: list[float], low: float, high: float) -> None:
    """Between the root of 60/20, where slopes stay, and 1, where the distance feeds them: the mean-square edge."""
    trainer = trainer_of(spectrum, oracle=ZerothOrder())
    block = trainer.blocks["base"]
    prediction = predicted_limit(trainer, block, steps=20)
    pairs = [(number, k) for number in range(3) for k in range(2)]
    curve = random_walk.displacements(trainer, block, ZerothOrder().distribution, pairs)
    short, long = (random_walk.walk_limit(curve, 1.0, steps) for steps in (20, 60))
    assert prediction.shorter == short / long and low < prediction.shorter < high
    assert predicted(trainer).shorter == 1.0 and predicted(trainer_of(SPECTRUM)).shorter == 1.0


def test_each_block_of_a_hybrid_has_its_own() -> None:
    trainer = hybrid(curvature_x=1.0, curvature_y=4.0, dim=2000)
    assert predicted(trainer, "peft").limit.value == pytest.approx(0.5, rel=1e-6)
    limit = predicted(trainer, "base").limit
    assert limit.low < 2 / 2002 < limit.high
    assert expected_gradients(trainer, trainer.blocks["base"]) > 10


def test_zeroth_order_steps_are_predicted_where_the_other_block_has_begun_to_train() -> None:
    """At eta_y = 1 one step takes y to 2, where the curvature of x is e^2 times its start's."""
    trainer = raised()
    alone = predicted_limit(trainer, trainer.blocks["base"])
    beside = predicted_limit(trainer, trainer.blocks["base"], rates={"peft": 1.0})
    assert alone.limit.value * math.exp(-3) < beside.limit.value < alone.limit.value * math.exp(-1)
    assert float(trainer.blocks["peft"].params[0].detach()) == 0.0


BAD = {
    "floor": (lambda: trainer_of([1.0, 1.0], start=0.0, oracle=ZerothOrder()), "at its floor"),
    "nothing positive": (lambda: trainer_of([-1.0, -2.0], oracle=ZerothOrder()), "falls or stays"),
    "negative spectrum": (lambda: trainer_of([-4.0, -1.0]), "mostly negative"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_sets_no_limit_is_refused_in_one_line(case: str) -> None:
    make, words = BAD[case]
    with pytest.raises(BadInput, match=words) as caught:
        predicted(make())
    assert "\n" not in str(caught.value)
