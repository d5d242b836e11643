"""Samples of steps that several probes look at, made once each, and what the optimizer is compared with."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.conformance import problems
from smoothlab.conformance.adapter import Observed, Subject, Unobservable, distribution_of, observe
from smoothlab.conformance.directions import Fit, Lines, Structure, fit, lines, still, structure
from smoothlab.conformance.identify import Identity, identify
from smoothlab.conformance.problems import SMALL, WIDE, Polynomial
from smoothlab.errors import BadInput
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.estimators import Average, ZerothOrder
from smoothlab.zeroth.expectations import Array, Shapes

SEEDS, STEPS = 40, 100
"""Optimizers, and steps of each, of a sample for moments; slow ones make fewer steps."""
WIDE_SEEDS, WIDE_STEPS = 10, 12
FEWEST = 4
SEED_OFFSET = 500
"""Distance of the seeds of a second look: a bench takes fewer."""
LR = 2.0**-7
"""Learning rate of all samples: a power of two, which adds no rounding."""
ORTHOGONAL = 1e-6


@dataclass(frozen=True)
class Sample:
    """Steps of several optimizers on one problem.

    Attributes:
        problem: the loss.
        looks: steps [seeds][steps].
    """

    problem: Polynomial
    observations: list[list[Observed]]

    @cached_property
    def flat(self) -> list[Observed]:
        """All steps in one list."""
        return [observed for run in self.observations for observed in run]

    @cached_property
    def updates(self) -> Array:
        """Updates [seeds, steps, d]."""
        return np.array([[observed.update for observed in run] for run in self.observations])

    @cached_property
    def structure(self) -> Structure:
        """Sides, directions and length of the steps."""
        return structure(self.flat)

    @cached_property
    def fit(self) -> Fit:
        """Updates as combinations of the directions."""
        return fit(self.flat, self.structure)

    @cached_property
    def directions(self) -> list[list[Array]]:
        """Displacements of the directions, [seeds][steps][q, d], of steps that are built like most."""
        runs = []
        for run in self.observations:
            steps: list[Lines | None] = [lines(observed, self.structure) for observed in run]
            runs.append([step.d for step in steps if step is not None])
        return runs

    @cached_property
    def still(self) -> bool:
        """Whether all updates are the same."""
        return still(self.updates.reshape(-1, self.problem.dim))

    @cached_property
    def frozen(self) -> bool:
        """Whether the perturbations are the same in all steps too: random numbers that do not change."""
        first = self.flat[-1].displacements
        for observed in self.flat:
            if not len(first) or observed.displacements.shape != first.shape:
                return False
            if np.abs(observed.displacements - first).max() > 1e-6 * np.abs(first).max():
                return False
        return True

    def check_varies(self) -> None:
        """Refuse what has no random directions to look at.

        Raises:
            Unobservable: all updates are the same.
        """
        if self.still and not self.frozen:
            raise Unobservable("the update is the same in all steps: there is no direction to look at")


@dataclass
class Bench:
    """One optimizer under test with its samples.

    Attributes:
        subject: the optimizer.
        seed: first seed of its runs, and the seed of the problems.
        dtype: number format of the parameters.
        budget: CPU seconds that one sample for moments may take.
        steps: most steps of each optimizer in it.
        evaluations: calls of closures so far.
    """

    subject: Subject
    seed: int = 0
    dtype: torch.dtype = torch.float64
    budget: float = 8.0
    steps: int = STEPS
    evaluations: int = 0
    _samples: dict[Any, Sample | Unobservable] = field(default_factory=dict)

    @property
    def eps(self) -> float:
        """Spacing of the numbers of the parameters at 1."""
        return torch.finfo(self.dtype).eps

    @cached_property
    def again(self) -> "Bench":
        """A bench for a second look: seeds and problems of its own, and four times as many steps."""
        return replace(
            self, seed=self.seed + SEED_OFFSET, budget=4 * self.budget, steps=4 * self.steps, evaluations=0, _samples={}
        )

    @property
    def spent(self) -> int:
        """Calls of closures so far, those of the second look included."""
        return self.evaluations + (self.again.evaluations if "again" in vars(self) else 0)

    def observe(
        self, problem: Polynomial, seed: int, steps: int, *, lr: float = LR, mu: float | None = None
    ) -> list[Observed]:
        """Steps of one new optimizer, counted."""
        observations = observe(self.subject, problem, lr, self.seed + seed, steps, mu)
        self.evaluations += sum(observed.evaluations for observed in observations)
        return observations

    def quadratic(self, shapes: Shapes = SMALL) -> Sample:
        """Steps on a quadratic whose curvature is small beside mu."""
        return self._cached(
            ("quadratic", shapes), lambda: self._moments(problems.quadratic(shapes, self.seed, self.dtype))
        )

    def cubic(self, shapes: Shapes = SMALL) -> Sample:
        """Steps on a cubic whose curvature a perturbation feels."""

        def make() -> Sample:
            mu = self.quadratic(shapes).structure.mu
            return self._moments(problems.cubic(shapes, self.seed, self.dtype, mu))

        return self._cached(("cubic", shapes), make)

    def wide(self, shapes: Shapes = WIDE) -> Sample:
        """Few steps on many entries, from the origin, where perturbations are not rounded."""

        def make() -> Sample:
            problem = problems.wide(shapes, self.seed, self.dtype)
            return Sample(problem, [self.observe(problem, s, WIDE_STEPS) for s in range(WIDE_SEEDS)])

        return self._cached(("wide", shapes), make)

    def _cached(self, key: Any, make: Callable[[], Sample]) -> Sample:
        """The sample, or what has kept it from being made, each known after the first time."""
        if key not in self._samples:
            try:
                self._samples[key] = make()
            except Unobservable as error:
                self._samples[key] = error
        sample = self._samples[key]
        if isinstance(sample, Unobservable):
            raise sample
        return sample

    def _moments(self, problem: Polynomial) -> Sample:
        """Sample of as many steps as the budget allows."""
        self.observe(problem, 0, 2)  # what is loaded at the first use is not timed
        started = time.process_time()
        self.observe(problem, 0, FEWEST)
        seconds_per_step = (time.process_time() - started) / FEWEST
        steps = int(min(max(self.budget / SEEDS / seconds_per_step, FEWEST), self.steps))
        return Sample(problem, self.runs(problem, SEEDS, steps))

    def runs(self, problem: Polynomial, seeds: int, steps: int, *, lr: float = LR) -> list[list[Observed]]:
        """Steps [seeds][steps] of optimizers with seeds of their own; where runs repeat, parts of one long run.

        That seeds have no effect is one fault, which `seeds` finds: other probes must not take copies for draws.
        """
        if not self.repeats:
            return [self.observe(problem, s, steps, lr=lr) for s in range(seeds)]
        observations = self.observe(problem, 0, seeds * steps, lr=lr)
        return [observations[start : start + steps] for start in range(0, len(observations), steps)]

    @cached_property
    def repeats(self) -> bool:
        """Whether runs with different seeds have the same directions, which change from step to step."""
        first, second = self.wide().observations[:2]
        return not self.wide().frozen and all(
            a.displacements.shape == b.displacements.shape and np.allclose(a.displacements, b.displacements)
            for a, b in zip(first, second, strict=True)
            if len(a.displacements)
        )

    @cached_property
    def optimizer(self) -> Any:
        """An optimizer from the maker, for what it says of itself."""
        return self.optimizer_for(problems.quadratic(SMALL, self.seed, self.dtype))

    def optimizer_for(self, problem: Polynomial) -> Any:
        """An optimizer for another problem: an estimator may belong to its tensors."""
        problem.reset()
        return self.subject.build(problem.params, LR, self.seed, model=problem, loss=problem)

    def identity(self, shapes: Shapes = SMALL) -> Identity:
        """The distribution that the directions have, as observed."""
        sample = self.quadratic(shapes)
        sample.check_varies()
        first = [d[0] for run in sample.directions for d in run]
        wide = [d[0] for run in self.wide().directions for d in run]
        return identify(np.array(first) / sample.structure.mu, np.array(wide), WIDE)

    def claimed(self, problem: Polynomial) -> Distribution | None:
        """The distribution that the optimizer says it has."""
        claim = self.subject.claims.get("distribution")
        return claim if claim is not None else distribution_of(self.optimizer_for(problem))

    def target(self, params: Sequence[Tensor], gradient: Array, optimizer: Any) -> Array:
        """The mean that updates should have where curvature is small beside mu: S^2 g, g where nothing is claimed."""
        claim = self.subject.claims.get("distribution", distribution_of(optimizer))
        if claim is None:
            return gradient
        return np.asarray(claim.covariance(Block("theta", tuple(params)).shapes) * gradient)

    @cached_property
    def mu(self) -> float | None:
        """The perturbation that the optimizer says it has."""
        mu = self.subject.claims.get("mu", getattr(self.optimizer, "mu", None))
        return float(mu) if isinstance(mu, int | float) else None

    def reference(self, sample: Sample, shapes: Shapes) -> ZerothOrder:
        """The estimator of `smoothlab.zeroth` whose closed forms the optimizer should have.

        Raises:
            Unobservable: its distribution is none that is known.
        """
        optimizer = self.optimizer_for(sample.problem)
        if type(optimizer) is ZerothOrder:
            return replace(optimizer, layers=None)
        sample.check_varies()
        structure = sample.structure
        distribution = self.claimed(sample.problem)
        if distribution is None:
            distribution = self.identity(shapes).distribution
        if distribution is None:
            raise Unobservable(f"no closed form: {self.identity(shapes).words}")
        average: Average = "plain"
        if self.orthogonal(sample):
            distribution, average = Gaussian(), "orthogonal"
        return ZerothOrder(structure.mu, structure.sides, distribution, structure.q, average)

    def orthogonal(self, sample: Sample) -> bool:
        """Whether the directions of each step are orthogonal, and of one length."""
        if sample.structure.q == 1:
            return False
        for run in sample.directions:
            for d in run:
                gram = d @ d.T
                deviation = np.abs(gram - gram[0, 0] * np.eye(len(d))).max()
                if deviation > ORTHOGONAL * math.sqrt(float(np.trace(gram @ gram))):
                    return False
        return True


def closed_form(compute: Callable[[], Any]) -> Any:
    """The result of a closed form.

    Raises:
        Unobservable: there is none for this estimator.
    """
    try:
        return compute()
    except BadInput as error:
        raise Unobservable(str(error)) from error
