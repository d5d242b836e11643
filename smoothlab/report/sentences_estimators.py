"""Plain-language reading of the estimators records: every sentence is generated from the numbers.

Agreement with a closed form is told as the count of intervals that hold it, beside the 95 % that should.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from smoothlab.report.plots_estimators import DISTRIBUTIONS, NAMES, PRECISION_COLORS, SHORT, at_edge, rows_of
from smoothlab.report.sentences import number
from smoothlab.stats.samples import RARE_DRAWS

HOW_TO_READ = (
    "A zeroth-order estimate takes a gradient from values of the loss alone: the loss is evaluated a step mu to either "
    "side along a random direction (two-sided), or on one side and at the weights themselves (one-sided).",
    "Bias: how far the mean of many estimates is off the gradient; it grows with mu squared. Variance: how far one "
    "estimate is off, in squares; for d weights and two sides it is about d times the squared gradient, while mu is "
    "small.",
    "Rounding: the smaller mu, the more of the difference of two losses is rounding; so there is a best mu. It is "
    "measured, and predicted from the loss's third (one-sided: second) derivative and its rounding noise.",
)


def fitted_slope(rows: pd.DataFrame) -> tuple[float, float, float] | None:
    """Slope of log |measured| against log mu where the interval is short, with the lowest and highest mu there."""
    clear = rows[(rows["high"] - rows["low"] < 0.8 * rows["measured"].abs()) & (rows["measured"] > 0)]
    clear = clear[(clear["mu"] >= 1e-4 * (1 - 1e-9)) & (clear["mu"] <= 0.1)]  # above rounding, below higher orders
    if len(clear) < 3:
        return None
    slope = np.polyfit(np.log(clear["mu"]), np.log(clear["measured"]), 1)[0]
    return float(slope), float(clear["mu"].min()), float(clear["mu"].max())


def of_bias(df: pd.DataFrame) -> Iterator[str]:
    """Slope, agreement with the closed form, and where rounding takes over."""
    found = rows_of(df, "bias", "bias")
    if found.empty:
        return
    for function, rows in found.groupby("function", sort=False):
        main = rows[(rows["dtype"] == "float64") & (rows["sides"] == 2)]
        fits = [fit for _, distribution in main.groupby("distribution") if (fit := fitted_slope(distribution))]
        if fits:
            yield (
                f"On the {function} function (d = {int(main['d'].iloc[0])}) the bias grows with mu to the power "
                f"{_span(f'{fit[0]:.2f}' for fit in fits)} ({main['distribution'].nunique()} distributions, "
                f"fp64, mu from "
                f"{number(min(fit[1] for fit in fits))} to {number(max(fit[2] for fit in fits))})."
            )
    exact = found[(found["exact"] == True) & (found["dtype"] == "float64")]  # noqa: E712
    if len(exact):
        looks = exact["setting"].nunique()
        yield (
            f"{_held(exact)} intervals of the bias in fp64 hold the closed form; all mu of a curve and both sides "
            f"share their directions, so that these are {looks} independent looks."
        )
    if "floor" in exact and len(under := exact[exact["floor"] > exact["reference"]]):
        names = [
            NAMES.get(distribution, distribution)
            for distribution in DISTRIBUTIONS
            if distribution in set(under["distribution"])
        ]
        yield (
            f"Up to mu = {number(under['mu'].max())} the intervals of {' and '.join(names)} directions are mostly "
            "rounding: these repeat the same few moves, so that its errors do not average out."
        )
    for dtype, rows in found[found["distribution"] == "gaussian"].groupby("dtype", sort=False):
        hidden = rows[(rows["low"] <= 0) & (rows["high"] >= 0) & (rows["sides"] == 2)]
        if len(hidden):
            yield (
                f"In {SHORT[str(dtype)]} rounding hides the bias of two-sided Gaussian directions from mu = "
                f"{number(hidden['mu'].min())} to {number(hidden['mu'].max())}: its interval from "
                f"{int(hidden['draws'].max()):,} directions holds 0."
            )


def of_variance(df: pd.DataFrame) -> Iterator[str]:
    """Squared errors beside their closed forms, against d and against q."""
    found = pd.concat([rows_of(df, part, "error") for part in ("variance", "averages")])
    if len(found):
        looks = len(found[found["part"] == "variance"][["distribution", "d"]].drop_duplicates())
        looks += found[found["part"] == "averages"]["average"].nunique()
        yield (
            f"{_held(found)} intervals of squared errors on quadratics hold the closed form; sides and q share their "
            f"directions, so that these are {looks} independent looks."
        )
    rows = found[found["part"] == "variance"]
    if len(rows):
        top = rows[rows["d"] == rows["d"].max()]
        told = [f"{NAMES.get(distribution, distribution)} {_pair(one.iloc[0])}" for distribution in DISTRIBUTIONS
                if len(one := top[(top["distribution"] == distribution) & (top["sides"] == 2)])]  # fmt: skip
        yield (
            f"At d = {int(top['d'].iloc[0])} the squared error of a two-sided estimate, in squared gradient norms, is "
            f"{'; '.join(told)}."
        )
        one = top[(top["distribution"] == "gaussian") & (top["sides"] == 1)]
        if len(one):
            yield (
                f"One-sided Gaussian directions have {_pair(one.iloc[0])} there at mu = {number(one['mu'].iloc[0])}: "
                "the curvature adds to it, and this part grows faster than d."
            )
    rows = found[found["part"] == "averages"]
    if len(rows):
        last = rows[rows["q"] == rows["q"].max()].sort_values("sides", ascending=False).drop_duplicates("average")
        told = [f"{row.average} {_pair(row)}" for row in last.itertuples()]
        q, d = int(last["q"].iloc[0]), int(last["d"].iloc[0])
        yield f"Averaged over q = {q} directions (d = {d}): {'; '.join(told)}."


def of_curves(df: pd.DataFrame) -> Iterator[str]:
    """Best mu, measured and predicted, and where rounding leaves nothing."""
    for part in ("curve", "model-curve"):
        best = rows_of(df, part, "best mu", sides=2)
        errors = rows_of(df, part, "derivative error", sides=2)
        for block, rows in best.groupby("block", sort=False):
            where = f"{rows['function'].iloc[0]} {block}" if part == "model-curve" else str(rows["function"].iloc[0])
            told = []
            for dtype in PRECISION_COLORS:
                if len(one := rows[rows["dtype"] == dtype]):
                    curve = errors[(errors["block"] == block) & (errors["dtype"] == dtype)]
                    told.append(f"{SHORT[dtype]} {_best(one.iloc[0], curve)}")
            yield f"Best mu of a two-sided derivative on {where} (d = {int(rows['d'].iloc[0]):,}): {'; '.join(told)}."
            lost = errors[(errors["block"] == block) & (errors["low"] > 0.5)]
            for kind, few in lost[lost["mu"] < 0.1].groupby("dtype", sort=False):
                yield (
                    f"On {where} in {SHORT[str(kind)]} a two-sided derivative is off by half of itself or more up to "
                    f"mu = {number(few['mu'].max())}."
                )


def of_model(df: pd.DataFrame) -> Iterator[str]:
    """Variance on a model's block, and what a step spends on directions."""
    rows = rows_of(df, "model-variance", "error")
    if len(rows):
        first = rows.iloc[0]
        ratio = rows["measured"] / (rows["d"] + 1)
        told = [f"{str(name).removeprefix('two-sided ')} {number(r)}"
                for name, r in zip(rows["estimator"], ratio, strict=True)]  # fmt: skip
        yield (
            f"On {first['function']} {first['block']} (d = {int(first['d']):,}, mu = {number(first['mu'])}) the "
            f"squared error over (d + 1) times the squared gradient is: {'; '.join(told)}. {_held(rows)} intervals "
            "hold the closed form of a quadratic."
        )
    passes = rows_of(df, "model-cost", "pass in forwards")
    shares = rows_of(df, "model-cost", "share of a step").set_index("setting")
    if len(passes):
        each: Iterable[Any] = passes.itertuples()
        told = [f"{_cost_name(row.setting)} {number(row.measured)} ({number(row.low)} to {number(row.high)}) forwards, "
                f"{100 * shares.loc[row.setting, 'measured']:.0f} % of a two-sided step"
                for row in each]  # fmt: skip
        yield (
            f"A pass that draws a direction and moves the {passes['block'].iloc[0]} block takes, for {'; '.join(told)}."
        )


def reading(df: pd.DataFrame) -> list[str]:
    """All of it, as far as the records go."""
    return [line for part in (of_bias, of_variance, of_curves, of_model) for line in part(df)]


def uncertain(df: pd.DataFrame) -> list[str]:
    """What these records leave open."""
    told = [
        "Estimates: intervals are pointwise 95 % ones over random directions; points of one curve share their "
        "directions and so err together.",
    ]
    squared = pd.concat([rows_of(df, part, "error") for part in ("variance", "averages", "model-variance")]
                        + [rows_of(df, part, "derivative error") for part in ("curve", "model-curve")])  # fmt: skip
    flagged = squared[squared["flag"] == RARE_DRAWS] if "flag" in squared else squared[:0]
    if len(flagged):
        told.append(
            f"Estimates: {len(flagged)} of {len(squared)} intervals of squared errors rest on samples that cannot "
            f"exclude that rare large draws (at most 1 %) carry half the mean: {int(flagged['draws'].min())} draws at "
            "least, where 299 are needed if all are alike."
        )
    best = pd.concat([rows_of(df, part, "best mu") for part in ("curve", "model-curve")])
    if len(best):
        edge = sum(at_edge(row) for _, row in best.iterrows())
        told.append(
            "Estimates: a best mu is read off a grid, and its interval is no finer than a step of it to "
            "either side" + (f"; {edge} of {len(best)} lie at the grid's edge, or beyond." if edge else ".")
        )
        told.append(
            "Estimates: a one-sided derivative shares the rounding error of f(x) among all directions; that is one "
            "number, so that its curve may lie off the prediction, which takes it as random."
        )
    if len(rows_of(df, "model-cost", "pass in forwards")):
        told.append("Estimates: costs are of this machine and of what else ran on it, as ratios within each round.")
    if len(rows_of(df, "model-curve", "best mu")) or len(rows_of(df, "model-variance", "error")):
        told.append("Estimates: the model is measured before training, on one minibatch.")
    return told


def _held(rows: pd.DataFrame) -> str:
    """How many intervals hold the reference; a rounded last digit does not count against them."""
    slack = 2e-6 * rows["reference"].abs()
    holds = (rows["low"] - slack <= rows["reference"]) & (rows["reference"] <= rows["high"] + slack)
    return f"{int(holds.sum())} of {len(rows)}"


def _pair(row: Any) -> str:
    return f"{number(row.measured)} ({number(row.low)} to {number(row.high)}; closed form {number(row.reference)})"


def _best(row: pd.Series, curve: pd.DataFrame) -> str:
    predicted = f"predicted {number(row['predicted'])}" if math.isfinite(row["predicted"]) else "not predicted"
    if at_edge(row):
        return f"{_between(row)}, at the grid's edge or beyond, {predicted}"
    lowest = number(100 * curve["measured"].min())
    return f"{number(row['measured'])} ({_between(row)}), {predicted}, error {lowest} %"


def _between(row: pd.Series) -> str:
    """The interval of a best mu, which may be open."""
    if row["low"] > 0 and math.isfinite(row["high"]):
        return f"{number(row['low'])} to {number(row['high'])}"
    if row["low"] > 0:
        return f"above {number(row['low'])}"
    return f"below {number(row['high'])}" if math.isfinite(row["high"]) else "anywhere"


def _span(values: Iterator[str]) -> str:
    found = sorted(values)
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def _cost_name(setting: str) -> str:
    name = setting.rpartition("/")[2]
    return {"kept": "gaussian kept for the step"}.get(name, NAMES.get(name, name))
