"""The figure of curvature along each method's own run."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import draw
from smoothlab.report.methods import by_method, over_reference
from smoothlab.stats.smoothness_table import points
from tests.experiments.toy_finetune import Toy


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Records of three methods, two of them with a PEFT module."""
    folder = tmp_path_factory.mktemp("methods")
    run = Toy(measure=("base", "peft"), points=3, precision=0.3, path=False, steps=8)
    for method in ("hybrid", "fo-peft", "zo"):
        measured = ("base",) if method == "zo" else run.measure
        records.run(replace(run, method=method, measure=measured), folder / f"{method}.jsonl", environment={})
    return records.load(folder / "*.jsonl")


def test_ratios_are_those_of_the_norms_at_equal_steps(table: pd.DataFrame) -> None:
    """At step 0 all methods stand at the same weights and probe them alike: the ratio is 1, exactly."""
    ratios = over_reference(by_method(table, ["base", "peft"], "frobenius"))
    assert set(zip(ratios["method"], ratios["block"], strict=True)) == {
        ("hybrid", "base"), ("hybrid", "peft"), ("zo", "base"),
    }  # fmt: skip
    assert (ratios.loc[ratios["step"] == 0, "measured"] == 1).all()
    norms = points(table, "base")
    method_of = {path: Path(path).stem for path in norms["path"]}
    value = norms.assign(method=norms["path"].map(method_of)).set_index(["method", "step"])["value"]
    for _, row in ratios[ratios["block"] == "base"].iterrows():
        expected = value[row["method"], row["step"]] / value["fo-peft", row["step"]]
        assert row["measured"] == pytest.approx(expected, rel=1e-12)
        assert row["low"] < row["measured"] < row["high"]


def test_a_panel_a_block_with_a_line_a_method_and_the_ratios_below(table: pd.DataFrame) -> None:
    figure = draw("methods", table)
    axes = figure.get_axes()
    assert len(axes) == 4
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels == ["fo-peft", "hybrid", "zo"]
    assert len(draw("methods", table[table["path"].str.contains("hybrid")]).get_axes()) == 2


def test_records_without_a_method_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(BadInput, match="name no method: give records of `smoothlab finetune --measure`"):
        draw("methods", table.drop(columns="method"))
