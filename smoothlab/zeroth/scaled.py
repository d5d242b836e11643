"""Distributions of directions that belong to one model: scaled and masked ones, and directions that are known.

Their tensors have the shapes of a block's parameters, so that no name and no entry of a table stands for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.zeroth.distribution import Distribution, Parts, Vector
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.expectations import Array, Shapes
from smoothlab.zeroth.rng import Piece, Stream


@dataclass(frozen=True)
class Preconditioned(Distribution):
    """Directions z = S g, g Gaussian, S diagonal: E zz' = S^2, so an estimator's mean is S^2 grad f, preconditioned.

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
        if len(scale) > 1:
            scale = scale[piece.start : piece.stop]
        stream.draws(piece).normal_(out).mul_(scale)

    def _check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Refuse scales that do not fit tensors of these shapes."""
        scale_shapes = [tuple(scale.shape) for scale in self.scales]
        fits = len(scale_shapes) == len(shapes)
        for scale, shape in zip(self.scales, shapes, strict=False):
            fits &= scale.numel() in (1, prod(shape))
        if not fits:
            raise BadInput(
                f"{self.name} directions: tensors of shapes {scale_shapes} do not fit parameters of shapes "
                f"{list(shapes)}: give one tensor a parameter, of its shape or of one entry"
            )

    def covariance(self, shapes: Shapes) -> Array:
        """S^2."""
        self._check(shapes)
        flat = [s.detach().cpu().double().reshape(-1).expand(prod(n)) for s, n in zip(self.scales, shapes, strict=True)]
        return torch.cat(flat).numpy() ** 2

    def expectation(self, shapes: Shapes, factors: Sequence[Array], *, free: bool = False) -> Array:
        """The Gaussian's, each index of each F_k times S."""
        scale = self.covariance(shapes) ** 0.5
        scaled = []
        for f in factors:
            for axis in range(f.ndim):
                # The last axis is multiplied, which is moved there and back.
                f = np.moveaxis(np.moveaxis(f, axis, -1) * scale, -1, axis)
            scaled.append(f)
        value = Gaussian(generator=self.generator).expectation(shapes, scaled, free=free)
        return value * scale if free else value

    def second_moment(self, shapes: Shapes, parts: Parts = None, gradient: Vector = None) -> tuple[float, float]:
        """(tr S^2 ||S g||^2 + (2 + c) ||S^2 g||^2) / ||g||^2, from g or, where S is one number a tensor, its norms.

        c is the fourth cumulant of an entry of z / S, 0 for normal ones.
        """
        if gradient is not None:
            s2, g2 = self.covariance(shapes), gradient**2
            trace = s2.sum()
        elif parts is not None and all(scale.numel() == 1 for scale in self.scales):
            # Entry by entry would be exact as well, but a block of 10^9 entries has no room for it.
            s2, g2 = np.array([*map(float, self.scales)]) ** 2, np.array(parts)
            trace = s2 @ [*map(prod, shapes)]
        else:
            raise BadInput(f"the variance of {self.name} directions depends on the gradient: give gradient")
        total, aligned = g2.sum(), s2**2 @ g2
        fourth = Gaussian(generator=self.generator).cumulants().fourth
        return float((trace * (s2 @ g2) + (2 + fourth) * aligned) / total), float(aligned / total)

    def fourth_moments(self, shapes: Shapes) -> tuple[float, float]:
        """Refused: they differ between entries.

        Raises:
            BadInput: always.
        """
        raise BadInput(
            f"{self.name} directions move entries by different lengths: S z is Gaussian for the Hessian S H S, whose "
            "spectrum a stable rate follows from with Gaussian directions; measure that"
        )


@dataclass(frozen=True)
class Masked(Preconditioned):
    """Directions z = m g, g Gaussian, m a fixed mask: E zz' = diag(m), and entries that it hides get gradient 0.

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
        """Copy the piece of the known direction."""
        before = stream.block.offset(piece.tensor)
        out.copy_(self.vectors[stream.seed[0]][before + piece.start : before + piece.stop])
