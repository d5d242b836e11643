"""The random walk's limit against closed forms and against simulated zeroth-order runs."""

import math

import numpy as np
import pytest
import torch

from smoothlab.errors import BadInput
from smoothlab.experiments.advise.random_walk import Displacements, displacements, sampling_error, walk_limit
from smoothlab.trainer import Trainer
from smoothlab.zeroth.distributions import Gaussian
from tests.experiments.advise.quadratics import trainer_of

PAIRS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def measured(trainer: Trainer, seed: int = 0) -> Displacements:
    return displacements(trainer, trainer.blocks["base"], Gaussian(), PAIRS, (seed,))


@pytest.mark.parametrize("steps", [20, 60, 500])
@pytest.mark.parametrize("gain", [1e-3, 1e3], ids=["descent ends early", "descent goes on"])
def test_without_feedback_the_limit_is_two_over_b_times_the_trace(steps: int, gain: float) -> None:
    """F = c sigma^2/2 and a constant S: both sides are proportional to the sum of S, however many steps and whatever G.

    sum_t exp(-x t) of the walk is above (1 - exp(-x T))/x of the gain by at most the first term: a share of x/2.
    """
    c, b, S = 40.0, 0.25, 1.0
    squares = np.array([0.0, 1e-6, 1e3])
    curve = Displacements(squares, (2 * gain + c * squares / 2)[:, None], np.full((3, 1), S))
    rate = walk_limit(curve, b, steps)
    assert 1 - rate * S / gain - 1e-3 <= rate * b * c / 2 <= 1 + 1e-3  # rates are known to 5e-4


@pytest.mark.parametrize("steps", [20, 240])
def test_gradients_that_grow_with_the_distance_feed_the_walk(steps: int) -> None:
    """S = 1 + h sigma^2: sigma_T^2 = ((1 + eta^2 b h)^T - 1)/h, and the loss has risen by eta T there."""
    c, h, b = 40.0, 4000.0, 0.25
    squares = np.array([0.0, 1e-6, 1e3])
    curve = Displacements(squares, (1e6 + c * squares / 2)[:, None], (1 + h * squares)[:, None])
    rate = walk_limit(curve, b, steps)
    risen = c / 2 * ((1 + rate**2 * b * h) ** steps - 1) / h
    assert risen == pytest.approx(rate * steps, rel=0.02)
    assert rate < 0.8 * 2 / (b * c)


def test_each_pair_has_its_own_minibatch() -> None:
    """f = sum (x^2/2 + c x) at x = 1, c = 0 and 3: ||grad f||^2 is 4 and 64."""
    curve = measured(trainer_of([1.0] * 4, slopes=(0.0, 3.0)))
    assert curve.gradients[0].tolist() == [4.0, 4.0, 64.0, 64.0]


@pytest.mark.parametrize("spectrum", ["flat", "heavy"])
def test_half_of_simulated_runs_are_unstable_near_the_limit(spectrum: str) -> None:
    """400 dimensions, 200 runs of 60 steps each: the mean loss falls at half of the limit, and rises at twice it."""
    values = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if spectrum == "heavy":
        values = values**6
    limit = walk_limit(measured(trainer_of(values.tolist())), 1.0)
    unstable = [above(values, factor * limit) for factor in (0.5, 2.0)]
    assert unstable[0] < 0.2 and unstable[1] > 0.8


def above(values: torch.Tensor, rate: float, runs: int = 200, steps: int = 60) -> float:
    """Share of runs by one Gaussian direction a step that end above their start."""
    noise = torch.Generator().manual_seed(1)
    x = torch.ones(runs, len(values), dtype=torch.float64)
    start = (values * x.square()).sum(1)
    for _ in range(steps):
        z = torch.randn(x.shape, dtype=torch.float64, generator=noise)
        x -= rate * (values * x * z).sum(1, keepdim=True) * z
    return float(((values * x.square()).sum(1) > start).double().mean())


def test_losses_and_gradients_are_those_at_the_displaced_weights() -> None:
    """For f = x'Hx/2 from x = 1: means over many directions, within 5 standard errors; the weights stay to the bit."""
    values = [4.0, 2.0, 1.0, 0.5]
    trainer = trainer_of(values)
    pairs = [(0, k) for k in range(400)]
    curve = displacements(trainer, trainer.blocks["base"], Gaussian(), pairs)
    h = np.array(values)
    for square, losses, gradients in zip(*curve, strict=True):
        for found, truth in ((losses, (1 + square) * h.sum() / 2), (gradients, (1 + square) * (h**2).sum())):
            assert abs(found.mean() - truth) <= 5 * found.std() / 20 + 1e-9
    assert curve.squares[0] == 0 and curve.losses[-1].mean() > 1.5 * curve.losses[0].mean()
    assert trainer.blocks["base"].params[0].tolist() == [1.0] * 4


def test_the_sampling_error_is_the_spread_of_limits() -> None:
    """60 measurements of 4 pairs each on a rough curve: jackknife and spread agree within a factor of 1.5."""
    rng = np.random.default_rng(0)
    squares = np.array([0.0, 1.0, 4.0, 16.0])
    logs, errors = [], []
    for _ in range(60):
        scale = np.exp(rng.normal(0, 0.4, 4))
        losses = 1 + scale * squares[:, None]
        curve = Displacements(squares, losses, np.ones((4, 4)))
        logs.append(math.log(walk_limit(curve, 1e-3)))
        errors.append(sampling_error(curve, 1e-3))
    assert 1 / 1.5 < float(np.mean(errors)) / float(np.std(logs)) < 1.5


def test_nothing_is_stable_beyond_the_last_point() -> None:
    """Where the loss of some pairs has not risen there: 60 steps at S = 1 reach sigma^2 = 1 at eta^2 b 60 = 1."""
    curve = Displacements(np.array([0.0, 1.0]), np.full((2, 3), 1e6), np.ones((2, 3)))
    assert walk_limit(curve, 1e-3, 60) == pytest.approx(60e-3**-0.5, rel=1e-3)


def test_a_loss_that_is_not_finite_anywhere_near_is_refused() -> None:
    trainer = trainer_of([1.0])

    def loss(_: object, __: object) -> torch.Tensor:
        x = trainer.blocks["base"].params[0]
        return (x / (x.detach() == 1.0)).sum()

    trainer.loss = loss
    with pytest.raises(BadInput, match="far above its start wherever block 'base' is displaced"):
        measured(trainer)
