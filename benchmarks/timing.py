"""Ratios of times within one run: what else the machine does then meets all items alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from smoothlab.records import Row


def timed(job: Callable[[], Any]) -> float:
    """Seconds that the job takes."""
    begun = time.perf_counter()
    job()
    return time.perf_counter() - begun


def cpu_seconds(job: Callable[[], Any]) -> float:
    """CPU seconds that the job takes in this process."""
    begun = time.process_time()
    job()
    return time.process_time() - begun


def timed_on(device: str) -> Callable[[Callable[[], Any]], float]:
    """`timed` for jobs on the device: a GPU works on after a call returns, so that both ends wait for it."""
    if not device.startswith("cuda"):
        return timed

    def until_done(job: Callable[[], Any]) -> float:
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        job()
        torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    return until_done


def ratio_row(what: str, ratios: Sequence[float], seconds: Sequence[float], **more: Any) -> Row:
    """A record of ratios: their median with its quartiles, and the median time if there is one."""
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    spread = {"value": statistics.median(ratios), "low": quartiles[0], "high": quartiles[2]}
    times = {"seconds": statistics.median(seconds) if seconds else None, "raw": list(ratios)}
    return {"what": what, "unit": "gradients", "target": None, **spread, **times, **more}
