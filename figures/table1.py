"""Tables 1 and 2 in Markdown from the records of benchmarks/table1.py; measures nothing.

    python figures/table1.py [--records FOLDER]

Prints accuracies and selected rates on each task beside the paper's for OPT-1.3b (another model, at a hundred times the
steps: no comparison of numbers), and where hybrid wins, ties or loses. figures/draw.py draws Fig. 2 and Fig. 3.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import comparisons
from smoothlab.report.finetune import kinds_of, pooled
from smoothlab.report.numbers import rate

ROOT = Path(__file__).resolve().parent.parent
PAPER = {  # Table 1, OPT-1.3b, percent: SST-2, COPA, WinoGrande
    "ZO-FT": (91.51, 78, 57.9), "FO-Prompt": (91.28, 74, 57.8), "Hybrid-Prompt": (91.74, 77, 59.9),
    "FO-LoRA": (92.2, 78, 59), "Hybrid-LoRA": (92.3, 78, 58.3), "FO-Prefix": (92.2, 77, 58.3),
    "Hybrid-Prefix": (91.7, 78, 60),
}  # fmt: skip
PAPER_2 = {  # Table 2, OPT-1.3b, as far as it is legible: eta_y, eta_x, steps, mu
    ("FO-Prompt", "sst2"): "1e-3; 20,000", ("Hybrid-Prompt", "sst2"): "1e-3, 1e-7; 20,000; mu 1e-5",
    ("Hybrid-Prompt", "copa"): "1e-3, 1e-7; 20,000", ("Hybrid-Prompt", "winogrande"): "1e-3, 1e-7; 14,000",
    ("Hybrid-LoRA", "sst2"): "1e-4, ?; 4,000", ("Hybrid-Prefix", "sst2"): "8e-3, 8e-?; 8,500; mu 1e-5",
    ("Hybrid-Prefix", "copa"): "2e-3, 1e-7; 11,500; mu 1e-5",
}  # fmt: skip
TASKS = {"sst2": "sst2", "adam": "sst2", "copa": "copa", "winogrande": "winogrande"}
"""Groups of records, and the task of each."""
ORDER = ("sst2", "copa", "winogrande")


def tables(folder: Path, group: str) -> list[str]:
    """Test accuracies of a group of runs (Table 1) and what was selected on dev (Table 2), in Markdown.

    Raises:
        BadInput: there are no records of it.
    """
    kinds = [kind for kind in kinds_of(records.load(str(folder / f"{group}-*.jsonl"))) if kind.test]
    task = TASKS[group]
    accuracies = [f"| {group} | test accuracy | interval of its items | each seed | paper, OPT-1.3b |",
                  "| --- " * 5 + "|"]  # fmt: skip
    settings = [f"| {group} | selected, each seed | step of the best dev accuracy | paper, OPT-1.3b |",
                "| --- " * 4 + "|"]  # fmt: skip
    for kind in kinds:
        mean, low, high = pooled(kind)
        tests = [kind.test[seed] for seed in sorted(kind.test)]
        seeds = ", ".join(f"{100 * test['accuracy']:.1f}" for test in tests)
        paper = PAPER[kind.name][ORDER.index(task)] if kind.name in PAPER else ""
        percent = f"{100 * mean:.1f} | {100 * low:.1f} to {100 * high:.1f}"
        accuracies.append(f"| {kind.name} | {percent} | {seeds} | {paper} |")
        steps = ", ".join(f"{test['steps_to_best']:.0f}" for test in tests)
        rates = "; ".join(selected(test, kind.config["method"]) for test in tests)
        settings.append(f"| {kind.name} | {rates} | {steps} | {PAPER_2.get((kind.name, task), '')} |")
    rows = [test for kind in kinds for test in kind.test.values()]
    if rows:
        chance = 100 * max(float(rows[0]["chance"]), float(rows[0]["majority"]))
        accuracies.append(f"| the larger class, or chance | {chance:.1f} | | | |")
    return [*accuracies, "", *settings]


def selected(test: Mapping[str, Any], method: str) -> str:
    """The rates and mu of a test row that its method uses."""
    rates_of = {"hybrid": ("eta_y", "eta_x", "mu"), "zo": ("eta_x", "mu"), "fo-peft": ("eta_y",), "fo-full": ("eta_x",)}
    return ", ".join(f"{name} {rate(test[name])}" for name in rates_of[method])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks" / "results" / "table1", metavar="FOLDER")
    folder = parser.parse_args(arguments).records
    try:
        for group in TASKS:
            if any(folder.glob(f"{group}-*.jsonl")):
                lines = comparisons.text(records.load(str(folder / f"{group}-*.jsonl")))
                print("\n".join(["", *tables(folder, group), "", *lines]))
        if not any(folder.glob("*.jsonl")):
            raise BadInput(f"no records in {folder}; run python -m benchmarks.table1 first")
    except BadInput as error:
        print(f"table1: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
