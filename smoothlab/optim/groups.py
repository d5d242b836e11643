"""What may be in the groups of HybridSGD: what users get wrong there is told before, or at, the first step."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.estimators import missing

Group = dict[str, Any]


def checked(groups: Iterable[Group], lr: float, weight_decay: float) -> list[Group]:
    """The groups with names, lists of parameters and decay, after a look at what cannot be meant.

    Raises:
        BadInput: see `HybridSGD`.
    """
    complete: list[Group] = []
    owners: dict[tuple[Any, ...], str] = {}
    for k, partial in enumerate(groups):
        group = {"name": f"group {k}", "oracle": None, "lr": lr, **partial}
        group["params"] = [partial["params"]] if isinstance(partial["params"], Tensor) else list(partial["params"])
        name, exact = group["name"], group["oracle"] is None
        if not group["params"]:
            raise BadInput(f"group '{name}' has no parameters: leave it out, or look at what should be in it")
        if any(other["name"] == name for other in complete):
            raise BadInput(f"two groups are named '{name}': give each a name of its own")
        lack = None if exact else missing(group["oracle"])
        if lack is not None:
            raise BadInput(
                f"oracle {group['oracle']!r} of group '{name}' {lack}: use None (exact), ZerothOrder, or a class that "
                "meets smoothlab.zeroth.estimators.Estimator"
            )
        if not (isinstance(group["lr"], Tensor) or 0 <= group["lr"] < float("inf")):
            raise BadInput(f"lr = {group['lr']} of group '{name}': use a finite rate of at least 0")
        if weight_decay or not exact:
            group.setdefault("weight_decay", weight_decay)
        if not 0 <= group.get("weight_decay", 0.0) < float("inf"):
            raise BadInput(f"weight_decay = {group['weight_decay']} of group '{name}': use a number of at least 0")
        for p in group["params"]:
            if not p.is_floating_point():
                raise BadInput(f"group '{name}' holds {p.dtype} parameters: leave quantized or integer ones out")
            if exact and not p.requires_grad:
                raise BadInput(
                    f"group '{name}' has no oracle, but a parameter of shape {tuple(p.shape)} that is frozen "
                    "(requires_grad = False): give the group an estimator, or let the parameter require a gradient"
                )
            memory = (p.untyped_storage().data_ptr(), p.storage_offset()) if p.numel() else (id(p),)
            if memory in owners:
                raise BadInput(
                    f"a parameter of shape {tuple(p.shape)} is in groups '{owners[memory]}' and '{name}' (a tie, "
                    "or the same one twice): keep it in one"
                )
            owners[memory] = name
        complete.append(group)
    if not complete:
        raise BadInput("no groups: give at least one, a dict with params")
    return complete


def check_depends(loss: Loss, block: Block, gradient: Directional) -> None:
    """Differences that are all 0 at first: is the loss a function of the block at all, or could it hold NaNs?

    Raises:
        BadInput: the loss is finite with NaNs there.
    """
    if gradient.anchor is not None or any(c for _, c in gradient.terms):
        return
    with torch.no_grad(), standing_at(block, [torch.full_like(p, math.nan) for p in block.params]):
        try:
            free = bool(torch.isfinite(loss()))
        except BadInput:  # a loss that looks at itself
            return
    if free:
        raise BadInput(
            f"the loss does not depend on group '{block.name}': leave it out, or look at what the closure computes"
        )


def warn_short(block: Block, masters: bool) -> None:
    """Warn of 16-bit weights: fp16's range, and steps that rounding swallows without masters."""
    dtype = block.params[0].dtype
    if dtype == torch.float16:
        warnings.warn(f"block '{block.name}' is fp16: losses overflow at 65,504; bf16 or fp32 is safer", stacklevel=3)
    if dtype.itemsize == 2 and not masters:
        warnings.warn(
            f"block '{block.name}' is {str(dtype).removeprefix('torch.')} without masters: steps below half of the "
            "spacing of its numbers are lost",
            stacklevel=3,
        )
