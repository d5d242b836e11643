"""Streams: the numbers of a random direction v on a block, piece by piece.

A direction is a distribution and a seed, nothing else: O(1) memory, O(1) to send. Its numbers come in pieces of at most
CHUNK entries of one tensor. The generator of a piece is seeded by (seed, tensor, piece), so a piece can be drawn at any
time, in any order and by any thread, and equal-shaped tensors get different noise. The bits are those of one kind of
generator: torch's differ between devices, between versions, and on a CPU between instruction sets; `stream_name` says
which one is in use, for records and seed logs.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain, pairwise
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput

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


def stream_name(device: torch.device | str = "cpu") -> str:
    """The generator that seeds are bound to: device, torch version and, on a CPU, its instruction set."""
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
    known: dict[torch.device, torch.Generator] = _local.__dict__.setdefault("generators", {})
    if device not in known:
        known[device] = torch.Generator(device)
    return known[device]


class Source(Protocol):
    """What a stream asks of a distribution of directions, see `smoothlab.zeroth.distributions.Distribution`."""

    def pieces(self, block: Block) -> list[Piece]:
        """How the block is cut."""

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
    """

    def __init__(self, distribution: Source, block: Block, seed: Sequence[int]) -> None:
        self.distribution, self.block, self.seed = distribution, block, tuple(seed)
        self.device = block.params[0].device
        # Numbers of more than 32 bits would run into their neighbors.
        if min(self.seed, default=0) < 0 or max(self.seed, default=0) >= 1 << 32:
            raise BadInput(f"seed {self.seed} of block '{block.name}': use numbers from 0 to 2^32 - 1")
        # With the length in front, as SeedSequence takes (1,) and (1, 0) for the same seed.
        state = np.random.SeedSequence([len(self.seed), *self.seed]).generate_state(4, np.uint32).tolist()
        self._odd, self._shift, self.words = state[0] | 1, state[1], (state[2], state[3])
        self.scale = 1.0  # while the radius is measured, from the numbers themselves
        self.scale = distribution.radius(self)

    @property
    def dtype(self) -> torch.dtype:
        """Working precision of the numbers: fp64 for an fp64 block, else fp32."""
        return torch.promote_types(torch.float32, self.block.params[0].dtype)

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

        return spread(work_on, pieces, self.device)

    def numbers(self) -> Tensor:
        """The whole direction as a flat vector [dim], in working precision."""
        out = torch.empty(self.block.dim, dtype=self.dtype, device=self.device)
        self.map(lambda piece, numbers: None, out=out)
        return out


class Mixture(Stream):
    """sum_j w_j z_j of directions z_j of one distribution.

    Attributes:
        terms: (seed, weight) pairs, at least one.
    """

    def __init__(self, distribution: Source, block: Block, terms: Terms) -> None:
        self.distribution, self.block, self.seed, self.terms, self.scale = distribution, block, (), terms, 1.0
        self.device = block.params[0].device
        self._parts = [Stream(distribution, block, seed) for seed, _ in terms]

    def fill(self, piece: Piece, out: Tensor) -> Tensor:
        """The weighted sum of the terms' entries."""
        self._parts[0].fill(piece, out).mul_(self.terms[0][1])
        if len(self._parts) > 1:
            scratch = torch.empty_like(out)
            for part, (_, weight) in zip(self._parts[1:], self.terms[1:], strict=True):
                out.add_(part.fill(piece, scratch), alpha=weight)
        return out


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


def spread(work: Callable[[Sequence[Piece]], list[T]], pieces: list[Piece], device: torch.device) -> list[T]:
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
