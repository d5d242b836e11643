"""Lemma B.1: which constant, which neighborhood, which y'. One counterexample each, and what holds instead."""

from typing import Any

import numpy as np

from smoothlab.claims import exact, ridge
from smoothlab.claims.claim import Certificate, Claim
from smoothlab.claims.members import Coupled, Product, bounded_hessians
from smoothlab.claims.search import Array, Statement, check_by, statement

_AROUND = {"x": (-2.0, 2.0), "y": (-2.0, 2.0), "s1": (0.05, 1.0), "s2": (-1.0, 0.0)}
_COUPLED = {**Coupled.RANGES, **_AROUND}


def _points(p: Array) -> tuple[Coupled, list[Array], Array, Array, Array]:
    """A member, positions in [-1, 1] around a point z, z itself, and G = ||grad f(z)||."""
    f, (x, y, *where) = Coupled.split(p)
    return f, where, x, y, np.hypot(*f.gradient(x, y))


@statement("item 1 with L_x = ell_x(G) and y' = y, coupled members", _COUPLED)
def ELL_OF_G(p: Array) -> Array:
    """||grad_x f(x1, y) - grad_x f(x2, y)|| over L ||x1 - x2||, x1 and x2 in the ball of radius G/L around x."""
    f, (s1, s2), x, y, G = _points(p)
    L = f.ell(G)[0]
    return _difference(f, x + s1 * G / L, x + s2 * G / L, y, L)


@statement("item 1 with L_x = ell_x(2G), radius 1/L_x, y' = y, coupled members", _COUPLED)
def UNIT_RADIUS(p: Array) -> Array:
    """||grad_x f(x1, y) - grad_x f(x2, y)|| over L ||x1 - x2||, within 1/L."""
    f, (s1, s2), x, y, G = _points(p)
    L = f.ell(2 * G)[0]
    return _difference(f, x + s1 / L, x + s2 / L, y, L)


def _difference(f: Coupled, x1: Array, x2: Array, y: Array, L: Array) -> Array:
    return np.abs(f.gradient(x1, y)[0] - f.gradient(x2, y)[0]) / (L * np.abs(x1 - x2))


@statement(
    "B.1': items 1 and 3 with ell(2G) on the ellipsoid, coupled members",
    {**_COUPLED, "t": (-0.99, 0.99)}, about="corrected", known=1.0,
)  # fmt: skip
def ELLIPSOID(p: Array) -> Array:
    """The tighter item where L_x dx^2 + L_y dy^2 <= G^2/max(L_x, L_y)."""
    f, (s1, s2, t), x, y, G = _points(p)
    L_x, L_y = f.ell(2 * G)
    top = np.maximum(L_x, L_y)
    room = np.sqrt(1 - t**2) * G / np.sqrt(L_x * top)
    x1, x2, y1 = x + s1 * room, x + s2 * room, y + t * G / np.sqrt(L_y * top)
    first = _difference(f, x1, x2, y1, L_x)
    g_x, g_y = f.gradient(x, y)
    rise = np.abs(f.value(x1, y1) - f.value(x, y) - g_x * (x1 - x) - g_y * (y1 - y))
    return np.maximum(first, rise / (L_x * (x1 - x) ** 2 / 2 + L_y * (y1 - y) ** 2 / 2))


@statement("item 3 with L = ell(G) and y' = y, coupled members", _COUPLED)
def DESCENT(p: Array) -> Array:
    """f(x + dx, y) - f(x, y) - f_x(x, y) dx over L dx^2/2."""
    f, (s1, _), x, y, G = _points(p)
    L = f.ell(G)[0]
    step = s1 * G / L
    rise = f.value(x + step, y) - f.value(x, y) - f.gradient(x, y)[0] * step
    return rise / (L * step**2 / 2)


@statement(
    "item 1 with L_x = ell_x(2G), radius G/L_x, every y', product members",
    {**Product.RANGES, **_AROUND, "y'": (-1000.0, 1000.0)},
)  # fmt: skip
def ANY_Y(p: Array) -> Array:
    """||grad_x f(x1, y') - grad_x f(x2, y')|| over L ||x1 - x2||."""
    a, b, c, x, y, s1, s2, y1 = p.T
    f = Product(a, b, c)
    G = np.hypot(*f.gradient(x, y))
    L = f.ell_x(2 * G)
    x1, x2 = x + s1 * G / L, x + s2 * G / L
    return np.abs(f.gradient_x(x1, y1) - f.gradient_x(x2, y1)) / (L * np.abs(x1 - x2))


RIDGE = Statement("item 1 with ell(2G), radius G/L_x and y' = y, ridges", {**ridge.RANGES, "x1": (-3.0, 3.0)},
                  ridge.far_difference, cases=200, steps=60)  # fmt: skip

# Certificates


def _cosh(side: str) -> tuple[Certificate, ...]:
    """f = cosh, ell(u) = sqrt(1 + u^2), at 1 and 1.1: ell(G) = cosh 1; G/L = tanh 1 and 1/L exceed 0.1."""
    moved = exact.sinh(exact.enclosed("1.1")) - exact.sinh(exact.enclosed(1))
    allowed = exact.cosh(exact.enclosed(1)) * exact.enclosed("0.1")
    return exact.refutes(f"item 1 with L = ell(G), block {side}: f = cosh between 1 and 1.1", moved, allowed)


def _cosh_near_0(side: str) -> tuple[Certificate, ...]:
    """At 0.05: G = sinh 0.05, L = ell(2G) = 1.005, and 1 is within 1/L."""
    x, g = exact.enclosed("0.05"), exact.sinh(exact.enclosed("0.05"))
    L = exact.sqrt(1 + 4 * g * g)
    moved = exact.sinh(exact.enclosed(1)) - g
    return exact.refutes(f"item 1 with radius 1/L, L = ell(2G), block {side}: f = cosh between 0.05 and 1",
                         moved, L * (1 - x))  # fmt: skip


def _product(side: str) -> tuple[Certificate, ...]:
    """x^2/2 + y^2/2 + sqrt(1 + x^2) sqrt(1 + y^2) - 1 at (0, 0), G = 1, ell = 3 + u: L = ell(2G) = 5, radius 1/5."""
    x, y = exact.enclosed("0.1"), exact.enclosed(100)
    moved = x + x * exact.sqrt((1 + y * y) / (1 + x * x))
    return exact.refutes(f"item 1 with y' = 100, block {side}: x^2/2 + y^2/2 + sqrt(1 + x^2) sqrt(1 + y^2) - 1",
                         moved, 5 * x)  # fmt: skip


def _cosh_descent() -> tuple[Certificate, ...]:
    """cosh from 1 to 1.1 rises by more than its slope and L = ell(G) = cosh 1 allow."""
    a, b, h = exact.enclosed(1), exact.enclosed("1.1"), exact.enclosed("0.1")
    line: Any = exact.cosh(a) + exact.sinh(a) * h
    return exact.refutes("item 3 with L = ell(G): f = cosh from 1 to 1.1", exact.cosh(b),
                         line + exact.cosh(a) * h * h / 2)  # fmt: skip


def _ellipsoid_dense() -> Certificate:
    """The step of the proof that is not algebra: ||H s|| <= sqrt(max L) ||s||_D for -D <= H <= D, on random H."""
    ratios = []
    for diagonal, H, s in bounded_hessians(two_sided=True):
        ratios.append(np.linalg.norm(H @ s) / np.sqrt(diagonal.max() * (diagonal @ s**2)))
    inequality = (
        "B.1' (proof: theory.md B.1): -D <= H <= D gives ||H s|| <= sqrt(max L) ||s||_D, so ||grad f|| stays below 2G"
    )
    return exact.dense(inequality, ratios, "corrected")


_CORRECTED = "L = ell(2G) on the ellipsoid L_x dx^2 + L_y dy^2 <= G^2/max(L_x, L_y): "
CLAIMS = (
    Claim("b.1-1", "||grad f(z)|| <= G: ||grad_x f(x1, y') - grad_x f(x2, y')|| <= L_x ||x1 - x2|| in the ball around "
          "x of radius G/L_x (or 1/L_x), L_x = ell_x(G) (or ell_x(2G)), for all y'.", "Lemma B.1 (1)",
          "Definition 2.1, two-sided", "holds once corrected", _CORRECTED + "for segments inside it.",
          check_by(lambda: _cosh("x"), lambda: _cosh_near_0("x"), lambda: _product("x"),
          lambda: ridge.certificates("B.1"), _ellipsoid_dense, searches=(ELL_OF_G, UNIT_RADIUS, ANY_Y, RIDGE,
          ELLIPSOID))),
    Claim("b.1-2", "The same for block y, for all x'.", "Lemma B.1 (2)", "Definition 2.1, two-sided",
          "holds once corrected", _CORRECTED + "for segments inside it.",
          check_by(lambda: _cosh("y"), lambda: _cosh_near_0("y"), lambda: _product("y"), _ellipsoid_dense,
          searches=(ELL_OF_G, UNIT_RADIUS, ANY_Y, ELLIPSOID))),
    Claim("b.1-3", "f(z') <= f(z) + <grad f(z), z' - z> + (L_x ||dx||^2 + L_y ||dy||^2)/2 there.", "Lemma B.1 (3)",
          "Definition 2.1, two-sided", "holds once corrected", _CORRECTED + "from above and below.",
          check_by(_cosh_descent, _ellipsoid_dense, searches=(DESCENT, ELLIPSOID))),
)  # fmt: skip
