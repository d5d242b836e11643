"""A small labelled sentence set of our own: film remarks from a grammar, negative 0, positive 1.

Praise and blame use the same words: an adjective is as often negated ("anything but dull") or outweighed ("although the
plot is thin, the acting is superb") as it stands for itself, so no single word gives the label away; word order does.
"""

import random
import re
from collections.abc import Iterator
from itertools import product

from smoothlab.llm.tasks import sst2
from smoothlab.llm.tasks.choices import Row, Task

TRAIN, VALIDATION = 2400, 600
"""Sentences in each split, half of them positive; no sentence is in both."""

_ASPECTS = (
    "the plot", "the acting", "the dialogue", "the direction", "the ending", "the photography", "the music",
    "the opening scene", "the second half", "the humor", "the romance", "the leading man", "the heroine", "the editing",
)  # fmt: skip
_GOOD = (
    "superb", "moving", "clever", "graceful", "gripping", "funny", "fresh", "tender", "lively", "honest", "subtle",
    "charming",
)  # fmt: skip
_BAD = (
    "dull", "clumsy", "flat", "tedious", "hollow", "muddled", "lifeless", "stale", "shallow", "awkward", "crude",
    "dreary",
)  # fmt: skip
_AN = re.compile(r"\ba\b(?= (?:awkward|honest)\b)")
_PLAIN = (
    "{aspect} is {adjective} from first to last .",
    "{aspect} is simply {adjective} .",
    "i found {aspect} {adjective} .",
    "{aspect} is even more {adjective} than people say .",
    "what a {adjective} film this is !",
    "a {adjective} picture , and {aspect} is the reason .",
)
"""The label is the adjective's."""
_TURNED = (
    "{aspect} is not {adjective} at all .",
    "{aspect} is anything but {adjective} .",
    "nothing about {aspect} is {adjective} .",
    "no one could call {aspect} {adjective} .",
)
"""The label is the opposite of the adjective's."""
_CONTRAST = (
    "although {aspect} is {first} , the film as a whole is {last} .",
    "{aspect} may be {first} , but what stays with you is how {last} it all feels .",
    "i expected something {first} and saw something {last} .",
    "{aspect} starts out {first} and ends up {last} .",
    "for every {first} minute there are ten {last} ones .",
)
"""The label is that of the last adjective; the first is of the other kind."""


def _sentences(label: int) -> Iterator[str]:
    """Every sentence with the label, repetitions of templates without {aspect} included."""
    own_adjectives, opposite_adjectives = _BAD, _GOOD
    if label:
        own_adjectives, opposite_adjectives = _GOOD, _BAD
    for template, aspect, adjective in product(_PLAIN, _ASPECTS, own_adjectives):
        yield template.format(aspect=aspect, adjective=adjective)
    for template, aspect, adjective in product(_TURNED, _ASPECTS, opposite_adjectives):
        yield template.format(aspect=aspect, adjective=adjective)
    for template, aspect, first, last in product(_CONTRAST, _ASPECTS, opposite_adjectives, own_adjectives):
        yield template.format(aspect=aspect, first=first, last=last)


def _chosen(label: int, count: int) -> list[str]:
    """`count` distinct sentences with the label, as many contrasts as plain ones and turned ones together."""
    rng = random.Random(f"film remarks {label}")
    words = {*_GOOD, *_BAD}
    contrast, single = [], []
    for sentence in sorted(set(_sentences(label))):  # a set's order changes from process to process
        adjectives = sum(word in words for word in sentence.split())
        if adjectives == 2:
            contrast.append(sentence)
        elif adjectives == 1:
            single.append(sentence)
    chosen = rng.sample(contrast, count // 2) + rng.sample(single, count - count // 2)
    rng.shuffle(chosen)
    return chosen


def read(split: str) -> list[Row]:
    """Rows of "train" or "validation", with sentence and label, in an order fixed for all time."""
    rows: list[Row] = []
    for label in (0, 1):
        chosen = _chosen(label, (TRAIN + VALIDATION) // 2)
        part = chosen[TRAIN // 2 :]
        if split == "train":
            part = chosen[: TRAIN // 2]
        rows += [{"sentence": _AN.sub("an", sentence), "label": label} for sentence in part]
    random.Random(split).shuffle(rows)
    return rows


TASK = Task("builtin", "verbalizer", sst2.choice, generate=read)
