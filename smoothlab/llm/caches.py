"""A model's cache of keys and values, by either name: transformers 5.24 renamed `past_key_values` to `cache`.

transformers takes the argument's old name with a warning until 5.40. peft up to 0.21.2 gives prefixes by the old name,
and raises ValueError at classifiers whose forward pass does not list it.
"""

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

CACHED = ("PREFIX_TUNING", "CARTRIDGE")
"""Types of peft whose virtual tokens are keys and values, which the model takes as its cache."""
_OLD, _NEW = "past_key_values", "cache"


def cache_argument(model: Any) -> str:
    """The name of the argument by which a model's forward pass takes keys and values of earlier positions."""
    return _NEW if _NEW in inspect.signature(model.forward).parameters else _OLD


def cache_of(outputs: Any) -> Any:
    """The keys and values among a model's outputs, whatever transformers' version calls them."""
    cache = getattr(outputs, _NEW, None)
    return getattr(outputs, _OLD) if cache is None else cache


def accept_past_key_values(wrapped: Any) -> None:
    """Let peft give its prefix to a model that takes keys and values as `cache`.

    `attach` and `HybridTrainer` do it; a model that `PeftModel.from_pretrained` loads needs it before its first forward
    pass. It changes this model alone, and nothing where the PEFT method has no prefix or transformers is older than
    5.24.

    Args:
        wrapped: a PeftModel.
    """
    if wrapped.active_peft_config.peft_type not in CACHED:
        return
    base = wrapped.get_base_model()
    # Where a classifier takes no cache itself, peft calls the model below its head.
    for module in (base, base.get_submodule(wrapped.transformer_backbone_name)):
        parameters = inspect.signature(module.forward).parameters
        if _NEW in parameters and _OLD not in parameters:
            # A bound method, unlike a closure, follows the module when that is copied.
            module.forward = MethodType(_with_old_name(type(module).forward), module)


@functools.cache
def _with_old_name(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A class's forward pass that lists `past_key_values` too, and takes it as `cache`."""

    @functools.wraps(forward)
    def with_old_name(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _OLD in kwargs:
            kwargs[_NEW] = kwargs.pop(_OLD)
        return forward(self, *args, **kwargs)

    plain = inspect.signature(forward)
    old = inspect.Parameter(_OLD, inspect.Parameter.KEYWORD_ONLY, default=None)
    listed = [*plain.parameters.values()]
    end = len(listed) - (listed[-1].kind is inspect.Parameter.VAR_KEYWORD)
    signature = plain.replace(parameters=[*listed[:end], old, *listed[end:]])
    with_old_name.__signature__ = signature  # type: ignore[attr-defined]
    return with_old_name
