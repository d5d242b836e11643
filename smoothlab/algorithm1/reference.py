"""Algorithm 1 of the paper for one replica, step by step: slow, and what `Algorithm1.run` must equal."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.objectives import FiniteSum


class Plain(NamedTuple):
    """The result of one replica; see `Result`."""

    epochs: int
    average_x: float
    average_y: float
    z: Tensor
    left: int
    reached: int
    diverged: bool


def one_replica(options: Algorithm1, objective: FiniteSum, z0: Tensor, orders: Tensor, directions: Tensor) -> Plain:
    """Algorithm 1 as the paper prints it, on these draws.

    Args:
        options: options; `keep` is left out.
        objective: the finite sum.
        z0: where it starts, [d].
        orders: [T, n].
        directions: fp64 [T, n q, d_x], q of each step in turn.
    """
    z, d_x, mu = z0.double().clone(), objective.d_x, options.mu

    def slope(i: int, v: Tensor) -> float:
        """The coefficient of v in the estimate of grad_x f_i(z)."""
        if mu == 0:
            return float(objective.gradient_of(z, i)[:d_x] @ v)
        step = torch.zeros_like(z)
        step[:d_x] = mu * v
        plus = float(objective.value_of(z + step, i))
        if options.oracle == "one-sided":
            return (plus - float(objective.value_of(z, i))) / mu
        return (plus - float(objective.value_of(z - step, i))) / (2 * mu)

    total_x, total_y, left, reached = 0.0, 0.0, -1, -1
    for t in range(options.epochs + 1):
        g = objective.gradient(z)
        square_x, square_y = float(g[:d_x] @ g[:d_x]), float(g[d_x:] @ g[d_x:])
        if not math.isfinite(square_x + square_y):
            if options.above is not None and left < 0:
                left = t
            return Plain(t, math.inf, math.inf, z, left, reached, True)
        if options.below is not None and t and reached < 0 and total_x + total_y <= options.below * t:
            reached = t
        if options.above is not None and left < 0 and float(objective.value(z)) - objective.f_star > options.above:
            left = t
        if t == options.epochs or (options.halt and max(left, reached) >= 0):
            epochs = t or math.nan  # where t = 0 the mean is one of nothing
            return Plain(t, total_x / epochs, total_y / epochs, z, left, reached, False)
        total_x, total_y = total_x + square_x, total_y + square_y
        for i, step_directions in zip(orders[t].tolist(), directions[t].split(options.q), strict=True):
            g = objective.gradient_of(z, i)
            ghat = g[:d_x]
            if options.oracle != "exact":
                ghat = torch.zeros_like(ghat)
                for v in step_directions:
                    ghat = ghat + slope(i, v) * v / options.q
            # Both blocks move from the same z.
            z = torch.cat([z[:d_x] - options.eta_x * ghat, z[d_x:] - options.eta_y * g[d_x:]])
    raise AssertionError("unreachable: epoch T returns")
