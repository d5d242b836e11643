"""Frobenius, spectral and cross-block norms and traces of Hessian blocks, each with an interval.

Lanczos vectors and probes of each block (`smoothlab.hessian.deflation`), self-checks, and what follows from both.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian.deflation import FIRST, Deflation, gram_matrix
from smoothlab.hessian.diagonal import check_budget, diagonal_norms, split_blocks
from smoothlab.hessian.disagreements import doubted
from smoothlab.hessian.estimates import NormEstimate as NormEstimate
from smoothlab.hessian.estimates import Quantity as Quantity
from smoothlab.hessian.estimates import doubt, frobenius_estimate
from smoothlab.hessian.products import Products
from smoothlab.hessian.selfchecks import check_products
from smoothlab.hessian.traces import probe_trace, with_precision
from smoothlab.stats.intervals import half_width
from smoothlab.stats.probes import Reach, effective_rank, mean_of_forms, spectral_upper, sum_of_squares

LANCZOS, BUDGET = 12, 100
"""Lanczos steps of a block, and products at which its probing stops all the same."""
WIDE = 64
"""Width of matrices along which a product takes twice a gradient's time: along LoRA's narrow ones it takes less."""


def _wide(block: Block) -> bool:
    """Whether most entries of a block are in matrices that are `WIDE` both ways, or in stacks of such matrices."""
    wide = [p.numel() for p in block.params if p.dim() > 1 and sorted(p.shape)[-2] >= WIDE]
    return 2 * sum(wide) > block.dim


def _sign(lowest: float, highest: float, reach: Reach) -> int:
    """Sign of the eigenvalue of the largest modulus where the other end of the spectrum cannot reach as far, else 0."""
    if highest > -reach.lowest:
        return 1
    if -lowest > reach.highest:
        return -1
    return 0


def _estimates(
    run: Deflation, reached: bool, doubts: Sequence[str], precision: float | None = None
) -> list[NormEstimate]:
    """Frobenius norm, spectral norm and trace of a diagonal block from its finished run, flagged with its doubts.

    `precision` is that of the trace, where it was asked for.
    """
    name, hvps, t = run.name, run.hvps, run.projected()
    squared, probed = run.frobenius_squared()
    floor = run.noise * max(squared.value, 0.0) ** 0.5
    frobenius = frobenius_estimate(name, name, squared, hvps, floor, reached)

    ritz = np.linalg.eigvalsh(t)
    top = float(np.abs(ritz).max())
    coupling = max(run.captured - float((t**2).sum()), 0.0) ** 0.5  # ||(I - Q'Q) H Q'||_F, by Pythagoras
    reach = run.reach()
    upper = spectral_upper(t, coupling, probed.high**0.5, reach)
    point = run.noise * top  # rounding of a Ritz value
    spread = run.noise * run.captured**0.5  # of all images at once
    sign = _sign(float(ritz[0]), float(ritz[-1]), Reach(reach.lowest - spread, reach.highest + spread))
    low, high = top - point, upper + spread
    spectral = NormEstimate(name, name, "spectral", top, low, high, hvps, point, doubt(top, point), sign)

    trace = mean_of_forms(run.forms, probed.high, float(ritz.sum()))
    flag = doubt(trace.value, floor)
    summed = NormEstimate(name, name, "trace", trace.value, trace.low - floor, trace.high + floor, hvps, floor, flag)
    if precision is not None:
        summed = with_precision(summed, probed.value, len(run.forms), precision, floor)

    if frobenius.high < spectral.low:  # no symmetric matrix has that
        doubts = [*doubts, "spectral norm above the Frobenius norm"]
    estimates = []
    for estimate in (frobenius, spectral, summed):
        flags = [estimate.flag, *doubts]
        estimates.append(replace(estimate, flag=", ".join(filter(None, flags)) or None))
    return estimates


def _cross(run: Deflation, other: str, precision: float) -> NormEstimate:
    """||C||_F of C = H_bc, c = `run` and b = `other`, from c's directions: ||C||^2 = ||C Q'||^2 + ||C (I - Q'Q)||^2.

    The larger block is named first, whichever c is: the norm is that of the transpose.
    """
    images, squares = run.cross_images[other], run.cross_squares[other]
    nu = effective_rank(gram_matrix(images), deflated=True)
    squared = sum_of_squares(squares, nu, run.cross_known[other], deflated=True)
    # Rounding in b's part of a product: that of the diagonal block, as much per coordinate.
    diagonal = math.sqrt(max(run.frobenius_squared()[0].value, 0.0))
    blocks = run.hessian.blocks
    floor = run.noise * diagonal * math.sqrt(blocks[other].dim / run.block.dim)
    large, small = sorted((run.name, other), key=lambda name: -blocks[name].dim)
    return frobenius_estimate(large, small, squared, run.hvps, floor, half_width(squared) <= precision)


class Hessian(Products):
    """Products with the Hessian of one loss at one point, and the norms that they give."""

    def norms(
        self,
        names: Sequence[str] | None = None,
        *,
        cross: Sequence[tuple[str, str]] = (),
        precision: float = 0.05,
        lanczos: int = LANCZOS,
        budget: int = BUDGET,
        seed: Sequence[int] = (0,),
        trace: float | None = None,
        rows: Sequence[Block] = (),
        diagonal: int = 0,
    ) -> list[NormEstimate]:
        """Frobenius norm, spectral norm and trace of each diagonal block, and Frobenius norms of cross blocks.

        Args:
            names: blocks to measure; all by default.
            cross: pairs of blocks whose H_bc is measured too, from the larger one's products: hardly any extra cost.
            precision: half-width of the 95 % interval of ||H||_F, relative to it, at which probing stops.
            lanczos: Lanczos steps before probing, at most: they end where another would save less than a probe.
            budget: products per block at which probing stops all the same, flagged "precision not reached".
            seed: seed of the start vectors and probes.
            trace: half-width of the 95 % interval of tr H, relative to its modulus, to which probing goes on, as long
                as it seems possible within the budget; by default traces are what the norms' probes give.
            rows: layers, e.g. those of `partition(model, "layer")`: the row norm ||H_{l,:}||_F (`wrt` = l) and the
                trace of each layer of a measured block, from the block's own products (`smoothlab.hessian.layers`). A
                trace is flagged beyond `trace`, or beyond `precision`.
            diagonal: products that the norms ||H_ll||_F of a block's layers share, see `smoothlab.hessian.diagonal`; 0
                leaves them out.

        Returns:
            Estimates in the order of `names`, then layers and `cross`. Simulated coverage of every interval, and the
            bias of every value: benchmarks/coverage.py.
        """
        order = list(self.blocks if names is None else names)

        def position(estimate: NormEstimate) -> int:
            if estimate.block != estimate.wrt or estimate.block not in order:
                return len(order)  # layers and cross blocks last; a stable sort leaves them in their order
            return order.index(estimate.block)

        estimates = self.norms_by_block(
            order, cross, precision, seed, lanczos, budget, trace=trace, rows=rows, diagonal=diagonal
        )
        return sorted(estimates, key=position)

    def norms_by_block(
        self,
        names: Sequence[str],
        cross: Sequence[tuple[str, str]],
        precision: float,
        seed: Sequence[int],
        lanczos: int = LANCZOS,
        budget: int = BUDGET,
        *,
        trace: float | None = None,
        rows: Sequence[Block] = (),
        diagonal: int = 0,
    ) -> Iterator[NormEstimate]:
        """Yield the estimates of `norms`, each block's once it is measured: large blocks first, then `cross`.

        Norms of the layers' diagonal blocks come last, with products of their own.
        """
        self._check_blocks(names, cross)
        sources = [self._source(pair, lanczos) for pair in cross]
        if not 0 < precision < 1 or lanczos < 1 or budget < lanczos + FIRST + 1:
            raise BadInput(
                f"precision {precision}, lanczos {lanczos}, budget {budget}: use a precision in (0, 1), at least one "
                f"Lanczos step, and a budget of at least lanczos + {FIRST + 1}"
            )
        if trace is not None and not 0 < trace < 1:
            raise BadInput(f"precision {trace:g} of the trace: use one in (0, 1), or None")
        split = split_blocks([self.blocks[name] for name in names], rows)
        check_budget(split, diagonal)
        order = sorted(dict.fromkeys([*names, *(source for source, _ in sources)]), key=lambda n: -self.blocks[n].dim)
        crosses: dict[tuple[str, str], NormEstimate] = {}
        for name in order:
            others = dict.fromkeys(other for source, other in sources if source == name)
            quotients = _wide(self.blocks[name]) and name not in split
            run = Deflation(self, name, [*seed, *name.encode()], others, split.get(name), quotients=quotients)
            run.krylov(lanczos, precision)
            doubts = doubted(name, check_products(run))  # before the probes, which wrong products would waste
            reached = run.complete or run.probe_until(precision, budget)
            if name in names:
                if trace is not None:
                    probe_trace(run, trace, budget)
                yield from _estimates(run, reached, doubts, trace)
                if run.rows is not None:
                    yield from run.rows.estimates(run, precision, trace or precision)
            for other in others:
                crosses[name, other] = _cross(run, other, precision)
            del run  # before the next block's takes memory: it holds some twenty vectors of the block's size
        for pair in sources:
            yield crosses[pair]
        if diagonal:
            for name, layer_rows in split.items():
                yield from diagonal_norms(self, name, layer_rows.layers, precision, diagonal, seed)

    def _check_blocks(self, names: Sequence[str], cross: Sequence[tuple[str, str]]) -> None:
        """Refuse names of no block, and a cross block of a block with itself."""
        for name in [*names, *itertools.chain.from_iterable(cross)]:
            if name not in self.blocks:
                raise BadInput(f"block '{name}' is unknown: use one of {', '.join(self.blocks)}")
        for a, b in cross:
            if a == b:
                raise BadInput(f"cross block ({a}, {b}): name two different blocks")

    def _source(self, pair: tuple[str, str], lanczos: int) -> tuple[str, str]:
        """The block whose directions see a cross block, and the other one.

        The larger block's: products along it are made anyway, and images of the smaller one add little to their cost,
        while a LoRA module's own products need none of the base model's gradients. A block that its Lanczos vectors
        span sees the cross block whole.
        """
        large, small = sorted(pair, key=lambda name: -self.blocks[name].dim)
        if self.blocks[small].dim <= lanczos < self.blocks[large].dim:
            return small, large
        return large, small
