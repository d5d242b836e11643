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
from smoothlab.objectives.couplings import Around, Coupling, QuadraticCoupling
from smoothlab.objectives.psi import Array, Moments, Psi, Quadratic
from smoothlab.objectives.sums import FiniteSum, Number


@dataclass(frozen=True)
class Ray:
    """A quadratic along z + h v: f(z + h v) = value + h slope + h^2 curvature/2, for every h exactly. All [...]."""

    value: Tensor
    slope: Tensor
    curvature: Tensor

    def at(self, h: float | Tensor) -> Tensor:
        """f(z + h v)."""
        return self.value + h * (self.slope + self.curvature * h / 2)


@dataclass(frozen=True)
class Objective(FiniteSum):
    """A finite sum. `objective` makes one.

    Attributes:
        name: for records.
        x: family of block x.
        y: family of block y.
        coupling: between them, or None.
        d_x: dimension of x.
        d_y: dimension of y.
        n: number of components.
        shifts: c_i [n, d] fp64, of sum 0.
        f_star: the minimum, at z = 0.
    """

    name: str
    x: Psi
    y: Psi
    coupling: Coupling | None
    d_x: int
    d_y: int
    n: int
    shifts: Tensor = field(repr=False, compare=False)
    f_star: float = 0.0

    # The function

    def value(self, z: Tensor) -> Tensor:
        """f at z [..., d]: [...]; infinite outside the domain."""
        x, y = self._parts(z)
        f = self.x.value(x).sum(-1) + self.y.value(y).sum(-1)
        return f if self.coupling is None else f + self.coupling.value(x, y)

    def gradient(self, z: Tensor) -> Tensor:
        """grad f [..., d]; nan outside the domain."""
        x, y = self._parts(z)
        g = torch.cat([self.x.slope(x), self.y.slope(y)], -1)
        return g if self.coupling is None else g + self.coupling.gradient(x, y)

    def hessian(self, z: Tensor) -> Tensor:
        """Hess f [..., d, d], of every component too; nan outside the domain."""
        x, y = self._parts(z)
        h = torch.diag_embed(torch.cat([self.x.curvature(x), self.y.curvature(y)], -1))
        return h if self.coupling is None else h + self.coupling.hessian(x, y)

    def value_of(self, z: Tensor, i: Number) -> Tensor:
        """f_i at z [..., d]: [...]."""
        return self.value(z) + (z * self.shifts[i].to(z)).sum(-1)

    def gradient_of(self, z: Tensor, i: Number) -> Tensor:
        """grad f_i [..., d]."""
        return self.gradient(z) + self.shifts[i]

    def hessian_of(self, z: Tensor, i: Number) -> Tensor:
        """Hess f."""
        return self.hessian(z)

    @property
    def quadratic(self) -> bool:
        """Whether f is quadratic, so that `ray` gives values without going there."""
        return all(isinstance(psi, Quadratic) for psi in (self.x, self.y)) and (
            self.coupling is None or isinstance(self.coupling, QuadraticCoupling)
        )

    def ray(self, z: Tensor, v: Tensor) -> Ray:
        """f along z + h v from inner products.

        Args:
            z: points [..., d].
            v: directions [..., d], or [..., d_x] for those in block x.

        Raises:
            BadInput: f is not quadratic.
        """
        if not (isinstance(self.x, Quadratic) and isinstance(self.y, Quadratic) and self.quadratic):
            raise BadInput(f"'{self.name}' is not quadratic: evaluate it at z + h v instead of along a ray")
        v_x, v_y = (v, None) if v.shape[-1] == self.d_x else self._parts(v)
        slope, curvature = (self.gradient(z)[..., : v.shape[-1]] * v).sum(-1), self.x.L * v_x.square().sum(-1)
        if v_y is not None:
            curvature = curvature + self.y.L * v_y.square().sum(-1)
        if isinstance(self.coupling, QuadraticCoupling):
            w = self.coupling.w(self.d_x, self.d_y, v)[: v.shape[-1]]
            curvature = curvature + self.coupling.c * (v @ w).square()
        return Ray(self.value(z), slope, curvature)

    # What is known of it

    def variances(self, level: float = math.inf) -> tuple[float, float]:
        """The mean ||c_i||^2 of both blocks, exact at every z."""
        squares = self.shifts.square().mean(0)
        return float(squares[: self.d_x].sum()), float(squares[self.d_x :].sum())

    def spread(self, u: float = math.inf) -> float:
        """The largest ||c_i||."""
        return float(self.shifts.norm(dim=-1).max())

    @property
    def _around(self) -> Around:
        return Around(self.x, self.y, self.d_x, self.d_y)

    def ell_x(self, u: ArrayLike) -> Array:
        """-diag(ell_x, ell_y) <= Hess f <= diag(ell_x, ell_y) where ||grad f|| <= u (Definition 2.1, two-sided)."""
        return self.x.ell(u) if self.coupling is None else self.coupling.ell(u, "x", self._around)

    def ell_y(self, u: ArrayLike) -> Array:
        """See `ell_x`."""
        return self.y.ell(u) if self.coupling is None else self.coupling.ell(u, "y", self._around)

    def component_ell_x(self, u: ArrayLike) -> Array:
        """ell_x: all components have the Hessian of f."""
        return self.ell_x(u)

    def component_ell_y(self, u: ArrayLike) -> Array:
        """ell_y."""
        return self.ell_y(u)

    @property
    def gaussian_moments(self) -> Moments:
        """Whether E f stays finite when block x moves by zeroth-order steps with Gaussian directions."""
        return self.x.gaussian_moments

    @property
    def gaussian_reason(self) -> str:
        """Why not, and what to do; empty where it does."""
        if self.gaussian_moments == "finite":
            return ""
        return f"block x of '{self.name}': {self.x.reason}; use Sphere directions, or swap the blocks"

    def inside(self, z: Tensor) -> Tensor:
        """Whether z [..., d] is in the domain: [...]."""
        x, y = self._parts(z)
        return (x.abs() < self.x.half_width).all(-1) & (y.abs() < self.y.half_width).all(-1)


def objective(
    x: Psi,
    y: Psi,
    coupling: Coupling | None = None,
    *,
    d_x: int = 3,
    d_y: int = 2,
    n: int = 1,
    sigma: float | tuple[float, float] = 0.0,
    seed: int = 0,
    name: str = "",
) -> Objective:
    """Any family in block x, any in block y, and a coupling.

    >>> from smoothlab import Cosh, Quadratic, objective
    >>> f = objective(Quadratic(10.0), Cosh(1.0, 0.5), d_x=20, d_y=3, n=8, sigma=1.0)
    >>> f.dim, f.f_star
    (23, 0.0)

    Args:
        x: family of block x.
        y: family of block y.
        coupling: between them.
        d_x: dimension of x.
        d_y: dimension of y.
        n: number of components.
        sigma: of Assumption 3.3, exact; a pair gives sigma_x and sigma_y apart, sigma^2 = sigma_x^2 + sigma_y^2.
        seed: of the shifts c_i: Gaussian, centered, and scaled to sigma.
        name: for records; by default the families.

    Raises:
        BadInput: a number out of range.
    """
    for what, value in (("d_x", d_x), ("d_y", d_y), ("n", n)):
        if not isinstance(value, int) or value < 1:
            raise BadInput(f"{what} is {value}: give an integer of at least 1")
    sigmas = sigma if isinstance(sigma, tuple) else (sigma,)
    if any(not 0 <= s < math.inf for s in sigmas) or len(sigmas) > 2:
        raise BadInput(f"sigma is {sigma}: give a finite number that is not negative, or a pair (sigma_x, sigma_y)")
    if n == 1 and any(sigmas):
        raise BadInput(f"sigma is {sigma} with n = 1: one component is the sum itself, so sigma must be 0")
    drawn = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d_x + d_y)))
    drawn -= drawn.mean(0)
    parts = drawn.split([d_x, d_y], 1) if len(sigmas) == 2 else (drawn,)
    shifts = torch.cat([_scaled(part, s) for part, s in zip(parts, sigmas, strict=True)], 1)
    title = name or " + ".join(str(part) for part in (x, y, coupling) if part is not None)
    return Objective(title, x, y, coupling, d_x, d_y, n, shifts)


def _scaled(shifts: Tensor, sigma: float) -> Tensor:
    """Rows of mean square sigma^2."""
    if sigma == 0:
        return torch.zeros_like(shifts)
    return shifts * (sigma / float(shifts.square().sum(-1).mean().sqrt()))
