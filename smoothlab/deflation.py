"""Deflation: what Lanczos vectors of a Hessian block have seen exactly, and what probes of the rest have told.

Let Q [k, d] be an orthonormal basis, T = Q H Q' and B = (I - Q'Q) H (I - Q'Q). Then, exactly, tr H = tr T + tr B and
||H||_F^2 = 2 ||H Q'||_F^2 - ||T||_F^2 + ||B||_F^2. Gaussian probes orthogonal to Q see B.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import dot, norm
from smoothlab.directions import draw
from smoothlab.hessian import Hessian
from smoothlab.intervals import Interval, effective_rank, sum_of_squares

_COLUMNS = 1 << 16  # columns of Q handled at once: a chunk of Q and of the vector stays in cache
FIRST = 5  # probes before the first look at the interval
IMAGES = 16  # images kept: enough for the effective rank, and a bound on memory


class Basis:
    """Orthonormal rows Q [k, d] in growing memory, with projections in cache-sized chunks summed in fp64."""

    def __init__(self, dim: int, like: Tensor) -> None:
        self.dim, self.size = dim, 0
        self._rows = torch.empty(0, dim, dtype=like.dtype, device=like.device)

    @property
    def rows(self) -> Tensor:
        """Q [k, d]."""
        return self._rows[: self.size]

    def project_out(self, w: Tensor) -> np.ndarray:
        """W -= Q'Q w in place, twice over for accuracy; the coefficients Q w [k] in fp64."""
        total = np.zeros(self.size)
        if not self.size:
            return total
        chunks = [(self.rows[:, i : i + _COLUMNS], w[i : i + _COLUMNS]) for i in range(0, self.dim, _COLUMNS)]
        coefficients = torch.stack([q @ x for q, x in chunks]).double().sum(0)
        for _ in range(2):  # the second pass finds what rounding left in the first
            total += coefficients.cpu().numpy()
            step = coefficients.to(w.dtype)
            left = []
            for q, x in chunks:
                x.addmv_(q.T, step, alpha=-1)
                left.append(q @ x)
            coefficients = torch.stack(left).double().sum(0)
        return total

    def add(self, w: Tensor) -> bool:
        """Append w, orthogonalized (in place) and normalized; False when w lies in the span up to rounding."""
        before = norm(w)
        self.project_out(w)
        after = norm(w)
        if not after > 100 * torch.finfo(w.dtype).eps * before:
            return False
        if self.size == len(self._rows):
            grown = torch.empty(max(4, 3 * self.size // 2), self.dim, dtype=w.dtype, device=w.device)
            grown[: self.size] = self.rows
            self._rows = grown
        torch.mul(w, 1 / after, out=self._rows[self.size])
        self.size += 1
        return True


class Deflation:
    """Lanczos, probes and deflation on one block c; cross images H_bc v for blocks b of `others` come on the way.

    `others` maps b to its basis Q_b if b is done already, else to None. `cross_known[b]` is then the part of
    ||H_bc||_F^2 that Q_c has seen outside Q_b, `cross_squares[b]` holds the squares of the same part of the probes'
    images, and `cross_images[b]` the images themselves while Q_b is to come.
    """

    def __init__(self, hessian: Hessian, name: str, seed: Sequence[int], others: Mapping[str, Basis | None]) -> None:
        self.hessian, self.name, self.block, self.others = hessian, name, hessian.blocks[name], others
        self.basis = Basis(self.block.dim, self.block.params[0])
        self.seed, self.draws, self.hvps, self.lanczos = seed, 0, 0, 0
        self.columns: list[np.ndarray] = []  # column j of T down to its diagonal
        self.captured = 0.0  # ||H Q'||_F^2
        self.noise = 0.0  # relative rounding error of a product
        self.cross_known = dict.fromkeys(others, 0.0)
        self._clear()

    def _clear(self) -> None:
        self.images: list[Tensor] = []
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
        for basis, cross in zip(self.others.values(), crossed, strict=True):
            if basis is not None:
                basis.project_out(cross)
        return image, dict(zip(self.others, crossed, strict=True))

    def deflate(self, w: Tensor) -> Tensor | None:
        """Add the direction w to Q (w is overwritten): (I - Q'Q) H q, or None when w lies in the span of Q already."""
        if not self.basis.add(w):
            return None
        q = self.basis.rows[-1]
        image, crossed = self._product(q)
        if self.hvps == 1:
            self.noise, spent = self.hessian.noise(q, image, self.name)
            self.hvps += spent
            self.noise = max(
                self.noise, (256 if q.dtype == torch.float64 else 8) * torch.finfo(q.dtype).eps
            )  # of `dot`
        self.captured += dot(image, image)
        for name, cross in crossed.items():
            self.cross_known[name] += dot(cross, cross)
        self.columns.append(self.basis.project_out(image))
        return image

    def krylov(self, steps: int) -> None:
        """At most `steps` Lanczos steps from a uniformly random start; fewer when the Krylov space closes.

        A block of at most `steps` dimensions is taken whole, from as many random starts as it needs.
        """
        w: Tensor | None = self._draw()
        while w is not None and self.lanczos < min(steps, self.block.dim):
            w = self.deflate(w)
            self.lanczos = self.basis.size
            if w is None and self.block.dim <= steps:
                w = self._draw()

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
        self.basis.project_out(image)
        self.squares.append(dot(image, image))
        if len(self.images) < IMAGES:
            row = np.array([dot(image, other) for other in self.images])
            self.gram = np.block([[self.gram, row[:, None]], [row[None, :], np.array([[self.squares[-1]]])]])
            self.images.append(image)
        for name, cross in crossed.items():
            self.cross_squares[name].append(dot(cross, cross))
            if self.others[name] is None:
                self.cross_images[name].append(cross)

    def extend(self) -> None:
        """The images of the probes so far join Q; probing starts anew."""
        images = self.images
        self._clear()
        for image in images:
            self.deflate(image)

    def projected(self) -> np.ndarray:
        """T = Q H Q' [k, k], from its columns' upper parts by symmetry."""
        t = np.zeros((len(self.columns), len(self.columns)))
        for j, column in enumerate(self.columns):
            t[: j + 1, j] = t[j, : j + 1] = column
        return t

    def frobenius_squared(self) -> tuple[Interval, Interval]:
        """Intervals of ||H||_F^2 and of its probed part ||B||_F^2."""
        known = 2 * self.captured - float((self.projected() ** 2).sum())
        rest = sum_of_squares(self.squares, effective_rank(self.gram))
        return Interval(*(known + x for x in rest)), rest

    def until(self, precision: float, budget: int) -> bool:
        """Probe, and extend Q where that is cheaper, until the norm's half-width is at most `precision` of it.

        Probes needed for share s of the square, effective rank nu: m = 2 (0.98 s / precision)^2 / nu, from the relative
        standard deviation s sqrt(2 / (m nu)) of the square. Extending costs as many products as there are images, and
        the first probes again. Returns whether the precision was reached within `budget` products.
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
    return (square.high**0.5 - max(square.low, 0.0) ** 0.5) / (2 * square.value**0.5)
