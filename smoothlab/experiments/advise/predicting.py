"""Stability limits of learning rates predicted from the curvature at the present weights (docs/theory.md, F).

- zeroth-order steps: the rate at which their random walk of 60 steps leads to a loss above the start's
  (`smoothlab.experiments.advise.random_walk`);
- exact gradients with SGD: 2 (1 + momentum)/((1 - dampening) lambda_max);
- exact gradients with Adam: 2 (1 + beta1)/((1 - beta1) lambda_max) of the preconditioned Hessian, after a few steps at
  a small rate, before which Adam's preconditioner knows one gradient only.

Those of exact gradients assume that the loss is quadratic as far as a step goes, and that its curvature stays. How far
predictions were off in runs is in their intervals (`MODEL_ERROR`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from smoothlab.blocks import Block, differentiable, flatten
from smoothlab.errors import BadInput
from smoothlab.experiments.advise import random_walk
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.products import Products
from smoothlab.hessian.selfchecks import check_products
from smoothlab.stats.intervals import Interval
from smoothlab.theory.edge import adam_edge, exact_edge
from smoothlab.trainer import Trainer
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import KeptSubspace, LowRank
from smoothlab.zeroth.moments import linear_factor, outer_moment

LANCZOS = 5
"""Lanczos steps on a minibatch's Hessian where runs follow: eight tell no limit better, and leave time for fewer runs.

From some start vectors the largest eigenvalue comes out at half of what it is (LoRA on `micro`; eight steps: 0.98).
"""
DIRECTIONS = 2
"""Random directions along which a random walk is looked at on each minibatch."""
PULLED_BACK = 1.25
"""Ratio of limits in runs to those of the random walk, which leaves out that descent pulls the weights back.

The geometric mean over 23 sweeps on small networks of other seeds than those that predictions are judged on
(benchmarks/random_walk.py).
"""
WARM_UP = 10
"""Steps of Adam before its preconditioner is taken."""
SLOW = 0.1
"""Rate of the steps of WARM_UP, as a share of the configured rate."""
BESIDE = 20
"""Steps that the other blocks make before a zeroth-order limit is measured."""
PRODUCT = 2.2
"""Gradients that a Hessian-vector product costs."""
MODEL_ERROR = {"random walk": (2.2, 2.2), "exact": (3.5, 9.0), "adam": (20.0, 2.5)}
"""How many times below and above the prediction limits were in runs, by condition (benchmarks/results/advice_*.jsonl).

Where exact gradients without Adam begin to raise the loss, steps often lead to flatter places and the loss falls again:
on small networks runs of 60 steps stood above their start only from 2.5 to 8.7 times the prediction on. LoRA's
curvature rises as soon as B is not 0: on `micro` its limit by SGD was a third of the prediction. Adam's limit was 0.05
to 0.5 of the prediction on models that had been trained before, and 0.3 to 1.2 elsewhere.
"""


@dataclass(frozen=True)
class Prediction:
    """A predicted stability limit.

    Attributes:
        limit: with the 95 % interval of its measurement and of `MODEL_ERROR` together.
        condition: the condition that it follows from, a key of `MODEL_ERROR`.
        gradients: gradients that it cost.
        weakest: the assumption that is most in doubt.
        shorter: how many times that limit the limit of shorter runs is.
    """

    limit: Interval
    condition: str
    gradients: float
    weakest: str
    shorter: float = 1.0


def predicted_limit(
    trainer: Trainer,
    block: Block,
    *,
    rates: Mapping[str, float] | None = None,
    minibatches: int = 3,
    first: int = 0,
    seed: Sequence[int] = (0,),
    steps: int = random_walk.STEPS,
    lanczos: int = LANCZOS,
) -> Prediction:
    """The predicted limit of the rate of one or several groups of a trainer, joined to one block.

    Args:
        trainer: whose loss, optimizer and minibatches are meant.
        block: the parameters of the groups.
        rates: rates of the other blocks. A limit of zeroth-order steps is predicted after some steps at these rates:
            training a module may raise the base model's curvature by a factor of ten.
        minibatches: number of minibatches that are averaged over.
        first: number of the first of these minibatches; Adam's are those after its warm-up.
        seed: seed of the probes.
        steps: length of the runs whose limit `Prediction.shorter` gives. A random walk goes less far in fewer steps;
            the limit of exact gradients is taken to be the same.
        lanczos: Lanczos steps of a limit of exact gradients, on each minibatch.

    Raises:
        BadInput: the loss is at a point without gradient, has no positive curvature, or does not depend on the block.
    """
    group = _group_of(trainer, block)
    with differentiable([block]):
        if group["oracle"] is not None:
            other_rates = dict.fromkeys(trainer.blocks, 0.0) | dict(rates or {})
            with trainer.on_trial(other_rates):
                if any(other_rates.values()):
                    for _ in range(BESIDE):
                        trainer.update()
                return _zeroth_order(trainer, block, group["oracle"], seed, minibatches, first, steps)
        if "betas" in group:
            return _adam(trainer, block, group, seed, minibatches, lanczos)
        return _exact(trainer, block, group, seed, minibatches, first, lanczos)


def expected_gradients(trainer: Trainer, block: Block, minibatches: int = 3, lanczos: int = LANCZOS) -> float:
    """Gradients that `predicted_limit` will cost, about."""
    group = _group_of(trainer, block)
    if group["oracle"] is not None:
        return minibatches * DIRECTIONS * random_walk.EXPECTED
    products = minibatches * lanczos + 2  # with those of the noise and of the self-checks
    if "betas" in group:
        return _warm_up(trainer) + products * PRODUCT
    return products * PRODUCT


def _group_of(trainer: Trainer, block: Block) -> dict[str, Any]:
    for group in trainer.optimizer.param_groups:
        if any(p is block.params[0] for p in group["params"]):
            return group
    raise BadInput(f"block '{block.name}' is in no group of the optimizer: name one that is trained")


def _zeroth_order(
    trainer: Trainer, block: Block, oracle: Any, seed: Sequence[int], minibatches: int, first: int, steps: int
) -> Prediction:
    if not isinstance(oracle, ZerothOrder):
        raise BadInput(f"oracle {oracle!r} of block '{block.name}' has no known second moment: try rates instead")
    isotropic, directions = _walk(oracle, block)
    pairs = [(first + number, k) for number in range(minibatches) for k in range(DIRECTIONS)]
    curve = random_walk.displacements(trainer, block, directions, pairs, seed)
    limit = random_walk.walk_limit(curve, isotropic)
    shorter = random_walk.walk_limit(curve, isotropic, steps) / limit
    limit *= PULLED_BACK
    pairs_error = float(stats.t.ppf(0.975, len(pairs) - 1)) * random_walk.sampling_error(curve, isotropic)
    edges = [limit * math.exp(end) for end in (0.0, -pairs_error, pairs_error)]
    weakest = "that training pulls back no more, and gains no more, than it did on small networks"
    return Prediction(_widened(edges, "random walk"), "random walk", curve.losses.size, weakest, shorter)


def _walk(oracle: ZerothOrder, block: Block) -> tuple[float, Distribution]:
    """b of E ghat ghat' = a gg' + b ||g||^2 I, and the directions in which many steps lead.

    Low-rank estimates of matrices have no such b: (E ||ghat||^2/||g||^2 - 1)/d stands for it, of the tensor in which it
    is the largest, which exceeds the others' by 2 (m + n + 1)/r of d. A step is of low rank, and the sum of many, with
    new factors each, is not.
    """
    directions = oracle.distribution
    if not isinstance(directions, LowRank):
        moment = outer_moment(oracle, block.dim, block.shapes)
        return moment.isotropic + max(moment.diagonal, 0.0) / block.dim, directions
    single_tensors = np.eye(len(block.shapes))
    largest = max(linear_factor(oracle, block.dim, block.shapes, parts=parts) for parts in single_tensors.tolist())
    if not isinstance(directions, KeptSubspace):
        directions = Gaussian(generator=directions.generator)
    return (largest - 1) / block.dim, directions


def _exact(
    trainer: Trainer,
    block: Block,
    group: dict[str, Any],
    seed: Sequence[int],
    minibatches: int,
    first: int,
    lanczos: int,
) -> Prediction:
    hessians = (ExactHessian(trainer.minibatch_loss(first + number), [block]) for number in range(minibatches))
    value, upper, products = _mean_largest(hessians, block.name, seed, lanczos)
    momentum = {"momentum": group.get("momentum", 0.0), "dampening": group.get("dampening", 0.0)}
    edges = [exact_edge(end, **momentum) for end in (value, upper, value)]
    weakest = "that the curvature stays as at the start, while training may raise or lower it"
    return Prediction(_widened(edges, "exact"), "exact", products * PRODUCT, weakest)


def _mean_largest(
    hessians: Iterable[Products], name: str, seed: Sequence[int], lanczos: int
) -> tuple[float, float, int]:
    """Means over minibatches of the largest eigenvalue and of how large it may be; and the products made."""
    values: list[float] = []
    limits: list[float] = []
    noises: dict[str, float] = {}
    products = 0
    for number, hessian in enumerate(hessians):
        hessian.kept_noise = noises
        run = Deflation(hessian, name, [*seed, number], ())
        run.krylov(lanczos)
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


def _adam(
    trainer: Trainer, block: Block, group: dict[str, Any], seed: Sequence[int], minibatches: int, lanczos: int
) -> Prediction:
    rates = {other_group["name"]: 0.0 for other_group in trainer.optimizer.param_groups}
    members = set(map(id, block.params))
    for other_group in trainer.optimizer.param_groups:
        if id(other_group["params"][0]) in members:
            rates[other_group["name"]] = SLOW * other_group["lr"]
    steps = _warm_up(trainer)
    with trainer.on_trial(rates):
        for _ in range(steps):
            trainer.update()
        root = _preconditioner(trainer, block, group).rsqrt()
        losses = [trainer.minibatch_loss(trainer.step + number) for number in range(minibatches)]
        hessians = (_Preconditioned(ExactHessian(loss, [block]), block, root) for loss in losses)
        value, upper, products = _mean_largest(hessians, block.name, seed, lanczos)
    edges = [adam_edge(end, beta1=group["betas"][0]) for end in (value, upper, value)]
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
    """Products with P^(-1/2) H P^(-1/2)."""

    def __init__(self, hessian: ExactHessian, block: Block, root: Tensor) -> None:
        self._hessian, self._root = hessian, root
        self.blocks, self.loss, self.gradients = {block.name: block}, hessian.loss, {}

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        """P^(-1/2) H P^(-1/2) v."""
        (image,) = self._hessian.product(self._root * v, along, wrt)
        return (self._root * image,)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        """The rounding of sums, at the cost of no product."""
        return float(torch.finfo(v.dtype).eps), 0


def _widened(edges: Sequence[float], condition: str) -> Interval:
    """The interval of a limit's value, low and high end, widened by `MODEL_ERROR` in quadrature of logarithms."""
    value, low, high = edges
    below, above = MODEL_ERROR[condition]
    down = math.hypot(math.log(value / low), math.log(below))
    up = math.hypot(math.log(high / value), math.log(above))
    return Interval(value, value * math.exp(-down), value * math.exp(up))
