"""Several evaluations in one forward pass against one after the other: reads, estimates, moments, refusals."""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth import products, repetition, vectors
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.forward import ForwardPerturbation
from smoothlab.zeroth.low_rank import KeptSubspace, LowRank
from smoothlab.zeroth.moments import mean, second_moment
from smoothlab.zeroth.repetition import BatchedLoss, separating_sets
from smoothlab.zeroth.rng import GeneratorName
from tests.mutations import Mutation, broken
from tests.zeroth.test_estimators import check_sample
from tests.zeroth.test_estimators import one_thread as one_thread
from tests.zeroth.test_forward import SHAPES, Products
from tests.zeroth.test_perturbation import check_restored, state

IDS = torch.tensor([[4, 0, 2], [2, 5, 2]])


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64)


# One read of a parameter

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]
MATRICES: dict[str, tuple[tuple[int, int], Compute]] = {
    "linear": ((6, 5), lambda a, x, ids: functional.linear(x, a)),
    "linear of strided rows": ((6, 5), lambda a, x, ids: functional.linear(x.mT.contiguous().mT, a)),
    "Conv1D": ((5, 6), lambda a, x, ids: torch.addmm(torch.ones(6).to(x), x.view(-1, 5), a, alpha=0.5)),
    "x @ A": ((5, 6), lambda a, x, ids: x @ a),
    "x @ A.T": ((6, 5), lambda a, x, ids: x @ a.T),
    "converted": ((6, 5), lambda a, x, ids: functional.linear(wide(x), wide(a))),
    "embedding": ((6, 5), lambda a, x, ids: functional.embedding(ids, a)),
}
VECTORS: dict[str, Compute] = {
    "bias": lambda b, x, ids: functional.linear(x, torch.ones(5, 5).to(x), b),
    "bias of Conv1D": lambda b, x, ids: torch.addmm(b, x.view(-1, 5), torch.ones(5, 5).to(x), beta=2.0, alpha=0.5),
    "layer norm": lambda b, x, ids: functional.layer_norm(x, (5,), b),
    "layer norm's bias": lambda b, x, ids: functional.layer_norm(x, (5,), torch.full((5,), 3.0).to(x), b, 1e-3),
    "RMS norm": lambda b, x, ids: functional.rms_norm(x, (5,), b, 1e-3),
    "b x": lambda b, x, ids: b * x,
    "x b": lambda b, x, ids: torch.mul(x, b),
    "x (1 + b)": lambda b, x, ids: x * (1.0 + b),
    "x + b": lambda b, x, ids: x + b,
    "converted": lambda b, x, ids: wide(b) * x,
    "of heads": lambda b, x, ids: x.unflatten(1, (1, 3)) * b,
}
SIZES: dict[str, Compute] = {
    "layer norm": lambda b, x, ids: 5**0.5 * b.expand(x.shape),
    "layer norm's bias": lambda b, x, ids: 5**0.5 * 3 + b.expand(x.shape),
    "RMS norm": lambda b, x, ids: 5**0.5 * b.expand(x.shape),
}
"""Bounds of what is rounded, where the read of absolute values is none: normalized entries are at most sqrt(5)."""
READS = [*(("matrix", name) for name in MATRICES), *(("vector", name) for name in VECTORS)]


def check_read(kind: str, name: str, dtype: torch.dtype = torch.float64, rank: int = 2) -> None:
    """A read of one parameter in three repetitions, against the same read of each moved parameter by itself, in fp64.

    Fewer than 64 operations lead to an entry, each of which is off by at most u times the read of absolute values, of
    the factors too. In 16 bits sums are made in fp32, and at most four of their results are rounded.
    """
    shape, compute = ((5,), VECTORS[name]) if kind == "vector" else MATRICES[name]
    rng = torch.Generator().manual_seed(1)
    p, x = torch.randn(shape, generator=rng).to(dtype), torch.randn(2, 3, 5, generator=rng).to(dtype)
    block, law = Block("p", (nn.Parameter(p),)), LowRank(rank)
    points = [((((3,), 1.0),), 0.3), ((((3,), 1.0),), -0.3), ((((4,), 1.0),), 0.5)]
    before = state(block)
    with torch.no_grad(), ForwardPerturbation(block, law).at_points(points):
        found = compute(block.params[0], x.repeat(3, 1, 1), IDS.repeat(3, 1))
    check_restored(block, before)
    found = found.view(3, -1).double()
    units = (4 if dtype.itemsize == 2 else 64) * torch.finfo(dtype).eps / 2
    size = SIZES.get(name, compute) if kind == "vector" else compute
    for ours, (((seed, _),), h) in zip(found, points, strict=True):
        z = largest = law.draw(block, seed).double().view(shape)
        if kind == "matrix":
            u, w = law.factors(law.stream(block, seed), 0)
            largest = u.double().abs() @ w.double().abs().T * rank**-0.5
        moved, most = p.double() + h * z, p.double().abs() + abs(h) * largest.abs()
        theirs = compute(moved, x.double(), IDS).flatten()
        bound = 1.01 * units * size(most, x.double().abs(), IDS).flatten()
        assert ((ours - theirs).abs() <= bound).all()
    assert ((found[0] - found[1]).abs() > 2 * bound).any(), "it did move"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "name"), READS)
def test_each_repetition_meets_a_parameter_of_its_own(kind: str, name: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and name == "converted":
        return  # sums in fp64 of what is rounded to 16 bits before
    check_read(kind, name, dtype)


# A model


class Net(nn.Module):
    """An embedding that is the output layer too, a transposed weight, norms, a bias; losses [rows]."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.embedding, self.norm, self.scale = nn.Embedding(6, 4), nn.LayerNorm(4), nn.Parameter(torch.empty(5))
        self.first, self.second = nn.Linear(4, 5), nn.Parameter(torch.empty(5, 4))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=rng).to(dtype)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        ids = batch["ids"]
        h = (torch.tanh(self.first(self.norm(self.embedding(ids)))) * self.scale) @ self.second
        logits = functional.linear(h, self.embedding.weight).double()
        return functional.cross_entropy(logits.mT, ids, reduction="none").mean(1)

    def loss(self) -> BatchedLoss:
        return BatchedLoss(self, {"ids": IDS})

    def block(self) -> Block:
        return Block("net", tuple(self.parameters()))


def check_estimate(parallel: int, q: int = 3, generator: GeneratorName = "torch", law: LowRank | None = None) -> None:
    """The coefficients of one evaluation after the other, to the rounding of a few values of the loss."""
    net, law = Net(), law or LowRank(2, generator=generator)
    block, before = net.block(), state(net.block())
    expected = ZerothOrder(0.1, distribution=law, q=q, perturb="forward")(net.loss(), block, [7])
    estimator = ZerothOrder(0.1, distribution=law, q=q, perturb="forward", parallel=parallel)
    for _ in range(2):  # the first call looks at the loss, too
        found = estimator(net.loss(), block, [7])
        assert [seed for seed, _ in found.terms] == [seed for seed, _ in expected.terms]
        for (_, ours), (_, theirs) in zip(found.terms, expected.terms, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-11)
        check_restored(block, before)
    assert all(type(p) is nn.Parameter and not vars(p) for p in block.params)
    assert found.streams.keys() == expected.streams.keys(), "the update draws nothing again"


@pytest.mark.parametrize("parallel", [2, 3, 4, 6, 8])
def test_estimates_are_those_of_one_evaluation_after_the_other(parallel: int) -> None:
    check_estimate(parallel)


def test_so_are_portable_ones_and_those_in_a_kept_subspace() -> None:
    check_estimate(4, generator="portable")
    check_estimate(4, law=KeptSubspace(2, 10))


def check_calls() -> None:
    """Six evaluations of a step are made in two passes of four and two repetitions."""
    net = Net()
    counts: list[int] = []

    def losses(batch: dict[str, Tensor]) -> Tensor:
        counts.append(len(batch["ids"]) // len(IDS))
        return net(batch)

    estimator = ZerothOrder(0.1, distribution=LowRank(1), q=3, perturb="forward", parallel=4)
    loss = BatchedLoss(losses, {"ids": IDS})
    estimator(loss, net.block(), 1)
    counts.clear()
    estimator(loss, net.block(), 2)
    assert counts == [4, 2]


def test_a_step_makes_as_few_passes_as_it_can() -> None:
    check_calls()


def check_steps(parts: int) -> None:
    """Steps of a hybrid optimizer, of zeroth and first order; parts of a minibatch are repeated one by one."""
    ends, losses = [], []
    for parallel in (1, 4):
        net = Net()
        oracle = ZerothOrder(0.1, distribution=LowRank(2), q=2, perturb="forward", parallel=parallel)
        groups = [{"params": [net.first.weight, net.first.bias, net.norm.weight, net.norm.bias], "oracle": oracle}]
        optimizer = HybridSGD([*groups, {"params": [net.second]}], lr=0.1, seed=3)
        closures = [BatchedLoss(net, {"ids": IDS[i::parts]}) for i in range(parts)]
        losses.append([float(optimizer.step(closures)) for _ in range(3)])
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-11)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ends[0], torch.cat([p.detach().flatten() for p in Net().parameters()]), atol=1e-3)


@pytest.mark.parametrize("parts", [1, 2])
def test_hybrid_steps_are_those_of_one_evaluation_after_the_other(parts: int) -> None:
    check_steps(parts)


def test_without_exact_groups_the_loss_is_that_of_the_last_direction() -> None:
    losses = []
    for parallel in (1, 2, 4):
        net = Net()
        oracle = ZerothOrder(0.1, distribution=LowRank(2), q=2, perturb="forward", parallel=parallel)
        losses.append(float(HybridSGD([{"params": net.block().params, "oracle": oracle}]).step(net.loss())))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


# Moments


class Repeated(Products):
    """Values of the polynomial at the points of several repetitions, whose rows are those of identities."""

    def repeated(self, count: int) -> Tensor:
        parts = []
        for part in self.parts:
            p = part.weight
            if p.dim() == 2:
                rows = functional.linear(torch.eye(p.shape[1], dtype=p.dtype).repeat(count, 1), p)
                p = rows.view(count, p.shape[1], -1).mT
            else:
                p = torch.zeros(count, len(p), dtype=p.dtype) + p
            parts.append(p.reshape(count, -1).double())
        positions = torch.cat(parts, 1) - self._home
        values, factorial = torch.ones(count, dtype=torch.float64), 1
        for k, tensor in enumerate(self._derivatives, 1):
            factorial *= k
            powers = positions
            for _ in range(k - 1):
                powers = (powers[:, :, None] * positions[:, None]).flatten(1)
            values = values + powers @ tensor.flatten() / factorial
        return values


@cache
def sample(rank: int, dtype: torch.dtype, n: int) -> np.ndarray:
    """The estimates themselves [n, d]; without the cache where they are broken on purpose."""
    f = Repeated(SHAPES, 2, 1, dtype)
    estimator = ZerothOrder(0.4, 2, LowRank(rank), q=2, perturb="forward", parallel=4)
    return np.stack([estimator(f, f.block, (4, i)).dense(f.block).double().numpy() for i in range(n)])


def check_moments(rank: int, dtype: torch.dtype, n: int = 700, wrong: tuple[float, float] = (1.0, 1.0)) -> None:
    """Mean and second moment of the estimates against the closed forms; `wrong`: factors of these."""
    f, estimator = Repeated(SHAPES, 2, 1, dtype), ZerothOrder(0.4, 2, LowRank(rank), q=2)
    comparisons = 4 * (f.block.dim + 2)
    m, second = mean(estimator, f.taylor), second_moment(estimator, f.taylor)
    check_sample(sample(rank, dtype, n), wrong[0] * m, wrong[1] * second, comparisons)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_moments_are_the_closed_forms(rank: int, dtype: torch.dtype) -> None:
    check_moments(rank, dtype)


def test_wrong_moments_are_seen() -> None:
    for wrong in ((1.5, 1.0), (1 / 1.5, 1.0), (1.0, 3.0), (1.0, 1 / 3)):
        with pytest.raises(AssertionError, match="z-scores"):
            check_moments(2, torch.float32, wrong=wrong)


# Refused


def test_any_two_numbers_are_separated_either_way() -> None:
    for count in range(2, 18):
        sets = separating_sets(count)
        pairs = {(i, j) for chosen in sets for j in chosen for i in set(range(count)) - chosen}
        assert pairs == {(i, j) for i in range(count) for j in range(count) if i != j}


def estimate(loss: Callable[[Net], Callable[[dict[str, Tensor]], Tensor]], **more: Any) -> Callable[[], Any]:
    def call() -> None:
        net = Net()
        options = {"distribution": LowRank(2), "perturb": "forward", "q": 2, "parallel": 4, **more}
        before = state(net.block())
        try:
            ZerothOrder(0.1, **options)(BatchedLoss(loss(net), {"ids": IDS}), net.block(), [1])
        finally:
            check_restored(net.block(), before)
            assert all(type(p) is nn.Parameter and not vars(p) for p in net.parameters())

    return call


def centered(net: Net) -> Callable[[dict[str, Tensor]], Tensor]:
    """Every row's loss depends on all rows, and the mean of each repetition does not show it where all are at x."""
    return lambda batch: (losses := net(batch)) + 0 * losses.mean()


def sorted_rows(net: Net) -> Callable[[dict[str, Tensor]], Tensor]:
    """Rows in another order than the repetitions', as a mixture of experts computes them."""

    def losses(batch: dict[str, Tensor]) -> Tensor:
        order = batch["ids"][:, 0].argsort(stable=True)
        return net({"ids": batch["ids"][order]})[order.argsort()]

    return losses


def dropped(net: Net) -> Callable[[dict[str, Tensor]], Tensor]:
    """Dropout whose mask is fixed by a seed: repetitions have different ones."""

    def losses(batch: dict[str, Tensor]) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        return net(batch) * torch.rand(len(batch["ids"]), generator=rng)

    return losses


def chunked(net: Net) -> Callable[[dict[str, Tensor]], Tensor]:
    """Three rows at a time, which are no whole repetitions."""
    return lambda batch: torch.cat([net({"ids": ids}) for ids in batch["ids"].split(3)])


def plain_closure() -> None:
    net = Net()
    oracle = ZerothOrder(distribution=LowRank(2), perturb="forward", parallel=2)
    HybridSGD([{"params": net.block().params, "oracle": oracle}]).step(lambda: net({"ids": IDS}).mean())


def position_ids(net: Net) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda batch: net(batch) + net.embedding(torch.tensor([[1, 3, 4]])).sum()


class Scalar:
    def __call__(self) -> Tensor:
        return torch.ones(())

    def repeated(self, count: int) -> Tensor:
        return torch.ones(())


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a closure": (plain_closure, r"parallel = 2 .*cannot be repeated: give a smoothlab.BatchedLoss"),
    "rows that act on others": (estimate(centered), "depends on rows of another"),
    "rows in another order": (estimate(sorted_rows), "depends on rows of another"),
    "chunks": (estimate(chunked), r"numbers of shape \(3, 3\), which 4 repetitions"),
    "dropout": (estimate(dropped), "of a repetition of its minibatch: turn dropout off"),
    "positions of all rows": (estimate(position_ids), r"numbers of shape \(1, 3\).* let the loss give position_ids"),
    "a norm of a vector": (
        estimate(lambda net: lambda batch: net(batch) + net.scale.norm()), "scale of shape .*is read by norm"
    ),
    "a sum over rows": (
        estimate(lambda net: lambda batch: net(batch) + (net.scale * torch.ones(5)).sum()),
        r"scale of shape .*meets a tensor that is not of rows \[..., 5\]",
    ),
    "a shape": (
        lambda: ZerothOrder(distribution=LowRank(1), perturb="forward", parallel=2)(Scalar(), Net().block(), 1),
        r"repeated\(2\) of the loss on block 'net' gives torch.Size\(\[\]\): return one mean loss a repetition, \[2\]",
    ),
    "no loss a row": (estimate(lambda net: lambda batch: net(batch).mean()), r"losses of 2 rows have shape \(\)"),
    "no rows": (lambda: BatchedLoss(Net(), {}), r"a minibatch has rows \{\}"),
    "one side": (
        lambda: ZerothOrder(sides=1, distribution=LowRank(1), perturb="forward", parallel=2),
        "parallel = 2 with 1 sides and perturb 'forward': use two sides",
    ),
    "a moved copy": (lambda: ZerothOrder(distribution=Gaussian(), parallel=2), "perturb 'weights': use two sides and"),
    "none": (lambda: ZerothOrder(parallel=0), "parallel = 0 evaluations: use a whole number of at least 1"),
    "a convolution": (
        lambda: ZerothOrder(distribution=LowRank(1), perturb="forward", parallel=2)(
            BatchedLoss(lambda batch: batch["ids"][:, 0].double(), {"ids": IDS}),
            Block("net", (nn.Parameter(torch.ones(2, 2, 2)),)), 1,
        ),
        "number 0 of shape .* is neither a matrix nor a plain vector",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_repeated_is_refused(case: str) -> None:
    call, words = BAD[case]
    with pytest.raises(BadInput, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# Broken on purpose

MUTATIONS: dict[str, Mutation] = {
    "the steps of another point": (
        (ForwardPerturbation, "at_points"), "torch.stack(u)", "torch.stack(u).flip(0)", lambda: check_estimate(4)
    ),
    "without 1/sqrt(r)": (
        (ForwardPerturbation, "at_points"), "self._distribution.rank**-0.5", "1.0", lambda: check_estimate(4)
    ),
    "vectors stay": (
        (ForwardPerturbation, "at_points"), "list(numbers.values()), h * weight)",
        "list(numbers.values()), 0.0 * h)", lambda: check_estimate(4),
    ),
    "rows in another order": (
        (products, "_looked_up"), "numbers.reshape(len(u), 1, -1)", "numbers.flip(0).reshape(len(u), 1, -1)",
        lambda: check_read("matrix", "embedding"),
    ),
    "sides are paired otherwise": (
        (ZerothOrder, "_parallel_differences"), "values[1::2]", "values[:1] * 3", lambda: check_estimate(4)
    ),
    "one pass after the other": (
        (ZerothOrder, "_parallel_differences"), "start + self.parallel]", "start + self.parallel][:1]", check_calls
    ),
    "another bias": (
        (vectors, "_addmm"), "alpha != 1", "alpha == 1", lambda: check_read("vector", "bias of Conv1D")
    ),
    "no bias": (
        (vectors, "_affine"), "normalized = normalized + bias", "pass",
        lambda: check_read("vector", "layer norm's bias"),
    ),
    "rows are not looked at": (
        (ForwardPerturbation, "check_repetitions"), "set(missing) != chosen", "False",
        lambda: test_what_cannot_be_repeated_is_refused("rows in another order"),
    ),
    "values are not looked at": (
        (repetition, "check_same_loss"), "if not abs", "if False and not abs",
        lambda: test_what_cannot_be_repeated_is_refused("dropout"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_code_is_seen(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = broken(monkeypatch, MUTATIONS[mutation])
    monkeypatch.setattr(sys.modules[__name__], "sample", sample.__wrapped__)
    for name, function in (("_addmm", torch.addmm), ("_layer_norm", functional.layer_norm)):
        monkeypatch.setitem(vectors.FUNCTIONS, function, getattr(vectors, name))
    monkeypatch.setattr(sys.modules["smoothlab.zeroth.forward"], "check_same_loss", repetition.check_same_loss)
    with pytest.raises((AssertionError, pytest.fail.Exception, ValueError)):
        check()
