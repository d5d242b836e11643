"""Throughput of Algorithm 1 on many replicas: beside the plain loop, and beside drawing its normal numbers alone.

`make bench` runs it and writes benchmarks/results/speed_engine.jsonl; `python -m benchmarks.test_engine_speed
--repetitions 3 --out FILE` is a short look. One thread. Everything is a ratio within one run: a repetition times every
item once between two drawings of as many normal numbers as the engine draws, of the same kind and in the same blocks.
Two plain loops are timed: `one_replica`, which takes any objective and is what the tests hold the engine to, and a loop
in numpy written for this objective alone, the fastest that a replica by itself is likely to get in Python.
"""

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from benchmarks.timing import Ratios, ratio_row, recorded, table, timed
from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.algorithm1.reference import one_replica
from smoothlab.algorithm1.sampling import BLOCK
from smoothlab.objectives import Objective, Oscillating, Quadratic, objective
from smoothlab.records import Row

SPEEDUP, SHARE = 25.0, 0.45  # least over `one_replica`, and least share of what the generator alone allows
DIMS = (10, 100, 1000)
TARGET = 100  # d_x that targets are held against
NUMPY = [f"quadratic, d = {d}" for d in DIMS]  # what the loop in numpy does


def cases(n: int) -> dict[str, tuple[Objective, Algorithm1]]:
    """What is timed: quadratics along rays, and a family whose values are computed."""
    algorithm = Algorithm1(eta_x=1e-4, eta_y=1e-2, epochs=2, mu=1e-3)
    quadratic = {d: objective(Quadratic(10.0), Quadratic(0.5), d_x=d, d_y=10, n=n, sigma=1.0) for d in DIMS}
    by_name = {f"quadratic, d = {d}": (f, algorithm) for d, f in quadratic.items()}
    f = quadratic[TARGET]
    by_name |= {f"{found_as}, d = {TARGET}": (f, replace(algorithm, **change)) for found_as, change in
              (("quadratic, one-sided", {"oracle": "one-sided"}), ("quadratic, sphere", {"distribution": "sphere"}),
               ("quadratic, rademacher", {"distribution": "rademacher"}))}  # fmt: skip
    values = objective(Oscillating(0.3, 1.75), Quadratic(0.5), d_x=TARGET, d_y=10, n=n, sigma=1.0)
    return by_name | {f"non-convex, values, d = {TARGET}": (values, algorithm)}


def drawing(count: int, replicas: int, dim: int) -> None:
    """As many normal numbers, drawn as the engine does and thrown away."""
    generator = torch.Generator().manual_seed(0)
    steps = max(1, BLOCK // (replicas * dim))
    block = torch.empty(steps, replicas, dim)
    for _ in range(-(-count // steps)):
        block.normal_(generator=generator)


def plain(f: Objective, algorithm: Algorithm1, replicas: int) -> None:
    """`one_replica` again and again, with draws of its own."""
    rng = np.random.default_rng(0)
    z0 = torch.ones(f.dim, dtype=torch.float64)
    for _ in range(replicas):
        orders = torch.from_numpy(rng.permuted(np.broadcast_to(np.arange(f.n), (algorithm.epochs, f.n)), axis=1))
        directions = torch.randn(algorithm.epochs, f.n, f.d_x).double()
        one_replica(algorithm, f, z0, orders, directions)


def plain_numpy(f: Objective, algorithm: Algorithm1, replicas: int) -> None:
    """Algorithm 1 on a quadratic without coupling, along rays, in numpy."""
    rng, d, shifts = np.random.default_rng(0), f.d_x, f.shifts.numpy()
    curvatures = f.hessian(torch.zeros(f.dim, dtype=torch.float64)).diagonal().numpy()
    for _ in range(replicas):
        z, total = np.ones(f.dim), 0.0
        for _ in range(algorithm.epochs):
            g = curvatures * z
            total += g @ g
            for i in rng.permutation(f.n):
                g = curvatures * z + shifts[i]
                v = rng.standard_normal(d, dtype=np.float32)
                z[:d] -= algorithm.eta_x * (g[:d] @ v) * v
                z[d:] -= algorithm.eta_y * g[d:]


@dataclass(frozen=True)
class EngineSpeed(Ratios):
    """Throughput of Algorithm 1.

    Attributes:
        repetitions: interleaved repetitions of every item.
        replicas: replicas of the engine at once.
        loops: replicas of a plain loop, whose time is scaled up.
        n: summands.
    """

    name: ClassVar[str] = "speed_engine"
    repetitions: int = 9
    replicas: int = 1000
    loops: int = 4
    n: int = 32

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """For each case the share of the generator's throughput, and the speedups over both plain loops."""
        torch.set_num_threads(1)
        for name, (f, algorithm) in cases(self.n).items():
            yield from self._case(name, f, algorithm)

    def _case(self, name: str, f: Objective, algorithm: Algorithm1) -> Iterator[Row]:
        steps, z0 = algorithm.epochs * f.n, torch.ones(f.dim, dtype=torch.float64)
        loops = {"one_replica": plain} | ({"numpy loop": plain_numpy} if name in NUMPY else {})
        kinds: dict[str, list[float]] = {kind: [] for kind in ("engine", "share", *loops)}

        def draw() -> None:
            drawing(steps, self.replicas, f.d_x)

        algorithm.run(f, z0, self.replicas)
        for loop in loops.values():
            loop(f, algorithm, 1)
        before = min(timed(draw) for _ in range(3))
        for _ in range(self.repetitions):
            seconds = timed(lambda: algorithm.run(f, z0, self.replicas))
            after = timed(draw)
            kinds["engine"].append(seconds)
            kinds["share"].append(statistics.mean((before, after)) / seconds)
            for kind, loop in loops.items():
                seconds_of_one = timed(lambda loop=loop: loop(f, algorithm, self.loops)) / self.loops  # type: ignore[misc]
                kinds[kind].append(seconds_of_one * self.replicas / seconds)
            before = timed(draw)
        has_target = f.d_x == TARGET and name.startswith(f"quadratic, d = {TARGET}")
        shared = {"case": name, "d_x": f.d_x, "d_y": f.d_y, "n": f.n, "replicas": self.replicas, "steps": steps}
        shared |= {"load": list(os.getloadavg()), "nanoseconds": statistics.median(kinds["engine"]) / (
            steps * self.replicas * f.d_x) * 1e9}  # fmt: skip
        unit = "of the normal generator's throughput"
        yield ratio_row(
            "share", kinds["share"], kinds["engine"], target=SHARE if has_target else None, **shared, unit=unit
        )
        for kind in loops:
            target = SPEEDUP if has_target and kind == "one_replica" else None
            yield ratio_row(f"speedup over {kind}", kinds[kind], [], target=target, **shared, unit="times")


def measure(experiment: EngineSpeed, out: Path) -> list[Row]:
    """Run, record, and return the rows."""
    return recorded(experiment, out, dtype="float64, normal numbers float32", threads=1)


show = partial(table, names=("case", "what"), number=".2f", more={"nanoseconds": ".2f"})
"""The rows as a table."""


@pytest.mark.slow
def test_throughput_reaches_its_targets(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(__file__).with_name("results") / "speed_engine.jsonl"
    rows = measure(EngineSpeed(), out)
    with capsys.disabled():
        print("\n" + show(rows))
    missed = [row for row in rows if row["target"] is not None and row["value"] < row["target"]]
    assert not missed, f"missed: {missed}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=EngineSpeed.repetitions)
    parser.add_argument("--replicas", type=int, default=EngineSpeed.replicas)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed_engine.jsonl"))
    args = parser.parse_args()
    print(show(measure(EngineSpeed(args.repetitions, args.replicas), args.out)))


if __name__ == "__main__":
    main()
