"""Checks of the groups of HybridSGD: mistakes there are refused before, or at, the first step."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput
from smoothlab.shards import any_sharded, is_sharded, local
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.estimators import missing
from smoothlab.zeroth.gathered import check_gathers, check_stays, reshard
from smoothlab.zeroth.variant import Variant
from smoothlab.zeroth.variants import Plain

Group = dict[str, Any]


def checked(groups: Iterable[Group], lr: float, weight_decay: float) -> list[Group]:
    """The groups with names, lists of parameters and decay, after a look at what cannot be meant.

    Raises:
        BadInput: see `HybridSGD`.
    """
    groups = list(groups)
    for group in groups:
        reshard(getattr(group.get("oracle"), "layers", None))  # what FSDP2 has gathered is no parameter of the model
    complete: dict[str, Group] = {}
    owners: dict[tuple[int, int], str] = {}
    for k, partial in enumerate(groups):
        group = {"name": f"group {k}", "oracle": None, "variant": None, "lr": lr, **partial}
        name = group["name"]
        if isinstance(group["params"], Tensor):
            group["params"] = [group["params"]]
        group["params"] = list(group["params"])  # a generator, as of module.parameters(), is read once
        if not group["params"]:
            raise BadInput(f"group '{name}' has no parameters: leave it out, or look at what should be in it")
        if name in complete:
            raise BadInput(f"two groups are named '{name}': give each a name of its own")
        if group["oracle"] is not None:
            group |= _zeroth_order(group)
        elif group["variant"] is not None:
            raise BadInput(f"group '{name}' has no oracle, but a variant of zeroth-order steps: leave the variant out")
        # A decay of 0 would displace the default of `exact`, as AdamW's 0.01.
        if weight_decay or group["oracle"] is not None:
            group.setdefault("weight_decay", weight_decay)
        _check_rates(group)
        for p in group["params"]:
            _check_parameter(p, group)
            memory = _memory_of(p)
            if memory in owners:
                raise BadInput(
                    f"a parameter of shape {tuple(p.shape)} is in groups '{owners[memory]}' and '{name}' (a tie, "
                    "or the same one twice): keep it in one"
                )
            owners[memory] = name
        if any_sharded(group["params"]):
            check_gathers(name, group["oracle"])
        complete[name] = group
    if not complete:
        raise BadInput("no groups: give at least one, a dict with params")
    return list(complete.values())


def check_rows(block: Block, update: object) -> None:
    """Refuse to move sharded parameters by what no process can compute of its own rows.

    Raises:
        BadInput: the update is more than a sum of directions (muon).
    """
    if any_sharded(block.params) and not isinstance(update, Directional):
        raise BadInput(
            f"group '{block.name}' has sharded parameters (DTensor), its variant's update is a {type(update).__name__} "
            "of whole matrices: use variant plain, momentum, adaptive, spread or subspace"
        )


def _zeroth_order(group: Group) -> Group:
    """The variant of a group of zeroth-order steps, and its oracle, whose directions the variant may change."""
    lack = missing(group["oracle"])
    if lack is not None:
        raise BadInput(
            f"oracle {group['oracle']!r} of group '{group['name']}' {lack}: use None (exact), ZerothOrder, or a class "
            "that meets smoothlab.zeroth.estimators.Estimator"
        )
    variant = group["variant"] or Plain()
    if not isinstance(variant, Variant):
        raise BadInput(
            f"variant {variant!r} of group '{group['name']}': use one of smoothlab's, such as Momentum(0.9), or none"
        )
    return {"variant": variant, "oracle": variant.oracle(group["oracle"])}


def _check_rates(group: Group) -> None:
    """Refuse a learning rate or a weight decay that is negative or not finite."""
    # torch's capturable optimizers hold a rate as a tensor, which a comparison would bring from the device.
    if not (isinstance(group["lr"], Tensor) or 0 <= group["lr"] < float("inf")):
        raise BadInput(f"lr = {group['lr']} of group '{group['name']}': use a finite rate of at least 0")
    if not 0 <= group.get("weight_decay", 0.0) < float("inf"):
        raise BadInput(f"weight_decay = {group['weight_decay']} of group '{group['name']}': use a number of at least 0")


def _check_parameter(p: Tensor, group: Group) -> None:
    """Refuse integers, parameters without memory, and frozen or sharded ones of an exact group."""
    if not p.is_floating_point():
        raise BadInput(f"group '{group['name']}' holds {p.dtype} parameters: leave quantized or integer ones out")
    if group["oracle"] is None and not p.requires_grad:
        raise BadInput(
            f"group '{group['name']}' has no oracle, but a parameter of shape {tuple(p.shape)} that is frozen "
            "(requires_grad = False): give the group an estimator, or let the parameter require a gradient"
        )
    if p.is_meta:
        raise BadInput(
            f"group '{group['name']}' has a parameter of shape {tuple(p.shape)} without memory (device meta), as "
            "accelerate's offloading leaves it between forward passes: load the model without device_map; masters "
            "'factors' reads 16-bit weights from their file"
        )
    check_stays(group["name"], p)
    if group["oracle"] is None and is_sharded(p):
        raise BadInput(
            f"group '{group['name']}' has no oracle, but a sharded parameter (DTensor) of shape {tuple(p.shape)}: keep "
            "it whole in each process, fully_shard(..., ignored_params={...})"
        )


def _memory_of(p: Tensor) -> tuple[int, int]:
    """Position of a parameter's first number in memory, which tied parameters share."""
    held_rows = local(p)
    if not held_rows.numel():  # tensors without entries share the address 0
        return id(p), 0
    return held_rows.untyped_storage().data_ptr(), int(held_rows.storage_offset())


def check_depends(loss: Loss, block: Block, gradient: Directional) -> None:
    """Differences that are all 0 at first: is the loss a function of the block at all?

    Raises:
        BadInput: the loss is finite with NaNs in the block, which would spread to whatever depends on them.
    """
    if gradient.anchor is not None or any(c for _, c in gradient.terms):
        return  # a loss that is even in the block has differences of 0 too: these alone prove nothing
    if any_sharded(block.params):
        return  # the estimator has seen that the forward passes of the loss gather them
    # One NaN seen through strides of 0: tensors of any shape that take no memory.
    blanks = [torch.full((), math.nan, dtype=p.dtype, device=p.device).expand(p.shape) for p in block.params]
    with torch.no_grad(), standing_at(block, blanks):
        try:
            independent = bool(torch.isfinite(loss()))
        except BadInput:  # a loss that looks at itself
            return
    if independent:
        raise BadInput(
            f"the loss does not depend on group '{block.name}': leave it out, or look at what the closure computes"
        )


def warn_narrow(block: Block, masters: bool) -> None:
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
