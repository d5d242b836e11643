"""A minibatch in parts, which are computed one after the other, or by several processes: its loss, its exact gradient.

Losses and gradients of the parts are added in the order of `smoothlab.optim.summation`, so that one process with all
parts and several processes with some each find the same mean, to the bit.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.optim.summation import Peers, Terms, Tree, in_order, over_all, widened
from smoothlab.zeroth.closures import Watch, finite, scalar
from smoothlab.zeroth.repetition import repeated

Closure = Callable[[], Tensor]


class Minibatch:
    """Closures whose mean is the loss.

    Args:
        closures: the loss of each part in this process, at least one.
        peers: other processes, which hold as many parts each; None alone.
        block: block that errors about the loss name.

    Attributes:
        dtype: dtype of the losses as they were computed last.
    """

    def __init__(self, closures: Sequence[Closure], peers: Peers | None, block: Block) -> None:
        self._closures, self._peers, self._block = closures, peers, block
        self._count = len(closures)
        if peers is not None:
            self._count *= peers.count
        self.dtype: torch.dtype

    def loss(self) -> Tensor:
        """The mean loss of all parts."""
        return self._mean([scalar(closure(), self._block) for closure in self._closures])

    def repeated(self, count: int) -> Tensor:
        """The mean losses [count] of all parts, each part repeated in a forward pass of its own.

        Raises:
            BadInput: a closure's minibatch cannot be repeated.
        """
        return self._mean([repeated(closure, count, self._block) for closure in self._closures])

    def differentiate(self, params: Sequence[Tensor]) -> float:
        """The mean loss, a number; its gradient is left in the parameters, None where none depends on them.

        One part's graph is in memory at a time.

        Raises:
            BadInput: a loss is no scalar, or `NotFinite`.
        """
        _clear(params)
        losses, tree, accumulated = [], Tree(), 0
        narrow = any(p.dtype.itemsize == 2 for p in params)  # 16-bit gradients are added in fp32
        for number, closure in enumerate(self._closures, start=1):
            with torch.enable_grad():
                loss = scalar(closure(), self._block)
            if self._peers is None:  # of several processes, all hear of it together, from the mean
                finite(float(loss.detach()), self._block)
            losses.append(loss.detach())
            if loss.requires_grad:
                # What is in no group is frozen, whatever its flag says.
                (loss / self._count).backward(inputs=list(params))
            accumulated += 1
            if self._count > 1 and (accumulated == 2 or narrow or number == len(self._closures)):
                tree.push(widened([p.grad for p in params]), accumulated)  # autograd has added two by itself
                _clear(params)
                accumulated = 0
        value = finite(float(self._mean(losses)), self._block)
        if self._count > 1:
            total: Terms = tree.total()
            if self._peers is not None:
                total = over_all(total, params, self._peers)
            for p, gradient in zip(params, total, strict=True):
                if gradient is not None:
                    p.grad = gradient.to(p.dtype)
        return value

    def _mean(self, losses: Sequence[Tensor]) -> Tensor:
        self.dtype = losses[0].dtype
        if self._count == 1:
            return losses[0]
        total = in_order(loss.double() for loss in losses)
        if self._peers is not None:
            total = total.detach().clone()  # which the peers' sum overwrites, while a graph may hold it
            self._peers.sum([total])
        return total / self._count


class WatchedLoss:
    """The mean loss of a step's minibatch, whose calls are watched.

    Attributes:
        values: the losses so far, in the order of their evaluation.
    """

    def __init__(self, minibatch: Minibatch, watch: Watch) -> None:
        self._minibatch, self._watch = minibatch, watch
        self.values: list[float] = []

    def __call__(self) -> Tensor:
        """The mean loss of all parts."""
        with self._watch.call():
            loss = self._minibatch.loss()
        self.values.append(float(loss.detach()))
        return loss

    def repeated(self, count: int) -> Tensor:
        """The losses [count] of repetitions of the minibatch."""
        with self._watch.call():
            losses = self._minibatch.repeated(count)
        self.values += losses.tolist()
        return losses


def _clear(params: Sequence[Tensor]) -> None:
    for p in params:
        p.grad = None
