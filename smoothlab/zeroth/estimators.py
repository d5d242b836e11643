"""Zeroth-order gradients of a loss on a block: differences of the loss along random directions (SPSA, MeZO).

With z of a distribution of `smoothlab.zeroth.distributions`, Eq. (2) of the paper, averaged over q directions:

    one-sided   ghat = (1/q) sum_j (f(x + mu z_j) - f(x)) / mu z_j
    two-sided   ghat = (1/q) sum_j (f(x + mu z_j) - f(x - mu z_j)) / (2 mu) z_j

A gradient is a `Directional`: the distribution of its directions, their seeds, one coefficient each. It is never
materialized unless asked for, and applied in place. Its exact mean and second moment are in `smoothlab.zeroth.moments`.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput
from smoothlab.zeroth.closures import check_same, check_written, meeting
from smoothlab.zeroth.distributions import Distribution, Gaussian
from smoothlab.zeroth.perturbation import Perturbation
from smoothlab.zeroth.rng import Mixture, Piece, Seed, Stream, Terms, stream_name
from smoothlab.zeroth.scaled import Known

Sides = Literal[1, 2]
Average = Literal["plain", "antithetic", "orthogonal"]


@dataclass(frozen=True)
class Directional:
    """A gradient on one block: sum_j c_j z_j, plus `anchor`; z_j is the direction of `distribution` with seed j.

    >>> import torch
    >>> from smoothlab import Block, Directional, Rademacher
    >>> x = Block("x", (torch.zeros(3),))
    >>> Directional(Rademacher(), (((0,), 2.0),)).dense(x).abs()   # 2 z
    tensor([2., 2., 2.])

    Attributes:
        distribution: distribution of the directions.
        terms: (seed, coefficient) pairs, at least one.
        anchor: a gradient added as it is, flat [dim] or directional itself (control variates).
        stream: generator that the seeds are bound to, see `smoothlab.zeroth.rng.stream_name`.
        kept: directions still in memory by seed, which saves drawing them again; the estimator's next call empties it.
    """

    distribution: Distribution
    terms: Terms
    anchor: "Directional | Tensor | None" = None
    stream: str = ""
    kept: dict[Seed, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def dense(self, block: Block) -> Tensor:
        """The gradient as a flat vector [dim] of the block's dtype (fp32 for 16-bit blocks).

        Raises:
            BadInput: the seeds are bound to another generator than this machine's.
        """
        self._check_generator(block)
        out = self._stream(block).numbers()
        for target, part in zip(block.split(out), self._anchors(block), strict=True):
            if part is not None:
                target += part
        return out

    def add_to(self, block: Block, alpha: float) -> None:
        """theta <- theta + alpha ghat on `block`, in place; the sum is made in working precision and rounded once.

        Raises:
            BadInput: the seeds are bound to another generator than this machine's.
        """
        self._check_generator(block)
        anchors, flats = self._anchors(block), [p.data.reshape(-1) for p in block.params]
        # The coefficient of a single direction joins alpha: one pass less over its numbers.
        single = len(self.terms) == 1 and self.anchor is None
        stream, scale = self._stream(block), alpha
        if single:
            seed, coefficient = self.terms[0]
            stream, scale = self.distribution.stream(block, seed), alpha * coefficient

        def add(piece: Piece, numbers: Tensor) -> None:
            target, anchor = flats[piece.tensor][piece.start : piece.stop], anchors[piece.tensor]
            if anchor is not None:
                numbers = numbers + anchor[piece.start : piece.stop]
            if target.dtype == numbers.dtype:
                target.add_(numbers, alpha=scale)
            else:
                target.copy_(target.to(numbers.dtype).add_(numbers, alpha=scale))

        with torch.no_grad():
            if single and self.terms[0][0] in self.kept:
                for i, part in enumerate(block.split(self.kept[self.terms[0][0]])):
                    add(Piece(i, 0, 0, len(part)), part)
            else:
                stream.each(add)
            for p, flat in zip(block.params, flats, strict=True):
                if not p.data.is_contiguous():
                    p.data.copy_(flat.view(p.shape))

    def _check_generator(self, block: Block) -> None:
        here = stream_name(block.params[0].device)
        if self.stream not in ("", here) and not self._in_memory:
            raise BadInput(
                f"the gradient's seeds are of generator {self.stream}, this is {here}: its directions cannot be drawn "
                "here; go on where it was made"
            )

    @property
    def _in_memory(self) -> bool:
        return all(seed in self.kept for seed, _ in self.terms)

    def _stream(self, block: Block) -> Stream:
        if not self._in_memory:
            return Mixture(self.distribution, block, self.terms)
        kept = Known(tuple(self.kept[seed] for seed, _ in self.terms))
        return Mixture(kept, block, tuple(((j,), c) for j, (_, c) in enumerate(self.terms)))

    def _anchors(self, block: Block) -> Sequence[Tensor | None]:
        """The anchor by parameters, flat."""
        if self.anchor is None:
            return [None] * len(block.params)
        flat = self.anchor.dense(block) if isinstance(self.anchor, Directional) else self.anchor
        return block.split(flat)


class Estimator(Protocol):
    """What estimates a gradient from values of a loss; `HybridSGD` takes any object that meets this contract.

    >>> from smoothlab import ZerothOrder
    >>> estimator = ZerothOrder()
    >>> estimator.distribution, estimator.sides
    (Gaussian(), 2)

    Attributes:
        distribution: distribution of the directions that the estimates are made of; seed logs are bound to it.
        sides: 1: the estimate uses f(x), which `HybridSGD` then passes as `value`; 2: it does without, and its last two
            evaluations are at x + mu z and x - mu z.
    """

    @property
    def distribution(self) -> Distribution:
        """See the class."""

    @property
    def sides(self) -> Sides:
        """See the class."""

    def __call__(self, loss: Loss, block: Block, seed: Sequence[int], *, value: float | None = None) -> Directional:
        """The estimate at the block's present values, which must stay as they are to the bit."""


def missing(estimator: object) -> str | None:
    """What an object lacks to be an `Estimator`, in words; None if nothing."""
    if not callable(estimator):
        return "is not callable"
    if not isinstance(getattr(estimator, "distribution", None), Distribution):
        return "has no attribute `distribution` that is a smoothlab Distribution"
    sides = getattr(estimator, "sides", None)
    if sides not in (1, 2):
        return "has no attribute `sides` that is 1 or 2"
    options = {"value": 0.0} if sides == 1 else {}
    try:
        inspect.signature(estimator).bind(None, None, (0,), **options)
    except TypeError:
        return f"cannot be called as estimator(loss, block, seed{', value=f(x)' if options else ''})"
    return None


@dataclass(frozen=True)
class ZerothOrder:
    """The estimator of Eq. (2) for any distribution of directions, averaged over q of them.

    Costs q + 1 (one-sided; q when f(x) is given) or 2q (two-sided) evaluations, and as many passes over the weights
    less one. Its first call on a block evaluates f(x) twice more, to see that the loss is deterministic (with `layers`
    once more, to see that no weight is read elsewhere), and measures how much of the step rounding lets through.

    >>> import torch
    >>> from smoothlab import Block, ZerothOrder
    >>> x = torch.nn.Parameter(torch.ones(3))
    >>> gradient = ZerothOrder(mu=1e-3)(lambda: x.square().sum(), Block("x", (x,)), seed=0)
    >>> gradient.dense(Block("x", (x,))).shape
    torch.Size([3])

    Attributes:
        mu: length of the step along a direction, whose entries have variance 1.
        sides: 1 or 2.
        distribution: distribution of the directions.
        q: number of directions.
        average: "plain": independent ones; "antithetic" (one-sided, even q): in pairs z, -z, which is the two-sided
            estimator on q/2 directions; "orthogonal": orthogonal Gaussian ones of length sqrt(dim), a uniformly random
            frame (Gram-Schmidt; (q + 1) / 2 times the drawing).
        keep: keep the directions of a step in memory (one more copy of the block each) instead of drawing them again.
        layers: the module that the loss runs; weights are then never copied as a whole, but one layer's at a time
            inside its forward call. Without it the block is moved by pointing its parameters at a copy.
    """

    mu: float = 1e-3
    sides: Sides = 2
    distribution: Distribution = field(default_factory=Gaussian)
    q: int = 1
    average: Average = "plain"
    keep: bool = False
    layers: nn.Module | None = field(default=None, compare=False, repr=False)
    _perturbations: dict[Block, Perturbation] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.mu < float("inf"):
            raise BadInput(f"mu = {self.mu}: use a step above 0, e.g. 1e-3")
        if self.sides not in (1, 2):
            raise BadInput(f"{self.sides} sides: use 1 (f(x + mu z) - f(x)) or 2 (f(x + mu z) - f(x - mu z))")
        if self.q < 1:
            raise BadInput(f"q = {self.q} directions: use at least 1")
        if self.average not in ("plain", "antithetic", "orthogonal"):
            raise BadInput(f"average '{self.average}' is unknown: use plain, antithetic or orthogonal")
        if self.average == "antithetic" and (self.sides == 2 or self.q % 2):
            raise BadInput(
                f"antithetic pairs with {self.sides} sides and q = {self.q}: they need one side and an even q; the "
                "two-sided estimator is its own antithetic average"
            )
        if self.average == "orthogonal" and type(self.distribution) is not Gaussian:
            raise BadInput(
                f"orthogonal directions are made from Gaussian ones, not from {self.distribution.name}: "
                "leave distribution out"
            )

    @property
    def name(self) -> str:
        """Name for records, e.g. "two-sided gaussian, q = 4 orthogonal"."""
        sides = "one-sided" if self.sides == 1 else "two-sided"
        name = f"{sides} {self.distribution.name}"
        if self.q > 1:
            name += f", q = {self.q}"
        if self.q > 1 and self.average != "plain":
            name += f" {self.average}"
        return name

    def __call__(
        self,
        loss: Loss,
        block: Block,
        seed: Sequence[int] | int,
        *,
        value: float | None = None,
        directions: Sequence[Tensor] | None = None,
    ) -> Directional:
        """The estimate at the present values of `block`, which stay as they are to the bit, also after an exception.

        Args:
            loss: deterministic loss of one minibatch.
            block: the block to estimate the gradient of.
            seed: seed of the directions, e.g. (run seed, step), or a number.
            value: f(x) if it is known, which saves the one-sided estimator an evaluation.
            directions: q flat vectors [dim] to use instead of drawing them.

        Raises:
            BadInput: the loss is no scalar, not finite or not deterministic, or reads a weight outside its layer;
                rounding swallows more than half of mu z; q > dim orthogonal directions; parameters that are not
                floating-point numbers.
        """
        seed = (seed,) if isinstance(seed, int) else tuple(seed)
        distribution = self.distribution if directions is None else Known(tuple(directions))
        frame = self._frame(block, seed, directions)
        perturbation = self._perturbation(block)
        if perturbation.realized_fraction is None:
            _check_deterministic(loss, block, copy=self.layers is None)
            perturbation.check_layers(loss)
            perturbation.measure_realized_fraction(distribution, frame[0], self.mu)
        perturbation.forget()
        if value is not None and not np.isfinite(value):
            raise BadInput(
                f"the given value of the loss on block '{block.name}' is {value}: leave it out, or look at the data"
            )
        center = value
        if self.sides == 1 and center is None:
            center = evaluate(loss, block)
        terms: dict[Seed, float] = {}
        for direction in frame:
            with perturbation.alone(), perturbation.along(distribution, direction, self.mu):
                plus = evaluate(loss, block)
            if self.sides == 2:
                with perturbation.alone(), perturbation.against(distribution, direction, self.mu):
                    minus = evaluate(loss, block)
                slope = (plus - minus) / (2 * self.mu)
            else:
                assert center is not None
                slope = (plus - center) / self.mu
            if slope == 0.0:  # have the weights outgrown the step since the first call?
                perturbation.measure_realized_fraction(distribution, direction, self.mu)
            for key, weight in direction:
                terms[key] = terms.get(key, 0.0) + slope * weight / self.q
        stream = stream_name(perturbation.device) if directions is None else ""  # known ones are bound to no generator
        return Directional(distribution, tuple(terms.items()), stream=stream, kept=perturbation.kept)

    def realized_fraction(self, block: Block) -> float | None:
        """The fraction of mu z that rounding let through at the first call on `block`; None before."""
        perturbation = self._perturbations.get(block)
        return None if perturbation is None else perturbation.realized_fraction

    def _frame(self, block: Block, seed: Sequence[int], directions: Sequence[Tensor] | None) -> list[Terms]:
        """The q directions, each as (seed, weight) pairs of the distribution's."""
        if directions is not None:
            shapes = [tuple(z.shape) for z in directions]
            if shapes != [(block.dim,)] * self.q:
                raise BadInput(
                    f"{len(shapes)} directions of shapes {shapes}: give q = {self.q} of shape ({block.dim},)"
                )
            return [(((j,), 1.0),) for j in range(self.q)]
        keys = [(*seed, j) for j in range(self.q)]
        if self.average == "antithetic":
            return [((key, sign),) for key in keys[: self.q // 2] for sign in (1.0, -1.0)]
        if self.average == "plain":
            return [((key, 1.0),) for key in keys]
        if self.q > block.dim:
            raise BadInput(
                f"q = {self.q} orthogonal directions do not fit block '{block.name}' of {block.dim} parameters: use at "
                f"most {block.dim}"
            )
        return orthogonal(self.distribution, block, keys)

    def _perturbation(self, block: Block) -> Perturbation:
        if block not in self._perturbations or not self._perturbations[block].fits:
            if any(not p.is_floating_point() for p in block.params):
                raise BadInput(
                    f"block '{block.name}' holds {block.params[0].dtype} parameters: zeroth-order steps need "
                    "floating-point ones; leave quantized or integer weights out"
                )
            self._perturbations[block] = Perturbation(block, keep=self.keep, layers=self.layers)
        for other in self._perturbations.values():
            if other is not self._perturbations[block]:
                other.release()  # one block's copy at a time
        return self._perturbations[block]


def orthogonal(distribution: Distribution, block: Block, keys: Sequence[Seed]) -> list[Terms]:
    """Directions orthogonal to each other, of length sqrt(dim), as combinations of those with seeds `keys`.

    Gram-Schmidt on Gaussian vectors g_j: with K = (<g_i, g_j>) = L L', the rows of sqrt(dim) L^-1 G are a uniformly
    random orthogonal frame.
    """
    streams = [distribution.stream(block, key) for key in keys]

    def products(piece: Piece, first: Tensor) -> Tensor:
        rows = first.new_empty(len(streams), len(first))
        rows[0] = first
        for row, stream in zip(rows[1:], streams[1:], strict=True):
            stream.fill(piece, row)
        rows = rows.double()
        return rows @ rows.T

    gram = torch.stack(streams[0].each(products)).sum(0).cpu().numpy()
    weights = block.dim**0.5 * np.linalg.inv(np.linalg.cholesky(gram))
    return [tuple(zip(keys, row.tolist(), strict=False))[: i + 1] for i, row in enumerate(weights)]


def evaluate(loss: Loss, block: Block) -> float:
    """The loss as a number.

    Raises:
        BadInput: it is no scalar; `NotFinite` if it is no number.
    """
    with torch.no_grad():
        value = scalar(loss(), block)
    number = float(value)
    return finite(number, block)


class NotFinite(BadInput):
    """A loss is NaN or infinite.

    Attributes:
        value: the loss.
    """

    def __init__(self, value: float, name: str) -> None:
        super().__init__(f"the loss on block '{name}' is {value}: lower mu or the learning rate, or look at the data")
        self.value = value


def scalar(value: object, block: Block) -> Tensor:
    """What a closure returned, if it is a scalar.

    Raises:
        BadInput: it is none.
    """
    if isinstance(value, Tensor) and value.dim() == 0:
        return value
    what = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
    raise BadInput(f"the loss on block '{block.name}' {what}: return the mean over the minibatch, a scalar")


def finite(value: float, block: Block) -> float:
    """The value of a loss, if it is a number.

    Raises:
        NotFinite: it is none.
    """
    if not np.isfinite(value):
        raise NotFinite(value, block.name)
    return value


def _check_deterministic(loss: Loss, block: Block, *, copy: bool) -> None:
    """Evaluate twice; on a `copy` of the weights, because a loss may write to them."""
    standing = block.copies() if copy else [p.data for p in block.params]
    versions = [p._version for p in block.params]
    with meeting(), standing_at(block, standing):
        first, second = evaluate(loss, block), evaluate(loss, block)
    check_written(block.params, versions)
    check_same(first, second, f"block '{block.name}'")


@dataclass
class ControlVariate:
    """Variance reduction for finite sums in the way of SVRG: ghat_i(x) - ghat_i(x~) + gradient(x~), same z in both.

    At the anchor x~ the gradient of the whole sum is known well: exactly, or as a zeroth-order estimate over many
    directions. Costs twice the evaluations, and two more copies of the block.

    >>> import torch
    >>> from smoothlab import Block, ControlVariate, ZerothOrder
    >>> x = torch.nn.Parameter(torch.ones(3))
    >>> block = Block("x", (x,))
    >>> estimator = ControlVariate(ZerothOrder(), block, gradient=torch.full((3,), 2.0))
    >>> estimator(lambda: x.square().sum(), block, (0,)).dense(block)   # at the anchor, no noise is left
    tensor([2., 2., 2.])

    Attributes:
        estimator: what estimates both differences.
        block: the block.
        gradient: the gradient of the whole sum at the anchor, directional or flat [dim].
    """

    estimator: ZerothOrder
    block: Block
    gradient: "Directional | Tensor"

    def __post_init__(self) -> None:
        self._anchor = self.block.copies()

    @property
    def name(self) -> str:
        """Name for records."""
        return f"{self.estimator.name}, control variate"

    @property
    def distribution(self) -> Distribution:
        """Distribution of the directions."""
        return self.estimator.distribution

    @property
    def sides(self) -> Sides:
        """1, as the last evaluations are at the anchor, and f(x) has to be asked for."""
        return 1

    def __call__(self, loss: Loss, block: Block, seed: Sequence[int], *, value: float | None = None) -> Directional:
        """The estimate from the loss of one minibatch at the values of `block`, there `value` if known."""
        if list(map(id, block.params)) != list(map(id, self.block.params)):
            raise BadInput(
                f"block '{block.name}' is not the anchor's, '{self.block.name}': make a ControlVariate for it"
            )
        here = self.estimator(loss, block, seed, value=value)
        with standing_at(block, self._anchor):
            there = self.estimator(loss, block, seed)
        at_anchor = dict(there.terms)
        terms = tuple((key, c - at_anchor[key]) for key, c in here.terms)
        return Directional(here.distribution, terms, self.gradient, here.stream, there.kept)
