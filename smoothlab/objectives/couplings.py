"""Couplings between the blocks: functions of (x, y) with their minimum 0 at 0, and what they add to ell_x and ell_y.

With f = psi_x(x) + psi_y(y) + coupling(x, y), block x satisfies Definition 2.1 with

    ell_x(u) = ell of psi_x at (u + shift_x(u)) + own_x(u) + cross,

shift_x bounding ||grad_x coupling|| where ||grad f|| <= u, own_x its Hessian's block H_xx, and cross = ||H_xy||: with
a = ||H_xy||, 2 a ||s_x|| ||s_y|| <= a ||s_x||^2 + a ||s_y||^2. Block y likewise. For a ridge with w = (p, -q) this is
c |p| (|p| + |q|) and c |q| (|p| + |q|) (theory.md E).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.objectives.psi import Array, Psi, Quadratic, Side, positive


class Families(NamedTuple):
    """The blocks that a coupling couples, by side."""

    psi: dict[Side, Psi]
    dim: dict[Side, int]


@dataclass(frozen=True)
class Coupling(ABC):
    """A function of x [..., d_x] and y [..., d_y], d = d_x + d_y."""

    @abstractmethod
    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """[...]."""

    @abstractmethod
    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """[..., d]."""

    @abstractmethod
    def hessian(self, x: Tensor, y: Tensor) -> Tensor:
        """[..., d, d]."""

    @abstractmethod
    def shift(self, u: Array, side: Side, families: Families) -> Array:
        """A bound of ||grad_x coupling|| that psi's own gradient may hide, where ||grad f|| <= u."""

    @abstractmethod
    def curvature(self, u: Array, side: Side, families: Families) -> Array:
        """A bound of ||H_xx|| + ||H_xy|| of the coupling there."""

    def ell(self, u: ArrayLike, side: Side, families: Families) -> Array:
        """ell of the whole objective for a block."""
        u = np.asarray(u, dtype=float)
        return families.psi[side].ell(u + self.shift(u, side, families)) + self.curvature(u, side, families)


@dataclass(frozen=True)
class Ridge(Coupling):
    """c phi(w.z) with w = (p e_x, -q e_y), e_x and e_y the unit vectors along (1, ..., 1): |w| is the same in any d."""

    c: float  # strength
    p: float = 1.0  # length of w's part in x
    q: float = 1.0  # length of w's part in y

    def __post_init__(self) -> None:
        positive("the strength c of a coupling", self.c)
        positive("the length p of a coupling", self.p)
        positive("the length q of a coupling", self.q)

    def w(self, d_x: int, d_y: int, like: Tensor) -> Tensor:
        """[d]."""
        ones = like.new_ones
        return torch.cat([ones(d_x) * (self.p / math.sqrt(d_x)), ones(d_y) * (-self.q / math.sqrt(d_y))])

    @abstractmethod
    def phi(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi, phi', phi''; |phi''| <= 1."""

    def _product(self, x: Tensor, y: Tensor) -> Tensor:
        """w.z, from the means: w is constant on each block."""
        return x.mean(-1) * (self.p * x.shape[-1] ** 0.5) - y.mean(-1) * (self.q * y.shape[-1] ** 0.5)

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """c phi(w.z)."""
        return self.phi(self._product(x, y))[0] * self.c

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """c phi'(w.z) w."""
        slope = self.phi(self._product(x, y))[1] * self.c
        return slope.unsqueeze(-1) * self.w(x.shape[-1], y.shape[-1], x)

    def hessian(self, x: Tensor, y: Tensor) -> Tensor:
        """c phi''(w.z) ww'."""
        curvature, w = self.phi(self._product(x, y))[2] * self.c, self.w(x.shape[-1], y.shape[-1], x)
        return curvature[..., None, None] * torch.outer(w, w)

    def _length(self, side: Side) -> float:
        return self.p if side == "x" else self.q

    def shift(self, u: Array, side: Side, families: Families) -> Array:
        """c |p|, as |phi'| <= 1."""
        return np.full_like(u, self.c * self._length(side))

    def curvature(self, u: Array, side: Side, families: Families) -> Array:
        """c |p| (|p| + |q|)."""
        return np.full_like(u, self.c * self._length(side) * (self.p + self.q))


@dataclass(frozen=True)
class CosineCoupling(Ridge):
    """c (1 - cos(w.z)): not convex."""

    def phi(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """1 - cos s = 2 sin^2(s/2)."""
        return 2 * torch.sin(s / 2).square(), torch.sin(s), torch.cos(s)


@dataclass(frozen=True)
class LogCoshCoupling(Ridge):
    """c log cosh(w.z): convex, linear far out."""

    def phi(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Near 0 log(1 + 2 sinh^2(s/2)), far out |s| + log(1 + e^(-2|s|)) - log 2: no digits lost, no overflow."""
        # Both are clamped to where they serve: autograd multiplies the other one's slope by 0, and 0 times inf is NaN.
        large = s.abs().clamp(min=1)
        small_value = torch.log1p(2 * torch.sinh(s.clamp(-1, 1) / 2).square())
        value = torch.where(s.abs() < 1, small_value, large + torch.log1p(torch.exp(-2 * large)) - math.log(2))
        tanh = torch.tanh(s)
        return value, tanh, 1 - tanh.square()


@dataclass(frozen=True)
class QuadraticCoupling(Ridge):
    """c (w.z)^2/2: convex.

    Its gradient is unbounded: <grad f, z> = <grad psi, z> + c (w.z)^2 >= m ||z||^2 - K + c (w.z)^2 with m the smaller
    floor and K the deficits' sum, so that c (w.z)^2 <= u ||z|| - m ||z||^2 + K <= u^2/(4m) + K where ||grad f|| <= u.
    """

    def phi(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s^2/2."""
        return s.square() / 2, s, torch.ones_like(s)

    def shift(self, u: Array, side: Side, families: Families) -> Array:
        """c |p| |w.z|, and none where psi's ell is constant."""
        if isinstance(families.psi[side], Quadratic):  # a bound that is not needed would only be looser
            return np.zeros_like(u)
        x, y = families.psi["x"], families.psi["y"]
        m, k = min(x.floor, y.floor), x.deficit(families.dim["x"]) + y.deficit(families.dim["y"])
        return math.sqrt(self.c) * self._length(side) * np.hypot(u / math.sqrt(4 * m), math.sqrt(k))


@dataclass(frozen=True)
class ProductCoupling(Coupling):
    """c (X Y - 1), X = sqrt(1 + ||x||^2), Y = sqrt(1 + ||y||^2): curvature in x grows without limit along y.

    grad_x is c x Y/X, of the signs of grad psi_x entry by entry, so that ||grad psi_x|| <= u without a shift, and
    ||y|| <= reach(u). H_xx = (c Y/X)(I - xx'/X^2) is at most c Y, H_xy = c xy'/(XY) at most c.
    """

    c: float

    def __post_init__(self) -> None:
        positive("the strength c of a coupling", self.c)

    def _roots(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (1 + x.square().sum(-1)).sqrt(), (1 + y.square().sum(-1)).sqrt()

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """XY - 1 = (|x|^2 + |y|^2 + |x|^2 |y|^2)/(XY + 1), which keeps its digits near 0."""
        a, b = x.square().sum(-1), y.square().sum(-1)
        return (a + b + a * b) / ((1 + a).sqrt() * (1 + b).sqrt() + 1) * self.c

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """c (x Y/X, y X/Y)."""
        a, b = self._roots(x, y)
        return torch.cat([x * (b / a).unsqueeze(-1), y * (a / b).unsqueeze(-1)], -1) * self.c

    def hessian(self, x: Tensor, y: Tensor) -> Tensor:
        """c [[(I - xx'/X^2) Y/X, xy'/(XY)], [yx'/(XY), (I - yy'/Y^2) X/Y]]."""
        a, b = torch.stack(self._roots(x, y))[..., None, None]
        cross = x.unsqueeze(-1) * y.unsqueeze(-2) / (a * b)
        top = torch.cat([_curved(x, a) * b, cross], -1)
        return torch.cat([top, torch.cat([cross.mT, _curved(y, b) * a], -1)], -2) * self.c

    def shift(self, u: Array, side: Side, families: Families) -> Array:
        """Zeros: this coupling adds nothing to the argument of psi's ell."""
        return np.zeros_like(u)

    def curvature(self, u: Array, side: Side, families: Families) -> Array:
        """c + c sqrt(1 + reach(u)^2), the reach of the other block."""
        other: Side = "y" if side == "x" else "x"
        return self.c + self.c * np.hypot(1.0, families.psi[other].reach(u, families.dim[other]))


def _curved(x: Tensor, root: Tensor) -> Tensor:
    """Hessian of sqrt(1 + ||x||^2): (I - xx'/X^2)/X."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return (eye - x.unsqueeze(-1) * x.unsqueeze(-2) / root.square()) / root
