"""Curves L0 + c phi(u) >= 0 through points (u, L): least squares, quantile and envelope, of many samples at once.

A sample is a row of arrays [samples, n], so that bootstrap samples are fitted together. Each fit is convex in (L0, c)
for a given phi, and c alone decides it: the best L0 for a given c is known in closed form.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
GOLDEN = (5**0.5 - 1) / 2
SEARCHED = 64  # golden sections: the bracket shrinks to 4e-14 of itself
TINY = 1e-300  # in place of a mean of 0
COARSE = 20  # where exponents of bootstrap samples are compared: to 7e-5
RHO = (0.1, 4.0)
"""Exponents that a power may have: a lower one is like a logarithm, a higher one is not resolved by one run."""
RHO_GRID = np.geomspace(*RHO, 13)
REFINED = 12  # golden sections between neighbors on the grid, for bootstrap samples: rho to 0.3 % of their distance
PROFILED = (44, 32)  # of the same for the points themselves: curves to 6e-10, rho to 2e-7 of the distance


class Curves(NamedTuple):
    """Coefficients of L0 + c phi and the loss they leave, [samples] each."""

    L0: Array
    c: Array
    loss: Array


Fit = Callable[[Array, Array, int], Curves]
"""Fit of L0 + c phi to (phi, L), both [samples, n]; the last argument is the number of golden sections of a search."""


def least_squares(phi: Array, L: Array, sections: int = 0) -> Curves:
    """Non-negative least squares of two columns in closed form: min sum (L - L0 - c phi)^2 over L0, c >= 0.

    With L >= 0 and phi >= 0 at most one of the two is negative in the free solution; it is 0 in the bounded one, and
    the other solves the problem of one column.
    """
    middle, mean = phi.mean(1, keepdims=True), L.mean(1)
    centered = phi - middle
    spread = (centered**2).sum(1)
    c = (centered * L).sum(1) / np.where(spread > 0, spread, 1.0)
    L0 = mean - c * middle[:, 0]
    squares = (phi**2).sum(1)
    through_zero = (phi * L).sum(1) / np.where(squares > 0, squares, 1.0)
    falls, below = c < 0, L0 < 0
    c = np.where(falls, 0.0, np.where(below, through_zero, c))
    L0 = np.where(falls, mean, np.where(below, 0.0, L0))
    return Curves(L0, c, ((L - L0[:, None] - c[:, None] * phi) ** 2).sum(1))


def median(phi: Array, L: Array, sections: int = SEARCHED) -> Curves:
    """Median regression (Koenker and Bassett, Econometrica 46, 1978): min sum |L - L0 - c phi| over L0, c >= 0."""
    order = (L.shape[1] - 1) // 2

    def best(c: Array) -> tuple[Array, Array]:
        residuals = L - c[:, None] * phi
        L0 = np.maximum(np.partition(residuals, order, axis=1)[:, order], 0.0)
        return L0, np.abs(residuals - L0[:, None]).sum(1)

    # The loss is at most that of the curve 0, so that the curve's mean is at most twice that of L.
    return _searched(best, 2 * L.mean(1) / np.maximum(phi.mean(1), TINY), sections)


def envelope(phi: Array, L: Array, sections: int = SEARCHED) -> Curves:
    """The curve of least mean that no point exceeds: min mean(L0 + c phi) over L0, c >= 0 with L0 + c phi >= L."""
    middle = phi.mean(1)

    def best(c: Array) -> tuple[Array, Array]:
        L0 = np.maximum((L - c[:, None] * phi).max(1), 0.0)
        return L0, L0 + c * middle

    # The mean is at most that of the constant max L.
    return _searched(best, L.max(1) / np.maximum(middle, TINY), sections)


def _searched(best: Callable[[Array], tuple[Array, Array]], most: Array, sections: int) -> Curves:
    """Golden section in c from 0 to `most` for a loss that is convex in it."""
    c, loss = golden(lambda c: best(c)[1], np.zeros_like(most), most, sections)
    # A bound of the bracket is reached in the limit only: c = 0 is a solution of its own.
    flat = best(np.zeros_like(most))[1] <= loss
    c = np.where(flat, 0.0, c)
    L0, loss = best(c)
    return Curves(L0, c, loss)


def golden(loss: Callable[[Array], Array], low: Array, high: Array, sections: int = SEARCHED) -> tuple[Array, Array]:
    """Minimum of unimodal functions between `low` and `high`, one a sample: where, and the value there."""
    inner, outer = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_inner, at_outer = loss(inner), loss(outer)
    for _ in range(sections):
        at_left = at_inner <= at_outer
        low, high = np.where(at_left, low, inner), np.where(at_left, outer, high)
        probe = np.where(at_left, high - GOLDEN * (high - low), low + GOLDEN * (high - low))
        value = loss(probe)
        inner, outer = np.where(at_left, probe, outer), np.where(at_left, inner, probe)
        at_inner, at_outer = np.where(at_left, value, at_outer), np.where(at_left, at_inner, value)
    at_left = at_inner <= at_outer
    return np.where(at_left, inner, outer), np.where(at_left, at_inner, at_outer)


def power(u: Array, L: Array, fit: Fit) -> tuple[Curves, Array]:
    """L0 + c u^rho with the rho of `RHO` that leaves the least loss: the best of a grid, refined between its neighbors.

    A single sample is fitted to 2e-7 of the grid's step in rho, many, which are bootstrap samples, to 0.3 %.

    Args:
        u: positive, [samples, n].
        L: [samples, n].
        fit: `least_squares`, `median` or `envelope`.

    Returns:
        The curves, and rho, [samples].
    """
    logs = np.log(u)
    sections, refined = PROFILED if len(L) == 1 else (COARSE, REFINED)

    def loss(rho: Array) -> Array:
        return fit(np.exp(rho[:, None] * logs), L, sections).loss

    losses = np.stack([loss(np.full(len(L), rho)) for rho in RHO_GRID], axis=1)
    best = losses.argmin(1)
    low, high = RHO_GRID[np.maximum(best - 1, 0)], RHO_GRID[np.minimum(best + 1, len(RHO_GRID) - 1)]
    rho, least = golden(loss, low, high, refined)
    rho = np.where(least < losses.min(1), rho, RHO_GRID[best])
    return fit(np.exp(rho[:, None] * logs), L, SEARCHED), rho
