"""Deflation: what Lanczos vectors know of a Hessian block exactly, and what Gaussian probes estimate of the rest.

Let Q [k, d] be an orthonormal basis of k Lanczos vectors from a random start, with full reorthogonalization, T = Q H Q'
and B = (I - Q'Q) H (I - Q'Q). Then, exactly,
    ||H||_F^2 = 2 ||H Q'||_F^2 - ||T||_F^2 + ||B||_F^2,     tr H = tr T + tr B,
and Gaussian probes orthogonal to Q, Hutchinson's, estimate ||B||_F^2 and tr B without bias (the idea of Hutch++, Meyer
et al. 2021).
If one direction dominates, as in small trained nets, Q takes it and little is left to probe; if the spectrum is broad,
as in large pretrained nets, B is broad and few probes are enough: the Lanczos steps notice which case it is, and end
where one more would save less than a probe. Between the two, e.g. ten equal eigenvalues of which a Krylov space sees
one, the images of the probes already made join Q, and probing starts anew on the smaller rest.
Ten equal eigenvalues cannot do with the 20 products of other spectra: the Krylov space of the Lanczos steps holds one
vector of their eigenspace, so nine more starts must be imaged; to know an image exactly takes a second product; and
what is left is certified only by probes that Q does not depend on.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import dot, norm
from smoothlab.errors import BadInput
from smoothlab.hessian.basis import Basis, Projection
from smoothlab.hessian.disagreements import DOUBTFUL
from smoothlab.hessian.layers import LayerRows
from smoothlab.hessian.products import Products
from smoothlab.hessian.vector_memory import VectorMemory
from smoothlab.stats.intervals import Interval, half_width
from smoothlab.stats.probes import Reach, effective_rank, lanczos_reach, probes_needed, sum_of_squares
from smoothlab.zeroth.distributions import draw

FIRST, FIRST_LOOSE = 5, 4  # probes before the first look at the interval, and at precisions from LOOSE on
LOOSE = 0.1
CLOSE = 0.02  # relative error up to which a quotient stands for a product: its square is all that biases a norm
SMALL = 256  # dimensions of blocks that take all Lanczos steps: a dozen span much of them, and self-checks see more
IMAGES = 16  # images kept: enough for the effective rank, and a bound on memory
_PYTHAGORAS = 0.01  # share of its square that an image must keep outside Q for its norm to follow from coefficients


class Image(NamedTuple):
    """A probe's image y: the vector that is kept of it, Q times that, and Q times what was taken out of it before."""

    vector: Tensor
    inside: np.ndarray
    removed: np.ndarray


class Deflation:
    """Lanczos, probes and deflation on one block c; cross images H_bc v for blocks b of `others` come on the way.

    With C = H_bc, `cross_known[b]` is ||C Q'||_F^2, and the probes see C (I - Q'Q): `cross_squares[b]` holds the
    squares of their images, and `cross_images[b]` the first of these images. `rows` sums what the products say of the
    block's layers. With `quotients`, images of probes are `Products.quotient` from the second on, as long as that of
    the first is off by at most `CLOSE`.
    """

    def __init__(
        self,
        hessian: Products,
        name: str,
        seed: Sequence[int],
        others: Iterable[str],
        rows: LayerRows | None = None,
        *,
        quotients: bool = False,
    ) -> None:
        self.hessian, self.name, self.block = hessian, name, hessian.blocks[name]
        self.others, self.rows = tuple(others), rows
        self.basis = Basis(self.block.dim, self.block.params[0])
        self.seed, self.draws, self.hvps, self.lanczos = seed, 0, 0, 0
        self.unbroken = 0  # Lanczos vectors of the first start: all, unless its Krylov space closes
        self.columns: list[np.ndarray] = []  # column j of T down to its diagonal
        self.residuals: list[float] = []  # ||(I - Q'Q) H q_j|| for the Q of that time
        self.squared_images: list[float] = []  # ||H q_j||^2
        self.noise = 0.0  # relative rounding error of a product
        self.cross_known = dict.fromkeys(self.others, 0.0)  # ||C Q'||_F^2 of each cross block C
        self._cross_columns: dict[str, list[Tensor]] = {name: [] for name in self.others}  # C q_j
        self._memory = VectorMemory(self.block.dim, self.block.params[0])  # of the images of probes
        self._remainders: list[tuple[int, Tensor]] = []  # j and (I - Q'Q) H q_j of that time, where that did not join Q
        self._remainder_memory = VectorMemory(self.block.dim, self.block.params[0])
        # Layers' sums are of H v for probes v orthogonal to Q; and columns C q_j of a larger block would not be small.
        larger = [other for other in self.others if hessian.blocks[other].dim > self.block.dim]
        # The error of a quotient must be small beside B g, and the part of g that Q holds would add errors of its own.
        self._projects = rows is not None or bool(larger) or quotients
        self._quotients = None if quotients else False  # whether images are quotients; None until a probe shows it
        self._clear()

    def _clear(self) -> None:
        self.images: list[Image] = []
        self.gram = np.zeros((0, 0))
        self.squares: list[float] = []
        self.forms: list[float] = []
        if self.rows is not None:
            self.rows.clear()
        self.cross_images: dict[str, list[Tensor]] = {name: [] for name in self.others}
        self.cross_squares: dict[str, list[float]] = {name: [] for name in self.others}

    def _draw(self) -> Tensor:
        self.draws += 1
        return draw(self.block, "gaussian", [*self.seed, self.draws])

    def _product(self, v: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self._counted(self.hessian.product(v, self.name, [self.name, *self.others]))

    def _counted(self, images: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The image and the cross images by block, which must be finite, as one product more."""
        self.hvps += 1
        for image in images:
            if not torch.isfinite(image.sum()):  # one pass, and no memory as isfinite(image) would take
                raise BadInput(
                    f"a Hessian-vector product of block '{self.name}' is not finite: the loss has no second derivative "
                    "here (a norm or a root of 0), or numbers overflow; move the weights, or use a wider --dtype"
                )
        return images[0], dict(zip(self.others, images[1:], strict=True))

    def deflate(self, w: Tensor) -> bool:
        """Add the direction w to Q (w is overwritten) with its image; False when w lies in the span of Q already."""
        added = self._deflate(w)
        if added is not None:
            self._keep_remainder(added[0])
        return added is not None

    def _deflate(self, w: Tensor, earlier: Projection | None = None) -> tuple[Tensor, Projection] | None:
        """Add the direction w to Q (w is overwritten): (I - Q'Q) H q, or None when w lies in the span of Q already.

        `earlier` is the projection that has left w, see `Basis.add`; that of the result comes with it.
        """
        if not self.basis.add(w, earlier):
            return None
        q = self.basis.rows[-1]
        image, crossed = self._product(q)
        if self.hvps == 1:
            self._measure_noise(q, image)
        for name, cross in crossed.items():
            self.cross_known[name] += dot(cross, cross)
            if not self._projects:
                self._cross_columns[name].append(cross)
        if self.rows is not None:
            self.rows.add_basis_vector(q, image)
        projection = self.basis.project_out(image)
        self.squared_images.append(projection.before**2)  # before: ||H q||^2 counts what Q holds of it too
        self.columns.append(projection.coefficients)
        self.residuals.append(projection.after)
        return image, projection

    def _keep_remainder(self, image: Tensor) -> None:
        """Keep (I - Q'Q) H q of the last direction q, which has not joined Q, for the probes."""
        if not self._projects:
            self._remainders.append((self.basis.size - 1, self._remainder_memory.keep(len(self._remainders), image)))

    def _measure_noise(self, q: Tensor, image: Tensor) -> None:
        """Rounding, once a block, on its first product H q = `image`; or once a run, where it is kept."""
        noises = self.hessian.kept_noise
        if noises is not None and self.name in noises:
            self.noise = noises[self.name]
            return
        self.noise, products = self.hessian.noise(q, image, self.name)
        self.hvps += products
        units = 256 if q.dtype == torch.float64 else 64  # of rounding in `dot`
        self.noise = max(self.noise, units * torch.finfo(q.dtype).eps)
        if noises is not None:
            noises[self.name] = self.noise

    def krylov(self, steps: int, precision: float | None = None) -> None:
        """Lanczos steps from a uniformly random start, and from another one wherever the Krylov space closes.

        At most as many as the block has dimensions: a block of at most `steps` is taken whole. With a precision of
        ||H||_F, steps end as soon as another one does not pay for it (`_pays`).
        """
        limit = min(steps, self.block.dim)
        self.basis.reserve(min(limit + 1, self.block.dim))  # and a direction of the self-checks
        following: tuple[Tensor, Projection | None] | None = None  # the next vector; None where the space closed
        while self.basis.size < limit:
            if following is None:
                # Bounds of the spectrum take the start for random: only the steps that follow the first one count.
                self.unbroken = self.unbroken or self.basis.size
                following = self._draw(), None
            following = self._deflate(*following)
            self.lanczos = self.basis.size
            if precision is not None and limit < self.block.dim and not self._pays(precision):
                break
        if following is not None:
            self._keep_remainder(following[0])
        self.unbroken = self.unbroken or self.lanczos

    def _pays(self, precision: float) -> bool:
        """Whether another Lanczos step is worth its product: for the spectral norm's bound, or instead of probes.

        With the first vectors q_1, H q_1 and H^2 q_1 of a random start, d ||H q_1||^2 estimates ||H||_F^2 and d ||H^2
        q_1||^2 estimates tr H^4, hence the effective rank, from which `probes_needed` follows. As estimates of one
        vector they may be far off where few eigenvalues dominate; they decide on cost alone, and no interval rests on
        them.
        """
        if self.basis.size < 4 or self.block.dim <= SMALL:
            return True
        # Products that look asymmetric are looked at with all steps: few of them dilute what a wrong backward does.
        if self.asymmetry() > DOUBTFUL:
            return True
        t = self.projected()
        limits = self.reach()
        # The bound of the spectral norm is wanted ten times less precisely than the Frobenius norm.
        if max(limits.highest, -limits.lowest) > (1 + 10 * precision) * np.abs(np.linalg.eigvalsh(t)).max():
            return True
        image = t[:3, :1]
        squared = self.block.dim * float((image**2).sum())
        trace_fourth = self.block.dim * float(((t[:3, :3] @ image) ** 2).sum())
        needed = []
        for size in (len(t) - 2, len(t)):
            known = self.known(size)
            share = max(1 - known / max(squared, known), 0.0) if known else 1.0
            rank = squared**2 / trace_fourth if trace_fourth else 1.0
            needed.append(max(probes_needed(share, rank, precision), FIRST))
        return needed[0] - needed[1] > 2.0  # by the last two steps, as single ones may meet little

    def known(self, size: int) -> float:
        """2 ||H Q'||_F^2 - ||T||_F^2, which is exact in ||H||_F^2, of the first `size` vectors of Q."""
        t = self.projected()[:size, :size]
        return 2 * sum(self.squared_images[:size]) - float((t**2).sum())

    def reach(self) -> Reach:
        """Limits of the eigenvalue of the largest modulus, from the Lanczos steps of the first start."""
        steps = self.unbroken or self.basis.size
        diagonal = np.diag(self.projected())[:steps]
        residuals = np.array(self.residuals[:steps])
        # Where the Krylov space closes nothing is left but rounding, and a bound that divides by it must not trust 0.
        rounding = self.noise * float(np.hypot(diagonal, residuals).max())
        return lanczos_reach(diagonal, np.maximum(residuals, rounding), self.block.dim)

    @property
    def captured(self) -> float:
        """||H Q'||_F^2."""
        return sum(self.squared_images)

    @property
    def complete(self) -> bool:
        """Whether Q spans the block, so that nothing is left to probe."""
        return self.basis.size == self.block.dim

    def probe(self) -> None:
        """One Gaussian probe of B: image, quadratic form, cross images.

        What Q has seen is known exactly: the part Q'c of a probe g, c = Q g, would add variance and no knowledge. It
        need not be taken out of g, which takes two passes over Q beside the two for the image. As H Q'c is known, too,
            B g = (I - Q'Q) (H g - sum_j c_j r_j),    r_j = (I - Q'Q) H q_j,
        over the few r_j that did not become Lanczos vectors; and squares, Gram matrix and forms follow from the vector
        in brackets and Q times it and g, in one pass.
        """
        g = self._draw()
        if self._projects:
            self.basis.project_out(g)
        image, crossed = self._image(g)
        if self.rows is not None:
            self.rows.add_probe(g, image, self.basis.rows, self.images)
        for j, remainder in self._remainders:
            image.add_(remainder, alpha=-dot(self.basis.rows[j], g))
        if self._projects:  # g has nothing in Q
            (inside,) = self.basis.coefficients(image)
            c = np.zeros_like(inside)
        else:
            c, inside = self.basis.coefficients(g, image)
        removed = np.zeros_like(inside)
        image_square = dot(image, image)
        square = image_square - float(inside @ inside)
        if square < _PYTHAGORAS * image_square:  # the difference would be rounding
            removed, inside = inside, removed
            square = self.basis.project_out(image).after ** 2
        self.forms.append(dot(g, image) - float(c @ inside))
        self.squares.append(square)
        if len(self.images) < IMAGES:
            stored = Image(self._memory.keep(len(self.images), image), inside, removed)
            self.gram = np.pad(self.gram, (0, 1))
            for i, earlier in enumerate(self.images):
                product = dot(stored.vector, earlier.vector) - float(inside @ earlier.inside)
                self.gram[i, -1] = self.gram[-1, i] = product
            self.gram[-1, -1] = square
            self.images.append(stored)
        if self._quotients is None:
            self._quotients = self._agrees(g, image, crossed)
        for name, cross in crossed.items():
            for column, coefficient in zip(self._cross_columns[name], c.tolist(), strict=False):
                cross.sub_(column, alpha=coefficient)
            self.cross_squares[name].append(dot(cross, cross))
            if len(self.cross_images[name]) < IMAGES:
                self.cross_images[name].append(cross)

    def _image(self, g: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """H g and cross images of a probe g, by a quotient where the first probe has shown those to be close.

        H g is odd in g and a quotient's error even, so that <B g, error> is 0 in the mean: squares of images are too
        large by the square of the error alone, which is at most CLOSE^2 of them.
        """
        names = [self.name, *self.others]
        quotients = self.hessian.quotient(g, self.name, names) if self._quotients else None
        if quotients is None:
            return self._product(g)
        return self._counted(quotients)

    def _agrees(self, g: Tensor, image: Tensor, crossed: dict[str, Tensor]) -> bool:
        """Whether the quotient along g is off by at most CLOSE, from H g = `image` outside Q and from cross images."""
        quotients = self.hessian.quotient(g, self.name, [self.name, *crossed])
        if quotients is None:
            return False
        errors = [self.basis.project_out(quotients[0].sub_(image)).after]
        errors += [norm(quotient.sub_(cross)) for quotient, cross in zip(quotients[1:], crossed.values(), strict=True)]
        sizes = [self.squares[-1] ** 0.5, *(norm(cross) for cross in crossed.values())]
        return all(error <= CLOSE * size for error, size in zip(errors, sizes, strict=True))

    def extend(self) -> None:
        """The images of the probes so far join Q; probing starts anew."""
        images = self.images
        self._clear()  # what the probes have seen of B is no estimate of the smaller rest: Q now depends on them
        self.basis.reserve(len(images))
        for image in images:
            self.deflate(image.vector)

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
        squares, t = 0.0, self.projected()
        for j in range(self.lanczos - 1):
            gaps = t[j, j + 1 :]  # of the upper triangle, which the projections of later images have measured
            gaps[0] -= self.residuals[j]
            squares += float(gaps @ gaps)
        if self.captured == 0.0:
            return 0.0
        return math.sqrt(squares / self.captured)

    def in_full_space(self, coefficients: np.ndarray) -> Tensor:
        """Q'c, flat [dim], for c [k]."""
        return self.basis.rows.T @ torch.as_tensor(coefficients).to(self.basis.rows)

    def form(self, v: Tensor) -> float:
        """The quadratic form v'Hv for a check: its product is counted, and no estimate uses it."""
        self.hvps += 1
        return dot(v, self.hessian.product(v, self.name, [self.name])[0])

    def frobenius_squared(self) -> tuple[Interval, Interval]:
        """Intervals of ||H||_F^2 and of its probed part ||B||_F^2."""
        known = self.known(self.basis.size)
        probed = sum_of_squares(self.squares, effective_rank(self.gram, deflated=True), deflated=True)
        return Interval(known + probed.value, known + probed.low, known + probed.high), probed

    def probe_until(self, precision: float, budget: int) -> bool:
        """Probe, and extend Q where that is cheaper, until the norm's half-width is at most `precision` of it.

        Extending costs as many products as there are images, and the first probes again. Returns whether the precision
        was reached within `budget` products.

        Stopping where probes came out low leaves the norm low in the mean: by 0.6 to 0.8 % at a precision of 5 % where
        ten or twenty eigenvalues are equal, by at most 0.5 % on the other spectra (benchmarks/coverage.py). It is
        left so: an estimate without bias whatever the rule rests on the first probes alone, which costs precision,
        and a correction by simulating the rule with the estimates in place took a quarter of it away.
        """
        while self.hvps < budget or len(self.squares) < 2:
            self.probe()
            m = len(self.squares)
            if m < first_look(precision):
                continue
            squared, probed = self.frobenius_squared()
            if half_width(squared) <= precision:
                return True
            nu = effective_rank(self.gram, cautious=False)
            needed = probes_needed(probed.value / squared.value, nu, precision)
            extension = len(self.images) + FIRST
            if needed - m > extension and self.hvps + extension <= budget and self.basis.size + m < self.block.dim:
                self.extend()
        return False


def first_look(precision: float) -> int:
    """Probes before the first look at the interval: where it may be wide, four say enough of the effective rank."""
    if precision >= LOOSE:
        return FIRST_LOOSE
    return FIRST


def gram_matrix(images: Sequence[Tensor]) -> np.ndarray:
    """K_ij = <a_i, a_j> of flat vectors, in fp64."""
    gram = np.zeros((len(images), len(images)))
    for i, a in enumerate(images):
        for j in range(i + 1):
            gram[i, j] = gram[j, i] = dot(a, images[j])
    return gram
