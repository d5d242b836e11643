"""Points of a sublevel set f - f* <= F: on its boundary, inside, and where something is largest.

Nothing here needs more of f than its values, so that it serves a user's own function as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.errors import BadInput


class Claim(Protocol):
    """A function of z = (x, y) with the ell_x, ell_y that are claimed for it, and its minimum f* at `center`."""

    @property
    def name(self) -> str:
        """For records."""

    @property
    def d_x(self) -> int:
        """Dimension of x."""

    @property
    def d_y(self) -> int:
        """Dimension of y."""

    @property
    def f_star(self) -> float:
        """The minimum."""

    @property
    def center(self) -> Tensor:
        """Where it is, [d]."""

    def value(self, z: Tensor) -> Tensor:
        """[..., d] -> [...]."""

    def gradient(self, z: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""

    def hessian(self, z: Tensor) -> Tensor:
        """[..., d] -> [..., d, d]."""

    def ell_x(self, u: ArrayLike) -> ArrayLike:
        """Claimed for block x where ||grad f|| = u."""

    def ell_y(self, u: ArrayLike) -> ArrayLike:
        """Claimed for block y."""


def at_level(claim: Claim, direction: Tensor, level: float | Tensor) -> Tensor:
    """The first point z = center + s direction, s > 0, where bisection finds f(z) - f* = level: [..., d], to rounding.

    Args:
        claim: a coercive function, or one with a bounded domain, outside of which it is infinite or nan.
        direction: [..., d], not 0.
        level: not negative; a number or [...].

    Raises:
        BadInput: along some direction f stays below the level up to s = 2^200.
    """
    way = direction.double()
    target = claim.f_star + torch.as_tensor(level, dtype=torch.float64).expand(way.shape[:-1])
    high = torch.ones(way.shape[:-1], dtype=torch.float64)

    def below(s: Tensor) -> Tensor:
        return claim.value(claim.center + s.unsqueeze(-1) * way) < target

    for _ in range(200):
        short = below(high)
        if not short.any():
            break
        high = torch.where(short, 2 * high, high)
    else:
        raise BadInput(f"'{claim.name}' stays below {float(target.max()):g} along a ray: it is not coercive")
    low = torch.zeros_like(high)
    for _ in range(100):  # 60 for the bits of s, the rest for a first guess that was too far
        middle = (low + high) / 2
        inside = below(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return claim.center + low.unsqueeze(-1) * way


def sample(claim: Claim, level: float, points: int, seed: int = 0) -> Tensor:
    """Points [points, d] of f - f* <= level, dense near its boundary and reaching towards the minimum.

    Directions: Gaussian, those of x alone and y alone, coordinates, and the blocks' diagonals, where couplings and
    sums over coordinates are extreme. Levels: half are F U^(1/4), half log-uniform from 1e-8 F to F, U uniform.
    """
    draw = torch.Generator().manual_seed(seed)
    d = claim.d_x + claim.d_y
    way = torch.randn(points, d, generator=draw, dtype=torch.float64)
    kind = torch.arange(points) % 8
    way[kind == 1, claim.d_x :] = 0
    way[kind == 2, : claim.d_x] = 0
    single = torch.nn.functional.one_hot(torch.randint(0, d, (points,), generator=draw), d).double()
    way[kind == 3] *= single[kind == 3]
    diagonal = torch.cat([way[:, :1].expand(-1, claim.d_x), way[:, -1:].expand(-1, claim.d_y)], 1)
    way[kind == 4] = diagonal[kind == 4]
    way[kind == 5] *= torch.rand(points, d, generator=draw, dtype=torch.float64)[kind == 5] ** 6
    u = torch.rand(points, generator=draw, dtype=torch.float64)
    levels = torch.where(torch.rand(points, generator=draw) < 0.5, u**0.25, 1e-8**u) * level
    return at_level(claim, way, levels)


def climb(
    claim: Claim, level: float, score: Callable[[Tensor], Tensor], starts: Tensor, rounds: int = 60, seed: int = 0
) -> Tensor:
    """Local search for the largest score [...] of points [..., d] with f - f* <= level, from the best of `starts`.

    Random steps of all sizes from 8 points at once, the better one kept: it asks for no derivative of the score, which
    for eigenvalues of Hessians would be a third derivative, and not exist where eigenvalues meet.

    Returns:
        the points reached, [8, d] (fewer if fewer start), best first.
    """
    draw = torch.Generator().manual_seed(seed)
    scores = score(starts).nan_to_num(nan=-torch.inf)
    best = starts[scores.topk(min(8, len(starts))).indices]
    top = score(best)
    radius = (starts - claim.center).norm(dim=-1).max()
    for _ in range(rounds):
        size = radius * 10 ** (-6 * torch.rand(len(best), 32, 1, generator=draw, dtype=torch.float64))
        steps = torch.randn(len(best), 32, best.shape[-1], generator=draw, dtype=torch.float64)
        steps *= torch.rand(steps.shape, generator=draw) < torch.rand(len(best), 32, 1, generator=draw)
        tried = best.unsqueeze(1) + size * steps
        inside = claim.value(tried) - claim.f_star <= level
        tried = torch.where(inside.unsqueeze(-1), tried, best.unsqueeze(1))
        found, which = score(tried).nan_to_num(nan=-torch.inf).max(1)
        better = found > top
        best = torch.where(better.unsqueeze(-1), tried[torch.arange(len(best)), which], best)
        top = torch.where(better, found, top)
    return best[top.argsort(descending=True)]


@dataclass(frozen=True)
class Extremes:
    """The largest values found on f - f* <= F: lower bounds of the true ones.

    Attributes:
        points: how many were looked at, for each.
        gradient: of ||grad f||.
        H_xx: of the spectral norm of the Hessian's block.
        H_yy: likewise.
    """

    points: int
    gradient: float
    H_xx: float
    H_yy: float


def extremes(claim: Claim, level: float, points: int = 10_000, rounds: int = 60, seed: int = 0) -> Extremes:
    """Sampled and searched maxima, to be held against `smoothlab.theory.constants.constants`."""
    z, d_x = sample(claim, level, points, seed), claim.d_x

    def block(rows: slice) -> Callable[[Tensor], Tensor]:
        return lambda at: torch.linalg.eigvalsh(claim.hessian(at)[..., rows, rows]).abs().amax(-1)

    scores = (lambda at: claim.gradient(at).norm(dim=-1), block(slice(None, d_x)), block(slice(d_x, None)))
    largest = (float(score(climb(claim, level, score, z, rounds, seed)[0])) for score in scores)
    return Extremes(points + rounds * 8 * 32, *largest)
