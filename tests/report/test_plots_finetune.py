"""Figures and sentences of fine-tuning runs: what is drawn and said is what the records hold."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.report.plots_finetune import finetune_figure, kinds, rate
from smoothlab.report.sentences_finetune import reading
from smoothlab.stats.samples import paired

BASE = Finetune(data="sst2", steps=40, eval_every=10, eta_x=1e-4, eta_y=0.1)
ITEMS = 200


def write(out: Path, run: Finetune, level: float, *, test: bool = True, stopped: bool = False) -> Path:
    """Records as `smoothlab finetune` writes them, with answers that are right with probability `level`."""
    rng = np.random.default_rng([run.seed, int(1000 * level)])
    writer = records.Writer(out, "finetune", asdict(run), {})
    rates = {"trial": 1, "eta_x": run.eta_x, "eta_y": run.eta_y, "mu": run.mu}
    if stopped:
        writer.write({"part": "stopped", **rates, "trial": 0, "step": 3, "why": "the loss is nan: lower --eta-x (3)"})
    for step in range(0, run.steps + 1, run.eval_every):
        right = int(100 * (0.5 + (level - 0.5) * step / run.steps))
        low, high = stats.binomtest(right, 100).proportion_ci(0.95)
        loss = None if step == 0 else 1 - level * step / run.steps
        writer.write({"part": "dev", **rates, "step": step, "train_loss": loss, "accuracy": right / 100, "low": low,
                      "high": high, "correct": right, "count": 100})  # fmt: skip
    if test:
        answers = (rng.random(ITEMS) < level).astype(int)
        right = int(answers.sum())
        low, high = stats.binomtest(right, ITEMS).proportion_ci(0.95)
        writer.write({"part": "test", **rates, "step": run.steps, "steps_to_best": 30, "accuracy": right / ITEMS,
                      "low": low, "high": high, "correct": right, "count": ITEMS, "chance": 0.5, "majority": 0.51,
                      "served": "train and dev: a; test: b", "right": "".join(map(str, answers))})  # fmt: skip
        writer.end()
    return out


@pytest.fixture
def figure_3(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(3):
        for method, level in (("hybrid", 0.9), ("fo-peft", 0.8), ("zo", 0.52)):
            run = replace(BASE, method=method, seed=seed)  # type: ignore[arg-type]
            paths.append(write(tmp_path / f"{method}{seed}.jsonl", run, level, stopped=method == "zo" and seed == 1))
    return paths


def test_figure_3_has_a_mean_line_a_method_and_a_point_a_seed(figure_3: list[Path]) -> None:
    table = records.load(figure_3)
    loss, dev, test = finetune_figure(table).axes
    named = [line for line in loss.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label() for line in named] == [
        r"Hybrid-LoRA, $\eta_x$ 1e-4, $\eta_y$ 0.1", r"FO-LoRA, $\eta_y$ 0.1", r"ZO-FT, $\eta_x$ 1e-4",
    ]  # fmt: skip
    mine = table[(table["part"] == "dev") & table["path"].str.contains("hybrid") & (table["step"] > 0)]
    assert np.allclose(named[0].get_ydata(), mine.groupby("step")["train_loss"].mean())
    lines = [line for line in dev.get_lines() if len(line.get_xdata()) == 5]
    assert len(lines) == 3 * (3 + 1) and max(line.get_ydata().max() for line in lines) == 90
    points = sorted(line.get_xdata()[0] for line in test.get_lines() if line.get_marker() == "o")
    assert points == sorted(100 * table.loc[table["part"] == "test", "accuracy"])
    assert [label.get_text() for label in test.get_yticklabels()] == ["Hybrid-LoRA", "FO-LoRA", "ZO-FT"]


def test_figure_2_tells_the_runs_apart_by_their_rates(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "small", replace(BASE, eta_x=1e-4, eta_y=1e-4), 0.55),
        write(tmp_path / "large", replace(BASE, eta_x=0.1, eta_y=0.1), 0.5),
        write(tmp_path / "two", BASE, 0.9, test=False),
    ]
    table = records.load(paths)
    loss, dev, test = finetune_figure(table).axes
    assert [t.get_text() for t in test.get_yticklabels()] == [
        "one rate 1e-4", "one rate 0.1", "$\\eta_x$ 1e-4\n$\\eta_y$ 0.1",
    ]  # fmt: skip
    assert len(dev.collections) == 3  # the bands
    assert ["not tested"] == [t.get_text() for t in test.texts if t.get_position()[1] == 2]
    told = reading(table)
    assert any(
        line.startswith("Hybrid-LoRA (eta_x 1e-4, eta_y 0.1): not tested yet; dev accuracy 90.0 %") for line in told
    )
    assert sum("paired over 200 items, one seed" in line for line in told) == 1


@pytest.mark.parametrize(
    ("value", "told"), [(0.0, "0"), (10.0, "10"), (1e-3, "0.001"), (3e-4, "3e-4"), (5.2e-4, "5.2e-4"), (1e-6, "1e-6")]
)
def test_rates_are_written_as_by_hand(value: float, told: str) -> None:
    assert rate(value) == told


def test_classifiers_are_named_and_records_of_before_the_option_are_of_the_same_kind(tmp_path: Path) -> None:
    """What --head auto chose stands in the row of the test; the header of an older file has no such option."""

    def edited(path: Path, old: str, new: str) -> Path:
        before = re.sub(r', "(row|rows)": \d+|, "crc32": "\w+"', "", path.read_text())  # as files of before are
        path.write_text(before.replace(old, new))
        assert path.read_text() != before
        return path

    auto = edited(write(tmp_path / "a", BASE, 0.9), '"count": 200,', '"count": 200, "head": "classifier",')
    given = write(tmp_path / "b", replace(BASE, head="classifier", method="zo"), 0.6, test=False)
    lm = write(tmp_path / "c", replace(BASE, head="lm"), 0.7)
    assert [kind.name for kind in kinds(records.load([auto, given, lm]))] == [
        "Hybrid-LoRA classifier", "ZO-FT classifier", "Hybrid-LoRA",
    ]  # fmt: skip
    new = write(tmp_path / "d", replace(BASE, seed=1), 0.8)
    old = edited(write(tmp_path / "e", BASE, 0.8), '"head": "auto", ', "")
    old = edited(old, '"template": "{sentence} It was", "verbalizers": [], ', "")
    (kind,) = kinds(records.load([old, new]))
    assert kind.name == "Hybrid-LoRA" and sorted(kind.dev) == [0, 1]


def test_the_reading_says_who_wins_and_what_is_no_better_than_guessing(figure_3: list[Path]) -> None:
    told = reading(records.load(figure_3))
    text = "\n".join(told)
    assert "Hybrid-LoRA wins against FO-LoRA" in text and "Hybrid-LoRA wins against ZO-FT" in text
    assert "FO-LoRA wins against ZO-FT" not in text  # hybrid is what is compared
    zo = next(line for line in told if line.startswith("ZO-FT (eta_x 1e-4): 5"))
    assert zo.count("not above the larger class (51.0 %)") == 1
    assert "a trial was stopped, the loss is nan: lower --eta-x (3)." in text
    assert "Train and dev: a; test: b." in told


def test_equal_methods_tie(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a", BASE, 0.8), write(tmp_path / "b", replace(BASE, method="fo-peft"), 0.8)]
    assert any("Hybrid-LoRA ties against FO-LoRA: +0.0 points" in line for line in reading(records.load(paths)))


def test_records_that_are_not_comparable_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", BASE, 0.8), write(tmp_path / "b", replace(BASE, data="copa"), 0.8)
    with pytest.raises(BadInput, match="have --data copa and sst2: draw those of one at a time"):
        kinds(records.load([a, b]))
    c = write(tmp_path / "c", replace(BASE, checkpoint=Path("x")), 0.7)
    with pytest.raises(BadInput, match="another run of the same settings and seed 0"):
        kinds(records.load([a, c]))
    other = tmp_path / "other"
    writer = records.Writer(other, "quadratic", {}, {})
    writer.write({"part": "rates"})
    with pytest.raises(BadInput, match="give records of `smoothlab finetune`"):
        finetune_figure(records.load(other))


@pytest.mark.parametrize(("seeds", "items", "spread"), [(1, 100, 0.0), (1, 872, 0.0), (3, 100, 0.3), (3, 872, 0.1)])
def test_the_paired_interval_covers(seeds: int, items: int, spread: float) -> None:
    """Items of differing difficulty, seeds of differing luck, answers of both methods alike: 95 % within 3 sigma."""
    rng = np.random.default_rng(0)
    runs, shift = 1000, 0.3

    def answers(difficulty: np.ndarray, coins: np.ndarray, ability: np.ndarray) -> np.ndarray:
        return coins < 1 / (1 + np.exp(-(ability + difficulty)))

    u = rng.normal(0.5, 1.5, 200_000)
    luck = rng.normal(0, spread, (2, len(u)))
    truth = np.mean(1 / (1 + np.exp(-(shift + luck[0] + u))) - 1 / (1 + np.exp(-(luck[1] + u))))
    inside = 0
    for _ in range(runs):
        u, e = rng.normal(0.5, 1.5, items), rng.normal(0, spread, (2, seeds, 1))
        coins, own = rng.random((seeds, items)), rng.random((seeds, items))
        other = np.where(rng.random((seeds, items)) < 0.7, coins, own)
        found = paired(answers(u, coins, shift + e[0]), answers(u, other, e[1]))
        inside += found.low <= truth <= found.high
    assert inside / runs > 0.95 - 3 * (0.95 * 0.05 / runs) ** 0.5


def test_few_disagreements_leave_an_interval() -> None:
    same = np.ones((1, 50))
    found = paired(same, same)
    assert found.value == 0 and found.low < -0.03 and found.high > 0.03
