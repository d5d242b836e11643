"""Report of ``smoothlab advise``: the advice in words and in a figure."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.numbers import interval, number, rate
from smoothlab.report.panels import COLORS, GRAY, grid, legend_above, plain_ticks

ABREAST = 2
"""Panels beside each other."""
HIGHEST = 2.5
"""Times the loss at the start at which the losses of unstable runs are drawn, if they are higher."""
CONDITIONS = {"exact": "eigenvalue", "adam": "Adam"}
"""What limits are predicted by, in the legend."""


def text(df: pd.DataFrame) -> list[str]:
    """Lines for a terminal: each advised number with its interval, what others say, the cost, and the command."""
    lines = []
    for _, row in _part(df, "advice").iterrows():
        lines.append(
            f"--{row['option'].replace('_', '-')} {interval(row['value'], row['low'], row['high'])}, {row['source']}"
        )
        lines.append(f"  weakest assumption: {row['weakest']}")
        if _given(row, "flag"):
            lines += [f"  note: {note}" for note in row["flag"].split("; ")]
        limits = df[(df["part"] == "limit") & (df["option"] == row["option"])]
        for _, limit in limits.iterrows():
            value = interval(limit["value"], limit["low"], limit["high"])
            lines.append(f"  limit {limit['source']}, by {limit['condition']}: {value}")
    lines += _comparison(df[df["part"] == "comparison"])
    cost = _part(df, "cost").iloc[-1]
    lines.append(
        f"cost: {number(cost['forwards'])} forward passes, {number(cost['seconds'])} s, "
        f"the time of {number(cost['training_steps'])} training steps"
    )
    return [*lines, str(cost["command"])]


def _comparison(runs: pd.DataFrame) -> list[str]:
    """A line on the longer runs that compare rates, where there were any."""
    if not len(runs):
        return []
    ends = []
    for _, run in runs.sort_values("factor").iterrows():
        end = f"unstable after {run['steps']:g} steps" if pd.isna(run["loss_after"]) else number(run["loss_after"])
        ends.append(f"{run['factor']:g} times the usual rates {end}")
    return [f"loss of longer runs, {number(runs['loss_before'].iloc[0])} at the start: {', '.join(ends)}"]


def limits(df: pd.DataFrame) -> pd.DataFrame:
    """Rows of the limits and of the advice for a table: `quantity` is the rate, `what` how its number was found."""
    rows = df[df["part"].isin(("limit", "advice"))]
    source = rows["source"].astype(str).where(rows["part"] == "limit", "")
    condition = " by " + rows["condition"].astype(str)
    # advice is predicted, too, where nothing was tried, and has no condition of its own
    return rows.assign(quantity=rows["option"], what=source + condition.where(source == "predicted", ""))


def figure(df: pd.DataFrame) -> Figure:
    """Loss after the short runs against their rate, with the limits that were predicted and tried.

    Raises:
        BadInput: the records are not those of ``smoothlab advise``, or nothing was tried.
    """
    if "part" in df and not (df["part"] == "trial").any() and (df["part"] == "limit").any():
        raise BadInput("no rate was tried, so that there are no losses to draw; advise with --by try or --by confirm")
    trials = _part(df, "trial")
    options = list(dict.fromkeys(trials["option"]))
    panels = []
    for option in options:
        limits = df[(df["part"] == "limit") & (df["option"] == option)]
        panels.append(partial(_panel, option=option, trials=trials[trials["option"] == option], limits=limits))
    lines = [panels[first : first + ABREAST] for first in range(0, len(panels), ABREAST)]
    return grid(lines, {}, heights=3.4)


def _panel(ax: Axes, option: str, trials: pd.DataFrame, limits: pd.DataFrame) -> None:
    start, ends = float(trials["loss_before"].iloc[0]), trials["loss_after"].astype(float)
    losses = ends.fillna(np.inf).clip(upper=HIGHEST * start)
    stable = ends <= start
    for chosen, label, marker, color in (
        (stable, "stable run", "o", COLORS[0]),
        (~stable, "unstable run", "s", COLORS[1]),
    ):
        if chosen.any():
            ax.plot(trials["rate"][chosen], losses[chosen], marker, color=color, ms=4, zorder=3, label=label)
    ax.axhline(start, ls=":", lw=0.9, color=GRAY, label="loss at the start")
    # intervals stand above the losses, a line each, since bands behind them would mix their colors
    finite = losses[np.isfinite(losses)]
    bottom, top = min(finite.min(), start), max(finite.max(), start)
    height = max(top - bottom, 0.05 * start)
    for line, (_, limit) in enumerate(limits.iterrows()):
        color = COLORS[2 + line % (len(COLORS) - 2)]
        height_of_limit = top + height * (0.12 + 0.09 * line)
        name = f"limit {limit['source']}"
        if limit["source"] == "predicted":
            name += f" ({CONDITIONS.get(limit['condition'], limit['condition'])})"
        ax.axvline(limit["value"], color=color, lw=0.8, alpha=0.6, zorder=1)
        ax.plot(limit["value"], height_of_limit, "D", color=color, ms=3.5, zorder=3)
        ax.plot([], [], "D-", color=color, ms=3.5, lw=0.8, label=name)
        if np.isfinite([limit["low"], limit["high"]]).all() and limit["low"] > 0:
            ax.hlines(height_of_limit, limit["low"], limit["high"], color=color, lw=1.6, label="_interval")
    steps = int(trials["steps"].max())
    ax.set(xscale="log", xlabel=f"learning rate {option}", ylabel=f"loss after {steps} steps")
    ax.margins(y=0.08)
    ax.set_yticks([tick for tick in ax.get_yticks() if ax.get_ylim()[0] <= tick <= top])  # bars above are no losses
    shown_rates = limits[["value", "low", "high"]].to_numpy(float).ravel()
    plain_ticks(ax.xaxis, pd.concat([trials["rate"], pd.Series(shown_rates)]))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: rate(value)))
    legend_above(ax, columns=2)


def _part(df: pd.DataFrame, part: str) -> pd.DataFrame:
    if "part" not in df or not (df["part"] == part).any():
        raise BadInput(f"these records hold no row of part '{part}': give records of `smoothlab advise`")
    return df[df["part"] == part]


def _given(row: Any, name: str) -> bool:
    return name in row and isinstance(row[name], str)
