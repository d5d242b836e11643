"""Figure 1 along each training method's own run: norms of a block by method, and their ratio to those of FO-PEFT.

Runs of one seed see the same minibatches, so that ratios at equal steps compare the weights that the methods reach.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.curvature import MEANINGS, along_steps, chosen, label, limits, norms
from smoothlab.report.panels import grid
from smoothlab.stats.smoothness_table import quotient

REFERENCE = "fo-peft"
SHIFT = 0.012  # of the run's length, from one method to the next: lines that agree would hide each other
COLORS = {"fo-peft": "#D55E00", "hybrid": "#0072B2", "zo": "#009E73", "fo-full": "#CC79A7", "fo-joint": "#882255"}
MARKERS = {"fo-peft": "s", "hybrid": "o", "zo": "^", "fo-full": "D", "fo-joint": "v"}


def methods(df: pd.DataFrame, quantity: str = "frobenius", blocks: Sequence[str] = ()) -> Figure:
    """Each block's norm against the step, a line a method; below it the ratio to FO-PEFT's where that was measured."""
    if "method" not in df.columns:
        raise BadInput("these records name no method: give records of `smoothlab finetune --measure`")
    table = by_method(df, chosen(df, blocks, quantity), quantity)
    names = list(dict.fromkeys(table["block"]))
    lines = [[partial(along_methods, table=table, block=name, ylabel=label(quantity, name)) for name in names]]
    heights = [2.7]
    ratios = over_reference(table)
    if len(ratios):
        lines.append([partial(ratios_along_methods, table=ratios, block=name) for name in names])
        heights.append(2.1)
    return grid(lines, MEANINGS, heights=heights)


def by_method(df: pd.DataFrame, blocks: Sequence[str], quantity: str) -> pd.DataFrame:
    """Rows of `curvature.norms` with the method and the seed of their run."""
    method_of = df.dropna(subset=["method"]).groupby("path")["method"].first()
    # the seed is in the header alone: a run has one
    seed_of = {path: header["config"].get("seed") for path, header in df.attrs["headers"].items()}
    table = pd.concat([norms(df, block, quantity, "estimated").assign(block=block) for block in blocks])
    return table.assign(method=table["run"].map(method_of), seed=table["run"].map(seed_of))


def over_reference(table: pd.DataFrame) -> pd.DataFrame:
    """Ratios of the other methods' norms to FO-PEFT's at the same block, seed and step, with 95 % intervals."""
    # `quotient` speaks of value and below, as records do; panels of measured and hollow
    table = table.rename(columns={"measured": "value", "hollow": "below"})
    reference = table[table["method"] == REFERENCE]
    parts = []
    for method, rows in table[table["method"] != REFERENCE].groupby("method", sort=False):
        parts.append(quotient(rows, reference, ["block", "seed", "step"]).assign(method=method))
    if not parts:
        return table[:0]
    ratios = pd.concat(parts, ignore_index=True).rename(columns={"value": "measured", "below": "hollow"})
    return ratios.assign(reference=np.nan, run=ratios["seed"])


def along_methods(ax: Axes, table: pd.DataFrame, block: str, ylabel: str, log: bool | None = None) -> None:
    """One block's norms or ratios against the step, a line a method."""
    table = table[table["block"] == block]
    present = [method for method in COLORS if (table["method"] == method).any()]
    styles = {method: COLORS[method] for method in present}, MARKERS
    along_steps(ax, table, "method", styles, ylabel=ylabel, dodge=SHIFT * table["step"].max())
    limits(ax, table, log=log)


def ratios_along_methods(ax: Axes, table: pd.DataFrame, block: str) -> None:
    """One block's ratios against the step; nothing where there is none, as of a block of one run alone."""
    if not (table["block"] == block).any():
        ax.set_axis_off()
        return
    ax.axhline(1, ls=":", lw=0.8, color="black", label="equal norms")
    along_methods(ax, table, block, f"{block}: method / FO-PEFT", log=True)
    bottom, top = ax.get_ylim()  # equal norms are in view, whatever the ratios are
    ax.set_ylim(min(bottom, 0.9), max(top, 1.1))
