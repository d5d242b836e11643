"""Probes of number formats: are weights restored to the bit, does rounding let the perturbation through?"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from smoothlab.conformance import problems
from smoothlab.conformance.adapter import Unobservable
from smoothlab.conformance.answer import Finding, Probe, of_score
from smoothlab.conformance.bench import Bench
from smoothlab.conformance.problems import WEIGHTS, WIDE, TinyTransformer
from smoothlab.stats import scores
from smoothlab.zeroth.expectations import Array, Shapes

RESTORED_STEPS = 60
COARSE_SEEDS, COARSE_STEPS, COARSE_LR = 16, 24, 64.0
"""At this learning rate an update is long beside the weights, and rounding of the sum is small beside it."""


def restored(bench: Bench, shapes: Shapes, dtype: torch.dtype) -> Finding:
    """At the learning rate 0 no bit of the weights changes."""
    problem = problems.wide(shapes, bench.seed, dtype, scale=WEIGHTS)
    problem.reset()
    optimizer = bench.subject.build(problem.params, 0.0, bench.seed, model=problem, loss=problem)
    step = bench.subject.step_of(optimizer, problem.params, 0.0, bench.seed)
    home = [p.detach().clone() for p in problem.params]
    first = ""
    changed = total = 0
    for t in range(RESTORED_STEPS):
        step(problem)
        changed = sum(int((a != b).sum()) for a, b in zip(home, problem.params, strict=True))
        total = sum(p.numel() for p in home)
        if changed and not first:
            first = f"{_name(dtype)}, tensors {shapes}: {changed} of {total} weights are changed after step {t + 1}"
    if not problem.values:
        raise Unobservable("ignores the closure: no evaluation of the loss in any step")
    bench.evaluations += len(problem.values)
    fraction = changed / total
    words = f"{100 * fraction:.3g} % of the weights are changed after {RESTORED_STEPS} steps at the rate 0"
    return Finding(words, deviation=fraction, measured=fraction, reference=0.0, case=first)


def rounding(bench: Bench, shapes: Shapes, dtype: torch.dtype) -> Finding:
    """The scale in a 16-bit format, at the optimizer's own mu: what rounding lets through of perturbation and step."""
    problem = problems.wide(shapes, bench.seed, dtype, scale=WEIGHTS)
    runs = bench.runs(problem, COARSE_SEEDS, COARSE_STEPS, lr=COARSE_LR)
    m = problem.taylor.gradient
    if not bench.wide().still:
        m = bench.target(problem.params, m, bench.optimizer_for(problem))
    values = [[float(observed.update @ m / (m @ m)) for observed in run] for run in runs]
    score = scores.clustered(values, 1.0)
    displacements = [observed.displacements for run in runs for observed in run if len(observed.displacements)]
    moving = np.mean([(displacement != 0).mean() for displacement in displacements])
    words = f"{score.value:.3g} times the gradient in {_name(dtype)}; {100 * moving:.0f} % of the entries move"
    return of_score(score, 1.0, words, f"{_name(dtype)}, tensors {shapes}: {score.value:.3g} times the gradient")


def transformer(bench: Bench, shapes: Shapes) -> Finding:
    """The scale on a tiny transformer in fp32 whose embedding is its output layer too."""
    model = TinyTransformer(bench.seed)
    params = list(model.parameters())
    model().backward()
    g = _flat([p.grad for p in params if p.grad is not None])
    home = [p.detach().clone() for p in params]
    calls = [0]

    def closure(*ignored: object, **options: object) -> torch.Tensor:
        calls[0] += 1
        loss: torch.Tensor = model()
        return loss

    lr, values, m = 2.0**-4, [], g
    for seed in range(COARSE_SEEDS):
        run = []
        if not (seed and bench.repeats):  # one long run, where seeds have no effect
            model.zero_grad(set_to_none=True)
            optimizer = bench.subject.build(params, lr, bench.seed + seed, model=model, loss=closure)
            step = bench.subject.step_of(optimizer, params, lr, bench.seed + seed)
        if not bench.wide().still:
            m = bench.target(params, g, optimizer)
        for _ in range(COARSE_STEPS):
            step(closure)
            update = _flat(home) - _flat(params)
            run.append(float(update @ m / (m @ m)) / lr)
            with torch.no_grad():
                for p, value in zip(params, home, strict=True):
                    p.copy_(value)
        values.append(run)
    bench.evaluations += calls[0]
    score = scores.clustered(values, 1.0)
    words = f"{score.value:.3g} times the gradient of {len(g)} weights, embedding and output tied"
    return of_score(score, 1.0, words, f"a transformer of {len(g)} weights in fp32: {score.value:.3g} times")


def _flat(tensors: Sequence[torch.Tensor]) -> Array:
    return np.asarray(np.concatenate([t.detach().reshape(-1).double().numpy() for t in tensors]))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


PRECISION = (
    *(
        Probe(
            f"restored_{short}", f"Are weights restored to the bit in {_name(dtype)}, at the rate 0?",
            partial(restored, dtype=dtype), shapes=WIDE,
        )
        for short, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))
    ),
    *(
        Probe(
            f"rounding_{short}", f"Is the scale right in {_name(dtype)}?", partial(rounding, dtype=dtype),
            comparisons=1, shapes=WIDE,
        )
        for short, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    ),
    Probe("transformer", "Is the scale right on a tiny transformer with tied weights?", transformer, comparisons=1),
)  # fmt: skip
