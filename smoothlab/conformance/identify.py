"""Which known distribution do directions have? Told apart at d <= 8, from what is seen of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from smoothlab.conformance.directions import ranks
from smoothlab.stats import scores
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Coordinate, Gaussian, Rademacher, Sparse, Sphere
from smoothlab.zeroth.expectations import Array
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.scaled import Preconditioned

SAME = 1e-5
"""Relative difference of lengths that count as equal; displacements in fp32 are rounded by about that."""


class Named(NamedTuple):
    """A distribution that fits the kind of the directions, and how well.

    Attributes:
        distribution: the distribution; None if it belongs to a model, as masks do.
        words: its name.
        z: largest z-score of the tests against it.
    """

    distribution: Distribution | None
    words: str
    z: float


@dataclass(frozen=True)
class Identity:
    """The distribution of directions.

    Attributes:
        distribution: the known one; None if there is none.
        words: its name, or why there is none.
        z: largest z-score of the tests against it.
    """

    distribution: Distribution | None
    words: str
    z: float


def identify(z: Array, wide: Array, shapes: Sequence[tuple[int, ...]]) -> Identity:
    """The distribution of directions z [n, d], whose entries have a mean square of 1.

    Args:
        z: directions of few entries.
        wide: directions on tensors of `shapes`, whose rank is looked at.
        shapes: shapes with matrices of more rows than a low rank.
    """
    kind = _kind(z, wide, shapes)
    return Identity(kind.distribution, kind.words, kind.z)


def _kind(z: Array, wide: Array, shapes: Sequence[tuple[int, ...]]) -> Named:
    d = z.shape[1]
    moved = z != 0
    if d > 1 and (moved.sum(1) == 1).all():
        return Named(Coordinate(), "coordinate", max(_signs(z[moved]), _positions(moved.argmax(1), d)))
    if np.ptp(np.abs(z)) < SAME:
        return Named(Rademacher(), "rademacher", max(_signs(column) for column in z.T))
    hidden = ~moved.any(0)
    if hidden.any():
        return Named(None, f"masked, {int(hidden.sum())} of {d} entries never move", _normal(z[:, ~hidden]))
    if (~moved).mean() > 0.005:
        density = round(float(moved.mean()), 2)
        return Named(Sparse(density), f"sparse({density:g})", scores.normal_fit(z[moved] * density**0.5))
    full = min(min(shape) for shape in shapes if len(shape) == 2)
    rank = max(max(ranks(row, shapes)) for row in wide)
    if rank < full:
        return Named(LowRank(rank), f"lowrank({rank})", 0.0)
    lengths = np.linalg.norm(z, axis=1)
    if np.ptp(lengths) < SAME * lengths.mean():
        return Named(Sphere(), "sphere", _sphere(z / lengths[:, None]))
    fit = _normal(z)
    if fit > FITS:
        return Named(None, f"none of the known distributions (z = {fit:.1f} against Gaussian entries)", fit)
    if _uneven(z) > FITS:
        return Named(None, "Gaussian with other scales than 1", fit)
    return Named(Gaussian(), "gaussian", fit)


FITS = 6.0
"""z-score up to which a distribution is taken for the directions'."""


def _signs(values: Array) -> float:
    return scores.count(int((values > 0).sum()), len(values), 0.5)


def _positions(indices: Array, d: int) -> float:
    counts = np.bincount(indices.astype(int), minlength=d)
    return scores.of_probability(float(scipy_stats.chisquare(counts).pvalue))


def _one_each(z: Array) -> Array:
    """One entry of each direction, as entries of one may depend on each other."""
    rows = np.arange(len(z))
    return np.asarray(z[rows, rows % z.shape[1]])


def _normal(z: Array) -> float:
    return scores.normal_fit(_one_each(z / z.std(0)))


def _uneven(z: Array) -> float:
    """|z| of the largest difference of an entry's mean square from 1, for Gaussian entries: 2/n of variance."""
    return float(np.abs((z**2).mean(0) - 1).max() * (len(z) / 2) ** 0.5)


def _sphere(z: Array) -> float:
    """An entry of a uniform unit vector is 2 B - 1, B beta distributed with (d - 1)/2 twice."""
    half = (z.shape[1] - 1) / 2
    if half == 0:
        return 0.0
    fit = scipy_stats.kstest((_one_each(z) + 1) / 2, "beta", (half, half))
    return scores.of_probability(float(fit.pvalue))


def agrees(identity: Identity, claimed: Distribution) -> bool:
    """Whether observed directions may be of the distribution that an optimizer says it has."""
    if isinstance(claimed, Preconditioned):  # masks too: what a model's own scales are is not known here
        return identity.words.startswith(("masked", "Gaussian", "gaussian"))
    if isinstance(claimed, Sparse) and claimed.density < 1:
        return isinstance(identity.distribution, Sparse) and abs(identity.distribution.density - claimed.density) < 0.1
    if isinstance(claimed, LowRank):
        # a rank of the matrices' own is not seen from their ranks
        observed = identity.distribution
        return (isinstance(observed, LowRank) and observed.rank == claimed.rank) or claimed.rank > 5
    if type(claimed) in (Gaussian, Sphere, Rademacher, Coordinate, Sparse):
        return type(identity.distribution) is (Gaussian if isinstance(claimed, Sparse) else type(claimed))
    return True
