"""What the self-checks add to a measuring point of `micro`, in CPU time of one thread, at the default precision.

`make bench` runs it and writes benchmarks/results/speed_selfchecks.jsonl; `python -m benchmarks.test_selfcheck_cost
--repetitions 2 --out FILE` is a short look. A repetition measures the same point, base, LoRA module and their cross
block, without self-checks, with them, and without again; the ratio is that of the CPU times, and what else the machine
does meets both alike. It is reported; what is held to a tenth are the products, whose number does not depend on the
machine: one a block joins Lanczos' basis, and the norms use it.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest
import torch

from benchmarks.test_speed import Bench
from benchmarks.timing import ratio_row
from smoothlab.hessian import norms
from smoothlab.hessian.exact import ExactHessian
from smoothlab.records import Row, environment, load, run

MOST = 1.10
"""Largest ratio of a point's products with self-checks to those without."""
EACH = ("base", "peft")


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside the context norms are measured without self-checks."""
    with (
        mock.patch.object(norms, "check_products", lambda run: []),
        mock.patch.object(norms, "check_repeats", lambda hessian: None),
    ):
        yield


def point(bench: Bench, seed: int) -> tuple[float, int]:
    """CPU seconds of one point, graph and gradient included, and its products."""
    begun = time.process_time()
    hessian = ExactHessian(bench.loss, [bench.blocks[name] for name in EACH])
    found = hessian.norms(cross=[EACH], seed=(seed,))
    return time.process_time() - begun, found[-1].hvps


@dataclass(frozen=True)
class SelfcheckCost:
    """CPU time of a measuring point with self-checks relative to one without.

    Attributes:
        repetitions: points, each with probes of its own.
    """

    name: ClassVar[str] = "speed_selfchecks"
    unit: ClassVar[str] = "what"
    repetitions: int = 15

    def place(self, row: Row) -> int:
        """One for all rows."""
        return 0

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Ratios belong to one run: a stopped one starts again."""
        return []

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """The ratio of whole points, and that of their products."""
        bench = Bench.load("lora")
        point(bench, 0)  # memory is taken before the clock runs
        times: list[float] = []
        ratios: list[float] = []
        products: list[float] = []
        for seed in range(self.repetitions):
            with unchecked():
                before, without = point(bench, seed)
            seconds, hvps = point(bench, seed)
            with unchecked():
                after, _ = point(bench, seed)
            times.append(seconds)
            ratios.append(2 * seconds / (before + after))
            products.append(hvps / without)
        yield ratio_row("CPU time", ratios, times, unit="points without self-checks")
        yield ratio_row("products", products, [], unit="points without self-checks", target=MOST)


def measure(repetitions: int, out: Path) -> list[Row]:
    """Run on one thread, and record."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        told = environment(device="cpu", dtype="float32", threads=1)
        run(SelfcheckCost(repetitions), out, environment=told, overwrite=True)
    finally:
        torch.set_num_threads(threads)
    return load(out).to_dict("records")


def table(rows: Sequence[Row]) -> str:
    """The records as lines for reading."""
    return "\n".join(f"{row['what']:10s} {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in rows)


@pytest.mark.slow
def test_self_checks_add_at_most_a_tenth_of_a_points_products(capsys: pytest.CaptureFixture[str]) -> None:
    rows = measure(SelfcheckCost.repetitions, Path(__file__).with_name("results") / "speed_selfchecks.jsonl")
    with capsys.disabled():
        print("\n" + table(rows))
    (products,) = (row for row in rows if row["what"] == "products")
    assert max(products["raw"]) <= MOST


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=SelfcheckCost.repetitions)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_selfchecks.jsonl"))
    args = parser.parse_args()
    print(table(measure(args.repetitions, args.out)))


if __name__ == "__main__":
    main()
