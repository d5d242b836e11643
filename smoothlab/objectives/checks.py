"""What every objective must pass, also a user's own: each check tells how many points it saw, and the smallest slack.

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
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.objectives.component import Component
from smoothlab.objectives.finite_sum import Objective
from smoothlab.objectives.sublevel import Claim, climb, sample
from smoothlab.objectives.sums import FiniteSum
from smoothlab.theory.constants import largest, phi

_EXACT = 1e-8  # relative: rounding of f, and the error of Phi
_LAMBDAS = np.geomspace(1, 1e8, 200)


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
        return self._each(self.function, z)

    def gradient(self, z: Tensor) -> Tensor:
        """By autograd."""
        return self._each(torch.func.grad(self.function), z)

    def hessian(self, z: Tensor) -> Tensor:
        """By autograd, backward over backward."""
        return self._each(torch.func.jacrev(torch.func.grad(self.function)), z)

    def _each(self, function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        flat = z.reshape(-1, z.shape[-1])
        if not len(flat):
            return function(torch.zeros_like(self.center)).new_zeros(0)
        out = torch.func.vmap(function)(flat)
        return out.reshape(*z.shape[:-1], *out.shape[1:])


@dataclass(frozen=True)
class Witness:
    """A point where a claim is false.

    Attributes:
        z: the point [d].
        gradient_norm: u there.
        measured: what is too large: the curvature s'Hs of a unit vector s, or a left-hand side.
        allowed: what it may be: s'Ds, or the right-hand side.
        ell_x: ell_x(u).
        ell_y: ell_y(u).
        eigenvalue: of Hess f, the one of largest size.
    """

    z: Tensor
    gradient_norm: float
    measured: float
    allowed: float
    ell_x: float
    ell_y: float
    eigenvalue: float

    def __str__(self) -> str:
        point = ", ".join(f"{v:.6g}" for v in self.z.tolist())
        return (
            f"at z = ({point}): ||grad f|| = {self.gradient_norm:.6g}, ell_x = {self.ell_x:.6g}, "
            f"ell_y = {self.ell_y:.6g}, largest Hessian eigenvalue {self.eigenvalue:.6g}; "
            f"{self.measured:.6g} where {self.allowed:.6g} is allowed"
        )


@dataclass(frozen=True)
class Check:
    """One check of one claim.

    Attributes:
        name: which.
        points: how many it saw.
        slack: the smallest relative slack; negative where the claim fails.
        tolerance: how negative rounding can make it.
        witness: where it fails most.
    """

    name: str
    points: int
    slack: float
    tolerance: float
    witness: Witness | None = None

    @property
    def passed(self) -> bool:
        """Whether no point refutes the claim."""
        return self.slack >= -self.tolerance

    def __str__(self) -> str:
        verdict = "holds" if self.passed else "FALSE"
        text = f"{self.name}: {verdict}, {self.points} points, smallest slack {self.slack:.3g}"
        return text if self.witness is None else f"{text}; {self.witness}"


def check_all(claim: Claim, level: float = 10.0, points: int = 10_000, seed: int = 0) -> list[Check]:
    """All checks on the sublevel set f - f* <= level, each with `points` points and searches from the worst of them.

    Raises:
        BadInput: a level or a number of points that is not positive, or a function that is not coercive.
    """
    if not 0 < level < math.inf or points < 1:
        raise BadInput(f"level {level} and {points} points: both must be positive")
    z = sample(claim, level, points, seed)
    checks = [definition(claim, z, level, sign, seed) for sign in (1, -1)] + [t1(claim, z), t2(claim, z)]
    checks += [coercivity(claim, level, seed)]
    if isinstance(claim, FiniteSum):
        checks += [derivatives(claim, z[:: max(1, points // 1000)])]
    if isinstance(claim, Objective):
        checks += [sigma(claim, z[:20])]
    elif isinstance(claim, FiniteSum):
        checks += [components(claim, z[::10], level, sign, seed) for sign in (1, -1)]
        checks += [scatter(claim, z, level, seed)]
    return checks


def _sizes(claim: Claim, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """||grad f||, ell_x, ell_y at z [..., d]: [...]."""
    u = claim.gradient(z).norm(dim=-1)
    ells = (torch.from_numpy(np.asarray(ell(u.numpy()), dtype=float)) for ell in (claim.ell_x, claim.ell_y))
    ell_x, ell_y = (ell.expand(u.shape) for ell in ells)
    return u, ell_x, ell_y


def _diagonal(claim: Claim, ell_x: Tensor, ell_y: Tensor) -> Tensor:
    """D [..., d]."""
    return torch.cat(
        [ell_x[..., None].expand(*ell_x.shape, claim.d_x), ell_y[..., None].expand(*ell_y.shape, claim.d_y)], -1
    )


def scaled_hessian(claim: Claim, z: Tensor) -> Tensor:
    """D^(-1/2) Hess f D^(-1/2) [..., d, d]: definition 2.1 says that its eigenvalues are in [-1, 1]."""
    _, ell_x, ell_y = _sizes(claim, z)
    root = _diagonal(claim, ell_x, ell_y).rsqrt()
    return root.unsqueeze(-1) * claim.hessian(z) * root.unsqueeze(-2)


def definition(claim: Claim, z: Tensor, level: float, sign: int, seed: int = 0) -> Check:
    """Definition 2.1 at points z [n, d] and where a search from the worst of them leads; sign 1 as printed, or -1."""

    def score(points: Tensor) -> Tensor:
        scaled = scaled_hessian(claim, points) * sign
        broken = ~scaled.isfinite().all(-1).all(-1)
        eigenvalues = torch.linalg.eigvalsh(torch.where(broken[..., None, None], 0.0, scaled))[..., -1]
        return torch.where(broken, -torch.inf, eigenvalues)

    # u = 0 is left out: ell(0) = 0 is allowed, and a quotient by it is not (theory.md E).
    kept = z[claim.gradient(z).norm(dim=-1) > 0]
    rounds = 60
    worst = climb(claim, level, score, kept, rounds, seed)[0]
    slack = 1 - float(score(worst))
    name = f"definition 2.1, {'Hess f <= D (as printed)' if sign > 0 else 'Hess f >= -D'}"
    check = Check(name, len(kept) + rounds * 8 * 32, slack, _EXACT)
    return check if check.passed else _witnessed(check, claim, worst, sign)


def _witnessed(check: Check, claim: Claim, z: Tensor, sign: int) -> Check:
    """With the curvature along the worst direction s = D^(-1/2) q, q the eigenvector, of length 1."""
    _, ell_x, ell_y = _sizes(claim, z)
    diagonal = _diagonal(claim, ell_x, ell_y)
    q = torch.linalg.eigh(scaled_hessian(claim, z) * sign)[1][:, -1]
    s = q * diagonal.rsqrt()
    s = s / s.norm()
    measured, allowed = float(s @ claim.hessian(z) @ s), sign * float(s.square() @ diagonal)
    return Check(check.name, check.points, check.slack, check.tolerance, _witness(claim, z, measured, allowed))


def _witness(claim: Claim, z: Tensor, measured: float, allowed: float) -> Witness:
    u, ell_x, ell_y = _sizes(claim, z)
    eigenvalues = torch.linalg.eigvalsh(claim.hessian(z))
    largest_one = float(eigenvalues[eigenvalues.abs().argmax()])
    return Witness(z, float(u), measured, allowed, float(ell_x), float(ell_y), largest_one)


def _inequality(name: str, claim: Claim, z: Tensor, left: Tensor, right: Tensor) -> Check:
    """Left <= right at every point, relative to the right-hand side."""
    slack, where = ((right - left) / right).min(0)
    check = Check(name, len(z), float(slack), _EXACT)
    if check.passed:
        return check
    witness = _witness(claim, z[where], float(left[where]), float(right[where]))
    return Check(name, len(z), float(slack), _EXACT, witness)


def t1(claim: Claim, z: Tensor) -> Check:
    """Phi(||grad f||) <= f - f* at points z [n, d] with f > f*."""
    gap = claim.value(z) - claim.f_star
    z, gap = z[gap > 0], gap[gap > 0]
    bound = torch.from_numpy(phi(largest(claim.ell_x, claim.ell_y), claim.gradient(z).norm(dim=-1).numpy()))
    return _inequality("T1", claim, z, bound, gap)


def t2(claim: Claim, z: Tensor) -> Check:
    """T2 with the smallest lambda on a grid from 1 to 1e8; points where none will do are not counted."""
    gap = claim.value(z) - claim.f_star
    g = claim.gradient(z)
    u = g.norm(dim=-1).numpy()
    stretched = u[:, None] * _LAMBDAS
    both = [
        np.broadcast_to(np.asarray(ell(stretched), dtype=float), stretched.shape) for ell in (claim.ell_x, claim.ell_y)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        fits = _LAMBDAS**2 >= np.maximum(*both) / np.minimum(*both)
    fits[:, 0] = both[0][:, 0] == both[1][:, 0]  # lambda = 1 is for equal ell
    first = fits.argmax(1)
    rows = np.arange(len(u))
    kept = torch.from_numpy(fits[rows, first] & (u > 0)) & (gap > 0)
    ell_x, ell_y = (torch.from_numpy(ell[rows, first]) for ell in both)
    left = (g[:, : claim.d_x].square().sum(-1) / ell_x + g[:, claim.d_x :].square().sum(-1) / ell_y) / 2
    if not kept.any():
        return Check("T2", 0, math.inf, _EXACT)
    return _inequality("T2", claim, z[kept], left[kept], gap[kept])


def coercivity(claim: Claim, level: float, seed: int = 0, rays: int = 500) -> Check:
    """f - f* along rays, at 20 distances from 2^20 times where it first reaches the level (or outside the domain).

    A necessary condition: f must be above the level at all of them. Values that are not finite count as infinite.
    """
    draw = torch.Generator().manual_seed(seed)
    way = torch.randn(rays, claim.d_x + claim.d_y, generator=draw, dtype=torch.float64)
    edge = (sample(claim, level, rays, seed) - claim.center).norm(dim=-1).max()
    way = way / way.norm(dim=-1, keepdim=True) * edge
    scales = 2.0 ** torch.arange(1, 21, dtype=torch.float64)
    far = claim.center + way.unsqueeze(1) * scales[:, None]
    values = (claim.value(far) - claim.f_star).nan_to_num(nan=torch.inf, posinf=torch.inf)
    lowest = float(values.min())
    return Check("coercivity", values.numel(), 1 - level / lowest if lowest > 0 else -math.inf, 0.0)


def components(claim: FiniteSum, z: Tensor, level: float, sign: int, seed: int = 0) -> Check:
    """Definition 2.1 of every component, at points z [n, d] and by a search for each; see `definition`."""
    found = [definition(Component(claim, i), z, level, sign, seed) for i in range(claim.n)]
    worst = min(found, key=lambda check: check.slack)
    name = worst.name.replace("Hess f", "Hess f_i").replace(" (as printed)", "")
    return Check(name, sum(check.points for check in found), worst.slack, worst.tolerance, worst.witness)


def derivatives(claim: FiniteSum, z: Tensor) -> Check:
    """Closed-form gradients and Hessians, of f and its components, against autograd, relative to their size.

    The mean of the components' values and gradients must be those of f, too.
    """

    def apart(a: Tensor, b: Tensor) -> float:
        return float(((a - b).flatten(1).norm(dim=1) / (1e-12 + b.flatten(1).norm(dim=1))).max())

    pairs = [(claim.gradient(z), _slope(claim.value, z)), (claim.hessian(z), _bend(claim.gradient, z))]
    if not isinstance(claim, Objective):
        each = range(claim.n)
        for i in each:
            value, gradient = (partial(f, i=i) for f in (claim.value_of, claim.gradient_of))
            pairs += [(claim.gradient_of(z, i), _slope(value, z)), (claim.hessian_of(z, i), _bend(gradient, z))]
        pairs += [
            (torch.stack([claim.value_of(z, i) for i in each], -1).mean(-1, keepdim=True), claim.value(z)[:, None]),
            (torch.stack([claim.gradient_of(z, i) for i in each]).mean(0), claim.gradient(z)),
        ]
    return Check("derivatives", len(z), -max(apart(*pair) for pair in pairs), 1e-9)


def _slope(value: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(value))(z)


def _bend(gradient: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(gradient))(z)


def scatter(claim: FiniteSum, z: Tensor, level: float, seed: int = 0) -> Check:
    """The variance of both blocks at most that of the sublevel set, and the spread, by searches from points z [n, d].

    The slack is the smallest of 1 - measured/claimed. The spread is claimed at u = ||grad f(z)||.
    """

    def far(points: Tensor) -> Tensor:
        g = torch.stack([claim.gradient_of(points, i) for i in range(claim.n)])
        apart = (g - g.mean(0)).norm(dim=-1).amax(0)
        u = g.mean(0).norm(dim=-1)
        return apart / torch.tensor([claim.spread(one) for one in u.flatten().tolist()]).reshape(u.shape)

    rounds, ratios = 60, [float(far(z[:200]).max())]
    for side, most in enumerate(claim.variances(level)):
        best = climb(claim, level, lambda points, side=side: claim.variance(points)[side], z, rounds, seed)[0]  # type: ignore[misc]
        measured = float(claim.variance(best)[side])
        ratios.append(measured / most if most else 1 + measured)
    return Check("sigma", len(z) + 2 * rounds * 8 * 32, 1 - max(ratios), _EXACT)


def sigma(claim: Objective, z: Tensor) -> Check:
    """mean_i ||grad f_i - grad f||^2 at points z, with gradients of the components' losses, against sigma^2."""
    blocks = claim.blocks()
    params = [p for name in ("x", "y") for p in blocks[name].params]
    worst = 0.0
    for point in z:
        for p, part in zip(params, point.split([claim.d_x, claim.d_y]), strict=True):
            p.data = part.clone()
        rows = [torch.cat(torch.autograd.grad(claim.loss(blocks, i)(), params)) for i in range(claim.n)]
        spread = torch.stack(rows) - claim.gradient(point)
        scale = claim.sigma2 + float(claim.gradient(point).norm()) ** 2
        worst = max(worst, abs(float(spread.square().sum(-1).mean()) - claim.sigma2) / max(scale, 1e-300))
        worst = max(worst, float(spread.mean(0).norm()) / max(scale, 1e-300) ** 0.5)
    return Check("sigma", len(z), -worst, 1e-12)
