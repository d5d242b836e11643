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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block, differentiable, dot, flatten, norm
from smoothlab.errors import BadInput
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
    trainer: Trainer, block: Block, *, seed: Sequence[int] = (0,), first: int = 0, any_positive: bool = False
) -> Prediction:
    """The predicted limit of the rate of one or several groups of a trainer, joined to one block.

    Args:
        trainer: the trainer, which is afterwards as before.
        block: parameters of the groups.
        seed: seed of start vectors and probes.
        first: number of the minibatch whose Hessian is looked at; further gradients are of those that follow.
        any_positive: with SGD, accept the largest positive eigenvalue where a negative one is, or may be, of larger
            modulus: curvature will then soon be another, so this is for runs that measure again.

    Raises:
        BadInput: the loss is at a point without gradient, curves downwards along it, has no positive curvature, or does
            not depend on the block.
    """
    group = _group_of(trainer, block)
    with differentiable([block]):
        if group["oracle"] is not None:
            return _zeroth_order(trainer, block, group["oracle"], seed, first)
        if "betas" in group:
            return _adam(trainer, block, group, seed)
        return _exact(trainer, block, group, seed, first, any_positive)


def expected_gradients(trainer: Trainer, block: Block) -> float:
    """Gradients that `predicted_limit` will cost, about."""
    group = _group_of(trainer, block)
    products = LANCZOS + 7  # with those of the self-checks, the noise and the probes
    if group["oracle"] is not None:
        return (products + 1) * PRODUCT + MINIBATCHES
    if "betas" in group:
        return _warm_up(trainer) + (LANCZOS + 1) * PRODUCT
    return products * PRODUCT


def _group_of(trainer: Trainer, block: Block) -> dict[str, Any]:
    for group in trainer.optimizer.param_groups:
        if any(p is block.params[0] for p in group["params"]):
            return group
    raise BadInput(f"block '{block.name}' is in no group of the optimizer: name one that is trained")


def _zeroth_order(trainer: Trainer, block: Block, oracle: Any, seed: Sequence[int], first: int) -> Prediction:
    if not isinstance(oracle, ZerothOrder):
        raise BadInput(f"oracle {oracle!r} of block '{block.name}' has no known second moment: try rates instead")
    moment = outer_moment(oracle, block.dim, block.shapes)
    if moment.diagonal:
        moment = moment._replace(isotropic=moment.isotropic + max(moment.diagonal, 0.0) / block.dim, diagonal=0.0)
    direction, noise = _gradient_and_noise(trainer, block, first)
    hessian = ExactHessian(trainer.minibatch_loss(first), [block])
    (image,) = hessian.product(direction, block.name, [block.name])
    rho, h = dot(direction, image), norm(image)
    estimates = hessian.norms(precision=PRECISION, lanczos=LANCZOS, seed=seed)
    hvps = max(estimate.hvps for estimate in estimates)
    frobenius = estimates[0]
    sizes = (frobenius.value, frobenius.high, frobenius.low)
    ends = [gradient_norm_edge(rho, h, max(size, h / 2), moment, noise=noise) for size in sizes]
    weakest = "that the loss is quadratic over a step of size eta ||ghat||, with the curvature of the start"
    if frobenius.flag is not None:
        weakest = f"the Frobenius norm of the Hessian ({frobenius.flag})"
    beside = _other_conditions(estimates, block, moment)
    gradients = (hvps + 1) * PRODUCT + MINIBATCHES
    return Prediction(_widened(ends, "gradient norm"), "gradient norm", gradients, weakest, beside)


def _gradient_and_noise(trainer: Trainer, block: Block, first: int) -> tuple[Tensor, float]:
    """The unit vector along the mean gradient of the minibatches after `first`, and E ||g_B||^2/||g||^2.

    Minibatch `first`, whose Hessian is looked at, is left out: its own gradient lies where this Hessian is large.
    ||g||^2 is the mean of <g_A, g_B> over pairs of minibatches.
    """
    total, squares, value = None, [], 0.0
    for number in range(first + 1, first + MINIBATCHES):
        value, gradients = gradient(trainer.minibatch_loss(number), {block.name: block})
        g = gradients[block.name]
        squares.append(dot(g, g))
        total = g if total is None else total.add_(g)
    assert total is not None
    size, count = norm(total), len(squares)
    if size == 0:
        raise BadInput(
            f"the gradient of block '{block.name}' is 0: the loss, {value:.4g}, is at its floor or does not "
            "depend on the block; take weights from earlier in training, or look at the groups"
        )
    common = (size**2 - sum(squares)) / (count * (count - 1))
    # Where minibatches have nothing in common, their mean is an upper bound of ||g|| all the same.
    common = max(common, size**2 / count**3)
    return total / size, max(sum(squares) / count / common, 1.0)


def _other_conditions(estimates: Sequence[NormEstimate], block: Block, moment: Any) -> dict[str, float]:
    """The mean-square edge, where the spectrum is not mostly negative."""
    try:
        edge = mean_square_edge(Spectrum.of_estimates(estimates, block.name, block.dim), moment)
    except BadInput:
        return {}
    return {"mean square": edge.value}


def _exact(
    trainer: Trainer, block: Block, group: dict[str, Any], seed: Sequence[int], first: int, any_positive: bool
) -> Prediction:
    hessian = ExactHessian(trainer.minibatch_loss(first), [block])
    if any_positive:
        ends, hvps = _largest_ritz_value(hessian, f"Hessian of block '{block.name}'", block.name, seed)
    else:
        largest = hessian.norms(precision=0.3, lanczos=LANCZOS, seed=seed)[1]
        if largest.sign != 1:
            raise BadInput(
                f"the eigenvalue of largest modulus of block '{block.name}', {largest.value:.4g}, is not known to be "
                "positive: a spectrum that is mostly negative sets no limit; try rates instead (smoothlab advise "
                "--by try)"
            )
        ends, hvps = Interval(largest.value, largest.low, largest.high), largest.hvps
    momentum = {"momentum": group.get("momentum", 0.0), "dampening": group.get("dampening", 0.0)}
    edges = [exact_edge(value, **momentum) for value in (ends.value, ends.high, ends.low)]
    weakest = "that the curvature stays as at the start, while training tends to raise it"
    return Prediction(_widened(edges, "exact"), "exact", hvps * PRODUCT, weakest)


def _largest_ritz_value(hessian: Products, title: str, name: str, seed: Sequence[int]) -> tuple[Interval, int]:
    """The largest Ritz value after some Lanczos steps, with an upper bound of the eigenvalue, and products made."""
    run = Deflation(hessian, name, [*seed, 1], ())
    run.krylov(LANCZOS)
    largest = float(np.linalg.eigvalsh(run.projected())[-1])
    if largest <= 0:
        raise BadInput(
            f"the {title} has no positive Ritz value ({largest:.4g}): a spectrum that is mostly negative sets no "
            "limit; try rates instead (smoothlab advise --by try)"
        )
    return Interval(largest, largest, max(run.reach().highest, largest)), run.hvps


def _adam(trainer: Trainer, block: Block, group: dict[str, Any], seed: Sequence[int]) -> Prediction:
    rates = {other["name"]: 0.0 for other in trainer.optimizer.param_groups}
    members = set(map(id, block.params))
    for other in trainer.optimizer.param_groups:
        if id(other["params"][0]) in members:
            rates[other["name"]] = SLOW * other["lr"]
    steps = _warm_up(trainer)
    with trainer.on_trial(rates):
        for _ in range(steps):
            trainer.update()
        loss = trainer.minibatch_loss(trainer.step)
        scale = _preconditioner(trainer, block, group)
        hessian = _Preconditioned(ExactHessian(loss, [block]), block, scale.rsqrt())
        title = f"preconditioned Hessian of block '{block.name}'"
        ends, hvps = _largest_ritz_value(hessian, title, block.name, seed)
    edges = [adam_edge(value, beta1=group["betas"][0]) for value in (ends.value, ends.high, ends.low)]
    weakest = "that Adam's preconditioner stands still, as after its first steps, while it moves with every step"
    return Prediction(_widened(edges, "adam"), "adam", steps + hvps * PRODUCT, weakest)


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
    down = math.hypot(math.log(value / low), MODEL_ERROR[condition])
    up = math.hypot(math.log(high / value), MODEL_ERROR[condition])
    return Interval(value, value * math.exp(-down), value * math.exp(up))
