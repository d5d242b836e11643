"""Several processes, one model each (torchrun): what they send each other in a step.

Each process holds all weights and computes the loss of its share of the minibatch. A loss, of which a zeroth-order step
takes two or three, is averaged: one scalar. Directions are drawn by each process from the same seeds and never sent.
The first-order part sums the gradients of y, and of nothing else. All processes then take the same step, to the bit.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def count() -> int:
    """Number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """The number of this process; 0 leads: it evaluates, writes, and speaks."""
    return int(os.environ.get("RANK", "0"))


def place(device: str) -> str:
    """The device of this process: "cuda" is the GPU that torchrun gave it."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and count() > 1 else device


def share(indices: Sequence[int]) -> list[int]:
    """This process's part of a minibatch: every n-th example."""
    return list(indices[number() :: count()])


class _Average(torch.autograd.Function):
    """Mean of a scalar over the processes; its derivative is that of this process's part."""

    @staticmethod
    def forward(context: Any, loss: Tensor) -> Tensor:
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        return total / count()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient / count()


def average(loss: Tensor) -> Tensor:
    """Mean of the processes' losses, the same in all to the bit; after `sum_gradients` its gradient is the mean's."""
    return loss if count() == 1 else _Average.apply(loss)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Let every later backward pass sum the gradients of these parameters over the processes."""

    def summed(gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    if count() > 1:
        for p in parameters:
            p.register_hook(summed)


def told(numbers: Sequence[float] | None, size: int) -> list[float]:
    """The `size` numbers that process 0 says, in all processes; the others pass None."""
    if count() == 1:
        assert numbers is not None
        return list(numbers)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    message = torch.tensor(numbers if numbers is not None else [0.0] * size, dtype=torch.float64, device=device)
    torch.distributed.broadcast(message, 0)
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


def run(lead: Callable[[], Any], follow: Callable[[], Any], device: str) -> None:
    """Run `lead` in process 0, `follow` in the others; whichever it is, `begin` is where they meet."""
    here = place(device)
    if here.startswith("cuda"):
        torch.cuda.set_device(here)
    torch.distributed.init_process_group("nccl" if here.startswith("cuda") else "gloo")
    try:
        (lead if number() == 0 else follow)()
    except Idle:
        pass
    except BaseException:
        if number() == 0 and not _begun:
            _dismiss()
        raise  # once all have begun, torchrun ends the others
    else:
        if number() == 0 and not _begun:
            told([-1.0], 1)
    _part()


def _dismiss() -> None:
    """Process 0 has failed before the others began: let them end in peace."""
    told([-1.0], 1)
    _part()


def _part() -> None:
    """Wait for the others, who may still be reading what was sent to them, and part."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
