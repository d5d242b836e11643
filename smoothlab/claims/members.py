"""Random members with closed-form ell in two dimensions, evaluated for thousands of parameters at once.

    coupled     (a0/a1^2)(cosh a1 x - 1) + (b0/b1^2)(cosh b1 y - 1) + c phi(p x - q y), phi = 1 - cos or log cosh:
                the families Q (a1 -> 0), C and their couplings E1, E3, E4, E7, E8 of theory.md E; ell as in
                `smoothlab.objectives.couplings`, ell_x(u) = sqrt(a0^2 + a1^2 (u + c p)^2) + c p (p + q)
    product     a x^2/2 + b y^2/2 + c (sqrt(1 + x^2) sqrt(1 + y^2) - 1), ell_x(u) = a + c + c sqrt(1 + (u/b)^2): E9

`smoothlab.objectives` has them in any dimension; tests/claims/test_members.py holds both to each other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Coupled:
    """See the module; every attribute is an array [cases], `bend` at least 1/2 for log cosh."""

    a0: Array
    a1: Array
    b0: Array
    b1: Array
    c: Array
    p: Array
    q: Array
    bend: Array

    NAMES = ("a0", "a1", "b0", "b1", "c", "p", "q", "bend")
    RANGES = ((0.1, 10.0), (1e-3, 2.0), (0.1, 10.0), (1e-3, 2.0), (1e-3, 3.0), (0.1, 2.0), (0.1, 2.0), (0.0, 1.0))
    LOG = (True, True, True, True, True, False, False, False)

    def value(self, x: Array, y: Array) -> Array:
        """f - f*, f* = 0."""
        s = self.p * x - self.q * y
        phi = np.where(self.bend < 0.5, 1 - np.cos(s), np.logaddexp(s, -s) - np.log(2))
        parts = 2 * self.a0 / self.a1**2 * np.sinh(self.a1 * x / 2) ** 2
        parts = parts + 2 * self.b0 / self.b1**2 * np.sinh(self.b1 * y / 2) ** 2
        found: Array = parts + self.c * phi
        return found

    def gradient(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Both entries."""
        s = self.p * x - self.q * y
        slope = self.c * np.where(self.bend < 0.5, np.sin(s), np.tanh(s))
        return (self.a0 / self.a1 * np.sinh(self.a1 * x) + self.p * slope,
                self.b0 / self.b1 * np.sinh(self.b1 * y) - self.q * slope)  # fmt: skip

    def ell(self, u: Array) -> tuple[Array, Array]:
        """ell_x and ell_y."""
        x = np.hypot(self.a0, self.a1 * (u + self.c * self.p)) + self.c * self.p * (self.p + self.q)
        y = np.hypot(self.b0, self.b1 * (u + self.c * self.q)) + self.c * self.q * (self.p + self.q)
        return x, y

    @classmethod
    def split(cls, p: Array) -> tuple["Coupled", list[Array]]:
        """A member and the parameters that follow its own, from [cases, parameters]."""
        columns = list(p.T)
        return cls(*columns[:8]), columns[8:]


@dataclass(frozen=True)
class Product:
    """See the module."""

    a: Array
    b: Array
    c: Array

    NAMES = ("a", "b", "c")
    RANGES = ((0.1, 10.0), (0.1, 10.0), (0.1, 3.0))
    LOG = (True, True, True)

    def gradient_x(self, x: Array, y: Array) -> Array:
        """f_x."""
        found: Array = self.a * x + self.c * x * np.sqrt((1 + y**2) / (1 + x**2))
        return found

    def gradient(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Both entries."""
        return self.gradient_x(x, y), Product(self.b, self.a, self.c).gradient_x(y, x)

    def ell_x(self, u: Array) -> Array:
        """ell_x."""
        found: Array = self.a + self.c + self.c * np.hypot(1, u / self.b)
        return found
