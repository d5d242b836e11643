"""Rules for figures of every kind: each mark has a legend, each label is inside, blocks are told apart."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from smoothlab import records
from smoothlab.report import FIGURES, curvature, draw, panels

from .curved_path import BASE, HEAD, PEFT, layers, methods, table
from .test_growth import fitted
from .test_layer_map import table as measured_layers

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
CASES = {
    "fig1a": ("fig1a", "fig1a_*.jsonl"), "fig1b": ("fig1b", "fig1b_*.jsonl"), "path": ("path", "fig1b_*.jsonl"),
    "path1a": ("path", "fig1a_*.jsonl"), "estimators": ("estimators", "estimators_*.jsonl"),
    "synthetic": ("estimators", "estimators_synthetic.jsonl"), "quadratic": ("quadratic", "quadratic.jsonl"),
    "rates": ("rates", "rates.jsonl"), "rates-curved": ("rates", "rates_curved.jsonl"),
    "fig2": ("finetune", "table1/fig2-*.jsonl"),
    "fig3": ("finetune", "table1/fig3-*.jsonl"), "seeds": ("finetune", "table1/sst2-*.jsonl"),
    "layers": ("fig1b", None), "depth": ("depth", None), "floors": ("fig1a", "floors"),
    "methods": ("methods", "methods"), "map": ("layers", "map"), "fit": ("fit", "fitted"),
    "fit-map": ("fit-map", "fitted"), "advise": ("advise", "advised"),
}  # fmt: skip


# The second of two alike is left to the second tier.
LATER = ("path1a", "synthetic", "seeds", "fig2")
PARAMS = [pytest.param(name, marks=[pytest.mark.check] * (name in LATER)) for name in CASES]


def advised():
    """Records of an advice on two rates: runs, the highest abandoned, and limits with and without intervals."""
    rows = []
    for option, scale in (("eta_x", 1e-4), ("eta_y", 1e-2)):
        limits = [
            ("predicted", "gradient norm", 2.0, 0.5, 8.0), ("predicted", "mean square", 5.0, None, None),
            ("predicted and tried", "loss above its start", 2.5, 1.2, 5.0),
        ]  # fmt: skip
        for source, condition, value, low, high in limits:
            ends = {"low": low and low * scale, "high": high and high * scale}
            rows.append({
                "part": "limit", "option": option, "source": source, "condition": condition,
                "value": value * scale, **ends,
            })  # fmt: skip
        for rate, loss in ((1.0, 0.7), (2.0, 0.65), (3.0, 1.4), (9.0, None)):
            rows.append({
                "part": "trial", "option": option, "rate": rate * scale, "loss_before": 0.8, "loss_after": loss,
                "steps": 20,
            })  # fmt: skip
    return rows


@pytest.fixture(scope="module", params=PARAMS)
def figure(request):
    kind, pattern = CASES[request.param]
    if pattern is None:
        drawn = draw(kind, table(layers(), noise=0.02))
    elif pattern == "methods":
        drawn = draw(kind, methods())
    elif pattern == "fitted":
        drawn = draw(kind, pd.DataFrame(fitted("base", "peft")))
    elif pattern == "map":
        drawn = draw(kind, measured_layers())
    elif pattern == "advised":
        drawn = draw(kind, pd.DataFrame(advised()))
    elif pattern == "floors":
        drawn = draw(kind, table([BASE, PEFT, HEAD], noise=0.05), blocks=("base", "peft"))
    else:
        drawn = draw(kind, records.load(RESULTS / pattern))
    drawn.draw_without_rendering()
    return drawn


def test_every_kind_of_figure_is_a_case():
    assert {kind for kind, _ in CASES.values()} == set(FIGURES)


def looks(legends):
    """Colors, markers (hollow ones by themselves), line styles and kinds of areas that legends show."""
    colors, kinds = set(), set()
    for legend in legends:
        for line in legend.findobj(Line2D):
            colors.add(to_hex(line.get_color()))
            kinds |= kinds_of(line)
        for patch in legend.findobj(Patch):
            if patch is not legend.get_frame():
                colors.add(to_hex(patch.get_facecolor()))
                kinds.add("area")
    return colors, kinds


def kinds_of(line):
    kinds = set()
    if line.get_marker() not in ("None", "", None):
        hollow = to_hex(line.get_markerfacecolor()) == "#ffffff"
        kinds.add("hollow" if hollow else f"marker {line.get_marker()}")
    if line.get_linestyle() != "None":
        kinds.add(f"line {line.get_linestyle()}")
    return kinds


def unexplained(figure):
    """Marks of a figure without a legend entry of their color and of their kind."""
    missing = []
    everywhere = [ax.get_legend() for ax in figure.get_axes() if ax.get_legend()] + figure.legends
    colors, _ = looks(everywhere)
    for ax in figure.get_axes():
        _, kinds = looks([legend for legend in (ax.get_legend(), *figure.legends) if legend])
        named = bool(ax.get_yticklabels()) and not ax.get_ylabel()  # categories stand at the axis
        for line in ax.lines:
            if not np.size(line.get_xdata()):
                continue
            if to_hex(line.get_color()) not in colors:
                missing.append((ax.get_xlabel(), line.get_color()))
            drawn = kinds_of(line)
            if named:
                drawn = {kind for kind in drawn if kind != "marker o"}
            missing += [(ax.get_xlabel(), kind) for kind in drawn - kinds]
        for artist in ax.collections:
            if isinstance(artist, LineCollection) and len(artist.get_segments()):
                if max(np.ptp(segment, axis=0).max() for segment in artist.get_segments()) > 0:
                    missing += [] if "marker |" in kinds else [(ax.get_xlabel(), "bar")]
            elif isinstance(artist, PolyCollection):
                missing += [] if "area" in kinds else [(ax.get_xlabel(), "band")]
    return missing


def test_every_mark_is_in_a_legend(figure):
    assert unexplained(figure) == []


def test_a_mark_without_a_legend_is_seen():
    figure = draw("fig1a", table())
    figure.get_axes()[0].plot([0, 60], [1, 1], "-.", marker="*", color="#123456")
    assert {what for _, what in unexplained(figure)} == {"#123456", "marker *", "line -."}


def test_every_label_is_inside_the_figure(figure):
    whole = figure.bbox
    boxes = {}
    for ax in figure.get_axes():
        boxes[f"axes of {ax.get_xlabel()}"] = ax.get_tightbbox()  # tick labels too
        for text in (ax.xaxis.label, ax.yaxis.label, *ax.texts):
            if text.get_text():
                boxes[text.get_text()] = text.get_window_extent()
        if ax.get_legend():
            boxes[f"legend of {ax.get_xlabel()}"] = ax.get_legend().get_window_extent()
    for legend in figure.legends:
        boxes["legend at the foot"] = legend.get_window_extent()
    outside = []
    for name, box in boxes.items():
        if box.x0 < whole.x0 - 1 or box.x1 > whole.x1 + 1 or box.y0 < whole.y0 - 1 or box.y1 > whole.y1 + 1:
            outside.append(name)
    assert outside == []


def test_no_legend_covers_data_or_another_panel(figure):
    boxes = [ax.get_window_extent() for ax in figure.get_axes()]
    legends = [ax.get_legend().get_window_extent() for ax in figure.get_axes() if ax.get_legend()]
    legends += [legend.get_window_extent() for legend in figure.legends]
    for legend in legends:
        for box in boxes:
            wide = min(legend.x1, box.x1) - max(legend.x0, box.x0)
            high = min(legend.y1, box.y1) - max(legend.y0, box.y0)
            assert min(wide, high) < 2
    for one, other in combinations(legends, 2):
        assert min(one.x1, other.x1) - max(one.x0, other.x0) < 2 or min(one.y1, other.y1) - max(one.y0, other.y0) < 2


@pytest.mark.parametrize("count", [12, 24])
def test_as_many_blocks_as_there_are_can_be_told_apart(count):
    blocks = [block.name for block in layers(count)]
    colors, markers = curvature.styles_of(blocks)
    assert list(colors) == blocks and colors["peft"] != colors["embedding"]
    for one, other in combinations(blocks, 2):
        distance = np.linalg.norm(np.subtract(to_rgb(colors[one]), to_rgb(colors[other])))
        assert distance > 0.02 and (distance > 0.15 or markers[one] != markers[other]), (one, other)


def test_saved_files_are_reproducible_and_errors_name_the_file(tmp_path):
    once, again = (tmp_path / name for name in ("once", "again"))
    for stem in (once, again):
        assert panels.save(draw("fig1a", table()), stem) == [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
    for kind in (".png", ".pdf"):
        assert once.with_suffix(kind).read_bytes() == again.with_suffix(kind).read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        panels.save(draw("fig1a", table(at=[0])), tmp_path / "file" / "fig")
