"""The queue of `python -m benchmarks.real_model`: killed and resumed, listed, timed, and what it refuses."""

import os
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import real_model
from benchmarks.real_queue import Queue, forwards
from benchmarks.real_runs import PARTS, RATES, SIZES, Run, runs
from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.llm.checkpoints import Folder
from tests.experiments.command import Plant, dies, ended, tiny_model, write_sentences
from tests.experiments.test_finetune import rows_of

FIRST, SECOND = "sst2-fo-lora-seed0", "sst2-hybrid-lora-seed0"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """A search of eta_y, and a hybrid run that takes the selected one."""
    folder = tmp_path_factory.mktemp("tiny")
    model, data = str(tiny_model(folder / "model")), str(write_sentences(folder / "data.jsonl"))
    base = Finetune(
        model=model, data=data, train=24, dev=8, test=4, batch=4, parts=1, steps=4, eval_every=2, patience=0, mu=0.03
    )
    first = replace(base, method="fo-peft", peft="lora", search=("eta_y=0.01,0.1",))
    second = replace(base, method="hybrid", peft="lora", sides=1)
    return [Run(FIRST, "sst2", first), Run(SECOND, "sst2", second, {"eta_y": FIRST})]


def worked(queue: Queue, plant: Plant | None = None) -> int:
    """Exit status of a process that works the queue off, -9 if it was killed."""
    if child := os.fork():
        return ended(child)
    status = 1
    try:
        if plant is not None:
            plant()
        left, failed = queue.work(say=lambda line: None)
        status = 0 if not left and not failed else 3
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def test_a_killed_queue_goes_on_to_the_same_rows(tiny: list[Run], tmp_path: Path) -> None:
    import peft  # noqa: F401 - once for all processes

    whole, killed = Queue(tiny, tmp_path / "whole"), Queue(tiny, tmp_path / "killed")
    assert worked(whole) == 0
    assert worked(killed, dies(Folder, "put", 5)) == -9  # within the first run's second trial
    assert [killed.statuses()[run.name].state for run in tiny] == ["begun", "waiting"]
    assert worked(killed, dies(Folder, "keep", 6)) == -9  # within the second run
    assert [killed.statuses()[run.name].state for run in tiny] == ["done", "begun"]
    assert worked(killed) == 0
    for run in tiny:
        assert rows_of(killed.path(run)) == rows_of(whole.path(run)), run.name
    (first, second) = (whole.statuses()[run.name].test for run in tiny)
    assert first is not None and second is not None and second["eta_y"] == first["eta_y"] != tiny[1].experiment.eta_y
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())
    environment = records.header(whole.path(tiny[0]))["environment"]
    assert {"device", "threads", "cpu_capability", "packages"} <= set(environment)
    # A run that was continued has no time of its own; that of the other queue has, and nothing is ahead.
    assert killed.statuses()[SECOND].seconds is None and (whole.statuses()[SECOND].seconds or 0) > 0
    assert whole.lines()[-1].startswith("2 of 2 runs done, ") and "ahead" not in whole.lines()[-1]


@pytest.mark.check
def test_a_measured_run_is_worked_off_like_the_others(tiny: list[Run], tmp_path: Path) -> None:
    (run,) = [
        run for run in runs(SIZES["short"], model=tiny[0].experiment.model) if run.name == "fig1-hybrid-lora-seed0"
    ]
    small = replace(run.experiment, data=tiny[0].experiment.data, train=24, steps=2, points=2, batch=4, probes=2)
    queue = Queue([replace(run, experiment=small)], tmp_path)
    assert queue.work(say=lambda line: None) == ([], {})
    assert queue.lines()[-1].startswith("1 of 1 runs done, ")
    rows = records.load(queue.path(run))
    frobenius = rows[(rows["quantity"] == "frobenius") & (rows["block"] == rows["wrt"])]
    held = set(zip(frobenius["step"], frobenius["block"], frobenius["protocol"], strict=True))
    assert held >= {(step, block, "estimated") for step in (0, 2) for block in ("base", "peft")}
    assert set(rows["protocol"].dropna()) == {"estimated", "paper"}


def finished(queue: Queue, number: int, seconds: float | None, test: dict[str, Any], **changed: Any) -> None:
    """Write a record file as a run leaves it, with the seconds that a clock would have told."""
    run = queue.every[number]
    path = queue.path(run)
    experiment = replace(run.experiment, checkpoint=path / "kept", **changed)
    writer = records.Writer(path, "finetune", asdict(experiment), {}, overwrite=True)
    writer._begun -= seconds or 0.0
    writer.write({"part": "test", **test})
    writer.end()


def test_what_is_ahead_is_told_by_timed_runs_of_the_same_method(tiny: list[Run], tmp_path: Path) -> None:
    more = [*tiny, Run("sst2-fo-lora-seed1", "sst2", replace(tiny[0].experiment, search=(), seed=1), {"eta_y": FIRST})]
    queue = Queue(more, tmp_path)
    assert "3 runs of unknown duration" in queue.lines()[-1]
    finished(queue, 0, 74.0, {"eta_y": 0.1})
    # Two trials of 4 steps of 3 forwards and 3 evaluations of 8 items, and 4 test items, in batches of 4: 37 forwards.
    assert forwards(more[0]) == 2 * (4 * 3 + 3 * 8 / 4) + 4 / 4 == 37
    # Hybrid: one trial of 4 steps of 1 + 3 forwards; the other: 4 steps of 3.
    assert [forwards(run) for run in more[1:]] == [4 * 4 + 6 + 1, 4 * 3 + 6 + 1]
    expected = [queue.seconds(run, queue.statuses()) for run in more[1:]]
    assert expected == pytest.approx([46, 38], rel=1e-3)
    assert queue.lines()[-1] == "1 of 3 runs done, 74 s measured, about 84 s ahead"
    finished(queue, 1, 2300.0, {"eta_y": 0.1}, eta_y=0.1)  # another method, which is slower
    assert queue.seconds(more[2], queue.statuses()) == pytest.approx(38, rel=1e-3)


def test_no_run_is_started_that_would_end_after_the_budget(tiny: list[Run], tmp_path: Path) -> None:
    queue = Queue(tiny, tmp_path)
    assert queue.work(budget=0.0) == ([FIRST, SECOND], {})
    finished(queue, 0, 5000.0, {"eta_y": 0.1})
    # 23 forwards at 5000 / 37 seconds: 3,108 seconds
    assert queue.work(budget=3000.0) == ([SECOND], {}) and not queue.path(tiny[1]).exists()


def test_records_with_other_settings_are_refused(tiny: list[Run], tmp_path: Path) -> None:
    queue = Queue(tiny, tmp_path)
    finished(queue, 0, 1.0, {"eta_y": 0.1}, data_dir="elsewhere")
    assert queue.statuses()[FIRST].state == "done"
    finished(queue, 0, 1.0, {"eta_y": 0.1}, steps=6)
    with pytest.raises(BadInput, match="has steps 6, this queue has 4: choose another --out"):
        queue.statuses()
    finished(queue, 0, 1.0, {"eta_y": 0.1})
    finished(queue, 1, 1.0, {"eta_y": 0.01}, eta_y=0.01)  # FIRST has selected 0.1
    with pytest.raises(BadInput, match=r"has eta_y 0.01, this queue has 0.1"):
        queue.statuses()


def test_a_run_that_diverged_is_over(tiny: list[Run], tmp_path: Path) -> None:
    queue = Queue([replace(tiny[1], takes={})], tmp_path)
    writer = records.Writer(queue.path(tiny[1]), "finetune", asdict(queue.every[0].experiment), {})
    writer.write({"part": "stopped", "why": "the loss is nan at step 2"})
    status = queue.statuses()[SECOND]
    assert (status.state, status.detail) == ("diverged", "the loss is nan at step 2")
    assert queue.work() == ([], {})


@pytest.mark.parametrize("size", ["full", "short"])
def test_runs_stand_in_the_order_of_the_parts_and_take_rates_of_earlier_ones(size: str) -> None:
    every = runs(SIZES[size])
    names = [run.name for run in every]
    assert len(set(names)) == len(names) == 62
    assert list(dict.fromkeys(run.part for run in every))[: len(PARTS)] == list(PARTS)
    for number, run in enumerate(every):
        for name in run.takes.values():
            assert names.index(name) < number
        if isinstance(run.experiment, Finetune) and run.experiment.search:
            assert run.experiment.seed == 0 and SIZES[size].tries == 3  # rates are tried with the first seed alone
        if run.name.endswith("-forwards-seed0"):
            assert run.experiment.steps * run.experiment.evaluations == SIZES[size].steps  # those of first-order PEFT


def test_hybrid_adds_a_zeroth_order_part_to_the_rate_that_was_selected_without_it() -> None:
    every = {run.name: run for run in runs(SIZES["full"])}
    assert every[SECOND].takes == {"eta_y": FIRST}
    assert every[SECOND].experiment.search == ("eta_x=" + ",".join(f"{rate:g}" for rate in RATES["zo"]),)
    selected = {FIRST: {"eta_x": 1.0, "eta_y": 0.3}, SECOND: {"eta_x": 0.2, "eta_y": 0.3}}
    assert every["sst2-hybrid-lora-seed1"].with_rates(selected).rates[:2] == (0.2, 0.3)
    assert every["wic-fo-lora-seed2"].with_rates(selected).rates[1] == 0.3


REFUSED: list[tuple[Sequence[str], str]] = [
    (["--list", "--only", "sst3"], "--only sst3: no such run; name a part (fig1, sst2, "),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_what_is_no_run_is_refused_in_one_line(
    arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert real_model.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_the_list_shows_the_chosen_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real_model.main(["--list", "--size", "short", "--only", "zero-shot", "fig2-3", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        "zero-shot", "fig2-small", "fig2-large", "fig2-two", "fig3-zo", "fig3-fo-lora", "fig3-hybrid-lora",
    ]  # fmt: skip
    assert lines[-1] == "0 of 7 runs done, 0 s measured, 7 runs of unknown duration (no run of their kind is timed yet)"
