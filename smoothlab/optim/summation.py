"""Sums in an order that does not ask how many processes share the terms.

Floating-point addition is not associative, so what is added first is fixed, by a tree: of n terms, neighbors are added,
then the sums of neighbors, and so on,

    s(a_1 .. a_n) = s(a_1 .. a_k) + s(a_k+1 .. a_n),    k the greatest power of two below n.

Where each of several processes holds as many consecutive terms, and both numbers are powers of two, the tree over the
processes' trees is the tree over all terms: the same sum, to the bit.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Terms = Sequence[Tensor | None]
"""One term of a sum of several tensors at once; None stands for no term, not for zeros."""


class Peers(Protocol):
    """Other processes that take the same step, each on its own part of the minibatch."""

    count: int

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Put sums over the processes, in the order of the tree, in place of the tensors."""
        ...


class Tree:
    """A sum of tensors, of which a logarithm of their number is kept; the tensors are added in place."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, Terms]] = []  # sums of so many consecutive terms, longer ones first

    def push(self, term: Terms, length: int = 1) -> None:
        """Add the next term, or the sum of the next `length` ones."""
        self._runs.append((length, term))
        while len(self._runs) > 1 and self._runs[-1][0] == self._runs[-2][0]:
            self._join()

    def total(self) -> Terms:
        """The sum of what was pushed, which ends with it."""
        while len(self._runs) > 1:
            self._join()
        return self._runs.pop()[1]

    def _join(self) -> None:
        (more, right), (length, left) = self._runs.pop(), self._runs.pop()
        self._runs.append((length + more, [_added(a, b) for a, b in zip(left, right, strict=True)]))


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)


def in_order(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, which stay as they are and may be part of a graph."""
    runs: list[tuple[int, Tensor]] = []
    for term in terms:
        runs.append((1, term))
        while len(runs) > 1 and runs[-1][0] == runs[-2][0]:
            (_, right), (length, left) = runs.pop(), runs.pop()
            runs.append((2 * length, left + right))
    total = runs.pop()[1]
    while runs:
        total = runs.pop()[1] + total
    return total


def over_all(term: Terms, like: Sequence[Tensor], peers: Peers) -> Terms:
    """The sum over the processes of terms in the shapes of `like`; None where no process has one."""
    here = torch.tensor([float(t is not None) for t in term], dtype=torch.float64, device=like[0].device)
    peers.sum([here])
    anywhere = [count > 0 for count in here.tolist()]
    # -0.0 is what changes no term that is added to it; 0.0 would make 0.0 of -0.0.
    filled = [torch.full_like(p, -0.0, dtype=_wide(p)) if t is None else t for t, p in zip(term, like, strict=True)]
    peers.sum([t for t, some in zip(filled, anywhere, strict=True) if some])
    return [t if some else None for t, some in zip(filled, anywhere, strict=True)]


def widened(term: Terms) -> Terms:
    """16-bit tensors in fp32: their sums are rounded once."""
    return [None if t is None else t.to(_wide(t)) for t in term]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
