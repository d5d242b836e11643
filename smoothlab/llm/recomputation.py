"""A function that keeps its inputs alone for the backward pass, and for the backward pass of that one, too.

`torch.utils.checkpoint` computes a function again in the backward pass and keeps nothing of it before. Where that
backward pass is differentiated in turn, as exact Hessian products do, what it computes is kept, which of a softmax over
a vocabulary are several tables. Here the gradient is a function of the same kind: it keeps its inputs, and a product
computes value and gradient again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), computed again wherever a first or second derivative asks for it.

    A third derivative is right, too, and keeps what it needs.

    Args:
        function: gives the same result for the same inputs, and depends on no other tensor that is differentiated.
        inputs: all that it is differentiated by.
    """
    result: Tensor = _Value.apply(function, *inputs)  # type: ignore[no-untyped-call]
    return result


def depends_only_on(result: Tensor, inputs: tuple[Tensor, ...]) -> bool:
    """Whether autograd's graph of a result leads to no leaf but through the inputs."""
    known = {id(tensor) for tensor in inputs}
    ends = {tensor.grad_fn for tensor in inputs if tensor.grad_fn is not None}
    ahead, seen = [result.grad_fn], set()
    while ahead:
        node: Any = ahead.pop()
        if node is None or node in seen or node in ends:
            continue
        seen.add(node)
        if hasattr(node, "variable") and id(node.variable) not in known:
            return False
        ahead += [before for before, _ in node.next_functions]
    return True


class _Value(torch.autograd.Function):
    """The function, whose derivative is `_Gradients`."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        needed = ctx.needs_input_grad[1:]
        gradients = iter(_Gradients.apply(ctx.function, needed, upstream, *ctx.saved_tensors))  # type: ignore[no-untyped-call]
        return (None, *(next(gradients) if need else None for need in needed))


class _Gradients(torch.autograd.Function):
    """J' upstream for the function's Jacobian J by the inputs that are asked for."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], needed: tuple[bool, ...], upstream: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.function, ctx.needed = function, needed
        ctx.save_for_backward(upstream, *inputs)
        with torch.enable_grad():
            copies = [tensor.detach().requires_grad_(need) for tensor, need in zip(inputs, needed, strict=True)]
            value = function(*copies)
        return torch.autograd.grad(value, _chosen(copies, needed), upstream, materialize_grads=True)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> Any:
        upstream, *inputs = ctx.saved_tensors
        again = torch.is_grad_enabled()
        if again:  # derivatives by views are partial ones, although one input may have been computed from another
            upstream, *inputs = (tensor.view_as(tensor) for tensor in (upstream, *inputs))
        else:  # of what is computed here nothing is kept
            upstream = upstream.detach().requires_grad_()
            inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(inputs, ctx.needed, strict=True)]
        with torch.enable_grad():
            value, chosen = ctx.function(*inputs), _chosen(inputs, ctx.needed)
            gradients = torch.autograd.grad(value, chosen, upstream, create_graph=True, materialize_grads=True)
        pairs = [(g, v) for g, v in zip(gradients, directions, strict=True) if g.requires_grad]
        by = [upstream, *chosen] if upstream.requires_grad else chosen
        second = iter(torch.autograd.grad(
            [g for g, _ in pairs], by, [v for _, v in pairs], create_graph=again, allow_unused=True
        ))  # fmt: skip
        along_upstream = next(second) if upstream.requires_grad else None
        return (None, None, along_upstream, *(next(second) if need else None for need in ctx.needed))


def _chosen(tensors: list[Tensor], needed: tuple[bool, ...]) -> list[Tensor]:
    return [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
