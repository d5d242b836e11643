"""Curves of the smoothness records: functions ``(axes, DataFrame) -> None``, one a kind of curve.

A plot reads records and never measures. Three rules hold in every panel. An interval is drawn wherever a row has one.
What rounding alone can produce (``floor``) is shaded wherever it comes near the data, and a value under twice its floor
is drawn hollow. Rows of Appendix D.4 (protocol ``paper``) are drawn in the unit of the estimated ones, see readings.

Colors are those of Okabe and Ito (2008) and Tol's wine, which color-blind readers can tell apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.axes import (
    axis_label,
    floor_shows,
    legend_above,
    log_ticks,
    same_limits,
    step_axis,
    symbol,
    value_axis,
)
from smoothlab.stats.ranks import spearman
from smoothlab.stats.smoothness_table import blocks_of, nothing, points, protocols_of, ratio

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
BLOCK_COLORS = {"base": "#0072B2", "peft": "#D55E00", "head": "#7F7F7F"}
PROTOCOL_COLORS = {"estimated": "#0072B2", "paper": "#882255"}
MARKERS = {"estimated": "o", "paper": "s"}
PROTOCOL_LABELS = {"estimated": "estimated", "paper": "Appendix D.4, rescaled"}
HOLLOW = "hollow: under twice its floor"  # the square is then rounding to more than a quarter
BAND_FROM = 13  # from this many points on intervals are a band; bars show that each stands for one point
STYLE: Any = {
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8.5, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4, "lines.linewidth": 1.2, "lines.markersize": 4.0, "pdf.fonttype": 42,
}  # fmt: skip


def norm_along_training(
    ax: Axes, df: pd.DataFrame, blocks: str | Sequence[str], quantity: str = "frobenius",
    protocol: str | Sequence[str] = "estimated", *, log: bool | None = None, printed: bool = False, legend: bool = True,
    title: str | None = None,
) -> None:  # fmt: skip
    """Value against step with 95 % intervals, rounding floor and hollow points under twice that floor.

    One block is colored by protocol, several by block. Several runs (files) are several lines of one color.

    Args:
        ax: where to draw.
        df: records.
        blocks: one block or several.
        quantity: see ``points``.
        protocol: one protocol or several; those without rows are left out.
        log: logarithmic value axis; None chooses it where the values span more than a factor of 10.
        printed: paper rows as printed; see ``points``.
        legend: draw the legend above the axes, where it covers no data.
        title: heading of the legend.

    Raises:
        BadInput: where no block has a row of this quantity and protocol; names what there is.
    """
    blocks, protocols = _tuple(blocks), _tuple(protocol)
    series = {(b, p): points(df, b, quantity, p, printed=printed) for b in blocks for p in protocols}
    series = {key: rows for key, rows in series.items() if len(rows)}
    if not series:
        raise BadInput(nothing(df, blocks, quantity, protocols))
    logarithmic = value_axis(ax, list(series.values()), log)
    for index, ((block, name), rows) in enumerate(series.items()):
        color = PROTOCOL_COLORS.get(name, "black") if len(blocks) == 1 else _block_color(block, blocks)
        label = PROTOCOL_LABELS.get(name, name) if len(blocks) == 1 else block
        if len(blocks) > 1 and len(protocols) > 1:
            label = f"{block}, {PROTOCOL_LABELS.get(name, name)}"
        thin = 0.6 if block == "head" else 1.0
        for run, (_, part) in enumerate(rows.groupby("path")):
            told = None if run else label + (", 95 % interval" if index == 0 and part["high"].notna().any() else "")
            _line(ax, part, color, told, name, thin)
        if floor_shows(rows, logarithmic):
            _floor(ax, rows, color, f"{label.split(',')[0]}: rounding floor" if len(blocks) == 1 else "_floor")
    if len(blocks) > 1 and any(floor_shows(rows, logarithmic) for rows in series.values()):
        ax.plot([], [], "--", color="#444444", lw=0.8, label="rounding floor of each")
    if any(rows["below"].any() for rows in series.values()):
        ax.plot([], [], "o", ms=4, mfc="white", mec="#444444", label=HOLLOW)
    ax.set(xlabel="step", ylabel="as printed in Appendix D.4" if printed else axis_label(blocks, quantity))
    step_axis(ax, pd.concat([rows["step"] for rows in series.values()]))
    if legend:
        legend_above(ax, title=title)


def norm_against_gradient(
    ax: Axes, df: pd.DataFrame, block: str = "base", quantity: str = "frobenius",
    protocol: str | Sequence[str] = ("estimated", "paper"), *, colorbar: bool = True, legend: bool = True,
) -> None:  # fmt: skip
    """Value against the block's gradient norm, log-log, colored by step, with Spearman's rank correlation.

    The first protocol with rows is colored by step, the next one has its own color; each legend entry carries its
    correlation and 95 % interval (see ``spearman``). The axes are linear where a value is not positive.

    Raises:
        BadInput: where there is no row to draw.
    """
    protocols = _tuple(protocol)
    series = {p: points(df, block, quantity, p) for p in protocols}
    series = {p: rows[rows["grad_norm"] > 0] for p, rows in series.items()}
    series = {p: rows for p, rows in series.items() if len(rows)}
    if not series:
        raise BadInput(nothing(df, (block,), quantity, protocols))
    logarithmic = value_axis(ax, list(series.values()), True)
    for index, (name, rows) in enumerate(series.items()):
        found = spearman(rows["grad_norm"], rows["value"])
        short = "estimated" if name == "estimated" else "D.4" if name == "paper" else name
        label = f"{short}: rank corr. {found}" if found else f"{short}: too few points for a correlation"
        _scatter(ax, rows, MARKERS.get(name, "o"), PROTOCOL_COLORS.get(name, "black"), label, index == 0, colorbar)
        if floor_shows(rows, logarithmic):
            look: dict[str, Any] = {"ls": "--", "lw": 0.8, "color": PROTOCOL_COLORS.get(name, "black")}
            for run, (_, part) in enumerate(rows.sort_values("grad_norm").groupby("path")):
                ax.plot(part["grad_norm"], part["floor"], label=None if run else f"{short}: rounding floor", **look)
    bar = r"\|"
    norms = pd.concat([rows["grad_norm"] for rows in series.values()])
    if logarithmic:
        ax.set_xscale("log")
        room = max((norms.max() / norms.min()) ** 0.05, 1.15)
        ax.set_xlim(norms.min() / room, norms.max() * room)
        log_ticks(ax.xaxis, pd.Series(ax.get_xlim()))
    ax.set(xlabel=f"gradient norm {symbol('g', block, bar, bar)}", ylabel=axis_label((block,), quantity))
    if legend:
        legend_above(ax, columns=1)


def path_smoothness(
    ax: Axes, df: pd.DataFrame, blocks: str | Sequence[str] | None = None, *, legend: bool = True
) -> None:
    """Smoothness along the path, ||g(k+1) - g(k)|| / ||w(k+1) - w(k)||, beside the spectral norm of the block.

    The quotient is a thin line; the spectral norm a marker with a bar up to its one-sided 95 % bound.

    Raises:
        BadInput: where no block has a ``gradient_lipschitz`` row.
    """
    blocks = blocks_of(df, "gradient_lipschitz") if blocks is None else _tuple(blocks)
    paths = {b: points(df, b, "gradient_lipschitz", None) for b in blocks}
    paths = {b: rows for b, rows in paths.items() if len(rows)}
    if not paths:
        raise BadInput(nothing(df, blocks, "gradient_lipschitz", ("estimated",)))
    spectral = {b: points(df, b, "spectral", "estimated") for b in paths}
    value_axis(ax, [*paths.values(), *(rows for rows in spectral.values() if len(rows))], None)
    for block, rows in paths.items():
        color, found = _block_color(block, blocks), spectral[block]
        for run, (_, part) in enumerate(rows.groupby("path")):
            ax.plot(part["step"], part["value"], "-", marker="." if len(part) < 30 else "", ms=3, color=color, lw=0.9,
                    label=None if run else block)  # fmt: skip
        under = rows[rows["below"]]
        if len(under):
            ax.plot(under["step"], under["value"], "o", ms=3.5, mfc="white", mec=color, label="_under the floor")
        ax.vlines(found["step"], found["value"], found["high"].fillna(found["value"]), color=color, lw=1)
        ax.plot(found["step"], found["value"], "o", ms=4, color=color, label="_spectral")
    ax.plot([], [], "-", color="#444444", lw=0.9, label=r"line: $\|\Delta g\| / \|\Delta w\|$ of a step")
    if any(len(rows) for rows in spectral.values()):
        ax.plot([], [], "o", ms=4, color="#444444", label=r"dot: $|\lambda|_{\max}(H)$, bar to its 95 % bound")
    if any(rows["below"].any() for rows in paths.values()):
        ax.plot([], [], "o", ms=3.5, mfc="white", mec="#444444", label=HOLLOW)
    ax.set(xlabel="step", ylabel="change of the gradient over change of the weights")
    step_axis(ax, pd.concat([rows["step"] for rows in paths.values()]))
    if legend:
        legend_above(ax)


def ratio_along_training(ax: Axes, df: pd.DataFrame, over: str, under: str, quantity: str, protocol: str) -> None:
    """Ratio of two blocks' norms against step with its interval; for paper rows also as printed (no sqrt(d))."""
    rows = ratio(df, over, under, quantity, protocol)
    drawn = {"rescaled" if protocol == "paper" else "": rows}
    if protocol == "paper":
        drawn["as printed (no $\\sqrt{d}$)"] = ratio(df, over, under, quantity, protocol, printed=True)
    if rows.empty:
        ax.text(0.5, 0.5, "no step with both", transform=ax.transAxes, ha="center", va="center")
    else:
        value_axis(ax, [part.assign(floor=np.nan) for part in drawn.values()], True, also=(1.0,))
        for (label, part), color in zip(drawn.items(), ("black", "#8C8C8C"), strict=False):
            for run, (_, one) in enumerate(part.groupby("path")):
                _line(ax, one, color, label if label and not run else None, protocol, 1.0)
        step_axis(ax, rows["step"])
    ax.axhline(1, color="black", lw=0.6, ls=":", zorder=0)
    ax.set(xlabel="step", ylabel=f"{over} / {'PEFT' if under == 'peft' else under}")
    if len(rows) and protocol == "paper":
        legend_above(ax)


def figure(width: float = 7.0, height: float = 2.9) -> Figure:
    """A figure of a two-column page's width (inches), outside pyplot's global state."""
    return Figure(figsize=(width, height), layout="constrained")


def fig1a(fig: Figure, df: pd.DataFrame, quantity: str = "frobenius") -> None:
    """Figure 1a: the base model along full fine-tuning; left against step, right against its gradient norm.

    Where rows of Appendix D.4 are there, they stand beside the estimated ones in the same unit, with their rounding
    floor, and the axis on the right of the left panel reads them as printed: the units differ by sqrt(d)/batch.

    Raises:
        BadInput: where no block has a row of this quantity.
    """
    block, protocols = blocks_of(df, quantity)[0], protocols_of(df, quantity)
    with matplotlib.rc_context(STYLE):
        left, right = fig.subplots(1, 2)
        norm_along_training(left, df, block, quantity, protocols)
        paper = points(df, block, quantity, "paper")
        if len(paper) and "paper" in protocols and np.ptp(paper["factor"]) < 1e-3 * paper["factor"].max():
            factor = float(paper["factor"].median())
            twin = left.secondary_yaxis("right", functions=(lambda value: value / factor, lambda value: value * factor))
            twin.set_ylabel("as printed in D.4: batch sum, no $\\sqrt{d}$", color=PROTOCOL_COLORS["paper"])
            twin.tick_params(colors=PROTOCOL_COLORS["paper"])
            twin.spines["right"].set(visible=True, color=PROTOCOL_COLORS["paper"])
            if left.get_yscale() == "log":
                log_ticks(twin.yaxis, pd.Series(left.get_ylim()) / factor)
        norm_against_gradient(right, df, block, quantity, protocols)


def fig1b(fig: Figure, df: pd.DataFrame, quantity: str = "frobenius") -> None:
    """Figure 1b: base against PEFT module (and head, thin) along joint training; below, the ratio base / PEFT.

    One column a protocol, on shared axes. Without a PEFT module the blocks are drawn and the lower panels left out.

    Raises:
        BadInput: where no block has a row of this quantity.
    """
    blocks, protocols = blocks_of(df, quantity), protocols_of(df, quantity)
    pair = {"base", "peft"} <= set(blocks)
    if pair:
        blocks = tuple(b for b in blocks if b in BLOCK_COLORS)
    with matplotlib.rc_context(STYLE):
        axes = fig.subplots(2 if pair else 1, len(protocols), squeeze=False, sharex="col",
                            height_ratios=(2.2, 1) if pair else None)  # fmt: skip
        for column, protocol in enumerate(protocols):
            title = {"paper": "settings of Appendix D.4, rescaled"}.get(protocol, protocol)
            norm_along_training(axes[0, column], df, blocks, quantity, protocol, log=True, title=title)
            if pair:
                axes[0, column].set_xlabel("")
                ratio_along_training(axes[1, column], df, "base", "peft", quantity, protocol)
            if column:
                for ax in axes[:, column]:
                    ax.set_ylabel("")
                    ax.tick_params(labelleft=False)
        same_limits(axes)


def path_figure(df: pd.DataFrame) -> Figure:
    """Path-based smoothness of every block as a figure of its own; see ``path_smoothness``."""
    fig = figure(7.0, 2.6)
    with matplotlib.rc_context(STYLE):
        path_smoothness(fig.subplots(), df)
    return fig


def save(fig: Figure, stem: str | Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write the figure as ``stem.png``, ``stem.pdf``; returns the paths. The same records give the same bytes.

    Raises:
        BadInput: where a file cannot be written.
    """
    paths = [Path(f"{stem}.{name}") for name in formats]
    layout = fig.get_layout_engine()
    for path, name in zip(paths, formats, strict=True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            told: Mapping[str, Any] = {"CreationDate": None} if name == "pdf" else {}
            fig.savefig(path, format=name, dpi=200, metadata=dict(told))
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror or error}; give a writable folder") from None
        fig.set_layout_engine("none")  # every format gets the same layout, found once
    fig.set_layout_engine(layout)
    return paths


def _tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _block_color(block: str, blocks: Sequence[str]) -> str:
    return BLOCK_COLORS.get(block) or COLORS[list(blocks).index(block) % len(COLORS)]


def _line(ax: Axes, rows: pd.DataFrame, color: str, label: str | None, protocol: str, thin: float) -> None:
    """One run's line, its intervals, and markers that are hollow where the value lies under its floor.

    Estimated points lie on top; those of Appendix D.4 are larger squares, so that both show where they agree.
    """
    step, value = rows["step"], rows["value"]
    low, high = rows["low"].fillna(value), rows["high"].fillna(value)
    many, above = len(rows) >= BAND_FROM, 0.2 if protocol == "estimated" else 0.0
    size = (2.2 if many else 3.6) * thin * (1.0 if protocol == "estimated" else 1.4)
    if many:
        ax.fill_between(step, low, high, color=color, alpha=0.22, lw=0, zorder=1 + above)
    else:
        ax.vlines(step, low, high, color=color, lw=(1.2 if protocol == "estimated" else 2.2) * thin, zorder=2 + above)
    look: dict[str, Any] = {"marker": MARKERS.get(protocol, "o"), "ms": size, "mec": color, "zorder": 2.1 + above}
    ax.plot(step, value, "-", color=color, lw=1.2 * thin, label=label, **look)
    under = rows[rows["below"]]
    if len(under):
        ax.plot(under["step"], under["value"], linestyle="", mfc="white", label="_under the floor", **look)


def _scatter(ax: Axes, rows: pd.DataFrame, marker: str, color: str, label: str, by_step: bool, colorbar: bool) -> None:
    """Points with interval bars; colored by step where asked, else filled with one color; hollow under the floor."""
    low, high = rows["low"].fillna(rows["value"]), rows["high"].fillna(rows["value"])
    bar: dict[str, Any] = {"color": "#555555", "lw": 0.8, "zorder": 2} if by_step else {"color": color, "lw": 1.8}
    ax.vlines(rows["grad_norm"], low, high, **bar)
    first, last = rows["step"].min(), rows["step"].max()
    scale = ScalarMappable(Normalize(first, max(last, first + 1)), "viridis")
    for below in (False, True):
        part = rows[rows["below"] == below]
        if part.empty:
            continue
        fill = [to_hex(one) for one in scale.to_rgba(part["step"].to_numpy())] if by_step else [color] * len(part)
        told = label if not below or rows["below"].all() else "_under the floor"
        ax.scatter(
            part["grad_norm"], part["value"], marker=marker, s=20 if by_step else 26, label=told, linewidths=0.9,
            facecolors="white" if below else fill, edgecolors=fill, zorder=4 if by_step else 3,
        )  # fmt: skip
    if by_step and colorbar and rows["step"].nunique() > 1:
        ax.figure.colorbar(scale, ax=ax, label="step", aspect=30, pad=0.02).outline.set_visible(False)


def _floor(ax: Axes, rows: pd.DataFrame, color: str, label: str) -> None:
    """Dashed line of the floor (the worst of several runs); shaded down to the axis where it has a legend entry."""
    worst = rows.groupby("step")["floor"].max().dropna()
    ax.plot(worst.index, worst, "--", color=color, lw=0.8, marker="_" if len(worst) == 1 else "", ms=14, label=label)
    if not label.startswith("_"):
        bottom = min(ax.get_ylim()[0], worst.min())
        ax.fill_between(worst.index, bottom, worst, color=color, alpha=0.09, lw=0, zorder=0)
