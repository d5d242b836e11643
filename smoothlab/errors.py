"""The exceptions that the command line turns into a single line and an exit status."""

import os


class BadInput(ValueError):
    """The user's input cannot work; the message names the offending value and the fix, on one line.

    Attributes:
        status: exit status of the command.
    """

    status: int = 2


class Unfinished(BadInput):
    """Work that could not be done, for want of memory, disk or a worker; the same command does the rest."""

    status = 1


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, a device's (torch.OutOfMemoryError, by name), or that of torch on the CPU."""
    for kind in type(error).__mro__:
        if kind.__name__ in ("MemoryError", "OutOfMemoryError"):  # by name: this module does not load torch
            return True
    # torch's allocator on the CPU raises a plain RuntimeError.
    words = str(error)
    return "can't allocate memory" in words or "out of memory" in words


def speaks() -> bool:
    """Whether this process reports: of torchrun's processes the first one does, the others would repeat it."""
    return os.environ.get("RANK", "0") == "0"
