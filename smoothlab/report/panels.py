"""The plumbing of all figures: `panel` draws rows as points, intervals and lines; `grid` puts panels into one figure.

A row has measured, low, high and reference, whatever was measured. A point is a measurement, a bar or band its 95 %
interval, a line the reference (a closed form, a recursion, a rounding floor); a hollow point carries a warning or is
the reference alone. The legend above a panel names its colors and marks, where it covers no data; the legend at the
foot of a figure says what bars, lines and hollow points mean.

Colors are those of Okabe and Ito (2008) and Tol's wine, which color-blind readers can tell apart.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from smoothlab.errors import BadInput

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES = ("-", "--", ":", "-.")
# Marks that the legend at the foot of a figure explains have labels of their kind: these, _interval, _hollow and _tick.
# The underscore keeps them out of the panels' legends.
LABELS = {"-": "_line", "--": "_dashed"}
GRAY = "#666666"
BAND_FROM = 13  # from this many joined points on intervals are a band; bars show that each stands for one point
NUMBERS = ("measured", "low", "high", "reference")
STYLE: Any = {
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8.5, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4, "lines.linewidth": 1.2, "lines.markersize": 3.2, "pdf.fonttype": 42,
}  # fmt: skip
Draw = Callable[[Axes], None]


def panel(
    ax: Axes, rows: pd.DataFrame, x: str, series: Sequence[str], *, xlabel: str = "", ylabel: str = "", title: str = "",
    scale: str = "", names: Mapping[Any, str] | None = None, colors: Mapping[Any, str] | None = None,
    markers: Mapping[Any, str] | None = None, line: str = "", joined: bool = False, horizontal: bool = False,
    columns: int = 3, dodge: float = 0.0,
) -> None:  # fmt: skip
    """Draw rows against the column `x`.

    Args:
        ax: axes to draw in.
        rows: table with the columns `x`, measured, low, high, reference and those of `series`; where needed hollow
            (bool) and run (points of different runs are not joined).
        x: column of the horizontal axis, or of the vertical one where `horizontal`.
        series: column whose values have a color each, and perhaps a second one whose values have a marker and a line
            each.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.
        title: heading of the legend.
        scale: logarithmic axes: "", "x", "y" or "xy".
        names: legend entries of values; by default the value.
        colors: colors of the first column's values; only these are drawn, in this order.
        markers: markers of the values; "" draws the line alone.
        line: line of all references, instead of one for each value of the second column.
        joined: join measured points, in the order of `x`.
        horizontal: measured values are abscissas, and references ticks.
        columns: columns of the legend, at most.
        dodge: shift from one series to the next, so that intervals stand side by side; a factor on a logarithmic axis.
    """
    names, markers = names or {}, markers or {}
    rows = rows.assign(first=rows[series[0]], second="")
    if len(series) > 1:
        rows["second"] = rows[series[1]]
    colors = colors or _palette(rows["first"])
    firsts = [key for key in colors if (rows["first"] == key).any()]
    seconds = rows["second"].unique().tolist()
    shift = -(len(firsts) * len(seconds) - 1) / 2  # of the first series from the middle, in units of `dodge`
    for first in firsts:
        for j, second in enumerate(seconds):
            part = rows[(rows["first"] == first) & (rows["second"] == second)].sort_values(x)
            marker = markers.get(second, markers.get(first, MARKERS[j]))
            positions = part[x].astype(float)
            _reference(ax, positions, part, colors[first], line or LINES[j], horizontal)
            if marker or joined:
                shifted = positions + dodge * shift
                if "x" in scale:
                    shifted = positions * (1 + dodge) ** shift
                _points(ax, shifted, part, colors[first], marker, joined, horizontal)
            shift += 1
        marker = "s"
        if len(series) == 1:
            marker = markers.get(first, MARKERS[0])
        lined = joined or not marker
        if not horizontal and rows.loc[rows["first"] == first, "reference"].notna().any():
            lined = True
        _entry(ax, names.get(first, str(first)), marker, colors[first], "-" if lined else "None")
    if len(series) > 1:
        for j, second in enumerate(seconds):
            _entry(ax, names.get(second, str(second)), markers.get(second, MARKERS[j]), GRAY, line or LINES[j], lw=0.9)
    values = pd.concat([rows["measured"], rows["reference"]])
    _logarithmic(ax, scale, values if horizontal else rows[x], values)
    ax.set(xlabel=xlabel or ax.get_xlabel(), ylabel=ylabel or ax.get_ylabel())
    legend_above(ax, title, columns)


def _logarithmic(ax: Axes, scale: str, across: pd.Series, up: pd.Series) -> None:
    """Make the axes in `scale` ("", "x", "y" or "xy") logarithmic, with ticks for the values along them."""
    if "x" in scale:
        ax.set_xscale("log")
        plain_ticks(ax.xaxis, across)
    if "y" in scale:
        ax.set_yscale("log")
        plain_ticks(ax.yaxis, up)


def _reference(ax: Axes, at: pd.Series, rows: pd.DataFrame, color: str, style: str, horizontal: bool) -> None:
    """The references of one series: a line, or ticks beside measured values on the horizontal axis."""
    reference = rows["reference"].astype(float)
    if horizontal:  # a reference without a measurement is no tick, but a hollow point
        compared = reference.notna() & rows["measured"].notna()
        if compared.any():
            ax.plot(reference[compared], at[compared], "|", ms=9, mew=1.3, color="black", label="_tick")
    elif reference.notna().sum() > 1:
        ax.plot(at, reference, style, lw=0.9, color=color, zorder=1, label=LABELS.get(style))


def _entry(ax: Axes, label: str, marker: str, color: str, style: str, lw: float | None = None) -> None:
    """An entry of the legend, a line without points: what is drawn may be hollow, or have several markers."""
    ax.plot([], [], label=label, marker=marker, color=color, ls=style, lw=lw)


def _palette(values: pd.Series) -> dict[Any, str]:
    """A color for each value: of numbers in their order, of others as they come."""
    keys = values.dropna().unique().tolist()
    if pd.api.types.is_numeric_dtype(values):
        keys.sort()
    return dict(zip(keys, COLORS * 2, strict=False))


def _points(
    ax: Axes, at: pd.Series, rows: pd.DataFrame, color: str, marker: str, joined: bool, horizontal: bool
) -> None:
    """Points of one series with intervals; where nothing was measured, a hollow point at the reference."""
    value = rows["measured"].astype(float).fillna(rows["reference"].astype(float))
    hollow = rows["measured"].isna()
    if "hollow" in rows:
        hollow |= rows["hollow"].astype(bool)
    low, high = rows["low"].astype(float), rows["high"].astype(float)
    high = high.where(np.isfinite(high) | high.isna(), 1e6 * value.abs())  # an open end runs out of the panel
    runs = rows.get("run", pd.Series("", rows.index)).astype(str)
    barred = low.notna() & high.notna() & value.notna()
    if joined and rows.groupby(runs).size().max() >= BAND_FROM:
        for _, run in rows[barred].groupby(runs[barred]):
            ends = low[run.index], high[run.index]
            ax.fill_between(at[run.index], *ends, color=color, alpha=0.22, lw=0, label="_interval")
    elif (low < high)[barred].any():
        bars: Callable[..., Any] = ax.vlines
        if horizontal:
            bars = ax.hlines
        bars(at[barred], low[barred], high[barred], color=color, lw=1.0, zorder=2, label="_interval")
    if joined:
        drawn = value.notna()
        for _, run in rows[drawn].groupby(runs[drawn]):
            ax.plot(at[run.index], value[run.index], "-", lw=1.2, color=color, zorder=2.1)
    across, up = at, value
    if horizontal:
        across, up = value, at
    for mask, face, label in ((~hollow, color, None), (hollow, "white", "_hollow")):
        if marker and mask.any():
            ax.plot(across[mask], up[mask], ls="", marker=marker, color=color, mfc=face, zorder=3, label=label)


def magnitudes(rows: pd.DataFrame, bottom: float) -> pd.DataFrame:
    """Sizes of signed values for a logarithmic axis; hollow, with a bar from `bottom`, where an interval holds zero."""
    holds = (rows["low"] <= 0) & (rows["high"] >= 0)
    ends = rows[["low", "high"]].abs()
    low = ends.min(axis=1).where(~holds, bottom / 10)
    return rows.assign(measured=rows["measured"].abs(), low=low, high=ends.max(axis=1), hollow=holds)


def scaled(rows: pd.DataFrame, factor: Any) -> pd.DataFrame:
    """Rows with measured, low, high and reference multiplied by a factor, or by one a row."""
    return rows.assign(**{name: rows[name] * factor for name in NUMBERS})


def parts_of(df: pd.DataFrame, parts: Iterable[str], needed: Sequence[str], command: str) -> list[str]:
    """Those of the `parts` that the records of a command have rows of.

    Raises:
        BadInput: the records lack a column of `needed`: they are those of another command; or they have no such rows.
    """
    missing = [name for name in needed if name not in df.columns]
    if missing:
        raise BadInput(f"these records lack {', '.join(missing)}: give records of `smoothlab {command}`")
    measured = set(df.loc[df["quantity"].notna(), "part"])  # a setting that failed has no quantity
    present = [part for part in parts if part in measured]
    if not present:
        raise BadInput(f"these records hold none of the parts {', '.join(parts)}: give those of `smoothlab {command}`")
    return present


def rows_of(df: pd.DataFrame, part: str, quantity: str) -> pd.DataFrame:
    """Rows of one part and quantity, with the columns `NUMBERS` as numbers."""
    rows = df[(df["part"] == part) & (df["quantity"] == quantity)].copy()
    for name in NUMBERS:
        column = rows.get(name, pd.Series(np.nan, rows.index))
        rows[name] = pd.to_numeric(column, errors="coerce").astype(float)
    return rows


def short_names(settings: pd.Series) -> dict[str, str]:
    """Short name of each setting ("part/eps=1/n=2"): the options in which it differs from the first one."""
    first, names = set(str(settings.iloc[0]).split("/")), {}
    for setting in dict.fromkeys(settings):
        tokens = [token for token in setting.split("/")[1:] if "=" not in token or token not in first]
        names[setting] = ", ".join(tokens) or "base"
    return names


def plain_ticks(axis: Any, values: pd.Series) -> None:
    """Plain numbers on a logarithmic axis: 1-2-5 within two decades, evenly spaced within a factor of 4."""
    values = values[(values > 0) & np.isfinite(values)]
    span = 1.0
    if len(values):
        span = values.max() / values.min()
    if span < 4:
        axis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
    elif span < 100:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    else:
        axis.set_major_locator(ticker.LogLocator(numticks=8))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: tick_text(value)))
    if span >= 1e4:
        axis.set_major_formatter(ticker.LogFormatterMathtext())
    axis.set_minor_formatter(ticker.NullFormatter())


def tick_text(value: float) -> str:
    """A tick's number: ``0.002``, ``2e-5``, ``20000``, ``2e6``.

    >>> tick_text(0.002), tick_text(2e-5), tick_text(20000.0), tick_text(2e6)
    ('0.002', '2e-5', '20000', '2e6')
    """
    mantissa, exponent, power = f"{value:g}".partition("e")
    return mantissa + exponent + (exponent and str(int(power)))


def crowded(steps: pd.Series) -> bool:
    """Whether steps crowd at the start of a run."""
    return bool(steps.nunique() >= 5 and steps.median() < 0.12 * steps.max())


def step_axis(ax: Axes, steps: pd.Series) -> None:
    """Logarithmic (from the first positive step on) where the measuring points crowd at the start."""
    if crowded(steps):
        ax.set_xscale("symlog", linthresh=steps[steps > 0].min(), linscale=0.4)
        ax.xaxis.set_major_formatter("{x:g}")
    elif steps.nunique() == 1:
        ax.set_xticks([steps.iloc[0]])
    else:
        ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))


def legend_above(ax: Axes, title: str = "", columns: int = 3) -> None:
    """Legend above the frame, with a bold title over it."""
    labels = ax.get_legend_handles_labels()[1]
    if not labels and not title:
        return
    ax.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=max(1, min(columns, len(labels))), title=title or None,
        alignment="left", title_fontproperties={"weight": "bold", "size": "medium"}, borderaxespad=0.2,
        handlelength=1.6, columnspacing=1.0, handletextpad=0.5, borderpad=0.1, labelspacing=0.3,
    )  # fmt: skip


def grid(
    lines: Sequence[Sequence[Draw]], meanings: Mapping[str, str], *, heights: Sequence[float] | float = 2.6
) -> Figure:
    """Figure of a two-column page's width (7 inches) with a line of panels for each of `lines`.

    Args:
        lines: functions that draw a panel each.
        meanings: what marks mean, by their kind (line, dashed, hollow, tick); kinds that are not drawn are left out.
        heights: height of each line in inches, or of all.
    """
    tall = np.broadcast_to(heights, len(lines)).tolist()
    figure = Figure(figsize=(7.0, sum(tall) + 0.25), layout="constrained")
    with matplotlib.rc_context(STYLE):
        # each line of panels is laid out by itself: labels of one line do not push those of another
        parts = figure.subfigures(len(lines), 1, squeeze=False, height_ratios=tall)[:, 0]
        for part, draws in zip(parts, lines, strict=True):
            for ax, draw in zip(part.subplots(1, len(draws), squeeze=False)[0], draws, strict=True):
                draw(ax)
        _explain(figure, {"interval": "95 % interval", **meanings})
    return figure


def _explain(figure: Figure, meanings: Mapping[str, str]) -> None:
    """Legend at the foot of the figure: what a mark of each kind means."""
    gray: Any = {"color": GRAY, "lw": 0.9}
    handles: dict[str, Any] = {
        "interval": (Patch(color=GRAY, alpha=0.3, lw=0), Line2D([], [], ls="", marker="|", ms=9, color=GRAY)),
        "hollow": Line2D([], [], ls="", marker="o", mfc="white", color=GRAY),
        "tick": Line2D([], [], ls="", marker="|", ms=9, mew=1.3, color="black"),
        "line": Line2D([], [], ls="-", **gray),
        "dashed": Line2D([], [], ls="--", **gray),
    }
    drawn = {artist.get_label() for ax in figure.get_axes() for artist in ax.get_children()}
    kinds = [kind for kind in handles if f"_{kind}" in drawn and kind in meanings]
    if kinds:
        figure.legend(
            [handles[kind] for kind in kinds], [meanings[kind] for kind in kinds], loc="outside lower center",
            ncols=len(kinds), handlelength=1.6, columnspacing=1.4, handletextpad=0.5,
        )  # fmt: skip


def save(figure: Figure, stem: str | Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write the figure as ``stem.png``, ``stem.pdf``; returns the paths. The same records give the same bytes.

    Raises:
        BadInput: a file cannot be written.
    """
    layout, paths = figure.get_layout_engine(), []
    for name in formats:
        path = Path(f"{stem}.{name}")
        paths.append(path)
        metadata: dict[str, Any] = {"pdf": {"CreationDate": None}}.get(name, {})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format=name, dpi=200, metadata=metadata)
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror or error}; give a writable folder") from None
        figure.set_layout_engine("none")  # the layout is computed once: every format gets the same
    figure.set_layout_engine(layout)
    return paths
