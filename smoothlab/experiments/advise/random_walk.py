"""The stability limit of zeroth-order steps, from the loss where their random walk leads (docs/theory.md, F.9).

A step moves all weights by eta ghat, which is noise but for its part along the gradient. After t steps the weights are
about sigma_t z away from where they would be without that noise, z being a random direction with E zz' = I:

    sigma_{t+1}^2 = sigma_t^2 + eta^2 b S_t,   S_t = S(0) exp(-eta S(0) t/G) + S(sigma_t) - S(0),

where E ghat ghat' = a gg' + b ||g||^2 I, S(sigma) is the mean of ||grad f||^2 over minibatches and directions at
sigma z, and descent gains G (1 - exp(-eta S(0) t/G)), G being half of the loss. A rate is unstable over T steps where
the loss at sigma_T z is above that at the start by more than this gain. The curves of the loss and of S are measured at
a few sigma.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from smoothlab.blocks import Block, dot
from smoothlab.errors import BadInput
from smoothlab.experiments.estimators.model_blocks import size_of
from smoothlab.hessian.gradients import gradient
from smoothlab.trainer import Trainer
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.perturbation import Perturbation

STEPS = 60
"""T, steps over which a rate is called stable."""
GAIN = 0.5
"""Share of the loss at the start that descent can gain."""
FIRST = 2.0**-4
"""The first sigma, in units of the weights' root mean square; the others double or halve it."""
MOST_FACTORS = 20
"""Largest number of doublings or halvings of sigma."""
EXPECTED = 7
"""Distances at which the loss is usually measured, the start among them."""


class Displacements(NamedTuple):
    """The loss and its gradient at random displacements; one column a pair of a minibatch and a direction.

    Attributes:
        squares: sigma^2, ascending from 0, [points].
        losses: f at sigma z, infinite where it is not finite, [points, pairs].
        gradients: ||grad f||^2 there, [points, pairs].
    """

    squares: np.ndarray
    losses: np.ndarray
    gradients: np.ndarray


def displacements(
    trainer: Trainer,
    block: Block,
    distribution: Distribution,
    pairs: Sequence[tuple[int, int]],
    seed: Sequence[int] = (0,),
) -> Displacements:
    """Measure the loss and ||grad f||^2 at displacements up to where the loss has risen by more than descent can gain.

    Args:
        trainer: whose loss is meant.
        block: the parameters that are displaced; they require gradients, and are afterwards as before.
        distribution: of the directions z, E zz' = I.
        pairs: numbers of a minibatch and of a direction of its own; means are over pairs.
        seed: seed of the directions.

    Raises:
        BadInput: the gradient is 0; or the loss rises nowhere, or at once.
    """
    perturbation = Perturbation(block)

    def at(sigma: float) -> list[tuple[float, float]]:
        return [
            _displaced(trainer.minibatch_loss(pair[0]), block, perturbation, distribution, (*seed, *pair), sigma)
            for pair in pairs
        ]

    points = {0.0: at(0.0)}
    start = float(np.mean([loss for loss, _ in points[0.0]]))
    if not sum(squares for _, squares in points[0.0]):
        raise BadInput(
            f"the gradient of block '{block.name}' is 0: the loss, {start:.4g}, is at its floor or does not "
            "depend on the block; take weights from earlier in training, or look at the groups"
        )

    def risen(sigma: float) -> bool:
        points[sigma] = at(sigma)
        return not float(np.mean([loss for loss, _ in points[sigma]])) <= start + GAIN * abs(start)

    sigma = FIRST * (size_of(block) or 1.0)
    factor = 2.0
    if risen(sigma):
        factor = 0.5
    for _ in range(MOST_FACTORS):
        sigma *= factor
        if risen(sigma) == (factor > 1):
            break
    else:
        behavior = "falls or stays" if factor > 1 else "stands far above its start"
        raise BadInput(
            f"the loss, {start:.4g}, {behavior} wherever block '{block.name}' is displaced by {sigma:.2g} z: no limit "
            "is predicted; try rates instead (smoothlab advise --by try)"
        )
    table = np.array([points[sigma] for sigma in sorted(points)])
    return Displacements(np.array(sorted(points)) ** 2, table[..., 0], table[..., 1])


def walk_limit(curve: Displacements, isotropic: float, steps: int = STEPS) -> float:
    """The largest rate that is stable over so many steps.

    >>> import numpy as np
    >>> from smoothlab.experiments.advise.random_walk import Displacements, walk_limit
    >>> squares = np.array([0.0, 1.0, 4.0])
    >>> squared_norm = 1 + 1e6 * squares[:, None]   # of x + sigma z, in 10^6 dimensions: f = ||x||^2/2
    >>> curve = Displacements(squares, squared_norm / 2, squared_norm)
    >>> round(1e6 * walk_limit(curve, 1.0), 2)   # the mean-square edge is 2/(d + 2)
    2.0

    Args:
        curve: what was measured.
        isotropic: b of the estimate's second moment, its part along random directions.
        steps: T.
    """
    reach = math.sqrt(float(curve.squares[-1]) / (isotropic * float(curve.gradients[0].mean())))
    rates = np.geomspace(1e-9 * reach, reach, 200)  # the largest leads to the last point in one step
    for _ in range(2):
        unstable = _above(curve, isotropic, steps, rates)
        stable = max(np.flatnonzero(~unstable), default=0)
        rates = np.geomspace(rates[stable], rates[min(stable + 1, len(rates) - 1)], 200)
    return float(rates[0])


def _above(curve: Displacements, isotropic: float, steps: int, rates: np.ndarray) -> np.ndarray:
    """Whether the loss is above its start after so many steps, for each of some rates."""
    losses, gradients = curve.losses.mean(1), curve.gradients.mean(1)
    start, S = losses[0], gradients[0]
    gain = GAIN * abs(start) or np.finfo(float).tiny
    added = np.maximum(gradients - S, 0.0)
    squares = np.zeros_like(rates)
    for step in range(steps):
        decayed = S * np.exp(-rates * S * step / gain)
        squares += rates**2 * isotropic * (decayed + np.interp(squares, curve.squares, added))
        squares = np.minimum(squares, curve.squares[-1])
    gained = -gain * np.expm1(-rates * S * steps / gain)
    # The last point is where the loss of all pairs has risen by more than that; of some of them it may not have.
    above: np.ndarray = (np.interp(squares, curve.squares, losses - start) > gained) | (squares >= curve.squares[-1])
    return above


def sampling_error(curve: Displacements, isotropic: float, steps: int = STEPS) -> float:
    """Standard error of log `walk_limit` over pairs of a minibatch and a direction, by the jackknife."""
    pairs = curve.losses.shape[1]
    logs = []
    for left_out in range(pairs):
        columns = [k for k in range(pairs) if k != left_out]
        remaining = Displacements(curve.squares, curve.losses[:, columns], curve.gradients[:, columns])
        logs.append(math.log(walk_limit(remaining, isotropic, steps)))
    return math.sqrt((pairs - 1) * float(np.var(logs)))


def _displaced(
    loss: Any, block: Block, perturbation: Perturbation, distribution: Distribution, seed: tuple[int, ...], sigma: float
) -> tuple[float, float]:
    """f and ||grad f||^2 at sigma z; infinite where they are not finite, which only sigma = 0 does not allow."""
    if not sigma:
        value, gradients = gradient(loss, {block.name: block})
    else:
        with perturbation.along(distribution, ((seed, 1.0),), sigma):
            try:
                value, gradients = gradient(loss, {block.name: block})
            except BadInput:
                return math.inf, math.inf
    flat = gradients[block.name]
    return value, dot(flat, flat)
