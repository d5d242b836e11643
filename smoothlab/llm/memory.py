"""Memory: whether a model fits a device, estimated before weights are read, and the peak that a process has reached."""

import re
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smoothlab.errors import BadInput

TRAINED = 2
"""Copies of all weights that training holds at least: the weights, and a moved copy or a gradient."""
PROBE_VECTORS = {"estimated": 22, "both": 22, "paper": 2}
"""Vectors of a block's size that measuring holds beside the copies of training, by protocol: probes and gradients."""
VECTORS = TRAINED + PROBE_VECTORS["estimated"]
"""Copies of all weights that measuring all of them holds."""
READING = 30 * 2**20
"""Bytes of pandas and the table of records, which is read at the end of a run."""
SHAPES = {"micro": 3.5e6, "opt-125m": 125e6, "opt-350m": 331e6, "opt-1.3b": 1.3e9, "opt-2.7b": 2.65e9}
"""Parameters of the models that an error message may suggest as small enough."""


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    if device == "cpu":
        return
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise BadInput(f"--device {device} is unknown: use cpu, cuda or cuda:0")
    import torch

    if not torch.cuda.is_available():
        raise BadInput(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    count = torch.cuda.device_count()
    if ":" in device and int(device.removeprefix("cuda:")) >= count:
        raise BadInput(f"--device {device}: torch sees CUDA devices 0 to {count - 1} here; use cuda:0")


def parameter_count(config: Any, kind: Any = None) -> int:
    """Parameters of the model that a config describes, counted without allocating it; a classifier's by default."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):  # tensors there have shapes and no memory
        return sum(p.numel() for p in (kind or AutoModelForSequenceClassification).from_config(config).parameters())


def check_memory(config: Any, dtype: Any, device: str, name: str, kind: Any = None, copies: int = VECTORS) -> None:
    """Refuse a model of which `copies` do not fit in free memory: weights, gradient, moved copy, probe vectors."""
    width = dtype.itemsize
    needed_bytes, free_bytes = copies * parameter_count(config, kind) * width, free(device)
    if needed_bytes <= free_bytes:
        return
    fix, work = "free some memory", "trained"
    for shape, count in SHAPES.items():
        if copies * count * width <= free_bytes:  # ascending: the last one that fits is named
            fix = f"{shape} would fit"
    if copies == VECTORS:
        work = "measured"
    sizes = f"about {needed_bytes / 2**30:.1f} GiB to be {work} and {free_bytes / 2**30:.1f} GiB are free"
    raise BadInput(f"{name} needs {sizes}: {fix}")


def expected_peak(device: str, *, kept: int, measured: int, protocol: str) -> int:
    """Bytes at the peak of a run, expected from the peak so far, that of some steps and an evaluation.

    It holds `kept` bytes of best weights on the CPU, and measures blocks of up to `measured` bytes.
    """
    expected = peak(device) + PROBE_VECTORS[protocol] * measured
    if device == "cpu":  # what lies on the CPU takes nothing of a GPU's memory
        expected += kept + READING
    return expected


def mapped_bytes(tensors: Iterable[Any], maps: Path = Path("/proc/self/maps")) -> int:
    """Bytes of tensors on the CPU that are files mapped into memory, which the system may drop and read again.

    0 where the system does not say (others than Linux).
    """
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return 0
    mapped_ranges = []
    for line in lines:
        addresses, _, _, _, inode, *path = line.split(maxsplit=5)
        if inode != "0" and path:
            begin, _, end = addresses.partition("-")
            mapped_ranges.append((int(begin, 16), int(end, 16)))
    sizes = {}  # by address: tied weights are there once
    for tensor in tensors:
        address = tensor.data_ptr()
        if tensor.device.type == "cpu" and any(begin <= address < end for begin, end in mapped_ranges):
            sizes[address] = tensor.nbytes
    return sum(sizes.values())


def peak(device: str) -> int:
    """Most bytes so far: of the process with its libraries on a CPU, of torch's tensors on a GPU."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(torch.device(device)))
    # Linux lets a program begin with the ru_maxrss of the one that started it, and keeps its own peak elsewhere.
    status = Path("/proc/self/status")
    peak_kib = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if peak_kib:
        return 1024 * int(peak_kib[1])
    unit = 1024  # Linux counts in KiB
    if sys.platform == "darwin":  # macOS in bytes
        unit = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free(device: str, groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Free bytes: the device's, or the machine's, less if the process's group (a container) is allowed less."""
    import psutil
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    available = int(psutil.virtual_memory().available)
    try:
        allowed = int((groups / "memory.max").read_text())
        used = int((groups / "memory.current").read_text())
        statistics = dict(line.split() for line in (groups / "memory.stat").read_text().splitlines())
        used -= int(statistics["active_file"]) + int(statistics["inactive_file"])  # cached files make room
    except (OSError, ValueError, KeyError):  # no groups here, or "max": no limit
        return available
    return max(min(available, allowed - used), 0)
