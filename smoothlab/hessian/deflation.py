"""Deflation: what Lanczos vectors of a Hessian block have seen exactly, and what probes of the rest have told.

Let Q [k, d] be an orthonormal basis, T = Q H Q' and B = (I - Q'Q) H (I - Q'Q). Then, exactly, tr H = tr T + tr B and
||H||_F^2 = 2 ||H Q'||_F^2 - ||T||_F^2 + ||B||_F^2. Gaussian probes orthogonal to Q see B.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block, dot
from smoothlab.errors import BadInput
from smoothlab.stats.intervals import Interval
from smoothlab.stats.probes import Reach, effective_rank, lanczos_reach, sum_of_squares
from smoothlab.zeroth.distributions import draw

_COLUMNS = 1 << 16  # columns of Q handled at once: a chunk of Q and of the vector stays in cache
_AGAIN = 0.25  # share of its square that a vector must keep for one projection to be enough
_PYTHAGORAS = 0.01  # share of its square that a vector must keep for its norm to follow from its coefficients
FIRST = 5  # probes before the first look at the interval
IMAGES = 16  # images kept: enough for the effective rank, and a bound on memory


class Products(ABC):
    """Products with the Hessian of one loss at one point, blocks by name.

    Attributes:
        blocks: disjoint blocks by name.
        loss: the loss at the point.
        gradients: gradient of each block, flat [dim].
        differences: whether products are finite differences, which kinks and long steps part from the Hessian.
    """

    blocks: dict[str, Block]
    loss: float
    gradients: dict[str, Tensor]
    differences: ClassVar[bool] = False

    @abstractmethod
    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """H_bc v for c = `along` and each b of `wrt`, as flat vectors [b.dim]."""

    @abstractmethod
    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """Relative rounding error of the product H_cc v = `image`, and how many more products measuring it took."""

    def truncation(self, along: str) -> float:
        """Relative error of products beside rounding, as far as it is known."""
        return 0.0


class Projection(NamedTuple):
    """What projecting w out of Q told: Q w [k] in fp64, and the norms of w before and after."""

    coefficients: np.ndarray
    before: float
    after: float


class Basis:
    """Orthonormal rows Q [k, d] in growing memory, with projections in cache-sized chunks summed in fp64.

    Projecting leaves an error along Q of about eps times the norm that w had before. It is repeated only where little
    of w is left, so that this is much of what is left (Daniel, Gragg, Kaufman and Stewart 1976; "twice is enough").
    """

    def __init__(self, dim: int, like: Tensor) -> None:
        self.dim, self.size = dim, 0
        self._rows = torch.empty(0, dim, dtype=like.dtype, device=like.device)

    @property
    def rows(self) -> Tensor:
        """Q [k, d]."""
        return self._rows[: self.size]

    def reserve(self, more: int) -> None:
        """Memory for `more` rows beyond those there: growing copies Q, and first writes to new memory are slow."""
        if self.size + more > len(self._rows):
            grown = self._rows.new_empty(self.size + more, self.dim)
            grown[: self.size] = self.rows
            self._rows = grown

    def _sweep(self, w: Tensor, step: np.ndarray | None = None, *, look: bool = True) -> tuple[np.ndarray, float]:
        """w -= Q' step in place where a step is given; then Q w [k], or nothing without `look`, and ||w||^2."""
        down = None if step is None else torch.as_tensor(step, dtype=w.dtype, device=w.device)
        seen, squares = [], []
        for i in range(0, self.dim, _COLUMNS):
            q, x = self.rows[:, i : i + _COLUMNS], w[i : i + _COLUMNS]
            if down is not None:
                x.addmv_(q.T, down, alpha=-1)
            if look:
                seen.append(q @ x)
            if x.dtype.itemsize == 2:
                x = x.float()  # fp16 squares would overflow
            squares.append(torch.dot(x, x))
        coefficients = torch.stack(seen).double().sum(0).cpu().numpy() if look else np.zeros(0)
        return coefficients, float(torch.stack(squares).double().sum())

    def project_out(self, w: Tensor) -> Projection:
        """w -= Q'Q w in place, until what is left is orthogonal to Q up to rounding of its own norm, or is rounding."""
        total, more = np.zeros(self.size), self.size > 0
        left, square = self._sweep(w, look=more)
        before = square**0.5
        while more:
            total += left
            more = square - float(left @ left) < _AGAIN * square  # Pythagoras: what this subtraction will leave
            left, square = self._sweep(w, left, look=more)
            more = more and square**0.5 > _rounding(w, before)
        return Projection(total, before, square**0.5)

    def outside(self, w: Tensor) -> float:
        """||w - Q'Q w||^2, from Q w and ||w||^2 where enough is left, which spares the subtraction; w may be spoilt."""
        if not self.size:
            return dot(w, w)
        seen, square = self._sweep(w)
        left = square - float(seen @ seen)
        if left < _PYTHAGORAS * square:  # the difference would be rounding
            left = self.project_out(w).after ** 2
        return left

    def add(self, w: Tensor, seen: Projection | None = None) -> bool:
        """Append w, orthogonalized (in place) and normalized; False when w lies in the span up to rounding.

        `seen` is what w's earlier projection told. On this very Q it need not be repeated; and how much of w is
        rounding is judged by the norm before it.
        """
        projection = seen
        if projection is None or len(projection.coefficients) < self.size:
            projection = self.project_out(w)
        before = projection.before if seen is None else seen.before
        if not projection.after > _rounding(w, before):
            return False
        if self.size == len(self._rows):
            self.reserve(max(4, self.size // 2))
        torch.mul(w, 1 / projection.after, out=self._rows[self.size])
        self.size += 1
        return True


def _rounding(w: Tensor, before: float) -> float:
    """The norm up to which what a projection leaves of w is taken for rounding."""
    return 100 * torch.finfo(w.dtype).eps * before


class Deflation:
    """Lanczos, probes and deflation on one block c; cross images H_bc v for blocks b of `others` come on the way.

    `others` maps b to its basis Q_b if b is done already, else to None. `cross_known[b]` is then the part of
    ||H_bc||_F^2 that Q_c has seen outside Q_b, `cross_squares[b]` holds the squares of the same part of the probes'
    images, and `cross_images[b]` the images themselves while Q_b is to come.
    """

    def __init__(self, hessian: Products, name: str, seed: Sequence[int], others: Mapping[str, Basis | None]) -> None:
        self.hessian, self.name, self.block, self.others = hessian, name, hessian.blocks[name], others
        self.basis = Basis(self.block.dim, self.block.params[0])
        self.seed, self.draws, self.hvps, self.lanczos = seed, 0, 0, 0
        self.unbroken = 0  # Lanczos vectors of the first start: all, unless its Krylov space closes
        self.columns: list[np.ndarray] = []  # column j of T down to its diagonal
        self.residuals: list[float] = []  # ||(I - Q'Q) H q_j|| for the Q of that time
        self.captured = 0.0  # ||H Q'||_F^2
        self.noise = 0.0  # relative rounding error of a product
        self.cross_known = dict.fromkeys(others, 0.0)
        self._clear()

    def _clear(self) -> None:
        self.images: list[tuple[Tensor, Projection]] = []
        self.gram = np.zeros((0, 0))
        self.squares: list[float] = []
        self.forms: list[float] = []
        self.cross_images: dict[str, list[Tensor]] = {name: [] for name in self.others}
        self.cross_squares: dict[str, list[float]] = {name: [] for name in self.others}

    def _draw(self) -> Tensor:
        self.draws += 1
        return draw(self.block, "gaussian", [*self.seed, self.draws])

    def _product(self, v: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        image, *crossed = self.hessian.product(v, self.name, [self.name, *self.others])
        self.hvps += 1
        if not all(bool(torch.isfinite(vector.sum())) for vector in (image, *crossed)):
            raise BadInput(
                f"a Hessian-vector product of block '{self.name}' is not finite: the loss has no second derivative "
                "here (a norm or a root of 0), or numbers overflow; move the weights, or use a wider --dtype"
            )
        return image, dict(zip(self.others, crossed, strict=True))

    def _outside(self, name: str, cross: Tensor) -> float:
        """The square of a cross image, of its part outside Q_b where that is known already; the image may be spoilt."""
        basis = self.others[name]
        if basis is None:
            return dot(cross, cross)
        return basis.outside(cross)

    def deflate(self, w: Tensor, seen: Projection | None = None) -> tuple[Tensor, Projection] | None:
        """Add the direction w to Q (w is overwritten): (I - Q'Q) H q, or None when w lies in the span of Q already.

        `seen` is what w's earlier projection told, see `Basis.add`; that of the result comes with it.
        """
        if not self.basis.add(w, seen):
            return None
        q = self.basis.rows[-1]
        image, crossed = self._product(q)
        if self.hvps == 1:
            self.noise, spent = self.hessian.noise(q, image, self.name)
            self.hvps += spent
            units = 256 if q.dtype == torch.float64 else 64  # of rounding in `dot`
            self.noise = max(self.noise, units * torch.finfo(q.dtype).eps)
        for name, cross in crossed.items():
            self.cross_known[name] += self._outside(name, cross)
        projection = self.basis.project_out(image)
        self.captured += projection.before**2
        self.columns.append(projection.coefficients)
        self.residuals.append(projection.after)
        return image, projection

    def krylov(self, steps: int) -> None:
        """Lanczos steps from a uniformly random start, and from another one wherever the Krylov space closes.

        At most as many as the block has dimensions: a block of at most `steps` is taken whole.
        """
        most = min(steps, self.block.dim)
        self.basis.reserve(min(most + 1, self.block.dim))  # and a direction of the self-checks
        following: tuple[Tensor, Projection | None] | None = None  # the next vector; None where the space closed
        while self.basis.size < most:
            if following is None and self.basis.size:
                self.unbroken = self.unbroken or self.basis.size
            if following is None:
                following = self._draw(), None
            following = self.deflate(*following)
        self.lanczos = self.basis.size
        self.unbroken = self.unbroken or self.lanczos

    def reach(self) -> Reach:
        """How far out the eigenvalue of the largest modulus may lie, from the Lanczos steps of the first start."""
        diagonal = np.array([column[-1] for column in self.columns[: self.unbroken]])
        left = np.array(self.residuals[: self.unbroken])
        rounding = self.noise * float(np.hypot(diagonal, left).max())
        return lanczos_reach(diagonal, np.maximum(left, rounding), self.block.dim)

    @property
    def complete(self) -> bool:
        """Whether Q spans the block, so that nothing is left to probe."""
        return self.basis.size == self.block.dim

    def probe(self) -> None:
        """One Gaussian probe of B: image, quadratic form, cross images."""
        g = self._draw()
        self.basis.project_out(g)
        image, crossed = self._product(g)
        self.forms.append(dot(g, image))
        projection = self.basis.project_out(image)
        self.squares.append(projection.after**2)
        if len(self.images) < IMAGES:
            row = np.array([dot(image, other) for other, _ in self.images])
            self.gram = np.block([[self.gram, row[:, None]], [row[None, :], np.array([[self.squares[-1]]])]])
            self.images.append((image, projection))
        for name, cross in crossed.items():
            self.cross_squares[name].append(self._outside(name, cross))
            if self.others[name] is None:
                self.cross_images[name].append(cross)

    def extend(self) -> None:
        """The images of the probes so far join Q; probing starts anew."""
        images = self.images
        self._clear()
        self.basis.reserve(len(images))
        for image, projection in images:
            self.deflate(image, projection)

    def projected(self) -> np.ndarray:
        """T = Q H Q' [k, k], from its columns' upper parts by symmetry."""
        t = np.zeros((len(self.columns), len(self.columns)))
        for j, column in enumerate(self.columns):
            t[: j + 1, j] = t[j, : j + 1] = column
        return t

    def asymmetry(self) -> float:
        """||T - T'||_F over the entries of both triangles that are known, relative to ||H Q'||_F; no product is spent.

        After Lanczos, H q_j = sum_{i <= j} T_ij q_i + t_j q_{j+1}: below the diagonal stands t_j, then only 0. The last
        Lanczos vector, whose remainder did not join Q, is left out.
        """
        squares = 0.0
        for j in range(self.lanczos - 1):
            right = np.array([column[j] for column in self.columns[j + 1 :]])
            right[0] -= self.residuals[j]
            squares += float(right @ right)
        if self.captured == 0.0:
            return 0.0
        return math.sqrt(squares / self.captured)

    def in_full_space(self, coefficients: np.ndarray) -> Tensor:
        """Q'c, flat [dim], for c [k]."""
        return self.basis.rows.T @ torch.as_tensor(coefficients).to(self.basis.rows)

    def form(self, v: Tensor) -> float:
        """The quadratic form v'Hv for a check: its product counts, and tells the estimate nothing."""
        self.hvps += 1
        return dot(v, self.hessian.product(v, self.name, [self.name])[0])

    def frobenius_squared(self) -> tuple[Interval, Interval]:
        """Intervals of ||H||_F^2 and of its probed part ||B||_F^2."""
        known = 2 * self.captured - float((self.projected() ** 2).sum())
        rest = sum_of_squares(self.squares, effective_rank(self.gram))
        return Interval(known + rest.value, known + rest.low, known + rest.high), rest

    def probe_until(self, precision: float, budget: int) -> bool:
        """Probe, and extend Q where that is cheaper, until the norm's half-width is at most `precision` of it.

        Probes needed for share s of the square, effective rank nu: m = 2 (0.98 s / precision)^2 / nu, from the relative
        standard deviation s sqrt(2 / (m nu)) of the square. Extending costs as many products as there are images, and
        the first probes again. Returns whether the precision was reached within `budget` products.

        Stopping where probes came out low leaves the norm low in the mean: by 0.6 to 0.8 % at a precision of 5 % where
        ten or twenty eigenvalues are equal, by at most 0.2 % on the other spectra (benchmarks/coverage.py). It is
        left so: an estimate without bias whatever the rule rests on the first probes alone, which costs precision,
        and a correction by simulating the rule with the estimates in place took a quarter of it away.
        """
        while self.hvps < budget or len(self.squares) < 2:
            self.probe()
            m = len(self.squares)
            if m < FIRST:
                continue
            whole, rest = self.frobenius_squared()
            if half_width(whole) <= precision:
                return True
            needed = 2 * (0.98 * rest.value / whole.value / precision) ** 2 / effective_rank(self.gram, cautious=False)
            extension = len(self.images) + FIRST
            if needed - m > extension and self.hvps + extension <= budget and self.basis.size + m < self.block.dim:
                self.extend()
        return False


def gram_matrix(images: Sequence[Tensor]) -> np.ndarray:
    """K_ij = <a_i, a_j> of flat vectors, in fp64."""
    gram = np.zeros((len(images), len(images)))
    for i, a in enumerate(images):
        for j in range(i + 1):
            gram[i, j] = gram[j, i] = dot(a, images[j])
    return gram


def half_width(square: Interval) -> float:
    """Half-width of the norm's interval relative to the norm, from that of its square."""
    if square.value <= 0.0:
        return 0.0
    return (math.sqrt(square.high) - math.sqrt(max(square.low, 0.0))) / (2 * math.sqrt(square.value))
