"""The figures of the repository from the records in benchmarks/results; measures nothing.

    python figures/draw.py [NAME ...] [--out FOLDER]

Without a name all are drawn: NAME.png and NAME.pdf, and what was measured beside its reference is printed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import comparisons, draw, panels

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {
    "fig1a": ("fig1a", "fig1a_*.jsonl"), "fig1b": ("fig1b", "fig1b_*.jsonl"), "path": ("path", "fig1b_*.jsonl"),
    "methods": ("methods", "methods/*.jsonl"),
    "estimators": ("estimators", "estimators_*.jsonl"), "quadratic": ("quadratic", "quadratic.jsonl"),
    "rates": ("rates", "rates.jsonl"), "rates_curved": ("rates", "rates_curved.jsonl"),
    "fig2": ("finetune", "table1/fig2-*.jsonl"),
    "fig3": ("finetune", "table1/fig3-*.jsonl"),
}  # fmt: skip
"""Kind of `smoothlab plot` and records of each figure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figures; 2 where records are missing or cannot be drawn, after drawing what can be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "out", help="folder (default: figures/out)")
    options = parser.parse_args(arguments)
    status = 0
    for name in options.names or FIGURES:
        try:
            if name not in FIGURES:
                raise BadInput(f"no such figure: name some of {', '.join(FIGURES)}")
            kind, pattern = FIGURES[name]
            table = records.load(options.records / pattern)
            files = panels.save(draw(kind, table), options.out / name)
            print("\n  ".join([", ".join(map(str, files)), *comparisons.text(table)]))
        except BadInput as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
