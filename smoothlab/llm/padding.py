"""The check of `smoothlab.hessian.padding` before a run: some rows by themselves, and beside the longest one.

What training and evaluation do with rows is what is checked: the batches of `encoding.batch` and the
tokenizer's padding. A causal language model's scores must further not depend on what is behind them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput, out_of_memory
from smoothlab.hessian import padding
from smoothlab.llm.encoding import MULTIPLE, Encoded, batch
from smoothlab.llm.evaluate import accuracy, evaluating, scores, scores_alone
from smoothlab.llm.memory import free

ALIKE = "rows of equal length"


def check_items(model: nn.Module, splits: Sequence[Encoded], name: str, method: str, *, size: int) -> bool:
    """Refuse a model of `finetune` that does not score an item in a minibatch as by itself, or cannot be run at all.

    With single rows nothing is padded in training, and every model can be evaluated beside rows of equal length.

    Args:
        model: a causal language model or classifier, wrapped by a PEFT method or not.
        splits: all items that will be trained and evaluated on.
        name: of the model.
        method: the PEFT method, or "none".
        size: items in a minibatch.

    Returns:
        Whether rows of different lengths may be evaluated together, `accuracy`'s `mixed`.

    Raises:
        BadInput: one line with the model type, the method, and a fix.
    """
    items, what = _chosen(splits), _subject(model, name, method)
    rows, device = range(len(items) - 1), next(model.parameters()).device
    count = sum(len(items.options[n]) for n in rows)

    def alone() -> Tensor:
        return torch.tensor([score for n in rows for score in scores_alone(model, items, n)])

    def trained(*numbers: int) -> Tensor:
        return scores(model, batch(items, numbers, device, all_candidates=True, multiple=MULTIPLE if size > 1 else 1))

    def evaluated(mixed: bool) -> Tensor:
        found = accuracy(model, items, mixed=mixed).scores
        return torch.tensor([score for n in rows for score in found[n]])

    with evaluating(model), precise(model):
        if not bool(torch.isfinite(_runs(alone, what, _other(method))).all()):
            return True  # the weights are broken, which training says
        if items.kind != "classifier":
            _check_order(model, items, what, method)
        mixed, among = True, dict[str, Callable[[], Tensor]]()
        if size > 1:
            among["padded"] = lambda: torch.cat([trained(n) for n in rows])
            among["beside a longer one"] = lambda: trained(*range(len(items)))[:count]
        else:
            mixed = padding.distances(model, alone, {"mixed": lambda: evaluated(True)})["mixed"].times <= padding.LIMIT
            if items.kind == "verbalizer":
                among["beside its other candidates"] = lambda: torch.cat([trained(n) for n in rows])
        among["evaluated"] = lambda: evaluated(mixed)
        fix = f"use {'--batch 1, ' if size > 1 else ''}{ALIKE}, or {_other(method)}"
        padding.check(model, alone, among, what, fix)
    return mixed


def _check_order(model: nn.Module, items: Encoded, what: str, method: str) -> None:
    """Refuse a model that looks at the tokens it is to predict: the first candidate read with its last token or not."""
    one = replace(items, options=tuple(options[:1] for options in items.options))
    device = next(model.parameters()).device
    padding.check(
        model, lambda: torch.tensor(scores_alone(model, one, 0)),
        {"followed by other tokens": lambda: scores(model, batch(one, [0], device, all_candidates=True, multiple=1))},
        f"{what} does not read from left to right",
        f"use {'' if method == 'none' else 'another PEFT method, '}a causal language model, or --head classifier",
    )  # fmt: skip


@contextmanager
def precise(model: nn.Module) -> Iterator[None]:
    """Within it, a model of 16 bits computes in fp32 where memory allows: its own rounding hides what padding does.

    The weights are the same to the bit, within and afterwards.
    """
    half = (torch.float16, torch.bfloat16)
    tensors = {id(t): (t, t.dtype) for t in (*model.parameters(), *model.buffers()) if t.dtype in half}
    device = str(next(model.parameters()).device)
    if 4 * sum(t.numel() for t, _ in tensors.values()) > free(device) / 2:
        tensors = {}
    try:
        for tensor, _ in tensors.values():
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in tensors.values():
            tensor.data = tensor.data.to(dtype)


def _chosen(splits: Sequence[Encoded]) -> Encoded:
    """Items to compare and the longest one, of all splits."""
    every = [(items, n) for items in splits for n in range(len(items))]
    lengths = [len(items.contexts[n]) + max(map(len, items.options[n])) for items, n in every]
    kept = [every[k] for k in padding.spread(lengths)]
    return replace(
        splits[0], contexts=tuple(items.contexts[n] for items, n in kept),
        options=tuple(items.options[n] for items, n in kept), labels=(0,) * len(kept),
    )  # fmt: skip


def _subject(model: Any, name: str, method: str) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return f"model '{name}' of type {kind}" + ("" if method == "none" else f" with --peft {method}")


def _other(method: str) -> str:
    return "another model" if method == "none" else "another PEFT method or model"


def _runs(outputs: Callable[[], Tensor], what: str, other: str) -> Tensor:
    """What rows by themselves give; some models and methods do not fit each other, or rows of some length."""
    try:
        return outputs()
    except Exception as error:
        if isinstance(error, BadInput) or out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
        raise BadInput(f"{what} cannot be run on a row by itself ({reason}): use {other}") from error
