"""Functions of known derivatives, and many estimates at once."""

from itertools import product

import numpy as np
import pytest
import torch

from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.estimators.synthetic import SHAPES, Ridges, directions, frames, slopes
from smoothlab.zeroth.distributions import Coordinate, Gaussian, Rademacher, Sphere, named
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank


@pytest.mark.parametrize("shape", SHAPES)
def test_taylor_tensors_are_the_functions_derivatives(shape: str) -> None:
    f = Ridges.random(shape, 4, 1)
    at = torch.tensor(f.point, requires_grad=True)
    taylor = f.taylor()
    value: torch.Tensor = f.values(at)
    for tensor in (taylor.gradient, taylor.hessian, taylor.third, taylor.fourth):
        value = torch.stack([torch.autograd.grad(one, at, create_graph=True, allow_unused=True,
                                                 materialize_grads=True)[0] for one in value.reshape(-1)]).view(
            *value.shape, 4
        ) if value.requires_grad else torch.zeros(*value.shape, 4)  # fmt: skip
        expected = np.zeros(value.shape) if tensor is None else tensor
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def cases() -> list[ZerothOrder]:
    singles = [
        ZerothOrder(0.3, sides=sides, distribution=distribution)
        for sides, distribution in product((1, 2), map(named, Estimators().distributions))
    ]
    averages = [ZerothOrder(0.3, sides=sides, q=4, average=average) for sides, average in
                ((2, "plain"), (1, "plain"), (1, "antithetic"), (2, "orthogonal"), (1, "orthogonal"))]  # fmt: skip
    return singles + averages


@pytest.mark.parametrize("estimator", cases(), ids=lambda estimator: estimator.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_estimates_at_once_are_those_made_one_at_a_time(estimator: ZerothOrder, dtype: torch.dtype) -> None:
    f = Ridges.random("quartic", 6, 2)
    block = f.block(dtype)
    drawn = directions(estimator.distribution, block, (3,), 3, estimator.q)
    together = slopes(f, estimator.mu, estimator.sides, frames(estimator, drawn), dtype).estimates
    for i, found in enumerate(together):
        alone = estimator(lambda: f.values(block.params[0].reshape(-1)), block, (3, i)).dense(block)
        rounding = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
        np.testing.assert_allclose(found, alone.double().numpy(), rtol=rounding, atol=rounding)


@pytest.mark.parametrize("distribution", [Rademacher(), Coordinate()])
def test_means_on_cosh_are_those_of_all_directions(distribution: Rademacher | Coordinate) -> None:
    f, mu = Ridges.random("cosh", 4, 3), 0.8
    if isinstance(distribution, Rademacher):
        every = np.array(list(product((-1.0, 1.0), repeat=4)))
    else:
        every = np.concatenate([np.eye(4), -np.eye(4)]) * 2
    for sides in (1, 2):
        found = slopes(f, mu, sides, torch.tensor(every)[:, None], torch.float64).estimates.mean(0)
        np.testing.assert_allclose(found, f.mean(ZerothOrder(mu, distribution=distribution)), rtol=1e-12)


@pytest.mark.parametrize("distribution", [Gaussian(), Sphere()])
def test_means_on_cosh_agree_with_samples(distribution: Gaussian) -> None:
    f, mu, n = Ridges.random("cosh", 4, 3), 0.8, 200_000
    z = np.random.default_rng(0).standard_normal((n, 1, 4))
    if isinstance(distribution, Sphere):
        z *= 2 / np.linalg.norm(z, axis=2, keepdims=True)
    found = slopes(f, mu, 2, torch.tensor(z), torch.float64).estimates
    off = (found.mean(0) - f.mean(ZerothOrder(mu, distribution=distribution))) / (found.std(0) / n**0.5)
    assert np.abs(off).max() < 4


def test_the_mean_of_low_rank_directions_goes_by_the_matrix() -> None:
    f = Ridges.random("cubic", 9, 0)
    assert f.matrix == (3, 3) and f.taylor(2).shapes == ((3, 3),) and f.block(torch.float32).params[0].shape == (3, 3)
    means = [f.mean(ZerothOrder(0.5, distribution=distribution)) for distribution in (LowRank(1), Gaussian())]
    assert np.linalg.norm(means[0] - means[1]) > 0.1 * np.linalg.norm(means[1] - f.taylor(2).gradient)
    assert f.exact(LowRank(1)) and not Ridges.random("cosh", 9, 0).exact(LowRank(1))
