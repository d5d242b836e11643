"""The figure of Example 2.3 from the records of `smoothlab quadratic`; measures nothing.

    python figures/quadratic.py [--records PATTERN ...] [--out FOLDER]

Draws where one rate and two rates converge, how fast, and what zeroth order costs, and prints the verdicts.
"""

import argparse
import sys
from pathlib import Path

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.pages import plots, plots_quadratic, sentences_quadratic

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Draw the figure; 2 where records are missing or cannot be drawn."""
    parser = argparse.ArgumentParser(description="Draw what `smoothlab quadratic` measured.")
    default = str(ROOT / "benchmarks" / "results" / "quadratic.jsonl")
    parser.add_argument("--records", nargs="+", default=[default], metavar="PATTERN",
                        help="record files (default: benchmarks/results/quadratic.jsonl)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "out", help="folder (default: figures/out)")
    given = parser.parse_args(arguments)
    try:
        table = records.load(given.records)
        files = plots.save(plots_quadratic.quadratic_figure(table), given.out / "quadratic")
        print("\n  ".join([", ".join(map(str, files)), *sentences_quadratic.reading(table)]))
    except BadInput as error:
        print(f"quadratic: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
