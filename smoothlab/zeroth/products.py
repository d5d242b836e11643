"""Products with a matrix that is moved along a direction of low rank, while the matrix stays as it is.

A matrix A [m, n] is not moved to A + h Z, Z = U W' / sqrt(r) with U [m, r] and W [n, r]. What h Z adds is added to each
product with it, at 2 r (m + n) instead of 2 m n operations a row x:

    x A'  ->  x A' + (h / sqrt(r)) (x W) U'         linear layers, and logits whose weight is an embedding's
    x A   ->  x A + (h / sqrt(r)) (x U) W'          layers that hold their weight transposed (GPT-2's)
    A[i]  ->  A[i] + (h / sqrt(r)) U[i] W'          embeddings

Where A has a sum of steps beside it (`smoothlab.zeroth.factors`), the functions of `smoothlab.llm.compute` add it, and
so does a conversion to a wider number format; any other product is an error.

Where a minibatch is repeated k times (`smoothlab.zeroth.repetition`), U and W may be of shapes [k, m, r] and [k, n, r]:
the rows of repetition i, which are the i-th of k equal runs of x's rows, are multiplied by A moved along U_i W_i'.

torch asks the class of a tensor before one of its functions reads it, so that every read of a matrix is seen, wherever
it is tied or passed to. A function of `PRODUCTS` computes as above; any other that reads it is an error.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smoothlab.errors import BadInput
from smoothlab.zeroth.factors import factors_of

OTHER = "perturb 'weights' (--perturb weights), which moves a copy of them"
"""What errors recommend instead."""


@dataclass
class Move:
    """Move of a matrix: A + scale U W'.

    Attributes:
        home: the matrix A [m, n].
        u: U' [r, m], or [k, r, m] with factors of their own for each of k repetitions of the minibatch.
        w: W' [r, n], or [k, r, n].
        scale: h / sqrt(r); 0 leaves the matrix where it is.
        label: gives what errors call it.
        ended: whether the matrix is back.
    """

    home: Tensor
    u: Tensor
    w: Tensor
    scale: float
    label: Callable[[], str]
    ended: bool = False


class Moved:
    """Mixed into the class of a matrix while it is moved.

    Attributes:
        move: how.
        home: the matrix A, converted to another number format where the loss does that.
        transposed: whether this is A', a view of the matrix.
    """

    move: Move
    home: Tensor
    transposed = False

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Result of a function of torch where the matrix is moved.

        Raises:
            BadInput: it reads the matrix otherwise than `PRODUCTS` do.
        """
        kwargs = kwargs or {}
        product = PRODUCTS.get(function)
        if product is not None:
            result = product(*args, **kwargs)
            if result is not None:
                return result
        name = getattr(function, "__name__", str(function))
        if name == "__get__":
            name = getattr(getattr(function, "__self__", None), "__name__", name)
        elif name not in TRANSPOSES + CONVERSIONS + FACTS:
            raise _refusal(name, [*args, *kwargs.values()])
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        if not isinstance(result, Tensor) or name in FACTS:
            return result
        matrix = args[0]
        if isinstance(matrix, Moved) and not matrix.move.ended:
            if name in TRANSPOSES and result.shape == args[0].shape[::-1]:
                return _view(matrix, matrix.home, not matrix.transposed)
            if name in CONVERSIONS:
                with torch._C.DisableTorchFunctionSubclass():
                    return _view(matrix, _converted(function, matrix, *args[1:], **kwargs), matrix.transposed)
        raise _refusal(name, args)  # .data and the like


TRANSPOSES = ("T", "mT", "t", "transpose", "swapaxes")
"""Functions of torch that give the transposed view of a matrix."""
CONVERSIONS = ("to", "float", "double", "type", "type_as")
"""Functions of torch that give a matrix in another number format."""
FACTS = (
    "size", "dim", "numel", "nelement", "ndimension", "stride", "storage_offset", "element_size", "get_device",
    "is_contiguous", "is_floating_point", "is_complex", "is_signed", "__len__", "__hash__", "promote_types",
    "result_type", "new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like",
)  # fmt: skip
"""Functions of torch that read a tensor's shape, number format or device, and none of its entries."""


def _refusal(name: str, args: Sequence[Any]) -> BadInput:
    label = "a matrix"  # one in a list of tensors, where it is not looked for
    for arg in args:
        if isinstance(arg, Moved):
            label = arg.move.label()
    return BadInput(
        f"{label} is read by {name}, but perturb 'forward' moves weights in linear layers, products x A and embeddings "
        f"alone: use {OTHER}"
    )


def _view(matrix: Any, home: Tensor, transposed: bool) -> Tensor:
    """A moved matrix in another number format or orientation, which is moved as long as the matrix is."""
    view: Any = home.detach().view(home.shape)
    if transposed:
        view = view.T
    view.move, view.home, view.transposed = matrix.move, home, transposed
    view.__class__ = _moved_class(Tensor)
    return view  # type: ignore[no-any-return]


def _converted(function: Callable[..., Tensor], matrix: Moved, *args: Any, **kwargs: Any) -> Tensor:
    """The matrix in another number format, with its sum of steps where the format holds it."""
    home, factors = function(matrix.home, *args, **kwargs), factors_of(matrix.home)
    if factors is None or home is matrix.home:
        return home
    if home.dtype.itemsize <= matrix.home.dtype.itemsize or matrix.transposed:
        raise _refusal("a conversion", [matrix])
    return factors.added_to(home)


def _parts(matrix: Tensor, *operands: Tensor | None, adds: bool = False) -> tuple[Tensor, Tensor, Tensor, float] | None:
    """A [m, n], U' [r, m], W' [r, n] and the scale of a moved matrix; None if it is not, or others are.

    Raises:
        BadInput: the matrix has a sum of steps, and what computes with it `adds` none.
    """
    if not isinstance(matrix, Moved):
        return None
    for operand in operands:
        if isinstance(operand, Moved):
            return None
    move = matrix.move
    if move.ended:
        return None
    if factors_of(matrix.home) is not None and (matrix.transposed or not adds):
        raise BadInput(
            f"{move.label()} has steps that are kept as factors, which are added where a model computes in float32 "
            "(smoothlab.llm.compute.compute_in_float32): call that before, or use masters in float32"
        )
    if matrix.transposed:
        return matrix.home.T, move.w, move.u, move.scale
    return matrix.home, move.u, move.w, move.scale


def linear(function: Callable[..., Tensor], *, adds: bool = False) -> Callable[..., Tensor | None]:
    """The function that computes x A' + b with a moved A, as `function` does with others; it returns None for these.

    An entry of `PRODUCTS` for a function that is not torch's: it must ask by `torch.overrides.handle_torch_function`.
    `adds` says that it adds the sum of steps that A has.
    """

    def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        parts = _parts(weight, input, bias, adds=adds)
        if parts is None:
            return None
        home, u, w, scale = parts
        return _plus(function(input, home, bias), input, w, u, scale)

    return product


def embedding(function: Callable[..., Tensor], *, adds: bool = False) -> Callable[..., Tensor | None]:
    """As `linear`, for rows A[i] that `function` looks up."""

    def rows(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        parts = _parts(weight, adds=adds)
        if parts is None:
            return None
        home, u, w, scale = parts
        looked_up = function(input, home, *args, **kwargs)
        if not scale:
            return looked_up
        return _added(looked_up, _looked_up(u, input), w, scale)

    return rows


def _looked_up(u: Tensor, numbers: Tensor) -> Tensor:
    """Columns of U' [r, m] with these numbers [...], [r, rows]; of [k, r, m] those of each repetition, [k, r, rows/k].

    Raises:
        BadInput: the numbers are not those of k repetitions.
    """
    if u.dim() == 2:
        return u[:, numbers.flatten()]
    if not numbers.dim() or len(numbers) % len(u):
        raise BadInput(
            f"rows are looked up by numbers of shape {tuple(numbers.shape)}, which {len(u)} repetitions of a minibatch "
            "share: let the loss give position_ids of every row, or use parallel = 1"
        )
    return u.gather(2, numbers.reshape(len(u), 1, -1).expand(-1, u.shape[1], -1))


def _matmul(input: Tensor, other: Tensor) -> Tensor | None:
    parts = _parts(other, input)
    if parts is None:
        return None
    home, u, w, scale = parts
    return _plus(torch.matmul(input, home), input, u, w, scale)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor | None:
    parts = _parts(mat2, mat1, input)
    if parts is None:
        return None
    home, u, w, scale = parts
    return _plus(torch.addmm(input, mat1, home, beta=beta, alpha=alpha), mat1, u, w, alpha * scale)


def _plus(product: Tensor, x: Tensor, right: Tensor, left: Tensor, scale: float) -> Tensor:
    """`product` [..., m] + scale x right' left for x [..., n], `right` [r, n] and `left` [r, m]; [k, ...] likewise."""
    if not scale:
        return product
    flat = in_repetitions(x, right)
    # (right x')', as BLAS is several times slower where the second matrix has few columns, as in x right'.
    if flat.dtype == product.dtype == right.dtype:
        return _added(product, right @ flat.mT, left, scale)
    dtype = torch.promote_types(product.dtype, right.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _added(product, right.to(dtype) @ flat.to(dtype).mT, left, scale)


def _added(product: Tensor, inner: Tensor, left: Tensor, scale: float) -> Tensor:
    """`product` [..., m] + scale inner' left for `inner` [r, rows], summed in the wider of their precisions."""
    several = left.dim() == 3
    if product.dtype == left.dtype and product.is_contiguous():
        rows = in_repetitions(product, left)
        if several:
            rows.baddbmm_(inner.mT, left, alpha=scale)
        else:
            rows.addmm_(inner.mT, left, alpha=scale)
        return product
    dtype = torch.promote_types(product.dtype, left.dtype)
    add = torch.baddbmm if several else torch.addmm
    wide = add(in_repetitions(product.to(dtype), left), inner.to(dtype).mT, left.to(dtype), alpha=scale)
    return wide.view(product.shape).to(product.dtype)


def in_repetitions(x: Tensor, factors: Tensor) -> Tensor:
    """x [..., n] as rows [rows, n] beside `factors` of two dimensions, as [k, rows/k, n] beside those of k repetitions.

    Raises:
        BadInput: the rows are no k equal runs.
    """
    if factors.dim() == 2:
        return x.reshape(-1, x.shape[-1])
    if x[..., 0].numel() % len(factors):
        raise BadInput(
            f"a layer's input of shape {tuple(x.shape)} is not one of {len(factors)} repetitions of a minibatch, as "
            "the model mixes its rows: use parallel = 1"
        )
    return x.reshape(len(factors), -1, x.shape[-1])


PRODUCTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    functional.linear: linear(functional.linear),
    functional.embedding: embedding(functional.embedding),
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.__matmul__: _matmul,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
}
"""Functions that multiply by a matrix or look up its rows, and what computes them with a moved one; None: not so."""


@contextmanager
def moved(params: Sequence[Tensor], moves: Sequence[Move]) -> Iterator[None]:
    """Inside the context products with these matrices are those with moved ones."""
    kinds = [type(p) for p in params]
    try:
        for p, move in zip(params, moves, strict=True):
            p.move, p.home = move, move.home  # type: ignore[attr-defined]
            p.__class__ = _moved_class(type(p))
        yield
    finally:
        for p, kind, move in zip(params, kinds, moves, strict=True):
            move.ended = True  # for views that somebody keeps
            p.__class__ = kind
            for name in ("move", "home"):
                p.__dict__.pop(name, None)


@cache
def _moved_class(kind: type) -> type:
    return type(f"Moved{kind.__name__}", (Moved, kind), {})
