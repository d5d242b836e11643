"""Locks on folders: what a run writes to is its own until it ends, as its record file is."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from smoothlab.disk import locked_file
from smoothlab.errors import BadInput

NAME = ".lock"
"""File in a locked folder."""


@contextmanager
def locked(folders: Mapping[str, Path | None]) -> Iterator[None]:
    """Keep other runs out of some folders, which are made; a new folder that stays empty is removed again.

    Args:
        folders: by the option that names each; the same folder may come twice.

    Raises:
        BadInput: another run holds a folder, or it cannot be made or written.
    """
    with ExitStack() as stack:
        held: set[str] = set()
        for option, folder in folders.items():
            if folder is not None and os.path.realpath(folder) not in held:
                stack.enter_context(_locked(option, folder))
                held.add(os.path.realpath(folder))
        yield


@contextmanager
def _locked(option: str, folder: Path) -> Iterator[None]:
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        file = locked_file(folder / NAME)
    except BlockingIOError:
        raise BadInput(f"{option} {folder} is in use by another run; wait for it, or name another folder") from None
    except OSError as error:
        raise BadInput(f"cannot write {option} {folder}: {error.strerror}; name another folder") from None
    try:
        yield
    finally:
        # Removed before the lock is let go: a run that waits then opens a new file.
        (folder / NAME).unlink(missing_ok=True)
        os.close(file)
        if new:
            with suppress(OSError):  # it holds something
                folder.rmdir()
