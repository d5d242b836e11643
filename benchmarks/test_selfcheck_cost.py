"""What the self-checks add to a measuring point of `micro`, at the default precision.

`make bench` runs it and writes benchmarks/results/speed_selfchecks.jsonl; `python -m benchmarks.test_selfcheck_cost
--repetitions 2 --out FILE` is a short look. A repetition measures the same point, base, LoRA module and their cross
block, without self-checks and with them. Self-checks cost products, one a block, which joins Lanczos' basis and is
saved again in part by fewer probes, and evaluations of the loss, whose CPU time is related to that of the rest of the
same point: what else the machine does meets both alike. Both together are held to a tenth of a point.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from scipy import stats

from benchmarks.test_speed import Bench
from benchmarks.timing import Ratios, recorded, table
from smoothlab.hessian import norms
from smoothlab.hessian.exact import ExactHessian
from smoothlab.records import Row

MOST = 1.10
"""Largest cost of a point with self-checks, relative to one without."""
EACH = ("base", "peft")


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside the context norms are measured without self-checks."""
    with mock.patch.object(norms, "check_products", lambda run: []):
        yield


@dataclass(frozen=True)
class PointCost:
    """What a measuring point takes, graph and gradient included.

    Attributes:
        seconds: CPU seconds.
        products: Hessian-vector products of all blocks.
        evaluations: evaluations of the loss beside them.
        evaluation_seconds: CPU seconds of these.
    """

    seconds: float
    products: int
    evaluations: int
    evaluation_seconds: float


def point_cost(bench: Bench, seed: int) -> PointCost:
    """Measure the point of `bench` with probes from `seed`."""
    evaluation_seconds: list[float] = []
    plain = ExactHessian.evaluate

    def timed_evaluation(hessian: ExactHessian) -> float:
        started = time.process_time()
        value = plain(hessian)
        evaluation_seconds.append(time.process_time() - started)
        return value

    with mock.patch.object(ExactHessian, "evaluate", timed_evaluation):
        started = time.process_time()
        hessian = ExactHessian(bench.loss, [bench.blocks[name] for name in EACH])
        estimates = hessian.norms(cross=[EACH], seed=(seed,))
        seconds = time.process_time() - started
    # The products of the cross block are among those of the larger block.
    products = sum(e.hvps for e in estimates if e.quantity == "frobenius" and e.block == e.wrt)
    return PointCost(seconds, products, len(evaluation_seconds), sum(evaluation_seconds))


def mean_row(what: str, values: Sequence[float], **more: Any) -> Row:
    """A record of the mean over repetitions, with Student's 95 % interval."""
    mean = statistics.mean(values)
    half = 0.0
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    spread = {"value": mean, "low": mean - half, "high": mean + half}
    return {"what": what, "target": None, "seconds": None, **spread, "raw": list(values), **more}


@dataclass(frozen=True)
class SelfcheckCost(Ratios):
    """Cost of a measuring point with self-checks relative to one without.

    Attributes:
        repetitions: points, each with probes of its own.
    """

    name: ClassVar[str] = "speed_selfchecks"
    repetitions: int = 60

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Products, evaluations and their share of the time, and the cost that follows from both."""
        bench = Bench.load("lora")
        point_cost(bench, 0)  # memory is taken before the clock runs
        pairs: list[tuple[PointCost, PointCost]] = []
        for seed in range(self.repetitions):
            with unchecked():
                unchecked_cost = point_cost(bench, seed)
            pairs.append((unchecked_cost, point_cost(bench, seed)))
        products = [checked.products / unchecked_cost.products for unchecked_cost, checked in pairs]
        shares = [c.evaluation_seconds / (c.seconds - c.evaluation_seconds) for _, c in pairs]
        costs = [ratio * (1 + share) for ratio, share in zip(products, shares, strict=True)]
        times = [checked.seconds / unchecked_cost.seconds for unchecked_cost, checked in pairs]
        unit = "points without self-checks"
        yield mean_row("products", products, unit=unit)
        yield mean_row("evaluations", [float(checked.evaluations) for _, checked in pairs], unit="evaluations a point")
        yield mean_row("evaluation share", shares, unit="time of the rest of the point")
        yield mean_row("cost", costs, unit=unit, target=MOST)
        yield mean_row("CPU time", times, unit=unit, seconds=statistics.median(c.seconds for _, c in pairs))


def measure(repetitions: int, out: Path) -> list[Row]:
    """Run on one thread, and record."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return recorded(SelfcheckCost(repetitions), out)
    finally:
        torch.set_num_threads(threads)


show = partial(table, names=("what",), number=".3f", more={"unit": ""})
"""The rows as a table; their intervals are those of means."""


@pytest.mark.slow
def test_self_checks_add_at_most_a_tenth_to_a_point(capsys: pytest.CaptureFixture[str]) -> None:
    rows = measure(SelfcheckCost.repetitions, Path(__file__).with_name("results") / "speed_selfchecks.jsonl")
    with capsys.disabled():
        print("\n" + show(rows))
    (cost,) = (row for row in rows if row["what"] == "cost")
    assert cost["high"] <= MOST


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=SelfcheckCost.repetitions)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_selfchecks.jsonl"))
    args = parser.parse_args()
    print(show(measure(args.repetitions, args.out)))


if __name__ == "__main__":
    main()
