"""Algorithm 1 of the paper for one replica, step by step: slow, and what `Algorithm1.run` must equal."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smoothlab.objectives import Objective
from smoothlab.reshuffling import Algorithm1


class Plain(NamedTuple):
    """What became of one replica; see `Result`."""

    epochs: int
    average_x: float
    average_y: float
    z: Tensor
    left: int
    reached: int
    diverged: bool


def one_replica(how: Algorithm1, objective: Objective, z0: Tensor, orders: Tensor, directions: Tensor) -> Plain:
    """Algorithm 1 as the paper prints it, on given draws.

    Args:
        how: options; `keep` is left out.
        objective: the finite sum.
        z0: where it starts, [d].
        orders: [T, n].
        directions: fp64 [T, n, d_x].
    """

    def f(z: Tensor, i: int) -> float:
        return float(objective.value(z) + objective.shifts[i] @ z)

    z, d_x, mu = z0.double().clone(), objective.d_x, how.mu
    total_x, total_y, left, reached = 0.0, 0.0, -1, -1
    for t in range(how.epochs + 1):
        g = objective.gradient(z)
        square_x, square_y = float(g[:d_x] @ g[:d_x]), float(g[d_x:] @ g[d_x:])
        if not math.isfinite(square_x + square_y):
            left = t if how.above is not None and left < 0 else left
            return Plain(t, math.inf, math.inf, z, left, reached, True)
        if how.below is not None and t and reached < 0 and total_x + total_y <= how.below * t:
            reached = t
        if how.above is not None and left < 0 and float(objective.value(z)) - objective.f_star > how.above:
            left = t
        if t == how.epochs or (how.halt and max(left, reached) >= 0):
            return Plain(t, total_x / t if t else math.nan, total_y / t if t else math.nan, z, left, reached, False)
        total_x, total_y = total_x + square_x, total_y + square_y
        for i, v in zip(orders[t].tolist(), directions[t], strict=True):
            g = objective.gradient(z) + objective.shifts[i]
            step = torch.zeros_like(z)
            step[:d_x] = mu * v
            if how.oracle == "exact":
                ghat = g[:d_x]
            elif mu == 0:
                ghat = (g[:d_x] @ v) * v
            elif how.oracle == "one-sided":
                ghat = (f(z + step, i) - f(z, i)) / mu * v
            else:
                ghat = (f(z + step, i) - f(z - step, i)) / (2 * mu) * v
            z = torch.cat([z[:d_x] - how.eta_x * ghat, z[d_x:] - how.eta_y * g[d_x:]])
    raise AssertionError("unreachable: epoch T returns")
