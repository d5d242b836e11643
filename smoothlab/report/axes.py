"""Axes of the plots: labels with units, limits that show all there is, plain tick numbers, legends off the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes

NEAR = 5  # a floor this factor under the smallest value is still shown on a log axis


def axis_label(blocks: Sequence[str], quantity: str) -> str:
    """Label with unit, ``||H_base||_F (mean loss)``; without a block's name where there are several."""
    name = blocks[0] if len(blocks) == 1 else ""
    signs = {
        "frobenius": symbol("H", name, r"\|", r"\|_F"),
        "spectral": symbol("H", name, r"|\lambda|_{\max}(", ")"),
        "trace": symbol("H", name, r"\mathrm{tr}\,"),
        "gradient_lipschitz": "change of the gradient over change of the weights",
    }
    return f"{signs.get(quantity, quantity)} (mean loss)"


def symbol(letter: str, block: str, left: str = "", right: str = "") -> str:
    """Mathtext of a letter with the block's name as its index, or after it where the name is no plain word."""
    if block.isalnum():
        return rf"${left}{letter}_{{\mathrm{{{block}}}}}{right}$"
    return rf"${left}{letter}{right}$" + (f" of {block}".replace("$", r"\$") if block else "")


def floor_shows(rows: pd.DataFrame, logarithmic: bool) -> bool:
    """Whether the floor comes near the data; elsewhere drawing it would only stretch the axis or hug zero."""
    top = rows["floor"].max()
    return bool(top > (rows["value"].min() / NEAR if logarithmic else rows["value"].abs().max() / 50))


def value_axis(ax: Axes, series: Sequence[pd.DataFrame], log: bool | None, also: Sequence[float] = ()) -> bool:
    """Scale and limits that show every value, interval and nearby floor; returns whether the axis is logarithmic."""
    values = pd.concat([rows["value"] for rows in series])
    seen = pd.concat([rows[c] for rows in series for c in ("value", "low", "high")]).dropna()
    positive = bool((values > 0).all())
    logarithmic = positive and (bool(values.max() > 10 * values.min()) if log is None else log)
    floors = pd.concat([rows["floor"] for rows in series if floor_shows(rows, logarithmic)] or [pd.Series(dtype=float)])
    seen = pd.concat([seen, floors.dropna(), pd.Series(also, dtype=float)])
    if logarithmic:
        # limits far under the data (an interval that reaches zero, a vanishing floor) run out at the bottom
        seen = seen[seen >= min([values.min() / NEAR, *also])]
        ax.set_yscale("log")
        room = max((seen.max() / seen.min()) ** 0.08, 1.08)
        ax.set_ylim(seen.min() / room, seen.max() * room)
        log_ticks(ax.yaxis, pd.Series(ax.get_ylim()))
    else:
        low, high = min(seen.min(), 0.0), max(seen.max(), 0.0)
        room = 0.06 * (high - low or 1.0)
        ax.set_ylim(low - room if low < 0 else 0.0, high + room)
        if low < 0:
            ax.axhline(0, color="black", lw=0.6, zorder=0)
    return logarithmic


def log_ticks(axis: Any, values: pd.Series) -> None:
    """Plain numbers on a log axis: 1-2-5 within a few decades, evenly spaced ones within less than a factor of 4."""
    values = values[values > 0]
    span = values.max() / values.min()
    if span < 4:
        axis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if span < 300 else (1,), numticks=12))
    axis.set_major_formatter(
        ticker.FuncFormatter(lambda value, _: f"{value:g}" if 1e-4 <= value < 1e5 else f"{value:.0e}")
    )
    axis.set_minor_formatter(ticker.NullFormatter())


def step_axis(ax: Axes, steps: pd.Series) -> None:
    """Logarithmic (from the first positive step on) where the measuring points crowd at the start."""
    if len(set(steps)) >= 5 and steps.median() < 0.12 * steps.max():
        first = steps[steps > 0].min()
        ax.set_xscale("symlog", linthresh=first, linscale=0.4)
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    elif len(set(steps)) == 1:
        ax.set_xticks(sorted(set(steps)))
    else:
        ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))


def same_limits(axes: np.ndarray) -> None:
    """One value range for the panels of a row that holds all of theirs, so that protocols are compared by eye."""
    for row in axes:
        lows, highs = zip(*(ax.get_ylim() for ax in row), strict=True)
        for ax in row:
            ax.set_ylim(min(lows), max(highs))
            if ax.get_yscale() == "log":
                log_ticks(ax.yaxis, pd.Series([min(lows), max(highs)]))


def legend_above(ax: Axes, columns: int = 2, title: str | None = None) -> None:
    """Legend above the frame, where it can cover no data; a title stands over it, bold."""
    ax.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(columns, len(ax.get_legend_handles_labels()[1])),
        title=title, alignment="left", title_fontproperties={"weight": "bold", "size": "medium"}, frameon=False,
        borderaxespad=0.2, handlelength=1.6, columnspacing=1.0, handletextpad=0.5, borderpad=0.1, labelspacing=0.3,
    )  # fmt: skip
