"""Stability limits of learning rates predicted from the curvature at the present weights (docs/theory.md, F).

- zeroth-order steps: the mean-square edge of the Hessian's positive part, from lambda_max and tr H+, the mean over
  minibatches; beside it the one-step gradient-norm condition;
- exact gradients with SGD: 2 (1 + momentum)/((1 - dampening) lambda_max);
- exact gradients with Adam: 2 (1 + beta1)/((1 - beta1) lambda_max) of the preconditioned Hessian, after a few steps at
  a small rate, before which Adam's preconditioner knows one gradient only.

Each assumes that the loss is quadratic as far as a step goes, and that its curvature stays; how far predictions were
off in runs is in their intervals (`MODEL_ERROR`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block, differentiable, dot, flatten, norm
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.config import FRACTION
from smoothlab.experiments.advise.hybrid_condition import (
    MeanGradient,
    Partner,
    exact_partner,
    hybrid_condition,
    hybrid_gradient,
)
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.gradients import gradient
from smoothlab.hessian.positive_part import PositivePart, positive_part
from smoothlab.hessian.products import Products
from smoothlab.hessian.selfchecks import check_products
from smoothlab.stats.intervals import Interval
from smoothlab.theory.coupled_edge import HybridGradient
from smoothlab.theory.edge import OuterMoment, Spectrum, adam_edge, exact_edge, gradient_norm_edge, mean_square_edge
from smoothlab.trainer import Trainer
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.moments import outer_moment

LANCZOS = 8
"""Lanczos steps on a minibatch's Hessian; on `micro` 24 change the mean of tr H+ by less than a half."""
SPREAD = math.log(6.0)
"""Half-width of the 95 % interval of log tr H+ between minibatches: factors of 0.6e3 to 4.5e3 were seen on `micro`."""
MINIBATCHES = 4
"""Minibatches whose gradients are taken, for the gradient of all data and the noise of one."""
WARM_UP = 10
"""Steps of Adam before its preconditioner is taken."""
SLOW = 0.1
"""Of the configured rate, the rate of these steps."""
BESIDE = 20
"""Steps of the other blocks before the curvature is measured that zeroth-order steps will meet."""
PRODUCT = 2.2
"""Gradients that a Hessian-vector product costs."""
MODEL_ERROR = {"positive part": (2.5, 2.5), "exact": (3.5, 9.0), "adam": (4.0, 1.5)}
"""How many times below and above the prediction limits were in runs, by condition (benchmarks/results/advice_*.jsonl).

Where exact gradients without Adam begin to raise the loss, steps often lead to flatter places and the loss falls again:
on small networks runs of 60 steps stood above their start only from 2.5 to 8.7 times the prediction on. LoRA's
curvature rises as soon as B is not 0: on `micro` its limit by SGD was a third of the prediction.
"""


@dataclass(frozen=True)
class Prediction:
    """A predicted stability limit.

    Attributes:
        limit: with the 95 % interval of its measurement and of `MODEL_ERROR` together.
        condition: the condition that it follows from, a key of `MODEL_ERROR`.
        gradients: gradients that it cost.
        weakest: the assumption that is most in doubt.
        beside: what other conditions say, by their name.
    """

    limit: Interval
    condition: str
    gradients: float
    weakest: str
    beside: dict[str, float] = field(default_factory=dict)


def predicted_limit(
    trainer: Trainer,
    block: Block,
    *,
    rates: Mapping[str, float] | None = None,
    minibatches: int = 3,
    first: int = 0,
    seed: Sequence[int] = (0,),
) -> Prediction:
    """The predicted limit of the rate of one or several groups of a trainer, joined to one block.

    Args:
        trainer: whose loss, optimizer and minibatches are meant.
        block: the parameters of the groups.
        rates: rates of the other blocks. Zeroth-order steps are predicted from the curvature that their first steps
            lead to: training a module may raise the base model's curvature by a factor of ten.
        minibatches: whose curvature is averaged.
        first: number of the first of these minibatches; Adam's are those after its warm-up.
        seed: seed of the probes.

    Raises:
        BadInput: the loss is at a point without gradient, has no positive curvature, or does not depend on the block.
    """
    group = _group_of(trainer, block)
    with differentiable([block]):
        if group["oracle"] is not None:
            others = dict.fromkeys(trainer.blocks, 0.0) | dict(rates or {})
            with trainer.on_trial(others):
                if any(others.values()):
                    for _ in range(BESIDE):
                        trainer.update()
                partner = exact_partner(trainer, block, others)
                return _zeroth_order(trainer, block, group["oracle"], seed, minibatches, first, partner)
        if "betas" in group:
            return _adam(trainer, block, group, seed, minibatches)
        return _exact(trainer, block, group, seed, minibatches, first)


def expected_gradients(trainer: Trainer, block: Block, minibatches: int = 3) -> float:
    """Gradients that `predicted_limit` will cost, about."""
    group = _group_of(trainer, block)
    products = minibatches * LANCZOS + 2  # with those of the noise and of the self-checks
    if group["oracle"] is not None:
        return (products + 2) * PRODUCT + MINIBATCHES
    if "betas" in group:
        return _warm_up(trainer) + products * PRODUCT
    return products * PRODUCT


def _group_of(trainer: Trainer, block: Block) -> dict[str, Any]:
    for group in trainer.optimizer.param_groups:
        if any(p is block.params[0] for p in group["params"]):
            return group
    raise BadInput(f"block '{block.name}' is in no group of the optimizer: name one that is trained")


def _zeroth_order(
    trainer: Trainer, block: Block, oracle: Any, seed: Sequence[int], minibatches: int, first: int,
    partner: Partner | None,
) -> Prediction:  # fmt: skip
    if not isinstance(oracle, ZerothOrder):
        raise BadInput(f"oracle {oracle!r} of block '{block.name}' has no known second moment: try rates instead")
    moment = outer_moment(oracle, block.dim, block.shapes)
    if moment.diagonal:
        moment = moment._replace(isotropic=moment.isotropic + max(moment.diagonal, 0.0) / block.dim, diagonal=0.0)
    gradients = _mean_gradients(trainer, [block] if partner is None else [block, partner.block], first)
    direction, _, noise = gradients[block.name]
    if partner is not None and partner.block.name not in gradients:  # at the floor of y, which then stands still
        partner = None
    hybrid: HybridGradient | None = None
    tops: list[float] = []
    parts: list[PositivePart] = []
    beside: dict[str, float] = {}
    noises: dict[str, float] = {}
    products = 1
    for number in range(minibatches):
        # The cross block is looked at once, like the gradients' images.
        other = partner.block if partner is not None and not number else None
        watched = [block] if other is None else [block, other]
        hessian = ExactHessian(trainer.minibatch_loss(first + number), watched)
        hessian.kept_noise = noises
        run = Deflation(hessian, block.name, [*seed, number], [each.name for each in watched[1:]])
        run.krylov(LANCZOS)
        parts.append(positive_part(run))
        tops.append(_largest(run))
        if not number:
            check_products(run)
        products += run.hvps
        if not number:
            images = hessian.product(direction, block.name, [each.name for each in watched])
            beside = _gradient_norm(direction, images[0], parts[0].squares, moment, noise)
            if other is not None:
                squares = parts[0].squares + parts[0].cross[other.name]
                hybrid = hybrid_gradient(
                    hessian, gradients[block.name], gradients[other.name], (block.name, other.name), images, squares
                )
                products += 1
    top, trace = sum(tops) / minibatches, sum(part.trace for part in parts) / minibatches
    edge = mean_square_edge(Spectrum((top,), block.dim, trace=min(max(trace, top), block.dim * top)), moment)
    # The value is that of a broad spectrum, whose every eigenvalue is small beside the trace.
    spread = math.exp(SPREAD / minibatches**0.5)
    ends = (edge.value, edge.low / spread, edge.high * spread)
    if hybrid is not None and partner is not None:
        # Both advised rates scaled together: y's is known, x's is a fixed fraction of its own limit.
        beside |= hybrid_condition(hybrid, partner.rate / (FRACTION["zeroth"] * edge.value), moment)
    weakest = "that the loss is quadratic over a step of size eta ||ghat||, with the curvature of the start"
    cost = products * PRODUCT + MINIBATCHES
    return Prediction(_widened(ends, "positive part"), "positive part", cost, weakest, beside)


def _gradient_norm(g: Tensor, image: Tensor, squares: float, moment: OuterMoment, noise: float) -> dict[str, float]:
    """The one-step gradient-norm condition, where it has a limit."""
    rho, h = dot(g, image), norm(image)
    try:
        return {"gradient norm": gradient_norm_edge(rho, h, max(squares**0.5, h / 2), moment, noise=noise)}
    except BadInput:
        return {}


def _mean_gradients(trainer: Trainer, blocks: Sequence[Block], first: int) -> dict[str, MeanGradient]:
    """The mean gradient of the minibatches after `first` on each block, and its noise; the first block's may not be 0.

    Minibatch `first`, whose Hessian is looked at, is left out: its own gradient lies where this Hessian is large.
    """
    by_name = {block.name: block for block in blocks}
    totals: dict[str, Tensor] = {}
    squares: dict[str, list[float]] = {name: [] for name in by_name}
    value = 0.0
    for number in range(first + 1, first + MINIBATCHES):
        value, gradients = gradient(trainer.minibatch_loss(number), by_name)
        for name, g in gradients.items():
            squares[name].append(dot(g, g))
            totals[name] = totals[name].add_(g) if name in totals else g
    needed = blocks[0].name
    if norm(totals[needed]) == 0:
        raise BadInput(
            f"the gradient of block '{needed}' is 0: the loss, {value:.4g}, is at its floor or does not "
            "depend on the block; take weights from earlier in training, or look at the groups"
        )
    return {name: _mean_gradient(total, squares[name]) for name, total in totals.items() if norm(total)}


def _mean_gradient(total: Tensor, squares: Sequence[float]) -> MeanGradient:
    """From the sum of minibatches' gradients and their squared norms; ||g||^2 is the mean of <g_A, g_B> over pairs."""
    size, count = norm(total), len(squares)
    common = (size**2 - sum(squares)) / (count * (count - 1))
    # Where minibatches have nothing in common, their mean is an upper bound of ||g|| all the same.
    common = max(common, size**2 / count**3)
    return MeanGradient(total / size, math.sqrt(common), max(sum(squares) / count / common, 1.0))


def _exact(
    trainer: Trainer, block: Block, group: dict[str, Any], seed: Sequence[int], minibatches: int, first: int
) -> Prediction:
    hessians = (ExactHessian(trainer.minibatch_loss(first + number), [block]) for number in range(minibatches))
    value, most, products = _mean_largest(hessians, block.name, seed)
    momentum = {"momentum": group.get("momentum", 0.0), "dampening": group.get("dampening", 0.0)}
    edges = [exact_edge(end, **momentum) for end in (value, most, value)]
    weakest = "that the curvature stays as at the start, while training may raise or lower it"
    return Prediction(_widened(edges, "exact"), "exact", products * PRODUCT, weakest)


def _mean_largest(hessians: Iterable[Products], name: str, seed: Sequence[int]) -> tuple[float, float, int]:
    """Means over minibatches of the largest eigenvalue and of how large it may be; and the products made."""
    values: list[float] = []
    limits: list[float] = []
    noises: dict[str, float] = {}
    products = 0
    for number, hessian in enumerate(hessians):
        hessian.kept_noise = noises
        run = Deflation(hessian, name, [*seed, number], ())
        run.krylov(LANCZOS)
        values.append(_largest(run))
        limits.append(max(run.reach().highest, values[-1]))
        if not number:
            check_products(run)
        products += run.hvps
    return sum(values) / len(values), sum(limits) / len(limits), products


def _largest(run: Deflation) -> float:
    """The largest eigenvalue by Lanczos; negative ones, however large, set no limit."""
    value = float(np.linalg.eigvalsh(run.projected())[-1])
    if value <= 0:
        raise BadInput(
            f"the Hessian of block '{run.name}' has no positive Ritz value ({value:.4g}): a spectrum that is mostly "
            "negative sets no limit; try rates instead (smoothlab advise --by try)"
        )
    return value


def _adam(trainer: Trainer, block: Block, group: dict[str, Any], seed: Sequence[int], minibatches: int) -> Prediction:
    rates = {other["name"]: 0.0 for other in trainer.optimizer.param_groups}
    members = set(map(id, block.params))
    for other in trainer.optimizer.param_groups:
        if id(other["params"][0]) in members:
            rates[other["name"]] = SLOW * other["lr"]
    steps = _warm_up(trainer)
    with trainer.on_trial(rates):
        for _ in range(steps):
            trainer.update()
        root = _preconditioner(trainer, block, group).rsqrt()
        losses = [trainer.minibatch_loss(trainer.step + number) for number in range(minibatches)]
        hessians = (_Preconditioned(ExactHessian(loss, [block]), block, root) for loss in losses)
        value, most, products = _mean_largest(hessians, block.name, seed)
    edges = [adam_edge(end, beta1=group["betas"][0]) for end in (value, most, value)]
    weakest = "that Adam's preconditioner stands still, as after its first steps, while it moves with every step"
    return Prediction(_widened(edges, "adam"), "adam", steps + products * PRODUCT, weakest)


def _warm_up(trainer: Trainer) -> int:
    """Steps to make before Adam's preconditioner is taken: none where the run has made them."""
    return max(WARM_UP - trainer.optimizer.steps, 0)


def _preconditioner(trainer: Trainer, block: Block, group: dict[str, Any]) -> Tensor:
    """Adam's sqrt(vhat) + eps of a block, flat."""
    state = trainer.optimizer.state_dict()["exact"]
    exact = [g for g in trainer.optimizer.param_groups if g["oracle"] is None]
    numbers = {id(p): number for number, p in enumerate(p for g in exact for p in g["params"])}
    parts = []
    for p in block.params:
        moments = state["state"][numbers[id(p)]]
        vhat = moments["exp_avg_sq"] / (1 - group["betas"][1] ** float(moments["step"]))
        parts.append(vhat.sqrt() + group["eps"])
    return flatten(parts)


class _Preconditioned(Products):
    """Products with P^(-1/2) H P^(-1/2), whose rounding is taken for that of H."""

    def __init__(self, hessian: ExactHessian, block: Block, root: Tensor) -> None:
        self._hessian, self._root = hessian, root
        self.blocks, self.loss, self.gradients = {block.name: block}, hessian.loss, {}

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """P^(-1/2) H P^(-1/2) v."""
        (image,) = self._hessian.product(self._root * v, along, wrt)
        return (self._root * image,)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """No more than that of sums, for no product."""
        return float(torch.finfo(v.dtype).eps), 0


def _widened(edges: Sequence[float], condition: str) -> Interval:
    """The interval of an edge's value, low and high end, with the model error in quadrature on the log scale."""
    value, low, high = edges
    below, above = MODEL_ERROR[condition]
    down = math.hypot(math.log(value / low), math.log(below))
    up = math.hypot(math.log(high / value), math.log(above))
    return Interval(value, value * math.exp(-down), value * math.exp(up))
