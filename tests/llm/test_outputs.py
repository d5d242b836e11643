"""The outputs of the training loss: it is their weighted cross-entropy, and their Gauss-Newton trace the dense one."""

import pytest
import torch
from torch import nn

from smoothlab.hessian.gauss_newton import gauss_newton_trace
from smoothlab.llm.encoding import batch
from smoothlab.llm.evaluate import choice_loss
from smoothlab.llm.outputs import loss_outputs
from smoothlab.llm.partition import partition
from smoothlab.llm.tasks import Kind
from tests.llm.tiny import encoded, tiny_lm

KINDS: tuple[Kind, ...] = ("verbalizer", "multiple choice")


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_cross_entropy_of_its_outputs(kind: Kind) -> None:
    model, items = tiny_lm("opt"), encoded(kind)
    minibatch = batch(items, [0, 1, 2])
    f, weights = loss_outputs(model, minibatch)
    assert float(weights.sum()) == pytest.approx(1.0)
    if kind == "verbalizer":
        labels = minibatch["labels"]
    else:
        labels = torch.zeros(len(f), dtype=torch.long)
        real = minibatch["mask"] > 0
        labels[minibatch["position"][real]] = minibatch["token"][real]
    losses = nn.functional.cross_entropy(f, labels, reduction="none")
    assert float((weights * losses).sum().detach()) == pytest.approx(choice_loss(model, minibatch).item(), rel=1e-5)


def test_the_trace_is_that_of_the_dense_matrix() -> None:
    model, minibatch = tiny_lm("opt"), batch(encoded("verbalizer"), [0, 1, 2])
    block = partition(model)["base"]
    block.params[0].requires_grad_(True)
    f, weights = loss_outputs(model, minibatch)
    truth = 0.0
    for scores, weight in zip(f, weights, strict=True):
        p = scores.detach().softmax(0)
        # Of two candidates: diag p - p p' = p_1 p_2 (1, -1)(1, -1)'.
        difference = torch.autograd.grad(scores[0] - scores[1], block.params, retain_graph=True, allow_unused=True)
        square = sum(float(part.double().square().sum()) for part in difference if part is not None)
        truth += float(weight * p[0] * p[1]) * square
    layers = list(partition(model, "layer").values())
    whole, *parts = gauss_newton_trace(lambda: loss_outputs(model, minibatch), [block], rows=layers)
    assert whole.hvps == 3  # enumerated: three items, two candidates each
    assert whole.value == pytest.approx(truth, rel=1e-4)
    assert sum(e.value for e in parts) == pytest.approx(truth, rel=1e-4)
