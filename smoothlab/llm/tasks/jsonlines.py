"""JSON Lines files, gzip too: labelled sentences, prompts with their candidates or a completion, or texts alone.

A line is {"sentence": ..., "label": 0}, of a classifier or of a task with verbalizers;
{"prompt": ..., "candidates": [..., ...], "label": 0}, with a "content_free" prompt for --calibrate if one likes;
{"prompt": ..., "completion": ...} (supervised fine-tuning);
or {"text": ...} (language modeling).
"""

import gzip
import json
import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smoothlab.errors import BadInput
from smoothlab.llm.tasks.choices import NO_CONTENT, Choice, Kind, Row, label, text

TEMPLATE = "{sentence} It was"
"""Prompt made of a sentence, by default."""
VERBALIZERS = (" terrible", " great")
"""Words of the classes 0 and 1, by default."""


def rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """All objects of the file, each with its "file:line" for messages."""
    if path.is_dir():
        raise BadInput(f"{path} is a folder: name a .jsonl or .jsonl.gz file in it")
    result = []
    number = 0
    open_bytes: Callable[..., Any] = open
    form = "UTF-8 JSON Lines file"
    if path.suffix == ".gz":
        open_bytes, form = gzip.open, "gzip file of UTF-8 JSON Lines"
    try:
        with open_bytes(path, "rb") as file:
            for number, line in enumerate(file, start=1):  # noqa: B007, the last number is in the error
                where = f"{path}:{number}"
                content = _decoded(line, where)
                if content.strip():
                    result.append((where, _object(content, where)))
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        after, fix = "", f"give a whole {form}"
        if number:
            after = f" after line {number}"
        if isinstance(error, FileNotFoundError):
            fix = "check the name"
        raise BadInput(f"cannot read {path}{after}: {reason}; {fix}") from None
    if not result:
        raise BadInput(f'{path} is empty: give lines like {{"sentence": "fine", "label": 1}}')
    return result


def _decoded(line: bytes, where: str) -> str:
    """The text of a line; the byte order mark that some editors begin a file with is dropped."""
    try:
        return line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{where} is not UTF-8 (byte 0x{line[error.start]:02x} at character {len(line[: error.start].decode()) + 1}"
            "): save the file as UTF-8; Latin-1 becomes it by iconv -f latin1 -t utf-8"
        ) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs; json alone would silently take the last of equal names."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise BadInput(f'has the field "{duplicate}" twice: leave one of them out')
    return result


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_without_duplicates)
    except BadInput as error:
        raise BadInput(f"{where} {error}") from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets, raise others than its own
        reason = "a number too long, or too many brackets"
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg.removesuffix(' at')} at character {error.colno}"
        if line.endswith("\n"):
            raise BadInput(f"{where} is not JSON ({reason}): mend or delete the line") from None
        raise BadInput(
            f"{where}, the last line, is cut off ({reason}): give a whole file, or delete the line"
        ) from None
    if not isinstance(row, dict):
        raise BadInput(f'{where} is not a JSON object: write {{"sentence": ..., "label": 0}}')
    return row


def choices(path: Path, template: str, verbalizers: Sequence[str] | None) -> tuple[list[Choice], Kind]:
    """All choices of the file, and how they are trained: as verbalizers where all items have the same candidates.

    `template` and `verbalizers` are those of `load_choices`.
    """
    lines = rows(path)
    kind = _generative(lines)
    if kind is not None:
        if (template, verbalizers or ()) != (TEMPLATE, ()):
            raise BadInput(f"--template and --verbalizers are for labelled sentences, {path} has none: leave them out")
        return _to_learn(lines, kind), kind
    # One line with candidates makes all lines prompts: a mixed file is refused by its first other line.
    labelled = not any("candidates" in row for _, row in lines)
    for where, row in lines:
        if labelled and "prompt" in row and "sentence" not in row:
            raise BadInput(f'{where} has a "prompt" and no "completion", or "candidates" with "label": add it')
    items, pairs = [], []
    for where, row in lines:
        try:
            if labelled:
                pairs.append(_pair(row))
            else:
                items.append(_choice(row))
        except ValueError as error:
            raise BadInput(f"{where} {error}") from None
    if labelled:
        return _sentences(pairs, template, verbalizers, path), "verbalizer"
    if len({item.candidates for item in items}) > 1:
        return items, "multiple choice"
    return items, "verbalizer"


def _generative(lines: Sequence[tuple[str, Row]]) -> Kind | None:
    """The kind of a file of completions or texts; None of one that has labels."""
    names = {name for _, row in lines for name in row}
    if "completion" in names:
        return "completion"
    if "text" in names and not names & {"label", "sentence", "candidates"}:
        return "text"
    return None


def _to_learn(lines: Sequence[tuple[str, Row]], kind: Kind) -> list[Choice]:
    """Completions or texts, to the letter, as choices of one candidate."""
    items = []
    for where, row in lines:
        try:
            if kind == "completion" and "candidates" in row:
                raise ValueError("has candidates, and other lines a completion: give all lines the same fields")
            prompt = ""
            if kind == "completion":
                text(row, "prompt")
                prompt = row["prompt"]
            text(row, kind)  # checked alone: what it returns is stripped
            items.append(Choice(prompt, (row[kind],), 0))
        except ValueError as error:
            raise BadInput(f"{where} {error}") from None
    return items


def _pair(row: Row) -> tuple[str, int]:
    """The text, in the field "sentence" or "text", and the label of a line; ValueError with what it lacks."""
    field = "sentence"
    if "text" in row and "sentence" not in row:
        field = "text"
    sentence = text(row, field)
    if "label" not in row:
        raise ValueError('has no label: give a whole number, from 0, in the field "label"')
    number = row["label"]
    # JSON's true is an int to Python; a label of a million would be a classifier of a million classes.
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1000:
        fix = "number the classes 0, 1, ..., below 1000"
        if isinstance(number, str) and number.isdecimal():
            fix = "write it without quotes"
        raise ValueError(f"has label {json.dumps(number)[:20]}: {fix}")
    return sentence, number


def _sentences(
    pairs: Sequence[tuple[str, int]], template: str, verbalizers: Sequence[str] | None, path: Path
) -> list[Choice]:
    """Labelled sentences as choices between the verbalizers of their classes, or between their numbers without."""
    if "{sentence}" not in template:  # not str.format, which would trip over other braces
        raise BadInput(f"the prompt '{template[:40]}' has no place for the text: write {{sentence}} where it goes")
    labels = {number for _, number in pairs}
    if len(labels) < 2:
        raise BadInput(f"{path} has no label but {min(labels)}: give examples of at least two classes")
    classes = max(labels) + 1
    missing = set(range(classes)) - labels
    if missing:
        raise BadInput(f"{path} has no example with label {min(missing)}: number the classes 0, 1, ... without gaps")
    if verbalizers is None:
        verbalizers = tuple(map(str, range(classes)))
    elif not verbalizers and classes == 2:
        verbalizers = VERBALIZERS
    distinct = len(set(verbalizers))
    if len(verbalizers) != classes or distinct != classes or not all(map(str.strip, verbalizers)):
        stated = "no verbalizers"
        if verbalizers:
            stated = f"{distinct} different verbalizers"
        raise BadInput(
            f"{path} has {classes} classes and {stated}: give each class its own word (--verbalizers WORD WORD ...), "
            "or use --head classifier"
        )
    words = []
    for word in verbalizers:
        # Tokenizers take the space before a word and the word as one: it belongs to the candidate.
        if not word[0].isspace() and not template[-1:].isspace():
            word = f" {word}"
        words.append(word)
    content_free = template.replace("{sentence}", NO_CONTENT)
    return [
        Choice(template.replace("{sentence}", line), tuple(words), number, line, content_free) for line, number in pairs
    ]


def _choice(row: Row) -> Choice:
    """A line's choice, to the letter: no space is added or taken away between prompt and candidate."""
    text(row, "prompt")  # checked alone: what it returns is stripped
    candidates = row.get("candidates")
    if not isinstance(candidates, list) or len(candidates) < 2:
        raise ValueError('has no candidates: give a list of at least two strings in the field "candidates"')
    for candidate in candidates:
        text({"candidates": candidate}, "candidates")
    if len(set(candidates)) < len(candidates):
        raise ValueError("has a candidate twice, and no score could part them: give different ones")
    prompt: str = row["prompt"]
    # What parts the candidates from the prompt, as a line break does, parts them from the content-free one, too.
    content_free = NO_CONTENT + prompt[len(prompt.rstrip()) :]
    if "content_free" in row:
        text(row, "content_free")
        content_free = row["content_free"]
    return Choice(prompt, tuple(candidates), label(row, len(candidates)), content_free=content_free)


def split(pairs: list[Any], name: str, path: Path) -> list[Any]:
    """The file's own split: "validation" is the last tenth of one seeded permutation, "train" the rest."""
    if name == "validation" and len(pairs) < 10:
        raise BadInput(f"{path} has {len(pairs)} examples, too few for a validation split: give at least 10")
    shuffled = random.Random(0).sample(pairs, len(pairs))  # files are often sorted by label
    cut = len(pairs) - len(pairs) // 10
    if name == "train":
        return shuffled[:cut]
    return shuffled[cut:]
