"""The public names: every one loads, is typed where it is said to be, and has an example that runs."""

import ast
import doctest
import inspect
from pathlib import Path

import pytest

import smoothlab

NAMES = sorted(set(smoothlab.__all__) - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example_that_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    public = getattr(smoothlab, name)
    # Names of the module would hide an import that a reader has to make.
    examples = doctest.DocTestFinder(recurse=False).find(public, name, globs={"__name__": "example"})
    assert sum(len(test.examples) for test in examples) > 0
    report: list[str] = []
    for test in examples:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert not report, "".join(report)


def test_an_example_that_is_wrong_is_seen() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert report


def test_type_checkers_see_the_names_that_are_loaded_on_demand() -> None:
    tree = ast.parse(inspect.getsource(smoothlab))
    imported = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smoothlab.")
        for alias in node.names
    }
    assert imported == {name: f"smoothlab.{module}" for name, module in smoothlab._MODULES.items()}
    assert set(imported) == set(NAMES)
