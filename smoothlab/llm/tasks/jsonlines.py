"""JSON Lines files of labelled sentences: {"sentence": ..., "label": 0} a line, gzip too."""

import gzip
import json
import random
import zlib
from pathlib import Path

from smoothlab.errors import BadInput


def read(path: Path) -> list[tuple[str, int]]:
    """All (text, label) pairs of the file; the text is in the field "sentence" or "text", stripped.

    Raises:
        BadInput: names the file, the line and what is wrong with it.
    """
    if path.is_dir():
        raise BadInput(f"{path} is a folder: name a .jsonl or .jsonl.gz file in it")
    pairs = []
    number = 0
    form = "gzip file of UTF-8 JSON Lines" if path.suffix == ".gz" else "UTF-8 JSON Lines file"
    try:  # utf-8-sig: some editors begin a file with a byte order mark
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    pairs.append(_pair(line, f"{path}:{number}"))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        where = f" after line {number}" if number else ""
        raise BadInput(f"cannot read {path}{where}: {what}; give a whole {form}") from None
    if not pairs:
        raise BadInput(f'{path} is empty: give lines like {{"sentence": "fine", "label": 1}}')
    missing = set(range(max(label for _, label in pairs) + 1)) - {label for _, label in pairs}
    if missing:
        raise BadInput(f"{path} has no example with label {min(missing)}: number the classes 0, 1, ... without gaps")
    return pairs


def _pair(line: str, where: str) -> tuple[str, int]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets, raise others than its own
        why = getattr(error, "msg", "a number too long, or too many brackets")
        raise BadInput(f"{where} is not JSON ({why}): mend or delete the line") from None
    if not isinstance(row, dict):
        raise BadInput(f'{where} is not a JSON object: write {{"sentence": ..., "label": 0}}')
    text, label = row.get("sentence", row.get("text")), row.get("label")
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f'{where} has no text: give a non-empty string in the field "sentence"')
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise BadInput(f"{where} has half of a \\u pair, which no tokenizer takes: mend or delete the line")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 1000:
        raise BadInput(f"{where} has label {json.dumps(label)[:20]}: labels are whole numbers from 0, below 1000")
    return text.strip(), label


def split(pairs: list[tuple[str, int]], name: str, path: Path) -> list[tuple[str, int]]:
    """The file's own split: "validation" is the last tenth of one seeded permutation, "train" the rest."""
    if name == "validation" and len(pairs) < 10:
        raise BadInput(f"{path} has {len(pairs)} examples, too few for a validation split: give at least 10")
    shuffled = random.Random(0).sample(pairs, len(pairs))
    cut = len(pairs) - len(pairs) // 10
    return shuffled[:cut] if name == "train" else shuffled[cut:]
