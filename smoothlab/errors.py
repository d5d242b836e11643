"""The exceptions that the command line turns into a single line and an exit status."""


class BadInput(ValueError):
    """The user's input cannot work; the message names the offending value and the fix, on one line.

    Attributes:
        status: exit status of the command.
    """

    status: int = 2


class Unfinished(BadInput):
    """Some of the work could not be done, for want of memory, disk or a worker; the same command does the rest."""

    status = 1


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, a device's (torch.OutOfMemoryError, by name), or that of torch on the CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    words = str(error)
    return "can't allocate memory" in words or "out of memory" in words
