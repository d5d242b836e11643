"""Anybody's optimizer as a step: given parameters and a closure, move the parameters once.

`make(params, lr=..., seed=...)` returns one of

- an object with `step(closure)`, such as a torch.optim.Optimizer;
- a smoothlab estimator, whose estimate is then subtracted, times lr;
- a function of the closure that makes the step.

`make` may be a class. Keywords that it does not accept are left out: without `seed` the global generators of torch,
numpy and Python are seeded instead. More keywords let more be observed: `mu` (perturbation), `model` (the module that
the closure runs), `loss` (the closure, for methods that start from a gradient), `exact` (parameters that get exact
gradients).
"""

import dataclasses
import inspect
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.conformance.problems import Polynomial
from smoothlab.errors import BadInput
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import named
from smoothlab.zeroth.estimators import Estimator, missing
from smoothlab.zeroth.expectations import Array

RESTORED = 1e-3
"""Displacement, over the longest of its step, up to which an evaluation is one at the start."""
Step = Callable[[Callable[..., Tensor]], object]
OPTIONAL = ("seed", "mu", "model", "loss", "exact")
"""Keywords of `make` that are passed where it accepts them."""
CLAIMS = ("distribution", "mu")
"""What an optimizer may say of itself: the name of its distribution of directions, and its perturbation."""


class Unobservable(Exception):
    """A question cannot be answered from outside; the message is why, one line."""


@dataclass(frozen=True)
class Subject:
    """The optimizer that is looked at.

    Attributes:
        make: makes it from parameters.
        name: what reports call it.
        claims: what it says of itself, see `CLAIMS`.
        seconds: longest time of a step.
    """

    make: Callable[..., Any]
    name: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if missing(self.make) is None and not inspect.isclass(self.make):
            object.__setattr__(self, "make", _maker_of(self.make))
        if not callable(self.make):
            raise BadInput(f"{self.make!r} cannot be verified: give a function or class NAME(params, lr=..., seed=...)")
        for claim in self.claims:
            if claim not in CLAIMS:
                raise BadInput(f"claim '{claim}' is unknown: use {', '.join(CLAIMS)}")
        if isinstance(self.claims.get("distribution"), str):
            distribution = named(self.claims["distribution"], "claimed distribution")
            object.__setattr__(self, "claims", {**self.claims, "distribution": distribution})

    @property
    def keywords(self) -> set[str]:
        """Arguments of `OPTIONAL` that the maker accepts."""
        try:
            parameters = inspect.signature(self.make).parameters
        except ValueError:  # a builtin
            return set()
        return {name for name in OPTIONAL if name in parameters}

    def build(
        self, params: Sequence[Tensor], lr: float, seed: int, *, model: nn.Module, loss: Callable[..., Tensor],
        mu: float | None = None, exact: Sequence[Tensor] = (),
    ) -> Any:  # fmt: skip
        """The optimizer that `make` returns for these parameters."""
        values = {"seed": seed, "mu": mu, "model": model, "loss": loss, "exact": list(exact)}
        options = {}
        for name in self.keywords:
            if name == "mu" and mu is None:
                continue
            options[name] = values[name]
        if "seed" not in options:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
        with in_one_line(self.seconds):
            return self.make(list(params), lr=lr, **options)

    def step_of(self, optimizer: Any, params: Sequence[Tensor], lr: float, seed: int) -> Step:
        """The step of what `make` returned, each call within the time limit and with errors of one line."""
        if missing(optimizer) is None:
            step: Step = EstimatorStep(optimizer, Block("theta", tuple(params)), lr, seed)
        elif callable(getattr(optimizer, "step", None)):
            step = optimizer.step
        elif callable(optimizer):
            step = optimizer
        else:
            kind = type(optimizer).__name__
            raise Unobservable(f"made a {kind}: return an object with step(closure), an estimator or a function")

        def limited(closure: Callable[..., Tensor]) -> object:
            with in_one_line(self.seconds):
                return step(closure)

        return limited


@dataclass
class EstimatorStep:
    """theta <- theta - lr ghat with an estimator of `smoothlab.zeroth`; step t has the seed (seed, t)."""

    estimator: Estimator
    block: Block
    lr: float
    seed: int
    steps: int = 0

    def __call__(self, closure: Callable[..., Tensor]) -> None:
        """One step."""
        self.estimator(closure, self.block, (self.seed, self.steps)).add_to(self.block, -self.lr)
        self.steps += 1


def _maker_of(estimator: Any) -> Callable[..., Any]:
    """A maker of one and the same estimator, with another mu where it is asked for."""
    if not (dataclasses.is_dataclass(estimator) and hasattr(estimator, "mu")):
        return lambda params, lr, seed: estimator

    def make(params: Sequence[Tensor], lr: float, seed: int, mu: float = estimator.mu) -> Any:
        return dataclasses.replace(estimator, mu=mu)  # type: ignore[type-var]

    return make


@dataclass
class Observed:
    """One step of an optimizer, as its closure and its parameters show it.

    Attributes:
        displacements: evaluation points less the start, [k, d], those that are not 0.
        values: the losses there, [k].
        start: the loss at the start, from its closed form.
        update: (theta before - theta after) / lr, [d]: the gradient that the step has used.
        returned: what the step returned.
        evaluations: how often the closure was called.
    """

    displacements: Array
    values: Array
    start: float
    update: Array
    returned: object
    evaluations: int


def observe(
    subject: Subject, problem: Polynomial, lr: float, seed: int, steps: int, mu: float | None = None
) -> list[Observed]:
    """`steps` steps of a new optimizer, each from the problem's home.

    Raises:
        Unobservable: the optimizer raises, takes too long, or never calls the closure.
    """
    problem.reset()
    optimizer = subject.build(problem.params, lr, seed, model=problem, loss=problem, mu=mu)
    step = subject.step_of(optimizer, problem.params, lr, seed)
    observations = []
    for _ in range(steps):
        problem.reset()
        returned = step(problem)
        observations.append(_observed(problem, lr, returned))
    if not any(observed.evaluations for observed in observations):
        raise Unobservable("ignores the closure: no evaluation of the loss in any step")
    return observations


def _observed(problem: Polynomial, lr: float, returned: object) -> Observed:
    after = problem.position().numpy()
    points, values = np.zeros((0, problem.dim)), np.array(problem.values)
    if problem.positions:
        points = torch.stack(problem.positions).numpy() - problem.home
    lengths = np.abs(points).max(1, initial=0)
    # A restore in place ends near the start, not at it: an evaluation there is no perturbation.
    away = lengths > RESTORED * lengths.max(initial=0)
    if not np.isfinite(after).all():
        raise Unobservable("leaves NaN or infinity in the parameters")
    return Observed(
        points[away], values[away], problem.value, (problem.home - after) / lr, returned, len(problem.values)
    )


@contextmanager
def in_one_line(seconds: float) -> Iterator[None]:
    """Inside the context the user's code runs: its errors, and too long a time, become one line.

    Raises:
        Unobservable: it raised, or took more than `seconds`.
    """
    try:
        with _alarm(seconds):
            yield
    except Unobservable:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        # torch built without CUDA names CUDA; built with it, on a machine without a GPU, it names NVIDIA's driver.
        if ("CUDA" in text or "NVIDIA" in text) and not torch.cuda.is_available():
            raise Unobservable(f"needs CUDA, which is not here: {text[:160]}") from error
        raise Unobservable(f"raises {type(error).__name__}: {text[:240]}") from error


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupt what runs too long; only the main thread of a process can."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise Unobservable(f"takes more than {seconds:g} s: use a faster setting, or a longer --step-seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def distribution_of(optimizer: Any) -> Distribution | None:
    """The distribution that an object says it has."""
    distribution = getattr(optimizer, "distribution", None)
    return distribution if isinstance(distribution, Distribution) else None
