"""The tables of PEFT methods and tasks: what the command line and the docs list is read from them."""

from pathlib import Path

import pytest

from smoothlab import commands
from smoothlab.llm.peft_methods import MEASURABLE, PEFT_METHODS, attachable
from smoothlab.llm.tasks import TASKS
from tests.cases import ADAPTER_CASES
from tests.llm.test_choices import ROWS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("command", ["finetune", "smoothness", "estimators"])
def test_the_command_line_lists_the_tables(command: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "900")
    with pytest.raises(SystemExit):
        commands.parse([command, "--help"])
    words = capsys.readouterr().out.split()
    names = ("auto", "none", *attachable(measured=False))
    if command == "estimators":
        names = ("none", *attachable(measured=True))
    assert "|".join(names) in words
    assert "|".join((*TASKS, "FILE.jsonl")) in words


def test_the_tests_cases_are_the_tables() -> None:
    assert tuple(ADAPTER_CASES) == MEASURABLE and {*MEASURABLE} == {n for n, m in PEFT_METHODS.items() if not m.refusal}
    assert {*ROWS} == {*TASKS} - {"builtin"}


def test_the_docs_list_is_filled_in_from_the_tables() -> None:
    page = (DOCS / "howto" / "extend.md").read_text(encoding="utf-8")
    assert "{{ smoothlab.llm.peft_methods.MEASURABLE }}" in page and "{{ smoothlab.llm.tasks.TASKS }}" in page


def test_methods_that_cannot_be_used_say_why() -> None:
    for name, method in PEFT_METHODS.items():
        assert bool(method.config) == (method.attaches(measured=True) or method.attaches(measured=False)), name
        assert method.refusal or method.config, name
