"""Frobenius norm and trace of the Hessian of a data set's mean loss, from products on redrawn minibatches.

The norms of `smoothlab.hessian.norms` are those of one minibatch, whose Hessian H_A is that of the data set only in the
mean: E H_A = H for a simple random sample A. Its norm is too large even in the mean, by sampling noise: E ||H_A||_F^2 =
||H||_F^2 + E ||H_A - H||_F^2. Two minibatches A, B that are drawn independently have no such bias,
    E <H_A v, H_B v> = ||H v||^2,
and the mean over all pairs of K minibatches (a U-statistic) needs the sum of the images only:
    sum_{A != B} <H_A v, H_B v> = ||sum_A H_A v||^2 - sum_A ||H_A v||^2.

A *replicate* is such a mean over K new minibatches, along the same k + m directions: an orthonormal basis Q [k, d] of
the top Ritz vectors of a first minibatch, and m new Gaussian probes v orthogonal to Q. With T = Q H Q' and P = I - Q'Q,
    ||H||_F^2 = 2 ||H Q'||_F^2 - ||T||_F^2 + E ||P H v||^2,     tr H = tr T + E v'Hv,
term by term without bias. Replicates are independent and equally distributed, so their spread holds both errors, that
of the probes and that of sampling; within a replicate only the probes differ, which tells the two apart.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from smoothlab.blocks import Block, by_name, dot
from smoothlab.errors import BadInput
from smoothlab.hessian.basis import Basis
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.disagreements import doubted
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.norms import NormEstimate, Quantity
from smoothlab.hessian.products import Products
from smoothlab.hessian.selfchecks import check_products
from smoothlab.stats.intervals import Interval, half_width
from smoothlab.stats.redraws import Shares, mean_of_replicates, shares
from smoothlab.zeroth.distributions import draw

MINIBATCHES = 4
"""Minibatches K of a replicate: pairs grow with K^2, products with K, and so does what a replicate costs at least."""
PROBES = 2
"""Probes m of a replicate: the fewest that tell the probes' error from that of sampling."""
REPLICATES = 8
"""Replicates before the first look at the interval."""
LANCZOS = 8
"""Lanczos steps on the first minibatch, which choose the basis."""
DOMINANT = 0.1
"""Share of ||H||_F^2 from which on an eigenvector is worth K products in each replicate."""


@dataclass(frozen=True)
class DatasetNorm(NormEstimate):
    """A norm or trace of the Hessian of a data set's mean loss, with its 95 % interval; see `NormEstimate`.

    >>> from smoothlab import DatasetNorm
    >>> DatasetNorm("base", "base", "trace", 3.0, 2.5, 3.5, 80, 0.0, minibatches=33, sampling_share=0.4).sampling_share
    0.4

    Attributes:
        minibatches: minibatches that were drawn.
        sampling_share: share of the estimate's variance that comes from drawing minibatches; the rest is the probes'.
            More or larger minibatches lower the one, more probes the other.
    """

    minibatches: int = 0
    sampling_share: float = 0.0


def redraw(loader: Iterable[Any], seed: Sequence[int] = (0,)) -> Iterator[Any]:
    """Minibatches without end, each a simple random sample of the data set, drawn anew and independently.

    A `DataLoader` over a map-style data set gives its items, batch size and collator; its sampler is not used, since
    the minibatches of one epoch are not independent. Any other iterable is taken to yield independent minibatches.

    >>> from torch.utils.data import DataLoader
    >>> from smoothlab.hessian.dataset import redraw
    >>> minibatch = next(redraw(DataLoader(range(100), batch_size=4)))
    >>> len(set(minibatch.tolist()))
    4
    """
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
        yield from loader
        return
    items: Any = loader.dataset
    size = min(loader.batch_size or 1, len(items))
    generator = np.random.default_rng([*seed, *b"redraw"])
    while True:
        chosen = generator.choice(len(items), size, replace=False)
        yield loader.collate_fn([items[int(i)] for i in chosen])


class DatasetHessian:
    """The Hessian of the mean loss of a data set, of which one minibatch at a time is looked at.

    >>> import torch
    >>> from torch.utils.data import DataLoader
    >>> from smoothlab import Block, DatasetHessian
    >>> w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    >>> items = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)     # Hessians diag(2, 0) and diag(0, 2)
    >>> loss = lambda batch: (batch * w).square().sum(1).mean()
    >>> hessian = DatasetHessian(loss, DataLoader(items, batch_size=1), [Block("w", (w,))])
    >>> frobenius, trace = hessian.norms(precision=0.3)
    >>> frobenius.low <= 2**0.5 <= frobenius.high, frobenius.sampling_share     # of the mean diag(1, 1)
    (True, 1.0)

    Args:
        loss: mean loss of a minibatch over its items, deterministic, a scalar. A mean over tokens weighs an item by
            its minibatch and is no mean over items.
        loader: a DataLoader, whose items are drawn anew, or any iterable of independent minibatches.
        blocks: disjoint blocks to measure.
        seed: seed of minibatches, start vectors and probes.

    Attributes:
        losses: the loss of each minibatch drawn so far.
        grad_norms: norm of the data set's gradient on each block that is measured, without the bias of one
            minibatch's norm; 0 where sampling noise hides it.
    """

    def __init__(
        self,
        loss: Callable[[Any], Tensor],
        loader: Iterable[Any],
        blocks: Sequence[Block],
        *,
        seed: Sequence[int] = (0,),
    ) -> None:
        self.blocks, self.seed = by_name(blocks), tuple(seed)
        self._loss, self._minibatches = loss, redraw(loader, seed)
        self.losses: list[float] = []
        self.grad_norms: dict[str, float] = {}

    def minibatch(self, names: Sequence[str]) -> Products:
        """Products with the Hessian of the next minibatch, on the named blocks."""
        try:
            items = next(self._minibatches)
        except StopIteration:
            raise BadInput(
                "the loader has no more minibatches: give a DataLoader, or an iterator without end"
            ) from None
        hessian = ExactHessian(lambda: self._loss(items), [self.blocks[name] for name in names])
        self.losses.append(hessian.loss)
        return hessian

    def norms(self, *, precision: float = 0.1, budget: int = 2000) -> list[DatasetNorm]:
        """Frobenius norm and trace of each block, see `norms_by_block`, in the order of the blocks."""
        names = list(self.blocks)
        estimates = self.norms_by_block(precision=precision, budget=budget)
        return sorted(estimates, key=lambda estimate: names.index(estimate.block))

    def norms_by_block(self, *, precision: float = 0.1, budget: int = 2000) -> Iterator[DatasetNorm]:
        """Yield the estimates of each block once its interval is short enough.

        Args:
            precision: half-width of the 95 % interval of ||H||_F, relative to it, at which a block is done; it holds
                the errors of the probes and of sampling.
            budget: products a block at which it is done all the same, flagged "precision not reached".
        """
        if not 0 < precision < 1:
            raise BadInput(f"precision {precision:g}: use one in (0, 1)")
        # The first minibatch chooses directions and joins no replicate: directions that depended on a replicate's own
        # sample would favor what that sample happens to hold.
        first = self.minibatch(list(self.blocks))
        open_blocks = {name: _Block(first, name, self.seed) for name in self.blocks}
        del first  # its graph is as large as a minibatch's activations
        while open_blocks:
            for block in open_blocks.values():
                block.begin()
            # One minibatch serves all blocks while its graph is there: only sums of images outlive it.
            for _ in range(MINIBATCHES):
                hessian = self.minibatch(list(open_blocks))
                for block in open_blocks.values():
                    block.add(hessian)
            for name, block in list(open_blocks.items()):
                block.end()
                if block.done(precision, budget):
                    self.grad_norms[name] = max(float(np.mean(block.gradients)), 0.0) ** 0.5
                    yield from block.estimates(precision)
                    del open_blocks[name]


@dataclass
class _Sum:
    """Images of one direction, over the minibatches of a replicate.

    Attributes:
        total: the sum of the images, flat [d].
        squares: the sum of their squared lengths.
    """

    total: Tensor
    squares: float = 0.0

    def add(self, image: Tensor) -> None:
        self.total += image
        self.squares += dot(image, image)

    def pairs(self) -> float:
        """The mean of <H_A v, H_B v> over ordered pairs of different minibatches."""
        return (dot(self.total, self.total) - self.squares) / (MINIBATCHES * (MINIBATCHES - 1))


@dataclass
class _Block:
    """State of one block: its basis, the sums of the current replicate, and the replicates so far.

    Attributes:
        replicates: estimates [replicate, probe] of ||H||_F^2, one a probe; one column where Q spans the block.
        traces: estimates [replicate, probe] of tr H.
        gradients: estimates [replicate] of ||g||^2, g the gradient of the data set's loss.
    """

    hessian: Products
    name: str
    seed: Sequence[int]
    replicates: list[list[float]] = field(default_factory=list)
    traces: list[list[float]] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        run = Deflation(self.hessian, self.name, [*self.seed, *self.name.encode()], [])
        run.krylov(LANCZOS)
        self.doubts = doubted(self.name, check_products(run))
        self.basis, self.block = self._dominant(run), run.block
        self.noise, self.hvps = run.noise, run.hvps
        del self.hessian  # the first minibatch's graph

    def _dominant(self, run: Deflation) -> Basis:
        """Ritz vectors that carry much of the first minibatch's ||H||_F^2; all where they span the block."""
        values, vectors = np.linalg.eigh(run.projected())
        if not run.complete:  # the norm must be known roughly, to say what is much of it
            for _ in range(3):
                run.probe()
        square = run.frobenius_squared()[0].value
        basis = Basis(run.block.dim, run.basis.rows)
        for value, vector in zip(values, vectors.T, strict=True):
            if run.complete or value**2 > DOMINANT * square:
                basis.add(run.in_full_space(vector))
        return basis

    def begin(self) -> None:
        """Draw the probes of the next replicate."""
        self.probes = []
        count = 0 if self.basis.size == self.block.dim else PROBES
        for i in range(count):
            # New ones in each replicate, so that the spread of replicates holds the probes' error too.
            seed = [*self.seed, *self.name.encode(), len(self.replicates), i]
            probe = draw(self.block, "gaussian", seed)
            self.basis.project_out(probe)
            self.probes.append(probe)
        self.columns = [_Sum(torch.zeros_like(q)) for q in self.basis.rows]
        self.images = [_Sum(torch.zeros_like(v)) for v in self.probes]
        self.gradient = _Sum(self.basis.rows.new_zeros(self.block.dim))
        self.projected = _Sum(torch.zeros(self.basis.size**2, dtype=torch.float64))
        self.forms = np.zeros(max(count, 1))

    def add(self, hessian: Products) -> None:
        """Multiply all directions with the Hessian of the next minibatch."""
        self.gradient.add(hessian.gradients[self.name])
        projected = []
        for q, column in zip(self.basis.rows, self.columns, strict=True):
            image = hessian.product(q, self.name, [self.name])[0]
            column.add(image)
            projected.append([dot(row, image) for row in self.basis.rows])
        t = torch.tensor(projected, dtype=torch.float64).reshape(self.basis.size, self.basis.size)
        self.projected.add(t.reshape(-1))
        # A trace is linear in the Hessian: the mean over minibatches has no bias, and needs no pairs.
        self.forms += float(t.trace()) / MINIBATCHES
        for i, (probe, sums) in enumerate(zip(self.probes, self.images, strict=True)):
            image = hessian.product(probe, self.name, [self.name])[0]
            self.forms[i] += dot(probe, image) / MINIBATCHES
            self.basis.project_out(image)
            sums.add(image)
        self.hvps += len(self.columns) + len(self.probes)

    def end(self) -> None:
        """The replicate's estimates, one a probe."""
        exact = 2 * sum(column.pairs() for column in self.columns) - self.projected.pairs()
        squares = [sums.pairs() for sums in self.images] or [0.0]  # Q spans the block: nothing is left
        self.replicates.append([exact + square for square in squares])
        self.traces.append(self.forms.tolist())
        self.gradients.append(self.gradient.pairs())

    def square(self) -> Interval:
        """Interval of ||H||_F^2."""
        return mean_of_replicates(self.replicates)

    def done(self, precision: float, budget: int) -> bool:
        """Whether the interval is short enough, or the next replicate would pass the budget."""
        if len(self.replicates) < REPLICATES:
            return False
        square = self.square()
        if square.value > 0 and half_width(square) <= precision:  # a mean over pairs may be negative
            return True
        return self.hvps + MINIBATCHES * (len(self.columns) + len(self.probes)) > budget

    def estimates(self, precision: float) -> Iterator[DatasetNorm]:
        """Frobenius norm and trace."""
        square = self.square()
        norm = Interval(*(max(x, 0.0) ** 0.5 for x in square))
        reached = square.value > 0 and half_width(square) <= precision
        floor = self.noise * norm.value
        yield self._estimate("frobenius", norm, floor, reached, shares(self.replicates))
        yield self._estimate("trace", mean_of_replicates(self.traces), floor, True, shares(self.traces))

    def _estimate(self, quantity: Quantity, x: Interval, floor: float, reached: bool, share: Shares) -> DatasetNorm:
        flags = list(self.doubts)
        if not reached:
            flags.insert(0, "precision not reached")
        low, high = x.low - floor, x.high + floor
        if quantity == "frobenius":  # a trace may be negative
            low = max(low, 0.0)
        return DatasetNorm(
            self.name, self.name, quantity, x.value, low, high, self.hvps, floor, ", ".join(flags) or None,
            minibatches=1 + MINIBATCHES * len(self.replicates), sampling_share=share.sampling,
        )  # fmt: skip
