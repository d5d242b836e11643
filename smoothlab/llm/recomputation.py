"""A function that keeps only its inputs for the backward pass, and for the derivative of the backward pass.

`torch.utils.checkpoint` computes a function again in the backward pass and keeps none of its intermediate results
before. Where that backward pass is differentiated in turn, as exact Hessian products do, its own intermediate results
are kept: several tables for a softmax over a vocabulary. Here the gradient is a function of the same kind: it keeps its
inputs, and a product computes value and gradient again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), computed again wherever a first or second derivative asks for it.

    Third derivatives are right, too, and keep their intermediate results.

    Args:
        function: gives the same result for the same inputs, and depends on no other tensor that is differentiated.
        inputs: all that it is differentiated by.
    """
    result: Tensor = _Value.apply(function, *inputs)  # type: ignore[no-untyped-call]
    return result


def depends_only_on(result: Tensor, inputs: tuple[Tensor, ...]) -> bool:
    """Whether every leaf in autograd's graph of a result is one of the inputs, or is reached through one of them."""
    allowed_ids = {id(tensor) for tensor in inputs}
    input_nodes = {tensor.grad_fn for tensor in inputs if tensor.grad_fn is not None}
    unvisited, visited = [result.grad_fn], set()
    while unvisited:
        node: Any = unvisited.pop()
        if node is None or node in visited or node in input_nodes:
            continue
        visited.add(node)
        if hasattr(node, "variable") and id(node.variable) not in allowed_ids:
            return False
        unvisited += [parent for parent, _ in node.next_functions]
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
        creates_graph = torch.is_grad_enabled()
        # Derivatives by views are partial ones, although one input may have been computed from another.
        if creates_graph:
            upstream, *inputs = (tensor.view_as(tensor) for tensor in (upstream, *inputs))
        else:  # nothing that is computed here is kept
            upstream = upstream.detach().requires_grad_()
            inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(inputs, ctx.needed, strict=True)]
        with torch.enable_grad():
            value, chosen = ctx.function(*inputs), _chosen(inputs, ctx.needed)
            gradients = torch.autograd.grad(value, chosen, upstream, create_graph=True, materialize_grads=True)
        pairs = [(g, v) for g, v in zip(gradients, directions, strict=True) if g.requires_grad]
        variables = [upstream, *chosen] if upstream.requires_grad else chosen
        second = iter(torch.autograd.grad(
            [g for g, _ in pairs], variables, [v for _, v in pairs], create_graph=creates_graph, allow_unused=True
        ))  # fmt: skip
        along_upstream = next(second) if upstream.requires_grad else None
        return (None, None, along_upstream, *(next(second) if need else None for need in ctx.needed))


def _chosen(tensors: list[Tensor], needed: tuple[bool, ...]) -> list[Tensor]:
    return [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
