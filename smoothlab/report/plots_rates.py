"""Curves of the records of ``smoothlab rates``: functions ``(axes, DataFrame) -> None``, two a part.

A point is a measurement with its 95 % interval, a line an exact recursion or what a theorem asks for; a hollow point is
by the recursion alone, where a run would be too long.
"""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.axes import legend_above
from smoothlab.report.plots import COLORS, STYLE, figure

THEOREMS = {
    "printed": ("C.1 as printed", "#D55E00"),
    "expectation": ("in expectation", "#0072B2"),
    "probability": ("high probability", "#009E73"),
}
SERIES = {
    "printed": ("C.1 asks for", "#D55E00"),
    "expectation": ("corrected, expectation", "#0072B2"),
    "probability": ("corrected, probability", "#009E73"),
    "zo": ("best, zeroth-order", "#000000"),
    "fo-reshuffle": ("best, exact, reshuffled", "#CC79A7"),
    "fo-replace": ("best, exact, replaced", "#56B4E9"),
}
VARIED = ("eps", "n", "d", "delta", "ratio", "sigma", "family", "order", "oracle", "rule", "given")
AXES = {"eps": r"$\varepsilon$", "n": "$n$", "d": "$d$", "delta": r"$\delta$"}
GRAY = "#7F7F7F"
NUMBERS = (
    "measured", "low", "high", "reference", "bound", "ratio", "eps", "n", "d", "delta", "sigma", "scale", "q",
    "value", "epoch", "least", "largest", "T", "steps", "predicted", "closed_form", "claimed", "expected",
)  # fmt: skip
NEEDED = ("part", "setting", "quantity", "measured", "low", "high", "reference")


def rows_of(df: pd.DataFrame, part: str, *quantities: str) -> pd.DataFrame:
    """Rows of one part and some quantities that did not fail, with numbers as numbers.

    Raises:
        BadInput: the records are not those of ``smoothlab rates``.
    """
    missing = [name for name in NEEDED if name not in df.columns]
    if missing:
        raise BadInput(f"these records lack {', '.join(missing)}: give records of `smoothlab rates`")
    found = df[(df["part"] == part) & df["quantity"].isin(quantities)].copy()
    for name in NUMBERS:
        found[name] = pd.to_numeric(found[name], errors="coerce").astype(float) if name in found else np.nan
    return found


def settings_of(df: pd.DataFrame) -> dict[str, str]:
    """A short name of each setting of theorem: what differs from the first one."""
    found = df[df["part"] == "theorem"].drop_duplicates("setting")
    if found.empty:
        return {}
    first, names = found.iloc[0], {}
    for _, row in found.iterrows():
        varied = [_varied(key, row[key]) for key in VARIED if row[key] != first[key]]
        names[row["setting"]] = ", ".join(varied) or "base"
    return names


def _varied(key: str, value: Any) -> str:
    """A value of an option in few words."""
    words = {"one": "one rate", "two": "two rates", "exact": "exact gradients", "replace": "with replacement",
             "once": "shuffled once", "reshuffle": "reshuffled"}  # fmt: skip
    if isinstance(value, str):
        return words.get(value, value)
    name = {"ratio": "L_x/L_y", "given": "T"}.get(key, key)
    return f"{name} {value:g}"


def averages(ax: Axes, df: pd.DataFrame) -> None:
    """Mean of (1/T) sum ||grad f||^2 over eps^2 of every setting and theorem, and of the counterexample."""
    places = _places(df, "average")
    found = pd.concat([rows_of(df, "theorem", "average"), rows_of(df, "counterexample", "average")])
    for i, (theorem, (label, color)) in enumerate(THEOREMS.items()):
        rows = found[found["theorem"] == theorem]
        y = rows["setting"].map(places) + SHIFT * (1 - i)
        scaled = rows[["measured", "low", "high", "reference"]].div(rows["bound"], axis=0)
        ran = rows["measured"].notna()
        ax.hlines(y[ran], scaled["low"][ran], scaled["high"][ran], color=color, lw=0.9)
        ax.plot(scaled["measured"][ran], y[ran], "o", ms=3, color=color, label=label)
        ax.plot(scaled["reference"][~ran], y[~ran], "o", ms=3, mfc="white", color=color)
    ax.plot([], [], "o", ms=3, mfc="white", color="black", label="exact recursion alone")
    ax.axvline(1, color="black", lw=0.8)
    _name(ax, df, places)
    ax.set(xscale="log", xlabel=r"mean of $\frac{1}{T}\sum\|\nabla f\|^2$, in $\varepsilon^2$ (promised: at most 1)")
    _plain(ax.xaxis)
    legend_above(ax, 2, "At the theorems' constants")


def successes(ax: Axes, df: pd.DataFrame) -> None:
    """Share of replicas with (1/T) sum ||grad f||^2 <= eps^2 against 1 - delta (a tick), and of the counterexample."""
    places = _places(df, "average")
    found = pd.concat([rows_of(df, "theorem", "success"), rows_of(df, "counterexample", "success")])
    for i, (theorem, (_, color)) in enumerate(THEOREMS.items()):
        rows = found[found["theorem"] == theorem]
        y = rows["setting"].map(places) + SHIFT * (1 - i)
        ax.hlines(y, rows["low"], rows["high"], color=color, lw=0.9)
        ax.plot(rows["measured"], y, "o", ms=3, color=color, clip_on=False)
        label = r"promised: $1 - \delta$" if theorem == "printed" else None
        promised = rows["meets"].astype(bool)
        ax.plot(rows["bound"][promised], y[promised], "|", ms=6, mew=1.2, color="black", label=label)
    _name(ax, df, places)
    ax.set_yticklabels([])
    ax.set(xlim=(-0.03, 1.03), xlabel=r"probability of $\frac{1}{T}\sum\|\nabla f\|^2 \leq \varepsilon^2$")
    legend_above(ax, 2, "Success of one run")


def _places(df: pd.DataFrame, quantity: str) -> dict[str, int]:
    """Lines of the settings of theorem, and of the counterexample's instances, from 0 down."""
    found = pd.concat([rows_of(df, "theorem", quantity), rows_of(df, "counterexample", quantity)])
    return {setting: -i for i, setting in enumerate(dict.fromkeys(found["setting"]))}


def _name(ax: Axes, df: pd.DataFrame, places: dict[str, int]) -> None:
    names = settings_of(df)
    for setting, rows in rows_of(df, "counterexample", "average").groupby("setting"):
        one = rows.iloc[0]
        names[str(setting)] = f"fails: d {one['d']:g}, sigma {one['sigma']:g}"
    if len(places) > MOST:
        ax.set_yticks([])
        ax.set_ylabel(f"{len(places)} settings")
    else:
        ax.set_yticks(list(places.values()), [names[setting] for setting in places])
    ax.set_ylim(min(places.values()) - 0.6, 0.6)


def trajectory(ax: Axes, df: pd.DataFrame) -> None:
    """||grad f(z_t)||^2 of the counterexample: mean, all replicas, recursion, and eps^2; the longest that was run."""
    found = rows_of(df, "counterexample", "trajectory")
    if found.empty:
        ax.text(0.5, 0.5, "no instance was short enough\nto be run", ha="center", va="center", transform=ax.transAxes)
        return
    found = found[found["T"] == found["T"].max()]
    found = found[found["epoch"] > 0].sort_values("epoch")
    first = found.iloc[0]
    color = THEOREMS["printed"][1]
    band: dict[str, Any] = {"color": color, "alpha": 0.15, "lw": 0, "label": "all replicas"}
    ax.fill_between(found["epoch"], found["least"], found["largest"], **band)
    ax.vlines(found["epoch"], found["low"], found["high"], color=color, lw=0.8)
    ax.plot(found["epoch"], found["measured"], "o", ms=2.4, color=color, label="their mean")
    ax.plot(found["epoch"], found["reference"], "-", lw=1, color="black", label="exact recursion")
    ax.axhline(first["bound"], color=GRAY, lw=1, ls="--", label=r"$\varepsilon^2$, promised for the average")
    ax.set(xscale="log", yscale="log", xlabel=f"epoch ($T$ = {first['T']:,.0f})", ylabel=r"$\|\nabla f(z_t)\|^2$")
    legend_above(ax, 2, f"C.1 fails: $d$ = {first['d']:.0f}, $n$ = {first['n']:.0f}, $\\sigma$ = {first['sigma']:g}")


def failing(ax: Axes, df: pd.DataFrame) -> None:
    """From which d on the printed conclusion fails in expectation, against n."""
    found = rows_of(df, "counterexample", "smallest d that fails").sort_values("n")
    n = np.geomspace(found["n"].min(), found["n"].max(), 50)
    color = THEOREMS["printed"][1]
    ax.plot(found["n"], found["reference"], "o-", ms=3.5, lw=1, color=color, label="smallest $d$ that fails, exact")
    ax.plot(n, 4 * n - 2, ":", lw=1, color="black", label=r"$d + 2 = 4 n L \Delta$")
    top = found["reference"].max() * 4
    ax.fill_between(found["n"], found["reference"], top, color=color, alpha=0.1, lw=0)
    ax.text(0.05, 0.93, "the conclusion fails here", transform=ax.transAxes, fontsize=7, color="#A04000", va="top")
    ax.set(xscale="log", yscale="log", xlabel="$n$", ylabel="$d$", ylim=(1, top))
    _plain(ax.xaxis, found["n"])
    _plain(ax.yaxis)
    legend_above(ax, 1, r"Much noise, $L\Delta = 1$, $\varepsilon^2 = L\Delta/2$")


def steps(ax: Axes, df: pd.DataFrame) -> None:
    """nT against eps: what is asked for, and what the best two rates need."""
    asked = rows_of(df, "exponents", "steps asked")
    asked = asked[(asked["axis"] == "eps") & (asked["regime"] == "moderate eps")]
    found = rows_of(df, "exponents", "steps")
    found = found[found["axis"] == "eps"]
    for series, (label, color) in SERIES.items():
        rows, points = asked[asked["series"] == series].sort_values("value"), found[found["series"] == series]
        rows = pd.concat([rows, points]).dropna(subset="reference").sort_values("value")
        if len(rows):
            ax.plot(rows["value"], rows["reference"], "-", lw=1, color=color, label=label)
        _bars(ax, points["value"], points, color, None)
    ax.set(xscale="log", yscale="log", xlabel=r"$\varepsilon$", ylabel="steps $nT$")
    ax.invert_xaxis()
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    legend_above(ax, 2, r"Steps to $\varepsilon$")


def exponents(ax: Axes, df: pd.DataFrame) -> None:
    """Exponents of nT: measured with intervals (filled), and at small eps what is asked or needed (hollow)."""
    asked = rows_of(df, "exponents", "exponent asked")
    asked = asked[(asked["regime"] == "small eps") & (asked["ell"] == "constant")]
    found = rows_of(df, "exponents", "exponent")
    place, ticks = 0.0, []
    for axis, sign in AXES.items():
        begun = place
        for series, (_, color) in SERIES.items():
            here = asked[(asked["axis"] == axis) & (asked["series"] == series)]
            seen = found[(found["axis"] == axis) & (found["series"] == series)]
            if here.empty and seen.empty:
                continue
            ax.plot(here["reference"], [place] * len(here), "o", ms=3.6, mfc="white", color=color)
            ax.hlines([place] * len(seen), seen["low"], seen["high"], color=color, lw=1.1)
            ax.plot(seen["measured"], [place] * len(seen), "o", ms=3, color=color)
            place -= 1
        claim = asked.loc[asked["axis"] == axis, "claimed"]
        if len(claim):
            label = r"claimed: $\varepsilon^{-4}$, no $n$, $d$, $\delta$" if axis == "eps" else None
            ax.plot([claim.iloc[0]] * 2, [begun + 0.5, place + 0.5], "-", lw=1.2, color=GRAY, zorder=0, label=label)
        ticks.append(((begun + place + 1) / 2, f"in {sign}"))
        place -= 0.7
    ax.plot([], [], "o", ms=3.6, mfc="white", color="black", label=r"$\varepsilon \approx 10^{-3}$, exact")
    ax.plot([], [], "o-", ms=3, lw=1.1, color="black", label="measured")
    ax.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    ax.set(xlabel="exponent of $nT$")
    legend_above(ax, 2, "Exponents (colors: left)")


def epochs(ax: Axes, df: pd.DataFrame) -> None:
    """T to eps against L_x/L_y: one best rate and two, exact and zeroth-order."""
    found = rows_of(df, "speedup_of_two_rates", "epochs")
    for (oracle, d), color in zip(_oracles(found), COLORS, strict=False):
        rows = found[(found["oracle"] == oracle) & (found["d"] == d) & (found["sigma"] == 0)]
        for rule, line, mark in (("one", "--", "s"), ("two", "-", "o")):
            part = rows[rows["rule"] == rule].sort_values("ratio")
            label = ("exact" if oracle == "exact" else f"ZO, $d$ = {d:.0f}") + f", {rule} rate" + "s" * (rule == "two")
            ax.plot(part["ratio"], part["reference"], line, lw=1, color=color, zorder=1)
            _bars(ax, part["ratio"], part, color, label, mark)
    ax.set(xscale="log", yscale="log", xlabel="$L_x/L_y$", ylabel="epochs")
    _plain(ax.xaxis)
    legend_above(ax, 2, r"Epochs to $\varepsilon$, best-tuned rates")


def gains(ax: Axes, df: pd.DataFrame) -> None:
    """How many times as long one best rate takes."""
    found = rows_of(df, "speedup_of_two_rates", "gain")
    for (oracle, d), color in zip(_oracles(found), COLORS, strict=False):
        for sigma, line, mark in zip(sorted(found["sigma"].unique()), ("-", ":"), ("o", "^"), strict=False):
            rows = found[(found["oracle"] == oracle) & (found["d"] == d) & (found["sigma"] == sigma)]
            rows = rows.sort_values("ratio")
            label = ("exact" if oracle == "exact" else f"ZO, $d$ = {d:.0f}") + f", $\\sigma$ = {sigma:g}"
            ax.plot(rows["ratio"], rows["reference"], line, lw=1, color=color, zorder=1)
            _bars(ax, rows["ratio"], rows, color, label, mark)
    ax.set(xscale="log", yscale="log", xlabel="$L_x/L_y$", ylabel="$T$(one rate) / $T$(two rates)")
    _plain(ax.xaxis)
    legend_above(ax, 2, "What two rates buy")


def reshuffled(ax: Axes, df: pd.DataFrame) -> None:
    """Error reshuffled over error with replacement, exact gradients, against eta L n, a color an n."""
    found = rows_of(df, "reshuffling", "error ratio")
    found = found[found["axis"] == "rate"]
    for color, n in zip(COLORS, sorted(found["n"].unique()), strict=False):
        rows = found[found["n"] == n].sort_values("scale")
        ax.plot(rows["scale"], rows["reference"], "-", lw=1, color=color, zorder=1)
        _bars(ax, rows["scale"], rows, color, f"$n$ = {n:.0f}")
    ax.axhline(1, color=GRAY, lw=0.8)
    ax.set(xscale="log", yscale="log", xlabel=r"$\eta L n$", ylabel="error, reshuffled / replaced")
    _plain(ax.xaxis)
    legend_above(ax, 3, "Exact gradients: reshuffling wins")


def hidden(ax: Axes, df: pd.DataFrame) -> None:
    """The same with zeroth-order gradients, against the noise of the estimate (m - 1)/q."""
    found = rows_of(df, "reshuffling", "error ratio")
    for axis, color, label in (("d", "#D55E00", r"$q$ = 1, $d$ varies"), ("q", "#0072B2", "$d$ = 10, $q$ varies")):
        rows = found[found["axis"] == axis].copy()
        rows["noise"] = (rows["d"] + 1) / rows["q"]
        rows = rows.sort_values("noise")
        ax.plot(rows["noise"], rows["reference"], "-", lw=1, color=color, zorder=1)
        _bars(ax, rows["noise"], rows, color, label)
    ax.axhline(1, color=GRAY, lw=0.8)
    ax.set(xscale="log", xlabel=r"$(d + 1)/q$, variance of the estimate", ylabel="error, reshuffled / replaced")
    ax.set_ylim(bottom=0)
    _plain(ax.xaxis)
    legend_above(ax, 2, "Zeroth-order: its noise hides it")


PANELS = {
    "theorem": (averages, successes), "counterexample": (trajectory, failing), "exponents": (steps, exponents),
    "speedup_of_two_rates": (epochs, gains), "reshuffling": (reshuffled, hidden),
}  # fmt: skip
ROW = 2.7  # inches
MOST = 45  # settings whose names are drawn
LINE = 0.2  # inches of a setting of theorem
SHIFT = 0.24  # of a line: one theorem from the next


def rates_figure(df: pd.DataFrame) -> Figure:
    """All that was measured, a row of two panels a part.

    Raises:
        BadInput: the records are not those of ``smoothlab rates``.
    """
    rows_of(df, "theorem")
    there = set(df.loc[df["quantity"].notna(), "part"])  # a setting that failed has none
    parts = [part for part in PANELS if part in there]
    if not parts:
        raise BadInput(f"these records hold none of the parts {', '.join(PANELS)}: give those of `smoothlab rates`")
    tall = max(ROW, 1.2 + LINE * min(len(_places(df, "average")), MOST))
    heights = [tall if part == "theorem" else ROW for part in parts]
    fig = figure(7.0, sum(heights))
    with matplotlib.rc_context(STYLE):
        axes = fig.subplots(len(parts), 2, squeeze=False, height_ratios=heights)
        for line, part in zip(axes, parts, strict=True):
            for ax, panel in zip(line, PANELS[part], strict=True):
                panel(ax, df)
    return fig


def _oracles(found: pd.DataFrame) -> list[tuple[str, float]]:
    pairs = found[["oracle", "d"]].drop_duplicates().sort_values("d")
    return [(str(oracle), float(d)) for oracle, d in pairs.itertuples(index=False)]


def _bars(ax: Axes, places: pd.Series, rows: pd.DataFrame, color: str, label: str | None, mark: str = "o") -> None:
    """Measured points with intervals; hollow where only the recursion is there."""
    seen = rows["measured"].notna()
    ax.vlines(places[seen], rows["low"][seen], rows["high"][seen], color=color, lw=0.9)
    look: dict[str, Any] = {"linestyle": "", "marker": mark, "ms": 3.2, "color": color, "zorder": 3}
    ax.plot(places[seen], rows["measured"][seen], label=label, **look)
    ax.plot(places[~seen], rows["reference"][~seen], mfc="white", **look)


def _plain(axis: Any, at: Any = None) -> None:
    axis.set_major_locator(ticker.LogLocator(numticks=6) if at is None else ticker.FixedLocator(list(at)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
