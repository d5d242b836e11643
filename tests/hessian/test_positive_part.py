"""tr H+ against the dense spectrum: without bias where the steps exhaust the rest, and near it with few."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.hessian.deflation import Deflation
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


def estimates(hessian: _Known, lanczos: int, steps: int, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of runs with probes of their own, and what each would be with exact positive parts of T and B."""
    values, exact = [], []
    for seed in range(runs):
        run = Deflation(hessian, "a", [seed], [])
        run.krylov(lanczos)
        q = run.basis.rows.clone()
        rest = torch.eye(q.shape[1], dtype=torch.float64) - q.T @ q
        parts = [q @ hessian.matrix @ q.T, rest @ hessian.matrix @ rest]
        exact.append(sum(float(torch.linalg.eigvalsh(part).clamp(min=0).sum()) for part in parts))
        values.append(positive_part(run, steps))
        assert run.hvps == lanczos + steps + 1  # and one product for the rounding
    return np.array(values), np.array(exact)


DECAYING = np.arange(1, 41) ** -1.0
SPECTRA = {
    "positive": DECAYING,
    "both signs": np.concatenate([3 * DECAYING, -DECAYING]),
    "mostly negative": np.concatenate([DECAYING[:5], -3 * DECAYING]),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_with_all_steps_a_probe_has_no_bias_and_the_parts_lose_little(name: str) -> None:
    """Mean over 60 probes within 4 standard errors of tr T+ + tr B+, which is at most tr H+."""
    hessian = _Known(SPECTRA[name])
    values, exact = estimates(hessian, 6, len(SPECTRA[name]) - 6, 60)
    traces, squares = values.T
    assert abs((traces - exact).mean()) < 4 * (traces - exact).std() / 60**0.5
    assert abs(squares.mean() - (SPECTRA[name] ** 2).sum()) < 4 * squares.std() / 60**0.5
    truth = SPECTRA[name][SPECTRA[name] > 0].sum()
    assert (exact <= truth * (1 + 1e-9)).all() and (exact > 0.8 * truth).all()


@pytest.mark.parametrize("name", SPECTRA)
def test_eight_steps_are_enough_for_a_quarter(name: str) -> None:
    hessian = _Known(np.repeat(SPECTRA[name], 8) / 8)
    values, _ = estimates(hessian, 10, 8, 20)
    truth = SPECTRA[name][SPECTRA[name] > 0].sum()
    assert values[:, 0].mean() == pytest.approx(truth, rel=0.25)


def test_a_block_that_the_lanczos_vectors_span_is_known_exactly() -> None:
    eigenvalues = np.array([3.0, 1.0, -2.0])
    run = Deflation(_Known(eigenvalues), "a", [0], [])
    run.krylov(3)
    assert positive_part(run, 4) == pytest.approx((4.0, 14.0))
