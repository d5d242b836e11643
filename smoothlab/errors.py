"""The exceptions that the command line turns into a single line and an exit status."""


class BadInput(ValueError):
    """What the user gave cannot work; the message names the offending value and the fix, on one line.

    Attributes:
        status: exit status of the command.
    """

    status: int = 2


class Unfinished(BadInput):
    """Some of the work could not be done, for want of memory, disk or a worker; the same command does the rest."""

    status = 1
