"""Steps of zeroth-order weights: in place, or beside 16-bit weights, which would swallow them.

Beside them are fp32 masters, copies to which all steps are added and which the weights are rounded from, or the factors
of the steps' sum (`smoothlab.zeroth.factors`).
"""

from typing import Literal

import torch

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.shards import any_sharded, local
from smoothlab.zeroth.estimators import Estimator
from smoothlab.zeroth.factors import Factors
from smoothlab.zeroth.variant import Update

Masters = bool | Literal["factors"]


def accumulator(block: Block, oracle: Estimator, masters: Masters) -> Block | Factors | None:
    """Copy or factors that a block's steps are added to; None where they are added to the block itself.

    Raises:
        BadInput: the steps cannot be kept as factors.
    """
    if masters not in (True, False, "factors"):
        raise BadInput(f"masters = {masters!r}: use True (fp32 copies), 'factors', or False")
    if not masters or block.params[0].dtype.itemsize > 2:
        return None
    if masters is True:
        return masters_of(block)
    if getattr(oracle, "perturb", None) != "forward":
        raise BadInput(
            f"masters 'factors' for group '{block.name}': its estimator must move weights inside the forward pass, as "
            'ZerothOrder(distribution=LowRank(1), perturb="forward") does'
        )
    if any_sharded(block.params):
        raise BadInput(
            f"masters 'factors' for group '{block.name}', whose parameters are sharded (DTensor): use masters in "
            "float32"
        )
    return Factors(block, oracle.distribution)


def descend(block: Block, gradient: Update, lr: float, weight_decay: float = 0.0) -> None:
    """w <- (1 - lr lambda) w - lr ghat, in place: what a step does, and its replay."""
    if lr == 0:
        return  # adding 0 would turn -0.0 into 0.0
    with torch.no_grad():
        if weight_decay:
            for p in block.params:
                p.mul_(1 - lr * weight_decay)
        gradient.add_to(block, -lr)


def masters_of(block: Block, copies: Block | None = None) -> Block:
    """fp32 copies of a 16-bit block's parameters, written to `copies` if there are such; other blocks themselves."""
    if block.params[0].dtype.itemsize > 2:
        return block
    if copies is None:
        return Block(block.name, tuple(p.detach().float().contiguous() for p in block.params))
    for p, wide in zip(block.params, copies.params, strict=True):
        wide.copy_(p.detach())
    return copies


def refreshed(block: Block, masters: Block) -> Block:
    """The masters, set anew where weights are no longer what they round to: somebody else has written to these.

    A Trainer that loads the best checkpoint at its end does so; masters would bring the last weights back.
    """
    if masters is not block:
        for p, wide in zip(block.params, masters.params, strict=True):
            if not torch.equal(local(wide).to(p.dtype), local(p)):
                wide.copy_(p.detach())
    return masters


def round_to(block: Block, masters: Block) -> None:
    """Round masters to the weights that they stand for; a block that is its own master stays."""
    if masters is block:
        return
    with torch.no_grad():
        for p, wide in zip(block.params, masters.params, strict=True):
            p.copy_(wide)
