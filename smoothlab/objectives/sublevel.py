"""Points of a sublevel set f - f* <= F: on its boundary, inside, and where something is largest.

Nothing here needs more of f than its values, so that it serves a user's own function as well.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.errors import BadInput


class BlockSmooth(Protocol):
    """A function of z = (x, y) with claimed ell_x and ell_y (Definition 2.1), and its minimum f* at `center`."""

    @property
    def name(self) -> str:
        """The name in messages."""

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
        """The minimum, [d]."""

    def value(self, z: Tensor, /) -> Tensor:
        """[..., d] -> [...]."""

    def gradient(self, z: Tensor, /) -> Tensor:
        """[..., d] -> [..., d]."""

    def hessian(self, z: Tensor, /) -> Tensor:
        """[..., d] -> [..., d, d]."""

    def ell_x(self, u: ArrayLike, /) -> ArrayLike:
        """Claimed for block x where ||grad f|| = u."""

    def ell_y(self, u: ArrayLike, /) -> ArrayLike:
        """Claimed for block y."""


def at_level(f: BlockSmooth, direction: Tensor, level: float | Tensor) -> Tensor:
    """The first point z = center + s direction, s > 0, where bisection finds f(z) - f* = level: [..., d], to rounding.

    Args:
        f: a coercive function, or one with a bounded domain, outside of which it is infinite or NaN.
        direction: [..., d], not 0.
        level: not negative; a number or [...].

    Raises:
        BadInput: along some direction f stays below the level up to s = 2^200.
    """
    direction = direction.double()
    target = f.f_star + torch.as_tensor(level, dtype=torch.float64).expand(direction.shape[:-1])
    high = torch.ones(direction.shape[:-1], dtype=torch.float64)

    def below(s: Tensor) -> Tensor:
        return f.value(f.center + s.unsqueeze(-1) * direction) < target

    for _ in range(200):
        too_short = below(high)
        if not too_short.any():
            break
        high = torch.where(too_short, 2 * high, high)
    else:
        raise BadInput(f"'{f.name}' stays below {float(target.max()):g} along a ray: it is not coercive")
    low = torch.zeros_like(high)
    for _ in range(100):  # 60 for the bits of s, the rest for a first guess that was too far
        middle = (low + high) / 2
        inside = below(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return f.center + low.unsqueeze(-1) * direction


def sample(f: BlockSmooth, level: float, points: int, seed: int = 0) -> Tensor:
    """Points [points, d] of f - f* <= level, dense near its boundary and reaching towards the minimum.

    Directions: Gaussian, those of x alone and y alone, coordinates, and the blocks' diagonals, where couplings and
    sums over coordinates are extreme. Levels: half are F U^(1/4), half log-uniform from 1e-8 F to F, U uniform.
    """
    rng = torch.Generator().manual_seed(seed)
    d = f.d_x + f.d_y
    direction = torch.randn(points, d, generator=rng, dtype=torch.float64)
    kind = torch.arange(points) % 8  # 0, 6 and 7 stay Gaussian
    direction[kind == 1, f.d_x :] = 0
    direction[kind == 2, : f.d_x] = 0
    single = torch.nn.functional.one_hot(torch.randint(0, d, (points,), generator=rng), d).double()
    direction[kind == 3] *= single[kind == 3]
    diagonal = torch.cat([direction[:, :1].expand(-1, f.d_x), direction[:, -1:].expand(-1, f.d_y)], 1)
    direction[kind == 4] = diagonal[kind == 4]
    # Entries of very different sizes, between Gaussian directions and coordinates.
    direction[kind == 5] *= torch.rand(points, d, generator=rng, dtype=torch.float64)[kind == 5] ** 6
    u = torch.rand(points, generator=rng, dtype=torch.float64)
    levels = torch.where(torch.rand(points, generator=rng) < 0.5, u**0.25, 1e-8**u) * level
    return at_level(f, direction, levels)


def climb(
    f: BlockSmooth, level: float, score: Callable[[Tensor], Tensor], starts: Tensor, rounds: int = 60, seed: int = 0
) -> Tensor:
    """Local search for the largest score [...] of points [..., d] with f - f* <= level, from the best of `starts`.

    Random steps of all sizes from 8 points at once, the better one kept: it asks for no derivative of the score, which
    for eigenvalues of Hessians would be a third derivative, and not exist where eigenvalues meet.

    Returns:
        the points reached, [8, d] (fewer if fewer start), best first.
    """
    rng = torch.Generator().manual_seed(seed)
    # NaN, as outside the domain, would win every comparison of `topk` and `max`.
    scores = score(starts).nan_to_num(nan=-torch.inf)
    best = starts[scores.topk(min(8, len(starts))).indices]
    top = score(best)
    radius = (starts - f.center).norm(dim=-1).max()
    for _ in range(rounds):
        size = radius * 10 ** (-6 * torch.rand(len(best), 32, 1, generator=rng, dtype=torch.float64))
        steps = torch.randn(len(best), 32, best.shape[-1], generator=rng, dtype=torch.float64)
        # Some steps move few coordinates: where the maximum lies on an axis, steps in all of them leave it.
        steps *= torch.rand(steps.shape, generator=rng) < torch.rand(len(best), 32, 1, generator=rng)
        candidates = best.unsqueeze(1) + size * steps
        inside = f.value(candidates) - f.f_star <= level
        candidates = torch.where(inside.unsqueeze(-1), candidates, best.unsqueeze(1))
        highest, index = score(candidates).nan_to_num(nan=-torch.inf).max(1)
        improved = highest > top
        best = torch.where(improved.unsqueeze(-1), candidates[torch.arange(len(best)), index], best)
        top = torch.where(improved, highest, top)
    return best[top.argsort(descending=True)]
