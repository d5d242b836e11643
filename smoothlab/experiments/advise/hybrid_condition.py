"""The one-step gradient-norm condition of a hybrid step, which stands beside that of its zeroth-order block alone.

Noise of x becomes gradient of y through the cross block H_xy, and y's own step moves the gradient too (docs/theory.md,
F.4). What it takes beyond the condition of x alone: one product along y's gradient, and ||H_yx||_F from the products
along x that are made anyway.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from smoothlab.blocks import Block, dot, norm
from smoothlab.errors import BadInput
from smoothlab.hessian.exact import ExactHessian
from smoothlab.theory.coupled_edge import HybridGradient, hybrid_gradient_norm_edge
from smoothlab.theory.spectra import OuterMoment
from smoothlab.trainer import Trainer

CONDITION = "hybrid gradient norm"
"""Name of the condition in records: the limit of eta_x where both rates are scaled together."""


class MeanGradient(NamedTuple):
    """The mean gradient of minibatches on one block.

    Attributes:
        direction: the unit vector along it, [dim].
        size: ||g|| of the gradient that minibatches have in common.
        noise: E ||g_B||^2/||g||^2 over minibatches B, at least 1.
    """

    direction: Tensor
    size: float
    noise: float


class Partner(NamedTuple):
    """The parameters that plain SGD moves by exact gradients, as one block, and their rate."""

    block: Block
    rate: float


def exact_partner(trainer: Trainer, block: Block, rates: Mapping[str, float]) -> Partner | None:
    """The exact part of a hybrid step whose zeroth-order part is `block`, or None where the condition does not apply.

    It takes steps eta_y grad_y f of a single rate that is known: no momentum, no Adam.

    Args:
        trainer: trainer of both parts.
        block: all zeroth-order groups, joined.
        rates: rates by group, 0 where none is known.
    """
    params: list[Tensor] = []
    known = set()
    zeroth = 0
    for group in trainer.optimizer.param_groups:
        if group["oracle"] is not None:
            zeroth += len(group["params"])
            continue
        if "betas" in group or group.get("momentum", 0.0):
            return None
        params += group["params"]
        known.add(rates.get(group["name"], 0.0))
    if len(known) != 1 or 0.0 in known or zeroth != len(block.params):
        return None
    return Partner(Block(f"beside {block.name}", tuple(params)), known.pop())


def hybrid_gradient(
    hessian: ExactHessian, x: MeanGradient, y: MeanGradient, names: tuple[str, str], image_x: Sequence[Tensor],
    squares: float,
) -> HybridGradient:  # fmt: skip
    """What one step's gradient norm depends on, with one more product, along y's gradient.

    Noise of minibatches enlarges the squares of both blocks' parts as it does for a block alone; that the noises of x
    and y may be alike through H is left out.

    Args:
        hessian: products over both blocks.
        x: mean gradient on block x.
        y: mean gradient on block y.
        names: names of x and y.
        image_x: H_xx u and H_yx u for the direction u of x's gradient.
        squares: ||H_xx||_F^2 + ||H_yx||_F^2.
    """
    image_y = hessian.product(y.direction, names[1], names)
    root_x, root_y = math.sqrt(x.noise), math.sqrt(y.noise)
    return HybridGradient(
        g_x=x.size,
        g_y=y.size,
        xx=x.size**2 * dot(x.direction, image_x[0]),
        xy=x.size * y.size * dot(y.direction, image_x[1]),
        yy=y.size**2 * dot(y.direction, image_y[1]),
        image_x=root_x * x.size * math.hypot(*map(norm, image_x)),
        image_y=root_y * y.size * math.hypot(*map(norm, image_y)),
        inner=x.size * y.size * (dot(image_x[0], image_y[0]) + dot(image_x[1], image_y[1])),
        frobenius=root_x * math.sqrt(squares),
    )


def hybrid_condition(gradient: HybridGradient, ratio: float, moment: OuterMoment) -> dict[str, float]:
    """The largest eta_x at which one step shrinks ||g|| in mean square while eta_y = ratio eta_x, if there is one."""
    try:
        return {CONDITION: hybrid_gradient_norm_edge(gradient, ratio, moment)[0]}
    except BadInput:
        return {}
