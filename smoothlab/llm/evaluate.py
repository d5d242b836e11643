"""Scores of candidates: the training loss of a task, and accuracy, batched by length and one candidate at a time.

A candidate's score is the mean log-probability of its tokens after the prompt,

    s_c = 1/|o_c| sum_k log p(o_ck | prompt, o_c1 .. o_c,k-1),     o_c = tokens that the candidate adds to the prompt's,

or a classifier's log-probability of its class, and the prediction is the candidate with the largest score. The loss of
an item is -log softmax(s)_label for tasks with verbalizers and for classifiers, and -s_label for multiple choice and
for completions and texts, which have one candidate; the loss of a batch is its mean over items. (The public code that
the paper follows takes the mean over all tokens of a batch in the latter cases: an item's weight then depends on its
batch.) The vocabulary head runs at scored positions only.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput
from smoothlab.llm.encoding import Encoded as Encoded  # re-exported, with the two below, for loops of one's own
from smoothlab.llm.encoding import Tokens
from smoothlab.llm.encoding import batch as batch
from smoothlab.llm.encoding import encode as encode
from smoothlab.llm.tasks import GENERATIVE
from smoothlab.llm.vocabulary import token_logs, whole_token_logs
from smoothlab.stats.samples import proportion

TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens, padding included, of an evaluation's batch: what stays in a CPU's cache, and what keeps a GPU busy."""


class NotFinite(BadInput):
    """A score is NaN or infinite: the weights have diverged."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a model on a set of items."""

    correct: int  # number of right predictions
    count: int  # number of items
    predictions: tuple[int, ...]  # number of the predicted candidate of each item
    scores: tuple[tuple[float, ...], ...]  # mean log-probability of each item's candidates

    @property
    def value(self) -> float:
        """Proportion of right predictions."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson 95 % interval of the probability of a right prediction."""
        _, low, high = proportion(self.correct, self.count)
        return low, high

    def row(self) -> dict[str, Any]:
        """The columns of a record."""
        low, high = self.interval
        return {"accuracy": self.value, "low": low, "high": high, "correct": self.correct, "count": self.count}


def scores(model: nn.Module, minibatch: Mapping[str, Tensor]) -> Tensor:
    """Mean log-probability of each candidate [C] of a minibatch, in fp32 at least."""
    return _means(token_logs(model, minibatch), minibatch)


def _means(logs: Tensor, minibatch: Mapping[str, Tensor]) -> Tensor:
    """The mean of each candidate's tokens [C], of their logs [C, L]."""
    mask = minibatch["mask"].to(logs.dtype)
    return (logs * mask).sum(1) / mask.sum(1)


def choice_loss(model: nn.Module, minibatch: Mapping[str, Tensor]) -> Tensor:
    """The training loss of a minibatch made by `batch`, the mean over its items; deterministic in eval mode.

    -log softmax(s)_label with the scores s of all candidates; for multiple choice, completions and texts -s_label, the
    mean over the item's scored tokens.
    """
    candidates = scores(model, minibatch)
    if "labels" not in minibatch:
        return -candidates.mean()
    labels = minibatch["labels"]
    return nn.functional.cross_entropy(candidates.view(len(labels), -1), labels)


def repeated_choice_loss(model: nn.Module, minibatch: Mapping[str, Tensor], count: int) -> Tensor:
    """`choice_loss` of each of `count` repetitions of a minibatch [count], from one pass over all their rows."""
    rows, positions = len(minibatch["input_ids"]), len(minibatch["row"])
    distances = {"row": rows, "position": positions}  # these count what is repeated
    inputs = {}
    for name, tensor in minibatch.items():
        inputs[name] = torch.cat([tensor + i * distances.get(name, 0) for i in range(count)])
    candidates = _means(whole_token_logs(model, inputs), inputs)
    if "labels" not in inputs:
        return -candidates.view(count, -1).mean(1)
    labels = inputs["labels"]
    losses = nn.functional.cross_entropy(candidates.view(len(labels), -1), labels, reduction="none")
    return losses.view(count, -1).mean(1)


def mean_loss(result: Accuracy, encoded: Encoded) -> float:
    """The loss that trains a task, see `choice_loss`, as its mean over all items in fp64, from their scores."""
    losses = []
    for candidates, label in zip(result.scores, encoded.labels, strict=True):
        total = 0.0
        if encoded.kind not in ("multiple choice", *GENERATIVE):
            # The largest score is taken out of log sum exp(s): exp of low scores alone would underflow to 0.
            peak = max(candidates)
            total = peak + math.log(sum(math.exp(score - peak) for score in candidates))
        losses.append(total - candidates[label])
    return math.fsum(losses) / len(losses)


def accuracy(model: nn.Module, encoded: Encoded, *, tokens: int | None = None, mixed: bool = True) -> Accuracy:
    """Accuracy in eval mode, without gradients, in batches of rows of similar length; the model's modes are restored.

    Args:
        model: a causal language model or classifier, wrapped by a PEFT method or not.
        encoded: the items.
        tokens: largest batch in tokens, padding included; TOKENS of the device by default.
        mixed: whether rows of different lengths may be in a batch; for models whose scores depend on padding they may
            not.

    Raises:
        NotFinite: a score is not finite.
    """
    return _accuracy(candidate_scores(model, encoded, tokens=tokens, mixed=mixed), encoded.labels)


def candidate_scores(
    model: nn.Module, encoded: Encoded, *, tokens: int | None = None, mixed: bool = True
) -> list[tuple[float, ...]]:
    """Scores of the candidates of each item; arguments and conditions are those of `accuracy`."""
    device = next(model.parameters()).device
    limit = tokens or TOKENS.get(device.type, TOKENS["cuda"])
    rows, owners = _rows(encoded)
    result = [[0.0] * len(options) for options in encoded.options]
    with evaluating(model):
        for bucket in _buckets(rows, limit, mixed):
            minibatch = batch(rows, bucket, device, all_candidates=True, multiple=1)
            scored = [owner for row in bucket for owner in owners[row]]
            for (item, candidate), score in zip(scored, scores(model, minibatch).tolist(), strict=True):
                result[item][candidate] = score
    broken = sum(not all(map(math.isfinite, candidates)) for candidates in result)
    if broken:
        raise NotFinite(_not_finite(broken, len(result)))
    return list(map(tuple, result))


def _rows(encoded: Encoded) -> tuple[Encoded, list[list[tuple[int, int]]]]:
    """Items of one row each, and the (item, candidate) pairs that each row scores: candidates differ in length."""
    owners: dict[tuple[int, Tokens], list[tuple[int, int]]] = {}
    for item, (context, tails) in enumerate(zip(encoded.contexts, encoded.options, strict=True)):
        for candidate, tail in enumerate(tails):
            owners.setdefault((item, context + tail[:-1]), []).append((item, candidate))
    contexts, options = [], []
    for (item, _), pairs in owners.items():
        contexts.append(encoded.contexts[item])
        options.append(tuple(encoded.options[item][candidate] for _, candidate in pairs))
    rows = replace(encoded, contexts=tuple(contexts), options=tuple(options), labels=(0,) * len(owners))
    return rows, list(owners.values())


def _buckets(rows: Encoded, tokens: int, mixed: bool) -> Iterator[list[int]]:
    """Rows by length, cut into batches of at most `tokens` tokens, or of one row, and of one length if not `mixed`."""
    lengths = [len(c) + len(tails[0]) - 1 for c, tails in zip(rows.contexts, rows.options, strict=True)]
    bucket: list[int] = []
    for row in sorted(range(len(rows)), key=lengths.__getitem__):
        if bucket:
            # Rows come in ascending length, so that the new one sets the width of the whole batch.
            full = (len(bucket) + 1) * lengths[row] > tokens
            if full or (not mixed and lengths[row] > lengths[bucket[-1]]):
                yield bucket
                bucket = []
        bucket.append(row)
    yield bucket


def accuracy_one_by_one(model: nn.Module, encoded: Encoded) -> Accuracy:
    """The slow reference of `accuracy`: one candidate at a time, no padding, the model's own logits of all tokens."""
    with evaluating(model):
        scores_of_items = [tuple(scores_alone(model, encoded, item)) for item in range(len(encoded))]
    return _accuracy(scores_of_items, encoded.labels)


def scores_alone(model: nn.Module, encoded: Encoded, item: int) -> list[float]:
    """Scores of an item's candidates, each in a row by itself with all its tokens, by the model's own forward pass."""
    device, context = next(model.parameters()).device, encoded.contexts[item]
    classifies = encoded.kind == "classifier"
    result = []
    for tail in encoded.options[item]:
        row = context if classifies else context + tail
        ids = torch.tensor([row], device=device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        if classifies:
            result.append(float(logits.log_softmax(-1)[tail[0]]))
            continue
        logits = logits[-len(tail) - 1 : -1]
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        result.append(float(logs.gather(1, ids[0, -len(tail) :, None]).mean()))
    return result


def _accuracy(scores_of_items: Sequence[tuple[float, ...]], labels: Sequence[int]) -> Accuracy:
    broken = sum(not all(map(math.isfinite, candidates)) for candidates in scores_of_items)
    if broken:
        raise NotFinite(_not_finite(broken, len(scores_of_items)))
    predictions = tuple(candidates.index(max(candidates)) for candidates in scores_of_items)
    correct = sum(p == label for p, label in zip(predictions, labels, strict=True))
    return Accuracy(correct, len(labels), predictions, tuple(scores_of_items))


def _not_finite(broken: int, count: int) -> str:
    return (
        f"{broken} of {count} items have a score that is not finite: the weights have diverged, lower the learning "
        "rate, or use --dtype float32"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, the model is in eval mode and nothing is differentiated."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag
