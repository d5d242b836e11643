"""Figure, reading and page of the estimators, from records whose every number is made up."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from smoothlab.__main__ import main
from smoothlab.errors import BadInput
from smoothlab.report import page
from smoothlab.report import plots_estimators as plots
from smoothlab.report import sentences_estimators as sentences

from .curved_path import BASE, PEFT, rows, write
from .test_page import Page

MUS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)


def row(part, setting, quantity, measured, spread=0.1, **told):
    name = told.get("estimator", "two-sided gaussian")
    return {
        "kind": "row",
        "part": part,
        "setting": f"{part}/{setting}",
        "quantity": quantity,
        "estimator": name,
        "distribution": "gaussian",
        "sides": 2,
        "q": 1,
        "average": "plain",
        "mu": 0.1,
        "dtype": "float64",
        "d": 9,
        "draws": 100,
        "measured": measured,
        "low": measured * (1 - spread),
        "high": measured * (1 + spread),
        "reference": None,
        "predicted": None,
        "stream": "cpu/AVX512/torch-2.13.0/chunk-131072",
        "function": "cosh",
        "block": "theta",
    } | told


def bias_rows():
    for distribution, factor in (("gaussian", 1.0), ("rademacher", 0.5)):
        for mu in MUS:
            found = row(
                "bias",
                f"cosh/{distribution}",
                "bias",
                1.05 * factor * mu**2,
                distribution=distribution,
                mu=mu,
                exact=True,
                reference=factor * mu**2,
            )
            yield found | ({"measured": -3e-12, "low": -8e-12, "high": 2e-12} if mu == 1e-6 else {})
            if distribution == "gaussian":
                yield row("bias", f"cosh/{distribution}", "bias", mu**2, 2.0, mu=mu, dtype="float32", reference=mu**2)


def variance_rows():
    for d in (4, 16):
        for sides in (2, 1):
            exact = d + 1 + (sides == 1) * d**2 / 40
            yield row("variance", "gaussian", "error", 1.02 * exact, d=d, sides=sides, reference=exact)
    for average, sides, exact in (("plain", 2, 65), ("antithetic", 1, 130), ("orthogonal", 2, 63)):
        for q in (2, 8):
            yield row("averages", average, "error", exact / q, average=average, sides=sides, q=q, d=64,
                      reference=exact / q)  # fmt: skip


def curve_rows(part, block, dtypes):
    for dtype, noise in dtypes.items():
        for sides in (1, 2):
            for mu in MUS:
                predicted = float(np.hypot(mu**sides, noise / mu))
                yield row(part, f"{block}/{dtype}", "derivative error", 1.1 * predicted, dtype=dtype, sides=sides,
                          block=block, mu=mu, predicted=predicted)  # fmt: skip
            best = row(part, f"{block}/{dtype}", "best mu", 1e-3, 0.5, dtype=dtype, sides=sides, block=block,
                       predicted=2e-3, edge=dtype == "float64")  # fmt: skip
            yield best | ({"low": 0.0} if dtype == "float64" else {})


def model_rows():
    for kind, estimator in (("gaussian", "two-sided gaussian"), ("one-sided", "one-sided gaussian")):
        told = {"estimator": estimator, "d": 1000, "block": "base", "function": "micro", "mu": 1e-3}
        yield row("model-variance", kind, "error", 900.0, 0.2, reference=1001.0, **told)
    for kind, cost in (("gaussian", 0.62), ("kept", 0.31)):
        told = {"block": "base", "function": "micro", "d": 1000}
        yield row("model-cost", kind, "pass in forwards", cost, **told)
        yield row("model-cost", kind, "share of a step", cost / (1 + cost), **told)


def all_rows():
    yield from bias_rows()
    yield from variance_rows()
    yield from curve_rows("curve", "theta", {"float64": 1e-16, "float32": 1e-7})
    for block in ("base", "peft"):
        yield from curve_rows("model-curve", block, {"float32": 1e-7, "bfloat16": 1e-3})
    yield from model_rows()


def table(found=None):
    return pd.DataFrame(all_rows() if found is None else found).drop(columns="kind").assign(path="run.jsonl")


@pytest.fixture
def ax():
    return Figure(figsize=(3.5, 2.6)).subplots()


def lines(ax, marker=None, style=None):
    drawn = [line for line in ax.lines if len(line.get_xdata())]
    return [line for line in drawn if (marker is None or line.get_marker() == marker)
            and (style is None or line.get_linestyle() == style)]  # fmt: skip


# ------------------------------------------------------------------------------------------------ panels


def test_bias_is_drawn_with_closed_form_and_hollow_where_it_may_be_zero(ax):
    plots.bias(ax, table())
    first = lines(ax, "o")[0]
    np.testing.assert_allclose(first.get_ydata(), [3e-12, *(1.05 * np.square(MUS[1:]))])
    hollow = [line for line in lines(ax, "o") if to_rgba(line.get_markerfacecolor()) == to_rgba("white")]
    np.testing.assert_allclose(np.concatenate([line.get_xdata() for line in hollow]), [1e-6, 1e-6])
    straight = lines(ax, style="-")[0]
    np.testing.assert_allclose(straight.get_ydata(), np.square(MUS))
    dotted = next(line for line in ax.lines if line.get_label() == "slope 2")
    x, y = np.log(dotted.get_xdata()), np.log(dotted.get_ydata())
    assert (y[1] - y[0]) / (x[1] - x[0]) == pytest.approx(2)
    bars = [one for one in ax.collections if isinstance(one, LineCollection)][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars[1:]], [[0.945 * m**2, 1.155 * m**2] for m in MUS[1:]])


def test_bias_over_its_closed_form_has_the_interval(ax):
    plots.bias_over_closed_form(ax, table())
    np.testing.assert_allclose(lines(ax, "o")[0].get_ydata()[1:], 1.05)
    assert ax.get_yscale() == "linear"


def test_errors_are_drawn_over_d_plus_1_and_times_q(ax):
    plots.against_dimension(ax, table())
    two, one = lines(ax, "o")[0], lines(ax, "s")[0]
    np.testing.assert_allclose(two.get_ydata(), 1.02)
    np.testing.assert_allclose(one.get_ydata(), [1.02 * (5 + 0.4) / 5, 1.02 * (17 + 6.4) / 17])
    fresh = Figure().subplots()
    plots.against_directions(fresh, table())
    heights = {line.get_label(): line.get_ydata() for line in fresh.lines if line.get_label() in plots.AVERAGE_COLORS}
    np.testing.assert_allclose(heights["antithetic"], 2.0)
    np.testing.assert_allclose(heights["orthogonal"], 63 / 65)


def test_curves_mark_the_best_mu_measured_and_predicted(ax):
    plots.curve(ax, table())
    black = [line.get_xdata()[0] for line in lines(ax, "|")]
    assert black == [2e-3, 2e-3]
    thick = [line for line in lines(ax) if line.get_linewidth() == 2.6]
    assert [line.get_color() for line in thick] == [plots.PRECISION_COLORS[name] for name in ("float64", "float32")]
    np.testing.assert_allclose(thick[1].get_xdata(), [5e-4, 1.5e-3])
    assert thick[0].get_xdata()[0] < ax.get_xlim()[0] and thick[0].get_xdata()[1] == 1.5e-3, "open below"
    points = [line for line in lines(ax, "o") if line.get_ydata()[0] == thick[0].get_ydata()[0]]
    assert not points, "at the grid's edge none is the best"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(set(labels)) == len(labels) == 5


def test_a_figure_has_a_panel_for_each_part_there_is():
    def labels(found):
        return [ax.get_xlabel() for ax in plots.estimators_figure(table(found)).axes]

    every = labels(None)
    assert len(every) == 6 + 2 + 2 and every[2] == "dimension $d$"
    assert len(labels(bias_rows())) == 2 and len(labels(model_rows())) == 2
    assert len(labels(curve_rows("model-curve", "head", {"bfloat16": 1e-3}))) == 1


@pytest.mark.check
def test_no_legend_or_title_covers_data_or_leaves_the_figure():
    figure = plots.estimators_figure(table())
    figure.draw_without_rendering()
    whole = figure.bbox
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1 and box.y0 >= whole.y0 - 1 and box.y1 <= whole.y1 + 1
        if (legend := ax.get_legend()) is not None:
            assert legend.get_window_extent().y0 >= ax.get_window_extent().y1 - 1


def test_other_records_are_refused():
    with pytest.raises(BadInput, match="lack part, setting.*give records of `smoothlab estimators`"):
        plots.estimators_figure(pd.DataFrame(rows([BASE], [0])))
    with pytest.raises(BadInput, match="hold no rows of an estimator"):
        plots.estimators_figure(table([row("other", "x", "error", 1.0)]))


# ------------------------------------------------------------------------------------------------ sentences


def test_the_reading_is_of_the_numbers():
    told = "\n".join(sentences.reading(table()))
    assert "On the cosh function (d = 9) the bias grows with mu to the power 2.00 (2 distributions" in told
    assert "10 of 10 intervals of the bias" in told and "these are 2 independent looks" in told
    assert "In fp64 rounding hides the bias of two-sided Gaussian directions from mu = 1e-06 to 1e-06" in told
    assert "10 of 10 intervals of squared errors" in told and "these are 5 independent looks" in told
    assert "At d = 16 the squared error of a two-sided estimate" in told
    assert "gaussian 17.3 (15.6 to 19.1; closed form 17.0)" in told
    assert "Averaged over q = 8 directions (d = 64): plain 8.12 (7.31 to 8.94; closed form 8.12)" in told
    assert "fp32 0.00100 (0.0005 to 0.00150), predicted 0.00200" in told
    assert "fp64 below 0.00150, at the grid's edge or beyond, predicted 0.00200" in told
    assert "On micro base" in told or "On cosh base" in told
    assert "squared error over (d + 1) times the squared gradient is: gaussian 0.899; one-sided gaussian 0.899" in told
    assert "2 of 2 intervals hold the closed form of a quadratic" in told
    assert "gaussian kept for the step 0.310 (0.279 to 0.341) forwards, 24 % of a two-sided step" in told


def test_a_bias_that_is_not_the_closed_form_is_not_counted():
    df = table(bias_rows())
    df.loc[df["distribution"] == "rademacher", "reference"] *= 1.3
    assert "6 of 10 intervals of the bias" in "\n".join(sentences.reading(df))
    df.loc[(df["distribution"] == "rademacher") & (df["mu"] == 1e-6), "low"] = 1e-12
    assert "5 of 10 intervals of the bias" in "\n".join(sentences.reading(df))


def test_a_bias_under_the_floor_of_rounding_is_told():
    df = table(bias_rows()).assign(floor=np.nan)
    df.loc[df["distribution"] == "rademacher", "floor"] = 1e-10
    told = "\n".join(sentences.reading(df))
    assert "Up to mu = 1e-06 the intervals of rademacher directions are mostly rounding" in told


def test_open_intervals_are_drawn_to_the_edge_and_told(ax):
    found = [row("variance", "gaussian", "error", 5.0, d=d, reference=5.0) for d in (4, 16)]
    found[0]["high"] = None  # as records hold infinity
    df = table(found)
    plots.against_dimension(ax, df)
    assert 0 < ax.get_ylim()[1] < 10
    (bars, *_) = [one.get_segments() for one in ax.collections if isinstance(one, LineCollection)]
    assert bars[0][1, 1] > 1e5 and bars[1][1, 1] < 10
    assert "2 of 2 intervals of squared errors" in "\n".join(sentences.reading(df))
    curve = table(curve_rows("curve", "theta", {"float32": 1e-7}))
    for low, high, words in ((0.0, None, "anywhere"), (1e-4, None, "above 0.0001"), (0.0, 1e-2, "below 0.0100")):
        curve.loc[curve["quantity"] == "best mu", ["low", "high"]] = low, np.nan if high is None else high
        assert f"fp32 0.00100 ({words}), predicted" in "\n".join(sentences.reading(curve))


def test_precision_that_loses_the_derivative_is_named():
    told = "\n".join(sentences.reading(table(curve_rows("model-curve", "base", {"bfloat16": 1e-3}))))
    assert "base in bf16 a two-sided derivative is off by half of itself or more up to mu = 0.00100" in told


def test_doubts_name_what_was_measured():
    told = " ".join(sentences.uncertain(table()))
    assert (
        "2 of 12 lie at the grid's edge, or beyond" in told
        and "rare large draws" not in told
        and "before training" in told
        and "this machine" in told
    )
    assert "before training" not in " ".join(sentences.uncertain(table(bias_rows())))
    few = table([{**one, "draws": 6, "flag": "rare draws"} for one in model_rows()])
    assert "2 of 2 intervals of squared errors rest on samples that cannot exclude that rare large draws" in " ".join(
        sentences.uncertain(few)
    )


# ------------------------------------------------------------------------------------------------ page and scripts


@pytest.mark.check
def test_the_demo_page_has_the_estimators_as_a_section(tmp_path):
    norms = [one for one in rows([BASE, PEFT], [0, 10], ("estimated",)) if one["quantity"] == "frobenius"]
    smooth = write(tmp_path / "a.jsonl", norms)
    found = write(tmp_path / "c.jsonl", list(all_rows()), {"draws": 4321}, "estimators")
    shown = Page(page.demo_report(tmp_path / "out", smooth, smooth, found).read_text(encoding="utf-8"))
    text = "\n".join(shown.text)
    assert "Zeroth-order estimators: bias, variance, rounding, cost" in shown.text and "4321" in text
    assert "grows with mu to the power 2.00" in text and "a best mu is read off a grid" in text
    assert {"estimators.png", "estimators.pdf"} < {path.name for path in (tmp_path / "out").iterdir()}
    alts = [value for tag, name, value in shown.attributes if name == "alt"]
    assert any("Zeroth-order gradient estimators" in alt for alt in alts)


@pytest.mark.check  # the next test draws the same figure by the command line
def test_figures_script_draws_and_reads(tmp_path, capsys):
    path = Path(__file__).parents[2] / "figures" / "estimators.py"
    spec = importlib.util.spec_from_file_location("estimators_figure", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    write(tmp_path / "c.jsonl", list(all_rows()), experiment="estimators")
    assert module.main(["--records", str(tmp_path / "*.jsonl"), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"estimators.png", "estimators.pdf"}
    assert "grows with mu to the power 2.00" in capsys.readouterr().out
    assert module.main(["--records", str(tmp_path / "none*")]) == 2
    assert re.fullmatch(r"estimators: no record file matches .*\n", capsys.readouterr().err)


def test_the_command_line_plots_estimators(tmp_path, capsys):
    path = write(tmp_path / "c.jsonl", list(bias_rows()), experiment="estimators")
    assert main(["plot", str(path), "--kind", "estimators", "--out", str(tmp_path / "e.png")]) == 0
    assert (tmp_path / "e.png").read_bytes()[:4] == b"\x89PNG"
    other = write(tmp_path / "s.jsonl", rows([BASE], [0]))
    assert main(["plot", str(other), "--kind", "estimators", "--out", str(tmp_path / "f.png")]) == 2
    assert "give records of `smoothlab estimators`" in capsys.readouterr().err
