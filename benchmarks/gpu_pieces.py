"""Pieces of `benchmarks.gpu` that are timed, and how much all of them measure, on a GPU or in small anywhere.

stream     directions of the portable generator: bits on the device against the CPU's, time against torch's
steps-SIZE hybrid and zeroth-order steps in bfloat16 against the parts that they are made of
"""

import gc
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_folder import SHAPES, config_of
from benchmarks.test_forward_speed import MU, Seconds, interleaved, loss_of, parts_of
from benchmarks.test_portable_speed import TARGETS as COMPARED
from benchmarks.test_portable_speed import speedups
from benchmarks.timing import ratio_row, timed_on
from smoothlab import records
from smoothlab.blocks import Block
from smoothlab.commands.machine import machine
from smoothlab.environment import environment
from smoothlab.errors import BadInput
from smoothlab.llm.adapters import attach
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.stats import samples
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian, Rademacher, Sparse, Sphere
from smoothlab.zeroth.estimators import Sides, ZerothOrder
from smoothlab.zeroth.low_rank import LowRank

Row = dict[str, Any]
SHAPE_OF = {"125m": "opt-125m", "1.3b": "opt-1.3b", "7b": "llama-2-7b"}
"""Shapes of the step pieces, by the name of the piece."""
SMALL: dict[str, dict[str, Any]] = {
    "OPTConfig": {"vocab_size": 4096, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128,
                  "num_hidden_layers": 2, "num_attention_heads": 4},
    "LlamaConfig": {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                    "num_attention_heads": 4, "num_key_value_heads": 4},
}  # fmt: skip
"""What a rehearsal changes of a shape, by the class of its configuration."""
STEPS: dict[str, tuple[Sides, bool, tuple[int, int], float]] = {
    "one-sided hybrid": (1, True, (1, 1), 1.10),
    "two-sided hybrid": (2, True, (1, 2), 1.10),
    "two-sided zeroth-order": (2, False, (0, 2), 1.15),
}
"""Sides, whether LoRA takes a first-order step, first-order steps and forward passes in the parts, and the aim."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        entries: entries of the block that directions are timed on, a multiple of 512.
        repetitions: of timed calls and steps.
        lengths: tokens of a row, of which a minibatch has `rows`.
        rows: rows of a minibatch of the step pieces.
        vocabulary: tokens of the pre-trained model.
        batch: windows of a step of pre-training.
        seconds: of pre-training.
        points: measuring points of Appendix D.4's protocol; `slice` of them are a piece.
        cells: cells of Table 1, by the ends of their names; all if empty.
        steps: training steps of a cell.
    """

    entries: int
    repetitions: int
    lengths: tuple[int, ...]
    rows: int
    vocabulary: int
    batch: int
    seconds: float
    points: int
    slice: int
    cells: tuple[str, ...]
    steps: int


SIZES = {
    "full": Size(1 << 26, 21, (64, 256), 16, 50_272, 128, 300.0, 20, 5, (), 300),
    "micro": Size(1 << 17, 2, (16,), 2, 512, 8, 2.0, 3, 2, ("zo-seed0", "hybrid-lora-seed0"), 2),
}
"""Sizes by the name of --size."""


@dataclass(frozen=True)
class Bench:
    """Where and on what the pieces are measured.

    Attributes:
        size: name of SIZES.
        device: cpu, cuda or cuda:N.
        text: folder with the text of `benchmarks.pretrain_micro`.
        data_dir: folder with sst2/.
        folder: for record files, checkpoints and the pre-trained model.
    """

    size: str
    device: str
    text: Path | None
    data_dir: Path | None
    folder: Path

    @property
    def sizes(self) -> Size:
        """How much is measured."""
        return SIZES[self.size]

    @property
    def pretrained(self) -> Path:
        """Folder of the pre-trained model."""
        return self.folder / "pretrained"

    @property
    def has_text(self) -> bool:
        """Whether there is text to pre-train on: a rehearsal makes its own of the built-in task."""
        return self.text is not None or self.size == "micro"

    def check_pretrained(self) -> None:
        """Refuse to go on without the pre-trained model.

        Raises:
            BadInput: it is not there.
        """
        if not (self.pretrained / "config.json").exists():
            raise BadInput(f"no pre-trained model in {self.pretrained}: make it first with --pieces pretrain")

    def record(self, experiment: Any, name: str) -> Path:
        """Run an experiment of smoothlab, or continue it, in a record file of its own."""
        out = self.folder / f"{name}.jsonl"
        out.parent.mkdir(parents=True, exist_ok=True)
        return records.run(experiment, out, environment=environment(**machine(experiment)))


def release(device: str) -> None:
    """Give memory of what is no longer referred to back to the device."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def stream(bench: Bench) -> Iterator[Row]:
    """Entries whose bits differ between the device and the CPU, and speed against torch's generator."""
    for dtype in (torch.float32, torch.bfloat16):
        label = str(dtype).removeprefix("torch.")
        for distribution in _portable():
            directions, steps, count = 0, 0, 0
            for seed in range(2):
                on_cpu, on_device = _tensors(dtype, "cpu"), _tensors(dtype, bench.device)
                count += on_cpu.dim
                directions += differing(distribution.draw(on_cpu, (seed, 7)), distribution.draw(on_device, (seed, 7)))
                for block in (on_cpu, on_device):
                    Directional(distribution, (((seed, 7), 0.3), ((seed, 8), -2.0))).add_to(block, -1e-3)
                for cpu_param, device_param in zip(on_cpu.params, on_device.params, strict=True):
                    steps += differing(cpu_param, device_param)
            shared: Row = {"unit": "entries", "low": None, "high": None, "target": 0.0, "dim": count}
            name = f"{distribution.name}, {label}"
            yield {"what": f"bits that differ from the CPU's: directions, {name}", "value": float(directions), **shared}
            yield {"what": f"bits that differ from the CPU's: steps, {name}", "value": float(steps), **shared}
    sizes, clock = bench.sizes, timed_on(bench.device)
    no_aims = dict.fromkeys(COMPARED)  # those of the table are for one core of a CPU
    with torch.no_grad():
        for row in speedups(sizes.entries, 5 * sizes.repetitions, clock, no_aims, bench.device):
            if "fastest" not in row["what"]:
                yield row | _interval(row["raw"])


def _portable() -> list[Distribution]:
    return [
        Gaussian(generator="portable"), Rademacher(generator="portable"), Sparse(generator="portable"),
        Sphere(generator="portable"), LowRank(1, generator="portable"), LowRank(4, generator="portable"),
    ]  # fmt: skip


def _tensors(dtype: torch.dtype, device: str) -> Block:
    """A block of several tensors, one of them longer than a piece of the CPU, and lengths that divide no word."""
    generator, params = torch.Generator().manual_seed(0), []
    for shape in ((1031, 517), (129,), (63, 65), (7,)):
        params.append(torch.randn(shape, generator=generator).to(dtype).to(device))
    return Block("x", tuple(params))


def differing(a: Tensor, b: Tensor) -> int:
    """Number of entries whose bits differ: 0.0 and -0.0 do, and equal NaNs do not."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return int((a.cpu().contiguous().view(bits) != b.cpu().contiguous().view(bits)).sum())


def steps(bench: Bench, name: str) -> Iterator[Row]:
    """Ratios of steps to their parts, with and without fp32 masters; a model of random bfloat16 weights."""
    model = _random_model(bench, SHAPE_OF[name])
    blocks, device, sizes = partition(model), bench.device, bench.sizes
    base, peft = blocks["base"], list(blocks["peft"].params)
    for p in base.params:
        p.requires_grad_(False)
    label = SHAPE_OF[name] if bench.size == "full" else f"{SHAPE_OF[name]}, made small"
    shared: Row = {"model": label, "dim_x": base.dim, "dim_y": blocks["peft"].dim}
    for length in sizes.lengths:
        loss = loss_of(model, "candidates", rows=sizes.rows, length=length, device=device)
        parts, shared["length"] = parts_of(peft, loss), length
        for part, label in zip(parts, ("first-order step", "forward pass"), strict=True):
            yield from _seconds(label, part, sizes.repetitions, device, shared)
        for masters in (True, False):
            for name_of_step, (sides, hybrid, counts, target) in STEPS.items():
                release(device)
                step = _step(base, peft if hybrid else [], sides, masters, loss)
                peak = _peak(step, device)
                key, clock = name_of_step, timed_on(device)
                repetitions = interleaved(parts, {key: step}, sizes.repetitions, clock, seconds=30.0)[key]
                ratios = [seconds.step / _parts_of(seconds, counts) for seconds in repetitions]
                storage = "fp32 masters" if masters else "no masters"
                row = ratio_row(
                    f"{name_of_step}, {storage}", ratios, [seconds.step for seconds in repetitions], unit="parts"
                )
                yield row | _interval(ratios) | shared | {"target": target, "device_bytes": peak}
                del step  # its masters make room for the next one's


def _random_model(bench: Bench, shape: str) -> Any:
    """A language model of the shape under LoRA, made on the device: the CPU may lack the room."""
    from transformers import AutoModelForCausalLM

    changed = SMALL[SHAPES[shape][0]] if bench.size == "micro" else {}
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config_of(shape, **changed), dtype=torch.bfloat16).eval()
    return attach(model, "lora", seed=0, measured=False)


def _step(
    base: Block, peft: Sequence[Tensor], sides: Sides, masters: bool, loss: Callable[[], Tensor]
) -> Callable[[], Any]:
    oracle = ZerothOrder(MU, sides, LowRank(1), perturb="forward")
    groups: list[dict[str, Any]] = [{"params": base.params, "oracle": oracle, "name": "base"}]
    if peft:
        groups.append({"params": peft, "name": "peft"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # steps that bfloat16 would swallow: here they are timed, and lead nowhere
        optimizer = HybridSGD(groups, 1e-9, masters=masters)
    return lambda: optimizer.step(loss)


def _parts_of(seconds: Seconds, counts: tuple[int, int]) -> float:
    first_orders, forwards = counts
    return first_orders * seconds.first_order + forwards * seconds.forward


def _peak(job: Callable[[], Any], device: str) -> int | None:
    """Bytes of all tensors on a GPU at the peak of the second call; None on a CPU, whose peak is the process's."""
    job()
    if not device.startswith("cuda"):
        return None
    release(device)
    job()
    return int(torch.cuda.max_memory_allocated(device))


def _seconds(what: str, job: Callable[[], Any], repetitions: int, device: str, shared: Row) -> Iterator[Row]:
    peak, clock = _peak(job, device), timed_on(device)
    raw = [clock(job) for _ in range(repetitions)]
    numbers: Row = {"value": statistics.median(raw), "raw": raw, "target": None, "device_bytes": peak}
    yield {"what": what, "unit": "seconds", **numbers, **_interval(raw), **shared}


def _interval(raw: Sequence[float]) -> Row:
    """The 95 % interval of the median; none of fewer than 6 repetitions."""
    if len(raw) < 6:
        return {"low": None, "high": None}
    _, low, high = samples.median(raw)
    return {"low": low, "high": high}
