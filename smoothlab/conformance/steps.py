"""Probes of single steps: directions, coefficients, streams of random numbers."""

from collections.abc import Callable, Sequence

import numpy as np

from smoothlab.conformance import problems
from smoothlab.conformance.adapter import Unobservable
from smoothlab.conformance.answer import Finding, Probe
from smoothlab.conformance.bench import LR, Bench, Sample
from smoothlab.conformance.directions import chance, lines, outside, overlap, ranks, unit
from smoothlab.conformance.identify import agrees
from smoothlab.conformance.problems import SMALL, WIDE
from smoothlab.stats import scores
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.expectations import Array, Shapes
from smoothlab.zeroth.low_rank import LowRank

ROUNDINGS = 1024
"""Roundings, in units of eps, that a few operations on a direction may add up to."""
ALIKE = 1 - 1e-6
"""Squared cosine from which two directions count as one."""


def _moving(bench: Bench, shapes: Shapes) -> Sample:
    sample = bench.wide(shapes)
    sample.check_varies()
    assert sample.structure.q  # raises where there is no perturbation
    return sample


def along(bench: Bench, shapes: Shapes) -> Finding:
    """The update lies in the span of the perturbations of its own step."""
    sample = _moving(bench, shapes)
    # Over the root mean square of all updates: one along a level line of the loss is nothing but rounding.
    size = float(np.sqrt((sample.updates**2).sum(-1).mean())) or 1.0
    share = max(map(outside, sample.flat)) / size
    allowed = ROUNDINGS * bench.eps * (1 + 1 / max(sample.fit.typical, 1e-300))
    words = f"{share:.1e} of an update is outside the span of its perturbations"
    return Finding(words, deviation=share, allowed=allowed, measured=share, reference=0.0,
                   case=f"tensors {shapes}, one step: {share:.2g} of the update is off its perturbations")  # fmt: skip


def coefficients(bench: Bench, shapes: Shapes) -> Finding:
    """Update = c sum_j s_j D_j, s_j the difference of losses along D_j, with one c for all steps."""
    sample = _moving(bench, shapes)
    fitted = sample.fit
    allowed = ROUNDINGS * bench.eps * (1 + 1 / max(fitted.typical, 1e-300))
    words = f"update = {fitted.c:.4g} sum of difference x displacement, within {fitted.residual:.1e}"
    if sample.structure.sides == 1:
        words += f"; differences to {fitted.baseline}"
    return Finding(words, deviation=fitted.residual, allowed=allowed, measured=fitted.residual, reference=0.0,
                   case=f"tensors {shapes}, one step: off by {fitted.residual:.2g} of an update's length")  # fmt: skip


def mirrored(bench: Bench, shapes: Shapes) -> Finding:
    """Both points of a two-sided difference are at the same distance; with one side the loss at x is asked for."""
    sample = _moving(bench, shapes)
    structure = sample.structure
    if structure.sides == 1:
        optimizer = bench.optimizer_for(sample.problem)
        if isinstance(optimizer, ZerothOrder) and (optimizer.sides == 2 or optimizer.average == "antithetic"):
            return Finding("no pairs", deviation=1.0, case=f"tensors {shapes}, one step: points are in no pairs x +- D")
        raise Unobservable(f"one-sided: {structure.q} points x + D a step, without x - D")
    steps = [lines(observed, structure) for observed in sample.flat]
    worst = max(step.asymmetry for step in steps if step is not None)
    words = f"{structure.q} pairs x +- D a step, equal within {worst:.1e}"
    return Finding(words, deviation=worst, allowed=ROUNDINGS * bench.eps, measured=worst, reference=0.0,
                   case=f"tensors {shapes}, one step: x + D and x - D differ in distance by {worst:.2g}")  # fmt: skip


def distribution(bench: Bench, shapes: Shapes) -> Finding:
    """The distribution of the directions, told apart at d = 8, and the one that the optimizer says it has."""
    sample = bench.quadratic(shapes)
    identity = bench.identity(shapes)
    claimed = bench.claimed(sample.problem)
    if claimed is None:
        if identity.distribution is None:
            raise Unobservable(identity.words)
        return Finding(identity.words, z=identity.z)
    name = claimed.name
    optimizer = bench.optimizer_for(sample.problem)
    if isinstance(optimizer, ZerothOrder) and optimizer.average == "orthogonal":
        name = "sphere, orthogonal"
        fits = identity.words == "sphere" and bench.orthogonal(sample)
    else:
        fits = agrees(identity, claimed)
    if not fits:
        return Finding(f"{identity.words}, not {name}", z=scores.LARGEST,
                       case=f"tensors {shapes}: the directions are {identity.words}, and not {name}")  # fmt: skip
    words = identity.words
    return Finding(f"{words}, as it says", z=identity.z, case=f"tensors {shapes}: {words} in part only")


def length(bench: Bench, shapes: Shapes) -> Finding:
    """E |D|^2 = mu^2 tr E zz', with the mu that the optimizer says it has."""
    sample = _moving(bench, shapes)
    if bench.mu is None:
        raise Unobservable(f"no mu is stated; perturbations have the mean square {sample.structure.mu**2:.3g}")
    trace = float(sample.problem.dim)
    claimed = bench.claimed(sample.problem)
    if claimed is not None:
        trace = float(claimed.covariance(sample.problem.taylor.tensors).sum())
    runs = [[float((d**2).sum(1).mean()) for d in run] for run in sample.directions]
    score = scores.clustered(np.array(runs) / (bench.mu**2 * trace), 1.0)
    words = f"mean square {score.value:.4g} times mu^2 = {bench.mu**2:.3g}"
    return Finding(words, z=score.z, measured=score.value, reference=1.0, low=score.low, high=score.high,
                   error=score.error, case=f"tensors {shapes}: {words}")  # fmt: skip


def doubled(bench: Bench, shapes: Shapes) -> Finding:
    """With the same seed and 2 mu, the displacements are twice those with mu."""
    if "mu" not in bench.subject.keywords:
        raise Unobservable("mu is no keyword of the maker")
    sample = _moving(bench, shapes)
    mu = bench.mu or 1e-3
    narrow = bench.observe(sample.problem, 0, 3, mu=mu)
    double = bench.observe(sample.problem, 0, 3, mu=2 * mu)
    worst = 0.0
    for a, b in zip(narrow, double, strict=True):
        if a.displacements.shape != b.displacements.shape:
            raise Unobservable("with another mu, a step evaluates the loss another number of times")
        deviation = np.abs(b.displacements - 2 * a.displacements).max()
        worst = max(worst, float(deviation / np.abs(b.displacements).max()))
    return Finding(f"D(2 mu) = 2 D(mu) within {worst:.1e}", deviation=worst, allowed=ROUNDINGS * bench.eps,
                   measured=worst, reference=0.0,
                   case=f"tensors {shapes}, mu = {mu:g}, {2 * mu:g}: off by {worst:.2g} D")  # fmt: skip


def tensors(bench: Bench, shapes: Shapes) -> Finding:
    """Equal-shaped tensors get different numbers: squared cosines of their parts average to chance."""
    sample = _moving(bench, shapes)
    d = np.array([line for run in sample.directions for step in run for line in step])
    size = int(np.prod(shapes[0]))
    first, second = d[:, :size], d[:, size : 2 * size]
    cosines = overlap(first, second)
    if len(cosines) < 10:
        raise Unobservable("a direction moves one tensor at a time")
    score = scores.mean_of_bounded(cosines, chance(first, second))
    words = f"squared cosine {cosines.mean():.2g} between two tensors of {size} entries, {1 / size:.2g} by chance"
    return Finding(words, z=score, measured=float(cosines.mean()), reference=1 / size,
                   case=f"tensors {shapes[:2]}, one step: {words}")  # fmt: skip


Pairs = tuple[Array, Array]


def _independent(sample: Sample, pairs: dict[str, Pairs]) -> Finding:
    """Squared cosines of pairs of directions at each lag against chance."""
    all_lines = np.array([line for run in sample.directions for step in run for line in step])
    by_chance = chance(all_lines, all_lines)
    scored = []
    for lag, (a, b) in pairs.items():
        if not len(a):
            continue
        cosines = overlap(a, b)
        scored.append((scores.mean_of_bounded(cosines, by_chance), float(cosines.mean()), lag))
    if not scored:
        raise Unobservable("too few steps of one structure")
    z, value, lag = max(scored)
    words = f"squared cosine {value:.2g} at most, {by_chance:.2g} by chance"
    return Finding(words, z=z, measured=value, reference=by_chance, case=f"{lag}: squared cosine {value:.2g}")


def in_steps(bench: Bench, shapes: Shapes) -> Finding:
    """Directions of different steps, and of one step, are independent."""
    sample = _moving(bench, shapes)
    pairs: dict[str, Pairs] = {}
    for lag in (1, 2, 3):
        ends = []
        for run in sample.directions:
            for t in range(0, len(run) - lag, lag + 1):  # no direction is in two pairs
                ends.append((run[t][0], run[t + lag][0]))
        pairs[f"steps t and t + {lag} of one seed"] = _stacked(ends)
    if sample.structure.q > 1:
        # orthogonal ones overlap less than by chance, which is no fault
        within = [(step[0], step[1]) for run in sample.directions for step in run]
        pairs["two directions of one step"] = _stacked(within)
    return _independent(sample, pairs)


def in_seeds(bench: Bench, shapes: Shapes) -> Finding:
    """No seed repeats directions of another one, in the same step or a later one."""
    sample = _moving(bench, shapes)
    pairs: dict[str, Pairs] = {}
    for shift in (-2, -1, 0, 1, 2):
        ends = []
        for s in range(0, len(sample.directions) - 1, 2):
            a, b = sample.directions[s], sample.directions[s + 1]
            for t in range(len(a)):
                if 0 <= t + shift < len(b):
                    ends.append((a[t][0], b[t + shift][0]))
        pairs[f"step t of seed s and step t {shift:+d} of seed s + 1"] = _stacked(ends)
    finding = _independent(sample, pairs)
    repeated = _repeated(sample)
    if repeated and finding.z is not None and finding.z < scores.LARGEST:
        return Finding(repeated, z=scores.LARGEST, case=repeated)
    return finding


def _repeated(sample: Sample) -> str:
    """Two runs that share a direction, where chance does not make two alike; "" if none do."""
    rows = [(s, t, line) for s, run in enumerate(sample.directions) for t, step in enumerate(run) for line in step]
    d = unit(np.array([line for _, _, line in rows]))
    if (np.abs(d) > 0).sum(1).max() < 4:
        return ""  # few entries move: directions agree by chance
    square = (d @ d.T) ** 2
    for i, j in np.argwhere(np.triu(square > ALIKE, 1)).tolist():
        (s, t, _), (other, later, _) = rows[i], rows[j]
        if s != other:
            return f"seed {s} in step {t} and seed {other} in step {later} have the same direction"
    return ""


def _stacked(ends: Sequence[tuple[Array, Array]]) -> Pairs:
    if not ends:
        return np.zeros((0, 1)), np.zeros((0, 1))
    return np.array([a for a, _ in ends]), np.array([b for _, b in ends])


def rank(bench: Bench, shapes: Shapes) -> Finding:
    """Rank of the perturbations and updates of matrices, and that of the claim."""
    sample = _moving(bench, shapes)
    lines_of = [line for run in sample.directions for step in run for line in step]
    largest = max(max(ranks(line, shapes)) for line in lines_of)
    updates = max(max(ranks(observed.update, shapes)) for observed in sample.flat)
    words = f"perturbations of rank {largest}, updates of rank {updates} on matrices {shapes[0]}"
    claimed = bench.claimed(sample.problem)
    if not isinstance(claimed, LowRank):
        return Finding(words, deviation=0.0)
    expected = min(claimed.rank, *shapes[0])
    return Finding(words, deviation=float(abs(largest - expected)), measured=float(largest), reference=float(expected),
                   case=f"matrix {shapes[0]}: rank {largest} where {expected} is claimed")  # fmt: skip


def deterministic(bench: Bench, shapes: Shapes) -> Finding:
    """The same seed gives the same updates to the bit, another one does not."""
    sample = bench.wide(shapes)
    repeated = bench.observe(sample.problem, 0, 3)
    first = np.array([observed.update for observed in sample.observations[0][:3]])
    again = np.array([observed.update for observed in repeated])
    difference = float(np.abs(first - again).max() / (np.abs(first).max() or 1))
    source = "of the maker" if "seed" in bench.subject.keywords else "of the global generators"
    case = f"tensors {shapes}, seed {bench.seed}: two runs differ by {difference:.2g}"
    return Finding(f"with the seed {source}, updates repeat within {difference:.1e}", deviation=difference,
                   measured=difference, reference=0.0, case=case)  # fmt: skip


def layout(bench: Bench, shapes: Shapes) -> Finding:
    """Parameters in memory of another order (transposed) move as others do."""
    problem = problems.wide(shapes, bench.seed, bench.dtype, transposed=True)
    observations = bench.observe(problem, 0, 4)
    plain = bench.wide(shapes)
    scale = max(float(np.abs(observed.update).max()) for observed in plain.flat) or 1.0
    worst, number = 0.0, 0
    for observed in observations:
        if plain.still:
            difference = float(np.abs(observed.update - plain.flat[0].update).max()) / scale
            worst = max(worst, difference)
            continue
        step = lines(observed, plain.structure)
        if step is None:
            continue
        number += 1
        u = plain.fit.c * (_slopes(plain, step.slope, observed.start) @ step.d)
        worst = max(worst, float(np.abs(observed.update - u).max()) / scale)
    allowed = max(100 * plain.fit.residual, ROUNDINGS * bench.eps / max(plain.fit.typical, 1e-300))
    return Finding(f"updates of transposed matrices are those of others within {worst:.1e}", deviation=worst,
                   allowed=allowed, measured=worst, reference=0.0,
                   case=f"a transposed matrix {shapes[0]}, one step: off by {worst:.2g}")  # fmt: skip


def _slopes(sample: Sample, slope: Array, start: float) -> Array:
    """Slopes to the baseline that the sample's steps have."""
    changes: dict[str, Callable[[], Array]] = {
        "f(x)": lambda: slope, "the mean loss": lambda: slope - slope.mean(), "nothing": lambda: slope + start,
    }  # fmt: skip
    return changes[sample.fit.baseline]()


def returned(bench: Bench, shapes: Shapes) -> Finding:
    """What a step returns is a loss: within the range of the losses that it saw."""
    sample = bench.wide(shapes)
    worst = 0.0
    for observed in sample.flat:
        try:
            value = float(observed.returned)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            kind = type(observed.returned).__name__
            raise Unobservable(f"a step returns no loss, but a {kind}") from None
        losses = [observed.start, *observed.values]
        excess = max(value - max(losses), min(losses) - value, 0.0)
        worst = max(worst, excess / (max(map(abs, losses)) or 1.0))
    return Finding(f"the returned loss is among those of the step within {worst:.1e}", deviation=worst,
                   allowed=ROUNDINGS * bench.eps, case=f"tensors {shapes}, one step: off by {worst:.2g}")  # fmt: skip


def accumulated(bench: Bench, shapes: Shapes) -> Finding:
    """A step with two closures is a step with their mean."""
    problem = problems.wide(shapes, bench.seed, bench.dtype)
    whole_update = bench.observe(problem, 0, 1)[0].update
    problem.reset()
    optimizer = bench.subject.build(problem.params, LR, bench.seed, model=problem, loss=problem)
    if "Sequence" not in str(getattr(getattr(optimizer, "step", None), "__annotations__", {}).get("closure", "")):
        raise Unobservable("a step takes one closure")
    optimizer.step([lambda: problem() * 0.5, lambda: problem() * 1.5])
    parts = (problem.home - problem.position().numpy()) / LR
    difference = float(np.abs(parts - whole_update).max() / (np.abs(whole_update).max() or 1))
    allowed = ROUNDINGS * bench.eps / max(bench.wide(shapes).fit.typical, 1e-300)
    words = f"two parts of a minibatch make the step of the whole within {difference:.1e}"
    return Finding(words, deviation=difference, allowed=allowed, measured=difference, reference=0.0,
                   case=f"two closures: off by {difference:.2g}")  # fmt: skip


def exact(bench: Bench, shapes: Shapes) -> Finding:
    """Parameters with exact gradients move by the gradient at the start, where the others stand at x."""
    if "exact" not in bench.subject.keywords:
        raise Unobservable("no part with exact gradients: `exact` is no keyword of the maker")
    problem = problems.quadratic(shapes, bench.seed, bench.dtype)
    problem.reset()
    *zeroth, last = problem.params
    optimizer = bench.subject.build(zeroth, LR, bench.seed, model=problem, loss=problem, exact=[last])
    step = bench.subject.step_of(optimizer, zeroth, LR, bench.seed)
    worst, size, g = 0.0, last.numel(), problem.taylor.gradient
    for _ in range(5):
        problem.reset()
        step(problem)
        update = (problem.home - problem.position().numpy())[-size:] / LR
        worst = max(worst, float(np.abs(update - g[-size:]).max() / np.abs(g).max()))
    return Finding(f"the exact part moves by the gradient at x within {worst:.1e}", deviation=worst,
                   allowed=ROUNDINGS * bench.eps / LR, measured=worst, reference=0.0,
                   case=f"tensors {shapes}, the last one exact: off by {worst:.2g} |g|")  # fmt: skip


STEPS = (
    Probe("along", "Is the update along the step's own perturbations?", along, shapes=WIDE),
    Probe("coefficients", "Are its coefficients differences of the loss?", coefficients, shapes=WIDE),
    Probe("mirrored", "Are the two points of a difference at the same distance?", mirrored, shapes=WIDE),
    Probe("distribution", "Which known distribution do directions have?", distribution, comparisons=10, shapes=SMALL),
    Probe("length", "Is the perturbation as long as the stated mu says?", length, comparisons=1, shapes=WIDE),
    Probe("mu", "Does the perturbation scale with mu?", doubled, shapes=WIDE),
    Probe("tensors", "Do equal-shaped tensors get different numbers?", tensors, comparisons=1, shapes=WIDE),
    Probe("steps", "Are directions of different steps independent?", in_steps, comparisons=4, shapes=WIDE),
    Probe("seeds", "Are directions of different seeds independent?", in_seeds, comparisons=5, shapes=WIDE),
    Probe("rank", "Which rank do perturbations of matrices have?", rank, shapes=WIDE),
    Probe("deterministic", "Does the same seed give the same updates?", deterministic, shapes=WIDE),
    Probe("layout", "Do transposed parameters move as others do?", layout, shapes=WIDE),
    Probe("loss", "Does a step return the loss?", returned, shapes=WIDE),
    Probe("accumulation", "Do two parts of a minibatch make the step of the whole?", accumulated, shapes=WIDE),
    Probe("exact", "Do exact parts move by the gradient at x?", exact, shapes=SMALL),
)
