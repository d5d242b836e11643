"""Figures of curvature along training: Hessian norms of blocks against step, gradient norm and depth, and their ratio.

A value is drawn hollow where it is below twice what rounding alone can produce (its floor), and the floor itself as a
dashed line where it comes near the values. Rows of Appendix D.4 (protocol ``paper``) are drawn in the unit of the
estimated ones, times sqrt(d)/batch; see `smoothlab.stats.smoothness_table`.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.numbers import number
from smoothlab.report.panels import COLORS, MARKERS, Draw, grid, panel, plain_ticks, step_axis
from smoothlab.stats.ranks import spearman
from smoothlab.stats.smoothness_table import blocks_of, check, missing_rows, points, protocols_of, ratio

Styles = tuple[dict[str, str], dict[str, str]]
"""Colors and markers of series."""
# estimated points are drawn last, on top
STYLES_OF_PROTOCOLS: Styles = (
    {"paper": "#882255", "estimated": "#0072B2", "dataset": "#117733"},
    {"estimated": "o", "paper": "s", "dataset": "D"},
)
MEANINGS = {"dashed": "rounding floor", "hollow": "below twice its rounding floor"}
NEAR = 5.0  # a floor within this factor of the smallest value is drawn; elsewhere it would only stretch the axis
FEW = 6  # blocks whose legend fits over half the width of the figure


def norms(df: pd.DataFrame, block: str, quantity: str, protocol: str | None, *, printed: bool = False) -> pd.DataFrame:
    """Rows of one block for `panel`: the floor is the reference, where it comes near the values."""
    rows = points(df, block, quantity, protocol, printed=printed)
    rows = rows.rename(columns={"value": "measured", "floor": "reference", "below": "hollow", "path": "run"})
    if not rows["reference"].max() > rows["measured"].abs().min() / NEAR:
        rows["reference"] = np.nan
    return rows


def chosen(df: pd.DataFrame, blocks: Sequence[str], quantity: str) -> tuple[str, ...]:
    """The blocks to draw: those named, or all that were measured; refuses others, and other experiments."""
    check(df)
    measured = blocks_of(df, quantity)
    for block in blocks:
        if block not in measured:
            raise BadInput(f"--block {block}: {quantity} was measured of {', '.join(measured)}; name some of these")
    return tuple(blocks) or measured


def table_of(df: pd.DataFrame, blocks: Sequence[str], quantity: str, protocols: Sequence[str | None]) -> pd.DataFrame:
    """Rows of several blocks and protocols for `panel`; refuses to return none."""
    parts = []
    for block in blocks:
        for protocol in protocols:
            parts.append(norms(df, block, quantity, protocol).assign(block=block, protocol=protocol))
    table = pd.concat(parts, ignore_index=True)
    if table.empty:
        raise BadInput(missing_rows(df, blocks, quantity, [str(protocol) for protocol in protocols]))
    return table


def fig1a(df: pd.DataFrame, quantity: str = "frobenius", blocks: Sequence[str] = ()) -> Figure:
    """Figure 1a: a block's norm against the step (left) and against its gradient norm (right), a line a block."""
    lines = []
    # one block fills the figure: without --block it is the first one, the base model where it was measured
    for block in blocks or chosen(df, (), quantity)[:1]:
        chosen(df, [block], quantity)
        table = table_of(df, [block], quantity, protocols_of(df, quantity))
        ylabel = label(quantity, block)
        lines.append([partial(against_step, table=table, ylabel=ylabel),
                      partial(against_gradient, table=table, ylabel=ylabel, block=block)])  # fmt: skip
    return grid(lines, MEANINGS, heights=2.7)


def against_step(ax: Axes, table: pd.DataFrame, ylabel: str) -> None:
    """One block's norm against the step, by protocol; those of Appendix D.4 in the unit of the estimated ones."""
    names = {}
    for protocol, rows in table.groupby("protocol"):
        names[protocol] = {"paper": "Appendix D.4", "dataset": "data set"}.get(str(protocol), str(protocol))
        # the paper's unit differs from that of the mean loss by this factor
        factor = rows["factor"].median()
        if factor != 1:
            names[protocol] += rf", $\times\sqrt{{d}}$/batch = {number(factor)}"
    along_steps(ax, table, "protocol", STYLES_OF_PROTOCOLS, ylabel=ylabel, names=names, columns=1)
    limits(ax, table)


def against_gradient(ax: Axes, table: pd.DataFrame, ylabel: str, block: str) -> None:
    """One block's norm against its gradient norm, with Spearman's rank correlation of each protocol."""
    table = table[table["grad_norm"] > 0]
    names = {}
    for protocol, rows in table.groupby("protocol"):
        names[protocol] = f"rank correlation {spearman(rows['grad_norm'], rows['measured']) or 'of too few points'}"
    colors, markers = STYLES_OF_PROTOCOLS
    panel(ax, table, "grad_norm", ["protocol"], xlabel="gradient norm " + symbol("g", block, r"\|", r"\|"),
          ylabel=ylabel, scale="x", names=names, line="--", colors=colors, markers=markers, columns=1)  # fmt: skip
    if (table["measured"] > 0).all():  # a power of the gradient norm is a straight line
        ax.set_yscale("log")
    limits(ax, table)


def fig1b(df: pd.DataFrame, quantity: str = "frobenius", blocks: Sequence[str] = ()) -> Figure:
    """Figure 1b: the blocks' norms side by side along training, and below the ratio of base model to PEFT module."""
    blocks = chosen(df, blocks, quantity)
    table = table_of(df, blocks, quantity, protocols_of(df, quantity))
    draws: list[Draw] = []
    for protocol in protocols_of(df, quantity):
        draws.append(partial(blocks_against_step, table=table, protocol=protocol, ylabel=label(quantity, "")))
    lines = [draws]
    if len(blocks) > FEW:
        lines = [[draw] for draw in draws]
    heights = [2.7] * len(lines)
    if {"base", "peft"} <= set(blocks):
        lines.append([partial(base_over_peft, df=df, quantity=quantity)])
        heights.append(1.9)
    return grid(lines, MEANINGS, heights=heights)


def blocks_against_step(ax: Axes, table: pd.DataFrame, protocol: str, ylabel: str) -> None:
    """Norms of several blocks against the step, in the range of all protocols: they are compared by eye."""
    rows = table[table["protocol"] == protocol]
    styles = styles_of(dict.fromkeys(rows["block"]))
    title = {"paper": r"Appendix D.4, times $\sqrt{d}$/batch"}.get(protocol, protocol)
    columns = 3 + 4 * (len(styles[0]) > FEW)
    along_steps(ax, rows, "block", styles, ylabel=ylabel, title=title, columns=columns)
    limits(ax, table, log=True)


def along_steps(ax: Axes, rows: pd.DataFrame, series: str, styles: Styles, **options: Any) -> None:
    """Joined points against the step, and their floors as dashed lines."""
    colors, markers = styles
    panel(ax, rows, "step", [series], xlabel="step", colors=colors, markers=markers, line="--", joined=True, **options)
    step_axis(ax, rows["step"])


def base_over_peft(ax: Axes, df: pd.DataFrame, quantity: str) -> None:
    """Ratio of the base model's norm to the PEFT module's against the step; of Appendix D.4 as printed, too."""
    names = {"estimated": "estimated", "paper": r"D.4, times $\sqrt{d}$/batch", "printed": "D.4 as printed"}
    parts = []
    for kind in names:
        protocol = {"printed": "paper"}.get(kind, kind)
        rows = ratio(df, quantity=quantity, protocol=protocol, printed=kind == "printed").assign(kind=kind)
        parts.append(rows.rename(columns={"value": "measured", "below": "hollow", "path": "run"}))
    table = pd.concat(parts, ignore_index=True).assign(reference=np.nan)
    if table.empty:
        raise BadInput(f"base and peft have no {quantity} at the same step: leave one out with --block")
    ax.axhline(1, ls=":", lw=0.8, color="black", label="equal norms")
    styles = dict(zip(names, ("#0072B2", "#882255", "#CC79A7"), strict=True)), dict(zip(names, "os^", strict=True))
    along_steps(ax, table, "kind", styles, ylabel="base / PEFT", names=names, columns=4)
    limits(ax, table, log=True)
    ax.set_ylim(bottom=min(0.9, ax.get_ylim()[0]))


def path(df: pd.DataFrame, quantity: str = "", blocks: Sequence[str] = ()) -> Figure:
    """Smoothness along the path, ||g(k+1) - g(k)|| / ||w(k+1) - w(k)||, beside each block's spectral norm."""
    blocks = chosen(df, blocks, "gradient_lipschitz")
    return grid([[partial(path_smoothness, df=df, blocks=blocks)]], MEANINGS, heights=3.2)


def path_smoothness(ax: Axes, df: pd.DataFrame, blocks: Sequence[str]) -> None:
    """Change of the gradient over change of the weights (joined), and the largest absolute eigenvalue (points)."""
    quotients = table_of(df, blocks, "gradient_lipschitz", [None])
    colors, markers = styles_of(blocks)
    lines, dots, spectral = {}, {}, []
    for block in blocks:
        lines[block], dots[block] = rf"{block}: $\|\Delta g\| / \|\Delta w\|$", rf"{block}: $|\lambda|_{{\max}}(H)$"
        spectral.append(norms(df, block, "spectral", "estimated").assign(block=block))
    eigenvalues = pd.concat(spectral, ignore_index=True).assign(reference=np.nan)
    eigenvalues["low"] = eigenvalues["measured"]  # the interval is one-sided: the value is its own lower bound
    along_steps(ax, quotients, "block", (colors, dict.fromkeys(blocks, "")), names=lines)
    if len(eigenvalues):
        panel(ax, eigenvalues, "step", ["block"], names=dots, colors=colors, markers=markers)
    ax.set_ylabel(r"$\|\Delta g\| / \|\Delta w\|$ (mean loss)")
    limits(ax, pd.concat([quotients, eigenvalues]))


def against_depth(df: pd.DataFrame, quantity: str = "frobenius", blocks: Sequence[str] = ()) -> Figure:
    """Norm of every block against its depth, at up to four steps of the training."""
    blocks = chosen(df, blocks, quantity)
    if set(map(depth, blocks)) == {None}:
        raise BadInput(f"no layer among the blocks {', '.join(blocks)}: measure with --blocks layer")
    lines: list[list[Draw]] = []
    for protocol in protocols_of(df, quantity):
        table = table_of(df, blocks, quantity, [protocol])
        lines.append([partial(norm_by_depth, table=table, ylabel=label(quantity, ""), title=protocol)])
    return grid(lines, MEANINGS, heights=3.0)


def norm_by_depth(ax: Axes, table: pd.DataFrame, ylabel: str, title: str) -> None:
    """One protocol's norms at the first, the last and two steps between, in the order of the forward pass."""
    order = in_forward_order(table["block"])
    steps = np.unique(table["step"])
    # more than four steps would hide each other
    shown_steps = np.unique(steps[np.linspace(0, len(steps) - 1, 4).round().astype(int)]).tolist()
    colors = dict(zip(shown_steps, shades(len(shown_steps)), strict=False))
    # points of one run and step are joined; a floor for each of them would hide the values
    table = table.assign(at=table["block"].map(order.index), run=table["run"].astype(str), reference=np.nan)
    panel(ax, table, "at", ["step"], xlabel="block, in the order of the forward pass", ylabel=ylabel, title=title,
          names={step: f"step {step:,}" for step in shown_steps}, colors=colors, columns=4, dodge=0.06,
          markers=dict(zip(shown_steps, MARKERS, strict=False)))  # fmt: skip
    ax.set_xticks(range(len(order)), list(pd.Series(order).str.replace("layer.", "", regex=False)))
    limits(ax, table, log=True)


def in_forward_order(blocks: Iterable[str]) -> list[str]:
    """Blocks, each once, from the embedding to the head; the PEFT module last."""
    outside = {"embedding": -1, "final": 10**6, "head": 10**7, "peft": 10**8}
    layers = {}
    for name in dict.fromkeys(blocks):
        layer = depth(name)
        if layer is None:
            layer = outside.get(name, 10**6)
        layers[name] = layer
    return sorted(layers, key=layers.__getitem__)


def label(quantity: str, block: str) -> str:
    """Label of a quantity with its unit: ``||H_base||_F (mean loss)``."""
    signs = {
        "frobenius": symbol("H", block, r"\|", r"\|_F"),
        "spectral": symbol("H", block, r"|\lambda|_{\max}(", ")"),
        "trace": symbol("H", block, r"\mathrm{tr}\,"),
        "gauss_newton_trace": symbol("G", block, r"\mathrm{tr}\,"),
    }
    return f"{signs.get(quantity, quantity)} (mean loss)"


def limits(ax: Axes, rows: pd.DataFrame, log: bool | None = None) -> None:
    """Vertical limits that show every value, interval and drawn floor; from zero on where the axis is linear.

    A logarithmic axis is chosen where values span more than a factor of 10. Intervals that reach zero run out of it.
    """
    values = rows["measured"].dropna()
    ends = pd.concat([values, rows["high"].dropna(), rows["low"].dropna(), rows["reference"].dropna()])
    if log is None:
        log = ax.get_yscale() == "log" or bool(values.max() > 10 * values.min())
    if log and values.min() > 0:
        ends = ends[ends >= values.min() / NEAR]
        room = max((ends.max() / ends.min()) ** 0.08, 1.08)
        ax.set_yscale("log")
        ax.set_ylim(ends.min() / room, ends.max() * room)
        plain_ticks(ax.yaxis, pd.Series(ax.get_ylim()))
        return
    bottom, top = min(ends.min(), 0.0), max(ends.max(), 0.0)
    room = 0.06 * (top - bottom or 1.0)
    ax.set_ylim(bottom - room * (bottom < 0), top + room)


def symbol(letter: str, block: str, left: str = "", right: str = "") -> str:
    """Mathtext of a letter with the block's name as its index, or after it where the name is no plain word."""
    if block.isalnum():
        return rf"${left}{letter}_{{\mathrm{{{block}}}}}{right}$"
    text = f"${left}{letter}{right}$"
    if block:
        text += f" of {block}".replace("$", r"\$")
    return text


def styles_of(blocks: Iterable[str]) -> Styles:
    """Color and marker of each block: base, peft and head fixed, numbered layers from dark to light in their order.

    No two blocks share a color, and no two neighboring layers a marker.
    """
    fixed = {"base": ("#0072B2", "o"), "peft": ("#D55E00", "s"), "head": ("#7F7F7F", "^")}
    layers = sorted(filter(lambda block: depth(block) is not None, blocks), key=lambda block: (depth(block), block))
    styles = dict(zip(layers, zip(shades(len(layers)), MARKERS * 9, strict=False), strict=False))
    # the other blocks take the colors that base and peft leave, and markers from the end of the list
    spare = itertools.cycle(zip(COLORS[2:], MARKERS[::-1], strict=False))
    colors, markers = {}, {}
    for block in blocks:
        style = styles.get(block) or fixed.get(block) or next(spare)
        colors[block], markers[block] = style
    return colors, markers


def shades(count: int) -> list[str]:
    """Colors from dark to light, for what has an order."""
    return list(map(matplotlib.colors.to_hex, matplotlib.colormaps["viridis"](np.linspace(0.0, 0.95, max(count, 2)))))


def depth(block: str) -> int | None:
    """Number of a layer's block (``layer.3``, ``encoder.layer.3``); None for other blocks.

    >>> depth("encoder.layer.3"), depth("embedding")
    (3, None)
    """
    stem, _, last = block.rpartition(".")
    if stem.endswith("layer") and last.isdigit():
        return int(last)
    return None
