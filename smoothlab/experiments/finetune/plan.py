"""What a training run would do and cost (--dry-run), from timed steps, a gradient and an evaluation."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from smoothlab.blocks import differentiable
from smoothlab.experiments.finetune.config import FinetuneOptions, Rates, Training
from smoothlab.experiments.finetune.options import measuring_steps, unused, used
from smoothlab.experiments.finetune.setup import Setup, pairs
from smoothlab.hessian.gradients import gradient
from smoothlab.llm import memory
from smoothlab.llm.memory import TRAINED, VECTORS
from smoothlab.llm.peft_methods import DEFAULT_RANK, PEFT_METHODS

READING = 30 * 2**20
"""Bytes of pandas and the table of records."""
PRODUCTS = 20
"""Products a block that its norms usually take; twice that where a spectrum is awkward."""
COSTS = {"exact": 2.2, "central": 2.1, "forward": 1.2}
"""Gradients that a product costs."""


def plan(run: Training, trials: Sequence[Rates]) -> str:
    """Lines that name model, data, blocks, trials, points, minutes and memory."""
    setup = run.setup()  # type: ignore[attr-defined]
    trainer = setup.trainer(trials[0])
    trainer.update()  # the first step looks closer than the others, and warms up
    steps = [_seconds(trainer.update) for _ in range(3)]
    step = sum(steps) / len(steps)
    total = len(trials) * run.steps * step
    described = ", ".join(" ".join(f"{name} {getattr(r, name):g}" for name in used(run.method)) for r in trials[:4])
    kind = "classifier" if setup.dev.kind == "classifier" else "language model"
    module = run.module
    if module in PEFT_METHODS and PEFT_METHODS[module].ranked:
        module += f" of rank {run.rank or DEFAULT_RANK}"
    lines = [f"({note})" for note in unused(run)]
    lines.append(f"{run.model} ({kind}) on {run.data}, {run.method}, PEFT method {module}, {run.dtype} on {run.device}")
    for group in trainer.optimizer.param_groups:
        size = sum(p.numel() for p in group["params"])
        gradients = _gradients(run, group["oracle"])
        lines.append(f"  trains {group['name']:12s} {size:13,d} parameters, {gradients}, learning rate {group['lr']:g}")
    evaluations, seconds = "", f"  a step takes {step:.3f} s here"
    if isinstance(run, FinetuneOptions):
        looks = 1 + -(-run.steps // run.eval_every)
        evaluation = _seconds(setup.score_dev)
        total += evaluation * (len(trials) * looks + len(setup.test) / len(setup.dev))
        evaluations = f" and {looks} evaluations"
        seconds += f", an evaluation {evaluation:.2f} s"
        lines.append(f"  selects by {len(setup.dev)} items, tests on {len(setup.test)}; {setup.served}")
    more = ", ..." if len(trials) > 4 else ""
    lines += [f"  {len(trials)} trial(s) of {run.steps} steps{evaluations}: {described}{more}", seconds]
    if run.measure:
        points, duration = _measuring(run, setup)
        lines += points
        total += len(trials) * duration
    lines.append(f"  altogether about {total / 60:.1f} minutes, and {_memory(run, setup) / 2**30:.2f} GiB at the peak")
    return "\n".join(lines)


def _gradients(run: Training, oracle: Any) -> str:
    if oracle is None:
        return "first-order"
    return f"zeroth-order: {'one' if run.sides == 1 else 'two'}-sided {run.distribution}, q = {run.q}"


def _measuring(run: Training, setup: Setup) -> tuple[list[str], float]:
    """What is measured, and the seconds that it takes, from one timed gradient."""
    points = measuring_steps(run)
    loss = setup.trainer().minibatch_loss(0)
    blocks = {block.name: block for block in setup.measured}
    with differentiable(setup.measured):
        gradient(loss, blocks)
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


def _memory(run: Training, setup: Setup) -> float:
    """Bytes at the peak: that of the timed steps and evaluation, and what a run holds beside them.

    That is the best weights, which are kept on the CPU where there are no checkpoints, the probe vectors of the largest
    measured block, and the table of records that is read at the end.
    """
    peak = memory.peak(run.device)
    if run.device == "cpu":
        peak += READING
        if run.checkpoint is None and isinstance(run, FinetuneOptions):
            peak += sum(p.nbytes for p in setup.model.parameters() if p.requires_grad)
    if setup.measured:
        largest = max(setup.measured, key=lambda block: block.dim)
        vectors = 2
        if run.protocol != "paper":
            vectors = VECTORS - TRAINED
        peak += vectors * sum(p.nbytes for p in largest.params)
    return peak


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
