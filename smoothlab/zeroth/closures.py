"""Requirements of a zeroth-order step on its closure: one function of the weights, and nothing else.

A step differences values of the loss that it computes one after the other, some with a graph and most without. A
closure that draws random numbers, writes to weights or buffers, or takes another way without a graph gives values of
several functions, and their difference divided by mu may be anything. The first step looks closely. A later one looks
again where there is a sign of a change, which costs nothing to see: random numbers were drawn that were not drawn
before, a module went from training to evaluation or back, a buffer was written to. Every `AGAIN`-th
step looks without a sign, too.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from smoothlab.blocks import Block, Loss
from smoothlab.errors import BadInput

AGAIN = 128
"""Steps between two looks without a sign: at most two evaluations in 128 steps of at least two."""

ROUNDING = 1000.0
"""Rounding errors, in units of eps max(1, |f|), that a loss may differ by with and without a graph: n operations that
are rounded in another order differ by about sqrt(n) eps, and a value of a loss is the end of a million and more."""
COARSEST = 0.02
"""The same in units of max(1, |f|) for 16-bit numbers, whose eps times 1,000 would allow anything."""

Signs = tuple[Any, ...]


class Watch:
    """Watches the calls of a closure, the modules that it runs, and the tensors of these.

    Args:
        params: parameters of all groups.

    Attributes:
        params: these, and then the other ones of the modules.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        self._modules: list[nn.Module] = []
        self._buffers: list[Tensor] = []
        self._buffer_names: list[str] = []
        self._states: list[tuple[Tensor, Tensor]] = []
        self._checked_signs: Signs | None = None
        self._device = self.params[0].device

    @contextmanager
    def module_calls(self) -> Iterator[None]:
        """Inside the context the closure is called for the first time, and modules become known as they are run.

        Raises:
            BadInput: one rewrites its weights when it is run, which it is then not; or buffers are changed, which are
                put back.
        """
        # By identity: tensors compare entry by entry, and tied ones must be watched once.
        ids = set(map(id, self.params))
        values: list[Tensor] = []

        def register(module: nn.Module) -> None:
            for m in module.modules():  # also those within a compiled one
                if id(m) in ids:
                    continue
                ids.add(id(m))
                self._modules.append(m)
                for p in m.parameters(recurse=False):
                    if id(p) not in ids:
                        ids.add(id(p))
                        self.params.append(p)
                for name, buffer in m.named_buffers(recurse=False):
                    if id(buffer) not in ids:
                        ids.add(id(buffer))
                        self._buffers.append(buffer)
                        self._buffer_names.append(f"{name} of {type(m).__name__}")
                        # The module has not run yet: this is the value that a change is seen by, and undone with.
                        values.append(buffer.detach().clone())

        with module_calls(register):
            yield
        self._check_buffers(values)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Inside the context the closure is called, once for all of its parts."""
        before = self._random_state()
        yield
        self._states.append((before, self._random_state()))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside the context the calls of one step are made.

        Raises:
            BadInput: they wrote to parameters.
        """
        self._states = []
        before, self._buffers_before = versions(self.params), versions(self._buffers)
        yield
        check_written(self.params, before)

    def changed(self) -> bool:
        """Whether the calls of the step showed another behavior than what was looked at last."""
        return self._signs() != self._checked_signs

    def record_checked(self) -> None:
        """Record that the behavior of the step's calls has been checked."""
        self._checked_signs = self._signs()

    def _signs(self) -> Signs:
        # A closure that sets its own seed ends each later call where it began, and has then drawn nothing new.
        drew = all(not torch.equal(before, after) for before, after in self._states)
        written = self._buffers_before != versions(self._buffers)
        return drew, written, tuple(m.training for m in self._modules)

    def _random_state(self) -> Tensor:
        state = torch.get_rng_state()
        if self._device.type == "cuda":  # dropout on a GPU draws there, but a closure may draw on the CPU as well
            state = torch.cat([state, torch.cuda.get_rng_state(self._device)])
        return state

    @contextmanager
    def keeping_buffers(self) -> Iterator[None]:
        """Inside the context the closure is called for a look.

        Raises:
            BadInput: buffers are then other than before; they are put back.
        """
        values = [buffer.detach().clone() for buffer in self._buffers]
        yield
        self._check_buffers(values)

    def _check_buffers(self, values: Sequence[Tensor]) -> None:
        changed = []
        for name, buffer, value in zip(self._buffer_names, self._buffers, values, strict=True):
            # NaN differs from itself, and a buffer that holds one need not have changed.
            if buffer.shape != value.shape or not torch.equal(buffer.nan_to_num(), value.nan_to_num()):
                buffer.data = value
                changed.append(name)
        if changed:
            raise BadInput(
                f"the loss changes the buffer {changed[0]} whenever it is computed, a few times a step and away from "
                "the weights: put the module into eval mode, or give step() smoothlab.blocks.fixed_loss(closure, "
                "module, train=True), which keeps buffers"
            )


@contextmanager
def module_calls(on_module: Callable[[nn.Module], None] = lambda module: None) -> Iterator[None]:
    """Inside the context `on_module` is called with each module that is about to be run.

    Raises:
        BadInput: one rewrites its weights when it is run; it is then not run.
    """

    def check(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise BadInput(
                f"{type(module).__name__}(max_norm={module.max_norm:g}) of shape {tuple(module.weight.shape)} shortens "
                "rows of its weight whenever it is run, so that a loss is not one at the weights as they are: set its "
                "max_norm to None, and shorten them after the step"
            )
        on_module(module)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using `torch.compile")  # sees global hooks twice, harmless here
        # A global hook sees every module that is run, also those that no group has a parameter of.
        hook = register_module_forward_pre_hook(check)
        try:
            yield
        finally:
            hook.remove()


class NotFinite(BadInput):
    """A loss is NaN or infinite.

    Attributes:
        value: the loss.
    """

    def __init__(self, value: float, name: str) -> None:
        super().__init__(f"the loss on block '{name}' is {value}: lower mu or the learning rate, or look at the data")
        self.value = value


def evaluate(loss: Loss, block: Block) -> float:
    """The loss as a number.

    Raises:
        BadInput: it is no scalar; `NotFinite` if it is no number.
    """
    with torch.no_grad():
        value = scalar(loss(), block)
    return finite(float(value), block)


def scalar(value: object, block: Block) -> Tensor:
    """The value that a closure returned, if it is a scalar.

    Raises:
        BadInput: it is none.
    """
    if isinstance(value, Tensor) and value.dim() == 0:
        return value
    fault = f"is a {type(value).__name__}"
    if isinstance(value, Tensor):
        fault = f"has shape {tuple(value.shape)}"
    raise BadInput(f"the loss on block '{block.name}' {fault}: return the mean over the minibatch, a scalar")


def finite(value: float, block: Block) -> float:
    """The value of a loss, if it is a number.

    Raises:
        NotFinite: it is none.
    """
    if not math.isfinite(value):
        raise NotFinite(value, block.name)
    return value


def same_function(graph: float, plain: float, eps: float) -> bool:
    """Whether a loss has the same value with a graph and without, to the bit; `eps` of the numbers that made it.

    Raises:
        BadInput: it differs by more than rounding.
    """
    if graph == plain:
        return True
    allowed = min(ROUNDING * eps, COARSEST) * max(1.0, abs(graph), abs(plain))
    if not abs(graph - plain) <= allowed:  # NaN compares false, and is refused so
        raise BadInput(
            f"the loss is {graph!r} with a graph and {plain!r} without (torch.no_grad) at the same weights, so that "
            "both oracles would see different functions: turn off what is computed otherwise without gradients, for "
            "nn.TransformerEncoder by torch.backends.mha.set_fastpath_enabled(False)"
        )
    return False


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """Numbers of writes to each tensor that autograd has counted; writing to `.data` is not counted."""
    return [t._version for t in tensors]


def check_written(params: Sequence[Tensor], before: Sequence[int]) -> None:
    """Refuse what has written to parameters since they had these version numbers.

    Raises:
        BadInput: a loss has.
    """
    for p, version in zip(params, before, strict=True):
        if p._version != version:
            raise BadInput(
                f"the loss writes to a parameter of shape {tuple(p.shape)} while it is computed, so that its values "
                "are not those at one point: take this out of the forward pass (max_norm of embeddings, clamping, "
                "renormalizing), and do it after the step"
            )


def check_same(first: float, second: float, where: str) -> None:
    """Refuse two values of a loss that was computed twice at the same weights.

    Raises:
        BadInput: they differ.
    """
    if first != second:
        raise BadInput(
            f"the loss on {where} gives {first!r} and {second!r} at the same weights: make it deterministic (dropout "
            "off or its mask fixed, one minibatch)"
        )
