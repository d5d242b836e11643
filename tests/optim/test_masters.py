"""Where steps of 16-bit weights add up: fp32 masters and factors realize them, the weights alone do not."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, dot, flatten
from smoothlab.errors import BadInput
from smoothlab.llm.compute import compute_in_float32
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.factors import factors_of, merge, with_steps
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.muon import Muon
from smoothlab.zeroth.variant import Variant
from smoothlab.zeroth.variants import Adaptive, Momentum, Plain, Spread, Subspace

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


class Network(nn.Module):
    """An embedding, tied to the head, a linear layer and a norm, all in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.inner = nn.Embedding(10, 24), nn.LayerNorm(24), nn.Linear(24, 24)
        self.head = nn.Linear(24, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        logits = self.head(hidden + self.inner(self.norm(hidden)))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(1, 1).flatten())


def network(*, wide: bool = False) -> Network:
    torch.manual_seed(0)
    model = Network().bfloat16()
    if wide:
        return model.float()
    compute_in_float32(model)
    return model


def optimizer(
    model: Network, *, masters: Any, lr: float = 1e-3, variant: Variant | None = None, **more: Any
) -> HybridSGD:
    oracle = ZerothOrder(distribution=LowRank(2), perturb="forward", dtype=torch.float32, q=2)
    group = {"params": list(model.parameters()), "lr": lr, "oracle": oracle, "name": "x", "variant": variant or Plain()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*without masters")
        return HybridSGD([group], seed=5, masters=masters, **more)


def values(model: Network) -> Tensor:
    """All weights as they stand, in fp64."""
    return flatten(with_steps(p) for p in model.parameters()).double()


@pytest.mark.parametrize(("masters", "low", "high"), [("factors", 0.99, 1.01), (False, 0.0, 0.5)])
def test_a_hundred_tiny_steps_are_realized(masters: Any, low: float, high: float) -> None:
    """<delta, S> / ||S||^2 of the move delta and the sum S of the steps: each is about 1e-3 of the spacing of bf16."""
    model = network()
    start, stepping = values(model), optimizer(model, masters=masters, lr=3e-8)
    block, total = Block("x", tuple(model.parameters())), torch.zeros_like(start)
    for _ in range(100):
        stepping.step(lambda: model(TOKENS))
        assert stepping.last is not None
        total -= 3e-8 * stepping.last.gradients["x"].dense(block).double()
    assert float(total.abs().max()) < 1e-3
    assert low <= dot(values(model) - start, total) / dot(total, total) <= high


VARIANTS = {
    "plain": Plain(),
    "momentum": Momentum(0.5),
    "adaptive": Adaptive(),
    "subspace": Subspace(4),
    "spread": Spread(),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_are_those_of_float32_weights(name: str) -> None:
    """The slow truth: the same network in float32, moved in place. Slopes are differences over 2e-3 of fp32 losses."""
    lr = 1e-3 if name in ("plain", "momentum", "subspace") else 3e-4
    narrow, wide = network(), network(wide=True)
    steppings = [
        optimizer(narrow, masters="factors", lr=lr, variant=VARIANTS[name]),
        optimizer(wide, masters=True, lr=lr, variant=VARIANTS[name]),
    ]
    start = values(wide)
    for _ in range(12):
        losses = [
            float(stepping.step(lambda model=model: model(TOKENS)))
            for stepping, model in zip(steppings, (narrow, wide), strict=True)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    move = values(wide) - start
    assert float(move.norm()) > 0.03 and float((values(narrow) - values(wide)).norm()) < 2e-3 * float(move.norm())
    assert all(p.dtype == torch.bfloat16 for p in narrow.parameters())
    with torch.no_grad():
        assert float(narrow(TOKENS)) == pytest.approx(float(wide(TOKENS)), rel=1e-3)


def test_what_is_saved_goes_on_to_the_bit() -> None:
    def run(stepping: HybridSGD, model: Network, steps: int) -> None:
        for _ in range(steps):
            stepping.step(lambda: model(TOKENS))

    whole = network()
    run(optimizer(whole, masters="factors"), whole, 6)
    stopped = network()
    first = optimizer(stopped, masters="factors")
    run(first, stopped, 4)
    state, resumed = copy.deepcopy(first.state_dict()), network()
    second = optimizer(resumed, masters="factors")
    second.load_state_dict(state)
    run(second, resumed, 2)
    assert torch.equal(values(resumed), values(whole))
    with pytest.raises(BadInput, match="is of other oracles or masters"):
        optimizer(network(), masters=True).load_state_dict(state)


def test_a_seed_log_replays_into_factors_and_into_masters(tmp_path: Path) -> None:
    model = network()
    oracle = ZerothOrder(distribution=LowRank(2))
    log = SeedLog(tmp_path / "log", 5, {0: Block("x", tuple(model.parameters()))}, {0: oracle.distribution})
    stepping = optimizer(model, masters="factors", lr=1e-3, log=log)
    for _ in range(5):
        stepping.step(lambda: model(TOKENS))
    again, masters = network(), network()
    for one, kind in ((again, "factors"), (masters, True)):
        assert optimizer(one, masters=kind).replay(tmp_path / "log") == 5
    assert torch.equal(values(again), values(model))
    merge(model.parameters())
    # Sums in another order, rounded once: a few entries may fall to the other neighbor.
    apart = values(model) != values(masters)
    assert float(apart.double().mean()) < 0.01
    assert bool(((values(model) - values(masters)).abs() <= 2.0**-7 * values(masters).abs())[apart].all())


def test_exact_gradients_of_what_lies_behind_are_those_at_the_sum() -> None:
    """Backward passes add the steps too: gradients of the inputs, which modules before a matrix get."""
    narrow, wide = network(), network(wide=True)
    for model, masters in ((narrow, "factors"), (wide, True)):
        stepping = optimizer(model, masters=masters, lr=1e-3)
        for _ in range(3):
            stepping.step(lambda model=model: model(TOKENS))
    grads = []
    for model in (narrow, wide):
        x = torch.linspace(-1, 1, 48).view(2, 24).requires_grad_(True)
        out = model.head(model.inner(model.norm(x)))
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert float((grads[0] - grads[1]).norm()) < 5e-3 * float(grads[1].norm())
    merged = [with_steps(p).clone() for p in narrow.parameters()]
    assert any(factors_of(p) is not None for p in narrow.parameters()) and len(merged) == 5


def test_what_cannot_be_kept_is_refused() -> None:
    model = network()
    group = {"params": list(model.parameters()), "oracle": ZerothOrder(distribution=LowRank(1)), "name": "x"}
    with pytest.raises(BadInput, match="masters 'factors' for group 'x': its estimator must move weights inside"):
        HybridSGD([group], masters="factors")
    with pytest.raises(BadInput, match="masters = 'fp32': use True"):
        HybridSGD([group], masters="fp32")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="weight_decay = 0.1 with steps kept as factors"):
        optimizer(model, masters="factors", weight_decay=0.1).step(lambda: model(TOKENS))
    with pytest.raises(BadInput, match="are sums of low-rank directions, these are others"):
        optimizer(model, masters="factors", variant=Muon()).step(lambda: model(TOKENS))


def test_a_model_that_would_not_add_the_steps_is_refused() -> None:
    torch.manual_seed(0)
    model = Network().bfloat16()
    stepping = optimizer(model, masters="factors")
    with pytest.raises(BadInput, match="embedding.weight of shape .10, 24. has steps .*compute_in_float32"):
        stepping.step(lambda: model(TOKENS))
