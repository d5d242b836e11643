"""An orthonormal basis Q [k, d] of directions of a Hessian block, and projections out of its span."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smoothlab.hessian.vector_memory import VectorMemory

_COLUMNS = 1 << 16  # columns of Q handled at once: a chunk of Q and of the vector stays in cache
_AGAIN = 0.25  # share of its square that a vector must keep for one projection to be enough


class Projection(NamedTuple):
    """Result of projecting w out of Q: Q w [k] in fp64, and the norms of w before and after."""

    coefficients: np.ndarray
    before: float
    after: float


class Basis:
    """Orthonormal rows Q [k, d] in growing memory, with projections in cache-sized chunks summed in fp64.

    Projecting leaves an error along Q of about eps times the norm that w had before. It is repeated only where little
    of w is left, so that this is much of what is left (Daniel, Gragg, Kaufman and Stewart 1976; "twice is enough").
    """

    def __init__(self, dim: int, like: Tensor) -> None:
        self.dim, self.size = dim, 0
        self._memory = VectorMemory(dim, like)

    @property
    def rows(self) -> Tensor:
        """Q [k, d]."""
        return self._memory.rows[: self.size]

    def reserve(self, more: int) -> None:
        """Memory for `more` new rows at once: growing copies Q, and first writes to new memory are slow."""
        self._memory.reserve(self.size + more)

    def _sweep(self, w: Tensor, step: np.ndarray | None = None, *, multiply: bool = True) -> tuple[np.ndarray, float]:
        """w -= Q' step in place where a step is given; then Q w [k], or nothing without `multiply`, and ||w||^2."""
        removed = None if step is None else torch.as_tensor(step, dtype=w.dtype, device=w.device)
        parts, squares = [], []
        # One pass over memory does both: a chunk of w is changed and multiplied while it is in cache.
        for i in range(0, self.dim, _COLUMNS):
            q, x = self.rows[:, i : i + _COLUMNS], w[i : i + _COLUMNS]
            if removed is not None:
                x.addmv_(q.T, removed, alpha=-1)
            if multiply:
                parts.append(q @ x)
            if x.dtype.itemsize == 2:
                x = x.float()  # fp16 squares would overflow
            squares.append(torch.dot(x, x))
        coefficients = np.zeros(0)
        if multiply:
            coefficients = torch.stack(parts).double().sum(0).cpu().numpy()
        return coefficients, float(torch.stack(squares).double().sum())

    def project_out(self, w: Tensor) -> Projection:
        """w -= Q'Q w in place, until what is left is orthogonal to Q up to rounding of its own norm, or is rounding."""
        total, repeat = np.zeros(self.size), self.size > 0
        products, square = self._sweep(w, multiply=repeat)
        before = square**0.5
        while repeat:
            total += products
            # Pythagoras: what this subtraction will leave.
            repeat = square - float(products @ products) < _AGAIN * square
            products, square = self._sweep(w, products, multiply=repeat)
            repeat = repeat and square**0.5 > _rounding(w, before)
        return Projection(total, before, square**0.5)

    def coefficients(self, *vectors: Tensor) -> list[np.ndarray]:
        """Q w [k] in fp64 of each vector w, in one pass over Q."""
        parts: list[list[Tensor]] = [[] for _ in vectors]
        for i in range(0, self.dim, _COLUMNS):
            q = self.rows[:, i : i + _COLUMNS]
            for products, w in zip(parts, vectors, strict=True):
                products.append(q @ w[i : i + _COLUMNS])
        return [torch.stack(products).double().sum(0).cpu().numpy() for products in parts]

    def add(self, w: Tensor, earlier: Projection | None = None) -> bool:
        """Append w, orthogonalized (in place) and normalized; False when w lies in the span up to rounding.

        `earlier` is the projection that has left w. It need not be repeated where Q has not grown since; and how much
        of w is rounding is judged by the norm before it.
        """
        projection = earlier
        if projection is None or len(projection.coefficients) < self.size:
            projection = self.project_out(w)
        before = (earlier or projection).before
        if not projection.after > _rounding(w, before):
            return False
        if self.size == len(self._memory.rows):
            self.reserve(max(4, self.size // 2))
        self._memory.write(self.size, w.mul_(1 / projection.after))
        self.size += 1
        return True


def _rounding(w: Tensor, before: float) -> float:
    """The norm up to which what a projection leaves of w is taken for rounding."""
    return 100 * torch.finfo(w.dtype).eps * before
