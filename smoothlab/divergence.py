"""Diverged runs: the error that ends them, which names the learning rate to lower."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smoothlab.blocks import Block, Loss, norm
from smoothlab.errors import BadInput
from smoothlab.zeroth.factors import with_steps

RISE = 2.0, 1.0
"""A mean training loss above 2 f_0 + 1, f_0 that of the first minibatch, has diverged."""
RATE_OPTIONS = {"base": "--eta-x", "peft": "--eta-y", "head": "--eta-y"}
"""Command-line option of each block's learning rate; that of any other block is --eta NAME=RATE."""


class Diverged(BadInput):
    """The loss is not finite, or far above that of the first minibatch; the message names the rate to lower."""


def has_risen(loss: float, first: float | None) -> bool:
    """Whether a mean training loss is not finite, or far above that of the first minibatch where this is known."""
    factor, margin = RISE
    return not math.isfinite(loss) or (first is not None and loss > factor * first + margin)


def before_training(value: float, loss: Loss, oracles: Sequence[Any], weights: Mapping[str, Tensor]) -> Diverged:
    """The error for a loss that is not finite at the first step, which no rate has caused.

    Args:
        value: the number that is not finite.
        loss: the loss, to be looked at where the weights stand.
        oracles: estimators of the zeroth-order groups, which evaluate the loss beside the weights.
        weights: parameters by their names.
    """
    for name, p in weights.items():
        if not bool(torch.isfinite(p).all()):
            return Diverged(
                f"the loss is {value:.3g} before training, as {name} holds numbers that are not finite: use other "
                "weights"
            )
    with torch.no_grad():
        plain = float(loss())
    if math.isfinite(plain) and oracles:
        mu = getattr(oracles[0], "mu", 0.0)
        return Diverged(f"the loss is {value:.3g} at x + mu z, and {plain:.3g} at x: lower --mu ({mu:g})")
    return Diverged(f"the loss is {value:.3g} before training: use other weights, or a wider --dtype")


class Growth:
    """Norms of the weights of blocks, in units of those at the start of a run: a rate too high throws its own block."""

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self._blocks = blocks
        self._start = {name: _size(block) for name, block in blocks.items()}

    def diverged(self, loss: float, step: int, first: float, rates: Mapping[str, float]) -> Diverged:
        """The error for a loss at a step that has risen from that of the first minibatch."""
        return Diverged(
            f"the loss is {loss:.3g} at step {step}, and was {first:.3g} at first: lower {self.suspect(rates)}"
        )

    def suspect(self, rates: Mapping[str, float]) -> str:
        """The option and rate of the block whose weights have grown most, and by how much each block's have."""
        sizes, worst, most = [], "", -1.0
        for name, block in self._blocks.items():
            growth = _size(block) / (self._start[name] or 1.0)  # weights may start at 0
            sizes.append(f"{name} {growth:.4g}")
            if not math.isfinite(growth):
                growth = math.inf  # NaN compares with nothing
            if growth > most:
                worst, most = name, growth
        option = RATE_OPTIONS.get(worst, f"--eta {worst}=RATE")
        return f"{option} ({rates[worst]:g}); size of the weights, times that at the start: {', '.join(sizes)}"


def _size(block: Block) -> float:
    return math.sqrt(sum(norm(with_steps(p).reshape(-1)) ** 2 for p in block.params))
