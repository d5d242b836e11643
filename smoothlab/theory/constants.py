"""From ell to constants: gradient bounds on sublevel sets, the steps of Theorem C.1, and those of what holds instead.

Notation: u = ||grad f||, lM = max(ell_x, ell_y), Delta = f(z_0) - f*, G_F = {f - f* <= F}. theory.md A has the paper's
statements with the readings of what the scan lost, theory.md B what is proven, false and open. Pure functions of ell.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize

from smoothlab.errors import BadInput

Array = NDArray[np.float64]
Ell = Callable[[ArrayLike], ArrayLike]
"""ell(u) for u >= 0, entry by entry: not negative, non-decreasing, ell(u)/u^2 -> 0."""

_HUGE = 1e150  # gradients beyond: their squares leave the range of fp64
_OCTAVES = 80  # below the printed G, after which nothing is left of Phi
_RELATIVE = 1e-9  # the error of Phi that is accepted
_COARSE, _FINE = (np.polynomial.legendre.leggauss(order) for order in (12, 20))


def ones(u: ArrayLike) -> Array:
    """The function ell = 1."""
    return np.ones_like(np.asarray(u, dtype=float))


def largest(ell_x: Ell, ell_y: Ell) -> Ell:
    """The function lM = max(ell_x, ell_y)."""
    return lambda u: np.maximum(ell_x(u), ell_y(u))


def phi(ell: Ell, u: ArrayLike) -> Array:
    """Phi(u) = int_0^u v/ell(v) dv, entry by entry, with a relative error of at most 1e-9.

    T1 (theory.md B.2): Phi(||grad f||) <= f - f* wherever Hess f <= ell(||grad f||) I, with ell = lM for two blocks;
    equality for f = cosh. It implies ||grad f||^2 <= 2 ell(||grad f||)(f - f*), as Phi(u) >= u^2/(2 ell(u)).

    Raises:
        BadInput: u or ell is negative or not a number, ell is 0 beyond 0, or it oscillates too much for quadrature.
    """
    u = np.asarray(u, dtype=float)
    if not (np.isfinite(u) & (u >= 0)).all():
        raise BadInput("u is a gradient's norm: give finite numbers that are not negative")
    if not u.any():
        return np.zeros_like(u)
    ends = np.unique(u)
    cuts = np.union1d(ends, _octaves(ends[-1]))
    reached = np.cumsum(_parts(ell, np.concatenate([[0.0], cuts[:-1]]), cuts))
    return np.where(u > 0, reached[np.searchsorted(cuts, u)], 0.0)


def _octaves(top: float) -> Array:
    """2^-80, ..., 1/2, 1 times `top`."""
    return top * 2.0 ** -np.arange(_OCTAVES, -1, -1.0)


def _parts(ell: Ell, a: Array, b: Array) -> Array:
    """Integrals of v/ell(v) from each a to its b.

    Gauss-Legendre rules of two orders, which tell their error; adaptive quadrature where it is too large for the sum.
    """

    def by(rule: tuple[Array, Array]) -> Array:
        v = (a + b)[:, None] / 2 + (b - a)[:, None] / 2 * rule[0]
        return (_integrand(ell, v) @ rule[1]) * (b - a) / 2

    values = by(_FINE)
    errors = np.abs(values - by(_COARSE))
    for i in np.flatnonzero(errors > _RELATIVE / 100 * values.sum()):
        values[i], errors[i], *_ = integrate.quad(
            lambda v: float(_integrand(ell, np.asarray(v))), a[i], b[i],
            epsabs=0, epsrel=_RELATIVE / 100, limit=100, full_output=1,
        )  # fmt: skip
        if not errors[i] <= _RELATIVE * values.sum():
            break
    if not errors.sum() <= _RELATIVE * values.sum():
        raise BadInput(f"int v/ell(v) dv up to {b[-1]:g} is off by {errors.sum():.1g}: ell is too rough for quadrature")
    return values


def _integrand(ell: Ell, v: Array) -> Array:
    """v/ell(v)."""
    return v / np.where(v > 0, _positive(ell, v), 1.0)


def _positive(ell: Ell, u: Array) -> Array:
    """ell(u), which may be 0 at 0 only."""
    with np.errstate(over="ignore"):
        bound = np.asarray(ell(u), dtype=float)
    wrong = ~(bound > 0) & (u > 0)
    if wrong.any():
        u, bound = np.broadcast_arrays(u, bound)
        raise BadInput(f"ell({u[wrong][0]:g}) is {bound[wrong][0]}: ell must be a positive number for u > 0")
    return bound


def gradient_bound_printed(ell: Ell, level: float, stretch: float = 1.0) -> float:
    """Lemma B.3: G = sup{u: u^2 <= 2 ell(u) F}, the largest root, which T1 proves; its own proof has ell(2u).

    Args:
        ell: lM.
        level: F.
        stretch: 1 for ell(u), 2 for ell(2u).

    Raises:
        BadInput: u^2 <= 2 ell(u) F up to u = 1e150.
    """
    if level < 0 or not math.isfinite(level):
        raise BadInput(f"the level F is {level}: give f - f*, a finite number that is not negative")
    if level == 0:
        return 0.0

    def excess(u: Array) -> Array:
        return 2 * np.log(u) - np.log(2 * _positive(ell, u * stretch)) - math.log(level)

    grid = np.geomspace(1e-150, _HUGE, 8001)  # 27 points a decade
    below = np.flatnonzero(excess(grid) <= 0)
    if not len(below):
        return 0.0
    if below[-1] == len(grid) - 1:
        raise BadInput(
            f"u^2 <= 2 ell(u) F for all u up to {_HUGE:g} with F = {level:g}: ell is quadratic, or F too large"
        )
    a, b = grid[below[-1]], grid[below[-1] + 1]
    return float(math.exp(optimize.brentq(lambda s: float(excess(np.exp(s))), math.log(a), math.log(b), xtol=1e-14)))


def gradient_bound(ell: Ell, level: float) -> float:
    """G = Phi^-1(F), the sharp bound of ||grad f|| where f - f* <= F by T1; relative error about 1e-9.

    (L0, L1): Phi(u) = u/L1 - (L0/L1^2) log(1 + L1 u/L0), which Lemma B.3 bounds by L1 F + sqrt(L1^2 F^2 + 2 L0 F).
    sqrt(L0^2 + L1^2 u^2), cosh: Phi(u) = (sqrt(L0^2 + L1^2 u^2) - L0)/L1^2, so that ell(G) = L0 + L1^2 F.

    Raises:
        BadInput: as `phi` and `gradient_bound_printed`.
    """
    top = gradient_bound_printed(ell, level)
    if top == 0:
        return 0.0
    cuts = np.concatenate([[0.0], _octaves(top)])
    reached = np.cumsum(np.concatenate([[0.0], _parts(ell, cuts[:-1], cuts[1:])]))  # Phi at the cuts; Phi(top) >= F
    k = int(np.clip(np.searchsorted(reached, level), 1, len(cuts) - 1))

    def excess(u: float) -> float:
        return float(reached[k - 1] + _parts(ell, cuts[k - 1 : k], np.array([u]))[0]) - level

    a, b = float(cuts[k - 1]), float(cuts[k])
    return b if excess(b) <= 0 else float(optimize.brentq(excess, a, b, xtol=1e-15 * b, rtol=1e-12))


@dataclass(frozen=True)
class Constants:
    """Constants of the sublevel set f - f* <= F that follow from ell."""

    F: float  # the level
    G: float  # bound of ||grad f|| by T1, the sharp one
    G_printed: float  # by Lemma B.3 with ell(u), as printed
    G_doubled: float  # by Lemma B.3 with ell(2u), as its own proof supports
    L_x: float  # ell_x(G): ||H_xx|| <= L_x on the set
    L_y: float  # ell_y(G)
    L_x_near: float  # ell_x(2G), which holds in a neighborhood of the set (B.1 corrected)
    L_y_near: float  # ell_y(2G)

    @property
    def radius(self) -> float:
        """G/sqrt(max(L_x_near, L_y_near)): how far the near constants hold, in the norm ||s||_D.

        B.1 corrected: D = diag(L_x_near, L_y_near); where L_x_near ||s_x||^2 + L_y_near ||s_y||^2 <= radius^2 from a
        point of the set, ||grad f|| <= 2G and -D <= Hess f <= D.
        """
        return self.G / math.sqrt(max(self.L_x_near, self.L_y_near)) if self.G else 0.0


def constants(ell_x: Ell, ell_y: Ell, level: float) -> Constants:
    """Constants of the sublevel set f - f* <= level.

    Raises:
        BadInput: a level that is negative, or an ell that is not sub-quadratic.
    """
    ell = largest(ell_x, ell_y)
    g = gradient_bound(ell, level)
    l_x, l_y, near_x, near_y = (float(np.asarray(one_block(u))) for u in (g, 2 * g) for one_block in (ell_x, ell_y))
    printed, doubled = gradient_bound_printed(ell, level), gradient_bound_printed(ell, level, 2.0)
    return Constants(level, g, printed, doubled, l_x, l_y, near_x, near_y)
