"""Trainers of quadratics, whose stability limits are known."""

from typing import Any

import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.trainer import Trainer
from smoothlab.zeroth.estimators import ZerothOrder


def trainer_of(
    values: list[float],
    *,
    oracle: Any = None,
    start: float = 1.0,
    slopes: tuple[float, ...] = (0.0,),
    exact: Any = None,
) -> Trainer:
    """f(x) = sum_i values_i x_i^2/2 + c sum_i x_i, with c of each minibatch in turn, from x = start."""
    x = torch.full((len(values),), start, dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor(values, dtype=torch.float64)

    def loss(_: Any, c: float) -> Tensor:
        return (curvature * x.square()).sum() / 2 + c * x.sum()

    optimizer = HybridSGD([{"params": [x], "lr": 1e-3, "name": "base", "oracle": oracle}], exact=exact)
    batches = [[c] for c in slopes]
    return Trainer(None, {"base": Block("base", (x,))}, lambda step: batches[step % len(batches)], loss, optimizer)


def hybrid(curvature_x: float = 1.0, curvature_y: float = 4.0, dim: int = 10) -> Trainer:
    """f(x, y) = a |x|^2/2 + b |y|^2/2, x by one Gaussian direction, y by exact gradients."""
    x = torch.ones(dim, dtype=torch.float64, requires_grad=True)
    y = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def loss(_: Any, __: Any) -> Tensor:
        return curvature_x * x.square().sum() / 2 + curvature_y * y.square().sum() / 2

    optimizer = HybridSGD([
        {"params": [x], "lr": 1e-3, "name": "base", "oracle": ZerothOrder(mu=1e-4)},
        {"params": [y], "lr": 1e-3, "name": "peft"},
    ])  # fmt: skip
    return Trainer(None, {"base": Block("base", (x,)), "peft": Block("peft", (y,))}, lambda step: [0], loss, optimizer)


def raised() -> Trainer:
    """f(x, y) = e^y |x|^2/2 + (y - 2)^2/2 near x = 0: as y trains, the curvature of x rises from 1 to e^2."""
    x = torch.full((10,), 1e-4, dtype=torch.float64, requires_grad=True)
    y = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def loss(_: Any, __: Any) -> Tensor:
        return (y.exp() * x.square().sum() / 2 + (y - 2).square() / 2).sum()

    optimizer = HybridSGD([
        {"params": [x], "lr": 1e-3, "name": "base", "oracle": ZerothOrder(mu=1e-4)},
        {"params": [y], "lr": 1e-3, "name": "peft"},
    ])  # fmt: skip
    return Trainer(None, {"base": Block("base", (x,)), "peft": Block("peft", (y,))}, lambda step: [0], loss, optimizer)
