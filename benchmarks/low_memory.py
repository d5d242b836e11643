"""Peak memory and time where weights stay a mapped file: `python -m benchmarks.low_memory --folder DIR`.

DIR holds a language model in bfloat16 (`python -m benchmarks.random_folder SHAPE DIR` makes one). Each kind of work is
a process of its own on 1 x 64 random tokens and one thread, so that each peak is that of its work; resident pages of
mapped files count, and so do Python and its libraries. Steps keep their sum as factors beside the weights
(`HybridSGD(masters="factors")`), and compute in float32.

    forward      one evaluation of the loss
    evaluation   `smoothlab.llm.evaluate.accuracy` of one item
    fo-lora      a first-order step on LoRA, the base model frozen: what hybrid steps are compared with
    fo-prompt    the same on a soft prompt
    hybrid-lora  a hybrid step, two-sided along a direction of rank 1
    hybrid-prompt
    zo           a zeroth-order step of the base model alone
    curvature    the gradient of the LoRA block, and a Hessian-vector product by a central difference of gradients

Where memory is short, the system drops pages of mapped files, and reads them again: the peak is then less than the work
takes elsewhere. A row therefore has the peak of the memory that no file backs, too, and `bound_bytes`, its sum with the
mapped weights and the libraries' files, which is the peak with all weights resident, or above it.

A row has the CPU seconds of a step over those of the forward passes that it is made of, in its own process, and the
peak over that of the first-order step, which is the weights and what that needs beside them. A backward pass counts as
one: it multiplies by each frozen weight once.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.timing import cpu_seconds
from smoothlab.blocks import Block, fixed_loss, only_differentiable
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.llm import memory
from smoothlab.llm.adapters import attach
from smoothlab.llm.compute import compute_in_float32
from smoothlab.llm.encoding import Encoded
from smoothlab.llm.evaluate import accuracy
from smoothlab.llm.models import load_lm
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.records import Row, environment, run
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank

ROOT = Path(__file__).parents[1]
TOKENS = 64
KINDS = ("forward", "evaluation", "fo-lora", "fo-prompt", "hybrid-lora", "hybrid-prompt", "zo", "curvature")
PASSES = {"fo-lora": 2, "fo-prompt": 2, "hybrid-lora": 4, "hybrid-prompt": 4, "zo": 2, "curvature": 6}
"""Forward and backward passes of a step."""
RATIO = 1.2
"""Aim: largest peak of a hybrid step over that of the first-order step on the same module."""


def resident() -> dict[str, int]:
    """Bytes resident now, by what backs them."""
    sizes = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            sizes[name] = int(value.split()[0]) * 1024
    return sizes


class Sampling:
    """The largest `RssAnon` of this process, looked at every 20 milliseconds until `stop`."""

    def __init__(self) -> None:
        self._largest, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            self._largest = max(self._largest, resident()["RssAnon"])

    def stop(self) -> int:
        """End, and return it."""
        self._ended.set()
        self._thread.join()
        return max(self._largest, resident()["RssAnon"])


def _library_bytes(folder: Path) -> int:
    """Bytes of all files that are mapped into this process but those in the folder, resident now."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # a mapping's first line ends with its file
            counts = len(words) == 6 and words[5].startswith("/") and not words[5].startswith(str(folder.resolve()))
        elif counts and words[0] == "Rss:":
            total += 1024 * int(words[1])
    return total


def work(kind: str, folder: Path, steps: int) -> Row:
    """One kind of work in this process: its peak and its seconds."""
    sampling = Sampling()
    started = time.perf_counter()
    model: Any = load_lm(str(folder), seed=0, dtype=torch.bfloat16, copies=1).model
    loaded = time.perf_counter() - started
    compute_in_float32(model)
    module = kind.partition("-")[2] or ("lora" if kind == "curvature" else "none")
    model = attach(model, module, seed=0, measured=False)
    blocks = partition(model)
    model.requires_grad_(False)
    ids = torch.randint(5, 4000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    loss = fixed_loss(lambda: model(input_ids=ids, labels=ids).loss, model)

    def forward() -> None:
        with torch.no_grad():
            loss()

    loaded_memory, libraries = resident(), _library_bytes(folder)
    step, count, factors = _step(kind, model, blocks, loss, ids), 1, 0
    seconds, cpu, forwards = [], [], []
    step()  # the first looks closer than the others
    for _ in range(steps):
        started = time.perf_counter()
        cpu.append(cpu_seconds(step))
        seconds.append(time.perf_counter() - started)
        forwards.append(cpu_seconds(forward))
    optimizer = getattr(step, "optimizer", None)
    if optimizer is not None:
        count, factors = steps + 1, sum(f.nbytes for f in optimizer.factors.values())
    parameters = [p for block in blocks.values() for p in block.params]
    mapped, anonymous = memory.mapped_bytes(parameters), sampling.stop()
    libraries = max(libraries, _library_bytes(folder))
    return {
        "what": kind, "dim_x": blocks["base"].dim, "length": TOKENS, "steps": count,
        "resident_bytes": memory.peak("cpu"),
        "bound_bytes": anonymous + mapped + libraries, "anonymous_bytes": anonymous,
        "loaded_bytes": sum(loaded_memory.values()), "parameter_bytes": sum(p.nbytes for p in parameters),
        "mapped_bytes": mapped,
        "factor_bytes": factors, "load_seconds": loaded, "seconds": min(seconds), "cpu_seconds": min(cpu),
        "forward_seconds": min(forwards), "passes": PASSES.get(kind, 1),
    }  # fmt: skip


class _Stepping:
    """A step of the optimizer on the loss."""

    def __init__(self, optimizer: HybridSGD, loss: Callable[[], Tensor]) -> None:
        self.optimizer, self._loss = optimizer, loss

    def __call__(self) -> None:
        self.optimizer.step(self._loss)


def _step(
    kind: str, model: nn.Module, blocks: dict[str, Block], loss: Callable[[], Tensor], ids: Tensor
) -> Callable[[], Any]:
    """What is measured of a kind."""
    if kind == "forward":
        return lambda: _without_graph(loss)
    if kind == "evaluation":
        item = Encoded((tuple(ids[0].tolist()),), (((10,), (11,)),), (0,), "verbalizer", 1)
        return lambda: accuracy(model, item)
    if kind == "curvature":
        return lambda: _product(blocks["peft"], loss)
    groups: list[dict[str, Any]] = []
    if kind == "zo" or kind.startswith("hybrid"):
        oracle = ZerothOrder(distribution=LowRank(1), perturb="forward", dtype=torch.float32)
        groups.append({"params": blocks["base"].params, "lr": 1e-9, "oracle": oracle, "name": "base"})
    if "peft" in blocks:
        for p in blocks["peft"].params:
            p.requires_grad_(True)
        groups.append({"params": blocks["peft"].params, "lr": 1e-6, "name": "peft"})
    return _Stepping(HybridSGD(groups, exact=torch.optim.AdamW, masters="factors"), loss)


def _product(block: Block, loss: Callable[[], Tensor]) -> None:
    with only_differentiable([block], []):
        hessian = FiniteDifferenceHessian(loss, [block], h=1e-2)
        hessian.product(torch.randn(block.dim, generator=torch.Generator().manual_seed(0)), block.name, [block.name])


def _without_graph(loss: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        loss()


@dataclass(frozen=True)
class LowMemory:
    """Peaks and seconds of each kind of work on a folder's model.

    Attributes:
        model: name of the folder.
        folder: its path.
        kinds: kinds of work.
        steps: timed repetitions of each.
    """

    name: ClassVar[str] = "low_memory"
    unit: ClassVar[str] = "what"
    model: str
    folder: Path
    kinds: tuple[str, ...] = KINDS
    steps: int = 1

    def place(self, row: Row) -> int:
        """A place for each kind of work."""
        return KINDS.index(row["what"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """All rows stand, which are processes of their own."""
        return [row for row in rows if row is not None]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """A row for each kind of work that is not done."""
        peaks = {row["what"]: row["resident_bytes"] for row in done}
        for kind in self.kinds:
            if kind in peaks:
                continue
            command = [sys.executable, "-m", "benchmarks.low_memory", "--folder", str(self.folder), "--kind", kind]
            paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            done_process = subprocess.run(
                [*command, "--steps", str(self.steps)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                env={**os.environ, **paths},
            )  # fmt: skip
            row = json.loads(done_process.stdout.splitlines()[-1])
            peaks[kind] = row["resident_bytes"]
            reference = peaks.get("fo-" + kind.partition("-")[2]) if kind.startswith("hybrid") else peaks.get("fo-lora")
            row["over_first_order"] = row["resident_bytes"] / reference if reference else None
            row["over_forwards"] = row["cpu_seconds"] / (row["passes"] * row["forward_seconds"])
            yield row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder with a language model in bfloat16")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--steps", type=int, default=1, help="timed repetitions, of which the fastest counts")
    parser.add_argument("--out", type=Path, help="record file; benchmarks/results/low_memory_NAME.jsonl by default")
    parser.add_argument("--kind", choices=KINDS, help="this kind in this process, its row on stdout")
    args = parser.parse_args()
    if args.kind:
        print(json.dumps(work(args.kind, args.folder, args.steps)))
        return
    out = args.out or ROOT / "benchmarks" / "results" / f"low_memory_{args.folder.name}.jsonl"
    experiment = LowMemory(args.folder.name, args.folder, tuple(args.kinds), args.steps)
    run(experiment, out, environment=environment(device="cpu", dtype="bfloat16", threads=1))
    for line in out.read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "row":
            ratio = "" if row["over_first_order"] is None else f", {row['over_first_order']:.3f} of first order's"
            print(
                f"{row['what']:14s} peak {row['resident_bytes'] / 2**30:6.2f} GiB{ratio}; {row['cpu_seconds']:.1f} CPU "
                f"seconds, {row['over_forwards']:.2f} of its {row['passes']} passes"
            )


if __name__ == "__main__":
    main()
