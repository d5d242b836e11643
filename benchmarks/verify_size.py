"""How often does `smoothlab verify` accuse a right optimizer? `python -m benchmarks.verify_size`.

Right estimators, distribution by sides by average by seed, go through the suite; one row each. The suite is made so
that at most one run in a thousand is accused (Bonferroni over its comparisons), by z-scores whose tails are those of a
normal number only nearly: this measures it. By default estimates are made by Eq. (2) on many directions at once, and go
through the comparisons of moments, where the approximation lies; with --whole the optimizers themselves, HybridSGD
among them, go through all probes, at 10 s each.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from smoothlab.conformance import problems
from smoothlab.conformance.adapter import Subject
from smoothlab.conformance.bench import SEEDS, STEPS
from smoothlab.conformance.problems import SMALL
from smoothlab.conformance.suite import ALPHA, COMPARISONS, answers
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.records import Row, environment, run
from smoothlab.stats import scores
from smoothlab.zeroth.distributions import named
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.expectations import Array
from smoothlab.zeroth.moments import Taylor, mean, second_moment

DISTRIBUTIONS = ("gaussian", "sphere", "rademacher", "coordinate", "sparse(0.5)", "lowrank(1)", "lowrank(2)")
AVERAGES: tuple[dict[str, Any], ...] = (
    {"sides": 2}, {"sides": 1}, {"sides": 2, "q": 3}, {"sides": 1, "q": 4, "average": "antithetic"},
)  # fmt: skip
ORTHOGONAL: tuple[dict[str, Any], ...] = tuple({"sides": s, "q": 3, "average": "orthogonal"} for s in (1, 2))


def estimators() -> dict[str, ZerothOrder]:
    """Right estimators by name."""
    by_name = {}
    for name in DISTRIBUTIONS:
        for options in AVERAGES:
            estimator = ZerothOrder(distribution=named(name), **options)
            by_name[estimator.name] = estimator
    for options in ORTHOGONAL:
        estimator = ZerothOrder(**options)
        by_name[estimator.name] = estimator
    return by_name


def subjects() -> dict[str, Callable[..., Any]]:
    """Makers of right optimizers by name."""
    by_name: dict[str, Callable[..., Any]] = {"HybridSGD": hybrid}
    return by_name | {name: _maker(estimator) for name, estimator in estimators().items()}


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


DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "gaussian": lambda rng, n: rng.standard_normal((*n, 8)),
    "sphere": lambda rng, n: _long(rng.standard_normal((*n, 8))),
    "rademacher": lambda rng, n: rng.choice([-1.0, 1.0], (*n, 8)),
    "coordinate": lambda rng, n: 8**0.5 * np.eye(8)[rng.integers(8, size=n)] * rng.choice([-1.0, 1.0], (*n, 1)),
    "sparse(0.5)": lambda rng, n: 2**0.5 * rng.standard_normal((*n, 8)) * (rng.random((*n, 8)) < 0.5),
    "lowrank(1)": lambda rng, n: _low_rank(rng, n, 1),
    "lowrank(2)": lambda rng, n: _low_rank(rng, n, 2),
}
"""The distributions on the two 2 x 2 matrices of `SMALL`, drawn without smoothlab's code: [*n, 8]."""


def _long(z: Array) -> Array:
    return np.asarray(z * 8**0.5 / np.linalg.norm(z, axis=-1, keepdims=True))


def _low_rank(rng: np.random.Generator, n: tuple[int, ...], rank: int) -> Array:
    u, w = rng.standard_normal((2, *n, 2, 2, rank))
    return np.asarray(np.reshape(u @ np.swapaxes(w, -1, -2) / rank**0.5, (*n, 8)))


def directions(estimator: ZerothOrder, rng: np.random.Generator, n: int) -> Array:
    """The directions [n, q, 8] of n estimates."""
    z = DRAWS[estimator.distribution.name](rng, (n, estimator.q))
    if estimator.average == "antithetic":
        half = z[:, : estimator.q // 2]
        return np.concatenate([half, -half], 1)
    if estimator.average == "orthogonal":
        frame = np.linalg.qr(np.swapaxes(z, 1, 2))[0]
        return np.asarray(8**0.5 * np.swapaxes(frame, 1, 2) * rng.choice([-1.0, 1.0], (n, estimator.q, 1)))
    return z


def updates(estimator: ZerothOrder, f: Taylor, z: Array) -> Array:
    """Eq. (2) on f along z [n, q, 8]: [SEEDS, STEPS, 8]."""
    mu = estimator.mu
    c = z @ f.gradient
    if estimator.sides == 1:
        c = c + mu / 2 * np.einsum("nqi,nqi->nq", z @ f.hessian, z)
    if f.third is not None:
        bent = (z.reshape(-1, 8) @ f.third.reshape(8, 64)).reshape(*z.shape, 8)
        c = c + mu**2 / 6 * np.einsum("nqij,nqi,nqj->nq", bent, z, z)
    return np.einsum("nq,nqi->ni", c, z).reshape(SEEDS, -1, 8) / z.shape[1]


def moment_scores(estimator: ZerothOrder, seed: int) -> dict[str, float]:
    """The largest |z| of each probe of moments, on estimates of its own."""
    z_scores: dict[str, float] = {}
    rng = np.random.default_rng([seed, 7])
    plain = problems.quadratic(SMALL, seed, torch.float64).taylor
    curved = problems.cubic(SMALL, seed, torch.float64, estimator.mu).taylor
    for f, names in ((plain, ("scale", "mean", "second_moment")), (curved, ("along", "bias", "curvature"))):
        u = updates(estimator, f, directions(estimator, rng, SEEDS * STEPS))
        m, second = mean(estimator, f), second_moment(estimator, f)
        along = u @ m / (m @ m)
        entries = u - along[..., None] * m if f is plain else u - m
        z_scores[names[0]] = abs(scores.clustered(along, 1.0).z)
        z_scores[names[1]] = max(abs(scores.clustered(entries[..., i], 0.0).z) for i in range(8))
        z_scores[names[2]] = abs(scores.clustered((u**2).sum(-1) / second, 1.0).z)
    z_scores["bias"] = max(z_scores["bias"], z_scores.pop("along"))
    return z_scores


@dataclass(frozen=True)
class VerifySize:
    """Runs of the whole suite on right optimizers.

    Attributes:
        runs: how many.
        seed: of the first; each run has seeds of its own.
        whole: the optimizers themselves go through all probes.
    """

    name: ClassVar[str] = "verify_size"
    unit: ClassVar[str] = "run"
    runs: int = 400
    seed: int = 0
    whole: bool = False

    def place(self, row: Row) -> int:
        """Number of the run."""
        return int(row["run"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Every row, as runs do not depend on each other."""
        return list({row["run"]: row for row in rows if row is not None}.values())

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """One row a run."""
        finished = {row["run"] for row in done}
        makers = list(subjects().items())
        for number in range(self.runs):
            if number in finished:
                continue
            yield self._suite(number, *makers[number % len(makers)]) if self.whole else self._moments(number)

    def _suite(self, number: int, name: str, make: Callable[..., Any]) -> Row:
        # seeds of different runs share no optimizer: a suite takes fewer than 1,000
        started, seed = time.process_time(), 1000 * (self.seed + number)
        results = list(answers(Subject(make, name), seed=seed))
        wrong_probes = [answer.probe for answer in results if answer.verdict == "wrong"]
        z_scores = {answer.probe: abs(answer.z) for answer in results if answer.z is not None}
        largest = max(z_scores, key=lambda probe: z_scores[probe])
        return {
            "run": number, "subject": name, "seed": seed, "wrong": ", ".join(wrong_probes),
            "failed": any(answer.failed for answer in results), "z": z_scores[largest], "probe": largest,
            "evaluations": sum(answer.evaluations for answer in results),
            "cpu_seconds": round(time.process_time() - started, 2),
        }  # fmt: skip

    def _moments(self, number: int) -> Row:
        choices = list(estimators().items())
        started, (name, estimator) = time.process_time(), choices[number % len(choices)]
        z_scores = moment_scores(estimator, self.seed + number)
        largest = max(z_scores, key=lambda probe: z_scores[probe])
        limit = scores.limit(ALPHA, COMPARISONS)
        wrong_probes = ", ".join(probe for probe, z in z_scores.items() if z > limit)
        return {
            "run": number, "subject": name, "seed": self.seed + number, "wrong": wrong_probes, "failed": False,
            "z": z_scores[largest], "probe": largest, "cpu_seconds": round(time.process_time() - started, 2),
        }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/verify_size.jsonl"))
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment = VerifySize(args.runs, args.seed, args.whole)
    run(experiment, args.out, environment=environment(device="cpu", threads=1), overwrite=args.overwrite)


if __name__ == "__main__":
    main()
