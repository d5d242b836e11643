"""Figure of the records of ``smoothlab rates``: what Theorem 3.4 promises and what Algorithm 1 does, two panels a part.

A point is a measurement, a line an exact recursion or what a theorem asks for; a hollow point is by the recursion
alone, where a run would be too long.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.report.panels import COLORS, GRAY, grid, panel, parts_of, rows_of, scaled, short_names
from smoothlab.stats import samples
from smoothlab.stats.intervals import Interval

NEEDED = ("part", "setting", "quantity", "measured", "low", "high", "reference")
MEANINGS = {"line": "exact recursion, or asked for", "hollow": "exact recursion alone: not run",
            "dashed": "corrected theorem's best rate"}  # fmt: skip
THEOREMS = {"printed": COLORS[1], "expectation": COLORS[0], "probability": COLORS[2]}
SERIES = THEOREMS | {"zo": COLORS[7], "fo-reshuffle": COLORS[3], "fo-replace": COLORS[4]}
NAMES = {
    "printed": "C.1 as printed", "expectation": "in expectation", "probability": "high probability",
    "zo": "best, zeroth-order", "fo-reshuffle": "best, exact, reshuffled", "fo-replace": "best, exact, replaced",
    "one": "one rate", "two": "two rates",
}  # fmt: skip
BUDGET = {
    "zo-quadratics": COLORS[0], "zo-quadratics-q4": COLORS[4], "zo-quadratics-lowrank": COLORS[2],
    "zo-log-cosh": COLORS[1], "zo-exponentials": COLORS[3],
}  # fmt: skip
"""Series of part budget."""
CURVED = {
    "zo-quadratics": "quadratics", "zo-quadratics-q4": "quadratics, $q$ = 4",
    "zo-quadratics-lowrank": "quadratics, rank 1", "zo-log-cosh": "log cosh", "zo-log-cosh-q4": "log cosh, $q$ = 4",
    "zo-log-cosh-lowrank": "log cosh, rank 1", "zo-exponentials": "exponentials",
    "zo-exponentials-q4": "exponentials, $q$ = 4",
}  # fmt: skip
"""Legend entries of sums whose components curve differently."""
AXES = {"eps": r"$\varepsilon$", "n": "$n$", "d": "$d$", "delta": r"$\delta$"}
OPTIONS = {
    "eps=": r"$\varepsilon$ = ", "delta=": r"$\delta$ = ", "sigma=": r"$\sigma$ = ", "ratio=": "$L_x/L_y$ = ",
    "given=": "$T$ = ", "rule=one": "one rate", "n=": "$n$ = ", "d=": "$d$ = ", "family=": "", "order=": "order: ",
    "oracle=": "gradients: ",
}  # fmt: skip
"""How options are written at the axis."""
MOST = 45  # settings whose names are drawn
SHIFT = 0.24  # of a line: from one theorem to the next


def averages(ax: Axes, df: pd.DataFrame) -> None:
    """Mean of (1/T) sum ||grad f||^2 over eps^2 of every setting and theorem, and of the counterexample."""
    rows = by_setting(ax, df, "average")
    rows = scaled(rows, 1 / rows["bound"])
    # the recursion is drawn only where nothing was measured: elsewhere the two are one point
    rows["reference"] = rows["reference"].where(rows["measured"].isna())
    ax.axvline(1, color="black", lw=0.8, ls=":", label="promised: at most 1")
    panel(ax, rows, "height", ["theorem"], xlabel=r"mean of $\frac{1}{T}\sum\|\nabla f\|^2$, in $\varepsilon^2$",
          title="At the constants of the theorems", names=NAMES, colors=THEOREMS, horizontal=True, scale="x",
          columns=2)  # fmt: skip


def successes(ax: Axes, df: pd.DataFrame) -> None:
    """Fraction of replicas with (1/T) sum ||grad f||^2 <= eps^2, against the promised 1 - delta (a tick)."""
    rows = by_setting(ax, df, "success")
    promised = rows[rows["meets"].astype(bool)]
    style: Any = {"ms": 6, "mew": 1.2, "color": "black"}
    ax.plot(promised["bound"], promised["height"], "|", label=r"promised: $1 - \delta$", **style)
    panel(ax, rows.assign(reference=np.nan), "height", ["theorem"], title="Success of one run", names=NAMES,
          xlabel=r"probability of $\frac{1}{T}\sum\|\nabla f\|^2 \leq \varepsilon^2$", colors=THEOREMS,
          horizontal=True, columns=2)  # fmt: skip
    ax.set_yticklabels([])
    ax.set(xlim=(-0.03, 1.03), ylabel="")


def by_setting(ax: Axes, df: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Rows of theorem and counterexample with the ordinate of their setting, which the axis names."""
    averaged = pd.concat([rows_of(df, "theorem", "average"), rows_of(df, "counterexample", "average")])
    rows = pd.concat([rows_of(df, "theorem", quantity), rows_of(df, "counterexample", quantity)])
    settings = averaged["setting"].unique().tolist()
    heights = dict(zip(settings, range(0, -len(settings), -1), strict=True))
    names = short_names(df.loc[df["part"] == "theorem", "setting"])
    for _, row in averaged[averaged["part"] == "counterexample"].iterrows():
        names[row["setting"]] = f"fails: $d$ = {row['d']:g}, $\\sigma$ = {row['sigma']:g}"
    if len(settings) > MOST:
        ax.set_yticks([])
        ax.set_ylabel(f"{len(settings)} settings")
    else:
        ax.set_yticks(list(heights.values()), [_in_symbols(names[setting]) for setting in settings])
    ax.set_ylim(0.4 - len(settings), 0.6)
    shifts = {"printed": SHIFT, "expectation": 0.0, "probability": -SHIFT}  # below each other in their line
    return rows.assign(height=rows["setting"].map(heights) + rows["theorem"].map(shifts))


def _in_symbols(name: str) -> str:
    """Name of a setting with the symbols of the theorem in place of the options' names."""
    for option, symbol in OPTIONS.items():
        name = name.replace(option, symbol)
    return name


def trajectory(ax: Axes, df: pd.DataFrame) -> None:
    """||grad f(z_t)||^2 of the counterexample: mean, all replicas, recursion, and eps^2; the longest that was run."""
    rows = rows_of(df, "counterexample", "trajectory")
    if rows.empty:
        ax.text(0.5, 0.5, "no instance was short enough\nto be run", ha="center", va="center", transform=ax.transAxes)
        return
    rows = rows[(rows["T"] == rows["T"].max()) & (rows["epoch"] > 0)].sort_values("epoch")
    first, color = rows.iloc[0], THEOREMS["printed"]
    ax.fill_between(rows["epoch"], rows["least"], rows["largest"], color=color, alpha=0.15, lw=0, label="all replicas")
    ax.axhline(first["bound"], color=GRAY, lw=1, ls=":", label=r"promised average, $\varepsilon^2$")
    panel(ax, rows, "epoch", ["theorem"], xlabel=f"epoch ($T$ = {first['T']:,.0f})", ylabel=r"$\|\nabla f(z_t)\|^2$",
          title=f"C.1 fails: $d$ = {first['d']:.0f}, $n$ = {first['n']:.0f}, $\\sigma$ = {first['sigma']:g}",
          names={"printed": "mean"}, colors={"printed": color}, scale="xy")  # fmt: skip


def failing(ax: Axes, df: pd.DataFrame) -> None:
    """Smallest d from which on the printed conclusion fails in expectation, against n."""
    rows = rows_of(df, "counterexample", "smallest d that fails").sort_values("n")
    n = np.geomspace(rows["n"].min(), rows["n"].max(), 50)
    top, color = rows["reference"].max() * 4, THEOREMS["printed"]
    ax.plot(n, 4 * n - 2, ":", lw=1, color="black", label=r"$d + 2 = 4 n L \Delta$")
    ax.fill_between(rows["n"], rows["reference"], top, color=color, alpha=0.1, lw=0, label="the conclusion fails")
    panel(ax, rows, "n", ["theorem"], xlabel="$n$", ylabel="$d$", scale="xy", names={"printed": "smallest such $d$"},
          title=r"Much noise, $L\Delta = 1$, $\varepsilon^2 = L\Delta/2$", colors={"printed": color},
          columns=2)  # fmt: skip
    ax.set_ylim(1, top)


def steps(ax: Axes, df: pd.DataFrame) -> None:
    """nT against eps: what the theorems ask for, and what the best two rates need."""
    required = rows_of(df, "exponents", "steps asked")
    required = required[required["regime"] == "moderate eps"].assign(measured=np.nan)
    rows = pd.concat([required, rows_of(df, "exponents", "steps")])
    panel(ax, rows[rows["axis"] == "eps"], "value", ["series"], xlabel=r"$\varepsilon$", ylabel="steps $nT$",
          scale="xy", title=r"Steps to $\varepsilon$", names=NAMES, colors=SERIES, markers=dict.fromkeys(THEOREMS, ""),
          columns=2)  # fmt: skip
    ax.invert_xaxis()


def exponents(ax: Axes, df: pd.DataFrame) -> None:
    """Exponents of nT: measured with intervals (filled), and at small eps what is asked or needed (hollow)."""
    required = rows_of(df, "exponents", "exponent asked").assign(measured=np.nan)
    required = required[(required["regime"] == "small eps") & (required["ell"] == "constant")]
    rows = pd.concat([required, rows_of(df, "exponents", "exponent")])
    rows = rows[rows["series"].isin(list(SERIES))].dropna(subset=["measured", "reference"], how="all")
    heights, ticks, height = {}, {}, 0
    for axis, sign in AXES.items():
        measured = [series for series in SERIES if ((rows["axis"] == axis) & (rows["series"] == series)).any()]
        for series in measured:
            heights[axis, series] = height
            height -= 1
        if measured:
            ticks[height + (len(measured) + 1) / 2] = f"in {sign}"
            height -= 1  # a free line below each axis
    rows["height"] = list(map(heights.get, zip(rows["axis"], rows["series"], strict=True)))
    # the exponents of the recursion are of moderate eps where they stand beside a measured one: that one is drawn
    rows["reference"] = rows["reference"].where(rows["measured"].isna())
    claimed = rows.dropna(subset=["claimed"])
    ax.plot(claimed["claimed"], claimed["height"], "|", ms=8, mew=1.5, color=GRAY, label="claimed")
    panel(ax, rows, "height", ["series"], xlabel=r"exponent of $nT$; hollow: exact, at $\varepsilon \approx 10^{-3}$",
          title="Exponents", names=NAMES, colors=SERIES, horizontal=True, columns=2)  # fmt: skip
    ax.set_yticks(list(ticks), list(ticks.values()))


def speedup(ax: Axes, df: pd.DataFrame, quantity: str, mark: str, ylabel: str, title: str) -> None:
    """Epochs with one best rate and with two, or their ratio, against L_x/L_y."""
    rows = rows_of(df, "speedup_of_two_rates", quantity)
    if mark == "rule":
        rows = rows[rows["sigma"] == 0].sort_values("rule", ascending=False, kind="stable")
    rows["gradient"] = ["exact" if d == 1 else f"ZO, $d$ = {d:g}" for d in rows["d"]]
    names = NAMES | {sigma: rf"$\sigma$ = {sigma:g}" for sigma in set(rows["sigma"])}
    panel(ax, rows, "ratio", ["gradient", mark], xlabel="$L_x/L_y$", ylabel=ylabel, scale="xy", title=title,
          names=names)  # fmt: skip


def reshuffled(ax: Axes, df: pd.DataFrame) -> None:
    """Error reshuffled over error with replacement, exact gradients, against eta L n, a color an n."""
    rows = rows_of(df, "reshuffling", "error ratio")
    ax.axhline(1, color=GRAY, lw=0.8, ls=":", label="equal")
    panel(ax, rows[rows["axis"] == "rate"], "scale", ["n"], xlabel=r"$\eta L n$", scale="xy",
          ylabel="error, reshuffled / replaced", title="Exact gradients: reshuffling wins",
          names={n: f"$n$ = {n:g}" for n in set(rows["n"])})  # fmt: skip


def hidden(ax: Axes, df: pd.DataFrame) -> None:
    """The same ratio with zeroth-order gradients, against the variance of the estimate (d + 1)/q."""
    rows = rows_of(df, "reshuffling", "error ratio")
    rows = rows[rows["axis"].isin(["d", "q"])].assign(variance=(rows["d"] + 1) / rows["q"])
    ax.axhline(1, color=GRAY, lw=0.8, ls=":", label="equal")
    panel(ax, rows, "variance", ["axis"], xlabel="$(d + 1)/q$, variance of the estimate", scale="x",
          ylabel="error, reshuffled / replaced", title="Zeroth-order: its noise hides it",
          names={"d": r"$q$ = 1, $d$ varies", "q": "$d$ = 10, $q$ varies"})  # fmt: skip
    ax.set_ylim(bottom=0)


def curved_steps(ax: Axes, df: pd.DataFrame) -> None:
    """nT to eps on sums whose components curve differently, with averaged and with low-rank directions."""
    rows = rows_of(df, "curved", "steps")
    panel(ax, rows[rows["axis"] == "eps"], "value", ["series"], xlabel=r"$\varepsilon$", ylabel="steps $nT$",
          scale="xy", title="Components of different curvature", names=CURVED, columns=2)  # fmt: skip
    ax.invert_xaxis()


def variance(ax: Axes, df: pd.DataFrame) -> None:
    """nT against the variance of the estimate: q directions, one, and directions of low rank."""
    rows = rows_of(df, "curved", "steps")
    panel(ax, rows[rows["axis"] == "variance"], "value", ["series"], ylabel="steps $nT$", scale="xy", names=CURVED,
          xlabel=r"$w = (m - 1)/q$, variance of the estimate",
          title=r"$d = 6$: $q$ = 4, 2, 1, then rank 4, 2, 1")  # fmt: skip


def best_rates(ax: Axes, df: pd.DataFrame) -> None:
    """The best constant rate against T: simulated, by the recursion (line) and by the corrected theorem (dashed)."""
    rows = rows_of(df, "budget", "best rate")
    for series in rows["series"].unique():
        part = rows[(rows["series"] == series) & rows["formula"].notna()]
        ax.plot(part["T"], part["formula"].astype(float), "--", lw=0.9, color=BUDGET[series], zorder=1, label="_dashed")
    panel(ax, rows, "T", ["series"], xlabel="epochs $T$", ylabel=r"best constant rate $\eta$", scale="xy",
          title="Best rate for a budget", names=CURVED, colors=BUDGET, columns=2)  # fmt: skip


def at_rates(ax: Axes, df: pd.DataFrame) -> None:
    """Mean of (1/T) sum ||grad f||^2 at the theorem's rate over that at the recursion's, against T."""
    rows = rows_of(df, "budget", "average")
    pairs = rows[rows["rule"] == "theorem"].merge(
        rows[rows["rule"] == "recursion"], on=["series", "T"], suffixes=("", "_best")
    )
    ratios = []
    for pair in pairs.to_dict("records"):
        top = Interval(pair["measured"], pair["low"], pair["high"])
        bottom = Interval(pair["measured_best"], pair["low_best"], pair["high_best"])
        # Both runs have the same directions: taking them for independent makes the interval longer, if anything.
        value, low, high = samples.ratio(top, bottom)
        ratios.append({"series": pair["series"], "T": pair["T"], "measured": value, "low": low, "high": high,
                       "reference": float(pair["reference"]) / float(pair["reference_best"])})  # fmt: skip
    if not ratios:
        ax.text(0.5, 0.5, "the theorem says nothing\nof these sums", ha="center", va="center", transform=ax.transAxes)
        return
    panel(ax, pd.DataFrame(ratios), "T", ["series"], xlabel="epochs $T$", scale="x", names=CURVED, colors=BUDGET,
          ylabel="mean at the theorem's rate,\nin that at the best", title="What the theorem's rate costs",
          columns=2)  # fmt: skip


SPEEDUP = (
    partial(speedup, quantity="epochs", mark="rule", ylabel="epochs", title=r"Epochs to $\varepsilon$, best rates"),
    partial(speedup, quantity="gain", mark="sigma", ylabel="$T$(one rate) / $T$(two rates)",
            title="Speedup of two rates"),
)  # fmt: skip
PANELS: dict[str, Any] = {
    "theorem": (averages, successes), "counterexample": (trajectory, failing), "exponents": (steps, exponents),
    "speedup_of_two_rates": SPEEDUP, "reshuffling": (reshuffled, hidden), "curved": (curved_steps, variance),
    "budget": (best_rates, at_rates),
}  # fmt: skip


def figure(df: pd.DataFrame) -> Figure:
    """All that was measured, a line of two panels a part.

    Raises:
        BadInput: the records are not those of ``smoothlab rates``.
    """
    parts = parts_of(df, PANELS, NEEDED, "rates")
    settings = df.loc[df["part"].isin(["theorem", "counterexample"]), "setting"].nunique()
    heights = {"theorem": max(2.7, 1.2 + 0.2 * min(settings, MOST)), "exponents": 3.0}
    lines = [[partial(draw, df=df) for draw in PANELS[part]] for part in parts]
    return grid(lines, MEANINGS, heights=[heights.get(part, 2.7) for part in parts])
