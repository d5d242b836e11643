"""Closures that are no single function of the weights are refused, and nothing has moved."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from smoothlab.blocks import Block, fixed_loss
from smoothlab.errors import BadInput
from smoothlab.optim import closure_check
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.closures import AGAIN, same_function
from smoothlab.zeroth.estimators import ZerothOrder

DATA, LABELS = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2


class Closure:
    """The loss of a net of a few layers between two linear ones, x the first, y the last; `switch` changes it."""

    def __init__(self, *between: nn.Module, first: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.first, self.last = first or nn.Linear(8, 8), nn.Linear(8, 2)
        self.module = nn.Sequential(self.first, nn.Tanh(), *between, self.last).eval()
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return functional.cross_entropy(self.module(DATA), LABELS)

    def switch(self) -> None:
        self.module.train()

    def optimizer(self, sides: int = 1, *, exact: bool = True, lr: float = 1e-3) -> HybridSGD:
        oracle = ZerothOrder(1e-3, sides=sides)  # type: ignore[arg-type]
        groups: list[dict[str, Any]] = [{"params": self.first.parameters(), "oracle": oracle, "name": "x"}]
        return HybridSGD([*groups, {"params": self.last.parameters(), "name": "y"}] if exact else groups, lr)


class Drawing(Closure):
    """From the switch on, minibatches are drawn, by a generator of one's own if there is one."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator, self.drawing = generator, False

    def switch(self) -> None:
        self.drawing = True

    def __call__(self) -> Tensor:
        self.calls += 1
        rows = torch.randint(0, 16, (8,), generator=self.generator) if self.drawing else torch.arange(8)
        return functional.cross_entropy(self.module(DATA[rows]), LABELS[rows])


class Own(nn.Module):
    """Adds noise of a generator of its own in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.generator) if self.training else x


class Clamping(Closure):
    """Writes to its weights."""

    def __call__(self) -> Tensor:
        if self.module.training:
            with torch.no_grad():
                self.last.bias.clamp_(-0.01, 0.01)
        return super().__call__()


class Encoder(Closure):
    """nn.TransformerEncoder with a padding mask, whose padded places count."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 2)
        self.module = nn.ModuleList([encoder, self.head]).eval().to(dtype)
        self.first, self.last = encoder.layers[1].linear1, encoder.layers[0].norm2  # type: ignore[assignment]
        self.data, self.padded = torch.randn(4, 6, 16).to(dtype), torch.zeros(4, 6, dtype=torch.bool)
        self.padded[1:, 4:] = True

    def __call__(self) -> Tensor:
        seen = self.module[0](self.data, src_key_padding_mask=self.padded)
        return functional.cross_entropy(self.head(seen.mean(1)).float(), torch.arange(4) % 2)


def spectral(old: bool) -> nn.Module:
    make: Callable[..., nn.Module] = (
        nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm  # type: ignore[assignment]
    )
    return make(nn.Linear(8, 8))


TWICE = r"the loss on block '[xy]' gives (0\.\d+) and (?!\1)0\.\d+ at the same weights: make it deterministic"
BUFFER = "the loss changes the buffer {} whenever it is computed, .*: put the module into eval mode, or give step"
CASES: dict[str, tuple[Callable[[], Closure], str]] = {
    "dropout": (lambda: Closure(nn.Dropout(0.2)), TWICE),
    "noise of a module's own": (lambda: Closure(Own()), TWICE),
    "minibatches": (Drawing, TWICE),
    "batch norm": (lambda: Closure(nn.BatchNorm1d(8)), BUFFER.format("running_mean of BatchNorm1d")),
    "spectral norm": (lambda: Closure(spectral(False)), BUFFER.format("_u of _SpectralNorm")),
    "spectral norm, old": (lambda: Closure(spectral(True)), BUFFER.format("weight_u of Linear")),
    "weights written to": (lambda: Clamping(), r"writes to a parameter of shape \(2,\) while it is computed, .*: take"),
}


def state(closure: Closure) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in closure.module.state_dict().items()}


def check_unmoved(closure: Closure, before: dict[str, Tensor]) -> None:
    for name, t in closure.module.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert all(p.grad is None and p.requires_grad for p in closure.module.parameters())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", [(1, True), (2, True), (1, False), (2, False)])
def test_it_is_refused_at_the_first_step(name: str, how: tuple[int, bool]) -> None:
    make, words = CASES[name]
    closure = make()
    closure.switch()
    before, (sides, exact) = state(closure), how
    with pytest.raises(BadInput, match=words):
        closure.optimizer(sides, exact=exact).step(closure)
    if exact or name != "weights written to":  # else to those of no group
        check_unmoved(closure, before)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", [(1, True), (2, False)])
def test_it_is_refused_when_it_begins_later(name: str, how: tuple[int, bool]) -> None:
    """Before the weights take a step with such a slope; the next step is as ever once it has stopped."""
    make, words = CASES[name]
    closure, (sides, exact) = make(), how
    optimizer = closure.optimizer(sides, exact=exact)
    for _ in range(3):
        optimizer.step(closure)
    closure.module.zero_grad()
    before = state(closure)
    closure.switch()
    with pytest.raises(BadInput, match=words):
        optimizer.step(closure)
    if name == "weights written to":  # they were
        return
    assert all(torch.equal(p, before[n]) for n, p in closure.module.named_parameters())
    assert optimizer.steps == 3
    closure.module.eval()
    if not isinstance(closure, Drawing):
        optimizer.step(closure)
        assert optimizer.steps == 4


@pytest.mark.parametrize("how", [(1, True), (2, False)])
def test_what_gives_no_sign_is_refused_after_a_while(how: tuple[int, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closure_check, "AGAIN", 8)
    closure, (sides, exact) = Drawing(torch.Generator().manual_seed(1)), how
    optimizer = closure.optimizer(sides, exact=exact, lr=0.0)
    optimizer.step(closure)
    closure.switch()
    with pytest.raises(BadInput, match=TWICE):
        for _ in range(9):
            optimizer.step(closure)
    assert optimizer.steps == 8


class Seeded(Closure):
    """Sets the seed of its dropout by itself."""

    def __call__(self) -> Tensor:
        torch.manual_seed(7)
        return super().__call__()


def masked() -> Any:
    """Batch norm and dropout in train mode, as `fixed_loss` lets them be."""
    closure = Closure(nn.BatchNorm1d(8), nn.Dropout(0.2))
    held = fixed_loss(closure, closure.module, train=True)
    return closure, held


@pytest.mark.parametrize("how", [(1, True), (2, True), (1, False), (2, False)])
def test_what_is_one_function_costs_two_evaluations_now_and_then(
    how: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most two every 128 steps, every 8 here."""
    assert AGAIN == 128
    monkeypatch.setattr(closure_check, "AGAIN", 8)
    sides, exact = how
    seeded = Seeded(nn.Dropout(0.2))
    seeded.switch()
    for closure, held in ((seeded, seeded), masked()):
        optimizer = closure.optimizer(sides, exact=exact, lr=0.0)
        optimizer.step(held)
        buffers = [b.clone() for b in closure.module.buffers()]
        closure.calls = 0
        for _ in range(8):
            optimizer.step(held)
        steps = 8 * {(1, True): 2, (2, True): 3, (1, False): 2, (2, False): 2}[sides, exact]
        assert steps < closure.calls <= steps + 2
        assert all(torch.equal(a, b) for a, b in zip(buffers, closure.module.buffers(), strict=True))


def test_a_mode_that_changes_nothing_is_looked_at_once() -> None:
    """A module that goes to train mode without dropout: its closure is evaluated once more, then never again."""
    closure = Closure(nn.Dropout(0.0))
    optimizer = closure.optimizer()
    optimizer.step(closure)
    closure.switch()
    calls = []
    for _ in range(3):
        closure.calls = 0
        optimizer.step(closure)
        calls.append(closure.calls)
    assert calls == [3, 2, 2]


@pytest.mark.parametrize("sides", [1, 2])
def test_an_encoder_that_is_another_function_without_gradients_is_refused(sides: int) -> None:
    """torch's fast path writes zeros at padded places; the slope was -41.6 for .37."""
    closure = Encoder()
    before = state(closure)
    with pytest.raises(BadInput, match=r"is 0\.\d+ with a graph and 0\.\d+ without .*mha.set_fastpath_enabled"):
        closure.optimizer(sides).step(closure)
    check_unmoved(closure, before)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        optimizer = closure.optimizer(sides, lr=0.0)
        optimizer.step(closure)
        (slope,) = (c for _, c in optimizer.last.gradients["x"].terms)  # type: ignore[union-attr]
        block, z = Block("x", tuple(closure.first.parameters())), optimizer.last.gradients["x"]  # type: ignore
        grads = torch.autograd.grad(closure(), block.params)
        exact = sum(float((g * d).sum()) for g, d in zip(grads, block.views(z.dense(block) / slope), strict=True))
        assert slope == pytest.approx(exact, abs=0.02)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


class Rounded(Closure):
    """Adds in another order without a graph: by `ulps` units more."""

    def __init__(self, ulps: float) -> None:
        super().__init__()
        self.ulps = ulps

    def __call__(self) -> Tensor:
        loss = super().__call__()
        return loss if torch.is_grad_enabled() else loss * (1 + self.ulps * 2.0**-23)


def test_where_no_graph_rounds_otherwise_f_is_evaluated_for_itself() -> None:
    """Within rounding, the difference stays out of the slope; beyond, it is refused. A state remembers which."""
    plain, rounded = Closure(), Rounded(4.0)
    one, two = plain.optimizer(lr=0.0), rounded.optimizer(lr=0.0)
    one.step(plain), two.step(rounded)
    (a,), (b,) = (o.last.gradients["x"].terms for o in (one, two))  # type: ignore[union-attr]
    assert a[1] == pytest.approx(b[1], abs=1e-4) and 4 * 2.0**-23 * 0.7 / 1e-3 > 3e-4
    rounded.calls = 0
    two.step(rounded)
    assert rounded.calls == 3 and two.state_dict()["apart"] and one.state_dict()["apart"] is False
    again = rounded.optimizer(lr=0.0)
    again.load_state_dict({**two.state_dict(), "apart": False})  # the run did not know, and goes on as it would have
    again.step(rounded), again.step(rounded)
    rounded.calls = 0
    again.step(rounded)
    assert rounded.calls == 2
    with pytest.raises(BadInput, match="so that both oracles would see different functions"):
        (far := Rounded(1e5)).optimizer().step(far)


@pytest.mark.parametrize("ulps", [0.0, 4.0])
def test_rounding_that_begins_later_is_seen_when_it_is_time_to_look(ulps: float) -> None:
    rounded = Rounded(0.0)
    optimizer = rounded.optimizer(lr=0.0)
    optimizer.step(rounded)
    rounded.ulps = ulps
    for _ in range(AGAIN - 1):
        optimizer.step(rounded)
    assert optimizer.state_dict()["apart"] is False
    optimizer.step(rounded)
    assert optimizer.state_dict()["apart"] is (ulps > 0)


@pytest.mark.parametrize(
    ("graph", "plain", "eps", "found"),
    [
        (1.0, 1.0, 1e-7, True), (1.0, 1.0 + 9e-5, 1e-7, False), (1.0, 1.0 + 1.1e-4, 1e-7, None),
        (0.01, 0.01 + 9e-5, 1e-7, False), (20.0, 20.0019, 1e-7, False), (20.0, 20.0021, 1e-7, None),
        (1.0, 1.019, 2**-8, False), (1.0, 1.021, 2**-8, None), (1.0, float("nan"), 1e-7, None),
    ],
)  # fmt: skip
def test_what_rounding_explains(graph: float, plain: float, eps: float, found: bool | None) -> None:
    if found is None:
        with pytest.raises(BadInput, match="with a graph"):
            same_function(graph, plain, eps)
    else:
        assert same_function(graph, plain, eps) is found


@pytest.mark.parametrize("where", ["x", "y", "frozen", "estimator", "function"])
def test_embeddings_with_max_norm_are_refused_before_they_write(where: str) -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(10, 4, max_norm=None if where == "function" else 1.0), nn.Linear(4, 2)
    table.weight.data.mul_(5)
    before = table.weight.detach().clone()

    def loss() -> Tensor:
        rows = table(torch.arange(10))
        if where == "function":
            rows = functional.embedding(torch.arange(10), table.weight, max_norm=1.0)
        return functional.cross_entropy(head(rows), torch.arange(10) % 2)

    words = r"Embedding\(max_norm=1\) of shape \(10, 4\) shortens rows .*: set its max_norm to None"
    if where == "function":
        words = r"the loss writes to a parameter of shape \(10, 4\) while it is computed"
    oracle = ZerothOrder(1e-3)
    x, y = (head, table) if where == "y" else (table, head)
    groups: list[dict[str, Any]] = [{"params": x.parameters(), "oracle": oracle}, {"params": y.parameters()}]
    if where == "frozen":
        groups = [{"params": head.parameters(), "oracle": oracle}]
    with pytest.raises(BadInput, match=words):
        if where == "estimator":
            oracle(loss, Block("x", (table.weight,)), 0)
        else:
            HybridSGD(groups).step(loss)
    assert torch.equal(table.weight, before)


def test_exact_groups_alone_are_not_watched() -> None:
    """They are torch's optimizers: dropout, batch norm and random minibatches are theirs to have."""
    closure = Closure(nn.BatchNorm1d(8), nn.Dropout(0.2))
    closure.switch()
    optimizer = HybridSGD([{"params": closure.module.parameters()}])
    for _ in range(3):
        optimizer.step(closure)
    assert closure.calls == 3 and int(closure.module[2].num_batches_tracked) == 3  # type: ignore[arg-type]


@pytest.mark.check
def test_a_compiled_module_is_watched() -> None:
    closure = Closure(nn.Dropout(0.2))
    compiled = torch.compile(closure.module, backend="eager")
    optimizer = closure.optimizer()

    def loss() -> Tensor:
        return functional.cross_entropy(compiled(DATA), LABELS)

    optimizer.step(loss)
    closure.switch()
    with pytest.raises(BadInput, match=TWICE):
        optimizer.step(loss)


class Hidden(Closure):
    """Goes to train mode and back by itself from the switch on, or no longer sets the seed: no flag tells of it."""

    def __init__(self, *between: nn.Module, seeds: bool = False) -> None:
        super().__init__(*between)
        self.seeds, self.on = seeds, seeds

    def switch(self) -> None:
        self.seeds, self.on = False, True

    def __call__(self) -> Tensor:
        if self.seeds:
            torch.manual_seed(7)
        self.module.train(self.on)
        try:
            return super().__call__()
        finally:
            self.module.eval()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Hidden(nn.BatchNorm1d(8)), BUFFER.format("running_mean of BatchNorm1d")),
        (lambda: Hidden(nn.Dropout(0.2), seeds=True), TWICE),
    ],
)
def test_each_sign_is_enough_by_itself(make: Callable[[], Hidden], words: str) -> None:
    closure = make()
    optimizer = closure.optimizer()
    for _ in range(2):
        optimizer.step(closure)
    closure.switch()
    with pytest.raises(BadInput, match=words):
        optimizer.step(closure)
