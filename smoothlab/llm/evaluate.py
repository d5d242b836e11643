"""Scores of candidates: the training loss of a task, and accuracy, batched and as the slow truth.

A candidate's score is the mean log-probability of its tokens after the prompt,

    s_c = 1/|o_c| sum_k log p(o_ck | prompt, o_c1 .. o_c,k-1),     o_c = tokens that the candidate adds to the prompt's,

or a classifier's log-probability of its class, and the prediction is the candidate with the largest score. The loss of
an item is -log softmax(s)_label for tasks with verbalizers and for classifiers, -s_label for multiple choice; the loss
of a batch is its mean over items. (The public code that the paper follows takes the mean over all tokens of a batch in
the last case: an item's weight then depends on its batch.) The vocabulary head runs at scored places only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput
from smoothlab.llm import last_layer, prefix_trees
from smoothlab.llm.encoding import MULTIPLE, Encoded, Tokens, batch, encode
from smoothlab.stats.intervals import LEVEL

__all__ = [
    "MULTIPLE",
    "Accuracy",
    "Encoded",
    "accuracy",
    "accuracy_one_by_one",
    "batch",
    "choice_loss",
    "encode",
    "evaluating",
    "scores",
    "scores_alone",
]

TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens, padding included, of an evaluation's batch: what stays in a CPU's cache, and what keeps a GPU busy."""


class NotFinite(BadInput):
    """A score is NaN or infinite: the weights have diverged."""


@dataclass(frozen=True)
class Accuracy:
    """How often a model is right.

    Attributes:
        correct: items predicted rightly.
        count: all items.
        predictions: predicted place of each item.
        scores: mean log-probability of each item's candidates.
    """

    correct: int
    count: int
    predictions: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]

    @property
    def value(self) -> float:
        """The share of right predictions."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson's 95 % interval of the probability to be right: it covers in 95 % of samples or more."""
        from scipy import stats

        found = stats.binomtest(self.correct, self.count).proportion_ci(LEVEL, method="exact")
        return float(found.low), float(found.high)


def scores(model: nn.Module, minibatch: Mapping[str, Tensor]) -> Tensor:
    """Mean log-probability of each candidate [C] of a minibatch, in fp32 at least."""
    logits = _logits(model, minibatch)
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    mask = minibatch["mask"].to(logs.dtype)
    return (logs[minibatch["place"], minibatch["token"]] * mask).sum(1) / mask.sum(1)


def choice_loss(model: nn.Module, minibatch: Mapping[str, Tensor]) -> Tensor:
    """The training loss of a minibatch made by `batch`, the mean over its items; deterministic in eval mode.

    -log softmax(s)_label with the scores s of all candidates, for multiple choice -s_label.
    """
    found = scores(model, minibatch)
    if "labels" not in minibatch:
        return -found.mean()
    labels = minibatch["labels"]
    return nn.functional.cross_entropy(found.view(len(labels), -1), labels)


def accuracy(model: nn.Module, encoded: Encoded, *, tokens: int | None = None, mixed: bool = True) -> Accuracy:
    """Accuracy in eval mode, without gradients, in batches of like lengths; the model's modes are left as they were.

    Args:
        model: a causal language model or classifier, wrapped by a PEFT method or not.
        encoded: the items.
        tokens: size of a batch, padding included, TOKENS by default; it moves time and memory, and scores by rounding.
        mixed: whether rows of different lengths may be in a batch; for models whose scores depend on padding they may
            not.

    Raises:
        NotFinite: a score is not finite.
    """
    device = next(model.parameters()).device
    limit = tokens or TOKENS.get(device.type, TOKENS["cuda"])
    alike = mixed and encoded.kind != "classifier" and prefix_trees.fits(model, _base(model))
    batches = prefix_trees.batches(encoded, limit, device) if alike else _padded(encoded, limit, device, mixed)
    found: list[list[float]] = [[0.0] * len(options) for options in encoded.options]
    with evaluating(model):
        for minibatch, owners in batches:
            for (number, place), score in zip(owners, scores(model, minibatch).tolist(), strict=True):
                found[number][place] = score
    return _accuracy([tuple(each) for each in found], encoded.labels)


def _padded(
    encoded: Encoded, tokens: int, device: Any, mixed: bool
) -> Iterator[tuple[dict[str, Tensor], list[prefix_trees.Owner]]]:
    """The same as `prefix_trees.batches`, each row by itself, for every model."""
    rows, owners = _rows(encoded)
    for indices in _buckets(rows, tokens, mixed):
        minibatch = batch(rows, indices, device, every=True, multiple=1)
        yield minibatch, [owner for index in indices for owner in owners[index]]


def _rows(encoded: Encoded) -> tuple[Encoded, list[list[tuple[int, int]]]]:
    """Items of one row each, and of which candidates of which items their scores are: candidates differ in length."""
    found: dict[tuple[int, Tokens], list[tuple[int, int]]] = {}
    for number, (context, tails) in enumerate(zip(encoded.contexts, encoded.options, strict=True)):
        for place, tail in enumerate(tails):
            found.setdefault((number, context + tail[:-1]), []).append((number, place))
    contexts = tuple(encoded.contexts[number] for number, _ in found)
    options = tuple(tuple(encoded.options[i][place] for i, place in owners) for owners in found.values())
    return replace(encoded, contexts=contexts, options=options, labels=(0,) * len(found)), list(found.values())


def _buckets(rows: Encoded, tokens: int, mixed: bool) -> Iterator[list[int]]:
    """Rows by length, cut into batches of at most `tokens` tokens, or of one row, and of one length if not `mixed`."""
    lengths = [len(c) + len(tails[0]) - 1 for c, tails in zip(rows.contexts, rows.options, strict=True)]
    bucket: list[int] = []
    for number in sorted(range(len(rows)), key=lengths.__getitem__):
        longer = bool(bucket) and not mixed and lengths[number] > lengths[bucket[-1]]
        if bucket and (longer or (len(bucket) + 1) * lengths[number] > tokens):
            yield bucket
            bucket = []
        bucket.append(number)
    yield bucket


def accuracy_one_by_one(model: nn.Module, encoded: Encoded) -> Accuracy:
    """The slow truth: one candidate at a time, no padding, all logits of the model's own forward pass."""
    with evaluating(model):
        found = [tuple(scores_alone(model, encoded, number)) for number in range(len(encoded))]
    return _accuracy(found, encoded.labels)


def scores_alone(model: nn.Module, encoded: Encoded, number: int) -> list[float]:
    """Scores of an item's candidates, each in a row by itself with all its tokens, by the model's own forward pass."""
    device, context, found = next(model.parameters()).device, encoded.contexts[number], []
    for tail in encoded.options[number]:
        ids = torch.tensor([context if encoded.kind == "classifier" else context + tail], device=device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        if encoded.kind == "classifier":
            found.append(float(logits.log_softmax(-1)[tail[0]]))
            continue
        logits = logits[-len(tail) - 1 : -1]
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        found.append(float(logs.gather(1, ids[0, -len(tail) :, None]).mean()))
    return found


def _accuracy(found: Sequence[tuple[float, ...]], labels: Sequence[int]) -> Accuracy:
    if broken := [i for i, each in enumerate(found) if not all(abs(s) < float("inf") for s in each)]:
        raise NotFinite(
            f"{len(broken)} of {len(found)} items have a score that is not finite: the weights have diverged, lower "
            "the learning rate, or use --dtype float32"
        )
    predictions = tuple(max(range(len(each)), key=each.__getitem__) for each in found)
    correct = sum(p == label for p, label in zip(predictions, labels, strict=True))
    return Accuracy(correct, len(labels), predictions, tuple(found))


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


def _logits(model: nn.Module, minibatch: Mapping[str, Tensor]) -> Tensor:
    """Logits [P, vocabulary] at the minibatch's places, or a classifier's [P, classes].

    Hidden states are gathered before the vocabulary head, by a hook on it, so that whatever a model does to its logits
    afterwards is done here too.
    """
    base = _base(model)
    row, back = minibatch["row"], minibatch["back"]
    if base.get_output_embeddings() is None:
        return model(input_ids=minibatch["input_ids"], attention_mask=minibatch["attention_mask"]).logits[row]

    def gather(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][row, args[0].shape[1] - back][None], *args[1:])

    handle = base.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        with last_layer.only(base, row, back) if "last" in minibatch else nullcontext():
            return _forward(model, base, minibatch).logits[0]
    finally:
        handle.remove()


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forward(model: Any, base: Any, minibatch: Mapping[str, Tensor]) -> Any:
    """The forward pass with positions counted from the first real token, virtual tokens before it included.

    peft's own forward of prompt methods drops positions: those of padding could then exceed the model's table.
    """
    ids, config = minibatch["input_ids"], getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return model(input_ids=ids, use_cache=False, **_sight(base, minibatch, 0))
    virtual = config.num_virtual_tokens
    prompt, seen = model.get_prompt(batch_size=len(ids)), _sight(base, minibatch, virtual)
    if config.peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
        if "position_ids" in seen:
            seen["position_ids"] = seen["position_ids"][:, virtual:]
        if seen["attention_mask"].ndim == 4:
            seen["attention_mask"] = seen["attention_mask"][:, :, virtual:]
        return base(input_ids=ids, past_key_values=prompt, **seen)
    words = model.word_embeddings(ids)
    embedded = torch.cat([prompt.to(words.dtype), words], 1)
    return base(inputs_embeds=embedded, use_cache=False, **seen)


def _sight(base: Any, minibatch: Mapping[str, Tensor], virtual: int) -> dict[str, Tensor]:
    """attention_mask of the whole rows, virtual tokens first, and position_ids [R, V + T] for models that take them."""
    if "last" in minibatch:
        mask, positions = prefix_trees.sight(minibatch["last"], minibatch["position_ids"], virtual, base.dtype)
        return {"attention_mask": mask, "position_ids": positions}
    mask = minibatch["attention_mask"]
    mask = torch.cat([mask.new_ones(len(mask), virtual), mask], 1)
    if "position_ids" not in signature(base.forward).parameters:  # these models make their own of the mask
        return {"attention_mask": mask}
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
