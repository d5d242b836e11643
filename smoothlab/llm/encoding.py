"""Items as tokens: what of a row is read, and at which places the next token is scored.

Every row is prompt + candidate less its last token, which is scored but read by nothing: candidates of one token share
their row, and one forward pass serves all of them. A classifier reads the prompt alone, or the sentence that it was
made of, and its classes stand for the candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.llm.tasks import Choice, Kind

MULTIPLE = 8
"""Rows of a training batch are padded to a multiple of this many tokens."""

Tokens = tuple[int, ...]
Loss = Kind | Literal["classifier"]


@dataclass(frozen=True)
class Encoded:
    """Tokenized items.

    Attributes:
        contexts: tokens of each item's prompt.
        options: tokens of each item's candidates, those that the candidate adds to the prompt's.
        labels: place of the right candidate of each item.
        kind: loss that trains them.
        pad: the token that fills rows, on the right.
        cut: items whose prompt lost tokens on its left, being too long for the model.
        merged: items where a candidate's first letters and the prompt's last ones make one token, which is then scored
            as the candidate's.
    """

    contexts: tuple[Tokens, ...]
    options: tuple[tuple[Tokens, ...], ...]
    labels: tuple[int, ...]
    kind: Loss
    pad: int
    cut: int = 0
    merged: int = 0

    def __len__(self) -> int:
        return len(self.labels)


def encode(tokenizer: Any, items: Sequence[Choice], max_length: int, kind: Loss) -> Encoded:
    """Tokenize once. What the tokenizer puts at the start of a text, as OPT's does, is kept where a prompt is cut.

    Args:
        tokenizer: of the model; transformers.
        items: at least one.
        max_length: longest row in tokens, the model's less the virtual tokens of a prompt method.
        kind: loss that trains them, that of the task, or "classifier" where the candidates are classes.

    Raises:
        BadInput: no items, a candidate that adds no token, or that is too long by itself.
    """
    if not items:
        raise BadInput("there are no items to encode: give at least one")
    if kind == "classifier":
        return _prompts(tokenizer, items, max_length)
    texts = []
    for item in items:
        texts.append(item.prompt)
        texts += [item.prompt + candidate for candidate in item.candidates]
    ends = _endings(tokenizer)
    rows = iter(tokenizer(texts, verbose=False)["input_ids"])  # long texts are cut here, and counted
    empty = tokenizer("")["input_ids"]
    start = tuple(empty[: len(empty) - ends])
    contexts, options, cut, merged = [], [], 0, 0
    for item in items:
        prompt, *wholes = [_trimmed(next(rows), ends) for _ in range(1 + len(item.candidates))]
        # Tokens that a candidate merges with the prompt's end are scored as the candidate's, for all candidates alike.
        shared = min(_shared_start(prompt, whole) for whole in wholes)
        merged += shared < len(prompt)
        context = prompt[:shared]
        if not context:  # the first token of a text has no probability without one before it
            context = _first_token(tokenizer)
        tails = tuple(whole[shared:] for whole in wholes)
        _check(item, context, tails)
        room = max_length + 1 - max(map(len, tails))  # the last token of a candidate is not read
        if len(context) > room:
            context = _cut(context, _shared_start(context, start), room, item, max_length)
            cut += 1
        contexts.append(context)
        options.append(tails)
    labels = tuple(item.label for item in items)
    return Encoded(tuple(contexts), tuple(options), labels, kind, tokenizer.pad_token_id or 0, cut, merged)


def _trimmed(row: Sequence[int], ends: int) -> Tokens:
    return tuple(row[: len(row) - ends])


def _first_token(tokenizer: Any) -> Tokens:
    """The token that a text may begin with, () where the tokenizer has none."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return (token,)
    return ()


def _cut(context: Tokens, kept: int, room: int, item: Choice, max_length: int) -> Tokens:
    """The prompt's first `kept` tokens, and as many of its last ones as there is room for."""
    if room < kept + 1:
        longest = max(item.candidates, key=len)
        raise BadInput(
            f"the candidate '{_short(longest)}' has {max_length + 1 - room} tokens, and rows of {max_length} leave no "
            "room for its prompt: shorten it, or use a model with more positions"
        )
    return context[:kept] + context[len(context) - room + kept :]


def notes(splits: Sequence[Encoded]) -> list[str]:
    """What a reader should know of how all items of a run were tokenized: prompts cut, candidates merged with them."""
    cut, merged, count = (sum(values) for values in zip(*((s.cut, s.merged, len(s)) for s in splits), strict=True))
    result = []
    if cut:
        result.append(f"{cut} of {count} prompts are longer than the model takes and lost words at their start")
    if merged:
        result.append(
            f"in {merged} of {count} items the tokenizer merges letters of a candidate with the end of the prompt: "
            "these letters of the prompt are scored as the candidate's"
        )
    return result


def _prompts(tokenizer: Any, items: Sequence[Choice], max_length: int) -> Encoded:
    """What a classifier reads. A prompt that is too long loses its beginning, less the special tokens around it."""
    special = tokenizer.num_special_tokens_to_add()
    if special >= max_length:
        raise BadInput(f"rows of {max_length} tokens hold nothing but special ones: use a model with more positions")
    contexts, cut = [], 0
    texts = [item.sentence or item.prompt for item in items]
    for text, row in zip(texts, tokenizer(texts, verbose=False)["input_ids"], strict=True):
        if len(row) > max_length:
            side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
            row = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            tokenizer.truncation_side = side
            cut += 1
        if not row:
            raise BadInput(f"the item '{_short(text)}' has no token that the tokenizer knows: delete it")
        contexts.append(tuple(row))
    classes = tuple(tuple((k,) for k in range(len(item.candidates))) for item in items)
    labels = tuple(item.label for item in items)
    return Encoded(tuple(contexts), classes, labels, "classifier", tokenizer.pad_token_id or 0, cut)


def _endings(tokenizer: Any) -> int:
    """How many tokens the tokenizer puts behind every text, as T5's does: no candidate is to be judged by them."""
    empty, letter = tokenizer("")["input_ids"], tokenizer("a")["input_ids"]
    count = 0
    while count < min(len(empty), len(letter)) and empty[-1 - count] == letter[-1 - count]:
        count += 1
    return count


def _shared_start(a: Tokens, b: Tokens) -> int:
    """Length of the longest common start."""
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


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
    encoded: Encoded,
    indices: Sequence[int],
    device: Any = "cpu",
    *,
    all_candidates: bool = False,
    multiple: int = MULTIPLE,
) -> dict[str, Tensor]:
    """The minibatch of some items for `choice_loss`: what it scores, and no more unless `all_candidates` is set.

    Rows are padded to a `multiple` of tokens on the right: what reads from left to right never sees the padding, even
    if it looks at no mask, and virtual tokens of prompt methods stand next to the text.

    Returns:
        input_ids and attention_mask [R, T]; row and back [P], the positions whose next token is scored, the last of the
        T of a row having back = 1; place and token [C, L], for each candidate which of the P positions scores each of
        its tokens, and mask [C, L], 1 where it has one; labels [B] but for multiple choice, where the B items have
        C / B candidates each.
    """
    right_alone = encoded.kind == "multiple choice" and not all_candidates
    rows: dict[tuple[int, Tokens], int] = {}
    positions: dict[tuple[int, int], int] = {}
    scored: list[list[tuple[int, int]]] = []
    for owner, number in enumerate(indices):
        context, tails = encoded.contexts[number], encoded.options[number]
        if right_alone:
            tails = (tails[encoded.labels[number]],)
        else:
            owner = number  # an item that is drawn twice is read once
        for tail in tails:
            row = rows.setdefault((owner, context + tail[:-1]), len(rows))
            entries = []
            for k, token in enumerate(tail):
                entries.append((positions.setdefault((row, len(tail) - k), len(positions)), token))
            scored.append(entries)
    longest = max(len(tokens) for _, tokens in rows)
    width = -(-longest // multiple) * multiple
    size = max(map(len, scored))  # candidates with fewer tokens are filled up, and masked
    ids, seen, padding = [], [], []
    for _, tokens in rows:
        padding.append(width - len(tokens))
        ids.append([*tokens] + [encoded.pad] * padding[-1])
        seen.append([1] * len(tokens) + [0] * padding[-1])
    places, targets, mask = [], [], []
    for entries in scored:
        filled = entries + [(0, 0)] * (size - len(entries))
        places.append([position for position, _ in filled])
        targets.append([token for _, token in filled])
        mask.append([1] * len(entries) + [0] * (size - len(entries)))
    columns = {"input_ids": ids, "attention_mask": seen, "place": places, "token": targets, "mask": mask}
    result = {name: torch.tensor(values, device=device) for name, values in columns.items()}
    result["row"] = torch.tensor([row for row, _ in positions], device=device)
    result["back"] = torch.tensor([padding[row] + back for row, back in positions], device=device)
    if encoded.kind != "multiple choice":
        result["labels"] = torch.tensor([encoded.labels[number] for number in indices], device=device)
    return result
