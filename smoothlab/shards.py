"""Parameters of which each process holds some rows: DTensors, as FSDP2 (`torch.distributed.fsdp.fully_shard`) makes.

Shape and number of entries of such a parameter are those of the whole; `local` is what lies in this process.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from smoothlab.errors import BadInput


def is_sharded(p: Tensor) -> bool:
    """Whether a parameter is a DTensor."""
    # Importing the module takes two seconds. Whoever has made a DTensor has imported it.
    tensors: Any = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(p, tensors.DTensor)


def any_sharded(params: Iterable[Tensor]) -> bool:
    """Whether one of the parameters is a DTensor."""
    return any(is_sharded(p) for p in params)


def local(p: Tensor) -> Tensor:
    """The rows of a parameter that this process holds, all of them where it is not sharded: its memory, no graph."""
    sharded: Any = p.data
    if not is_sharded(p):
        return p.data
    return sharded.to_local()  # type: ignore[no-any-return]


class LocalEntries:
    """The entries of a parameter that this process holds, all entries being counted row by row.

    Attributes:
        flat: these entries, flat, in the parameter's memory; a copy where that is not contiguous.
        first: number of the first of them.

    Raises:
        BadInput: the parameter is not cut into runs of rows, one a process.
    """

    def __init__(self, p: Tensor) -> None:
        self.flat, self.first = local(p).reshape(-1), 0
        if not is_sharded(p):
            return
        sharded: Any = p
        if len(sharded.placements) != 1 or not sharded.placements[0].is_shard(0):
            raise BadInput(
                f"a parameter of shape {tuple(p.shape)} is placed as {tuple(sharded.placements)}: use fully_shard on a "
                "mesh of one dimension, which gives each process some rows"
            )
        mesh = sharded.device_mesh
        rows = -(-len(p) // mesh.size())  # as torch.chunk cuts them: the last processes may hold fewer, or none
        row = p.numel() // max(len(p), 1)  # of its shape alone: a slice of a DTensor gathers the whole of it
        self.first = min(rows * int(mesh.get_local_rank()), len(p)) * row

    def overlap(self, start: int, stop: int) -> tuple[Tensor, slice]:
        """Those of the entries `start` to `stop` that this process holds, and their positions in that range."""
        begin = min(max(start, self.first), stop)
        end = max(min(stop, self.first + len(self.flat)), begin)
        return self.flat[max(begin - self.first, 0) : max(end - self.first, 0)], slice(begin - start, end - start)


def summed(numbers: list[float], params: Sequence[Tensor]) -> list[float]:
    """Sums over the processes that hold rows of the parameters; the numbers themselves where none is sharded."""
    sharded: list[Any] = [p for p in params if is_sharded(p)]
    if not sharded:
        return numbers
    message = torch.tensor(numbers, dtype=torch.float64, device=local(sharded[0]).device)
    torch.distributed.all_reduce(message, group=sharded[0].device_mesh.get_group())
    return message.tolist()
