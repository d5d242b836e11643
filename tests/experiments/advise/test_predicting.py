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
from smoothlab.experiments.advise.predicting import BESIDE, Prediction, expected_gradients, predicted_limit
from smoothlab.theory.coupled_edge import HybridGradient, hybrid_gradient_norm_edge
from smoothlab.theory.edge import GAUSSIAN, OuterMoment, Spectrum, adam_edge, mean_square_edge
from smoothlab.trainer import Trainer
from smoothlab.zeroth.estimators import ZerothOrder
from tests.experiments.advise.quadratics import coupled, hybrid, raised, trainer_of

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
@pytest.mark.parametrize("negative", [(), (-3.0, -1.0)], ids=["positive", "both signs"])
def test_zeroth_order_steps_are_predicted_by_the_mean_square_edge_of_the_positive_part(
    q: int, negative: tuple[float, ...]
) -> None:
    """Every eigenvalue is known to the Lanczos steps; lambda_max and tr H+ leave the bounds of the edge."""
    prediction = predicted(trainer_of([*SPECTRUM, *negative], oracle=ZerothOrder(q=q)))
    exact = mean_square_edge(Spectrum.of(SPECTRUM), OuterMoment(1 + 1 / q, 1 / q))
    known = mean_square_edge(
        Spectrum((SPECTRUM[0],), len(SPECTRUM) + len(negative), sum(SPECTRUM)), OuterMoment(1 + 1 / q, 1 / q)
    )
    assert prediction.condition == "positive part"
    assert prediction.limit.value == pytest.approx(known.value, rel=1e-6)
    assert known.low <= exact.value <= known.high


@pytest.mark.parametrize("q", [1, 4])
def test_beside_stands_the_norm_of_the_gradient_after_one_step(q: int) -> None:
    """E ||g+||^2 = ||g||^2 at that rate: the mean over 40,000 steps, within 5 standard errors."""
    limit = predicted(trainer_of(SPECTRUM, oracle=ZerothOrder(q=q))).beside["gradient norm"]
    torch.manual_seed(0)
    h = torch.tensor(SPECTRUM, dtype=torch.float64)
    z = torch.randn(40_000, q, len(h), dtype=torch.float64)
    estimate = ((z @ h)[..., None] * z).mean(1)
    ratios = ((h - limit * h * estimate).square().sum(1)) / h.square().sum()
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


def test_zeroth_order_steps_are_predicted_where_the_other_block_has_begun_to_train() -> None:
    """At eta_y = 1 one step takes y to 2, where the curvature of x is e^2 times its start's."""
    trainer = raised()
    alone = predicted_limit(trainer, trainer.blocks["base"])
    beside = predicted_limit(trainer, trainer.blocks["base"], rates={"peft": 1.0})
    assert alone.limit.value == pytest.approx(2 / 12, rel=1e-5)
    assert beside.limit.value == pytest.approx(2 / 12 * math.exp(-2), rel=1e-5)
    assert float(trainer.blocks["peft"].params[0].detach()) == 0.0


def test_a_hybrid_step_has_its_own_condition_beside_with_the_cross_block() -> None:
    """Against the dense Hessian and gradient where y has begun to train: the norm after a step is exact there."""
    trainer, hessian = coupled(dim_x=6, dim_y=3)
    rate, z = 0.11, np.ones(9)
    for _ in range(BESIDE):
        z[6:] -= rate * (hessian @ z)[6:]
    prediction = predicted_limit(trainer, trainer.blocks["base"], rates={"peft": rate})
    gradient = HybridGradient.of(hessian, hessian @ z, 6)
    ratio = rate / (FRACTION["zeroth"] * prediction.limit.value)
    eta_x, eta_y = hybrid_gradient_norm_edge(gradient, ratio, GAUSSIAN)
    assert prediction.beside["hybrid gradient norm"] == pytest.approx(eta_x, rel=1e-6)
    assert gradient.ratio_of_squares(eta_x, eta_y, GAUSSIAN) == pytest.approx(1, rel=1e-9)
    blind = replace(gradient, frobenius=float(np.linalg.norm(hessian[:6, :6])))
    assert hybrid_gradient_norm_edge(blind, ratio, GAUSSIAN)[0] > 1.02 * eta_x, "without the cross block it is bolder"


@pytest.mark.parametrize(
    ("exact", "rates"),
    [(None, {}), (None, {"peft": 0.0}), (partial(torch.optim.SGD, momentum=0.9), {"peft": 0.1}),
     (torch.optim.Adam, {"peft": 0.1})],
)  # fmt: skip
def test_the_hybrid_condition_is_left_out_where_it_does_not_apply(exact: Any, rates: dict[str, float]) -> None:
    trainer, _ = coupled(dim_x=6, dim_y=3, exact=exact)
    assert set(predicted_limit(trainer, trainer.blocks["base"], rates=rates).beside) == {"gradient norm"}


BAD = {
    "floor": (lambda: trainer_of([1.0, 1.0], start=0.0, oracle=ZerothOrder()), "at its floor"),
    "nothing positive": (lambda: trainer_of([-1.0, -2.0], oracle=ZerothOrder()), "no positive Ritz value"),
    "negative spectrum": (lambda: trainer_of([-4.0, -1.0]), "mostly negative"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_sets_no_limit_is_refused_in_one_line(case: str) -> None:
    make, words = BAD[case]
    with pytest.raises(BadInput, match=words) as caught:
        predicted(make())
    assert "\n" not in str(caught.value)
