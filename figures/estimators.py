"""The estimators' figure from the records of `smoothlab estimators`; measures nothing.

    python figures/estimators.py [--records PATTERN ...] [--out FOLDER]

Draws bias, variance, rounding and cost in one figure, and prints its reading.
"""

import argparse
import sys
from pathlib import Path

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.pages import plots, plots_estimators, sentences_estimators

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Draw the figure; 2 where records are missing or cannot be drawn."""
    parser = argparse.ArgumentParser(description="Draw what `smoothlab estimators` measured.")
    default = str(ROOT / "benchmarks" / "results" / "estimators_*.jsonl")
    parser.add_argument("--records", nargs="+", default=[default], metavar="PATTERN",
                        help="record files (default: benchmarks/results/estimators_*.jsonl)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "out", help="folder (default: figures/out)")
    given = parser.parse_args(arguments)
    try:
        table = records.load(given.records)
        files = plots.save(plots_estimators.estimators_figure(table), given.out / "estimators")
        print("\n  ".join([", ".join(map(str, files)), *sentences_estimators.reading(table)]))
    except BadInput as error:
        print(f"estimators: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
