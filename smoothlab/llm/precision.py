"""Models whose code in transformers takes a narrower number format of the weights for granted."""

from typing import Any

import torch
from torch import Tensor, nn

LOWEST = torch.finfo(torch.float32).min
"""Least number of an additive attention mask."""


def fit_float64(model: Any) -> list[str]:
    """Let a model of float64 weights compute; nothing changes for other weights.

    A mixture of experts runs its experts one after the other, because torch's grouped matrix product takes no float64.
    Additive attention masks are cut at float32's least number: transformers' eager attention computes its softmax in
    float32, where float64's least number is -inf, so that a row that sees nothing but padding would be nan (Gemma 2).

    Args:
        model: a transformers model; a PEFT method may be attached before or after.

    Returns:
        What a reader should know, one line for each change.
    """
    if next(model.parameters()).dtype != torch.float64:
        return []
    notes = []
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
        notes.append("experts: computed one after the other, as their grouped product takes no float64")
    if getattr(model.config, "_attn_implementation", None) == "eager":
        for module in model.modules():
            if "attention" in type(module).__name__.lower():
                module.register_forward_pre_hook(_cut_mask, with_kwargs=True)
        notes.append("attention: eager, whose softmax computes in float32 whatever the weights are")
    return notes


def switch_off_rescaling(model: Any) -> list[str]:
    """Let RWKV keep its weights: transformers divides some in place when the model is first evaluated.

    It is meant for float16's range, which no model has here; what is saved after an evaluation would be another model,
    and curvature that of the divided weights. The model computes what it does in train mode; halved activations differ
    by the epsilon of their layer norms.

    Args:
        model: a transformers model that was not evaluated yet.

    Returns:
        What a reader should know; nothing for other models.
    """
    if not getattr(model.config, "rescale_every", 0):
        return []
    model.config.rescale_every = 0
    return ["rescale_every: set to 0, so that an evaluation does not divide the weights"]


def _cut_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dtype != torch.float64:
        return None
    return args, kwargs | {"attention_mask": mask.clamp_min(LOWEST)}
