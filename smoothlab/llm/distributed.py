"""Several processes, one model each (torchrun): what they send each other in a step.

Each process holds all weights and computes the loss of its share of the minibatch. A loss, of which a zeroth-order step
takes two or three, is averaged: one scalar. Directions are drawn by each process from the same seeds and never sent.
The first-order part sums the gradients of y, and of nothing else. All processes then take the same step, to the bit.

On CPUs it is also the step that 1, 2 or 4 processes take, to the bit, with as many threads in each. A minibatch is
computed in `PARTS` parts whatever the number of processes, because what is computed for a row depends on how many rows
are computed with it; and losses and gradients of parts are added in the order of `smoothlab.optim.summation`.
"""

import atexit
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.optim.summation import in_order

PATIENCE = 10.0
"""Seconds that a failing process waits for rank 0 to report the same failure."""

PARTS = 4
"""Parts of a minibatch on CPUs, where it is a multiple of 4: the default of --parts."""

BUCKET = 1 << 22
"""Numbers that are sent at a time."""

SMALL = 1 << 12
"""Up to so many numbers are sent to all processes, each of which adds all; of more, each process adds its own part."""

PAUSE = 0.5
"""Seconds that a process waits before it ends: gloo's threads need Python to drop the tensors sent last.

Processes that ended at once aborted in 9 of 32 runs of plain torch 2.13 on CPUs, and with DistributedDataParallel hung
in 2 of 7 when they left the group; with the pause, none of 24 did.
"""

SENTENCE = 2.0
"""Seconds that rank 0 has to print its failure, after it has said that it will: torchrun stops all when one ends."""
_FAILURE_KEY = "rank 0 reports the failure"  # in the processes' shared store


class PeerLost(BadInput):
    """A collective operation failed because another process has ended or hangs."""


def world_size() -> int:
    """Number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Rank of this process. Rank 0 evaluates, writes records and prints messages."""
    return int(os.environ.get("RANK", "0"))


def local_device(device: str) -> str:
    """Device of this process: "cuda" becomes the GPU of its local rank under torchrun."""
    if device == "cuda" and world_size() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def parts(indices: Sequence[int], device: str, count: int = PARTS) -> list[list[int]]:
    """This process's parts of a minibatch, of equal size; on a GPU, where small parts take long, a single one.

    There are gcd(count, batch) parts in all, or one a process where processes cannot share these equally.
    """
    n = world_size()
    part_count = n
    if device == "cpu":
        part_count = math.gcd(count, len(indices))
    if part_count % n:  # 3 processes, or 8: their sums are not those of one
        part_count = n
    size, parts_each = len(indices) // part_count, part_count // n
    return [list(indices[k * size : (k + 1) * size]) for k in range(rank() * parts_each, (rank() + 1) * parts_each)]


class Peers:
    """The other processes as `HybridSGD.peers` takes them."""

    def __init__(self) -> None:
        self.count = world_size()
        _pause_at_exit()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Put sums over the processes, in the order of the tree, in place of the tensors; the same in all, to the bit.

        Twice the size of the tensors is sent, as by the usual ring.
        """
        bucket: list[Tensor] = []
        for tensor in tensors:
            if bucket and (tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) >= BUCKET):
                self._sum(bucket)
                bucket = []
            bucket.append(tensor)
        self._sum(bucket)

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        """`sum` for tensors of one dtype."""
        if not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        size = flat.numel()
        flat = torch.nn.functional.pad(flat, (0, -size % self.count))  # all_to_all takes equal parts alone
        if flat.numel() <= SMALL:
            received = flat.new_empty(self.count * flat.numel())
            _exchange(lambda: torch.distributed.all_gather(list(received.view(self.count, -1)), flat))
            flat = in_order(received.view(self.count, -1))
        else:
            received = torch.empty_like(flat)
            _exchange(lambda: torch.distributed.all_to_all_single(received, flat))
            partial = in_order(received.view(self.count, -1))
            _exchange(lambda: torch.distributed.all_gather(list(flat.view(self.count, -1)), partial))
        with torch.no_grad():
            for t, total in zip(tensors, flat[:size].split([t.numel() for t in tensors]), strict=True):
                t.copy_(total.view(t.shape))


@cache
def _pause_at_exit() -> None:
    atexit.register(time.sleep, PAUSE)


def _exchange(send: Callable[[], Any]) -> None:
    try:
        send()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = " ".join(re.sub(r"^\[\S+\] ", "", str(error)).split(". ")[0].split())
        raise PeerLost(
            f"process {rank()} of {world_size()} cannot reach another one, which has ended or hangs ({reason}): "
            "start the same command again, which continues from --checkpoint where it has one"
        ) from error


def broadcast(numbers: Sequence[float] | None, size: int) -> list[float]:
    """The `size` numbers of rank 0, returned in all processes; the other ranks pass None."""
    if world_size() == 1:
        assert numbers is not None
        return list(numbers)
    device = "cpu"
    if torch.distributed.get_backend() == "nccl":
        device = "cuda"
    # In fp64, which holds step counts and losses as they are: all processes must decide alike.
    message = torch.tensor(numbers or [0.0] * size, dtype=torch.float64, device=device)
    _exchange(lambda: torch.distributed.broadcast(message, 0))
    return message.tolist()


class Idle(Exception):  # noqa: N818, it is no error
    """Rank 0 has nothing to do, or failed before it began."""


_started = False  # whether rank 0 has sent the others the starting row, for which they wait


def begin(rows_on_record: int) -> int:
    """Number of rows that rank 0 has on record, sent to all processes; each process calls this once.

    Raises:
        Idle: in the other ranks, where rank 0 has ended without calling it.
    """
    global _started
    _started = True
    rows = int(broadcast([rows_on_record], 1)[0])
    if rows < 0:
        raise Idle
    return rows


def run(lead: Callable[[], Any], follow: Callable[[], Any], device: str, *, met: bool = False) -> None:
    """Run `lead` in rank 0 and `follow` in the others.

    They meet at `begin`; with `met` they need no meeting, as all do the same from the start. A failure that rank 0 has
    too, as of bad input, is reported by rank 0 alone.
    """
    from torch.distributed.rendezvous import rendezvous

    global _started
    own_device, _started = local_device(device), met
    backend = "gloo"
    if own_device.startswith("cuda"):
        torch.cuda.set_device(own_device)
        backend = "nccl"
    store, _, _ = next(rendezvous("env://"))
    torch.distributed.init_process_group(backend, store=store, rank=rank(), world_size=world_size())
    try:
        with suppress(Idle):
            (lead if rank() == 0 else follow)()
        if rank() == 0 and not _started:
            broadcast([-1.0], 1)
        _disconnect()
    except BaseException as error:
        if rank():
            _leave(error, store)
        elif not _started:
            broadcast([-1.0], 1)  # the others have not begun: they end in peace
            _disconnect()
        else:
            with suppress(RuntimeError):
                store.set(_FAILURE_KEY, "")
        raise  # once all have begun, torchrun ends the others


def _leave(error: BaseException, store: Any) -> None:
    """End silently if rank 0 reports the failure; else return, so that this process reports it."""
    if isinstance(error, KeyboardInterrupt):
        raise SystemExit(130) from None
    if not isinstance(error, BadInput):
        return
    with suppress(RuntimeError):  # the store may be gone with rank 0
        # Polled, because the store's own `wait` warns on stderr when its time is over.
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if store.check([_FAILURE_KEY]):
                time.sleep(SENTENCE)
                raise SystemExit(2) from None
            time.sleep(0.02)


def _disconnect() -> None:
    """Wait for the others, who may still be reading what was sent to them, and leave the group."""
    _exchange(torch.distributed.barrier)
    torch.distributed.destroy_process_group()
