"""Predicted limits on quadratics, where they are known exactly; and what is refused."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from smoothlab.errors import BadInput
from smoothlab.experiments.advise.config import FRACTION
from smoothlab.experiments.advise.predicting import PRODUCT, Prediction, expected_gradients, predicted_limit
from smoothlab.theory.coupled_edge import HybridGradient, hybrid_gradient_norm_edge
from smoothlab.theory.edge import GAUSSIAN, adam_edge
from smoothlab.trainer import Trainer
from smoothlab.zeroth.estimators import ZerothOrder
from tests.experiments.advise.quadratics import coupled, hybrid, trainer_of

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


@pytest.mark.parametrize("q", [1, 4])
def test_zeroth_order_steps_are_predicted_by_the_norm_of_the_gradient_after_one_step(q: int) -> None:
    """E ||g+||^2 = ||g||^2 at the predicted rate: the mean over 40,000 steps, within 5 standard errors."""
    prediction = predicted(trainer_of(SPECTRUM, oracle=ZerothOrder(q=q)))
    torch.manual_seed(0)
    h = torch.tensor(SPECTRUM, dtype=torch.float64)
    z = torch.randn(40_000, q, len(h), dtype=torch.float64)
    estimate = ((z @ h)[..., None] * z).mean(1)
    ratios = ((h - prediction.limit.value * h * estimate).square().sum(1)) / h.square().sum()
    assert prediction.condition == "gradient norm"
    assert abs(float(ratios.mean()) - 1) < 5 * float(ratios.std()) / len(ratios) ** 0.5


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


def test_each_block_of_a_hybrid_has_its_own() -> None:
    trainer = hybrid(curvature_x=1.0, curvature_y=4.0, dim=10)
    assert predicted(trainer, "peft").limit.value == pytest.approx(0.5, rel=1e-6)
    assert predicted(trainer, "base").limit.value == pytest.approx(2 / 12, rel=1e-6)
    assert expected_gradients(trainer, trainer.blocks["base"]) > 10


def test_a_hybrid_step_has_its_own_condition_beside_with_the_cross_block() -> None:
    """Against the dense Hessian and gradient, whose gradient norm after a step is exact; coupling lowers it here."""
    trainer, hessian = coupled(dim_x=6, dim_y=3)
    rate = 0.11
    prediction = predicted_limit(trainer, trainer.blocks["base"], rates={"peft": rate})
    gradient = HybridGradient.of(hessian, hessian @ np.ones(9), 6)
    ratio = rate / (FRACTION["zeroth"] * prediction.limit.value)
    eta_x, eta_y = hybrid_gradient_norm_edge(gradient, ratio, GAUSSIAN)
    assert prediction.beside["hybrid gradient norm"] == pytest.approx(eta_x, rel=1e-6)
    assert gradient.ratio_of_squares(eta_x, eta_y, GAUSSIAN) == pytest.approx(1, rel=1e-9)
    blind = replace(gradient, frobenius=float(np.linalg.norm(hessian[:6, :6])))
    assert hybrid_gradient_norm_edge(blind, ratio, GAUSSIAN)[0] > 1.05 * eta_x, "without the cross block it is bolder"
    alone = predicted_limit(trainer, trainer.blocks["base"])
    assert alone.limit == prediction.limit and set(alone.beside) == {"mean square"}
    extra = expected_gradients(trainer, trainer.blocks["base"], {"peft": rate})
    assert extra - expected_gradients(trainer, trainer.blocks["base"]) == pytest.approx(PRODUCT)


@pytest.mark.parametrize(
    ("exact", "rates"),
    [(None, {}), (None, {"peft": 0.0}), (partial(torch.optim.SGD, momentum=0.9), {"peft": 0.1}),
     (torch.optim.Adam, {"peft": 0.1})],
)  # fmt: skip
def test_the_hybrid_condition_is_left_out_where_it_does_not_apply(exact: Any, rates: dict[str, float]) -> None:
    trainer, _ = coupled(dim_x=6, dim_y=3, exact=exact)
    assert "hybrid gradient norm" not in predicted_limit(trainer, trainer.blocks["base"], rates=rates).beside


BAD = {
    "floor": (lambda: trainer_of([1.0, 1.0], start=0.0, oracle=ZerothOrder()), "at its floor"),
    "negative along the gradient": (lambda: trainer_of([-1.0, -2.0], oracle=ZerothOrder()), "curves downwards"),
    "negative spectrum": (lambda: trainer_of([-4.0, 1.0]), "mostly negative"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_sets_no_limit_is_refused_in_one_line(case: str) -> None:
    make, words = BAD[case]
    with pytest.raises(BadInput, match=words) as caught:
        predicted(make())
    assert "\n" not in str(caught.value)
