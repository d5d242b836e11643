"""tr H+ against the dense spectrum: without bias with nearly all steps, and near it with few."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.hessian.deflation import Deflation
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.positive_part import positive_part
from smoothlab.hessian.products import Products


class _Known(Products):
    """Products with a symmetric matrix of known eigenvalues, in a random basis."""

    def __init__(self, eigenvalues: np.ndarray) -> None:
        generator = torch.Generator().manual_seed(1)
        d = len(eigenvalues)
        q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
        self.matrix = q * torch.as_tensor(eigenvalues) @ q.T
        w = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        self.blocks, self.loss, self.gradients = {"a": Block("a", (w,))}, 0.0, {"a": torch.zeros_like(w)}

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        return tuple(self.matrix @ v for _ in wrt)

    def noise(self, v: Tensor, image: Tensor, along: str) -> tuple[float, int]:
        return 1e-15, 1


def estimates(hessian: _Known, steps: int, runs: int) -> np.ndarray:
    """tr H+ and ||H||_F^2 [runs, 2] from starts of their own."""
    found = []
    for seed in range(runs):
        run = Deflation(hessian, "a", [seed], [])
        run.krylov(steps)
        found.append(positive_part(run)[:2])
        assert run.hvps == steps + 1  # and one product for the rounding
    return np.array(found)


DECAYING = np.arange(1, 41) ** -1.0
SPECTRA = {
    "positive": DECAYING,
    "both signs": np.concatenate([3 * DECAYING, -DECAYING]),
    "mostly negative": np.concatenate([DECAYING[:5], -3 * DECAYING]),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_with_nearly_all_steps_starts_have_no_bias(name: str) -> None:
    """Means over 200 starts within 4 standard errors; what one step of as many leaves out is far below that."""
    values = SPECTRA[name]
    found = estimates(_Known(values), len(values) - 1, 200)
    truth = np.array([values[values > 0].sum(), values @ values])
    assert (np.abs(found.mean(0) - truth) < 4 * found.std(0) / 200**0.5).all()


WIDE = {
    "both signs, 1/j": (np.concatenate([3 * np.arange(1, 501) ** -1.0, -(np.arange(1, 501) ** -1.0)]), 0.6, 1.1),
    "positive, 1/j": (np.arange(1, 1001) ** -1.0, 0.8, 1.2),
    "symmetric bulk": (np.concatenate([[20.0, 10.0, 5.0], np.random.default_rng(0).normal(size=997)]), 0.8, 1.2),
    "narrow bulk": (np.concatenate([[5.0, 3.0, 1.0], np.random.default_rng(0).normal(size=997) / 1000]), 0.7, 1.3),
}


@pytest.mark.parametrize("name", WIDE)
def test_eight_steps_come_near(name: str) -> None:
    """The mean of 15 starts, as a share of the truth: low where many eigenvalues are small beside the largest."""
    values, low, high = WIDE[name]
    share = estimates(_Known(values), 8, 15)[:, 0].mean() / values[values > 0].sum()
    assert low < share < high


def test_where_the_krylov_space_has_closed_the_last_rule_is_exact() -> None:
    """Three different eigenvalues of 60 close it after 3 steps: d q'H+q of the start q, from every start."""
    hessian = _Known(np.repeat([0.66, -0.65, -3.3], [20, 33, 7]))
    values, vectors = torch.linalg.eigh(hessian.matrix)
    for seed in range(20):
        run = Deflation(hessian, "a", [seed], [])
        run.krylov(8)
        shares = (run.basis.rows[0] @ vectors).square()
        assert positive_part(run).trace == pytest.approx(60 * float(shares @ values.clamp(min=0)), rel=1e-9)


def test_a_block_that_the_lanczos_vectors_span_is_known_exactly() -> None:
    run = Deflation(_Known(np.array([3.0, 1.0, -2.0])), "a", [0], [])
    run.krylov(3)
    assert positive_part(run)[:2] == pytest.approx((4.0, 14.0))


def test_the_cross_blocks_norm_has_no_bias() -> None:
    """||H_yx||_F^2 of 20 and 3 dimensions: 200 starts within 4 standard errors."""
    a = np.random.default_rng(1).normal(size=(23, 23))
    h = torch.from_numpy(a + a.T)
    x, y = (torch.nn.Parameter(torch.ones(d, dtype=torch.float64)) for d in (20, 3))

    def loss() -> torch.Tensor:
        z = torch.cat([x, y])
        return z @ h @ z / 2

    hessian = ExactHessian(loss, [Block("x", (x,)), Block("y", (y,))])
    found = []
    for seed in range(200):
        run = Deflation(hessian, "x", [seed], ["y"])
        run.krylov(2)
        found.append(positive_part(run).cross["y"])
    truth = float(h[20:, :20].square().sum())
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / 200**0.5 < 0.3 * truth
