"""16-bit weights, float32 arithmetic: each layer widens its own weights, for as long as it computes.

CPUs without units for 16-bit numbers compute with them many times slower than with float32. Here weights take 2 bytes,
and every sum and product is float32's: the model computes, up to rounding, what it would if its weights were held in
float32. Linear layers widen pieces of at most PIECE entries, in the forward and backward pass alike, so that a graph
holds no wide weight; embeddings widen the rows that they look up; all other modules widen their weights as a whole
(norms and biases are small, tables of positions and experts are not). Steps that are kept beside a matrix
(`smoothlab.zeroth.factors`) are added to what is computed with it.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function_unary

from smoothlab.blocks import Block, Loss
from smoothlab.errors import BadInput
from smoothlab.zeroth.factors import factors_of, widened
from smoothlab.zeroth.perturbation import Perturbation
from smoothlab.zeroth.products import PRODUCTS, embedding, linear

PIECE = 1 << 20
"""Entries of a weight that are wide at a time: 4 MiB in float32."""
_LOCAL = threading.local()


def compute_in_float32(model: nn.Module) -> None:
    """Let a model of 16-bit weights compute in float32; weights that are wider stay as they are.

    First derivatives are those of all weights, second ones those of everything that is not held in 16 bits, such as
    the PEFT module that is attached afterwards. Gradients of 16-bit weights are rounded to 16 bits.

    >>> import torch
    >>> from smoothlab.llm.compute import compute_in_float32
    >>> layer = torch.nn.Linear(2, 1, bias=False).bfloat16()
    >>> compute_in_float32(layer)
    >>> layer.weight.dtype, layer(torch.ones(1, 2)).dtype
    (torch.bfloat16, torch.float32)

    Args:
        model: before a PEFT method is attached.
    """
    for module in model.modules():
        converted = isinstance(module, WideningLinear | WideningEmbedding)
        if converted or not any(p is not None and _narrow(p) for p in module._parameters.values()):
            continue
        # Subclasses compute in ways of their own, which the general way widens, too.
        if type(module) is nn.Linear:
            module.__class__ = WideningLinear
        elif type(module) is nn.Embedding:
            module.__class__ = WideningEmbedding
        else:
            _widen_as_a_whole(module)


def computes_in_float32(model: nn.Module) -> bool:
    """Whether `compute_in_float32` was called on the model, or on the one that a PEFT method wraps."""
    return any(isinstance(module, WideningLinear | WideningEmbedding) for module in model.modules())


def check_widened(model: nn.Module, loss: Loss) -> None:
    """Refuse a model that reads a 16-bit weight outside its module, where it is not widened; a few evaluations at most.

    Args:
        model: after `compute_in_float32`.
        loss: computed by it.

    Raises:
        BadInput: names the weight's shape.
    """
    narrow = Block("16-bit weights", tuple(p for p in model.parameters() if _narrow(p)))
    with torch.no_grad():
        loss()  # a model that rescales its weights when it is first called (RWKV) has done so then
    try:
        Perturbation(narrow, layers=model, dtype=torch.float32).check_layers(loss)
    except BadInput as error:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        reason = str(error).partition(": ")[2].partition(", so")[0]
        raise BadInput(
            f"--compute float32 does not fit this model of type {kind} ({reason}): use --dtype float32 without it"
        ) from None


class WideningLinear(nn.Linear):
    """torch.nn.Linear whose weight is 16-bit and whose input and output are not."""

    def forward(self, input: Tensor) -> Tensor:
        """X W^T + b for an input x [..., in]."""
        bias = None
        if self.bias is not None:
            bias = widened(self.bias)
        return widening_linear(input, self.weight, bias)


class WideningEmbedding(nn.Embedding):
    """torch.nn.Embedding whose weight is 16-bit and whose output is float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Rows [..., features] of the weight."""
        return widening_embedding(input, self.weight, self)


def widening_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X W^T + b, of a 16-bit weight W and all else in float32."""
    if has_torch_function_unary(weight):
        product: Tensor = handle_torch_function(widening_linear, (weight,), input, weight, bias)
        return product
    input = input.to(torch.float32)  # some models round what they pass on to their weights' format
    differentiated = weight.requires_grad and torch.is_grad_enabled()
    if differentiated or not _narrow(weight):  # a zeroth-order move is float32 itself
        product = functional.linear(input, weight.to(torch.float32), bias)
    else:
        product = _Product.apply(input, weight, False)  # type: ignore[no-untyped-call]
        product = product if bias is None else product + bias
    factors = factors_of(weight)
    return product if factors is None else factors.plus(product, input)


def widening_embedding(input: Tensor, weight: Tensor, module: nn.Embedding) -> Tensor:
    """Rows of a 16-bit weight in float32, looked up as the module does."""
    if has_torch_function_unary(weight):
        rows: Tensor = handle_torch_function(widening_embedding, (weight,), input, weight, module)
        return rows
    options = (module.padding_idx, module.max_norm, module.norm_type, module.scale_grad_by_freq, module.sparse)
    rows, factors = functional.embedding(input, weight, *options).to(torch.float32), factors_of(weight)
    return rows if factors is None else factors.plus_rows(rows, input)


PRODUCTS[widening_linear] = linear(widening_linear, adds=True)
PRODUCTS[widening_embedding] = embedding(widening_embedding, adds=True)


class _Product(torch.autograd.Function):
    """X W^T, or x W, for a wide x and a narrow constant W; each is the other's derivative, at any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plain: bool) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.plain = plain
        flat = x.reshape(-1, x.shape[-1])
        rows = max(1, PIECE // weight.shape[1])
        if plain:
            out = flat.new_zeros(len(flat), weight.shape[1])
            for i in range(0, len(weight), rows):
                out.addmm_(flat[:, i : i + rows], _wide(weight[i : i + rows]))
        else:
            out = flat.new_empty(len(flat), len(weight))
            for i in range(0, len(weight), rows):
                torch.mm(flat, _wide(weight[i : i + rows]).t(), out=out[:, i : i + rows])
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _Product.apply(gradients[0], weight, not ctx.plain), None, None  # type: ignore[no-untyped-call]


def _widen_as_a_whole(module: nn.Module) -> None:
    """Let a module's own narrow parameters be float32 tensors inside its forward call."""
    replaced: list[dict[str, nn.Parameter]] = []  # by calls, which may be nested

    def widen(module: nn.Module, args: Any) -> None:
        narrow = {name: p for name, p in module._parameters.items() if p is not None and _narrow(p)}
        replaced.append(narrow)
        for name, p in narrow.items():
            # A moved matrix adds its steps as it is converted.
            wide = p.to(torch.float32) if has_torch_function_unary(p) else widened(p)
            module._parameters[name] = wide  # type: ignore[assignment]

    def put_back(module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(replaced.pop())

    module.register_forward_pre_hook(widen)
    module.register_forward_hook(put_back, always_call=True)


def _wide(piece: Tensor) -> Tensor:
    """The piece in float32, in memory that the thread's next piece takes too; new one for each leaves holes."""
    memory = getattr(_LOCAL, "memory", None)
    if memory is None or memory.device != piece.device or memory.numel() < piece.numel():
        memory = _LOCAL.memory = torch.empty(max(PIECE, piece.numel()), dtype=torch.float32, device=piece.device)
    wide: Tensor = memory[: piece.numel()].view(piece.shape)
    return wide.copy_(piece)


def _narrow(p: Tensor) -> bool:
    return p.is_floating_point() and p.dtype.itemsize == 2
