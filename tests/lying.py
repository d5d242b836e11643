"""Models whose gradient or Hessian-vector products are not their loss's, as data, and sound ones beside them.

Each builds (loss, blocks). What is wrong with each stands in its name; dense truth comes from differences of the loss
or of gradients that are right.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from smoothlab.blocks import Block, Loss


class Lie(NamedTuple):
    """A model that lies, and what is wrong: its "products", its "gradient", a loss that does not repeat, "infinite"."""

    name: str
    build: Callable[[], tuple[Loss, list[Block]]]
    kind: str


class Once(torch.autograd.Function):
    """W^4/4 with a right backward pass that is marked once_differentiable; silent where its output enters linearly."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w**4 / 4

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, up: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return up * w**3


class HalfDouble(torch.autograd.Function):
    """Sin(w) w, whose backward pass is right and half of which is a constant when it is differentiated itself."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w, w.cos())
        return w.sin() * w

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Tensor:
        w, cosine = ctx.saved_tensors
        return up * (w.sin() + cosine.detach() * w)


class Rounded(torch.autograd.Function):
    """Straight-through rounding to multiples of 1/4."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return (w * 4).round() / 4

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Tensor:
        return up


def _data(n: int = 12, features: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, features, generator=generator).double(), torch.randn(n, generator=generator).double()


def _whole(module: nn.Module) -> list[Block]:
    return [Block("base", tuple(p for p in module.parameters() if p.requires_grad))]


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


def _regression(module: nn.Module) -> tuple[Loss, list[Block]]:
    x, y = _data()
    return lambda: (module(x)[:, 0] - y).square().mean(), _whole(module)


def _weights(shape: int = 30) -> nn.Parameter:
    generator = torch.Generator().manual_seed(2)
    return nn.Parameter(torch.randn(shape, generator=generator).double())


def once() -> tuple[Loss, list[Block]]:
    """f = sum of w^4/4."""
    w = _weights()
    return lambda: Once.apply(w).sum(), [Block("base", (w,))]


def half_double() -> tuple[Loss, list[Block]]:
    """A small network with the half-differentiated function as its activation."""

    class Act(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return HalfDouble.apply(h)

    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(6, 8), Act(), nn.Linear(8, 1))
        with torch.no_grad():
            net[0].weight.mul_(4)  # the half that is lost grows with the activations
        return net

    return _regression(_seeded(make))


def weight_norm(form: Callable[..., Any]) -> Callable[[], tuple[Loss, list[Block]]]:
    """A tanh network under torch's weight_norm, whose double backward is wrong on a CPU (torch 2.13)."""
    return lambda: _regression(
        _seeded(lambda: nn.Sequential(form(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 1))),
    )


class DetachedNorm(nn.Module):
    """W / ||w||, the norm taken as a constant."""

    def forward(self, w: Tensor) -> Tensor:
        return w / w.norm(dim=1, keepdim=True).detach()


def detached_norm() -> tuple[Loss, list[Block]]:
    """A tanh network whose first layer has rows of norm 1, the norm held constant."""

    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        parametrize.register_parametrization(net[0], "weight", DetachedNorm())
        return net

    return _regression(_seeded(make))


def straight_through() -> tuple[Loss, list[Block]]:
    """A tanh network whose first layer's weights are rounded."""

    class Round(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return Rounded.apply(w)

    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        parametrize.register_parametrization(net[0], "weight", Round())
        return net

    return _regression(_seeded(make))


class Words(nn.Module):
    """Mean of embedded tokens, then a score per vocabulary word; the padding row is looked up as if it were text."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6, padding_idx=1)
        nn.init.normal_(self.embedding.weight)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self) -> Tensor:
        ids = torch.tensor([[3, 1, 5], [1, 1, 9], [4, 7, 1], [2, 8, 1]])
        h = torch.tanh(self.body(self.embedding(ids)).mean(1))
        return nn.functional.cross_entropy(self.head(h), torch.tensor([5, 9, 7, 1]))


def padding_row(tied: bool) -> Callable[[], tuple[Loss, list[Block]]]:
    """A language model whose padding token is real text (pad = eos), its head tied to the embedding or not."""

    def build() -> tuple[Loss, list[Block]]:
        model = _seeded(lambda: Words(tied))
        return model, _whole(model)

    return build


def reentrant() -> tuple[Loss, list[Block]]:
    """A body under reentrant checkpointing whose input needs no gradient: it moves the loss and gets none."""
    x, y = _data()
    body = _seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh()))
    head = _seeded(lambda: nn.Linear(8, 1))

    def loss() -> Tensor:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            h = checkpoint(body, x, use_reentrant=True)
        return (head(h)[:, 0] - y).square().mean()

    return loss, [Block("base", (*body.parameters(), *head.parameters()))]


def spectral_norm() -> tuple[Loss, list[Block]]:
    """Spectral_norm in train mode, whose power iteration is no function of the weights alone."""

    def make() -> nn.Module:
        return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 1))

    return _regression(_seeded(make).train())


def infinite() -> tuple[Loss, list[Block]]:
    """Sum of |w|^1.5 with entries at 0, where the Hessian is infinite."""
    w = _weights()
    with torch.no_grad():
        w[::3] = 0.0
    return lambda: w.abs().pow(1.5).sum() + w.square().mean(), [Block("base", (w,))]


def dropout() -> tuple[Loss, list[Block]]:
    """Dropout in train mode: another loss each time."""
    return _regression(_seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))).train())


LIES = [
    Lie("once differentiable", once, "products"),
    Lie("wrong double backward", half_double, "flagged"),
    Lie("weight_norm, parametrization", weight_norm(parametrizations.weight_norm), "products"),
    Lie("weight_norm, hook", weight_norm(nn.utils.weight_norm), "products"),
    Lie("detached norm", detached_norm, "gradient"),
    Lie("straight-through rounding", straight_through, "gradient"),
    Lie("padding row", padding_row(False), "gradient"),
    Lie("padding row, tied", padding_row(True), "gradient"),
    Lie("reentrant checkpointing", reentrant, "gradient"),
    Lie("spectral_norm in train mode", spectral_norm, "repeats"),
    Lie("infinite Hessian", infinite, "infinite"),
    Lie("dropout", dropout, "repeats"),
]
