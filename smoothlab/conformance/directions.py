"""Directions, coefficients and their structure, read from observed steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from smoothlab.conformance.adapter import Observed, Unobservable
from smoothlab.zeroth.estimators import Sides
from smoothlab.zeroth.expectations import Array

NEAR = 0.3
"""Relative distance of -D from another displacement up to which the two count as a pair, perhaps an unequal one."""
STILL = 1e-9
"""Relative spread of updates below which they do not vary."""
BASELINES = ("f(x)", "the mean loss", "nothing")
"""What one-sided coefficients may be a difference to."""


class Lines(NamedTuple):
    """The directions of one step.

    Attributes:
        d: displacements mu z, [q, dim].
        slope: half the difference of the losses of a pair, or the difference to the start, [q].
        asymmetry: largest relative distance of a pair from x + D, x - D.
    """

    d: Array
    slope: Array
    asymmetry: float


@dataclass(frozen=True)
class Structure:
    """Structure of an optimizer's steps: sides, number of directions and their length.

    Attributes:
        sides: 2 if all evaluations away from the start come in pairs.
        q: directions of a step.
        mu: root mean square entry of a displacement.
    """

    sides: Sides
    q: int
    mu: float


def structure(observations: Sequence[Observed]) -> Structure:
    """The structure of most steps.

    Raises:
        Unobservable: no step evaluates the loss away from the start.
    """
    counts = [len(observed.displacements) for observed in observations]
    usual_count = max(set(counts), key=counts.count)
    if usual_count == 0:
        raise Unobservable("evaluates the loss at the start only: no perturbation")
    usual = [observed for observed in observations if len(observed.displacements) == usual_count]
    paired = all(_pairs(observed.displacements) is not None for observed in usual)
    square = np.mean([np.mean(observed.displacements**2) for observed in usual])
    return Structure(2 if paired else 1, usual_count // 2 if paired else usual_count, math.sqrt(float(square)))


def lines(observed: Observed, structure: Structure) -> Lines | None:
    """The directions of a step; None if the step is built otherwise than most."""
    d, f = observed.displacements, observed.values
    if structure.sides == 1:
        return Lines(d, f - observed.start, 0.0) if len(d) == structure.q else None
    pairs = _pairs(d)
    if pairs is None or len(pairs) != structure.q:
        return None
    plus, minus = (list(ends) for ends in zip(*pairs, strict=True))
    asymmetry = np.linalg.norm(d[plus] + d[minus], axis=1) / np.linalg.norm(d[plus], axis=1)
    # the first of a pair is the direction: of an unequal pair, too
    return Lines(d[plus], (f[plus] - f[minus]) / 2, float(asymmetry.max()))


def _pairs(d: Array) -> list[tuple[int, int]] | None:
    """Indices of displacements that are near to opposite ones; None if any is alone."""
    pairs, unpaired = [], list(range(len(d)))
    while unpaired:
        first = unpaired.pop(0)
        if not unpaired:
            return None
        distances = np.linalg.norm(d[unpaired] + d[first], axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] > NEAR * np.linalg.norm(d[first]):
            return None
        pairs.append((first, unpaired.pop(nearest)))
    return pairs


def still(updates: Array) -> bool:
    """Whether updates [n, d] are all the same: exact gradients, not estimates."""
    return bool(updates.std(0).max() <= STILL * (1 + np.abs(updates).max()))


class Fit(NamedTuple):
    """Updates as c sum_j s_j D_j with the same c in all steps.

    Attributes:
        c: the factor, 1 / (mu^2 q) for gradients.
        residual: largest distance of an update from that, over their root mean square length.
        typical: root mean square slope over the largest loss: digits that the differences keep.
        baseline: what slopes are differences to.
    """

    c: float
    residual: float
    typical: float
    baseline: str


def fit(observations: Sequence[Observed], structure: Structure) -> Fit:
    """The best of the baselines; two-sided steps have none to choose."""
    fits = []
    for baseline in BASELINES[: 1 if structure.sides == 2 else 3]:
        updates, sums, slopes, losses = [], [], [], [1.0]
        for observed in observations:
            step = lines(observed, structure)
            if step is None:
                continue
            slope = step.slope
            if baseline == "the mean loss":
                slope = slope - slope.mean()
            elif baseline == "nothing":
                slope = slope + observed.start
            updates.append(observed.update)
            sums.append(slope @ step.d)
            slopes.append(np.mean(slope**2))
            losses.append(np.abs(observed.values).max())
        u, p = np.array(updates), np.array(sums)
        c = float((u * p).sum() / max((p * p).sum(), 1e-300))
        size = math.sqrt(float((u * u).sum(1).mean())) or 1.0
        residual = float(np.linalg.norm(u - c * p, axis=1).max()) / size
        typical = math.sqrt(float(np.mean(slopes))) / max(losses)
        fits.append(Fit(c, residual, typical, baseline))
    return min(fits, key=lambda candidate: candidate.residual)


def outside(observed: Observed) -> float:
    """Length of the part of the update outside the span of the displacements."""
    u = observed.update
    if not len(observed.displacements):
        return float(np.linalg.norm(u))
    # D and -D are both among them: QR without pivots would lose what follows such a pair.
    basis, sizes, _ = np.linalg.svd(unit(observed.displacements).T, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]
    return float(np.linalg.norm(u - basis @ (basis.T @ u)))


def unit(d: Array) -> Array:
    """Rows of length 1; rows of zeros stay."""
    lengths = np.linalg.norm(d, axis=-1, keepdims=True)
    return np.asarray(d / np.where(lengths > 0, lengths, 1))


def overlap(a: Array, b: Array) -> Array:
    """Squared cosines of the rows of a with those of b, without rows of zeros."""
    cosines = (unit(a) * unit(b)).sum(-1) ** 2
    nonzero = (np.abs(a).max(-1) > 0) & (np.abs(b).max(-1) > 0)
    return np.asarray(cosines[nonzero])


def chance(a: Array, b: Array) -> float:
    """Mean squared cosine of independent directions: sum_i E a_i^2 E b_i^2, at least 1/d."""
    value = float(((unit(a) ** 2).mean(0) * (unit(b) ** 2).mean(0)).sum())
    return max(value, 1.0 / int(a.shape[-1]))


def ranks(d: Array, shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Numerical ranks of the matrices among the tensors of a flat vector."""
    edges = np.cumsum([0, *map(math.prod, shapes)])
    ranks = []
    for (start, stop), shape in zip(pairwise(edges), shapes, strict=True):
        if len(shape) == 2:
            singular = np.linalg.svd(d[start:stop].reshape(shape), compute_uv=False)
            ranks.append(int((singular > 1e-6 * max(singular[0], 1e-300)).sum()))
    return ranks
