"""PEFT methods, attached so that the base model x and the module y train jointly."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from smoothlab.errors import BadInput
from smoothlab.llm.parts import unfreeze

REFUSED = {
    "hra": "its base weights move the loss but get no gradient from autograd",
    "shira": "its base weights move the loss but get no gradient from autograd",
}
"""Methods whose gradients or Hessian products are not those of the loss, with the reason."""


def _lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**({"task_type": "SEQ_CLS", "r": 16, "lora_alpha": 32} | options))


def _prompt(**options: Any) -> Any:
    from peft import PromptTuningConfig

    return PromptTuningConfig(**({"task_type": "SEQ_CLS", "num_virtual_tokens": 10} | options))


def _prefix(**options: Any) -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(**({"task_type": "SEQ_CLS", "num_virtual_tokens": 5} | options))


ADAPTERS: dict[str, Callable[..., Any]] = {"lora": _lora, "prompt": _prompt, "prefix": _prefix}
"""Name -> function that builds the peft config, with the paper's defaults; keyword options override them."""


def attach(model: nn.Module, method: str, *, seed: int, **options: Any) -> nn.Module:
    """The model with the method's module y, initialized by `seed`; all live parameters of x and y require gradients."""
    import torch
    from peft import get_peft_model

    if method == "none":
        unfreeze(model)
        return model
    if method in REFUSED:
        raise BadInput(f"--peft {method} is refused: {REFUSED[method]}; use {', '.join(ADAPTERS)}")
    if method not in ADAPTERS:
        near = difflib.get_close_matches(method, ADAPTERS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput(f"--peft {method} is unknown: {hint}use none, {', '.join(ADAPTERS)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, ADAPTERS[method](**options))
    unfreeze(wrapped)
    return wrapped.eval()
