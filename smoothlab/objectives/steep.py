"""Families that outgrow every power or leave R: after one step with Gaussian directions E f is infinite (theory.md B).

In block x they need bounded directions, those of the sphere; in block y, which has exact gradients, they are as good as
any (`smoothlab.objectives.psi`).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.objectives.psi import Array, Moments, Psi, positive


@dataclass(frozen=True)
class Cosh(Psi):
    """(L0/L1^2)(cosh(L1 t) - 1), with ell = sqrt(L0^2 + L1^2 u^2) <= L0 + L1 u: equality in one dimension.

    >>> from smoothlab import Cosh
    >>> round(float(Cosh(1.0, 0.5).ell(1.0)), 4)   # |psi''| where |psi'| <= 1
    1.118
    """

    L0: float
    L1: float

    def __post_init__(self) -> None:
        positive("L0 of a cosh", self.L0)
        positive("L1 of a cosh", self.L1)

    @property
    def gaussian_moments(self) -> Moments:
        """E f is infinite after one step: a double exponential of a Gaussian."""
        return "infinite"

    @property
    def reason(self) -> str:
        """One line."""
        return "cosh grows exponentially: after one step with Gaussian directions E f is infinite"

    def value(self, t: Tensor) -> Tensor:
        """Written as 2 sinh^2(L1 t/2), which keeps its digits near 0."""
        return torch.sinh(t * (self.L1 / 2)).square() * (2 * self.L0 / self.L1**2)

    def slope(self, t: Tensor) -> Tensor:
        """(L0/L1) sinh(L1 t)."""
        return torch.sinh(t * self.L1) * (self.L0 / self.L1)

    def curvature(self, t: Tensor) -> Tensor:
        """L0 cosh(L1 t)."""
        return torch.cosh(t * self.L1) * self.L0

    def ell(self, u: ArrayLike) -> Array:
        """sqrt(L0^2 + L1^2 u^2)."""
        with np.errstate(over="ignore"):
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
    """e^(t^2) - 1, with ell = 6e + u (1 + 2 sqrt(log(1 + u))): grows faster than every power, ell than every line.

    psi'' = (2 + 4t^2) e^(t^2) is below 6e for |t| <= 1; beyond, psi''/|psi'| = 1/|t| + 2|t| and t^2 <= log(1 + |psi'|).

    >>> from smoothlab import Exponential
    >>> round(float(Exponential().ell(1.0)), 4)   # |psi''| where |psi'| <= 1
    18.9748
    """

    @property
    def gaussian_moments(self) -> Moments:
        """E exp(mu^2 v^2) is infinite from mu^2 = 1/2 on, and E f after one step for every mu."""
        return "infinite"

    @property
    def reason(self) -> str:
        """One line."""
        return "exp(t^2) has no Gaussian mean: E f is infinite after one step, and for mu^2 >= 1/2 so is E f(x + mu v)"

    def value(self, t: Tensor) -> Tensor:
        """e^(t^2) - 1."""
        return torch.expm1(t.square())

    def slope(self, t: Tensor) -> Tensor:
        """2t e^(t^2)."""
        return 2 * t * torch.exp(t.square())

    def curvature(self, t: Tensor) -> Tensor:
        """(2 + 4t^2) e^(t^2)."""
        return (2 + 4 * t.square()) * torch.exp(t.square())

    def ell(self, u: ArrayLike) -> Array:
        """6e + u (1 + 2 sqrt(log(1 + u)))."""
        u = np.asarray(u, dtype=float)
        with np.errstate(over="ignore"):
            return 6 * math.e + u * (1 + 2 * np.sqrt(np.log1p(u)))

    @property
    def floor(self) -> float:
        """psi'(t)/t >= 2."""
        return 2.0

    def edge(self, level: float) -> float:
        """sqrt(log(1 + F))."""
        return math.sqrt(math.log1p(level))


@dataclass(frozen=True)
class Barrier(Psi):
    """(1 - t^2)^(-p) - 1 on (-1, 1), with ell = 4p(p + 1)[(4/3)^(p + 2) + (u/p)^((p + 2)/(p + 1))].

    psi'' = 2p (1 - t^2)^(-p - 2)(1 + (2p + 1) t^2) is below 4p(p + 1)(1 - t^2)^(-p - 2), and from |t| = 1/2 on
    |psi'| >= p (1 - t^2)^(-p - 1). The domain is open (the setting of Li et al.): Assumption 3.2 asks for all of R^d.

    >>> from smoothlab import Barrier
    >>> round(float(Barrier(1.3).ell(1.0)), 4)   # |psi''| where |psi'| <= 1
    39.1132
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        positive("the exponent p of a barrier", self.p)

    @property
    def gaussian_moments(self) -> Moments:
        """Gaussian directions leave every bounded domain."""
        return "infinite"

    @property
    def reason(self) -> str:
        """One line."""
        return "Gaussian directions leave the barrier's domain (-1, 1), where f is infinite"

    @property
    def half_width(self) -> float:
        """1."""
        return 1.0

    def _gap(self, t: Tensor) -> Tensor:
        """1 - t^2, without the cancellation of t^2; nan outside the domain."""
        gap = (1 - t) * (1 + t)
        return torch.where(gap > 0, gap, math.nan)

    def value(self, t: Tensor) -> Tensor:
        """Infinite outside the domain."""
        inside = t.abs() < 1
        s = torch.where(inside, t, 0.0)
        # 1 - t^2 rounds too coarsely near 1, and (1 - t)(1 + t) near 0.
        log = torch.where(s.abs() < 0.5, torch.log1p(-s.square()), torch.log1p(-s) + torch.log1p(s))
        values = torch.expm1(log * -self.p)
        return torch.where(inside, values, torch.where(t.isnan(), t, math.inf))

    def slope(self, t: Tensor) -> Tensor:
        """2p t (1 - t^2)^(-p - 1); nan outside the domain."""
        return 2 * self.p * t * self._gap(t).pow(-self.p - 1)

    def curvature(self, t: Tensor) -> Tensor:
        """See the class."""
        return 2 * self.p * self._gap(t).pow(-self.p - 2) * (1 + (2 * self.p + 1) * t.square())

    def ell(self, u: ArrayLike) -> Array:
        """See the class."""
        with np.errstate(over="ignore"):
            grown = (np.asarray(u, dtype=float) / self.p) ** ((self.p + 2) / (self.p + 1))
            return 4 * self.p * (self.p + 1) * ((4 / 3) ** (self.p + 2) + grown)

    @property
    def floor(self) -> float:
        """psi'(t)/t >= 2p."""
        return 2 * self.p

    def edge(self, level: float) -> float:
        """sqrt(1 - (1 + F)^(-1/p))."""
        return math.sqrt(-math.expm1(-math.log1p(level) / self.p))
