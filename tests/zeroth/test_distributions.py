"""Distributions of directions and the streams they come from."""

import os
import select
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth import rng
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Coordinate, Gaussian, Rademacher, Sparse, Sphere, draw, named
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.rng import Piece, Stream, stream_name
from smoothlab.zeroth.scaled import Known, Masked, Preconditioned

DTYPES = (torch.float32, torch.float64)


def block(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, name: str = "b") -> Block:
    return Block(name, tuple(nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes))


@dataclass(frozen=True)
class LawCase:
    """A distribution on the block of shapes (3, 2), (2,): E vv' and E v_i^4."""

    distribution: Distribution
    fourth: Callable[[int], Tensor]
    second: Tensor | None = None


MASK, SCALES = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0]).double(), torch.tensor([2, 2, 2, 2, 2, 2, 0.5, 3]).double()
DISTRIBUTIONS: dict[str, LawCase] = {
    "gaussian": LawCase(Gaussian(), lambda d: torch.full((d,), 3.0)),
    "rademacher": LawCase(Rademacher(), lambda d: torch.ones(d)),
    "sphere": LawCase(Sphere(), lambda d: torch.full((d,), 3 * d / (d + 2))),
    "coordinate": LawCase(Coordinate(), lambda d: torch.full((d,), float(d))),
    "sparse": LawCase(Sparse(0.4), lambda d: torch.full((d,), 3 / 0.4)),
    "masked": LawCase(
        Masked((MASK[:6].view(3, 2).bool(), MASK[6:].bool())), lambda d: 3 * MASK, MASK.diag()
    ),
    "preconditioned": LawCase(
        Preconditioned((torch.tensor(2.0), torch.tensor([0.5, 3.0]))), lambda d: 3 * SCALES**4, (SCALES**2).diag()
    ),
    # v = sum_k u_k w_k / sqrt(r) has E v^4 = (9 r + 3 * 3 r (r - 1) / 3) / r^2 = 3 + 6 / r on the matrix.
    "low rank": LawCase(LowRank(2), lambda d: torch.tensor([6.0] * 6 + [3.0] * 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_second_and_fourth_moments_are_the_distributions(name: str) -> None:
    case, b, n = DISTRIBUTIONS[name], block((3, 2), (2,)), 4000
    d = b.dim
    v = torch.stack([case.distribution.draw(b, [7, i]) for i in range(n)])
    second = torch.eye(d).double() if case.second is None else case.second
    products = torch.einsum("ni,nj->nij", v, v).reshape(n, -1)
    spread = products.std(0) / n**0.5
    exact = spread < 1e-9  # v_i^2 = 1 for signs, v_i v_j = 0 for coordinates and masks
    mean, expected = products.mean(0), second.reshape(-1)
    assert torch.allclose(mean[exact], expected[exact])
    z = ((mean - expected) / spread)[~exact]
    assert z.abs().max() < stats.norm.isf(1e-4 / d**2)
    fourth, powers = case.fourth(d).double(), v**4
    assert ((powers.mean(0) - fourth).abs() < 4.5 * powers.std(0) / n**0.5 + 1e-12).all()
    assert (v.mean(0).abs() < 4 * v.std(0) / n**0.5 + 1e-12).all()


def test_the_moment_test_sees_a_distribution_of_the_wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Gaussian.fill
    monkeypatch.setattr(Gaussian, "fill", lambda *a: honest(*a) or a[3].mul_(1.05))
    with pytest.raises(AssertionError):
        test_second_and_fourth_moments_are_the_distributions("gaussian")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_direction_is_fixed_by_its_seed_and_equal_shapes_get_different_noise(name: str, dtype: torch.dtype) -> None:
    b = block((10, 5), (10, 5), dtype=dtype)
    given = {"masked": Masked((torch.ones(10, 5).bool(),) * 2), "preconditioned": Preconditioned((torch.ones(1),) * 2)}
    distribution = given.get(name, DISTRIBUTIONS[name].distribution)
    v = distribution.draw(b, [1, 2])
    assert v.dtype == dtype and v.shape == (100,)
    assert torch.equal(v, distribution.draw(b, [1, 2]))
    first, second = (x.reshape(-1) for x in b.views(v))
    if name == "coordinate":
        assert sorted(v.abs().tolist())[-2:] == [0.0, 10.0]
        return
    others = [distribution.draw(b, seed) for seed in ([1, 3], [2, 2], [2, 1], [1], [1, 2, 0])]
    for other in (second, *(b.views(o)[0].reshape(-1) for o in others)):
        z = float(torch.dot(first, other)) / float(first.norm() * other.norm()) * 50**0.5
        assert abs(z) < (4.5 if name not in ("low rank", "sparse") else 6)


def test_a_tensors_noise_depends_on_its_place_and_on_no_other_tensor() -> None:
    one, other = block((5,), (4, 3)), block((9, 9), (4, 3), (2,))
    for distribution in (Gaussian(), Rademacher(), Sparse(0.5), LowRank(2)):
        v, w = distribution.draw(one, [3]), distribution.draw(other, [3])
        assert torch.equal(one.views(v)[1], other.views(w)[1])


@pytest.mark.parametrize("name", ["gaussian", "rademacher", "sphere", "sparse", "low rank", "coordinate"])
def test_pieces_can_be_drawn_in_any_order_and_make_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "CHUNK", 50)
    b = block((7, 30), (101,), (3,), dtype=torch.float32)
    stream = DISTRIBUTIONS[name].distribution.stream(b, [5])
    whole = [x.reshape(-1) for x in b.views(stream.numbers())]
    pieces = stream.pieces()
    assert len(pieces) > 6 and sum(p.stop - p.start for p in pieces) == b.dim
    for piece in reversed(pieces):
        numbers = stream.fill(piece, torch.empty(piece.stop - piece.start))
        assert torch.equal(numbers, whole[piece.tensor][piece.start : piece.stop])
    assert torch.equal(stream.numbers(), DISTRIBUTIONS[name].distribution.draw(b, [5]))


def test_no_two_pieces_of_a_direction_share_their_key() -> None:
    stream = Gaussian().stream(block((2,)), [1])
    seeds = {stream.generator(t, n).initial_seed() for t in range(60) for n in range(1000)}
    assert len(seeds) == 60_000
    assert max(seeds) < 1 << 32, "torch's Mersenne twister ignores what is above"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["gaussian", "rademacher", "sphere", "sparse", "low rank", "coordinate"])
def test_directions_and_global_rng_do_not_know_each_other_nor_the_threads(name: str, threads: None) -> None:
    b = block((300, 500), (40_000,), dtype=torch.float32)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(count)
        before = torch.get_rng_state()
        found.append(DISTRIBUTIONS[name].distribution.draw(b, [0]))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*found)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("distribution", [Sphere(), Rademacher(), Coordinate()])
def test_sphere_signs_and_coordinates_have_length_sqrt_d(
    distribution: Distribution, dtype: torch.dtype, tolerance: float
) -> None:
    for shape in ((1,), (7,), (300, 1000)):
        b = block(shape, dtype=dtype)
        length = float(distribution.draw(b, [5]).double().norm())
        assert length == pytest.approx(b.dim**0.5, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_blocks_get_the_numbers_of_fp32_rounded(dtype: torch.dtype) -> None:
    for distribution in (Gaussian(), Rademacher(), Sphere()):
        v = distribution.draw(block((40, 7), dtype=torch.float32), [3])
        assert torch.equal(distribution.draw(block((40, 7), dtype=dtype), [3]), v.to(dtype))


def test_a_low_rank_direction_has_its_rank() -> None:
    b = block((40, 30), dtype=torch.float64)
    singular = torch.linalg.svdvals(LowRank(3).draw(b, [0]).view(40, 30))
    assert singular[2] > 1 and singular[3] < 1e-12


def test_tensors_without_entries_and_masks_of_one_entry_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "CHUNK", 4)  # so that a tensor has several pieces
    b = block((0, 3), (3, 0), (2, 5))
    for distribution in (LowRank(2), Gaussian(), Rademacher()):
        assert distribution.draw(b, [0]).shape == (10,)
    both, one = block((10,), (7,)), (torch.tensor([True]), torch.tensor([False]))
    v = Masked(one).draw(both, [0])
    assert torch.equal(v[:10], Gaussian().draw(both, [0])[:10]) and not v[10:].any()


def test_every_sign_bit_is_used() -> None:
    b = block((64 * 500 + 3,), dtype=torch.float32)  # a word has 64 bits; the last one is used in part
    v = torch.stack([Rademacher().draw(b, [i]) for i in range(4)])
    assert set(v.unique().tolist()) == {-1.0, 1.0}
    by_bit = v[:, : 64 * 500].reshape(-1, 64).mean(0) * 2000**0.5
    assert by_bit.abs().max() < 4.5


def test_given_directions_are_taken_as_they_are() -> None:
    b = block((2, 3), (4,))
    vectors = tuple(torch.arange(10.0).double() + i for i in range(2))
    assert torch.equal(Known(vectors).draw(b, [1]), vectors[1])


def test_a_users_distribution_is_one_method() -> None:
    class Uniform(Distribution):
        def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
            out.uniform_(-(3**0.5), 3**0.5, generator=stream.generator(piece.tensor, piece.number))

    v = Uniform().draw(block((100, 100)), [0])
    assert float(v.square().mean()) == pytest.approx(1, abs=4 * (0.8 / 1e4) ** 0.5)  # Var v^2 = 9/5 - 1
    assert Uniform().name == "uniform"


def test_the_streams_name_says_what_decides_its_bits() -> None:
    kind, capability, version, chunk = stream_name().split("/")
    assert kind == "cpu" and capability == torch.backends.cpu.get_cpu_capability()
    assert version.startswith("torch-2.") and chunk == f"chunk-{rng.CHUNK}"


BAD = {
    "distribution": (lambda: draw(block((2,)), "cauchy", [0]), "distribution cauchy is unknown: use one of gaussian"),
    "parameters": (lambda: named("gaussian(2)"), r"distribution gaussian\(2\) has the parameters none"),
    "density": (lambda: Sparse(0.0), r"density 0.0 of sparse directions: use a number in \(0, 1\]"),
    "seed": (lambda: Gaussian().draw(block((2,)), [1, -1]), r"seed \(1, -1\) of block 'b': use numbers from 0"),
    "rank": (lambda: LowRank(0), "rank 0 of low-rank directions: use a whole number of at least 1"),
    "masks": (
        lambda: Masked((torch.ones(2).bool(),)).draw(block((2,), (3,)), [0]),
        r"do not fit parameters of shapes \[\(2,\), \(3,\)\]: give one tensor a parameter",
    ),
    "scales": (lambda: Preconditioned((torch.ones(3),)).draw(block((2,)), [0]), "tensors of shapes"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_distributions_are_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(BadInput, match=message):
        make()


def test_drawing_in_threads_leaves_torchs_own_threads_as_they_were(threads: None) -> None:
    torch.set_num_threads(2)
    Gaussian().draw(block((3, rng.CHUNK), dtype=torch.float32), [0])
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [2] and torch.get_num_threads() == 2
    assert {f.result() for f in [rng._threads(2).submit(torch.get_num_threads) for _ in range(8)]} == {1}


def test_a_forked_child_draws_with_threads_of_its_own(threads: None) -> None:
    torch.set_num_threads(2)
    b = block((3, rng.CHUNK), dtype=torch.float32)
    expected = float(Gaussian().draw(b, [0])[-1])
    reader, writer = os.pipe()
    child = os.fork()
    if not child:  # one thread for torch itself, whose threads do not outlive a fork either
        try:
            found = rng.in_threads(lambda pieces: [p.number for p in pieces], Gaussian().pieces(b), torch.device("cpu"))
            os.write(writer, str(len(found)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], 20)
    if not ready:
        os.kill(child, 9)
    os.waitpid(child, 0)
    assert ready and int(os.read(reader, 10)) == len(Gaussian().pieces(b))
    assert float(Gaussian().draw(b, [0])[-1]) == expected
