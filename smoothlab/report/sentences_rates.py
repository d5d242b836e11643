"""What the records of ``smoothlab rates`` say, in sentences, verdicts first."""

import pandas as pd

from smoothlab.report.plots_rates import VARIED, rows_of, settings_of

NAMES = {
    "printed": "Theorem C.1 as printed",
    "expectation": "the corrected theorem in expectation",
    "probability": "the corrected one with high probability",
}
SERIES = {
    "printed": "Theorem C.1 asks for",
    "expectation": "the corrected theorem in expectation asks for",
    "probability": "the one with high probability asks for",
    "zo": "zeroth-order needs",
    "fo-reshuffle": "exact gradients, reshuffled, need",
    "fo-replace": "exact gradients, with replacement, need",
    "zo-quadratics": "zeroth-order on quadratics with Hessians of their own needs",
    "fo-quadratics": "exact gradients, reshuffled, on quadratics with Hessians of their own need",
    "zo-log-cosh": "zeroth-order on a sum of log cosh needs",
    "zo-exponentials": "zeroth-order on a sum of exponentials needs",
}


def reading(df: pd.DataFrame) -> list[str]:
    """Sentences for what is there.

    Raises:
        BadInput: the records are not those of ``smoothlab rates``.
    """
    failed = df[df["failed"].notna()] if "failed" in df else df.iloc[:0]
    failures = [f"{row['setting']} failed: {row['failed']}" for _, row in failed.iterrows()]
    if len(failed) and len(failed) == len(df):
        return failures
    rows_of(df, "theorem")
    told: list[str] = []
    each = {"counterexample": _fails, "theorem": _theorem, "exponents": _exponents, "speedup_of_two_rates": _speedup,
            "reshuffling": _reshuffling}  # fmt: skip
    for part, sentences in each.items():
        if ((df["part"] == part) & df["quantity"].notna()).any():
            told += sentences(df)
    return told + failures


def _fails(df: pd.DataFrame) -> list[str]:
    told = []
    shares = rows_of(df, "counterexample", "success").set_index("setting")
    for _, row in rows_of(df, "counterexample", "average").iterrows():
        where = f"d = {row['d']:g}, n = {row['n']:g}, sigma = {row['sigma']:g}, eps = {row['eps']:g}"
        line = f"{where}, T = {row['T']:,.0f}: {row['reference'] / row['bound']:.3g} eps^2 by the exact recursion"
        if pd.notna(row["measured"]):
            times = [row[end] / row["bound"] for end in ("measured", "low", "high", "least")]
            share = shares.loc[row["setting"]]
            line += (
                f", {times[0]:.3g} ({times[1]:.3g} to {times[2]:.3g}) measured, at least {times[3]:.3g} in each of "
                f"{share['replicas']:.0f} replicas; success in {100 * share['measured']:.0f} % (at most "
                f"{100 * share['high']:.0f} %), promised {100 * share['bound']:.0f} %"
            )
        told.append(line)
    lines = []
    if told:
        head = "Theorem C.1 as printed fails although all its conditions are met; (1/T) sum ||grad f||^2 is"
        lines.append(f"{head}, at {'; at '.join(told)}.")
    least = rows_of(df, "counterexample", "smallest d that fails").sort_values("n")
    if len(least):
        each = ", ".join(f"d = {row['reference']:g} at n = {row['n']:g}" for _, row in least.iterrows())
        lines.append(
            f"With much noise and L Delta = 1 it fails in expectation from {each} on: where d + 2 is near 4 n L Delta, "
            "since the floor eta L (d + 2) sigma^2/2 of the zeroth-order noise is not in its bound."
        )
    return lines


def _theorem(df: pd.DataFrame) -> list[str]:
    found, shares = rows_of(df, "theorem", "average"), rows_of(df, "theorem", "success")
    names = settings_of(df)
    first = df[df["part"] == "theorem"].iloc[0]
    told = ", ".join(_option(key, first[key]) for key in VARIED if key != "given" and key in first)
    lines = [f"The base is {told}; f - f* = 1 at the start."]
    for theorem, name in NAMES.items():
        rows = found[(found["theorem"] == theorem) & found["verdict"].notna() & found["meets"].astype(bool)]
        if rows.empty:
            continue
        times = rows["measured"].fillna(rows["reference"]) / rows["bound"]
        ran = int(rows["measured"].notna().sum())
        counts = rows["verdict"].value_counts()
        verdicts = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
        line = (
            f"At the constants of {name}, (1/T) sum ||grad f||^2 <= eps^2 {verdicts} of {len(rows)} settings ({ran} "
            f"measured, the others by the recursion): {times.min():.2g} to {times.max():.2g} eps^2"
        )
        success = shares[(shares["theorem"] == theorem) & shares["bound"].notna() & shares["meets"].astype(bool)]
        if len(success):
            line += (
                f"; the share of replicas that meet it is at least {success['low'].min():.3f} (95 %), promised "
                + " to ".join(f"{bound:g}" for bound in dict.fromkeys([success["bound"].min(), success["bound"].max()]))
            )
        bad = rows[rows["verdict"] == "fails"]["setting"]
        lines.append(line + ("; it fails at " + "; ".join(names[one] for one in bad) if len(bad) else "") + ".")
    for _, row in found[(found["meets"] == False) & found["measured"].notna()].iterrows():  # noqa: E712
        lines.append(
            f"With T = {row['T']:,.0f}, less than its condition asks for, Theorem C.1 as printed gives "
            f"{row['measured'] / row['bound']:.3g} ({row['low'] / row['bound']:.3g} to "
            f"{row['high'] / row['bound']:.3g}) eps^2 ({names[row['setting']]})."
        )
    exact = found.dropna(subset=["measured", "reference"])
    if len(exact):
        lines.append(f"{_inside(exact)} measured 95 % intervals of these means hold the exact recursion's value.")
    left = found[found["measured"].isna() & found["note"].notna()]
    if len(left):
        several = left.groupby("note")["setting"].nunique().sort_values(ascending=False)
        each = [f"{note} ({count})" for note, count in several.items() if "steps" not in str(note)]
        long = int(left["note"].str.contains("not run").sum())
        lines.append("Left out: " + "; ".join([*each, *([f"{long} runs that are too long"] if long else [])]) + ".")
    return lines


def _exponents(df: pd.DataFrame) -> list[str]:
    asked, found = rows_of(df, "exponents", "exponent asked"), rows_of(df, "exponents", "exponent")
    lines = []
    if len(asked):
        deltas = _deltas(asked[(asked["series"] == "probability") & (asked["axis"] == "delta")])
        asked = asked[(asked["regime"] == "small eps") & (asked["ell"] == "constant")]
        for series, name in SERIES.items():
            rows = asked[asked["series"] == series]
            if len(rows):
                each = ", ".join(_power(row) for _, row in rows.iterrows())
                near = rows["near"].iloc[0] if "near" in rows and pd.notna(rows["near"].iloc[0]) else 0.001
                lines.append(f"At eps near {near:g} {name} nT of exponent {each}.")
        lines = ["Claimed (Theorem 3.4): nT is eps^-4, and 0 in n, d and delta.", *lines, *deltas]
    for _, row in found[found["measured"].notna()].iterrows():
        exact = "" if pd.isna(row["reference"]) else f", {row['reference']:.2f} by the recursion there"
        lines.append(
            f"Measured at moderate eps, {SERIES[row['series']]} nT of exponent {row['measured']:.2f} "
            f"({row['low']:.2f} to {row['high']:.2f}) in {row['axis']}{exact}."
        )
    return lines


ELLS = {
    "constant": "constant ell", "affine": "ell = 1 + u", "root": "ell = 1 + sqrt(u)",
    "affine in y": "ell_x = 1 and ell_y = 1 + u",
}  # fmt: skip


def _deltas(rows: pd.DataFrame) -> list[str]:
    """For which ell the theorem with high probability asks for delta^-2, and for which for more."""
    rows = rows[rows["regime"] == "small eps"].drop_duplicates("ell")
    each = [
        f"{row['reference']:.2f} for {ELLS[row['ell']]}"
        + (f" ({row['expected']:.3g} as delta -> 0)" if pd.notna(row["expected"]) else "")
        for _, row in rows.iterrows()
        if row["ell"] in ELLS
    ]
    if not each:
        return []
    return [
        f"With high probability the exponent in delta is {', '.join(each)}: -2 where ell_x and sigma are bounded, more "
        "where they are not."
    ]


def _speedup(df: pd.DataFrame) -> list[str]:
    gain, epochs = rows_of(df, "speedup_of_two_rates", "gain"), rows_of(df, "speedup_of_two_rates", "epochs")
    lines = []
    for (oracle, d, sigma), rows in gain.groupby(["oracle", "d", "sigma"]):
        name = "exact gradients" if oracle == "exact" else f"zeroth order in x, d = {d:g}"
        each = []
        for _, row in rows.sort_values("ratio").iterrows():
            value, seen = row["reference"], " (recursion)"
            if pd.notna(row["measured"]):
                value = row["measured"]
                seen = "" if row["low"] == row["high"] else f" ({_plain(row['low'])} to {_plain(row['high'])})"
            each.append(f"{_plain(value)}{seen} at {row['ratio']:,.0f}")
        line = f"Epochs with one best rate over those with two, {name}, sigma = {sigma:g}: {', '.join(each)} = L_x/L_y"
        last = rows[rows["ratio"] == rows["ratio"].max()].iloc[0]
        if pd.notna(last["closed_form"]):
            line += f"; as eps -> 0 {_plain(last['closed_form'])} at {last['ratio']:,.0f}, about L_x/(8 L_y)"
        lines.append(line + ".")
    ran = epochs.dropna(subset=["measured", "reference"])
    if len(ran):
        lines.append(f"{_inside(ran)} measured 95 % intervals of these epochs hold the exact recursion's value.")
    return lines


def _reshuffling(df: pd.DataFrame) -> list[str]:
    found = rows_of(df, "reshuffling", "error ratio")
    exact = found[found["axis"] == "rate"]
    lines: list[str] = []
    if len(exact):
        low, high = exact["reference"].min(), exact["reference"].max()
        lines.append(
            f"With exact gradients reshuffling wins everywhere: its error is {low:.2g} to {high:.2g} times that of "
            f"sampling with replacement for eta L n from {exact['scale'].min():g} to {exact['scale'].max():g} (about "
            "(eta L n)^2/12 of it where eta L n is small)."
        )
    for axis, name in (("noise", "sigma"), ("d", "d"), ("q", "q at d = 10")):
        rows = found[found["axis"] == axis].sort_values({"noise": "sigma"}.get(axis, axis))
        if rows.empty:
            continue
        place = {"noise": "sigma"}.get(axis, axis)
        each = ", ".join(f"{_seen(row)} at {row[place]:g}" for _, row in rows.iterrows())
        head = "From ||grad f|| = 1 on, exact gradients" if axis == "noise" else "Zeroth-order"
        lines.append(f"{head}, that quotient by {name}: {each}.")
    ran = found.dropna(subset=["measured", "reference"])
    if len(ran):
        lines.append(f"{_inside(ran)} measured 95 % intervals of these quotients hold the exact recursion's value.")
    return lines


def _plain(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _option(key: str, value: object) -> str:
    return f"{key} {value:g}" if isinstance(value, float | int) else str(value)


def _power(row: pd.Series) -> str:
    return f"{row['reference']:.2f} in {row['axis']}" + ("" if row["verdict"] == "consistent" else " (not as claimed)")


def _seen(row: pd.Series) -> str:
    if pd.isna(row["measured"]):
        return f"{row['reference']:.2f} (recursion)"
    told = ", hidden" if row["verdict"] == "hidden" else ""
    return f"{row['measured']:.2f} ({row['low']:.2f} to {row['high']:.2f}{told})"


def _inside(rows: pd.DataFrame) -> str:
    held = (rows["low"] * (1 - 1e-9) <= rows["reference"]) & (rows["reference"] <= rows["high"] * (1 + 1e-9))
    return f"{int(held.sum())} of {len(rows)}"
