"""`smoothlab advise` as a command: what it prints is a command that parses; options that it refuses."""

import re
import shlex
from pathlib import Path

import pytest

from smoothlab import commands, records
from smoothlab.__main__ import main
from smoothlab.errors import BadInput
from smoothlab.experiments.advise import experiment
from smoothlab.experiments.advise.experiment import LEFT_OUT, Advise, rounded
from smoothlab.experiments.finetune.config import Training
from smoothlab.experiments.options import option


def test_advice_on_a_language_model_ends_with_a_command_that_parses(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "advice.jsonl"
    words = ["advise", "--model", str(folder / "model"), "--data", str(folder / "data.jsonl"), "--method", "fo-peft",
             "--rank", "2", "--batch", "4", "--by", "confirm", "--budget", "60", "--try-steps", "2",
             "--out", str(out)]  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    command = shlex.split(printed[-1])
    assert command[:2] == ["smoothlab", "finetune"] and command[command.index("--rank") + 1] == "2"
    assert isinstance(commands.parse(command[1:]), commands.Command)
    table = records.load(out)
    advice = table[table["part"] == "advice"].iloc[0]
    rate = float(command[command.index("--eta-y") + 1])
    assert rate == rounded(advice["value"]) and advice["low"] <= advice["value"]
    assert {"advice", "cost"} <= set(table["part"]) and table["command"].iloc[-1] == printed[-1]


def test_it_says_what_it_has_seen_while_it_tries(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(experiment._Throttled, "interval", 0.0)
    argv = ["--method", "fo-peft", "--batch", "2", "--train", "8", "--budget", "30", "--try-steps", "2", "--by", "try"]
    assert main(["advise", *argv, "--out", str(tmp_path / "a.jsonl")]) == 0
    runs = int((records.load(tmp_path / "a.jsonl")["part"] == "trial").sum())
    line = r"smoothlab: advise: eta_y [\d.e-]+ is (un)?stable over 2 steps; \d+ of 30 steps' time is spent"
    assert len(re.findall(line, capsys.readouterr().err)) == runs > 1


def test_its_help_lists_no_option_that_it_refuses(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["advise", "--help"])
    # A line that begins with an option describes it; others may name options of finetune.
    offered = set(re.findall(r"^[│| ]*(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert {"--eta-x", "--peft", "--by", "--dtype"} <= offered
    assert not offered & {"--no-path", "--path", *map(option, LEFT_OUT)}


def test_in_python_too_such_fields_are_refused() -> None:
    with pytest.raises(BadInput, match="--measure with advise, .*: leave it out"):
        Advise(measure=("peft",)).plan()
    assert Advise().measure == () and Advise().points == Training().points


@pytest.mark.parametrize(("value", "expected"), [(0.0123, 0.012), (0.0199, 0.019), (3.21e-5, 3.2e-5), (1.0, 1.0)])
def test_rates_are_rounded_down_to_two_digits(value: float, expected: float) -> None:
    assert rounded(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "0"], "--budget 0 is too small"),
        (["--try-steps", "0"], "--try-steps 0 is too small"),
        (["--measure", "peft"], "smoothlab advise has no option --measure, which is an option of smoothness"),
        (["--checkpoint", "folder"], "smoothlab advise has no option --checkpoint"),
        (["--method", "fo-full", "--eta", "layer.0=1e-3"], "smoothlab advise has no option --eta"),
        (["--no-path"], "smoothlab advise has no option --no-path"),
        (["--by", "guess"], "guess"),
    ],
)
def test_what_advise_refuses_is_one_line_with_the_fix(options: list[str], words: str, tmp_path: Path, capsys) -> None:
    assert main(["advise", *options, "--out", str(tmp_path / "a.jsonl")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error
