"""Loss of completions and texts, and how far greedy answers agree with the ones to be learned.

An item's loss is the mean of -log p over its scored tokens, the data set's the mean over its items: every item weighs
the same in whichever minibatch it is, so that the mean loss of a minibatch, its gradient and its Hessian are unbiased
for those of the data set. The mean over all tokens, whose exponential is the perplexity, is reported beside it.

Exact match and F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250): both texts are lower-cased, punctuation
and the words a, an, the are taken out and spaces made single; exact match is 1 where they are equal then, and with c
words in common, repetitions counted, of m in the answer and n in the reference,

    F1 = 2 c / (m + n),

or 1 where both are empty, 0 where one is.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.llm.encoding import Encoded, Tokens
from smoothlab.llm.evaluate import TOKENS, candidate_scores, evaluating
from smoothlab.llm.validation import UNLIMITED
from smoothlab.llm.vocabulary import logits
from smoothlab.stats.samples import mean

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class CompletionScores:
    """How well a model predicts completions or texts."""

    losses: tuple[float, ...]  # mean -log p over the scored tokens of each item
    tokens: tuple[int, ...]  # number of scored tokens of each item
    matches: tuple[bool, ...] = ()  # whether the answer to each item matches; empty where none were generated
    f1s: tuple[float, ...] = ()  # F1 of each answer

    @property
    def loss(self) -> float:
        """Mean over items of the mean over their tokens."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def token_loss(self) -> float:
        """Mean over the tokens of all items."""
        sums = [loss * count for loss, count in zip(self.losses, self.tokens, strict=True)]
        return math.fsum(sums) / sum(self.tokens)

    def answers(self) -> dict[str, float]:
        """Exact match and F1, means over items, as the columns of a record; empty where no answers were generated."""
        if not self.matches:
            return {}
        count = len(self.matches)
        return {"exact_match": sum(self.matches) / count, "f1": math.fsum(self.f1s) / count}

    def row(self) -> dict[str, Any]:
        """The columns of a record of the test; low and high are those of the loss, over items."""
        low = high = None
        if len(self.losses) > 1:
            _, low, high = mean(self.losses)
        row: dict[str, Any] = {
            "loss": self.loss, "low": low, "high": high, "token_loss": self.token_loss, "tokens": sum(self.tokens),
            "count": len(self.losses), **self.answers(),
        }  # fmt: skip
        if self.matches:
            row["right"] = "".join(str(int(match)) for match in self.matches)
        return row


def completion_scores(
    model: nn.Module, encoded: Encoded, *, mixed: bool = True, decode: Callable[[Tokens], str] | None = None,
    longest: int = 0, max_length: int = UNLIMITED,
) -> CompletionScores:  # fmt: skip
    """Losses of the items in eval mode, and their answers where they are short.

    Args:
        model: a causal language model, wrapped by a PEFT method or not.
        encoded: completions or texts.
        mixed: whether rows of different lengths may be in a batch.
        decode: text of generated tokens; None generates no answers.
        longest: tokens after which an answer ends at the latest.
        max_length: longest row in tokens, prompt and answer together.

    Raises:
        NotFinite: a loss is not finite.
    """
    losses = tuple(-score for (score,) in candidate_scores(model, encoded, mixed=mixed))
    tokens = tuple(len(tail) for (tail,) in encoded.options)
    if decode is None:
        return CompletionScores(losses, tokens)
    answers = [decode(answer) for answer in greedy(model, encoded, longest, mixed=mixed, max_length=max_length)]
    matches, f1s = [], []
    for answer, reference in zip(answers, encoded.answers, strict=True):
        matches.append(normalized(answer) == normalized(reference))
        f1s.append(f1(answer, reference))
    return CompletionScores(losses, tokens, tuple(matches), tuple(f1s))


def are_short(splits: Sequence[Encoded], limit: int) -> bool:
    """Whether these are completions of at most `limit` tokens each, end tokens included, and none was cut."""
    for split in splits:
        longest = max(len(tail) for (tail,) in split.options)
        if split.kind != "completion" or split.shortened or longest > limit:
            return False
    return True


def greedy(
    model: nn.Module, encoded: Encoded, longest: int, *, mixed: bool = True, max_length: int = UNLIMITED
) -> list[Tokens]:
    """The most probable next token again and again, until an end token, which is left out, or `longest` tokens.

    A row of `max_length` tokens is read once more and then ends, too.

    Each token takes a forward pass of the whole row, the one that the loss is computed by: a cache of keys and values
    would be faster, and its handling of virtual tokens differs from one PEFT method to the next.

    Returns:
        The tokens behind each item's prompt.
    """
    device = next(model.parameters()).device
    limit = TOKENS.get(device.type, TOKENS["cuda"])
    answers: list[list[int]] = [[] for _ in encoded.contexts]
    unfinished = list(range(len(answers)))
    with evaluating(model):
        for _ in range(longest):
            rows = {}
            for item in unfinished:
                row = [*encoded.contexts[item], *answers[item]]
                if len(row) <= max_length:
                    rows[item] = row
            continued = []
            for members in _batches(rows, limit, mixed):
                minibatch = _ends([rows[item] for item in members], encoded.pad, device)
                for item, token in zip(members, logits(model, minibatch).argmax(-1).tolist(), strict=True):
                    if token not in encoded.ends:
                        answers[item].append(token)
                        continued.append(item)
            unfinished = continued
    return list(map(tuple, answers))


def _batches(rows: dict[int, list[int]], limit: int, mixed: bool) -> list[list[int]]:
    """The numbers of the rows by length, in batches of at most `limit` tokens, of one length if not `mixed`."""
    batches: list[list[int]] = []
    for item in sorted(rows, key=lambda item: len(rows[item])):
        width = len(rows[item])
        fits = bool(batches) and (len(batches[-1]) + 1) * width <= limit
        if fits and (mixed or len(rows[batches[-1][0]]) == width):
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


def _ends(rows: Sequence[Sequence[int]], pad: int, device: Any) -> dict[str, Tensor]:
    """The rows as a minibatch, padded on the right, whose last tokens are the scored positions."""
    width = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])
    minibatch = {
        "input_ids": torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows]),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "row": torch.arange(len(rows)),
        "back": 1 + width - lengths,
    }
    return {name: tensor.to(device) for name, tensor in minibatch.items()}


def normalized(answer: str) -> str:
    """The answer in lower case, without punctuation and articles, its words one space apart.

    >>> normalized("The Eiffel-Tower,  in Paris.")
    'eiffeltower in paris'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def f1(answer: str, reference: str) -> float:
    """F1 of the answer's words.

    >>> f1("in the city of Paris", "Paris, France")  # one word of four and two
    0.3333333333333333
    """
    answer_words, reference_words = normalized(answer).split(), normalized(reference).split()
    if not answer_words or not reference_words:
        return float(answer_words == reference_words)
    common = (Counter(answer_words) & Counter(reference_words)).total()
    return 2 * common / (len(answer_words) + len(reference_words))
