"""What a model makes autograd raise is told in one line; checkpointed activations are recomputed by the same kernel."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.hessian.gradients import LossAtPoint


class Raises(torch.autograd.Function):
    """The square, with a backward pass marked once_differentiable whose upstream gradient depends on parameters."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, up: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return 2 * up * w


def _once() -> tuple[Any, nn.Parameter]:
    w = nn.Parameter(torch.linspace(0.5, 1.5, 30))
    return lambda: Raises.apply(w).square().sum(), w


def _inference() -> tuple[Any, nn.Parameter]:
    with torch.inference_mode():
        w = nn.Parameter(torch.ones(5))
    return lambda: w.square().sum(), w


def _inference_batch() -> tuple[Any, nn.Parameter]:
    with torch.inference_mode():
        x = torch.ones(5)
    w = nn.Parameter(torch.ones(5))
    return lambda: (w * x).square().sum(), w


def _complex() -> tuple[Any, nn.Parameter]:
    w = nn.Parameter(torch.ones(5, dtype=torch.complex64))
    return lambda: w.abs().square().sum(), w


def _meta() -> tuple[Any, nn.Parameter]:
    w = nn.Parameter(torch.ones(5, device="meta"))
    return lambda: w.square().sum(), w


def _norm_at_0() -> tuple[Any, nn.Parameter]:
    w = nn.Parameter(torch.zeros(20))
    return lambda: w.norm() + w.sum(), w


def _root_at_0() -> tuple[Any, nn.Parameter]:
    w = nn.Parameter(torch.zeros(20))
    return lambda: w.square().sum().sqrt() + w.sum(), w


def _overflow() -> tuple[Any, nn.Parameter]:
    w = nn.Parameter(torch.full((20,), 1e30))
    return lambda: w.square().sum(), w


@pytest.mark.parametrize(
    "build, words",
    [
        (_once, "(once_differentiable), spectral_norm in train mode: use central differences"),
        (_inference, "made under torch.inference_mode"),
        (_inference_batch, "the minibatch was made under torch.inference_mode"),
        (_complex, "complex parameters (torch.complex64)"),
        (_meta, "device meta"),
        (_norm_at_0, "product of block 'a' is not finite"),
        (_root_at_0, "the gradient of block 'a' is not finite"),
        (_overflow, "the loss is inf"),
    ],
)
def test_one_line_says_what_is_wrong_and_what_to_do(build: Any, words: str) -> None:
    loss, w = build()
    with pytest.raises(BadInput) as told:
        ExactHessian(loss, [Block("a", (w,))]).norms()
    assert words in str(told.value) and "\n" not in str(told.value)


def test_central_differences_work_where_the_line_offers_them() -> None:
    loss, w = _once()  # the sum of w^4, whose Hessian is 12 w^2
    found = FiniteDifferenceHessian(loss, [Block("a", (w,))]).norms()[0]
    truth = float((12 * w.detach().square()).norm())
    assert found.low <= truth <= found.high and found.flag is None


class Attends(nn.Module):
    """Attention under checkpointing, whose recomputation must meet the kernel of the first pass."""

    def __init__(self, *, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.project = nn.Linear(8, 24)
            self.x = torch.randn(2, 5, 8)
        self.scale = nn.Parameter(torch.ones(()))

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)[:, None].chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v)

    def forward(self) -> Tensor:
        if self.reentrant is None:
            return self._attend(self.scale * self.x).square().mean()
        return checkpoint(self._attend, self.scale * self.x, use_reentrant=self.reentrant).square().mean()  # type: ignore[union-attr]


def test_checkpointed_attention_has_the_products_of_plain_attention() -> None:
    plain, recomputed = Attends(reentrant=None), Attends(reentrant=False)
    v = torch.randn(8 * 24 + 25, generator=torch.Generator().manual_seed(1))
    images = [
        ExactHessian(net, [Block("a", tuple(net.parameters()))]).product(v, "a", ["a"])[0]
        for net in (plain, recomputed)
    ]
    assert torch.allclose(*images, rtol=1e-5, atol=1e-6 * float(images[0].abs().max()))


def test_reentrant_checkpointing_is_told_with_what_works() -> None:
    net = Attends(reentrant=True)
    with pytest.raises(BadInput, match="use_reentrant': False"):
        LossAtPoint(net, [Block("a", tuple(net.parameters()))])
