"""Grids of runs through joblib: rows as they come, on this machine or, by joblib's backend, on a cluster.

    with joblib.parallel_config(backend="dask"):  # after dask.distributed.Client("scheduler:8786")
        records.run(Rates(...), out, environment=...)

takes every grid of an experiment to that cluster; "ray" likewise. A point that fails is a row that says why.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]


def rows(points: Sequence[Row], work: Callable[[Row], Sequence[Row]], jobs: int | None = None) -> Iterator[Row]:
    """The rows of every point, in the order of the points, each as soon as it and those before are there.

    Args:
        points: what to measure; every row of a point begins with the point's own fields.
        work: rows of one point; a function of a module, as it goes to other processes.
        jobs: processes; None: as joblib's parallel_config says, which is this process alone by default.

    Yields:
        Rows with the field `failed`: None, or why there is nothing else in it.
    """
    import joblib

    found = joblib.Parallel(n_jobs=jobs, return_as="generator")(joblib.delayed(_tried)(work, one) for one in points)
    try:
        for several in found:
            yield from several
    finally:
        found.close()  # no point is begun any more


def _tried(work: Callable[[Row], Sequence[Row]], point: Row) -> list[Row]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # replicas are many and points are many: one thread each wastes least
    try:
        return [{**point, **row, "failed": None} for row in work(point)]
    except Exception as error:
        return [{**point, "failed": " ".join(f"{type(error).__name__}: {error}".split())}]
    finally:
        torch.set_num_threads(threads)
