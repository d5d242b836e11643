"""Figures of the records of ``smoothlab finetune``: training loss, and accuracy on dev and test, of several runs.

Runs on completions or texts have no accuracy: their loss on dev and test is drawn in its place.

Fig. 2 is one small rate, one large rate and two rates; Fig. 3 is hybrid, first-order PEFT and zeroth-order. Runs that
differ in the seed alone are one kind of run: one mean curve, with each run beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.numbers import rate
from smoothlab.report.panels import COLORS, GRAY, crowded, grid, panel, scaled, step_axis
from smoothlab.stats.samples import proportion

NEEDED = ("part", "trial", "step", "train_loss", "eta_x", "eta_y")
CHOICES = ("accuracy", "low", "high")
"""Columns of runs on choices; those on completions and texts have dev_loss alone."""
NOT_A_KIND = ("seed", "checkpoint", "save", "tensorboard", "data_dir", "device")
"""Settings that do not make another kind of run."""
ASKED = ("eta_x", "eta_y", "search")
"""Settings of the rates to try."""
SHIFT = 0.008  # of the last step, from one kind to the next: intervals stand side by side
WIDEST = 52
"""Characters of a legend as wide as a panel, those of symbols included."""
LATER = {"head": "auto", "template": "{sentence} It was", "verbalizers": [], "follow": 0}
"""Settings that the first records lack, and what these were made at."""


@dataclass
class Kind:
    """Runs that differ in the seed alone.

    Attributes:
        name: as the paper calls the method; with "classifier" where the model was one.
        config: settings of the first run.
        dev: rows of the selected trial of each run, by seed.
        test: test row of each run that has one, by seed.
        stopped: reasons of trials that diverged.
    """

    name: str
    config: Mapping[str, Any]
    dev: dict[int, pd.DataFrame] = field(default_factory=dict)
    test: dict[int, pd.Series] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)

    @cached_property
    def rates(self) -> str:
        """Learning rates of the selected trials; those of different seeds are listed."""
        texts = []
        for rows in self.dev.values():
            x, y = rate(float(rows["eta_x"].iloc[0])), rate(float(rows["eta_y"].iloc[0]))
            method = self.config["method"]
            text = {"hybrid": f"eta_x {x}, eta_y {y}", "fo-peft": f"eta_y {y}"}.get(method, f"eta_x {x}")
            if method == "hybrid" and x == y:
                text = f"one rate {x}"
            if self.config["follow"]:
                text += f" at first, set every {self.config['follow']} steps"
            texts.append(text)
        return " or ".join(dict.fromkeys(texts))

    def among(self, kinds: Sequence["Kind"]) -> str:
        """Its name; where another kind has the same name its rates, and the settings that these leave apart."""
        if any(kind is not self and kind.name == self.name for kind in kinds):
            return self._rates_among(kinds)
        return self.name

    def described(self, kinds: Sequence["Kind"]) -> str:
        """Its name with its rates, and with the settings that tell it from kinds of the same name and rates."""
        return f"{self.name} ({self._rates_among(kinds)})"

    def _rates_among(self, kinds: Sequence["Kind"]) -> str:
        """Rates, and of the settings in which kinds of the same name and rates differ as few as tell them apart."""
        same_rates = [kind for kind in kinds if (kind.name, kind.rates) == (self.name, self.rates)]
        table = pd.DataFrame([kind.config for kind in same_rates]).drop(columns=list(NOT_A_KIND), errors="ignore")
        table = table.astype(object).where(table.notna(), "not recorded").astype(str)
        table = table.loc[:, table.nunique() > 1]
        # settings that only some releases record, and the rates that were tried, are the last ones to be named
        recorded_late = [name in ASKED or bool((table[name] == "not recorded").any()) for name in table]
        names = [*table.columns[np.logical_not(recorded_late)], *table.columns[recorded_late]]
        distinguishing: list[str] = []
        distinct = 1  # kinds that `distinguishing` tells apart
        while names and distinct < len(same_rates):
            counts = [len(table[[*distinguishing, name]].drop_duplicates()) for name in names]
            distinct = max(counts)
            distinguishing.append(names.pop(counts.index(distinct)))
        own = table.iloc[[kind is self for kind in same_rates].index(True)]
        return ", ".join([self.rates, *(f"{'asked ' * (name in ASKED)}{name} {own[name]}" for name in distinguishing)])


def kinds_of(df: pd.DataFrame) -> list[Kind]:
    """The runs by what they are, in the order of the records.

    Raises:
        BadInput: the records are not those of ``smoothlab finetune``, are of several models or tasks, or two runs of a
            kind have the same seed.
    """
    needed = [*NEEDED]
    if not has_losses(df):
        needed += CHOICES
    missing = [name for name in needed if name not in df.columns]
    if missing:
        raise BadInput(f"these records lack {', '.join(missing)}: give records of `smoothlab finetune`")
    kinds: dict[str, Kind] = {}
    for path, rows in df.groupby("path", sort=False):
        config = {**LATER, **df.attrs["headers"][path]["config"]}
        settings = pd.Series(config, dtype=object).drop(list(NOT_A_KIND), errors="ignore").sort_index()
        kind = kinds.setdefault(settings.astype(str).to_json(), Kind(method_name(config), config))
        seed = int(config["seed"])
        if seed in kind.dev:
            raise BadInput(f"{path}: there is another run of the same settings and seed {seed}; leave one out")
        kind.dev[seed] = selected(rows)
        tested = rows[rows["part"] == "test"]
        if len(tested):
            kind.test[seed] = tested.iloc[-1]
        if "why" in rows:
            kind.stopped += list(rows.loc[rows["part"] == "stopped", "why"].astype(str))
    for kind in kinds.values():
        # what --head auto chose stands in the row of the test
        heads = pd.DataFrame(list(kind.test.values())).get("head", pd.Series(dtype=object))
        if "classifier" in (kind.config["head"], *heads):
            kind.name += " classifier"
    for name in ("model", "data"):
        values = sorted({str(kind.config[name]) for kind in kinds.values()})
        if len(values) > 1:
            raise BadInput(f"these runs have --{name} {' and '.join(values)}: draw those of one at a time")
    return list(kinds.values())


def has_losses(df: pd.DataFrame) -> bool:
    """Whether the runs are on completions or texts, of which the loss is reported and no accuracy."""
    return "accuracy" not in df.columns and "dev_loss" in df.columns


def method_name(config: Mapping[str, Any]) -> str:
    """The paper's name of a method: Hybrid-LoRA, FO-Prompt, ZO-FT."""
    names = {"auto": "LoRA", "lora": "LoRA", "prompt": "Prompt", "prefix": "Prefix"}
    module = names.get(config["peft"], config["peft"])
    methods = {"zo": "ZO-FT", "fo-full": "FO-FT", "hybrid": f"Hybrid-{module}"}
    return methods.get(config["method"], f"FO-{module}")


def selected(rows: pd.DataFrame) -> pd.DataFrame:
    """Dev rows of the trial whose weights were tested, or of the best one so far.

    Raises:
        BadInput: the run was not evaluated yet.
    """
    dev = rows[rows["part"] == "dev"]
    if dev.empty:
        raise BadInput(f"{rows['path'].iloc[0]} holds no evaluation yet; wait for the run, or start it again")
    if has_losses(rows):
        by_score = dev.sort_values("dev_loss", ascending=False)
    else:
        by_score = dev.sort_values("accuracy")
    # the trial that was tested comes last, and before a test the best one so far
    trials = pd.concat([by_score["trial"], rows.loc[rows["part"] == "test", "trial"]])
    return dev[dev["trial"] == trials.iloc[-1]].sort_values("step")


def pooled(kind: Kind) -> tuple[float, float, float]:
    """Mean test accuracy over seeds with the 95 % interval (Clopper-Pearson) of the items of one seed's test."""
    tests = list(kind.test.values())
    mean = float(pd.DataFrame(tests)["accuracy"].mean())
    count = int(tests[0]["count"])
    # seeds share the test items: more seeds make no more items
    limits = proportion(round(mean * count), count)
    return mean, limits.low, limits.high


def pooled_loss(kind: Kind) -> tuple[float, float, float]:
    """Mean test loss over seeds; its 95 % interval is the mean of theirs, which share their items."""
    tests = pd.DataFrame(list(kind.test.values())).reindex(columns=["loss", "low", "high"])
    loss, low, high = tests.astype(float).mean()
    return float(loss), float(low), float(high)


def table_of(kinds: Sequence[Kind], column: str) -> pd.DataFrame:
    """Rows of the dev evaluations for `panel`: each run, and where there are several seeds their mean."""
    parts = []
    for kind in kinds:
        runs = []
        for seed, dev in kind.dev.items():
            run = dev.reindex(columns=["step", "low", "high"])
            run = run.assign(measured=dev[column].astype(float), run=seed, hollow=False)
            if column != "accuracy":  # the interval of these rows is the accuracy's
                run[["low", "high"]] = np.nan
            if column != "train_loss" and seed in kind.test:
                run["hollow"] = dev["step"] == kind.test[seed]["step"]
            runs.append(run)
        parts.append(pd.concat(runs).assign(kind=kind.among(kinds), reference=np.nan))
        if len(runs) > 1:
            by_step = parts[-1].dropna(subset="measured").groupby(["step", "kind"])["measured"]
            # where a run has stopped, the mean of the others would jump
            mean = by_step.mean()[by_step.count() == len(runs)].reset_index()
            parts[-1] = mean.assign(low=np.nan, high=np.nan, reference=np.nan, run="mean", hollow=False)
    table = pd.concat(parts, ignore_index=True).dropna(subset="measured")
    if column == "accuracy":
        return scaled(table, 100)
    return table


def against_step(ax: Axes, kinds: Sequence[Kind], column: str, ylabel: str) -> None:
    """Training loss, dev accuracy or dev loss against the step; the mean over the steps that all seeds have."""
    table = table_of(kinds, column)
    # A kind without rows here keeps its color for the other panels.
    colors = {mathtext(kind.among(kinds)): color for kind, color in zip(kinds, COLORS, strict=False)}
    # a long name has a line for each setting, and two columns of names are as wide as a panel
    names = {name: name.replace(", ", "\n") if len(name) > WIDEST else name for name in colors}
    widest = max(len(line) for name in names.values() for line in name.split("\n"))
    dodge = 0.0
    if column == "accuracy" and not crowded(table["step"]):
        dodge = SHIFT * table["step"].max()
    panel(ax, table.assign(kind=table["kind"].map(mathtext)), "step", ["kind"], xlabel="step", ylabel=ylabel,
          dodge=dodge,
          joined=True, columns=2 if widest <= WIDEST // 2 else 1, colors=colors, names=names)  # fmt: skip
    step_axis(ax, table["step"])


def test_scores(ax: Axes, kinds: Sequence[Kind], column: str) -> None:
    """Accuracy or loss on test, a point a seed; bars are 95 % intervals of the items, and chance is dotted."""
    rows, colors, chance = [], {}, 0.0
    for line, kind in enumerate(kinds):
        name = kind.among(kinds)
        colors[name] = COLORS[line]
        if not kind.test:
            reason = "not tested"
            if kind.stopped:
                reason = "stopped before a test"
            ax.text(0.03, line, reason, transform=ax.get_yaxis_transform(), fontsize=7, va="center")
        for index, (_, test) in enumerate(sorted(kind.test.items())):
            height = line + (index - (len(kind.test) - 1) / 2) * 0.5 / len(kind.test)
            rows.append({"kind": name, "height": height, "reference": np.nan, "measured": test[column],
                         "low": test["low"], "high": test["high"]})  # fmt: skip
            chance = max(chance, float(test.get("chance", 0.0)), float(test.get("majority", 0.0)))
    if chance:
        ax.axvline(100 * chance, ls=":", lw=0.9, color=GRAY, label="larger class")
    table, xlabel = pd.DataFrame(rows), "test loss"
    if column == "accuracy":
        table, xlabel = scaled(table, 100), "test accuracy (%)"
    # the kinds are named at the axis, not in the legend
    panel(ax, table, "height", ["kind"], xlabel=xlabel, horizontal=True,
          colors=colors, names=dict.fromkeys(colors, "_kind"), columns=1)  # fmt: skip
    ax.set(ylim=(len(kinds) - 0.4, -0.6), yticks=range(len(kinds)))
    ax.set_yticklabels(map(mathtext, pd.Series(list(colors)).str.replace(", ", "\n")))


def figure(df: pd.DataFrame) -> Figure:
    """Training loss, and dev and test accuracy or loss, of all runs.

    Raises:
        BadInput: see `kinds_of`; or more kinds of runs than colors.
    """
    kinds = kinds_of(df)
    if len(kinds) > len(COLORS):
        raise BadInput(f"{len(kinds)} kinds of runs in one figure: draw at most {len(COLORS)} at a time")
    dev, test, ylabel = "accuracy", "accuracy", "dev accuracy (%)"
    if has_losses(df):
        dev, test, ylabel = "dev_loss", "loss", "dev loss"
    draws = [
        partial(against_step, kinds=kinds, column="train_loss", ylabel="training loss"),
        partial(against_step, kinds=kinds, column=dev, ylabel=ylabel),
    ]
    if (df["part"] == "test").any():
        draws.append(partial(test_scores, kinds=kinds, column=test))
    lines = sum(kind.among(kinds).count(", ") for kind in kinds)  # of names that are drawn below each other
    return grid([draws], {"hollow": "selected on dev"}, heights=2.6 + 0.1 * (len(kinds) + lines))


def mathtext(text: str) -> str:
    """Rates' names as symbols."""
    return text.replace("eta_x", r"$\eta_x$").replace("eta_y", r"$\eta_y$")
