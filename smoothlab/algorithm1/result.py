"""The result of Algorithm 1 on many replicas, filled as they stop."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """The result of R replicas; tau is the epoch at which a replica stopped, at most T.

    Attributes:
        epochs: tau, int [R].
        average_x: (1/tau) sum_{t < tau} ||grad_x f(z_t)||^2, [R]; infinite where the replica diverged, NaN if tau = 0.
        average_y: the same of grad_y.
        gap: f(z_tau) - f*, [R]; infinite where the replica diverged.
        z: z_tau, [R, d].
        left: first t with f(z_t) - f* above `Algorithm1.above`, or where it diverged; -1 if there is none or none
            was asked for, int [R].
        reached: first t >= 1 with (1/t) sum_{s < t} ||grad f(z_s)||^2 at most `Algorithm1.below`, or -1.
        diverged: whether the gradient (or f where it was asked for) was not finite any more, bool [R].
        kept_gap: f(z_t) - f* at the epochs `Algorithm1.keep`, [len(keep), R]; after tau it stays what it was there.
        kept_x: ||grad_x f(z_t)||^2 likewise.
        kept_y: ||grad_y f(z_t)||^2 likewise.
    """

    epochs: NDArray[np.int64]
    average_x: Array
    average_y: Array
    gap: Array
    z: Array
    left: NDArray[np.int64]
    reached: NDArray[np.int64]
    diverged: NDArray[np.bool_]
    kept_gap: Array
    kept_x: Array
    kept_y: Array

    @property
    def average(self) -> Array:
        """(1/tau) sum_{t < tau} ||grad f(z_t)||^2, [R]."""
        return self.average_x + self.average_y

    @classmethod
    def empty(cls, replicas: int, d: int, kept: int) -> "Result":
        """Arrays to be filled."""

        def numbers(*shape: int) -> Array:
            return np.full(shape, math.inf)

        def never() -> NDArray[np.int64]:
            return np.full(replicas, -1)

        return cls(
            epochs=never(), average_x=numbers(replicas), average_y=numbers(replicas), gap=numbers(replicas),
            z=numbers(replicas, d), left=never(), reached=never(), diverged=np.zeros(replicas, dtype=bool),
            kept_gap=numbers(kept, replicas), kept_x=numbers(kept, replicas), kept_y=numbers(kept, replicas),
        )  # fmt: skip


def or_infinite(values: Tensor, lost: Tensor) -> Array:
    """Numbers of replicas, infinite where one diverged: it is the worst of a quantile, which NaN would spoil."""
    numbers: Array = values.masked_fill(lost, math.inf).numpy()
    return numbers
