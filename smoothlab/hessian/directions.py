"""Unit vectors on a block along which derivatives that are not the loss's show.

A random direction alone would not do: in a million dimensions it moves the loss by less than its rounding. Parameters
that the same operation reads are of one kind, and likely to be wrong together; each kind is moved so far that it
changes the loss alike, so that a small gradient is looked at as closely as a large one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smoothlab.blocks import dot, norm
from smoothlab.hessian.line_check import LineCheck
from smoothlab.hessian.loss_graph import LossGraph, groups_by_reader

TOP = "the top Ritz vector"
ALL_KINDS = "a direction of all kinds of parameters"
ROWS = "rows of weights along themselves"


class SilentDirection(NamedTuple):
    """A unit vector along which nothing but the slope should move the loss, and how long the weights are there."""

    v: Tensor
    where: str
    length: float


class Directions:
    """Directions of one block, from its weights, its gradient and the graph of the loss."""

    def __init__(self, check: LineCheck, graph: LossGraph) -> None:
        self.block, self.gradient, self.padded = check.block, check.gradient, graph.padded
        self.gradients, self.weights = self.block.split(check.gradient), check.weights
        self.kinds = groups_by_reader(graph, self.block.params)

    def _zeros(self) -> tuple[Tensor, list[Tensor]]:
        """A vector of the block, and its parts by parameter."""
        v = torch.zeros_like(self.gradient)
        return v, self.block.split(v)

    def mixed(self) -> Tensor:
        """Each kind of parameters moves along its gradient and, half as far, along itself.

        Along itself, because wrong normalizations are wrong there. Without any gradient it is a constant vector.
        """
        v, parts = self._zeros()
        sizes = {kind: _length(self.gradients, positions) for kind, positions in self.kinds.items()}
        for kind, reach in _reaches(sizes).items():
            if sizes[kind] == 0.0:
                continue
            length = _length(self.weights, self.kinds[kind])
            for i in self.kinds[kind]:
                parts[i].add_(self.gradients[i], alpha=reach / sizes[kind])
                if length:
                    parts[i].add_(self.weights[i], alpha=0.5 * reach / length)
        if not _normalize(v):
            v.fill_(v.numel() ** -0.5)
        return v

    def along_rows(self) -> Tensor:
        """Rows of weights grow or shrink, so that each raises the loss, each kind of them alike; 0 without any slope.

        Where a norm of rows is taken for a constant (a detached norm, DoRA), such a row has a slope, and the loss has
        none. A vector is one row.
        """
        v, parts = self._zeros()
        slopes = dict.fromkeys(self.kinds, 0.0)
        for kind, positions in self.kinds.items():
            for i in positions:
                p = self.block.params[i]
                count = len(p) if p.dim() > 1 and p.numel() else 1
                # g'w of each row: how much the loss is said to rise where the row grows.
                rows = self.weights[i].view(count, -1)
                products = (rows * self.gradients[i].view_as(rows)).sum(1, keepdim=True)
                torch.mul(rows, products.sign(), out=parts[i].view_as(rows))
                slopes[kind] += float(products.abs().sum())
        for kind, reach in _reaches(slopes).items():
            for i in self.kinds[kind]:
                parts[i].mul_(reach)
        _normalize(v)
        return v

    def scattered(self) -> tuple[Tensor, float]:
        """A random vector in which each kind of parameters has a slope of the same size, and that size.

        A gradient that is projected (OSF) is right along itself; it is not along a random vector. Its slope is small,
        ||g||/sqrt(d), but so is its curvature, and the step can be long.
        """
        v = _signs(self.gradient)
        parts = self.block.split(v)
        typical = {}  # root mean square gradient of each kind
        for kind, positions in self.kinds.items():
            entries = sum(parts[i].numel() for i in positions)
            typical[kind] = _length(self.gradients, positions) / math.sqrt(entries)
        for kind, reach in _reaches(typical).items():
            for i in self.kinds[kind]:
                parts[i].mul_(reach)
        size = norm(v)
        slope = norm(v * self.gradient) / size  # the root mean square over signs
        return v.mul_(1 / size), slope

    def silent(self) -> SilentDirection:
        """Random signs on the entries whose gradient is exactly 0; of length 0 where every entry has a gradient."""
        v, parts = self._zeros()
        for part, gradient, weight in zip(parts, self.gradients, self.weights, strict=True):
            zero_gradient = gradient == 0
            if zero_gradient.any():
                # As far as the weights are large, or a little where they are 0: a step is a share of this length.
                part.add_(_signs(part).mul_(zero_gradient), alpha=norm(weight) / weight.numel() ** 0.5 or 1e-2)
        return SilentDirection(v, "the entries whose gradient is 0", _normalize(v))

    def padding_rows(self) -> Iterator[SilentDirection]:
        """Random signs on the row padding_idx of each embedding in whose minibatch that row is looked up."""
        for i, p in enumerate(self.block.params):
            if id(p) in self.padded:
                row = self.padded[id(p)]
                v, parts = self._zeros()
                entries = parts[i].view(p.shape)[row]
                entries.copy_(_signs(entries) / entries.numel() ** 0.5)
                length = norm(p.detach().reshape(-1)) / len(p) ** 0.5
                yield SilentDirection(v, f"row padding_idx = {row} of an embedding", length)


def _reaches(sizes: Mapping[str, float]) -> dict[str, float]:
    """Factors by kind that make the sizes alike; one that is almost 0 is not blown up to what rounding made of it."""
    largest = max(sizes.values()) or 1.0
    return {kind: largest / max(size, 1e-3 * largest) for kind, size in sizes.items()}


def _length(parts: Sequence[Tensor], positions: Sequence[int]) -> float:
    """Euclidean norm of some parts of a vector together."""
    return math.sqrt(sum(dot(parts[i], parts[i]) for i in positions))


def _normalize(v: Tensor) -> float:
    """Scale v to length 1 in place, unless it is 0; its length before."""
    length = norm(v)
    if length:
        v.mul_(1 / length)
    return length


def _signs(like: Tensor) -> Tensor:
    """Pseudo-random signs in the shape of `like`, the same whenever asked for; the global generator is not touched."""
    generator = torch.Generator(like.device).manual_seed(like.numel())
    return torch.empty_like(like).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
