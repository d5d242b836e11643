"""The Gauss-Newton trace against the dense matrix G = sum_n w_n J_n' (diag p_n - p_n p_n') J_n."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.gauss_newton_coverage import GaussNewtonCoverage, Linear, columns, micro, small_net
from smoothlab.blocks import Block, flatten
from smoothlab.errors import BadInput
from smoothlab.hessian.gauss_newton import OutputProbes, Outputs, gauss_newton_trace, joined
from tests.hessian.test_norms import covers, least, one_thread, simulated, z_score

__all__ = ["one_thread"]


class Net(nn.Module):
    """Two layers and a softmax, with inputs and weights of its own."""

    def __init__(self, count: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(4, 5).double(), nn.Linear(5, classes).double()
        self.inputs = torch.randn(count, 4, dtype=torch.float64)
        self.weights = torch.rand(count, dtype=torch.float64)
        self.weights[0] = 0.0

    def forward(self) -> Outputs:
        return Outputs(self.last(torch.tanh(self.first(self.inputs))), self.weights)

    @property
    def blocks(self) -> list[Block]:
        return [Block("all", tuple(self.parameters()))]

    @property
    def layers(self) -> list[Block]:
        return [Block("first", tuple(self.first.parameters())), Block("last", tuple(self.last.parameters()))]

    def dense(self) -> Tensor:
        """G [d, d], from one row of the Jacobian at a time."""
        logits, weights = self()
        matrix = torch.zeros(self.blocks[0].dim, self.blocks[0].dim, dtype=torch.float64)
        for f, weight in zip(logits, weights, strict=True):
            rows = [flatten(torch.autograd.grad(entry, list(self.parameters()), retain_graph=True)) for entry in f]
            jacobian, p = torch.stack(rows), f.detach().softmax(0)
            matrix += weight * jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
        return matrix

    def truths(self) -> dict[str, float]:
        diagonal = self.dense().diagonal()
        cut = sum(p.numel() for p in self.first.parameters())
        return {"all": float(diagonal.sum()), "first": float(diagonal[:cut].sum()), "last": float(diagonal[cut:].sum())}


@pytest.mark.parametrize(("count", "classes"), [(5, 2), (7, 4)])
def test_few_outputs_are_enumerated_exactly(count: int, classes: int) -> None:
    net = Net(count, classes)
    estimates = gauss_newton_trace(net, net.blocks, rows=net.layers)
    assert [e.block for e in estimates] == ["all", "first", "last"]
    for e in estimates:
        assert e.quantity == "gauss_newton_trace"
        assert e.value == pytest.approx(net.truths()[e.block], rel=1e-9)
        assert e.hvps == (count - 1) * (classes - 1)  # an output without weight has no pass
        assert e.flag is None and e.needed is None


def test_probes_have_no_bias() -> None:
    net = Net(40, 4)
    samples: dict[str, list[float]] = {"all": [], "first": [], "last": []}
    for seed in range(30):
        probes = OutputProbes(net, net.blocks, net.layers, (seed,))
        for _ in range(4):
            probes.probe()
        for name, squares in probes.squares.items():
            samples[name] += squares
    for name, truth in net.truths().items():
        assert abs(z_score(np.array(samples[name]), truth)) < 4


@pytest.mark.check
@simulated(30, 1000)
def test_intervals_cover_within_the_precision(runs: int) -> None:
    net, held = Net(40, 4), dict.fromkeys(("all", "first", "last"), 0)
    truths = net.truths()
    for seed in range(runs):
        for e in gauss_newton_trace(net, net.blocks, rows=net.layers, precision=0.2, seed=(seed,), budget=90):
            held[e.block] += covers(e, truths[e.block])
            if e.block == "all" and e.flag is None:
                assert e.high - e.low <= 0.4001 * e.value
    assert min(held.values()) >= least(runs), held


@pytest.mark.check
@simulated(100, 400)
def test_intervals_cover_on_the_outputs_of_a_small_net_and_of_micro(runs: int) -> None:
    """The records' simulation: the same Gram matrices, and an exact binomial test of 95 % at the 1 % level."""
    grams = {"small net": small_net(), "micro": micro(items=16, steps=2)}
    for name, of_blocks in grams.items():
        for row in GaussNewtonCoverage(simulations=runs, seed=7).simulated(name, {"all": of_blocks["all"]}):
            assert row["p_value"] > 0.01, row
            assert row["truth"] > 0 and abs(row["bias_z"]) < 4 and row["not_reached"] == 0


def test_the_simulated_linear_model_has_the_trace_of_the_net() -> None:
    grams, net = small_net(), Net(40, 4)
    model = Linear(grams["all"])
    probes = OutputProbes(model, [model.block], (), (0,))
    probes.enumerate()
    assert sum(probes.squares["w"]) == pytest.approx(float(grams["all"].trace()), rel=1e-9)
    assert torch.allclose(model.root @ model.root.T, grams["all"], atol=1e-12)
    # The same matrix A, by the nonzero eigenvalues of the dense G = A A'.
    held = columns(net(), net.blocks)["all"]
    assert torch.allclose(torch.linalg.eigvalsh(held)[-20:], torch.linalg.eigvalsh(net.dense())[-20:], atol=1e-9)


def test_a_spent_budget_says_what_it_would_take() -> None:
    net = Net(40, 4)
    (e,) = gauss_newton_trace(net, net.blocks, precision=0.02, budget=10)
    assert e.hvps == 10
    assert e.flag == "precision not reached"
    # The relative standard deviation of a probe is at most sqrt(2), that of effective rank 1.
    assert e.needed is not None and 10 < e.needed <= 2 * (1.96 / 0.02) ** 2 + 1


def test_a_linear_model_has_the_hessians_trace() -> None:
    torch.manual_seed(0)
    w, x = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64)), torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(flat: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ flat.view(3, 4).T, labels)

    matrix = torch.autograd.functional.hessian(loss, w.detach().flatten())
    (e,) = gauss_newton_trace(lambda: (x @ w.T, torch.full((6,), 1 / 6)), [Block("w", (w,))])
    assert e.value == pytest.approx(float(matrix.trace()), rel=1e-6)


def test_a_parameter_that_no_output_reads_adds_nothing() -> None:
    net = Net(5, 2)
    unread = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    (e,) = gauss_newton_trace(net, [Block("all", (unread, *net.parameters()))])
    assert e.value == pytest.approx(net.truths()["all"])


def test_equal_parts_are_one_minibatch() -> None:
    a, b = Net(4, 3), Net(4, 3)
    b.inputs = -2 * b.inputs
    b.first, b.last = a.first, a.last
    (e,) = gauss_newton_trace(joined([a, b]), a.blocks)
    assert e.value == pytest.approx((a.truths()["all"] + b.truths()["all"]) / 2)


LOGITS = torch.ones(2, 3, requires_grad=True)


@pytest.mark.parametrize(
    ("outputs", "options", "words"),
    [
        (lambda: (LOGITS * 1, torch.ones(3)), {}, "return [N, C] and [N]"),
        (lambda: (LOGITS[0], torch.ones(3)), {}, "return [N, C] and [N]"),
        (lambda: (LOGITS.detach(), torch.ones(2)), {}, "no graph"),
        (lambda: (LOGITS / 0, torch.ones(2)), {}, "not finite"),
        (lambda: (LOGITS * 1, torch.tensor([1.0, -0.5])), {}, "a weight is -0.5"),
        (lambda: (LOGITS * 1, torch.ones(2)), {"precision": 1.0}, "precision 1"),
        (lambda: (LOGITS * 1, torch.ones(2)), {"budget": 5}, "budget above 5"),
    ],
)
def test_mistakes_are_named(outputs: Callable[[], Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as error:
        gauss_newton_trace(outputs, [Block("f", (LOGITS,))], **options)
    assert words in str(error.value)
