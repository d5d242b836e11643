"""Record files behind options of several values: they are files, for each subcommand that has both."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from smoothlab.__main__ import main
from smoothlab.commands import COMMANDS
from smoothlab.commands.readers import READERS
from smoothlab.experiments.positionals import files_first, is_record_file, options_of_several_values

SEVERAL = {"fit": {"--block"}, "plot": {"--block"}, "report": {"--where"}}


@pytest.mark.parametrize("name", SEVERAL)
def test_options_of_several_values_are_known_from_the_signature(name: str) -> None:
    assert options_of_several_values(COMMANDS[name]) == SEVERAL[name]
    assert set(SEVERAL) == set(READERS)


def test_no_other_subcommand_has_positional_words() -> None:
    """`audit` has claims, and knows them from its files by itself (tests of audit)."""
    positional = set()
    for name in ("fit", "plot", "report", "audit", "demo"):
        if "Positional" in str(inspect.signature(COMMANDS[name])):
            positional.add(name)
    assert positional | {"fit"} == {*READERS, "audit"}


CASES = {
    "fit --block a b x.jsonl": "fit x.jsonl --block a b",
    "fit --block a x.csv y.csv --seed 1": "fit x.csv y.csv --block a --seed 1",
    "fit x.jsonl --block a y.jsonl": "fit x.jsonl y.jsonl --block a",
    "plot --block base out/*.jsonl --out x.jsonl": "plot out/*.jsonl --block base --out x.jsonl",
    "report --where part=rates path=a.jsonl b.jsonl": "report b.jsonl --where part=rates path=a.jsonl",
    "fit --block a b": "fit --block a b",
    "plot": "plot",
}


@pytest.mark.parametrize("typed", CASES)
def test_files_stand_before_the_options(typed: str) -> None:
    words = typed.split()
    assert files_first(words, COMMANDS[words[0]]) == CASES[typed].split()


def test_a_file_may_have_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "eta=1.jsonl"
    assert not is_record_file(str(path))
    path.touch()
    assert is_record_file(str(path)) and not is_record_file("base") and not is_record_file(str(tmp_path))


@pytest.mark.parametrize("command", ["fit", "plot", "report"])
def test_the_command_line_reads_the_file(command: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Of a file that is not there the error is about the file, and about no block or column."""
    monkeypatch.chdir(tmp_path)
    (option,) = SEVERAL[command]
    value = {"--block": "base", "--where": "part=points"}[option]
    assert main([command, option, value, "gone.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "gone.jsonl" in error and "no record file is named" not in error and "--where gone" not in error
