"""Streams: the numbers of a random direction v on a block, piece by piece.

A direction is a distribution and a seed, nothing else: O(1) memory, O(1) to send. Its numbers come in pieces of at most
CHUNK entries of one tensor, each drawn at any time, in any order and by any thread; equal-shaped tensors get different
noise. There are two generators of them:

    torch       torch's own, seeded by (seed, tensor, piece); its bits differ between devices, between torch versions,
                and on a CPU between instruction sets.
    portable    the bits of `smoothlab.zeroth.portable`, which are the same everywhere.

`stream_name` says which one is in use, for records and seed logs.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from itertools import chain, pairwise
from typing import Literal, NamedTuple, Protocol, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth import portable

GeneratorName = Literal["torch", "portable"]
Seed = tuple[int, ...]
Terms = tuple[tuple[Seed, float], ...]
"""(seed, weight) pairs: a direction made of a distribution's, or a gradient."""
CHUNK = 1 << 18  # entries of a piece on a CPU: it stays in cache, and the cost of a call is small beside it
DEVICE_CHUNK = 1 << 26  # elsewhere a piece is one launch
_PIECES = 1 << 16  # of one tensor, and tensors of one block: the numbers of both make one key of 32 bits
SHARED = _PIECES - 1  # number of the stream that all pieces of a tensor share (LowRank)

T = TypeVar("T")


class Piece(NamedTuple):
    """Entries start to stop of tensor number `tensor` of a block, in the order of its memory."""

    tensor: int
    number: int
    start: int
    stop: int


def check_generator(name: str) -> None:
    """Refuse an unknown generator.

    Raises:
        BadInput: its name is none of `GeneratorName`.
    """
    if name not in get_args(GeneratorName):
        raise BadInput(f"generator '{name}' is unknown: use {' or '.join(get_args(GeneratorName))}")


def stream_name(device: torch.device | str = "cpu", generator: GeneratorName = "torch") -> str:
    """The generator that seeds are bound to: torch's with device, version and, on a CPU, instruction set."""
    if generator == "portable":
        return portable.NAME
    device, detail = torch.device(device), "philox"
    if device.type == "cpu":
        detail = torch.backends.cpu.get_cpu_capability()
    return f"{device.type}/{detail}/torch-{torch.__version__.partition('+')[0]}/chunk-{chunk_of(device)}"


def chunk_of(device: torch.device) -> int:
    """Entries of a piece on the device."""
    return CHUNK if device.type == "cpu" else DEVICE_CHUNK


_local = threading.local()


def _generator(device: torch.device) -> torch.Generator:
    """This thread's generator for the device: making one costs as much as drawing a thousand numbers."""
    generators: dict[torch.device, torch.Generator] = _local.__dict__.setdefault("generators", {})
    if device not in generators:
        generators[device] = torch.Generator(device)
    return generators[device]


class Draws(Protocol):
    """Random numbers for one piece; each call takes numbers of its own, and returns the tensor [n] that it wrote to."""

    def normal_(self, out: Tensor) -> Tensor:
        """Write normal numbers."""

    def signs_(self, out: Tensor) -> Tensor:
        """Write 1 and -1, equally likely."""

    def keep_(self, out: Tensor, density: float) -> Tensor:
        """Keep each entry with this probability, set the others to 0."""


_SIGN, _ONE = -(1 << 31), 0x3F800000  # the sign bit of an fp32 number, and the bits of 1.0


class TorchDraws:
    """Numbers of one of torch's generators, which goes on from call to call."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal_(self, out: Tensor) -> Tensor:
        """Write normal numbers."""
        return out.normal_(generator=self._generator)

    def signs_(self, out: Tensor) -> Tensor:
        """Each random bit, moved to the position of the sign, makes +-1.0."""
        words = torch.empty(-(-len(out) // 64), dtype=torch.int64, device=out.device)
        words.random_(-(1 << 63), None, generator=self._generator)
        # Written in place where the bits are those of `out`: a copy would be one pass more.
        fits = out.dtype == torch.float32 and len(out) % 64 == 0
        if fits:
            bits = out.view(torch.int32).view(-1, 32)
        else:
            bits = words.new_empty(2 * len(words), 32, dtype=torch.int32)
        torch.bitwise_left_shift(words.view(torch.int32)[:, None], _shifts(out.device), out=bits)
        bits.bitwise_and_(_SIGN).bitwise_or_(_ONE)
        if not fits:
            out.copy_(bits.view(torch.float32).view(-1)[: len(out)])
        return out

    def keep_(self, out: Tensor, density: float) -> Tensor:
        """Keep entries whose uniform number is below the density."""
        return out.mul_(torch.empty_like(out).uniform_(generator=self._generator) < density)


@cache
def _shifts(device: torch.device) -> Tensor:
    return torch.arange(31, -1, -1, dtype=torch.int32, device=device)


class Source(Protocol):
    """Methods of a distribution of directions that a stream calls, see `smoothlab.zeroth.distribution.Distribution`."""

    @property
    def generator(self) -> GeneratorName:
        """Generator of the numbers."""

    def pieces(self, block: Block) -> list[Piece]:
        """Pieces that the block is cut into."""

    def stream(self, block: Block, seed: Sequence[int]) -> "Stream":
        """The direction that a seed fixes."""

    def radius(self, stream: "Stream") -> float:
        """`Stream.scale`."""

    def fill(self, stream: "Stream", piece: Piece, out: Tensor) -> None:
        """Write the numbers of one piece, before they are scaled."""


class Stream:
    """The numbers of one direction on one block.

    Attributes:
        distribution: the distribution they follow.
        block: the block they are for; only its shapes, dtype and device matter.
        seed: a tuple of integers from 0 to 2^32 - 1.
        words: 64 random bits for distributions that choose once for the whole direction.
        scale: factor common to all entries that only the whole direction tells (the sphere's radius), else 1.
        memory: what was drawn by pieces, where the distribution keeps it for the next pass; None where it does not.
    """

    memory: dict[Piece, Tensor] | None = None

    def __init__(self, distribution: Source, block: Block, seed: Sequence[int]) -> None:
        self.distribution, self.block, self.seed = distribution, block, tuple(seed)
        self.device = block.params[0].device
        # Numbers of more than 32 bits would run into their neighbors.
        if min(self.seed, default=0) < 0 or max(self.seed, default=0) >= 1 << 32:
            raise BadInput(f"seed {self.seed} of block '{block.name}': use numbers from 0 to 2^32 - 1")
        # With the length in front, as SeedSequence takes (1,) and (1, 0) for the same seed.
        sequence = np.random.SeedSequence([len(self.seed), *self.seed])
        state = sequence.generate_state(4, np.uint32).tolist()
        self._odd, self._shift, self.words = state[0] | 1, state[1], (state[2], state[3])
        check_generator(distribution.generator)
        self._key: portable.Key | None = None
        if distribution.generator == "portable":
            self._key = portable.Key(sequence.generate_state(5, np.uint64).tolist()[2:], self.device)
        self.scale = 1.0  # while the radius is measured, from the numbers themselves
        self.scale = distribution.radius(self)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Working precision of the numbers: fp64 for an fp64 block, else fp32."""
        return torch.promote_types(torch.float32, self.block.params[0].dtype)

    def draws(self, piece: Piece) -> Draws:
        """Random numbers for one piece, of the distribution's generator.

        torch's goes by the number of the piece, the portable one by its start, so that it does not matter how a tensor
        is cut. Piece SHARED of a tensor has numbers that no other piece has.
        """
        if self._key is None:
            return TorchDraws(self.generator(piece.tensor, piece.number))
        lane = portable.SHARED_LANE if piece.number == SHARED else 0
        return portable.PortableDraws(self._key, piece.tensor, piece.start, lane)

    def generator(self, tensor: int, number: int) -> torch.Generator:
        """torch's generator for one piece.

        torch's Mersenne twister takes 32 bits of a seed. (tensor, number) -> key is one-to-one within a direction, so
        no two of its pieces are the same; pieces of different directions coincide with probability 2^-32 each.

        Raises:
            BadInput: the numbers are to be portable, and torch's are not.
        """
        if self._key is not None:
            raise BadInput(
                f"{type(self.distribution).__name__}.fill asks for torch's generator, whose numbers are not portable: "
                "draw them by stream.draws(piece), or use generator 'torch'"
            )
        key = ((tensor << 16 | number) * self._odd + self._shift) & 0xFFFFFFFF
        key = ((key ^ key >> 16) * 0x85EBCA6B) & 0xFFFFFFFF  # the finalizer of MurmurHash3: a bijection that mixes
        key = ((key ^ key >> 13) * 0xC2B2AE35) & 0xFFFFFFFF
        return _generator(self.device).manual_seed(key ^ key >> 16)

    def fill(self, piece: Piece, out: Tensor) -> Tensor:
        """Write the entries of `piece` into `out` [stop - start], of working precision, and return it."""
        self.distribution.fill(self, piece, out)
        if self.scale != 1.0:  # most distributions have none, and a multiplication is one pass more
            out.mul_(self.scale)
        return out

    def pieces(self) -> list[Piece]:
        """All pieces in order."""
        return self.distribution.pieces(self.block)

    def map(
        self, work: Callable[[Piece, Tensor], T], pieces: list[Piece] | None = None, out: Tensor | None = None
    ) -> list[T]:
        """work(piece, its numbers) for all pieces or those given, in threads on a CPU.

        The numbers are written to `out` [dim] if it is given, else to scratch memory.
        """
        pieces = self.pieces() if pieces is None else pieces
        parts = [] if out is None else self.block.split(out)
        longest = max((p.stop - p.start for p in pieces), default=0)

        def work_on(run: Sequence[Piece]) -> list[T]:
            # Memory of the thread's own, made once: all of its pieces fit, and stay in cache.
            scratch = torch.empty(0 if parts else longest, dtype=self.dtype, device=self.device)
            results = []
            with torch.no_grad():  # here, as torch has this setting in every thread of its own
                for p in run:
                    numbers = parts[p.tensor][p.start : p.stop] if parts else scratch[: p.stop - p.start]
                    results.append(work(p, self.fill(p, numbers)))
            return results

        return in_threads(work_on, pieces, self.device)

    def numbers(self) -> Tensor:
        """The whole direction as a flat vector [dim], in working precision."""
        out = torch.empty(self.block.dim, dtype=self.dtype, device=self.device)
        self.map(lambda piece, numbers: None, out=out)
        return out


class Mixture(Stream):
    """sum_j w_j z_j of directions z_j of one distribution.

    Attributes:
        terms: (seed, weight) pairs, at least one.

    Args:
        distribution: the distribution.
        block: the block.
        terms: see above.
        drawn: streams of some of the directions by seed, which keep what they have drawn.
    """

    def __init__(
        self, distribution: Source, block: Block, terms: Terms, drawn: Mapping[Seed, Stream] | None = None
    ) -> None:
        self.distribution, self.block, self.seed, self.terms, self.scale = distribution, block, (), terms, 1.0
        self.device = block.params[0].device
        drawn = drawn or {}
        self._parts = [drawn.get(seed) or distribution.stream(block, seed) for seed, _ in terms]

    def fill(self, piece: Piece, out: Tensor) -> Tensor:
        """The weighted sum of the terms' entries."""
        self._parts[0].fill(piece, out).mul_(self.terms[0][1])
        if len(self._parts) > 1:
            scratch = torch.empty_like(out)
            for part, (_, weight) in zip(self._parts[1:], self.terms[1:], strict=True):
                add_scaled(out, part.fill(piece, scratch), weight, self.distribution.generator)
        return out


def add_scaled(target: Tensor, numbers: Tensor, scale: float, generator: GeneratorName) -> None:
    """target <- target + scale numbers, rounded alike on every machine if the numbers are."""
    if generator == "portable":
        # Some machines round the product and the sum at once, and others twice: here every machine rounds twice.
        target.add_(numbers * scale)
    else:
        target.add_(numbers, alpha=scale)


_starting = threading.Lock()


def _threads(count: int) -> ThreadPoolExecutor:
    """This process's threads for drawing."""
    with _starting:  # two callers at once would both start them, as `cache` locks nothing
        return _started(count)


@cache
def _started(count: int) -> ThreadPoolExecutor:
    """Threads in which torch computes alone: threads of its own under each would wait for one another."""
    pool, started = ThreadPoolExecutor(count, "smoothlab", _compute_alone), threading.Barrier(count + 1)
    # A pool starts a thread only where all others are busy: each of these waits until all of them have started.
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(count)  # for threads to come: `_compute_alone` has set the default too
    return pool


def _forget_threads() -> None:
    global _starting
    _starting = threading.Lock()
    _started.cache_clear()


os.register_at_fork(after_in_child=_forget_threads)  # a child has none of its parent's threads, and would wait for them


def _compute_alone() -> None:
    torch.get_num_threads()  # a thread's first question would overwrite its number by the default
    torch.set_num_threads(1)


def in_threads(work: Callable[[Sequence[Piece]], list[T]], pieces: list[Piece], device: torch.device) -> list[T]:
    """work(pieces) in as many threads as torch uses on a CPU, each with a run of them; results in order."""
    count = torch.get_num_threads()
    if device.type != "cpu" or min(count, len(pieces)) < 2:
        return work(pieces)
    # Runs, not a queue of pieces: which thread draws what decides no number, but a run shares scratch memory.
    cuts = [len(pieces) * i // count for i in range(count + 1)]
    runs = [pieces[start:stop] for start, stop in pairwise(cuts)]
    return list(chain.from_iterable(_threads(count).map(work, runs)))


def cut(tensor: int, length: int, chunk: int) -> Iterator[Piece]:
    """Pieces of `chunk` entries of one tensor.

    Raises:
        BadInput: more tensors or entries than keys are there for.
    """
    if tensor >= _PIECES or length > chunk * SHARED:
        raise BadInput(
            f"tensor {tensor} of a block has {length} entries: a block may hold {_PIECES} tensors of up to "
            f"{chunk * SHARED} entries; split it"
        )
    for number, start in enumerate(range(0, length, chunk)):
        yield Piece(tensor, number, start, min(start + chunk, length))
