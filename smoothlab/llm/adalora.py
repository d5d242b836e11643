"""AdaLoRA's schedule of ranks (Zhang et al. 2023), which peft leaves to the training loop.

Every module starts with rank init_r. From a tenth of the steps on, the singular values that matter least are set to
zero, more and more of them, until at half of the steps target_r are left on average; only these are then trained. A
value's importance is a running mean of |value times gradient|. AdaLoRA's penalty that keeps its factors orthogonal is
not part of the loss that is trained here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SHORTEST = 4
"""Steps of the shortest run in which ranks are given up: the first half of a shorter one has no step to judge by."""
_MEANS = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def _adalora(model: nn.Module) -> Any:
    """AdaLoRA around the model, or None for every other method."""
    inner = model._modules.get("base_model")
    if hasattr(inner, "rankallocator"):
        return inner
    return None


def after_step(model: nn.Module, step: int, total: int) -> None:
    """Judge singular values and set the least important ones to zero; does nothing for other methods than AdaLoRA.

    To be called after the optimizer's update number `step`, counted from 1, of `total`, while the gradients are there.
    """
    inner = _adalora(model)
    if inner is None or total < SHORTEST:
        return
    config = inner.peft_config[inner.trainable_adapter_name]
    # Set anew at every step: peft asks for the length of the run when it attaches, before that is known.
    config.total_step, config.tinit, config.tfinal = total, total // 10, total - total // 2
    config.deltaT = max(1, total // 100)
    inner.update_and_allocate(step)


def state(model: nn.Module) -> dict[str, Tensor]:
    """State of `after_step` beside the parameters, to resume to the bit; empty for other methods."""
    inner = _adalora(model)
    if inner is None:
        return {}
    tensors = {}  # parameters are saved with the weights; these means and the masks are peft's private state
    for kind in _MEANS:
        for name, mean in getattr(inner.rankallocator, kind).items():
            tensors[f"{kind}/{name}"] = mean
    pattern = inner.peft_config[inner.trainable_adapter_name].rank_pattern or {}
    for name, kept in pattern.items():
        tensors[f"pattern/{name}"] = torch.tensor(kept)
    return tensors


def restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Restore what `state` returned."""
    inner = _adalora(model)
    if inner is None:
        return
    device = next(model.parameters()).device
    pattern = {}
    for kind in _MEANS:
        setattr(inner.rankallocator, kind, {})
    for key, tensor in saved.items():
        kind, _, name = key.partition("/")
        if kind == "pattern":
            pattern[name] = tensor.tolist()
        else:
            getattr(inner.rankallocator, kind)[name] = tensor.to(device)
    # None stands for no masking yet: peft looks for a first key, which an empty pattern does not have.
    inner.peft_config[inner.trainable_adapter_name].rank_pattern = pattern or None


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """None: under AdaLoRA the loss depends on no tensor but the parameters."""
    return {}


def settle(model: nn.Module) -> None:
    """Let peft write the adapter as it stands: without the singular values that are 0, with all others.

    Without this call peft leaves out the values that the last masking gave up, which weights of another step may still
    have. A module whose values are all 0 keeps its ranks: peft takes factors of rank 0 for broken ones.
    """
    inner = _adalora(model)
    if inner is None:
        return
    adapter = inner.trainable_adapter_name
    pattern = {}
    for name, p in inner.model.named_parameters():
        nonzero = p.detach().view(-1) != 0
        if f"lora_E.{adapter}" in name and nonzero.any():
            pattern[name] = nonzero.tolist()
    inner.peft_config[adapter].rank_pattern = pattern or None
