"""Blocks, probes, shifts and fixed losses."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab import blocks as module_under_test
from smoothlab import shift as module_of_passes
from smoothlab.blocks import Block, check_partition, dot, fixed_loss, flatten, norm
from smoothlab.errors import BadInput
from smoothlab.shift import Shift, in_passes
from smoothlab.zeroth.distributions import draw

DISTRIBUTIONS = ("gaussian", "rademacher", "sphere")
DTYPES = (torch.float32, torch.float64)


def block(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, name: str = "b") -> Block:
    return Block(name, tuple(nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Blocks


def test_views_are_the_flat_vector_in_the_shapes_of_the_parameters() -> None:
    b = block((2, 3), (), (4,))
    flat = torch.arange(11.0)
    views = b.views(flat)
    assert b.dim == 11 and [tuple(v.shape) for v in views] == [(2, 3), (), (4,)]
    assert torch.equal(flatten(views), flat)
    views[0][1, 2] = -1.0
    assert flat[5] == -1.0, "views share the vector's memory"


BAD_BLOCKS = {
    "empty": (lambda: Block("x", ()), "block 'x' has no parameters"),
    "two dtypes": (
        lambda: Block("x", (torch.zeros(2), torch.zeros(2).double())),
        "mixes torch.float32 on cpu, torch.float64 on cpu",
    ),
    "two devices": (lambda: Block("x", (torch.zeros(2), torch.zeros(2, device="meta"))), "on meta"),
}


@pytest.mark.parametrize("case", BAD_BLOCKS)
def test_impossible_blocks_are_refused(case: str) -> None:
    make, message = BAD_BLOCKS[case]
    with pytest.raises(BadInput, match=message):
        make()


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


def _partition(which: str) -> tuple[list[Block], list[tuple[str, Tensor]]]:
    model = _model()
    p = dict(model.named_parameters())
    first, second = (p["0.weight"], p["0.bias"]), (p["1.weight"], p["1.bias"])
    if which == "in two":
        second = (*second, p["0.bias"])
    elif which == "twice in one":
        first = (*first, p["0.bias"])
    elif which == "in none":
        second = (p["1.weight"],)
    elif which == "of another model":
        second = (*second, nn.Parameter(torch.zeros(7)))
    elif which == "shared memory":
        p["1.bias"].data = p["0.bias"].data[:2]
    elif which == "shared memory within a block":
        p["1.bias"].data = p["1.weight"].data.view(-1)[4:]
    return [Block("x", first), Block("y", second)], list(p.items())


BAD_PARTITIONS = {
    "in two": r"parameter 0\.bias is in blocks 'x' and 'y'",
    "twice in one": r"parameter 0\.bias is in blocks 'x' and 'x'",
    "of another model": r"block 'y' holds a parameter of shape \(7,\) that is not the model's",
    "in none": r"parameter 1\.bias is in no block",
    "shared memory": r"parameter (0|1)\.bias shares its memory",
    "shared memory within a block": r"parameter 1\.(weight|bias) shares its memory",
}


@pytest.mark.parametrize("case", BAD_PARTITIONS)
def test_what_is_no_partition_is_named(case: str) -> None:
    with pytest.raises(BadInput, match=BAD_PARTITIONS[case]):
        check_partition(*_partition(case))


def test_partitions_pass_and_a_tied_parameter_counts_once() -> None:
    check_partition(*_partition("right"))
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    twice = [("0.weight", model[0].weight), ("1.weight", model[1].weight)]
    check_partition([Block("x", tuple(model.parameters()))], twice)
    empty = block((0,), (3,), (0,))  # parameters without entries have no memory to share
    check_partition([empty], [(str(i), p) for i, p in enumerate(empty.params)])


# Sums


def _dot_error(n: int) -> float:
    a = torch.rand(n, generator=torch.Generator().manual_seed(0))
    return abs(dot(a, a) / float(np.dot(a.double().numpy(), a.double().numpy())) - 1)


def test_dot_of_twenty_million_entries_keeps_fp32_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 20_000_000
    eps = torch.finfo(torch.float32).eps
    assert _dot_error(n) < 4 * eps
    monkeypatch.setattr(module_under_test, "_RUN", n)  # one fp32 sum over all: the error that the runs avoid
    assert _dot_error(n) > 40 * eps


def test_dot_takes_any_length_and_norm_is_its_root() -> None:
    for n in (0, 1, 3, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 200_001):
        a, b = normal(n, seed=1), normal(n, seed=2)
        scale = float((a * b).abs().sum())
        assert abs(dot(a, b) - float(a @ b)) <= 1e-14 * scale
        assert norm(a) == pytest.approx(float(a.norm()), rel=1e-14)


# Passes over blocks


LAYOUTS = {
    "one": [1],
    "large": [1003],
    "large among small": [0, 3, 7, 1003, 5, 99, 100, 2, 250, 251, 1],
    "small ones that fill more than a pass": [9] * 100,
    "no entries": [0, 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pass_visits_every_entry_once_in_few_pieces(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_passes, "_PASS", 100)
    monkeypatch.setattr(module_of_passes, "_SMALL", 10)
    sizes = LAYOUTS[layout]
    a, b, found = (normal(sum(sizes), seed=seed) for seed in (1, 2, 3))
    visited = []

    def work(place: Tensor, x: Tensor, y: Tensor) -> None:
        visited.append(place.numel())
        torch.sub(x, y, out=place)

    in_passes(work, found.split(sizes), a.split(sizes), b.split(sizes))
    assert torch.equal(found, a - b)
    assert sum(visited) == sum(sizes) and max(visited) <= 100
    large = sum(-(-size // 100) for size in sizes if size >= 10)
    assert len(visited) <= large + 1 + sum(size for size in sizes if size < 10) // (100 - 10)


# Shifts


def _odd_block(kind: str) -> Block:
    if kind == "plain":
        tensors = [normal(70_001, seed=1), normal(3, 4, seed=2)]
    elif kind == "large among small":
        tensors = [normal(size, seed=size).float() for size in (3, 600_000, 1, 40_000, *range(100, 140), 8192, 8191)]
    elif kind == "not contiguous":
        tensors = [normal(30, 20, seed=1).t(), normal(10, 8, seed=2)[:, ::2]]
    elif kind == "views of one storage":
        whole = normal(20, seed=1)
        tensors = [whole[:12].view(3, 4), whole[12:]]
    else:
        tensors = [normal(5, seed=1).float(), torch.tensor(2.0)]
    parameters = tuple(nn.Parameter(torch.empty(0)) for _ in tensors)
    for p, t in zip(parameters, tensors, strict=True):
        p.data = t
    return Block("x", parameters)


ODD = ["plain", "large among small", "not contiguous", "views of one storage", "fp32 and a scalar"]


@pytest.mark.parametrize("kind", ODD)
def test_shift_moves_and_brings_back_the_very_same_memory(kind: str) -> None:
    b = _odd_block(kind)
    home = [(p.data_ptr(), p.stride(), p.detach().clone()) for p in b.params]
    kept = [p.data for p in b.params]
    v, h = draw(b, "gaussian", [0]), 1e-3
    shift = Shift(b)
    for sign in (1, -1, 1):  # a shift is used again and again
        with shift.along(v, sign * h):
            moved = flatten(p.detach() for p in b.params)
            for place, (_, _, value) in zip(kept, home, strict=True):
                assert torch.equal(place, value), "its own memory is never written"
        delta = moved.double() - flatten(value for _, _, value in home).double()
        assert torch.allclose(delta, sign * h * v.double(), rtol=0, atol=float(torch.finfo(v.dtype).eps) * 8)
        assert shift.realized == pytest.approx(float(delta @ v.double()), rel=1e-6)
    for p, (pointer, stride, value) in zip(b.params, home, strict=True):
        assert p.data_ptr() == pointer and p.stride() == stride and torch.equal(p, value)


def test_shift_brings_back_after_an_exception() -> None:
    b = _odd_block("plain")
    before = [(p.data_ptr(), p.detach().clone()) for p in b.params]
    with pytest.raises(RuntimeError, match="inside"), Shift(b).along(draw(b, "gaussian", [0]), 0.1):
        raise RuntimeError("inside")
    assert all(
        p.data_ptr() == pointer and torch.equal(p, value) for p, (pointer, value) in zip(b.params, before, strict=True)
    )


def test_realized_is_what_rounding_let_through() -> None:
    b = Block("x", (nn.Parameter(torch.ones(1000)),))
    v = torch.ones(1000)
    half_ulp_up, half_ulp_down = 2.0**-24, 2.0**-25  # of 1, towards 2 and towards 0
    shift = Shift(b)
    with shift.along(v, 0.9 * half_ulp_up):
        assert shift.realized == 0.0
    with shift.along(v, 1.1 * half_ulp_up):
        assert shift.realized == 1000 * 2 * half_ulp_up
    with shift.along(v, -0.9 * half_ulp_down):
        assert shift.realized == 0.0


# Fixed losses


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop, self.norm = nn.Linear(3, 8), nn.Linear(8, 1), nn.Dropout(0.5), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(self.norm(self.a(x))))


def _net() -> tuple[_Net, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _Net()
        net.norm.eval()  # flags are mixed, as with a frozen norm
        return net, torch.randn(6, 3)


def test_fixed_loss_in_eval_mode_is_the_loss_without_dropout() -> None:
    net, x = _net()
    loss = fixed_loss(lambda: net(x).square().mean(), net)
    value = loss()
    net.eval()
    assert torch.equal(value, net(x).square().mean())


def test_fixed_loss_in_train_mode_fixes_the_mask_by_its_seed() -> None:
    net, x = _net()

    def at(seed: int) -> Tensor:
        return fixed_loss(lambda: net(x).square().mean(), net, train=True, seed=seed)()

    assert torch.equal(at(0), at(0))
    assert len({float(at(seed).detach()) for seed in range(5)}) == 5


class _SpeechNet(_Net):
    """Draws as models for speech do: a mask from numpy, a layer to leave out from Python. BigBird also seeds numpy."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * float(np.random.rand())
        np.random.seed(3)
        return super().forward(x) * random.uniform(0.5, 1.5)


@pytest.mark.parametrize("seed", [0, -1, 2**40 + 5])
def test_fixed_loss_fixes_what_a_model_draws_from_numpy_and_python(seed: int) -> None:
    torch.manual_seed(0)
    net, x = _SpeechNet(), torch.randn(6, 3)

    def at(seed: int) -> float:
        return fixed_loss(lambda: net(x).square().mean(), net, train=True, seed=seed)().item()

    np.random.seed(7)
    random.seed(7)
    expected = np.random.rand(), random.random()
    np.random.seed(7)
    random.seed(7)
    assert at(seed) == at(seed) != at(seed + 1)
    assert (np.random.rand(), random.random()) == expected


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_fixed_loss_leaves_flags_buffers_and_rng_alone(train: bool, fails: bool) -> None:
    net, x = _net()
    before = [(n, b.data_ptr(), b.clone()) for n, b in net.named_buffers()]
    flags = {n: m.training for n, m in net.named_modules()}

    def compute() -> Tensor:
        value = net(x + torch.rand(1)).square().mean()
        if fails:
            raise RuntimeError("in the loss")
        return value

    torch.manual_seed(11)
    rng = torch.get_rng_state()
    loss = fixed_loss(compute, net, train=train)
    if fails:
        with pytest.raises(RuntimeError, match="in the loss"):
            loss()
    else:
        assert loss().requires_grad
    assert torch.equal(rng, torch.get_rng_state())
    assert flags == {n: m.training for n, m in net.named_modules()}
    for (name, pointer, value), (_, buffer) in zip(before, net.named_buffers(), strict=True):
        assert buffer.data_ptr() == pointer and torch.equal(buffer, value), name


def test_fixed_loss_in_train_mode_has_the_gradient_of_batch_normalization() -> None:
    net, x = _net()
    net.drop.p = 0.0
    parameters = list(net.parameters())
    found = torch.autograd.grad(fixed_loss(lambda: net(x).square().mean(), net, train=True)(), parameters)
    net.train()
    expected = torch.autograd.grad(net(x).square().mean(), parameters)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
