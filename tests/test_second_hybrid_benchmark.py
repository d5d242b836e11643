"""`python -m benchmarks.second_hybrid` on a tiny model: what is run, in which order, and what is made already."""

import json
from pathlib import Path

import pytest

from benchmarks.second_hybrid import FACTORS, Case, Plan, write_sums
from smoothlab import records
from tests.experiments.command import tiny_model, write_sentences


def test_sums_are_right_and_no_pair_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    write_sums(path, count=500)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == 500
    for row in rows:
        a, b = row["prompt"].removeprefix("What is ").removesuffix("?").split(" + ")
        assert row["completion"] == f" {int(a) + int(b)}"


@pytest.mark.check
def test_a_case_takes_advised_rates_and_another_takes_the_selected_one(tmp_path: Path) -> None:
    model, sentences = str(tiny_model(tmp_path / "model")), str(write_sentences(tmp_path / "data.jsonl"))
    sums = tmp_path / "sums.jsonl"
    write_sums(sums, count=60)
    small = {"model": model, "steps": 4, "batch": 4, "dev": 8, "test": 4}
    cases = {
        "first": Case(sentences, **small), "second": Case(sentences, rates_of="first", **small),
        "sums": Case(str(sums), **small),
    }  # fmt: skip
    folder = tmp_path / "records"
    plan = Plan(None, points=2, folder=folder, cases=cases)
    plan.run("second", "lora", 0)
    assert not (folder / "second-lora-0.jsonl").exists(), "its rates are not there yet"
    plan.make(["first", "second", "sums"], ["lora", "dora"], [0])
    advised = next(
        row["value"] for row in records.load(folder / "first-lora-advice.jsonl").to_dict("records")
        if row["part"] == "advice" and row["option"] == "eta_y"
    )  # fmt: skip
    assert plan.rates("first", "lora") == pytest.approx([factor * advised for factor in FACTORS], rel=0.06)
    assert plan.rates("first", "dora") == plan.rates("first", "lora"), "DoRA tries LoRA's"
    selected = records.header(folder / "second-lora-0.jsonl")["config"]["eta_y"]
    assert plan.rates("second", "lora") == (selected,)
    assert selected in plan.rates("first", "lora")
    text = "\n".join(plan.table(list(cases)))
    assert text.count("\n") == 7, "two lines of a head, and a line a run"
    assert "% exact" in text
    assert (folder / "first-lora-curvature.jsonl").exists()
    assert not (folder / "first-dora-curvature.jsonl").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    plan.make(["first", "second", "sums"], ["lora", "dora"], [0])
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}, "nothing is made twice"
