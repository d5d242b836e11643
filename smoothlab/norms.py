"""Frobenius, spectral and cross-block norms and traces of Hessian blocks, each with an interval.

`block_norms` deflates and then probes. Let Q [k, d] be an orthonormal basis of k Lanczos vectors from a random start,
with full reorthogonalization, T = Q H Q' and B = (I - Q'Q) H (I - Q'Q). Then, exactly,
    ||H||_F^2 = 2 ||H Q'||_F^2 - ||T||_F^2 + ||B||_F^2,     tr H = tr T + tr B,
and Gaussian probes orthogonal to Q estimate ||B||_F^2 and tr B without bias (the idea of Hutch++, Meyer et al. 2021).
If one direction dominates, as in small trained nets, Q takes it and little is left to probe; if the spectrum is broad,
as in large pretrained nets, B is broad and few probes are enough. Between the two, e.g. ten equal eigenvalues of which
a Krylov space sees one, the images of the probes already made join Q, and probing starts anew on the smaller rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Law, dot, draw, norm
from smoothlab.errors import BadInput
from smoothlab.hessian import Hessian
from smoothlab.intervals import Interval, effective_rank, mean_of_forms, spectral_upper, sum_of_squares

Quantity = Literal["frobenius", "spectral", "trace"]
_COLUMNS = 1 << 16  # columns of Q handled at once: a chunk of Q and of the vector stays in cache
_FIRST = 5  # probes before the first look at the interval
_IMAGES = 16  # images kept: enough for the effective rank, and a bound on memory


@dataclass(frozen=True)
class NormEstimate:
    """A norm of H_bc with its 95 % interval; b = `wrt`, c = `block` (equal for a diagonal block).

    Attributes:
        block: block of the directions.
        wrt: block of the images.
        quantity: "frobenius" and "trace" have two-sided intervals; "spectral" is the largest |Ritz value|, which bounds
            ||H||_2 from below without doubt (low = value), with a one-sided 95 % upper bound in `high`.
        value: the estimate, in units of the loss per squared parameter.
        low: lower limit.
        high: upper limit.
        hvps: Hessian-vector products spent so far on `block`, those shared with other quantities included.
        floor: size of what rounding alone contributes, in the unit of `value`.
        flag: None, or what makes the value doubtful ("below floor", "precision not reached").
    """

    block: str
    wrt: str
    quantity: Quantity
    value: float
    low: float
    high: float
    hvps: int
    floor: float
    flag: str | None = None


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


class _Deflation:
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
        if len(self.images) < _IMAGES:
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
            if m < _FIRST:
                continue
            whole, rest = self.frobenius_squared()
            if _half_width(whole) <= precision:
                return True
            needed = 2 * (0.98 * rest.value / whole.value / precision) ** 2 / effective_rank(self.gram, cautious=False)
            extension = len(self.images) + _FIRST
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


def _half_width(square: Interval) -> float:
    """Half-width of the norm's interval relative to the norm, from that of its square."""
    if square.value <= 0.0:
        return 0.0
    return (square.high**0.5 - max(square.low, 0.0) ** 0.5) / (2 * square.value**0.5)


def _root(square: Interval, floor: float) -> tuple[float, float, float]:
    """Value and limits of a norm from those of its square, widened by the rounding floor."""
    value, low, high = (max(x, 0.0) ** 0.5 for x in square)
    return value, max(low - floor, 0.0), high + floor


def _flag(value: float, floor: float, reached: bool) -> str | None:
    if abs(value) < 2 * floor:
        return "below floor"
    return None if reached else "precision not reached"


def _estimates(run: _Deflation, reached: bool) -> list[NormEstimate]:
    """Frobenius norm, spectral norm and trace of a diagonal block from its finished run."""
    whole, rest = run.frobenius_squared()
    t = run.projected()
    ritz = np.linalg.eigvalsh(t)
    frobenius = max(whole.value, 0.0) ** 0.5
    floor = run.noise * frobenius
    top = float(np.abs(ritz).max())
    trace = mean_of_forms(run.forms, rest.high, float(ritz.sum()))
    coupling = max(run.captured - float((t**2).sum()), 0.0) ** 0.5
    upper = spectral_upper(
        t, coupling, rest.high**0.5, run.block.dim, np.linalg.eigvalsh(t[: run.lanczos, : run.lanczos])
    )
    point = run.noise * top  # rounding of a Ritz value
    name, hvps = run.name, run.hvps
    value, low, high = _root(whole, floor)
    return [
        NormEstimate(name, name, "frobenius", value, low, high, hvps, floor, _flag(value, floor, reached)),
        NormEstimate(name, name, "spectral", top, top - point, upper + point, hvps, point, _flag(top, point, True)),
        NormEstimate(
            name, name, "trace", trace.value, trace.low - floor, trace.high + floor, hvps, floor,
            _flag(trace.value, floor, True),
        ),
    ]  # fmt: skip


def _cross(first: _Deflation, second: _Deflation, precision: float) -> NormEstimate:
    """||H_bc||_F, c = `first` and b = `second`, from both sides: ||C||^2 = ||C Q_c'||^2 + ||(I-P_c) C' Q_b'||^2 + rest.

    The rest ||(I - P_b) C (I - P_c)||_F^2 is seen by the probes of both sides.
    """
    for image in first.cross_images[second.name]:
        second.basis.project_out(image)
    images = first.cross_images[second.name]
    gram = gram_matrix(images)
    squares = [*np.diag(gram), *second.cross_squares[first.name]]
    known = first.cross_known[second.name] + second.cross_known[first.name]
    whole = sum_of_squares(squares, effective_rank(gram), known)
    floor = max(_spill(first, second), _spill(second, first))
    value, low, high = _root(whole, floor)
    reached = _half_width(whole) <= precision
    hvps = first.hvps + second.hvps
    return NormEstimate(
        first.name, second.name, "frobenius", value, low, high, hvps, floor, _flag(value, floor, reached)
    )


def _spill(run: _Deflation, other: _Deflation) -> float:
    """Rounding in `other`'s images of `run`'s products: that of the diagonal block, as much per coordinate."""
    diagonal = max(run.frobenius_squared()[0].value, 0.0) ** 0.5
    return run.noise * diagonal * (other.block.dim / run.block.dim) ** 0.5


def block_norms(
    hessian: Hessian,
    names: Sequence[str] | None = None,
    *,
    cross: Sequence[tuple[str, str]] = (),
    precision: float = 0.05,
    lanczos: int = 12,
    budget: int = 100,
    seed: Sequence[int] = (0,),
) -> list[NormEstimate]:
    """Frobenius norm, spectral norm and trace of each diagonal block, and Frobenius norms of cross blocks.

    Args:
        hessian: products with the Hessian; see `smoothlab.hessian`.
        names: blocks to measure; all of the Hessian's by default.
        cross: pairs of blocks whose H_bc is measured too, from the products of both: no extra cost.
        precision: half-width of the 95 % interval of ||H||_F, relative to it, at which probing stops.
        lanczos: Lanczos steps before probing.
        budget: products per block at which probing stops all the same, flagged "precision not reached".
        seed: seed of the start vectors and probes.

    Returns:
        Estimates in the order of `names`, then of `cross`. Simulated coverage of every interval:
        benchmarks/coverage.py.
    """
    names = list(hessian.blocks) if names is None else list(names)
    for name in [*names, *(name for pair in cross for name in pair)]:
        _check_name(hessian, name)
    for a, b in cross:
        if a == b:
            raise BadInput(f"cross block ({a}, {b}): name two different blocks")
    if not 0 < precision < 1 or lanczos < 1 or budget < lanczos + _FIRST + 1:
        raise BadInput(
            f"precision {precision}, lanczos {lanczos}, budget {budget}: use a precision in (0, 1), at least one "
            f"Lanczos step, and a budget of at least lanczos + {_FIRST + 1}"
        )
    needed = set(names) | {name for pair in cross for name in pair}
    order = sorted(needed, key=lambda name: -hessian.blocks[name].dim)  # cross images of later blocks are then short
    runs: dict[str, _Deflation] = {}
    found: dict[str, list[NormEstimate]] = {}
    for name in order:
        partners = [a if b == name else b for a, b in cross if name in (a, b)]
        others = {p: runs[p].basis if p in runs else None for p in partners}
        run = _Deflation(hessian, name, [*seed, *name.encode()], others)
        run.krylov(lanczos)
        reached = run.complete or run.until(precision, budget)
        runs[name], found[name] = run, _estimates(run, reached)
        run.images = []
    pairs = [sorted(pair, key=order.index) for pair in cross]
    return [e for name in names for e in found[name]] + [_cross(runs[a], runs[b], precision) for a, b in pairs]


def _check_name(hessian: Hessian, name: str) -> None:
    if name not in hessian.blocks:
        raise BadInput(f"block '{name}' is unknown: use one of {', '.join(hessian.blocks)}")


def plain_norms(
    hessian: Hessian, name: str, *, probes: int, law: Law = "gaussian", seed: Sequence[int] = (0,)
) -> list[NormEstimate]:
    """Frobenius norm and trace of one block by plain probing, for comparison: means of ||Hv||^2 and v'Hv.

    Every law has E vv' = I (the sphere's radius is sqrt(d)), so no further factor is due. The relative variance of
    ||Hv||^2 is at most that of Gaussian probes, 2 tr(H^4) / ||H||_F^4, for all three laws, and the interval is made for
    that. Rademacher images can vanish by chance, so at least eight are asked for.
    """
    least = 8 if law == "rademacher" else 2
    if probes < least:
        raise BadInput(f"{probes} probes are too few for an interval: use at least {least} with {law} vectors")
    _check_name(hessian, name)
    block = hessian.blocks[name]
    images: list[Tensor] = []
    squares, forms, noise, spent = [], [], 0.0, 0
    for i in range(probes):
        v = draw(block, law, [*seed, i])
        (image,) = hessian.product(v, name, [name])
        if i == 0:
            noise, spent = hessian.noise(v, image, name)
        squares.append(dot(image, image))
        forms.append(dot(v, image))
        if i < _IMAGES:
            images.append(image)
    whole = sum_of_squares(squares, effective_rank(gram_matrix(images)))
    trace = mean_of_forms(forms, whole.high)
    floor = noise * max(whole.value, 0.0) ** 0.5
    value, low, high = _root(whole, floor)
    hvps = probes + spent
    return [
        NormEstimate(name, name, "frobenius", value, low, high, hvps, floor, _flag(value, floor, True)),
        NormEstimate(
            name, name, "trace", trace.value, trace.low - floor, trace.high + floor, hvps, floor,
            _flag(trace.value, floor, True),
        ),
    ]  # fmt: skip
