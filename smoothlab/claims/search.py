"""Falsification: an inequality measured <= allowed on random members, then optimization from the worst of them.

A `Statement` knows how to draw members, numbers [cases, p] in the unit cube that `ratio` turns into functions and
points, and what measured/allowed is there. Nothing is told of stored counterexamples: what is found, is found from
random numbers. Nelder and Mead's search from the worst members needs no derivatives, which maxima of eigenvalues and
minimal ell do not have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from smoothlab.claims.claim import About, Search

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statement:
    """An inequality that may be broken.

    Attributes:
        what: it, and where it is looked for.
        names: of the parameters, for the report.
        ranges: least and greatest value of each; those with a positive least value of a wide range are drawn on the
            log scale if `log` says so.
        ratio: measured/allowed at parameters [cases, p]: [cases]; NaN or -inf where there is nothing to compare.
        about: the printed or the corrected statement.
        log: which parameters are drawn on the log scale.
        known: the largest ratio known, for a true inequality.
        unreachable: see `Search`.
        cases: random members.
        starts: how many of the worst members are optimized from.
        steps: evaluations of each optimization.
    """

    what: str
    names: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    ratio: Callable[[Array], Array]
    about: About = "printed"
    log: tuple[bool, ...] = ()
    known: float | None = None
    unreachable: str = ""
    cases: int = 20_000
    starts: int = 4
    steps: int = 200

    def members(self, unit: Array) -> Array:
        """Parameters [cases, p] from numbers in the unit cube."""
        low, high = np.array(self.ranges).T
        logs = np.array(self.log or (False,) * len(self.names))
        with np.errstate(divide="ignore", invalid="ignore"):
            geometric = low * (high / low) ** unit
        found: Array = np.where(logs, geometric, low + (high - low) * unit)
        return found

    def falsify(self, seed: int = 0, factor: float = 1.0) -> Search:
        """Look for measured > factor allowed; `factor` below 1 makes the statement false on purpose, to test this."""
        rng = np.random.default_rng([seed, *self.what.encode()])
        unit = rng.random((self.cases, len(self.names)))
        ratios = self._ratios(unit)
        best, where, count = float(ratios.max()), unit[ratios.argmax()], 0

        def short_of(u: Array) -> float:
            return -float(self._ratios(_reflected(u)[None])[0])  # reflected: faces of the cube are no walls

        for start in unit[np.argsort(-ratios)[: self.starts]] if self.steps else ():
            options: Any = {
                "maxfev": self.steps, "initial_simplex": _simplex(start), "xatol": 1e-9, "fatol": 1e-12,
            }  # fmt: skip
            found: Any = optimize.minimize(short_of, start, method="Nelder-Mead", options=options)
            count += int(found.nfev)
            if -found.fun > best:
                best, where = -float(found.fun), _reflected(found.x)
        point = dict(zip(self.names, self.members(where[None])[0].tolist(), strict=True))
        return Search(self.what, self.about, self.cases, count, 1 - best / factor, point, self.known, self.unreachable)

    def _ratios(self, unit: Array) -> Array:
        with np.errstate(all="ignore"):
            found = np.asarray(self.ratio(self.members(unit)), dtype=float)
        # An overflow is no violation: nothing is compared there.
        return np.where(np.isfinite(found), found, -1e300)


def falsify(statements: Sequence[Statement], seed: int = 0) -> tuple[Search, ...]:
    """Each of them."""
    return tuple(one.falsify(seed) for one in statements)


def _reflected(u: Array) -> Array:
    folded: Array = 1 - np.abs(1 - np.mod(u, 2))
    return folded


def _simplex(start: Array, size: float = 0.05) -> Array:
    corners = np.tile(start, (len(start) + 1, 1))
    for i in range(len(start)):
        corners[i + 1, i] += size if start[i] < 0.5 else -size
    return corners
