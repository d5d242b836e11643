"""Moves of a block that leave its weights as they were, to the bit."""

import re
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from smoothlab.blocks import Block, flatten, standing_at
from smoothlab.errors import BadInput
from smoothlab.zeroth.distributions import Coordinate, Gaussian, Rademacher
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.perturbation import ENOUGH_FRACTION, Perturbation
from smoothlab.zeroth.rng import Terms
from smoothlab.zeroth.scaled import Masked

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ONE: Terms = (((3,), 1.0),)
TWO: Terms = (((3,), 0.5), ((4,), -2.0))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """Weights in every position that matters: transposed memory, tied twice, a plain vector of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.first, self.second, self.out = (nn.Linear(4, 4, bias=b) for b in (True, False, False))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=rng).to(dtype)
        self.first.weight.data = self.first.weight.data.t()  # not contiguous
        self.out.weight = self.second.weight
        self.calls, self.fails_at = 0, -1
        self.data = torch.randn(3, 4, generator=rng).to(dtype)

    def forward(self) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(self.data))))
        self.calls += 1
        if self.calls == self.fails_at:
            raise OSError("the loss fails")
        return self.out(h).float().square().mean()

    def block(self) -> Block:
        return Block("net", tuple(self.parameters()))


def state(block: Block) -> list[tuple[Tensor, int, tuple[int, ...]]]:
    return [(p.data.clone(), p.data_ptr(), p.stride()) for p in block.params]


def check_restored(block: Block, before: list[tuple[Tensor, int, tuple[int, ...]]]) -> None:
    for p, (values, address, stride) in zip(block.params, before, strict=True):
        assert torch.equal(p.data, values) and p.data_ptr() == address and p.stride() == stride


def moved_to(block: Block, direction: Terms, h: float) -> list[Tensor]:
    """fl(theta + h z), plainly."""
    z = sum(weight * Gaussian().stream(block, seed).numbers() for seed, weight in direction)
    assert isinstance(z, Tensor)
    if len(direction) == 1:
        z, h = z / direction[0][1], h * direction[0][1]
    return [
        torch.add(p.data.to(part.dtype), part, alpha=h).to(p.dtype)
        for p, part in zip(block.params, block.views(z), strict=True)
    ]


@pytest.mark.parametrize("direction", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_block_stands_where_it_should_and_is_back_after(
    dtype: torch.dtype, layers: bool, keep: bool, direction: Terms
) -> None:
    net = Net(dtype)
    block = net.block()
    before, expected = state(block), moved_to(block, direction, 0.25)
    place = Perturbation(block, keep=keep, layers=net if layers else None)
    with standing_at(block, expected):
        value = net()
    for _ in range(2):
        with place.along(Gaussian(), direction, 0.25):
            if not layers:
                for p, e in zip(block.params, expected, strict=True):
                    assert torch.allclose(p.data, e, rtol=4 * torch.finfo(dtype).eps)
                    assert direction is not ONE or torch.equal(p.data, e)
            found = net()
        assert torch.allclose(found, value, rtol=20 * torch.finfo(dtype).eps)
        check_restored(block, before)
    assert found.item() != net().item(), "it did move"
    assert len(place.kept) == (len(direction) if keep else 0)


@given(st.integers(0, 6), st.sampled_from(DTYPES), st.booleans(), st.booleans())
@settings(deadline=None, derandomize=True, max_examples=25)
def test_an_exception_in_the_loss_leaves_everything_as_it_was(
    fails_at: int, dtype: torch.dtype, layers: bool, keep: bool
) -> None:
    check_exceptions(fails_at, dtype, layers, keep)


def check_exceptions(fails_at: int, dtype: torch.dtype, layers: bool, keep: bool) -> None:
    """The estimator makes 6 evaluations here, by layers 7; with `fails_at` = 0 none of them fails."""
    net = Net(dtype)
    block, net.fails_at = net.block(), fails_at
    before, hooks = state(block), len(net.first._forward_hooks)
    estimator = ZerothOrder(0.25, q=2, keep=keep, layers=net if layers else None)
    if fails_at:
        with pytest.raises(OSError, match="the loss fails"):
            estimator(net, block, [1])
        assert net.calls == fails_at
    else:
        estimator(net, block, [1])
        assert net.calls == 6 + layers
    check_restored(block, before)
    assert len(net.first._forward_hooks) == len(net.first._forward_pre_hooks) == hooks == 0


def test_the_check_sees_a_drift_and_a_move_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore by adding and subtracting, as MeZO's, and none at all after an exception."""
    from contextlib import contextmanager

    @contextmanager
    def drifting(self: Perturbation, distribution: Gaussian, direction: Terms, h: float) -> Iterator[None]:
        parts = self.block.views(distribution.stream(self.block, direction[0][0]).numbers())
        for p, z in zip(self.block.params, parts, strict=True):
            p.data.add_(z, alpha=h)
        yield
        for p, z in zip(self.block.params, parts, strict=True):
            p.data.sub_(z, alpha=h)

    monkeypatch.setattr(Perturbation, "along", drifting)
    monkeypatch.setattr(
        Perturbation, "against", lambda self, distribution, direction, h: drifting(self, distribution, direction, -h)
    )
    for fails_at in (0, 4):
        with pytest.raises(AssertionError):
            check_exceptions(fails_at, torch.bfloat16, False, False)


def test_a_module_called_twice_or_within_another_is_moved_each_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = nn.Linear(3, 3).double(), nn.Parameter(torch.ones(3).double())

        def forward(self) -> Tensor:
            h = self.inner(torch.ones(3).double()) * self.scale
            return (self.inner(h) * self.scale).square().sum()

    net = Twice()
    block = Block("twice", tuple(net.parameters()))
    plain, layered = Perturbation(block), Perturbation(block, layers=net)
    before, values = state(block), []
    for place in (plain, layered):
        with place.along(Gaussian(), ONE, 0.1):
            values.append(net().item())
        check_restored(block, before)
    assert values[0] == values[1] != net().item()


# What layers cannot do


def test_a_weight_used_outside_its_modules_call_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    block = Block("net", tuple(net.parameters()))
    before = state(block)

    def loss() -> Tensor:
        return nn.functional.linear(net[0](torch.ones(2)), net[1].weight, net[1].bias).sum()

    with pytest.raises(
        BadInput, match=r"block 'net': its parameter of shape \(1, 3\) is not used inside a forward call"
    ):
        ZerothOrder(0.1, layers=net)(loss, block, [0])
    check_restored(block, before)


class TiedByHand(nn.Module):
    """An embedding whose weight is the output layer's too, without a module for it."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.embedding, self.mix = nn.Embedding(5, 3), nn.Linear(3, 3)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=rng).double()

    def forward(self) -> Tensor:
        h = torch.tanh(self.mix(self.embedding(torch.arange(4))))
        return nn.functional.linear(h, self.embedding.weight).square().mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_weight_used_inside_and_outside_its_modules_call_is_refused(dtype: torch.dtype) -> None:
    net = TiedByHand().to(dtype)
    block = Block("net", tuple(net.parameters()))
    before = state(block)
    message = r"block 'net': its parameter of shape \(5, 3\) is read outside a forward call.*: leave layers out"
    with pytest.raises(BadInput, match=message) as error:
        ZerothOrder(0.1, layers=net)(net, block, [0])
    assert "\n" not in str(error.value)
    check_restored(block, before)
    rest = Block("mix", tuple(net.mix.parameters()))
    assert ZerothOrder(0.1, layers=net)(net, rest, [0]) == ZerothOrder(0.1)(net, rest, [0])


def test_without_the_check_it_would_get_a_wrong_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Perturbation, "check_layers", lambda *a: None)
    net = TiedByHand()
    block = Block("net", tuple(net.parameters()))
    ((_, wrong),) = ZerothOrder(0.1, layers=net)(net, block, [0]).terms
    ((_, right),) = ZerothOrder(0.1)(net, block, [0]).terms
    assert abs(wrong - right) > 0.05 * abs(right)


def test_parameters_of_another_module_are_refused() -> None:
    net, other = nn.Linear(2, 1), nn.Linear(2, 1)
    with pytest.raises(BadInput, match="block 'net' holds parameters that are not the given module's"):
        Perturbation(Block("net", tuple(net.parameters())), layers=other)


# How much of a step rounding lets through


def weights(dtype: torch.dtype, size: int = 20_000) -> Block:
    return Block("w", (nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)),))


@pytest.mark.parametrize("distribution", [Gaussian(), Rademacher()])
@pytest.mark.parametrize(
    ("dtype", "mu"), [(torch.float32, 1e-9), (torch.bfloat16, 1e-5), (torch.float16, 1e-6), (torch.float64, 1e-18)]
)
def test_a_step_that_rounding_swallows_is_refused_and_the_smallest_sensible_mu_works(
    dtype: torch.dtype, mu: float, distribution: Gaussian | Rademacher
) -> None:
    block = weights(dtype)

    def loss() -> Tensor:
        return block.params[0].double().square().mean()

    with pytest.raises(BadInput) as error:
        ZerothOrder(mu, distribution=distribution)(loss, block, [0])
    message = str(error.value)
    found = re.fullmatch(
        rf"mu = {mu:g} on block 'w' in {str(dtype)[6:]}: rounding lets (\d+) % of the step through; use mu of at least "
        r"(\S+), or keep the weights in a wider type",
        message,
    )
    assert found, message
    assert int(found[1]) < 50
    sensible = float(found[2])
    estimator = ZerothOrder(sensible, distribution=distribution)
    estimator(loss, block, [0])
    share = estimator.realized_fraction(block)
    assert share is not None and share > ENOUGH_FRACTION - 0.02  # printed with two digits
    smaller = Perturbation(block)
    smaller.measure_realized_fraction(distribution, (((0, 0), 1.0),), sensible)
    assert smaller._fraction(distribution.stream(block, (0, 0)), sensible / 2.2) < ENOUGH_FRACTION


def test_the_share_is_what_the_definition_says_and_what_was_measured_in_bf16() -> None:
    """design.md: mu = 1e-5 changes 12 % of bf16 weights of a model and realizes 28 %; here weights are N(0, 1)."""
    block = weights(torch.bfloat16)
    home, z = block.params[0].data, Gaussian().stream(block, (5,)).numbers()
    for mu in (1e-3, 1e-2, 1e-1):
        delta = home.float().add(z, alpha=mu).to(torch.bfloat16).double() - home.double()
        expected = float(delta @ z.double()) / (mu * float(z.double() @ z.double()))
        assert Perturbation(block)._fraction(Gaussian().stream(block, (5,)), mu) == pytest.approx(expected, rel=1e-6)


def test_a_mask_that_keeps_nothing_and_exact_numbers_realize_all() -> None:
    block = Block("w", (nn.Parameter(torch.zeros(50)),))
    place = Perturbation(block)
    place.measure_realized_fraction(Masked((torch.zeros(50).bool(),)), ONE, 1e-3)
    assert place.realized_fraction == 1.0
    place.measure_realized_fraction(Coordinate(), ONE, 1e-30)
    assert place.realized_fraction == pytest.approx(1)


# Kept directions


def test_memory_of_kept_directions_is_taken_once() -> None:
    block = weights(torch.float32, 100)
    place = Perturbation(block, keep=True)
    addresses: list[set[int]] = []
    for step in range(3):
        place.forget()
        for j in range(2):
            with place.along(Gaussian(), (((step, j), 1.0),), 0.1):
                pass
        addresses.append({z.data_ptr() for z in place.kept.values()})
        assert torch.equal(place.kept[step, 1], Gaussian().draw(block, (step, 1)))
    assert addresses[0] == addresses[1] == addresses[2] and len(addresses[0]) == 2


def test_who_holds_old_directions_sees_that_they_are_gone() -> None:
    block = weights(torch.float32, 100)
    place = Perturbation(block, keep=True)
    with place.along(Gaussian(), ONE, 0.1):
        pass
    old = place.kept
    place.forget()
    with place.along(Gaussian(), ONE, 0.1):
        pass
    assert not old and len(place.kept) == 1


@pytest.mark.parametrize("keep", [False, True])
def test_a_block_that_changed_its_dtype_is_moved_in_the_new_one(keep: bool) -> None:
    net = Net(torch.float32)
    block = net.block()
    estimator = ZerothOrder(0.25, keep=keep)
    estimator(net, block, [0])
    for p in block.params:
        p.data = p.data.double()
    net.data = net.data.double()
    now = estimator(net, block, [0])
    assert now == ZerothOrder(0.25)(net, block, [0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_step_back_is_the_realized_step_mirrored(dtype: torch.dtype) -> None:
    """Within rounding: |theta - delta - found| is at most an ulp of the result, or of delta where that is larger."""
    net = Net(dtype)
    block, seen = net.block(), []
    place, by_layers = Perturbation(block), Perturbation(block, layers=net)
    home = flatten(p.detach().double() for p in block.params)
    for way in ("along", "against"):
        with getattr(place, way)(Gaussian(), ONE, 0.25):
            seen.append(flatten(p.detach().double() for p in block.params))
            found = net()
        with getattr(by_layers, way)(Gaussian(), ONE, 0.25):
            assert torch.equal(net(), found)
    delta, back = seen[0] - home, seen[1]
    assert delta.abs().min() > 0
    assert ((home - delta - back).abs() <= torch.finfo(dtype).eps * torch.maximum(back.abs(), delta.abs())).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [False, True])
def test_the_step_back_of_16_bit_numbers_is_a_step_of_its_own(dtype: torch.dtype, layers: bool) -> None:
    """Above a power of two the numbers lie twice as far apart: there a mirrored step would be rounded away."""
    layer = nn.Linear(100, 100, bias=False).to(dtype)
    layer.weight.data.fill_(1.0)
    block = Block("w", (layer.weight,))
    h = torch.finfo(dtype).eps / 4
    expected = moved_to(block, ONE, -h)[0]
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda *_: seen.append(layer.weight.data.clone()))
    place = Perturbation(block, layers=layer if layers else None)
    for way in ("along", "against"):
        with getattr(place, way)(Gaussian(), ONE, h):
            layer(torch.ones(1, 100, dtype=dtype))
    assert torch.equal(seen[1], expected)


def test_a_module_that_calls_itself_is_moved_once_and_brought_back() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3).double())

        def forward(self, x: Tensor, depth: int = 2) -> Tensor:
            return self(x * self.weight, depth - 1) if depth else x.sum()

    module = Again()
    block, x = Block("w", (module.weight,)), torch.ones(3).double()
    estimates = [ZerothOrder(0.1, layers=m)(lambda: module(x), block, [1]).terms for m in (None, module)]
    assert estimates[0] == estimates[1]


def test_memory_is_of_one_block_at_a_time_but_checks_are_kept() -> None:
    estimator, calls = ZerothOrder(0.1), []
    blocks = [Block(name, (nn.Parameter(torch.ones(3).double()),)) for name in "xy"]

    def loss() -> Tensor:
        calls.append(1)
        return sum((p**2).sum() for b in blocks for p in b.params)  # type: ignore[return-value]

    for _ in range(3):
        for block in blocks:
            estimator(loss, block, [0])
    assert len(calls) == 3 * 2 * 2 + 2 * 2, "two more at the first call on each block"
    assert sum(bool(place._moved) for place in estimator._perturbations.values()) == 1


def test_weights_that_have_outgrown_the_step_are_told() -> None:
    block = Block("w", (nn.Parameter(torch.full((100,), 1e-3, dtype=torch.bfloat16)),))

    def loss() -> Tensor:
        return block.params[0].double().square().sum()

    estimator = ZerothOrder(1e-3)
    estimator(loss, block, [0])
    block.params[0].data.fill_(10.0)
    with pytest.raises(BadInput, match=r"rounding lets 0 % of the step through; use mu of at least"):
        estimator(loss, block, [1])


def test_a_loss_that_calls_its_own_estimator_is_refused() -> None:
    block = Block("w", (nn.Parameter(torch.ones(3).double()),))
    estimator = ZerothOrder(0.1)

    def plain() -> Tensor:
        return (block.params[0] ** 2).sum()

    def loss() -> Tensor:
        return plain() + sum(c for _, c in estimator(plain, block, [5]).terms)

    with pytest.raises(BadInput, match="block 'w' is being moved by this estimator: its loss must not call it again"):
        estimator(loss, block, [1])
    assert torch.equal(block.params[0].data, torch.ones(3).double())
