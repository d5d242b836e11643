"""Items as tokens: what of a row is read, and at which positions the next token is scored.

Every row is prompt + candidate less its last token, which is scored but read by nothing: candidates of one token share
their row, and one forward pass serves all of them. A classifier reads the prompt alone, or the sentence that it was
made of, and its classes stand for the candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from os.path import commonprefix
from typing import Any, Literal

import torch
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.llm.tasks import GENERATIVE, Choice, Kind

MULTIPLE = 8
"""Rows of a training batch are padded to a multiple of this many tokens."""

Tokens = tuple[int, ...]
Loss = Kind | Literal["classifier"]


@dataclass(frozen=True)
class Encoded:
    """Tokenized items."""

    contexts: tuple[Tokens, ...]  # of each item's prompt
    options: tuple[tuple[Tokens, ...], ...]  # of each item's candidates, those that they add to the prompt's
    labels: tuple[int, ...]  # position of the right candidate
    kind: Loss  # loss that trains them
    pad: int  # token that fills rows, on the right
    cut: int = 0  # number of items whose prompt was too long for the model and lost tokens on its left
    merged: int = 0  # items where letters of candidate and prompt make one token, scored as the candidate's
    shortened: int = 0  # completions and texts that were too long and lost their end
    ends: Tokens = ()  # tokens that end a completion
    answers: tuple[str, ...] = ()  # completions as text

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
        # Prompt and candidate are tokenized as one text: token by token they would differ where letters merge.
        texts.append(item.prompt)
        texts += [item.prompt + candidate for candidate in item.candidates]
    # What the tokenizer puts behind every text, as T5's does, is cut off: no candidate is to be judged by it.
    empty, letter = tokenizer("")["input_ids"], tokenizer("a")["input_ids"]
    ends = _shared_start(empty[::-1], letter[::-1])
    start = empty[: len(empty) - ends]
    rows = iter(tokenizer(texts, verbose=False)["input_ids"])  # without its warnings: long texts are cut here
    contexts, options, cut, merged = [], [], 0, 0
    for item in items:
        prompt, *full_rows = [tuple(row[: len(row) - ends]) for row in islice(rows, 1 + len(item.candidates))]
        # Tokens that a candidate merges with the prompt's end are scored as the candidate's, for all candidates alike.
        shared = min(_shared_start(prompt, full_row) for full_row in full_rows)
        merged += shared < len(prompt)
        context = prompt[:shared]
        # The first token of a text has no probability without one before it.
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if not context and token is not None:
                context = (token,)
        tails = tuple(full_row[shared:] for full_row in full_rows)
        _check(item, context, tails)
        room = max_length + 1 - max(map(len, tails))  # the last token of a candidate is not read
        if len(context) > room:
            context = _cut(context, _shared_start(context, start), room, item, max_length)
            cut += 1
        contexts.append(context)
        options.append(tails)
    labels = tuple(item.label for item in items)
    return Encoded(tuple(contexts), tuple(options), labels, kind, tokenizer.pad_token_id or 0, cut, merged)


def _cut(context: Tokens, prefix: int, room: int, item: Choice, max_length: int) -> Tokens:
    """The prompt's first `prefix` tokens, and as many of its last ones as there is room for."""
    if room < prefix + 1:  # no token of the prompt's own would be left
        longest = max(item.candidates, key=len)
        raise BadInput(
            f"the candidate '{_short(longest)}' has {max_length + 1 - room} tokens, and rows of {max_length} leave no "
            "room for its prompt: shorten it, or use a model with more positions"
        )
    return context[:prefix] + context[len(context) - room + prefix :]


def notes(splits: Sequence[Encoded]) -> list[str]:
    """Notes on how all items of a run were tokenized: prompts that were cut, candidates merged with their prompt."""
    cut = merged = shortened = count = 0
    for split in splits:
        cut += split.cut
        merged += split.merged
        shortened += split.shortened
        count += len(split)
    result = []
    if cut:
        result.append(f"{cut} of {count} prompts are longer than the model takes and lost words at their start")
    if shortened:
        result.append(f"{shortened} of {count} completions or texts are longer than a row and lost their end")
    if merged:
        result.append(
            f"in {merged} of {count} items the tokenizer merges letters of a candidate with the end of the prompt: "
            "these letters of the prompt are scored as the candidate's"
        )
    return result


def _prompts(tokenizer: Any, items: Sequence[Choice], max_length: int) -> Encoded:
    """What a classifier reads. A prompt that is too long loses its beginning and keeps the special tokens around it."""
    special = tokenizer.num_special_tokens_to_add()
    if special >= max_length:
        raise BadInput(f"rows of {max_length} tokens hold nothing but special ones: use a model with more positions")
    contexts, classes, cut = [], [], 0
    texts = [item.sentence or item.prompt for item in items]
    for item, text, row in zip(items, texts, tokenizer(texts, verbose=False)["input_ids"], strict=True):
        if len(row) > max_length:
            # The last words of a prompt ask the question; tokenizers cut the end off by default.
            side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
            row = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            tokenizer.truncation_side = side
            cut += 1
        if not row:
            raise BadInput(f"the item '{_short(text)}' has no token that the tokenizer knows: delete it")
        contexts.append(tuple(row))
        # Class k is the one "token" of candidate k, so that scores are gathered as a language model's are.
        classes.append(tuple((k,) for k in range(len(item.candidates))))
    labels = tuple(item.label for item in items)
    return Encoded(tuple(contexts), tuple(classes), labels, "classifier", tokenizer.pad_token_id or 0, cut)


def _shared_start(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common start; commonprefix takes any two sequences of one type."""
    return len(commonprefix([tuple(a), tuple(b)]))


def _check(item: Choice, context: Tokens, tails: Sequence[Tokens]) -> None:
    for candidate, tail in zip(item.candidates, tails, strict=True):
        if not tail:
            raise BadInput(f"the candidate '{_short(candidate)}' adds no token that the tokenizer knows: reword it")
    if len(set(tails)) < len(tails):
        raise BadInput(f"the candidates of '{_short(item.prompt)}' are the same tokens to this tokenizer: reword them")
    if not context:
        raise BadInput(f"the item '{_short(item.candidates[0])}' begins with its candidate: put a word before it")


def _short(words: str) -> str:
    """The first 40 characters, on one line, as errors quote them."""
    return " ".join(words.split())[:40]


def batch(
    encoded: Encoded,
    indices: Sequence[int],
    device: Any = "cpu",
    *,
    all_candidates: bool = False,
    multiple: int = MULTIPLE,
) -> dict[str, Tensor]:
    """The minibatch of some items for `choice_loss`: the candidates that it scores, or all with `all_candidates`.

    Rows are padded on the right, to a `multiple` of tokens: a model that reads from left to right never sees the
    padding, even if it uses no mask, and virtual tokens of prompt methods stand next to the text.

    Returns:
        input_ids and attention_mask [R, T]; row and back [P], the positions whose next token is scored, the last of the
        T of a row having back = 1; position and token [C, L], for each candidate the number of the P positions that
        scores each of its tokens, and mask [C, L], 1 where it has one; labels [B] but for multiple choice, where the B
        items have C / B candidates each, and for completions and texts, where C = B.
    """
    chooses = encoded.kind not in ("multiple choice", *GENERATIVE)  # among candidates that all items share
    right_alone = not chooses and not all_candidates
    # Dictionaries number rows and positions in the order in which they first come up, each once.
    rows: dict[tuple[int, Tokens], int] = {}
    positions: dict[tuple[int, int], int] = {}
    scored, targets = [], []
    for occurrence, number in enumerate(indices):
        context, tails = encoded.contexts[number], encoded.options[number]
        owner = number  # an item that is drawn twice is read once
        if right_alone:
            tails, owner = (tails[encoded.labels[number]],), occurrence
        for tail in tails:
            row = rows.setdefault((owner, context + tail[:-1]), len(rows))
            numbers = []
            for back in range(len(tail), 0, -1):
                numbers.append(positions.setdefault((row, back), len(positions)))
            scored.append(numbers)
            targets.append(tail)
    ids = _filled([tokens for _, tokens in rows], encoded.pad, multiple)
    lengths = torch.tensor([len(tokens) for _, tokens in rows])
    owners, ends = torch.tensor(list(positions)).unbind(1)
    result = {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "position": _filled(scored),
        "token": _filled(targets),
        "mask": _filled([[1] * len(tail) for tail in targets]),
        "row": owners,
        "back": ends + ids.shape[1] - lengths[owners],  # counted from the padded row's end
    }
    if chooses:
        result["labels"] = torch.tensor([encoded.labels[number] for number in indices])
    return {name: tensor.to(device) for name, tensor in result.items()}


def _filled(rows: Sequence[Sequence[int]], value: int = 0, multiple: int = 1) -> Tensor:
    """The rows as one tensor, filled up on the right to a multiple of entries."""
    # Lists are filled up, not tensors (pad_sequence): a tensor a row would take three times as long.
    width = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([[*row] + [value] * (width - len(row)) for row in rows])
