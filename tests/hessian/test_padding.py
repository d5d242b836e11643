"""Rows by themselves and among others: models that padding moves are refused, rounding is not taken for it."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian import padding
from smoothlab.hessian.hook import SmoothnessHook

LENGTHS = (9, 4, 12, 7)


class Reader(nn.Module):
    """A causal mean of embeddings with positions; `fault` says how padding or neighbors get in."""

    def __init__(self, fault: str = "", scores: str = "tokens") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fault, self.scores = fault, scores
        self.words, self.places, self.head = nn.Embedding(30, 16), nn.Embedding(40, 16), nn.Linear(16, 30)
        self.factor = 1.0
        self.config = SimpleNamespace(model_type=f"reader-{fault}", pad_token_id=0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.fault == "ignores the mask":
            mask = torch.ones_like(mask)
        place = torch.arange(mask.shape[1]) if self.fault == "counts padding" else (mask.cumsum(1) - 1).clamp_min(0)
        x = (self.words(input_ids) + self.places(place)) * mask[:, :, None]
        if self.fault == "switches by the longest row" and mask.sum(1).max() > 10:
            x = x * 1.01
        if self.fault == "averages over the batch":
            x = x - 1e-3 * x.mean(0, keepdim=True)
        mean = x.cumsum(1) / mask.cumsum(1).clamp_min(1)[:, :, None]
        logits = self.head(torch.tanh(mean))
        if self.scores == "classes":  # of the last token of the text
            last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(1)
            logits = logits[torch.arange(len(logits)), last, :2]
        loss = None if labels is None else logits.square().mean()
        return SimpleNamespace(logits=logits, loss=loss)


def minibatch(side: str, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    ids = torch.randint(1, 30, (len(lengths), 12), generator=torch.Generator().manual_seed(1))
    place, length = torch.arange(12), torch.tensor(lengths)[:, None]
    mask = ((place < length) if side == "right" else (place >= 12 - length)).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.zeros(len(ids), dtype=torch.long)}


FAULTS = {
    "ignores the mask": ("left",), "counts padding": ("left",), "switches by the longest row": ("left", "right"),
    "averages over the batch": ("left", "right"),
}  # fmt: skip
"""Faults, and on which sides of the text padding shows them: a causal model reads nothing on its right."""


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scores", ["tokens", "classes"])
@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_planted_faults_are_refused_and_sound_models_are_not(fault: str, scores: str, side: str) -> None:
    model = Reader(fault, scores).eval()
    wrong = side in FAULTS.get(fault, ()) or (scores, fault) == ("classes", "ignores the mask")
    if not wrong:
        return padding.check_batch(model, minibatch(side))
    with pytest.raises(BadInput) as caught:
        padding.check_batch(model, minibatch(side))
    words = str(caught.value)
    assert words.startswith(
        f"model type reader-{fault}: the scores of a row change when it is padded and beside others"
    )
    assert "times its rounding): pad on the other side" in words and "\n" not in words
    return None


def test_without_a_mask_padding_is_the_pad_tokens_that_the_longest_row_lacks() -> None:
    left = {name: value for name, value in minibatch("left").items() if name != "attention_mask"}
    with pytest.raises(BadInput, match="pad on the other side"):
        padding.check_batch(Reader(), left)
    padding.check_batch(Reader(), {**left, "input_ids": minibatch("right")["input_ids"]})
    padding.check_batch(Reader(), {**left, "input_ids": torch.zeros(3, 5, dtype=torch.long)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_reordered_sum_is_rounding(dtype: torch.dtype) -> None:
    """A deep network's outputs with every sum in another order are within LIMIT of R, and R is the size of rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(300, 300), nn.Tanh()))).to(dtype)
    order = torch.randperm(300)
    other = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(300, 300), nn.Tanh()))).to(dtype)
    with torch.no_grad():
        for a, b in zip(net, other, strict=True):
            if isinstance(a, nn.Linear) and isinstance(b, nn.Linear):
                b.weight.copy_(a.weight[order][:, order])
                b.bias.copy_(a.bias[order])
    x, back = torch.randn(1, 300).to(dtype), order.argsort()
    found = padding.distances(net, lambda: net(x), {"": lambda: other(x[:, order])[:, back]})[""]
    assert found.times < padding.LIMIT
    with torch.no_grad():
        truth, squares = net(x).double(), []
        for seed in range(8):
            with padding.noise(net, seed):
                squares.append((net(x).double() - truth).square().mean())
        off = truth - copy.deepcopy(net).double()(x.double())  # what rounding does in truth
        ratio = float(off.square().mean() / torch.stack(squares).mean()) ** 0.5
    assert dtype == torch.float64 or 0.02 < ratio < 2  # sums are more exact than their bound, roundings to bf16 are not
    moved = padding.distances(net, lambda: net(x), {"": lambda: net(x) * (1 + 300 * torch.finfo(dtype).eps)})[""]
    assert dtype == torch.float64 or moved.times > padding.LIMIT  # fp64 models of transformers compute parts in fp32
    assert not any(module._forward_hooks for module in net.modules())


def test_broken_weights_are_not_called_padding() -> None:
    nan, one = torch.full((3,), float("nan")), torch.ones(3)
    model = nn.Linear(2, 2)
    assert padding.distances(model, lambda: nan, {"": lambda: nan})[""].times == 0
    assert padding.distances(model, lambda: one, {"": lambda: nan})[""].times == float("inf")


def measured(model: nn.Module, compute: Callable[[], Tensor]) -> list[Any]:
    hook = SmoothnessHook(model, [Block("head", tuple(model.head.parameters()))], at=[0], precision=0.5)  # type: ignore[union-attr]
    hook(0, compute)
    return hook.rows


@pytest.mark.parametrize("train", [True, False])
def test_the_hook_refuses_what_padding_moves(train: bool) -> None:
    model, inputs = Reader("switches by the longest row").train(train), minibatch("right")
    with pytest.raises(BadInput, match="model type reader-switches by the longest row: the scores of a row change"):
        measured(model, lambda: model(**inputs).loss)
    assert model.training == train and not model._forward_hooks
    short = {name: value[[1, 3]] for name, value in inputs.items()}
    assert measured(model, lambda: model(**short).loss)  # no row is long here
    sound = Reader()
    assert measured(sound, lambda: sound(**inputs).loss)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [((5,), [0, 0]), ((5, 5), [0, 1]), ((9, 4, 12, 7, 4), [1, 3, 0, 2]), ((8, 4, 5, 12, 9, 6), [1, 2, 5, 3])],
)
def test_rows_are_of_several_lengths_and_the_longest_is_last(lengths: tuple[int, ...], rows: list[int]) -> None:
    assert padding.compared_rows(lengths) == rows
