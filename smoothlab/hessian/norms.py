"""Frobenius, spectral and cross-block norms and traces of Hessian blocks, each with an interval.

Lanczos vectors and probes of each block (`smoothlab.hessian.deflation`), self-checks, and what follows from both.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from smoothlab.errors import BadInput
from smoothlab.hessian.deflation import FIRST, Deflation, gram_matrix, half_width
from smoothlab.hessian.disagreements import doubted
from smoothlab.hessian.gradients import LossAtPoint
from smoothlab.hessian.products import Products
from smoothlab.hessian.selfchecks import check_products, check_repeats
from smoothlab.stats.intervals import Interval
from smoothlab.stats.probes import Reach, effective_rank, mean_of_forms, spectral_upper, sum_of_squares

Quantity = Literal["frobenius", "spectral", "trace"]
LANCZOS, BUDGET = 12, 100
"""Lanczos steps of a block, and products at which its probing stops all the same."""


@dataclass(frozen=True)
class NormEstimate:
    """A norm or trace of a block H_bc of the Hessian, with its 95 % interval.

    H_bc holds the second derivatives by parameters of b = `wrt` and of c = `block`, which are often the same block.

    >>> import torch
    >>> from smoothlab import frobenius
    >>> w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    >>> estimate = frobenius(lambda: (w**4).sum() / 4, [w])
    >>> estimate.quantity, estimate.low <= estimate.value <= estimate.high
    ('frobenius', True)

    Attributes:
        block: name of block c, in which the vectors lie that H_bc multiplies.
        wrt: name of block b, in which the products lie.
        quantity: "frobenius" and "trace" have two-sided intervals; "spectral" is the largest |Ritz value|, which bounds
            ||H||_2 from below without doubt (low = value), with a one-sided 95 % upper bound in `high`: at most
            1 + 10 x precision times the value where Lanczos steps ended early, 1.00 to 1.33 times it after all 12.
        value: the estimate, in units of the loss per squared parameter.
        low: lower end of the interval.
        high: upper end of the interval.
        hvps: Hessian-vector products spent so far on `block`, those shared with other quantities included.
        floor: size of what rounding alone contributes, in the unit of `value`.
        flag: None, or what makes the value doubtful, e.g. "below floor": it is less than twice `floor`.
        sign: of "spectral" only: 1 or -1, the sign of the eigenvalue of the largest modulus, where the other end of the
            spectrum falls short of it with 97.5 % confidence; 0 where both ends may reach as far.
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
    sign: int | None = None


def _frobenius(block: str, wrt: str, square: Interval, hvps: int, floor: float, reached: bool) -> NormEstimate:
    """A Frobenius norm from the interval of its square, widened by the rounding floor."""
    value, low, high = (max(x, 0.0) ** 0.5 for x in square)
    low, high = max(low - floor, 0.0), high + floor
    return NormEstimate(block, wrt, "frobenius", value, low, high, hvps, floor, _flag(value, floor, reached))


def _flag(value: float, floor: float, reached: bool = True) -> str | None:
    if abs(value) < 2 * floor:
        return "below floor"
    if not reached:
        return "precision not reached"
    return None


def _sign(lowest: float, highest: float, reach: Reach) -> int:
    """Sign of the eigenvalue of the largest modulus where the other end of the spectrum cannot reach as far, else 0."""
    if highest > -reach.lowest:
        return 1
    if -lowest > reach.highest:
        return -1
    return 0


def _estimates(run: Deflation, reached: bool, doubts: Sequence[str]) -> list[NormEstimate]:
    """Frobenius norm, spectral norm and trace of a diagonal block from its finished run, flagged with its doubts."""
    name, hvps, t = run.name, run.hvps, run.projected()
    whole, rest = run.frobenius_squared()
    floor = run.noise * max(whole.value, 0.0) ** 0.5
    frobenius = _frobenius(name, name, whole, hvps, floor, reached)

    ritz = np.linalg.eigvalsh(t)
    top = float(np.abs(ritz).max())
    coupling = max(run.captured - float((t**2).sum()), 0.0) ** 0.5  # ||(I - Q'Q) H Q'||_F, by Pythagoras
    reach = run.reach()
    upper = spectral_upper(t, coupling, rest.high**0.5, reach)
    point = run.noise * top  # rounding of a Ritz value
    spread = run.noise * run.captured**0.5  # of all images at once
    sign = _sign(float(ritz[0]), float(ritz[-1]), Reach(reach.lowest - spread, reach.highest + spread))
    low, high = top - point, upper + spread
    spectral = NormEstimate(name, name, "spectral", top, low, high, hvps, point, _flag(top, point), sign)

    trace = mean_of_forms(run.forms, rest.high, float(ritz.sum()))
    flag = _flag(trace.value, floor)
    summed = NormEstimate(name, name, "trace", trace.value, trace.low - floor, trace.high + floor, hvps, floor, flag)

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
    whole = sum_of_squares(squares, effective_rank(gram_matrix(images)), run.cross_known[other])
    # Rounding in b's part of a product: that of the diagonal block, as much per coordinate.
    diagonal = math.sqrt(max(run.frobenius_squared()[0].value, 0.0))
    blocks = run.hessian.blocks
    floor = run.noise * diagonal * math.sqrt(blocks[other].dim / run.block.dim)
    large, small = sorted((run.name, other), key=lambda name: -blocks[name].dim)
    return _frobenius(large, small, whole, run.hvps, floor, half_width(whole) <= precision)


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
    ) -> list[NormEstimate]:
        """Frobenius norm, spectral norm and trace of each diagonal block, and Frobenius norms of cross blocks.

        Args:
            names: blocks to measure; all by default.
            cross: pairs of blocks whose H_bc is measured too, from the larger one's products: hardly any extra cost.
            precision: half-width of the 95 % interval of ||H||_F, relative to it, at which probing stops.
            lanczos: Lanczos steps before probing, at most: they end where another would save less than a probe.
            budget: products per block at which probing stops all the same, flagged "precision not reached".
            seed: seed of the start vectors and probes.

        Returns:
            Estimates in the order of `names`, then of `cross`. Simulated coverage of every interval, and the bias of
            every value: benchmarks/coverage.py.
        """
        order = list(self.blocks if names is None else names)

        def position(estimate: NormEstimate) -> int:
            if estimate.block != estimate.wrt:
                return len(order)  # cross blocks last; a stable sort leaves them in their order
            return order.index(estimate.block)

        return sorted(self.norms_by_block(order, cross, precision, seed, lanczos, budget), key=position)

    def norms_by_block(
        self,
        names: Sequence[str],
        cross: Sequence[tuple[str, str]],
        precision: float,
        seed: Sequence[int],
        lanczos: int = LANCZOS,
        budget: int = BUDGET,
    ) -> Iterator[NormEstimate]:
        """Yield the estimates of `norms`, each block's once it is measured: large blocks first, then `cross`."""
        for name in [*names, *itertools.chain.from_iterable(cross)]:
            if name not in self.blocks:
                raise BadInput(f"block '{name}' is unknown: use one of {', '.join(self.blocks)}")
        for a, b in cross:
            if a == b:
                raise BadInput(f"cross block ({a}, {b}): name two different blocks")
        sources = [self._source(pair, lanczos) for pair in cross]
        if not 0 < precision < 1 or lanczos < 1 or budget < lanczos + FIRST + 1:
            raise BadInput(
                f"precision {precision}, lanczos {lanczos}, budget {budget}: use a precision in (0, 1), at least one "
                f"Lanczos step, and a budget of at least lanczos + {FIRST + 1}"
            )
        if isinstance(self, LossAtPoint):
            check_repeats(self)
        order = sorted(dict.fromkeys([*names, *(source for source, _ in sources)]), key=lambda n: -self.blocks[n].dim)
        crosses: dict[tuple[str, str], NormEstimate] = {}
        for name in order:
            others = dict.fromkeys(other for source, other in sources if source == name)
            run = Deflation(self, name, [*seed, *name.encode()], others)
            run.krylov(lanczos, precision)
            doubts = doubted(name, check_products(run))  # before the probes, which wrong products would waste
            reached = run.complete or run.probe_until(precision, budget)
            if name in names:
                yield from _estimates(run, reached, doubts)
            for other in others:
                crosses[name, other] = _cross(run, other, precision)
            del run  # before the next block's takes memory: it holds some twenty vectors of the block's size
        for pair in sources:
            yield crosses[pair]

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
