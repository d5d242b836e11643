"""Predicted and tried stability limits over sweeps, loss after 60 steps against the rate, from records.

Also prints a table in Markdown of predicted and tried limits beside true edges, and of losses after 200 steps.

python figures/advise.py [--records FILE] [--cases CASE ...] [--out FILE.png]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from smoothlab import records
from smoothlab.report import advise, panels
from smoothlab.report.numbers import interval, number

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "advice_trained.jsonl"
DRAWN = ("encoder-zo", "encoder-lora-sgd", "encoder-lora-adam", "encoder-hybrid-y", "opt-zo", "opt-lora-sgd")
"""Cases in the figure of the pages."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the sweeps of `python -m benchmarks.advice` that are on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="FILE")
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "advise.png", metavar="FILE")
    parser.add_argument("--cases", nargs="*", default=DRAWN, metavar="CASE", help="cases to draw; none: all")
    options = parser.parse_args(arguments)
    table = records.load(options.records)
    table = table.assign(case=table["setting"].str.partition("/")[2])
    print("\n".join(markdown(table)))
    if options.cases:
        table = table[table["case"].isin(options.cases)]
    for path in panels.save(advise.figure(sweeps(table)), options.out.with_suffix(""), (options.out.suffix[1:],)):
        print(path)
    return 0


def sweeps(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the sweeps whose edge is known, as those of `smoothlab advise`: an option is a case and its rate."""
    rows = []
    for _, edge in table[table["part"] == "edge"].iterrows():
        case, option = edge["case"], edge["option"]
        sweep = table[(table["case"] == case) & (table["option"] == option)]
        label = f"{option} of {case}"
        limits = sweep[(sweep["part"] == "limit") & (sweep["source"] != "tried") & sweep["low"].notna()]
        true_edge = pd.DataFrame([edge]).assign(part="limit", source="seen", condition="true edge")
        true_edge["value"] = edge["measured"]
        trials = sweep[sweep["part"] == "sweep"].assign(part="trial")
        rows.append(pd.concat([trials, limits, true_edge]).assign(option=label))
    return pd.concat(rows, ignore_index=True)


def markdown(table: pd.DataFrame) -> list[str]:
    """A row a case: limits, the true edge, their ratios, and the loss at the advised rate beside the sweep's best."""
    columns = ["case", "rate", "true edge", "predicted", "edge/predicted", "predicted and tried", "edge/both",
               "range test/edge", "loss after 200 steps: advised, best"]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for _, edge in table[table["part"] == "edge"].iterrows():
        case_rows = table[table["case"] == edge["case"]]
        cells = [edge["case"], edge["option"], number(edge["measured"])]
        for source in ("predicted", "predicted and tried"):
            of_option = case_rows[(case_rows["part"] == "limit") & (case_rows["option"] == edge["option"])]
            limits = of_option[of_option["source"] == source]
            if limits.empty:
                cells += ["", ""]
                continue
            limit = limits.iloc[0]
            position = "inside" if limit["low"] <= edge["measured"] <= limit["high"] else "outside"
            cells += [
                interval(*limit[["value", "low", "high"]]),
                f"{edge['measured'] / limit['value']:.2f}, {position}",
            ]
        ranged, long = case_rows[case_rows["part"] == "range"], case_rows[case_rows["part"] == "long"]
        cells.append(f"{ranged['measured'].iloc[0] / edge['measured']:.2f}" if len(ranged) else "")
        losses = long.set_index("source")["loss_after"]
        cells.append(f"{number(losses['advised'])}, {number(losses.min())}" if "advised" in losses else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
