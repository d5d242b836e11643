"""Distributions of random directions, each a class with the closed forms of its moments, and their names.

Gaussian ones give Gaussian smoothing, Rademacher ones SPSA. Others are in `smoothlab.zeroth.low_rank` and
`smoothlab.zeroth.scaled`; what all of them have in common is `smoothlab.zeroth.distribution.Distribution`.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth import portable
from smoothlab.zeroth.distribution import Distribution, Parts, Vector
from smoothlab.zeroth.expectations import Array, Cumulants, Shapes, by_coordinates, entries
from smoothlab.zeroth.names import DERIVED, DISTRIBUTIONS, from_table
from smoothlab.zeroth.rng import GeneratorName, Piece, Stream

NORMAL_MOMENTS: dict[GeneratorName, tuple[float, float, float]] = {
    "torch": (3.0, 15.0, 105.0),
    "portable": portable.MOMENTS,
}
"""E z^4, E z^6 and E z^8 of the normal numbers of each generator, whose variance is 1."""


@dataclass(frozen=True)
class Gaussian(Distribution):
    """Directions z ~ N(0, I), as in Eq. (2): Gaussian smoothing.

    Portable ones are drawn from a table of 65,536 normal quantiles, of variance 1 and kurtosis 2.99925.

    >>> from smoothlab import Gaussian
    >>> Gaussian().second_moment(((10,),))   # d + 2
    (12.0, 1.0)
    """

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Normal numbers of working precision."""
        stream.draws(piece).normal_(out)

    def fill_replicas(
        self, out: Tensor, scratch: Tensor, generator: torch.Generator, shape: tuple[int, ...] = ()
    ) -> None:
        """Normal numbers of the precision of `scratch`."""
        if self.generator == "portable":
            return super().fill_replicas(out, scratch, generator, shape)
        out.copy_(scratch.normal_(generator=generator))

    def cumulants(self) -> Cumulants:
        """k_2 = 1 and no other: the sum over pairings of Isserlis (1918). Portable ones have the table's."""
        return Cumulants.of_moments(*NORMAL_MOMENTS[self.generator])


@dataclass(frozen=True)
class Sphere(Distribution):
    """Directions z uniform on the sphere of radius sqrt(dim). They cost twice the drawing of Gaussian ones.

    The closed forms are the uniform distribution's. Portable ones, table normals brought to that length, have its
    second moments and E <g, z>^2 ||z||^2 = d ||g||^2 exactly, as their entries are exchangeable and symmetric; their
    moments of order 4 and 6 differ from it by at most 0.00076 and 0.028 in every dimension (integrals over the table).

    >>> from smoothlab import Sphere
    >>> Sphere().second_moment(((10,),))
    (10.0, 1.0)
    """

    bounded: ClassVar[bool] = True
    fill = Gaussian.fill

    def radius(self, stream: Stream) -> float:
        """sqrt(dim) / ||g||."""
        square, radius = _lengths(self.generator)
        return radius(stream.block.dim, stream.map(lambda piece, g: square(g)))

    def draw(self, block: Block, seed: Sequence[int]) -> Tensor:
        """The direction, the same to the bit as the stream's, but drawn only once."""
        z = Gaussian(generator=self.generator).stream(block, seed).numbers()
        parts, (square, radius) = block.split(z), _lengths(self.generator)
        # Piece by piece, as `radius` has it: another order of the sum would be another number.
        squares = [square(parts[p.tensor][p.start : p.stop]) for p in self.pieces(block)]
        return z.mul_(radius(block.dim, squares)).to(block.params[0].dtype)

    def fill_replicas(
        self, out: Tensor, scratch: Tensor, generator: torch.Generator, shape: tuple[int, ...] = ()
    ) -> None:
        """Gaussian directions divided by their length."""
        if self.generator == "portable":
            return super().fill_replicas(out, scratch, generator, shape)
        Gaussian().fill_replicas(out, scratch, generator)
        out.mul_(out.shape[-1] ** 0.5 / torch.linalg.vector_norm(out, dim=-1, keepdim=True))

    def expectation(self, shapes: Shapes, factors: Sequence[Array], *, free: bool = False) -> Array:
        """The Gaussian's of order 2n, on whose length z does not depend, times d^n / (d (d + 2) ... (d + 2n - 2))."""
        d = entries(shapes)
        order = sum(f.ndim for f in factors) + free
        shrink = prod(d / (d + 2 * k) for k in range(order // 2))
        return shrink * Gaussian().expectation(shapes, factors, free=free)

    def second_moment(self, shapes: Shapes, parts: Parts = None, gradient: Vector = None) -> tuple[float, float]:
        """d, as ||z||^2 = d."""
        return float(entries(shapes)), 1.0

    def fourth_moments(self, shapes: Shapes) -> tuple[float, float]:
        """The Gaussian's 1 and 3, times d/(d + 2)."""
        d = entries(shapes)
        return d / (d + 2), 3 * d / (d + 2)

    def sixth_moment_of_length(self, shapes: Shapes) -> float:
        """d^3."""
        return float(entries(shapes)) ** 3


def _square(g: Tensor) -> float:
    """||g||^2 by rows of 1,024 entries, so that its bits do not depend on the number of threads."""
    in_rows = len(g) // 1024 * 1024
    rows = g[:in_rows].view(-1, 1024).square().sum(1).double().sum()
    return float(rows) + math.fsum(g[in_rows:].double().square().tolist())


def _radius(dim: int, squares: Sequence[float]) -> float:
    # fsum rounds once, so that the radius does not depend on the order in which threads are done.
    return float((dim / math.fsum(squares)) ** 0.5)


def _lengths(generator: GeneratorName) -> tuple[Callable[[Tensor], Any], Callable[[int, Sequence[Any]], float]]:
    """Square of the length of a piece, and the factor sqrt(dim) / ||g|| from the pieces' squares."""
    if generator == "portable":
        return portable.sum_of_squares, portable.radius
    return _square, _radius


def _power_of_root(number: float, power: float) -> float:
    """number^power for a power of +-1/2: every machine rounds square roots and quotients alike, but not powers."""
    return math.sqrt(number) if power > 0 else 1 / math.sqrt(number)


_POWERS: dict[GeneratorName, Callable[[float, float], float]] = {"torch": pow, "portable": _power_of_root}


_SIGNS_OF_BYTE = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).double() * 2 - 1


@dataclass(frozen=True)
class Rademacher(Distribution):
    """Directions z of independent random signs, as in SPSA. They cost a third of the drawing of Gaussian ones.

    >>> from smoothlab import Rademacher
    >>> Rademacher().second_moment(((10,),))
    (10.0, 1.0)
    """

    bounded: ClassVar[bool] = True

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Random signs."""
        stream.draws(piece).signs_(out)

    def fill_replicas(
        self, out: Tensor, scratch: Tensor, generator: torch.Generator, shape: tuple[int, ...] = ()
    ) -> None:
        """The 8 signs of each random byte."""
        if self.generator == "portable":
            return super().fill_replicas(out, scratch, generator, shape)
        dim = out.shape[-1]
        packed = torch.empty(*out.shape[:-1], -(-dim // 8), dtype=torch.uint8)
        packed.random_(256, generator=generator)
        out.copy_(_SIGNS_OF_BYTE[packed.long()].flatten(-2)[..., :dim])

    def cumulants(self) -> Cumulants:
        """All moments of even order are 1."""
        return Cumulants.of_moments(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Coordinate(Distribution):
    """Directions z = +-sqrt(dim) e_j, j and the sign uniform: one entry moves.

    >>> from smoothlab import Coordinate
    >>> Coordinate().second_moment(((10,),))
    (10.0, 1.0)
    """

    bounded: ClassVar[bool] = True

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Zeros but for entry j."""
        dim = stream.block.dim
        # All pieces must agree on j, so that it comes from the direction's own words: one bit for the sign, 63 for j,
        # whose remainder is uniform to dim/2^63.
        j, sign = (stream.words[0] << 31 | stream.words[1] >> 1) % dim, 1 - 2 * (stream.words[1] & 1)
        position = j - stream.block.offset(piece.tensor)
        out.zero_()
        if piece.start <= position < piece.stop:
            out[position - piece.start] = sign * _POWERS[self.generator](dim, 0.5)

    def fill_replicas(
        self, out: Tensor, scratch: Tensor, generator: torch.Generator, shape: tuple[int, ...] = ()
    ) -> None:
        """Zeros but for one entry of each direction; one number fixes the entry and its sign."""
        if self.generator == "portable":
            return super().fill_replicas(out, scratch, generator, shape)
        dim = out.shape[-1]
        rows = out.zero_().view(-1, dim)
        drawn = torch.randint(2 * dim, (len(rows), 1), generator=generator)
        rows.scatter_(1, drawn // 2, (1 - 2 * (drawn % 2)).double() * dim**0.5)

    def expectation(self, shapes: Shapes, factors: Sequence[Array], *, free: bool = False) -> Array:
        """E z_i ... z_l = d^(n - 1) 1{i = ... = l} at order 2n."""
        return by_coordinates(shapes, factors, free=free)

    second_moment = Sphere.second_moment
    sixth_moment_of_length = Sphere.sixth_moment_of_length

    def fourth_moments(self, shapes: Shapes) -> tuple[float, float]:
        """0, as one entry moves, and d."""
        return 0.0, float(entries(shapes))


@dataclass(frozen=True)
class Sparse(Distribution):
    """Directions z = m g / sqrt(density): g Gaussian, m a new random mask that keeps each entry with that probability.

    >>> from smoothlab import Sparse
    >>> Sparse(0.5).second_moment(((10,),))
    (15.0, 1.0)

    Attributes:
        density: probability of an entry to move, in (0, 1].
    """

    density: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise BadInput(f"density {self.density} of sparse directions: use a number in (0, 1]")

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Normal numbers, then the mask."""
        draws = stream.draws(piece)
        # Normal numbers for all entries, also those that stay: how many are drawn must not depend on the mask.
        draws.keep_(draws.normal_(out), self.density).mul_(_POWERS[self.generator](self.density, -0.5))

    def fill_replicas(
        self, out: Tensor, scratch: Tensor, generator: torch.Generator, shape: tuple[int, ...] = ()
    ) -> None:
        """Normal numbers, then the mask."""
        if self.generator == "portable":
            return super().fill_replicas(out, scratch, generator, shape)
        out.copy_(scratch.normal_(generator=generator))
        out.mul_(scratch.uniform_(generator=generator) < self.density).mul_(self.density**-0.5)

    def cumulants(self) -> Cumulants:
        """From m_n = density E g^n density^(-n / 2), E g^n = (n - 1)!! or the table's."""
        m4, m6, m8 = NORMAL_MOMENTS[self.generator]
        return Cumulants.of_moments(m4 / self.density, m6 / self.density**2, m8 / self.density**3)


def named(text: str, option: str = "distribution", generator: GeneratorName = "torch") -> Distribution:
    """The distribution of a name in `smoothlab.zeroth.names.DISTRIBUTIONS`, with parameters in parentheses if any.

    >>> from smoothlab.zeroth.distributions import named
    >>> named("sparse(0.25)")
    Sparse(density=0.25)

    Args:
        text: the name, e.g. "gaussian" or "sparse(0.25)".
        option: what errors call it.
        generator: where its numbers come from.

    Raises:
        BadInput: the name is in no entry, or its parameters are not the distribution's.
    """
    distribution: Distribution = from_table(text, DISTRIBUTIONS, option, "sparse(0.25)", generator=generator)
    return distribution


def of_repr(text: str, generator: GeneratorName) -> Distribution:
    """The distribution whose repr, such as "Sparse(density=0.1)", the head of a seed log holds.

    Raises:
        BadInput: no name stands for it.
    """
    label, _, arguments = text.partition("(")
    name = f"{label.lower()}({re.sub('[a-z_]+=', '', arguments)}"
    distribution: Distribution = from_table(
        name, {**DISTRIBUTIONS, **DERIVED}, "the log's distribution", "sparse(0.25)", generator=generator
    )
    return distribution


def draw(block: Block, distribution: str, seed: Sequence[int]) -> Tensor:
    """A probe z [dim] on `block` with E zz' = I, fixed by `seed`."""
    return named(distribution).draw(block, seed)
