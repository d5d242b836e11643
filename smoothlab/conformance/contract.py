"""Probes of what estimators of smoothlab promise beside the step: only they expose it."""

from typing import Any

import numpy as np
import torch

from smoothlab.blocks import Block
from smoothlab.conformance import problems
from smoothlab.conformance.adapter import Unobservable, in_one_line
from smoothlab.conformance.answer import Finding, Probe
from smoothlab.conformance.bench import LR, Bench
from smoothlab.conformance.problems import WEIGHTS, WIDE, Polynomial
from smoothlab.zeroth.estimators import ZerothOrder, missing
from smoothlab.zeroth.expectations import Shapes

TRIES = 20


def _estimator(bench: Bench, problem: Polynomial) -> tuple[Any, Block]:
    """A new estimator for the problem.

    Raises:
        Unobservable: the optimizer is none.
    """
    estimator = bench.optimizer_for(problem)
    if missing(estimator) is not None:
        raise Unobservable("only an estimator of smoothlab exposes this")
    return estimator, Block("theta", tuple(problem.params))


def _zeroth_order(bench: Bench, problem: Polynomial) -> tuple[ZerothOrder, Block]:
    estimator, block = _estimator(bench, problem)
    if not isinstance(estimator, ZerothOrder):
        raise Unobservable(f"{type(estimator).__name__} does not take directions")
    return estimator, block


def given_directions(bench: Bench, shapes: Shapes) -> Finding:
    """Directions that are given are used, and an estimate along them stays when the next one is made."""
    problem = problems.wide(shapes, bench.seed, bench.dtype)
    estimator, block = _zeroth_order(bench, problem)
    rng = np.random.default_rng(bench.seed)
    z = [torch.from_numpy(rng.normal(size=block.dim)).to(bench.dtype) for _ in range(estimator.q)]
    problem.reset()
    with in_one_line(bench.subject.seconds):
        first = estimator(problem, block, 0, directions=z)
    rows = np.array([row.double().numpy() for row in z])
    points = torch.stack(problem.positions).numpy() / estimator.mu
    distance = max(float(np.abs(points - row).max(1).min()) for row in rows)
    directions = first.dense(block)
    span = np.linalg.qr(rows.T)[0]
    flat = directions.double().numpy()
    deviation = float(np.linalg.norm(flat - span @ (span.T @ flat)) / np.linalg.norm(flat))
    estimator(problem, block, 0, directions=[-2 * row for row in z])
    change = float((first.dense(block) - directions).abs().max())
    worst = max(distance, deviation, change)
    return Finding(f"given directions are used within {max(distance, deviation):.1e}, and stay within {change:.1e}",
                   deviation=worst, allowed=1024 * bench.eps / min(estimator.mu, 1.0), measured=worst, reference=0.0,
                   case=f"tensors {shapes}, {estimator.q} given directions: off by {worst:.2g}")  # fmt: skip


def value(bench: Bench, shapes: Shapes) -> Finding:
    """A one-sided estimator that is given f(x) does not evaluate it."""
    problem = problems.wide(shapes, bench.seed, bench.dtype)
    estimator, block = _estimator(bench, problem)
    if estimator.sides != 1:
        raise Unobservable("two-sided: f(x) is not needed")
    counts = []
    with in_one_line(bench.subject.seconds):
        estimator(problem, block, (bench.seed, 0))  # the first call looks at the loss more closely
        for options in ({}, {"value": problem.value}):
            problem.reset()
            estimator(problem, block, (bench.seed, 1), **options)
            counts.append(len(problem.values))
    evaluations_saved = counts[0] - counts[1]
    return Finding(f"{counts[1]} evaluations with f(x) given, {counts[0]} without",
                   deviation=float(max(1 - evaluations_saved, 0)),
                   measured=float(evaluations_saved), reference=1.0,
                   case=f"tensors {shapes}: {counts[1]} evaluations although f(x) is given")  # fmt: skip


def dense_in_memory(bench: Bench, shapes: Shapes) -> Finding:
    """An estimate is the same after the next one is made, and a step by it is the estimate itself."""
    problem = problems.wide(shapes, bench.seed, bench.dtype)
    estimator, block = _estimator(bench, problem)
    worst = 0.0
    for step in range(3):
        with in_one_line(bench.subject.seconds):
            first = estimator(problem, block, (bench.seed, step))
            dense = first.dense(block)
            estimator(problem, block, (bench.seed, step + 1))
            worst = max(worst, float((first.dense(block) - dense).abs().max() / (dense.abs().max() or 1)))
    return Finding(f"an estimate stays within {worst:.1e} when the next one is made", deviation=worst,
                   allowed=16 * bench.eps, measured=worst, reference=0.0,
                   case=f"tensors {shapes}, two estimates: the first changes by {worst:.2g}")  # fmt: skip


def applied(bench: Bench, shapes: Shapes) -> Finding:
    """In bf16, theta + alpha ghat is made in 32 bits and rounded once: off by half a spacing at most."""
    worst = 0.0
    problem = problems.wide(shapes, bench.seed, torch.bfloat16, scale=WEIGHTS)
    estimator, block = _estimator(bench, problem)
    for seed in range(TRIES):
        problem.reset()
        with in_one_line(bench.subject.seconds):
            estimate = estimator(problem, block, (bench.seed, seed))
            start, move = problem.position(), LR * estimate.dense(block).double()
            estimate.add_to(block, LR)
        exactly = start + move
        # Where both nearly cancel, what 32 bits round of them is more than a spacing of their sum.
        beyond = (problem.position() - exactly).abs() - 2.0**-21 * (start.abs() + move.abs())
        _, exponent = torch.frexp(exactly)
        spacing = torch.ldexp(torch.ones_like(exactly), exponent - 8)  # of bf16's 8 bits
        worst = max(worst, float((beyond / spacing).max()))
    return Finding(f"a step in bf16 is off by {worst:.4f} spacings of its numbers at most", deviation=worst,
                   allowed=0.5 + 1e-3, measured=worst, reference=0.5,
                   case=f"bf16, tensors {shapes}: off by {worst:.3f} spacings")  # fmt: skip


CONTRACT = (
    Probe("given", "Are given directions used?", given_directions, shapes=WIDE),
    Probe("value", "Is a given f(x) used?", value, shapes=WIDE),
    Probe("held", "Does an estimate stay when the next one is made?", dense_in_memory, shapes=WIDE),
    Probe("applied", "Is a step in bf16 rounded once?", applied, shapes=WIDE),
)
