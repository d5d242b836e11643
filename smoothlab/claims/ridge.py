"""Curved ridges R(x, y) = m x^2/2 + m_y y^2/2 + exp(-s^2/2) cosh x with s = k y - x: they break Lemmas B.1 and B.2.

With large k a step along x leaves the ridge, and ||grad_y f|| exceeds 2u at once; ell_x(2u) bounds nothing any more.
With P = exp(-s^2/2) cosh x and t = tanh x,

    f_x = m x + P (t + s)        f_y = m_y y - k s P
    H_xx = m + P s (2t + s)      H_xy = k P (1 - s t - s^2)      H_yy = m_y + k^2 P (s^2 - 1).

ell_y = lambda k^2 up to ||grad f|| = 2u, and ell_x there is the least that -D <= Hess f <= D needs (Schur complement),
on a grid for random members, with a proven bound for the stored one (theory.md B.2); f >= 0, so that f - f* <= f.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from smoothlab.claims import exact
from smoothlab.claims.claim import Certificate
from smoothlab.claims.search import Array, Log

RANGES = {"m": Log(1e-3, 1.0), "m_y": Log(1e-6, 1e-1), "k": Log(1.0, 1e6), "lambda": Log(3.0, 1e3), "x": (0.1, 5.0)}
S = np.concatenate([-np.geomspace(1e-9, 10, 60)[::-1], [0.0], np.geomspace(1e-9, 10, 60)])
STORED = (0.1, 0.001, 1e5, 200.0, 2.0)


@dataclass(frozen=True)
class Ridge:
    """Members; every attribute broadcasts against points (x, s)."""

    m: Array
    m_y: Array
    k: Array

    def value(self, x: Array, s: Array | float) -> Array:
        """R(x, s) = m x^2/2 + m_y y^2/2 + exp(-s^2/2) cosh(x) with y = (s + x)/k."""
        y = (s + x) / self.k
        value: Array = self.m * x**2 / 2 + self.m_y * y**2 / 2 + np.exp(-(s**2) / 2) * np.cosh(x)
        return value

    def gradient(self, x: Array, s: Array | float) -> tuple[Array, Array]:
        """The derivatives of R by x and by y."""
        P = np.exp(-(s**2) / 2) * np.cosh(x)
        return self.m * x + P * (np.tanh(x) + s), self.m_y * (s + x) / self.k - self.k * s * P

    def needed(self, x: Array, s: Array, ell_y: Array) -> Array:
        """The least ell_x at a point, given ell_y; infinite where ell_y itself is too small."""
        P, t = np.exp(-(s**2) / 2) * np.cosh(x), np.tanh(x)
        xx, xy = self.m + P * s * (2 * t + s), self.k * P * (1 - s * t - s**2)
        yy = self.m_y + self.k**2 * P * (s**2 - 1)
        room = np.stack([ell_y - yy, ell_y + yy])
        needed = np.stack([xx, -xx]) + xy**2 / np.where(room > 0, room, np.nan)
        least: Array = np.where((room > 0).all(0), needed.max(0), np.inf)
        return least

    def ell_x(self, u: Array, ell_y: Array) -> Array:
        """The largest `needed` on a grid where ||grad f|| <= u, all of them [cases]: from below."""
        edge = np.arcsinh(u)
        grow = np.concatenate([np.linspace(0, 1, 40), np.geomspace(1.05, 30, 20)])
        x = (edge[:, None] * grow)[:, :, None]
        wide = Ridge(*np.stack([self.m, self.m_y, self.k])[:, :, None, None])
        inside = np.hypot(*wide.gradient(x, S)) <= u[:, None, None]
        needed = np.where(inside, wide.needed(x, S, ell_y[:, None, None]), 0.0)
        largest: Array = needed.max((1, 2))
        return largest


def _at(p: Array) -> tuple[Ridge, Array, Array, Array, Array]:
    """Members, x, ell_y, u and ell_x(2u) at (x, s = 0)."""
    m, m_y, k, stretch, x = p.T[:5]
    f = Ridge(m, m_y, k)
    u = np.hypot(*f.gradient(x, 0.0))
    ell_y = stretch * k**2
    return f, x, ell_y, u, f.ell_x(2 * u, ell_y)


def first_item(p: Array) -> Array:
    """Lemma B.2 (1) on the ridge: ||grad_x f||^2/(2 ell_x(2u)) over f."""
    f, x, _, _, ell_x = _at(p)
    return f.gradient(x, 0.0)[0] ** 2 / (2 * ell_x * f.value(x, 0.0))


def third_item(p: Array) -> Array:
    """Lemma B.2 (3)."""
    f, x, ell_y, _, ell_x = _at(p)
    g_x, g_y = f.gradient(x, 0.0)
    return (g_x**2 / ell_x + g_y**2 / ell_y) / 2 / f.value(x, 0.0)


def far_difference(p: Array) -> Array:
    """Lemma B.1 (1) with ell(2G), G = u, between x and x1 at y' = y; nothing where x1 is not within G/L_x."""
    f, x, _, u, ell_x = _at(p)
    x1 = p[:, 5]
    change = np.abs(f.gradient(x1, x - x1)[0] - f.gradient(x, 0.0)[0])
    return np.where(np.abs(x1 - x) <= u / ell_x, change / (ell_x * np.abs(x1 - x)), np.nan)


@functools.cache
def definition_dense() -> Certificate:
    """ell_x = 1/2 and ell_y = 200 k^2 do for the stored member where ||grad f|| <= 7.84, twice its u and more.

    On the grid with the proof's bound (theory.md B.2): for |s| <= 1e-3 the need is at most m + P |s| (2 + |s|) +
    P^2 (1 + |s| + s^2)^2/(200 - P); beyond, P |s| <= 1.01 u/k bounds everything by 0.1016.
    """
    m, m_y, k, stretch, _ = np.array(STORED)
    f, u = Ridge(m, m_y, k), 7.84
    s = np.concatenate([[0.0], np.geomspace(1e-12, 30, 1500)])
    x = np.concatenate([np.linspace(0, 3.5, 500), np.geomspace(3.5, 80, 300)])[:, None]
    worst, bound = 0.0, 0.0
    with np.errstate(over="ignore"):
        for sign in (1.0, -1.0):
            P = np.exp(-(s**2) / 2) * np.cosh(x)
            inside = np.hypot(*f.gradient(x, sign * s)) <= u
            near = inside & (s <= 1e-3)
            proven = m + P * s * (2 + s) + P**2 * (1 + s + s**2) ** 2 / (stretch - P)
            needed = np.where(inside, f.needed(x, sign * s, stretch * k**2), 0.0)
            worst = max(worst, float((needed / np.where(near, proven, 0.1016))[inside].max()))
            bound = max(bound, float(proven[near].max()))
    return exact.dense("the stored ridge needs at most ell_x = 0.4603 where ||grad f|| <= 7.84 (proof: theory.md B.2)",
                       [worst, bound / 0.4603], "printed", bound=bound)  # fmt: skip


def certificates(lemma: str) -> tuple[Certificate, ...]:
    """The stored member in interval arithmetic, at z = (2, 2/k), where s = 0; ell_x(2u) = 1/2.

    `lemma` is "B.1" for its item 1 between x = 1 and x = 2, "B.2 (1)" or "B.2 (3)".
    """
    if not definition_dense().supports:
        return ()
    m, m_y, k = (exact.enclosed(v) for v in ("0.1", "0.001", 10**5))
    two = exact.enclosed(2)
    f_x, f_y = m * 2 + exact.sinh(two), m_y * 2 / k
    gap = m * 2 + m_y * (two / k) ** 2 / 2 + exact.cosh(two)
    facts: dict[str, Any] = {
        "member": "m = 0.1, m_y = 0.001, k = 1e5, ell_x(2u) = 1/2, ell_y = 200 k^2",
        "point": "(2, 2/k)",
    }
    if lemma == "B.1":
        x = exact.enclosed(1)
        P = exact.exp(-x / 2) * exact.cosh(x)
        change = f_x - (m + P * (exact.sinh(x) / exact.cosh(x) + 1))
        return exact.refutes("item 1 with ell(2G), y' = y, between x = 1 and 2 on a ridge", change, x / 2, **facts)
    if lemma == "B.2 (1)":
        inequality, square = "||grad_x f||^2/(2 ell_x(2u)) <= f - f*", f_x * f_x
    else:
        inequality, square = "item 3", f_x * f_x + f_y * f_y / (400 * k * k)
    return exact.refutes(f"{inequality} on a ridge (f* >= 0)", square, gap, **facts)
