"""Steps of zeroth-order weights: in place, or in fp32 masters where 16-bit weights would swallow them."""

import torch

from smoothlab.blocks import Block
from smoothlab.zeroth.variants import Update


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
            if not torch.equal(wide.to(p.dtype), p):
                wide.copy_(p.detach())
    return masters


def round_to(block: Block, masters: Block) -> None:
    """Round masters to the weights that they stand for; a block that is its own master stays."""
    if masters is block:
        return
    with torch.no_grad():
        for p, wide in zip(block.params, masters.params, strict=True):
            p.copy_(wide)
