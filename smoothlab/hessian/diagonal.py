"""Norms ||H_ll||_F of the diagonal blocks of layers, by products along one layer at a time that share a budget.

Each layer has a deflation of its own (`smoothlab.hessian.deflation`) on H_ll. All begin with a few Lanczos steps and
the fewest probes that an interval needs; every product after that goes to the layer whose interval is the widest
relative to its norm, until all are as short as was asked for, or the budget is spent. A layer that one eigenvector
dominates takes many, a layer with a broad spectrum few, and which is which need not be known before.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from smoothlab.blocks import Block, norm
from smoothlab.errors import BadInput
from smoothlab.hessian.deflation import FIRST, Deflation
from smoothlab.hessian.estimates import NormEstimate, frobenius_estimate
from smoothlab.hessian.layers import LayerRows, Layers
from smoothlab.hessian.products import Products
from smoothlab.stats.intervals import half_width
from smoothlab.stats.probes import effective_rank, probes_needed

START = 4
"""Lanczos steps of each layer: what dominates a layer shows in few, and each costs a product in every layer."""


def split_blocks(blocks: Sequence[Block], layers: Sequence[Block]) -> dict[str, LayerRows]:
    """Sums by layer for each block that holds parameters of more than one layer; a block that is one layer is itself.

    Raises:
        BadInput: layers are given and no block is split, or a block's parameter is in no layer or in two.
    """
    split = {}
    if layers:
        for block in blocks:
            rows = LayerRows(block, layers)
            if len(rows.layers.names) > 1:
                split[block.name] = rows
        if not split:
            names = ", ".join(block.name for block in blocks)
            raise BadInput(f"no block of {names} holds more than one layer: measure a block that does, e.g. base")
    return split


def check_budget(split: Mapping[str, LayerRows], budget: int) -> None:
    """Refuse a budget that does not give each layer the products of its first interval; 0 asks for no norms."""
    if budget and not split:
        raise BadInput(f"{budget} products for the diagonal norms of layers, and no rows: give the layers, too")
    for name, rows in split.items():
        least = sum(min(dim, START) + 1 + FIRST for dim in rows.layers.dims)
        if 0 < budget < least:
            raise BadInput(
                f"{budget} products for the diagonal norms of the {len(rows.layers.names)} layers of block '{name}': "
                f"use at least {least}, {START} Lanczos steps, a product for rounding and {FIRST} probes a layer"
            )


class LayerProducts(Products):
    """Products with the diagonal blocks H_ll of the layers of one block, by products of that block.

    Args:
        hessian: products with the block's Hessian.
        name: the block.
        layers: its layers.
    """

    def __init__(self, hessian: Products, name: str, layers: Layers) -> None:
        self.hessian, self.name, self.layers, self.loss = hessian, name, layers, hessian.loss
        self.blocks, self.gradients = {}, {}
        gradient = hessian.gradients[name]
        views = layers.block.views(gradient)
        for number, layer in enumerate(layers.names):
            self.gradients[layer] = layers.gather(number, gradient)
            params = []
            for i, p in enumerate(layers.block.params):
                first = layers.block.offset(i)
                if any(start <= first < end for start, end in layers.ranges[number]) and views[i].numel():
                    params.append(p)
            self.blocks[layer] = Block(layer, tuple(params))
        self._last: tuple[Tensor, Tensor] | None = None

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """H_bc v for the layers c = `along` and b of `wrt`, from one product along c."""
        full = self.layers.scatter(self.layers.names.index(along), v)
        image = self.hessian.product(full, self.name, [self.name])[0]
        self._last = full, image
        return tuple(self.layers.gather(self.layers.names.index(name), image) for name in wrt)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """Rounding error relative to the layer's part of the last product's image, at most that of the whole image."""
        assert self._last is not None
        full, block_image = self._last
        self._last = None  # two vectors of the block are memory, and needed this once
        relative, cost = self.hessian.noise(full, block_image, self.name)
        size = norm(image)
        if size == 0.0:
            return relative, cost
        return relative * norm(block_image) / size, cost


def diagonal_norms(
    hessian: Products, name: str, layers: Layers, precision: float, budget: int, seed: Sequence[int]
) -> Iterator[NormEstimate]:
    """Yield ||H_ll||_F of every layer of a block.

    Args:
        hessian: products with the block's Hessian.
        name: the block.
        layers: its layers.
        precision: half-width of a 95 % interval, as a fraction of the norm, at which a layer takes no more products.
        budget: products of all layers together.
        seed: seed of start vectors and probes.
    """
    products = LayerProducts(hessian, name, layers)
    runs = []
    for layer in layers.names:
        run = Deflation(products, layer, [*seed, *name.encode(), *layer.encode()], {})
        run.krylov(START)
        if not run.complete:
            for _ in range(FIRST):
                run.probe()
        runs.append(run)
    while True:
        remaining = budget - sum(run.hvps for run in runs)
        widths = [half_width(run.frobenius_squared()[0]) for run in runs]
        widest = int(np.argmax(widths))
        if remaining < 1 or widths[widest] <= precision:
            break
        _advance(runs[widest], precision, remaining)
    for run, width in zip(runs, widths, strict=True):
        squared = run.frobenius_squared()[0]
        floor = run.noise * max(squared.value, 0.0) ** 0.5
        yield frobenius_estimate(run.name, run.name, squared, run.hvps, floor, width <= precision)


def _advance(run: Deflation, precision: float, remaining: int) -> None:
    """One more probe, or the probes' images join the basis where that is cheaper, as in `Deflation.probe_until`."""
    squared, probed = run.frobenius_squared()
    needed = probes_needed(probed.value / squared.value, effective_rank(run.gram, cautious=False), precision)
    extension = len(run.images) + FIRST
    m = len(run.squares)
    if needed - m > extension and extension <= remaining and run.basis.size + m < run.block.dim:
        run.extend()
        for _ in range(FIRST):
            run.probe()
        return
    run.probe()
