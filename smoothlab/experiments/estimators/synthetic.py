"""Functions whose derivatives are known, and many zeroth-order estimates on them at once.

    f(theta) = (1/d) sum_k phi(<w_k, theta>),   k = 1..d,   with phi quadratic, cubic, quartic or cosh.

Every derivative is a sum over k of phi's times powers of w_k, so that `Taylor` is exact; cosh, whose Taylor series does
not end, has its mean in closed form too (`Ridges.mean`). `estimates` makes, from the same seeds and to the same
directions, what `ZerothOrder` would make one at a time (tests/experiments/test_synthetic.py compares the two).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Coordinate, Gaussian, Rademacher, Sphere
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.moments import Taylor, mean

Array = NDArray[np.float64]

# phi and its first four derivatives, for closed forms in fp64; VALUES are evaluated in every precision
SHAPES: dict[str, Sequence[Callable[[Array], Array]]] = {
    "quadratic": [lambda u: u + u**2 / 2, lambda u: 1 + u, np.ones_like, np.zeros_like, np.zeros_like],
    "cubic": [lambda u: u + u**2 / 2 + u**3 / 6, lambda u: 1 + u + u**2 / 2, lambda u: 1 + u, np.ones_like,
              np.zeros_like],
    "quartic": [lambda u: u**2 / 2 + u**4 / 24, lambda u: u + u**3 / 6, lambda u: 1 + u**2 / 2, lambda u: u,
                np.ones_like],
    "cosh": [np.cosh, np.sinh, np.cosh, np.sinh, np.cosh],
}  # fmt: skip
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "quadratic": lambda u: u + u * u / 2,
    "cubic": lambda u: u + u * u / 2 + u * u * u / 6,
    "quartic": lambda u: u * u / 2 + u * u * u * u / 24,
    "cosh": torch.cosh,
}


@dataclass(frozen=True)
class Ridges:
    """One of these functions and the point where gradients are estimated.

    Attributes:
        shape: name of phi.
        w: its directions [d, d], rows of length about 1; they and the point are representable in bf16, so that every
            precision has the same function and stands at the same point.
        point: theta [d].
    """

    shape: str
    w: Array
    point: Array

    @classmethod
    def random(cls, shape: str, dim: int, seed: int) -> "Ridges":
        """Gaussian directions and a Gaussian point."""
        rng = np.random.default_rng([seed, dim])
        w = torch.tensor(rng.standard_normal((dim, dim)) / dim**0.5).bfloat16()
        point = torch.tensor(rng.standard_normal(dim)).bfloat16()
        return cls(shape, w.double().numpy(), point.double().numpy())

    @property
    def dim(self) -> int:
        """Dimension d."""
        return len(self.point)

    @property
    def matrix(self) -> tuple[int, int]:
        """The squarest shape of d entries: low-rank directions need a matrix."""
        rows = max(n for n in range(1, int(self.dim**0.5) + 1) if self.dim % n == 0)
        return rows, self.dim // rows

    def derivative(self, order: int) -> Array:
        """(1/d) phi^(order)(<w_k, theta>), [d]."""
        return SHAPES[self.shape][order](self.w @ self.point) / self.dim

    def taylor(self, order: int = 4) -> Taylor:
        """Derivatives at the point, as tensors up to `order`."""
        forms = {2: "k,ki,kj->ij", 3: "k,ki,kj,kl->ijl", 4: "k,ki,kj,kl,km->ijlm"}
        tensors: dict[int, Array] = {}
        for n, form in forms.items():
            if n <= order and self.derivative(n).any():  # without it Taylor spares the sums that are 0
                tensors[n] = np.einsum(form, self.derivative(n), *[self.w] * n, optimize=True)
        gradient = self.derivative(1) @ self.w
        return Taylor(gradient, tensors[2], tensors.get(3), tensors.get(4), shapes=(self.matrix,))

    def mean(self, estimator: ZerothOrder) -> Array:
        """E ghat [d], exact: from the Taylor tensors, and for cosh from its moment generating function.

        cosh(a + b) - cosh(a - b) = 2 sinh a sinh b, so that a ridge adds sinh(a) E sinh(mu w'z) z / mu, which is

            Gaussian     w exp(mu^2 ||w||^2 / 2)
            sphere       w 0F1(d/2 + 1; d mu^2 ||w||^2 / 4),   from E exp(t'z) = 0F1(d/2; d ||t||^2 / 4)
            Rademacher   (tanh(mu w_i) / mu) prod_j cosh(mu w_j)
            coordinate   sinh(mu sqrt(d) w_i) / (mu sqrt(d))
        """
        if self.shape != "cosh":
            return mean(estimator, self.taylor(3))
        mu, d, w, distribution = estimator.mu, self.dim, self.w, type(estimator.distribution)
        squares = (mu**2 * (w**2).sum(1))[:, None]
        if distribution is Gaussian:
            terms = w * np.exp(squares / 2)
        elif distribution is Sphere:
            terms = w * special.hyp0f1(d / 2 + 1, d * squares / 4)
        elif distribution is Rademacher:
            terms = np.tanh(mu * w) / mu * np.cosh(mu * w).prod(1, keepdims=True)
        elif distribution is Coordinate:
            terms = np.sinh(mu * d**0.5 * w) / (mu * d**0.5)
        else:
            return mean(estimator, self.taylor(3))  # the leading term
        return np.asarray(self.derivative(1) @ terms)

    def exact(self, distribution: Distribution) -> bool:
        """Whether `mean` is exact for this distribution, and not only its leading term in mu."""
        return self.shape != "cosh" or type(distribution) in (Gaussian, Sphere, Rademacher, Coordinate)

    def values(self, points: Tensor) -> Tensor:
        """f at many points [..., d], computed in their precision."""
        w = torch.tensor(self.w, dtype=points.dtype)
        return VALUES[self.shape](points @ w.T).mean(-1)

    def along(self, z: Tensor, h: float, dtype: torch.dtype) -> Array:
        """f at theta + h z for directions z [..., d], in `dtype`; the sum is rounded as `Perturbation` rounds it."""
        theta = torch.tensor(self.point, dtype=dtype).to(z.dtype)
        return np.asarray(self.values(torch.add(theta, z, alpha=h).to(dtype)).double())

    def block(self, dtype: torch.dtype) -> Block:
        """theta as a block of one matrix."""
        return Block("theta", (nn.Parameter(torch.tensor(self.point, dtype=dtype).view(self.matrix)),))


def directions(distribution: Distribution, block: Block, seed: Sequence[int], count: int, q: int = 1) -> Tensor:
    """What an estimator with seeds (*seed, 0), ..., (*seed, count - 1) draws: [count, q, d], working precision."""
    drawn = torch.empty(count, q, block.dim, dtype=distribution.stream(block, seed).dtype)
    for i in range(count):
        for j in range(q):
            # `map` fills `out` as it goes: nothing else is done with its pieces
            distribution.stream(block, (*seed, i, j)).map(lambda piece, numbers: None, out=drawn[i, j])
    return drawn


def frames(estimator: ZerothOrder, drawn: Tensor) -> Tensor:
    """The directions [n, q, d] that the estimator makes of those drawn [n, >= q, d]."""
    z = drawn[:, : estimator.q]
    if estimator.average == "antithetic":
        half = z[:, : estimator.q // 2]
        return torch.stack([half, -half], 2).flatten(1, 2)
    if estimator.average == "orthogonal":
        # z z' = L L' makes the rows of L^-1 z orthonormal; sqrt(d) times them have E zz' = I again
        wide = z.double()
        lower = torch.linalg.cholesky(wide @ wide.mT)
        frame: Tensor = torch.linalg.solve_triangular(lower, wide, upper=False)
        return frame.mul_(z.shape[-1] ** 0.5).to(z.dtype)
    return z


class Slopes(NamedTuple):
    """Difference quotients c [n, q] of f along directions z [n, q, d], fp64: ghat = mean over q of c z."""

    c: Array
    z: Array

    @property
    def estimates(self) -> Array:
        """ghat [n, d]."""
        return np.asarray(np.einsum("nq,nqd->nd", self.c, self.z) / self.c.shape[1])


def slopes(f: Ridges, mu: float, sides: int, z: Tensor, dtype: torch.dtype) -> Slopes:
    """Quotients along z [n, q, d] with theta, the moved points and f in `dtype`.

    The difference of two values and its quotient are those of Python's numbers, fp64, as in `ZerothOrder`.
    """
    if sides == 2:
        c = (f.along(z, mu, dtype) - f.along(z, -mu, dtype)) / (2 * mu)
    else:
        center = float(f.values(torch.tensor(f.point, dtype=dtype)))
        c = (f.along(z, mu, dtype) - center) / mu
    return Slopes(c, z.double().numpy())
