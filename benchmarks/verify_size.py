"""How often does `smoothlab verify` accuse a right optimizer? `python -m benchmarks.verify_size`.

Right estimators, distribution by sides by average by seed, go through the whole suite; one row each. The suite is made
so that at most one run in a thousand is accused (Bonferroni over its comparisons), by z-scores whose tails are those of
a normal number only nearly: this measures it. HybridSGD is among them.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from smoothlab.conformance.adapter import Subject
from smoothlab.conformance.suite import answers
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.records import Row, environment, run
from smoothlab.zeroth.distributions import named
from smoothlab.zeroth.estimators import ZerothOrder

DISTRIBUTIONS = ("gaussian", "sphere", "rademacher", "coordinate", "sparse(0.5)", "lowrank(1)", "lowrank(2)")
AVERAGES: tuple[dict[str, Any], ...] = (
    {"sides": 2}, {"sides": 1}, {"sides": 2, "q": 3}, {"sides": 1, "q": 4, "average": "antithetic"},
)  # fmt: skip
ORTHOGONAL: tuple[dict[str, Any], ...] = tuple({"sides": s, "q": 3, "average": "orthogonal"} for s in (1, 2))


def subjects() -> dict[str, Callable[..., Any]]:
    """Makers of right optimizers by name."""
    made: dict[str, Callable[..., Any]] = {"HybridSGD": hybrid}
    for name in DISTRIBUTIONS:
        for options in AVERAGES:
            estimator = ZerothOrder(distribution=named(name), **options)
            made[estimator.name] = _maker(estimator)
    for options in ORTHOGONAL:
        estimator = ZerothOrder(**options)
        made[estimator.name] = _maker(estimator)
    return made


def hybrid(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3, exact: Sequence[Tensor] = ()) -> HybridSGD:
    """HybridSGD with a zeroth-order group, and an exact one where it is asked for."""
    groups: list[dict[str, Any]] = [{"params": params, "lr": lr, "oracle": ZerothOrder(mu)}]
    if exact:
        groups.append({"params": exact, "lr": lr})
    return HybridSGD(groups, seed=seed)


def _maker(estimator: ZerothOrder) -> Callable[..., ZerothOrder]:
    def make(params: Sequence[Tensor], lr: float, seed: int, mu: float = estimator.mu) -> ZerothOrder:
        return ZerothOrder(mu, estimator.sides, estimator.distribution, estimator.q, estimator.average)

    return make


@dataclass(frozen=True)
class VerifySize:
    """Runs of the whole suite on right optimizers.

    Attributes:
        runs: how many.
        seed: of the first; each run has seeds of its own.
    """

    name: ClassVar[str] = "verify_size"
    unit: ClassVar[str] = "run"
    runs: int = 400
    seed: int = 0

    def place(self, row: Row) -> int:
        """Number of the run."""
        return int(row["run"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Every row, as runs do not depend on each other."""
        return list({row["run"]: row for row in rows if row is not None}.values())

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """One row a run."""
        finished = {row["run"] for row in done}
        made = list(subjects().items())
        for number in range(self.runs):
            if number in finished:
                continue
            name, make = made[number % len(made)]
            # seeds of different runs share no optimizer: a suite takes fewer than 1,000
            begun, seed = time.process_time(), 1000 * (self.seed + number)
            found = list(answers(Subject(make, name), seed=seed))
            wrong = [answer.probe for answer in found if answer.verdict == "wrong"]
            scores = {answer.probe: abs(answer.z) for answer in found if answer.z is not None}
            worst = max(scores, key=lambda probe: scores[probe])
            yield {
                "run": number, "subject": name, "seed": seed, "wrong": ", ".join(wrong),
                "failed": any(answer.failed for answer in found), "z": scores[worst], "probe": worst,
                "evaluations": sum(answer.evaluations for answer in found),
                "cpu_seconds": round(time.process_time() - begun, 2),
            }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/verify_size.jsonl"))
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment = VerifySize(args.runs, args.seed)
    run(experiment, args.out, environment=environment(device="cpu", threads=1), overwrite=args.overwrite)


if __name__ == "__main__":
    main()
