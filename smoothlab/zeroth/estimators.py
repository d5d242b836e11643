"""Zeroth-order gradients of a loss on a block: differences of the loss along random directions (SPSA, MeZO).

With z of a distribution of `smoothlab.zeroth.distributions`, Eq. (2) of the paper, averaged over q directions:

    one-sided   ghat = (1/q) sum_j (f(x + mu z_j) - f(x)) / mu z_j
    two-sided   ghat = (1/q) sum_j (f(x + mu z_j) - f(x - mu z_j)) / (2 mu) z_j

A gradient is a `Directional`: the distribution of its directions, their seeds, one coefficient each. It is never
materialized unless asked for, and applied in place. Its exact mean and second moment are in `smoothlab.zeroth.moments`.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput
from smoothlab.shards import any_sharded
from smoothlab.zeroth.closures import check_same, check_written, evaluate, module_calls, versions
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.forward import ForwardPerturbation
from smoothlab.zeroth.gathered import check_gathers
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.perturbation import Perturbation
from smoothlab.zeroth.repetition import evaluate_repeated
from smoothlab.zeroth.rng import GeneratorName, Piece, Seed, Terms, check_generator, stream_name
from smoothlab.zeroth.scaled import Known

Sides = Literal[1, 2]
Average = Literal["plain", "antithetic", "orthogonal"]
Perturb = Literal["weights", "forward"]


class Estimator(Protocol):
    """Estimator of a gradient from values of a loss; `HybridSGD` takes any object that meets this contract.

    >>> from smoothlab import ZerothOrder
    >>> estimator = ZerothOrder()
    >>> estimator.distribution, estimator.sides
    (Gaussian(), 2)
    """

    @property
    def distribution(self) -> Distribution:
        """Distribution of the directions that the estimates are made of; seed logs are bound to it."""

    @property
    def sides(self) -> Sides:
        """1: the estimate uses f(x), which `HybridSGD` then passes as `value`.

        2: it does without, and its last two evaluations are at x + mu z and x - mu z.
        """

    def __call__(self, loss: Loss, block: Block, seed: Sequence[int], *, value: float | None = None) -> Directional:
        """The estimate at the block's present values, which must stay as they are to the bit."""


def missing(estimator: object) -> str | None:
    """The attribute or argument that an object lacks to be an `Estimator`, in words; None if it lacks nothing."""
    if not callable(estimator):
        return "is not callable"
    if not isinstance(getattr(estimator, "distribution", None), Distribution):
        return "has no attribute `distribution` that is a smoothlab Distribution"
    sides = getattr(estimator, "sides", None)
    if sides not in (1, 2):
        return "has no attribute `sides` that is 1 or 2"
    arguments, options = "loss, block, seed", {}
    if sides == 1:
        arguments, options = "loss, block, seed, value=f(x)", {"value": 0.0}
    try:
        inspect.signature(estimator).bind(None, None, (0,), **options)
    except TypeError:
        return f"cannot be called as estimator({arguments})"
    return None


@dataclass(frozen=True)
class ZerothOrder:
    """The zeroth-order gradient estimator of Eq. (2), for any distribution of directions, averaged over q of them.

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
        mu: perturbation mu; the loss is evaluated at x + mu z, where the entries of z have variance 1.
        sides: 1 for f(x + mu z) - f(x), 2 for f(x + mu z) - f(x - mu z).
        distribution: distribution of the directions.
        q: number of directions.
        average: "plain": independent ones; "antithetic" (one-sided, even q): in pairs z, -z, which is the two-sided
            estimator on q/2 directions; "orthogonal": orthogonal Gaussian ones of length sqrt(dim), a uniformly random
            frame (Gram-Schmidt; (q + 1) / 2 times the drawing).
        keep: keep the directions of a step in memory (one more copy of the block each) instead of drawing them again.
        layers: the module that the loss runs; weights are then never copied as a whole, but one layer's at a time
            inside its forward call. Without it the block is moved by pointing its parameters at a copy. With `perturb`
            "forward", which copies none, it is needed for parameters that FSDP2 shards.
        perturb: how the loss is evaluated at x + mu z. "weights": with a moved copy of the weights; "forward": with
            what the move adds to each product with a weight inside the forward pass, so that weights are neither
            written nor copied, for `LowRank` directions.
        parallel: number of the 2q evaluations of a two-sided estimate that one forward pass makes, over the minibatch
            repeated as often, with as many times the memory of activations; with `perturb` "forward", for a loss whose
            minibatch can be repeated (`BatchedLoss`). Pays where a minibatch has few rows.
        generator: where the directions' numbers come from: "torch", or "portable" (the same bits on every machine and
            torch version, so that a seed log replays anywhere); by default the distribution's own.
        dtype: number format of the moved weights, that of the block by default; torch.float32 lets steps through that
            16 bits would round away, for models that compute in float32 (`smoothlab.llm.compute`).
    """

    mu: float = 1e-3
    sides: Sides = 2
    distribution: Distribution = field(default_factory=Gaussian)
    q: int = 1
    average: Average = "plain"
    keep: bool = False
    layers: nn.Module | None = field(default=None, compare=False, repr=False)
    dtype: torch.dtype | None = field(default=None, repr=False)
    perturb: Perturb = "weights"
    parallel: int = 1
    generator: InitVar[GeneratorName | None] = None
    _perturbations: dict[Block, Perturbation] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self, generator: GeneratorName | None) -> None:
        if generator is not None:
            object.__setattr__(self, "distribution", replace(self.distribution, generator=generator))
        check_generator(self.distribution.generator)
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
        self._check_perturb()
        if self.average == "orthogonal" and type(self.distribution) is not Gaussian:
            raise BadInput(
                f"orthogonal directions are made from Gaussian ones, not from {self.distribution.name}: "
                "leave distribution out"
            )

    def _check_perturb(self) -> None:
        if self.perturb not in ("weights", "forward"):
            raise BadInput(f"perturb '{self.perturb}' is unknown: use weights or forward")
        if self.parallel != int(self.parallel) or self.parallel < 1:
            raise BadInput(f"parallel = {self.parallel} evaluations: use a whole number of at least 1")
        if self.parallel > 1 and (self.perturb != "forward" or self.sides != 2):
            # f(x) of a one-sided estimate comes from a pass of another shape, which is rounded in another way.
            raise BadInput(
                f"parallel = {self.parallel} with {self.sides} sides and perturb '{self.perturb}': use two sides and "
                "perturb 'forward', or parallel = 1"
            )
        if self.perturb == "weights":
            return
        if not isinstance(self.distribution, LowRank) or type(self.distribution).fill is not LowRank.fill:
            raise BadInput(
                f"perturb 'forward' with {self.distribution.name} directions: use LowRank ones, or perturb 'weights'"
            )
        if self.keep:
            raise BadInput("keep is for perturb 'weights', which copies weights: leave it out with 'forward'")

    @property
    def copies(self) -> bool:
        """Whether the block is copied as a whole to be moved."""
        return self.layers is None and self.perturb == "weights"

    @property
    def name(self) -> str:
        """Name for records, e.g. "two-sided gaussian, q = 4 orthogonal"."""
        sides = "one-sided" if self.sides == 1 else "two-sided"
        name = f"{sides} {self.distribution.name}"
        if self.q > 1:
            name += f", q = {self.q}"
            if self.average != "plain":
                name += f" {self.average}"
        return name

    def __call__(
        self, loss: Loss, block: Block, seed: Sequence[int] | int, *, value: float | None = None,
        directions: Sequence[Tensor] | None = None,
    ) -> Directional:  # fmt: skip
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
        if isinstance(seed, int):
            seed = (seed,)
        distribution = self.distribution
        stream = stream_name(block.params[0].device, distribution.generator)
        if directions is not None:
            if self.perturb == "forward":
                raise BadInput("given directions have no factors: use perturb 'weights' with them")
            directions_in_memory = Known(tuple(directions), generator=distribution.generator)
            distribution, stream = directions_in_memory, ""  # they are bound to no generator
        frame = self._frame(block, seed, directions)
        perturbation = self._perturbation(block)
        if perturbation.realized_fraction is None:
            # In this order: the later checks trust that the loss is one function.
            _check_deterministic(loss, block, copy=self.copies)
            perturbation.check_layers(loss)
            perturbation.measure_realized_fraction(distribution, frame[0], self.mu)
            if self.parallel > 1:
                assert isinstance(perturbation, ForwardPerturbation)
                points = self._points(frame)[: self.parallel]
                perturbation.check_repetitions(loss, evaluate(loss, block), points)
        perturbation.forget()
        if value is not None and not np.isfinite(value):
            raise BadInput(
                f"the given value of the loss on block '{block.name}' is {value}: leave it out, or look at the data"
            )
        center = value
        if self.sides == 1 and center is None:
            center = evaluate(loss, block)
        differences = self._differences(loss, block, perturbation, distribution, frame, center)
        if self.parallel > 1:
            differences = self._parallel_differences(loss, block, perturbation, frame)
        terms: dict[Seed, float] = {}
        for direction, difference in zip(frame, differences, strict=True):
            slope = difference / (self.sides * self.mu)
            if slope == 0.0:  # have the weights outgrown the step since the first call?
                perturbation.measure_realized_fraction(distribution, direction, self.mu)
            # Orthogonal directions share their seeds, and an antithetic pair is one seed: coefficients add up.
            for key, weight in direction:
                terms[key] = terms.get(key, 0.0) + slope * weight / self.q
        return Directional(
            distribution, tuple(terms.items()), stream=stream, kept=perturbation.kept, streams=perturbation.streams
        )

    def _differences(
        self, loss: Loss, block: Block, perturbation: Perturbation, distribution: Distribution, frame: Sequence[Terms],
        center: float | None,
    ) -> Iterator[float]:  # fmt: skip
        """f(x + mu z) - f(x - mu z), or f(x + mu z) - f(x), of each direction, one evaluation after the other."""
        for direction in frame:
            with perturbation.exclusive_use(), perturbation.along(distribution, direction, self.mu):
                plus = evaluate(loss, block)
            if self.sides == 2:
                with perturbation.exclusive_use(), perturbation.against(distribution, direction, self.mu):
                    minus = evaluate(loss, block)
                yield plus - minus
            else:
                assert center is not None
                yield plus - center

    def _points(self, frame: Sequence[Terms]) -> list[tuple[Terms, float]]:
        """Direction and step of each of the 2q evaluations."""
        return [(direction, sign * self.mu) for direction in frame for sign in (1.0, -1.0)]

    def _parallel_differences(
        self, loss: Loss, block: Block, perturbation: Perturbation, frame: Sequence[Terms]
    ) -> Iterator[float]:
        """The differences that `_differences` returns, with `parallel` evaluations in one forward pass."""
        assert isinstance(perturbation, ForwardPerturbation)
        points, values = self._points(frame), list[float]()
        for start in range(0, len(points), self.parallel):
            part = points[start : start + self.parallel]
            with perturbation.exclusive_use(), perturbation.at_points(part):
                values += evaluate_repeated(loss, len(part), block)
        for plus, minus in zip(values[::2], values[1::2], strict=True):
            yield plus - minus

    def realized_fraction(self, block: Block) -> float | None:
        """The fraction of mu z that rounding let through at the first call on `block`; None before."""
        if block not in self._perturbations:
            return None
        return self._perturbations[block].realized_fraction

    def _frame(self, block: Block, seed: Sequence[int], directions: Sequence[Tensor] | None) -> list[Terms]:
        """The q directions, each as (seed, weight) pairs of the distribution's."""
        if directions is not None:
            shapes = [tuple(z.shape) for z in directions]
            if shapes != [(block.dim,)] * self.q:
                raise BadInput(
                    f"{len(shapes)} directions of shapes {shapes}: give q = {self.q} of shape ({block.dim},)"
                )
            seed = ()  # `Known` counts its directions by a seed (j,)
        # The number of the direction is the seed's last word: directions of one step are independent.
        keys = [(*seed, j) for j in range(self.q)]
        if directions is not None or self.average == "plain":
            return [((key, 1.0),) for key in keys]
        if self.average == "antithetic":
            return [((key, sign),) for key in keys[: self.q // 2] for sign in (1.0, -1.0)]
        if self.q > block.dim:
            raise BadInput(
                f"q = {self.q} orthogonal directions do not fit block '{block.name}' of {block.dim} parameters: use at "
                f"most {block.dim}"
            )
        return orthogonal(self.distribution, block, keys)

    def _perturbation(self, block: Block) -> Perturbation:
        if block not in self._perturbations or not self._perturbations[block].fits:
            if not block.params[0].is_floating_point():  # a block is of one dtype
                raise BadInput(
                    f"block '{block.name}' holds {block.params[0].dtype} parameters: zeroth-order steps need "
                    "floating-point ones; leave quantized or integer weights out"
                )
            if any_sharded(block.params):
                check_gathers(block.name, self)
            perturbation: Perturbation
            if isinstance(self.distribution, LowRank) and self.perturb == "forward":
                perturbation = ForwardPerturbation(block, self.distribution, dtype=self.dtype, module=self.layers)
            else:
                perturbation = Perturbation(block, keep=self.keep, layers=self.layers, dtype=self.dtype)
            self._perturbations[block] = perturbation
        # The copies of several blocks at a time would take the memory that moving one block after the other saves.
        current = self._perturbations[block]
        for perturbation in self._perturbations.values():
            if perturbation is not current:
                perturbation.release()
        return current


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

    # In fp64: a Gram matrix has the square of its vectors' condition number.
    gram = torch.stack(streams[0].map(products)).sum(0).cpu().numpy()
    weights = block.dim**0.5 * np.linalg.inv(np.linalg.cholesky(gram))
    # L^-1 is lower triangular: row i combines the first i + 1 directions.
    return [tuple(zip(keys[: i + 1], row.tolist(), strict=False)) for i, row in enumerate(weights)]


def _check_deterministic(loss: Loss, block: Block, *, copy: bool) -> None:
    """Evaluate twice; on a `copy` of the weights, because a loss may write to them."""
    before = versions(block.params)
    with ExitStack() as stack:
        stack.enter_context(module_calls())
        if copy:
            stack.enter_context(standing_at(block, block.copies()))
        first, second = evaluate(loss, block), evaluate(loss, block)
    check_written(block.params, before)
    check_same(first, second, f"block '{block.name}'")
