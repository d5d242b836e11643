"""Break a function on purpose, so that a test can show that it sees it."""

import inspect
import sys
import textwrap
from typing import Any

import pytest


def mutate(monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], old: str, new: str) -> None:
    """Replace one piece of a function's source, until the test is over."""
    owner, name = where
    function = inspect.unwrap(vars(owner)[name])
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"'{old}' is {source.count(old)} times in {name}"
    found: dict[str, Any] = {}
    exec(source.replace(old, new), vars(sys.modules[function.__module__]), found)
    monkeypatch.setattr(owner, name, found[name])
