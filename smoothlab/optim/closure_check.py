"""Checks of the closures of a run: closely before its first step, later at a sign of a change or in turn.

The requirements of a closure, and the watch of its calls, are in `smoothlab.zeroth.closures`.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from smoothlab.blocks import Block, standing_at
from smoothlab.optim.groups import Group
from smoothlab.optim.minibatch import Minibatch
from smoothlab.optim.summation import Peers
from smoothlab.zeroth.closures import AGAIN, Watch, check_same, check_written, evaluate, same_function


class ClosureCheck:
    """The looks at the closures of one optimizer.

    Args:
        groups: the optimizer's groups.
        block: block that errors about the loss name.

    Attributes:
        differs: whether f(x, y) is rounded otherwise with a graph than without, so that both are evaluated; None: not
            known yet.
    """

    def __init__(self, groups: Sequence[Group], block: Block) -> None:
        self._groups, self._block = groups, block
        self._watch: Watch | None = None
        self.differs: bool | None = None

    def begin(self, minibatch: Minibatch) -> tuple[Watch, float | None]:
        """The watch of the calls of a step; before the first step that is kept, f(x, y) without a graph too."""
        if self._watch is not None:
            return self._watch, None
        return self._check_closely(minibatch)

    def keep(self, watch: Watch) -> None:
        """A step has succeeded: the next ones are watched by the same watch."""
        self._watch, self.differs = watch, bool(self.differs)

    def _check_closely(self, minibatch: Minibatch) -> tuple[Watch, float]:
        """Look closely, at copies of the weights, as closures might write to them; also at f(x, y)."""
        watch = Watch([p for group in self._groups for p in group["params"]])
        with ExitStack() as stack:
            for group in self._groups:
                if not getattr(group["oracle"], "copies", True):
                    continue  # memory may not hold a copy of the block
                block = Block(group["name"], tuple(group["params"]))
                stack.enter_context(standing_at(block, block.copies()))
            versions = [p._version for p in watch.params]
            with watch.module_calls():
                first = evaluate(minibatch.loss, self._block)
                second = evaluate(minibatch.loss, self._block)
        check_written(watch.params[: len(versions)], versions)  # behind these are parameters of no group
        check_same(first, second, f"block '{self._block.name}'")
        return watch, second

    def compare(self, graph: float, plain: float, minibatch: Minibatch) -> None:
        """Take note of f(x, y) with a graph and without, at the first step.

        Raises:
            BadInput: they differ by more than rounding.
        """
        same = self._same(graph, plain, minibatch)
        if not same and self.differs is None:  # a state that was loaded keeps to what its run did
            self.differs = True

    def check_again(
        self, watch: Watch, minibatch: Minibatch, graph: float | None, plain: float | None, *, step: int,
        peers: Peers | None,
    ) -> None:  # fmt: skip
        """Evaluate f(x, y) again, where the closures show a sign of a change or it is time to.

        Args:
            watch: of the step's calls.
            minibatch: the step's.
            graph: f(x, y) with a graph, if the step has computed it.
            plain: f(x, y) without one, if the step has.
            step: number of the step.
            peers: other processes, all of which look, or none.

        Raises:
            BadInput: the values of f(x, y) differ.
        """
        due = step % AGAIN == 0
        sign = torch.tensor([float(watch.changed())], dtype=torch.float64)
        if peers is not None:
            peers.sum([sign])
        if not due and not float(sign):
            return
        with watch.keeping_buffers():
            repeated = evaluate(minibatch.loss, self._block)
            if plain is None and repeated != graph:
                plain = evaluate(minibatch.loss, self._block)
        if plain is not None:
            check_same(plain, repeated, f"block '{self._block.name}'")
        if graph is not None and not self._same(graph, repeated, minibatch) and due:
            self.differs = True
        watch.record_checked()

    def _same(self, graph: float, plain: float, minibatch: Minibatch) -> bool:
        # The coarsest number on the way from weights to loss says how far two orders of summation may differ.
        eps = torch.finfo(minibatch.dtype).eps
        for group in self._groups:
            eps = max(eps, torch.finfo(group["params"][0].dtype).eps)
        return same_function(graph, plain, eps)
