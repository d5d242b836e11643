"""Penalties that a PEFT method adds to a model's own loss, which then is not the mean loss of the minibatch alone.

In peft 0.21 one accepted method does so, AdaLoRA: where a model is called with labels, it adds orth_reg_weight times
the mean of ||P'P - I||_F over its factors P to the loss. It depends on no example. peft is not needed to see it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from smoothlab.blocks import Loss


def penalty(loss: Loss, module: nn.Module) -> dict[str, str]:
    """Whether the penalty that `module` adds to its own loss is "included" in `loss` or "left out", as rows say it.

    Found by evaluating the loss with another weight of the penalty: two evaluations. Empty for modules that add none.

    Args:
        loss: deterministic loss, computed by the module in one way or another.
        module: the model.
    """
    configs = list(_penalized(module))
    if not configs:
        return {}
    weights = [config.orth_reg_weight for config in configs]
    with torch.no_grad():
        value = float(loss())
        try:
            for config in configs:
                config.orth_reg_weight += 1.0  # far above rounding, whatever the weight is
            heavier = float(loss())
        finally:
            for config, weight in zip(configs, weights, strict=True):
                config.orth_reg_weight = weight
    return {"penalty": "left out" if heavier == value else "included"}


def _penalized(module: nn.Module) -> Iterator[Any]:
    """Configurations of AdaLoRA whose weight of the penalty is above 0."""
    for part in module.modules():
        attributes: dict[str, Any] = vars(part)
        if "rankallocator" in attributes:
            config = attributes["peft_config"][attributes["trainable_adapter_name"]]
            if config.orth_reg_weight > 0:
                yield config
