"""Synthetic finite sums f_i(z) = psi_x(x) + psi_y(y) + coupling(x, y) + <c_i, z> with everything known in closed form.

z = (x, y) is a flat vector [d], x first. The shifts c_i sum to 0, so that f, the mean of the f_i, has none of them:
its minimum f* = 0 is at 0, and (1/n) sum ||grad f_i - grad f||^2 = mean ||c_i||^2 = sigma^2 at every z, exactly
(Assumption 3.3). Hess f_i = Hess f, hence L_{x,max} = L_x on a sublevel set of f, and ell_i(u) = ell(u + ||c_i||).
Sums whose components curve differently: `smoothlab.objectives.curved`.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.objectives.couplings import Coupling, Families, QuadraticCoupling
from smoothlab.objectives.psi import Array, Psi, Quadratic, Side
from smoothlab.objectives.sums import FiniteSum, Number, centered, scaled, sizes


@dataclass(frozen=True)
class Objective(FiniteSum):
    """A finite sum whose components have one Hessian; `objective` makes it."""

    x: Psi  # family of block x
    y: Psi  # family of block y
    coupling: Coupling | None  # between the blocks, or None
    shifts: Tensor = field(repr=False, compare=False)  # c_i [n, d] fp64, of sum 0

    @property
    def n(self) -> int:
        """Number of components."""
        return len(self.shifts)

    # The function

    def value(self, z: Tensor) -> Tensor:
        """psi_x(x) + psi_y(y) + coupling(x, y) [...]; infinite outside the domain."""
        x, y = self._parts(z)
        f = self.x.value(x).sum(-1) + self.y.value(y).sum(-1)
        return f if self.coupling is None else f + self.coupling.value(x, y)

    def gradient(self, z: Tensor) -> Tensor:
        """grad f [..., d]; NaN outside the domain."""
        x, y = self._parts(z)
        g = torch.cat([self.x.slope(x), self.y.slope(y)], -1)
        return g if self.coupling is None else g + self.coupling.gradient(x, y)

    def hessian(self, z: Tensor) -> Tensor:
        """Hess f [..., d, d], of every component too; NaN outside the domain."""
        x, y = self._parts(z)
        h = torch.diag_embed(torch.cat([self.x.curvature(x), self.y.curvature(y)], -1))
        return h if self.coupling is None else h + self.coupling.hessian(x, y)

    def value_of(self, z: Tensor, i: Number) -> Tensor:
        """f + <c_i, z>."""
        return self.value(z) + (z * self.shifts[i].to(z)).sum(-1)

    def gradient_of(self, z: Tensor, i: Number) -> Tensor:
        """grad f + c_i."""
        return self.gradient(z) + self.shifts[i]

    def hessian_of(self, z: Tensor, i: Number) -> Tensor:
        """Hess f."""
        return self.hessian(z)

    @property
    def quadratic(self) -> bool:
        """Whether f is quadratic, so that its Hessian is the same everywhere."""
        blocks = isinstance(self.x, Quadratic) and isinstance(self.y, Quadratic)
        return blocks and isinstance(self.coupling, QuadraticCoupling | None)

    def curvature_along(self, v: Tensor) -> Tensor:
        """v'Hv [...] for directions v [..., d_x] in block x.

        Raises:
            BadInput: f is not quadratic.
        """
        if not (isinstance(self.x, Quadratic) and self.quadratic):
            raise BadInput(f"'{self.name}' is not quadratic: its Hessian is not the same everywhere")
        curvature = self.x.L * v.square().sum(-1)
        if isinstance(self.coupling, QuadraticCoupling):  # ww' within block x, without the matrix
            curvature = curvature + self.coupling.c * (v @ self.coupling.w(self.d_x, self.d_y, v)[: self.d_x]).square()
        return curvature

    # What is known of it

    def variances(self, level: float = math.inf) -> tuple[float, float]:
        """The mean ||c_i||^2 of both blocks, exact at every z."""
        squares = self.shifts.square().mean(0)
        return float(squares[: self.d_x].sum()), float(squares[self.d_x :].sum())

    def spread(self, u: float = math.inf) -> float:
        """The largest ||c_i||."""
        return float(self.shifts.norm(dim=-1).max())

    def ell(self, u: ArrayLike, side: Side) -> Array:
        """ell of the block's family, or of the coupling with both families."""
        families = Families({"x": self.x, "y": self.y}, {"x": self.d_x, "y": self.d_y})
        if self.coupling is None:
            return families.psi[side].ell(u)
        return self.coupling.ell(u, side, families)

    @property
    def gaussian_reason(self) -> str:
        """The reason of the family of block x."""
        if not self.x.reason:
            return ""
        return f"block x of '{self.name}': {self.x.reason}; use Sphere directions, or swap the blocks"

    def inside(self, z: Tensor) -> Tensor:
        """Whether z [..., d] is in the domain: [...]."""
        x, y = self._parts(z)
        return (x.abs() < self.x.half_width).all(-1) & (y.abs() < self.y.half_width).all(-1)


def objective(
    x: Psi, y: Psi, coupling: Coupling | None = None, *, d_x: int = 3, d_y: int = 2, n: int = 1,
    sigma: float | tuple[float, float] = 0.0, seed: int = 0, name: str = "",
) -> Objective:  # fmt: skip
    """Make a finite sum whose smoothness is known: one family in block x, one in block y, and a coupling.

    >>> from smoothlab import Cosh, Quadratic, objective
    >>> f = objective(Quadratic(10.0), Cosh(1.0, 0.5), d_x=20, d_y=3, n=8, sigma=1.0)
    >>> f.dim, f.f_star
    (23, 0.0)

    Args:
        x: family of block x, e.g. Quadratic(10.0).
        y: family of block y.
        coupling: function of both blocks, from `smoothlab.objectives`; None adds none.
        d_x: dimension of x.
        d_y: dimension of y.
        n: number of components.
        sigma: noise level: the components' gradients grad f + c_i vary about grad f by a mean square of sigma^2
            (Assumption 3.3, exact); a pair gives sigma_x and sigma_y apart, sigma^2 = sigma_x^2 + sigma_y^2.
        seed: seed of the shifts c_i, which are Gaussian, centered, and scaled to sigma.
        name: name in records; by default that of the families.

    Raises:
        BadInput: a number out of range.
    """
    sizes(d_x, d_y, n)
    sigmas = sigma if isinstance(sigma, tuple) else (sigma,)
    if any(not 0 <= s < math.inf for s in sigmas) or len(sigmas) > 2:
        raise BadInput(f"sigma is {sigma}: give a finite number that is not negative, or a pair (sigma_x, sigma_y)")
    if n == 1 and any(sigmas):
        raise BadInput(f"sigma is {sigma} with n = 1: one component is the sum itself, so sigma must be 0")
    drawn = centered(torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d_x + d_y))))
    # One sigma scales both blocks at once: how it falls to x and y is then up to chance, and to d_x and d_y.
    parts = drawn.split([d_x, d_y], 1) if len(sigmas) == 2 else (drawn,)
    shifts = torch.cat([scaled(part, s) for part, s in zip(parts, sigmas, strict=True)], 1)
    title = name or " + ".join(str(part) for part in (x, y, coupling) if part is not None)
    return Objective(title, d_x, d_y, x, y, coupling, shifts)
