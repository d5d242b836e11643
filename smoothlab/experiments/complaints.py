"""What the command line's parser says of a wrong value, in the words of every other error: the option, then the fix."""

import re

_QUOTED = re.compile(r"'([^']*)'")


def plain(words: str) -> str:
    """A parser's complaint about one option as "--option value: what to give"; others as they are."""
    if found := re.fullmatch(r"Error parsing (--\S+): (invalid literal for int|could not convert).*: '(.*)'", words):
        kind = "a whole number" if "int" in found[2] else "a number"
        return f"{found[1]} {found[3]}: use {kind}"
    if found := re.fullmatch(r"Error parsing (--\S+): Could not find valid parse for arguments: \[(.*)\]", words):
        given = _QUOTED.findall(found[2])
        kind = "whole numbers" if all(map(_is_number, given)) else "numbers"
        return f"{found[1]} {' '.join(given)}: use {kind}, with spaces between them"
    if found := re.fullmatch(r"invalid choice '(.*)' for argument '(--[^']+)'\. Expected one of \((.*)\)", words):
        return f"{found[2]} {found[1]} is unknown: use {', '.join(_QUOTED.findall(found[3]))}"
    if found := re.fullmatch(r"Missing value for argument '(--[^']+)'\. Expected 1 values?", words):
        return f"{found[1]} has no value: give one"
    return words


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
