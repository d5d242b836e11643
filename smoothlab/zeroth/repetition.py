"""Several values of a minibatch's loss from one forward pass, over the minibatch repeated once a value.

A forward pass over few rows takes about as long as reading the weights does, and one over k times as many rows little
more. The loss at k points x + h_i z_i comes from one pass where the rows of repetition i meet weights moved along z_i
(`smoothlab.zeroth.forward`). What is asked of a loss for that: its minibatch can be repeated, and no row of it acts on
another repetition's loss.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from smoothlab.blocks import Block, Loss
from smoothlab.errors import BadInput
from smoothlab.zeroth.closures import ROUNDING, NotFinite


class BatchedLoss:
    """The mean loss of the rows of one minibatch, whose rows can be repeated: a closure for `ZerothOrder(parallel=k)`.

    >>> import torch
    >>> from smoothlab import BatchedLoss
    >>> layer = torch.nn.Linear(2, 1)
    >>> loss = BatchedLoss(lambda batch: layer(batch["x"]).square().mean(1), {"x": torch.ones(3, 2)})
    >>> loss().shape, loss.repeated(4).shape
    (torch.Size([]), torch.Size([4]))

    Every layer must be run on the rows of all repetitions at once, in their order: not in chunks.

    Args:
        losses: losses [rows] of the rows of a minibatch, each a function of its row alone; deterministic, dropout off.
        inputs: the minibatch: tensors of shapes [rows, ...] by name.

    Raises:
        BadInput: there are no inputs, or they have different numbers of rows.
    """

    def __init__(self, losses: Callable[[dict[str, Tensor]], Tensor], inputs: Mapping[str, Tensor]) -> None:
        self._losses, self._inputs = losses, dict(inputs)
        rows = {name: len(tensor) for name, tensor in self._inputs.items()}
        if len(set(rows.values())) != 1:
            raise BadInput(f"a minibatch has rows {rows}: give tensors with as many rows each")
        self._rows = min(rows.values())

    def __call__(self) -> Tensor:
        """The mean loss, a scalar."""
        return self.repeated(1)[0]

    def repeated(self, count: int) -> Tensor:
        """The mean losses [count] of repetitions of the minibatch, from one call on all rows, repetition by repetition.

        Raises:
            BadInput: the losses are not one a row.
        """
        inputs = self._inputs
        if count > 1:
            inputs = {name: tensor.repeat(count, *[1] * (tensor.dim() - 1)) for name, tensor in inputs.items()}
        losses = self._losses(inputs)
        if losses.shape != (count * self._rows,):
            raise BadInput(
                f"the losses of {count * self._rows} rows have shape {tuple(losses.shape)}: return a loss a row, "
                f"[{count * self._rows}]"
            )
        return losses.view(count, -1).mean(1)


class RepeatableLoss:
    """The loss of a minibatch, and the losses of its repetitions, both with the same dropout masks at every call.

    Args:
        compute: the mean loss, a scalar.
        repeated: the mean losses [count] of `count` repetitions of the minibatch.
        fixed: makes a loss the same at every call, see `smoothlab.blocks.fixed_loss`.
    """

    def __init__(self, compute: Loss, repeated: Callable[[int], Tensor], fixed: Callable[[Loss], Loss]) -> None:
        self._compute, self._repeated, self._count = compute, repeated, 0
        self._fixed = fixed(self._evaluate)  # one for both, as it walks over all modules

    def __call__(self) -> Tensor:
        """The mean loss, a scalar."""
        return self._fixed()

    def repeated(self, count: int) -> Tensor:
        """The mean losses [count] of repetitions of the minibatch."""
        self._count = count
        try:
            return self._fixed()
        finally:
            self._count = 0

    def _evaluate(self) -> Tensor:
        if self._count:
            return self._repeated(self._count)
        return self._compute()


def repeated(loss: Loss, count: int, block: Block) -> Tensor:
    """The losses [count] of repetitions of a minibatch, without a graph.

    Raises:
        BadInput: the minibatch of the loss cannot be repeated.
    """
    repeat: Any = getattr(loss, "repeated", None)
    if repeat is None:
        raise BadInput(
            f"parallel = {count} on block '{block.name}': the minibatch of this loss cannot be repeated: give a "
            "smoothlab.BatchedLoss or another loss with a method repeated(count), or use parallel = 1"
        )
    with torch.no_grad():
        losses = repeat(count)
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        raise BadInput(
            f"repeated({count}) of the loss on block '{block.name}' gives {getattr(losses, 'shape', losses)!r}: return "
            f"one mean loss a repetition, [{count}]"
        )
    return losses


def evaluate_repeated(loss: Loss, count: int, block: Block) -> list[float]:
    """The losses of repetitions as numbers.

    Raises:
        BadInput: see `repeated`; `NotFinite` if one is no number.
    """
    values: list[float] = repeated(loss, count, block).tolist()
    for value in values:
        if not math.isfinite(value):
            raise NotFinite(value, block.name)
    return values


def check_same_loss(loss: Loss, plain: float, count: int, block: Block) -> None:
    """Refuse a loss whose repetitions have other values at the same weights than the minibatch itself, `plain`.

    Raises:
        BadInput: they differ by more than rounding: the loss is no mean over rows, or dropout is on.
    """
    losses = repeated(loss, count, block)
    eps = max(torch.finfo(losses.dtype).eps, torch.finfo(block.params[0].dtype).eps)
    for value in losses.tolist():
        if not abs(value - plain) <= ROUNDING * eps * max(1.0, abs(plain)):  # NaN compares false
            raise BadInput(
                f"the loss on block '{block.name}' is {plain!r}, and {value!r} of a repetition of its minibatch: turn "
                "dropout off, return means over the rows of a repetition, or use parallel = 1"
            )


def separating_sets(count: int) -> list[set[int]]:
    """Sets of the numbers 0 .. count - 1 such that for any two, i and j, some set has j and not i.

    >>> separating_sets(3)
    [{1}, {0, 2}, {2}, {0, 1}]
    """
    sets = []
    for bit in range((count - 1).bit_length()):
        chosen = {i for i in range(count) if i >> bit & 1}
        sets += [chosen, set(range(count)) - chosen]
    return sets
