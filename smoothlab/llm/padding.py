"""The check of `smoothlab.hessian.padding` before a run: some rows by themselves, and beside the longest one.

It uses the batches of training and evaluation: those of `encoding.batch`, with the tokenizer's padding. A causal
language model's scores must also not depend on the tokens behind the scored ones.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput, out_of_memory
from smoothlab.hessian import padding
from smoothlab.llm.compute import computes_in_float32
from smoothlab.llm.encoding import MULTIPLE, Encoded, Tokens, batch
from smoothlab.llm.evaluate import accuracy, evaluating, scores, scores_alone
from smoothlab.llm.memory import free

ALIKE = "rows of equal length"


def check_items(model: nn.Module, splits: Sequence[Encoded], name: str, method: str, *, size: int) -> bool:
    """Refuse a model that scores an item in a minibatch of `size` otherwise than alone, or that cannot be run.

    With single rows nothing is padded in training, and every model can be evaluated beside rows of equal length.

    Args:
        model: a causal language model or classifier, wrapped by a PEFT method or not.
        splits: all items that will be trained and evaluated on.
        name: name of the model, for messages.
        method: the PEFT method, or "none".
        size: items in a minibatch.

    Returns:
        Whether rows of different lengths may be evaluated together, `accuracy`'s `mixed`.
    """
    items = _chosen(splits)
    subject = f"model '{name}' of type {getattr(getattr(model, 'config', None), 'model_type', type(model).__name__)}"
    alternative = "another model"
    if method != "none":
        subject += f" with --peft {method}"
        alternative = "another PEFT method or model"
    # The longest item is the last one: the others are compared beside it and by themselves.
    rows, device = range(len(items) - 1), next(model.parameters()).device
    count = sum(len(items.options[row]) for row in rows)
    multiple = 1
    if size > 1:
        multiple = MULTIPLE

    def alone() -> Tensor:
        return torch.tensor([score for row in rows for score in scores_alone(model, items, row)])

    def trained(*numbers: int) -> Tensor:
        return scores(model, batch(items, numbers, device, all_candidates=True, multiple=multiple))

    def one_by_one() -> Tensor:
        return torch.cat([trained(row) for row in rows])

    def evaluated(mixed: bool) -> Tensor:
        scores_of_items = accuracy(model, items, mixed=mixed).scores
        return torch.tensor([score for row in rows for score in scores_of_items[row]])

    with evaluating(model), precise(model):
        if not bool(torch.isfinite(_runs(alone, subject, alternative)).all()):
            return True  # the weights are broken, which training says
        if items.kind != "classifier":
            _check_order(model, items, subject, method)
        mixed = True
        padded_scores: dict[str, Callable[[], Tensor]] = {}
        if size > 1:
            padded_scores["padded"] = one_by_one
            padded_scores["beside a longer one"] = lambda: trained(*range(len(items)))[:count]
            fix = f"use --batch 1, {ALIKE}, or {alternative}"
        else:
            # Training pads nothing: a model that minds padding is evaluated beside rows of equal length.
            mixed = padding.distances(model, alone, {"mixed": lambda: evaluated(True)})["mixed"].times <= padding.LIMIT
            if items.kind == "verbalizer":
                padded_scores["beside its other candidates"] = one_by_one
            fix = f"use {ALIKE}, or {alternative}"
        padded_scores["evaluated"] = lambda: evaluated(mixed)
        padding.check(model, alone, padded_scores, subject, fix)
    return mixed


def _check_order(model: nn.Module, items: Encoded, subject: str, method: str) -> None:
    """Refuse a model that looks at the tokens it is to predict: the first candidate read with its last token or not."""
    first = replace(items, options=tuple(options[:1] for options in items.options))
    minibatch = batch(first, [0], next(model.parameters()).device, all_candidates=True, multiple=1)
    fix = "use a causal language model, or --head classifier"
    if method != "none":
        fix = fix.replace("use", "use another PEFT method,")
    padding.check(
        model, lambda: torch.tensor(scores_alone(model, first, 0)),
        {"followed by other tokens": lambda: scores(model, minibatch)},
        f"{subject} does not read from left to right", fix,
    )  # fmt: skip


@contextmanager
def precise(model: nn.Module) -> Iterator[None]:
    """Inside the context a 16-bit model computes in fp32 where memory allows: its rounding would hide padding's effect.

    The weights are the same to the bit, within and afterwards.
    """
    half = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.float16, torch.bfloat16)]
    dtypes = [t.dtype for t in half]
    if computes_in_float32(model) or 4 * sum(t.numel() for t in half) > free(str(next(model.parameters()).device)) / 2:
        half = []
    try:
        # Through .data, because the parameters have to stay the objects that blocks and ties hold.
        for tensor in half:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in zip(half, dtypes, strict=False):
            tensor.data = tensor.data.to(dtype)  # exact: every number came from this type


def _chosen(splits: Sequence[Encoded]) -> Encoded:
    """Items to compare and the longest one, of all splits."""
    contexts: list[Tokens] = []
    options: list[tuple[Tokens, ...]] = []
    lengths = []
    for split in splits:
        contexts += split.contexts
        options += split.options
    for context, candidates in zip(contexts, options, strict=True):
        lengths.append(len(context) + max(map(len, candidates)))
    numbers = padding.compared_rows(lengths)
    return replace(
        splits[0], contexts=tuple(contexts[k] for k in numbers), options=tuple(options[k] for k in numbers),
        labels=(0,) * len(numbers),
    )  # fmt: skip


def _runs(outputs: Callable[[], Tensor], subject: str, alternative: str) -> Tensor:
    """The outputs of rows by themselves; refuses models and methods that fail on such a row."""
    try:
        return outputs()
    except Exception as error:  # whatever a model's own code raises
        if isinstance(error, BadInput) or out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
        raise BadInput(f"{subject} cannot be run on a row by itself ({reason}): use {alternative}") from error
