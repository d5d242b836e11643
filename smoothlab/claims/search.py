"""Falsification: an inequality measured <= allowed on random members, then optimization from the worst of them.

A `Statement` knows how to draw members, numbers [cases, p] in the unit cube that `ratio` turns into functions and
points, and what measured/allowed is there. It knows no stored counterexample: whatever a search finds, it finds from
random numbers. Nelder and Mead's search from the worst members needs no derivatives, which maxima of eigenvalues and
minimal ell do not have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from smoothlab.claims.claim import About, Certificate, Finding, Search

Array = NDArray[np.float64]


class Log(NamedTuple):
    """The range of a parameter that is drawn on the log scale."""

    low: float
    high: float


@dataclass(frozen=True)
class Statement:
    """An inequality that may be broken.

    Attributes:
        what: the inequality, and where it is looked for.
        ranges: least and greatest value of each parameter, by name; `Log` for those drawn on the log scale.
        ratio: measured/allowed at parameters [cases, p]: [cases]; NaN or -inf where there is nothing to compare.
        about: the printed or the corrected statement.
        known: the largest ratio known, for a true inequality.
        cases: random members.
        starts: how many of the worst members are optimized from.
        steps: evaluations of each optimization.
    """

    what: str
    ranges: Mapping[str, tuple[float, float]]
    ratio: Callable[[Array], Array]
    about: About = "printed"
    known: float | None = None
    cases: int = 20_000
    starts: int = 4
    steps: int = 200

    def members(self, unit: Array) -> Array:
        """Parameters [cases, p] from numbers in the unit cube."""
        low, high = np.array(list(self.ranges.values())).T
        logs = [isinstance(ends, Log) for ends in self.ranges.values()]
        with np.errstate(divide="ignore", invalid="ignore"):  # of ranges that hold 0, which are not drawn on that scale
            geometric = low * (high / low) ** unit
        members: Array = np.where(logs, geometric, low + (high - low) * unit)
        return members

    def falsify(self, seed: int = 0, factor: float = 1.0) -> Search:
        """Look for measured > factor allowed; `factor` below 1 makes the statement false on purpose, to test this."""
        rng = np.random.default_rng([seed, *self.what.encode()])
        unit = rng.random((self.cases, len(self.ranges)))
        ratios = self._ratios(unit)
        largest, location, count = float(ratios.max()), unit[ratios.argmax()], 0

        def negative_ratio(u: Array) -> float:
            return -float(self._ratios(_reflected(u)[None])[0])  # reflected: faces of the cube are no walls

        for start in unit[np.argsort(-ratios)[: self.starts]]:
            options: Any = {
                "maxfev": self.steps, "initial_simplex": _simplex(start), "xatol": 1e-9, "fatol": 1e-12,
            }  # fmt: skip
            result: Any = optimize.minimize(negative_ratio, start, method="Nelder-Mead", options=options)
            count += int(result.nfev)
            if -result.fun > largest:
                largest, location = -float(result.fun), _reflected(result.x)
        point = dict(zip(self.ranges, self.members(location[None])[0].tolist(), strict=True))
        return Search(self.what, self.about, self.cases, count, 1 - largest / factor, point, self.known)

    def _ratios(self, unit: Array) -> Array:
        with np.errstate(all="ignore"):
            ratios = np.asarray(self.ratio(self.members(unit)), dtype=float)
        # An overflow is no violation: nothing is compared there.
        return np.where(np.isfinite(ratios), ratios, -1e300)


def statement(
    what: str, ranges: Mapping[str, tuple[float, float]], **options: Any
) -> Callable[[Callable[[Array], Array]], Statement]:
    """A decorator that makes a `Statement` of the function of its ratio; `options` are the statement's other fields."""
    return lambda ratio: Statement(what, ranges, ratio, **options)


def check_by(
    *certificates: Callable[[], Certificate | tuple[Certificate, ...]], searches: Sequence[Statement] = ()
) -> Callable[[int], Finding]:
    """A check that makes these certificates, and then searches for counterexamples to these statements."""

    def check(seed: int) -> Finding:
        evidence: list[Certificate | Search] = []
        for certify in certificates:
            certificate = certify()
            if isinstance(certificate, tuple):
                evidence += certificate
            else:
                evidence.append(certificate)
        evidence += [statement.falsify(seed) for statement in searches]
        return Finding(tuple(evidence))

    return check


def _reflected(u: Array) -> Array:
    folded: Array = 1 - np.abs(1 - np.mod(u, 2))
    return folded


def _simplex(start: Array) -> Array:
    """The start and a step of 0.05 from it along each axis, inwards."""
    steps = np.diag(np.where(start < 0.5, 0.05, -0.05))
    return np.vstack([start, start + steps])
