"""The demo: sections in small, side by side, and one page."""

import multiprocessing
import queue
import time
from dataclasses import replace

import pytest

from smoothlab.__main__ import main
from smoothlab.errors import BadInput, Unfinished
from smoothlab.experiments import demo
from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.finetune.options import check
from smoothlab.experiments.rates.experiment import Rates
from tests.report.test_page import Page


def test_the_two_runs_of_figure_1_differ_in_the_peft_module_alone():
    runs = demo.sections(seed=3)
    full, joint = runs["fig1a"], runs["fig1b"]
    assert replace(full, method="fo-joint", eta_y=full.eta_x, measure=("base", "peft")) == joint
    assert (full.module, joint.module) == ("none", "lora")
    assert all(run.seed == 3 for run in runs.values()) and (full.model, full.data) == ("micro", "builtin")
    assert set(runs) == set(demo.SECONDS)


def test_every_experiment_is_measured_in_small_but_in_every_part():
    runs = demo.sections(seed=0)
    runs["estimators"].check()
    runs["rates"].check()
    assert set(runs["estimators"].parts) == set(Estimators().parts)
    # Rates of sums that curve differently, and those for a budget, take longer than the demo has.
    assert set(Rates().parts) - set(runs["rates"].parts) == {"curved", "budget"}
    assert runs["estimators"].draws * 5 <= Estimators().draws and len(runs["rates"].points()) < len(Rates().points())
    methods = [run for name, run in runs.items() if name.startswith("finetune")]
    for run in methods:
        check(run)
        assert (run.model, run.data) == ("micro", "builtin")
    assert {run.method for run in methods} == {"hybrid", "fo-peft", "zo"}
    check(runs["advise"])
    assert (runs["advise"].model, runs["advise"].data) == ("micro", "builtin")


def news_of(*items):
    news = queue.Queue()
    for item in items:
        news.put(item)
    return news


def test_the_line_off_a_terminal_says_what_runs_and_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(demo, "PATIENCE", 0.0)
    printed = "smoothlab: a note\nsmoothlab: finetune step 3 of 120, loss 0.7, about 9 s left\nsmoothlab: a note\n"
    demo._watch(news_of(("begin", "rates", ""), ("end", "rates", printed)), [], 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("smoothlab: demo: 0 % done, running rates, about ")
    assert lines.count("smoothlab: a note") == 1 and not any("step 3" in line for line in lines)


def test_what_a_section_refuses_and_a_process_that_died_end_the_demo():
    with pytest.raises(BadInput, match="seed = 0, this one has seed = 1"):
        demo._watch(news_of(("refused", "rates", "it has seed = 0, this one has seed = 1")), [], 1)
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    process.start()
    process.kill()
    process.join()
    with pytest.raises(Unfinished, match="measured rates was ended; start the same command again"):
        demo._watch(news_of(("begin", "rates", "")), [process], 1)


def test_the_fraction_counts_sections_by_their_seconds():
    total = sum(demo.SECONDS.values())
    assert demo._fraction(["rates"], {}) == demo.SECONDS["rates"] / total
    long_ago = time.monotonic() - 1e6
    expected = (demo.SECONDS["rates"] + 0.9 * demo.SECONDS["fig1a"]) / total
    assert demo._fraction(["rates"], {"fig1a": long_ago}) == pytest.approx(expected)


@pytest.mark.slow
def test_demo_writes_records_figures_and_one_page_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "POINTS", 2)
    monkeypatch.setattr(demo, "ESTIMATORS", replace(demo.ESTIMATORS, parts=("bias", "curve"), draws=200))
    monkeypatch.setattr(demo, "RATES", replace(demo.RATES, parts=("reshuffling",), shuffle_dims=(2,)))
    monkeypatch.setattr(demo, "ADVISE", replace(demo.ADVISE, budget=1, try_steps=1))
    monkeypatch.setattr(demo, "FINETUNE", replace(demo.FINETUNE, steps=2, eval_every=1, dev=20, test=20))
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'index.html'}\n"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {f"{name}.jsonl" for name in demo.SECONDS} | {"index.html"} <= before.keys()
    page = Page(before["index.html"].decode())
    assert len(page.words) <= 2000 and page.tags.count("img") >= 5
    assert main(["demo", "--out", str(out)]) == 0  # nothing is measured again
    for name in demo.SECONDS:
        assert (out / f"{name}.jsonl").read_bytes() == before[f"{name}.jsonl"]
    assert main(["demo", "--out", str(out), "--seed", "1"]) == 2
    assert "seed = 0, this one has seed = 1" in capsys.readouterr().err
