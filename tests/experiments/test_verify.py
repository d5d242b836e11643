"""`smoothlab verify` from end to end."""

import json
from pathlib import Path

import pytest

from smoothlab import records
from smoothlab.__main__ import main

FEW = ("--probes", "along", "mirrored")
RIGHT = """
import smoothlab


def estimator(params, lr, seed, mu=1e-3):
    return smoothlab.ZerothOrder(mu)


def away(params, lr, seed):
    def step(closure):
        params[0].data += 1e-3
        closure()
        params[1].data += 1.0
    return step


class Unrelated:
    pass


CLAIMS = {"estimator": {"mu": 1e-3}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(RIGHT)
    return path


def test_right_and_wrong_have_their_exit_status(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"{file}:estimator", *FEW]) == 0
    told = capsys.readouterr().out
    assert "along          right: " in told and "mine:estimator: 2 right, 0 wrong, 0 not observable; " in told
    assert main(["verify", f"{file}:away", "--probes", "along"]) == 1
    assert "along          wrong: " in capsys.readouterr().out


def test_json_records_and_page(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, html = tmp_path / "v.jsonl", tmp_path / "pages" / "v.html"
    command = ["verify", f"{file}:estimator", *FEW, "--out", str(out), "--html", str(html), "--json"]
    assert main(command) == 0
    first = capsys.readouterr().out
    found = json.loads(first)
    assert [answer["probe"] for answer in found] == ["along", "mirrored"]
    assert records.header(out)["config"]["file"] == f"{file}:estimator"
    page = html.read_text()
    assert "Is mine:estimator a zeroth-order gradient?" in page and found[0]["note"] in page
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole[:2]))  # as if it had been stopped after the first question
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again[0] == found[0] and again[1]["note"] == found[1]["note"]
    assert list(records.load(out)["probe"]) == ["along", "mirrored"]


WATCHING = """
import sys
from pathlib import Path

import smoothlab


def estimator(params, lr, seed, mu=1e-3):
    Path(__file__).with_suffix(".seen").write_text(sys.stdout.getvalue())
    return smoothlab.ZerothOrder(mu)
"""


@pytest.mark.parametrize("recorded", [False, True], ids=["printed", "recorded"])
def test_an_answer_is_printed_before_the_next_question_is_asked(
    recorded: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "watching.py").write_text(WATCHING)
    options = ["--out", str(tmp_path / "v.jsonl")] if recorded else []
    assert main(["verify", str(tmp_path / "watching.py"), "--probes", "along", "restored_fp32", *options]) == 0
    first, second, summary = capsys.readouterr().out.splitlines()
    # an optimizer of its own is made for the second question
    assert (tmp_path / "watching.seen").read_text() == first + "\n"
    assert first.startswith("along ") and second.startswith("restored_fp32 ") and "2 right, 0 wrong" in summary


def test_answers_keep_their_order_where_the_first_one_is_found_again(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.jsonl"
    command = ["verify", f"{file}:estimator", *FEW, "--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr().out.splitlines()
    assert main(command) == 0
    finished = capsys.readouterr()
    assert finished.out.splitlines() == told and "is finished" in finished.err
    header, _, second, _ = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(header + second)
    assert main(command) == 0
    again = capsys.readouterr()
    assert "measured again" in again.err and again.out.splitlines()[:2] == told[:2]
    assert list(records.load(out)["probe"]) == ["along", "mirrored"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none.py"], "none.py: there is no such Python file; give FILE.py, or FILE.py:NAME"),
        (["{file}"], "name what to verify, {file}:NAME: use one of estimator, away"),
        (["{file}:nothing"], "{file} defines no 'nothing': use one of estimator, away"),
        (["{file}:CLAIMS"], "cannot be verified: give a function or class NAME(params, lr=..., seed=...)"),
        (["{file}:estimator", "--probes", "x"], "--probes x is unknown: use one of along, "),
        (["{file}:estimator", "--probes", "alon"], "--probes alon is unknown: did you mean along? use one of along, "),
        (["{file}:estimator", "--dtype", "int8"], "--dtype int8 is unknown: use one of float64, float32"),
        (["{file}:estimator", "--step-seconds", "0"], "--step-seconds 0: use a number above 0"),
        (["{broken}"], "{broken}: ZeroDivisionError: division by zero; correct the file"),
        (["{empty}"], "name what to verify, {empty}:NAME: define a class or function NAME(params, lr=..., seed=...)"),
    ],
)
def test_mistakes_are_one_line(
    file: Path, tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, empty = tmp_path / "broken.py", tmp_path / "empty.py"
    broken.write_text("1 / 0\n")
    empty.write_text("")
    names = {"file": str(file), "broken": str(broken), "empty": str(empty)}
    assert main(["verify", *(word.format(**names) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("smoothlab: error: ") and error.count("\n") == 1
    assert told.format(**names) in error
