"""Figures of estimators, rates and fine-tuning draw what their records hold."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from smoothlab import records
from smoothlab.__main__ import main
from smoothlab.errors import BadInput
from smoothlab.report import comparisons, draw, estimators, panels
from smoothlab.report.finetune import kinds_of

from .curved_path import BASE, rows, write
from .estimator_rows import MUS, bias_rows, curve_rows, model_rows, row, variance_rows
from .estimator_rows import table as estimator_table
from .finetune_runs import RUN, write_run

RATES = Path(__file__).parents[2] / "benchmarks" / "results" / "rates.jsonl"
CURVED = RATES.with_name("rates_curved.jsonl")
PARTS = ("theorem", "exponents", "counterexample", "speedup_of_two_rates", "reshuffling")


def lines(ax, marker=None, style=None):
    drawn = [line for line in ax.lines if np.size(line.get_xdata())]
    return [line for line in drawn if (marker is None or line.get_marker() == marker)
            and (style is None or line.get_linestyle() == style)]  # fmt: skip


# ------------------------------------------------------------------------------------------------ estimators


def test_bias_is_drawn_with_closed_form_and_hollow_where_it_may_be_zero():
    (ax,) = draw("estimators", estimator_table(bias_rows())).get_axes()
    filled, hollow = lines(ax, "o")[:2]
    np.testing.assert_allclose(filled.get_ydata(), 1.05 * np.square(MUS[1:]))
    np.testing.assert_allclose(hollow.get_ydata(), [3e-12])
    np.testing.assert_allclose(lines(ax, style="-")[0].get_ydata(), np.square(MUS))
    dotted = next(line for line in ax.lines if line.get_label() == "slope 2")
    x, y = np.log(dotted.get_xdata()), np.log(dotted.get_ydata())
    assert (y[1] - y[0]) / (x[1] - x[0]) == pytest.approx(2)


def test_errors_are_drawn_over_d_plus_1_and_times_q():
    against_d, against_q = draw("estimators", estimator_table(variance_rows())).get_axes()
    two, one = lines(against_d, "o")[0], lines(against_d, "s")[0]
    np.testing.assert_allclose(two.get_ydata(), 1.02)
    np.testing.assert_allclose(one.get_ydata(), [1.02 * (5 + 0.4) / 5, 1.02 * (17 + 6.4) / 17])
    heights = {tuple(np.round(line.get_ydata(), 3)) for line in lines(against_q, style="None")}
    assert heights == {(1.0, 1.0), (2.0, 2.0), (0.969, 0.969)}  # plain, antithetic, orthogonal: flat as 1/q


def test_curves_mark_the_best_mu_measured_and_predicted():
    ax, _ = draw("estimators", estimator_table(curve_rows("curve", "theta", {"float64": 1e-16, "float32": 1e-7}))).axes
    assert [line.get_xdata()[0] for line in lines(ax, "|")] == [2e-3, 2e-3]
    thick = [line for line in lines(ax) if line.get_linewidth() == 2.6]
    assert [line.get_color() for line in thick] == [estimators.PRECISIONS[name] for name in ("float64", "float32")]
    np.testing.assert_allclose(thick[1].get_xdata(), [5e-4, 1.5e-3])
    assert thick[0].get_xdata()[0] < ax.get_xlim()[0] and thick[0].get_xdata()[1] == 1.5e-3, "open below"
    points = [line for line in lines(ax, "o") if line.get_ydata()[0] == thick[0].get_ydata()[0]]
    assert not points, "at the grid's edge none is the best"


def test_a_figure_has_a_panel_for_each_part_there_is():
    assert len(draw("estimators", estimator_table()).get_axes()) == 1 + 2 + 2 + 2 + 2
    assert len(draw("estimators", estimator_table(model_rows())).get_axes()) == 2
    few = estimator_table(curve_rows("model-curve", "head", {"bfloat16": 1e-3}))
    assert len(draw("estimators", few).get_axes()) == 1


# ------------------------------------------------------------------------------------------------ rates


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return records.load(RATES)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_is_drawn(table: pd.DataFrame, part: str) -> None:
    assert len(draw("rates", table[table["part"] == part]).get_axes()) == 2


def test_points_are_the_measurements_and_lines_the_recursion(table: pd.DataFrame) -> None:
    ax = draw("rates", table[table["part"] == "reshuffling"]).get_axes()[0]
    chosen = table[(table["part"] == "reshuffling") & (table["axis"] == "rate") & (table["n"] == 8)]
    chosen = chosen.sort_values("scale")
    assert any(np.array_equal(line.get_ydata(), chosen["measured"].astype(float)) for line in lines(ax, "o"))
    assert any(np.array_equal(line.get_ydata(), chosen["reference"].astype(float)) for line in lines(ax, style="-"))


def test_best_rates_and_their_cost_are_those_on_record() -> None:
    """Of one series: simulated rates, the recursion's line, the theorem's dashed; the ratio of means."""
    table = records.load(CURVED)
    table = table[(table["part"] == "budget") & (table["series"] == "zo-quadratics")]
    rates, cost = draw("rates", table).get_axes()
    best = table[table["quantity"] == "best rate"].sort_values("T")
    for name, line in (("measured", lines(rates, "o")), ("reference", lines(rates, style="-")),
                       ("formula", lines(rates, style="--"))):  # fmt: skip
        assert any(np.array_equal(drawn.get_ydata(), best[name].astype(float)) for drawn in line), name
    means = table[table["quantity"] == "average"].pivot_table(
        index="T", columns="rule", values=["measured", "reference"]
    )
    ratios = means["measured"]["theorem"] / means["measured"]["recursion"]
    assert any(np.allclose(drawn.get_ydata(), ratios) for drawn in lines(cost, "o"))
    exact = means["reference"]["theorem"] / means["reference"]["recursion"]
    assert any(np.allclose(drawn.get_ydata(), exact) for drawn in lines(cost, style="-"))
    alone = table[(table["quantity"] != "average") | (table["rule"] == "recursion")]
    assert len(draw("rates", alone).get_axes()) == 2, "a sum that the theorem says nothing of"


def test_settings_are_named_by_what_differs(table: pd.DataFrame) -> None:
    names = panels.short_names(table.loc[table["part"] == "theorem", "setting"])
    assert list(names.values())[0] == "base" and len(set(names.values())) == len(names)
    assert {"ratio=10", "family=cosh-x", "rule=one", "oracle=exact", "given=100"} <= set(names.values())
    at_the_axis = {text.get_text() for text in draw("rates", table).get_axes()[0].get_yticklabels()}
    assert {"$L_x/L_y$ = 10", "cosh-x", "one rate", "gradients: exact", "$T$ = 100", "$n$ = 8"} <= at_the_axis


def test_many_settings_are_drawn_without_names(table: pd.DataFrame) -> None:
    part = table[table["part"] == "theorem"]
    many = pd.concat([part.assign(setting=part["setting"] + f"/{i}") for i in range(4)])
    figure = draw("rates", many)
    assert figure.get_figheight() < 12 and figure.get_axes()[0].get_ylabel().endswith(" settings")


# ------------------------------------------------------------------------------------------------ fine-tuning


@pytest.fixture
def figure_3(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(3):
        for method, level in (("hybrid", 0.9), ("fo-peft", 0.8), ("zo", 0.52)):
            run = replace(RUN, method=method, seed=seed)  # type: ignore[arg-type]
            paths.append(write_run(tmp_path / f"{method}{seed}.jsonl", run, level))
    return paths


def test_figure_3_has_a_mean_line_a_method_and_a_point_a_seed(figure_3: list[Path]) -> None:
    table = records.load(figure_3)
    loss, dev, test = draw("finetune", table).get_axes()
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["Hybrid-LoRA", "FO-LoRA", "ZO-FT"]
    mine = table[(table["part"] == "dev") & table["path"].str.contains("hybrid") & (table["step"] > 0)]
    assert np.allclose(lines(loss, style="-")[0].get_ydata(), mine.groupby("step")["train_loss"].mean())
    assert max(line.get_ydata().max() for line in lines(dev, style="-")) == 90
    points = sorted(np.concatenate([line.get_xdata() for line in lines(test, "o")]))
    np.testing.assert_allclose(points, sorted(100 * table.loc[table["part"] == "test", "accuracy"]))
    assert [label.get_text() for label in test.get_yticklabels()] == ["Hybrid-LoRA", "FO-LoRA", "ZO-FT"]


def test_runs_without_a_test_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", RUN, 0.9)
    two = write_run(tmp_path / "b", replace(RUN, eta_x=1e-5, eta_y=1e-5), 0.6)
    three = write_run(tmp_path / "c", replace(RUN, method="zo"), 0.6, test=False)
    loss, dev, test = draw("finetune", records.load([one, two, three])).get_axes()
    expected = [r"$\eta_x$ 1e-4, $\eta_y$ 0.1", "one rate 1e-5", "ZO-FT"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == expected
    assert ["not tested"] == [text.get_text() for text in test.texts]
    selected = [line.get_xdata()[0] for line in lines(dev) if line.get_markerfacecolor() == "white"]
    # of three kinds the first is drawn 0.8 % of the run before its step, so that intervals stand side by side
    assert selected == pytest.approx([40 - 0.008 * 40, 40]), "the evaluation whose weights were tested is hollow"


def test_kinds_of_equal_names_and_rates_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    runs = [RUN, replace(RUN, q=4), replace(RUN, q=4, variant="momentum"), replace(RUN, eta_x=1e-3)]
    files = [write_run(tmp_path / f"{index}.jsonl", run, 0.7) for index, run in enumerate(runs)]
    df = records.load(files)
    kinds = kinds_of(df)
    names = [kind.among(kinds).removeprefix("eta_x 1e-4, eta_y 0.1, ") for kind in kinds]
    others = ["q 1, variant plain", "q 4, variant plain", "q 4, variant momentum"]
    assert names == [*others, "eta_x 0.001, eta_y 0.1"]
    assert kinds[3].described(kinds) == "Hybrid-LoRA (eta_x 0.001, eta_y 0.1)"
    assert len(draw("finetune", df).axes[2].get_yticklabels()) == 4
    assert comparisons.comparisons(df)["what"].nunique() == 4 + 6


def test_a_kind_has_one_color_in_all_panels(tmp_path: Path) -> None:
    """The first kind has no training loss yet; the second keeps the color that it has beside it."""
    one = write_run(tmp_path / "a", replace(RUN, eval_every=50), 0.5, test=False)
    two = write_run(tmp_path / "b", replace(RUN, method="zo"), 0.6)
    loss, dev, _ = draw("finetune", records.load([one, two])).get_axes()
    colors = []
    for panel in (loss, dev):
        legend = panel.get_legend()
        names = [text.get_text() for text in legend.get_texts()]
        colors.append(legend.get_lines()[names.index("ZO-FT")].get_color())
    assert colors[0] == colors[1]


def test_classifiers_are_named_and_records_of_before_the_option_are_of_the_same_kind(tmp_path: Path) -> None:
    """What --head auto chose stands in the row of the test; the header of an older file has no such option."""

    def edited(path: Path, old: str, new: str) -> Path:
        before = re.sub(r', "(row|rows)": \d+|, "crc32": "\w+"', "", path.read_text())  # as files of before are
        path.write_text(before.replace(old, new))
        assert path.read_text() != before
        return path

    auto = edited(write_run(tmp_path / "a", RUN, 0.9), '"count": 200,', '"count": 200, "head": "classifier",')
    zo = write_run(tmp_path / "b", replace(RUN, head="classifier", method="zo"), 0.6, test=False)
    lm = write_run(tmp_path / "c", replace(RUN, head="lm"), 0.7)
    assert [kind.name for kind in kinds_of(records.load([auto, zo, lm]))] == [
        "Hybrid-LoRA classifier", "ZO-FT classifier", "Hybrid-LoRA",
    ]  # fmt: skip
    new = write_run(tmp_path / "d", replace(RUN, seed=1), 0.8)
    old = edited(write_run(tmp_path / "e", RUN, 0.8), '"head": "auto", ', "")
    old = edited(old, '"template": "{sentence} It was", "verbalizers": [], ', "")
    (kind,) = kinds_of(records.load([old, new]))
    assert kind.name == "Hybrid-LoRA" and sorted(kind.dev) == [0, 1]


def test_runs_that_are_not_comparable_are_refused(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", RUN, 0.8), write_run(tmp_path / "b", replace(RUN, data="copa"), 0.8)
    with pytest.raises(BadInput, match="have --data copa and sst2: draw those of one at a time"):
        kinds_of(records.load([a, b]))
    c = write_run(tmp_path / "c", replace(RUN, checkpoint=Path("x")), 0.7)
    with pytest.raises(BadInput, match="another run of the same settings and seed 0"):
        kinds_of(records.load([a, c]))


# ------------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("kind", ["estimators", "quadratic", "rates", "finetune"])
def test_other_records_are_refused(kind: str) -> None:
    with pytest.raises(BadInput, match=f"these records lack .*give records of `smoothlab {kind}`"):
        draw(kind, pd.DataFrame(rows([BASE], [0])).assign(path="run.jsonl"))


def test_records_without_a_part_that_is_drawn_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(BadInput, match="hold none of the parts bias, variance"):
        draw("estimators", estimator_table([row("other", "x", "error", 1.0)]))
    with pytest.raises(BadInput, match="hold none of the parts theorem, counterexample"):
        draw("rates", table[:0])


def test_the_command_line_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.jsonl", list(bias_rows()), experiment="estimators")
    assert main(["plot", str(path), "--kind", "estimators", "--out", str(tmp_path / "e.png")]) == 0
    assert (tmp_path / "e.png").read_bytes()[:4] == b"\x89PNG"
    other = write(tmp_path / "s.jsonl", rows([BASE], [0]))
    assert main(["plot", str(other), "--kind", "estimators", "--out", str(tmp_path / "f.png")]) == 2
    assert "give records of `smoothlab estimators`" in capsys.readouterr().err
    assert main(["plot", str(other), "--kind", "fig1a", "--block", "layer.9", "--out", str(tmp_path / "f.png")]) == 2
    assert "--block layer.9: frobenius was measured of base" in capsys.readouterr().err
