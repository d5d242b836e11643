"""Probes of moments: does the update have the gradient's mean, scale and sign, and the closed forms' second moment?"""

from dataclasses import replace
from functools import partial

import numpy as np

from smoothlab.conformance.answer import Finding, Probe, of_score
from smoothlab.conformance.bench import Bench, Sample, closed_form
from smoothlab.stats import scores
from smoothlab.stats.scores import Score
from smoothlab.zeroth.expectations import Array, Shapes
from smoothlab.zeroth.moments import Taylor, mean, second_moment

EXACT = 1e-6
"""Relative residual of updates as multiples of differences up to which their factor c is well defined."""
ROUNDED = 1e-3
"""Relative residual of the same in 32-bit numbers."""


def expected(bench: Bench, sample: Sample) -> Array:
    """The mean that the update should have."""
    g = sample.problem.taylor.gradient
    if sample.still:
        return g
    return bench.target(sample.problem.params, g, bench.optimizer_for(sample.problem))


def _along(sample: Sample, m: Array) -> Array:
    """Components of the updates along m, over |m|: [seeds, steps], of mean 1."""
    return np.asarray(sample.updates @ m / (m @ m))


def sign(bench: Bench, shapes: Shapes) -> Finding:
    """Whether the step goes downhill on average: E <update, g> > 0."""
    sample = bench.quadratic(shapes)
    score = scores.clustered(_along(sample, expected(bench, sample)), 0.0)
    case = f"tensors {shapes}: E <update, g> / |g|^2 = {score.value:.3g}"
    words = f"E <update, g> / |g|^2 = {score.value:.3g}"
    if score.value == 0 and score.error == 0:
        return Finding("the update does not move along the gradient", z=-scores.LARGEST, case=case)
    # Only a step uphill is a wrong sign; one that is lost in noise is told by `scale`.
    return Finding(words, z=min(score.z, 0.0), measured=score.value, low=score.low, high=score.high, case=case)


def scale(bench: Bench, shapes: Shapes) -> Finding:
    """E <update, g> / |g|^2 = 1: along the gradient, and over all directions as the trace of E update g'."""
    sample = bench.quadratic(shapes)
    m = expected(bench, sample)
    score = scores.clustered(_along(sample, m), 1.0)
    case = f"tensors {shapes}: factor {score.value:.4g} along the gradient"
    sharper = _trace(bench, sample, shapes)
    if sharper is not None and sharper.error < score.error:
        score, case = sharper, f"tensors {shapes}: factor {sharper.value:.4g}, from the perturbations' lengths"
    return of_score(score, 1.0, f"{score.value:.4g} times the gradient", case)


def _trace(bench: Bench, sample: Sample, shapes: Shapes) -> Score | None:
    """c q E |D|^2 / tr E zz', which is 1 where updates are c sum_j s_j D_j: it varies much less than <update, g>."""
    if sample.still or sample.fit.residual > (EXACT if bench.eps < 1e-12 else ROUNDED):
        return None
    runs = [[float((d**2).sum()) for d in run] for run in sample.directions]
    if len({len(run) for run in runs}) > 1 or not sample.fit.c:
        return None
    trace = float(sample.problem.dim)
    claimed = bench.claimed(sample.problem)
    if claimed is not None:
        trace = float(claimed.covariance(sample.problem.taylor.tensors).sum())
    return scores.clustered(sample.fit.c * np.array(runs) / trace, 1.0)


def direction(bench: Bench, shapes: Shapes) -> Finding:
    """The mean update is parallel to the gradient, entry by entry."""
    sample = bench.quadratic(shapes)
    m = expected(bench, sample)
    return _entries(sample, m, "the mean update", shapes)


def _entries(sample: Sample, m: Array, subject: str, shapes: Shapes) -> Finding:
    """Entries of the updates less their component along m, each against 0."""
    across = sample.updates - _along(sample, m)[..., None] * m
    entries = [scores.clustered(across[..., i], 0.0) for i in range(len(m))]
    worst = int(np.argmax([abs(score.z) for score in entries]))
    size = float(np.linalg.norm(m))
    distance = float(np.linalg.norm([score.value for score in entries])) / size
    error = max(score.error for score in entries) / size
    case = f"tensors {shapes}: entry {worst} of {subject} is off by {entries[worst].value / size:.3g} |g|"
    return Finding(
        f"{subject} is off the gradient's line by {distance:.2g} |g|", z=entries[worst].z, measured=distance,
        reference=0.0, error=error, case=case,
    )  # fmt: skip


def spread(bench: Bench, shapes: Shapes, curved: bool = False) -> Finding:
    """E |update|^2 against the closed form of the distribution, sides and average, at the measured scale."""
    sample = bench.cubic(shapes) if curved else bench.quadratic(shapes)
    sample.check_varies()
    reference = bench.reference(bench.quadratic(shapes), shapes)
    if curved:
        reference = bench.reference(sample, shapes)
    truth = closed_form(lambda: second_moment(reference, sample.problem.taylor))
    squares = (sample.updates**2).sum(-1) / _gain(bench, shapes) ** 2
    score = scores.clustered(squares / truth, 1.0)
    name = reference.name
    words = f"E |update|^2 is {score.value:.3g} times that of the {name} estimator, {truth:.4g}"
    return of_score(score, 1.0, words, f"tensors {shapes}: {score.value:.3g} times {name}'s {truth:.4g}")


def _gain(bench: Bench, shapes: Shapes) -> float:
    """The scale, where it is wrong: another one is one fault, and not several."""
    scaled = scale(bench, shapes)
    if scaled.wrong(scores.limit(1e-3, 100)) and scaled.measured:
        return scaled.measured
    return 1.0


def bias(bench: Bench, shapes: Shapes) -> Finding:
    """The mean on a cubic, g + (mu^2/6) E T[z, z, z] z, where the bias is of the gradient's size."""
    sample = bench.cubic(shapes)
    sample.check_varies()
    reference = bench.reference(sample, shapes)
    m = closed_form(lambda: mean(reference, sample.problem.taylor))
    g = closed_form(lambda: mean(reference, bench.quadratic(shapes).problem.taylor))
    shift = float(np.linalg.norm(m - closed_form(lambda: mean(reference, _flat(sample)))) / np.linalg.norm(g))
    gain = _gain(bench, shapes)
    entries = [scores.clustered(sample.updates[..., i] / gain, m[i]) for i in range(len(m))]
    worst = int(np.argmax([abs(score.z) for score in entries]))
    size = float(np.linalg.norm(m))
    score = scores.clustered(_along(sample, m) / gain, 1.0)
    if abs(score.z) < abs(entries[worst].z):
        case = f"tensors {shapes}: entry {worst} of the mean is {entries[worst].value:.3g} and not {m[worst]:.3g}"
        error = max(entry.error for entry in entries) / size
        words = f"a bias of {shift:.2g} |g| in mu^2 as in the closed form"
        return Finding(words, z=entries[worst].z, measured=score.value, reference=1.0, error=error, case=case)
    return of_score(score, 1.0, f"a bias of {shift:.2g} |g| in mu^2, {score.value:.3g} times the closed form's mean",
                    f"tensors {shapes}: {score.value:.3g} times the closed form's mean")  # fmt: skip


def _flat(sample: Sample) -> Taylor:
    """The Taylor expansion without its third derivative."""
    return replace(sample.problem.taylor, third=None)


MOMENTS = (
    Probe("sign", "Does a step go downhill on average?", sign, comparisons=1, shrinks=True),
    Probe("scale", "Is the mean update 1 times the gradient?", scale, comparisons=2, shrinks=True),
    Probe("mean", "Is the mean update along the gradient, in every entry?", direction, comparisons=8, shrinks=True),
    Probe("second_moment", "Is the second moment that of the closed form?", spread, comparisons=1, shrinks=True),
    Probe("bias", "Is the bias in mu that of the closed form?", bias, comparisons=9, shrinks=True),
    Probe(
        "curvature", "Is it that of the closed form where the loss is curved?", partial(spread, curved=True),
        comparisons=1, shrinks=True,
    ),
)  # fmt: skip
