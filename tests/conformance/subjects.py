"""Right optimizers as data for the suite: every estimator of tests/cases.py, and hybrid steps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.control_variate import ControlVariate
from smoothlab.zeroth.estimators import ZerothOrder
from tests.cases import ESTIMATORS


def estimator(name: str, **more: Any) -> Callable[..., ZerothOrder]:
    """The maker of a case of tests/cases.py."""

    def make(params: Sequence[Tensor], lr: float, seed: int, model: nn.Module, mu: float = 1e-3) -> ZerothOrder:
        return ESTIMATORS[name].build(tuple(tuple(p.shape) for p in params), mu, model, **more)

    return make


def hybrid(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3, exact: Sequence[Tensor] = ()) -> HybridSGD:
    """HybridSGD with zeroth-order gradients for `params` and exact ones for `exact`."""
    groups: list[dict[str, Any]] = [{"params": params, "lr": lr, "oracle": ZerothOrder(mu=mu)}]
    if exact:
        groups.append({"params": exact, "lr": lr})
    return HybridSGD(groups, seed=seed)


def control_variate(params: Sequence[Tensor], lr: float, seed: int, loss: Callable[[], Tensor]) -> ControlVariate:
    """A control variate whose anchor is the start, where it has no noise."""
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(), params)])
    return ControlVariate(ZerothOrder(), Block("theta", tuple(params)), gradient)
