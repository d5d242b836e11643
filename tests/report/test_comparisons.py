"""The one table of measured, low, high, reference and verdict says what the records hold, and counts it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import comparisons
from smoothlab.report.numbers import interval, number, rate

from .curved_path import BASE, HEAD, PEFT, SPREAD, STEPS, gradients, methods, table, truth
from .estimator_rows import bias_rows
from .estimator_rows import table as estimator_table
from .finetune_runs import RUN, write_run

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def find(df, **values):
    for name, value in values.items():
        df = df[df[name] == value]
    return df


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.06, "12.1"), (9.999, "10.0"), (0.04213, "0.0421"), (1234.5, "1,230"), (1.2345e-7, "1.23e-7"), (0.0, "0"),
     (-3.14159, "-3.14"), (2.5e7, "25,000,000"), (2.5e7 + 0.5, "2.5e7"), (float("nan"), "not measured"),
     (None, "not measured"), (999.6, "1,000"), (float("inf"), "unbounded"), (np.int64(640576), "640,576")],
)  # fmt: skip
def test_numbers_have_three_digits_and_whole_ones_all(value, text):
    assert number(value) == text


def test_intervals_may_be_open():
    assert interval(2.0, 1.5, float("inf")) == "2 (at least 1.50)" and interval(2.0, None, 3.5) == "2 (at most 3.50)"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (10.0, "10"), (1e-3, "0.001"), (3e-4, "3e-4"), (5.2e-4, "5.2e-4"), (1e-6, "1e-6")]
)
def test_rates_are_written_as_by_hand(value, text):
    assert rate(value) == text


# ------------------------------------------------------------------------------------------------ curvature


def test_a_norm_that_fell_stands_with_its_first_and_last_interval():
    rows = comparisons.comparisons(table(protocols=("estimated",)))
    norm = truth()
    first, last = find(rows, quantity="Frobenius norm").to_dict("records")
    assert first["what"] == "base, estimated, step 0" and last["what"] == "base, estimated, step 60"
    for row, value in ((first, norm[0]), (last, norm[-1])):
        np.testing.assert_allclose(
            [row["measured"], row["low"], row["high"]], [value, value * (1 - SPREAD), value * (1 + SPREAD)]
        )
    assert (first["verdict"], last["verdict"]) == ("", "fell")
    head = find(comparisons.comparisons(table([HEAD], protocols=("estimated",))), quantity="Frobenius norm")
    assert head["verdict"].iloc[-1] == "no clear change"


def test_points_under_the_floor_are_counted():
    df = table(protocols=("paper",), noise=0.1)
    under = int(df["flag"].notna().sum())
    rows = find(comparisons.comparisons(df), quantity="Frobenius norm")
    assert rows["verdict"].iloc[0] == f"{under} of 6 points below twice the rounding floor"


def test_correlation_stands_with_its_interval_and_is_open_where_it_holds_zero():
    df = table(protocols=("estimated",))
    quantity = "rank correlation with the gradient norm"
    (row,) = find(comparisons.comparisons(df), quantity=quantity).to_dict("records")
    assert row["measured"] == pytest.approx(stats.spearmanr(gradients(), truth()).statistic)
    assert 0 < row["low"] < 1 and row["high"] == 1 and row["verdict"] == "grows with the gradient"
    falls = df.assign(grad_norm=1 / df["grad_norm"])
    (row,) = find(comparisons.comparisons(falls), quantity=quantity).to_dict("records")
    assert row["verdict"] == "falls where the gradient grows"
    mixed = df.copy()
    mixed.loc[mixed["quantity"] == "frobenius", "value"] = [3.0, 1.0, 4.0, 1.5, 5.0, 2.0]
    (row,) = find(comparisons.comparisons(mixed), quantity=quantity).to_dict("records")
    assert row["verdict"] == "open" and row["low"] < 0 < row["high"]
    assert find(comparisons.comparisons(table(at=STEPS[:5])), quantity=quantity).empty  # too few points


def test_ratio_stands_with_its_interval_beside_1():
    rows = comparisons.comparisons(table([BASE, PEFT], noise=1e-6))
    first, last = find(rows, part="").loc[rows["what"].str.startswith("base over peft, estimated")].to_dict("records")
    factor = np.exp(np.hypot(np.log(1 + SPREAD), np.log(1 - SPREAD)))
    ratio = truth() / truth(PEFT)
    np.testing.assert_allclose([first["measured"], last["measured"]], [ratio[0], ratio[-1]])
    np.testing.assert_allclose([first["low"], first["high"]], [ratio[0] / factor, ratio[0] * factor])
    assert first["reference"] == 1 and last["verdict"] == "above 1 at 6 and below 1 at 0 of 6 points"


def test_several_methods_are_named():
    rows = find(comparisons.comparisons(methods()), quantity="Frobenius norm")
    whats = [what for what in rows["what"] if "base" in what and "step 60" in what]
    assert whats == [
        "fo-peft, base, estimated, step 60",
        "hybrid, base, estimated, step 60",
        "zo, base, estimated, step 60",
    ]


def test_path_smoothness_stands_beside_the_largest_eigenvalue():
    quantity = "smoothness along the path, beside the largest eigenvalue"
    (row,) = find(comparisons.comparisons(table()), quantity=quantity).to_dict("records")
    df = table()
    assert row["measured"] == df.loc[df["quantity"] == "gradient_lipschitz", "value"].median()
    assert row["reference"] == df.loc[df["quantity"] == "spectral", "value"].median()


# ------------------------------------------------------------------------------------------------ settings experiments


def test_intervals_that_miss_their_closed_form_are_counted_and_named():
    df = estimator_table(bias_rows())
    double = df["dtype"] == "float64"
    counts = comparisons.summary(comparisons.comparisons(df[double]))
    assert counts["intervals that hold the reference"].tolist() == ["10 of 10"]
    df.loc[df["distribution"] == "rademacher", "reference"] *= 1.3
    rows = comparisons.comparisons(df[double])
    assert comparisons.summary(rows)["intervals that hold the reference"].tolist() == ["6 of 10"]
    off = comparisons.disagreements(rows)
    assert len(off) == 3 and set(off["verdict"]) == {"off"} and off["what"].str.startswith("cosh, rademacher").all()
    assert comparisons.summary(comparisons.comparisons(df, {"distribution": "gaussian"}))["rows"].tolist() == [10]


def test_the_rates_fail_where_they_are_known_to():
    rows = comparisons.comparisons(records.load(RESULTS / "rates.jsonl"))
    fails = find(rows, part="counterexample", quantity="average", verdict="fails")
    assert len(fails) == 3 and (fails["measured"] > fails["reference"]).all()  # beside the bound that was promised
    exponent = find(rows, quantity="exponent", verdict="inconsistent")
    assert set(exponent["reference"]) == {-4.0, 0.0}  # beside what is claimed
    shown = comparisons.disagreements(rows)
    assert set(shown["verdict"]) <= {"fails", "inconsistent", "off"} and len(shown) == 12
    with pytest.raises(BadInput, match="--where nothing=1: no column nothing"):
        comparisons.comparisons(records.load(RESULTS / "rates.jsonl"), {"nothing": "1"})


@pytest.mark.parametrize("name", ["audit", "coverage", "speed_engine", "quadratic", "kinks_opt125m_random"])
def test_any_records_have_a_table(name):
    df = records.load(RESULTS / f"{name}.jsonl")
    rows = comparisons.comparisons(df)
    assert 0 < len(rows) <= len(df) and rows["verdict"].notna().all()
    assert comparisons.text(df)


# ------------------------------------------------------------------------------------------------ fine-tuning


def test_hybrid_is_compared_with_the_others_and_guessing_is_named(tmp_path):
    paths = []
    for seed in range(3):
        for method, level in (("hybrid", 0.9), ("fo-peft", 0.8), ("zo", 0.52)):
            run = replace(RUN, method=method, seed=seed)
            paths.append(write_run(tmp_path / f"{method}{seed}", run, level, stopped=method == "zo" and seed == 1))
    df = records.load(paths)
    rows = comparisons.comparisons(df)
    pairs = find(rows, quantity="difference of accuracy, paired")
    assert dict(zip(pairs["what"], pairs["verdict"], strict=True)) == {
        "Hybrid-LoRA less FO-LoRA": "wins", "Hybrid-LoRA less ZO-FT": "wins",
    }  # fmt: skip
    tests = find(rows, quantity="test accuracy, 3 seed(s)")
    assert list(tests["verdict"]) == ["above the larger class", "above the larger class", "not above the larger class"]
    assert set(tests["reference"]) == {0.51}
    accuracy = df[(df["part"] == "test") & df["path"].str.contains(r"/hybrid\d$")]["accuracy"].astype(float)
    assert tests["measured"].iloc[0] == pytest.approx(accuracy.mean())
    notes = comparisons.notes(df)
    assert any(note.endswith("a trial was stopped: the loss is nan: lower --eta-x (3)") for note in notes)
    assert {"train and dev: a (9 runs)", "test: b (9 runs)"} <= set(notes)


def test_equal_methods_tie_and_untested_ones_say_so(tmp_path):
    paths = [write_run(tmp_path / "a", RUN, 0.8), write_run(tmp_path / "b", replace(RUN, method="fo-peft"), 0.8)]
    (row,) = find(comparisons.comparisons(records.load(paths)), verdict="ties").to_dict("records")
    assert row["measured"] == 0 and row["low"] < 0 < row["high"]
    untested = write_run(tmp_path / "c", RUN, 0.9, test=False)
    (row,) = comparisons.comparisons(records.load(untested)).to_dict("records")
    assert row["quantity"] == "dev accuracy" and row["measured"] == 0.9 and row["verdict"] == "not tested"


def test_curvature_along_fine_tuning_stands_beside_its_accuracy(tmp_path):
    run = records.load(write_run(tmp_path / "a", RUN, 0.8))
    curved = table([BASE, PEFT], protocols=("estimated",)).assign(path=str(tmp_path / "a"))
    both = pd.concat([run, curved], ignore_index=True)
    both.attrs = run.attrs
    quantities = set(comparisons.comparisons(both)["quantity"])
    assert {"Frobenius norm", "test accuracy, 1 seed(s)"} <= quantities
