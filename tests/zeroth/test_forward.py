"""The move inside the forward pass against the moved copy: products, estimates, moments, and what is refused."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from smoothlab.blocks import Block, flatten
from smoothlab.errors import BadInput
from smoothlab.zeroth import products
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.forward import ForwardPerturbation
from smoothlab.zeroth.low_rank import KeptSubspace, LowRank
from smoothlab.zeroth.moments import mean, second_moment
from smoothlab.zeroth.products import Moved
from smoothlab.zeroth.rng import GeneratorName, Piece, Stream, Terms
from tests.cases import Polynomial, Shapes
from tests.mutations import Mutation, broken
from tests.zeroth.test_estimators import check_sample
from tests.zeroth.test_estimators import one_thread as one_thread
from tests.zeroth.test_perturbation import check_restored, state

ONE: Terms = (((3,), 1.0),)
IDS = torch.tensor([[4, 0, 2], [2, 5, 2]])


@dataclass(frozen=True)
class Read:
    """A way to read a matrix, linear in it: its shape, and what is computed from it, from x [2, 3, 5] and b [6]."""

    shape: tuple[int, int]
    compute: Callable[[Tensor, Tensor, Tensor], Tensor]


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


READS = {
    "linear": Read((6, 5), lambda a, x, b: functional.linear(x, a, b)),
    "linear, by name": Read((6, 5), lambda a, x, b: functional.linear(input=x, weight=a, bias=b)),
    "linear without bias": Read((6, 5), lambda a, x, b: functional.linear(x, a)),
    "linear of one row": Read((6, 5), lambda a, x, b: functional.linear(x[0, 0], a, b)),
    "linear of strided rows": Read((6, 5), lambda a, x, b: functional.linear(x.transpose(0, 1), a, b)),
    "Conv1D": Read((5, 6), lambda a, x, b: torch.addmm(b, x.view(-1, 5), a)),
    "addmm with factors": Read((5, 6), lambda a, x, b: torch.addmm(b, x.view(-1, 5), a, beta=2.0, alpha=0.5)),
    "x @ A": Read((5, 6), lambda a, x, b: x @ a),
    "mm": Read((5, 6), lambda a, x, b: torch.mm(x[0], a)),
    "x @ A.T": Read((6, 5), lambda a, x, b: x @ a.T),
    "x @ A.t()": Read((6, 5), lambda a, x, b: torch.matmul(x, a.t())),
    "linear of A.T": Read((5, 6), lambda a, x, b: functional.linear(x, a.transpose(0, 1), b)),
    "twice transposed": Read((6, 5), lambda a, x, b: functional.linear(x, a.T.mT, b)),
    "converted": Read((6, 5), lambda a, x, b: functional.linear(wide(x), wide(a), wide(b)).to(x.dtype)),
    "converted and transposed": Read((5, 6), lambda a, x, b: (wide(x) @ wide(a.T.T)).to(x.dtype)),
    "embedding": Read((6, 5), lambda a, x, b: functional.embedding(IDS, a)),
    "embedding with padding": Read((6, 5), lambda a, x, b: functional.embedding(IDS, a, padding_idx=2)),
}


def check_read(
    name: str, dtype: torch.dtype, generator: GeneratorName = "torch", rank: int = 3, h: float = 0.3
) -> None:
    """A product of a moved matrix, within what rounding to `dtype` may do (Higham 2002, 3.1 and 3.5).

    A sum of k products in precision u is off by at most gamma_k = k u / (1 - k u) times the sum of their absolute
    values, in any order. Here they are the n of x A', the n of x W and the r behind them, and 6 for b, scales and sums.
    16-bit values are rounded three times beside that, of what fp32 makes: x A', that + b, and the whole.
    """
    read, rng = READS[name], torch.Generator().manual_seed(1)
    a, x, b = (torch.randn(shape, generator=rng).to(dtype) for shape in (read.shape, (2, 3, 5), (6,)))
    block, law = Block("a", (nn.Parameter(a),)), LowRank(rank, generator=generator)
    before = state(block)
    with torch.no_grad(), ForwardPerturbation(block, law).along(law, ONE, h):
        found = read.compute(block.params[0], x, b)
    check_restored(block, before)
    assert found.dtype == dtype
    stream = law.stream(block, ONE[0][0])
    u, w = (factor.double() for factor in law.factors(stream, 0))
    wide, scale = (a.double(), x.double(), b.double()), h / math.sqrt(rank)
    exact, still = read.compute(wide[0] + scale * u @ w.T, *wide[1:]), read.compute(*wide)
    sizes = read.compute(wide[0].abs() + scale * u.abs() @ w.abs().T, *(t.abs() for t in wide[1:]))
    working = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    count = 2 * 5 + rank + 6
    bound = (count * working / (1 - count * working) + 2.0**-52 * count) * sizes
    if dtype.itemsize == 2:
        unit = torch.finfo(dtype).eps / 2
        without_b = read.compute(*wide[:2], torch.zeros(6).double())
        bound = unit * (1 + unit) ** 2 * (without_b.abs() + still.abs() + exact.abs()) + (1 + unit) ** 3 * bound
    assert ((found.double() - exact).abs() <= bound).all()
    assert ((exact - still).abs() > 2 * bound).any(), "it did move"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", READS)
def test_products_with_a_moved_matrix(name: str, dtype: torch.dtype) -> None:
    for generator in ("torch", "portable"):
        check_read(name, dtype, generator)


def test_under_autocast_the_move_is_summed_in_fp32() -> None:
    rng = torch.Generator().manual_seed(2)
    a, x = torch.randn(6, 5, generator=rng), torch.randn(4, 5, generator=rng)
    block, law = Block("a", (nn.Parameter(a),)), LowRank(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = functional.linear(x, a)
        with ForwardPerturbation(block, law).along(law, ONE, 0.5):
            found = functional.linear(x, block.params[0])
    z = law.draw(block, ONE[0][0]).view(6, 5)
    expected = (plain.float() + 0.5 * x @ z.T).bfloat16()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2.0**-7, atol=1e-6)  # one rounding may fall to the other side


@pytest.mark.parametrize("generator", ["torch", "portable"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_factors_and_numbers_are_those_of_the_dense_direction_to_the_bit(
    dtype: torch.dtype, generator: GeneratorName
) -> None:
    """Also of a matrix that is drawn in several pieces, and in the update, from what was kept."""
    block = Block("x", tuple(torch.zeros(shape, dtype=dtype) for shape in ((3, 4), (7,), (600, 500), (2, 3, 2))))
    law = LowRank(3, generator=generator)
    dense = block.views(law.stream(block, (5,)).numbers())
    stream = law.kept_stream(block, (5,))
    for i in (0, 2):
        u, w = law.factors(stream, i)
        wide, scale = u.dtype, 3**-0.5
        if generator == "portable":
            wide, scale = torch.float64, 1 / math.sqrt(3)
        expected = torch.mm(u.to(wide), w.to(wide).T).mul_(scale).to(u.dtype)
        if generator == "portable" or i == 0:  # BLAS may sum three products in another order in another shape
            assert torch.equal(dense[i], expected)
        torch.testing.assert_close(dense[i], expected, rtol=0, atol=8 * torch.finfo(u.dtype).eps * 20)
    for i in (1, 3):
        assert torch.equal(law.numbers(stream, i), dense[i])
    assert torch.equal(stream.numbers(), flatten(dense))


class Net(nn.Module):
    """An embedding that is the output layer too, a transposed weight, a norm, and weights in strided memory."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.embedding, self.norm = nn.Embedding(6, 4), nn.LayerNorm(4)
        self.first, self.second = nn.Linear(4, 5), nn.Parameter(torch.empty(5, 4))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=rng).to(dtype)
        self.first.weight.data = self.first.weight.data.t().contiguous().t()
        self.calls, self.fails_at = 0, -1

    def forward(self) -> Tensor:
        self.calls += 1
        h = torch.tanh(self.first(self.norm(self.embedding(IDS)))) @ self.second
        if self.calls == self.fails_at:
            raise OSError("the loss fails")
        logits = functional.linear(h, self.embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1).double(), IDS.flatten())

    def block(self) -> Block:
        return Block("net", tuple(self.parameters()))


KINDS: dict[str, dict[str, Any]] = {
    "one-sided": {"sides": 1}, "two-sided": {}, "three": {"q": 3},
    "antithetic": {"sides": 1, "q": 4, "average": "antithetic"},
}  # fmt: skip


def check_estimate(kind: str, generator: GeneratorName = "torch", law: LowRank | None = None) -> None:
    """The estimate along the same directions as with a moved copy, to the rounding of a few values of the loss."""
    net = Net()
    block, before = net.block(), state(net.block())
    mu, law = 0.1, law or LowRank(2, generator=generator)
    expected = ZerothOrder(mu, distribution=law, **KINDS[kind])(net, block, [7])
    estimator = ZerothOrder(mu, distribution=law, perturb="forward", **KINDS[kind])
    for _ in range(2):  # the first call checks the loss, too
        found = estimator(net, block, [7])
        assert [seed for seed, _ in found.terms] == [seed for seed, _ in expected.terms]
        for (_, ours), (_, theirs) in zip(found.terms, expected.terms, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-11)
        check_restored(block, before)
    difference = found.dense(block) - expected.dense(block)
    assert difference.norm() < 1e-11 * expected.dense(block).norm()


@pytest.mark.parametrize("generator", ["torch", "portable"])
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_those_of_a_moved_copy(kind: str, generator: GeneratorName) -> None:
    check_estimate(kind, generator)


def test_directions_in_a_kept_subspace_move_inside_the_forward_pass_too() -> None:
    check_estimate("two-sided", law=KeptSubspace(2, 10))


def test_a_law_that_draws_by_itself_has_no_factors() -> None:
    class Other(LowRank):
        def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
            out.zero_()

    with pytest.raises(BadInput, match="perturb 'forward' with other.* directions: use LowRank ones"):
        ZerothOrder(distribution=Other(2), perturb="forward")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_updates_are_those_of_a_moved_copy_to_the_bit(dtype: torch.dtype) -> None:
    check_update(dtype)


def check_update(dtype: torch.dtype) -> None:
    """The same coefficients: factors in memory, factors drawn anew, and their sum for several directions."""
    net, law = Net(dtype), LowRank(2)
    found = ZerothOrder(0.5, distribution=law, q=2, perturb="forward")(net, net.block(), [1])
    other = Net(dtype)
    drawn = ZerothOrder(0.5, distribution=law, q=2)(other, other.block(), [1])
    drawn = type(drawn)(drawn.distribution, found.terms)
    for gradient, one in ((found, net), (drawn, other)):
        gradient.add_to(one.block(), -0.1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    assert not torch.equal(net.second, Net(dtype).second)


@given(st.integers(0, 6), st.sampled_from([torch.float64, torch.bfloat16]))
@settings(deadline=None, derandomize=True, max_examples=10)
def test_an_exception_in_the_loss_leaves_everything_as_it_was(fails_at: int, dtype: torch.dtype) -> None:
    net = Net(dtype)
    block, net.fails_at = net.block(), fails_at
    before = state(block)
    estimator = ZerothOrder(0.5, distribution=LowRank(2), q=2, perturb="forward")
    if fails_at:
        with pytest.raises(OSError, match="the loss fails"):
            estimator(net, block, [1])
    else:
        estimator(net, block, [1])
        assert net.calls == 7, "four, two to see that the loss is deterministic, one that all reads are seen"
    check_restored(block, before)
    assert all(type(p) is nn.Parameter and not vars(p) for p in block.params)


# Moments


class Products(Polynomial):
    """A polynomial of its matrices that reads them in products with the identity, which are exact."""

    def __init__(self, shapes: Shapes, degree: int, seed: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(shapes, degree, seed)
        for part in self.parts:
            part.weight.data = part.weight.data.to(dtype)
        self.block = Block("polynomial", tuple(self.parameters()))
        self._home = self._position().detach()

    def _position(self) -> Tensor:
        parts = []
        for part in self.parts:
            p = part.weight
            if p.dim() == 2:
                p = functional.linear(torch.eye(p.shape[1], dtype=p.dtype), p).T
            parts.append(p.reshape(-1).double())
        return torch.cat(parts)


SHAPES: Shapes = ((2, 3), (2,), (2, 2))
MOMENTS = [(sides, rank, dtype) for sides, rank in ((1, 1), (2, 2)) for dtype in (torch.float32, torch.bfloat16)]


@cache
def sample(sides: Any, rank: int, dtype: torch.dtype, n: int) -> np.ndarray:
    """The estimates themselves [n, d]; without the cache where they are broken on purpose."""
    f = Products(SHAPES, 2, 1, dtype)
    estimator = ZerothOrder(0.4, sides, LowRank(rank), perturb="forward")
    return np.stack([estimator(f, f.block, (4, i)).dense(f.block).double().numpy() for i in range(n)])


def check_moments(
    sides: Any, rank: int, dtype: torch.dtype, n: int = 700, wrong: tuple[float, float] = (1.0, 1.0)
) -> None:
    """Mean and second moment of the estimates against the closed forms; `wrong`: factors of these."""
    f, estimator = Products(SHAPES, 2, 1, dtype), ZerothOrder(0.4, sides, LowRank(rank))
    comparisons = len(MOMENTS) * (f.block.dim + 2)
    m, second = mean(estimator, f.taylor), second_moment(estimator, f.taylor)
    check_sample(sample(sides, rank, dtype, n), wrong[0] * m, wrong[1] * second, comparisons)


@pytest.mark.parametrize(("sides", "rank", "dtype"), MOMENTS)
def test_moments_are_the_closed_forms(sides: Any, rank: int, dtype: torch.dtype) -> None:
    check_moments(sides, rank, dtype)


def test_wrong_moments_are_seen() -> None:
    for wrong in ((1.5, 1.0), (1 / 1.5, 1.0), (1.0, 3.0), (1.0, 1 / 3)):
        with pytest.raises(AssertionError, match="z-scores"):
            check_moments(2, 2, torch.float32, n=1500, wrong=wrong)


# Broken on purpose

MUTATIONS: dict[str, Mutation] = {
    "the other way": (
        (products, "_matmul"), "input, u, w, scale", "input, u, w, -scale", lambda: check_read("mm", torch.float64)
    ),
    "no move of embeddings": (
        (products, "embedding"), "if not scale", "if True", lambda: check_estimate("two-sided")
    ),
    "addmm forgets alpha": (
        (products, "_addmm"), "alpha * scale", "scale", lambda: check_read("addmm with factors", torch.float64)
    ),
    "the transposed view is not moved": (
        (products, "_parts"), "matrix.home.T, move.w, move.u, move.scale", "matrix.home.T, move.w, move.u, 0.0",
        lambda: check_read("x @ A.T", torch.float64),
    ),
    "summed in 16 bits": (
        (products, "_plus"), "right.to(dtype) @ flat.to(dtype).mT",
        "(right.to(flat.dtype) @ flat.T).float()",
        lambda: [check_read("linear", torch.bfloat16, h=h) for h in (0.3, 3.0, 30.0)][0],
    ),
    "without 1/sqrt(r)": (
        (ForwardPerturbation, "_moved_along"), "self._distribution.rank**-0.5", "1.0",
        lambda: check_estimate("two-sided"),
    ),
    "the weight of a pair is lost": (
        (ForwardPerturbation, "along"), "h=h * weight", "h=h", lambda: check_estimate("antithetic")
    ),
    "norms and biases stay": (
        (ForwardPerturbation, "_moved_along"), "[numbers[i] for i in vectors], h)",
        "[numbers[i] for i in vectors], 0.0)", lambda: check_estimate("one-sided"),
    ),
    "the same side twice": (
        (ForwardPerturbation, "against"), "-h", "0.5 * h", lambda: check_estimate("two-sided")
    ),
    "other factors in the update": (
        (LowRank, "_normal"), "memory[piece] = numbers", "memory[piece] = 2 * numbers",
        lambda: check_update(torch.float32),
    ),
    "the columns are drawn as the rows": (
        (LowRank, "_columns"), "SHARED", "0", lambda: check_moments(2, 2, torch.float32, n=300)
    ),
}  # fmt: skip


def check_forgets() -> None:
    """Memory holds the directions of one step, and a step's gradient keeps its own."""
    net, estimator = Net(), ZerothOrder(0.1, distribution=LowRank(2), perturb="forward")
    first = estimator(net, net.block(), [1])
    dense = first.dense(net.block())
    place = estimator._perturbations[net.block()]
    estimator(net, net.block(), [2])
    assert list(place.streams) == [(2, 0)] and list(place._drawn) == [(2, 0)]  # type: ignore[attr-defined]
    assert torch.equal(first.dense(net.block()), dense)
    place.release()
    assert not place.streams and torch.equal(first.dense(net.block()), dense)


def test_memory_holds_one_step() -> None:
    check_forgets()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_code_is_seen(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = broken(monkeypatch, MUTATIONS[mutation])
    monkeypatch.setattr(sys.modules[__name__], "sample", sample.__wrapped__)
    monkeypatch.setitem(products.PRODUCTS, functional.embedding, products.embedding(functional.embedding))
    for function in (torch.matmul, torch.mm, Tensor.__matmul__):
        monkeypatch.setitem(products.PRODUCTS, function, products._matmul)
    monkeypatch.setitem(products.PRODUCTS, torch.addmm, products._addmm)
    with pytest.raises(AssertionError):
        check()


# Refused


def estimate(loss: Callable[[Net], Tensor], **more: Any) -> Callable[[], Any]:
    def call() -> None:
        net = Net()
        estimator = ZerothOrder(**{"distribution": LowRank(2), "perturb": "forward", **more})
        before = state(net.block())
        try:
            estimator(lambda: loss(net), net.block(), [1])
        finally:
            check_restored(net.block(), before)

    return call


def scripted(net: Net) -> Tensor:
    """A call that torch compiles, which asks no class."""
    return net() + torch.jit.script(net.first)(torch.ones(4, dtype=torch.float64)).sum()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "an entry": (
        estimate(lambda net: net() + net.second[0, 0]),
        r"block 'net': its parameter second of shape \(5, 4\) is read by __getitem__, but perturb 'forward' moves.*: "
        r"use perturb 'weights' \(--perturb weights\)",
    ),
    "a norm": (estimate(lambda net: net() + net.first.weight.norm()), "first.weight of shape .* is read by norm"),
    "data": (estimate(lambda net: net() + net.first.weight.data.sum()), "first.weight of shape .* is read by data"),
    "a list": (estimate(lambda net: net() + torch.cat([net.second, net.second]).sum()), "a matrix is read by cat"),
    "A x": (
        estimate(lambda net: net() + (net.second @ torch.ones(4).double()).sum()), "second of .* is read by matmul"
    ),
    "a product of two": (
        estimate(lambda net: net() + functional.linear(net.second, net.first.weight).sum()), "is read by linear"
    ),
    "scripted": (
        estimate(scripted), "first.weight of shape .* is read by code that torch's functions do not see"
    ),
    "compiled": (
        estimate(lambda net: torch.compile(net.first, backend="eager")(torch.ones(4).double()).sum() + net()),
        "the loss on block 'net' is compiled, which perturb 'forward' does not reach: leave torch.compile out, or use",
    ),
    "rank": (
        estimate(Net.forward, distribution=LowRank(5)),
        r"rank 5 of low-rank directions is above that of a matrix of shape \(5, 4\) of block 'net': use a rank of at "
        "most 4, or perturb 'weights'",
    ),
    "gaussian": (
        lambda: ZerothOrder(perturb="forward"), "perturb 'forward' with gaussian directions: use LowRank ones, or"
    ),
    "keep": (
        lambda: ZerothOrder(distribution=LowRank(), perturb="forward", keep=True), "keep is for perturb 'weights'"
    ),
    "unknown": (lambda: ZerothOrder(perturb="inside"), "perturb 'inside' is unknown: use weights or forward"),  # type: ignore[arg-type]
    "given directions": (
        lambda: ZerothOrder(distribution=LowRank(), perturb="forward")(
            Net(), Net().block(), 0, directions=[torch.ones(Net().block().dim)]
        ),
        "given directions have no factors: use perturb 'weights' with them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_moved_is_refused_in_one_line(name: str) -> None:
    call, words = BAD[name]
    with pytest.raises(BadInput, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_shapes_and_formats_may_be_read() -> None:
    def loss(net: Net) -> Tensor:
        p = net.second
        assert (p.shape, p.dtype, len(p), p.dim(), p.size(1), p.is_floating_point()) == (
            (5, 4),
            torch.float64,
            5,
            2,
            4,
            True,
        )
        assert p.requires_grad and p.device.type == "cpu" and {p: 1}[p] == 1
        return net() + p.new_ones(2).sum() + torch.zeros_like(p).sum()

    estimate(loss)()


def test_a_transposed_view_that_outlives_its_evaluation_is_refused() -> None:
    net, views = Net(), []

    def loss() -> Tensor:
        if isinstance(net.second, Moved):
            views.append(net.second.T)
        if views:
            return net() + functional.linear(torch.ones(1, 5).double(), views[0]).sum()
        return net()

    with pytest.raises(BadInput, match="is read by linear"):
        ZerothOrder(distribution=LowRank(2), perturb="forward")(loss, net.block(), [1])


def test_a_16_bit_block_of_vectors_tells_what_rounding_lets_through() -> None:
    """The matrix is not rounded; a mu that rounds all of a bias away is refused where there is nothing else."""
    net = nn.Linear(40, 30).bfloat16()
    net.bias.data.fill_(64.0)
    loss = lambda: net(torch.ones(1, 40).bfloat16()).float().sum()  # noqa: E731
    both = ZerothOrder(1e-3, distribution=LowRank(1), perturb="forward")
    both(loss, Block("both", tuple(net.parameters())), 0)
    law = LowRank(1)
    block = Block("both", tuple(net.parameters()))
    z = block.split(law.draw(block, (0, 0)).double())
    squares = [float(part.square().sum()) for part in z]
    assert both.realized_fraction(block) == pytest.approx(squares[0] / sum(squares), rel=0.02)
    with pytest.raises(BadInput, match="mu = 0.001 on block 'bias' in bfloat16: rounding lets 0 % of the step through"):
        ZerothOrder(1e-3, distribution=law, perturb="forward")(loss, Block("bias", (net.bias,)), 0)


def test_without_the_check_scripted_code_would_get_a_wrong_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForwardPerturbation, "check_layers", lambda *a: None)
    net = Net()
    loss = lambda: scripted(net)  # noqa: E731
    ((_, wrong),) = ZerothOrder(0.1, distribution=LowRank(2), perturb="forward")(loss, net.block(), [0]).terms
    ((_, right),) = ZerothOrder(0.1, distribution=LowRank(2))(loss, net.block(), [0]).terms
    assert abs(wrong - right) > 0.05 * abs(right)


def test_gaussian_directions_are_another_law() -> None:
    """The comparison above would see it."""
    net = Net()
    ((_, one),) = ZerothOrder(0.1, distribution=LowRank(2), perturb="forward")(net, net.block(), [7]).terms
    ((_, other),) = ZerothOrder(0.1, distribution=Gaussian())(net, net.block(), [7]).terms
    assert abs(one - other) > 0.05 * abs(one)
