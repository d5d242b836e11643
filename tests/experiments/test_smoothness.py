"""The smoothness experiment: its rows, its resumption, its bad inputs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.record_files import RESERVED
from smoothlab.trainer import Trainer
from tests.experiments.toy import Toy

FIELDS = {
    "step", "method", "protocol", "block", "wrt", "quantity", "value", "low", "high", "hvps", "h", "floor", "flag",
    "loss", "grad_norm", "grad_norm_total", "dim", "normalized", "sign",
}  # fmt: skip


def rows_of(path: Path) -> list[dict]:
    rows = [row for line in path.read_text().splitlines() if (row := json.loads(line))["kind"] == "row"]
    return [{name: value for name, value in row.items() if name not in RESERVED} for row in rows]


def run(experiment: Toy, out: Path) -> list[dict]:
    return rows_of(records.run(experiment, out, environment={}))


def test_every_point_has_the_same_complete_rows(tmp_path: Path) -> None:
    rows = run(Toy(), tmp_path / "run.jsonl")
    assert all(FIELDS == set(row) for row in rows)
    assert all((r["sign"] in (-1, 0, 1)) == (r["quantity"] == "spectral") for r in rows)
    kinds = [(r["protocol"], r["block"], r["wrt"], r["quantity"]) for r in rows]
    per_point = kinds[: len(kinds) // 6]
    assert kinds == per_point * 6
    assert len(per_point) == len(set(per_point)) == 3 + 3 + 1 + 2 + 2
    assert sorted({r["step"] for r in rows}) == [0, 8, 16, 24, 32, 40]


@pytest.mark.parametrize("keep", [pytest.param(False, marks=pytest.mark.check), True])
def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path, keep: bool) -> None:
    """Cut after any row, even halfway through a line: the continued records are the same to the byte."""
    toy = Toy(steps=12, points=4, checkpoint=tmp_path / "kept" if keep else None)
    whole = tmp_path / "whole.jsonl"
    run(toy, whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    for cut in (1, 13, 44):
        again = tmp_path / f"cut{cut}.jsonl"
        again.write_bytes(b"".join(lines[:cut]) + lines[cut][:20])
        if keep:
            for late in sorted((tmp_path / "kept").glob("after-*"))[(cut - 1) // 11 + 1 :]:
                late.unlink()
        assert run(toy, again) == rows_of(whole), cut


@pytest.mark.check
def test_damaged_points_alone_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A row lost in the second point of four; two swapped in the third, which are put back; the others stand."""
    toy, out = Toy(steps=12, points=4, protocol="estimated"), tmp_path / "run.jsonl"
    whole = run(toy, out)
    lines, each = out.read_bytes().splitlines(keepends=True), len(whole) // 4
    at = 1 + 2 * each
    out.write_bytes(b"".join([*lines[: each + 3], *lines[each + 4 : at], lines[at + 1], lines[at], *lines[at + 2 :]]))
    measured, point = [], Trainer.point

    def watched(self):
        measured.append(self.step)
        return point(self)

    monkeypatch.setattr(Trainer, "point", watched)
    assert run(toy, out) == whole and measured == [4]
    assert "measured again: step 4\n" in capsys.readouterr().err
    assert out.read_bytes().splitlines(keepends=True)[:-1] == lines[:-1]


@pytest.mark.check  # the test above cuts the same records at more places
def test_killed_runs_end_as_an_undisturbed_one(tmp_path: Path) -> None:
    """SIGKILL at two moments of a run of 6 points."""
    command = [sys.executable, "-m", "tests.experiments.toy"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    for wanted in (5, 40):
        child = subprocess.Popen([*command, str(killed), "--keep", str(tmp_path / "kept")], env=environment)
        while child.poll() is None and (not killed.exists() or killed.read_bytes().count(b"\n") < wanted):
            time.sleep(0.005)
        assert child.poll() is None, "the run ended before it could be killed"
        child.send_signal(signal.SIGKILL)
        child.wait()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        full = Toy(steps=60, points=6, protocol="estimated")
        run(replace(full, checkpoint=tmp_path / "kept"), killed)
        run(full, whole)
    finally:
        torch.set_num_threads(threads)
    assert rows_of(killed) == rows_of(whole)


@pytest.mark.check
def test_measuring_afterwards_from_kept_weights_is_measuring_online(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    online = run(Toy(checkpoint=kept), tmp_path / "online.jsonl")
    after = run(Toy(from_weights=kept), tmp_path / "after.jsonl")
    assert online == after


def test_measuring_does_not_change_the_trajectory(tmp_path: Path) -> None:
    """The weights after 40 steps are the same to the bit whether six points or one were measured, dropout included."""
    states = []
    for points in (6, 2):
        toy = Toy(points=points, dropout=True, checkpoint=tmp_path / f"{points}")
        run(toy, tmp_path / f"{points}.jsonl")
        trainer, folder = toy.setup().trainer(), toy._folder(tmp_path / f"{points}")
        trainer.load_state_dict(folder.get(folder.after(40)))
        states.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.check
def test_a_fixed_minibatch_is_the_same_at_all_points(tmp_path: Path) -> None:
    still = Toy(minibatch="fixed", eta_x=0.0, eta_y=0.0, protocol="estimated", path=False)
    losses = {row["loss"] for row in run(still, tmp_path / "fixed.jsonl")}
    assert len(losses) == 1
    moving = {row["loss"] for row in run(replace(still, minibatch="step"), tmp_path / "step.jsonl")}
    assert len(moving) == 6


def test_a_diverging_run_keeps_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    with pytest.raises(BadInput, match=r"loss is (nan|inf) at step \d+"):
        run(Toy(eta_x=1e308, eta_y=1e308, path=False), out)
    assert {row["step"] for row in rows_of(out)} == {0}


@pytest.mark.parametrize("protocol", ["estimated", "paper"])
def test_a_loss_that_is_nan_at_a_point_keeps_what_was_measured(tmp_path: Path, protocol: str) -> None:
    """The only update leads to weights of 1e308, where the second and last point finds no finite loss."""
    out = tmp_path / "run.jsonl"
    with pytest.raises(BadInput, match=r"loss is (nan|inf)"):
        run(Toy(steps=1, points=2, eta_x=1e308, eta_y=1e308, protocol=protocol, path=False), out)
    rows = rows_of(out)
    assert rows and {row["step"] for row in rows} == {0} and all(row["loss"] is not None for row in rows)


def test_the_plan_names_blocks_points_and_cost() -> None:
    plan = Toy().plan()
    assert "trains base " in plan and "178 parameters" in plan and "points at steps 0, 8, 16, 24, 32, 40" in plan
    assert "altogether about" in plan and "minutes" in plan and "GiB" in plan


def test_the_plan_of_saved_weights_trains_nothing(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    run(Toy(steps=4, points=3, protocol="estimated", checkpoint=saved), tmp_path / "run.jsonl")
    plan = Toy(from_weights=saved).plan()
    assert "3 points at steps 0, 2, 4, protocol" in plan and "minutes" in plan
    assert "trains" not in plan and "trial(s)" not in plan


def test_fewer_points_than_asked_for_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    Toy(steps=3, points=500).plan()
    assert "4 points, not 500: 3 steps have no more distinct ones" in capsys.readouterr().err
    Toy().plan()
    assert "points, not" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measure": ("bass",)}, "--measure bass: no such block, use all or some of base, peft"),
        ({"cross": ("base-peft",)}, "--cross base-peft: write two different measured blocks as a:b"),
        ({"cross": ("base:base",)}, "two different"),
        ({"steps": -1}, "--steps -1 is too small"),
        ({"probes": 1}, "--probes 1 is too small"),
        ({"precision": 0.0}, "--precision 0.0"),
        ({"eta_x": -1.0}, "--eta-x -1"),
        ({"batch": 51}, "--batch 51 with 50 training examples: use 1 to 50"),
        ({"batch": 0}, "--batch 0 is too small: use at least 1"),
        ({"steps": 10**26}, f"--steps {10**26} is too large: use at most 1000000000"),
        ({"points": 10**11}, "--points 100000000000 is too large: use at most 1000000"),
        ({"probes": 10**11}, "--probes 100000000000 is too large: use at most 1000000"),
        ({"seed": -1}, "--seed -1 is too small: use at least 0"),
        ({"seed": 2**70}, f"--seed {2**70} is too large: use at most 4294967295"),
        ({"precision": 1.0}, "--precision 1.0: use a number between 0 and 1"),
        ({"precision": ("0.1", "trace=2")}, "--precision trace=2: use a number between 0 and 1"),
        ({"precision": ("trace=x",)}, "--precision trace=x: use a number between 0 and 1"),
        ({"precision": ("spectral=0.1",)}, "--precision spectral=0.1: write a number, or QUANTITY=NUMBER with one of"),
        ({"precision": ("0.1", "frobenius=0.2")}, "--precision frobenius=0.2: frobenius has a precision already"),
        ({"precision": ("gauss_newton_trace=0.2",)}, "gauss_newton_trace=... without --gauss-newton"),
        ({"diagonal": 100}, "--diagonal 100 with --block-rows none: say whose norms"),
        (
            {"block_rows": "layer", "blocks": "layer"},
            "--block-rows layer with --blocks layer: its blocks are not",
        ),
        ({"block_rows": "layer", "protocol": "paper"}, "--block-rows layer with --protocol paper, which has no rows"),
        ({"precision": float("nan")}, "--precision nan: use a number between 0 and 1"),
        ({"eta_y": float("nan")}, "--eta-y nan: use a finite rate"),
        ({"eta_x": float("inf")}, "--eta-x inf: use a finite rate"),
        ({"eta": ("head=nan",)}, "--eta head=nan: write NAME=RATE with a finite rate"),
        ({"eta": ("head=1", "head=2")}, "--eta head=2: block 'head' has a rate already"),
        ({"measure": ()}, "--measure names no block: use all, or some of base, peft, head"),
        ({"peft": "none"}, "--peft none with --method fo-joint: name a PEFT method, or use zo or fo-full"),
        (
            {"checkpoint": Path("log:kept")},
            "--checkpoint log:kept with --method fo-joint: a seed log holds zeroth-order",
        ),
        ({"cross": ("base:peft", "base:peft")}, "--cross base:peft is given twice"),
        ({"device": "tpu"}, "--device tpu is unknown: use cpu, cuda or cuda:0"),
        ({"product": "exakt"}, "--product exakt is unknown: use one of exact, central, forward"),
        ({"minibatch": "steps"}, "--minibatch steps is unknown: use one of step, fixed"),
        ({"checkpoint": Path("k"), "from_weights": Path("f")}, "--checkpoint k with --from-weights f: nothing is"),
        ({"checkpoint": Path(__file__)}, "test_smoothness.py is a file: name a folder"),
        ({"from_weights": Path("nowhere")}, "--from-weights nowhere: no after-"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        run(replace(Toy(), **change), tmp_path / "run.jsonl")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run.jsonl").exists()


@pytest.mark.parametrize("text", ["head", "head=", "head=fast", "head=-1", "=1"])
def test_bad_rates_are_named(text: str) -> None:
    from smoothlab.experiments.finetune.options import block_rates

    with pytest.raises(BadInput, match="NAME=RATE"):
        block_rates(Toy(eta=(text,)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--batch 20 --data few.jsonl", "--batch 20 with 17 training examples: use 1 to 17"),
        ("--eta-x 1e300", "learning rate 1e+300 of block 'base': use at most 3.40282e+38"),
        ("--lr 0.1", "--lr of `smoothlab smoothness` is --eta-x and --eta-y now"),
        (
            "--lr-block base=1",
            "--lr-block of `smoothlab smoothness` is --eta-x, --eta-y, and --eta NAME=RATE for other",
        ),
        ("--schedule log", "--schedule log of `smoothlab smoothness` is --spacing log now"),
        ("--keep-weights kept", "--keep-weights of `smoothlab smoothness` is --checkpoint now"),
        ("--rule=adam", "--rule of `smoothlab smoothness` is --optimizer now"),
        ("--checkpoint old", "--checkpoint old holds step-*.safetensors, which --keep-weights of smoothlab 0.1 wrote"),
        ("--from-weights old", "--from-weights old holds step-*.safetensors, which --keep-weights of smoothlab 0.1"),
        ("--cross a:b", "--cross a:b: write two different measured blocks"),
    ],
)
def test_the_command_line_says_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    """With micro itself; the record file is not made."""
    from smoothlab.__main__ import main

    monkeypatch.chdir(tmp_path)
    rows = ({"sentence": f"film {i}", "label": i % 2} for i in range(20))
    Path("few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("old").mkdir()
    Path("old/step-00000000.safetensors").touch()
    assert main(["smoothness", *options.split()]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("smoothlab: error: ") and words in last
    assert not Path("out/smoothness.jsonl").exists()


@pytest.mark.slow
def test_micro_killed_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """The command line itself on the packaged model, SIGKILL after the first rows of its second point."""
    options = ["--steps", "4", "--points", "3", "--precision", "0.3", "--measure", "peft", "head"]
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    command = [sys.executable, "-m", "smoothlab", "smoothness", *options, "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([*command, str(killed)], env=environment)
    while child.poll() is None and (not killed.exists() or killed.read_bytes().count(b"\n") < 11):
        time.sleep(0.01)
    assert child.poll() is None, "the run ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    for out in (killed, whole):
        subprocess.run([*command, str(out)], env=environment, check=True)
    assert len(rows_of(whole)) == 3 * 8 and rows_of(killed) == rows_of(whole)


@pytest.mark.gpu
def test_a_cuda_device_measures_what_the_cpu_does(tmp_path: Path) -> None:
    from smoothlab.experiments.smoothness import Smoothness

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rows = {}
    for device in ("cpu", "cuda"):
        experiment = Smoothness(steps=1, points=2, device=device, dtype="float64", measure=("peft", "head"))
        path = records.run(experiment, tmp_path / f"{device}.jsonl", environment={})
        rows[device] = [r for r in rows_of(path) if r["quantity"] == "frobenius"]
    for cpu, cuda in zip(rows["cpu"], rows["cuda"], strict=True):  # other probes, the same Hessian
        assert max(cpu["low"], cuda["low"]) <= min(cpu["high"], cuda["high"]), (cpu, cuda)
