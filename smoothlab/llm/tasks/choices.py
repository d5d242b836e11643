"""Items of a task: a prompt, the candidates that may follow it, and the number of the right one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["verbalizer", "multiple choice", "completion", "text"]
"""Which loss trains a task; `smoothlab.llm.evaluate.choice_loss` has all of them."""
GENERATIVE = ("completion", "text")
"""Kinds without a choice: one candidate is to be learned, behind its prompt or, in language modeling, behind none."""
NO_CONTENT = "N/A"
"""Stands for the content of a prompt (Zhao et al. 2021)."""
Row = Mapping[str, Any]
"""One line of a data set."""


@dataclass(frozen=True)
class Choice:
    """One item.

    Attributes:
        prompt: what is read; it ends in no space, which belongs to the candidates.
        candidates: what may follow, beginning with the space that parts it from the prompt; at least two, or the
            completion or text alone.
        label: place of the right candidate.
        sentence: what a classifier reads instead of the prompt: the text alone that the prompt was made of, if it is
            one.
        content_free: the prompt with "N/A" where its content was, after which a calibration scores the candidates.
    """

    prompt: str
    candidates: tuple[str, ...]
    label: int
    sentence: str = field(default="", compare=False)
    content_free: str = field(default=NO_CONTENT, compare=False)

    def __post_init__(self) -> None:
        ends = len(self.prompt.rstrip(" "))
        if ends < len(self.prompt):  # "so " + "he": tokenizers take the space and the word as one
            object.__setattr__(self, "candidates", tuple(self.prompt[ends:] + c for c in self.candidates))
            object.__setattr__(self, "prompt", self.prompt[:ends])
            object.__setattr__(self, "content_free", self.content_free.rstrip(" "))


@dataclass(frozen=True)
class Task:
    """A named set: its files, its repository on the hub, and how a row of it becomes a choice.

    Attributes:
        name: as on the command line, and of its folder.
        kind: "verbalizer": the same few words may follow every prompt, and the loss is the cross entropy over their
            length-normalized log-probabilities; "multiple choice": that of the right candidate's tokens.
        choice: function from a row to its choice; raises ValueError with what the row lacks.
        train: names that the file of the training split may have; empty for a set that is generated.
        validation: the same for the published validation split, which is the test set here.
        hub: repository and configuration of the set on the Hugging Face hub.
        note: what to say beside a number of the files named "validation", where they are not the published ones.
        generate: rows of a split of a set that is generated, by the split's name.
    """

    name: str
    kind: Kind
    choice: Callable[[Row], Choice]
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    hub: tuple[str, str] = ("", "")
    note: str = ""
    generate: Callable[[str], Sequence[Row]] | None = None


@dataclass(frozen=True)
class Splits:
    """The three parts of a task; no item of one is an item of another."""

    train: tuple[Choice, ...]
    dev: tuple[Choice, ...]  # to select by
    test: tuple[Choice, ...]  # to be looked at once
    kind: Kind
    trained_on: str  # which files train and dev came from, in words for a report
    tested_on: str  # which file test came from
    name: str  # task or file

    @property
    def served(self) -> str:
        """Source of each split, in words for a report."""
        return f"train and dev: {self.trained_on}; test: {self.tested_on}"


def text(row: Row, field: str) -> str:
    """The row's text in a field, stripped; ValueError where there is none."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'has no text: give a non-empty string in the field "{field}"')
    # JSON can write half of a surrogate pair, which Python reads and no encoder of UTF-8 takes.
    if any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise ValueError("has half of a \\u pair, which no tokenizer takes: mend or delete the line")
    return value.strip()


def label(row: Row, count: int, field: str = "label") -> int:
    """The row's label, 0 to count - 1; ValueError with the value that it has instead."""
    value = row.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise ValueError(f'has {field} {str(value)[:20]!r}: give a whole number, 0 to {count - 1}, in "{field}"')
    return value
