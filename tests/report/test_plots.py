import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from scipy import stats

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import plots
from smoothlab.stats import ranks, smoothness_table

from .curved_path import BASE, BATCH, HEAD, PEFT, SPREAD, rows, write

STEPS = [0, 10, 20, 30, 45, 60]


def table(blocks=(BASE,), at=STEPS, **options):
    return pd.DataFrame(rows(blocks, at, **options)).assign(path="run.jsonl", experiment="smoothness")


def truth(block=BASE, at=STEPS):
    trace = list(block.path(max(at) + 1))
    return np.array([np.linalg.norm(trace[step][2]) for step in at])


def gradients(block=BASE, at=STEPS):
    trace = list(block.path(max(at) + 1))
    return np.array([np.linalg.norm(trace[step][1]) for step in at])


@pytest.fixture
def ax():
    return Figure(figsize=(3.5, 2.6)).subplots()


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker and len(line.get_xdata())]


# ------------------------------------------------------------------------------------------------ readings


def test_paper_rows_are_rescaled_by_sqrt_d_over_batch():
    df = table(noise=0.02)
    printed, rescaled = (smoothness_table.points(df, "base", protocol="paper", printed=p) for p in (True, False))
    factor = np.sqrt(BASE.dim) / BATCH
    floor = 0.02 * gradients() * factor
    np.testing.assert_allclose(rescaled["value"], np.hypot(truth(), floor), rtol=1e-12)
    for column in ("value", "low", "high", "floor"):
        np.testing.assert_allclose(rescaled[column], printed[column] * factor, rtol=1e-12)
    np.testing.assert_allclose(rescaled["floor"], floor, rtol=1e-12)


def test_a_paper_row_of_value_zero_borrows_the_factor_of_its_run():
    df = table(protocols=("paper",))
    df.loc[0, ["value", "normalized"]] = 0.0
    found = smoothness_table.points(df, "base", protocol="paper")
    np.testing.assert_allclose(found["factor"], np.sqrt(BASE.dim) / BATCH)
    assert found["value"][0] == 0 and found["below"][0]


def test_ratio_interval_by_hand_and_by_simulation():
    found = smoothness_table.ratio(table([BASE, PEFT]))
    np.testing.assert_allclose(found["value"], truth() / truth(PEFT), rtol=1e-12)
    up = np.hypot(np.log(1 + SPREAD), np.log(1 / (1 - SPREAD)))
    np.testing.assert_allclose(np.log(found["high"] / found["value"]), up)
    np.testing.assert_allclose(np.log(found["value"] / found["low"]), up)
    # log-normal estimates with exact 95 % limits: the interval of the ratio must cover 95 % of the time
    generator, n, sigma = np.random.default_rng(0), 4000, np.array([0.05, 0.2])
    logs = generator.normal(np.log([12.0, 3.0]), sigma, (n, 2))
    half = stats.norm.ppf(0.975) * sigma
    both = [
        pd.DataFrame({"path": "r", "step": range(n), "block": name, "wrt": name, "quantity": "frobenius", "flag": None,
                      "protocol": "estimated", "value": np.exp(log), "low": np.exp(log - w), "high": np.exp(log + w),
                      "floor": None, "grad_norm": 1.0})
        for name, log, w in zip(("base", "peft"), logs.T, half, strict=True)
    ]  # fmt: skip
    found = smoothness_table.ratio(pd.concat(both, ignore_index=True))
    covered = int(((found["low"] <= 4) & (4 <= found["high"])).sum())
    assert stats.binomtest(covered, n, 0.95).pvalue > 1e-3


def test_ratio_without_usable_limits_has_no_interval():
    df = table([BASE, PEFT])
    df.loc[(df["block"] == "peft") & (df["quantity"] == "frobenius"), "low"] = 0.0
    found = smoothness_table.ratio(df)
    assert found["high"].isna().all() and found["low"].notna().all()
    assert smoothness_table.ratio(df[df["block"] == "base"]).empty


def test_spearman_agrees_with_scipy_and_its_interval_covers():
    generator = np.random.default_rng(1)
    correlation, n = 0.5, 30
    truth_rho = 6 / np.pi * np.arcsin(correlation / 2)  # Spearman's rho of the bivariate normal
    covered = 0
    for _ in range(1000):
        x, y = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], n).T
        found = ranks.spearman(x, y)
        covered += found.low <= truth_rho <= found.high
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert stats.binomtest(covered, 1000, 0.95, alternative="less").pvalue > 1e-3
    assert covered < 985  # an interval that always covers would say nothing


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, np.nan], [1, 2, 3, 4])]
)
def test_no_correlation_of_too_few_or_constant_points(x, y):
    assert ranks.spearman(x, y) is None


def test_perfect_order_of_few_points_stays_uncertain():
    four, six = (
        ranks.spearman(range(4), range(4)),
        ranks.spearman(range(6), [-i for i in range(6)]),
    )
    assert four.rho == 1 and four.low < 0 and four.high == 1  # p = 2/24 two-sided: not significant at 5 %
    assert six.rho == -1 and six.low == -1 and -1 < six.high < 0  # p = 2/720


# ------------------------------------------------------------------------------------------------ curves


def test_line_band_labels_and_axes(ax):
    plots.norm_along_training(ax, table(), "base")
    line = lines(ax, "o")[0]
    np.testing.assert_array_equal(line.get_xdata(), STEPS)
    np.testing.assert_allclose(line.get_ydata(), truth())
    bars = next(c for c in ax.collections if isinstance(c, LineCollection)).get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], np.outer(truth(), [1 - SPREAD, 1 + SPREAD]))
    assert ax.get_xlabel() == "step"
    assert ax.get_ylabel() == r"$\|H_{\mathrm{base}}\|_F$ (mean loss)"
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > truth().max() * (1 + SPREAD)
    assert labels(ax) == ["estimated, 95 % interval"]  # its floor is far below: neither drawn nor in the legend


def test_many_points_get_a_band(ax):
    at = list(range(0, 60, 3))
    plots.norm_along_training(ax, table(at=at), "base")
    band = next(c for c in ax.collections if isinstance(c, PolyCollection)).get_paths()[0].vertices
    for step, norm in zip(at, truth(at=at), strict=True):
        drawn = band[band[:, 0] == step, 1]
        assert drawn.min() == pytest.approx(norm * (1 - SPREAD)) and drawn.max() == pytest.approx(norm * (1 + SPREAD))


def test_points_under_their_floor_are_hollow_and_explained(ax):
    df = table(protocols=("paper",), noise=0.05)
    flagged = df["flag"].notna()
    assert 0 < flagged.sum() < len(df)  # the case is a real mix
    plots.norm_along_training(ax, df, "base", protocol="paper")
    hollow = next(line for line in lines(ax, "s") if line.get_linestyle() == "None")
    np.testing.assert_array_equal(hollow.get_xdata(), df.loc[flagged, "step"])
    assert to_rgba(hollow.get_markerfacecolor()) == to_rgba("white")
    assert labels(ax)[-1] == "hollow: under twice its floor"
    floor = next(line for line in ax.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(floor.get_ydata(), 0.05 * gradients() * np.sqrt(BASE.dim) / BATCH)
    assert "Appendix D.4: rounding floor" in labels(ax)


def test_a_value_below_its_floor_is_hollow_without_a_flag(ax):
    df = table(protocols=("estimated",))
    df.loc[(df["step"] == 20) & (df["quantity"] == "frobenius"), "floor"] = 1e3
    plots.norm_along_training(ax, df, "base")
    hollow = next(line for line in lines(ax, "o") if line.get_linestyle() == "None")
    np.testing.assert_array_equal(hollow.get_xdata(), [20])


def test_null_limits_negative_trace_and_several_runs(ax):
    df = pd.concat([table(), table().assign(path="other.jsonl")], ignore_index=True)
    df = df[df["quantity"] == "frobenius"].assign(quantity="trace")
    df["value"], df["low"], df["high"] = -df["value"], None, None
    plots.norm_along_training(ax, df, "base", "trace")
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] < -truth().max()
    assert len([line for line in lines(ax, "o") if line.get_linestyle() == "-"]) == 2
    assert labels(ax) == ["estimated"]  # one entry for both runs, and no interval is claimed
    plots.norm_against_gradient(ax.figure.add_subplot(), df, "base", "trace")


def test_scatter_is_log_log_with_the_correlation_of_scipy(ax):
    df = table(noise=0.002)
    plots.norm_against_gradient(ax, df, "base")
    assert ax.get_xscale() == ax.get_yscale() == "log"
    estimated, paper = (c for c in ax.collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(
        sorted(map(tuple, estimated.get_offsets())), sorted(zip(gradients(), truth(), strict=True))
    )
    assert len({tuple(color) for color in estimated.get_facecolors()}) == len(STEPS)  # one color a step
    assert len({tuple(color) for color in np.atleast_2d(paper.get_facecolors())}) == 1
    found = ranks.spearman(gradients(), truth())
    expected = f"{stats.spearmanr(gradients(), truth()).statistic:+.2f} ({found.low:+.2f} to {found.high:+.2f}), n = 6"
    assert labels(ax)[0] == f"estimated: rank corr. {expected}"
    floor = next(line for line in ax.lines if line.get_linestyle() == "--")
    slope = np.polyfit(np.log(floor.get_xdata()), np.log(floor.get_ydata()), 1)[0]
    assert slope == pytest.approx(1)  # rounding noise is proportional to the gradient
    assert "gradient norm" in ax.get_xlabel()


def test_scatter_draws_the_floor_of_each_run_by_itself(ax):
    runs = [table(protocols=("paper",), noise=noise).assign(path=str(noise)) for noise in (0.1, 0.2)]
    plots.norm_against_gradient(ax, pd.concat(runs, ignore_index=True), "base")
    floors = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert len(floors) == 2 and all(np.all(np.diff(line.get_ydata()) > 0) for line in floors)


def test_scatter_of_one_point_says_why_there_is_no_correlation(ax):
    plots.norm_against_gradient(ax, table(at=[0], protocols=("estimated",)), "base")
    assert labels(ax) == ["estimated: too few points for a correlation"]


def test_path_smoothness_beside_the_spectral_norm(ax):
    plots.path_smoothness(ax, table([BASE, PEFT]))
    trace = list(BASE.path(61))
    expected = [
        np.linalg.norm(trace[s + 1][1] - trace[s][1]) / np.linalg.norm(trace[s + 1][0] - trace[s][0]) for s in STEPS
    ]
    np.testing.assert_allclose(lines(ax, ".")[0].get_ydata(), expected)
    np.testing.assert_allclose(lines(ax, "o")[0].get_ydata(), [trace[s][2].max() for s in STEPS])
    # along the path of this loss the quotient cannot exceed the largest eigenvalue
    assert all(lines(ax, ".")[0].get_ydata() <= lines(ax, "o")[0].get_ydata())
    assert labels(ax)[:2] == ["base", "peft"]


def test_missing_rows_are_named(ax):
    df = table()
    with pytest.raises(BadInput, match=r"frobenius of peft \(estimated\); they hold: frobenius of base \(estimated\)"):
        plots.norm_along_training(ax, df, "peft")
    with pytest.raises(BadInput, match="lack floor"):
        plots.norm_along_training(ax, df.drop(columns="floor"), "base")
    with pytest.raises(BadInput, match="gradient_lipschitz"):
        plots.path_smoothness(ax, df[df["quantity"] == "frobenius"])
    with pytest.raises(BadInput, match="no finite value for frobenius"):
        plots.fig1a(Figure(), df[df["quantity"] == "spectral"])


# ------------------------------------------------------------------------------------------------ figures


def test_fig1a_reads_the_same_points_as_printed_on_its_right_axis():
    fig = plots.figure()
    plots.fig1a(fig, table(noise=0.02))
    left = fig.axes[0]
    fig.draw_without_rendering()
    twin = left.child_axes[0]
    assert "as printed in D.4" in twin.get_ylabel()
    np.testing.assert_allclose(np.array(twin.get_ylim()) * np.sqrt(BASE.dim) / BATCH, left.get_ylim())
    assert fig.axes[1].get_xscale() == "log"


@pytest.mark.parametrize("protocols", [("estimated",), ("paper",)])
@pytest.mark.parametrize("draw", [plots.fig1a, plots.fig1b])
def test_figures_with_one_point_or_one_protocol(draw, protocols, tmp_path):
    fig = plots.figure()
    draw(fig, table([BASE, PEFT], at=[0], protocols=protocols))
    assert plots.save(fig, tmp_path / "one", ("png",))[0].stat().st_size > 5000
    assert fig.get_layout_engine() is not None
    assert not any(child for ax in fig.axes for child in ax.child_axes) or protocols == ("paper",)


@pytest.mark.parametrize("noise", [1e-5, 0.3])  # far below the values, and above those of both blocks
def test_fig1b_panels_share_limits_that_hold_all_points(noise):
    fig = plots.figure(7, 3.9)
    plots.fig1b(fig, table([BASE, PEFT], noise=noise))
    estimated, paper, ratio, ratio_paper = fig.axes
    for ax in fig.axes:
        low, high = ax.get_ylim()
        drawn = np.concatenate([line.get_ydata() for marker in "os" for line in lines(ax, marker)])
        assert low < drawn.min() and drawn.max() < high
    assert estimated.get_ylim() == paper.get_ylim() and ratio.get_ylim() == ratio_paper.get_ylim()


def test_fig1b_ratio_panels_show_what_the_missing_root_does():
    fig = plots.figure(7, 3.9)
    plots.fig1b(fig, table([HEAD, PEFT, BASE], noise=1e-4))
    estimated, paper, ratio, ratio_paper = fig.axes
    assert estimated.get_yscale() == ratio.get_yscale() == "log"
    assert [label.split(",")[0] for label in labels(estimated)] == ["base", "peft", "head"]
    np.testing.assert_allclose(lines(ratio, "o")[0].get_ydata(), truth() / truth(PEFT))
    rescaled, printed = (line.get_ydata() for line in lines(ratio_paper, "s"))
    np.testing.assert_allclose(rescaled / printed, np.sqrt(BASE.dim / PEFT.dim))
    base, _, head = lines(estimated, "o")
    assert head.get_linewidth() < base.get_linewidth()


def test_fig1b_without_a_peft_module_draws_the_blocks():
    df = table([BASE, PEFT]).replace({"block": {"peft": "layer_1"}, "wrt": {"peft": "layer_1"}})
    fig = plots.figure()
    plots.fig1b(fig, df)
    assert len(fig.axes) == 2 and labels(fig.axes[0])[1] == "layer_1"
    assert plots.axis_label(["layer_1"], "frobenius") == r"$\|H\|_F$ of layer_1 (mean loss)"


def test_values_as_printed_are_drawn_and_labeled_as_such(ax):
    df = table(noise=0.02)
    plots.norm_along_training(ax, df, "base", protocol="paper", printed=True)
    np.testing.assert_allclose(lines(ax, "s")[0].get_ydata(), df.loc[df["protocol"] == "paper", "value"])
    assert ax.get_ylabel() == "as printed in Appendix D.4"


@pytest.mark.check
def test_legends_cover_no_data_and_stay_inside_the_figure():
    for draw, height in ((plots.fig1a, 2.9), (plots.fig1b, 3.9)):
        fig = plots.figure(7, height)
        draw(fig, table([BASE, PEFT, HEAD], noise=0.02))
        fig.draw_without_rendering()
        for ax in fig.axes:
            if ax.get_legend():
                box = ax.get_legend().get_window_extent()
                assert box.y0 >= ax.get_window_extent().y1 - 1
                assert box.x0 >= 0 and box.y1 <= fig.bbox.y1 and box.x1 <= fig.bbox.x1


@pytest.mark.check
def test_saved_files_are_reproducible_and_errors_name_the_file(tmp_path):
    once, again = (tmp_path / name for name in ("once", "again"))
    df = records.load(write(tmp_path / "r.jsonl", rows([BASE], STEPS)))
    for stem in (once, again):
        fig = plots.figure()
        plots.fig1a(fig, df)
        assert plots.save(fig, stem) == [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
    for kind in (".png", ".pdf"):
        assert once.with_suffix(kind).read_bytes() == again.with_suffix(kind).read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        plots.save(fig, tmp_path / "file" / "fig")
