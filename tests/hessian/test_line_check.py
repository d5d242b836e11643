"""A loss that is finite at the point and infinite or NaN a step away agrees with no slope and no curvature."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss
from smoothlab.hessian.disagreements import WrongProducts
from smoothlab.hessian.gradients import LossAtPoint
from smoothlab.hessian.line_check import LineCheck
from smoothlab.hessian.selfchecks import check_gradient

N = 20
V = torch.full((N,), N**-0.5, dtype=torch.float64)


class Doubled(torch.autograd.Function):
    """x, with twice its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def walled(wall: float, value: float, *, sides: int = 1, wrong: bool = False) -> tuple[Loss, Block]:
    """3 + u/2 + u^2, where u is the move along V; `value` from |u| > wall on, on one or both sides."""
    w = nn.Parameter(torch.ones(N, dtype=torch.float64))

    def loss() -> Tensor:
        move = (w - 1) @ V
        u: Tensor = Doubled.apply(move) if wrong else move
        beyond = float(move if sides == 1 else abs(move)) > wall
        return 3 + u / 2 + u**2 + (value if beyond else 0.0)

    return loss, Block("base", (w,))


def looked_at(wall: float, value: float, **options: Any) -> LineCheck:
    loss, block = walled(wall, value, **options)
    return LineCheck(LossAtPoint(loss, [block]), block)


WALLS = [(value, sides) for value in (math.inf, -math.inf, math.nan) for sides in (1, 2)]


@pytest.mark.parametrize(("value", "sides"), WALLS)
@pytest.mark.parametrize("step", [1.0, 1.5], ids=["at the step", "at twice the step"])
def test_an_overflow_is_no_agreement(value: float, sides: int, step: float) -> None:
    """With a wrong slope; without a known curvature an infinite one was taken for it, and excused every slope."""
    first = looked_at(math.inf, value)._step(1.0, 0.0)
    check = looked_at(0.5 * step * first if step == 1.0 else step * first, value, sides=sides, wrong=True)
    assert not check.agrees(V, None) and not check.agrees(V, 2.0)


def test_no_single_step_agrees_with_an_overflow() -> None:
    for value in (math.inf, math.nan):
        check = looked_at(1e-14, value)
        assert not check.follows_slope(V * check.short_step(V))


@pytest.mark.parametrize(("value", "sides"), WALLS)
@pytest.mark.parametrize("part", [0.5, 1e-2, 1e-4])
def test_shorter_steps_than_the_wall_decide(value: float, sides: int, part: float) -> None:
    """A right slope stays without complaint, and a wrong one is seen, where the first step crosses the wall."""
    wall = part * looked_at(math.inf, value)._step(0.5, 0.0)
    right, wrong = looked_at(wall, value, sides=sides), looked_at(wall, value, sides=sides, wrong=True)
    right.compare(V, "here", None)
    assert right.gaps["gradient"].size < 0.005
    wrong.compare(V, "here", None)
    assert wrong.gaps["gradient"].size == pytest.approx(0.5, abs=0.05)
    assert wrong.gaps["gradient"].measured == pytest.approx(1.0)


def test_a_loss_that_is_finite_at_the_point_alone_is_refused() -> None:
    check = looked_at(0.0, math.inf)
    check.compare(V, "here", None)
    assert check.gaps["gradient"].size == math.inf
    loss, block = walled(0.0, math.inf)
    with pytest.raises(WrongProducts, match=r"a slope is \S+ by autograd, inf by differences of the loss along"):
        check_gradient(LossAtPoint(loss, [block]))


def rough(size: float) -> tuple[Loss, Block]:
    """3 + u/2 + u^2 in fp32, u the move along V, beside terms that cancel but for their rounding."""
    w = nn.Parameter(torch.ones(N))
    large = size * torch.randn(64, N, generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        u = (w - 1) @ V.float()
        rounding = (large @ w).sum() - large.sum(0) @ w
        return 3 + u / 2 + u**2 + rounding.detach()

    return loss, Block("base", (w,))


def counted(size: float) -> tuple[LineCheck, list[float]]:
    """A check of `rough`, and its evaluations."""
    loss, block = rough(size)
    point, made = LossAtPoint(loss, [block]), []
    evaluate = point.evaluate

    def counting() -> float:
        made.append(evaluate())
        return made[-1]

    point.evaluate = counting  # type: ignore[method-assign]
    return LineCheck(point, block), made


@pytest.mark.parametrize("size", [5.0, 10.0])
def test_rounding_beyond_what_is_assumed_is_measured_once_a_point(size: float) -> None:
    check, made = counted(size)
    assert check.agrees(V.float(), 2.0) and len(made) <= 4 + 5 + 4
    values = []
    for s in np.linspace(
        -1e-4, 1e-4, 200
    ):  # the scatter of evaluations next to the point, by which the bound of one is judged
        with check._shift.along(V.float(), float(s)):
            values.append(check._point.evaluate() - 3 - s / 2 - s**2)
    scatter = float(np.std(values))
    assert scatter > 3 * check._assumed
    assert check._point.loss_rounding is not None
    assert scatter / 2 < check._point.loss_rounding < 8 * scatter
    made.clear()
    check.compare(V.float(), "here", 2.0)
    assert len(made) <= 4 and check.gaps["curvature"].size == check.gaps["gradient"].size == 0.0


@pytest.mark.parametrize("size", [5.0, 10.0])
def test_measured_rounding_excuses_no_wrong_number(size: float) -> None:
    check, _ = counted(size)
    check.compare(V.float(), "here", 2.2)
    assert 0.05 < check.gaps["curvature"].size < 0.13 and check.gaps["gradient"].size == 0.0
    check, _ = counted(size)
    check.gradient = 1.03 * check.gradient
    check.compare(V.float(), "here", 2.0)
    assert 0.01 < check.gaps["gradient"].size < 0.04
