"""Figure of the records of ``smoothlab estimators``: bias, variance, rounding and cost of zeroth-order gradients."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.report import panels
from smoothlab.report.panels import COLORS, GRAY, MARKERS, grid, legend_above, magnitudes, panel, parts_of, scaled

NEEDED = ("part", "setting", "quantity", "estimator", "distribution", "sides", "q", "mu", "d", "measured")
PARTS = ("bias", "variance", "averages", "curve", "model-curve", "model-variance", "model-cost")
MEANINGS = {"line": "closed form or prediction", "hollow": "interval holds zero", "tick": "closed form"}
PRECISIONS = {"float64": "#009E73", "float32": "#0072B2", "bfloat16": "#D55E00"}
NAMES = {
    "lowrank": "low rank", 1: "one-sided", 2: "two-sided", "float32": "fp32", "float64": "fp64", "bfloat16": "bf16",
    "rounded": "gaussian, fp32",
}  # fmt: skip
SQUARED_ERROR = r"E\|\hat g - g\|^2 \,/\, ((d+1) \|g\|^2)"


def rows_of(df: pd.DataFrame, part: str, quantity: str, **chosen: Any) -> pd.DataFrame:
    """Rows of one part and quantity with a finite value, and with these values in these columns."""
    rows = panels.rows_of(df, part, quantity).dropna(subset="measured")
    for name, value in chosen.items():
        rows = rows[rows[name] == value]
    # records know no infinity: an interval with a lower end alone is open above
    rows["high"] = rows["high"].where(rows["high"].notna() | rows["low"].isna(), np.inf)
    return rows


def bias(ax: Axes, df: pd.DataFrame) -> None:
    """|bias| / ||g|| of the last function against mu, with closed forms; single precision in gray."""
    rows = rows_of(df, "bias", "bias", sides=2)
    rows = rows[rows["function"] == rows["function"].iloc[-1]]
    double = rows["dtype"] == "float64"
    closed = rows.loc[double, "reference"]
    bottom, mus = float(closed.min()) / 30, np.array([rows["mu"].min(), rows["mu"].max()])
    rows["series"] = rows["distribution"].where(double, "rounded")
    rows["reference"] = rows["reference"].where(double)
    colors = dict(zip(dict.fromkeys(rows.loc[double, "distribution"]), COLORS, strict=False)) | {"rounded": "#8C8C8C"}
    ax.plot(mus, closed.max() * 8 * (mus / mus[1]) ** 2, ":", color=GRAY, lw=1, label="slope 2")
    panel(ax, magnitudes(rows, bottom), "mu", ["series"], xlabel=r"perturbation $\mu$",
          ylabel=r"$|$bias$| \,/\, \|g\|$", title=f"Bias: {function_and_dimension(rows)}", scale="xy",
          names=NAMES, colors=colors, columns=4)  # fmt: skip
    ax.set_ylim(bottom, highest(rows) * 5)


def against(ax: Axes, df: pd.DataFrame, part: str, color: str, x: str, xlabel: str) -> None:
    """Squared error against d or q, over that of two-sided Gaussian directions, (d + 1) ||g||^2 / q."""
    rows = rows_of(df, part, "error")
    title = f"{part.capitalize()}: quadratic, $\\mu$ = {rows['mu'].iloc[0]:g}"
    rows = rows.sort_values("sides", ascending=False, kind="stable")
    rows = scaled(rows, (rows["q"] if x == "q" else 1) / (rows["d"] + 1))
    panel(ax, rows, x, [color, "sides"], xlabel=xlabel, ylabel=f"${'q' * (x == 'q')}\\, {SQUARED_ERROR}$", title=title,
          scale="x", names=NAMES, columns=3, dodge=0.03)  # fmt: skip
    values = sorted(set(rows[x]))
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
    ax.set_ylim(0, highest(rows) * 1.05)


def curve(ax: Axes, df: pd.DataFrame, part: str = "curve", block: str = "theta", sides: int = 2) -> None:
    """Error of a directional derivative against mu by precision: measured, predicted, and the best mu of both."""
    rows = rows_of(df, part, "derivative error", block=block, sides=sides)
    top, bottom = min(highest(rows) * 2, 100.0), float(rows["low"].min()) / 60
    columns = 3
    title = f"{('One', 'Two')[sides - 1]}-sided derivative: {function_and_dimension(rows)}"
    if part == "model-curve":
        columns, title = 2, f"{block}: {function_and_dimension(rows)}"
    rows["reference"] = pd.to_numeric(rows["predicted"])
    panel(ax, rows, "mu", ["dtype"], xlabel=r"perturbation $\mu$", ylabel=r"RMS error of $D(\mu)$ $/ \, \|g\|$",
          scale="xy", names=NAMES, colors=PRECISIONS,
          markers=dict.fromkeys(PRECISIONS, MARKERS[2 - sides]))  # fmt: skip
    # at the foot of the panel: the best mu of each precision, its interval, and what was predicted
    for line, (dtype, color) in enumerate(PRECISIONS.items()):
        height = bottom * (rows["low"].min() / bottom) ** (0.2 * (line + 0.8))
        for _, row in rows_of(df, part, "best mu", block=block, sides=sides, dtype=dtype).iterrows():
            ends = [max(row["low"], rows["mu"].min() / 10), min(row["high"], rows["mu"].max() * 10)]
            ax.plot(ends, [height, height], "-", color=color, lw=2.6, alpha=0.45, solid_capstyle="butt")
            if str(row.get("edge")) != "True":  # at the edge of the grid the true one may lie beyond
                ax.plot(row["measured"], height, "o", ms=3, color=color)
            ax.plot(row["predicted"], height, "|", ms=6, mew=1.3, color="black")
    ax.plot([], [], "-o", lw=2.6, color="#B0B0B0", label=r"best $\mu$")
    ax.plot([], [], "|", ms=6, mew=1.3, color="black", label="predicted")
    ax.axhline(1, color="black", lw=0.6, ls=":", zorder=0, label="100 %")
    ax.set(xlim=(rows["mu"].min() / 1.6, rows["mu"].max() * 1.6), ylim=(bottom, top))
    legend_above(ax, title, columns=columns)


def model_error(ax: Axes, df: pd.DataFrame) -> None:
    """Squared error of each estimator on a model's block over (d + 1) ||g||^2, beside its closed form."""
    rows = rows_of(df, "model-variance", "error")
    names = rows["estimator"].str.replace("two-sided ", "").str.replace("lowrank", "low rank")
    title = f"Variance on {rows['block'].iloc[0]}: {function_and_dimension(rows)}"
    horizontal(ax, scaled(rows, 1 / (rows["d"] + 1)).assign(name=names), f"${SQUARED_ERROR}$", title)


def model_cost(ax: Axes, df: pd.DataFrame) -> None:
    """Time of a pass that draws a direction and moves a block's weights, in forwards of the model."""
    rows = rows_of(df, "model-cost", "pass in forwards")
    names = rows["setting"].str.rpartition("/")[2].replace({"kept": "gaussian, kept", "lowrank": "low rank"})
    horizontal(ax, rows.assign(name=names), "pass over the weights, in forwards", "Cost of a direction")


def horizontal(ax: Axes, rows: pd.DataFrame, xlabel: str, title: str) -> None:
    """A line a row: measured with its interval, and the closed form as a tick."""
    rows = rows[::-1].assign(height=range(len(rows)), series="measured")
    panel(ax, rows, "height", ["series"], xlabel=xlabel, title=title, horizontal=True)
    ax.set_yticks(rows["height"], rows["name"])
    ax.set_xlim(0, highest(rows) * 1.05)


def figure(df: pd.DataFrame) -> Figure:
    """All panels that the records have rows for.

    Raises:
        BadInput: there are none, or the records are not those of ``smoothlab estimators``.
    """
    measured = parts_of(df, PARTS, NEEDED, "estimators")
    of_model = [("model-curve", partial(curve, part="model-curve", block=block))
                for block in df.loc[df["part"] == "model-curve", "block"].unique()]  # fmt: skip
    table: list[list[tuple[str, Any]]] = [
        [("bias", bias)],
        [("variance", partial(against, part="variance", color="distribution", x="d", xlabel="dimension $d$")),
         ("averages", partial(against, part="averages", color="average", x="q", xlabel="directions $q$"))],
        [("curve", curve), ("curve", partial(curve, sides=1))],
        of_model,
        [("model-variance", model_error), ("model-cost", model_cost)],
    ]  # fmt: skip
    lines = []
    for line in table:
        draws = [partial(draw, df=df) for part, draw in line if part in measured]
        if draws:
            lines.append(draws)
    return grid(lines, MEANINGS)


def function_and_dimension(rows: pd.DataFrame) -> str:
    """Function and dimension, for titles."""
    return f"{rows['function'].iloc[0]}, $d$ = {int(rows['d'].iloc[0]):,}"


def highest(rows: pd.DataFrame) -> float:
    """The largest value or finite end."""
    values = rows[["measured", "low", "high"]].abs().to_numpy()
    return float(values[np.isfinite(values)].max())
