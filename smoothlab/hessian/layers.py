"""Row norms ||H_{l,:}||_F and traces tr H_ll of every layer l of a block, from the products of the block itself.

Let E_l set the entries outside layer l to 0, Q [k, d] be the orthonormal basis of a deflation, P = I - Q'Q, and
v = P g a Gaussian probe orthogonal to Q. Since I = Q'Q + P is a sum of orthogonal projectors,
    ||E_l H||_F^2 = ||E_l H Q'||_F^2 + ||E_l H P||_F^2 = sum_j ||E_l H q_j||^2 + E ||E_l H v||^2,
    tr(E_l H)     = tr(Q E_l H Q') + tr(P E_l H P)     = sum_j q_j' E_l H q_j + E v' E_l H v.
So each product of the block, split by layers before it is projected, adds one number to every layer's sums: all layers
together cost no product more. Rows of different layers are orthogonal, sum_l ||E_l H||_F^2 = ||H||_F^2.

A quadratic form v'Mv, M = P E_l H P, has the variance ||M||_F^2 + tr(M M) <= 2 ||E_l H P||_F^2. Without a basis it is
2 ||H_ll||_F^2 + sum_{m != l} ||H_lm||_F^2: a layer's trace is seen through the noise of all its cross blocks, which is
why it may take many more products than its row norm.

Norms of diagonal blocks, ||H_ll||_F, need products of their own: see `smoothlab.hessian.diagonal`.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block, dot
from smoothlab.errors import BadInput
from smoothlab.hessian.estimates import NormEstimate, doubt, frobenius_estimate
from smoothlab.hessian.traces import with_precision
from smoothlab.stats.probes import effective_rank, mean_of_forms, sum_of_squares

if TYPE_CHECKING:
    from smoothlab.hessian.deflation import Deflation, Image

_COLUMNS = 1 << 16  # columns of Q handled at once, see `Basis`


class Layers:
    """Positions of a block's layers in its flat vectors; a tied parameter is one parameter, and counts once.

    Attributes:
        block: the block that is split.
        names: names of the layers that hold parameters of the block.
        ranges: by layer, the ranges [first, last) of a flat vector that it holds.
    """

    def __init__(self, block: Block, layers: Sequence[Block]) -> None:
        self.block = block
        # By identity, as tensors compare entry by entry: a name may be one of several of the same parameter.
        owner: dict[int, str] = {}
        for layer in layers:
            for p in layer.params:
                if owner.setdefault(id(p), layer.name) != layer.name:
                    raise BadInput(
                        f"layers '{owner[id(p)]}' and '{layer.name}' share a parameter of shape {tuple(p.shape)}: give "
                        "each parameter to one layer"
                    )
        ranges: dict[str, list[tuple[int, int]]] = {}
        first = 0
        for p in block.params:
            if id(p) not in owner:
                raise BadInput(
                    f"a parameter of shape {tuple(p.shape)} of block '{block.name}' is in no layer: give layers that "
                    "hold the whole block, e.g. those of partition(model, 'layer')"
                )
            parts = ranges.setdefault(owner[id(p)], [])
            last = first + p.numel()
            if parts and parts[-1][1] == first:  # neighbors are one range: fewer and longer dot products
                parts[-1] = (parts[-1][0], last)
            else:
                parts.append((first, last))
            first = last
        self.names, self.ranges = list(ranges), list(ranges.values())

    @property
    def dims(self) -> list[int]:
        """Number of parameters of each layer."""
        return [sum(last - first for first, last in parts) for parts in self.ranges]

    def dots(self, a: Tensor, b: Tensor) -> np.ndarray:
        """<a, b> of flat vectors by layer, [L]."""
        products = np.zeros(len(self.ranges))
        for number, parts in enumerate(self.ranges):
            for first, last in parts:
                products[number] += dot(a[first:last], b[first:last])
        return products

    def coefficients(self, rows: Tensor, w: Tensor) -> np.ndarray:
        """Q E_l w by layer, [L, k], for Q = `rows`; summed in fp64 over chunks that stay in cache."""
        products = torch.zeros(len(self.ranges), len(rows), dtype=torch.float64, device=w.device)
        for number, parts in enumerate(self.ranges):
            for first, last in parts:
                for i in range(first, last, _COLUMNS):
                    chunk = slice(i, min(i + _COLUMNS, last))
                    products[number] += rows[:, chunk] @ w[chunk]
        return products.cpu().numpy()

    def gather(self, number: int, w: Tensor) -> Tensor:
        """The part of a flat vector of the block that lies in a layer, flat [d_l]."""
        return torch.cat([w[first:last] for first, last in self.ranges[number]])

    def scatter(self, number: int, part: Tensor) -> Tensor:
        """The flat vector of the block that is `part` in a layer and 0 elsewhere."""
        w = part.new_zeros(self.block.dim)
        start = 0
        for first, last in self.ranges[number]:
            w[first:last] = part[start : start + last - first]
            start += last - first
        return w


class LayerRows:
    """Sums by layer over the products of one deflation, made while these are.

    Attributes:
        known: sum_j ||E_l H q_j||^2 over the basis, [L].
        traces: sum_j q_j' E_l H q_j over the basis, [L].
        squares: ||E_l H v||^2 of each probe since the basis last grew, [m][L].
        forms: v' E_l H v of each of them, [m][L].
        grams: Gram matrices of the probes' images by layer, [L, m, m], for the effective rank.
    """

    def __init__(self, block: Block, layers: Sequence[Block]) -> None:
        self.layers = Layers(block, layers)
        self.known, self.traces = np.zeros(len(self.layers.names)), np.zeros(len(self.layers.names))
        self.clear()

    def clear(self) -> None:
        """Forget the probes: the basis depends on them now, so that they are no estimate of the smaller rest."""
        self.squares: list[np.ndarray] = []
        self.forms: list[np.ndarray] = []
        self.grams = np.zeros((len(self.layers.names), 0, 0))

    def add_basis_vector(self, q: Tensor, image: Tensor) -> None:
        """A vector q of the basis and its image H q, before it is projected."""
        self.known += self.layers.dots(image, image)
        self.traces += self.layers.dots(q, image)

    def add_probe(self, v: Tensor, image: Tensor, basis: Tensor, earlier: Sequence["Image"]) -> None:
        """A probe v and its image H v, before it is projected.

        Args:
            v: the probe, orthogonal to the basis.
            image: H v.
            basis: Q [k, d].
            earlier: images of earlier probes.
        """
        square = self.layers.dots(image, image)
        self.squares.append(square)
        self.forms.append(self.layers.dots(v, image))
        m = self.grams.shape[1]
        if m != len(earlier):  # a probe's image that was not kept has products with later ones that are not known
            return
        self.grams = np.pad(self.grams, ((0, 0), (0, 1), (0, 1)))
        self.grams[:, m, m] = square
        if any(probe_image.removed.any() for probe_image in earlier):
            inside = self.layers.coefficients(basis, image)
        for i, probe_image in enumerate(earlier):
            product = self.layers.dots(probe_image.vector, image)
            if probe_image.removed.any():  # <E_l a, E_l H v> for a = P a + Q'Q a, of which only P a is kept
                product += inside @ probe_image.removed
            self.grams[:, i, m] = self.grams[:, m, i] = product

    def estimates(self, run: "Deflation", precision: float, trace: float) -> Iterator[NormEstimate]:
        """Row norm and trace of each layer.

        Args:
            run: the deflation whose products these are.
            precision: half-width of a row norm, as a fraction of it, above which it is flagged.
            trace: the same of a trace, as a fraction of its modulus.
        """
        block, size = run.name, max(run.frobenius_squared()[0].value, 0.0) ** 0.5
        for number, name in enumerate(self.layers.names):
            squares = [square[number] for square in self.squares]
            probed = sum_of_squares(squares, effective_rank(self.grams[number]))
            known = float(self.known[number])
            squared = probed._replace(value=known + probed.value, low=known + probed.low, high=known + probed.high)
            # Rounding is that of the whole image, as much per coordinate, and at least that of the layer's own.
            share = (self.layers.dims[number] / run.block.dim) ** 0.5
            floor = run.noise * max(size * share, max(squared.value, 0.0) ** 0.5)
            reached = squared.high**0.5 - max(squared.low, 0.0) ** 0.5 <= 2 * precision * squared.value**0.5
            yield frobenius_estimate(block, name, squared, run.hvps, floor, reached)
            sums = mean_of_forms([form[number] for form in self.forms], probed.high, float(self.traces[number]))
            estimate = NormEstimate(
                name, name, "trace", sums.value, sums.low - floor, sums.high + floor, run.hvps, floor,
                doubt(sums.value, floor),
            )  # fmt: skip
            yield with_precision(estimate, probed.value, len(self.forms), trace, floor)
