"""The portable generator: its bits against slow integers, its table, its moments, and what it makes of directions."""

import hashlib
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth import portable, rng
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Coordinate, Gaussian, Sparse, Sphere, named
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.expectations import Cumulants, from_cumulants
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.moments import linear_factor, outer_moment
from smoothlab.zeroth.names import DISTRIBUTIONS
from smoothlab.zeroth.portable import Key, PortableDraws
from smoothlab.zeroth.rng import Piece
from smoothlab.zeroth.scaled import Preconditioned

CPU, WORD = torch.device("cpu"), (1 << 64) - 1
KEYS = [[0, 0, 0], [1, 2, 3], [WORD, 1 << 63, 0x0123456789ABCDEF]]
GOLDEN = {
    "Gaussian()": "eec80b9a9bbc16e3",
    "Sphere()": "d10902eeb9b7a2b8",
    "Rademacher()": "65f09bbcf52d7546",
    "Coordinate()": "4658f0b111740feb",
    "Sparse(0.1,)": "b2c6e0877d89ae2e",
    "LowRank(4,)": "405f66137f390670",
    "Sparse(0.25,)": "c65f9ba2aba25134",
    "LowRank(3,)": "e73c97a68647f43d",
    "Preconditioned()": "bacf506cd60649f6",
}  # fmt: skip
"""SHA-256, its first 16 digits, of directions on `pair()` with seed (1, 2, 3, 4), as little-endian fp32."""


def pair(dtype: torch.dtype = torch.float32) -> Block:
    return Block("x", (nn.Parameter(torch.zeros(70, 31, dtype=dtype)), nn.Parameter(torch.zeros(1001, dtype=dtype))))


def mixed(x: int, near: int, far: int) -> int:
    """x ^ x >> near ^ x >> far, bit by bit; a shift repeats bit 63."""
    bits = [x >> i & 1 for i in range(64)] + [x >> 63] * 64
    return sum((bits[i] ^ bits[i + near] ^ bits[i + far]) << i for i in range(64))


def slow_word(state: list[int], counter: int) -> int:
    """The word of a counter, by Python's integers."""
    constants = (0x9E3779B97F4A7C15, 0x9E6C63D0676A9A99, 0x9E6D62D06F6A9A9B)
    x = counter
    for constant, k, shifts in zip(constants, state, ((25, 47), (23, 51), (23, 51)), strict=True):
        x = mixed((constant * x + k) & WORD, *shifts)
    return x


def words(state: list[int], counter: int, count: int) -> list[int]:
    memory = torch.empty(3, count, dtype=torch.int64)
    return [w & WORD for w in Key(state, CPU).words(counter, memory[0], memory[1:]).tolist()]


@pytest.mark.parametrize("state", KEYS)
@pytest.mark.parametrize("counter", [0, 5, 1 << 46, (65535 << 48) + 3, WORD - 4])
def test_words_are_those_of_pythons_integers(state: list[int], counter: int) -> None:
    assert words(state, counter, 5) == [slow_word(state, counter + i & WORD) for i in range(5)]


def test_every_step_of_the_permutation_is_one_to_one() -> None:
    for near, far in portable._SHIFTS:
        columns = [mixed(1 << i, near, far) for i in range(64)]
        assert all(mixed(a ^ b, near, far) == mixed(a, near, far) ^ mixed(b, near, far) for a, b in [(3, WORD), (9, 5)])
        assert all(column >> i == 1 for i, column in enumerate(columns)), "triangular, with ones on the diagonal"
    assert portable._C0 % 2 == portable._C1 % 2 == portable._C2 % 2 == 1


def test_tensors_purposes_and_positions_have_counters_of_their_own() -> None:
    assert portable._POSITION + portable._LANE + 16 == 64
    assert rng.DEVICE_CHUNK * rng.SHARED // 2 < 1 << portable._POSITION, "two masks a word, the fewest"
    key, seen = Key(KEYS[1], CPU), set()
    for tensor, lane in product((0, 1, 65535), (0, 3)):
        seen.add(tuple(PortableDraws(key, tensor, 0, lane).normal_(torch.empty(64)).tolist()))
    assert len(seen) == 6
    draws = PortableDraws(key, 0, 0)
    assert not torch.equal(draws.normal_(torch.empty(64)), draws.normal_(torch.empty(64)))


# The table


def test_the_table_is_the_normal_quantiles_to_half_a_unit() -> None:
    exact = special.ndtri((np.arange(32768) + 32768.5) / 65536)
    exact *= (exact**2).mean() ** -0.5 * 2**19
    assert np.abs(portable.quantiles() - exact).max() < 0.5 + 1e-6
    assert hashlib.sha256(portable.quantiles().astype("<i4").tobytes()).hexdigest() == portable._DIGEST
    table = portable._table(CPU, torch.float32)
    assert torch.equal(table, -table.flip(0)) and bool((table.diff() > 0).all())
    assert float(table[-1]) == pytest.approx(4.32496, abs=1e-5)


def test_moments_of_the_table_are_those_stated() -> None:
    numbers = [int(t) for t in portable.quantiles()]
    moments = [sum(t**n for t in numbers) / (32768 << 19 * n) for n in (2, 4, 6, 8)]
    assert moments[0] == pytest.approx(1, abs=1e-8)
    assert portable.MOMENTS == pytest.approx(moments[1:], rel=1e-14)
    assert portable.MOMENTS[:2] == pytest.approx((2.99925, 14.9725), abs=5e-5)


def test_a_damaged_table_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    upper = portable.quantiles().copy()
    upper[7] += 1
    np.save(tmp_path / "normal_quantiles.npy", upper)
    monkeypatch.setattr(portable, "files", lambda package: tmp_path)
    with pytest.raises(BadInput, match="is damaged: install smoothlab again"):
        portable.quantiles.__wrapped__()


# Numbers


def slow_bits(state: list[int], start: int, count: int, width: int, lane: int = 0) -> list[int]:
    """Numbers of `width` bits for entries of tensor 2."""
    numbers = []
    for i in range(start, start + count):
        word, position = divmod(i, 64 // width)
        numbers.append(slow_word(state, (2 << 48) + (lane << 46) + word) >> width * position & (1 << width) - 1)
    return numbers


@pytest.mark.parametrize("start", [0, 4, 37, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_made_of_the_words_bits(start: int, dtype: torch.dtype) -> None:
    n, key, state = 150, Key(KEYS[2], CPU), KEYS[2]
    table = [-t / 2**19 for t in portable.quantiles()[::-1]] + [t / 2**19 for t in portable.quantiles()]
    normal = PortableDraws(key, 2, start).normal_(torch.empty(n, dtype=dtype))
    assert normal.tolist() == [table[i] for i in slow_bits(state, start, n, 16)]
    signs = PortableDraws(key, 2, start).signs_(torch.empty(n, dtype=dtype))
    assert signs.tolist() == [2 * b - 1 for b in slow_bits(state, start, n, 1)]
    kept = PortableDraws(key, 2, start, 1).keep_(torch.ones(n, dtype=dtype), 0.3)
    numbers = [b - ((b >> 31) << 32) + 2**31 for b in slow_bits(state, start, n, 32, 1)]  # of signed numbers
    assert kept.tolist() == [float(b < 0.3 * 2**32) for b in numbers]


@pytest.mark.parametrize("density, kept", [(1.0, 100), (1e-12, 0)])
def test_masks_of_extreme_density(density: float, kept: int) -> None:
    assert int(PortableDraws(Key(KEYS[1], CPU), 0, 0).keep_(torch.ones(100), density).sum()) == kept


ALL: list[Distribution] = [named(name, generator="portable") for name in DISTRIBUTIONS] + [
    Sparse(0.25, generator="portable"), LowRank(3, generator="portable"),
    Preconditioned((torch.tensor(2.0), torch.tensor(0.5)), generator="portable"),
]  # fmt: skip
NAMES = [f"{type(d).__name__}{d.parameters}" for d in ALL]


@pytest.mark.parametrize("distribution", ALL, ids=NAMES)
def test_bits_are_those_of_every_other_machine(distribution: Distribution) -> None:
    z = distribution.draw(pair(), (1, 2, 3, 4))
    digest = hashlib.sha256(z.numpy().astype("<f4").tobytes()).hexdigest()[:16]
    assert digest == GOLDEN[f"{type(distribution).__name__}{distribution.parameters}"]


@pytest.mark.parametrize("distribution", ALL, ids=NAMES)
def test_bits_do_not_depend_on_pieces_threads_or_parts(
    distribution: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = distribution.draw(pair(), (5,))
    wide = distribution.draw(pair(torch.float64), (5,))
    assert torch.allclose(wide.float(), z, rtol=2e-7, atol=0)
    monkeypatch.setattr(rng, "CHUNK", 97)
    monkeypatch.setattr(portable, "_WORDS", 9)
    assert torch.equal(distribution.draw(pair(), (5,)), z)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(distribution.draw(pair(), (5,)), z)
    finally:
        torch.set_num_threads(threads)


def test_sums_of_squares_and_low_rank_products_are_exact() -> None:
    key = Key(KEYS[1], CPU)
    g = PortableDraws(key, 0, 0).normal_(torch.empty(300_000))
    integers = [int(x) for x in (g.double() * 2**19).tolist()]
    assert portable.sum_of_squares(g) == sum(t * t for t in integers)
    u = torch.full((1, portable.LARGEST_RANK), float(portable._table(CPU, torch.float64)[-1]), dtype=torch.float64)
    top = int(portable.quantiles()[-1])
    assert int(float(torch.mm(u, u.T)) * 2**38) == portable.LARGEST_RANK * top**2 < 2**53


# Statistics; the strong tests are in test_portable_statistics.py


def correlations(rows: Tensor) -> Tensor:
    """z-scores of the correlations of all pairs of rows of variance 1."""
    products = rows @ rows.T / rows.shape[1] ** 0.5
    return products[torch.triu_indices(len(rows), len(rows), 1).unbind()]


def check_streams(draw: Callable[[tuple[int, ...], int], Tensor]) -> None:
    """Seeds that differ by one in one place, neighboring tensors and shifted positions: no correlation."""
    seeds = [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0, 0), (0, 0, 0, 1), (0, 1 << 31), (1 << 31, 0)]
    rows = torch.stack([draw(seed, tensor) for seed in seeds for tensor in (0, 1)])
    rows = torch.cat([rows, rows.roll(1, 1), rows.roll(4, 1)])
    z = correlations(rows.double())
    assert float(z.abs().max()) < stats.norm.isf(1e-5 / len(z))
    squares = correlations((rows.double().square() - 1) / math.sqrt(portable.MOMENTS[0] - 1))
    assert float(squares.abs().max()) < stats.norm.isf(1e-5 / len(z))


def draw(seed: tuple[int, ...], tensor: int) -> Tensor:
    stream = Gaussian(generator="portable").stream(Block("x", (torch.empty(1),)), seed)
    return stream.draws(Piece(tensor, 0, 0, 0)).normal_(torch.empty(20_000))


def test_streams_of_adjacent_seeds_and_tensors_do_not_correlate() -> None:
    check_streams(draw)


@pytest.mark.parametrize("constant", ["_C1", "_C2"])
def test_a_weaker_permutation_is_seen(constant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "_mix", lambda x, near, far, a, b: x)
    monkeypatch.setattr(portable, constant, 1)
    with pytest.raises(AssertionError):
        check_streams(draw)


def flips(part: int, difference: int, count: int) -> Tensor:
    """z-scores of how often each bit of a word changes with a difference in the counter (part 3) or in the key."""
    inputs = torch.randint(-(1 << 63), (1 << 63) - 1, (count, 4), generator=torch.Generator().manual_seed(9)).tolist()
    changed = []
    for numbers in inputs:
        before = words(numbers[:3], numbers[3], 1)[0]
        numbers[part] ^= difference
        changed.append(before ^ words(numbers[:3], numbers[3], 1)[0])
    bits = torch.tensor([[c >> i & 1 for i in range(64)] for c in changed]).double()
    return (bits.mean(0) - 0.5) * 2 * count**0.5


# Parts k_1 of two keys are random, so that their differences are of many bits; one bit alone would mix less well.
@pytest.mark.parametrize(
    "part, difference",
    [(3, 1), (3, 1 << 46), (3, 1 << 63), (0, 1), (0, 1 << 63), (1, 0x93D765DD5B6C1A4E)],
)
def test_a_difference_changes_every_bit_of_the_word_half_of_the_time(part: int, difference: int) -> None:
    assert float(flips(part, difference, 300).abs().max()) < stats.norm.isf(1e-5 / 64)


# Moments


def test_closed_forms_take_the_tables_moments() -> None:
    kurtosis = portable.MOMENTS[0]
    excess = kurtosis - 3
    assert Gaussian(generator="portable").second_moment(((10,),)) == (pytest.approx(12 + excess, rel=1e-12), 1.0)
    assert Sparse(0.5, generator="portable").second_moment(((10,),))[0] == pytest.approx(9 + kurtosis / 0.5)
    assert Sphere(generator="portable").second_moment(((10,),)) == (10.0, 1.0)
    estimator = ZerothOrder(generator="portable", q=2)
    assert linear_factor(estimator, 10) == pytest.approx(1 + (11 + excess) / 2)
    assert outer_moment(estimator, 10).diagonal == pytest.approx(excess / 2)


@pytest.mark.parametrize("orders", [(1, 1, 2), (2, 2), (1, 3), (2, 2, 2)])
@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_moments_of_factors_that_are_not_normal(orders: tuple[int, ...], rank: int) -> None:
    shapes, d, r = ((2, 2), (1,)), 5, np.random.default_rng(1)
    signs = np.array(list(product((-1.0, 1.0), repeat=4 * rank + 1)))  # every U, W and vector of signs
    u, w = signs[:, : 2 * rank].reshape(-1, 2, rank), signs[:, 2 * rank : -1].reshape(-1, 2, rank)
    z = np.concatenate([(u @ w.swapaxes(1, 2)).reshape(len(signs), 4) / rank**0.5, signs[:, -1:]], 1)
    factors, values = [], np.ones(len(z))
    for order in orders:
        a = r.normal(size=d)
        f = a
        for _ in range(order - 1):
            f = np.multiply.outer(f, a)
        factors.append(f)
        values *= (z @ a) ** order
    cumulants = Cumulants.of_moments(1.0, 1.0, 1.0)._replace(rank=rank)
    assert from_cumulants(cumulants, shapes, factors, free=False) == pytest.approx(values.mean(), rel=1e-9)


def test_second_moment_of_low_rank_directions_is_the_enumerated_one() -> None:
    distribution, shapes, d = LowRank(2, generator="portable"), ((3, 2), (2,)), 8
    g = np.random.default_rng(2).normal(size=d)
    expected = float(distribution.expectation(shapes, [g, g, np.eye(d)])) / (g @ g)
    assert distribution.second_moment(shapes, gradient=g)[0] == pytest.approx(expected, rel=1e-9)


def sphere_difference(d: int, powers: tuple[int, ...]) -> float:
    """E prod_i z_i^powers_i of table normals on the sphere less the uniform distribution's.

    E prod g_i^p_i d^n / ||g||^2n = d^n / Gamma(n) int s^(n - 1) prod_i E g^p_i exp(-s g^2) (E exp(-s g^2))^(d - k) ds.
    """
    n, squares = sum(powers) // 2, (portable.quantiles() / 2**19) ** 2
    s = np.exp(np.arange(math.log(1e-3 / d), math.log(1e3), 0.2))
    decay = np.exp(-s[:, None] * squares)
    integrands = []
    for moment in (
        lambda p: (squares ** (p // 2) * decay).mean(1),
        lambda p: special.factorial2(max(p - 1, 1)) * (1 + 2 * s) ** (-(p + 1) / 2),
    ):
        integrands.append(np.prod([moment(p) for p in powers], 0) * moment(0) ** (d - len(powers)))
    return float(d**n / math.gamma(n) * (s**n * (integrands[0] - integrands[1])).sum() * 0.2)


@pytest.mark.parametrize("d", [4, 30, 1000, 20_000])
def test_portable_spheres_differ_from_uniform_ones_by_less_than_is_stated(d: int) -> None:
    assert abs(sphere_difference(d, (4,))) < 0.00076 and abs(sphere_difference(d, (2, 2))) < 0.00076
    for powers in ((6,), (4, 2), (2, 2, 2)):
        assert abs(sphere_difference(d, powers)) < 0.028
    if d == 20_000:  # the limits are the differences of single entries
        assert sphere_difference(d, (4,)) == pytest.approx(portable.MOMENTS[0] - 3, rel=0.01)
        assert sphere_difference(d, (6,)) == pytest.approx(portable.MOMENTS[1] - 15, rel=0.01)


# Users


def test_generators_are_chosen_by_name() -> None:
    assert ZerothOrder(generator="portable").distribution == Gaussian(generator="portable") != Gaussian()
    assert ZerothOrder(distribution=Coordinate(generator="portable")).distribution.generator == "portable"
    assert ZerothOrder().distribution.generator == "torch"
    assert rng.stream_name("cuda", "portable") == rng.stream_name("cpu", "portable") == "portable-1"
    with pytest.raises(BadInput, match="generator 'philox' is unknown: use torch or portable"):
        ZerothOrder(generator="philox")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="rank 2000 of portable low-rank directions: use at most 1024"):
        LowRank(2000, generator="portable")


class Uniform(Distribution):
    def fill(self, stream: rng.Stream, piece: Piece, out: Tensor) -> None:
        out.uniform_(-(3**0.5), 3**0.5, generator=stream.generator(piece.tensor, piece.number))


def test_a_distribution_that_asks_for_torchs_generator_is_not_portable() -> None:
    Uniform().draw(pair(), (0,))
    with pytest.raises(BadInput, match=r"asks for torch's generator, .* draw them by stream.draws\(piece\)"):
        Uniform(generator="portable").draw(pair(), (0,))


@pytest.mark.parametrize("name", ["gaussian", "sphere", "rademacher"])
def test_replicas_draw_the_same_distribution(name: str) -> None:
    out = torch.empty(50, 6, dtype=torch.float64)
    named(name, generator="portable").fill_replicas(out, torch.empty(50, 6), torch.Generator().manual_seed(1))
    if name == "gaussian":
        table = set(portable._table(CPU, torch.float64).tolist())
        assert set(out.flatten().tolist()) <= table
    else:
        assert torch.allclose(out.square().sum(1), torch.full((50,), 6.0).double(), rtol=1e-6)
    assert len({tuple(row.tolist()) for row in out}) > 30


@pytest.mark.parametrize("average", ["plain", "orthogonal"])
def test_kept_directions_take_the_steps_of_regenerated_ones(average: str) -> None:
    ends = []
    for keep in (False, True):
        x = Block("x", (nn.Parameter(torch.linspace(-1, 1, 300)), nn.Parameter(torch.ones(7, 5))))
        estimator = ZerothOrder(generator="portable", q=3, keep=keep, average=average)  # type: ignore[arg-type]
        for step in range(3):
            gradient = estimator(lambda x=x: sum(p.cos().sum() for p in x.params), x, (0, step))  # type: ignore[misc]
            gradient.add_to(x, -0.01)
        ends.append(torch.cat([p.detach().flatten() for p in x.params]))
    assert torch.equal(*ends)
