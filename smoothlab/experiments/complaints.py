"""Mistakes on the command line, in one line: what is wrong, and the option, value or command that would be right."""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from tyro.conf import Fixed

from smoothlab.experiments.options import option

FIXED = get_args(Fixed[int])[1]
"""The mark in the types of fields that are no options of a subcommand."""
_QUOTED = re.compile(r"'([^']*)'")


def usage_error(box: str, argv: Sequence[str], commands: Mapping[str, Callable[..., Any]]) -> str:
    """The error line for an `argv` that the parser refuses.

    Args:
        box: what the parser (tyro) printed, drawn as a box.
        argv: words of the command line, without the program's name.
        commands: subcommands by name.
    """
    if not argv or argv[0] not in commands:
        return _unknown_command(argv, list(commands))
    command = argv[0]
    complaint = _complaint(box)
    # tyro guesses among the options of all subcommands: the guess here is among the subcommand's own.
    if complaint.startswith("Unrecognized"):
        own_options = options_of(commands[command])
        for word in argv[1:]:
            name = word.partition("=")[0]
            if name.startswith("--") and name.replace("_", "-") not in own_options:
                complaint = _unknown_option(command, name, own_options, commands)
                break
        else:  # no option is unknown: a word stands where none takes it
            stray = re.split(r"[ ,]", complaint.partition(":")[2].strip())[0]
            complaint = f"smoothlab {command} has no place for '{stray}': leave it out, or name its option"
    end = "; see"
    if complaint.endswith("?"):
        end = " see"
    return f"{plain(complaint)}{end} smoothlab {command} --help"


def options_of(command: Callable[..., Any]) -> list[str]:
    """Options of a subcommand as they are typed: its parameters, those of a configuration by field."""
    names = []
    for parameter in inspect.signature(command).parameters.values():
        kind = next(iter(get_args(parameter.annotation)), None)
        if dataclasses.is_dataclass(kind):  # its fields are options without a prefix
            hints = get_type_hints(kind, include_extras=True)
            for field in dataclasses.fields(kind):
                if FIXED not in getattr(hints[field.name], "__metadata__", ()):
                    names.append(field.name)
        else:
            names.append(parameter.name)
    return [*map(option, names), "--help"]


def _unknown_command(argv: Sequence[str], names: Sequence[str]) -> str:
    listed = f"use one of {', '.join(names)}; see smoothlab --help"
    if not argv:
        return f"no command is named: {listed}"
    if argv[0].startswith("-"):
        return f"smoothlab has no option {argv[0]} before its command: {listed}"
    matches = difflib.get_close_matches(argv[0], names, 1)
    if matches:
        listed = f"did you mean {matches[0]}? {listed}"
    return f"'{argv[0]}' is no command of smoothlab: {listed}"


def _unknown_option(command: str, name: str, options: Sequence[str], commands: Mapping[str, Callable[..., Any]]) -> str:
    complaint = f"smoothlab {command} has no option {name}"
    matches = difflib.get_close_matches(name, options, 1, cutoff=0.7)
    if matches:
        return f"{complaint}: did you mean {matches[0]}?"
    other_commands = [alternative for alternative, function in commands.items() if name in options_of(function)]
    if other_commands:
        return f"{complaint}, which is an option of {' and '.join(other_commands)}: leave it out"
    return f"{complaint}: leave it out"


def _complaint(box: str) -> str:
    """The first paragraph in the parser's box, on one line."""
    title, *lines = [line.strip("│╭╮╰╯|+ ") for line in box.splitlines()]  # drawn in ASCII where the terminal is
    words: list[str] = []
    for line in lines:
        ruler = bool(line) and not line.strip("─-")
        if ruler and words:
            break
        if line and not ruler:
            words.append(line)
    complaint = " ".join(words) or title.strip("─- ")
    return complaint.rstrip(" .").replace(" (required)", "")


def plain(words: str) -> str:
    """A parser's complaint about one option as "--option value: what to give"; others as they are."""
    # These are the words of the parser's pinned version: what another one says differently is shown as it says it.
    words = re.sub(r"argument '\('(--[^']+)',[^)]*\)'", r"argument '\1'", words)  # tyro 1.0.13 and older print a tuple
    if match := re.fullmatch(r"Error parsing (--\S+): invalid literal for int.*: '(.*)'", words):
        return f"{match[1]} {match[2]}: use a whole number"
    if match := re.fullmatch(r"Error parsing (--\S+): could not convert.*: '(.*)'", words):
        return f"{match[1]} {match[2]}: use a number"
    if match := re.fullmatch(r"Error parsing (--\S+): Could not find valid parse for arguments: \[(.*)\]", words):
        values = _QUOTED.findall(match[2])
        kind = "numbers"
        if all(map(_is_number, values)):
            kind = "whole numbers"
        return f"{match[1]} {' '.join(values)}: use {kind}, with spaces between them"
    if match := re.fullmatch(r"invalid choice '(.*)' for argument '(--[^']+)'\. Expected one of \((.*)\)", words):
        return f"{match[2]} {match[1]} is unknown: use {', '.join(_QUOTED.findall(match[3]))}"
    if match := re.fullmatch(r"Missing value for argument '(--[^']+)'\. Expected 1 values?", words):
        return f"{match[1]} has no value: give one"
    return words


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
