"""Work and cost of a training run (--dry-run), from timed steps, a gradient and an evaluation."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from smoothlab.blocks import only_differentiable
from smoothlab.experiments.advise.advice import rates_of
from smoothlab.experiments.advise.predicting import expected_gradients
from smoothlab.experiments.advise.trying import BACKWARD, forwards_of_step
from smoothlab.experiments.finetune.config import FinetuneOptions, Rates, Training
from smoothlab.experiments.finetune.following import MINIBATCHES
from smoothlab.experiments.finetune.footprint import expected_peak
from smoothlab.experiments.finetune.options import measuring_steps, rates_used, unused
from smoothlab.experiments.finetune.setup import Setup, pairs
from smoothlab.hessian.gradients import gradient
from smoothlab.llm.peft_methods import DEFAULT_RANK, PEFT_METHODS
from smoothlab.trainer import Trainer

PRODUCTS = 20
"""Products a block that its norms usually take; twice that where a spectrum is awkward."""
COSTS = {"exact": 2.2, "central": 2.1, "forward": 1.2}
"""Gradients that a product costs."""
TIMED = 4
"""Steps that are made, of which the first looks closer than the others."""
DESCRIBED = 4
"""Trials whose rates are written out."""


def plan(run: Training, setup: Setup, trials: Sequence[Rates], saved: Sequence[int] | None = None) -> str:
    """Lines that name model, data, blocks, trials, points, minutes and memory.

    Args:
        run: as configured.
        setup: its model, blocks and data.
        trials: rates of each trial.
        saved: steps of the saved weights that are measured without training; None where the run trains.
    """
    kind, module = "language model", run.module
    if setup.dev.kind == "classifier":
        kind = "classifier"
    if module in PEFT_METHODS and PEFT_METHODS[module].ranked:
        module += f" of rank {run.rank or DEFAULT_RANK}"
    lines = [f"({note})" for note in unused(run)]
    lines.append(f"{run.model} ({kind}) on {run.data}, {run.method}, PEFT method {module}, {run.dtype} on {run.device}")
    seconds = 0.0
    if saved is None:
        training, seconds = _training(run, setup, trials)
        lines += training
    if run.measure:
        points, duration = _measuring(run, setup, measuring_steps(run) if saved is None else saved)
        lines += points
        seconds += len(trials) * duration
    memory_size = expected_peak(run, setup.blocks, setup.measured, steps_made=TIMED if saved is None else 0) / 2**30
    lines.append(f"  altogether about {seconds / 60:.1f} minutes, and {memory_size:.2f} GiB at the peak")
    return "\n".join(lines)


def _training(run: Training, setup: Setup, trials: Sequence[Rates]) -> tuple[list[str], float]:
    """What is trained and evaluated, and the seconds that it takes, from three timed steps and a timed evaluation."""
    trainer = setup.trainer(trials[0])
    trainer.update()  # the first step looks closer than the others, and warms up
    step = sum(_seconds(trainer.update) for _ in range(TIMED - 1)) / (TIMED - 1)
    total = len(trials) * run.steps * step
    lines, evaluations = [], ""
    for group in trainer.optimizer.param_groups:
        size = sum(p.numel() for p in group["params"])
        gradients = _gradients(run, group["oracle"])
        lines.append(f"  trains {group['name']:12s} {size:13,d} parameters, {gradients}, learning rate {group['lr']:g}")
    seconds = f"  a step takes {step:.3f} s here"
    if isinstance(run, FinetuneOptions):
        count = 1 + -(-run.steps // run.eval_every)  # step 0, and the last step whatever it is a multiple of
        evaluation = _seconds(lambda: setup.judge(setup.dev))
        total += evaluation * (len(trials) * count + len(setup.test) / len(setup.dev))
        if run.follow:
            line, duration = _following(run, trainer, step)
            lines.append(line)
            total += len(trials) * duration
        evaluations = f" and {count} evaluations"
        seconds += f", an evaluation {evaluation:.2f} s"
        lines.append(f"  selects by {len(setup.dev)} items, tests on {len(setup.test)}; {setup.served}")
    described = [_described(run, rates) for rates in trials[:DESCRIBED]]
    if len(trials) > DESCRIBED:
        described.append("...")
    lines += [f"  {len(trials)} trial(s) of {run.steps} steps{evaluations}: {', '.join(described)}", seconds]
    return lines, total


def _following(run: FinetuneOptions, trainer: Trainer, step: float) -> tuple[str, float]:
    """What --follow measures in a trial, and its seconds, from those of a step."""
    count = -(-run.steps // run.follow)
    gradients = sum(expected_gradients(trainer, rate.block, MINIBATCHES) for rate in rates_of(trainer))
    seconds = count * gradients * step * (1 + BACKWARD) / forwards_of_step(trainer.optimizer)
    return f"  sets the rates {count} times to follow the curvature, about {gradients:.0f} gradients each time", seconds


def _described(run: Training, rates: Rates) -> str:
    return " ".join(f"{name} {getattr(rates, name):g}" for name in rates_used(run.method))


def _gradients(run: Training, oracle: Any) -> str:
    if oracle is None:
        return "first-order"
    sides = {1: "one", 2: "two"}[run.sides]
    description = f"zeroth-order: {sides}-sided {run.distribution}, q = {run.q}"
    if run.moves_in_forward:
        description += ", moved inside the forward pass"
    if run.parallel > 1:
        description += f", {run.parallel} evaluations a pass"
    if run.variant != "plain":
        description += f", {run.variant}"
    return description


def _measuring(run: Training, setup: Setup, points: Sequence[int]) -> tuple[list[str], float]:
    """What is measured, and the seconds that it takes, from one timed gradient."""
    loss = setup.trainer().minibatch_loss(0)
    blocks = {block.name: block for block in setup.measured}
    with only_differentiable(setup.measured, setup.blocks.values()):
        gradient(loss, blocks)  # warms up: the first call allocates
        seconds = _seconds(lambda: gradient(loss, blocks))
    gradients = 0.0
    if run.protocol != "paper":
        gradients += 2 + PRODUCTS * COSTS[run.product] * len(blocks)
    if run.protocol != "estimated":
        gradients += (run.probes * 1.2 + 3) * len(blocks)
    if run.path:
        gradients += 3 + 3 * len(blocks)
    lines = [f"  measures {b.name:12s} {b.dim:11,d} parameters" for b in setup.measured]
    lines += [f"  measures cross block {a} x {b}" for a, b in pairs(run, setup.measured)]
    lines.append(
        f"  {len(points)} points at steps {', '.join(map(str, points))}, protocol {run.protocol}: about "
        f"{gradients:.0f} gradients of {seconds:.3f} s a point"
    )
    return lines, len(points) * gradients * seconds


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
