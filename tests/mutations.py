"""Break a function on purpose, so that a test can show that it sees it."""

import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

Mutation = tuple[tuple[Any, str], str, str, Callable[[], None]]
"""Owner and name of a function, a piece of its source, what is put in its place, and the check that is to fail then."""


def mutate(monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], old: str, new: str) -> None:
    """Replace one piece of a function's source, until the test is over."""
    owner, name = where
    function = inspect.unwrap(vars(owner)[name])
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"'{old}' is {source.count(old)} times in {name}"
    found: dict[str, Any] = {}
    exec(source.replace(old, new), vars(sys.modules[function.__module__]), found)
    monkeypatch.setattr(owner, name, found[name])


def broken(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> Callable[[], None]:
    """The check of a mutation, which passes before the code is broken here."""
    where, old, new, check = mutation
    check()
    mutate(monkeypatch, where, old, new)
    return check
