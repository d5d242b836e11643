"""Random members with closed-form ell in two dimensions, evaluated for thousands of parameters at once.

    coupled     (a0/a1^2)(cosh a1 x - 1) + (b0/b1^2)(cosh b1 y - 1) + c phi(p x - q y), phi = 1 - cos or log cosh:
                the families Q (a1 -> 0), C and their couplings E1, E3, E4, E7, E8 of theory.md E; ell as in
                `smoothlab.objectives.couplings`, ell_x(u) = sqrt(a0^2 + a1^2 (u + c p)^2) + c p (p + q)
    product     a x^2/2 + b y^2/2 + c (sqrt(1 + x^2) sqrt(1 + y^2) - 1), ell_x(u) = a + c + c sqrt(1 + (u/b)^2): E9
    crossed     cosh(p x + q y) - 1 + m (x^2 + y^2)/2, with w = (p, q), s = w'z:

                    grad f = sinh(s) w + m z,  Hess f = cosh(s) ww' + m I,  0 <= ww' <= (p + q) diag(p, q)
                    w'grad f = |w|^2 sinh s + m s, of one sign: |sinh s| <= u/|w|,
                    ell_x(u) = m + p (p + q) sqrt(1 + u^2/|w|^2)

`smoothlab.objectives` has the first two in any dimension; tests/claims/test_members.py holds both to each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from smoothlab.claims.search import Array, Log

Pair = tuple[Array, Array]


class Member:
    """A function of (x, y) with f* = 0; every attribute is an array [cases] or a number, drawn from `RANGES`."""

    RANGES: dict[str, tuple[float, float]]

    @classmethod
    def split(cls, p: Array) -> tuple[Any, list[Array]]:
        """A member and the parameters that follow its own, from [cases, parameters]."""
        columns, count = list(p.T), len(cls.RANGES)
        return cls(*columns[:count]), columns[count:]

    def columns(self) -> Any:
        """The member with its parameters as columns [cases, 1], for points [cases, n]."""
        return type(self)(*(np.asarray(getattr(self, f.name))[:, None] for f in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Coupled(Member):
    """(a0/a1^2)(cosh a1 x - 1) + (b0/b1^2)(cosh b1 y - 1) + c phi(p x - q y); `bend` is at least 1/2 for log cosh."""

    a0: Array
    a1: Array
    b0: Array
    b1: Array
    c: Array
    p: Array
    q: Array
    bend: Array

    RANGES = {
        "a0": Log(0.1, 10.0), "a1": Log(1e-3, 2.0), "b0": Log(0.1, 10.0), "b1": Log(1e-3, 2.0), "c": Log(1e-3, 3.0),
        "p": (0.1, 2.0), "q": (0.1, 2.0), "bend": (0.0, 1.0),
    }  # fmt: skip

    def value(self, x: Array, y: Array) -> Array:
        """f - f*, f* = 0."""
        s = self.p * x - self.q * y
        phi = np.where(self.bend < 0.5, 1 - np.cos(s), np.logaddexp(s, -s) - np.log(2))
        parts = 2 * self.a0 / self.a1**2 * np.sinh(self.a1 * x / 2) ** 2
        parts = parts + 2 * self.b0 / self.b1**2 * np.sinh(self.b1 * y / 2) ** 2
        value: Array = parts + self.c * phi
        return value

    def gradient(self, x: Array, y: Array) -> Pair:
        """f_x and f_y."""
        s = self.p * x - self.q * y
        slope = self.c * np.where(self.bend < 0.5, np.sin(s), np.tanh(s))
        return (self.a0 / self.a1 * np.sinh(self.a1 * x) + self.p * slope,
                self.b0 / self.b1 * np.sinh(self.b1 * y) - self.q * slope)  # fmt: skip

    def ell(self, u: Array) -> Pair:
        """ell_x and ell_y."""
        x = np.hypot(self.a0, self.a1 * (u + self.c * self.p)) + self.c * self.p * (self.p + self.q)
        y = np.hypot(self.b0, self.b1 * (u + self.c * self.q)) + self.c * self.q * (self.p + self.q)
        return x, y


@dataclass(frozen=True)
class Product(Member):
    """a x^2/2 + b y^2/2 + c (sqrt(1 + x^2) sqrt(1 + y^2) - 1)."""

    a: Array
    b: Array
    c: Array

    RANGES = {"a": Log(0.1, 10.0), "b": Log(0.1, 10.0), "c": Log(0.1, 3.0)}

    def gradient_x(self, x: Array, y: Array) -> Array:
        """f_x."""
        slope: Array = self.a * x + self.c * x * np.sqrt((1 + y**2) / (1 + x**2))
        return slope

    def gradient(self, x: Array, y: Array) -> Pair:
        """f_x and f_y."""
        return self.gradient_x(x, y), Product(self.b, self.a, self.c).gradient_x(y, x)

    def ell_x(self, u: Array) -> Array:
        """ell_x."""
        ell: Array = self.a + self.c + self.c * np.hypot(1, u / self.b)
        return ell


@dataclass(frozen=True)
class Crossed(Member):
    """cosh(p x + q y) - 1 + m (x^2 + y^2)/2."""

    p: Array
    q: Array
    m: Array

    RANGES = {"p": (0.1, 2.0), "q": (0.1, 2.0), "m": Log(1e-3, 1.0)}

    def value(self, x: Array, y: Array) -> Array:
        """f - f*, f* = 0."""
        value: Array = np.cosh(self.p * x + self.q * y) - 1 + self.m * (x**2 + y**2) / 2
        return value

    def gradient(self, x: Array, y: Array) -> Pair:
        """f_x and f_y."""
        slope = np.sinh(self.p * x + self.q * y)
        return self.p * slope + self.m * x, self.q * slope + self.m * y

    def ell(self, u: Array) -> Pair:
        """ell_x and ell_y."""
        bend = (self.p + self.q) * np.sqrt(1 + u**2 / (self.p**2 + self.q**2))
        return self.m + self.p * bend, self.m + self.q * bend


def bounded_hessians(two_sided: bool) -> Iterator[tuple[Array, Array, Array]]:
    """2,000 random D (its diagonal), H with H <= D, and vectors; also -D <= H where `two_sided`."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        d = rng.integers(2, 6)
        diagonal, a = np.exp(3 * rng.normal(size=d)), rng.normal(size=(d, d))
        eigenvalues = np.abs(np.linalg.eigvalsh(a + a.T))
        # One-sided: scaled by the largest eigenvalue alone, H is as far below -D as it likes.
        size = eigenvalues[-1]
        if two_sided:
            size = eigenvalues.max()
        a = (a + a.T) / size
        yield diagonal, np.sqrt(np.outer(diagonal, diagonal)) * a, rng.normal(size=d)
