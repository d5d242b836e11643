"""Diverged runs: the error that ends them, which names the learning rate to lower."""

import math
from collections.abc import Mapping

from smoothlab.blocks import Block, norm
from smoothlab.errors import BadInput
from smoothlab.zeroth.factors import standing

RATE_OPTIONS = {"base": "--eta-x", "peft": "--eta-y", "head": "--eta-y"}
"""Command-line option of each block's learning rate; that of any other block is --eta NAME=RATE."""


class Diverged(BadInput):
    """The loss is not finite, or far above that of the first minibatch; the message names the rate to lower."""


class Growth:
    """Norms of the weights of blocks, in units of those at the start of a run: a rate too high throws its own block."""

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self._blocks = blocks
        self._start = {name: _size(block) for name, block in blocks.items()}

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
    return math.sqrt(sum(norm(standing(p).reshape(-1)) ** 2 for p in block.params))
