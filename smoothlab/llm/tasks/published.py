"""Items of named tasks: generated, read from a folder, or fetched from the Hugging Face hub by `datasets`."""

from itertools import product
from pathlib import Path
from typing import Any

from smoothlab.errors import BadInput
from smoothlab.llm import hub
from smoothlab.llm.tasks import jsonlines
from smoothlab.llm.tasks.choices import Choice, Task


def file_of(task: Task, split: str, folder: Path) -> Path:
    """The file of a split, in the task's own folder inside `folder` or in `folder` itself, packed or not."""
    names = {"train": task.train, "validation": task.validation}[split]
    if not folder.is_dir():
        raise BadInput(f"--data-dir {folder} is no folder: give the one that holds {task.name}/{names[0]}")
    task_folder = folder / task.name
    # A set may have been packed or unpacked after its download.
    for name in names:
        unpacked = name.removesuffix(".gz")
        for form, parent in product((name, unpacked, f"{unpacked}.gz"), (task_folder, folder)):
            if (parent / form).exists():
                return parent / form
    if task_folder.is_dir():
        raise BadInput(f"{task_folder} has no {' or '.join(names)}, packed (.gz) or not: put the {split} split there")
    raise BadInput(f"no {task.name}/{names[0]} in {folder}: give --data-dir the folder that holds {task.name}/")


def from_hub(task: Task, split: str) -> list[dict[str, Any]]:
    """The rows of a split from the hub."""
    folder = f"a folder with {task.name}/{task.train[0]}"
    try:
        from datasets import load_dataset
    except ImportError:
        raise BadInput(
            f"{task.name} without --data-dir is read from the hub by `datasets`: pip install datasets, or give "
            f"--data-dir {folder}"
        ) from None
    if not hub.kept_offline() and not hub.reachable():  # `datasets` would retry for long
        raise BadInput(
            f"{task.name} is read from the hub, which cannot be reached: give --data-dir {folder}, or set "
            "HF_HUB_OFFLINE=1 if `datasets` has it in its cache"
        )
    try:
        return [dict(row) for row in load_dataset(*task.hub, split=split)]
    except Exception as error:  # whatever the network, the disk or the set's own format brings
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadInput(
            f"cannot read {task.name} from the hub ({reason}): try again, or give --data-dir {folder}"
        ) from None


def items(task: Task, split: str, folder: Path | None) -> tuple[list[Choice], str]:
    """All choices of a split, and where they came from."""
    if task.generate is not None:
        origin = f"{task.name}'s own validation sentences"
        if split == "train":
            origin = f"{task.name}'s training sentences"
        rows = [(f"row {i} of {origin}", row) for i, row in enumerate(task.generate(split))]
    elif folder is None:
        origin = f"the {split} split of {'/'.join(task.hub)}"
        rows = [(f"row {i} of {origin}", row) for i, row in enumerate(from_hub(task, split))]
    else:
        path = file_of(task, split, folder)
        rows = [*jsonlines.rows(path)]
        origin = f"{path.parent.name}/{path.name}"
        if split == "validation" and task.note and path.name.startswith("validation"):
            origin += f" ({task.note})"
    result = []
    for line, row in rows:
        try:
            result.append(task.choice(row))
        except ValueError as error:
            raise BadInput(f"{line} {error}") from None
    return result, origin
