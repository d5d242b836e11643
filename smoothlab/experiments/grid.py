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

from smoothlab.errors import Unfinished, out_of_memory

Row = dict[str, Any]
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
    measured = joblib.Parallel(n_jobs=jobs, return_as="generator")(joblib.delayed(_measured)(work, p) for p in points)
    shortages: list[str] = []
    try:
        for rows_of_point, shortage in measured:
            if shortage:
                shortages.append(shortage)
            yield from rows_of_point
    except Exception as error:
        if not _out_of_room(error):
            raise
        raise Unfinished(f"a worker has ended ({_line(error)}): {_AGAIN}") from error
    finally:
        measured.close()  # no point is begun any more
    if shortages:
        failed = f"{len(shortages)} of {len(points)} settings failed for want of room ({shortages[0]})"
        raise Unfinished(f"{failed}: {_AGAIN}")


_AGAIN = "make room, and start the same command again: it measures what is not on record"


def _measured(work: Callable[[Row], Sequence[Row]], point: Row) -> tuple[list[Row], str]:
    """The rows of a point; or none, and the resource that ran out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # replicas are many and points are many: one thread each wastes least
    try:
        return [{**point, **row, "failed": None} for row in work(point)], ""
    except Exception as error:
        if _out_of_room(error):
            return [], _line(error)  # no row: the next start measures the point
        return [{**point, "failed": _line(error)}], ""
    finally:
        torch.set_num_threads(threads)


def _out_of_room(error: BaseException | None) -> bool:
    """Whether memory, disk or a worker was lacking, by the error itself or what it was raised from."""
    while error is not None:
        # by name: the libraries that define these errors may not be installed
        ended = {kind.__name__ for kind in type(error).__mro__} & WORKER
        full = isinstance(error, OSError) and error.errno in DISK
        if ended or full or out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
