"""The check of `smoothlab.padding` before a run: its shortest row by itself, and beside its longest.

What training and evaluation do with rows is what is checked: the batches of `encoding.batch`, the trees of `prefixes`,
the tokenizer's padding. A causal language model's scores must further not depend on what is behind them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab import padding
from smoothlab.errors import BadInput
from smoothlab.llm.encoding import MULTIPLE, Encoded, batch
from smoothlab.llm.evaluate import accuracy, evaluating, scores, scores_alone
from smoothlab.llm.models import LoadedModel, encode

ALIKE = "rows of equal length"


def check_items(model: nn.Module, splits: Sequence[Encoded], name: str, method: str, *, size: int) -> None:
    """Refuse a model of `finetune` that does not score an item in a minibatch as by itself, or cannot be run at all.

    Args:
        model: a causal language model or classifier, wrapped by a PEFT method or not.
        splits: all items that will be trained and evaluated on.
        name: of the model.
        method: the PEFT method, or "none".
        size: items in a minibatch; with 1 rows are not padded, and evaluated beside rows of their length alone.

    Raises:
        BadInput: one line with the model type, the method, and a fix.
    """
    pair, what = _extremes(splits), _subject(model, name, method)
    first = replace(pair, options=(pair.options[0][:1], pair.options[1]), labels=(0, 0))
    count, device = len(pair.options[0]), next(model.parameters()).device

    def trained(items: Encoded, *numbers: int, multiple: int = MULTIPLE) -> Tensor:
        return scores(model, batch(items, numbers, device, every=True, multiple=multiple))

    def evaluated() -> Tensor:
        return torch.tensor(accuracy(model, pair, mixed=size > 1).scores[0])

    with evaluating(model):
        truth = _runs(lambda: torch.tensor(scores_alone(model, pair, 0)), what, _other(method))
        if not bool(torch.isfinite(truth).all()):
            return  # broken weights, of which training tells
        if pair.kind != "classifier":
            padding.check(
                model, lambda: torch.tensor(scores_alone(model, first, 0)),
                {"followed by other tokens": lambda: trained(first, 0, multiple=1)},
                f"{what} does not read from left to right", "use a causal language model, or --head classifier",
            )  # fmt: skip
        among = {"evaluated": evaluated}
        if size > 1:
            among = {"padded": lambda: trained(pair, 0), "beside a longer one": lambda: trained(pair, 0, 1)[:count]} | among
        elif pair.kind == "verbalizer":
            among = {"beside its other candidates": lambda: trained(pair, 0, multiple=1)} | among
        fix = f"use {'--batch 1, ' if size > 1 else ''}{ALIKE}, or {_other(method)}"
        padding.check(model, lambda: torch.tensor(scores_alone(model, pair, 0)), among, what, fix)


def check_texts(loaded: LoadedModel, model: nn.Module, texts: Sequence[str], method: str, size: int) -> None:
    """Refuse a classifier of `smoothness` whose logits of a sentence are others in a minibatch than by itself.

    Raises:
        BadInput: one line with the model type, the method, and a fix.
    """
    lengths = [len(row) for row in loaded.tokenizer(list(texts), verbose=False)["input_ids"]]
    ends = [min(range(len(texts)), key=lengths.__getitem__), max(range(len(texts)), key=lengths.__getitem__)]
    what, device = _subject(model, loaded.name, method), str(next(model.parameters()).device)

    def logits(numbers: Sequence[int]) -> Tensor:
        inputs = encode(loaded, [texts[n] for n in numbers], [0] * len(numbers), device)
        return model(**inputs).logits[0]

    with evaluating(model):
        _runs(lambda: logits(ends[:1]), what, _other(method))
        if size > 1:  # single rows are not padded
            padding.check(
                model, lambda: logits(ends[:1]), {"beside a longer one": lambda: logits(ends)}, what,
                f"use --batch 1, {ALIKE}, or {_other(method)}",
            )  # fmt: skip


def _extremes(splits: Sequence[Encoded]) -> Encoded:
    """The items with the shortest and with the longest row."""
    def length(each: tuple[Encoded, int]) -> int:
        items, number = each
        return len(items.contexts[number]) + max(map(len, items.options[number]))

    every = [(items, number) for items in splits for number in range(len(items))]
    ends = min(every, key=length), max(every, key=length)
    return replace(
        splits[0], contexts=tuple(items.contexts[n] for items, n in ends),
        options=tuple(items.options[n] for items, n in ends), labels=(0, 0),
    )  # fmt: skip


def _subject(model: Any, name: str, method: str) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return f"model '{name}' of type {kind}" + ("" if method == "none" else f" with --peft {method}")


def _other(method: str) -> str:
    return "another model" if method == "none" else "another PEFT method or model"


def _runs(outputs: Callable[[], Tensor], what: str, other: str) -> Tensor:
    """What a row by itself gives; some models and methods do not fit each other, or no row of its length."""
    try:
        return outputs()
    except Exception as error:
        if isinstance(error, BadInput | MemoryError) or "memory" in str(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
        raise BadInput(f"{what} cannot be run on a row by itself ({reason}): use {other}") from error
