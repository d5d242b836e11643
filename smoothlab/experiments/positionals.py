"""Record files on a command line, where they stand behind an option that takes several values."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from smoothlab.experiments.options import option

POSITIONAL = get_args(Positional[int])[1]
"""The mark in the types of positional words."""
ENDINGS = (".jsonl", ".csv")
"""Endings of record files, and of tables that are read as such."""


def files_first(argv: Sequence[str], command: Callable[..., Any]) -> list[str]:
    """The words of a command line with record files that an option of several values would take before the options.

    In `fit --block base peft run.jsonl` a parser takes run.jsonl for a third block.

    Args:
        argv: subcommand and its words.
        command: the subcommand, whose positional words are record files.
    """
    several = options_of_several_values(command)
    leading, files, options = [argv[0]], [], []
    current = ""
    for word in argv[1:]:
        if word.startswith("--"):
            current = word.replace("_", "-")
        if current in several and is_record_file(word):
            files.append(word)
        elif current:
            options.append(word)
        else:
            leading.append(word)
    return [*leading, *files, *options]


def is_record_file(word: str) -> bool:
    """Whether a word names a record file or a pattern of them, and is no COLUMN=VALUE."""
    if Path(word).is_file():
        return word.endswith(ENDINGS)
    return word.endswith(ENDINGS) and "=" not in word


def options_of_several_values(command: Callable[..., Any]) -> set[str]:
    """Options of a subcommand, those of its configuration too, that take several values; not its positional words."""
    names = set()
    hints = get_type_hints(command, include_extras=True)
    for name in inspect.signature(command).parameters:
        kind = next(iter(get_args(hints[name])), None)
        if dataclasses.is_dataclass(kind):
            fields = get_type_hints(kind, include_extras=True)
            names |= {field.name for field in dataclasses.fields(kind) if takes_several(fields[field.name])}
        elif takes_several(hints[name]):
            names.add(name)
    return set(map(option, names))


def takes_several(hint: Any) -> bool:
    """Whether an option of this type takes several values: tuple[T, ...], not marked as positional."""
    if POSITIONAL in getattr(hint, "__metadata__", ()):
        return False
    while hasattr(hint, "__metadata__"):
        hint = get_args(hint)[0]
    return get_origin(hint) is tuple or any(map(takes_several, get_args(hint)))
