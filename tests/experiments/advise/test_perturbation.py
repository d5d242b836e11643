"""The best mu from values of the loss, against the error of directional derivatives that are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.perturbation import best_perturbation
from smoothlab.experiments.estimators import ucurve
from smoothlab.experiments.estimators.model_blocks import values_along
from smoothlab.stats.samples import lowest
from smoothlab.zeroth.distributions import Gaussian

MUS = np.geomspace(1e-5, 1.0, 21)


def cosh_block(dtype: torch.dtype, size: float = 0.5) -> tuple[Block, "Tensor"]:
    torch.manual_seed(0)
    x = (size * torch.randn(64)).to(dtype)
    return Block("base", (x,)), x


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_at_the_best_mu_is_near_the_least_that_any_mu_has(sides: int, dtype: torch.dtype) -> None:
    """f(x) = mean of cosh(x_i), computed in the dtype of x; 60 directions whose derivatives are known in fp64."""
    block, x = cosh_block(dtype)

    def loss() -> Tensor:
        return torch.cosh(block.params[0]).mean()

    exact: list[float] = []
    truth = torch.sinh(x.double()) / 64
    both = values_along(
        loss, block, (5,), 60, np.concatenate([MUS, -MUS]), lambda z: exact.append(float(z.double() @ truth))
    )
    plus, minus = np.split(both, 2, axis=1)
    at = dict(zip(MUS, plus.T, strict=True)) | dict(zip(-MUS, minus.T, strict=True))
    errors = ucurve.errors(at.__getitem__, float(loss()), np.array(exact), list(MUS))[sides]
    best = best_perturbation(loss, block, Gaussian(), sides)
    curve = np.sqrt((errors**2).mean(0))
    at_best = math.exp(np.interp(math.log(best.mu.value), np.log(MUS), np.log(curve)))
    assert at_best < 2 * curve.min()
    measured = lowest(MUS, errors**2)
    assert best.mu.low <= measured.high and measured.low <= best.mu.high
    assert (best.flag is None) == (best.error < 0.3 * best.slope) and (dtype.itemsize == 2 or best.flag is None)


def test_a_loss_that_does_not_depend_on_the_block_is_refused_in_one_line() -> None:
    block, _ = cosh_block(torch.float32)
    with pytest.raises(BadInput, match="does not bend along block 'base'") as caught:
        best_perturbation(lambda: torch.tensor(1.0), block, Gaussian(), 2)
    assert "\n" not in str(caught.value)
