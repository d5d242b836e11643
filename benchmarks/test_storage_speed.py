"""What steps cost where weights are held in 16 bits and computed with in float32, in steps of float32 weights.

`make bench` runs it and writes benchmarks/results/speed_storage.jsonl; `python -m benchmarks.test_storage_speed
--repetitions 3 --out FILE` is a short look. The model has the Llama architecture, 29.9 million random weights, LoRA of
rank 8 on q and v, and reads 8 rows of 32 tokens. Times are CPU seconds of one thread, as ratios to the float32 step of
the same round. "bfloat16" computes with 16-bit numbers, which CPUs without units for them do many times slower. Peaks
are of fresh processes (Linux) that take two steps: resident memory beyond the imports' in bytes of float32 weights.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from benchmarks.timing import Ratios, cpu_seconds, ratio_row, recorded, table
from smoothlab.blocks import fixed_loss
from smoothlab.llm.adapters import attach
from smoothlab.llm.compute import compute_in_float32
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.records import Row
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.rng import stream_name

MOST = 1.3
"""Largest ratio of a step with 16-bit weights and float32 arithmetic to one of float32 weights."""
STORAGES = ("float32", "bfloat16, float32 arithmetic", "bfloat16")
METHODS = ("first-order LoRA", "zeroth-order base", "hybrid")


def stepper(storage: str, method: str) -> Callable[[], Any]:
    """What takes one step of a method on a new model; the rates are so small that all steps see the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    dtype, widened = getattr(torch, storage.partition(",")[0]), storage == STORAGES[1]
    torch.set_default_dtype(dtype)  # the model is never in memory in another format
    try:
        bare: nn.Module = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    if widened:
        compute_in_float32(bare)
    model: Any = attach(bare, "lora", seed=0)
    ids = torch.randint(1, 8192, (8, 32), generator=torch.Generator().manual_seed(1))
    blocks, oracle = partition(model), ZerothOrder(1e-2)
    if widened:
        oracle = ZerothOrder(1e-2, layers=model, dtype=torch.float32)
    groups: list[dict[str, Any]] = []
    if method != METHODS[0]:
        groups.append({"params": blocks["base"].params, "oracle": oracle, "name": "base"})
    if method != METHODS[1]:
        groups.append({"params": blocks["peft"].params, "name": "peft"})
    trained = {id(p) for group in groups for p in group["params"]}
    for p in model.parameters():
        p.requires_grad_(id(p) in trained)
    optimizer = HybridSGD(groups, 1e-9)
    loss = fixed_loss(lambda: model(input_ids=ids, labels=ids, use_cache=False).loss, model)
    return lambda: optimizer.step(loss)


def peak(storage: str, method: str) -> float:
    """Resident memory of two steps in a process of its own, in bytes of the weights in float32."""
    command = [sys.executable, "-m", "benchmarks.test_storage_speed", "--peak", storage, method]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(completed.stdout.split()[-1])


def _peak_here(storage: str, method: str) -> float:
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    before = _most_resident()
    step = stepper(storage, method)
    step()
    step()
    return (_most_resident() - before) / (4 * 29_893_120)


def _most_resident() -> int:
    """Peak of resident bytes; the kernel's other number, ru_maxrss, is inherited from the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


@dataclass(frozen=True)
class StorageSpeed(Ratios):
    """Cost of steps by the format that weights are held in.

    Attributes:
        repetitions: interleaved repetitions of every item.
    """

    name: ClassVar[str] = "speed_storage"
    repetitions: int = 7

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """For each method the times of all storages, then their peaks."""
        for method in METHODS:
            steps = {storage: stepper(storage, method) for storage in STORAGES}
            for step in steps.values():
                step()  # the first step looks closer than the others
            times: dict[str, list[float]] = {storage: [] for storage in STORAGES}
            for _ in range(self.repetitions):
                for storage, step in steps.items():
                    times[storage].append(cpu_seconds(step))
            for storage in STORAGES:
                ratios = [t / reference for t, reference in zip(times[storage], times["float32"], strict=True)]
                target = MOST if storage == STORAGES[1] else None
                shared = {"unit": "float32 steps", "target": target, "load": list(os.getloadavg())}
                yield ratio_row(f"{method}, {storage}", ratios, times[storage], **shared)
                shared["unit"], shared["target"] = "float32 weights", None
                yield ratio_row(f"{method}, {storage}, peak memory", [peak(storage, method)], [], **shared)


def measure(experiment: StorageSpeed, out: Path) -> list[Row]:
    """Run, record, and return the rows."""
    return recorded(experiment, out, dtype="bfloat16", stream=stream_name())


show = partial(table, names=("what",), number=".3f", more={"unit": ""})
"""The rows as a table."""


@pytest.mark.slow
def test_steps_of_sixteen_bit_weights_cost_what_those_of_float32_do(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(__file__).with_name("results") / "speed_storage.jsonl"
    rows = measure(StorageSpeed(), out)
    with capsys.disabled():
        print("\n" + show(rows))
    values = {row["what"]: row["value"] for row in rows}
    for method in METHODS:
        assert values[f"{method}, {STORAGES[1]}"] <= MOST


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=StorageSpeed.repetitions)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_storage.jsonl"))
    parser.add_argument(
        "--peak", nargs=2, metavar=("STORAGE", "METHOD"), help="peak memory of one item, in this process"
    )
    args = parser.parse_args()
    if args.peak:
        print(_peak_here(*args.peak))
        return
    print(show(measure(StorageSpeed(args.repetitions), args.out)))


if __name__ == "__main__":
    main()
