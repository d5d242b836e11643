"""Locks on folders: what a run writes to is its own until it ends, as its record file is."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from smoothlab.errors import BadInput

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock there
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
"""File in a locked folder. The operating system holds the lock, so that a killed run leaves none."""


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
            if folder is not None and (real := os.path.realpath(folder)) not in held:
                stack.enter_context(_locked(option, folder))
                held.add(real)
        yield


@contextmanager
def _locked(option: str, folder: Path) -> Iterator[None]:
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        file = _open(folder / NAME)
    except BlockingIOError:
        raise BadInput(f"{option} {folder} is in use by another run; wait for it, or name another folder") from None
    except OSError as error:
        raise BadInput(f"cannot write {option} {folder}: {error.strerror}; name another folder") from None
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        os.close(file)
        if new:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def _open(path: Path) -> int:
    """A locked descriptor of the file that lies at `path`: a run that ends removes its file before it lets go."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is None:
                return file
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
