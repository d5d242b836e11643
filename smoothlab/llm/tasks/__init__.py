"""Classification data: named tasks and JSON Lines files, one module each."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smoothlab.errors import BadInput
from smoothlab.llm.tasks import builtin, jsonlines, sst2

TASKS: dict[str, Callable[[str, Path | None], list[tuple[str, int]]]] = {"builtin": builtin.read, "sst2": sst2.read}
"""Name of a task -> (split, data_dir) -> its (text, label) pairs."""

FROM_FILES = ("sst2",)
"""Tasks that are read from a folder, or from the hub."""


@dataclass(frozen=True)
class Examples:
    """Labelled texts of one split.

    Attributes:
        texts: the sentences.
        labels: their classes, 0 to classes - 1.
        classes: number of classes.
        name: task or file they come from.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: int
    name: str


def load_task(name: str, split: str, data_dir: Path | None = None) -> Examples:
    """Split "train" or "validation" of a named task or of a JSON Lines file (.jsonl, .jsonl.gz).

    Raises:
        BadInput: unknown task, data that cannot be read, or of one class only; one line that names file, line and fix.
    """
    if split not in ("train", "validation"):
        raise BadInput(f"split '{split}' is unknown: use train or validation")
    if data_dir is not None and name not in FROM_FILES:
        raise BadInput(
            f"--data-dir {data_dir} is not read for '{name}', only for {', '.join(FROM_FILES)}: leave it out"
        )
    if name in TASKS:
        everything = pairs = TASKS[name](split, data_dir)
    elif name.endswith((".jsonl", ".jsonl.gz")):
        everything = jsonlines.read(Path(name))
        pairs = jsonlines.split(everything, split, Path(name))
    else:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput(
            f"task '{name}' is unknown: {hint}use {', '.join(TASKS)}, or a file ending in .jsonl or .jsonl.gz"
        )
    texts, labels = zip(*pairs, strict=True)
    for part, found in ((name, {label for _, label in everything}), (f"the training split of {name}", set(labels))):
        if len(found) < 2 and split == "train":
            raise BadInput(f"{part} has no label but {min(found)}: a classifier needs examples of at least two classes")
    return Examples(texts, labels, max(label for _, label in everything) + 1, name)
