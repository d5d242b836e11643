"""`smoothlab fit`: the points that it takes and leaves out, what it writes and prints, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from smoothlab.__main__ import main
from smoothlab.experiments.fit.experiment import Fit
from smoothlab.experiments.fit.points import from_records, from_table
from smoothlab.records import header, load
from smoothlab.stats.growth import FORMS, METHODS, PARAMETERS, fit_growth
from tests.test_docs import misfits

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fig1b_micro_sst2.jsonl"
COLUMNS = {"step": "step", "block": "block", "gradient": "g", "curvature": "L", "full_gradient": "", "floor": ""}
STEPS = 20


NAMED = ["--gradient-column", "g", "--curvature-column", "L"]


def measured(path: Path, **changes: dict[int, Any]) -> str:
    """Records of a run of two blocks whose L is 3 + 2 u and 1 + u of the full gradient norm; `changes` by step."""
    rows = []
    for step in range(STEPS):
        for block, (L0, L1) in {"base": (3.0, 2.0), "peft": (1.0, 1.0)}.items():
            u = 1 + 0.1 * step + 0.05 * np.sin(3 * step)
            row = {
                "kind": "row", "step": step, "protocol": "estimated", "loss": 0.7, "grad_norm": u / 2,
                "grad_norm_total": u, "dim": 9, "block": block, "wrt": block, "quantity": "frobenius",
                "value": L0 + L1 * u, "low": L0 + L1 * u - 0.1, "high": L0 + L1 * u + 0.1, "hvps": 9, "floor": 1e-6,
                "flag": None, "h": None, "normalized": None,
            }  # fmt: skip
            for name, values in changes.items():
                row[name] = values.get(step, row[name])
            rows.append(row)
    head = {"kind": "header", "experiment": "smoothness", "config": {}, "environment": {}}
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *rows)))
    return str(path)


def table(path: Path, **columns: Any) -> str:
    """A CSV file of two blocks, 0 and 1, at 12 steps."""
    steps = np.repeat(np.arange(12), 2)
    u = 1 + 0.2 * steps + 0.1 * np.sin(5 * steps)
    blocks = np.tile([0, 1], 12)
    df = pd.DataFrame({"step": steps, "block": blocks, "g": u * (1 + blocks), "L": 2 + 3 * u + blocks}).assign(
        **columns
    )
    df.to_csv(path, index=False)
    return str(path)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    told = capsys.readouterr().err
    assert told.startswith("smoothlab: error: ") and told.count("\n") == 1, told
    return told


def test_points_of_records_have_the_full_gradient_norm_unless_the_own_is_asked_for(tmp_path: Path) -> None:
    path = measured(tmp_path / "r.jsonl")
    base, peft = from_records([path], (), "frobenius", "auto")
    assert (base.block, peft.block, base.gradient) == ("base", "peft", "of all measured blocks")
    assert base.usable["value"].to_numpy() == pytest.approx(3 + 2 * base.usable["gradient_norm"].to_numpy())
    (own,) = from_records([path], ("peft",), "frobenius", "own")
    assert own.gradient == "of the block itself"
    assert own.usable["gradient_norm"].to_numpy() == pytest.approx(peft.usable["gradient_norm"].to_numpy() / 2)


def test_a_record_without_the_full_norm_falls_back_and_says_so(tmp_path: Path) -> None:
    path = measured(tmp_path / "r.jsonl", grad_norm_total={3: None})
    assert {one.gradient for one in from_records([path], (), "frobenius", "auto")} == {"of the block itself"}


def test_points_below_their_floor_and_of_wrong_products_are_left_out_and_counted(tmp_path: Path) -> None:
    flags = {1: "below floor", 2: "kinks", 3: "precision not reached", 4: "precision not reached, asymmetric products"}
    path = measured(tmp_path / "r.jsonl", flag=flags, floor={5: 100.0})
    base = from_records([path], ("base",), "frobenius", "auto")[0]
    assert base.counts() == {"below floor": 2, "kinks": 1, "asymmetric products": 1}
    assert base.usable["step"].tolist() == [0, 3, *range(6, STEPS)]


def test_rows_are_the_fits_of_the_points(tmp_path: Path) -> None:
    path = measured(tmp_path / "r.jsonl", flag={0: "below floor"})
    df = pd.DataFrame(list(Fit((path,), block=("base",), resamples=99).rows()))
    points = df[df["part"] == "points"]
    assert len(points) == STEPS and points["left_out"].notna().sum() == 1
    kept = points[points["left_out"].isna()]
    fits = df[df["part"] == "parameters"]
    assert len(fits) == sum(len(PARAMETERS[form]) for form in FORMS) * len(METHODS)
    expected = fit_growth(kept["gradient_norm"], kept["value"], resamples=99)
    for name, found in expected.parameters.items():
        row = fits[(fits["form"] == "linear") & (fits["fitted_by"] == "least-squares") & (fits["quantity"] == name)]
        assert row[["measured", "low", "high"]].to_numpy(float)[0] == pytest.approx(list(found))
        assert row["left_out_points"].iloc[0] == {"below floor": 1}
    curve = df[(df["part"] == "curves") & (df["form"] == "linear") & (df["fitted_by"] == "envelope")]
    assert curve["value"].to_numpy(float) == pytest.approx(3 + 2 * curve["gradient_norm"].to_numpy(float))
    tests = df[df["part"] == "tests"].set_index("quantity")["verdict"]
    assert tests["grows"] == "grows" and set(tests.index) == {"grows", "sub-quadratic"}


def test_two_blocks_are_compared_and_five_are_not(tmp_path: Path) -> None:
    rows = list(Fit((measured(tmp_path / "r.jsonl"),), resamples=99).rows())
    (pair,) = [row for row in rows if row.get("quantity") == "same"]
    assert (pair["block"], pair["other"], pair["verdict"]) == ("base", "peft", "differ")
    many = table(tmp_path / "t.csv", block=np.arange(24) % 5)  # four or five steps each
    rows = list(Fit((many,), gradient_column="g", curvature_column="L", resamples=99).rows())
    assert {row["block"] for row in rows} == set("01234")
    assert not [row for row in rows if row.get("quantity") == "same"]


def test_a_table_has_its_columns_by_options_and_the_norm_of_all_blocks(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", all=7.0, noise=np.where(np.arange(24) == 5, 1e9, 0.0))
    own = from_table([path], (), COLUMNS, "auto")
    assert [one.block for one in own] == ["0", "1"] and own[0].gradient == "of the block itself"
    g = own[0].table["gradient_norm"].to_numpy()
    full = from_table([path], ("1",), COLUMNS, "full")[0]
    assert full.table["gradient_norm"].to_numpy() == pytest.approx(g * 5**0.5)  # g and 2 g
    given = from_table([path], ("1",), COLUMNS | {"full_gradient": "all", "floor": "noise"}, "auto")[0]
    assert (given.table["gradient_norm"] == 7).all() and given.counts() == {"below floor": 1}
    alone = from_table([path], (), COLUMNS | {"block": ""}, "own")
    assert [one.block for one in alone] == ["all"] and len(alone[0].table) == 24


def test_the_command_prints_and_writes_records_of_the_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fit.jsonl"
    command = ["fit", measured(tmp_path / "r.jsonl", flag={0: "below floor"}), "--resamples", "99", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "base: 19 points, u from" in printed and "left out: 1 below floor" in printed
    assert "L0 + L1 u     least-squares  L0 = 3.00 (" in printed and "grows? grows: L1 = 2.00 (" in printed
    assert "base and peft: equal (L0, L1)? differ" in printed
    assert header(out)["config"]["resamples"] == 99 and not misfits(out)
    assert set(load(out)["part"]) == {"points", "parameters", "curves", "tests"}
    assert main(command) == 2
    assert "exists; choose another --out, or replace it with --overwrite" in one_line(capsys)


def test_the_shared_trace_grows_with_its_gradient_norm(shared_data: Path) -> None:
    """Tensor 72 of a published trace: L close to 4.2 u, and its rank correlation with u is 0.95."""
    path = str(shared_data / "traces" / "nanogpt124m_fineweb_adam.csv")
    options = {"curvature_column": "L_hat", "block": ("72",), "resamples": 99}
    rows = {row["quantity"]: row for row in Fit((path,), **options).rows() if row["part"] == "tests"}
    assert rows["grows"]["verdict"] == "grows" and 3 < rows["grows"]["measured"] < 6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no record file is named; give one, e.g. smoothlab fit out/smoothness.jsonl"),
        (["missing.jsonl"], "no record file matches 'missing.jsonl'"),
        (["missing.csv"], "there is no file missing.csv"),
        (["r.jsonl", "t.csv"], "record files and CSV files together"),
        (["empty.csv"], "empty.csv is no table of comma-separated values"),
        (["t.csv"], "t.csv has no column 'grad_norm': name the one with --gradient-column; its columns are step, "
         "block, g, L"),
        (["t.csv", "--gradient-column", "g"], "no column 'value': name the one with --curvature-column"),
        (["t.csv", *NAMED, "--floor-column", "f"], "no column 'f': name the "
         "one with --floor-column"),
        (["t.csv", *NAMED, "--block", "7"], "--block 7: L was measured of 0, 1"),
        (["negative.csv", *NAMED], "negative.csv: L is -1 in row 3, and must be"),
        (["words.csv", *NAMED], "words.csv: g is nan in row 2"),
        (["flat.csv", *NAMED], "block 0: 12 points have 1 different gradient "
         "norms, about 2: the slope is not identified; measure where the gradient changes"),
        (["short.csv", *NAMED], "block 0 has 3 points, and L0 + c u^rho has 3 "
         "parameters: measure at 4 steps or more (--points), 8 for intervals"),
        (["floor.jsonl"], "block base: all 20 points are below twice their rounding floor: measure with exact"),
        (["flagged.jsonl"], "block base has 2 points, 18 left out (kinks), and L0 + c u^rho has 3 parameters"),
        (["own.jsonl", "--gradient", "full"], "--gradient full: rows of base have no grad_norm_total"),
        (["r.jsonl", "--block", "head"], "--block head: frobenius was measured of base, peft; name some of these"),
        (["r.jsonl", "--quantity", "spectral"], "hold no finite value for spectral; they hold: frobenius of base"),
        (["r.jsonl", "--resamples", "10"], "--resamples 10 is too small: use at least 99"),
        (["other.jsonl"], "these records lack protocol"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_fitted_is_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    measured(Path("r.jsonl"))
    measured(Path("own.jsonl"), grad_norm_total=dict.fromkeys(range(STEPS)))
    measured(Path("floor.jsonl"), floor=dict.fromkeys(range(STEPS), 100.0))
    measured(Path("flagged.jsonl"), flag=dict.fromkeys(range(2, STEPS), "kinks"))
    rows = ('{"kind": "header", "experiment": "rates", "config": {}, "environment": {}}', '{"kind": "row", "step": 0}')
    Path("other.jsonl").write_text("\n".join(rows) + "\n")
    table(Path("t.csv"))
    table(Path("negative.csv"), L=np.where(np.arange(24) == 2, -1.0, 2.0))
    table(Path("words.csv"), g=["1.0", "none", *["2.0"] * 22])
    table(Path("flat.csv"), g=2.0)
    pd.read_csv("t.csv").iloc[:6].to_csv("short.csv", index=False)
    Path("empty.csv").write_text("")
    assert main(["fit", *words]) == 2
    assert told in one_line(capsys)
