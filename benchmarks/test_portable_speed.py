"""How fast portable directions are drawn on one core, against torch's own generator, seeded anew for each piece.

`python -m benchmarks.test_portable_speed` writes benchmarks/results/speed_portable.jsonl; `make bench` runs it too. The
calls alternate within one run: each repetition draws a piece of each kind once, and CPU time is what is compared. Where
other processes share the caches, the median of the ratios and the ratio of the fastest calls differ; both are recorded.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks.timing import Ratios, cpu_seconds, ratio_row, recorded
from smoothlab.blocks import Block
from smoothlab.records import Row
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian, Rademacher, Sparse
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.rng import CHUNK, GeneratorName

TARGETS = {
    ("gaussian", "torch gaussian"): 1.3,
    ("rademacher", "torch gaussian"): 20.0,
    ("rademacher", "torch rademacher"): None,
    ("sparse(0.1)", "torch sparse(0.1)"): None,
    ("lowrank(4)", "torch lowrank(4)"): None,
}
"""Portable directions, what they are compared with, and the least speedup that is aimed at."""


@dataclass(frozen=True)
class PortableSpeed(Ratios):
    """Speed of the portable generator.

    Attributes:
        repetitions: interleaved repetitions.
    """

    name: ClassVar[str] = "speed_portable"
    repetitions: int = 200

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """The speedup of each kind of direction: the median of alternating calls, and that of the fastest ones."""
        yield from speedups(CHUNK, self.repetitions, cpu_seconds, TARGETS)


def speedups(
    dim: int, repetitions: int, clock: Callable[[Callable[[], Any]], float],
    targets: Mapping[tuple[str, str], float | None], device: str = "cpu",
) -> Iterator[Row]:  # fmt: skip
    """Rows of the ratios in `targets`, for a block of `dim` entries, a multiple of 512 that is one piece."""
    block = Block("x", (torch.nn.Parameter(torch.empty(512, dim // 512, device=device)),))
    out = torch.empty(dim, device=device)
    seconds: dict[str, list[float]] = {}
    distributions: dict[str, Distribution] = {}
    for name in ("torch", "portable"):
        for distribution in _distributions(name):  # type: ignore[arg-type]
            distributions[f"{name} {distribution.name}".removeprefix("portable ")] = distribution
    for label in distributions:
        _time(distributions[label], block, out, 0, clock)  # tables are made before the clock runs
        seconds[label] = []
    for repetition in range(repetitions):
        for label in distributions:
            seconds[label].append(_time(distributions[label], block, out, repetition, clock))
    shared = {"unit": "times", "dim": dim}
    for (label, other), target in targets.items():
        ratios = [a / b for a, b in zip(seconds[other], seconds[label], strict=True)]
        what = f"portable {label} over {other}"
        yield ratio_row(f"speedup of {what}", ratios, seconds[label], target=target, **shared)
        fastest = [min(seconds[other]) / min(seconds[label])]
        yield ratio_row(f"speedup of {what}, fastest calls", fastest, [min(seconds[label])], target=target, **shared)


def _distributions(generator: GeneratorName) -> list[Distribution]:
    return [Gaussian(generator=generator), Rademacher(generator=generator), Sparse(generator=generator),
            LowRank(generator=generator)]  # fmt: skip


def _time(
    distribution: Distribution, block: Block, out: torch.Tensor, seed: int,
    clock: Callable[[Callable[[], Any]], float],
) -> float:  # fmt: skip
    """Seconds to draw one piece of a new direction: a block has many pieces, and makes its stream once."""
    stream = distribution.stream(block, (0, seed))
    (piece,) = stream.pieces()
    return clock(lambda: stream.fill(piece, out))


def measure(out: Path, repetitions: int = PortableSpeed.repetitions) -> list[Row]:
    """Run, record, and return the rows."""
    torch.set_num_threads(1)
    with torch.no_grad():
        return recorded(PortableSpeed(repetitions), out, instructions=torch.backends.cpu.get_cpu_capability())


def table(rows: Sequence[Row]) -> str:
    """The rows for reading."""
    lines = []
    for row in rows:
        speed = row["dim"] / row["seconds"] / 1e6
        lines.append(f"{row['what']:70s} {row['value']:6.2f} ({row['low']:.2f} to {row['high']:.2f}), {speed:.0f} M/s")
    return "\n".join(lines)


@pytest.mark.slow
def test_the_portable_generator_is_faster_than_torchs(tmp_path: Path) -> None:
    rows = {row["what"]: row["value"] for row in measure(tmp_path / "speed.jsonl")}
    assert rows["speedup of portable gaussian over torch gaussian, fastest calls"] > 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=PortableSpeed.repetitions)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_portable.jsonl"))
    args = parser.parse_args()
    print(table(measure(args.out, args.repetitions)))


if __name__ == "__main__":
    main()
