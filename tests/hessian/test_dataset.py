"""The Hessian of a data set's mean loss against the dense mean over all items: bias, coverage, shares, stopping.

Item i has the loss w'H_i w / 2 with a given symmetric H_i, so that the data set's Hessian is the mean matrix.
"""

import inspect
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian.dataset import DatasetHessian, DatasetNorm, redraw
from tests.cases import DenseHessian

DIM, ITEMS = 24, 40


def items(spread: float, seed: int = 0, dim: int = DIM) -> torch.Tensor:
    """Symmetric matrices [ITEMS, dim, dim]: one mean with eigenvalues 1/i, and noise of relative size `spread`."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    mean = basis / np.arange(1, dim + 1) @ basis.T
    noise = rng.standard_normal((ITEMS, dim, dim))
    noise = (noise + noise.transpose(0, 2, 1)) / dim * spread
    return torch.tensor(mean + noise)


def hessian(matrices: torch.Tensor, batch: int, seed: int) -> DatasetHessian:
    w = torch.nn.Parameter(torch.linspace(1, 2, matrices.shape[1], dtype=torch.float64))

    def loss(minibatch: torch.Tensor) -> torch.Tensor:
        return torch.einsum("i,nij,j->n", w, minibatch, w).mean() / 2

    return DatasetHessian(loss, DataLoader(matrices, batch_size=batch), [Block("a", (w,))], seed=(seed,))


class Dense(DatasetHessian):
    """The same minibatches and steps with the matrices themselves: quick enough to simulate."""

    def __init__(self, matrices: torch.Tensor, batch: int, seed: int) -> None:
        self.blocks, self.seed, self.losses, self.grad_norms = DenseHessian(matrices[0]).blocks, (seed,), [], {}
        self._minibatches = redraw(DataLoader(matrices, batch_size=batch), (seed,))  # type: ignore[arg-type]

    def minibatch(self, names: Sequence[str]) -> DenseHessian:
        return DenseHessian(next(self._minibatches).mean(0))


def estimates(matrices: torch.Tensor, runs: int, *, batch: int = 4, precision: float = 0.2) -> list[list[DatasetNorm]]:
    return [Dense(matrices, batch, seed).norms(precision=precision, budget=400) for seed in range(runs)]


def test_dense_matrices_stand_for_the_losses() -> None:
    """What is simulated below is what is measured: the same draws; the self-checks' direction turns the basis a bit."""
    matrices = items(1.0)
    for dense, measured in zip(Dense(matrices, 4, 0).norms(), hessian(matrices, 4, 0).norms(), strict=True):
        assert dense.value == pytest.approx(measured.value, rel=1e-5)
        assert dense.sampling_share == pytest.approx(measured.sampling_share, abs=1e-3)


def test_redrawn_minibatches_are_simple_random_samples() -> None:
    loader = DataLoader(range(10), batch_size=3)
    drawn = [tuple(sorted(minibatch.tolist())) for minibatch in islice(redraw(loader, (1,)), 2400)]
    assert all(len(set(minibatch)) == 3 for minibatch in drawn)
    counts = Counter(drawn)
    assert len(counts) == 120  # all subsets of 3 of 10 items
    assert stats.chisquare([*counts.values()]).pvalue > 1e-3
    # Independent of the minibatch before: pairs of the same minibatch come as often as 1 in 120.
    same = sum(a == b for a, b in zip(drawn, drawn[1:], strict=False))
    assert stats.binomtest(same, 2399, 1 / 120).pvalue > 1e-3


def test_minibatches_repeat_with_the_seed() -> None:
    loader = DataLoader(range(100), batch_size=3)
    first, again, other = (next(redraw(loader, (seed,))).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_whole_data_set_as_minibatch_leaves_the_probes_error_only() -> None:
    matrices = items(1.0)
    for frobenius, trace in estimates(matrices, 3, batch=ITEMS):
        mean = matrices.mean(0)
        assert frobenius.low <= float(mean.norm()) <= frobenius.high
        assert trace.low <= float(mean.trace()) <= trace.high
        assert frobenius.sampling_share < 0.7  # 0 but for the noise of 8 replicates


def test_block_within_the_basis_has_no_probes() -> None:
    matrices = items(1.0, dim=4)
    frobenius, trace = hessian(matrices, ITEMS, 0).norms()
    assert frobenius.value == pytest.approx(float(matrices.mean(0).norm()), rel=1e-10)
    assert trace.value == pytest.approx(float(matrices.mean(0).trace()), rel=1e-10)
    assert frobenius.high - frobenius.low < 1e-10
    assert frobenius.sampling_share == 1.0


@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_no_bias_where_one_minibatch_is_far_too_large(spread: float) -> None:
    """E ||H_A||_F^2 exceeds ||H||_F^2 by the sampling variance; the mean over pairs does not."""
    matrices = items(spread)
    truth = float(matrices.mean(0).norm()) ** 2
    squares = []
    for seed in range(60):
        one = Dense(matrices, 4, seed)
        block = next(iter(one.norms_by_block(precision=0.999)))  # the least number of replicates: no stopping bias
        squares.append(block.value**2)
    z = (np.mean(squares) - truth) / (np.std(squares, ddof=1) / len(squares) ** 0.5)
    assert abs(z) < 4
    naive = np.mean([float(matrices[s : s + 4].mean(0).norm()) ** 2 for s in range(0, ITEMS, 4)])
    if spread > 1:
        assert naive > 2 * truth


@pytest.mark.check
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_intervals_cover(spread: float) -> None:
    matrices = items(spread)
    mean = matrices.mean(0)
    runs = estimates(matrices, 200)
    least = stats.binom.ppf(1e-3, len(runs), 0.95)
    assert sum(f.low <= float(mean.norm()) <= f.high for f, _ in runs) >= least
    assert sum(t.low <= float(mean.trace()) <= t.high for _, t in runs) >= least


def test_sampling_share_follows_the_minibatches() -> None:
    """Items with multiples of one matrix: sampling carries the error of small minibatches, not of large ones."""
    factors = np.random.default_rng(4).exponential(size=ITEMS)
    matrices = torch.tensor(factors)[:, None, None] * items(0.0)
    small = [f.sampling_share for f, _ in estimates(matrices, 6, batch=2)]
    large = [f.sampling_share for f, _ in estimates(matrices, 6, batch=39)]
    assert np.mean(small) > 0.6 > 0.4 > np.mean(large)


def test_budget_ends_the_run_with_a_flag() -> None:
    frobenius, trace = Dense(items(6.0), 2, 0).norms(precision=0.01, budget=300)
    assert frobenius.flag == "precision not reached"
    assert trace.flag is None
    assert frobenius.hvps <= 300


def test_loader_that_ends_is_refused() -> None:
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    few = DatasetHessian(lambda a: (a * w**2).sum(), [1.0, 2.0], [Block("w", (w,))])
    with pytest.raises(BadInput, match="no more minibatches: give a DataLoader"):
        few.norms()


@pytest.mark.parametrize("precision", [0.0, 1.0])
def test_precision_out_of_range_is_refused(precision: float) -> None:
    with pytest.raises(BadInput, match=rf"precision {precision:g}: use one in \(0, 1\)"):
        hessian(items(1.0), 2, 0).norms(precision=precision)


def test_a_block_that_its_basis_spans_takes_no_probes() -> None:
    """Three directions span three dimensions: each minibatch costs three products, and the rounding of one."""
    run = Dense(items(1.0, dim=3), 4, 0)
    products = []
    plain = DenseHessian.product

    def counted(self: DenseHessian, v: torch.Tensor, along: str, wrt: Sequence[str]) -> tuple[torch.Tensor, ...]:
        products.append(v)
        return plain(self, v, along, wrt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DenseHessian, "product", counted)
        frobenius = run.norms(precision=0.2)[0]
    assert all(float(v.norm()) == pytest.approx(1.0) for v in products)
    assert frobenius.hvps == len(products)


def test_defaults_are_those_of_the_documents() -> None:
    assert inspect.signature(redraw).parameters["seed"].default == (0,)
    for method in (DatasetHessian.norms, DatasetHessian.norms_by_block):
        options = inspect.signature(method).parameters
        assert (options["precision"].default, options["budget"].default) == (0.1, 2000)
    assert DatasetNorm("a", "a", "trace", 0.0, 0.0, 0.0, 0, 0.0).minibatches == 0


def test_gradient_of_the_data_set_and_rounding_are_in_the_estimates() -> None:
    """Of the whole data set in each minibatch: ||H w||, and limits that the rounding floor widens to both sides."""
    matrices = 0.1 * items(1.0, dim=4)
    whole = hessian(matrices, ITEMS, 0)
    frobenius, trace = whole.norms()
    w = torch.linspace(1, 2, 4, dtype=torch.float64)
    assert whole.grad_norms["a"] == pytest.approx(float((matrices.mean(0) @ w).norm()), rel=1e-9)
    assert len(whole.losses) == frobenius.minibatches == 33
    assert frobenius.flag is None and frobenius.value < 1  # reached, however small the norm is
    assert frobenius.low < frobenius.value < frobenius.high
    assert trace.low < trace.value < trace.high


def test_traces_may_be_negative() -> None:
    _, trace = Dense(items(6.0) - 0.2 * torch.eye(DIM), 4, 0).norms(precision=0.5, budget=200)
    assert trace.low < 0


def test_probing_goes_on_until_the_budget() -> None:
    frobenius, _ = Dense(items(6.0), 2, 0).norms(precision=0.01, budget=300)
    assert 280 < frobenius.hvps <= 300
