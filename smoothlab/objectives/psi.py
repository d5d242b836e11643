"""Families of block functions, psi(x) = sum_j psi(x_j), with closed-form derivatives and ell; here the slow ones.

A family is one even function psi of one number with its minimum 0 at 0. Its Hessian is diag(psi''(x_j)), and
|psi''(t)| <= ell(|psi'(t)|) for every t makes Definition 2.1 hold on the block with the same ell in any dimension:
max_j ell(|psi'(x_j)|) <= ell(||grad psi(x)||), as ell does not decrease (theory.md E).

What couplings need is how far a point can be where the gradient is small. All families have psi'(t) t >= 0, and

    psi'(t) t summed over a block >= floor ||x||^2 - deficit,       ||x|| <= reach(||grad psi(x)||).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from smoothlab.errors import BadInput

Array = NDArray[np.float64]
Moments = Literal["finite", "infinite"]


def positive(what: str, value: float, below: float = math.inf) -> None:
    """Refuse a parameter that is not in (0, below).

    Raises:
        BadInput: names the parameter and its range.
    """
    if not 0 < value < below:
        end = "positive and finite" if below == math.inf else f"between 0 and {below:g}"
        raise BadInput(f"{what} is {value}: give a number that is {end}")


@dataclass(frozen=True)
class Psi(ABC):
    """One family. `value`, `slope` and `curvature` act on every entry of a tensor of any shape.

    Attributes:
        gaussian_moments: whether E f stays finite after steps of a zeroth-order estimate with Gaussian directions.
        reason: why not, in one line.
        half_width: the domain is (-half_width, half_width); f is infinite and has no gradient outside.
    """

    @property
    def gaussian_moments(self) -> Moments:
        """Polynomial growth keeps all moments finite for any finite number of steps."""
        return "finite"

    @property
    def reason(self) -> str:
        """Empty where moments are finite."""
        return ""

    @property
    def half_width(self) -> float:
        """Infinite except for barriers."""
        return math.inf

    @abstractmethod
    def value(self, t: Tensor) -> Tensor:
        """psi."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """psi'."""

    @abstractmethod
    def curvature(self, t: Tensor) -> Tensor:
        """psi''."""

    @abstractmethod
    def ell(self, u: ArrayLike) -> Array:
        """A non-decreasing, sub-quadratic bound of |psi''| where |psi'| <= u."""

    @property
    @abstractmethod
    def floor(self) -> float:
        """See the module."""

    def deficit(self, dim: int) -> float:
        """See the module."""
        return 0.0

    def reach(self, u: ArrayLike, dim: int) -> Array:
        """See the module; psi'(t)/t >= floor gives ||x|| <= u/floor."""
        return np.asarray(u, dtype=float) / self.floor

    @abstractmethod
    def edge(self, level: float) -> float:
        """The largest t with psi(t) <= level, or more."""

    def sublevel_curvature(self, level: float) -> float:
        """Sup |psi''| where psi <= level: of ||Hess|| on a block's sublevel set too, in any dimension.

        Exact, as psi'' is even and grows with |t| in all families but one.
        """
        return float(self.curvature(torch.tensor(self.edge(level), dtype=torch.float64)))


@dataclass(frozen=True)
class Quadratic(Psi):
    """L t^2/2, with ell = L.

    >>> from smoothlab import Quadratic
    >>> round(float(Quadratic(2.0).ell(1.0)), 4)   # |psi''| where |psi'| <= 1
    2.0
    """

    L: float

    def __post_init__(self) -> None:
        positive("the curvature L of a quadratic", self.L)

    def value(self, t: Tensor) -> Tensor:
        """L t^2/2."""
        return t.square() * (self.L / 2)

    def slope(self, t: Tensor) -> Tensor:
        """L t."""
        return t * self.L

    def curvature(self, t: Tensor) -> Tensor:
        """L."""
        return torch.full_like(t, self.L)

    def ell(self, u: ArrayLike) -> Array:
        """L."""
        return np.full_like(np.asarray(u, dtype=float), self.L)

    @property
    def floor(self) -> float:
        """L."""
        return self.L

    def edge(self, level: float) -> float:
        """sqrt(2F/L)."""
        return math.sqrt(2 * level / self.L)


@dataclass(frozen=True)
class Power(Psi):
    """c |t|^p / p with p > 2, and ell = (p - 1) c^(1/(p - 1)) u^((p - 2)/(p - 1)): ell(0) = 0.

    >>> from smoothlab import Power
    >>> round(float(Power(1.0, 4.0).ell(1.0)), 4)   # |psi''| where |psi'| <= 1
    3.0
    """

    c: float
    p: float

    def __post_init__(self) -> None:
        positive("the factor c of a power", self.c)
        if not 2 < self.p < math.inf:
            raise BadInput(f"the exponent p of a power is {self.p}: give one above 2 (2 is Quadratic)")

    def value(self, t: Tensor) -> Tensor:
        """c |t|^p / p."""
        return t.abs().pow(self.p) * (self.c / self.p)

    def slope(self, t: Tensor) -> Tensor:
        """c |t|^(p - 1) sign t."""
        return t.abs().pow(self.p - 1) * t.sign() * self.c

    def curvature(self, t: Tensor) -> Tensor:
        """(p - 1) c |t|^(p - 2)."""
        return t.abs().pow(self.p - 2) * (self.c * (self.p - 1))

    def ell(self, u: ArrayLike) -> Array:
        """(p - 1) c^(1/(p - 1)) u^((p - 2)/(p - 1))."""
        q = 1 / (self.p - 1)
        return (self.p - 1) * self.c**q * np.asarray(u, dtype=float) ** (1 - q)

    @property
    def floor(self) -> float:
        """c, at the price of a deficit: sum_j |t_j|^p >= d^(1 - p/2) ||t||^p >= ||t||^2 - deficit/c."""
        return self.c

    def deficit(self, dim: int) -> float:
        """c max_r (r^2 - d^(1 - p/2) r^p), at r^2 = d (2/p)^(2/(p - 2))."""
        return self.c * dim * (2 / self.p) ** (2 / (self.p - 2)) * (1 - 2 / self.p)

    def reach(self, u: ArrayLike, dim: int) -> Array:
        """sqrt(d) (u / (c sqrt(d)))^(1/(p - 1)): all entries alike, as t_j^2 is a concave function of psi'(t_j)^2."""
        return math.sqrt(dim) * (np.asarray(u, dtype=float) / (self.c * math.sqrt(dim))) ** (1 / (self.p - 1))

    def edge(self, level: float) -> float:
        """(p F/c)^(1/p); the sublevel constant of p = 4 is 6 sqrt(c F)."""
        return (self.p * level / self.c) ** (1 / self.p)


@dataclass(frozen=True)
class Oscillating(Psi):
    """t^2/2 + A (1 - cos(r^m - 1)) with r = sqrt(1 + t^2), 1 <= m < 2, A m < 1: not convex.

    ell = 1 + A m + A m^2 (u/(1 - A m))^(2m - 2): |t| <= u/(1 - A m), and psi'' - 1 is A times
    cos(r^m - 1) (m r^(m - 2) t)^2, at most m^2 |t|^(2m - 2), plus sin(r^m - 1) m r^(m - 2) (1 + (m - 2) t^2/r^2).

    >>> from smoothlab import Oscillating
    >>> round(float(Oscillating(0.3, 1.75).ell(1.0)), 4)   # |psi''| where |psi'| <= 1
    4.3314
    """

    A: float
    m: float

    def __post_init__(self) -> None:
        positive("the amplitude A of an oscillating function", self.A)
        if not 1 <= self.m < 2:
            raise BadInput(f"the exponent m of an oscillating function is {self.m}: give 1 <= m < 2")
        if not self.A * self.m < 1:
            raise BadInput(
                f"A m of an oscillating function is {self.A * self.m:g}: it must be below 1, or f has other minima"
            )

    def _phase(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """r^2 and r^m - 1."""
        return 1 + t.square(), torch.expm1(torch.log1p(t.square()) * (self.m / 2))

    def value(self, t: Tensor) -> Tensor:
        """1 - cos w = 2 sin^2(w/2)."""
        return t.square() / 2 + 2 * self.A * torch.sin(self._phase(t)[1] / 2).square()

    def slope(self, t: Tensor) -> Tensor:
        """t (1 + A m r^(m - 2) sin(r^m - 1))."""
        square, w = self._phase(t)
        return t * (1 + self.A * self.m * square.pow(self.m / 2 - 1) * torch.sin(w))

    def curvature(self, t: Tensor) -> Tensor:
        """See the class."""
        square, w = self._phase(t)
        bend = square.pow(self.m / 2 - 1) * (1 + (self.m - 2) * t.square() / square) * self.m
        return 1 + self.A * (torch.cos(w) * (self.m * t).square() * square.pow(self.m - 2) + torch.sin(w) * bend)

    def ell(self, u: ArrayLike) -> Array:
        """See the class."""
        slack = 1 - self.A * self.m
        with np.errstate(over="ignore"):
            return 1 + self.A * self.m + self.A * self.m**2 * (np.asarray(u, dtype=float) / slack) ** (2 * self.m - 2)

    @property
    def floor(self) -> float:
        """1 - A m."""
        return 1 - self.A * self.m

    def edge(self, level: float) -> float:
        """sqrt(2F), where psi is between F and F + 2A."""
        return math.sqrt(2 * level)

    def sublevel_curvature(self, level: float) -> float:
        """On a grid of 2^16 points: to about 1e-6 from below (psi'' has no closed-form maximum)."""
        t = torch.linspace(0, self.edge(level), 1 << 16, dtype=torch.float64)
        return float(self.curvature(t[self.value(t) <= level]).abs().max())
