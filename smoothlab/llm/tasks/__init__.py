"""Data: the table of named tasks, one module each, and JSON Lines files.

A task to add takes two edits: a module with a `Task` (a function from a row of the published file to a `Choice`, and
the names of its files; wic.py is one in ten lines), and its entry in TASKS. The command line's choices, the docs' list
and the tests' cases are read from the table.
"""

import difflib
import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from smoothlab.errors import BadInput
from smoothlab.llm.tasks import builtin, copa, jsonlines, published, sst2, wic, winogrande, wsc
from smoothlab.llm.tasks.choices import GENERATIVE, Choice, Kind, Splits, Task

__all__ = ["GENERATIVE", "TASKS", "Choice", "Kind", "Splits", "Task", "TaskName", "load_choices"]

TASKS: dict[str, Task] = {
    task.name: task for task in (builtin.TASK, sst2.TASK, copa.TASK, winogrande.TASK, wic.TASK, wsc.TASK)
}
"""Name on the command line -> task."""
TaskName = Annotated[str, tyro.conf.arg(metavar="|".join((*TASKS, "FILE.jsonl")))]
"""Type of the option --data: a name of the table, or a JSON Lines file."""


def load_choices(
    name: str, data_dir: Path | None = None, seed: int = 0, sizes: tuple[int, int, int] = (1000, 100, 1000), *,
    template: str = jsonlines.TEMPLATE, verbalizers: Sequence[str] | None = (),
) -> Splits:  # fmt: skip
    """Training, selection and test items of a task or file for a language model, or for a classifier.

    Training and dev items are the head and the tail of one permutation of the training split, by `seed`; test items are
    the published validation split, or the same sample of it for every seed where it is larger. A small set gives at
    most a quarter of its training split to dev. A file, which has no published split, gives a tenth of itself to test,
    the same tenth for every seed.

    Args:
        name: a name of TASKS, or a file ending in .jsonl or .jsonl.gz.
        data_dir: folder that holds the published sets; read from the hub without.
        seed: of the permutation.
        sizes: numbers of training, dev and test items, as far as the set reaches.
        template: prompt of a labelled sentence of a file, with {sentence} in it.
        verbalizers: word of each class of such a file; "terrible" and "great" for two classes by default; None for a
            classifier, whose classes need no words.

    Raises:
        BadInput: unknown task, data that cannot be read, or of one class only; one line that names file, line and fix.
    """
    if min(sizes) < 1:
        raise BadInput(f"sizes {sizes} of train, dev and test: use at least 1 each")
    published_names = [task for task, entry in TASKS.items() if entry.train]
    if data_dir is not None and name not in published_names:
        names = ", ".join(published_names)
        raise BadInput(f"--data-dir {data_dir} is not read for '{name}', only for {names}: leave it out")
    kind: Kind
    if name in TASKS:
        kind = TASKS[name].kind
        pool, source = published.items(TASKS[name], "train", data_dir)
        test, served = published.items(TASKS[name], "validation", data_dir)
    elif name.endswith((".jsonl", ".jsonl.gz")):
        items, kind = jsonlines.choices(Path(name), template, verbalizers)
        pool, source = jsonlines.split(items, "train", Path(name)), name
        test = jsonlines.split(items, "validation", Path(name))
        served = f"a tenth of {name}, set apart by a fixed permutation"
    else:
        raise BadInput(_unknown(name, TASKS))
    # One permutation for both: train and dev are disjoint, and more training items leave dev as it is.
    order = random.Random(seed).sample(pool, len(pool))
    dev = max(1, min(sizes[1], len(order) // 4))  # a file of 20 lines is to train on, too
    train = order[: min(sizes[0], len(order) - dev)]
    if len(test) > sizes[2]:
        served = f"{sizes[2]} of the {len(test)} items of {served}"
        test = random.Random(0).sample(test, sizes[2])  # the same for every seed: runs are compared on it
    labels = {item.label for item in train}
    if kind == "verbalizer" and len(labels) < 2:
        raise BadInput(
            f"the training items of {name} have no label but {min(labels)}: give examples of at least two classes"
        )
    return Splits(tuple(train), tuple(order[-dev:]), tuple(test), kind, source, served, name)


def _unknown(name: str, names: Collection[str]) -> str:
    if Path(name).is_dir():
        return f"--data {name} is a folder: name a .jsonl or .jsonl.gz file in it, or a task with --data-dir {name}"
    if Path(name).is_file():
        return f"--data {name} does not end in .jsonl or .jsonl.gz: write it as JSON Lines, and name it so"
    hint = ""
    for match in difflib.get_close_matches(name, names, 1):
        hint = f"did you mean {match}? "
    return f"task '{name}' is unknown: {hint}use {', '.join(names)}, or a file ending in .jsonl or .jsonl.gz"
