"""One table for what any records hold: what was measured, its 95 % interval, the reference it stands beside, a verdict.

The page shows it, and the command line prints it after a run. A verdict is the record's own ("holds", "fails") where it
has one; else it says whether the interval holds the reference. Nothing is estimated here but what smoothlab.stats does.
"""

import itertools
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
FLAGS = {
    "below floor": "less than twice what rounding alone gives",
    "precision not reached": "measuring stopped at its budget; the interval is wide, and valid",
    "rare draws": "a few draws may carry the mean, and its interval may miss them",
    "kinks": "a finite difference crosses kinks of the loss",
}
"""What flags mean; a row may carry several, with commas between them."""
FEWEST = 6  # points of a correlation; the interval of fewer is open even where their order is perfect
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
    for name in set(filters) & set(df.columns):
        df = df[df[name].astype(str) == filters.pop(name)]
    tables = []
    curvature = curvature_rows(df)
    if len(curvature):
        tables.append(pd.DataFrame(_curvature(curvature)))
        df = df.drop(curvature.index)
    if len(df) and "trial" in df.columns and ("accuracy" in df.columns or finetune.has_losses(df)):
        tables.append(pd.DataFrame(_finetune(df)))
    elif len(df):
        tables.append(_generic(df))
    table = pd.concat(tables or [pd.DataFrame()], ignore_index=True).reindex(columns=COLUMNS)
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
        # verdicts that only repeat whether the interval holds the reference are counted already
        counts = group.loc[~group["verdict"].isin(["", "consistent", "off"]), "verdict"].value_counts()
        rows.append([part, quantity, len(group), coverage(group), ", ".join(counts.index + " " + counts.astype(str))])
    return pd.DataFrame(rows, columns=["part", "quantity", "rows", "intervals that hold the reference", "verdicts"])


def coverage(table: pd.DataFrame) -> str:
    """Number of intervals that hold their closed form or recursion: "9 of 10"; "" where none has one."""
    outcomes = table["held"].dropna()
    if outcomes.empty:
        return ""
    return f"{int(outcomes.sum())} of {len(outcomes)}"


def disagreements(table: pd.DataFrame, limit: int = 12) -> pd.DataFrame:
    """Rows whose verdict needs a second look, three of a kind: own verdicts first, then intervals off the reference."""
    rows = table[~table["verdict"].isin(AGREES)]
    rows = rows.groupby(["part", "quantity", "verdict"], sort=False).head(3)
    stored = rows["verdict"] != "off"
    return pd.concat([rows[stored].sort_values("part", kind="stable"), rows[~stored]])[:limit]


def notes(df: pd.DataFrame) -> list[str]:
    """Notes of the records besides numbers: failed settings, stopped trials, the data that was used, flags."""
    lines = []
    for name, words in (("failed", "failed"), ("why", "a trial was stopped")):
        if name in df:
            for _, row in df[df[name].notna()].iterrows():
                lines.append(f"{row.get('setting', row['path'])}: {words}: {row[name]}")
    for name in ("served", "note"):
        if name in df:
            # the numbers of steps differ from note to note: what is said of them is counted
            texts = df[name].dropna().str.replace(r"^\S+ steps are", "steps are", regex=True)
            for text, count in list(texts.value_counts().items())[:4]:
                unit = "run" if name == "served" else "row"
                counted = f"({count} {unit}{'s' * (count > 1)})"
                trained, semicolon, tested = str(text).partition("; test: ")  # which only "served" has
                lines.append(f"{trained} {counted}")
                if semicolon:
                    lines.append(f"test: {tested} {counted}")
    if "flag" in df:
        for flag, count in df["flag"].dropna().value_counts().items():
            meanings = "; ".join(FLAGS[name] for name in str(flag).split(", ") if name in FLAGS)
            carried = "1 row carries" if count == 1 else f"{count} rows carry"
            lines.append(f"{carried} the flag '{flag}'" + f": {meanings}" * bool(meanings))
    return lines


def cells(row: Mapping[Any, Any]) -> list[str]:
    """A row of the table as text: what, quantity, measured with its interval, reference, verdict."""
    texts = [f"{row['part']} {row['what']}".strip(), str(row["quantity"])]
    texts += [interval(row["measured"], row["low"], row["high"]), "", str(row["verdict"])]
    if pd.notna(row["reference"]):
        texts[3] = number(row["reference"])
    return texts


def text(df: pd.DataFrame) -> list[str]:
    """Lines for a terminal: the whole table where it is short, else its summary and what disagrees; then notes."""
    table = comparisons(df)
    blocks = [[["what", "quantity", "measured", "reference", "verdict"], *map(cells, table.to_dict("records"))]]
    if len(table) > 40:
        counts, disagreeing = summary(table), disagreements(table)
        blocks = [[list(counts.columns), *counts.astype(str).values.tolist()],
                  [blocks[0][0], *map(cells, disagreeing.to_dict("records"))]]  # fmt: skip
    printed = []
    for block in blocks:
        widths = pd.DataFrame(block).map(len).max()
        for texts in block:
            printed.append("  ".join(map(str.ljust, texts, widths)).rstrip())
    return [*printed, *notes(df)]


def _generic(df: pd.DataFrame) -> pd.DataFrame:
    """Rows of settings experiments, of the audit and of benchmarks."""
    if "quantity" in df:  # a setting that failed has none
        df = df[df["quantity"].notna()]
    table = pd.DataFrame(index=df.index)
    for name, fallback in (("measured", "value"), ("low", ""), ("high", ""), ("reference", "")):
        column = pd.Series(df.get(name, df.get(fallback)), df.index, dtype=object)
        table[name] = pd.to_numeric(column, errors="coerce").astype(float)
    for name, fallback in (("part", "experiment"), ("quantity", "unit"), ("verdict", "")):
        table[name] = pd.Series(df.get(name, df.get(fallback)), df.index, dtype=object).fillna("")
    # the last digit of a stored closed form does not count against an interval
    slack = ROUNDING * table["reference"].abs()
    covers = (table["low"] - slack <= table["reference"]) & (table["reference"] <= table["high"] + slack)
    has_interval = table[["low", "high", "reference"]].notna().all(axis=1)
    table["held"] = covers.astype(object).where(has_interval, None)
    recorded = table["verdict"] != ""  # by the record itself
    table["verdict"] = table["verdict"].where(
        recorded, covers.map({True: "consistent", False: "off"}).where(has_interval, "")
    )
    if "printed" in df and "found" in df:  # what the paper says of this row, and what was measured
        printed = df["printed"].notna()
        comparison = (df["printed"] == df["found"]).map({True: "as printed", False: "not as printed"})
        table["verdict"] = table["verdict"].mask(printed, comparison)
    # a verdict of the record's own is on its bound or on the paper's claim: these stand in the table then
    table["measured"] = table["measured"].fillna(table["reference"])
    for name in ("bound", "claimed"):
        if name in df:
            table["reference"] = table["reference"].mask(recorded & df[name].notna(), pd.to_numeric(df[name]))
    table["what"] = _names(df)
    return table


def _names(df: pd.DataFrame) -> list[str]:
    """Short name of each row: its setting without what it shares with the first of its part, and what varies there."""
    if "setting" not in df:
        columns = df.columns.intersection(["claim", "what", "case", "spectrum"])
        if columns.empty:
            return [""] * len(df)
        return list(df[columns].astype(str).apply(", ".join, axis=1))
    names: dict[Any, str] = {}
    for _, part in df.groupby("part", sort=False):
        short = short_names(part["setting"])
        for setting, rows in part.groupby("setting", sort=False):
            varied = rows[rows.columns.intersection(list(VARIED), sort=False)]
            varied = varied.loc[:, varied.nunique() > 1]
            for index, row in varied.iterrows():
                extra = row.dropna()
                options = extra.index + "=" + extra.astype(str)
                names[index] = ", ".join([short[str(setting)], *options]).removeprefix("base, ")
    return list(map(names.__getitem__, df.index))


def _curvature(df: pd.DataFrame) -> list[dict[str, Any]]:
    """First and last point of each block and protocol, correlation with the gradient norm, ratio base over PEFT."""
    rows: list[dict[str, Any]] = []
    measured = [quantity for quantity in QUANTITIES if (df["quantity"] == quantity).any()]
    for quantity in measured[:1]:  # the others say the same of the same points
        name, protocols = QUANTITIES[quantity], protocols_of(df, quantity)
        for block, protocol in itertools.product(blocks_of(df, quantity), protocols):
            for path, run in points(df, block, quantity, protocol).groupby("path"):
                label = f"{method_of(df, path)}{block}, {protocol}"
                rows += _ends(run, label, name)
                rows += _correlation(run, label)
        for protocol in protocols:
            for path, quotient in ratio(df, quantity=quantity, protocol=protocol).groupby("path"):
                label = f"{method_of(df, path)}base over peft, {protocol}"
                for row in _ends(quotient, label, f"ratio of {name}s"):
                    rows.append(row | {"reference": 1.0, "verdict": ""})
                above, below = int((quotient["low"] > 1).sum()), int((quotient["high"] < 1).sum())
                rows[-1]["verdict"] = f"above 1 at {above} and below 1 at {below} of {len(quotient)} points"
    if (df["quantity"] == "gradient_lipschitz").any():
        for block in blocks_of(df, "gradient_lipschitz"):
            quotients, top = points(df, block, "gradient_lipschitz", None), points(df, block, "spectral")
            rows.append({
                "what": f"{block}, median of {len(quotients)} steps",
                "quantity": "smoothness along the path, beside the largest eigenvalue",
                "measured": quotients["value"].median(), "reference": top["value"].median(),
            })  # fmt: skip
    return rows


def method_of(df: pd.DataFrame, path: Any) -> str:
    """Method of a run before a name, where records are of several methods: "hybrid, "."""
    if "method" not in df or df["method"].nunique() < 2:
        return ""
    return f"{df.loc[df['path'] == path, 'method'].iloc[0]}, "


def _ends(run: pd.DataFrame, label: str, quantity: str) -> list[dict[str, Any]]:
    """First and last point of a run, and whether their intervals are apart."""
    first, last = run.iloc[0], run.iloc[-1]
    rows: list[dict[str, Any]] = []
    for point in [first, last][: len(run)]:
        rows.append({"what": f"{label}, step {point['step']}", "quantity": quantity, "measured": point["value"],
                     "low": point["low"], "high": point["high"]})  # fmt: skip
    if len(run) > 1 and run.iloc[[0, -1]][["low", "high"]].notna().all(axis=None):
        # intervals that overlap leave open whether anything moved
        change = last["low"] - first["high"], last["high"] - first["low"]
        rows[-1]["verdict"] = _sign(*change, ("fell", "no clear change", "rose"))
    if run["below"].any():
        rows[0]["verdict"] = f"{int(run['below'].sum())} of {len(run)} points below twice the rounding floor"
    return rows


def _correlation(run: pd.DataFrame, label: str) -> list[dict[str, Any]]:
    """Spearman's rank correlation of the norm and the gradient norm along a run; open where its interval holds 0."""
    correlation = spearman(run["grad_norm"], run["value"])
    if correlation is None or len(run) < FEWEST:
        return []
    verdict = _sign(
        correlation.low, correlation.high, ("falls where the gradient grows", "open", "grows with the gradient")
    )
    return [{"what": label, "quantity": "rank correlation with the gradient norm", "measured": correlation.rho,
             "low": correlation.low, "high": correlation.high, "reference": 0.0, "verdict": verdict}]  # fmt: skip


def _finetune(df: pd.DataFrame) -> list[dict[str, Any]]:
    """Test accuracy of each kind of run beside the larger class, and differences to hybrid, paired by item.

    Of completions and texts the loss stands for the accuracy, and exact match is what is paired.
    """
    kinds, rows = finetune.kinds_of(df), []
    if finetune.has_losses(df):
        return [row for kind in kinds for row in _losses(kind, kind.described(kinds))] + _differences(
            kinds, "exact match"
        )
    for kind in kinds:
        row: dict[str, Any] = {"what": kind.described(kinds)}
        rows.append(row)
        if not kind.test:
            last = pd.concat(kind.dev.values()).groupby("path")["accuracy"].last()
            row |= {"quantity": "dev accuracy", "measured": last.mean(), "verdict": "not tested"}
            continue
        mean, low, high = finetune.pooled(kind)
        tests = pd.DataFrame(list(kind.test.values()))
        chance = float(np.nanmax(tests.reindex(columns=["chance", "majority"]).to_numpy(float)))
        row |= {"quantity": f"test accuracy, {len(kind.test)} seed(s)", "measured": mean, "low": low, "high": high,
                "reference": chance, "verdict": "not above the larger class"}  # fmt: skip
        if low > chance:
            row["verdict"] = "above the larger class"
        shifted = tests.reindex(columns=["calibrated_accuracy"])["calibrated_accuracy"]
        if shifted.notna().all():
            name = f"calibrated test accuracy, {len(kind.test)} seed(s)"
            rows.append({"what": row["what"], "quantity": name, "measured": shifted.astype(float).mean()})
    return rows + _differences(kinds, "accuracy")


def _losses(kind: finetune.Kind, label: str) -> list[dict[str, Any]]:
    """Test loss of a kind of run, and where answers were generated their exact match and F1; means over seeds."""
    if not kind.test:
        last = pd.concat(kind.dev.values()).groupby("path")["dev_loss"].last()
        return [{"what": label, "quantity": "dev loss", "measured": last.mean(), "verdict": "not tested"}]
    loss, low, high = finetune.pooled_loss(kind)
    seeds = f"{len(kind.test)} seed(s)"
    rows = [{"what": label, "quantity": f"test loss, {seeds}", "measured": loss, "low": low, "high": high}]
    tests = pd.DataFrame(list(kind.test.values())).reindex(columns=["exact_match", "f1"])
    for column, name in (("exact_match", "exact match"), ("f1", "F1")):
        if tests[column].notna().all():
            rows.append({"what": label, "quantity": f"test {name}, {seeds}", "measured": tests[column].mean()})
    return rows


def _differences(kinds: Sequence[finetune.Kind], score: str) -> list[dict[str, Any]]:
    """The named score of every hybrid kind less that of the others, or of every pair where none is hybrid."""
    rows = []
    # hybrid kinds come first: what is asked is whether they are better than the others
    ranked = sorted(kinds, key=lambda kind: not kind.name.startswith("Hybrid-"))
    for a, b in itertools.combinations(ranked, 2):
        seeds = sorted(set(a.test) & set(b.test))
        if not seeds or a.test[seeds[0]]["count"] != b.test[seeds[0]]["count"]:
            continue
        if not all(isinstance(kind.test[seed].get("right"), str) for kind in (a, b) for seed in seeds):
            continue  # without answers: texts, and long completions
        if ranked[0].name.startswith("Hybrid-") and not a.name.startswith("Hybrid-"):
            continue
        difference = paired(_answers(a, seeds), _answers(b, seeds))
        rows.append({"what": f"{a.among(kinds)} less {b.among(kinds)}", "quantity": f"difference of {score}, paired",
                     "measured": difference.value, "low": difference.low, "high": difference.high, "reference": 0.0,
                     "verdict": _sign(difference.low, difference.high, ("loses", "ties", "wins"))})  # fmt: skip
    return rows


def _sign(low: float, high: float, words: tuple[str, str, str]) -> str:
    """Of three words the one for an interval below zero, around it, or above it."""
    if high < 0:
        return words[0]
    if low > 0:
        return words[2]
    return words[1]


def _answers(kind: finetune.Kind, seeds: Sequence[int]) -> np.ndarray:
    """Right (1) and wrong (0) answers, a row a seed."""
    return np.array([list(kind.test[seed]["right"]) for seed in seeds], dtype=int)
