"""Distributions of random directions v on a block.

Every distribution has E vv' = I (`Masked` and `Preconditioned`: E vv' = S^2, as they say), so that E <g, v> v = g.
Distributions differ in their fourth moments, from which the variance of zeroth-order estimators comes
(`smoothlab.zeroth.moments`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth.rng import SHARED, Directions, Piece, Stream, chunk_of, cut

Distribution = Literal["gaussian", "rademacher", "sphere"]
"""Distribution of a probe: normal, random signs, or uniform on the sphere of radius sqrt(dim)."""


@dataclass(frozen=True)
class Gaussian(Directions):
    """v ~ N(0, I), as in Eq. (2)."""

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Normal numbers of working precision."""
        out.normal_(generator=stream.generator(piece.tensor, piece.number))


@dataclass(frozen=True)
class Sphere(Gaussian):
    """v uniform on the sphere of radius sqrt(dim): a Gaussian one, divided by its length. Costs one more drawing."""

    def radius(self, stream: Stream) -> float:
        """sqrt(dim) / ||g||."""
        return _radius(stream.block.dim, stream.each(lambda piece, g: _square(g)))

    def draw(self, block: Block, seed: Sequence[int]) -> Tensor:
        """As the stream has it to the bit, drawn once."""
        v = Gaussian().stream(block, seed).numbers()
        parts = v.split([p.numel() for p in block.params])
        radius = _radius(block.dim, [_square(parts[t][a:b]) for t, _, a, b in self.pieces(block)])
        return v.mul_(radius).to(block.params[0].dtype)


def _square(g: Tensor) -> float:
    """||g||^2 by rows of 1,024 entries, so that its bits do not depend on the number of threads."""
    whole = len(g) // 1024 * 1024
    rows = g[:whole].view(-1, 1024).square().sum(1).double().sum() if whole else 0.0
    return float(rows) + math.fsum(g[whole:].double().square().tolist())


def _radius(dim: int, squares: Sequence[float]) -> float:
    return float((dim / math.fsum(squares)) ** 0.5)


_SIGN, _ONE = -(1 << 31), 0x3F800000  # the sign bit of an fp32 number, and the bits of 1.0


@dataclass(frozen=True)
class Rademacher(Directions):
    """Independent random signs from packed bits: a third of a Gaussian's cost."""

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Each random bit, moved to the place of the sign, makes +-1.0."""
        words = torch.empty(-(-len(out) // 64), dtype=torch.int64, device=out.device)
        words.random_(-(1 << 63), None, generator=stream.generator(piece.tensor, piece.number))
        fits = out.dtype == torch.float32 and len(out) % 64 == 0
        bits = out.view(torch.int32).view(-1, 32) if fits else words.new_empty(2 * len(words), 32, dtype=torch.int32)
        torch.bitwise_left_shift(words.view(torch.int32)[:, None], _shifts(out.device), out=bits)
        bits.bitwise_and_(_SIGN).bitwise_or_(_ONE)
        if not fits:
            out.copy_(bits.view(torch.float32).view(-1)[: len(out)])


@cache
def _shifts(device: torch.device) -> Tensor:
    return torch.arange(31, -1, -1, dtype=torch.int32, device=device)


@dataclass(frozen=True)
class Coordinate(Directions):
    """v = +-sqrt(dim) e_j, j and the sign uniform: one entry moves."""

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Zeros but for entry j."""
        dim = stream.block.dim
        j, sign = (stream.words[0] << 31 | stream.words[1] >> 1) % dim, 1 - 2 * (stream.words[1] & 1)
        before = sum(p.numel() for p in stream.block.params[: piece.tensor])
        out.zero_()
        if piece.start <= j - before < piece.stop:
            out[j - before - piece.start] = sign * dim**0.5


@dataclass(frozen=True)
class Sparse(Directions):
    """v = m g / sqrt(share): Gaussian g on a fresh random mask m that keeps each entry with probability `share`.

    Attributes:
        share: probability of an entry to move, in (0, 1].
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise BadInput(f"the share of entries that move is {self.share}: use a number in (0, 1]")

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Normal numbers, then the mask."""
        generator = stream.generator(piece.tensor, piece.number)
        out.normal_(generator=generator)
        kept = torch.empty_like(out).uniform_(generator=generator) < self.share
        out.mul_(kept).mul_(self.share**-0.5)


@dataclass(frozen=True)
class Masked(Directions):
    """v = m g: Gaussian g on the entries that a fixed mask keeps, so E vv' = diag(m) and the others get gradient 0.

    Attributes:
        masks: one boolean tensor a parameter of the block, in its shape or a single entry for all; True moves.
    """

    masks: tuple[Tensor, ...] = field(compare=False)

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Normal numbers where the mask is set."""
        mask = _fitting(self.masks, stream.block, piece, "mask")
        out.normal_(generator=stream.generator(piece.tensor, piece.number))
        out.mul_(mask)


@dataclass(frozen=True)
class Preconditioned(Directions):
    """v = S g with diagonal S: E vv' = S^2, so the estimator's mean is S^2 grad f, a preconditioned gradient.

    Attributes:
        scales: S, one tensor a parameter of the block, in its shape or a single number for all of its entries.
    """

    scales: tuple[Tensor, ...] = field(compare=False)

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Normal numbers times S."""
        scale = _fitting(self.scales, stream.block, piece, "scale")
        out.normal_(generator=stream.generator(piece.tensor, piece.number))
        out.mul_(scale)


def _fitting(given: tuple[Tensor, ...], block: Block, piece: Piece, what: str) -> Tensor:
    """The mask or scale of the piece, [stop - start] or a single number for all of the tensor."""
    shapes, params = [tuple(t.shape) for t in given], [tuple(p.shape) for p in block.params]
    if len(given) != len(params) or (given[piece.tensor].numel() != 1 and shapes[piece.tensor] != params[piece.tensor]):
        raise BadInput(f"{what}s of shapes {shapes} do not fit block '{block.name}': give one tensor a parameter, "
                       f"of shapes {params}")  # fmt: skip
    found = given[piece.tensor]
    return found.reshape(()) if found.numel() == 1 else found.reshape(-1)[piece.start : piece.stop]


@dataclass(frozen=True)
class LowRank(Directions):
    """v = U W' / sqrt(rank) for a matrix [m, n], U [m, rank] and W [n, rank] Gaussian; Gaussian for other tensors.

    E vec(V) vec(V)' = I, but the entries are uncorrelated, not independent (LOZO, Chen et al. 2024).

    Attributes:
        rank: rank of the direction, from 1.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadInput(f"rank {self.rank}: use at least 1")

    def pieces(self, block: Block) -> list[Piece]:
        """Whole rows of matrices, as many as fit a chunk."""
        found: list[Piece] = []
        for i, p in enumerate(block.params):
            rows = chunk_of(p.device)
            if p.dim() == 2 and p.numel():
                rows = max(1, rows // p.shape[1]) * p.shape[1]
            found += cut(i, p.numel(), rows)
        return found

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """U of the piece's rows times W', which every piece of the tensor draws alike."""
        p = stream.block.params[piece.tensor]
        if p.dim() != 2:
            out.normal_(generator=stream.generator(piece.tensor, piece.number))
            return
        n = p.shape[1]
        w = out.new_empty(n, self.rank).normal_(generator=stream.generator(piece.tensor, SHARED))
        u = out.new_empty(len(out) // n, self.rank)
        u.normal_(generator=stream.generator(piece.tensor, piece.number))
        torch.mm(u, w.T, out=out.view(-1, n)).mul_(self.rank**-0.5)


@dataclass(frozen=True)
class Given(Directions):
    """Directions that were drawn elsewhere: seed (i,) stands for number i of them.

    Attributes:
        vectors: flat vectors [dim] in the order of the block's parameters.
    """

    vectors: tuple[Tensor, ...] = field(compare=False)

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Copy."""
        before = sum(p.numel() for p in stream.block.params[: piece.tensor])
        out.copy_(self.vectors[stream.seed[0]][before + piece.start : before + piece.stop])


DISTRIBUTIONS: dict[str, Directions] = {"gaussian": Gaussian(), "rademacher": Rademacher(), "sphere": Sphere()}
"""Distributions of probes by name."""


def draw(block: Block, distribution: Distribution, seed: Sequence[int]) -> Tensor:
    """A probe v [dim] on `block` with E vv' = I, fixed by `seed`."""
    if distribution not in DISTRIBUTIONS:
        raise BadInput(f"probe distribution '{distribution}' is unknown: use gaussian, rademacher or sphere")
    return DISTRIBUTIONS[distribution].draw(block, seed)
