"""Families of block functions, psi(x) = sum_j psi(x_j), with closed-form derivatives and ell.

A family is one even function psi of one number with its minimum 0 at 0. Its Hessian is diag(psi''(x_j)), and
|psi''(t)| <= ell(|psi'(t)|) for every t makes Definition 2.1 hold on the block with the same ell in any dimension:
max_j ell(|psi'(x_j)|) <= ell(||grad psi(x)||), as ell does not decrease (theory.md E).

What couplings need is how far a point can be where the gradient is small. All families have psi'(t) t >= 0, and

    psi'(t) t summed over a block >= floor ||x||^2 - deficit,       ||x|| <= reach(||grad psi(x)||).

`Cosh`, `Exponential` and `Barrier` outgrow every power or leave R: after one step with Gaussian directions E f is
infinite (theory.md B). In block x they need bounded directions, those of the sphere; in block y, which has exact
gradients, they are as good as any.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from smoothlab.errors import BadInput

Array = NDArray[np.float64]
Side = Literal["x", "y"]


def positive(name: str, value: float) -> None:
    """Refuse a parameter that is not in (0, infinity).

    Raises:
        BadInput: names the parameter.
    """
    if not 0 < value < math.inf:
        raise BadInput(f"{name} is {value}: give a number that is positive and finite")


@dataclass(frozen=True)
class Psi(ABC):
    """A function of one number; `value`, `slope` and `curvature` act on every entry of a tensor of any shape."""

    # why E f is infinite after a zeroth-order step with Gaussian directions; empty where it is finite
    reason: ClassVar[str] = ""
    # the domain is (-half_width, half_width); f is infinite and has no gradient outside
    half_width: ClassVar[float] = math.inf

    @abstractmethod
    def psi(self, t: Tensor, order: int) -> Tensor:
        """psi, or its first or second derivative, at t."""

    @abstractmethod
    def ell(self, u: ArrayLike) -> Array:
        """A non-decreasing, sub-quadratic bound of |psi''| where |psi'| <= u."""

    @property
    @abstractmethod
    def floor(self) -> float:
        """The largest number of which psi'(t)/t is not below, for every t; see the module."""

    @abstractmethod
    def edge(self, level: float) -> float:
        """The largest t with psi(t) <= level, or more."""

    def value(self, t: Tensor) -> Tensor:
        """psi(t)."""
        return self.psi(t, 0)

    def slope(self, t: Tensor) -> Tensor:
        """psi'(t)."""
        return self.psi(t, 1)

    def curvature(self, t: Tensor) -> Tensor:
        """psi''(t)."""
        return self.psi(t, 2)

    def deficit(self, dim: int) -> float:
        """The deficit of the module's inequality for a block of `dim` entries."""
        return 0.0

    def reach(self, u: ArrayLike, dim: int) -> Array:
        """A bound of ||x|| where ||grad psi(x)|| <= u: psi'(t)/t >= floor gives u/floor."""
        return np.asarray(u, dtype=float) / self.floor

    def sublevel_curvature(self, level: float) -> float:
        """Sup |psi''| where psi <= level: of ||Hess|| on a block's sublevel set too, in any dimension.

        Exact, as psi'' is even and grows with |t| in all families but one.
        """
        return float(self.curvature(torch.tensor(self.edge(level), dtype=torch.float64)))


@dataclass(frozen=True)
class Quadratic(Psi):
    """A family for `objective`: psi(t) = L t^2/2 of each entry t.

    ell(u) = L bounds |psi''| where |psi'| <= u.

    >>> from smoothlab import Quadratic
    >>> float(Quadratic(2.0).ell(1.0).round(4))  # |psi''| where |psi'| <= 1
    2.0
    """

    L: float

    def __post_init__(self) -> None:
        positive("the curvature L of a quadratic", self.L)

    def psi(self, t: Tensor, order: int) -> Tensor:
        """L t^2/2, L t, L."""
        if order == 0:
            return t.square() * (self.L / 2)
        return t * self.L if order == 1 else torch.full_like(t, self.L)

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
    """A family for `objective`: psi(t) = c |t|^p / p of each entry t, p > 2.

    ell(u) = (p - 1) c^(1/(p - 1)) u^((p - 2)/(p - 1)) bounds |psi''| where |psi'| <= u, and ell(0) = 0.

    >>> from smoothlab import Power
    >>> float(Power(1.0, 4.0).ell(1.0).round(4))  # |psi''| where |psi'| <= 1
    3.0
    """

    c: float
    p: float

    def __post_init__(self) -> None:
        positive("the factor c of a power", self.c)
        if not 2 < self.p < math.inf:
            raise BadInput(f"the exponent p of a power is {self.p}: give one above 2 (2 is Quadratic)")

    def psi(self, t: Tensor, order: int) -> Tensor:
        """c |t|^p/p, c |t|^(p - 1) sign t, (p - 1) c |t|^(p - 2)."""
        power = t.abs().pow(self.p - order)  # p > 2, so that all of them are 0 at 0
        if order == 0:
            return power * (self.c / self.p)
        return power * t.sign() * self.c if order == 1 else power * (self.c * (self.p - 1))

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
    """A family for `objective` that is not convex: psi(t) = t^2/2 + A (1 - cos(r^m - 1)) of each entry t.

    Here r = sqrt(1 + t^2), 1 <= m < 2 and A m < 1. ell(u) = 1 + A m + A m^2 (u/(1 - A m))^(2m - 2) bounds |psi''| where
    |psi'| <= u: there |t| <= u/(1 - A m), and psi'' - 1 is A times cos(r^m - 1) (m r^(m - 2) t)^2, at most
    m^2 |t|^(2m - 2), plus sin(r^m - 1) m r^(m - 2) (1 + (m - 2) t^2/r^2).

    >>> from smoothlab import Oscillating
    >>> float(Oscillating(0.3, 1.75).ell(1.0).round(4))  # |psi''| where |psi'| <= 1
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

    def psi(self, t: Tensor, order: int) -> Tensor:
        """The class's psi and psi''; psi' = t (1 + A m r^(m - 2) sin(r^m - 1))."""
        square, phase = 1 + t.square(), torch.expm1(torch.log1p(t.square()) * (self.m / 2))  # r^2 and r^m - 1
        if order == 0:  # 1 - cos w = 2 sin^2(w/2) keeps its digits near 0
            return t.square() / 2 + 2 * self.A * torch.sin(phase / 2).square()
        if order == 1:
            return t * (1 + self.A * self.m * square.pow(self.m / 2 - 1) * torch.sin(phase))
        bend = square.pow(self.m / 2 - 1) * (1 + (self.m - 2) * t.square() / square) * self.m
        steep = torch.cos(phase) * (self.m * t).square() * square.pow(self.m - 2)
        return 1 + self.A * (steep + torch.sin(phase) * bend)

    def ell(self, u: ArrayLike) -> Array:
        """1 + A m + A m^2 (u/(1 - A m))^(2m - 2)."""
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


@dataclass(frozen=True)
class Cosh(Psi):
    """A family for `objective`: psi(t) = (L0/L1^2)(cosh(L1 t) - 1) of each entry t, which is (L0, L1)-smooth.

    ell(u) = sqrt(L0^2 + L1^2 u^2) <= L0 + L1 u bounds |psi''| where |psi'| <= u: equality in one dimension.

    >>> from smoothlab import Cosh
    >>> float(Cosh(1.0, 0.5).ell(1.0).round(4))  # |psi''| where |psi'| <= 1
    1.118
    """

    L0: float
    L1: float
    reason = "cosh grows exponentially: after one step with Gaussian directions E f is infinite"

    def __post_init__(self) -> None:
        positive("L0 of a cosh", self.L0)
        positive("L1 of a cosh", self.L1)

    def psi(self, t: Tensor, order: int) -> Tensor:
        """The value is written as 2 sinh^2(L1 t/2), which keeps its digits near 0; psi'' = L0 cosh(L1 t)."""
        if order == 0:
            return torch.sinh(t * (self.L1 / 2)).square() * (2 * self.L0 / self.L1**2)
        return torch.sinh(t * self.L1) * (self.L0 / self.L1) if order == 1 else torch.cosh(t * self.L1) * self.L0

    def ell(self, u: ArrayLike) -> Array:
        """sqrt(L0^2 + L1^2 u^2)."""
        with np.errstate(over="ignore"):  # an infinite bound is a true one
            return np.hypot(self.L0, self.L1 * np.asarray(u, dtype=float))

    @property
    def floor(self) -> float:
        """L0."""
        return self.L0

    def edge(self, level: float) -> float:
        """arccosh(1 + F L1^2/L0)/L1; the sublevel constant is L0 + L1^2 F."""
        return 2 * math.asinh(self.L1 * math.sqrt(level / (2 * self.L0))) / self.L1


@dataclass(frozen=True)
class Exponential(Psi):
    """A family for `objective`: psi(t) = e^(t^2) - 1 of each entry t, which grows faster than every power.

    ell(u) = 6e + u (1 + 2 sqrt(log(1 + u))), faster than every line, bounds |psi''| where |psi'| <= u.

    psi'' = (2 + 4t^2) e^(t^2) is below 6e for |t| <= 1; beyond, psi''/|psi'| = 1/|t| + 2|t| and t^2 <= log(1 + |psi'|).

    >>> from smoothlab import Exponential
    >>> float(Exponential().ell(1.0).round(4))  # |psi''| where |psi'| <= 1
    18.9748
    """

    floor = 2.0  # psi'(t)/t >= 2
    reason = "exp(t^2) has no Gaussian mean: E f is infinite after one step, and for mu^2 >= 1/2 so is E f(x + mu v)"

    def psi(self, t: Tensor, order: int) -> Tensor:
        """e^(t^2) - 1, 2t e^(t^2), (2 + 4t^2) e^(t^2)."""
        if order == 0:
            return torch.expm1(t.square())
        return (2 * t if order == 1 else 2 + 4 * t.square()) * torch.exp(t.square())

    def ell(self, u: ArrayLike) -> Array:
        """6e + u (1 + 2 sqrt(log(1 + u)))."""
        u = np.asarray(u, dtype=float)
        with np.errstate(over="ignore"):
            return 6 * math.e + u * (1 + 2 * np.sqrt(np.log1p(u)))

    def edge(self, level: float) -> float:
        """sqrt(log(1 + F))."""
        return math.sqrt(math.log1p(level))


@dataclass(frozen=True)
class Barrier(Psi):
    """A family for `objective`: psi(t) = (1 - t^2)^(-p) - 1 of each entry t in (-1, 1), infinite outside.

    ell(u) = 4p(p + 1)[(4/3)^(p + 2) + (u/p)^((p + 2)/(p + 1))] bounds |psi''| where |psi'| <= u.

    psi'' = 2p (1 - t^2)^(-p - 2)(1 + (2p + 1) t^2) is below 4p(p + 1)(1 - t^2)^(-p - 2), and from |t| = 1/2 on
    |psi'| >= p (1 - t^2)^(-p - 1). The domain is open (the setting of Li et al.): Assumption 3.2 asks for all of R^d.

    >>> from smoothlab import Barrier
    >>> float(Barrier(1.3).ell(1.0).round(4))  # |psi''| where |psi'| <= 1
    39.1132
    """

    p: float = 1.0
    reason = "Gaussian directions leave the barrier's domain (-1, 1), where f is infinite"
    half_width = 1.0

    def __post_init__(self) -> None:
        positive("the exponent p of a barrier", self.p)

    def psi(self, t: Tensor, order: int) -> Tensor:
        """The class's function; outside the domain the value is infinite and the derivatives are NaN."""
        if order == 0:
            inside = t.abs() < 1
            s = torch.where(inside, t, 0.0)
            # 1 - t^2 rounds too coarsely near 1, and (1 - t)(1 + t) near 0.
            log = torch.where(s.abs() < 0.5, torch.log1p(-s.square()), torch.log1p(-s) + torch.log1p(s))
            values = torch.expm1(log * -self.p)
            return torch.where(inside, values, torch.where(t.isnan(), t, math.inf))
        gap = (1 - t) * (1 + t)  # 1 - t^2, without the cancellation of t^2
        gap = torch.where(gap > 0, gap, math.nan)
        if order == 1:
            return 2 * self.p * t * gap.pow(-self.p - 1)
        return 2 * self.p * gap.pow(-self.p - 2) * (1 + (2 * self.p + 1) * t.square())

    def ell(self, u: ArrayLike) -> Array:
        """4p(p + 1)[(4/3)^(p + 2) + (u/p)^((p + 2)/(p + 1))]."""
        with np.errstate(over="ignore"):
            grown = (np.asarray(u, dtype=float) / self.p) ** ((self.p + 2) / (self.p + 1))
            return 4 * self.p * (self.p + 1) * ((4 / 3) ** (self.p + 2) + grown)

    @property
    def floor(self) -> float:
        """2p."""
        return 2 * self.p

    def edge(self, level: float) -> float:
        """sqrt(1 - (1 + F)^(-1/p))."""
        return math.sqrt(-math.expm1(-math.log1p(level) / self.p))
