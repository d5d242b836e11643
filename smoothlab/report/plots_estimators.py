"""Curves of the estimators records: functions ``(axes, DataFrame) -> None``, one a kind of curve.

In every panel a point is a measurement with its 95 % interval and a line is a closed form (or, in U-curves, the
prediction); a bar that leaves the panel at the bottom belongs to an interval that holds zero, and its point is hollow.
A bar that leaves it elsewhere is of an interval that is open there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.axes import legend_above, log_ticks
from smoothlab.report.plots import COLORS, STYLE

DISTRIBUTIONS = ("gaussian", "sphere", "rademacher", "coordinate", "sparse", "lowrank")
LAW_COLORS = dict(zip(DISTRIBUTIONS, COLORS, strict=False))
PRECISION_COLORS = {"float64": "#009E73", "float32": "#0072B2", "bfloat16": "#D55E00"}
SHORT = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16"}
AVERAGE_COLORS = {"plain": "#0072B2", "antithetic": "#CC79A7", "orthogonal": "#009E73"}
NAMES = {"lowrank": "low rank"}
MARKS, LINES, SIZES = {1: "s", 2: "o"}, {1: "--", 2: "-"}, {1: 2.4, 2: 3.0}  # by sides
GRAY = "#444444"
NEEDED = (
    "part",
    "setting",
    "quantity",
    "estimator",
    "distribution",
    "sides",
    "q",
    "mu",
    "d",
    "measured",
    "low",
    "high",
)


def rows_of(df: pd.DataFrame, part: str, quantity: str, **chosen: Any) -> pd.DataFrame:
    """Rows of one part and quantity with a finite value, and with these values in these columns.

    Raises:
        BadInput: the records are not those of ``smoothlab estimators``.
    """
    missing = [name for name in NEEDED if name not in df.columns]
    if missing:
        raise BadInput(f"these records lack {', '.join(missing)}: give records of `smoothlab estimators`")
    keep = (df["part"] == part) & (df["quantity"] == quantity) & df["measured"].notna()
    for name, value in chosen.items():
        keep &= df[name] == value
    found = df[keep].copy()
    for name in ("measured", "low", "high", "reference", "predicted", "mu"):
        found[name] = pd.to_numeric(found[name], errors="coerce").astype(float)
    found["high"] = found["high"].where(found["high"].notna() | found["low"].isna(), np.inf)  # records know no infinity
    # "sparse(0.25)" is drawn as sparse.
    found["distribution"] = found["distribution"].str.replace(r"\(.*", "", regex=True)
    return found


def at_edge(row: Any) -> bool:
    """Whether a best mu lies at the end of the grid, so that the true one may lie beyond."""
    return str(row.get("edge")) == "True"  # absent or NaN in other rows


def bias(ax: Axes, df: pd.DataFrame, function: str | None = None) -> None:
    """|bias| / ||g|| against mu for one function, with the closed form of each distribution and a line of slope 2."""
    found = _bias_rows(df, function)
    double = found[found["dtype"] == "float64"]
    bottom, top = float(double["reference"].min()) / 30, _top(found) * 5
    for distribution, rows in _by(double, "distribution", DISTRIBUTIONS):
        _points(ax, rows, "mu", LAW_COLORS[distribution], "o", NAMES.get(distribution, distribution), bottom)
        ax.plot(rows["mu"], rows["reference"], "-", lw=0.8, color=LAW_COLORS[distribution], zorder=1)
    for _, rows in _by(found[found["dtype"] == "float32"], "distribution", DISTRIBUTIONS):
        _points(ax, rows, "mu", "#8C8C8C", "D", "gaussian, fp32", bottom)
    mus = np.array([double["mu"].min(), double["mu"].max()])
    ax.plot(mus, double["reference"].max() * 8 * (mus / mus[1]) ** 2, ":", color=GRAY, lw=1, label="slope 2")
    _logs(ax, (mus[0], mus[1]), (bottom, top))
    ax.set(xlabel=r"step $\mu$", ylabel=r"$|$bias$| \,/\, \|g\|$")
    legend_above(ax, 4, f"Bias: {_title(double)}, line: closed form")


def bias_over_closed_form(ax: Axes, df: pd.DataFrame, function: str | None = None) -> None:
    """Measured bias over its closed form against mu, one curve per distribution; rounding runs out of the panel."""
    found = _bias_rows(df, function)
    found = found[found["dtype"] == "float64"]
    found = found.assign(**{name: found[name] / found["reference"] for name in ("measured", "low", "high")})
    for index, (distribution, rows) in enumerate(_by(found, "distribution", DISTRIBUTIONS)):
        shifted = rows.assign(place=rows["mu"] * 1.25 ** (index - 2.5))
        _points(ax, shifted, "place", LAW_COLORS[distribution], "o", None, size=2.2)
    ax.axhline(1, color=GRAY, lw=0.8, zorder=0)
    _logs(ax, (found["mu"].min(), found["mu"].max()), (0.1, 1))
    ax.set_yscale("linear")
    ax.set(ylim=(0.5, 1.5), xlabel=r"step $\mu$", ylabel="bias / its closed form")
    ax.set_title("The same over the closed form, fp64", loc="left", fontweight="bold", fontsize=7.5)


def _bias_rows(df: pd.DataFrame, function: str | None) -> pd.DataFrame:
    found = rows_of(df, "bias", "bias", sides=2)
    return found[found["function"] == (function or found["function"].iloc[-1])]


def against_dimension(ax: Axes, df: pd.DataFrame) -> None:
    """Squared error of one direction against d, over that of two-sided Gaussian directions, (d + 1) ||g||^2."""
    found = _over(rows_of(df, "variance", "error"))
    for index, (distribution, rows) in enumerate(_by(found, "distribution", DISTRIBUTIONS)):
        for sides, part in _by(rows, "sides", (1, 2)):
            part = part.sort_values("d")
            shifted = part.assign(place=part["d"] * 1.045 ** (2 * index - 5 + (sides == 1)))  # intervals side by side
            told = NAMES.get(distribution, distribution) if sides == 2 else None
            _points(ax, shifted, "place", LAW_COLORS[distribution], MARKS[sides], told, size=SIZES[sides])
            ax.plot(part["d"], part["reference"], LINES[sides], lw=0.8, color=LAW_COLORS[distribution], zorder=1)
    _sides_key(ax)
    _powers_of_2(ax, found["d"])
    ax.set_ylim(0, _top(found) * 1.05)
    ax.set(xlabel="dimension $d$", ylabel=r"$E\|\hat g - g\|^2 \,/\, ((d+1) \|g\|^2)$")
    legend_above(ax, 4, f"Variance: quadratic, $\\mu$ = {found['mu'].iloc[0]:g}, lines: closed form")


def against_directions(ax: Axes, df: pd.DataFrame) -> None:
    """Squared error of q averaged directions against q, times q / ((d + 1) ||g||^2): flat where it falls as 1/q."""
    found = _over(rows_of(df, "averages", "error"), times="q")
    for index, (average, rows) in enumerate(_by(found, "average", tuple(AVERAGE_COLORS))):
        for sides, part in _by(rows, "sides", (1, 2)):
            part = part.sort_values("q")
            shifted = part.assign(place=part["q"] * 1.04 ** (2 * index - 2 + (sides == 1)))
            told = average if sides == rows["sides"].max() else None
            color = AVERAGE_COLORS[average]
            _points(ax, shifted, "place", color, MARKS[sides], told, size=SIZES[sides])
            ax.plot(part["q"], part["reference"], LINES[sides], lw=0.8, color=color, zorder=1)
    _sides_key(ax)
    _powers_of_2(ax, found["q"])
    ax.set_ylim(0, _top(found) * 1.05)
    ax.set(xlabel="evaluated directions $q$", ylabel=r"$q\, E\|\hat g - g\|^2 \,/\, ((d+1) \|g\|^2)$")
    legend_above(ax, 3, f"Averages: gaussian, {_title(found)}, $\\mu$ = {found['mu'].iloc[0]:g}")


def curve(
    ax: Axes, df: pd.DataFrame, part: str = "curve", block: str = "theta", sides: int = 2, *, legend: bool = True
) -> None:
    """Error of a directional derivative against mu by precision: measured, predicted, and the best mu of both."""
    found = rows_of(df, part, "derivative error", block=block, sides=sides)
    top, bottom = min(_top(found) * 2, 100.0), float(found["low"].min()) / 60
    for dtype, rows in _by(found, "dtype", tuple(PRECISION_COLORS)):
        color = PRECISION_COLORS[dtype]
        _points(ax, rows, "mu", color, MARKS[sides], SHORT[dtype], bottom)
        ax.plot(rows["mu"], rows["predicted"], LINES[sides], lw=0.8, color=color, zorder=1)
    best = rows_of(df, part, "best mu", block=block, sides=sides)
    step = (found["low"].min() / bottom) ** 0.2
    for place, (dtype, rows) in enumerate(_by(best, "dtype", tuple(PRECISION_COLORS))):
        row, color, height = rows.iloc[0], PRECISION_COLORS[dtype], bottom * step ** (place + 0.8)
        ends = [max(row["low"], found["mu"].min() / 10), min(row["high"], found["mu"].max() * 10)]
        ax.plot(ends, [height, height], "-", color=color, lw=2.6, alpha=0.45, solid_capstyle="butt")
        if not at_edge(row):
            ax.plot(row["measured"], height, "o", ms=3, color=color)
        ax.plot(row["predicted"], height, "|", ms=6, mew=1.3, color="black")
    ax.axhline(1, color="black", lw=0.6, ls=":", zorder=0)
    _logs(ax, (found["mu"].min(), found["mu"].max()), (bottom, top))
    ax.set(xlabel=r"step $\mu$", ylabel=r"RMS error of $D(\mu)$ $/ \, \|g\|$")
    if legend:
        ax.plot([], [], LINES[sides], lw=0.8, color=GRAY, label="error, predicted")
        ax.plot([], [], "-o", ms=3, lw=2.6, color="#B0B0B0", label=r"best $\mu$")
        ax.plot([], [], "|", ms=6, mew=1.3, color="black", label=r"best $\mu$, predicted")
        legend_above(ax, 3, f"{'Two' if sides == 2 else 'One'}-sided derivative: {_title(found)}")


def model_error(ax: Axes, df: pd.DataFrame) -> None:
    """Squared error of each estimator on a model's block over (d + 1) ||g||^2, beside its closed form."""
    found = _over(rows_of(df, "model-variance", "error"))[::-1]
    places = np.arange(len(found))
    ax.hlines(places, found["low"], _ends(found), color=COLORS[0], lw=1.4)
    ax.plot(found["measured"], places, "o", ms=4, color=COLORS[0], label="measured")
    ax.plot(found["reference"], places, "|", ms=11, mew=1.5, color="black", label="closed form")
    ax.set_yticks(places, [_short(name) for name in found["estimator"]])
    ax.set_xlim(0, _top(found) * 1.05)
    ax.set_xlabel(r"$E\|\hat g - g\|^2 \,/\, ((d+1) \|g\|^2)$")
    legend_above(ax, 2, f"Variance: {found['function'].iloc[0]} {found['block'].iloc[0]}, {_size(found)}")


def model_cost(ax: Axes, df: pd.DataFrame) -> None:
    """Share of a two-sided step's time that drawing, moving and updating take, and a pass in forwards."""
    found = rows_of(df, "model-cost", "share of a step")[::-1]
    passes = rows_of(df, "model-cost", "pass in forwards").set_index("setting")
    places = np.arange(len(found))
    ax.barh(places, 100 * found["measured"], color="#9ECAE9", height=0.6)
    ax.hlines(places, 100 * found["low"], 100 * found["high"], color=GRAY, lw=1.2)
    names = [setting.rpartition("/")[2] for setting in found["setting"]]
    ax.set_yticks(places, [{"kept": "gaussian, kept"}.get(name, NAMES.get(name, name)) for name in names])
    for place, setting, high in zip(places, found["setting"], found["high"], strict=True):
        text, at = f"{passes.loc[setting, 'measured']:.2f}", (100 * high, float(place))
        ax.annotate(text, at, (4, 0), textcoords="offset points", va="center", fontsize=6.5)
    ax.set_xlim(0, min(100.0 * float(found["high"].max()) + 15, 115))
    ax.set_xlabel("share of a two-sided step (%)")
    ax.set_title("Cost; numbers: a pass in forwards", loc="left", fontweight="bold", fontsize=7.5)


def panels(df: pd.DataFrame) -> list[list[Callable[[Axes], None]]]:
    """What the records can show, by rows of the figure."""
    parts = set(df["part"]) if "part" in df else set()
    first: list[tuple[str, Callable[[Axes], None]]] = [
        ("bias", lambda ax: bias(ax, df)), ("bias", lambda ax: bias_over_closed_form(ax, df)),
        ("variance", lambda ax: against_dimension(ax, df)), ("averages", lambda ax: against_directions(ax, df)),
        ("curve", lambda ax: curve(ax, df)), ("curve", lambda ax: curve(ax, df, sides=1)),
    ]  # fmt: skip
    there = [draw for part, draw in first if part in parts]
    grid = [there[i : i + 2] for i in range(0, len(there), 2)]
    if "model-curve" in parts:
        blocks = list(dict.fromkeys(df.loc[df["part"] == "model-curve", "block"]))
        grid.append([_block_curve(df, block, first=index == 0) for index, block in enumerate(blocks)])
    last: list[tuple[str, Callable[[Axes], None]]] = [
        ("model-variance", lambda ax: model_error(ax, df)), ("model-cost", lambda ax: model_cost(ax, df)),
    ]  # fmt: skip
    if two := [draw for part, draw in last if part in parts]:
        grid.append(two)
    return grid


def _block_curve(df: pd.DataFrame, block: str, *, first: bool) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        curve(ax, df, "model-curve", block, legend=False)
        rows = rows_of(df, "model-curve", "derivative error", block=block)
        title = f"{rows['function'].iloc[0]} {block}, {_size(rows)}"
        ax.set_title(title, loc="left", fontweight="bold", fontsize=7.5)
        if not first:
            ax.set_ylabel("")

    return draw


def estimators_figure(df: pd.DataFrame) -> Figure:
    """All panels that the records have rows for.

    Raises:
        BadInput: there are none.
    """
    rows_of(df, "", "")
    grid = panels(df)
    if not grid:
        raise BadInput("these records hold no rows of an estimator: give finished records of `smoothlab estimators`")
    fig = Figure(figsize=(7.0, 2.4 * len(grid)), layout="constrained")
    with matplotlib.rc_context(STYLE):
        for part, row in zip(fig.subfigures(len(grid), 1, squeeze=False)[:, 0], grid, strict=True):
            for ax, draw in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
                draw(ax)
    return fig


def _by(rows: pd.DataFrame, column: str, order: Sequence[Any]) -> list[tuple[Any, pd.DataFrame]]:
    """Rows by their value in a column, in this order; values that no row has are left out."""
    return [(name, part) for name in order if len(part := rows[rows[column] == name])]


def _over(rows: pd.DataFrame, times: str | None = None) -> pd.DataFrame:
    """Errors over d + 1, and times q where asked."""
    factor = (rows[times] if times else 1) / (rows["d"] + 1)
    return rows.assign(**{name: rows[name] * factor for name in ("measured", "low", "high", "reference")})


def _points(
    ax: Axes, rows: pd.DataFrame, x: str, color: str, marker: str, label: str | None, bottom: float | None = None,
    size: float = 3.0,
) -> None:  # fmt: skip
    """Points with interval bars; on a log axis (`bottom`) sizes, and hollow where the interval holds zero."""
    low, high, value = rows["low"], _ends(rows), rows["measured"]
    holds = pd.Series(False, index=rows.index)
    if bottom is not None:
        holds = (low <= 0) & (high >= 0)
        ends = pd.concat([low, high], axis=1).abs()
        value, low, high = value.abs(), ends.min(axis=1).where(~holds, bottom / 10), ends.max(axis=1)
    ax.vlines(rows[x], low, high, color=color, lw=1.0, zorder=2)
    ax.plot(rows[x], value, linestyle="", marker=marker, ms=size, color=color, label=label, zorder=3)
    under = rows[holds]
    ax.plot(under[x], value[holds], linestyle="", marker=marker, ms=size, mfc="white", mec=color, zorder=3.1)


def _ends(rows: pd.DataFrame) -> pd.Series:
    """Upper ends; open ones far outside of the panel."""
    return rows["high"].where(np.isfinite(rows["high"]), 1e6 * rows["measured"].abs())


def _top(rows: pd.DataFrame) -> float:
    """The largest value or finite end."""
    seen = rows[["measured", "low", "high"]].abs().to_numpy()
    return float(seen[np.isfinite(seen)].max())


def _sides_key(ax: Axes) -> None:
    for sides, name in ((2, "two-sided"), (1, "one-sided")):
        look: dict[str, Any] = {"ls": LINES[sides], "marker": MARKS[sides], "ms": SIZES[sides], "color": GRAY}
        ax.plot([], [], lw=0.8, label=name, **look)


def _title(rows: pd.DataFrame) -> str:
    return f"{rows['function'].iloc[0]}, {_size(rows)}"


def _size(rows: pd.DataFrame) -> str:
    return f"$d$ = {int(rows['d'].iloc[0]):,}"


def _powers_of_2(ax: Axes, values: pd.Series) -> None:
    places = sorted(set(values))
    ax.set_xscale("log", base=2)
    ax.set_xticks(places, [f"{int(place)}" for place in places])
    ax.xaxis.set_minor_locator(ticker.NullLocator())


def _logs(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    ax.set(xscale="log", yscale="log", xlim=(x[0] / 1.6, x[1] * 1.6), ylim=y)
    for axis, ends in ((ax.xaxis, x), (ax.yaxis, y)):
        if ends[1] / ends[0] > 1e4:
            axis.set_major_locator(ticker.LogLocator(numticks=6))
            axis.set_major_formatter(ticker.LogFormatterMathtext())
            axis.set_minor_locator(ticker.NullLocator())
        else:
            log_ticks(axis, pd.Series(ends))


def _short(estimator: str) -> str:
    return estimator.replace("two-sided ", "").replace("lowrank", "low rank")
