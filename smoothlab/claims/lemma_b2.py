"""Lemma B.2: gradients bounded by f - f*. Broken on ridges; T1 and T2 (theory.md B.2) hold instead."""

import numpy as np

from smoothlab.claims import exact, ridge
from smoothlab.claims.claim import Certificate, Claim
from smoothlab.claims.members import Coupled, bounded_hessians
from smoothlab.claims.search import Array, Statement, check_by, statement

STEPS = np.linspace(0, 1, 201)
LAMBDAS = np.geomspace(1, 1e4, 81)
RANGES = {**Coupled.RANGES, "x": (-4.0, 4.0), "y": (-4.0, 4.0)}


def phi_from_below(f: Coupled, u: Array) -> Array:
    """Phi(u) = int_0^u v/lM(v) dv [cases], at most: lM is largest at the end of each of 200 steps."""
    v = u[:, None] * STEPS
    integral: Array = (np.diff(v**2, axis=1) / (2 * np.maximum(*f.columns().ell(v[:, 1:])))).sum(1)
    return integral


@statement(
    "T1: Phi(||grad f||) <= f - f*, coupled members", RANGES, about="corrected", known=1.0, cases=4000, steps=150,
)  # fmt: skip
def T1(p: Array) -> Array:
    """Phi(u), bounded from below, over f."""
    f, (x, y) = Coupled.split(p)
    return phi_from_below(f, np.hypot(*f.gradient(x, y))) / f.value(x, y)


@statement(
    "T2: item 3 with ell(lambda u), coupled members", RANGES, about="corrected", known=1.0, cases=8000, steps=150,
)  # fmt: skip
def T2(p: Array) -> Array:
    """With the smallest lambda of a grid that has lambda^2 >= lM(lambda u)/lm(lambda u); at 1 only if ell_x = ell_y."""
    f, (x, y) = Coupled.split(p)
    g_x, g_y = f.gradient(x, y)
    ell_x, ell_y = f.columns().ell(np.hypot(g_x, g_y)[:, None] * LAMBDAS)
    fits = LAMBDAS**2 >= np.maximum(ell_x, ell_y) / np.minimum(ell_x, ell_y)
    fits[:, 0] = ell_x[:, 0] == ell_y[:, 0]
    first, rows = fits.argmax(1), np.arange(len(p))
    left = (g_x**2 / ell_x[rows, first] + g_y**2 / ell_y[rows, first]) / 2
    return np.where(fits[rows, first], left / f.value(x, y), np.nan)


@statement("item 3 as printed where lM(2u) <= 4 lm(2u), coupled members", RANGES, about="corrected", known=1.0)
def NEAR(p: Array) -> Array:
    """The printed (3) where its own proof's condition lM(2u) <= 4 lm(2u) makes it true."""
    f, (x, y) = Coupled.split(p)
    g_x, g_y = f.gradient(x, y)
    ell_x, ell_y = f.ell(2 * np.hypot(g_x, g_y))
    fits = np.maximum(ell_x, ell_y) <= 4 * np.minimum(ell_x, ell_y)
    return np.where(fits, (g_x**2 / ell_x + g_y**2 / ell_y) / 2 / f.value(x, y), np.nan)


FIRST = Statement("||grad_x f||^2/(2 ell_x(2u)) <= f - f* on ridges", ridge.RANGES, ridge.first_item, cases=200,
                  steps=60)  # fmt: skip
THIRD = Statement("[||grad_x f||^2/ell_x(2u) + ||grad_y f||^2/ell_y(2u)]/2 <= f - f* on ridges", ridge.RANGES,
                  ridge.third_item, cases=200, steps=60)  # fmt: skip


def flow_dense() -> Certificate:
    """What the proofs use of the Hessian: g'Hg <= lM |g|^2 and g'D^-1 H D^-1 g <= g'D^-1 g for H <= D, at random."""
    ratios = []
    for D, H, g in bounded_hessians(two_sided=False):
        ratios += [g @ H @ g / (D.max() * (g @ g)), (g / D) @ H @ (g / D) / (g @ (g / D))]
    inequality = (
        "T1 and T2 (proof: theory.md B.2): along z' = -grad f u' >= -lM(u) u, along z' = -D^-1 grad f the square "
        "||grad f||^2_{D^-1} falls at most as fast as twice itself, as H <= D"
    )
    return exact.dense(inequality, ratios, "corrected")


def cosh_equality() -> Certificate:
    """T1 is an equality for cosh: ell(sinh x) = cosh x, int_0^sinh x v/sqrt(1 + v^2) dv = cosh x - 1, enclosed."""
    widths = []
    for k in range(1, 40):
        x = exact.enclosed(k) / 10
        u = exact.sinh(x)
        low, high = exact.ends((exact.sqrt(1 + u * u) - 1) / (exact.cosh(x) - 1))
        widths.append(max(high, 2 - low))
    return exact.dense("T1 for f = cosh is an equality: Phi(sinh x) = sqrt(1 + sinh^2 x) - 1 = cosh x - 1", widths,
                       "corrected", rounding=1e-12)  # fmt: skip


_FIRST_CHECK = check_by(
    lambda: ridge.certificates("B.2 (1)"), flow_dense, cosh_equality, searches=(FIRST, T1, T2)
)  # fmt: skip
_T2 = "T2: [||grad_x f||^2/ell_x(l u) + ||grad_y f||^2/ell_y(l u)]/2 <= f - f* for l > 1, l^2 >= lM(l u)/lm(l u)"
_T1 = "T1: ||grad f||^2/(2 lM(u)) <= Phi(u) <= f - f*, Phi(u) = int_0^u v/lM(v) dv, lM = max(ell_x, ell_y)"
CLAIMS = (
    Claim("b.2-1", "||grad_x f||^2/(2 ell_x(2u)) <= f - f*, u = ||grad f||.", "Lemma B.2 (1)",
          "Definition 2.1, coercive", "holds once corrected", f"{_T1}. {_T2}.", _FIRST_CHECK),
    Claim("b.2-2", "||grad_y f||^2/(2 ell_y(2u)) <= f - f*.", "Lemma B.2 (2)", "Definition 2.1, coercive",
          "holds once corrected", f"{_T1}. {_T2}. (The counterexample to (1) with the blocks' names swapped.)",
          _FIRST_CHECK),
    Claim("b.2-3", "[||grad_x f||^2/ell_x(2u) + ||grad_y f||^2/ell_y(2u)]/2 <= f - f*.", "Lemma B.2 (3)",
          "Definition 2.1, coercive", "holds once corrected", f"{_T2}; as printed where lM(2u) <= 4 lm(2u).",
          check_by(lambda: ridge.certificates("B.2 (3)"), flow_dense, searches=(THIRD, T2, NEAR))),
)  # fmt: skip
