"""Tables and figures of the runs of `python -m benchmarks.real_model --run`; measures nothing.

    python figures/real_model.py [--records FOLDER] [--out FOLDER]

Prints in Markdown what each method reaches, whether the zeroth-order part helps (accuracies less those of the other
method, paired by item and seed, at equal steps and at equal forwards), what it costs, and how the base model's
curvature compares with LoRA's: in Frobenius norm, per weight (||H||_F / sqrt(d)) and in spectral norm. Draws the
differences, and Fig. 1, 2 and 3 where their records are there. Runs that are not finished are left out.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.report import comparisons, draw, panels
from smoothlab.report.finetune import method_name
from smoothlab.report.numbers import number, rate
from smoothlab.stats.samples import paired, proportion
from smoothlab.stats.smoothness_table import ratio

ROOT = Path(__file__).resolve().parent.parent
RATES = {"hybrid": ("eta_x", "eta_y"), "zo": ("eta_x",), "fo-peft": ("eta_y",), "fo-full": ("eta_x",)}
FORWARDS = "-forwards"
"""In the names of runs that make as many evaluations of the loss as the first-order method."""
NAME = re.compile(r"(?P<task>sst2|copa|wic)-(?P<method>.+)-seed\d+")
FIGURES = {
    "methods": ("methods", "fig1-*-seed*"), "fig1_fo": ("fig1b", "fig1-fo-lora-seed*"),
    "fig1_hybrid": ("fig1b", "fig1-hybrid-lora-seed*"), "fig2": ("finetune", "fig2-*"), "fig3": ("finetune", "fig3-*"),
}  # fmt: skip
"""Kind of `smoothlab plot` and records of each figure."""


@dataclass
class Method:
    """Runs that differ in the seed alone.

    Attributes:
        name: as the paper calls it.
        config: settings of the first run.
        steps: training steps of a run.
        forwards: evaluations of the loss in these steps.
        tests: row of the test, by seed.
        speeds: steps a second between evaluations, of all runs.
    """

    name: str
    config: Mapping[str, Any]
    steps: int
    forwards: int
    tests: dict[int, pd.Series] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median seconds of a step; NaN without steps."""
        if not self.speeds:
            return float("nan")
        return 1 / float(np.median(self.speeds))

    @property
    def first(self) -> pd.Series:
        """Row of the first seed's test."""
        return self.tests[min(self.tests)]

    def answers(self, seeds: Sequence[int]) -> np.ndarray:
        """Right (1) and wrong (0) answers [seeds, items]."""
        return np.array([list(self.tests[seed]["right"]) for seed in seeds], dtype=int)


def methods_of(folder: Path) -> dict[str, dict[str, Method]]:
    """Finished runs of the table by task, then by the method's part of the name."""
    tasks: dict[str, dict[str, Method]] = defaultdict(dict)
    for path in sorted(folder.glob("*.jsonl")):
        match, task, method_part = NAME.fullmatch(path.stem), "sst2", path.stem
        if match is None and path.stem != "zero-shot":
            continue
        if match is not None:
            task, method_part = match["task"], match["method"]
        if path.stat().st_size == 0:  # a run that is being started
            continue
        table = records.load(path)
        tested = table[table["part"] == "test"]
        if tested.empty:
            continue
        config = table.attrs["headers"][str(path)]["config"]
        name = method_name(config)
        if method_part == "zero-shot":
            name = "zero-shot"
        last = table[table["part"] == "dev"].sort_values("step").iloc[-1]
        method = tasks[task].setdefault(method_part, Method(name, config, int(last["step"]), int(last["forwards"])))
        method.tests[int(config["seed"])] = tested.iloc[-1]
        method.speeds += table["steps_per_second"].dropna().astype(float).tolist()
    return tasks


def accuracies(methods: Mapping[str, Method]) -> list[str]:
    """Test accuracy of each method with its cost, in Markdown; the interval is that of one seed's items."""
    lines = ["| method | steps | forwards | seconds a step | rates | test accuracy | each seed |", "| --- " * 7 + "|"]
    for method in methods.values():
        rates = ", ".join(f"{name} {rate(float(method.first[name]))}" for name in RATES[method.config["method"]])
        cells = [method.name, f"{method.steps}", f"{method.forwards}", number(method.seconds), rates]
        if not method.steps:
            cells[3] = cells[4] = ""
        lines.append(f"| {' | '.join(cells)} | {_percent(method, 'accuracy')} |")
        # Scores less those after a prompt without content: what of an error is the words' prior.
        if pd.notna(method.first.get("calibrated_accuracy")):
            cells[0] += ", calibrated"
            lines.append(f"| {' | '.join(cells)} | {_percent(method, 'calibrated_accuracy')} |")
    test = next(iter(methods.values())).first
    lines.append(f"| the larger class, or chance | | | | | {100 * max(test['chance'], test['majority']):.1f} | |")
    return lines


def _percent(method: Method, column: str) -> str:
    """Mean over seeds in percent with the interval of the items, and each seed: two cells of a table."""
    tests = [method.tests[seed] for seed in sorted(method.tests)]
    mean, count = float(np.mean([test[column] for test in tests])), int(tests[0]["count"])
    limits = proportion(round(mean * count), count)
    seeds = ", ".join(f"{100 * test[column]:.1f}" for test in tests)
    return f"{100 * mean:.1f} ({100 * limits.low:.1f} to {100 * limits.high:.1f}) of {count} | {seeds}"


def differences(methods: Mapping[str, Method]) -> pd.DataFrame:
    """Accuracy of hybrid less that of its first-order method and of ZO-FT, and of ZO-FT less that of FO-LoRA.

    Returns:
        Columns what, budget ("steps" or "forwards"), measured, low, high (paired, 95 %), seeds, items, forwards and
        seconds (ratios: evaluations of the loss, and time of a step), verdict.
    """
    rows = []
    for name, a in methods.items():
        budget = "forwards" if name.endswith(FORWARDS) else "steps"
        plain = name.removesuffix(FORWARDS)
        references = []
        if plain.startswith("hybrid-"):
            references = [plain.replace("hybrid-", "fo-")]
        if plain == "hybrid-lora" and budget == "steps":  # a step of ZO-FT takes as many forwards as one of hybrid
            references.append("zo")
        if plain == "zo":
            references = ["fo-lora"]
        for reference in references:
            b = methods.get(reference)
            if b is None:
                continue
            seeds = sorted(set(a.tests) & set(b.tests))
            if not seeds or a.tests[seeds[0]]["count"] != b.tests[seeds[0]]["count"]:
                continue
            limits = paired(a.answers(seeds), b.answers(seeds))
            verdict = "ties"
            if limits.low > 0:
                verdict = "wins"
            elif limits.high < 0:
                verdict = "loses"
            rows.append({
                "what": f"{a.name} less {b.name}", "budget": budget, "measured": limits.value, "low": limits.low,
                "high": limits.high, "seeds": len(seeds), "items": int(a.tests[seeds[0]]["count"]),
                "steps": f"{a.steps} and {b.steps}", "forwards": a.forwards / b.forwards,
                "seconds": a.seconds / b.seconds, "verdict": verdict,
            })  # fmt: skip
    return pd.DataFrame(rows)


def answers(task: str, table: pd.DataFrame) -> list[str]:
    """The differences in Markdown, and what they say of the zeroth-order part."""
    if table.empty:
        return []
    lines = [f"| {task} | equal | steps | difference, points (95 %) | seeds x items | forwards | wall-clock a step | |",
             "| --- " * 8 + "|"]  # fmt: skip
    for row in table.to_dict("records"):
        points = f"{100 * row['measured']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        cost = f"{row['forwards']:.2f} x | {row['seconds']:.2f} x"
        cells = [row["what"], row["budget"], row["steps"], points, f"{row['seeds']} x {row['items']}", cost]
        lines.append(f"| {' | '.join(cells)} | {row['verdict']} |")
    lines.append("")
    helps = table[table["what"].str.startswith("Hybrid-") & ~table["what"].str.endswith("less ZO-FT")]
    for budget, rows in helps.groupby("budget", sort=False):
        counts = ", ".join(f"{verdict} {count}" for verdict, count in rows["verdict"].value_counts().items())
        lines.append(f"The zeroth-order part beside first-order PEFT at equal {budget} on {task}: {counts}.")
    if (table["seeds"] == 1).any():
        lines.append("An interval of one seed is that of its items: it says nothing of other seeds.")
    return lines


def curvature(df: pd.DataFrame) -> list[str]:
    """Base model over LoRA in three norms, at the median point and by how many intervals; then each run's own table."""
    lines = ["| base over LoRA | run | median of the points | range | above 1 | below 1 | points |", "| --- " * 7 + "|"]
    for path, run in df.groupby("path", sort=False):
        size = run.groupby("block")["dim"].first()
        if not {"base", "peft"} <= set(size.index):
            continue
        per_weight = float(np.sqrt(size["peft"] / size["base"]))
        for norm, quantity, factor in (("Frobenius norm", "frobenius", 1.0), ("per weight", "frobenius", per_weight),
                                       ("spectral norm", "spectral", 1.0)):  # fmt: skip
            table = ratio(run, quantity=quantity)
            if table.empty:
                continue
            low, value, high = (factor * table[name] for name in ("low", "value", "high"))
            cells = [norm, Path(path).stem, number(value.median()), f"{number(value.min())} to {number(value.max())}",
                     str(int((low > 1).sum())), str(int((high < 1).sum())), str(len(table))]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    # A block that a method leaves alone has no smoothness along the path.
    return [*lines, "", *comparisons.text(df[df["value"].notna()])]


def draw_differences(ax: Axes, tables: Mapping[str, pd.DataFrame]) -> None:
    """Differences of accuracy with their intervals, a line each; equal steps and equal forwards in two colors."""
    table = pd.concat([rows.assign(task=task) for task, rows in tables.items()], ignore_index=True)
    table = table.sort_values(["task", "what"], kind="stable").reset_index(drop=True)
    table = panels.scaled(table.assign(reference=np.nan, height=table.index, budget="equal " + table["budget"]), 100)
    ax.axvline(0, ls=":", lw=0.9, color=panels.GRAY)
    panels.panel(ax, table, "height", ["budget"], xlabel="difference of test accuracy (points)", horizontal=True)
    ax.set(ylim=(len(table) - 0.4, -0.6), yticks=table["height"])
    ax.set_yticklabels(table["task"] + ": " + table["what"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "benchmarks" / "results" / "real_model" / "full"
    parser.add_argument("--records", type=Path, default=default, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "out", help="folder (default: figures/out)")
    options = parser.parse_args(arguments)
    folder: Path = options.records
    try:
        tasks = methods_of(folder)
        fig1 = [path for path in sorted(folder.glob("fig1-*.jsonl")) if path.stat().st_size]
        if not tasks and not fig1:
            raise BadInput(f"no finished runs in {folder}; run python -m benchmarks.real_model --run first")
        tables = {}
        for task, methods in tasks.items():
            tables[task] = differences(methods)
            print("\n".join(["", f"{task}:", *accuracies(methods), "", *answers(task, tables[task])]))
        if fig1:
            print("\n".join(["", *curvature(records.load(fig1))]))
        drawn = {task: table for task, table in tables.items() if len(table)}
        if drawn:
            height = 0.6 + 0.25 * sum(map(len, drawn.values()))
            figure = panels.grid([[partial(draw_differences, tables=drawn)]], {}, heights=height)
            print(*panels.save(figure, options.out / "real_differences"))
        for name, (kind, pattern) in FIGURES.items():
            paths = [path for path in sorted(folder.glob(f"{pattern}.jsonl")) if path.stat().st_size]
            if paths:
                print(*panels.save(draw(kind, records.load(paths)), options.out / f"real_{name}"))
    except BadInput as error:
        print(f"real_model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
