from dataclasses import replace

import pytest

from smoothlab.__main__ import main
from smoothlab.experiments import demo
from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.finetune.options import check
from smoothlab.experiments.rates.experiment import Rates


def test_the_two_runs_differ_in_the_peft_module_alone():
    runs = demo.runs(seed=3)
    assert (runs["fig1a"].peft, runs["fig1b"].peft) == ("none", "lora")
    assert all(
        (run.model, run.data, run.protocol, run.seed) == ("micro", "builtin", "both", 3) for run in runs.values()
    )


def test_the_estimators_are_measured_in_small_but_in_every_part():
    demo.SMALL.check()
    assert set(demo.SMALL.parts) == set(Estimators().parts) and demo.SMALL.measure == ("base",)
    assert demo.SMALL.draws * 5 <= Estimators().draws


def test_the_rates_are_measured_in_small_but_in_every_part():
    demo.SMALL_RATES.check()
    assert demo.SMALL_RATES.parts == Rates().parts and len(demo.SMALL_RATES.points()) < len(Rates().points())


def test_every_method_is_tuned_in_small():
    for method in demo.METHODS.values():
        check(replace(demo.TUNED, method=method))
    assert set(demo.METHODS.values()) == {"hybrid", "fo-peft", "zo"} and (demo.TUNED.model, demo.TUNED.data) == (
        "micro",
        "builtin",
    )


@pytest.mark.slow
def test_demo_writes_records_figures_and_one_page_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "POINTS", 2)
    monkeypatch.setattr(demo, "SMALL", replace(demo.SMALL, parts=("bias", "curve"), draws=200))
    monkeypatch.setattr(demo, "SMALL_RATES", replace(demo.SMALL_RATES, parts=("reshuffling",), shuffle_dims=(2,)))
    monkeypatch.setattr(demo, "TUNED", replace(demo.TUNED, steps=2, eval_every=1, dev=20, test=20))
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'index.html'}\n"
    there = {path.name: path.read_bytes() for path in out.iterdir()}
    expected = {"fig1a.jsonl", "fig1b.jsonl", "fig1a.png", "fig1a.pdf", "fig1b.png", "fig1b.pdf", "index.html"}
    expected |= {f"finetune-{name}.jsonl" for name in demo.METHODS} | {"finetune.png", "finetune.pdf"}
    expected |= {f"{name}.{kind}" for name in ("estimators", "rates") for kind in ("jsonl", "png", "pdf")}
    assert expected <= there.keys()
    assert b"<img" in there["index.html"] and b'src="http' not in there["index.html"]
    assert main(["demo", "--out", str(out)]) == 0  # nothing is measured again
    assert {name: (out / name).read_bytes() for name in there if name.endswith("jsonl")} == {
        name: content for name, content in there.items() if name.endswith("jsonl")
    }
    assert main(["demo", "--out", str(out), "--seed", "1"]) == 2
    assert "seed = 0, this one has seed = 1" in capsys.readouterr().err
