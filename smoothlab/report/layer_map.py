"""Map of a block's layers against the training step: row norms, diagonal norms and traces of `--block-rows`."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.curvature import in_forward_order
from smoothlab.report.numbers import number
from smoothlab.report.panels import Draw, grid
from smoothlab.stats.smoothness_table import check

CELLS = 200  # cells of a map that can still be read with their values in them
LABELED = 25  # rows or columns that can all have their label
TITLES = {
    "rows": r"rows of layer $l$: $\|H_{l,:}\|_F$",
    "frobenius": r"layer $l$ alone: $\|H_{ll}\|_F$",
    "trace": r"layer $l$: $\mathrm{tr}\,H_{ll}$",
    "gauss_newton_trace": r"layer $l$: $\mathrm{tr}\,G_{ll}$, Gauss-Newton",
}


def layer_map(df: pd.DataFrame, quantity: str = "frobenius", blocks: Sequence[str] = ()) -> Figure:
    """One map a panel, color by value: of frobenius the layers' rows and, where measured, their own blocks."""
    check(df)
    df = df[df["protocol"] == "estimated"]
    names = layers_of(df)
    if not names:
        raise BadInput("these records hold no layers of a block: measure with --block-rows layer")
    for block in blocks:
        if block not in names:
            raise BadInput(f"--block {block}: layers were measured of {', '.join(names)}; name some of these")
    chosen = df[df["wrt"].isin(list(blocks or names)) & (df["quantity"] == quantity) & df["value"].notna()]
    tables = {quantity: chosen[chosen["block"] == chosen["wrt"]]}
    if quantity == "frobenius":
        # A row norm is a cross block's, of the layer's images and the whole block's directions.
        tables = {"rows": chosen[chosen["block"] != chosen["wrt"]], **tables}
    draws: list[Draw] = []
    rows = 0
    for kind, table in tables.items():
        if len(table):
            title = TITLES.get(kind, f"{kind} of layer $l$")
            draws.append(partial(one_map, table=table, title=f"{title} (mean loss)"))
            rows = max(rows, table["wrt"].nunique())
    if not draws:
        raise BadInput(f"no {quantity} of layers in these records: use --quantity frobenius or trace")
    return grid([draws], {}, heights=1.2 + 0.22 * rows)


def layers_of(df: pd.DataFrame) -> tuple[str, ...]:
    """Names of layers within a block: they have a trace and no spectral norm, which only whole blocks have."""
    diagonal = df[df["block"] == df["wrt"]]
    whole_blocks = set(diagonal.loc[diagonal["quantity"] == "spectral", "block"])
    traced = diagonal.loc[diagonal["quantity"] == "trace", "block"].drop_duplicates()
    return tuple(name for name in traced if name not in whole_blocks)


def one_map(ax: Axes, table: pd.DataFrame, title: str) -> None:
    """Layers from the first (top) to the last against steps; a value in parentheses is flagged in its record.

    Values of several runs at one step are averaged.
    """
    order = in_forward_order(list(table["wrt"]))
    steps = sorted(set(table["step"]))
    values = table.pivot_table(index="wrt", columns="step", values="value", aggfunc="mean").reindex(order)
    doubted = table.assign(doubted=table["flag"].notna()).pivot_table(
        index="wrt", columns="step", values="doubted", aggfunc="max"
    )
    cells = values[steps].to_numpy(dtype=float)
    image = ax.imshow(cells, aspect="auto", interpolation="nearest", norm=scale(cells), cmap=colors(cells))
    ax.figure.colorbar(image, ax=ax, pad=0.02)
    columns, rows = (range(0, count, -(-count // LABELED)) for count in (len(steps), len(order)))
    ax.set_xticks(columns, [f"{steps[i]:,}" for i in columns], rotation=45 * (len(steps) > 8))
    ax.set_yticks(rows, [order[i] for i in rows])
    ax.set_xlabel("step")
    ax.set_title(title)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    if cells.size > CELLS or len(steps) > 10:
        return
    ax.set_xlabel("step; in parentheses: a value that its record flags")
    for i, j in np.argwhere(np.isfinite(cells)):
        text = number(float(cells[i, j]), 2)
        if doubted.reindex(order)[steps].to_numpy()[i, j]:
            text = f"({text})"
        # White on dark cells: perceived brightness of the cell's color.
        red, green, blue, _ = image.to_rgba(cells[i, j])
        shade = "black"
        if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5:
            shade = "white"
        ax.text(j, i, text, ha="center", va="center", color=shade, fontsize=6)


def scale(cells: np.ndarray) -> Normalize:
    """Logarithmic color for norms, which span powers of ten; linear with 0 in the middle where there are signs."""
    finite = cells[np.isfinite(cells)]
    if (finite > 0).all() and finite.max() > 0:
        return LogNorm(float(finite.min()), float(max(finite.max(), 1.001 * finite.min())))
    reach = float(np.abs(finite).max()) or 1.0
    return TwoSlopeNorm(0.0, -reach, reach)


def colors(cells: np.ndarray) -> str:
    """Colormap that fits `scale`."""
    if isinstance(scale(cells), LogNorm):
        return "viridis"
    return "RdBu_r"
