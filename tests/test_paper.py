"""One test a claim of the paper: so far, those on measuring (Figure 1, Appendix D.4)."""

import pytest
import torch
from torch import nn

from smoothlab.blocks import Block, fixed_loss
from smoothlab.trajectory import careful, paper


def quadratic(dim: int) -> tuple[nn.Parameter, torch.Tensor, Block]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    x = nn.Parameter(torch.randn(dim, generator=generator, dtype=torch.float64))
    return x, (a + a.T) / 2, Block("x", (x,))


@pytest.mark.parametrize("dim", [20, 80, 320])
def test_d4_formula_is_short_of_sqrt_d_and_sums_the_batch(dim: int) -> None:
    """D.4: ||H||_F = sqrt(E v'H^2 v), v on the unit sphere. FALSE: that is ||H||_F / sqrt(d), times the batch."""
    x, a, block = quadratic(dim)
    (row,) = paper(lambda: x @ a @ x / 2, [block], batch=8, probes=200)
    claimed, true = float(a.norm()) * 8, float(a.norm()) * 8 / dim**0.5
    assert row["low"] <= true <= row["high"] < claimed / 2


def test_d4_step_sees_rounding_of_micro() -> None:
    """D.4: h = 1e-5 in fp32. FALSE for the base model: the result is rounding, well above the norm it is meant for."""
    from smoothlab.llm.models import encode, load_classifier
    from smoothlab.llm.parts import partition
    from smoothlab.llm.tasks import load_task

    loaded = load_classifier("micro", 2, seed=0)
    data = load_task("builtin", "train")
    inputs = encode(loaded, data.texts[:8], data.labels[:8], "cpu")
    loss = fixed_loss(lambda: loaded.model(**inputs).loss, loaded.model)
    base = partition(loaded.model)["base"]
    (printed,) = paper(loss, [base], batch=8, probes=4)
    exact = next(row for row in careful(loss, [base], precision=0.1) if row["quantity"] == "frobenius")
    assert printed["flag"] == "below floor"
    assert printed["normalized"] > 1.2 * exact["high"]


def test_norms_of_diagonal_blocks_do_not_certify_definition_2_1() -> None:
    """Fig. 1b measures ||H_xx|| and ||H_yy||. They bound no Hessian: diag(a, b) >= H fails for every c != 0."""
    for a, b, c in ((1.0, 1.0, 0.1), (10.0, 0.1, -0.01), (5.0, 5.0, 4.0)):
        hessian = torch.tensor([[a, c], [c, b]], dtype=torch.float64)
        margin = torch.linalg.eigvalsh(torch.diag(torch.tensor([a, b], dtype=torch.float64)) - hessian)[0]
        assert float(margin) == pytest.approx(-abs(c), rel=1e-12)
        paid = torch.diag(torch.tensor([a + abs(c), b + abs(c)], dtype=torch.float64)) - hessian
        assert float(torch.linalg.eigvalsh(paid)[0]) >= -1e-12
