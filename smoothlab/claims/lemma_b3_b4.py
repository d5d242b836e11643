"""Lemma B.3, the bound of gradients on a sublevel set G_F = {f - f* <= F}, and the four items of Lemma B.4.

For crossed members (x, y) and (x', y') can be in G_F while (x', y), where item 2 compares gradients, is far outside.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from smoothlab.claims import exact
from smoothlab.claims.claim import Certificate, Claim
from smoothlab.claims.lemma_b2 import RANGES, T1, flow_dense
from smoothlab.claims.members import Coupled, Crossed
from smoothlab.claims.search import Array, check_by, statement
from smoothlab.theory import constants


def bound(ell: Callable[[Array], tuple[Array, Array]], level: Array, stretch: float = 1.0) -> Array:
    """Lemma B.3's G of many members at once: u = sqrt(2 lM(stretch u) F), iterated from far above.

    ell grows at most linearly here, so that each step halves what is wrong on the log scale.
    """
    u = np.full_like(level, 1e12)
    for _ in range(80):
        u = np.sqrt(2 * np.maximum(*ell(stretch * u)) * level)
    return u


# Lemma B.3


@statement(
    "||grad f|| <= G = sup{u: u^2 <= 2 max(ell_x, ell_y)(u) F} with F = f - f*, coupled members",
    RANGES, known=1.0, cases=5000, steps=150,
)  # fmt: skip
def BOUNDED(p: Array) -> Array:
    """||grad f|| over G."""
    f, (x, y) = Coupled.split(p)
    return np.hypot(*f.gradient(x, y)) / bound(f.ell, f.value(x, y))


def _chain() -> tuple[Certificate, ...]:
    """T1 and Phi(u) >= u^2/(2 lM(u)): the printed lemma."""
    flow = replace(flow_dense(), about="printed")
    u = np.geomspace(1e-3, 1e3, 60)
    ells: list[constants.Ell] = [
        lambda v: 1 + np.asarray(v, float), lambda v: np.sqrt(1 + np.asarray(v, float) ** 2),
        lambda v: 2 + 0 * np.asarray(v, float), lambda v: 80 + 3 * np.asarray(v, float) ** 1.5,
        lambda v: 1.0 + 9 * (np.asarray(v, float) > 1),
    ]  # fmt: skip
    parts = np.concatenate([u**2 / (2 * np.asarray(ell(u))) / constants.phi(ell, u) for ell in ells])
    step = exact.dense("u^2/(2 lM(u)) <= Phi(u), as lM does not decrease: with T1 u^2 <= 2 lM(u) F on G_F, for 5 ell",
                       parts, "printed", rounding=1e-8)  # fmt: skip
    return flow, step


def _sharp() -> Certificate:
    """G = Phi^-1(F) is attained: f = cosh x - 1 with F = 10 has sinh x = sqrt(120)."""
    low, high = exact.ends(exact.sqrt(exact.enclosed(120)))

    def ell(u: ArrayLike) -> Array:
        return np.sqrt(1 + np.asarray(u, float) ** 2)

    sharp = constants.gradient_bound(ell, 10.0)
    printed = [constants.gradient_bound_printed(ell, 10.0, stretch) for stretch in (1, 2)]
    return exact.dense(
        "sharper: G = Phi^-1(F), which f = cosh x - 1 attains at F = 10, where sinh x = sqrt(120)",
        [sharp / high, low / sharp], "corrected", rounding=1e-8,
        **{"Phi^-1(F)": sharp, "printed": printed[0], "with ell(2u), as the paper's proof": printed[1]},
    )  # fmt: skip


# Lemma B.4


@statement(
    "item 2 with L_x = ell_x(2G), G by B.3 with ell(2u), (x, y) and (x', y') in G_F, members cosh(p x + q y)",
    {**Crossed.RANGES, "x": (-4.0, 4.0), "y": (-4.0, 4.0), "x'": (-4.0, 4.0), "y'": (-4.0, 4.0)}, cases=5000,
)  # fmt: skip
def OUTSIDE(p: Array) -> Array:
    """Item 2 with L_x = ell_x(2G), G by B.3 with ell(2u), the largest reading; the points are (x, y) and (x', y')."""
    f, (x, y, x1, y1) = Crossed.split(p)
    G = bound(f.ell, np.maximum(f.value(x, y), f.value(x1, y1)), 2.0)
    return _quotient(f, x, x1, y, f.ell(2 * G)[0])


def _quotient(f: Coupled | Crossed, x: Array, x1: Array, y: Array, L: Array) -> Array:
    """||grad_x f(x, y) - grad_x f(x', y)|| over L ||x - x'||."""
    return np.abs(f.gradient(x, y)[0] - f.gradient(x1, y)[0]) / (L * np.abs(x - x1))


@statement(
    "item 2 with 2 sqrt(L_x L_M), L = ell(2G), where (x', y) is in G_F too, coupled members",
    {**RANGES, "x'": (-4.0, 4.0)}, about="corrected", known=0.5, cases=5000, steps=150,
)  # fmt: skip
def INSIDE(p: Array) -> Array:
    """Item 2 with 2 sqrt(L_x L_M) where (x', y) is in G_F too, on coupled members."""
    f, (x, y, x1) = Coupled.split(p)
    G = bound(f.ell, np.maximum(f.value(x, y), f.value(x1, y)))
    L_x, L_y = f.ell(2 * G)
    return _quotient(f, x, x1, y, 2 * np.sqrt(L_x * np.maximum(L_x, L_y)))


@statement(
    "item 4 with L_x = ell_x(2G) and x' anywhere, members cosh(p x + q y)",
    {**Crossed.RANGES, "x": (-4.0, 4.0), "y": (-4.0, 4.0), "x'": (-40.0, 40.0)}, cases=5000,
)  # fmt: skip
def FREE(p: Array) -> Array:
    """Item 4 with x' anywhere and any L that random members have: L_x = ell_x(2G)."""
    f, (x, y, x1) = Crossed.split(p)
    G = bound(f.ell, f.value(x, y), 2.0)
    return _quotient(f, x, x1, y, f.ell(2 * G)[0])


def _grid(edge: float, count: int) -> list[Array]:
    """All points of a square grid on [-edge, edge]^2, x and y [count^2]."""
    return [part.ravel() for part in np.meshgrid(np.linspace(-edge, edge, count), np.linspace(-edge, edge, count))]


def definition_dense() -> Certificate:
    """Crossed members meet Definition 2.1 with their ell: 0 <= Hess f <= D(u), on a grid."""
    x, y = _grid(6, 121)
    ratios = []
    for p, q, m in ((1.0, 1.0, 0.01), (0.1, 2.0, 0.5), (1.3, 0.4, 1e-3)):
        f = Crossed(np.array(p), np.array(q), np.array(m))
        d_x, d_y = f.ell(np.hypot(*f.gradient(x, y)))
        bend = np.cosh(p * x + q * y)
        a, b, c = (p * p * bend + m) / d_x, (q * q * bend + m) / d_y, p * q * bend / np.sqrt(d_x * d_y)
        ratios.append((a + b) / 2 + np.hypot((a - b) / 2, c))  # of D^(-1/2) H D^(-1/2)
    return exact.dense("members cosh(p x + q y) - 1 + m |z|^2/2 meet Definition 2.1 with their ell",
                       np.concatenate(ratios))  # fmt: skip


def outside_counterexample() -> tuple[Certificate, ...]:
    """With p = q = 1, m = 1/100, (x, y) = (0, 5), (x', y') = (5, 0): (x', y) = (5, 5) has s = 10.

    G: u^2 <= 2 ell(2u) F fails for all u >= 420, as u^2/ell(2u) grows; so G <= 420 and ell_x(2G) <= ell_x(840).
    """
    m, five = exact.enclosed(1) / 100, exact.enclosed(5)
    level = exact.cosh(five) - 1 + m * five * five / 2
    u = exact.enclosed(420)

    def ell(v: Any) -> Any:
        return m + 2 * exact.sqrt(1 + v * v / 2)

    beyond = exact.ends(2 * ell(2 * u) * level)[1] < exact.ends(u * u)[0]
    moved = exact.sinh(2 * five) + m * five - exact.sinh(five)
    if not beyond:
        return ()
    return exact.refutes("item 2 with the constants of B.1 and B.3, ell(2G) and G with ell(2u): f = cosh(x + y) - 1 + "
                         "(x^2 + y^2)/200", moved, ell(2 * u) * five, points="(0, 5) and (5, 0) of f = F",
                         G="at most 420")  # fmt: skip


def unbounded() -> tuple[Certificate, ...]:
    """No L at all if x' is free: f_i = cosh x + cosh y at 0 has |sinh x'| > L |x'| at x' = 3 k + 3 for L = 10^k."""
    exceeded = []
    for k in range(1, 13):
        x = exact.enclosed(3 * k + 3)
        exceeded.append(exact.ends(exact.sinh(x))[0] > exact.ends(x * 10**k)[1])
    return (exact.equal("item 4 as printed, for (x, y) in G_F and x' anywhere: f_i = cosh x + cosh y at 0 exceeds L = "
                        "10^k at x' = 3k + 3, k = 1, ..., 12 (sinh x'/x' has no bound)", all(exceeded), True,
                        supports=False),)  # fmt: skip


def _hull() -> Certificate:
    """The smallest box around G_F is compact and convex and holds (x', y): sup |f_xx| over it is an L_x."""
    f = Crossed(np.array(1.0), np.array(1.0), np.array(0.1))
    x, y = _grid(9, 301)
    inside = f.value(x, y) <= 3.0
    edge_x, edge_y = np.abs(x[inside]).max(), np.abs(y[inside]).max()
    rng = np.random.default_rng(0)
    a, b = rng.choice(np.flatnonzero(inside), (2, 20_000))
    differ = x[a] != x[b]
    a, b = a[differ], b[differ]
    change = np.abs(f.gradient(x[a], y[a])[0] - f.gradient(x[b], y[a])[0])
    L = 0.1 + np.cosh(edge_x + edge_y)
    return exact.dense("some L_x exists: sup |f_xx| over the box of G_F's projections, which is compact and convex and "
                       "holds (x', y)", change / (L * np.abs(x[a] - x[b])), "corrected", L=float(L))  # fmt: skip


def _far() -> Certificate:
    """Both cases of the proof: near by L_x <= 2 sqrt(L_x L_M); for r >= G/sqrt(L_x L_M) 2G <= 2 sqrt(L_x L_M) r."""
    rng = np.random.default_rng(0)
    L_x, L_y, G, excess = np.exp(3 * rng.normal(size=(4, 5000)))
    top = np.sqrt(L_x * np.maximum(L_x, L_y))
    r = (1 + excess) * G / top
    smoothness = (
        "2 sqrt(L_x L_M), L = ell(2G), for (x, y), (x', y) in G_F: near by B.1', far by 2G (proof: constants.md B.4)"
    )
    return exact.dense(smoothness, np.concatenate([L_x / (2 * top), 2 * G / (2 * top * r)]), "corrected")


def _components() -> Certificate:
    """f_i = f + <c_i, z>: ||grad f_i|| <= G + ||c_i|| on G_F, G by B.3."""
    f = Crossed(np.array(1.0), np.array(0.5), np.array(0.3))
    x, y = _grid(6, 301)
    level = 4.0
    inside = f.value(x, y) <= level
    G = float(bound(f.ell, np.array([level]))[0])
    g_x, g_y = (g[inside] for g in f.gradient(x, y))
    ratios = [np.hypot(g_x + c_x, g_y + c_y) / (G + np.hypot(c_x, c_y)) for c_x, c_y in ((3, 0), (-3, 1), (0, -1))]
    return exact.dense("G_F is compact (coercive) and grad f_i continuous, so that it is bounded there; for f_i = f + "
                       "<c_i, z> by G + ||c_i||", np.concatenate(ratios))  # fmt: skip


def _outside() -> tuple[Certificate, ...]:
    if not definition_dense().supports:
        return ()
    return outside_counterexample()


_EXIST = "for (x, y), (x', y') in G_F: over the compact box of G_F's projections, not those of B.1 and B.3"
CLAIMS = (
    Claim("b.3", "f - f* <= F implies ||grad f|| <= G = sup{u: u^2 <= 2 max(ell_x, ell_y)(u) F} < infinity.",
          "Lemma B.3", "Definition 2.1 (one-sided is enough), coercive", "holds", "Sharper: G = Phi^-1(F), Phi(u) = "
          "int_0^u v/lM(v) dv. (The paper's own proof, by B.2, has ell(2u).)",
          check_by(_chain, _sharp, searches=(BOUNDED, T1))),
    Claim("b.4-1", "||grad f|| <= G on G_F, G of Lemma B.3.", "Lemma B.4 (1)", "Definition 2.1, coercive", "holds", "",
          check_by(_chain, searches=(BOUNDED,))),
    Claim("b.4-2", "||grad_x f(x, y) - grad_x f(x', y)|| <= L_x ||x - x'|| for all (x, y), (x', y') in G_F, likewise "
          "in y, with L of B.1 and G of B.3.", "Lemma B.4 (2)", "Definition 2.1, coercive", "holds once corrected",
          f"Some L exist {_EXIST}. If (x', y) is in G_F too, L_x = 2 sqrt(ell_x(2G) lM(2G)); if less will do, is open.",
          check_by(_outside, _hull, _far, searches=(OUTSIDE, INSIDE))),
    Claim("b.4-3", "||grad_x f_i|| <= G_x,max and ||grad_y f_i|| <= G_y,max on G_F for some constants.",
          "Lemma B.4 (3)", "f_i C^2, f coercive", "holds", "", check_by(_components)),
    Claim("b.4-4", "||grad_x f_i(x, y) - grad_x f_i(x', y)|| <= L_x,max ||x - x'|| for all (x, y) in G_F and some "
          "constants, likewise in y.", "Lemma B.4 (4)", "f_i C^2, f coercive", "holds once corrected",
          f"Some L exist {_EXIST}; as printed x' is free, and then none does.",
          check_by(unbounded, _hull, searches=(FREE,))),
)  # fmt: skip
