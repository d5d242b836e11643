"""What the scripts in figures/ do: load the records of one experiment, draw its figure, save it, print its reading."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import plots


def figure_script(
    script: str,
    pattern: str,
    draw: Callable[[pd.DataFrame], Figure],
    reading: Callable[[pd.DataFrame], Sequence[str]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run the command line of the script of one experiment; it measures nothing.

    Args:
        script: its file, named after the experiment, in a folder beside benchmarks/results.
        pattern: records in benchmarks/results that are drawn where none are named.
        draw: makes the figure of records.
        reading: sentences on them.
        arguments: of the command line; None: the process's.

    Returns:
        Exit status: 0, or 2 where records are missing or cannot be drawn, told in one line.
    """
    name, root = Path(script).stem, Path(script).resolve().parent.parent
    parser = argparse.ArgumentParser(description=f"Draw what `smoothlab {name}` measured.")
    parser.add_argument("--records", nargs="+", default=[str(root / "benchmarks" / "results" / pattern)],
                        metavar="PATTERN", help=f"record files (default: benchmarks/results/{pattern})")  # fmt: skip
    parser.add_argument("--out", type=Path, default=root / "figures" / "out", help="folder (default: figures/out)")
    given = parser.parse_args(arguments)
    try:
        table = records.load(given.records)
        files = plots.save(draw(table), given.out / name)
        print("\n  ".join([", ".join(map(str, files)), *reading(table)]))
    except BadInput as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0
