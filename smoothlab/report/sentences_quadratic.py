"""What the records of ``smoothlab quadratic`` say, in sentences: Example 2.3, and what zeroth order costs."""

import numpy as np
import pandas as pd

from smoothlab.report.plots_quadratic import rows_of


def reading(df: pd.DataFrame) -> list[str]:
    """Sentences for what is there.

    Raises:
        BadInput: the records are not those of ``smoothlab quadratic``.
    """
    rows_of(df, "rates", "factor x")
    parts = set(df["part"])
    told: list[str] = []
    if "rates" in parts:
        told += _printed(df) + _speed(df)
    if "noise" in parts:
        told += _noise(df)
    if "hybrid" in parts:
        told += _hybrid(df)
    failed = df[df["failed"].notna()] if "failed" in df else df.iloc[:0]
    return told + [f"{row['setting']} failed: {row['failed']}" for _, row in failed.iterrows()]


def _printed(df: pd.DataFrame) -> list[str]:
    """The verdict on "the x component simply diverges to infinity because a/b > 1"."""
    found = rows_of(df, "rates", "factor x")
    found = found[(found["rule"] == "large") & (found["ratio"] > 1)].sort_values("ratio")
    if found.empty:
        return []
    wrong, right = found[found["found"] != "diverges"], found[found["found"] == "diverges"]
    verdict = "no ratio measured here contradicts it" if wrong.empty else "false: " + ", ".join(
        f"at a/b = {row['ratio']:g} the factor of |x| is {row['measured']:.3g} and it "
        + ("keeps its size" if row["found"] == "neither" else "converges")
        for _, row in wrong.iterrows()
    )  # fmt: skip
    least = f"; of those measured the least that diverges is {right['ratio'].min():g}" if len(right) else ""
    return [
        f"Example 2.3 says that with one rate 1/(2b) x diverges because a/b > 1: {verdict}. The factor is |1 - a/b|, "
        f"below 1 for 0 < a/b < 2{least}."
    ]


def _speed(df: pd.DataFrame) -> list[str]:
    found = rows_of(df, "rates", "steps")
    most = found["ratio"].max()
    found = found[found["ratio"] == most].set_index("rule")
    told = {rule: _count(found.loc[rule]) for rule in ("small", "large", "best", "two") if rule in found.index}
    return [
        f"Exact gradients, a/b = {most:g}, steps to eps: one rate 1/(2a) {told.get('small')}, one rate 1/(2b) "
        f"{told.get('large')}, the best single rate 1/(a + b) {told.get('best')}, two rates {told.get('two')}. The "
        "best single rate has the factor (a - b)/(a + b), about half the steps of 1/(2a) where a/b is large."
    ]


def _count(row: pd.Series) -> str:
    if pd.notna(row["measured"]):
        return f"{row['measured']:,.0f}"
    return "never" if not np.isfinite(row["reference"]) else f"{row['reference']:,.0f} (not run)"


def _noise(df: pd.DataFrame) -> list[str]:
    found = rows_of(df, "noise", "mean square factor")
    told = [
        "A zeroth-order step multiplies E||x||^2 by 1 - 2s + s^2 m, s = 2a eta, m = d + 2 for Gaussian directions and "
        f"d for others: {_inside(found)} measured 95 % intervals hold it. It is stable for s < 2/m, an exact step for "
        "s < 2."
    ]
    limits = rows_of(df, "noise", "largest stable rate")
    limits = limits[(limits["distribution"] == "gaussian") & (limits["scale"] == 1)].sort_values("d")
    if len(limits):
        each = [f"d = {row['d']}: {row['measured']:.3g} ({row['low']:.3g} to {row['high']:.3g}), {row['reference']:.3g}"
                for _, row in limits.iterrows()]  # fmt: skip
        told.append(f"Largest stable s with Gaussian directions, measured and closed form: {'; '.join(each)}.")
    almost = rows_of(df, "noise", "largest typical rate").sort_values("d")
    if len(almost):
        times = almost["reference"] * (almost["d"] + 2) / 2
        each = [f"{factor:.4g} times that at d = {d}" for factor, d in zip(times, almost["d"], strict=True)]
        told.append(f"Almost every Gaussian run converges up to {', '.join(each)}, though its mean square diverges.")
    return told


def _hybrid(df: pd.DataFrame) -> list[str]:
    found = rows_of(df, "hybrid", "steps")
    wide = found.pivot_table(index=["d", "ratio"], columns="rule", values="reference")
    if not {"best", "two"} <= set(wide.columns):
        return []
    gain = (wide["best"] / wide["two"]).dropna()
    d, ratio = gain.index[-1]
    return [
        "With x zeroth-order and y exact two rates take the same steps at every a/b; one best rate takes "
        f"{gain.iloc[-1]:.1f} times as many at d = {d}, a/b = {ratio:g} by its closed form, which "
        f"{_inside(found[found['measured'].notna()])} measured intervals hold."
    ]


def _inside(rows: pd.DataFrame) -> str:
    held = (rows["low"] <= rows["reference"]) & (rows["reference"] <= rows["high"])
    return f"{int(held.sum())} of {len(rows)}"
