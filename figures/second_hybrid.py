"""BOFT, LoRA-GA, their mix and others: test accuracy and curvature of the module, from records; measures nothing.

    python figures/second_hybrid.py [--records FOLDER] [--out FILE.png]

Draws the accuracies of each case of `python -m benchmarks.second_hybrid`, mean over seeds, with the interval of the
items of one seed's test, and the Frobenius norm of each module's Hessian before the first step and, where a run was
measured, at its end. Prints the accuracies of all pairs of methods less one another, paired by item and seed.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from smoothlab import records
from smoothlab.claims.second_hybrid import answers
from smoothlab.report import panels
from smoothlab.stats.samples import paired, proportion

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("lora", "dora", "lora-ga", "boft", "boft-ga", "unitary")
CASES = ("micro on builtin", "micro on sst2", "smollm2 on sst2", "smollm2 on copa", "smollm2 on sums")
COLORS = dict(zip(CASES, panels.COLORS, strict=False))
NAMES = ("LoRA", "DoRA", "LoRA-GA", "BOFT", "BOFT + GA", "unitary")


def accuracies(runs: Sequence[Path]) -> pd.DataFrame:
    """A row for each data set and method: mean accuracy over seeds with the interval of one seed's items."""
    rows = []
    for data, methods in sorted(answers(runs).items()):
        for method, seeds in methods.items():
            correct = [letters.count("1") for letters in seeds.values()]
            items = len(next(iter(seeds.values())))
            limits = proportion(round(float(np.mean(correct))), items)
            rows.append({
                "data": data, "method": METHODS.index(method), "measured": 100 * float(np.mean(correct)) / items,
                "low": 100 * limits.low, "high": 100 * limits.high, "seeds": len(correct),
            })  # fmt: skip
    return pd.DataFrame(rows).assign(reference=np.nan)


def norms(files: Sequence[Path]) -> pd.DataFrame:
    """A row for each measured minibatch: ||H_y||_F at the first and at the last point of its record."""
    rows = []
    for path in files:
        table, config = records.load(path), records.header(path)["config"]
        table = table[(table["block"] == "peft") & (table["wrt"] == "peft") & (table["quantity"] == "frobenius")]
        data, ends = f"{Path(config['model']).name} on {Path(config['data']).stem}", {"start": table.iloc[0]}
        if table["step"].nunique() > 1:
            ends["end"] = table.iloc[-1]
        for when, row in ends.items():
            rows.append({
                "when": f"{data}, {when}", "data": data, "hollow": when == "start",
                "method": METHODS.index(config["peft"]),
                "measured": row["value"], "low": row["low"], "high": row["high"],
            })  # fmt: skip
    return pd.DataFrame(rows).assign(reference=np.nan)


def differences(runs: Sequence[Path]) -> Iterator[str]:
    """Rows of Markdown: accuracies of all pairs of methods less one another, paired by item and seed."""
    yield "| data | methods | difference, points (95 %) | seeds |"
    yield "| --- | --- | --- | --- |"
    for data, methods in answers(runs).items():
        for a, b in combinations([method for method in METHODS if method in methods], 2):
            seeds = sorted(set(methods[a]) & set(methods[b]))
            if seeds:
                correct = [np.array([list(methods[name][seed]) for seed in seeds], dtype=int) for name in (a, b)]
                limits = paired(*correct)
                points = f"{100 * limits.value:+.1f} ({100 * limits.low:+.1f} to {100 * limits.high:+.1f})"
                yield f"| {data} | {a} less {b} | {points} | {len(seeds)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what is on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks/results/second_hybrid", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "second_hybrid.png", metavar="FILE")
    options = parser.parse_args(arguments)
    files = [path for path in sorted(options.records.glob("*.jsonl")) if path.stat().st_size]
    kinds = {path: records.header(path)["experiment"] for path in files}
    runs = [path for path, kind in kinds.items() if kind == "finetune"]
    print("\n".join(differences(runs)))
    drawn = [
        partial(_panel, rows=accuracies(runs), ylabel="test accuracy (%)"),
        partial(_panel, rows=norms([path for path, kind in kinds.items() if kind == "smoothness"]),
                ylabel=r"Frobenius norm of the module's Hessian", scale="y"),
    ]  # fmt: skip
    meanings = {"hollow": "before the first step, elsewhere at the end"}
    for path in panels.save(
        panels.grid([drawn], meanings, heights=3.6), options.out.with_suffix(""), (options.out.suffix[1:],)
    ):
        print(path)
    return 0


def _panel(ax: Axes, rows: pd.DataFrame, **labels: Any) -> None:
    # a data set has one color in both panels
    panels.panel(ax, rows, "method", ["data"], colors=COLORS, dodge=0.12, columns=2, **labels)
    ax.set_xticks(range(len(METHODS)), NAMES, rotation=30, ha="right")
    for place in set(range(len(METHODS))) - set(rows["method"]):
        ax.text(place, 0.5, "not measured", transform=ax.get_xaxis_transform(), rotation=90, ha="center", va="center")
    ax.set_xlim(-0.5, len(METHODS) - 0.5)


if __name__ == "__main__":
    main()
