"""Checks of objectives, also of a user's own: each returns the number of its points, and the smallest slack.

    derivatives       gradient and Hessian against autograd, and those of every component
    definition 2.1    -D <= Hess f <= D with D = diag(ell_x(u), ell_y(u)), u = ||grad f||, both signs apart; where
                      components curve differently also -D <= Hess f_i <= D with the components' ell at u
    T1                Phi(u) <= f - f*,  Phi(u) = int_0^u v/max(ell_x, ell_y) dv
    T2                [||grad_x f||^2/ell_x(lambda u) + ||grad_y f||^2/ell_y(lambda u)]/2 <= f - f*  for lambda > 1 with
                      lambda^2 >= lM(lambda u)/lm(lambda u)
    coercivity        f exceeds F far out on every ray, and does not come back
    sigma             mean ||grad f_i - grad f||^2 = sigma^2; where components curve differently at most sigma^2 of the
                      sublevel set, in each block, and max_i ||grad f_i - grad f|| at most their spread

T1 and T2 follow from definition 2.1 (theory.md B.2); where they fail, ell or f* is wrong. A sample cannot prove; it can
refute, and then the point is shown.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.objectives.finite_sum import Objective
from smoothlab.objectives.psi import Array
from smoothlab.objectives.sublevel import BlockSmooth, climb, sample
from smoothlab.objectives.sums import FiniteSum, centered
from smoothlab.theory.constants import largest, phi

_EXACT = 1e-8  # relative: rounding of f, and the error of Phi
_ROUNDS = 60  # of searches
_SEARCHED = _ROUNDS * 8 * 32  # points that a search looks at
SMALL = 1e-12  # f - f* below is rounding
LAMBDAS = np.geomspace(1, 1e8, 200)


@dataclass(frozen=True)
class Function:
    """A user's own function with the ell_x, ell_y claimed for it; derivatives by autograd.

    Attributes:
        name: for records.
        function: twice differentiable, z [d] -> scalar; written in torch.
        ell_x: entry by entry on numpy arrays.
        ell_y: likewise.
        d_x: dimension of x, the first entries of z.
        d_y: dimension of y.
        f_star: the minimum.
        center: where it is, [d]; the origin if empty.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    ell_x: Callable[[ArrayLike], ArrayLike]
    ell_y: Callable[[ArrayLike], ArrayLike]
    d_x: int
    d_y: int
    f_star: float = 0.0
    center: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        if self.d_x < 1 or self.d_y < 1:
            raise BadInput(f"d_x = {self.d_x} and d_y = {self.d_y}: both blocks need at least one entry")
        if not self.center.numel():
            object.__setattr__(self, "center", torch.zeros(self.d_x + self.d_y, dtype=torch.float64))

    def value(self, z: Tensor) -> Tensor:
        """f at z [..., d]."""
        return self._batched(self.function, z)

    def gradient(self, z: Tensor) -> Tensor:
        """By autograd."""
        return self._batched(torch.func.grad(self.function), z)

    def hessian(self, z: Tensor) -> Tensor:
        """By autograd, backward over backward."""
        return self._batched(torch.func.jacrev(torch.func.grad(self.function)), z)

    def _batched(self, function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        flat = z.reshape(-1, z.shape[-1])
        if not len(flat):
            return function(torch.zeros_like(self.center)).new_zeros(0)
        out = torch.func.vmap(function)(flat)
        return out.reshape(*z.shape[:-1], *out.shape[1:])


@dataclass(frozen=True)
class Witness:
    """A point where a claim is false."""

    z: Tensor  # the point [d]
    gradient_norm: float  # u there
    measured: float  # what is too large: the curvature s'Hs of a unit vector s, or a left-hand side
    allowed: float  # what it may be: s'Ds, or the right-hand side
    ell_x: float  # ell_x(u)
    ell_y: float  # ell_y(u)
    eigenvalue: float  # of Hess f, the one of largest size

    def __str__(self) -> str:
        point = ", ".join(f"{v:.6g}" for v in self.z.tolist())
        return (
            f"at z = ({point}): ||grad f|| = {self.gradient_norm:.6g}, ell_x = {self.ell_x:.6g}, "
            f"ell_y = {self.ell_y:.6g}, largest Hessian eigenvalue {self.eigenvalue:.6g}; "
            f"{self.measured:.6g} where {self.allowed:.6g} is allowed"
        )


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str  # what was checked
    points: int  # number of points looked at
    slack: float  # the smallest relative slack; negative where the claim fails
    tolerance: float  # how negative rounding can make it
    witness: Witness | None = None  # where it fails most

    @property
    def passed(self) -> bool:
        """Whether no point refutes the claim."""
        return self.slack >= -self.tolerance

    def __str__(self) -> str:
        verdict = "holds" if self.passed else "FALSE"
        text = f"{self.name}: {verdict}, {self.points} points, smallest slack {self.slack:.3g}"
        return text if self.witness is None else f"{text}; {self.witness}"


def check_all(f: BlockSmooth, level: float = 10.0, points: int = 10_000, seed: int = 0) -> list[Check]:
    """All checks on the sublevel set f - f* <= level, each with `points` points and searches from the worst of them.

    Raises:
        BadInput: a level or a number of points that is not positive, or a function that is not coercive.
    """
    if not 0 < level < math.inf or points < 1:
        raise BadInput(f"level {level} and {points} points: both must be positive")
    z = sample(f, level, points, seed)
    checks = [definition(f, z, level, sign, seed) for sign in (1, -1)]
    checks += [t1(f, z), t2(f, z), coercivity(f, level, seed)]
    if isinstance(f, FiniteSum):
        checks += [derivatives(f, z[:: max(1, points // 1000)])]
    if isinstance(f, Objective):
        checks += [sigma(f, z[:20])]
    elif isinstance(f, FiniteSum):
        checks += [components(f, z[::10], level, sign, seed) for sign in (1, -1)]
        checks += [scatter(f, z, level, seed)]
    return checks


# Definition 2.1


def ells(f: BlockSmooth, u: Array) -> tuple[Array, Array]:
    """ell_x and ell_y at gradient norms u [...]: [...] each."""
    ell_x, ell_y = (np.broadcast_to(np.asarray(ell(u), dtype=float), u.shape) for ell in (f.ell_x, f.ell_y))
    return ell_x, ell_y


def diagonal(f: BlockSmooth, ell_x: Array, ell_y: Array) -> Array:
    """D [..., d] of ell_x and ell_y [...]."""
    return np.concatenate([np.repeat(ell_x[..., None], f.d_x, -1), np.repeat(ell_y[..., None], f.d_y, -1)], -1)


def _diagonal_at(f: BlockSmooth, z: Tensor) -> Tensor:
    """D at points z [..., d]: [..., d]."""
    return torch.from_numpy(diagonal(f, *ells(f, f.gradient(z).norm(dim=-1).numpy())))


def scaled_hessian(f: BlockSmooth, z: Tensor) -> Tensor:
    """D^(-1/2) Hess f D^(-1/2) [..., d, d]: definition 2.1 says that its eigenvalues are in [-1, 1]."""
    root = _diagonal_at(f, z).rsqrt()
    return root.unsqueeze(-1) * f.hessian(z) * root.unsqueeze(-2)


def definition(f: BlockSmooth, z: Tensor, level: float, sign: int, seed: int = 0) -> Check:
    """Definition 2.1 at points z [n, d] and where a search from the worst of them leads; sign 1 as printed, or -1."""

    def score(points: Tensor) -> Tensor:
        scaled = scaled_hessian(f, points) * sign
        broken = ~scaled.isfinite().all(-1).all(-1)
        eigenvalues = torch.linalg.eigvalsh(torch.where(broken[..., None, None], 0.0, scaled))[..., -1]
        return torch.where(broken, -torch.inf, eigenvalues)

    # u = 0 is left out: ell(0) = 0 is allowed, and a quotient by it is not (theory.md E).
    points_used = z[f.gradient(z).norm(dim=-1) > 0]
    worst = climb(f, level, score, points_used, _ROUNDS, seed)[0]
    name = f"definition 2.1, {'Hess f <= D (as printed)' if sign > 0 else 'Hess f >= -D'}"
    check = Check(name, len(points_used) + _SEARCHED, 1 - float(score(worst)), _EXACT)
    if check.passed:
        return check
    # The curvature along the worst direction s = D^(-1/2) q, q the eigenvector, of length 1.
    D = _diagonal_at(f, worst)
    s = torch.linalg.eigh(scaled_hessian(f, worst) * sign)[1][:, -1] * D.rsqrt()
    s = s / s.norm()
    measured, allowed = float(s @ f.hessian(worst) @ s), sign * float(s.square() @ D)
    return replace(check, witness=_witness(f, worst, measured, allowed))


def _witness(f: BlockSmooth, z: Tensor, measured: float, allowed: float) -> Witness:
    u = f.gradient(z).norm()
    ell_x, ell_y = ells(f, u.numpy())
    eigenvalues = torch.linalg.eigvalsh(f.hessian(z))
    eigenvalue = float(eigenvalues[eigenvalues.abs().argmax()])
    return Witness(z, float(u), measured, allowed, float(ell_x), float(ell_y), eigenvalue)


def component(f: FiniteSum, i: int) -> Any:
    """One component's Hessian with what is claimed of it at u, the norm of the mean's gradient, as a `BlockSmooth`."""
    return SimpleNamespace(
        name=f"{f.name}, component {i}", d_x=f.d_x, d_y=f.d_y, f_star=f.f_star, center=f.center, value=f.value,
        gradient=f.gradient, hessian=partial(f.hessian_of, i=i), ell_x=f.component_ell_x, ell_y=f.component_ell_y,
    )  # fmt: skip


def components(f: FiniteSum, z: Tensor, level: float, sign: int, seed: int = 0) -> Check:
    """Definition 2.1 of every component, at points z [n, d] and by a search for each; see `definition`."""
    checks = [definition(component(f, i), z, level, sign, seed) for i in range(f.n)]
    worst = min(checks, key=lambda check: check.slack)
    name = worst.name.replace("Hess f", "Hess f_i").replace(" (as printed)", "")
    return replace(worst, name=name, points=sum(check.points for check in checks))


# What follows from it


def t1_sides(f: BlockSmooth, z: Tensor) -> tuple[Array, Array]:
    """Both sides of Phi(||grad f||) <= f - f* at points z [n, d]; the left one is NaN where f - f* is rounding."""
    gap = (f.value(z) - f.f_star).numpy()
    bound = phi(largest(f.ell_x, f.ell_y), f.gradient(z).norm(dim=-1).numpy())
    return np.where(gap > SMALL, bound, np.nan), gap


def t2_sides(f: BlockSmooth, z: Tensor) -> tuple[Array, Array]:
    """Both sides of T2 with the smallest lambda of a grid from 1 to 1e8; the left one is NaN where none will do."""
    gap, g = (f.value(z) - f.f_star).numpy(), f.gradient(z)
    u, squares = g.norm(dim=-1).numpy(), g.square().numpy()
    ell_x, ell_y = ells(f, u[:, None] * LAMBDAS)
    with np.errstate(divide="ignore", invalid="ignore"):
        fits = LAMBDAS**2 >= np.maximum(ell_x, ell_y) / np.minimum(ell_x, ell_y)
    fits[:, 0] = ell_x[:, 0] == ell_y[:, 0]  # lambda = 1 is for equal ell
    first, rows = fits.argmax(1), np.arange(len(u))
    with np.errstate(divide="ignore", invalid="ignore"):
        decrease = squares[:, : f.d_x].sum(1) / ell_x[rows, first] + squares[:, f.d_x :].sum(1) / ell_y[rows, first]
    comparable = (gap > SMALL) & fits[rows, first] & (u > 0)
    return np.where(comparable, decrease / 2, np.nan), gap


def t1(f: BlockSmooth, z: Tensor) -> Check:
    """Phi(||grad f||) <= f - f* at points z [n, d]."""
    return _inequality("T1", f, z, *t1_sides(f, z))


def t2(f: BlockSmooth, z: Tensor) -> Check:
    """T2 at points z [n, d] where a lambda of the grid will do."""
    return _inequality("T2", f, z, *t2_sides(f, z))


def _inequality(name: str, f: BlockSmooth, z: Tensor, left: Array, right: Array) -> Check:
    """left <= right at every point where left is a number, relative to the right-hand side."""
    points = int(np.isfinite(left).sum())
    if not points:
        return Check(name, 0, math.inf, _EXACT)
    slack = np.divide(right - left, right, out=np.full_like(right, np.nan), where=np.isfinite(left))
    worst = int(np.nanargmin(slack))
    check = Check(name, points, float(slack[worst]), _EXACT)
    if check.passed:
        return check
    return replace(check, witness=_witness(f, z[worst], float(left[worst]), float(right[worst])))


# Coercivity, derivatives, sigma


def coercivity(f: BlockSmooth, level: float, seed: int = 0, rays: int = 500) -> Check:
    """f - f* along rays, at 20 distances up to 2^20 times where it first reaches the level (or outside the domain).

    A necessary condition: f must be above the level at all of them. Values that are not finite count as infinite.
    """
    rng = torch.Generator().manual_seed(seed)
    direction = torch.randn(rays, f.d_x + f.d_y, generator=rng, dtype=torch.float64)
    edge = (sample(f, level, rays, seed) - f.center).norm(dim=-1).max()
    direction = direction / direction.norm(dim=-1, keepdim=True) * edge
    points = f.center + direction.unsqueeze(1) * 2.0 ** torch.arange(1, 21, dtype=torch.float64)[:, None]
    values = (f.value(points) - f.f_star).nan_to_num(nan=torch.inf, posinf=torch.inf)
    lowest = float(values.min())
    return Check("coercivity", values.numel(), 1 - level / lowest if lowest > 0 else -math.inf, 0.0)


def derivatives(f: FiniteSum, z: Tensor) -> Check:
    """Closed-form gradients and Hessians, of f and its components, against autograd, relative to their size.

    The mean of the components' values and gradients must be those of f, too.
    """
    pairs = [(f.gradient(z), _slope(f.value, z)), (f.hessian(z), _jacobian(f.gradient, z))]
    if not isinstance(f, Objective):  # whose components have the derivatives of f, but for a constant
        for i in range(f.n):
            value, gradient = partial(f.value_of, i=i), partial(f.gradient_of, i=i)
            pairs += [(gradient(z), _slope(value, z)), (f.hessian_of(z, i), _jacobian(gradient, z))]
        values = torch.stack([f.value_of(z, i) for i in range(f.n)], -1)
        pairs += [(values.mean(-1, keepdim=True), f.value(z)[:, None]), (f.gradients(z).mean(0), f.gradient(z))]
    worst = 0.0
    for a, b in pairs:
        # Relative, but not to a derivative of exactly 0, as at the minimum.
        distance = (a - b).flatten(1).norm(dim=1) / (1e-12 + b.flatten(1).norm(dim=1))
        worst = max(worst, float(distance.max()))
    return Check("derivatives", len(z), -worst, 1e-9)


def _slope(value: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(value))(z)


def _jacobian(gradient: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(gradient))(z)


def scatter(f: FiniteSum, z: Tensor, level: float, seed: int = 0) -> Check:
    """The variance of both blocks at most that of the sublevel set, and the spread, by searches from points z [n, d].

    The slack is the smallest of 1 - measured/claimed. The spread is claimed at u = ||grad f(z)||.
    """
    g = f.gradients(z[:200])
    deviations = centered(g).norm(dim=-1).amax(0)
    claimed = [f.spread(u) for u in g.mean(0).norm(dim=-1).tolist()]
    ratios = [float((deviations / torch.tensor(claimed)).max())]
    for side, bound in enumerate(f.variances(level)):

        def variance(points: Tensor, side: int = side) -> Tensor:
            return f.variance(points)[side]

        measured = float(variance(climb(f, level, variance, z, _ROUNDS, seed)[0]))
        ratios.append(measured / bound if bound else 1 + measured)
    return Check("sigma", len(z) + 2 * _SEARCHED, 1 - max(ratios), _EXACT)


def sigma(f: Objective, z: Tensor) -> Check:
    """mean_i ||grad f_i - grad f||^2 at points z, with gradients of the components' losses, against sigma^2."""
    blocks = f.blocks()
    params = [p for name in ("x", "y") for p in blocks[name].params]
    worst = 0.0
    for point in z:
        for p, part in zip(params, point.split([f.d_x, f.d_y]), strict=True):
            p.data = part.clone()
        rows = [torch.cat(torch.autograd.grad(f.loss(blocks, i)(), params)) for i in range(f.n)]
        spread = torch.stack(rows) - f.gradient(point)
        scale = max(f.sigma2 + float(f.gradient(point).norm()) ** 2, 1e-300)
        worst = max(worst, abs(float(spread.square().sum(-1).mean()) - f.sigma2) / scale)
        worst = max(worst, float(spread.mean(0).norm()) / scale**0.5)
    return Check("sigma", len(z), -worst, 1e-12)
