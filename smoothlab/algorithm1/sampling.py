"""Orders of summands and random directions for many replicas of Algorithm 1 at once.

`smoothlab.zeroth.distributions` fixes every direction by a seed of its own, which costs more than drawing a hundred
numbers. Here replicas share two generators, one of orders and one of directions, and a replica's draws depend on the
others'.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from smoothlab.zeroth.distributions import named

Order = Literal["reshuffle", "once", "replace"]
"""A fresh permutation every epoch; the first one again and again; independent numbers."""
Precision = Literal["float32", "float64"]
BLOCK = 1 << 17  # entries drawn at a time: they stay in cache, and the cost of a call is small beside theirs


def matrix_shape(distribution: str, d: int) -> tuple[int, ...]:
    """The shape that x of d entries is given for directions that go by shapes: of its matrices that nearest a square.

    >>> matrix_shape("lowrank(2)", 10), matrix_shape("gaussian", 10)
    ((2, 5), ())
    """
    if not named(distribution).by_shape:
        return ()
    rows = max(m for m in range(1, math.isqrt(d) + 1) if d % m == 0)
    return rows, d // rows


class Draws(Protocol):
    """Source of orders and directions; `live` are the numbers of the replicas still running, [A]."""

    def order(self, epoch: int, live: Tensor) -> Tensor:
        """Numbers of the summands in the order of the epoch, int64 [n, A]."""
        ...

    def direction(self, epoch: int, step: int, live: Tensor) -> Tensor:
        """Directions v, fp64 [A, d_x]; `step` counts those of an epoch, q of each step in turn."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Draws made elsewhere, for all replicas."""

    orders: Tensor  # int64 [T, R, n]
    directions: Tensor  # fp64 [T, n q, R, d_x]

    def order(self, epoch: int, live: Tensor) -> Tensor:
        """The numbers of `orders`."""
        return self.orders[epoch, live].T.contiguous()

    def direction(self, epoch: int, step: int, live: Tensor) -> Tensor:
        """The directions of `directions`."""
        return self.directions[epoch, step, live]


class Fresh:
    """Draws from generators of one group of replicas, fixed by its seed; directions come in blocks of several steps.

    Args:
        seed: any tuple of non-negative integers.
        n: number of summands.
        dim: d_x.
        order: how an epoch goes through the summands.
        distribution: name of the directions' distribution, see `smoothlab.zeroth.names.DISTRIBUTIONS`.
        precision: of the normal numbers. Single ones cost a fifth; torch's end at 5.77, which double ones pass once in
            10^8, so that fourth moments are short by 3e-6.
        shape: shape of x as a tensor, see `smoothlab.Algorithm1`.
    """

    def __init__(
        self, seed: Sequence[int], n: int, dim: int, order: Order, distribution: str, precision: Precision = "float32",
        shape: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        words = np.random.SeedSequence([len(seed), *seed])
        # numpy permutes many rows in one call, and torch fills memory with normal numbers: a stream for either.
        self._orders = np.random.default_rng(words.spawn(1)[0])
        self._generator = torch.Generator().manual_seed(int(words.generate_state(1, np.uint32)[0]))
        self._n, self._dim, self._kind, self._distribution = n, dim, order, named(distribution)
        self._dtype, self._shape = getattr(torch, precision), shape
        self._first_order, self._first = torch.empty(0), 0
        self._block, self._position = torch.empty(0, 0, dim, dtype=torch.float64), 0
        self._numbers = torch.empty(0, dtype=self._dtype)

    def order(self, epoch: int, live: Tensor) -> Tensor:
        """Permutations, or numbers drawn with replacement; [n, A]."""
        if self._kind == "replace":
            return torch.from_numpy(self._orders.integers(self._n, size=(self._n, len(live))))
        if self._kind == "once" and epoch:
            return self._first_order[:, live - self._first].contiguous()
        ascending = np.broadcast_to(np.arange(self._n), (len(live), self._n))
        order = torch.from_numpy(np.ascontiguousarray(self._orders.permuted(ascending, axis=1).T))
        if self._kind == "once":  # epoch 0, when every replica of the group is live
            self._first_order, self._first = order, int(live[0])
        return order

    def direction(self, epoch: int, step: int, live: Tensor) -> Tensor:
        """The next ones of the block, which are overwritten later; a block ends early where replicas have stopped."""
        if self._block.shape[1] != len(live):
            steps = max(1, BLOCK // (len(live) * self._dim))
            self._block = torch.empty(steps, len(live), self._dim, dtype=torch.float64)
            self._numbers = torch.empty(self._block.shape, dtype=self._dtype)
            self._position = steps
        if self._position == len(self._block):
            self._distribution.fill_replicas(self._block, self._numbers, self._generator, self._shape)
            self._position = 0
        self._position += 1
        return self._block[self._position - 1]
