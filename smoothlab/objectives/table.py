"""The synthetic objectives by name: `smoothlab rates --families` offers them, the tests check each of them.

A new objective takes two edits: the class or function that makes its `FiniteSum`, in this package, and its entry in
`OBJECTIVES` here. This module imports no torch, so that the command line can list the names at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smoothlab.objectives.sums import FiniteSum

BEND = 0.1  # how far the Hessians of the components of "quadratics" are from their mean, relative to it


@dataclass(frozen=True)
class Entry:
    """An objective of curvature 1 in x and 1/ratio in y at the minimum."""

    description: str  # what it is, for help and documentation
    # takes the package `smoothlab.objectives`, ratio, sigma and the sizes; returns the sum
    make: "Callable[[Any, float, float, dict[str, Any]], FiniteSum]"
    steep: bool = False  # whether E f is infinite after one step with Gaussian directions in x


def _blocks(x: str, y: str, coupled: bool = False) -> "Callable[[Any, float, float, dict[str, Any]], FiniteSum]":
    """Components of one Hessian, psi_x(x) + psi_y(y) + <c_i, z>; half of sigma^2 in each block, none if n is 1."""

    def make(package: Any, ratio: float, sigma: float, sizes: dict[str, Any]) -> "FiniteSum":
        families = {"cosh": lambda L: package.Cosh(L, 0.2), "oscillating": lambda _: package.Oscillating(0.3, 1.4),
                    "quadratic": package.Quadratic}  # fmt: skip
        noise = 0.0 if sizes["n"] == 1 else (sigma / math.sqrt(2),) * 2
        # 0.9 |w|^2 = 1.125 exceeds the curvature 1: the sum is not convex.
        coupling = package.CosineCoupling(0.9, 1.0, 0.5) if coupled else None
        return package.objective(families[x](1.0), families[y](1 / ratio), coupling, sigma=noise, **sizes)

    return make


def _quadratics(package: Any, ratio: float, sigma: float, sizes: dict[str, Any]) -> "FiniteSum":
    if sizes["n"] == 1:
        return package.quadratic_sum(1.0, 1 / ratio, 0.0, **sizes)
    return package.quadratic_sum(1.0, 1 / ratio, BEND, sigma=sigma, **sizes)


def _log_cosh(package: Any, ratio: float, sigma: float, sizes: dict[str, Any]) -> "FiniteSum":
    return package.log_cosh_sum((1.0, 1 / ratio), (sigma / math.sqrt(2),) * 2, **sizes)


def _exponentials(package: Any, ratio: float, sigma: float, sizes: dict[str, Any]) -> "FiniteSum":
    return package.exponential_sum((1.0, 1 / ratio), (sigma / math.sqrt(2),) * 2, **sizes)


OBJECTIVES: dict[str, Entry] = {
    "quadratic": Entry("quadratic", _blocks("quadratic", "quadratic")),
    "cosh-y": Entry("(L0, L1)-smooth in y", _blocks("quadratic", "cosh")),
    "cosh-x": Entry("(L0, L1)-smooth in x", _blocks("cosh", "quadratic"), steep=True),
    "oscillating": Entry("not convex in x", _blocks("oscillating", "quadratic")),
    "cosine": Entry("quadratic with a coupling 1 - cos, not convex", _blocks("quadratic", "quadratic", coupled=True)),
    "log-cosh": Entry("components of different curvature, smooth everywhere, variance at most sigma^2", _log_cosh),
    "quadratics": Entry("components of different curvature, unbounded variance, sigma at the minimum", _quadratics),
    "exponentials": Entry("as quadratics, and (L0, L1)-smooth", _exponentials, steep=True),
}


def build(name: str, *, ratio: float = 1.0, d: int = 2, n: int = 2, sigma: float = 0.2) -> "FiniteSum":
    """Make the objective of this name, with x in d dimensions, y in one, n components and noise sigma.

    Raises:
        BadInput: sizes or sigma that the objective cannot have.
    """
    sizes = {"d_x": d, "d_y": 1, "n": n, "name": name}
    return OBJECTIVES[name].make(import_module("smoothlab.objectives"), ratio, sigma, sizes)
