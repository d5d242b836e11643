"""Exact values that mutants of the training loop and of the scores would change."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.divergence import Diverged
from smoothlab.errors import BadInput
from smoothlab.llm.adapters import attach
from smoothlab.llm.evaluate import Accuracy, Encoded, _accuracy, _buckets, accuracy, accuracy_one_by_one, mean_loss
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.trainer import Schedule, Trainer
from tests.llm.tiny import encoded, tiny_lm


@pytest.mark.parametrize("kind", ["verbalizer", "classifier", "multiple choice", "completion", "text"])
def test_the_mean_loss_of_scores_by_hand(kind: Any) -> None:
    """-log softmax(s)_label where candidates compete, -s_label otherwise."""
    rows = ((-1.0, -3.0), (-2.0, -0.5))
    result = Accuracy(2, 2, (0, 1), rows)
    items = Encoded(((1,), (1,)), (((2,), (3,)),) * 2, (1, 1), kind, pad=0)
    expected = (3.0 + 0.5) / 2
    if kind in ("verbalizer", "classifier"):
        expected += (math.log(math.exp(-1) + math.exp(-3)) + math.log(math.exp(-2) + math.exp(-0.5))) / 2
    assert mean_loss(result, items) == pytest.approx(expected, rel=1e-12)


class Linear(nn.Module):
    """f(x, y) = <x, (1, 2)> + <y, (1, -3)>, whose gradients are the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        self.y = nn.Parameter(torch.tensor([0.0, -1.0], dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.x @ self.x.new_tensor([1.0, 2.0]) + self.y @ self.y.new_tensor([1.0, -3.0])


def linear(schedule: Schedule = "constant", steps: int = 1) -> tuple[Linear, Trainer]:
    """`Linear`, and its training by plain SGD with eta_x = 1/2 and eta_y = 1/4."""
    model = Linear()
    blocks = {"base": Block("base", (model.x,)), "peft": Block("peft", (model.y,))}
    rates = {"base": 0.5, "peft": 0.25}
    optimizer = HybridSGD([{"params": list(b.params), "lr": rates[n], "name": n} for n, b in blocks.items()])
    run = Trainer(
        model, blocks, lambda step: [step], lambda model, _: model(), optimizer, steps=steps, schedule=schedule
    )
    return model, run


FACTORS = {
    "constant": (1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    "linear": (1.0, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 6),
    "cosine": (1.0, (2 + 3**0.5) / 4, 3 / 4, 1 / 2, 1 / 4, (2 - 3**0.5) / 4),
}
"""1, 1 - t/6 and (1 + cos(pi t/6))/2 for t = 0 to 5."""


@pytest.mark.parametrize("schedule", FACTORS)
def test_every_step_moves_both_blocks_by_its_rate_times_the_schedules_factor(schedule: Schedule) -> None:
    """Plain SGD on a linear loss moves x by -eta_x factor(t) (1, 2), and y by -eta_y factor(t) (1, -3)."""
    model, run = linear(schedule, steps=6)
    for step, factor in enumerate(FACTORS[schedule]):
        assert run.factor(step) == pytest.approx(factor, rel=1e-14)
        x, y = model.x.detach().clone(), model.y.detach().clone()
        run.update()
        assert (model.x - x).tolist() == pytest.approx([-0.5 * factor, -1.0 * factor], rel=1e-12)
        assert (model.y - y).tolist() == pytest.approx([-0.25 * factor, 0.75 * factor], rel=1e-12)


def test_the_schedules_end_at_zero_after_the_last_step() -> None:
    for schedule, end in {"constant": 1.0, "linear": 0.0, "cosine": 0.0}.items():
        assert linear(schedule, steps=6)[1].factor(6) == pytest.approx(end, abs=1e-15)


def test_a_mean_loss_has_diverged_just_above_twice_the_first_plus_one() -> None:
    """f = 14 at first: 29 is the last loss that is accepted, the next number is refused."""
    _, run = linear(steps=2)
    run.check(1e300)  # before the first step there is nothing to compare with
    assert run.update() == run.first_loss == 14.0
    for fine in (-50.0, 14.0, 29.0):
        run.check(fine)
    for far in (math.nextafter(29.0, 30.0), 1e300, math.inf, -math.inf, math.nan):
        with pytest.raises(Diverged, match=re.escape(f"the loss is {far:.3g} at step 1, and was 14 at first: lower")):
            run.check(far)


def test_a_loss_that_is_not_finite_is_refused_before_the_first_step_too() -> None:
    _, run = linear()
    with pytest.raises(Diverged, match="the loss is nan before training: use other weights, or a wider --dtype"):
        run.check(math.nan)


@pytest.mark.parametrize(
    ("x", "y", "blamed"),
    [
        (3.0, 2.0, "--eta-x (0.5); size of the weights, times that at the start: base 3, peft 2"),
        (2.0, 3.0, "--eta-y (0.25); size of the weights, times that at the start: base 2, peft 3"),
        (2.0, math.inf, "--eta-y (0.25); size of the weights, times that at the start: base 2, peft inf"),
        (math.nan, 3.0, "--eta-x (0.5); size of the weights, times that at the start: base nan, peft 3"),
    ],
)
def test_the_rate_of_the_block_that_has_grown_most_is_blamed(x: float, y: float, blamed: str) -> None:
    model, run = linear(steps=2)
    run.first_loss = 1.0
    with torch.no_grad():
        model.x.mul_(x)
        model.y.copy_(torch.tensor([0.0, -y]))
    assert str(run.diverged(50.0)) == f"the loss is 50 at step 0, and was 1 at first: lower {blamed}"


def test_rows_are_cut_into_batches_of_at_most_so_many_tokens() -> None:
    """Rows of 3, 7, 12, 5, 7 and 4 tokens, by length; a batch, padded, holds no more than asked for."""
    contexts = tuple((9,) * n for n in (2, 6, 11, 4, 6, 3))
    rows = Encoded(contexts, (((8, 7),),) * 6, (0,) * 6, "verbalizer", 1)
    assert [list(bucket) for bucket in _buckets(rows, 15, True)] == [[0, 5, 3], [1, 4], [2]]
    assert [list(bucket) for bucket in _buckets(rows, 14, True)] == [[0, 5], [3, 1], [4], [2]]
    assert [list(bucket) for bucket in _buckets(rows, 1, True)] == [[0], [5], [3], [1], [4], [2]]


def test_the_best_candidate_is_predicted_and_the_first_of_equal_ones() -> None:
    found = _accuracy([(-1.0, -0.5, -0.5), (-2.0, -3.0), (0.0, 0.0)], [1, 1, 0])
    assert (found.predictions, found.correct, found.count) == ((1, 0, 0), 2, 3)
    with pytest.raises(BadInput, match="1 of 2 items have a score that is not finite"):
        _accuracy([(-1.0, -2.0), (-1.0, -math.inf)], [0, 0])


def test_rows_of_one_length_share_a_batch_where_padding_is_forbidden() -> None:
    contexts = tuple((9,) * n for n in (2, 6, 6, 2))
    rows = Encoded(contexts, (((8, 7),),) * 4, (0,) * 4, "verbalizer", 1)
    assert [list(bucket) for bucket in _buckets(rows, 100, False)] == [[0, 3], [1, 2]]


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_scores_of_adapted_models_equal_those_of_one_candidate_at_a_time(method: str) -> None:
    model = attach(tiny_lm("opt"), method, seed=0)
    items = encoded("full")
    expected = [score for scores in accuracy_one_by_one(model, items).scores for score in scores]
    found = [score for scores in accuracy(model, items).scores for score in scores]
    assert found == pytest.approx(expected, rel=1e-5)
