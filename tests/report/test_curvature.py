"""Figures of curvature draw what records hold, whose every number is known in closed form."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from scipy import stats

from smoothlab.errors import BadInput
from smoothlab.report import curvature, draw, panels
from smoothlab.stats import ranks

from .curved_path import BASE, BATCH, HEAD, PEFT, SPREAD, STEPS, gradients, layers, methods, table, truth


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines(ax, style="-"):
    return [line for line in ax.lines if np.size(line.get_xdata()) and line.get_linestyle() == style]


def hollow(ax):
    found = [line for line in ax.lines if to_hex(line.get_markerfacecolor()) == "#ffffff" and line.get_marker() in "os"]
    return np.concatenate([line.get_xdata() for line in found]) if found else np.array([])


def test_points_intervals_labels_and_axes():
    ax = draw("fig1a", table(protocols=("estimated",))).get_axes()[0]
    (line,) = lines(ax)
    np.testing.assert_array_equal(line.get_xdata(), STEPS)
    np.testing.assert_allclose(line.get_ydata(), truth())
    bars = next(c for c in ax.collections if isinstance(c, LineCollection)).get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], np.outer(truth(), [1 - SPREAD, 1 + SPREAD]))
    assert ax.get_xlabel() == "step" and ax.get_ylabel() == r"$\|H_{\mathrm{base}}\|_F$ (mean loss)"
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > truth().max() * (1 + SPREAD)
    assert labels(ax) == ["estimated"] and not lines(ax, "--")  # its floor is far below: it is not drawn
    assert curvature.label("frobenius", "layer_1") == r"$\|H\|_F$ of layer_1 (mean loss)"


def test_many_points_get_a_band():
    at = list(range(0, 60, 3))
    ax = draw("fig1a", table(at=at, protocols=("estimated",))).get_axes()[0]
    band = next(c for c in ax.collections if isinstance(c, PolyCollection)).get_paths()[0].vertices
    for step, norm in zip(at, truth(at=at), strict=True):
        drawn = band[band[:, 0] == step, 1]
        assert drawn.min() == pytest.approx(norm * (1 - SPREAD)) and drawn.max() == pytest.approx(norm * (1 + SPREAD))


def test_points_under_their_floor_are_hollow_and_the_floor_is_drawn():
    df = table(protocols=("paper",), noise=0.05)
    flagged = df["flag"].notna()
    assert 0 < flagged.sum() < len(df)  # the case is a real mix
    ax = draw("fig1a", df).get_axes()[0]
    np.testing.assert_array_equal(hollow(ax), df.loc[flagged, "step"])
    np.testing.assert_allclose(lines(ax, "--")[0].get_ydata(), 0.05 * gradients() * np.sqrt(BASE.dim) / BATCH)
    unflagged = table(protocols=("estimated",))
    unflagged.loc[(unflagged["step"] == 20) & (unflagged["quantity"] == "frobenius"), "floor"] = 1e3
    np.testing.assert_array_equal(hollow(draw("fig1a", unflagged).get_axes()[0]), [20])


def test_values_of_the_paper_are_drawn_in_the_unit_of_the_estimated_ones():
    df = table(noise=0.02)
    left, _ = draw("fig1a", df).get_axes()
    paper, estimated = lines(left)
    printed = df.loc[df["protocol"] == "paper", "value"].to_numpy()
    np.testing.assert_allclose(paper.get_ydata() / printed, np.sqrt(BASE.dim) / BATCH)
    np.testing.assert_allclose(estimated.get_ydata(), truth())
    assert labels(left)[0] == r"Appendix D.4, $\times\sqrt{d}$/batch = 234"


def test_null_limits_negative_trace_and_several_runs():
    df = pd.concat([table(), table().assign(path="other.jsonl")], ignore_index=True)
    df = df[(df["quantity"] == "frobenius") & (df["protocol"] == "estimated")].assign(quantity="trace")
    df["value"], df["low"], df["high"] = -df["value"], None, None
    left, right = draw("fig1a", df, "trace").get_axes()
    assert left.get_yscale() == "linear" and left.get_ylim()[0] < -truth().max() and right.get_yscale() == "linear"
    assert len(lines(left)) == 2 and labels(left) == ["estimated"]  # one entry for both runs


def test_scatter_is_log_log_with_the_correlation_of_scipy():
    right = draw("fig1a", table(noise=0.002)).get_axes()[1]
    assert right.get_xscale() == right.get_yscale() == "log"
    points = [line for line in right.lines if line.get_marker() == "o" and np.size(line.get_xdata())][0]
    expected = sorted(zip(gradients(), truth(), strict=True))
    np.testing.assert_allclose(sorted(zip(points.get_xdata(), points.get_ydata(), strict=True)), expected)
    limits = ranks.spearman(gradients(), truth())
    rho = stats.spearmanr(gradients(), truth()).statistic
    assert f"rank correlation {rho:+.2f} ({limits.low:+.2f} to {limits.high:+.2f}), n = 6" in labels(right)
    one = draw("fig1a", table(at=[0], protocols=("estimated",))).get_axes()[1]
    assert labels(one) == ["rank correlation of too few points"]


def test_fig1b_shares_its_range_and_shows_what_the_missing_root_does():
    estimated, paper, ratio = draw("fig1b", table([HEAD, PEFT, BASE], noise=1e-4)).get_axes()
    assert estimated.get_ylim() == paper.get_ylim() and estimated.get_yscale() == ratio.get_yscale() == "log"
    assert labels(estimated) == ["base", "peft", "head"]
    careful, rescaled, printed = (line.get_ydata() for line in lines(ratio))
    np.testing.assert_allclose(careful, truth() / truth(PEFT))
    np.testing.assert_allclose(rescaled / printed, np.sqrt(BASE.dim / PEFT.dim))


@pytest.mark.parametrize("noise", [1e-5, 0.3])  # far below the values, and above those of both blocks
def test_limits_hold_all_points(noise):
    for ax in draw("fig1b", table([BASE, PEFT], noise=noise)).get_axes():
        low, high = ax.get_ylim()
        drawn = np.concatenate([line.get_ydata() for line in lines(ax)])
        assert low < drawn.min() and drawn.max() < high


def test_blocks_are_chosen_by_name():
    df = table(layers(3), protocols=("estimated",))
    (ax,) = draw("fig1b", df, blocks=("layer.0", "peft")).get_axes()
    assert labels(ax) == ["layer.0", "peft"]
    assert len(draw("fig1a", df, blocks=("layer.0", "peft")).get_axes()) == 4
    with pytest.raises(BadInput, match=r"--block layer.7: frobenius was measured of peft, head, embedding, layer.0"):
        draw("fig1b", df, blocks=("layer.7",))


def test_methods_have_a_color_each_in_a_panel_a_block():
    base, peft, over_base, over_peft = draw("methods", methods()).get_axes()
    assert labels(base) == ["fo-peft", "hybrid", "zo"] and labels(peft) == ["fo-peft", "hybrid"]
    first_order, hybrid, zeroth_order = lines(base)
    np.testing.assert_allclose([line.get_ydata() for line in lines(over_base)[-2:]], [[0.5] * 6, [1.5] * 6])
    assert labels(over_peft) == ["equal norms", "hybrid"]
    np.testing.assert_allclose(hybrid.get_ydata(), truth())
    np.testing.assert_allclose(first_order.get_ydata(), 2 * truth())
    np.testing.assert_allclose(zeroth_order.get_ydata(), 3 * truth())
    assert len({line.get_color() for line in lines(base)}) == 3
    with pytest.raises(BadInput, match="these records name no method"):
        draw("methods", table())


def test_depth_shows_the_layers_in_the_order_of_the_forward_pass():
    blocks = layers(3)
    (ax,) = draw("depth", table(blocks, protocols=("estimated",))).get_axes()
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names == ["embedding", "0", "1", "2", "head", "peft"]
    assert labels(ax) == ["step 0", "step 20", "step 30", "step 60"]
    first = [line for line in ax.lines if np.size(line.get_xdata())][0]
    order = [blocks[0], *blocks[1:4], HEAD, PEFT]
    np.testing.assert_allclose(first.get_ydata(), [truth(block)[0] for block in order])
    with pytest.raises(BadInput, match="no layer among the blocks base: measure with --blocks layer"):
        draw("depth", table())


def test_path_smoothness_beside_the_spectral_norm():
    (ax,) = draw("path", table([BASE, PEFT])).get_axes()
    trace = list(BASE.path(61))
    expected = []
    for step in STEPS:
        (w, g, _), (w_next, g_next, _) = trace[step], trace[step + 1]
        expected.append(np.linalg.norm(g_next - g) / np.linalg.norm(w_next - w))
    np.testing.assert_allclose(lines(ax)[0].get_ydata(), expected)
    spectral = [line for line in ax.lines if line.get_marker() == "o" and np.size(line.get_xdata())][0]
    np.testing.assert_allclose(spectral.get_ydata(), [trace[s][2].max() for s in STEPS])
    # along the path of this loss the quotient cannot exceed the largest eigenvalue
    assert all(lines(ax)[0].get_ydata() <= spectral.get_ydata())


def test_missing_rows_are_named():
    df = table()
    with pytest.raises(BadInput, match=r"--block peft: frobenius was measured of base; name some of these"):
        draw("fig1b", df, blocks=("peft",))
    with pytest.raises(BadInput, match="lack floor"):
        draw("fig1a", df.drop(columns="floor"))
    with pytest.raises(BadInput, match="gradient_lipschitz"):
        draw("path", df[df["quantity"] == "frobenius"])
    with pytest.raises(BadInput, match="no finite value for frobenius"):
        draw("fig1a", df[df["quantity"] == "spectral"])


def test_an_open_end_runs_out_of_the_panel_and_a_value_that_was_not_measured_is_hollow():
    rows = pd.DataFrame({"x": [1.0, 2.0], "measured": [5.0, None], "low": [4.0, None], "high": [np.inf, None],
                         "reference": [5.0, 6.0], "kind": "a"})  # fmt: skip
    (ax,) = panels.grid([[lambda ax: panels.panel(ax, rows, "x", ["kind"])]], {}).get_axes()
    (bar,) = next(c for c in ax.collections if isinstance(c, LineCollection)).get_segments()
    assert bar[1, 1] > 1e5
    np.testing.assert_array_equal(hollow(ax), [2.0])
    signed = pd.DataFrame({"measured": [-3.0, 2.0], "low": [-8.0, 1.0], "high": [2.0, 3.0]})
    sizes = panels.magnitudes(signed, 0.1)
    assert list(sizes["measured"]) == [3.0, 2.0] and list(sizes["hollow"]) == [True, False]
    assert list(sizes["low"]) == [0.01, 1.0] and list(sizes["high"]) == [8.0, 3.0]
