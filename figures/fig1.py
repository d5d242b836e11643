"""Figure 1 of the paper from the records of the smoothness benchmark; measures nothing.

    python figures/fig1.py [--records-1a PATTERN] [--records-1b PATTERN] [--out FOLDER]

Runs that differ in seed or protocol alone share one figure. Where there are several models, tasks or settings, each
gets its own, named after its first file: fig1a_opt125m.jsonl becomes fig1a_opt125m.png and .pdf, one alone fig1a.png.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import plots, sentences

ROOT = Path(__file__).resolve().parent.parent
SHARED = ("seed", "protocol", "out", "overwrite")  # runs may differ in these and still belong in one figure
FIGURES = {"fig1a": (plots.fig1a, sentences.fig1a, 2.9), "fig1b": (plots.fig1b, sentences.fig1b, 3.9)}


def groups(df: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    """Runs of equal settings together, under the name of their figure."""
    alike: dict[str, list[str]] = {}
    for path in df["path"].drop_duplicates():
        config = df.attrs["headers"][path].get("config", {})
        kept = {key: value for key, value in config.items() if key not in SHARED}
        alike.setdefault(json.dumps(kept, sort_keys=True), []).append(path)
    named = {name if len(alike) == 1 else Path(paths[0]).stem: paths for paths in alike.values()}
    return {stem: df[df["path"].isin(paths)] for stem, paths in named.items()}


def draw(name: str, pattern: str, out: Path) -> list[str]:
    """Draw and save one figure a group of runs; returns the lines to print."""
    plot, read, height = FIGURES[name]
    told = []
    for stem, df in groups(records.load(pattern), name).items():
        fig = plots.figure(7.0, height)
        plot(fig, df)
        files = plots.save(fig, out / stem)
        told += [f"{', '.join(map(str, files))}", *(f"  {line}" for line in read(df))]
    return told


def main(arguments: list[str] | None = None) -> int:
    """Draw both figures; 2 where records are missing or cannot be drawn, after drawing what can be."""
    parser = argparse.ArgumentParser(description="Draw Figure 1 from records of `smoothlab smoothness`.")
    for name in FIGURES:
        default = str(ROOT / "benchmarks" / "results" / f"{name}_*.jsonl")
        parser.add_argument(f"--records-{name[3:]}", dest=name, default=default, metavar="PATTERN",
                            help=f"record files of {name} (default: benchmarks/results/{name}_*.jsonl)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "out", help="folder (default: figures/out)")
    given = parser.parse_args(arguments)
    status = 0
    for name in FIGURES:
        try:
            print("\n".join(draw(name, getattr(given, name), given.out)))
        except BadInput as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
