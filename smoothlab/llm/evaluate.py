"""Scores of candidates: the training loss of a task, and accuracy, batched and as the slow truth.

A candidate's score is the mean log-probability of its tokens after the prompt,

    s_c = 1/|o_c| sum_k log p(o_ck | prompt, o_c1 .. o_c,k-1),     o_c = tokens that the candidate adds to the prompt's,

and the prediction is the candidate with the largest score. The loss of an item is -log softmax(s)_label for tasks with
verbalizers and -s_label for multiple choice; the loss of a batch is its mean over items. (The public code that the
paper follows takes the mean over all tokens of a batch in the second case: an item's weight depends on its batch.)

Every row is prompt + candidate less its last token, which is scored but read by nothing: candidates of one token share
their row, and one forward pass serves all of them. The vocabulary head runs at scored positions only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput
from smoothlab.intervals import LEVEL
from smoothlab.llm.tasks import Choice, Kind

MULTIPLE = 8
"""Rows of a training batch are padded, on the left, to a multiple of this many tokens."""
TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens, padding included, of an evaluation's batch: what stays in a CPU's cache, and what keeps a GPU busy."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """Tokenized items.

    Attributes:
        contexts: tokens of each item's prompt.
        options: tokens of each item's candidates, those that the candidate adds to the prompt's.
        labels: place of the right candidate of each item.
        kind: which loss trains them.
        pad: the token that fills rows on the left.
        cut: items whose prompt lost tokens on its left, being too long for the model.
        merged: items where a candidate's first letters and the prompt's last ones make one token, which is then scored
            as the candidate's.
    """

    contexts: tuple[Tokens, ...]
    options: tuple[tuple[Tokens, ...], ...]
    labels: tuple[int, ...]
    kind: Kind
    pad: int
    cut: int = 0
    merged: int = 0

    def __len__(self) -> int:
        return len(self.labels)


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


def encode(tokenizer: Any, items: Sequence[Choice], max_length: int, kind: Kind) -> Encoded:
    """Tokenize once. What the tokenizer puts at the start of a text, as OPT's does, is kept where a prompt is cut.

    Args:
        tokenizer: of the model; transformers.
        items: at least one.
        max_length: longest row in tokens, the model's less the virtual tokens of a prompt method.
        kind: which loss trains them, as `load_choices` says.

    Raises:
        BadInput: no items, a candidate that adds no token, or that is too long by itself.
    """
    if not items:
        raise BadInput("there are no items to encode: give at least one")
    texts = [item.prompt + tail for item in items for tail in ("", *item.candidates)]
    rows = iter(tokenizer(texts, verbose=False)["input_ids"])  # long texts are cut here, and counted
    first = next((t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None), None)
    ends = _endings(tokenizer)
    empty = tokenizer("")["input_ids"]
    start = tuple(empty[: len(empty) - ends])
    contexts, options, cut, merged = [], [], 0, 0
    for item in items:
        prompt, *wholes = (tuple(next(rows)) for _ in range(1 + len(item.candidates)))
        prompt, *wholes = (row[: len(row) - ends] for row in (prompt, *wholes))
        shared = min(_shared(prompt, whole) for whole in wholes)
        merged += shared < len(prompt)
        context, tails = prompt[:shared], tuple(whole[shared:] for whole in wholes)
        if not context and first is not None:  # the first token of a text has no probability without one before it
            context = (first,)
        longest = max(map(len, tails))
        _check(item, context, tails)
        kept = _shared(context, start)
        room = max_length + 1 - longest  # the last token of a candidate is not read
        if len(context) > room:
            if room < kept + 1:
                raise BadInput(
                    f"the candidate '{_short(max(item.candidates, key=len))}' has {longest} tokens, and rows of "
                    f"{max_length} leave no room for its prompt: shorten it, or use a model with more positions"
                )
            context = context[:kept] + context[len(context) - room + kept :]
            cut += 1
        contexts.append(context)
        options.append(tails)
    pad = tokenizer.pad_token_id
    labels = tuple(item.label for item in items)
    return Encoded(tuple(contexts), tuple(options), labels, kind, 0 if pad is None else pad, cut, merged)


def _endings(tokenizer: Any) -> int:
    """How many tokens the tokenizer puts behind every text, as T5's does: no candidate is to be judged by them."""
    empty, letter = tokenizer("")["input_ids"], tokenizer("a")["input_ids"]
    count = 0
    while count < min(len(empty), len(letter)) and empty[-1 - count] == letter[-1 - count]:
        count += 1
    return count


def _shared(a: Tokens, b: Tokens) -> int:
    """Length of the longest common start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _check(item: Choice, context: Tokens, tails: Sequence[Tokens]) -> None:
    for candidate, tail in zip(item.candidates, tails, strict=True):
        if not tail:
            raise BadInput(f"the candidate '{_short(candidate)}' adds no token that the tokenizer knows: reword it")
    if len(set(tails)) < len(tails):
        raise BadInput(f"the candidates of '{_short(item.prompt)}' are the same tokens to this tokenizer: reword them")
    if not context:
        raise BadInput(f"the item '{_short(item.candidates[0])}' begins with its candidate: put a word before it")


def _short(words: str) -> str:
    return " ".join(words.split())[:40]


def batch(
    encoded: Encoded, indices: Sequence[int], device: Any = "cpu", *, every: bool = False, multiple: int = MULTIPLE
) -> dict[str, Tensor]:
    """The minibatch of some items for `choice_loss`: what it scores, and no more unless `every` candidate is asked for.

    Rows are padded on the left to a `multiple` of tokens.

    Returns:
        input_ids and attention_mask [R, T], padded on the left; row and back [P], the places whose next token is
        scored, the last of a row having back = 1; place and token [C, L], for each candidate which of the P places
        tells of each of its tokens, and mask [C, L], 1 where it has one; labels [B] for tasks with verbalizers, whose
        B items have C / B candidates each.
    """
    chosen = encoded.kind == "multiple choice" and not every
    rows: dict[tuple[int, Tokens], int] = {}
    places: dict[tuple[int, int], int] = {}
    scored: list[list[tuple[int, int]]] = []
    for number in indices:
        context, tails = encoded.contexts[number], encoded.options[number]
        for tail in tails[encoded.labels[number] :][:1] if chosen else tails:
            row = rows.setdefault((number if not chosen else len(scored), context + tail[:-1]), len(rows))
            backs = ((row, len(tail) - k) for k in range(len(tail)))
            scored.append([(places.setdefault(b, len(places)), t) for b, t in zip(backs, tail, strict=True)])
    longest = max(len(tokens) for _, tokens in rows)
    width = -(-longest // multiple) * multiple
    lead = [width - len(tokens) for _, tokens in rows]
    size = max(map(len, scored))
    filled = [line + [(0, 0)] * (size - len(line)) for line in scored]
    found = {
        "input_ids": [[encoded.pad] * n + list(tokens) for n, (_, tokens) in zip(lead, rows, strict=True)],
        "attention_mask": [[0] * n + [1] * (width - n) for n in lead],
        "row": [row for row, _ in places],
        "back": [back for _, back in places],
        "place": [[place for place, _ in line] for line in filled],
        "token": [[token for _, token in line] for line in filled],
        "mask": [[1] * len(line) + [0] * (size - len(line)) for line in scored],
    }
    if encoded.kind == "verbalizer":
        found["labels"] = [encoded.labels[number] for number in indices]
    return {key: torch.tensor(value, device=device) for key, value in found.items()}


def scores(model: nn.Module, minibatch: Mapping[str, Tensor]) -> Tensor:
    """Mean log-probability of each candidate [C] of a minibatch, in fp32 at least."""
    logits = _logits(model, minibatch)
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    mask = minibatch["mask"].to(logs.dtype)
    return (logs[minibatch["place"], minibatch["token"]] * mask).sum(1) / mask.sum(1)


def choice_loss(model: nn.Module, minibatch: Mapping[str, Tensor]) -> Tensor:
    """The training loss of a minibatch made by `batch`, the mean over its items; deterministic in eval mode.

    -log softmax(s)_label with the scores s of all candidates for tasks with verbalizers, -s_label for multiple choice.
    """
    found = scores(model, minibatch)
    if "labels" not in minibatch:
        return -found.mean()
    labels = minibatch["labels"]
    return nn.functional.cross_entropy(found.view(len(labels), -1), labels)


def accuracy(model: nn.Module, encoded: Encoded, *, tokens: int | None = None) -> Accuracy:
    """Accuracy in eval mode, without gradients, in batches of like lengths; the model's modes are left as they were.

    Args:
        model: a causal language model, wrapped by a PEFT method or not.
        encoded: the items.
        tokens: size of a batch, padding included, TOKENS by default; it moves time and memory, and scores by rounding.

    Raises:
        BadInput: a score is not finite.
    """
    device = next(model.parameters()).device
    rows, owners = _rows(encoded)
    found: list[list[float]] = [[0.0] * len(options) for options in encoded.options]
    with _evaluating(model):
        for indices in _buckets(rows, tokens or TOKENS.get(device.type, TOKENS["cuda"])):
            flat = iter(scores(model, batch(rows, indices, device, every=True, multiple=1)).tolist())
            for number, place in (owner for index in indices for owner in owners[index]):
                found[number][place] = next(flat)
    return _accuracy([tuple(each) for each in found], encoded.labels)


def _rows(encoded: Encoded) -> tuple[Encoded, list[list[tuple[int, int]]]]:
    """Items of one row each, and of which candidates of which items their scores are: candidates differ in length."""
    found: dict[tuple[int, Tokens], list[tuple[int, int]]] = {}
    for number, (context, tails) in enumerate(zip(encoded.contexts, encoded.options, strict=True)):
        for place, tail in enumerate(tails):
            found.setdefault((number, context + tail[:-1]), []).append((number, place))
    contexts = tuple(encoded.contexts[number] for number, _ in found)
    options = tuple(tuple(encoded.options[i][place] for i, place in owners) for owners in found.values())
    return replace(encoded, contexts=contexts, options=options, labels=(0,) * len(found)), list(found.values())


def _buckets(rows: Encoded, tokens: int) -> Iterator[list[int]]:
    """Rows by length, cut into batches of at most `tokens` tokens, or of one row."""
    lengths = [len(c) + len(tails[0]) - 1 for c, tails in zip(rows.contexts, rows.options, strict=True)]
    bucket: list[int] = []
    for number in sorted(range(len(rows)), key=lengths.__getitem__):
        if bucket and (len(bucket) + 1) * lengths[number] > tokens:
            yield bucket
            bucket = []
        bucket.append(number)
    yield bucket


def accuracy_one_by_one(model: nn.Module, encoded: Encoded) -> Accuracy:
    """The slow truth: one candidate at a time, no padding, all logits of the model's own forward pass."""
    device = next(model.parameters()).device
    found = []
    with _evaluating(model):
        for context, tails in zip(encoded.contexts, encoded.options, strict=True):
            each = []
            for tail in tails:
                ids = torch.tensor([context + tail], device=device)
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(tail) - 1 : -1]
                logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
                each.append(float(logs.gather(1, ids[0, -len(tail) :, None]).mean()))
            found.append(tuple(each))
    return _accuracy(found, encoded.labels)


def _accuracy(found: Sequence[tuple[float, ...]], labels: Sequence[int]) -> Accuracy:
    if broken := [i for i, each in enumerate(found) if not all(abs(s) < float("inf") for s in each)]:
        raise BadInput(
            f"{len(broken)} of {len(found)} items have a score that is not finite: the weights have diverged, lower "
            "the learning rate, or use --dtype float32"
        )
    predictions = tuple(max(range(len(each)), key=each.__getitem__) for each in found)
    correct = sum(p == label for p, label in zip(predictions, labels, strict=True))
    return Accuracy(correct, len(labels), predictions, tuple(found))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def _logits(model: nn.Module, minibatch: Mapping[str, Tensor]) -> Tensor:
    """Logits [P, vocabulary] at the minibatch's places: hidden states are gathered before the vocabulary head.

    A hook on the head gathers, so that whatever a model does to its logits afterwards is done here too.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    row, back = minibatch["row"], minibatch["back"]

    def gather(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][row, args[0].shape[1] - back][None], *args[1:])

    handle = base.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        return _forward(model, base, minibatch["input_ids"], minibatch["attention_mask"]).logits[0]
    finally:
        handle.remove()


def _forward(model: Any, base: Any, ids: Tensor, mask: Tensor) -> Any:
    """The forward pass with positions counted from the first real token, virtual tokens before it included.

    peft's own forward of prompt methods drops positions: padding would then stand between virtual tokens and text in
    models with rotary positions, and the loss would depend on how far a row is padded.
    """
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return model(input_ids=ids, attention_mask=mask, use_cache=False, **_positions(base, mask))
    virtual = config.num_virtual_tokens
    prompt = model.get_prompt(batch_size=len(ids))
    whole = torch.cat([mask.new_ones(len(mask), virtual), mask], 1)
    if config.peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
        kept = {name: places[:, virtual:] for name, places in _positions(base, whole).items()}
        return base(input_ids=ids, attention_mask=whole, past_key_values=prompt, **kept)
    words = model.word_embeddings(ids)
    embedded = torch.cat([prompt.to(words.dtype), words], 1)
    return base(inputs_embeds=embedded, attention_mask=whole, use_cache=False, **_positions(base, whole))


def _positions(base: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """position_ids [R, T] for models that take them; the others make their own of the mask."""
    if "position_ids" not in signature(base.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
