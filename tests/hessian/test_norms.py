"""Norms, traces and cross blocks against dense truth: coverage, unbiasedness, variances, exactness and flags.

Seeds were fixed before the first run. A share of hits is held against the binomial quantile that a coverage of 93 %
undercuts once in a thousand times, a mean or variance against its own standard error.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian import deflation, norms
from smoothlab.hessian.basis import Basis
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.norms import Hessian, NormEstimate
from smoothlab.stats import probes
from smoothlab.zeroth.distributions import draw
from tests.cases import PROBLEMS, SPECTRA, DenseHessian, diagonal
from tests.hessian.test_products import dense

DISTRIBUTIONS = ("gaussian", "rademacher", "sphere")


def simulated(quick: int, thorough: int) -> pytest.MarkDecorator:
    """Runs the test on a quick number of simulations, and under the slow marker on a thorough one."""
    return pytest.mark.parametrize("runs", [quick, pytest.param(thorough, marks=pytest.mark.slow)])


def longer(cases: Iterable[str], *quick: str) -> list[Any]:
    """Cases for parametrize: all but the quick ones are for `make check`."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.check) for case in cases]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def least(n: int, share: float = 0.93) -> int:
    """Hits in n trials that a true coverage of `share` undercuts once in a thousand times."""
    return int(stats.binom.ppf(1e-3, n, share))


def z_score(samples: np.ndarray, truth: float) -> float:
    return float((samples.mean() - truth) / (samples.std(ddof=1) / len(samples) ** 0.5))


def symmetric(d: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((d, d))
    return (a + a.T) / 2


def key(e: NormEstimate) -> tuple[str, str, str]:
    return e.quantity, e.wrt, e.block


def covers(e: NormEstimate, truth: float) -> bool:
    return e.low <= truth <= e.high


def hits(hessian: DenseHessian, runs: int, **settings: object) -> Counter[tuple[str, str, str]]:
    """How many of `runs` intervals of Hessian.norms hold the truth, by quantity and blocks."""
    found: Counter[tuple[str, str, str]] = Counter()
    for seed in range(runs):
        for e in hessian.norms(seed=(seed,), **settings):
            found[key(e)] += covers(e, hessian.truth(*key(e)))
    return found


# Coverage


@simulated(60, 1000)
@pytest.mark.parametrize("spectrum", longer(SPECTRA, "flat", "ten equal"))
def test_intervals_cover_whatever_the_spectrum(spectrum: str, runs: int) -> None:
    found = hits(diagonal(spectrum), runs)
    assert set(found) == {(q, "a", "a") for q in ("frobenius", "spectral", "trace")}
    assert min(found.values()) >= least(runs), found


# The end of the spectrum


@pytest.mark.parametrize(
    ("eigenvalues", "sign"),
    [
        (np.concatenate([[3.0], np.linspace(-1, 1, 79)]), 1),
        (np.concatenate([[-3.0], np.linspace(-1, 1, 79)]), -1),
        (np.linspace(-1, 1, 80), 0),
        (np.concatenate([[1.0, -0.999], np.linspace(-0.5, 0.5, 78)]), 1),
        (np.concatenate([[-5.0, 4.0], np.zeros(78)]), -1),
        (np.zeros(80), 0),
        (np.array([-2.0, 1.0]), -1),
        (np.array([-0.5]), -1),
    ],
)
def test_rows_say_which_end_of_the_spectrum_is_the_larger(eigenvalues: np.ndarray, sign: int) -> None:
    hessian = DenseHessian(np.diag(eigenvalues))
    for seed in range(3):
        found = {e.quantity: e for e in hessian.norms(precision=1e-3, seed=(seed,))}  # with all Lanczos steps
        assert found["spectral"].sign == sign
        assert found["frobenius"].sign is None and found["trace"].sign is None


def test_the_reach_is_that_of_the_first_start_alone() -> None:
    """Its Krylov space closes after one step per eigenvalue; what other starts add is no Lanczos process of it."""
    for eigenvalues in (np.repeat([1.0, -1.0], 40), np.repeat([2.0, 0.5, -1.0, 0.0], 20)):
        run = Deflation(DenseHessian(np.diag(eigenvalues)), "a", [3], [])
        run.krylov(12)
        assert run.unbroken == len(set(eigenvalues)) and run.basis.size == 12
        assert run.reach() == pytest.approx((eigenvalues.min(), eigenvalues.max()), abs=1e-9)


def test_a_sign_is_not_told_of_rounding() -> None:
    assert _Rounded(np.eye(30), 0.7).norms(precision=0.2)[1].sign == 0
    assert _Rounded(np.diag([-9.0, *np.ones(29)]), 1e-3).norms(precision=0.2)[1].sign == -1


class Broad(Hessian):
    """A Hessian whose spectrum is given, as block "h" in fp32."""

    def __init__(self, eigenvalues: np.ndarray) -> None:
        self.diagonal = torch.tensor(eigenvalues, dtype=torch.float32)
        self.blocks = {"h": Block("h", (torch.zeros(len(eigenvalues)),))}

    def product(self, v: Tensor, along: str, wrt: list[str]) -> tuple[Tensor, ...]:
        return (self.diagonal * v,)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        return 1e-6, 1


_WIDE = np.arange(1, 100_001)
BROAD = {  # Frobenius over spectral norm: 8 to 180
    "power law": _WIDE**-0.38,
    "power law of both signs": (-1.0) ** _WIDE * _WIDE**-0.38,
    "power law and bulk": np.concatenate([_WIDE[:1000] ** -0.3, np.linspace(-0.02, 0.02, 99_000)]),
    "exponential": np.exp(-_WIDE / 128),
    "uniform": np.linspace(-1, 1, 100_000),
    "semicircle": stats.semicircular.ppf((_WIDE - 0.5) / 100_000),
    "outliers near a bulk": np.concatenate([np.linspace(1, 1.3, 10), np.linspace(-0.1, 1, 99_990)]),
}


@pytest.mark.parametrize("spectrum", BROAD)
def test_the_spectral_bound_is_near_its_value_on_broad_spectra(spectrum: str) -> None:
    truth = float(np.abs(BROAD[spectrum]).max())
    ratios = [e.high / e.value for e in _spectral(Broad(BROAD[spectrum]), 2) if covers(e, truth)]
    assert len(ratios) == 2 and max(ratios) < 1.4


@pytest.mark.parametrize("spectrum", ["power law", "semicircle"])
def test_lanczos_steps_follow_the_precision_and_the_spectrum(spectrum: str) -> None:
    def steps(precision: float) -> int:
        run = Deflation(Broad(BROAD[spectrum]), "h", [3], [])
        run.krylov(30, precision)
        bound = max(run.reach().highest, -run.reach().lowest)
        assert bound <= (1 + 10 * precision) * np.abs(np.linalg.eigvalsh(run.projected())).max()
        return run.lanczos

    assert 4 <= steps(0.2) < steps(0.05) < 12, "broad: plain probes do the rest"


def test_lanczos_goes_on_where_it_saves_probes() -> None:
    """Ten eigenvalues of 3 to 4 beside a rest: the bound is good early, and each step takes a tenth away."""
    run = Deflation(DenseHessian(np.diag([*np.linspace(3, 4, 10), *np.full(290, 0.1)])), "a", [3], [])
    run.krylov(12, 0.05)
    assert run.lanczos == 12
    closed = Deflation(DenseHessian(np.eye(300)), "a", [3], [])
    closed.krylov(12, 0.05)
    assert closed.lanczos == 4
    small = Deflation(DenseHessian(np.eye(200)), "a", [3], [])
    small.krylov(12, 0.05)
    assert small.lanczos == 12


def _spectral(hessian: object, runs: int) -> list[NormEstimate]:
    return [hessian.norms(seed=(i,), precision=0.03)[1] for i in range(runs)]  # type: ignore[arg-type]


def _two_blocks(kind: str) -> DenseHessian:
    rng = np.random.default_rng(11)
    if kind == "dense":
        return DenseHessian(symmetric(70, 11), 40, 30)
    h = np.zeros((70, 70))
    h[:40, :40], h[40:, 40:] = np.diag(1 / np.arange(1, 41.0)), np.diag(2 / np.arange(1, 31.0))
    cross = rng.standard_normal((40, 30))
    if kind == "one coupled pair":
        cross = np.outer(cross[:, 0], cross[0])
    elif kind == "decaying":
        cross = cross / np.arange(1, 41.0)[:, None] / np.arange(1, 31.0)
    elif kind == "off the top":  # where neither block's own Krylov space looks first
        cross[:30] = cross[:, :20] = 0.0
    h[:40, 40:], h[40:, :40] = cross, cross.T
    return DenseHessian(h, 40, 30)


@simulated(25, 1000)
@pytest.mark.parametrize(
    "kind", longer(["dense", "one coupled pair", "decaying", "off the top"], "dense", "off the top")
)
def test_intervals_of_cross_blocks_cover(kind: str, runs: int) -> None:
    found = hits(_two_blocks(kind), runs, cross=[("b", "a")], precision=0.1)
    assert ("frobenius", "b", "a") in found
    assert min(found.values()) >= least(runs), found


def test_the_coverage_test_sees_intervals_that_claim_too_many_degrees_of_freedom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = probes.sum_of_squares
    monkeypatch.setattr(deflation, "sum_of_squares", lambda x, nu, **options: honest(x, 9 * nu, **options))
    runs = 60
    # The precision is loose, so that the interval and not the deflation decides.
    assert hits(diagonal("ten equal"), runs, precision=0.2, lanczos=2)["frobenius", "a", "a"] < least(runs)


def test_the_coverage_test_sees_a_lost_factor_two(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Deflation.projected
    monkeypatch.setattr(Deflation, "projected", lambda self: 1.1 * honest(self))
    runs = 20
    assert hits(diagonal("one outlier"), runs)["frobenius", "a", "a"] < least(runs)


NETWORKS = ["tanh", "gelu", "layer norm", "attention", "tied"]


def test_intervals_cover_on_networks() -> None:
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name in NETWORKS:
        for seed in range(2):
            module, blocks = PROBLEMS[name].build(seed)
            matrix = dense(module, blocks)
            truth = DenseHessian((matrix + matrix.T) / 2, *(b.dim for b in blocks))
            hessian = ExactHessian(module, blocks)
            names = {"x": "a", "y": "b"}
            for e in hessian.norms(cross=[("x", "y")], seed=(seed,), lanczos=6):
                kind = e.quantity if e.block == e.wrt else "cross"
                total[kind] += 1
                found[kind] += covers(e, truth.truth(e.quantity, names[e.wrt], names[e.block]))
                assert e.flag in (None, "precision not reached")
    assert set(found) == {"frobenius", "spectral", "trace", "cross"}
    assert all(found[kind] >= least(total[kind]) for kind in total), (found, total)


# Moments


@simulated(80, 3000)
@pytest.mark.parametrize("spectrum", longer(["power law", "ten equal", "flat"], "ten equal"))
def test_with_a_fixed_number_of_probes_deflation_leaves_the_estimates_unbiased(spectrum: str, runs: int) -> None:
    hessian, budget = diagonal(spectrum), 11
    found = [hessian.norms(lanczos=4, budget=budget, precision=1e-6, seed=(9, i)) for i in range(runs)]
    assert all(f.hvps == budget and f.flag == "precision not reached" for f, _, _ in found)
    assert abs(z_score(np.array([f.value**2 for f, _, _ in found]), hessian.truth("frobenius") ** 2)) < 3.5
    assert abs(z_score(np.array([t.value for _, _, t in found]), hessian.truth("trace"))) < 3.5


@simulated(60, 2000)
@pytest.mark.parametrize("kind", longer(["dense", "decaying", "off the top"], "off the top"))
def test_cross_blocks_are_unbiased_too(kind: str, runs: int) -> None:
    hessian = _two_blocks(kind)
    settings = {"lanczos": 3, "budget": 9, "precision": 1e-6, "cross": [("a", "b")]}
    f2 = np.array([hessian.norms(seed=(9, i), **settings)[-1].value ** 2 for i in range(runs)])
    assert abs(z_score(f2, hessian.truth("frobenius", "b", "a") ** 2)) < 3.5


# Exactness


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 3, 11, 12, 13, 25])
def test_low_rank_is_deflated_exactly_and_the_interval_knows_rounding(rank: int, dtype: torch.dtype) -> None:
    basis = np.linalg.qr(np.random.default_rng(rank).standard_normal((80, rank)))[0]
    eigenvalues = (-1.0) ** np.arange(rank) / np.arange(1.0, rank + 1)
    hessian = DenseHessian(basis @ np.diag(eigenvalues) @ basis.T, dtype=dtype)
    runs, covered = 10, 0
    for seed in range(runs):
        found = hessian.norms(seed=(seed,))
        frobenius = found[0]
        covered += covers(frobenius, hessian.truth("frobenius"))
        assert frobenius.flag is None
        if rank <= 11:  # fewer than the Lanczos steps: the Krylov space closes, nothing is left to chance
            eps = torch.finfo(dtype).eps
            assert all(covers(e, hessian.truth(e.quantity)) for e in found)
            assert frobenius.value == pytest.approx(hessian.truth("frobenius"), rel=8 * eps)
            assert 0 < frobenius.high - frobenius.low < 600 * eps * frobenius.value
            assert found[1].value == pytest.approx(hessian.truth("spectral"), rel=100 * eps)
    assert covered >= least(runs)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (5, 2), (12, 5), (40, 1), (40, 12)])
@pytest.mark.parametrize("make", [symmetric, lambda d, seed: np.eye(d), lambda d, seed: np.ones((d, d))])
def test_blocks_of_few_dimensions_are_exact(sizes: tuple[int, int], make: object) -> None:
    hessian = DenseHessian(make(sum(sizes), 2), *sizes)
    found = {key(e): e for e in hessian.norms(cross=[("a", "b")], budget=200)}
    small = [name for name, size in zip("ab", sizes, strict=True) if size <= 12]
    for (quantity, wrt, along), e in found.items():
        assert covers(e, hessian.truth(quantity, wrt, along)), e
        if small and wrt != along or along in small:
            assert e.value == pytest.approx(hessian.truth(quantity, wrt, along), rel=1e-12, abs=1e-12)
            zero = hessian.truth(quantity, wrt, along) == 0.0
            assert e.flag == ("below floor" if zero else None) and e.hvps <= sum(sizes)
    # With one side spanned, the cross block is seen whole through it.
    assert found["frobenius", "b", "a"].value == pytest.approx(hessian.truth("frobenius", "b", "a"), rel=1e-12)


def test_a_zero_hessian_and_a_zero_coupling_have_norm_zero() -> None:
    for e in DenseHessian(np.zeros((30, 30)), 20, 10).norms(cross=[("a", "b")]):
        assert (e.value, e.low, e.high, e.flag) == (0.0, 0.0, 0.0, None)
    h = np.diag(np.arange(1.0, 41))
    cross = DenseHessian(h, 25, 15).norms(cross=[("a", "b")])[-1]
    # Beside blocks that are not zero, rounding could hide a coupling up to its floor.
    assert (cross.value, cross.low, cross.flag) == (0.0, 0.0, "below floor") and 0 < cross.high < 1e-10


def test_what_the_estimator_spends_follows_the_spectrum() -> None:
    def spent(spectrum: str) -> float:
        return float(np.median([diagonal(spectrum).norms(seed=(i,))[0].hvps for i in range(10)]))

    dominated = {name: spent(name) for name in ("power law", "one outlier", "low rank")}
    assert max(dominated.values()) <= 20, dominated
    assert dominated["low rank"] < 12 + 6


def test_products_told_are_products_made_and_scale_carries_through() -> None:
    hessian = _two_blocks("dense")
    first = hessian.norms(cross=[("a", "b")], seed=(3,))
    by_block = {e.block: e.hvps for e in first if e.block == e.wrt}
    assert hessian.products == sum(by_block.values()) and first[-1].hvps == by_block["a"]
    assert [key(e)[1:] for e in first] == [("a", "a")] * 3 + [("b", "b")] * 3 + [("b", "a")]
    scaled = DenseHessian(-1000 * hessian.matrix, 40, 30).norms(cross=[("a", "b")], seed=(3,))
    for one, other in zip(first, scaled, strict=True):
        sign = -1 if one.quantity == "trace" else 1
        assert other.value == pytest.approx(sign * 1000 * one.value, rel=1e-9)
        assert other.high - other.low == pytest.approx(1000 * (one.high - one.low), rel=1e-9)
    only = hessian.norms(["b"], seed=(3,))
    assert [e.block for e in only] == ["b"] * 3
    assert hessian.norms(cross=[("a", "b")], seed=(3,)) == first, "the seed fixes all"
    assert hessian.norms(cross=[("a", "b")], seed=(4,)) != first


# Flags and errors


def test_a_spent_budget_is_flagged_and_its_interval_still_covers() -> None:
    hessian, runs = diagonal("ten equal"), 60
    found = [hessian.norms(lanczos=2, budget=8, precision=0.01, seed=(i,))[0] for i in range(runs)]
    assert all(e.flag == "precision not reached" and e.hvps == 8 for e in found)
    assert sum(covers(e, hessian.truth("frobenius")) for e in found) >= least(runs)
    assert all(e.flag is None for e in hessian.norms(precision=0.2))


class _Rounded(DenseHessian):
    """Products that rounding spoils, with a relative error that is told."""

    def __init__(self, matrix: np.ndarray, error: float, *sizes: int) -> None:
        super().__init__(matrix, *sizes)
        self.error, self.generator = error, torch.Generator().manual_seed(0)

    def product(self, v: Tensor, along: str, wrt: list[str]) -> tuple[Tensor, ...]:  # type: ignore[override]
        exact = super().product(v, along, wrt)
        scale = self.error * float(exact[0].norm()) / exact[0].numel() ** 0.5
        return tuple(x + scale * torch.randn(x.shape, generator=self.generator).double() for x in exact)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        return self.error, 1


def test_estimates_under_their_rounding_floor_are_flagged() -> None:
    for error, flag in ((0.7, "below floor"), (1e-3, None)):
        hessian = _Rounded(np.eye(30), error)
        estimates = {e.quantity: e for e in hessian.norms(precision=0.2)}
        assert estimates["frobenius"].flag == flag and estimates["spectral"].flag == flag
        assert estimates["frobenius"].floor == pytest.approx(error * estimates["frobenius"].value)


BAD = {
    "unknown block": ({"names": ["c"]}, "block 'c' is unknown: use one of a, b"),
    "unknown cross block": ({"cross": [("a", "c")]}, "block 'c' is unknown"),
    "cross of a block with itself": ({"cross": [("a", "a")]}, "name two different blocks"),
    "no precision": ({"precision": 0.0}, "use a precision in"),
    "precision of one": ({"precision": 1.0}, "use a precision in"),
    "precision nan": ({"precision": float("nan")}, "use a precision in"),
    "no steps": ({"lanczos": 0}, "at least one Lanczos step"),
    "no budget": ({"lanczos": 10, "budget": 15}, "a budget of at least lanczos"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_told_in_one_line(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(BadInput, match=message) as caught:
        _two_blocks("dense").norms(**settings)
    assert "\n" not in str(caught.value)


# The basis


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_basis_stays_orthonormal_through_growth_and_many_chunks(dtype: torch.dtype) -> None:
    dim, eps = 150_000, torch.finfo(dtype).eps
    basis, generator = Basis(dim, torch.zeros(0, dtype=dtype)), torch.Generator().manual_seed(0)
    common = torch.randn(dim, generator=generator, dtype=dtype)
    for _ in range(12):  # nearly parallel vectors: one projection alone loses five digits
        assert basis.add(common + 1e-3 * torch.randn(dim, generator=generator, dtype=dtype))
    q = basis.rows.double()
    gram = q @ q.T
    assert float((gram - gram.diag().diag()).abs().max()) < 10 * eps
    assert float((gram.diag() - 1).abs().max()) < 300 * eps  # the accuracy of a sum of 2^16 entries in fp64
    w = torch.randn(dim, generator=generator, dtype=dtype)
    expected, kept = q @ w.double(), w.double()
    coefficients = basis.project_out(w).coefficients
    assert np.abs(coefficients - expected.numpy()).max() < 100 * eps * float(kept.norm()) / 10
    assert float((q @ w.double()).abs().max()) < 10 * eps * float(kept.norm())
    assert not basis.add(q[3].to(dtype) * 7.0 + q[5].to(dtype)), "in the span already"
    assert basis.size == 12


def test_the_basis_refuses_a_zero_vector() -> None:
    basis = Basis(10, torch.zeros(0))
    assert not basis.add(torch.zeros(10)) and basis.size == 0
    assert basis.add(Block("b", (torch.ones(10),)).params[0].clone()) and basis.size == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1.0, 0.8, 0.55, 0.4, 0.1, 1e-2, 1e-4, 0.0])
@pytest.mark.parametrize("dim", [20, 1000, 150_000])
def test_projections_agree_with_fp64_however_little_they_leave(dim: int, share: float, dtype: torch.dtype) -> None:
    eps, generator = torch.finfo(dtype).eps, torch.Generator().manual_seed(0)
    basis = Basis(dim, torch.zeros(0, dtype=dtype))
    while basis.size < 6:
        assert basis.add(torch.randn(dim, generator=generator, dtype=dtype))
    q = basis.rows.double()
    exact = torch.linalg.qr(q.T)[0]
    inside, beyond = q[1] - q[4], torch.randn(dim, generator=generator, dtype=torch.float64)
    for _ in range(2):
        beyond -= exact @ (exact.T @ beyond)
    w = ((1 - share**2) ** 0.5 * inside / inside.norm() + share * beyond / beyond.norm()).to(dtype)
    coefficients, left = q @ w.double(), w.double() - exact @ (exact.T @ w.double())
    looked = basis.coefficients(w, 2 * w)
    assert all(np.abs(looked[i] - (1 + i) * coefficients.numpy()).max() < 60 * eps for i in range(2))
    told = basis.project_out(w)
    assert np.abs(told.coefficients - coefficients.numpy()).max() < 60 * eps
    assert float((w.double() - left).norm()) < 60 * eps
    assert told.before == pytest.approx(1, rel=100 * eps) and told.after == pytest.approx(float(w.double().norm()))
    if share:
        assert float((q @ w.double()).abs().max()) < 20 * eps * told.after, "relative to what is left"
    assert basis.add(w, told) == (share > 0), "rank is told by the norm before any projection"
    gram = basis.rows.double() @ basis.rows.double().T
    assert float((gram - gram.diag().diag()).abs().max()) < 20 * eps


def test_what_is_orthogonal_already_is_not_projected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps, honest = [], Basis._sweep
    monkeypatch.setattr(Basis, "_sweep", lambda self, *args, **more: sweeps.append(1) or honest(self, *args, **more))

    def spent() -> int:
        count = len(sweeps)
        sweeps.clear()
        return count

    basis, generator = Basis(4000, torch.zeros(0)), torch.Generator().manual_seed(0)
    draws = [torch.randn(4000, generator=generator) for _ in range(4)]
    assert basis.add(draws[0]) and basis.add(draws[1])
    spent()
    told = basis.project_out(draws[2])
    assert spent() == 2, "a fresh probe loses little: one look, one subtraction"
    assert basis.add(draws[2], told) and spent() == 0
    inside = 0.3 * basis.rows[0] + 0.7 * basis.rows[1]
    rounding, stale = basis.project_out(inside), basis.project_out(draws[3])
    spent()
    assert basis.add(draws[3] + basis.rows[2], None) and basis.size == 4
    assert spent() == 2
    # Q has grown since: what was told then is no longer enough.
    parallel = basis.rows[3] + 1e-3 * torch.randn(4000, generator=generator)
    assert basis.add(parallel, stale) and spent() == 3, "little is left, hence twice"
    assert 0 < float(inside.norm()) and not basis.add(inside, rounding), "what is left of it is rounding, whatever Q"
    gram = (basis.rows @ basis.rows.T).double()
    assert float((gram - torch.eye(5)).abs().max()) < 1e-5


_I80 = np.arange(1, 81)
RUNS = {
    **SPECTRA,
    "clustered": 1 + 1e-9 * _I80,
    "one outlier of a million": np.where(_I80 == 1, 1e6, 1.0 / _I80),
    "fast decay": 10.0 ** -(_I80 / 2.0),
    "zero": np.zeros(80),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spectrum", RUNS)
def test_a_run_is_the_dense_computation_on_its_own_directions(spectrum: str, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((90, 90)))[0]
    h = rotation[:, :80] @ np.diag(RUNS[spectrum]) @ rotation[:, :80].T
    hessian = DenseHessian((h + h.T) / 2, 80, 10, dtype=dtype)
    first = Deflation(hessian, "a", [5], ["b"])
    first.krylov(12)
    for _ in range(7):
        first.probe()
    first.extend()
    first.probe()

    part, cross = hessian.part("a", "a").double(), hessian.part("b", "a").double()
    size = max(float(torch.linalg.matrix_norm(part, 2)), 1e-30)
    q = first.basis.rows.double()
    assert float((q @ q.T - torch.eye(len(q))).abs().max()) < 20 * eps
    assert np.abs(first.projected() - (q @ part @ q.T).numpy()).max() < 50 * eps * size
    assert first.captured == pytest.approx(float((q @ part).square().sum()), rel=100 * eps)

    def beyond(rows: Tensor) -> Tensor:
        return torch.eye(rows.shape[1]) - torch.linalg.pinv(rows) @ rows

    noise = 20 * eps * size  # of a norm, for a direction of length one
    g = draw(hessian.blocks["a"], "gaussian", [5, first.draws]).double()
    image = beyond(q) @ part @ beyond(q) @ g
    assert first.squares[-1] ** 0.5 == pytest.approx(float(image.norm()), rel=100 * eps, abs=noise * float(g.norm()))
    assert first.forms[-1] == pytest.approx(float(g @ image), abs=noise * float(g @ g))
    known, rest = cross @ q.T, cross @ beyond(q) @ g
    scale = float(torch.linalg.matrix_norm(cross, 2)) + size
    assert first.cross_known["b"] ** 0.5 == pytest.approx(float(known.norm()), rel=100 * eps, abs=20 * eps * scale)
    found = first.cross_squares["b"][-1] ** 0.5
    assert found == pytest.approx(float(rest.norm()), rel=100 * eps, abs=20 * eps * scale * float(g.norm()))
    assert float(first.cross_images["b"][-1].norm()) == pytest.approx(found, rel=100 * eps)


# Quotients of gradients in place of products, for probes of blocks of wide matrices


def _watched(quotients: bool, dtype: torch.dtype = torch.float32, speed: float = 1.0) -> tuple[Any, Counter[str]]:
    """Exact products of a smooth network, layers x and y, and how often each way to an image is taken.

    f = sin(speed * outputs)^2 / speed^2 has second derivatives of order 1 and third ones of order `speed`.
    """
    generator = torch.Generator().manual_seed(3)
    x0, x1, y = (torch.nn.Parameter(torch.randn(n, 64, generator=generator, dtype=dtype) / 8) for n in (64, 64, 4))
    inputs = torch.randn(12, 64, generator=generator, dtype=dtype)
    ways: Counter[str] = Counter()

    def loss() -> Tensor:
        outputs = torch.tanh(torch.tanh(inputs @ x0.T) @ x1.T) @ y.T
        return (speed * outputs).sin().square().mean() / speed**2

    class Watched(ExactHessian):
        def product(self, v: Tensor, along: str, wrt: Any) -> tuple[Tensor, ...]:
            ways[f"product along {along}"] += 1
            return super().product(v, along, wrt)

        def quotient(self, v: Tensor, along: str, wrt: Any) -> tuple[Tensor, ...] | None:
            ways[f"quotient along {along}"] += 1
            return super().quotient(v, along, wrt)

    return Watched(loss, [Block("x", (x0, x1)), Block("y", (y,))], quotients=quotients), ways


QUOTIENTS: dict[str, Any] = {"cross": [("x", "y")], "precision": 0.05, "lanczos": 4, "seed": (1,)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_norms_by_quotients_are_those_by_products(dtype: torch.dtype) -> None:
    slow, slow_ways = _watched(False, dtype)
    fast, fast_ways = _watched(True, dtype)
    products, quotients = slow.norms(**QUOTIENTS), fast.norms(**QUOTIENTS)
    # The move is sqrt(eps) ||theta||: rounding is of that size relative to the image, and truncation, too.
    close = 30 * torch.finfo(dtype).eps ** 0.5
    for product, quotient in zip(products, quotients, strict=True):
        assert (quotient.quantity, quotient.hvps, quotient.flag) == (product.quantity, product.hvps, product.flag)
        for a, b in zip((quotient.value, quotient.low), (product.value, product.low), strict=True):
            assert a == pytest.approx(b, rel=close, abs=close * products[0].value)
    # The first probe is imaged both ways, the others by quotients; the smaller block's by products.
    saved = slow_ways["product along x"] - fast_ways["product along x"]
    assert saved >= 4 and fast_ways["quotient along x"] == saved + 1
    assert fast_ways["quotient along y"] == 0 and fast_ways["product along y"] == slow_ways["product along y"]


def test_quotients_that_are_not_close_are_left_alone() -> None:
    slow, _ = _watched(False, speed=300.0)
    fast, ways = _watched(True, speed=300.0)
    assert fast.norms(**QUOTIENTS) == slow.norms(**QUOTIENTS)
    assert ways["quotient along x"] == 1, "the first probe shows it"


def test_a_quotients_error_is_even() -> None:
    hessian, _ = _watched(True, torch.float64, speed=1e4)  # truncation is far above rounding
    v = draw(hessian.blocks["x"], "gaussian", [5]).double()
    (image,) = hessian.product(v, "x", ["x"])
    (forth,), (back,) = hessian.quotient(v, "x", ["x"]), hessian.quotient(-v, "x", ["x"])
    even, odd = forth + back, (forth - back) / 2 - image
    assert 1e-6 < even.norm() / image.norm() < 1e-2
    assert odd.norm() < 1e-3 * even.norm() + 1e-7 * image.norm()


@pytest.mark.parametrize("why", ["kinks", "16 bit", "zeros", "not wanted"])
def test_there_is_no_quotient_where_it_would_not_serve(why: str) -> None:
    dtype = torch.bfloat16 if why == "16 bit" else torch.float32
    start = torch.zeros(6, dtype=dtype) if why == "zeros" else torch.ones(6, dtype=dtype)
    w = torch.nn.Parameter(start)
    inputs = torch.arange(6.0, dtype=dtype)

    def loss() -> Tensor:
        activation = torch.relu if why == "kinks" else torch.tanh
        return activation(w * inputs).square().sum()

    hessian = ExactHessian(loss, [Block("w", (w,))], quotients=why != "not wanted")
    assert hessian.quotient(torch.ones(6, dtype=dtype), "w", ["w"]) is None


def test_a_block_alone_is_probed_as_beside_others_and_for_its_layers_by_products() -> None:
    hessian, ways = _watched(True)
    options: dict[str, Any] = {"precision": 0.05, "lanczos": 4}
    alone = hessian.norms(["x"], **options)
    assert alone == hessian.norms(**options)[:3] and ways["quotient along x"] > 4
    ways.clear()
    layers = [Block(f"layer {k}", (p,)) for k, p in enumerate(hessian.blocks["x"].params)]
    hessian.norms(["x"], rows=layers, **options)
    assert not ways["quotient along x"]


WIDTHS = [
    (((64, 64),), True), (((63, 900),), False), (((8, 64, 128),), True), (((64, 3, 7, 7),), False), (((4096,),), False),
    (((8, 512), (64, 64)), False), (((4, 512), (64, 64)), True), (((1, 64), (64, 64), (64,)), True),
]  # fmt: skip


@pytest.mark.parametrize(("shapes", "wide"), WIDTHS, ids=str)
def test_blocks_of_wide_matrices_are_those_where_products_cost_two_gradients(shapes: Any, wide: bool) -> None:
    assert norms._wide(Block("b", tuple(torch.zeros(shape) for shape in shapes))) == wide
