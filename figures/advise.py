"""Predicted stability limits over sweeps, loss after 60 steps against the rate, from records; measures nothing.

python figures/advise.py [--records FILE] [--out FILE.png]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from smoothlab import records
from smoothlab.report import advise, panels

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "advice_micro.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the sweeps of `python -m benchmarks.advice` that are on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="FILE")
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "advise.png", metavar="FILE")
    options = parser.parse_args(arguments)
    table = records.load(options.records)
    for path in panels.save(advise.figure(sweeps(table)), options.out.with_suffix(""), (options.out.suffix[1:],)):
        print(path)
    return 0


def sweeps(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the sweeps whose edge is known, as those of `smoothlab advise`: an option is a case and its rate."""
    part, case = table["setting"].str.partition("/")[0], table["setting"].str.partition("/")[2]
    edges = table[table["part"] == "edge"]
    swept = dict(zip(case[edges.index], edges["option"], strict=True))
    rows = []
    for name, option in swept.items():
        label = f"{option} of {name}"
        runs = table[(part == "edge") & (case == name) & (table["part"] == "sweep")]
        limits = table[(part == "advice") & (case == name) & (table["part"] == "limit") & (table["option"] == option)]
        predicted = limits[limits["source"] == "predicted"].assign(part="limit", option=label)
        edge = edges[case[edges.index] == name].assign(part="limit", option=label, source="seen", condition="true edge")
        rows += [runs.assign(part="trial", option=label), predicted, edge.assign(value=edge["measured"])]
    return pd.concat(rows, ignore_index=True)


if __name__ == "__main__":
    raise SystemExit(main())
