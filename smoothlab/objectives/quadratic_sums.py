"""Finite sums of quadratics with Hessians of their own: smooth everywhere, with unbounded variance.

f_i = z'H_i z/2 + c_i'z, sum c_i = 0, H = mean H_i positive definite; single H_i may have negative eigenvalues. f* = 0
at 0. grad f_i - grad f = (H_i - H) z + c_i grows with z unless all H_i are equal: Assumption 3.3 fails on R^d. Where
f - f* <= F, z = H^(-1/2) w with ||w||^2 <= 2F, the variance of a block is a convex quadratic of w, whose maximum on a
ball,

    max_{||w||^2 <= R^2} w'Aw + 2 b'w = min_{t > lambda_max(A)} t R^2 + b'(t I - A)^(-1) b   (strong duality),

is exact at the best t and an upper bound at every other one.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import optimize
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.objectives.curved import block_bound, flat
from smoothlab.objectives.psi import Array, Side, positive
from smoothlab.objectives.sums import FiniteSum, Number, centered, scaled, sizes


@dataclass(frozen=True)
class QuadraticSum(FiniteSum):
    """f_i = z'H_i z/2 + c_i'z; see the module."""

    hessians: Tensor = field(repr=False, compare=False)  # H_i [n, d, d] fp64, symmetric
    shifts: Tensor = field(repr=False, compare=False)  # c_i [n, d], of sum 0

    def __post_init__(self) -> None:
        if float(torch.linalg.eigvalsh(self.mean)[0]) <= 0:
            raise BadInput(f"the mean Hessian of '{self.name}' is not positive definite: f has no minimum")

    @property
    def n(self) -> int:
        """Number of components."""
        return len(self.hessians)

    @cached_property
    def mean(self) -> Tensor:
        """H [d, d]."""
        return self.hessians.mean(0)

    def value(self, z: Tensor) -> Tensor:
        """z'Hz/2."""
        self._parts(z)
        return ((z @ self.mean) * z).sum(-1) / 2

    def gradient(self, z: Tensor) -> Tensor:
        """H z."""
        self._parts(z)
        return z @ self.mean

    def hessian(self, z: Tensor) -> Tensor:
        """H."""
        return self.mean.expand(*z.shape, self.dim)

    def value_of(self, z: Tensor, i: Number) -> Tensor:
        """z'H_i z/2 + c_i'z."""
        return (self._image(z, i) / 2 * z + self.shifts[i] * z).sum(-1)

    def gradient_of(self, z: Tensor, i: Number) -> Tensor:
        """H_i z + c_i."""
        return self._image(z, i) + self.shifts[i]

    def hessian_of(self, z: Tensor, i: Number) -> Tensor:
        """H_i."""
        return self.hessians[i].expand(*z.shape, self.dim)

    def _image(self, z: Tensor, i: Number) -> Tensor:
        """H_i z."""
        if isinstance(i, int):  # one matrix product for all points; many numbers take one a point
            return z @ self.hessians[i]
        return (self.hessians[i] @ z.unsqueeze(-1)).squeeze(-1)

    def ell(self, u: ArrayLike, side: Side) -> Array:
        """||H_xx|| + ||H_xy||, and that of y."""
        return flat(block_bound(self.mean, self.d_x)[side], u)

    def component_ell(self, u: ArrayLike, side: Side) -> Array:
        """The largest ||H_xx|| + ||H_xy|| of the H_i, and that of y."""
        return flat(block_bound(self.hessians, self.d_x)[side], u)

    @property
    def _deviations(self) -> Tensor:
        """H_i - H [n, d, d]."""
        return self.hessians - self.mean

    def variances(self, level: float = math.inf) -> tuple[float, float]:
        """Sup of the variance of both blocks where f - f* <= F, exact; infinite on R^d unless all H_i are equal."""
        if not self._deviations.any():  # the variance is the same everywhere, so that any level will do
            level = 0.0
        if not math.isfinite(level):
            return math.inf, math.inf
        # z = V diag(eigenvalues)^(-1/2) w: any square root of H will do, as the ball of w has no preferred axes.
        eigenvalues, vectors = torch.linalg.eigh(self.mean)
        root = vectors * eigenvalues.rsqrt()
        bounds = []
        for part in (slice(None, self.d_x), slice(self.d_x, None)):
            rows, c = (self._deviations @ root)[:, part], self.shifts[:, part]
            a = torch.einsum("npk,npl->kl", rows, rows) / self.n
            b = torch.einsum("npk,np->k", rows, c) / self.n
            bounds.append(float(c.square().sum(-1).mean()) + largest_on_ball(a.numpy(), b.numpy(), 2 * level))
        return bounds[0], bounds[1]

    def spread(self, u: float = math.inf) -> float:
        """||(H_i - H) H^(-1)|| u + ||c_i||, as z = H^(-1) grad f."""
        sizes = torch.linalg.matrix_norm(self._deviations @ torch.linalg.inv(self.mean), 2)
        grown = torch.where(sizes > 0, sizes * u, 0.0)  # 0 times an infinite u is NaN
        return float((grown + self.shifts.norm(dim=-1)).max())


def largest_on_ball(a: Array, b: Array, square: float) -> float:
    """Max of w'Aw + 2 b'w over ||w||^2 <= `square`, A positive semidefinite; see the module."""
    eigenvalues, vectors = np.linalg.eigh(a)
    top, weights = float(eigenvalues[-1]), (vectors.T @ b) ** 2
    if square == 0:
        return 0.0
    if not weights.any():
        return top * square

    def dual(log: float) -> float:
        above = math.exp(log)  # t - top, whose digits t would lose
        return (top + above) * square + float((weights / (above + (top - eigenvalues))).sum())

    # The best t is at most ||b||/R above the top eigenvalue, and dual is convex in t, so unimodal in its logarithm.
    high = math.log(math.sqrt(float(weights.sum()) / square)) + 1e-9
    best = optimize.minimize_scalar(dual, bounds=(high - 60, high), method="bounded", options={"xatol": 1e-10})
    return float(best.fun)


def quadratic_sum(
    l_x: float = 1.0, l_y: float = 1.0, bend: float = 0.5, *, sigma: float = 0.0, d_x: int = 3, d_y: int = 2,
    n: int = 4, seed: int = 0, name: str = "quadratic sum",
) -> QuadraticSum:  # fmt: skip
    """H_i = D^(1/2) (I + R_i) D^(1/2) with D = diag(l_x I, l_y I) and random symmetric R_i of sum 0 and norm `bend`.

    Above 1, `bend` gives some H_i a negative eigenvalue; `sigma` is that at the minimum, where the variance is
    mean ||c_i||^2; the rest is that of `objective`.

    Raises:
        BadInput: a number out of range.
    """
    sizes(d_x, d_y, n)
    positive("the curvature l_x", l_x)
    positive("the curvature l_y", l_y)
    for parameter, number in (("bend", bend), ("sigma", sigma)):
        if not 0 <= number < math.inf:
            raise BadInput(f"{parameter} is {number}: give a finite number that is not negative")
    if n == 1 and (bend or sigma):
        raise BadInput("n = 1: one component is the sum itself, so bend and sigma must be 0")
    rng, d = np.random.default_rng(seed), d_x + d_y
    deviations = torch.from_numpy(rng.normal(size=(n, d, d)))
    deviations = centered(deviations + deviations.mT)
    largest = float(torch.linalg.matrix_norm(deviations, 2).max())  # 0 for one component
    root = torch.tensor([l_x] * d_x + [l_y] * d_y, dtype=torch.float64).sqrt()
    scale = bend / largest if largest else 0.0
    hessians = (torch.eye(d, dtype=torch.float64) + scale * deviations) * root[:, None] * root
    shifts = centered(torch.from_numpy(rng.normal(size=(n, d))))
    return QuadraticSum(name, d_x, d_y, hessians, scaled(shifts, sigma))
