"""Paths on the command line: one that cannot be used is refused in one line before anything is loaded."""

import dataclasses
import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smoothlab.errors import BadInput

LOG = "log:"
"""Before a folder whose checkpoints hold the base model as a seed log."""
NAMES = ("model", "data", "records")
"""Options whose text is a path or something else: a name of the hub, of a task, a pattern."""
UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)
"""Errors of the operating system for paths that no program can use as they are."""
LONGEST = 255
"""Bytes of a file's name on every file system in use."""


def check_all(values: Mapping[str, Any]) -> None:
    """Check every path among options by name: a path, several, or fields of a dataclass.

    Raises:
        BadInput: names the first option whose path may not be entered, is too long, leads through a file or in circles.
    """
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            check_all(vars(value))  # not asdict, which turns the options of an experiment into plain values
        if not isinstance(value, tuple):
            value = (value,)
        option = f"--{name.replace('_', '-')} "
        for path in value:
            if isinstance(path, Path):
                _check(option, str(path).removeprefix(LOG))
            elif isinstance(path, str) and name in NAMES:
                # A text that is no path may be a name; record files are positional.
                _check(option.replace("--records ", ""), path, allowed=(errno.ENOENT, errno.ENOTDIR))


def _check(option: str, path: str, allowed: Sequence[int] = (errno.ENOENT,)) -> None:
    try:
        for part in Path(path).parts:
            # stat stops at a folder that is not there yet, before a name in it that can never be made.
            if len(os.fsencode(part)) > LONGEST:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if stat.S_ISDIR(os.stat(path).st_mode) and not os.access(path, os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno in allowed:  # it may be made, or is no path
            return
        raise BadInput(f"{option}{shortened(path)}: {error.strerror}; name another path") from None


def shortened(path: str) -> str:
    """A path as it fits on a line."""
    if len(path) <= 120:
        return path
    return f"{path[:60]}...{path[-30:]} ({len(path)} characters)"
