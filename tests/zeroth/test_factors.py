"""Steps kept as factors against the dense sum of the directions, in fp64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.factors import ROWS, Factors, MatrixFactors, factors_of, merge, with_steps
from smoothlab.zeroth.low_rank import KeptSubspace, LowRank
from smoothlab.zeroth.rng import Seed

EPS = torch.finfo(torch.float32).eps


def block() -> Block:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (3,), (4, 70), (0, 3), (2, 2, 2)]
    return Block("x", tuple(torch.randn(s, generator=generator).bfloat16() for s in shapes))


def moved(x: Block, distribution: LowRank, moves: list[tuple[Seed, float]]) -> tuple[list[Tensor], list[Tensor]]:
    """Values after the moves in fp64, and the sums of their absolute terms, which bound the rounding of float32."""
    ends = [p.double() for p in x.params]
    sizes = [p.double().abs() for p in x.params]
    for seed, number in moves:
        for end, size, part in zip(ends, sizes, x.split(distribution.stream(x, seed).numbers()), strict=True):
            z = part.double().view(end.shape)
            end += number * z
            size += (number * z).abs()
    return ends, sizes


DISTRIBUTIONS: dict[str, Any] = {
    "rank 1": LowRank(1), "rank 3": LowRank(3), "subspace": KeptSubspace(2, 10),
    "portable": LowRank(2, generator="portable"),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_block_stands_where_the_dense_sum_leads_and_is_never_written(name: str) -> None:
    """150 steps of one or two directions, more than a chunk of factors holds."""
    x, distribution = block(), DISTRIBUTIONS[name]
    before, versions = x.copies(), [p._version for p in x.params]
    factors, moves = Factors(x, distribution), []
    for t in range(150):
        terms = tuple(((7, t, 0, j), 1.0 + 0.01 * t - j) for j in range(1 + t % 2))
        factors.descend(Directional(distribution, terms), lr=1e-3)
        moves += [(seed, -1e-3 * c) for seed, c in terms]
    assert len(moves) * distribution.rank > ROWS
    for p, end, size, old, version in zip(x.params, *moved(x, distribution, moves), before, versions, strict=True):
        # An entry of U W' is off by an eps of each factor, of the sums over the rank, and of those over the steps.
        bound = EPS * (len(moves) + distribution.rank + 4) * size
        assert bool(((with_steps(p).double() - end).abs() <= bound).all())
        assert torch.equal(p, old) and p._version == version
        assert not p.numel() or not torch.equal(with_steps(p), p.float())


def rank(x: Block) -> int:
    factors = factors_of(x.params[0])
    assert factors is not None
    return factors.rank


def test_directions_that_share_their_columns_share_room() -> None:
    x = block()
    factors = Factors(x, LowRank(2))
    for t in range(5):
        factors.descend(Directional(LowRank(2), (((7, t, 0, 0), 1.0), ((7, max(t - 1, 0), 0, 0), 0.5))), lr=1e-3)
    assert rank(x) == 2 * 5  # momentum: each direction comes twice
    kept = KeptSubspace(2, 10)
    factors = Factors(x, kept)
    for t in range(25):
        factors.descend(Directional(kept, (((7, t, 0, 0), 1.0), ((7, t, 0, 1), 1.0))), lr=1e-3)
    assert rank(x) == 2 * 2 * 3  # two directions a step, three windows
    assert Factors.expected_bytes(x, kept, 2 * 3) == 4 * 12 * (7 + 5 + 4 + 70 + 0 + 3)
    assert factors.nbytes >= Factors.expected_bytes(x, kept, 2 * 3) - 4 * 12 * 3


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_state_leads_to_the_same_bits(name: str) -> None:
    x, y, distribution = block(), block(), DISTRIBUTIONS[name]
    one, other = Factors(x, distribution), Factors(y, distribution)
    for t in range(70):
        one.descend(Directional(distribution, (((7, t, 0, 0), 1.0 / (t + 1)),)), lr=0.3)
    other.descend(Directional(distribution, (((1, 0, 0, 0), 1.0),)), lr=1.0)  # what `load` takes back
    other.load(one.state())
    assert all(torch.equal(with_steps(p), with_steps(q)) for p, q in zip(x.params, y.params, strict=True))
    elsewhere = one.state() | {"stream": torch.tensor(list(b"elsewhere"), dtype=torch.uint8)}
    with pytest.raises(BadInput, match="have seeds of generator elsewhere, this is .*: go on where they were made"):
        other.load(elsewhere)
    one.reset()
    assert all(torch.equal(with_steps(p), p.float()) for p in x.params)


def test_products_are_those_of_the_sum() -> None:
    x = block()
    factors = Factors(x, LowRank(1))
    for t in range(70):
        factors.descend(Directional(LowRank(1), (((7, t, 0, 0), 1.0),)), lr=0.1)
    for p in (x.params[0], x.params[2]):
        kept = factors_of(p)
        assert isinstance(kept, MatrixFactors)
        total = with_steps(p).double() - p.double()
        inputs = torch.randn(2, 3, p.shape[1], generator=torch.Generator().manual_seed(1))
        rows = torch.tensor([[1, 0], [3, 1]]) % len(p)
        products = kept.plus(torch.ones(2, 3, len(p)), inputs), kept.plus_rows(torch.ones(2, 2, p.shape[1]), rows)
        for found, wanted in zip(products, (1 + inputs.double() @ total.T, 1 + total[rows]), strict=True):
            assert float((found - wanted).abs().max()) < 1e-5  # sums of 70 numbers of size 0.1, times inputs of size 1


def test_merged_weights_are_the_sum_rounded_once() -> None:
    x = block()
    factors = Factors(x, LowRank(1))
    factors.descend(Directional(LowRank(1), (((7, 0, 0, 0), 1.0),)), lr=1.0)
    ends = [with_steps(p).clone() for p in x.params]
    merge(x.params)
    assert all(torch.equal(p, end.bfloat16()) for p, end in zip(x.params, ends, strict=True))
    assert all(torch.equal(with_steps(p), p) for p in x.params)
    with pytest.raises(BadInput, match="were merged into the weights: make a new HybridSGD"):
        factors.descend(Directional(LowRank(1), (((7, 1, 0, 0), 1.0),)), lr=1.0)
    merge(x.params)  # nothing is left to merge


def test_what_has_no_factors_is_refused() -> None:
    with pytest.raises(BadInput, match="gaussian directions have no factors: use LowRank ones .--distribution lowrank"):
        Factors(block(), Gaussian())
    with pytest.raises(BadInput, match="block 'v' has no matrix"):
        Factors(Block("v", (torch.zeros(3),)), LowRank(1))
    factors = Factors(block(), LowRank(1))
    plain = Directional(LowRank(1), (((7, 0, 0, 0), 1.0),))
    with pytest.raises(BadInput, match="weight_decay = 0.1 with steps kept as factors: use 0"):
        factors.descend(plain, lr=1.0, weight_decay=0.1)
    with pytest.raises(BadInput, match="are sums of low-rank directions, these are others"):
        factors.descend(Directional(LowRank(1), plain.terms, anchor=plain), lr=1.0)
    with pytest.raises(BadInput, match="are of generator elsewhere"):
        factors.descend(Directional(LowRank(1), plain.terms, stream="elsewhere"), lr=1.0)
