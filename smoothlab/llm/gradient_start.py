"""LoRA-GA: a LoRA module that starts from the leading singular vectors of the first gradient.

For a layer y = W x, G = df/dW = U S V' [out, in], singular values in falling order, and LoRA's scaling s = alpha / r,

    A_0 = c V[:, :r]',   B_0 = c U[:, r:2r],   c = out^(1/4) / sqrt(gamma),   W <- W - s B_0 A_0,

so that W + s B A is the model's own W at the start. One SGD step of rate eta on A and B then changes it by

    -eta s^2 (B_0 B_0' G + G A_0' A_0) + O(eta^2) = -eta s^2 c^2 G_2r + O(eta^2),

where G_2r is the best approximation of G of rank 2r: the step of full fine-tuning, as far as rank 2r reaches.

Source: Wang, Yu, Li, "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", arXiv:2407.05000 (2024), Theorem 3.1
and Algorithm 1, whose factors, as those of the authors' code, hold singular vectors alone. peft 0.21's own
initialization "lora_ga" multiplies B_0 by singular values and scales B_0 alone, which gives up the approximation
(findings/peft_lora_ga_start.sh shows both), and is therefore not used here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.blocks import fixed_loss
from smoothlab.errors import BadInput

GAMMA = 16.0
"""gamma of the scale c, as in the authors' code."""
EXACT_UP_TO = 1024
"""Smaller side of a gradient up to which all singular vectors are computed: beyond, 4r of them, by subspace iteration.

At 576 x 576 the exact ones take a tenth of a second; at 4096 x 4096 a minute a layer.
"""


def leading_factors(gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """LoRA-GA's A_0 [rank, in] and B_0 [out, rank] from the gradient [out, in] of a layer's weight.

    >>> import torch
    >>> from smoothlab.llm.gradient_start import leading_factors
    >>> a, b = leading_factors(torch.diag(torch.tensor([1.0, 4.0, 3.0, 2.0])), rank=1)
    >>> a.abs().argmax().item(), b.abs().argmax().item()
    (1, 2)
    """
    matrix = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if min(matrix.shape) <= EXACT_UP_TO:
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, _, v = torch.svd_lowrank(matrix, q=min(4 * rank, min(matrix.shape)), niter=4)
        vh = v.T
    scale = len(matrix) ** 0.25 / GAMMA**0.5
    return scale * vh[:rank], scale * u[:, rank : 2 * rank]


def start_from_gradient(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], method: str = "lora-ga", *, plain_where_zero: bool = False
) -> None:
    """Let LoRA modules that were just attached start from the gradient of a minibatch; costs one gradient.

    A plain LoRA moves the base model's weights by -s B_0 A_0; `boft-ga` keeps A_0 and B_0 as constants instead.

    Args:
        model: a PeftModel with LoRA modules whose B is still 0.
        loss: mean loss of a minibatch, as a function of the model.
        method: name of the method in messages.
        plain_where_zero: leave layers whose gradient is zero plain LoRA modules, instead of refusing them.

    Raises:
        BadInput: a layer is not linear, too small for 2r singular vectors, or has a gradient that is zero or not
            finite.
    """
    layers = dict(_lora_layers(model))
    weights = {name: _weight(layer, name, method) for name, layer in layers.items()}
    gradients = _gradients(model, loss, list(weights.values()))
    with torch.no_grad():
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
            if plain_where_zero and not gradient.any():
                continue
            _check(gradient, name, method, layer.r[layer.active_adapters[0]])
            _start(layer, gradient)


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora.layer import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix("base_model.model."), module


def _weight(layer: Any, name: str, method: str) -> Tensor:
    """The weight of an adapted layer, which must be that of a linear map."""
    from transformers.pytorch_utils import Conv1D

    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear | Conv1D):
        raise BadInput(f"--peft {method} fits linear layers alone, and {name} is {type(base).__name__}: leave it out")
    weight: Tensor = base.weight
    if not weight.is_floating_point():
        raise BadInput(f"--peft {method} needs the gradient of {name}, which is quantized: load the model unquantized")
    return weight


def _gradients(model: nn.Module, loss: Callable[[nn.Module], Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Gradients of the loss by these weights alone, in eval mode; flags stay as they were."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            value = fixed_loss(lambda: loss(model), model)()
            return list(torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True))
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def _check(gradient: Tensor, name: str, method: str, rank: int) -> None:
    if min(gradient.shape) < 2 * rank:
        raise BadInput(
            f"--rank {rank} with --peft {method}: {name} is {gradient.shape[0]} x {gradient.shape[1]} and has fewer "
            f"than {2 * rank} singular vectors: use --rank {min(gradient.shape) // 2} or less"
        )
    if not bool(torch.isfinite(gradient).all()):
        raise BadInput(f"--peft {method}: the gradient of {name} is not finite at the start: use a wider --dtype")
    if not gradient.any():
        raise BadInput(
            f"--peft {method} is undefined where the first gradient is zero, as that of {name} is: use another "
            "minibatch (--seed), or --peft lora"
        )


def _start(layer: Any, gradient: Tensor) -> None:
    """Write LoRA-GA's factors into a layer, which computes what it did before."""
    adapter = layer.active_adapters[0]
    if layer.fan_in_fan_out:  # Conv1D holds W'
        gradient = gradient.T
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    for factor, value in zip((a, b), leading_factors(gradient, layer.r[adapter]), strict=True):
        factor.copy_(value)
    if hasattr(layer, "keep_start"):
        layer.keep_start(adapter)
        return
    base = layer.get_base_layer().weight
    base.sub_(layer.get_delta_weight(adapter).to(base.dtype))  # of the factors as they were rounded
