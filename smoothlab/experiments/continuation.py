"""Sentences on what the same command does after a run was stopped, by what the run has stored."""

import os
from collections.abc import Callable
from pathlib import Path

AGAIN = "start the same command again"
"""Advice that is right for every command, also for one that has stored nothing."""


def continuation(out: Path, overwrite: bool, does: Callable[[], str] | None) -> Callable[[], str]:
    """A function that says what the same command does, to be called when the run is stopped.

    It imports nothing, as a signal may come within an import.

    Args:
        out: the run's record file; what it holds now is not of this run.
        overwrite: whether the command discards that.
        does: says what the command does once the file holds rows of this run, in words that follow "the same command";
            None where nothing is known beyond `AGAIN`.
    """
    before = _stamp(out)

    def words() -> str:
        if os.path.exists(out) and not os.path.isfile(out):  # a pipe or device
            return f"{out} keeps no records: {AGAIN}"
        if does is None or _stamp(out) in (None, before):
            return AGAIN
        # --overwrite would discard the rows that this run has stored.
        without = " without --overwrite" if overwrite else ""
        return f"the same command{without} {does()}"

    return words


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, by which a change is seen; None where it holds nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if status.st_size == 0:  # an open record file without its first row
        return None
    return status.st_size, status.st_mtime_ns
