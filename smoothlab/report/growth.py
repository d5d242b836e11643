"""Report of `smoothlab fit`: lines for a terminal, and figures of L against step and gradient norm."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.curvature import limits, styles_of
from smoothlab.report.layer_map import one_map
from smoothlab.report.numbers import interval, number
from smoothlab.report.panels import Draw, grid, panel, plain_ticks, step_axis

NEEDED = ("part", "block", "gradient_norm", "norm", "gradient")
FEW = 4  # blocks that a figure shows, and the terminal in full
CURVES = {"constant": "L0", "linear": "L0 + L1 u", "power": "L0 + c u^rho"}
MEANINGS = {"dashed": "envelope: no point lies above it", "hollow": "left out of the fits"}


def check(df: pd.DataFrame) -> None:
    """Refuse records of other commands.

    Raises:
        BadInput: names the columns that are missing.
    """
    missing = [name for name in NEEDED if name not in df.columns]
    if missing:
        raise BadInput(f"these records lack {', '.join(missing)}: give records of `smoothlab fit --out`")


def text(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of all fits and tests; of more than four blocks one line each, and counts of the verdicts."""
    df = pd.DataFrame(list(rows))
    blocks = df["block"].drop_duplicates().tolist()
    quantity, gradient = df["norm"].iloc[0], df["gradient"].iloc[0]
    lines = [f"L: {quantity}; u: gradient norm {gradient}; in parentheses 95 % intervals"]
    if len(blocks) > FEW:
        return lines + _lines_by_block(df, blocks)
    for block in blocks:
        lines += _block(df[df["block"] == block], block)
    for _, test in df[(df["part"] == "tests") & (df["quantity"] == "same")].iterrows():
        lines.append(f"{test['block']} and {test['other']}: equal (L0, L1)? {test['verdict']}{_p(test)}")
    return lines


def _block(df: pd.DataFrame, block: str) -> list[str]:
    fits = df[df["part"] == "parameters"]
    first = fits.iloc[0]
    lines = [f"{block}: {_counted(df, first)}; bootstrap of blocks of {int(first['block_length'])}"]
    for (form, method), rows in fits.groupby(["form", "fitted_by"], sort=False):
        largest = df.loc[df["part"] == "points", "value"].max()
        named = []
        for _, row in rows.iterrows():
            ends = row[["measured", "low", "high"]].astype(float)
            if row["quantity"] == "L0":  # the search reaches 0 up to its tolerance
                ends = ends.mask(ends < 1e-6 * largest, 0.0)
            named.append(f"{row['quantity']} = {interval(*ends)}")
        if form == "power" and rows["measured"].iloc[1] == 0:
            named[2] = "rho not identified"
        line = f"  {CURVES[str(form)]:<13} {method:<14} {', '.join(named)}"
        if np.isfinite(rows["exceeded_by"].iloc[0]):
            line += f"; exceeded with probability at most {number(rows['exceeded_by'].iloc[0], 2)}"
        lines.append(line)
    for _, test in df[(df["part"] == "tests") & (df["quantity"] != "same")].iterrows():
        estimate = ""
        if test["quantity"] == "grows":
            estimate = f": L1 = {interval(test['measured'], test['low'], test['high'])}"
        lines.append(f"  {test['quantity']}? {test['verdict']}{estimate}{_p(test)}")
    return lines


def _counted(df: pd.DataFrame, fit: pd.Series) -> str:
    """Number of points, range of their gradient norms, and numbers of points left out by reason."""
    points = df[df["part"] == "points"]
    u = points.loc[points["left_out"].isna(), "gradient_norm"]
    left_out = [f"{count} {reason}" for reason, count in dict(fit["left_out_points"] or {}).items()]
    return (
        f"{int(fit['count'])} points, u from {number(u.min())} to {number(u.max())}; left out: "
        f"{', '.join(left_out) or 'none'}"
    )


def _p(test: pd.Series) -> str:
    if pd.isna(test["p_value"]):
        return ""
    return f", p = {number(test['p_value'], 2)}"


def _lines_by_block(df: pd.DataFrame, blocks: Sequence[str]) -> list[str]:
    """A line a block: the least-squares line, the exponent, and both tests; then how many blocks have which verdict."""
    table = [["block", "points", "left out", "L0", "L1", "rho", "grows?", "p", "sub-quadratic?", "p"]]
    fits = df[(df["part"] == "parameters") & (df["fitted_by"] == "least-squares")]
    tests = df[(df["part"] == "tests") & (df["quantity"] != "same")]
    for block in blocks:
        of_block = fits[fits["block"] == block]
        first = of_block.iloc[0]
        cells = [block, str(int(first["count"])), str(sum(dict(first["left_out_points"] or {}).values()))]
        for form, name in (("linear", "L0"), ("linear", "L1"), ("power", "rho")):
            row = of_block[(of_block["form"] == form) & (of_block["quantity"] == name)].iloc[0]
            cells.append(interval(row["measured"], row["low"], row["high"]))
        for _, test in tests[tests["block"] == block].iterrows():
            cells += [str(test["verdict"]), _p(test).removeprefix(", p = ")]
        table.append(cells)
    widths = pd.DataFrame(table).map(len).max()
    lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
    for quantity, rows in tests.groupby("quantity", sort=False):
        counts = ", ".join(f"{verdict} in {count}" for verdict, count in rows["verdict"].value_counts().items())
        strict = int((rows["p_value"] * len(blocks) < 0.05).sum())
        lines.append(f"{quantity}? {counts} of {len(blocks)} blocks; p below 0.05/{len(blocks)} in {strict}")
    return lines


def fit(df: pd.DataFrame, quantity: str = "", blocks: Sequence[str] = ()) -> Figure:
    """L of each block against the step (left) and against the gradient norm with its fits (right)."""
    names = _chosen(df, blocks)
    styles = styles_of(names)
    lines: list[list[Draw]] = []
    for name in names:
        rows, color = df[df["block"] == name], styles[0][name]
        lines.append([partial(_against_step, df=rows, name=name, color=color),
                      partial(_against_gradient, df=rows, name=name, color=color)])  # fmt: skip
    return grid(lines, MEANINGS, heights=2.5)


def _chosen(df: pd.DataFrame, blocks: Sequence[str]) -> list[str]:
    """The blocks to draw: those named, or up to four from the first to the last."""
    check(df)
    fitted = df["block"].drop_duplicates().tolist()
    for block in blocks:
        if block not in fitted:
            listed = ", ".join(fitted[:12])
            if len(fitted) > 12:
                listed += ", ..."
            raise BadInput(f"--block {block}: these records hold fits of {listed}; name some of these")
    if blocks or len(fitted) <= FEW:
        return list(blocks) or fitted
    return [fitted[i] for i in np.linspace(0, len(fitted) - 1, FEW).round().astype(int)]


def _points(df: pd.DataFrame) -> pd.DataFrame:
    """Points as `panel` draws them: hollow where they are left out, with the interval of their own measurement."""
    points = df[df["part"] == "points"].copy()
    for name in ("value", "low", "high", "gradient_norm", "step"):
        points[name] = pd.to_numeric(points[name], errors="coerce").astype(float)
    points["hollow"], points["run"] = points["left_out"].notna(), points["path"]
    # Points are drawn alone: a reference is a line.
    return points.assign(measured=points["value"], reference=np.nan, kind="measured")


def _against_step(ax: Axes, df: pd.DataFrame, name: str, color: str) -> None:
    points = _points(df)
    panel(ax, points, "step", ["kind"], xlabel="step", ylabel=_label(df), title=name, joined=len(points) < 1000,
          names={"measured": "measured"}, colors={"measured": color}, markers={"measured": "o"})  # fmt: skip
    step_axis(ax, points["step"])
    limits(ax, points)


def _against_gradient(ax: Axes, df: pd.DataFrame, name: str, color: str) -> None:
    """Points with the least-squares line and power, their bands, and the linear envelope, on logarithmic axes."""
    points = _points(df)
    fits = df[df["part"] == "parameters"].set_index(["form", "fitted_by", "quantity"])["measured"]
    L0, L1 = (number(fits["linear", "least-squares", key]) for key in ("L0", "L1"))
    rho = number(fits["power", "least-squares", "rho"], 2)
    curves = df[df["part"] == "curves"].copy()
    curves["measured"] = pd.to_numeric(curves["value"]).astype(float)
    drawn = []
    for key, form, method in (("line", "linear", "least-squares"), ("power", "power", "least-squares"),
                              ("envelope", "linear", "envelope")):  # fmt: skip
        rows = curves[(curves["form"] == form) & (curves["fitted_by"] == method)]
        drawn.append(rows.assign(kind=key, reference=np.nan, hollow=False, run=""))
    drawn[2] = drawn[2].assign(reference=drawn[2]["measured"], measured=np.nan)
    # The legend at the foot of the figure names the envelope by its dashes.
    names = {"line": f"{L0} + {L1} u", "power": rf"$L_0 + c\,u^{{{rho}}}$", "envelope": "_nolegend_"}
    colors = {"line": "#000000", "power": "#CC79A7"}
    if fits["power", "least-squares", "c"] == 0:  # the line again
        del colors["power"]
    columns = ["gradient_norm", "measured", "low", "high", "reference", "kind", "hollow", "run"]
    fitted = pd.concat([rows[columns] for rows in drawn[:2]]).astype({"low": float, "high": float})
    panel(ax, fitted, "gradient_norm", ["kind"], names=names, colors=colors, joined=True, scale="x",
          markers=dict.fromkeys(names, ""))  # fmt: skip
    bound = drawn[2][columns].assign(low=np.nan, high=np.nan)
    panel(ax, bound, "gradient_norm", ["kind"], names=names, colors={"envelope": "#000000"}, line="--",
          markers={"envelope": ""})  # fmt: skip
    panel(ax, points, "gradient_norm", ["kind"], xlabel=f"gradient norm u {df['gradient'].iloc[0]}", ylabel=_label(df),
          title=name, scale="x", names={"measured": "measured"}, colors={"measured": color},
          markers={"measured": "o"}, columns=4)  # fmt: skip
    plain_ticks(ax.xaxis, points["gradient_norm"])
    drawn_points = points[["measured", "low", "high", "reference"]]
    limits(ax, pd.concat([drawn_points, bound[["measured", "low", "high", "reference"]]]), log=True)


def _label(df: pd.DataFrame) -> str:
    words = {"frobenius": r"$\|H\|_F$ (mean loss)", "spectral": r"$|\lambda|_{\max}(H)$ (mean loss)"}
    quantity = str(df["norm"].iloc[0])
    return words.get(quantity, f"L: {quantity}".replace("$", r"\$"))


def fit_map(df: pd.DataFrame, quantity: str = "", blocks: Sequence[str] = ()) -> Figure:
    """Map of L: a row for each block, a column for each step; in parentheses the points that the fits leave out."""
    check(df)
    names = list(blocks) and _chosen(df, blocks)
    points = df[df["part"] == "points"]
    if names:
        points = points[points["block"].isin(names)]
    table = pd.DataFrame({
        "wrt": points["block"], "step": points["step"].astype(int), "value": points["value"].astype(float),
        "flag": points["left_out"],
    })  # fmt: skip
    rows: Any = table["wrt"].nunique()
    return grid([[partial(one_map, table=table, title=_label(df))]], {}, heights=min(1.2 + 0.22 * rows, 7.0))
