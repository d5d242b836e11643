"""Several processes, one model each (torchrun): what they send each other in a step.

Each process holds all weights and computes the loss of its share of the minibatch. A loss, of which a zeroth-order step
takes two or three, is averaged: one scalar. Directions are drawn by each process from the same seeds and never sent.
The first-order part sums the gradients of y, and of nothing else. All processes then take the same step, to the bit.

On CPUs it is also the step that 1, 2 or 4 processes take, to the bit, with as many threads in each. A minibatch is
computed in `PARTS` parts whatever the number of processes, because what is computed for a row depends on how many rows
are computed with it; and losses and gradients of parts are added in the order of `smoothlab.optim.summation`.
"""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.optim.summation import in_order

PATIENCE = 10.0
"""Seconds that a process that cannot go on waits for process 0 to say why."""

PARTS = 4
"""Parts of a minibatch on CPUs, where it is a multiple of 4: the default of --parts."""

BUCKET = 1 << 22
"""Numbers that are sent at a time."""

SMALL = 1 << 12
"""Up to so many numbers are sent to all processes, and added by each: one message. Of more, each adds a part."""

SENTENCE = 2.0
"""Seconds that it then has for it: torchrun stops all as soon as one ends."""
_SAID = "process 0 says what is wrong"  # a key of the processes' store


class Parted(BadInput):
    """Another process is gone."""


def count() -> int:
    """Number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """The number of this process; 0 leads: it evaluates, writes, and speaks."""
    return int(os.environ.get("RANK", "0"))


def place(device: str) -> str:
    """The device of this process: "cuda" is the GPU that torchrun gave it."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and count() > 1 else device


def parts(indices: Sequence[int], device: str, wanted: int = PARTS) -> list[list[int]]:
    """This process's parts of a minibatch, of equal size; on a GPU, where small parts take long, a single one.

    There are gcd(wanted, batch) parts in all, or one a process where processes cannot share these equally.
    """
    n = count()
    cuts = math.gcd(wanted, len(indices)) if device == "cpu" else n
    if cuts % n:  # 3 processes, or 8: their sums are not those of one
        cuts = n
    size, here = len(indices) // cuts, cuts // n
    return [list(indices[k * size : (k + 1) * size]) for k in range(number() * here, (number() + 1) * here)]


class Peers:
    """The other processes, for `HybridSGD.peers`."""

    def __init__(self) -> None:
        self.count = count()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Put sums over the processes, in the order of the tree, in place of the tensors; the same in all, to the bit.

        Twice the size of the tensors is sent, as by the usual ring.
        """
        waiting: list[Tensor] = []
        for tensor in tensors:
            if waiting and (tensor.dtype != waiting[0].dtype or sum(t.numel() for t in waiting) >= BUCKET):
                self._sum(waiting)
                waiting = []
            waiting.append(tensor)
        self._sum(waiting)

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        """For tensors of one dtype."""
        if not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        size = flat.numel()
        flat = torch.nn.functional.pad(flat, (0, -size % self.count))
        if flat.numel() <= SMALL:
            sent = flat.new_empty(self.count * flat.numel())
            _exchange(lambda: torch.distributed.all_gather(list(sent.view(self.count, -1)), flat))
            flat = in_order(sent.view(self.count, -1))
        else:
            sent = torch.empty_like(flat)
            _exchange(lambda: torch.distributed.all_to_all_single(sent, flat))
            mine = in_order(sent.view(self.count, -1))
            _exchange(lambda: torch.distributed.all_gather(list(flat.view(self.count, -1)), mine))
        with torch.no_grad():
            for t, total in zip(tensors, flat[:size].split([t.numel() for t in tensors]), strict=True):
                t.copy_(total.view(t.shape))


def _exchange(send: Callable[[], Any]) -> None:
    try:
        send()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        words = " ".join(re.sub(r"^\[\S+\] ", "", str(error)).split(". ")[0].split())
        raise Parted(
            f"process {number()} of {count()} cannot reach another one, which has ended or hangs ({words}): the same "
            "command goes on from the last checkpoint"
        ) from error


def told(numbers: Sequence[float] | None, size: int) -> list[float]:
    """The `size` numbers that process 0 says, in all processes; the others pass None."""
    if count() == 1:
        assert numbers is not None
        return list(numbers)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    message = torch.tensor(numbers if numbers is not None else [0.0] * size, dtype=torch.float64, device=device)
    _exchange(lambda: torch.distributed.broadcast(message, 0))
    return message.tolist()


class Idle(Exception):  # noqa: N818, it is no error
    """Process 0 has nothing to do, or failed before it began."""


_begun = False  # whether process 0 has told the others where to begin, for which they wait


def begin(done: int) -> int:
    """How many rows process 0 has on record, told to all processes; each calls this once.

    Raises:
        Idle: in the others, where process 0 has ended without calling it.
    """
    global _begun
    if count() == 1:
        return done
    _begun = True
    rows = int(told([done] if number() == 0 else None, 1)[0])
    if rows < 0:
        raise Idle
    return rows


def run(lead: Callable[[], Any], follow: Callable[[], Any], device: str, *, met: bool = False) -> None:
    """Run `lead` in process 0, `follow` in the others; `begin` is where they meet, unless they do the same from `met`.

    What is wrong is told once: by process 0 where it fails too, as it does for all that every process comes upon.
    """
    from torch.distributed.rendezvous import rendezvous

    global _begun
    here, _begun = place(device), met
    if here.startswith("cuda"):
        torch.cuda.set_device(here)
    store, rank, size = next(rendezvous("env://"))
    backend = "nccl" if here.startswith("cuda") else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        with suppress(Idle):
            (lead if number() == 0 else follow)()
        if number() == 0 and not _begun:
            told([-1.0], 1)
        _part()
    except BaseException as error:
        if number():
            _leave(error, store)
        elif not _begun:
            _dismiss()
        else:
            with suppress(RuntimeError):
                store.set(_SAID, "")
        raise  # once all have begun, torchrun ends the others


def _leave(error: BaseException, store: Any) -> None:
    """End silently if process 0 speaks for all; else return, and this process has to."""
    if isinstance(error, KeyboardInterrupt):
        raise SystemExit(130) from None
    if not isinstance(error, BadInput):
        return
    with suppress(RuntimeError):  # the store may be gone with process 0
        if _said_within(PATIENCE, store):
            time.sleep(SENTENCE)
            raise SystemExit(2) from None


def _said_within(seconds: float, store: Any) -> bool:
    """Whether process 0 has left word before so much time is over; the store's own `wait` warns on stderr."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if store.check([_SAID]):
            return True
        time.sleep(0.02)
    return False


def _dismiss() -> None:
    """Process 0 has failed before the others began: let them end in peace."""
    told([-1.0], 1)
    _part()


def _part() -> None:
    """Wait for the others, who may still be reading what was sent to them, and part."""
    _exchange(torch.distributed.barrier)
    torch.distributed.destroy_process_group()
