"""Ratios of times within one run, recorded and printed: other load of the machine then slows all items alike."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from smoothlab.records import Experiment, Row, environment, load, run


class Ratios:
    """What experiments of ratios have in common, whose rows belong to one run."""

    unit: ClassVar[str] = "what"

    def place(self, row: Row) -> int:
        """One for all rows."""
        return 0

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """A stopped run starts again."""
        return []


def recorded(experiment: Experiment, out: Path, **more: Any) -> list[Row]:
    """Run an experiment into a new record file, whose head says how busy the machine was, and return its rows.

    Args:
        experiment: what is run.
        out: record file, which is replaced.
        more: what the head says beside device, dtype, threads and load, or instead of them.
    """
    head = {"device": "cpu", "dtype": "float32", "threads": torch.get_num_threads(), "load": list(os.getloadavg())}
    out.parent.mkdir(parents=True, exist_ok=True)
    run(experiment, out, environment=environment(**head | more), overwrite=True)
    rows = load(out).astype(object).where(lambda x: x.notna(), None)  # None where a row lacks a field, in place of NaN
    return rows.to_dict("records")  # type: ignore[return-value]


def table(rows: Sequence[Row], names: Sequence[str], number: str, more: Mapping[str, str]) -> str:
    """Rows of ratios as a table for reading: names, median, quartiles (or other ends), target, and more.

    Args:
        rows: rows as `recorded` returns them.
        names: fields that say what a row is of, which stand first.
        number: format of the median and the quartiles.
        more: formats of the fields that stand last, by name.
    """
    columns = [*names, "median", "low", "high", "target", *more]
    lines = [columns]
    for row in rows:
        cells = [str(row[name]) for name in names] + [format(row[name], number) for name in ("value", "low", "high")]
        for name, form in {"target": "g", **more}.items():
            cells.append("" if row[name] is None else format(row[name], form))
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = {*names, *(name for name, form in more.items() if not form)}
    aligned = []
    for cells in lines:
        parts = []
        for column, cell, width in zip(columns, cells, widths, strict=True):
            parts.append(cell.ljust(width) if column in texts else cell.rjust(width))
        aligned.append("  ".join(parts).rstrip())
    return "\n".join(aligned)


def timed(job: Callable[[], Any]) -> float:
    """Seconds that the job takes."""
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def cpu_seconds(job: Callable[[], Any]) -> float:
    """CPU seconds that the job takes in this process."""
    started = time.process_time()
    job()
    return time.process_time() - started


def timed_on(device: str) -> Callable[[Callable[[], Any]], float]:
    """`timed` for jobs on the device: a GPU works on after a call returns, so that both ends wait for it."""
    if not device.startswith("cuda"):
        return timed

    def until_done(job: Callable[[], Any]) -> float:
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        job()
        torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return until_done


def ratio_row(what: str, ratios: Sequence[float], seconds: Sequence[float], **more: Any) -> Row:
    """A record of ratios: their median with its quartiles, and the median time if there is one."""
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    spread = {"value": statistics.median(ratios), "low": quartiles[0], "high": quartiles[2]}
    times = {"seconds": statistics.median(seconds) if seconds else None, "raw": list(ratios)}
    return {"what": what, "unit": "gradients", "target": None, **spread, **times, **more}
