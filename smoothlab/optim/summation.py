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
    """A sum of tensors, of which a logarithm of their number is kept; it is made in the memory of its terms."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, Terms]] = []  # sums of so many consecutive terms, longer ones first

    def push(self, term: Terms, length: int = 1) -> None:
        """Add the next term, or the sum of the next `length` ones."""
        self._runs.append((length, term))
        # Runs of equal length are two branches of one node, as ones of a binary counter carry.
        while len(self._runs) > 1 and self._runs[-1][0] == self._runs[-2][0]:
            self._join()

    def total(self) -> Terms:
        """The sum of what was pushed, which ends with it."""
        while len(self._runs) > 1:  # from the end: the shorter runs lie deeper in the tree
            self._join()
        return self._runs.pop()[1]

    def _join(self) -> None:
        (right_length, right), (left_length, left) = self._runs.pop(), self._runs.pop()
        total: list[Tensor | None] = []
        for a, b in zip(left, right, strict=True):
            if a is None or b is None:
                total.append(b if a is None else a)
            else:
                total.append(a.add_(b))
        self._runs.append((left_length + right_length, total))


def in_order(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, which stay as they are and may be part of a graph."""
    sums = list(terms)
    while len(sums) > 1:  # a level of the tree at a time; an odd last sum waits for the next level
        odd = sums[len(sums) - len(sums) % 2 :]
        sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=False)] + odd
    return sums[0]


def over_all(term: Terms, like: Sequence[Tensor], peers: Peers) -> Terms:
    """The sum over the processes of terms in the shapes of `like`; None where no process has one."""
    # All processes must sum the same tensors, and none knows by itself which of them the others hold.
    counts = torch.tensor([float(t is not None) for t in term], dtype=torch.float64, device=like[0].device)
    peers.sum([counts])
    total = list(term)
    for k, (p, count) in enumerate(zip(like, counts.tolist(), strict=True)):
        if count and total[k] is None:
            # -0.0 changes no term that is added to it; 0.0 would make 0.0 of -0.0.
            total[k] = torch.full_like(p, -0.0, dtype=_wide(p))
    peers.sum([t for t in total if t is not None])
    return total


def widened(term: Terms) -> Terms:
    """16-bit tensors in fp32: their sums are rounded once."""
    return [None if t is None else t.to(_wide(t)) for t in term]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
