"""Variance reduction of zeroth-order gradients of finite sums, in the way of SVRG."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.estimators import Sides, ZerothOrder


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
    gradient: Directional | Tensor

    def __post_init__(self) -> None:
        self._anchor = self.block.copies()  # x~ is where the block stands now; training moves on from it

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
        estimate = self.estimator(loss, block, seed, value=value)
        with standing_at(block, self._anchor):
            anchor_estimate = self.estimator(loss, block, seed)
        # The same seeds are the same directions, so that the difference of both estimates is one of coefficients.
        at_anchor = dict(anchor_estimate.terms)
        terms = tuple((key, c - at_anchor[key]) for key, c in estimate.terms)
        # The second call has taken the memory of the first one's directions: only `anchor_estimate` still holds any.
        return Directional(estimate.distribution, terms, self.gradient, estimate.stream, anchor_estimate.kept)
