"""Curves of the records of ``smoothlab quadratic``: functions ``(axes, DataFrame) -> None``, one a kind of curve.

In every panel a point is a measurement with its 95 % interval (smaller than the point where runs are exact), and a line
is a closed form.
"""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.axes import legend_above
from smoothlab.report.plots import COLORS, STYLE, figure

RULES = {
    "small": ("one rate $1/(2a)$", "#0072B2"),
    "large": ("one rate $1/(2b)$", "#D55E00"),
    "best": ("best single rate", "#009E73"),
    "two": ("two rates", "#000000"),
}
DIM_COLORS = (*COLORS[:6], "#882255", "#7F7F7F")
GRAY = "#7F7F7F"
NEEDED = ("part", "setting", "quantity", "rule", "ratio", "d", "distribution", "measured", "low", "high", "reference")


def rows_of(df: pd.DataFrame, part: str, quantity: str) -> pd.DataFrame:
    """Rows of one part and quantity that did not fail, with numbers as numbers.

    Raises:
        BadInput: the records are not those of ``smoothlab quadratic``.
    """
    missing = [name for name in NEEDED if name not in df.columns]
    if missing:
        raise BadInput(f"these records lack {', '.join(missing)}: give records of `smoothlab quadratic`")
    found = df[(df["part"] == part) & (df["quantity"] == quantity)].copy()
    for name in ("measured", "low", "high", "reference", "ratio", "eta_x", "scale"):
        found[name] = pd.to_numeric(found[name], errors="coerce").astype(float) if name in found else np.nan
    return found


def factor(ax: Axes, df: pd.DataFrame) -> None:
    """Factor of the slower block a step against a/b; above 1 it diverges, as 1/(2b) does beyond a/b = 2."""
    found = rows_of(df, "rates", "factor")
    a = np.geomspace(1, max(found["ratio"].max(), 10), 400)
    lines = {"small": 1 - 1 / a, "large": a - 1, "best": (a - 1) / (a + 1), "two": 0 * a}
    ax.axhspan(1, 2, color="#D55E00", alpha=0.08, lw=0)
    for rule, rows in _rules(found):
        label, color = RULES[rule]
        ax.plot(a, lines[rule], "-", lw=1, color=color, zorder=1)
        rows = rows[rows["measured"] < 1.7]
        ax.plot(rows["ratio"], rows["measured"], "o", ms=3, color=color, label=label, clip_on=False, zorder=3)
    ax.plot([2, 2], [0, 2], ":", lw=0.9, color=GRAY)
    told = "$1/(2b)$ diverges\nbeyond $a/b = 2$,\nnot 1 as printed"
    ax.text(0.97, 0.94, told, transform=ax.transAxes, fontsize=7, ha="right", va="top", color="#A04000")
    ax.set(xscale="log", xlim=(0.93, a[-1] * 1.08), ylim=(0, 2), xlabel="$a/b$", ylabel="factor a step")
    _plain(ax.xaxis)
    legend_above(ax, 2, "Exact gradients")


def exact_steps(ax: Axes, df: pd.DataFrame) -> None:
    """Steps to eps against a/b with exact gradients."""
    found = rows_of(df, "rates", "steps")
    for rule, rows in _rules(found):
        rows = rows[np.isfinite(rows["reference"])].sort_values("ratio")
        _line_and_points(ax, rows, RULES[rule][1], RULES[rule][0])
    ax.set(xscale="log", yscale="log", xlabel="$a/b$", ylabel="steps")
    ax.set_ylim(0.7, found["reference"][np.isfinite(found["reference"])].max() * 1.6)
    _plain(ax.xaxis)
    _plain(ax.yaxis)
    legend_above(ax, 2, "Steps to $\\varepsilon$" + _eps(df) + ", exact")


def hybrid_steps(ax: Axes, df: pd.DataFrame) -> None:
    """Steps to eps against a/b where x is zeroth-order: one best rate dashed, two rates solid, a color a dimension."""
    found = rows_of(df, "hybrid", "steps")
    for color, d, rows in _by_dimension(found):
        for rule, line, mark in (("best", "--", "s"), ("two", "-", "o")):
            part = rows[rows["rule"] == rule].sort_values("ratio")
            label = f"$d$ = {d:,}, " + ("one best rate" if rule == "best" else "two rates")
            _line_and_points(ax, part, color, label, line, mark)
    ax.set(xscale="log", yscale="log", xlabel="$a/b$", ylabel="steps (mean square)")
    _plain(ax.xaxis)
    legend_above(ax, 2, "The same, $x$ zeroth-order")


def mean_square(ax: Axes, df: pd.DataFrame) -> None:
    """(E||x+||^2/||x||^2 - 1) m against the rate, all dimensions on one parabola 4c(c - 1)."""
    found = rows_of(df, "noise", "mean square factor")
    c = np.linspace(0, found["scale"].max() * 1.08, 200)
    ax.plot(c, 4 * c * (c - 1), "-", lw=1, color="black", label="closed form")
    _scaled(ax, found[found["distribution"] == "gaussian"], lambda rows, m: (rows - 1) * m)
    ax.set(xlabel=r"rate $\eta$, in $2/(m \cdot 2a)$", ylabel=r"$m\,(E\|x^+\|^2/\|x\|^2 - 1)$")
    legend_above(ax, 3, "Zeroth-order step, $m = d + 2$")


def typical(ax: Axes, df: pd.DataFrame) -> None:
    """m E log(||x+||^2/||x||^2) against the rate: below 0 almost every run converges."""
    found = rows_of(df, "noise", "typical log factor")
    for color, _, rows in _by_dimension(found):
        rows = rows.sort_values("scale")
        ax.plot(rows["scale"], rows["reference"] * (rows["d"] + 2), "-", lw=0.7, color=color, zorder=1)
    _scaled(ax, found, lambda values, m: values * m)
    ax.set(xlabel=r"rate $\eta$, in $2/(m \cdot 2a)$", ylabel=r"$m\,E\log(\|x^+\|^2/\|x\|^2)$")
    legend_above(ax, 3, "The same, typical run")


def stable(ax: Axes, df: pd.DataFrame) -> None:
    """Largest stable rate times curvature and d: 2d/(d + 2) and 2 for zeroth-order steps, 2d for exact gradients."""
    found = rows_of(df, "noise", "largest stable rate")
    found = found[np.isclose(found["scale"], _middle(found["scale"]))]
    d = np.geomspace(1, found["d"].max() * 1.15, 100)
    lines = {
        "gaussian": (2 * d / (d + 2), "#0072B2", "gaussian: $2/(d+2)$"),
        "sphere": (2 + 0 * d, "#D55E00", "sphere: $2/d$"),
        "rademacher": (2 + 0 * d, "#CC79A7", "signs: $2/d$"),
    }
    for distribution, (line, color, name) in lines.items():
        rows = found[found["distribution"] == distribution]
        if len(rows):
            times = rows.assign(**{end: rows[end] * rows["d"] for end in ("measured", "low", "high")})
            ax.plot(d, line, "-", lw=1, color=color, zorder=1)
            _points(ax, rows["d"], times, color, name)
    almost = rows_of(df, "noise", "largest typical rate").sort_values("d")
    ax.plot(almost["d"], almost["reference"] * almost["d"], ":", lw=1, color="#0072B2", label="gaussian, typical run")
    ax.plot([1, 1.3], [2, 2.6], "-", lw=1, color=GRAY, label="exact: 2")
    ax.set(xscale="log", ylim=(0, 2.6), xlabel="dimension $d$", ylabel=r"largest stable $\eta \cdot 2a \cdot d$")
    _plain(ax.xaxis)
    legend_above(ax, 2, "What zeroth order costs: $1/d$")


PANELS = {
    "rates": (factor, exact_steps),
    "hybrid": (hybrid_steps,),
    "noise": (mean_square, typical, stable),
}


def quadratic_figure(df: pd.DataFrame) -> Figure:
    """All that was measured, two panels a row.

    Raises:
        BadInput: the records are not those of ``smoothlab quadratic``.
    """
    rows_of(df, "rates", "factor")
    there = set(df.loc[df["quantity"].notna(), "part"])  # a setting that failed has none
    drawn = [panel for part, panels in PANELS.items() if part in there for panel in panels]
    if not drawn:
        raise BadInput(
            "these records hold none of the parts rates, noise and hybrid: give those of `smoothlab quadratic`"
        )
    lines = -(-len(drawn) // 2)
    fig = figure(7.0, 2.6 * lines)
    with matplotlib.rc_context(STYLE):
        axes = fig.subplots(lines, min(2, len(drawn)), squeeze=False).ravel()
        for ax, panel in zip(axes, drawn, strict=False):
            panel(ax, df)
        for ax in axes[len(drawn) :]:
            ax.set_axis_off()
    return fig


def _by_dimension(found: pd.DataFrame) -> list[tuple[str, int, pd.DataFrame]]:
    """Color, d and rows; more dimensions than colors begin again with the first."""
    dims = sorted({int(d) for d in found["d"]})
    return [(DIM_COLORS[i % len(DIM_COLORS)], d, found[found["d"] == d]) for i, d in enumerate(dims)]


def _rules(found: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(rule, found[found["rule"] == rule]) for rule in RULES if (found["rule"] == rule).any()]


def _line_and_points(ax: Axes, rows: pd.DataFrame, color: str, label: str, line: str = "-", mark: str = "o") -> None:
    ax.plot(rows["ratio"], rows["reference"], line, lw=1, color=color, zorder=1)
    _points(ax, rows["ratio"], rows, color, label, mark)


def _points(ax: Axes, places: pd.Series, rows: pd.DataFrame, color: str, label: str | None, mark: str = "o") -> None:
    seen = rows["measured"].notna()
    ax.vlines(places[seen], rows["low"][seen], rows["high"][seen], color=color, lw=0.9)
    ax.plot(places[seen], rows["measured"][seen], linestyle="", marker=mark, ms=2.8, color=color, label=label, zorder=3)


def _scaled(ax: Axes, found: pd.DataFrame, scale: Any) -> None:
    """Points of each dimension side by side; intervals are scaled like the values."""
    each = _by_dimension(found)
    for index, (color, d, rows) in enumerate(each):
        m = d + 2
        moved = rows.assign(**{name: scale(rows[name], m) for name in ("measured", "low", "high")})
        place = rows["scale"] + 0.012 * (index - (len(each) - 1) / 2)
        _points(ax, place, moved, color, f"$d$ = {d:,}")
    ax.axhline(0, color=GRAY, lw=0.6, zorder=0)


def _middle(scales: pd.Series) -> float:
    """The scale next to 1, where the largest stable rate is seen best."""
    return float(scales.iloc[int((scales - 1).abs().to_numpy().argmin())])


def _eps(df: pd.DataFrame) -> str:
    configs = [head.get("config", {}).get("eps") for head in df.attrs.get("headers", {}).values()]
    return f" = {configs[0]:g}" if configs and configs[0] else ""


def _plain(axis: Any) -> None:
    axis.set_major_locator(ticker.LogLocator(numticks=6))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
