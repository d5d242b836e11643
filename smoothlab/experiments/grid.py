"""Grids of runs through joblib: rows as they come, on this machine or, by joblib's backend, on a cluster.

    with joblib.parallel_config(backend="dask"):  # after dask.distributed.Client("scheduler:8786")
        records.run(Rates(...), out, environment=...)

takes every grid of an experiment to that cluster; "ray" likewise. A point that fails is a row that says why, but for
one that failed for want of memory, disk or a worker: it has no row, the grid ends with an error, and the next start
measures it.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import joblib
import torch

from smoothlab.errors import Unfinished

Row = dict[str, Any]
MEMORY = {"MemoryError", "OutOfMemoryError"}
"""Names of what Python, numpy and torch raise where memory ran out."""
MEMORY_WORDS = "can't allocate memory", "out of memory"
"""What torch says on a CPU, and CUDA's libraries, in a plain RuntimeError."""
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}
"""Errors of an operating system that has run out of something."""
WORKER = {"TerminatedWorkerError", "BrokenProcessPool", "ShutdownExecutorError", "KilledWorker", "WorkerCrashedError",
          "NodeDiedError", "CommClosedError"}  # fmt: skip
"""Names of what joblib's own processes, dask and ray raise where a worker has ended."""


def rows(points: Sequence[Row], work: Callable[[Row], Sequence[Row]], jobs: int | None = None) -> Iterator[Row]:
    """The rows of every point, in the order of the points, each as soon as it and those before are there.

    Args:
        points: what to measure; every row of a point begins with the point's own fields.
        work: rows of one point; a function of a module, as it goes to other processes.
        jobs: processes; None: as joblib's parallel_config says, which is this process alone by default.

    Yields:
        Rows with the field `failed`: None, or why there is nothing else in it.

    Raises:
        Unfinished: after the rows of all other points, if some failed for want of memory or disk; at once, if a worker
            has ended.
    """
    measured = joblib.Parallel(n_jobs=jobs, return_as="generator")(joblib.delayed(_tried)(work, p) for p in points)
    wanting: list[str] = []
    try:
        for several, want in measured:
            if want:
                wanting.append(want)
            yield from several
    except Exception as error:
        if not _wants(error):
            raise
        raise Unfinished(f"a worker has ended ({_line(error)}): {_AGAIN}") from error
    finally:
        measured.close()  # no point is begun any more
    if wanting:
        raise Unfinished(f"{len(wanting)} of {len(points)} settings failed for want of room ({wanting[0]}): {_AGAIN}")


_AGAIN = "make room, and start the same command again: it measures what is not on record"


def _tried(work: Callable[[Row], Sequence[Row]], point: Row) -> tuple[list[Row], str]:
    """The rows of a point; or none, and what was wanting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # replicas are many and points are many: one thread each wastes least
    try:
        return [{**point, **row, "failed": None} for row in work(point)], ""
    except Exception as error:
        if _wants(error):
            return [], _line(error)  # no row: the next start measures the point
        return [{**point, "failed": _line(error)}], ""
    finally:
        torch.set_num_threads(threads)


def _wants(error: BaseException | None) -> bool:
    """Whether memory, disk or a worker was wanting: the error itself, or what it was raised from."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & (MEMORY | WORKER) or any(words in str(error) for words in MEMORY_WORDS):
            return True
        if isinstance(error, OSError) and error.errno in DISK:
            return True
        error = error.__cause__ or error.__context__
    return False


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
