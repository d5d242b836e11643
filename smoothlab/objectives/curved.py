"""Finite sums whose components curve differently, with f*, ell and sigma in closed form or with a proven bound.

    LogCoshSum      f_i = m||z||^2/2 + log cosh(a_i'z - b_i)     smooth everywhere, sigma bounded everywhere
    QuadraticSum    f_i = z'H_i z/2 + c_i'z                      smooth everywhere, sigma bounded on sublevel sets only
    ExponentialSum  f_i = m||z||^2/2 + c exp(a_i'z)              (L0, L1)-smooth, sigma bounded on sublevel sets only

with m||z||^2 short for m_x||x||^2 + m_y||y||^2. Components come in pairs (a, b), (a, -b) of the first family and a, -a
of the third, so that the minimum is at 0: f* = mean log cosh b_i, and c. With c_i of sum 0 it is 0 in the second, which
has a file of its own (`smoothlab.objectives.quadratic_sums`).

What bounds a Hessian by two numbers: for a symmetric A, 2|s_x'A_xy s_y| <= ||A_xy|| (||s_x||^2 + ||s_y||^2), hence

    -diag(alpha I, beta I) <= A <= diag(alpha I, beta I),   alpha = ||A_xx|| + ||A_xy||,   beta = ||A_yy|| + ||A_xy||;

for A = aa' with a = (p, q) that is |p|(|p| + |q|) and |q|(|p| + |q|).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.objectives.psi import Array, Side, positive
from smoothlab.objectives.sums import FiniteSum, Number, sizes


def block_bound(matrices: Tensor, d_x: int) -> dict[Side, float]:
    """The largest alpha (of x) and beta (of y) of the module over matrices [..., d, d]."""
    cross = torch.linalg.matrix_norm(matrices[..., :d_x, d_x:], 2)
    alpha = torch.linalg.matrix_norm(matrices[..., :d_x, :d_x], 2) + cross
    beta = torch.linalg.matrix_norm(matrices[..., d_x:, d_x:], 2) + cross
    return {"x": float(alpha.max()), "y": float(beta.max())}


def flat(value: float, u: ArrayLike) -> Array:
    """An ell that is one number for every u."""
    return np.full_like(np.asarray(u, dtype=float), value)


@dataclass(frozen=True)
class _Ridges(FiniteSum):
    """f_i = m||z||^2/2 + phi(a_i'z - b_i)."""

    mass: tuple[float, float]  # m_x and m_y
    directions: Tensor = field(repr=False, compare=False)  # a_i [n, d] fp64
    offsets: Tensor = field(repr=False, compare=False)  # b_i [n]

    def __post_init__(self) -> None:
        for block, mass in zip("xy", self.mass, strict=True):
            positive(f"the curvature m_{block} that all components share", mass)
        if float(self.gradient(self.center).norm()) > 1e-12:
            raise BadInput(f"the directions and offsets of '{self.name}' are not paired: grad f is not 0 at z = 0")

    @abstractmethod
    def phi(self, s: Tensor, order: int) -> Tensor:
        """phi, or its first or second derivative."""

    @property
    def n(self) -> int:
        """Number of components."""
        return len(self.directions)

    @cached_property
    def masses(self) -> Tensor:
        """m_x and m_y by coordinate, [d]."""
        return torch.tensor(self.mass, dtype=torch.float64).repeat_interleave(torch.tensor([self.d_x, self.d_y]))

    def value(self, z: Tensor) -> Tensor:
        """Mean of the components."""
        self._parts(z)
        ridges = self.phi(z @ self.directions.T - self.offsets, 0).mean(-1)
        return (self.masses * z.square()).sum(-1) / 2 + ridges

    def gradient(self, z: Tensor) -> Tensor:
        """M z + mean phi' a_i."""
        self._parts(z)
        return self.masses * z + self.phi(z @ self.directions.T - self.offsets, 1) @ self.directions / self.n

    def hessian(self, z: Tensor) -> Tensor:
        """M + mean phi'' a_i a_i'."""
        self._parts(z)
        bend = self.phi(z @ self.directions.T - self.offsets, 2).unsqueeze(-2) * self.directions.T
        return torch.diag(self.masses) + bend @ self.directions / self.n

    def value_of(self, z: Tensor, i: Number) -> Tensor:
        """m||z||^2/2 + phi(a_i'z - b_i)."""
        s = (z * self.directions[i]).sum(-1) - self.offsets[i]
        return (self.masses * z.square()).sum(-1) / 2 + self.phi(s, 0)

    def gradient_of(self, z: Tensor, i: Number) -> Tensor:
        """M z + phi' a_i."""
        a = self.directions[i]
        return self.masses * z + self.phi((z * a).sum(-1) - self.offsets[i], 1).unsqueeze(-1) * a

    def hessian_of(self, z: Tensor, i: Number) -> Tensor:
        """M + phi'' a_i a_i'."""
        a = self.directions[i]
        bend = self.phi((z * a).sum(-1) - self.offsets[i], 2)[..., None, None]
        return torch.diag(self.masses) + bend * a.unsqueeze(-1) * a.unsqueeze(-2)

    @cached_property
    def _of_mean(self) -> dict[Side, float]:
        """`block_bound` of mean a_i a_i'."""
        return block_bound(self.directions.T @ self.directions / self.n, self.d_x)

    @cached_property
    def _of_components(self) -> dict[Side, Array]:
        """|p|(|p| + |q|) and |q|(|p| + |q|) of each a_i = (p, q), [n]."""
        x, y = self._lengths("x").numpy(), self._lengths("y").numpy()
        return {"x": x * (x + y), "y": y * (x + y)}

    def _lengths(self, side: Side) -> Tensor:
        """||a_i|| in a block, [n]."""
        return self._parts(self.directions)["xy".index(side)].norm(dim=1)

    def _mass(self, side: Side) -> float:
        return self.mass["xy".index(side)]

    def _spread(self, slopes: Array | float) -> float:
        """||(1 - 1/n) v_i - (1/n) sum_{j != i} v_j|| for v_j = phi'_j a_j, |phi'_j| at most `slopes`."""
        lengths = slopes * self.directions.norm(dim=1).numpy()
        return float(((self.n - 2) * lengths.max() + lengths.sum()) / self.n)


@dataclass(frozen=True)
class LogCoshSum(_Ridges):
    """f_i = m||z||^2/2 + log cosh(a_i'z - b_i): phi'' in (0, 1], attained at a_i'z = b_i, and |phi'| < 1.

    sigma^2 <= mean ||a_i||^2, as the variance of vectors is at most their mean square and |phi'| < 1; it is
    mean tanh(b_i)^2 ||a_i||^2 at the minimum.
    """

    def phi(self, s: Tensor, order: int) -> Tensor:
        """log cosh, tanh, 1 - tanh^2."""
        if order == 0:
            return torch.logaddexp(s, -s) - math.log(2)
        return torch.tanh(s) if order == 1 else 1 - torch.tanh(s).square()

    @property
    def f_star(self) -> float:
        """Mean log cosh b_i."""
        return float(self.phi(self.offsets, 0).mean())

    def ell(self, u: ArrayLike, side: Side) -> Array:
        """m and the bound of mean a_i a_i'."""
        return flat(self._mass(side) + self._of_mean[side], u)

    def component_ell(self, u: ArrayLike, side: Side) -> Array:
        """m and the largest bound of a_i a_i'."""
        return flat(self._mass(side) + float(self._of_components[side].max()), u)

    def variances(self, level: float = math.inf) -> tuple[float, float]:
        """Mean ||a_i||^2 of both blocks, at every z."""
        return float(self._lengths("x").square().mean()), float(self._lengths("y").square().mean())

    def spread(self, u: float = math.inf) -> float:
        """With |phi'| < 1."""
        return self._spread(1.0)


def log_cosh_sum(
    mass: float | tuple[float, float] = 0.5, lengths: tuple[float, float] = (1.0, 1.0), offset: float = 1.0, *,
    d_x: int = 3, d_y: int = 2, n: int = 4, seed: int = 0, name: str = "log cosh sum",
) -> LogCoshSum:  # fmt: skip
    """Pairs m||z||^2/2 + log cosh(a'z -+ b) with random directions a and b between offset/2 and 3 offset/2.

    `mass` is m, or m_x and m_y; `lengths` are ||a|| in x and in y; n is even; the rest is that of `objective`.

    Raises:
        BadInput: a number out of range.
    """
    positive("the offset b", offset)
    rng = np.random.default_rng(seed)
    a = _directions(rng, d_x, d_y, n, lengths)
    b = torch.from_numpy(offset * rng.uniform(0.5, 1.5, n // 2))
    return LogCoshSum(name, d_x, d_y, _masses(mass), torch.cat([a, a]), torch.cat([b, -b]))


def _masses(mass: float | tuple[float, float]) -> tuple[float, float]:
    return mass if isinstance(mass, tuple) else (mass, mass)


def _directions(rng: np.random.Generator, d_x: int, d_y: int, n: int, lengths: tuple[float, float]) -> Tensor:
    """Random directions of half of the components, with parts in x and y of these lengths."""
    sizes(d_x, d_y, n)
    if n % 2:
        raise BadInput(f"n is {n}: components come in pairs here, so give an even number")
    for name, number in zip(("||a|| in x", "||a|| in y"), lengths, strict=True):
        positive(name, number)
    x, y = torch.from_numpy(rng.normal(size=(n // 2, d_x + d_y))).split([d_x, d_y], 1)
    x = x / x.norm(dim=1, keepdim=True) * lengths[0]
    y = y / y.norm(dim=1, keepdim=True) * lengths[1]
    return torch.cat([x, y], 1)


@dataclass(frozen=True)
class ExponentialSum(_Ridges):
    """f_i = m||z||^2/2 + c exp(a_i'z): directions a and -a in turn, f = m||z||^2/2 + (2c/n) sum_pairs cosh(a_j'z).

    In z~ = M^(1/2) z and a~ = M^(-1/2) a, with s_j = a_j'z and u~ = ||M^(-1/2) grad f|| <= u/sqrt(min(m_x, m_y)),

        ||z~'||^2 + (2c/n) sum_pairs s_j sinh s_j = <M^(-1/2) grad f, z~'> <= u~ ||z~'||,

    z~' the part of z~ in the span of the a~_j. So ||z~'|| <= u~; and the largest |s_j| is at least ||A~ z~'||/sqrt(N)
    >= w ||z~'||/sqrt(N), A~ the N directions as rows and w their smallest singular value above 0, so that

        sinh |s_j| <= S = n u~ sqrt(N)/(2 c w)   and   |s_j| <= ||a~_j|| u~   for every j,

    which bound phi'' = c e^s of each component by c (S + sqrt(1 + S^2)): affine in u. On f - f* <= F the mean of
    cosh s_j - 1 is at most F/c, and |s_j| <= ||a~_j|| sqrt(2F): variances are bounded there, and nowhere else.
    """

    c: float = 1.0  # strength

    def __post_init__(self) -> None:
        positive("the strength c of exponentials", self.c)
        super().__post_init__()

    def phi(self, s: Tensor, order: int) -> Tensor:
        """c e^s, whatever the order."""
        return self.c * torch.exp(s)

    @property
    def f_star(self) -> float:
        """The strength c: every exponential is 1 at z = 0."""
        return self.c

    @property
    def gaussian_reason(self) -> str:
        """E f is infinite after one step: a double exponential of a Gaussian."""
        return f"'{self.name}' grows exponentially in x: use Sphere directions"

    @cached_property
    def _stretched(self) -> tuple[Array, float]:
        """||a~_j|| [n], and their smallest singular value w above 0."""
        rows = self.directions / self.masses.sqrt()
        values = torch.linalg.svdvals(rows[: self.n // 2])  # the second half repeats the first one's with signs
        return rows.norm(dim=1).numpy(), float(values[values > 1e-9 * values.max()].min())

    def _farthest(self, u: ArrayLike) -> Array:
        """A bound of |a_j'z| for every j where ||grad f|| <= u, [..., n]."""
        lengths, smallest = self._stretched
        distance = np.asarray(u, dtype=float)[..., None] / math.sqrt(min(self.mass))
        with np.errstate(over="ignore"):  # the linear bound is the smaller one near 0, arcsinh's far out
            steep = self.n * distance * math.sqrt(self.n // 2) / (2 * self.c * smallest)
            return np.minimum(np.arcsinh(steep), lengths * distance)

    def ell(self, u: ArrayLike, side: Side) -> Array:
        """m and the bound of (2c/n) sum_pairs cosh s_j a_j a_j', with cosh at its largest for each."""
        with np.errstate(over="ignore"):
            return self._mass(side) + self.c * self._of_mean[side] * np.cosh(self._farthest(u).max(-1))

    def component_ell(self, u: ArrayLike, side: Side) -> Array:
        """m and the largest bound of c e^(s_j) a_j a_j'."""
        with np.errstate(over="ignore"):
            steepest: Array = (self._of_components[side] * np.exp(self._farthest(u))).max(-1)
        return self._mass(side) + self.c * steepest

    def variances(self, level: float = math.inf) -> tuple[float, float]:
        """Mean ||c e^(s_i) a_i||^2 = (2c^2/n) sum_pairs ||a_j||^2 cosh 2s_j: the smaller of two bounds on f - f* <= F.

        cosh 2s = 1 + 4C + 2C^2 with C = cosh s - 1, convex in the C_j >= 0 whose sum over pairs is at most n F/(2c):
        the largest is at a corner, all of it in one C_j; and the bound of each |s_j| alone.
        """
        if not math.isfinite(level):
            return math.inf, math.inf
        top = self.n * level / (2 * self.c)
        distance = np.minimum(math.acosh(1 + top), self._stretched[0] * math.sqrt(2 * level))
        bounds = []
        for side in ("x", "y"):
            squares = self._lengths(side).square().numpy()
            corner = squares.mean() + 2 / self.n * squares.max() * (4 * top + 2 * top**2)
            bounds.append(self.c**2 * min(float(corner), float((squares * np.cosh(2 * distance)).mean())))
        return bounds[0], bounds[1]

    def spread(self, u: float = math.inf) -> float:
        """With phi'_j = c e^(s_j) at their largest; infinite on R^d."""
        return self._spread(self.c * np.exp(self._farthest(u))) if math.isfinite(u) else math.inf


def exponential_sum(
    mass: float | tuple[float, float] = 1.0, lengths: tuple[float, float] = (1.0, 1.0), c: float = 1.0, *,
    d_x: int = 3, d_y: int = 2, n: int = 4, seed: int = 0, name: str = "exponential sum",
) -> ExponentialSum:  # fmt: skip
    """Pairs m||z||^2/2 + c exp(+-a'z) with random directions a.

    `mass` is m, or m_x and m_y; `lengths` are ||a|| in x and in y; n is even; the rest is that of `objective`.

    Raises:
        BadInput: a number out of range.
    """
    a = _directions(np.random.default_rng(seed), d_x, d_y, n, lengths)
    return ExponentialSum(name, d_x, d_y, _masses(mass), torch.cat([a, -a]), torch.zeros(n).double(), c)
