"""Distributions of directions that belong to one model: scaled and masked ones, and directions that are known.

Their tensors have the shapes of a block's parameters, so that no name and no entry of a table stands for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.zeroth.distributions import Distribution, Gaussian, Parts, Vector
from smoothlab.zeroth.expectations import Array, Shapes
from smoothlab.zeroth.rng import Piece, Stream


@dataclass(frozen=True)
class Preconditioned(Distribution):
    """z = S g with diagonal S: E zz' = S^2, so the estimator's mean is S^2 grad f, a preconditioned gradient.

    >>> import torch
    >>> from smoothlab import Preconditioned
    >>> Preconditioned((torch.tensor([2.0, 0.5]),)).covariance(((2,),)).tolist()
    [4.0, 0.25]

    Attributes:
        scales: S, one tensor a parameter of the block, in its shape or a single number for all of its entries.
    """

    scales: tuple[Tensor, ...] = field(compare=False)

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Normal numbers times S."""
        self._check(stream.block.shapes)
        scale = self.scales[piece.tensor].reshape(-1)
        out.normal_(generator=stream.generator(piece.tensor, piece.number))
        out.mul_(scale if len(scale) == 1 else scale[piece.start : piece.stop])

    def _check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Refuse scales that do not fit tensors of these shapes."""
        sizes, own = [t.numel() for t in self.scales], [tuple(t.shape) for t in self.scales]
        if len(sizes) != len(shapes) or any(n not in (1, prod(s)) for n, s in zip(sizes, shapes, strict=True)):
            raise BadInput(
                f"{self.name} directions: tensors of shapes {own} do not fit parameters of shapes {list(shapes)}: give "
                "one tensor a parameter, of its shape or of one entry"
            )

    def covariance(self, shapes: Shapes) -> Array:
        """S^2."""
        self._check(shapes)
        flat = [t.detach().cpu().double().numpy().reshape(-1) for t in self.scales]
        return np.concatenate([np.broadcast_to(s, prod(shape)) for s, shape in zip(flat, shapes, strict=True)]) ** 2

    def expectation(self, shapes: Shapes, factors: Sequence[Array], *, free: bool = False) -> Array:
        """The Gaussian's, each index of each F_k times S."""
        scale = self.covariance(shapes) ** 0.5
        scaled = []
        for f in factors:
            for axis in range(f.ndim):
                f = f * np.expand_dims(scale, [k for k in range(f.ndim) if k != axis])
            scaled.append(f)
        value = Gaussian().expectation(shapes, scaled, free=free)
        return value * scale if free else value

    def second_moment(self, shapes: Shapes, parts: Parts = None, gradient: Vector = None) -> tuple[float, float]:
        """(tr S^2 ||S g||^2 + 2 ||S^2 g||^2) / ||g||^2, from g or, where S is one number a tensor, from its norms."""
        if gradient is not None:
            s, g2 = self.covariance(shapes), gradient**2
            trace = s.sum()
        elif parts is not None and all(t.numel() == 1 for t in self.scales):
            s, g2 = np.array([float(t) ** 2 for t in self.scales]), np.array(parts)
            trace = s @ [prod(shape) for shape in shapes]
        else:
            raise BadInput(f"the variance of {self.name} directions depends on the gradient: give gradient")
        total, aligned = g2.sum(), s**2 @ g2
        return float((trace * (s @ g2) + 2 * aligned) / total), float(aligned / total)


@dataclass(frozen=True)
class Masked(Preconditioned):
    """z = m g: Gaussian g on the entries that a fixed mask keeps, so E zz' = diag(m) and the others get gradient 0.

    >>> import torch
    >>> from smoothlab import Masked
    >>> Masked((torch.tensor([True, False]),)).covariance(((2,),)).tolist()
    [1.0, 0.0]

    Attributes:
        scales: one boolean tensor a parameter of the block, in its shape or a single entry for all; True moves.
    """


@dataclass(frozen=True)
class Known(Distribution):
    """Directions that are there already: seed (i,) stands for number i of them.

    Attributes:
        vectors: flat vectors [dim] in the order of the block's parameters.
    """

    vectors: tuple[Tensor, ...] = field(compare=False)

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Copy."""
        before = stream.block.offset(piece.tensor)
        out.copy_(self.vectors[stream.seed[0]][before + piece.start : before + piece.stop])
