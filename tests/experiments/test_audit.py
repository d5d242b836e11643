"""`smoothlab audit` from end to end."""

import json
import textwrap
from pathlib import Path

import pytest

from smoothlab import claims, records
from smoothlab.__main__ import main
from smoothlab.experiments import audit

FAST = ("prop-2.2", "example-2.3")
MINE = textwrap.dedent(claims.__doc__.split("reads:\n\n")[1].split("\nA search alone")[0])  # type: ignore[union-attr]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The example of the documentation."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_verdicts_and_evidence_are_told(capsys) -> None:
    assert main(["audit", *FAST]) == 0
    told = capsys.readouterr().out
    assert "example-2.3         holds once corrected  [Example 2.3]" in told
    assert "exact, refutes what is printed" in told and "violated within" in told and "no violation in" in told


def test_json_is_for_machines(capsys) -> None:
    assert main(["audit", *FAST, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["claim"], one["verdict"]) for one in found] == [
        ("prop-2.2", "holds"),
        ("example-2.3", "holds once corrected"),
    ]
    assert set(found[0]) == {"claim", "verdict", "evidence", "correction", "place", "test"}
    assert {one["kind"] for one in found[1]["evidence"]} == {"certificate", "search"}


def test_records_are_continued_and_the_same(tmp_path: Path, capsys) -> None:
    out = tmp_path / "a.jsonl"
    assert main(["audit", *FAST, "--json", "--out", str(out)]) == 0
    first = capsys.readouterr().out
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole[:2]))  # as if it had been stopped after the first claim
    assert main(["audit", *FAST, "--json", "--out", str(out)]) == 0
    assert capsys.readouterr().out == first
    assert list(records.load(out)["claim"]) == list(FAST)
    assert records.header(out)["config"]["claims"] == list(FAST)


def test_every_claim_names_a_test_that_is_there() -> None:
    root = Path(__file__).resolve().parents[2]
    for claim in claims.CLAIMS.values():
        path, name = claim.test.split("::")
        assert f"def {name.split('[')[0]}(" in (root / path).read_text(), claim.name


def test_an_unknown_claim_has_close_matches(capsys, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    assert main(["audit", "example", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "claim 'example' is unknown: perhaps you meant example-2.3" in told and told.count("\n") == 1
    assert not out.exists()


def test_a_claim_of_the_users_is_audited(mine: Path, capsys) -> None:
    assert main(["audit", "--add", str(mine), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["claim"] == "mine" and found["verdict"] == "open"
    assert found["evidence"][0]["broken"], "cosh 5 = 74 > 26"
    assert main(["audit", "--add", str(mine), "mine", "prop-2.2"]) == 0  # names behind the option's files


def test_another_verdict_than_the_stored_one_is_status_1(mine: Path, capsys) -> None:
    mine.write_text(MINE.replace('"open"', '"holds"'))
    assert main(["audit", "--add", str(mine)]) == 1
    assert "mine                open, but 'holds' is stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("1/0", "ZeroDivisionError: division by zero; correct the file"),
        ("CLAIM = 3", "define CLAIM, or a tuple CLAIMS"),
        (
            MINE.replace("return Finding((SEARCH.falsify(seed),))", "return [][0]"),
            "check of claim 'mine' failed: Index",
        ),
        (MINE.replace("return Finding((SEARCH.falsify(seed),))", "return 3"), "returned int: return a Finding"),
        (MINE.replace('"mine"', '"eq-2"'), "a claim named 'eq-2' is there already"),
        (MINE.replace('"open"', '"maybe"'), "stores the verdict 'maybe': use one of holds"),
    ],
)
def test_files_that_cannot_be_added(mine: Path, capsys, written: str, told: str) -> None:
    mine.write_text(written)
    assert main(["audit", "--add", str(mine)]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert main(["audit", "--add", "nowhere.py"]) == 2
    assert capsys.readouterr().err == "smoothlab: error: --add nowhere.py: there is no such file; check the path\n"


def test_claims_on_measurements_without_records_are_open(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(audit, "RESULTS", tmp_path)
    assert main(["audit", "l-grows"]) == 0
    told = capsys.readouterr()
    assert "l-grows             open (no records)" in told.out
    assert "l-grows: open, no records; measure with smoothlab smoothness" in told.err


def test_records_that_no_chosen_claim_reads_are_refused(capsys) -> None:
    rates = audit.RESULTS / "rates.jsonl"
    assert main(["audit", "l-grows", "--records", str(rates)]) == 2
    told = capsys.readouterr().err
    assert "holds records of rates, and these claims read those of hook or smoothness" in told and told.count("\n") == 1
    assert main(["audit", "eq-2", "--records", str(audit.RESULTS / "fig1b_micro_sst2.jsonl")]) == 2
    assert "these claims read no records" in capsys.readouterr().err


def test_claims_take_the_named_records_that_they_understand_and_leave_the_others(capsys) -> None:
    paths = [audit.RESULTS / name for name in ("fig1b_micro_sst2.jsonl", "second_hybrid/sst2-lora-0.jsonl")]
    assert main(["audit", "l-grows", "aligned-pays", "--records", *map(str, paths)]) == 0
    told = capsys.readouterr()
    assert "l-grows             holds" in told.out
    assert "aligned-pays        open" in told.out
