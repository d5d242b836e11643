"""Curvature measured along a fine-tuning: the run stays as it is, its rows are written as they come, and it resumes."""

import itertools
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from smoothlab import records
from smoothlab.__main__ import main
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import EXACT, METHODS
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.loggers import Progress
from smoothlab.experiments.finetune.setup import OPTIMIZERS
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.stats import smoothness_table
from tests.experiments.test_finetune import run
from tests.experiments.toy_finetune import Toy, forked

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
MEASURED = Toy(measure=("base", "peft"), points=3, precision=0.3, protocol="both", probes=3)
RATES = {"zo": {"eta_x": 0.02, "q": 8}, "fo-full": {"eta_x": 0.2}, "fo-joint": {"eta_x": 0.2}}
Row = dict[str, Any]


def training(rows: list[Row]) -> list[Row]:
    """Rows of dev and test, without their numbers in the file."""
    return [{k: v for k, v in row.items() if k != "row"} for row in rows if row["part"] != "curvature"]


def toy(method: str, **options: Any) -> Toy:
    return replace(MEASURED, method=method, **RATES.get(method, {}), **options)


@pytest.mark.parametrize(
    "method", [m if m in ("hybrid", "fo-peft") else pytest.param(m, marks=pytest.mark.check) for m in METHODS]
)
def test_measuring_leaves_a_run_as_it_is_to_the_bit(tmp_path: Path, method: str) -> None:
    """Blocks that the method keeps frozen are measured too; each point has the same rows."""
    rows = run(toy(method), tmp_path / "measured.jsonl")
    plain = run(replace(toy(method), measure=()), tmp_path / "plain.jsonl")
    assert training(rows) == training(plain)
    curvature = [row for row in rows if row["part"] == "curvature"]
    assert {row["method"] for row in curvature} == {method}
    kinds = {
        step: [(row["protocol"], row["block"], row["wrt"], row["quantity"]) for row in group]
        for step, group in itertools.groupby(curvature, key=lambda row: row["step"])
    }
    assert list(kinds) == [0, 12, 24] and len({str(kind) for kind in kinds.values()}) == 1
    assert len(kinds[0]) == len(set(kinds[0])) == 3 + 3 + 1 + 2 + 2
    for row in curvature:
        trained = method in ("hybrid", "fo-joint") or row["block"] == {"fo-peft": "peft"}.get(method, "base")
        if row["quantity"] == "gradient_lipschitz":
            assert (row["value"] is not None) == trained
        else:
            assert row["value"] is not None


@pytest.mark.parametrize("minibatch", ["step", pytest.param("fixed", marks=pytest.mark.check)])
def test_a_stopped_measured_run_ends_as_an_undisturbed_one(tmp_path: Path, minibatch: Any) -> None:
    """Stopped within a point, behind it, and behind an evaluation that follows from its update."""
    options = {"minibatch": minibatch, "eval_every": 1, "steps": 4, "protocol": "estimated"}
    measured = toy("hybrid", **options, checkpoint=tmp_path / "whole")
    wanted = run(measured, tmp_path / "whole.jsonl")
    assert wanted[-1]["part"] == "test"
    starts = [n for n, row in enumerate(wanted) if row["part"] == "curvature" and row["step"] == 2]
    for stop in (5, starts[0] + 2, starts[-1] + 1):
        again, out = replace(measured, checkpoint=tmp_path / f"{stop}"), tmp_path / f"{stop}.jsonl"
        writer = records.Writer(out, "toy", records._plain(again.__dict__), {})
        rows = again.rows([])
        for row in itertools.islice(rows, stop):
            writer.write(row)
        rows.close()
        writer._stack.close()
        assert run(again, out) == wanted, stop


def test_the_data_sets_hessian_is_measured_beside_the_minibatchs(tmp_path: Path) -> None:
    """Of items that are all in one minibatch the data set's Hessian is the minibatch's, and nothing is sampled."""
    measured = toy("hybrid", protocol="estimated", path=False, batch=16, train=16, over=16, steps=2, points=2)
    rows = [row for row in run(measured, tmp_path / "over.jsonl") if row["part"] == "curvature"]
    for block in ("base", "peft"):
        for quantity in ("frobenius", "trace"):
            own = [r for r in rows if (r["block"], r["wrt"], r["quantity"]) == (block, block, quantity)]
            for one, whole in zip(
                *[[r for r in own if r["protocol"] == p] for p in ("estimated", "dataset")], strict=True
            ):
                assert one["loss"] == pytest.approx(whole["loss"], rel=1e-12)
                assert one["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-9)
                assert max(one["low"], whole["low"]) <= min(one["high"], whole["high"])
                assert whole["minibatches"] >= 33
    assert training(run(replace(measured, measure=(), over=0), tmp_path / "plain.jsonl")) == training(
        run(replace(measured, over=16), tmp_path / "again.jsonl")
    )


def test_over_fits_the_data() -> None:
    with pytest.raises(BadInput, match=r"--over 65 with 64 training examples: use 8 \(--batch\) to 64"):
        toy("hybrid", over=65).setup()


@pytest.mark.check
def test_a_killed_measured_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """SIGKILL within a step, and while the rows of a point are written."""
    measured, out = toy("hybrid", steps=60, points=6, checkpoint=tmp_path / "kept"), tmp_path / "killed.jsonl"
    wanted = run(replace(measured, checkpoint=None), tmp_path / "whole.jsonl")
    for lines in (6, 20, 33):
        child = forked(measured, out, tmp_path / "said", pause=0.003)
        while not out.exists() or out.read_bytes().count(b"\n") < lines:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), (tmp_path / "said").read_text()
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert run(measured, out) == wanted


@pytest.mark.parametrize("head", ["lm", pytest.param("classifier", marks=pytest.mark.check)])
def test_the_command_measures_a_models_blocks_on_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str
) -> None:
    """A language model of 70,000 parameters and a user's sentences; the records are drawn as those of smoothness."""
    sizes = "--train 16 --dev 8 --test 8 --batch 4 --steps 2 --eval-every 2 --points 2 --precision 0.5".split()
    out = tmp_path / "run.jsonl"
    data = ["--model", str(folder / "model"), "--data", str(folder / "data.jsonl"), "--head", head]
    options = [*data, *sizes, "--measure", "base", "peft", "--mu", "1e-2", "--out", str(out)]
    assert main(["finetune", *options]) == 0
    table = records.load(out)
    rows = table[table["part"] == "curvature"]
    assert set(zip(rows["step"], rows["block"], rows["wrt"], strict=True)) == {
        (step, *pair) for step in (0, 2) for pair in (("base", "base"), ("peft", "peft"), ("base", "peft"))
    }
    assert len(smoothness_table.points(table, "base")) == 2
    assert main(["plot", str(out), "--kind", "fig1b", "--out", str(tmp_path / "fig1b.png")]) == 0


@pytest.mark.check
def test_the_command_measures_layers_and_traces(folder: Path, tmp_path: Path) -> None:
    """Every layer has a row norm, a trace, a norm of its own and a Gauss-Newton trace at each point."""
    out = tmp_path / "run.jsonl"
    data = ["--model", str(folder / "model"), "--data", str(folder / "data.jsonl"), "--out", str(out)]
    sizes = "--train 16 --dev 8 --test 8 --batch 4 --steps 2 --eval-every 2 --points 2 --mu 1e-2 --measure base peft"
    options = "--block-rows layer --diagonal 90 --gauss-newton --precision 0.3 trace=0.3 gauss_newton_trace=0.1"
    assert main(["finetune", *data, *sizes.split(), *options.split()]) == 0
    table = records.load(out)
    rows = table[(table["part"] == "curvature") & (table["step"] == 0)]
    layers = sorted(set(rows["wrt"]) - {"base", "peft"})
    assert {"embedding", "layer.0", "final"} <= set(layers)
    for layer in layers:
        own = rows[rows["wrt"] == layer]
        kinds = sorted(zip(own["block"], own["quantity"], strict=True))
        assert kinds == [
            ("base", "frobenius"), (layer, "frobenius"), (layer, "gauss_newton_trace"), (layer, "trace"),
        ]  # fmt: skip
    traces = rows[rows["quantity"] == "gauss_newton_trace"].set_index("block")["value"]
    assert traces[layers].sum() == pytest.approx(traces["base"], rel=1e-5)
    own = rows[(rows["quantity"] == "frobenius") & (rows["block"] == rows["wrt"]) & rows["block"].isin(layers)]
    assert own["hvps"].sum() <= 90
    dims = rows[rows["quantity"] == "trace"].set_index("block")["dim"]
    assert dims[layers].sum() == dims["base"]
    assert main(["plot", str(out), "--kind", "layers", "--out", str(tmp_path / "layers.png")]) == 0


def test_off_a_terminal_a_line_says_step_loss_point_and_seconds_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a run that is resumed says so, and from where."""
    monkeypatch.setattr(Progress, "interval", 0.0)
    measured, out = toy("hybrid", checkpoint=tmp_path / "kept"), tmp_path / "run.jsonl"
    run(measured, out)
    said = capsys.readouterr().err
    assert re.search(r"smoothlab: finetune step 5 of 24, loss \d\.\d{3}, about \d+ s left\n", said)
    assert re.search(r"smoothlab: finetune step 12 of 24, loss \d\.\d{3}, measured trace of peft, about", said)
    monkeypatch.setattr(Progress, "interval", 1000.0)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:-2]))
    run(measured, out)
    kept = len(lines) - 3  # header, test row, end
    assert f"smoothlab: resumed at step 24 from --checkpoint {tmp_path / 'kept'}, with {kept} rows on record" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["fig1a_micro_sst2", "fig1b_micro_sst2", "fast_1b_micro_sst2"])
def test_finished_records_of_smoothlab_0_1_are_those_of_todays_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The same run in the options of today is finished; an unfinished one is refused with their names."""
    path = RESULTS / f"{name}.jsonl"
    config = Smoothness.upgrade(records.header(path)["config"])
    named = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    same = Smoothness(**{**named, "data_dir": None if named["data_dir"] is None else Path(named["data_dir"])})
    assert (same.method, same.rank) == ("fo-full" if name == "fig1a_micro_sst2" else "fo-joint", 16)
    assert records.run(same, path, environment={}) == path
    assert "is finished" in capsys.readouterr().err
    stopped = tmp_path / "stopped.jsonl"
    stopped.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(Exception, match=r"smoothlab 0\.1 trained on other minibatches .*--eta-x and --eta-y now"):
        records.run(same, stopped, environment={})


def test_finished_fine_tunings_of_smoothlab_0_1_are_those_of_todays_options(capsys: pytest.CaptureFixture[str]) -> None:
    path = RESULTS / "table1" / "sst2-zo-seed0.jsonl"
    config = Finetune.upgrade(records.header(path)["config"])
    named = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    same = Finetune(**{**named, "data_dir": None if named["data_dir"] is None else Path(named["data_dir"])})
    assert same.optimizer == "sgd" and records.run(same, path, environment={}) == path
    assert "is finished" in capsys.readouterr().err


def test_the_choices_of_the_command_line_are_the_tables() -> None:
    kinds = get_type_hints(Finetune)
    assert get_args(kinds["method"]) == tuple(METHODS)
    assert get_args(kinds["optimizer"]) == EXACT == tuple(OPTIMIZERS)


def test_blocks_that_eta_names_have_rates_of_their_own(folder: Path) -> None:
    """The others of the base model have eta_x, the PEFT module eta_y; a zeroth-order base model has one rate."""
    sizes: Row = {"train": 8, "dev": 4, "test": 4, "batch": 2, "blocks": "layer"}
    asked = Finetune(model=str(folder / "model"), data=str(folder / "data.jsonl"), eta=("layer.1=0.5",), **sizes)
    trainer = replace(asked, method="fo-joint", eta_x=0.25, eta_y=0.125).setup().trainer()
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"embedding": 0.25, "layer.0": 0.25, "layer.1": 0.5, "final": 0.25, "peft": 0.125}
    assert all(group["oracle"] is None for group in trainer.optimizer.param_groups)
    for method, there in (("hybrid", "base, peft"), ("fo-peft", "peft")):
        words = f"--eta layer.1=0.5: no such block of exact gradients, use {there}"
        with pytest.raises(BadInput, match=re.escape(words)):
            replace(asked, method=method).setup()
