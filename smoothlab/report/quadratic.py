"""Figure of the records of ``smoothlab quadratic``: where one rate and two rates converge, and how fast."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.report.panels import COLORS, GRAY, LABELS, grid, panel, parts_of, rows_of, scaled

NEEDED = ("part", "setting", "quantity", "rule", "ratio", "d", "distribution", "measured", "low", "high", "reference")
MEANINGS = {"line": "closed form", "hollow": "closed form alone: not run"}
RULES = {"small": COLORS[0], "large": COLORS[1], "best": COLORS[2], "two": COLORS[7]}
NAMES = {
    "small": "one rate $1/(2a)$", "large": "one rate $1/(2b)$", "best": "best single rate", "two": "two rates",
    "gaussian": "gaussian: $2/(d+2)$", "sphere": "sphere: $2/d$", "rademacher": "signs: $2/d$",
    "coordinate": "coordinate: $2/d$",
}  # fmt: skip


def factor(ax: Axes, df: pd.DataFrame) -> None:
    """Factor of the slower block a step against a/b; above 1 it diverges, as 1/(2b) does beyond a/b = 2."""
    rows = rows_of(df, "rates", "factor")
    rows = rows[rows["measured"] < 1.7]
    a = np.geomspace(1, max(rows["ratio"].max(), 10), 400)
    closed = {"small": 1 - 1 / a, "large": a - 1, "best": (a - 1) / (a + 1), "two": 0 * a}
    for rule, line in closed.items():
        ax.plot(a, line, "-", lw=0.9, color=RULES[rule], zorder=1, label=LABELS["-"])
    ax.axhspan(1, 2, color="#D55E00", alpha=0.08, lw=0, label="diverges")
    ax.plot([2, 2], [0, 2], ":", lw=0.9, color=GRAY, label="$a/b$ = 2; printed: 1")
    panel(ax, rows.assign(reference=np.nan), "ratio", ["rule"], xlabel="$a/b$", ylabel="factor a step", scale="x",
          title="Exact gradients", names=NAMES, colors=RULES, columns=2)  # fmt: skip
    ax.set(xlim=(0.93, a[-1] * 1.08), ylim=(-0.06, 2))


def exact_steps(ax: Axes, df: pd.DataFrame) -> None:
    """Steps to eps against a/b with exact gradients."""
    rows = rows_of(df, "rates", "steps")
    panel(ax, rows[np.isfinite(rows["reference"])], "ratio", ["rule"], xlabel="$a/b$", ylabel="steps", scale="xy",
          title="Steps to $\\varepsilon$, exact gradients", names=NAMES, colors=RULES, columns=2)  # fmt: skip


def hybrid_steps(ax: Axes, df: pd.DataFrame) -> None:
    """Steps to eps against a/b where x is zeroth-order, a color a dimension, a line a rule."""
    rows = rows_of(df, "hybrid", "steps").sort_values("rule", ascending=False, kind="stable")
    panel(ax, rows, "ratio", ["d", "rule"], xlabel="$a/b$", ylabel="steps (mean square)", scale="xy",
          title="Steps to $\\varepsilon$, $x$ zeroth-order", names=NAMES | dimensions(rows), columns=2)  # fmt: skip


def mean_square(ax: Axes, df: pd.DataFrame) -> None:
    """(E||x+||^2/||x||^2 - 1) m against the rate: all dimensions on one parabola 4c(c - 1)."""
    rows = rows_of(df, "noise", "mean square factor")
    rows = rows[rows["distribution"] == "gaussian"]
    for name in ("measured", "low", "high"):
        rows[name] = (rows[name] - 1) * (rows["d"] + 2)
    c = np.linspace(0, rows["scale"].max() * 1.08, 200)
    ax.plot(c, 4 * c * (c - 1), "-", lw=0.9, color="black", label="$4c(c - 1)$")
    against_rate(ax, rows.assign(reference=np.nan), r"$m\,(E\|x^+\|^2/\|x\|^2 - 1)$", "Zeroth-order step, $m = d + 2$")


def typical(ax: Axes, df: pd.DataFrame) -> None:
    """m E log(||x+||^2/||x||^2) against the rate: below 0 almost every run converges."""
    rows = rows_of(df, "noise", "typical log factor")
    against_rate(ax, scaled(rows, rows["d"] + 2), r"$m\,E\log(\|x^+\|^2/\|x\|^2)$", "Zeroth-order step, typical run")


def against_rate(ax: Axes, rows: pd.DataFrame, ylabel: str, title: str) -> None:
    """Rows of several dimensions against the rate, in the largest stable one."""
    ax.axhline(0, color=GRAY, lw=0.6, ls=":", zorder=0, label="no change")
    panel(ax, rows, "scale", ["d"], xlabel=r"rate $c$, in $2/(m \cdot 2a)$", ylabel=ylabel, title=title,
          names=dimensions(rows), dodge=0.012)  # fmt: skip


def stable(ax: Axes, df: pd.DataFrame) -> None:
    """Largest stable rate times curvature and d: 2d/(d + 2) and 2 for zeroth-order steps, 2d for exact gradients."""
    rows = rows_of(df, "noise", "largest stable rate")
    nearest = rows["scale"].iloc[int((rows["scale"] - 1).abs().to_numpy().argmin())]
    rows = rows[np.isclose(rows["scale"], nearest)]
    limit = rows_of(df, "noise", "largest typical rate").sort_values("d")
    ax.plot(limit["d"], limit["reference"] * limit["d"], ":", lw=1, color=COLORS[0], label="gaussian, typical run")
    ax.plot([1, 1.3], [2, 2.6], "-", lw=1, color=GRAY, label="exact gradients: 2")
    panel(ax, scaled(rows, rows["d"]), "d", ["distribution"], xlabel="dimension $d$", scale="x", names=NAMES,
          ylabel=r"largest stable $\eta \cdot 2a \cdot d$", title="Zeroth-order rates fall as $1/d$",
          columns=2, dodge=0.07)  # fmt: skip
    ax.set_ylim(0, 2.6)


def stable_rates(ax: Axes, df: pd.DataFrame, coupling: float) -> None:
    """The share of runs above their start against both rates, and the line at which the mean square stops falling."""
    df = df[(df["part"] == "map") & (df["coupling"] == coupling)]
    df = df[df["d"] == df["d"].min()]
    cells = rows_of(df, "map", "share above start").pivot_table(index="eta_y", columns="eta_x", values="measured")
    x, y = cells.columns.to_numpy(float), cells.index.to_numpy(float)
    shares = ax.pcolormesh(x, y, cells.to_numpy(), cmap="Blues", vmin=0, vmax=1, shading="nearest", zorder=0)
    ax.figure.colorbar(shares, ax=ax, label="runs above their start")
    edge = df[df["quantity"] == "mean-square edge"]  # in the order of eta_y/eta_x
    ax.plot(edge["eta_x"], edge["eta_y"], "-", color=COLORS[1], label="mean-square edge (theory)")
    ax.set(xlabel=r"$\eta_x$ (zeroth-order)", ylabel=r"$\eta_y$ (exact)", xlim=(0, None), ylim=(0, None))
    title = f"Stable rates, $a/b$ = 3, coupling {coupling:g}, $d$ = {df['d'].min():g}"
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), title=title, alignment="left")


def dimensions(rows: pd.DataFrame) -> dict[float, str]:
    """Legend entries of the dimensions."""
    return {d: f"$d$ = {d:,.0f}" for d in set(rows["d"])}


PANELS = {"rates": (factor, exact_steps), "hybrid": (hybrid_steps,), "noise": (mean_square, typical, stable)}


def figure(df: pd.DataFrame) -> Figure:
    """All that was measured, two panels a line.

    Raises:
        BadInput: the records are not those of ``smoothlab quadratic``.
    """
    draws = []
    for part in parts_of(df, [*PANELS, "map"], NEEDED, "quadratic"):
        if part == "map":
            couplings = sorted(df.loc[df["part"] == "map", "coupling"].dropna().unique())
            draws += [partial(stable_rates, df=df, coupling=coupling) for coupling in couplings]
        else:
            draws += [partial(draw, df=df) for draw in PANELS[part]]
    return grid([draws[i : i + 2] for i in range(0, len(draws), 2)], MEANINGS)
