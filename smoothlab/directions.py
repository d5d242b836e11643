"""Random directions v on a block: their laws, and the streams of numbers that they are made of.

A direction is a law and a seed, nothing else: O(1) memory, O(1) to send. Its numbers come in pieces of at most CHUNK
entries of one tensor. The generator of a piece is seeded by (seed, tensor, piece), so a piece can be drawn at any time,
in any order and by any thread, and equal-shaped tensors get different noise. The bits are those of one kind of
generator: torch's differ between devices, between versions, and on a CPU between instruction sets; `stream_name` says
which one is in use, for records and seed logs.

Every law has E vv' = I (for `Masked` and `Preconditioned`: E vv' = S^2, as their docstrings say), so that
E <g, v> v = g; the laws differ in their fourth moments, from which the variance of zeroth-order estimators comes
(`smoothlab.moments`).
"""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput

Seed = tuple[int, ...]
Law = Literal["gaussian", "rademacher", "sphere"]
"""Law of a probe: normal, random signs, or uniform on the sphere of radius sqrt(dim)."""

CHUNK = 1 << 17  # entries of a piece on a CPU: it stays in cache, and the cost of a call is small beside it
DEVICE_CHUNK = 1 << 26  # elsewhere a piece is one launch
_PIECES = 1 << 16  # of one tensor, and tensors of one block: the numbers of both make one key of 32 bits
_SHARED = _PIECES - 1  # number of the stream that all pieces of a tensor share (LowRank)

T = TypeVar("T")


class Piece(NamedTuple):
    """Entries start to stop of tensor number `tensor` of a block, in the order of its memory."""

    tensor: int
    number: int
    start: int
    stop: int


def stream_name(device: torch.device | str = "cpu") -> str:
    """The generator that seeds are bound to: device, torch version and, on a CPU, its instruction set."""
    kind = torch.device(device).type
    detail = torch.backends.cpu.get_cpu_capability() if kind == "cpu" else "philox"
    return f"{kind}/{detail}/torch-{torch.__version__.partition('+')[0]}/chunk-{_chunk(torch.device(device))}"


def _chunk(device: torch.device) -> int:
    return CHUNK if device.type == "cpu" else DEVICE_CHUNK


_local = threading.local()


def _generator(device: torch.device) -> torch.Generator:
    """This thread's generator for the device: making one costs as much as drawing a thousand numbers."""
    known: dict[torch.device, torch.Generator] = _local.__dict__.setdefault("generators", {})
    if device not in known:
        known[device] = torch.Generator(device)
    return known[device]


class Stream:
    """The numbers of one direction on one block.

    Attributes:
        law: the law they follow.
        block: the block they are for; only its shapes, dtype and device matter.
        seed: any tuple of non-negative integers.
        words: 64 random bits for laws that choose once for the whole direction.
        scale: factor common to all entries that only the whole direction tells (the sphere's radius), else 1.
    """

    def __init__(self, law: "Directions", block: Block, seed: Sequence[int]) -> None:
        self.law, self.block, self.seed = law, block, tuple(seed)
        self.device = block.params[0].device
        state = np.random.SeedSequence([len(self.seed), *self.seed]).generate_state(4, np.uint32)
        self._odd, self._shift, self.words = int(state[0]) | 1, int(state[1]), (int(state[2]), int(state[3]))
        self.scale = 1.0
        self.scale = law.radius(self)

    @property
    def dtype(self) -> torch.dtype:
        """Working precision of the numbers: fp64 for an fp64 block, else fp32."""
        return torch.float64 if self.block.params[0].dtype == torch.float64 else torch.float32

    def generator(self, tensor: int, number: int) -> torch.Generator:
        """The generator of one piece.

        torch's Mersenne twister takes 32 bits of a seed. (tensor, number) -> key is one-to-one within a direction, so
        no two of its pieces are the same; pieces of different directions coincide with probability 2^-32 each.
        """
        key = ((tensor << 16 | number) * self._odd + self._shift) & 0xFFFFFFFF
        key = ((key ^ key >> 16) * 0x85EBCA6B) & 0xFFFFFFFF  # the finalizer of MurmurHash3: a bijection that mixes
        key = ((key ^ key >> 13) * 0xC2B2AE35) & 0xFFFFFFFF
        return _generator(self.device).manual_seed(key ^ key >> 16)

    def fill(self, piece: Piece, out: Tensor) -> Tensor:
        """Write the entries of `piece` into `out` [stop - start], of working precision, and return it."""
        self.law.fill(self, piece, out)
        return out if self.scale == 1.0 else out.mul_(self.scale)

    def pieces(self) -> list[Piece]:
        """All pieces in order."""
        return self.law.pieces(self.block)

    def each(self, work: Callable[[Piece, Tensor], T]) -> list[T]:
        """work(piece, its numbers) for all pieces, in threads on a CPU; the numbers live in scratch memory."""
        pieces = self.pieces()
        longest = max((p.stop - p.start for p in pieces), default=0)

        def several(mine: Sequence[Piece]) -> list[T]:
            scratch = torch.empty(longest, dtype=self.dtype, device=self.device)
            with torch.no_grad():
                return [work(p, self.fill(p, scratch[: p.stop - p.start])) for p in mine]

        return spread(several, pieces, self.device)

    def dense(self) -> Tensor:
        """The whole direction as a flat vector [dim] of the block's dtype."""
        out = torch.empty(self.block.dim, dtype=self.block.params[0].dtype, device=self.device)
        parts = out.split([p.numel() for p in self.block.params])

        def place(piece: Piece, numbers: Tensor) -> None:
            parts[piece.tensor][piece.start : piece.stop] = numbers

        self.each(place)
        return out


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="smoothlab")


def spread(work: Callable[[Sequence[Piece]], list[T]], pieces: list[Piece], device: torch.device) -> list[T]:
    """work(pieces) in as many threads as torch uses on a CPU, each with a run of them; results in order."""
    count = min(torch.get_num_threads(), len(pieces)) if device.type == "cpu" else 1
    if count < 2:
        return work(pieces)
    cuts = [len(pieces) * i // count for i in range(count + 1)]
    runs = _threads(count).map(work, [pieces[a:b] for a, b in zip(cuts, cuts[1:], strict=False)])
    return [result for run in runs for result in run]


@dataclass(frozen=True)
class Directions(ABC):
    """A law of directions on a block. Laws differ in `fill`; those below are complete, a user's own is a subclass."""

    @property
    def name(self) -> str:
        """Name for records."""
        return type(self).__name__.lower()

    def stream(self, block: Block, seed: Sequence[int]) -> Stream:
        """The direction that `seed` fixes on `block`."""
        return Stream(self, block, seed)

    def draw(self, block: Block, seed: Sequence[int]) -> Tensor:
        """That direction as a flat vector [dim]."""
        return self.stream(block, seed).dense()

    def pieces(self, block: Block) -> list[Piece]:
        """How the block is cut."""
        return [piece for i, p in enumerate(block.params) for piece in _cut(i, p.numel(), _chunk(p.device))]

    def radius(self, stream: Stream) -> float:
        """`Stream.scale`."""
        return 1.0

    @abstractmethod
    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Write the numbers of one piece into `out` [stop - start], of working precision."""


def _cut(tensor: int, length: int, chunk: int) -> Iterator[Piece]:
    if tensor >= _PIECES or length > chunk * _SHARED:
        raise BadInput(
            f"tensor {tensor} of a block has {length} entries: a block may hold {_PIECES} tensors of up to "
            f"{chunk * _SHARED} entries; split it"
        )
    for number, start in enumerate(range(0, length, chunk)):
        yield Piece(tensor, number, start, min(start + chunk, length))


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
        if block.params[0].dtype.itemsize == 2:  # rounded already: its length tells the radius no more
            return super().draw(block, seed)
        v = Gaussian().draw(block, seed)
        parts = v.split([p.numel() for p in block.params])
        return v.mul_(_radius(block.dim, [_square(parts[t][a:b]) for t, _, a, b in self.pieces(block)]))


def _square(g: Tensor) -> float:
    """||g||^2 by rows of 1,024 entries, so that its bits do not depend on the number of threads."""
    whole = len(g) // 1024 * 1024
    rows = g[:whole].view(-1, 1024).square().sum(1).double().sum() if whole else 0.0
    return float(rows) + math.fsum(g[whole:].double().square().tolist())


def _radius(dim: int, squares: Sequence[float]) -> float:
    return float((dim / math.fsum(squares)) ** 0.5)


_SIGNS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).float() * 2 - 1  # the 8 signs in a byte


@dataclass(frozen=True)
class Rademacher(Directions):
    """Independent random signs, unpacked from random bits: an eighth of a Gaussian's cost."""

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """One bit an entry."""
        words = torch.empty(-(-len(out) // 64), dtype=torch.int64, device=out.device)
        words.random_(-(1 << 63), None, generator=stream.generator(piece.tensor, piece.number))
        table = _signs(out.dtype, out.device)
        packed = words.view(torch.uint8).int()
        if len(out) % 64 == 0:
            torch.index_select(table, 0, packed, out=out.view(-1, 8))
        else:
            out.copy_(table[packed].view(-1)[: len(out)])


@cache
def _signs(dtype: torch.dtype, device: torch.device) -> Tensor:
    return _SIGNS.to(device, dtype)


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
        masks: one boolean tensor a parameter of the block, in its shape; True moves.
    """

    masks: tuple[Tensor, ...] = field(compare=False)

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """Normal numbers where the mask is set."""
        mask = _fitting(self.masks, stream.block, piece, "mask")
        out.normal_(generator=stream.generator(piece.tensor, piece.number))
        out.mul_(mask.reshape(-1)[piece.start : piece.stop])


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
        out.mul_(scale if scale.numel() == 1 else scale.reshape(-1)[piece.start : piece.stop])


def _fitting(given: tuple[Tensor, ...], block: Block, piece: Piece, what: str) -> Tensor:
    """The mask or scale of the piece's tensor."""
    shapes, params = [tuple(t.shape) for t in given], [tuple(p.shape) for p in block.params]
    if len(given) != len(params) or (given[piece.tensor].numel() != 1 and shapes[piece.tensor] != params[piece.tensor]):
        raise BadInput(f"{what}s of shapes {shapes} do not fit block '{block.name}': give one tensor a parameter, "
                       f"of shapes {params}")  # fmt: skip
    return given[piece.tensor]


@dataclass(frozen=True)
class LowRank(Directions):
    """V = U W' / sqrt(rank) for a matrix [m, n], U [m, rank] and W [n, rank] Gaussian; Gaussian for other tensors.

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
            rows = max(1, _chunk(p.device) // p[0].numel()) * p[0].numel() if p.dim() == 2 else _chunk(p.device)
            found += _cut(i, p.numel(), rows)
        return found

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """U of the piece's rows times W', which every piece of the tensor draws alike."""
        p = stream.block.params[piece.tensor]
        if p.dim() != 2:
            out.normal_(generator=stream.generator(piece.tensor, piece.number))
            return
        n = p.shape[1]
        w = out.new_empty(n, self.rank).normal_(generator=stream.generator(piece.tensor, _SHARED))
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


LAWS: dict[str, Directions] = {"gaussian": Gaussian(), "rademacher": Rademacher(), "sphere": Sphere()}
"""Laws of probes by name."""


def draw(block: Block, law: Law, seed: Sequence[int]) -> Tensor:
    """A probe v [dim] on `block` with E vv' = I, fixed by `seed`."""
    if law not in LAWS:
        raise BadInput(f"probe law '{law}' is unknown: use gaussian, rademacher or sphere")
    return LAWS[law].draw(block, seed)
