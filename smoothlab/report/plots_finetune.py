"""Curves of the records of ``smoothlab finetune``: training loss, dev accuracy and test accuracy of several runs.

Fig. 2 is one small rate, one large rate and two rates; Fig. 3 is hybrid, first-order PEFT and zeroth-order. Runs that
differ in the seed alone are one line, their mean, with each run beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smoothlab.errors import BadInput
from smoothlab.report.axes import step_axis
from smoothlab.report.plots import COLORS, STYLE, figure
from smoothlab.stats.samples import proportion

GRAY = "#7F7F7F"
NEEDED = ("part", "trial", "step", "train_loss", "accuracy", "low", "high", "eta_x", "eta_y")
SEEDS = ("seed", "checkpoint", "save", "tensorboard", "data_dir", "device")
"""Settings that do not make another kind of run."""
LATER = {"head": "auto", "template": "{sentence} It was", "verbalizers": []}
"""Settings that the first records lack, and what these were made at."""
ETA = ("eta_x", "eta_y")
FAINT = 0.13


@dataclass
class Kind:
    """Runs that differ in the seed alone.

    Attributes:
        name: as the paper calls the method; with "classifier" where the model was one.
        rates: the rates that were selected, or given, as text; different ones of several seeds are listed.
        config: of the first run.
        dev: rows of the selected trial of each run, by seed.
        test: the test row of each run that has one, by seed.
        stopped: what was said of trials that diverged.
    """

    name: str
    config: Mapping[str, Any]
    dev: dict[int, pd.DataFrame] = field(default_factory=dict)
    test: dict[int, pd.Series] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)

    @property
    def rates(self) -> str:
        """Rates of the selected trials."""
        method = self.config["method"]
        told = []
        for rows in self.dev.values():
            x, y = (rate(float(rows[name].iloc[0])) for name in ETA)
            if method == "hybrid":
                told.append(f"one rate {x}" if x == y else f"eta_x {x}, eta_y {y}")
            else:
                told.append(f"eta_y {y}" if method == "fo-peft" else f"eta_x {x}")
        return " or ".join(dict.fromkeys(told))

    def among(self, found: "list[Kind]") -> str:
        """Its name, or its rates where another kind has the same name."""
        return self.name if sum(kind.name == self.name for kind in found) == 1 else self.rates


def kinds(df: pd.DataFrame) -> list[Kind]:
    """The runs by what they are, in the order of the records.

    Raises:
        BadInput: the records are not those of ``smoothlab finetune``, are of several models or tasks, or two runs of a
            kind have the same seed.
    """
    missing = [name for name in NEEDED if name not in df.columns]
    if missing:
        raise BadInput(f"these records lack {', '.join(missing)}: give records of `smoothlab finetune`")
    found: dict[str, Kind] = {}
    for path, rows in df.groupby("path", sort=False):
        config = {**LATER, **df.attrs["headers"][path]["config"]}
        key = str(sorted((name, str(value)) for name, value in config.items() if name not in SEEDS))
        kind = found.setdefault(key, Kind(called(config), config))
        if (seed := int(config["seed"])) in kind.dev:
            raise BadInput(f"{path}: there is another run of the same settings and seed {seed}; leave one out")
        kind.dev[seed] = _selected(rows)
        test = rows[rows["part"] == "test"]
        if len(test):
            kind.test[seed] = test.iloc[-1]
        if "why" in rows:
            kind.stopped += [str(why) for why in rows.loc[rows["part"] == "stopped", "why"]]
    for kind in found.values():
        if "classifier" in (kind.config["head"], *(test.get("head") for test in kind.test.values())):
            kind.name += " classifier"
    for name in ("model", "data"):
        several = sorted({str(kind.config[name]) for kind in found.values()})
        if len(several) > 1:
            raise BadInput(f"these runs have --{name} {' and '.join(several)}: draw those of one at a time")
    return list(found.values())


def rate(value: float) -> str:
    """A learning rate as it is written by hand: 0.002, 3e-4."""
    if value == 0 or value >= 1e-3:
        return f"{value:.3g}"
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def called(config: Mapping[str, Any]) -> str:
    """The paper's name of a method: Hybrid-LoRA, FO-Prompt, ZO-FT."""
    method, peft = config["method"], config["peft"]
    if method in ("zo", "fo-full"):
        return "ZO-FT" if method == "zo" else "FO-FT"
    module = {"auto": "LoRA", "lora": "LoRA", "prompt": "Prompt", "prefix": "Prefix"}.get(peft, peft)
    return f"{'Hybrid' if method == 'hybrid' else 'FO'}-{module}"


def _selected(rows: pd.DataFrame) -> pd.DataFrame:
    """Dev rows of the trial whose weights were tested, or are the best so far."""
    dev = rows[rows["part"] == "dev"]
    if dev.empty:
        raise BadInput(f"{rows['path'].iloc[0]} holds no evaluation yet; wait for the run, or start it again")
    test = rows[rows["part"] == "test"]
    trial = (test["trial"] if len(test) else dev.sort_values("accuracy")["trial"]).iloc[-1]
    return dev[dev["trial"] == trial].sort_values("step")


def training_loss(ax: Axes, found: list[Kind]) -> None:
    """Mean training loss of the steps since the evaluation before."""
    for color, kind in zip(COLORS, found, strict=False):
        _lines(ax, kind, "train_loss", color)
    ax.set(xlabel="step", ylabel="training loss")
    step_axis(ax, _steps(found))


def dev_accuracy(ax: Axes, found: list[Kind]) -> None:
    """Accuracy on dev; a band is the 95 % interval of a single run, a point the evaluation that was selected."""
    for color, kind in zip(COLORS, found, strict=False):
        _lines(ax, kind, "accuracy", color)
        if len(kind.dev) == 1:
            rows = next(iter(kind.dev.values()))
            ax.fill_between(rows["step"], 100 * rows["low"], 100 * rows["high"], color=color, alpha=FAINT, lw=0)
        for seed, test in kind.test.items():
            rows = kind.dev[seed]
            at = rows[rows["step"] == test["step"]]
            ax.plot(at["step"], 100 * at["accuracy"], "o", ms=3.5, color=color, mec="white", mew=0.6, zorder=4)
    ax.set(xlabel="step", ylabel="dev accuracy (%)")
    step_axis(ax, _steps(found))


def accuracy_on_test(ax: Axes, found: list[Kind]) -> None:
    """Accuracy on test, every seed a point; bars are 95 % intervals of the items, and chance is dotted."""
    chance = 0.0
    for place, (color, kind) in enumerate(zip(COLORS, found, strict=False)):
        seeds = sorted(kind.test)
        spread = 0.5 / max(len(seeds), 1)
        if not seeds:
            told = "stopped before a test" if kind.stopped else "not tested"
            ax.text(0.03, place, told, transform=ax.get_yaxis_transform(), fontsize=7, color=color, va="center")
        for n, seed in enumerate(seeds):
            row = kind.test[seed]
            y = place + (n - (len(seeds) - 1) / 2) * spread
            ax.hlines(y, 100 * row["low"], 100 * row["high"], color=color, lw=0.9)
            ax.plot(100 * row["accuracy"], y, "o", ms=3.5, color=color)
            chance = max(chance, float(row.get("chance", 0.0)), float(row.get("majority", 0.0)))
    if chance:
        ax.axvline(100 * chance, ls=":", lw=0.9, color=GRAY)
        ax.text(100 * chance, -0.6, " larger class", fontsize=7, color=GRAY, va="center")
    ax.set(ylim=(len(found) - 0.4, -0.8), xlabel="test accuracy (%)", yticks=range(len(found)))
    ax.set_yticklabels([_mathtext(kind.among(found).replace(", ", "\n")) for kind in found])


def finetune_figure(df: pd.DataFrame) -> Figure:
    """Training loss, dev accuracy and test accuracy of all runs.

    Raises:
        BadInput: see `kinds`; or more kinds of runs than colors.
    """
    found = kinds(df)
    if len(found) > len(COLORS):
        raise BadInput(f"{len(found)} kinds of runs in one figure: draw at most {len(COLORS)} at a time")
    lines = -(-len(found) // 2)
    fig = figure(7.0, 2.5 + 0.16 * lines)
    with matplotlib.rc_context(STYLE):
        tested = any(kind.test for kind in found)
        axes = fig.subplots(1, 3 if tested else 2, squeeze=False)[0]
        training_loss(axes[0], found)
        dev_accuracy(axes[1], found)
        if tested:
            accuracy_on_test(axes[2], found)
        named = {line.get_label(): line for line in axes[0].get_lines() if not line.get_label().startswith("_")}
        fig.legend(
            named.values(), named.keys(), loc="outside upper left", ncols=min(2, len(named)), frameon=False,
            handlelength=1.6, borderaxespad=0.1,
        )  # fmt: skip
    return fig


def pooled(kind: Kind) -> tuple[float, float, float]:
    """Mean test accuracy over seeds with the 95 % interval (Clopper and Pearson) of the items of one seed's test."""
    rows = list(kind.test.values())
    mean = float(np.mean([row["accuracy"] for row in rows]))
    count = int(rows[0]["count"])
    _, low, high = proportion(round(mean * count), count)
    return mean, low, high


def _lines(ax: Axes, kind: Kind, column: str, color: str) -> None:
    """Each run faintly, and their mean over the steps that all have."""
    scale = 100 if column == "accuracy" else 1
    wide = pd.DataFrame({seed: rows.set_index("step")[column] for seed, rows in kind.dev.items()}).astype(float) * scale
    if len(kind.dev) > 1:
        for seed in wide:
            own = wide[seed].dropna()
            ax.plot(own.index, own, "-", lw=0.5, color=color, alpha=0.5)
        wide = wide.dropna()
    mean = wide.mean(axis=1).dropna()
    ax.plot(mean.index, mean, "-", lw=1.3, color=color, label=_mathtext(f"{kind.name}, {kind.rates}"))


def _mathtext(text: str) -> str:
    return text.replace("eta_x", r"$\eta_x$").replace("eta_y", r"$\eta_y$")


def _steps(found: list[Kind]) -> pd.Series:
    return pd.concat([rows["step"] for kind in found for rows in kind.dev.values()])
