"""Vectors of a model (norms, biases) that have values of their own for each repetition of a minibatch.

A vector b [n] stands for values B [k, n]: the rows of repetition i, the i-th of k equal runs of rows, meet B_i. Linear
layers, layer and RMS norms, sums and products with a vector are computed so; any other function that reads one is an
error. It is the counterpart of `smoothlab.zeroth.products` for what is no matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smoothlab.blocks import Block, standing_at
from smoothlab.errors import BadInput
from smoothlab.zeroth.products import CONVERSIONS, FACTS, in_repetitions


class MovedVector:
    """Mixed into the class of a vector while it stands for several.

    Attributes:
        values: the vectors [k, n], one a repetition.
        label: gives what errors call it.
    """

    values: Tensor
    label: Callable[[], str]

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Result of a function of torch for each repetition with its own vector.

        Raises:
            BadInput: the function is none that is known to read a vector row by row.
        """
        kwargs = kwargs or {}
        compute = FUNCTIONS.get(function)
        first = kwargs.get("input", args[0] if args else None)
        if compute is not None and not (function in NORMS_AND_LAYERS and isinstance(first, MovedVector)):
            return compute(*args, **kwargs)
        name = getattr(function, "__name__", str(function))
        if name == "__get__":
            name = getattr(getattr(function, "__self__", None), "__name__", name)
        vector = next((a for a in [*args, *kwargs.values()] if isinstance(a, MovedVector)), None)
        if name in CONVERSIONS and vector is not None and args[0] is vector:
            return _like(vector, function(vector.values, *args[1:], **kwargs))
        result = None
        if name in FACTS or getattr(function, "__name__", "") == "__get__":
            with torch._C.DisableTorchFunctionSubclass():
                result = function(*args, **kwargs)
        if result is None or isinstance(result, Tensor):  # .data and the like, too
            label = vector.label() if vector is not None else "a vector"
            raise BadInput(f"{label} is read by {name}, which parallel evaluations do not know: use parallel = 1")
        return result


def _like(vector: Any, values: Tensor) -> Any:
    """A vector that stands for these values."""
    stand_in: Any = torch.full((), torch.nan, dtype=values.dtype, device=values.device).expand(values.shape[1:])
    stand_in.values, stand_in.label = values, vector.label
    stand_in.__class__ = _moved_class(Tensor)
    return stand_in


def _elementwise(operation: Callable[..., Tensor]) -> Callable[..., Any]:
    """An operation of a vector with a number, or with rows [..., n] that are k repetitions'."""

    def compute(first: Any, second: Any) -> Any:
        vector, operand = (first, second) if isinstance(first, MovedVector) else (second, first)
        if isinstance(operand, int | float):
            return _like(vector, operation(vector.values, operand))
        values = vector.values
        if isinstance(operand, MovedVector) or operand.dim() < 2 or operand.shape[-1] != values.shape[-1]:
            raise BadInput(
                f"{vector.label()} meets a tensor that is not of rows [..., {values.shape[-1]}], which parallel "
                "evaluations do not know: use parallel = 1"
            )
        return operation(in_repetitions(operand, values[:, None]), values[:, None]).view(operand.shape)

    return compute


_PLUS, _TIMES = _elementwise(torch.add), _elementwise(torch.mul)


def _linear(input: Tensor, weight: Tensor, bias: Any = None) -> Any:
    return _PLUS(functional.linear(input, weight), bias)  # which asks a moved weight


def _addmm(input: Any, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product, bias = torch.mm(mat1, mat2), input
    if alpha != 1:
        product = product * alpha
    if beta != 1:
        bias = _TIMES(bias, beta)
    return _PLUS(product, bias)


def _affine(normalized: Tensor, weight: Any, bias: Any) -> Any:
    """`normalized` times weight, plus bias, where they are given."""
    if weight is not None:
        normalized = normalized * weight
    if bias is not None:
        normalized = normalized + bias
    return normalized


def _layer_norm(input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    return _affine(functional.layer_norm(input, normalized_shape, eps=eps), weight, bias)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    return _affine(functional.rms_norm(input, normalized_shape, eps=eps), weight, None)


NORMS_AND_LAYERS = (functional.linear, functional.layer_norm, functional.rms_norm)
"""Functions whose first argument must be rows."""
FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: _linear,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _PLUS),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _TIMES),
}
"""Functions that read a vector row by row, and what computes them where repetitions have vectors of their own."""


@contextmanager
def moved_vectors(
    params: Sequence[Tensor], values: Sequence[Tensor], labels: Sequence[Callable[[], str]]
) -> Iterator[None]:
    """Inside the context these vectors [n] stand for `values` [k, n]; functions that ignore their class read NaN."""
    if not params:
        yield
        return
    kinds = [type(p) for p in params]
    # One NaN seen through strides of 0: a vector of any length that takes no memory.
    blanks = [torch.full((), torch.nan, dtype=v.dtype, device=v.device).expand(v.shape[1:]) for v in values]
    with standing_at(Block("part", tuple(params)), blanks):
        try:
            for p, vectors, label in zip(params, values, labels, strict=True):
                p.values, p.label = vectors, label  # type: ignore[assignment,method-assign,attr-defined]
                p.__class__ = _moved_class(type(p))
            yield
        finally:
            for p, kind in zip(params, kinds, strict=True):
                p.__class__ = kind
                for name in ("values", "label"):
                    p.__dict__.pop(name, None)


@cache
def _moved_class(kind: type) -> type:
    return type(f"Moved{kind.__name__}", (MovedVector, kind), {})
