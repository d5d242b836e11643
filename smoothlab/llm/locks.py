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
    """Keep other runs out of folders, named by option, which are made; a new one that stays empty is removed again."""
    with ExitStack() as stack:
        locked_paths: set[str] = set()
        for option, folder in folders.items():
            # One folder may serve two options, and its second lock would be refused.
            if folder is not None and os.path.realpath(folder) not in locked_paths:
                stack.enter_context(_locked(option, folder))
                locked_paths.add(os.path.realpath(folder))
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
