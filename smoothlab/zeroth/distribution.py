"""Base class of distributions of random directions z on a block: how they are drawn, and their known moments.

Every distribution has E zz' = I (`Masked` and `Preconditioned`: E zz' = S^2, as they say), so that E <g, z> z = g.
Distributions differ in their higher moments, from which bias and variance of zeroth-order estimators come
(`smoothlab.zeroth.moments`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth.expectations import Array, Cumulants, Shapes, entries, from_cumulants
from smoothlab.zeroth.rng import GeneratorName, Piece, Stream, chunk_of, cut

Parts = Sequence[float] | None
Vector = Array | None
_SAMPLING = {"fill", "radius", "pieces", "stream"}
_DERIVED = {
    "draw", "fill_replicas", "cumulants", "covariance", "expectation", "second_moment", "fourth_moments",
    "sixth_moment_of_length",
}  # fmt: skip


@dataclass(frozen=True)
class Distribution(ABC):
    """A distribution of directions z on a block, with z and -z alike and E zz' = I.

    A distribution of your own is a subclass with its own `fill`; that is enough for estimators, `HybridSGD`, seed logs
    and `Algorithm1`. With `cumulants`, where the entries are independent, it has all closed forms. An entry in
    `smoothlab.zeroth.names.DISTRIBUTIONS` makes it known to the command line.

    Closed forms and faster ways of drawing belong to the class that says how directions are drawn: a subclass that
    overrides `fill`, `radius`, `pieces` or `stream` inherits none of them.

    >>> import torch
    >>> from smoothlab import Block, Distribution
    >>> class Uniform(Distribution):
    ...     def fill(self, stream, piece, out):
    ...         out.uniform_(-(3**0.5), 3**0.5, generator=stream.generator(piece.tensor, piece.number))
    >>> Uniform().draw(Block("x", (torch.zeros(4),)), (0,)).shape
    torch.Size([4])

    One that draws its numbers by `stream.draws(piece)`, as smoothlab's do, can be made with generator="portable" too.

    >>> from smoothlab import Gaussian
    >>> Gaussian(generator="portable").draw(Block("x", (torch.zeros(2),)), (0,))   # the same on every machine
    tensor([-0.4574, -0.1702])

    Attributes:
        generator: "torch": the device's own generator; "portable": one whose bits are the same on every device, thread
            count, instruction set and torch version, see `smoothlab.zeroth.portable`.
        bounded: whether ||z|| is bounded, so that a loss that grows fast has a finite mean at theta + mu z.
        by_shape: whether directions depend on how the entries of a tensor are arranged, as rows and columns.
    """

    bounded: ClassVar[bool] = False
    by_shape: ClassVar[bool] = False
    generator: GeneratorName = field(default="torch", kw_only=True, repr=False)

    def __init_subclass__(cls) -> None:
        # A class that draws otherwise than its parent would be given the parent's moments without an error.
        if _SAMPLING & vars(cls).keys():
            for name in _DERIVED - vars(cls).keys():
                setattr(cls, name, vars(Distribution)[name])

    @property
    def parameters(self) -> tuple[float, ...]:
        """Parameters of the distribution; masks and scales, which belong to one model, are left out."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.compare and f.name != "generator")

    @property
    def name(self) -> str:
        """Name for records, with the parameters: "gaussian", "sparse(0.1)"."""
        label = type(self).__name__.lower()
        if not self.parameters:
            return label
        return f"{label}({', '.join(f'{number:g}' for number in self.parameters)})"

    @abstractmethod
    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Write the numbers of one piece into `out` [stop - start], of working precision."""

    def pieces(self, block: Block) -> list[Piece]:
        """Pieces that the block is cut into."""
        pieces: list[Piece] = []
        for i, p in enumerate(block.params):
            pieces += cut(i, p.numel(), chunk_of(p.device))
        return pieces

    def radius(self, stream: Stream) -> float:
        """Factor common to all entries that only the whole direction determines."""
        return 1.0

    def stream(self, block: Block, seed: Sequence[int]) -> Stream:
        """The direction that `seed` fixes on `block`."""
        return Stream(self, block, seed)

    def draw(self, block: Block, seed: Sequence[int]) -> Tensor:
        """The direction that `seed` fixes, as a flat vector [dim] of the block's dtype."""
        return self.stream(block, seed).numbers().to(block.params[0].dtype)

    def fill_replicas(
        self, out: Tensor, scratch: Tensor, generator: torch.Generator, shape: tuple[int, ...] = ()
    ) -> None:
        """Write independent directions [..., dim] on a single tensor into `out`, for replicas of Algorithm 1.

        Args:
            out: fp64.
            scratch: the same shape; its dtype is that of the random numbers.
            generator: where the numbers, or the seeds of directions, come from.
            shape: shape of the tensor whose entries are the last dimension of `out`; a vector if empty.
        """
        rows = out.view(-1, out.shape[-1])
        block = Block("x", (torch.empty(shape or out.shape[-1], dtype=scratch.dtype),))
        # Two words of 32 bits a direction: with one, a run of 10^5 directions would expect one repetition.
        seeds = torch.randint(1 << 32, (len(rows), 2), generator=generator)
        for row, seed in zip(rows, seeds.tolist(), strict=True):
            row.copy_(self.draw(block, seed))

    # Closed forms

    def cumulants(self) -> Cumulants:
        """Cumulants of an entry; all are independent.

        Raises:
            BadInput: none are known.
        """
        raise BadInput(f"no closed form is known for {self.name} directions: measure their moments by sampling")

    def covariance(self, shapes: Shapes) -> Array:
        """Diagonal of E zz' [d]."""
        return np.ones(entries(shapes))

    def expectation(self, shapes: Shapes, factors: Sequence[Array], *, free: bool = False) -> Array:
        """E prod_k F_k[z, ..., z], or the vector E z prod_k F_k[z, ..., z] with `free`.

        Args:
            shapes: shapes of the block's tensors, whose entries are z [d] in order.
            factors: symmetric arrays F_k [d, ..., d].
            free: multiply by z.

        Raises:
            BadInput: no closed form is known.
        """
        return from_cumulants(self.cumulants(), shapes, factors, free=free)

    def second_moment(self, shapes: Shapes, parts: Parts = None, gradient: Vector = None) -> tuple[float, float]:
        """E ||<g, z> z||^2 and ||E <g, z> z||^2, over ||g||^2. Cheap for any dimension.

        E (g'z)^2 ||z||^2 = sum_ij g_i g_j E z_i z_j ||z||^2; for independent entries d - 1 + E z_i^4 (Isserlis).

        Args:
            shapes: shapes of the block's tensors.
            parts: squared gradient norm of each tensor.
            gradient: g [d], which gives everything.

        Raises:
            BadInput: no closed form is known, or the moments depend on the gradient and neither `parts` nor `gradient`
                says enough.
        """
        return entries(shapes) + 2 + self.cumulants().fourth, 1.0

    def fourth_moments(self, shapes: Shapes) -> tuple[float, float]:
        """E z_i^2 z_j^2 and E z_i^4, where they are the same for all i and j.

        Raises:
            BadInput: no closed form is known, or they differ.
        """
        return 1.0, 3 + self.cumulants().fourth

    def sixth_moment_of_length(self, shapes: Shapes) -> float:
        """E ||z||^6, from the moments of independent entries.

        (sum_i z_i^2)^3 has d terms z_i^6, 3 d (d - 1) terms z_i^4 z_j^2 and d (d - 1)(d - 2) of three entries.

        Raises:
            BadInput: no closed form is known.
        """
        d, cumulants = entries(shapes), self.cumulants()
        fourth = cumulants.fourth + 3
        sixth = cumulants.sixth + 15 * fourth - 30
        return d * sixth + 3 * d * (d - 1) * fourth + d * (d - 1) * (d - 2)
