"""Blocks moved along a vector without a write to their own memory, in passes that stay in the processor's cache."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from smoothlab.blocks import Block, standing_at

_PASS = 1 << 18  # entries that a pass over several vectors handles at a time: they stay in cache
_SMALL = 1 << 13  # below that many entries a call costs more than its work


class Shift:
    """Moves a block along a vector by pointing its parameters at other memory: its own is never written.

    Costs one copy of the block. The parameters are the old ones to the bit afterwards, also after an exception.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.realized = 0.0
        # A tensor each, not one flat vector: matrix products want memory that is aligned.
        self._moved = [
            torch.empty_like(p, requires_grad=False, memory_format=torch.contiguous_format) for p in block.params
        ]

    @contextmanager
    def along(self, v: Tensor, h: float) -> Iterator[None]:
        """Inside the context the block stands at fl(theta + h v).

        `realized` is then <delta, v> with delta = fl(theta + h v) - theta, the move that rounding let through.
        """
        products = []

        def move(end: Tensor, start: Tensor, direction: Tensor) -> None:
            torch.add(start, direction, alpha=h, out=end)
            if direction.dtype.itemsize == 2:  # products would leave the range of fp16
                end, start, direction = end.float(), start.float(), direction.float()
            # Not torch.dot: where tensors of odd sizes leave a piece unaligned, it loses 6 bits over 2^16 entries.
            products.append((end - start).mul_(direction).sum())

        ends = [moved.view(-1) for moved in self._moved]
        starts = [p.data.reshape(-1) for p in self.block.params]
        in_passes(move, ends, starts, self.block.split(v))
        self.realized = float(torch.stack(products).double().sum())
        with standing_at(self.block, self._moved):
            yield


def in_passes(work: Callable[..., None], out: Sequence[Tensor], *vectors: Sequence[Tensor]) -> None:
    """Calls work(target, *pieces) until every entry of `out` was in a target once.

    Pieces are the same entries of `vectors`; all are flat tensors, one a parameter. `work` is entrywise, and writes to
    its target. Large tensors are cut, so that a piece stays in cache whatever is done with it; small ones, of which
    transformers have many, are gathered.
    """
    small: list[tuple[Tensor, ...]] = []
    waiting = 0

    def gathered() -> None:
        targets, *columns = zip(*small, strict=True)
        sizes = [target.numel() for target in targets]
        whole = out[0].new_empty(sum(sizes))
        work(whole, *map(torch.cat, columns))
        torch.split_with_sizes_copy(whole, sizes, out=targets)
        small.clear()

    for tensors in zip(out, *vectors, strict=True):
        size = tensors[0].numel()
        if size >= _SMALL:
            chunks = math.ceil(size / _PASS)
            for pieces in zip(*(tensor.chunk(chunks) for tensor in tensors), strict=True):
                work(*pieces)
            continue
        if waiting + size > _PASS:
            gathered()
            waiting = 0
        small.append(tensors)
        waiting += size
    if small:
        gathered()
