"""Runs on completions and texts: their loss stands where the accuracy of choices does."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import draw
from smoothlab.report.comparisons import comparisons
from tests.report.finetune_runs import RUN, write_run


def write(out: Path, method: Any, losses: list[float], *, right: str = "", test: bool = True) -> None:
    """A run of two trials, of which the second has these losses on dev; the first is worse."""
    run = replace(RUN, data="mine.jsonl", method=method, steps=20)
    writer = records.Writer(out, "finetune", asdict(run), {})
    rates = {"eta_x": run.eta_x, "eta_y": run.eta_y, "mu": run.mu}
    for trial in (0, 1):
        for number, loss in enumerate(losses):
            train = loss + 0.1 if number else None
            writer.write({"part": "dev", "trial": trial, **rates, "step": 10 * number, "train_loss": train,
                          "dev_loss": loss + 1 - trial, "count": 6})  # fmt: skip
    if not test:
        return
    row = {"part": "test", "trial": 1, **rates, "step": 20, "loss": 2.5, "low": 2.0, "high": 3.0, "token_loss": 2.4,
           "tokens": 50, "count": 6}  # fmt: skip
    if right:
        row |= {"right": right, "exact_match": right.count("1") / 6, "f1": 0.75}
    writer.write(row)
    writer.end()


def table_of(folder: Path) -> pd.DataFrame:
    return records.load(folder / "*.jsonl")


def test_losses_answers_and_paired_exact_matches_are_in_the_table(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "hybrid", [3.0, 2.8, 2.6], right="111101")
    write(tmp_path / "b.jsonl", "fo-peft", [3.0, 2.9, 2.7], right="111000")
    rows = comparisons(table_of(tmp_path)).set_index(["what", "quantity"])
    measured = rows["measured"]
    assert measured.filter(like="test loss").tolist() == [2.5, 2.5]
    (loss, *_) = rows.filter(like="test loss", axis=0).to_dict("records")
    assert (loss["low"], loss["high"]) == (2.0, 3.0)
    assert sorted(measured.filter(like="test exact match")) == pytest.approx([3 / 6, 5 / 6])
    assert measured["Hybrid-LoRA less FO-LoRA", "difference of exact match, paired"] == pytest.approx(2 / 6)


def test_runs_without_answers_or_test_have_their_losses_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "hybrid", [3.0, 2.8, 2.6], test=False)
    write(tmp_path / "b.jsonl", "fo-peft", [3.0, 2.9, 2.7])
    rows = comparisons(table_of(tmp_path))
    assert rows["quantity"].tolist() == ["dev loss", "test loss, 1 seed(s)"]
    assert rows["measured"].tolist() == [2.6, 2.5], "the better trial's"


def test_the_figure_draws_losses_in_nats(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write(tmp_path / "a.jsonl", "hybrid", [3.0, 2.8, 2.6])
    train, dev, test = draw("finetune", table_of(tmp_path)).get_axes()
    assert [ax.get_ylabel() for ax in (train, dev)] == ["training loss", "dev loss"]
    assert test.get_xlabel() == "test loss"
    assert dev.get_lines()[0].get_ydata().tolist() == [3.0, 2.8, 2.6]  # type: ignore[union-attr]
    assert not recwarn.list


def test_runs_of_both_kinds_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a.jsonl", RUN, 0.9)
    write(tmp_path / "b.jsonl", "fo-peft", [3.0, 2.9, 2.7])
    with pytest.raises(BadInput, match="these runs have --data mine.jsonl and sst2: draw those of one at a time"):
        comparisons(table_of(tmp_path))
