"""A loss and its gradients at the current parameters, and plain words for what autograd cannot do with a model."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from smoothlab.blocks import Block, Loss, by_name, flatten
from smoothlab.errors import BadInput
from smoothlab.hessian.loss_graph import read_graph
from smoothlab.shift import in_passes


def finite(loss: Tensor) -> Tensor:
    """`loss`, which must be a finite scalar with a graph.

    Raises:
        BadInput: it is not.
    """
    if loss.dim() != 0:
        raise BadInput(f"the loss has shape {tuple(loss.shape)}: return the mean over the minibatch, a scalar")
    if not loss.requires_grad:
        raise BadInput("the loss has no graph: compute it with gradients on, from parameters that require them")
    if not torch.isfinite(loss):
        raise BadInput(
            f"the loss is {float(loss.detach())}: lower the learning rate, or look at the data of this batch"
        )
    return loss


def block_gradients(loss: Tensor, blocks: dict[str, Block], *, create_graph: bool) -> dict[str, list[Tensor]]:
    """Gradients by block: 0 for a parameter that the loss does not reach, an error for a whole block of them."""
    params = [p for block in blocks.values() for p in block.params]
    grads = iter(torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True))
    gradients: dict[str, list[Tensor]] = {}
    for name, block in blocks.items():
        parts = list(itertools.islice(grads, len(block.params)))
        # One unused parameter is common (a head beside the one in use); a whole block of them is a mistake.
        if parts == [None] * len(parts):
            raise BadInput(
                f"the loss does not depend on block '{name}': leave it out, or check requires_grad and the model "
                "(reentrant gradient checkpointing hides parameters: switch it off; so do Reformer's reversible layers)"
            )
        gradients[name] = []
        for p, g in zip(block.params, parts, strict=True):
            if g is None:
                g = torch.zeros_like(p)
            gradients[name].append(g)
            if not torch.isfinite(g.detach().sum()):  # one pass, and no memory as isfinite(g) would take
                raise BadInput(
                    f"the gradient of block '{name}' is not finite although the loss is: look for a root, a norm or a "
                    "division at 0, or use a wider --dtype"
                )
    return gradients


def gradient(loss: Loss, blocks: dict[str, Block]) -> tuple[float, dict[str, Tensor]]:
    """(f, {block: flat gradient [dim]}) at the current parameters; `.grad` is not touched."""
    with explained_errors():
        value = finite(loss())
        parts = block_gradients(value, blocks, create_graph=False)
    return float(value.detach()), {name: flatten(g) for name, g in parts.items()}


def difference_quotient(block: Block, ends: Sequence[Tensor], starts: Sequence[Tensor], move: float) -> Tensor:
    """(end - start) / move, flat [dim], of a gradient's parts by parameter at both ends of a move.

    It is formed part by part, without a second vector of the block's size.
    """

    def quotient(out: Tensor, end: Tensor, start: Tensor) -> None:
        torch.sub(end, start, out=out).mul_(1 / move)

    result = ends[0].new_empty(block.dim)
    flat_ends, flat_starts = ([part.reshape(-1) for part in parts] for parts in (ends, starts))
    in_passes(quotient, block.split(result), flat_ends, flat_starts)
    return result


class LossAtPoint:
    """A loss with the gradients of blocks and its graph, at the current parameters; costs one gradient.

    Args:
        loss: deterministic loss of one minibatch.
        blocks: blocks to differentiate, disjoint.

    Attributes:
        repeats: whether a second evaluation has given the same loss (`line_check.check_repeats`).
        loss_rounding: rounding error of one evaluation of the loss; None until a check has had to measure it
            (`line_check.LineCheck`).

    Raises:
        BadInput: the loss is not finite, or does not depend on a block.
    """

    differences: ClassVar[bool] = False
    repeats: bool = False
    loss_rounding: float | None = None

    def __init__(self, loss: Loss, blocks: Sequence[Block]) -> None:
        self.blocks = by_name(blocks)
        self._loss = loss
        parts = self._differentiate(create_graph=False)
        self.gradients: dict[str, Tensor] = {name: flatten(g) for name, g in parts.items()}

    def _differentiate(self, *, create_graph: bool) -> dict[str, list[Tensor]]:
        """Sets the loss and its graph; the parts of its gradient by block."""
        with explained_errors():
            value = finite(self._loss())
            self.graph = read_graph(value)  # first, as differentiating frees what it reads
            parts = block_gradients(value, self.blocks, create_graph=create_graph)
        self.loss = float(value.detach())
        return parts

    def evaluate(self) -> float:
        """The loss where the parameters are now.

        Gradients stay on: torch's modules may compute another function without (nn.TransformerEncoder does).
        """
        return float(self._loss().detach())


@contextmanager
def explained_errors() -> Iterator[None]:
    """Inside the context an error that a model makes autograd raise becomes one line with what to do instead.

    Raises:
        BadInput: instead of an error that is known; all others pass.
    """
    try:
        yield
    except BadInput:
        raise
    except (RuntimeError, TypeError) as error:
        message = " ".join(str(error).split())
        for words, fix in _KNOWN.items():
            if words.lower() in message.lower():
                raise BadInput(f"{fix} (torch says: {message[:160]})") from error
        raise


_NO_SECOND = (
    "no second derivative: load the model with attn_implementation='eager', or use central differences "
    "(product='central')"
)
_KNOWN = {
    "incompatible with .grad()": (
        "the model recomputes activations by reentrant checkpointing, through which no gradient can be taken apart "
        "from .backward(): measure in eval mode, where transformers does not recompute, or use "
        "gradient_checkpointing_enable({'use_reentrant': False})"
    ),
    "torch.utils.checkpoint": (
        "the model recomputes activations, and they came out different: measure in eval mode, where transformers does "
        "not recompute, switch gradient checkpointing off, or use central differences (product='central')"
    ),
    "Inference tensors cannot be saved for backward": (
        "the model or the minibatch was made under torch.inference_mode(): make them outside of it"
    ),
    "storage of size 0": (
        "the model's weights are sharded (fully_shard) and let go after its forward pass, so that a gradient has no "
        "graph to go through once more: use central differences (product='central', FiniteDifferenceHessian)"
    ),
    "modified by an inplace operation": (
        "the model writes to numbers that its backward pass needs, as recurrent models do to their state: call it with "
        "use_cache=False"
    ),
    "Expected mat_a to be": (
        "an operation of the model, such as a mixture of experts, does not take this precision: convert the model to "
        "float32 (--dtype float32)"
    ),
    "expected scalar type": (
        "an operation of the model does not take this precision: convert the model to float32 (--dtype float32)"
    ),
    "derivative for": _NO_SECOND,
    "double backward": _NO_SECOND,
    "differentiate twice": (
        "no second derivative, because an operation of the model is marked once_differentiable: use central "
        "differences (product='central')"
    ),
}
"""What torch's error holds -> what to do."""
