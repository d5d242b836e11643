"""What a finite sum f = (1/n) sum_i f_i of z = (x, y) gives to Algorithm 1, to the checks and to the theorems.

z is a flat vector [d], x first, d = d_x + d_y; the minimum f* is at z = 0. There are two kinds: `Objective`, whose
components differ by linear terms and share one Hessian, and those of `smoothlab.objectives.curved`, whose components
curve differently. The theorems ask of the second kind what comes free with the first (theory.md B):

    component_ell    -D <= Hess f_i <= D for every i where ||grad f|| <= u, the norm of the mean's gradient: at least
                     ell, which is that of f alone
    variances(F)     sup of (1/n) sum ||grad_x f_i - grad_x f||^2 where f - f* <= F, and of y
    spread(u)        sup over i of ||grad f_i - grad f|| where ||grad f|| <= u
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, flatten
from smoothlab.errors import BadInput
from smoothlab.objectives.psi import Array, Side
from smoothlab.objectives.sublevel import at_level
from smoothlab.theory.constants import Constants, constants
from smoothlab.theory.theorems import Setting

Number = int | Tensor
"""The number of a component, or one for each point, int64 [...]."""


@dataclass(frozen=True)
class FiniteSum(ABC):
    """A finite sum.

    Attributes:
        name: for records.
        d_x: dimension of x.
        d_y: dimension of y.
    """

    name: str
    d_x: int
    d_y: int

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of components."""

    @property
    def f_star(self) -> float:
        """The minimum, at z = 0."""
        return 0.0

    @property
    def gaussian_reason(self) -> str:
        """Reason for which E f is infinite after a step in x with Gaussian directions; empty where it is finite."""
        return ""

    # The function and its components

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """f at z [..., d]: [...]; infinite outside the domain."""

    @abstractmethod
    def gradient(self, z: Tensor) -> Tensor:
        """grad f [..., d]; NaN outside the domain."""

    @abstractmethod
    def hessian(self, z: Tensor) -> Tensor:
        """Hess f [..., d, d]; NaN outside the domain."""

    @abstractmethod
    def value_of(self, z: Tensor, i: Number) -> Tensor:
        """f_i at z [..., d]: [...]."""

    @abstractmethod
    def gradient_of(self, z: Tensor, i: Number) -> Tensor:
        """grad f_i [..., d]."""

    @abstractmethod
    def hessian_of(self, z: Tensor, i: Number) -> Tensor:
        """Hess f_i [..., d, d]."""

    def variance(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(1/n) sum ||grad_x f_i - grad_x f||^2 at z [..., d], and that of y: [...] each."""
        x, y = self._parts(centered(self.gradients(z)).square())
        return x.sum(-1).mean(0), y.sum(-1).mean(0)

    def gradients(self, z: Tensor) -> Tensor:
        """grad f_i of all components, [n, ..., d]."""
        return torch.stack([self.gradient_of(z, i) for i in range(self.n)])

    @property
    def dim(self) -> int:
        """d = d_x + d_y."""
        return self.d_x + self.d_y

    @property
    def center(self) -> Tensor:
        """The minimum: 0 [d]."""
        return torch.zeros(self.dim, dtype=torch.float64)

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.shape[-1:] != (self.dim,):
            raise BadInput(f"z has shape {tuple(z.shape)}: its last dimension must be d_x + d_y = {self.dim}")
        return z[..., : self.d_x], z[..., self.d_x :]

    # What is known of it

    @abstractmethod
    def ell(self, u: ArrayLike, side: Side) -> Array:
        """-diag(ell_x, ell_y) <= Hess f <= diag(ell_x, ell_y) where ||grad f|| <= u (Definition 2.1, two-sided)."""

    def component_ell(self, u: ArrayLike, side: Side) -> Array:
        """ell of every component, at the norm of the mean's gradient; that of f where all have its Hessian."""
        return self.ell(u, side)

    @abstractmethod
    def variances(self, level: float = math.inf) -> tuple[float, float]:
        """sigma_x^2 and sigma_y^2 of Assumption 3.3 where f - f* <= level; infinite where there is no bound."""

    @abstractmethod
    def spread(self, u: float = math.inf) -> float:
        """Sup over i of ||grad f_i - grad f|| where ||grad f|| <= u; infinite where there is no bound."""

    def ell_x(self, u: ArrayLike) -> Array:
        """ell of block x."""
        return self.ell(u, "x")

    def ell_y(self, u: ArrayLike) -> Array:
        """ell of block y."""
        return self.ell(u, "y")

    def component_ell_x(self, u: ArrayLike) -> Array:
        """ell of block x for every component."""
        return self.component_ell(u, "x")

    def component_ell_y(self, u: ArrayLike) -> Array:
        """ell of block y for every component."""
        return self.component_ell(u, "y")

    @property
    def sigma2(self) -> float:
        """sigma^2 of Assumption 3.3, for every z."""
        return self.sigma2_x + self.sigma2_y

    @property
    def sigma2_x(self) -> float:
        """The part of sigma^2 in block x."""
        return self.variances()[0]

    @property
    def sigma2_y(self) -> float:
        """The part of sigma^2 in block y."""
        return self.variances()[1]

    def constants(self, F: float) -> Constants:
        """G, L_x and L_y of the sublevel set f - f* <= F, by T1 and by the printed Lemma B.3."""
        return constants(self.ell_x, self.ell_y, F)

    def setting(self, gap: float, level: float = math.inf) -> Setting:
        """The theorems' problem, from f(z_0) - f* = gap on.

        Args:
            gap: Delta.
            level: F; sigma_x, sigma_y hold where f - f* <= F, and the spread in the neighborhood of that set where
                ||grad f|| <= 2G (B.1 corrected). Infinite: everywhere, as Assumption 3.3 asks.

        Raises:
            BadInput: there are no such bounds everywhere.
        """
        sigma2_x, sigma2_y = self.variances(level)
        if not math.isfinite(sigma2_x + sigma2_y):
            raise BadInput(
                f"sigma of '{self.name}' is unbounded, so Assumption 3.3 fails: give the level F of a sublevel set"
            )
        ell_x, ell_y, neighborhood = self.component_ell_x, self.component_ell_y, math.inf
        if math.isfinite(level):
            neighborhood = 2 * constants(ell_x, ell_y, level).G
        return Setting(ell_x, ell_y, gap, self.n, self.d_x, sigma2_x, sigma2_y, self.spread(neighborhood))

    @property
    def gaussian_moments(self) -> Literal["finite", "infinite"]:
        """Whether E f stays finite when block x moves by zeroth-order steps with Gaussian directions."""
        return "infinite" if self.gaussian_reason else "finite"

    def inside(self, z: Tensor) -> Tensor:
        """Whether z [..., d] is in the domain: [...]."""
        self._parts(z)
        return z.isfinite().all(-1)

    def at_level(self, direction: Tensor, level: float | Tensor) -> Tensor:
        """A point z = s direction, s > 0, with f(z) - f* = level: [..., d], to rounding; see `sublevel.at_level`."""
        return at_level(self, direction, level)

    # As a Loss on Blocks

    def blocks(self, z0: Tensor | None = None) -> dict[str, Block]:
        """Blocks "x" and "y" of one fp64 parameter each, at z0 [d], by default 1/2 everywhere.

        Raises:
            BadInput: z0 is not in the domain, or not of this dimension.
        """
        z = torch.full((self.dim,), 0.5, dtype=torch.float64) if z0 is None else torch.as_tensor(z0).detach()
        x, y = self._parts(z)
        if z.dim() != 1 or not bool(self.inside(z)):
            raise BadInput(f"z0 must be one point [{self.dim}] inside the domain of '{self.name}'")
        # Clones: training moves the parameters in place, and z0 stays as it is.
        return {"x": Block("x", (nn.Parameter(x.clone()),)), "y": Block("y", (nn.Parameter(y.clone()),))}

    def loss(self, blocks: Mapping[str, Block], i: int | None = None) -> Loss:
        """Component f_i at the blocks' parameters, or f for i = None.

        Raises:
            BadInput: there is no component i.
        """
        if i is not None and not 0 <= i < self.n:
            raise BadInput(f"there is no component {i}: n = {self.n}")

        def loss() -> Tensor:
            z = flatten([*blocks["x"].params, *blocks["y"].params])
            return self.value(z) if i is None else self.value_of(z, i)

        return loss


def sizes(d_x: int, d_y: int, n: int) -> None:
    """Refuse dimensions and numbers of components that are no integers of at least 1.

    Raises:
        BadInput: names the size.
    """
    for name, size in (("d_x", d_x), ("d_y", d_y), ("n", n)):
        if not isinstance(size, int) or size < 1:
            raise BadInput(f"{name} is {size}: give an integer of at least 1")


def centered(drawn: Tensor) -> Tensor:
    """Rows [n, ...] whose sum is 0."""
    return drawn - drawn.mean(0)


def scaled(shifts: Tensor, sigma: float) -> Tensor:
    """Rows of mean square sigma^2."""
    if sigma == 0:  # with n = 1 the rows are 0 as well, and have no size to divide by
        return shifts * 0.0
    return shifts * (sigma / float(shifts.square().sum(-1).mean().sqrt()))
