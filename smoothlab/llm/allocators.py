"""What PEFT methods do after an optimizer's step, as one `smoothlab.trainer.Allocator` for all of them.

AdaLoRA allocates ranks, `boft-ga` moves its weights, and every other method does nothing.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from smoothlab.llm import adalora, mixing

_PARTS = (adalora, mixing)


def after_step(model: nn.Module, step: int, total: int) -> None:
    """Act after update number `step`, counted from 1, of `total`."""
    for part in _PARTS:
        part.after_step(model, step, total)


def state(model: nn.Module) -> dict[str, Tensor]:
    """What the next call depends on beside the parameters."""
    return adalora.state(model) | mixing.state(model)


def restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Load what `state` returned; an empty mapping is the state before step 0."""
    for part in _PARTS:
        part.restore(model, saved)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that are changed beside the parameters, and that the loss depends on."""
    return adalora.buffers(model) | mixing.buffers(model)


def settle(model: nn.Module) -> None:
    """Update the model's own description after weights were copied in."""
    for part in _PARTS:
        part.settle(model)
