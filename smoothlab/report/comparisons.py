"""One table for what any records hold: what was measured, its 95 % interval, the reference it stands beside, a verdict.

The page shows it, and the command line prints it after a run. A verdict is the record's own ("holds", "fails") where it
has one; else it says whether the interval holds the reference. Nothing is estimated here but what smoothlab.stats does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from smoothlab.errors import BadInput
from smoothlab.report import finetune
from smoothlab.report.numbers import interval, number
from smoothlab.report.panels import short_names
from smoothlab.stats.ranks import spearman
from smoothlab.stats.samples import paired
from smoothlab.stats.smoothness_table import NEEDED, blocks_of, points, protocols_of, ratio

COLUMNS = ["part", "what", "quantity", "measured", "low", "high", "reference", "verdict", "held"]
AGREES = ("consistent", "holds", "better", "hidden", "as printed", "")
"""Verdicts that need no second look; "" is a row without a reference."""
QUANTITIES = {"frobenius": "Frobenius norm", "spectral": "largest absolute eigenvalue", "trace": "trace"}
"""Quantities of curvature; the table has the first of them that was measured."""
VARIED = ("theorem", "series", "axis", "regime", "ell", "estimator", "block", "dtype", "rule", "scale", "d", "q", "mu",
          "value", "epoch")  # fmt: skip
"""Columns that may tell the rows of one setting apart."""
ROUNDING = 2e-6  # relative; the last digit of a stored closed form does not count against an interval


def curvature_rows(df: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that hold curvature, whatever experiment wrote them; none where there are none."""
    if set(NEEDED) <= set(df.columns):
        return df[df["protocol"].notna() & df["value"].notna()]
    return df[:0]


def comparisons(df: pd.DataFrame, where: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The table of records, with the columns `COLUMNS`.

    Args:
        df: records of one experiment, as `smoothlab.records.load` gives them.
        where: values that columns of the records or of this table must have, e.g. {"part": "theorem"}.

    Raises:
        BadInput: `where` names a column that there is not.
    """
    filters = dict(where or {})
    for name in [name for name in filters if name in df.columns]:
        df = df[df[name].astype(str) == filters.pop(name)]
    tables = []
    curvature = curvature_rows(df)
    if len(curvature):
        tables.append(pd.DataFrame(_curvature(curvature)))
        df = df.drop(curvature.index)
    if len(df) and {"accuracy", "trial"} <= set(df.columns):
        tables.append(pd.DataFrame(_finetune(df)))
    elif len(df):
        tables.append(_generic(df))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    table = table.reindex(columns=COLUMNS)
    for name, value in filters.items():
        if name not in table.columns:
            raise BadInput(f"--where {name}={value}: no column {name}; use one of {', '.join(COLUMNS)}")
        table = table[table[name].astype(str) == value]
    for name in ("part", "quantity", "verdict"):
        table[name] = table[name].astype(object).fillna("")
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Counts of a table by part and quantity: rows, intervals that hold the reference, verdicts."""
    rows = []
    for (part, quantity), group in table.groupby(["part", "quantity"], sort=False):
        held = group["held"].dropna()
        counts = group.loc[~group["verdict"].isin(["", "consistent", "off"]), "verdict"].value_counts()
        rows.append([part, quantity, len(group), f"{int(held.sum())} of {len(held)}" if len(held) else "",
                     ", ".join(f"{verdict} {count}" for verdict, count in counts.items())])  # fmt: skip
    return pd.DataFrame(rows, columns=["part", "quantity", "rows", "intervals that hold the reference", "verdicts"])


def disagreements(table: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """Rows whose verdict needs a second look, three of a kind: own verdicts first, then intervals off the reference."""
    rows = table[~table["verdict"].isin(AGREES)]
    rows = rows.groupby(["part", "quantity", "verdict"], sort=False).head(3)
    stored = rows["verdict"] != "off"
    return pd.concat([rows[stored].sort_values("part", kind="stable"), rows[~stored]])[:most]


def notes(df: pd.DataFrame) -> list[str]:
    """What the records say besides numbers: failed settings, stopped trials, the data that was used, flags."""
    lines = []
    for name, words in (("failed", "failed"), ("why", "a trial was stopped")):
        if name in df:
            for _, row in df[df[name].notna()].iterrows():
                lines.append(f"{row.get('setting', row['path'])}: {words}: {row[name]}")
    for name in ("served", "note"):
        if name in df:
            # the numbers of steps differ from note to note: what is said of them is counted
            said = df[name].dropna().str.replace(r"^\S+ steps are", "steps are", regex=True)
            lines += [f"{text} ({count})" for text, count in said.value_counts().items()][:4]
    if "flag" in df:
        for flag, count in df["flag"].dropna().value_counts().items():
            lines.append(f"{count} rows carry the flag '{flag}'")
    return lines


def cells(row: Mapping[Any, Any]) -> list[str]:
    """A row of the table as text: what, quantity, measured with its interval, reference, verdict."""
    measured = interval(row["measured"], row["low"], row["high"])
    reference = "" if pd.isna(row["reference"]) else number(row["reference"])
    what = f"{row['part']} {row['what']}".strip()
    return [what, str(row["quantity"]), measured, reference, str(row["verdict"])]


def text(df: pd.DataFrame) -> list[str]:
    """Lines for a terminal: the whole table where it is short, else its summary and what disagrees; then notes."""
    table = comparisons(df)
    lines = [["what", "quantity", "measured", "reference", "verdict"]]
    shown = table
    if len(table) > 40:
        shown = disagreements(table)
    lines += [cells(row) for row in shown.to_dict("records")]
    blocks = [lines]
    if len(table) > 40:
        counts = summary(table)
        blocks.insert(0, [list(counts.columns), *counts.astype(str).values.tolist()])
    printed = []
    for block in blocks:
        widths = [max(map(len, column)) for column in zip(*block, strict=True)]
        for cell_texts in block:
            padded = [cell.ljust(width) for cell, width in zip(cell_texts, widths, strict=True)]
            printed.append("  ".join(padded).rstrip())
    return [*printed, *notes(df)]


def _generic(df: pd.DataFrame) -> pd.DataFrame:
    """Rows of settings experiments, of the audit and of benchmarks."""
    df = df[df["quantity"].notna()] if "quantity" in df else df
    table = pd.DataFrame(index=df.index)
    for name, other in (("measured", "value"), ("low", "low"), ("high", "high"), ("reference", "reference")):
        column = name if name in df else other
        table[name] = pd.to_numeric(df[column], errors="coerce").astype(float) if column in df else np.nan
    for name, other in (("part", "experiment"), ("quantity", "unit"), ("verdict", "verdict")):
        column = name if name in df else other
        table[name] = df[column] if column in df else ""
    slack = ROUNDING * table["reference"].abs()
    inside = (table["low"] - slack <= table["reference"]) & (table["reference"] <= table["high"] + slack)
    known = table[["low", "high", "reference"]].notna().all(axis=1)
    table["held"] = inside.astype(object).where(known, None)
    own = table["verdict"].notna() & (table["verdict"] != "")
    table["verdict"] = table["verdict"].where(own, inside.map({True: "consistent", False: "off"}).where(known, ""))
    if "printed" in df and "found" in df:  # what the paper says of this row, and what was measured
        printed = df["printed"].notna()
        same = (df["printed"] == df["found"]).map({True: "as printed", False: "not as printed"})
        table["verdict"] = table["verdict"].mask(printed, same)
    # a verdict of the record's own is on its bound or on the paper's claim: these stand in the table then
    table["measured"] = table["measured"].fillna(table["reference"])
    for name in ("bound", "claimed"):
        if name in df:
            table["reference"] = table["reference"].mask(own & df[name].notna(), pd.to_numeric(df[name]))
    table["what"] = _names(df)
    return table


def _names(df: pd.DataFrame) -> list[str]:
    """Short name of each row: its setting without what it shares with the first of its part, and what varies there."""
    if "setting" not in df:
        columns = [name for name in ("claim", "what", "case", "spectrum") if name in df]
        return list(df[columns].astype(str).agg(", ".join, axis=1)) if columns else [""] * len(df)
    names: dict[Any, str] = {}
    for _, part in df.groupby("part", sort=False):
        short = short_names(part["setting"])
        for setting, rows in part.groupby("setting", sort=False):
            varied = [name for name in VARIED if name in rows and rows[name].nunique() > 1]
            for index, row in rows.iterrows():
                extra = [f"{name}={row[name]}" for name in varied if pd.notna(row[name])]
                names[index] = ", ".join([short[str(setting)], *extra]).removeprefix("base, ")
    return [names[index] for index in df.index]


def _curvature(df: pd.DataFrame) -> list[dict[str, Any]]:
    """First and last point of each block and protocol, correlation with the gradient norm, ratio base over PEFT."""
    rows = []
    for quantity in [quantity for quantity in QUANTITIES if (df["quantity"] == quantity).any()][:1]:
        for block in blocks_of(df, quantity):
            for protocol in protocols_of(df, quantity):
                for _, run in points(df, block, quantity, protocol).groupby("path"):
                    rows += _ends(run, f"{block}, {protocol}", QUANTITIES[quantity])
                    rows += _correlation(run, f"{block}, {protocol}")
        for protocol in protocols_of(df, quantity):
            quotient = ratio(df, quantity=quantity, protocol=protocol)
            if len(quotient):
                above, below = int((quotient["low"] > 1).sum()), int((quotient["high"] < 1).sum())
                verdict = f"above 1 at {above} and below 1 at {below} of {len(quotient)} points"
                for row in _ends(quotient, f"base over peft, {protocol}", f"ratio of {QUANTITIES[quantity]}s"):
                    rows.append(row | {"reference": 1.0, "verdict": verdict})
    if (df["quantity"] == "gradient_lipschitz").any():
        for block in blocks_of(df, "gradient_lipschitz"):
            path, top = points(df, block, "gradient_lipschitz", None), points(df, block, "spectral")
            rows.append({"what": f"{block}, median of {len(path)} steps", "quantity": "smoothness along the path",
                         "measured": path["value"].median(), "reference": top["value"].median()})  # fmt: skip
    return rows


def _ends(run: pd.DataFrame, what: str, quantity: str) -> list[dict[str, Any]]:
    """First and last point of a run, and whether their intervals are apart."""
    first, last = run.iloc[0], run.iloc[-1]
    rows: list[dict[str, Any]] = []
    for point in [first, last][: len(run)]:
        rows.append({"what": f"{what}, step {point['step']}", "quantity": quantity, "measured": point["value"],
                     "low": point["low"], "high": point["high"]})  # fmt: skip
    if len(run) > 1 and pd.notna([first["low"], first["high"], last["low"], last["high"]]).all():
        moved = "rose" if last["low"] > first["high"] else "fell" if last["high"] < first["low"] else "no clear change"
        rows[-1]["verdict"] = moved
    if run["below"].any():
        rows[0]["verdict"] = f"{int(run['below'].sum())} of {len(run)} points below twice the rounding floor"
    return rows


def _correlation(run: pd.DataFrame, what: str) -> list[dict[str, Any]]:
    """Spearman's rank correlation of the norm and the gradient norm along a run; open where its interval holds 0."""
    correlation = spearman(run["grad_norm"], run["value"])
    if correlation is None:
        return []
    verdict = "grows with the gradient" if correlation.low > 0 else "open"
    if correlation.high < 0:
        verdict = "falls where the gradient grows"
    return [{"what": what, "quantity": "rank correlation with the gradient norm", "measured": correlation.rho,
             "low": correlation.low, "high": correlation.high, "reference": 0.0, "verdict": verdict}]  # fmt: skip


def _finetune(df: pd.DataFrame) -> list[dict[str, Any]]:
    """Test accuracy of each kind of run beside the larger class, and differences to hybrid, paired by item."""
    kinds, rows = finetune.kinds_of(df), []
    for kind in kinds:
        row = {"what": f"{kind.name} ({kind.rates})", "quantity": f"test accuracy, {len(kind.test)} seed(s)"}
        if not kind.test:
            last = [dev.iloc[-1]["accuracy"] for dev in kind.dev.values()]
            rows.append(row | {"quantity": "dev accuracy", "measured": float(np.mean(last)), "verdict": "not tested"})
            continue
        mean, low, high = finetune.pooled(kind)
        chance = max(float(kind.test[seed].get(name, 0)) for seed in kind.test for name in ("chance", "majority"))
        verdict = "above the larger class" if low > chance else "not above the larger class"
        rows.append(row | {"measured": mean, "low": low, "high": high, "reference": chance, "verdict": verdict})
    return rows + _differences(kinds)


def _differences(kinds: Sequence[finetune.Kind]) -> list[dict[str, Any]]:
    """Accuracy of every hybrid kind less that of the others, or of every pair where none is hybrid."""
    rows = []
    hybrid = [kind.name.startswith("Hybrid-") for kind in kinds]
    pairs = [(i, j) for i in range(len(kinds)) for j in range(i + 1, len(kinds))]
    for i, j in pairs:
        if any(hybrid) and not hybrid[i] and not hybrid[j]:
            continue
        a, b = (kinds[j], kinds[i]) if hybrid[j] and not hybrid[i] else (kinds[i], kinds[j])
        seeds = [seed for seed in a.test if seed in b.test and a.test[seed]["count"] == b.test[seed]["count"]]
        if not seeds:
            continue
        difference = paired([_answers(a.test[seed]) for seed in seeds], [_answers(b.test[seed]) for seed in seeds])
        verdict = "wins" if difference.low > 0 else "loses" if difference.high < 0 else "ties"
        rows.append({"what": f"{a.among(kinds)} less {b.among(kinds)}", "quantity": "difference of accuracy, paired",
                     "measured": difference.value, "low": difference.low, "high": difference.high, "reference": 0.0,
                     "verdict": verdict})  # fmt: skip
    return rows


def _answers(test: pd.Series) -> np.ndarray:
    return np.array([int(answer) for answer in str(test["right"])])
