"""Stability limits of learning rates predicted from the curvature at the present weights (docs/theory.md, F).

- zeroth-order steps: the one-step gradient-norm condition, from a product along the gradient, the Frobenius norm of the
  block's Hessian, and the noise of minibatches' gradients;
- exact gradients with SGD: 2 (1 + momentum)/((1 - dampening) lambda_max);
- exact gradients with Adam: 2 (1 + beta1)/((1 - beta1) lambda_max) of the preconditioned Hessian, after a few steps at
  a small rate, before which Adam's preconditioner knows one gradient only.

Each assumes that the loss is quadratic as far as a step goes, and that its curvature stays; how far predictions were
off in runs is in their intervals (`MODEL_ERROR`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block, differentiable, dot, flatten, norm
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.config import FRACTION
from smoothlab.experiments.advise.hybrid_condition import CONDITION, MeanGradient, Partner, exact_partner, hybrid_limit
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.estimates import NormEstimate
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.gradients import gradient
from smoothlab.hessian.products import Products
from smoothlab.stats.intervals import Interval
from smoothlab.theory.edge import Spectrum, adam_edge, exact_edge, gradient_norm_edge, mean_square_edge
from smoothlab.trainer import Trainer
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.moments import outer_moment

PRECISION = 0.15
"""Half-width of the Frobenius norm's interval, relative to it."""
LANCZOS = 10
"""Lanczos steps, at most."""
MINIBATCHES = 4
"""Minibatches whose gradients are taken, for the gradient of all data and the noise of one."""
WARM_UP = 10
"""Steps of Adam before its preconditioner is taken."""
SLOW = 0.1
"""Of the configured rate, the rate of these steps."""
PRODUCT = 2.2
"""Gradients that a Hessian-vector product costs."""
MODEL_ERROR = {"gradient norm": math.log(4.0), "exact": math.log(2.5), "adam": math.log(4.0)}
"""Half-width of the 95 % interval of log(limit seen in runs/limit predicted), by condition: set by hand.

Zeroth-order steps of 60 on `micro`, batch 8, were unstable from 1.7e-3 at the latest, where 5.9e-3 was predicted; on
SmolLM2-135M the prediction was right to a factor of 1.3 (docs/theory.md, F). Too few cases to estimate it from.
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
    trainer: Trainer, block: Block, *, seed: Sequence[int] = (0,), rates: Mapping[str, float] | None = None
) -> Prediction:
    """The predicted limit of the rate of one or several groups of a trainer, joined to one block.

    Args:
        trainer: the trainer.
        block: parameters whose rate is looked for.
        seed: seed of start vectors and probes.
        rates: rates of the other groups by name; with those of the exact part, zeroth-order steps have the condition of
            the hybrid step beside their own.

    Raises:
        BadInput: the loss is at a point without gradient, curves downwards along it, has no positive curvature, or does
            not depend on the block.
    """
    group = _group_of(trainer, block)
    with differentiable([block]):
        if group["oracle"] is not None:
            return _zeroth_order(trainer, block, group["oracle"], seed, exact_partner(trainer, block, rates or {}))
        if "betas" in group:
            return _adam(trainer, block, group, seed)
        return _exact(trainer, block, group, seed)


def expected_gradients(trainer: Trainer, block: Block, rates: Mapping[str, float] | None = None) -> float:
    """Gradients that `predicted_limit` will cost, about."""
    group = _group_of(trainer, block)
    products = LANCZOS + 7  # with those of the self-checks, the noise and the probes
    if group["oracle"] is not None:
        hybrid = exact_partner(trainer, block, rates or {}) is not None
        return (products + 1 + hybrid) * PRODUCT + MINIBATCHES
    if "betas" in group:
        return WARM_UP + (LANCZOS + 1) * PRODUCT
    return products * PRODUCT


def _group_of(trainer: Trainer, block: Block) -> dict[str, Any]:
    for group in trainer.optimizer.param_groups:
        if any(p is block.params[0] for p in group["params"]):
            return group
    raise BadInput(f"block '{block.name}' is in no group of the optimizer: name one that is trained")


def _zeroth_order(
    trainer: Trainer, block: Block, oracle: Any, seed: Sequence[int], partner: Partner | None
) -> Prediction:
    if not isinstance(oracle, ZerothOrder):
        raise BadInput(f"oracle {oracle!r} of block '{block.name}' has no known second moment: try rates instead")
    moment = outer_moment(oracle, block.dim, block.shapes)
    if moment.diagonal:
        moment = moment._replace(isotropic=moment.isotropic + max(moment.diagonal, 0.0) / block.dim, diagonal=0.0)
    blocks = [block]
    if partner is not None:
        blocks.append(partner.block)
    gradients = _mean_gradients(trainer, blocks)
    names = [each.name for each in blocks]
    cross = [(names[0], names[1])] if partner is not None else []
    hessian = ExactHessian(trainer.minibatch_loss(0), blocks)
    direction, _, noise = gradients[block.name]
    images = hessian.product(direction, block.name, names)
    rho, h = dot(direction, images[0]), norm(images[0])
    estimates = hessian.norms([block.name], cross=cross, precision=PRECISION, lanczos=LANCZOS, seed=seed)
    hvps = max(estimate.hvps for estimate in estimates)
    frobenius = estimates[0]
    sizes = (frobenius.value, frobenius.high, frobenius.low)
    ends = [gradient_norm_edge(rho, h, max(size, h / 2), moment, noise=noise) for size in sizes]
    weakest = "that the loss is quadratic over a step of size eta ||ghat||, with the curvature of the start"
    if frobenius.flag is not None:
        weakest = f"the Frobenius norm of the Hessian ({frobenius.flag})"
    beside = _other_conditions(estimates[:3], block, moment)
    if partner is not None:
        # Both advised rates scaled together: that of y stands, that of x is a fixed fraction of its own limit.
        ratio = partner.rate / (FRACTION["zeroth"] * ends[0])
        limit = hybrid_limit(hessian, gradients, (names[0], names[1]), images, (frobenius, estimates[3]), ratio, moment)
        if limit is not None:
            beside[CONDITION] = limit
    cost = (hvps + len(blocks)) * PRODUCT + MINIBATCHES
    return Prediction(_widened(ends, "gradient norm"), "gradient norm", cost, weakest, beside)


def _mean_gradients(trainer: Trainer, blocks: Sequence[Block]) -> dict[str, MeanGradient]:
    """The mean gradient of minibatches 1, 2, ... on each block, and its noise.

    Minibatch 0, whose Hessian is looked at, is left out: its own gradient lies where this Hessian is large. ||g||^2 is
    the mean of <g_A, g_B> over pairs of minibatches.
    """
    by_name = {block.name: block for block in blocks}
    totals: dict[str, Tensor] = {}
    squares: dict[str, list[float]] = {name: [] for name in by_name}
    value = 0.0
    for number in range(1, MINIBATCHES):
        value, gradients = gradient(trainer.minibatch_loss(number), by_name)
        for name, g in gradients.items():
            squares[name].append(dot(g, g))
            totals[name] = totals[name].add_(g) if name in totals else g
    return {name: _mean_gradient(name, total, squares[name], value) for name, total in totals.items()}


def _mean_gradient(name: str, total: Tensor, squares: Sequence[float], loss: float) -> MeanGradient:
    """From the sum of minibatches' gradients and their squared norms."""
    size, count = norm(total), len(squares)
    if size == 0:
        raise BadInput(
            f"the gradient of block '{name}' is 0: the loss, {loss:.4g}, is at its floor or does not "
            "depend on the block; take weights from earlier in training, or look at the groups"
        )
    common = (size**2 - sum(squares)) / (count * (count - 1))
    # Where minibatches have nothing in common, their mean is an upper bound of ||g|| all the same.
    common = max(common, size**2 / count**3)
    return MeanGradient(total / size, math.sqrt(common), max(sum(squares) / count / common, 1.0))


def _other_conditions(estimates: Sequence[NormEstimate], block: Block, moment: Any) -> dict[str, float]:
    """The mean-square edge, where the spectrum is not mostly negative."""
    try:
        edge = mean_square_edge(Spectrum.of_estimates(estimates, block.name, block.dim), moment)
    except BadInput:
        return {}
    return {"mean square": edge.value}


def _exact(trainer: Trainer, block: Block, group: dict[str, Any], seed: Sequence[int]) -> Prediction:
    estimates = ExactHessian(trainer.minibatch_loss(0), [block]).norms(precision=0.3, lanczos=LANCZOS, seed=seed)
    largest = estimates[1]
    if largest.sign != 1:
        raise BadInput(
            f"the eigenvalue of largest modulus of block '{block.name}', {largest.value:.4g}, is not known to be "
            "positive: a spectrum that is mostly negative sets no limit; try rates instead (--by try)"
        )
    momentum = {"momentum": group.get("momentum", 0.0), "dampening": group.get("dampening", 0.0)}
    edges = [exact_edge(value, **momentum) for value in (largest.value, largest.high, largest.low)]
    weakest = "that the curvature stays as at the start, while training tends to raise it"
    return Prediction(_widened(edges, "exact"), "exact", largest.hvps * PRODUCT, weakest)


def _adam(trainer: Trainer, block: Block, group: dict[str, Any], seed: Sequence[int]) -> Prediction:
    rates = {other["name"]: 0.0 for other in trainer.optimizer.param_groups}
    members = set(map(id, block.params))
    for other in trainer.optimizer.param_groups:
        if id(other["params"][0]) in members:
            rates[other["name"]] = SLOW * other["lr"]
    with trainer.on_trial(rates):
        for _ in range(WARM_UP):
            trainer.update()
        loss = trainer.minibatch_loss(trainer.step)
        scale = _preconditioner(trainer, block, group)
        hessian = _Preconditioned(ExactHessian(loss, [block]), block, scale.rsqrt())
        run = Deflation(hessian, block.name, [*seed, 1], ())
        run.krylov(LANCZOS)
        largest, most = float(np.linalg.eigvalsh(run.projected())[-1]), run.reach().highest
    if largest <= 0:
        raise BadInput(
            f"the preconditioned Hessian of block '{block.name}' has no positive Ritz value ({largest:.4g}): a "
            "spectrum that is mostly negative sets no limit; try rates instead (--by try)"
        )
    edges = [adam_edge(value, beta1=group["betas"][0]) for value in (largest, max(most, largest), largest)]
    weakest = "that Adam's preconditioner stands still, as after its first steps, while it moves with every step"
    return Prediction(_widened(edges, "adam"), "adam", WARM_UP + run.hvps * PRODUCT, weakest)


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
    down = math.hypot(math.log(value / low), MODEL_ERROR[condition])
    up = math.hypot(math.log(high / value), MODEL_ERROR[condition])
    return Interval(value, value * math.exp(-down), value * math.exp(up))
