"""Files that outlive a kill or a power failure: locked while they are written, written whole, and brought to disk."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smoothlab.errors import BadInput

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock there
    fcntl = None  # type: ignore[assignment]


def lock(file: int) -> None:
    """Lock an open file; the operating system holds the lock, so that a killed run leaves none.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def locked_file(path: Path) -> int:
    """A locked descriptor of the file that lies at `path`, which is made where it is not there.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock(file)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # another run removed or replaced the file between our open and our lock: open anew


@contextmanager
def writing(path: Path, fix: str) -> Iterator[None]:
    """Inside the context the file at `path` is written.

    Raises:
        BadInput: the operating system refuses; `fix` ends the message.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read has left, which is no mistake: the command line ends without a word
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; {fix}") from None


def write_all(file: int, content: bytes) -> None:
    """Write all of it; os.write may take less at a time, at a signal or where the disk is nearly full."""
    while content:
        content = content[os.write(file, content) :]


def sync(file: int) -> None:
    """Bring what was written to disk; pipes, devices and some file systems know no such thing."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise


def sync_folder(path: Path) -> None:
    """Bring the name of a new file to disk; where the system cannot, the file is there all the same."""
    with suppress(OSError):
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
