"""Fine-tuning: selection, early stopping, search, resuming, and what goes wrong in one line."""

import json
import math
import os
import signal
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothlab import records
from smoothlab.__main__ import main
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.card import command
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.options import say, unused
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.llm.checkpoints import read
from smoothlab.llm.evaluate import NotFinite
from smoothlab.llm.models import load_lm
from tests.experiments.command import tiny_model, write_sentences
from tests.experiments.toy_finetune import Toy, forked
from tests.llm.test_checkpoints import files_of_at_most

Row = dict[str, Any]


def kept_in(toy: Toy, folder: Path) -> Toy:
    """The run with its checkpoints in a folder, in the way of METHODS."""
    return replace(toy, checkpoint=Path(f"log:{folder}") if toy.logged else folder)


CLOCK = ("seconds", "steps_per_second", "crc32")


def rows_of(path: Path) -> list[Row]:
    """Rows without what a clock says."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in lines if row["kind"] == "row"]


def run(toy: Finetune, out: Path) -> list[Row]:
    records.run(toy, out, environment={})
    return rows_of(out)


METHODS = {
    "hybrid": Toy(), "one-sided": Toy(sides=1, q=2, distribution="rademacher"), "zo": Toy(method="zo", eta_x=0.02, q=8),
    "fo-peft": Toy(method="fo-peft"), "fo-full": Toy(method="fo-full", eta_x=0.2), "linear": Toy(schedule="linear"),
    "search": Toy(search=("eta_y=0.05,0.2", "mu=1e-3,1e-2"), steps=12), "log": Toy(checkpoint=Path("log:")),
    "log-search": Toy(search=("eta_x=1e-3,2e-3",), steps=12, checkpoint=Path("log:"), q=2, schedule="cosine"),
}  # fmt: skip


LONGER = {one: pytest.mark.slow if one in ("zo", "linear") else pytest.mark.check for one in METHODS}
"""Where the longer tests of a method belong that say of each what they say of "hybrid"."""


@pytest.mark.parametrize("method", METHODS)
def test_a_run_has_its_rows_and_tests_the_best_weights_once(tmp_path: Path, method: str) -> None:
    toy = replace(METHODS[method], checkpoint=None)
    rows = run(toy, tmp_path / "run.jsonl")
    dev, test = [row for row in rows if row["part"] == "dev"], [row for row in rows if row["part"] == "test"]
    trials = {"search": 4, "log-search": 2}.get(method, 1)
    assert len(rows) == len(dev) + 1 and rows[-1] is test[0]
    assert [row["step"] for row in dev] == [*range(0, toy.steps + 1, 4)] * trials
    assert [row["trial"] for row in dev] == [n for n in range(trials) for _ in range(toy.steps // 4 + 1)]
    best = max(dev, key=lambda row: (row["correct"], -row["dev_loss"]))
    assert {k: test[0][k] for k in ("trial", "step", "eta_x", "eta_y", "mu")} == {k: best[k] for k in test[0].keys() & {
        "trial", "step", "eta_x", "eta_y", "mu"}}  # fmt: skip
    assert test[0]["dev_accuracy"] == best["accuracy"] == max(row["accuracy"] for row in dev)
    first = next(r["step"] for r in dev if r["trial"] == best["trial"] and r["correct"] == best["correct"])
    assert test[0]["steps_to_best"] == first <= best["step"]
    assert len(test[0]["right"]) == 100 and test[0]["right"].count("1") == test[0]["correct"]
    assert test[0]["low"] < test[0]["accuracy"] < test[0]["high"]
    assert dev[0]["train_loss"] is None and all(row["train_loss"] > 0 for row in dev if row["step"])
    assert best["dev_loss"] < dev[0]["dev_loss"] and best["correct"] > dev[0]["correct"]


@pytest.mark.parametrize(
    "method", [one if one == "hybrid" else pytest.param(one, marks=LONGER[one]) for one in METHODS]
)
def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path, method: str) -> None:
    """Stopped after any row, before or after its snapshot, halfway through a line: rows and snapshots are the same."""
    whole = kept_in(METHODS[method], tmp_path / "whole")
    wanted = run(whole, tmp_path / "whole.jsonl")
    assert wanted == run(replace(METHODS[method], checkpoint=None), tmp_path / "without.jsonl")
    last = len(wanted) - 1
    for stop in sorted({1, 4, 5, last}):
        kept, again = tmp_path / f"{stop}", kept_in(whole, tmp_path / f"{stop}")
        out = tmp_path / f"{stop}.jsonl"
        stopped = replace(again)
        course = stopped.rows([])
        writer = records.Writer(out, "toy", records._plain(stopped.__dict__), {})
        for _ in range(stop):
            writer.write(next(course))
        if stop % 2:
            next(course)  # the snapshot of the last row is there as well
        course.close()
        writer._stack.close()
        with open(out, "a") as file:
            file.write('{"kind": "row", "pa')
        assert run(again, out) == wanted, stop
        for path in (tmp_path / "whole").iterdir():
            if path.suffix == ".log":
                assert path.read_bytes() == (kept / path.name).read_bytes()
                continue
            there, here = read(path), read(kept / path.name)
            assert all(torch.equal(t, here.tensors[n]) for n, t in there.tensors.items()), path


@pytest.mark.check
def test_killed_runs_end_as_an_undisturbed_one(tmp_path: Path) -> None:
    """SIGKILL within a step, then right after a row (while its snapshot is written), then within a step again."""
    toy, out = Toy(steps=120, checkpoint=tmp_path / "kept"), tmp_path / "killed.jsonl"
    wanted = run(replace(toy, checkpoint=tmp_path / "whole"), tmp_path / "whole.jsonl")
    for lines, wait in ((4, 0.013), (12, 0.0), (20, 0.0007), (25, 0.004)):
        child = forked(toy, out, tmp_path / "said", pause=0.003)
        while not out.exists() or out.read_bytes().count(b"\n") < lines:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), (tmp_path / "said").read_text()
            time.sleep(0.0005)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the run ended before it could be killed"
        assert list((tmp_path / "kept").glob("after-*.safetensors"))
    assert run(toy, out) == wanted
    assert sorted(p.name for p in (tmp_path / "kept").glob("*")) == sorted(
        p.name for p in (tmp_path / "whole").glob("*")
    )


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    toy, out = Toy(checkpoint=tmp_path / "kept"), tmp_path / "run.jsonl"
    wanted = run(Toy(), tmp_path / "whole.jsonl")
    rows = toy.rows([])
    writer = records.Writer(out, "toy", records._plain(toy.__dict__), {})
    for _ in range(3):
        writer.write(next(rows))
    words = r"cannot write .*kept.*File too large; make room"
    with files_of_at_most(1000), pytest.raises(BadInput, match=words) as told:
        next(rows)
    assert "\n" not in str(told.value)
    rows.close()
    writer._stack.close()
    assert {p.name for p in (tmp_path / "kept").iterdir()} >= {"after-00000002.safetensors"}
    assert not list((tmp_path / "kept").glob("*.partial"))
    assert run(toy, out) == wanted


@pytest.mark.parametrize(
    "toy",
    [
        Toy(method="fo-full", eta_x=1.0),
        pytest.param(Toy(method="zo", eta_x=0.04, q=8, checkpoint=Path("log:")), marks=pytest.mark.slow),
    ],
)
def test_patience_ends_a_trial_and_the_best_weights_are_tested(tmp_path: Path, toy: Toy) -> None:
    """A run that ends at the best step tests the same weights, though it never left them."""
    toy = replace(toy, steps=400, patience=3)
    rows = run(kept_in(toy, tmp_path / "kept"), tmp_path / "run.jsonl")
    dev = rows[:-1]
    best = max(range(len(dev)), key=lambda i: (dev[i]["correct"], -dev[i]["dev_loss"]))
    assert 3 < len(dev) == best + 1 + 3 < 101
    assert rows[-1]["step"] == dev[best]["step"] > 0
    short = run(replace(toy, steps=dev[best]["step"], checkpoint=None), tmp_path / "short.jsonl")
    assert short[-1]["right"] == rows[-1]["right"]


@pytest.mark.parametrize(
    ("toy", "words"),
    [
        (Toy(eta_x=1e3), "lower --eta-x (1000)"),
        (Toy(eta_y=1e6), "lower --eta-y (1e+06)"),
        (Toy(method="fo-peft", eta_y=1e200), "lower --eta-y (1e+200)"),
        (Toy(method="zo", eta_x=30.0), "lower --eta-x (30)"),
    ],
)
def test_a_diverging_run_stops_at_the_last_checkpoint(tmp_path: Path, toy: Toy, words: str) -> None:
    """The rate that is too large by far is the one that is named; the same command says the same again."""
    toy, out = replace(toy, checkpoint=tmp_path / "kept"), tmp_path / "run.jsonl"
    for _ in range(2):
        with pytest.raises(BadInput, match=r"the loss is .* at step \d+, and was .* at first") as told:
            run(toy, out)
        assert words in str(told.value) and "kept" in str(told.value) and "\n" not in str(told.value)
        first, last = rows_of(out)
        assert first["step"] == 0 and last["part"] == "stopped" and words in last["why"]
        assert (tmp_path / "kept" / "after-00000001.safetensors").exists()


def test_a_diverging_trial_of_a_search_is_a_row(tmp_path: Path) -> None:
    toy = Toy(search=("eta_y=1e6,0.2",))
    rows = run(toy, tmp_path / "run.jsonl")
    stopped = [row for row in rows if row["part"] == "stopped"]
    assert len(stopped) == 1 and stopped[0]["trial"] == 0 and "lower --eta-y (1e+06)" in stopped[0]["why"]
    alone = run(Toy(), tmp_path / "alone.jsonl")
    assert _second_trial(rows) == alone


def test_a_seed_log_is_small_and_no_checkpoint_of_the_other_kind_is_taken(tmp_path: Path) -> None:
    kept, out = tmp_path / "kept", tmp_path / "run.jsonl"
    run(kept_in(METHODS["log"], kept), out)
    log = kept / "zeroth-000.log"
    assert log.stat().st_size < 1000 + 50 * Toy.steps  # 50 bytes a step are 1 MB for 20,000
    assert not any("base" in name for name in read(kept / "after-00000007.safetensors").tensors)
    with pytest.raises(BadInput, match="is of another run"):
        run(Toy(checkpoint=kept), tmp_path / "new.jsonl")


def test_checkpoints_are_not_lost_to_another_record_file(tmp_path: Path) -> None:
    toy = Toy(checkpoint=tmp_path / "kept")
    run(toy, tmp_path / "a.jsonl")
    before = {p.name: p.read_bytes() for p in (tmp_path / "kept").iterdir()}
    with pytest.raises(BadInput, match="holds this run after 7 rows, which are in no record file given here"):
        run(toy, tmp_path / "b.jsonl")
    with pytest.raises(BadInput, match=r"is of another run \(seed=0, this one has seed=1\): name another --checkpoint"):
        run(replace(toy, seed=1), tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "kept").iterdir()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "sgd"}, "--method sgd is unknown: use one of hybrid, zo, fo-peft, fo-full, fo-joint"),
        ({"optimizer": "lion"}, "--optimizer lion is unknown: use one of sgd, adam"),
        ({"rank": 0}, "--rank 0 is too small: use at least 1"),
        ({"perturb": "forward"}, "--perturb forward with --distribution gaussian: use --distribution lowrank, or"),
        ({"perturb": "inside"}, "--perturb inside is unknown: use one of weights, forward"),
        ({"measure": ("bass",)}, "--measure bass: no such block, use all or some of base, peft"),
        ({"measure": ("all",), "dtype": "bfloat16"}, "--measure with --dtype bfloat16, whose rounding hides curvature"),
        ({"eta": ("base=1",)}, "--eta base=1: use --eta-x 1 for block 'base'"),
        ({"method": "fo-full", "peft": "lora"}, "--peft lora with --method fo-full, which trains the base model alone"),
        ({"method": "zo", "peft": "lora"}, "--peft lora with --method zo, which trains the base model alone"),
        ({"peft": "none"}, "--peft none with --method hybrid: name a PEFT method"),
        ({"method": "zo", "eta_x": 0.0}, "--eta-x 0 with --method zo trains nothing"),
        ({"method": "fo-peft", "eta_y": 0.0}, "--eta-y 0 with --method fo-peft trains nothing"),
        ({"eta_x": -1.0}, "--eta-x -1: use a finite rate of at least 0"),
        ({"eta_y": math.nan}, "--eta-y nan: use a finite rate"),
        ({"mu": 0.0}, "--mu 0: use a finite step above 0"),
        ({"batch": 65}, "--batch 65 with 64 training examples: use 1 to 64"),
        ({"batch": 0}, "--batch 0 is too small: use at least 1"),
        ({"steps": -1}, "--steps -1 is too small: use at least 0"),
        ({"patience": -1}, "--patience -1 is too small"),
        ({"eval_every": 0}, "--eval-every 0 is too small"),
        ({"seed": 2**40}, "--seed 1099511627776 is too large"),
        ({"sides": 3}, "--sides 3 is unknown: use one of 1, 2"),
        ({"schedule": "step"}, "--schedule step is unknown: use one of constant, linear, cosine"),
        ({"search": ("eta=1",)}, "--search eta=1: write name=a,b,... with a name of eta_x, eta_y, mu"),
        ({"search": ("eta_x=1,x",)}, "--search eta_x=1,x: write eta_x=a,b,... with numbers"),
        ({"search": ("eta_x=1,1",)}, "--search eta_x=1,1: a value is there twice"),
        ({"search": ("mu=1", "mu=2")}, "--search mu=2: mu has values already"),
        ({"search": ("mu=1e-3,0",)}, "--mu 0: use a finite step above 0"),
        ({"search": ("mu=1e-3",), "method": "fo-peft"}, "--search mu=1e-3: --method fo-peft uses no mu"),
        ({"search": ("eta_y=1",), "method": "zo"}, "--search eta_y=1: --method zo uses no eta_y"),
        (
            {"checkpoint": Path("log:new"), "method": "fo-full"},
            "--checkpoint log:new with --method fo-full: a seed log holds zeroth-order steps, which hybrid and zo make",
        ),
        ({"verbalizers": ("bad", "good")}, "--verbalizers with --data builtin, which has prompts of its own"),
        ({"template": "{sentence}", "data": "sst2"}, "--template with --data sst2, which has prompts of its own"),
        ({"device": "tpu"}, "--device tpu is unknown"),
        ({"checkpoint": Path(__file__)}, "test_finetune.py is a file: name a folder"),
        ({"tensorboard": Path("/dev/null")}, "--tensorboard /dev/null"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, change: Row, words: str) -> None:
    with pytest.raises(BadInput) as told:
        run(replace(Toy(), **change), tmp_path / "run.jsonl")
    assert words in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "run.jsonl").exists()


def two_processes(toy: Toy, out: Path) -> list[tuple[int, str]]:
    """Exit status and stderr of each of two processes, told who they are as torchrun tells them."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = str(some.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    said = [out.with_suffix(f".{n}") for n in range(2)]
    children = [forked(toy, out, said[n], RANK=str(n), LOCAL_RANK=str(n), **shared) for n in range(2)]
    return [
        (os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]), s.read_text()) for c, s in zip(children, said, strict=True)
    ]


@pytest.mark.parametrize(
    "method", ["hybrid", *(pytest.param(m, marks=pytest.mark.check) for m in ("one-sided", "fo-full", "log-search"))]
)
def test_two_processes_make_the_steps_of_one(tmp_path: Path, method: str) -> None:
    """Zeroth- and first-order parts from shared scalars and summed gradients: equal up to the order of summation."""
    toy = kept_in(METHODS[method], tmp_path / "one")
    wanted = run(toy, tmp_path / "one.jsonl")
    for status, said in two_processes(kept_in(toy, tmp_path / "two"), tmp_path / "two.jsonl"):
        assert status == 0, said
    found = rows_of(tmp_path / "two.jsonl")
    assert len(found) == len(wanted)
    for one, two in zip(wanted, found, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert two[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
    for path in (tmp_path / "one").glob("*.safetensors"):
        one_end, two_end = read(path), read(tmp_path / "two" / path.name)
        for name, tensor in one_end.tensors.items():
            assert torch.allclose(tensor, two_end.tensors[name], rtol=1e-9, atol=1e-12), name


def test_processes_that_have_nothing_to_do_end(tmp_path: Path) -> None:
    """The records are finished, or the options are wrong: process 0 says so, the other one does not wait."""
    out = tmp_path / "run.jsonl"
    run(Toy(), out)
    assert [status for status, _ in two_processes(Toy(), out)] == [0, 0]
    (first, said), (second, nothing) = two_processes(Toy(method="none"), tmp_path / "new.jsonl")  # type: ignore[arg-type]
    assert first == 2 and "--method none is unknown" in said and second == 0 and not nothing


MICRO = Finetune(train=24, dev=8, test=8, batch=4, steps=3, eval_every=2, eta_x=1e-3)


@pytest.mark.parametrize(
    "run",
    [
        replace(MICRO, peft="lora"), replace(MICRO, method="zo"),
        pytest.param(replace(MICRO, peft="prefix", sides=1), marks=pytest.mark.check),
        pytest.param(replace(MICRO, peft="prompt"), marks=pytest.mark.check),
        pytest.param(replace(MICRO, method="fo-peft", peft="ia3"), marks=pytest.mark.check),
    ],
    ids=lambda run: f"{run.method}-{run.peft}",
)  # fmt: skip
def test_saved_weights_load_in_plain_peft_and_transformers(tmp_path: Path, run: Finetune) -> None:
    """What was trained and what others load from --save give every candidate the same score."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from smoothlab.llm.evaluate import accuracy

    setup = run.setup()
    trainer = setup.trainer()
    before = setup.judge(setup.test).scores
    for _ in range(run.steps):
        trainer.update()
    scores = setup.judge(setup.test).scores
    setup.save(tmp_path / "written", "")
    (tmp_path / "written").rename(tmp_path / "saved")
    micro = Path(records.__file__).parent / "llm" / "micro"
    trained = tmp_path / "saved" / "model" if run.method != "fo-peft" else micro
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32).eval()
    assert AutoTokenizer.from_pretrained(trained)("fine")["input_ids"]
    if run.method != "zo":
        model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved" / "adapter").eval()
    else:
        assert not (tmp_path / "saved" / "adapter").exists()
    assert torch.allclose(torch.tensor(accuracy(model, setup.test).scores), torch.tensor(scores), atol=2e-5)
    assert not torch.allclose(torch.tensor(before), torch.tensor(scores), atol=2e-4)


@pytest.mark.check
def test_two_runs_share_no_folder(tmp_path: Path) -> None:
    """The second says so in one line, and the first ends as if there had been none; a killed one leaves no lock."""
    toy = Toy(checkpoint=tmp_path / "kept", save=tmp_path / "saved")
    wanted = run(Toy(), tmp_path / "alone.jsonl")
    first = records.Writer(tmp_path / "a.jsonl", "toy", {}, {})
    rows = toy.rows([])
    first.write(next(rows))
    for other, option in (
        (replace(toy, seed=1), "--checkpoint"), (Toy(save=tmp_path / "saved"), "--save"),
        (Toy(checkpoint=tmp_path / "saved"), "--checkpoint"), (Toy(save=tmp_path / "kept" / ".." / "kept"), "--save"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=rf"^{option} .* is in use by another run; wait for it, or name another "):
            run(other, tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()
    for row in rows:
        first.write(row)
    assert [{k: v for k, v in row.items() if k not in CLOCK} for row in rows_of(tmp_path / "a.jsonl")] == wanted
    assert not list(tmp_path.rglob(".lock"))
    child = forked(replace(toy, save=tmp_path / "both", checkpoint=tmp_path / "both"), tmp_path / "c.jsonl",
                   tmp_path / "said", pause=0.05)  # fmt: skip
    while not (tmp_path / "both" / "after-00000001.safetensors").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), (tmp_path / "said").read_text()
        time.sleep(0.001)
    with pytest.raises(BadInput, match="^--save .*both is in use"):
        run(Toy(save=tmp_path / "both"), tmp_path / "d.jsonl")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "both" / ".lock").exists()
    assert run(Toy(save=tmp_path / "both"), tmp_path / "d.jsonl") == wanted
    with pytest.raises(
        BadInput, match=r"^--save .* holds the weights of another run \(seed=0, this one has seed=1\): "
    ):
        run(Toy(save=tmp_path / "saved", seed=1), tmp_path / "e.jsonl")


def _second_trial(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of trial 1 as a run of it alone numbers them."""
    later = [row for row in rows if row["trial"] == 1]
    return [{**row, "trial": 0, "row": number} for number, row in enumerate(later, start=1)]


@dataclass(frozen=True)
class Broken(Toy):
    """Scores on dev are not finite at this rate once a step was made, whatever the training losses are."""

    at: float = 0.2

    def setup(self) -> Any:
        setup = super().setup()
        judge, make, trainers = setup.judge, setup.trainer, []

        def trainer(*options: Any, **named: Any) -> Any:
            trainers.append(make(*options, **named))
            return trainers[-1]

        def broken(part: Any) -> Any:
            rates = {group["name"]: group["lr"] for group in trainers[-1].optimizer.param_groups}
            if rates["peft"] == self.at and trainers[-1].step:
                raise NotFinite("3 of 40 items have a score that is not finite")
            return judge(part)

        setup.judge, setup.trainer = broken, trainer  # type: ignore[method-assign]
        return setup


@pytest.mark.check
def test_scores_that_are_not_finite_stop_a_trial_not_the_search(tmp_path: Path) -> None:
    """So does a mu below rounding; the other trials are those of a search without it."""
    rows = run(Broken(search=("eta_y=0.2,0.1",)), tmp_path / "run.jsonl")
    assert [row["part"] for row in rows[:2]] == ["dev", "stopped"] and "the loss is nan at step 4" in rows[1]["why"]
    alone = run(Toy(eta_y=0.1), tmp_path / "alone.jsonl")
    assert _second_trial(rows) == alone
    with pytest.raises(BadInput, match="the loss is nan at step 4.*the rows so far are on record"):
        run(Broken(), tmp_path / "one.jsonl")
    rows = run(Toy(search=("mu=1e-3,1e-30",)), tmp_path / "mu.jsonl")
    stopped = [row for row in rows if row["part"] == "stopped"]
    assert [(row["trial"], row["mu"], row["step"]) for row in stopped] == [(1, 1e-30, 0)]
    assert "rounding lets" in stopped[0]["why"] and rows[-1]["part"] == "test"


@pytest.mark.check
def test_the_command_line_trains_micro_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from smoothlab.__main__ import main

    out, kept = tmp_path / "run.jsonl", tmp_path / "kept"
    command = ["finetune", *"--train 24 --dev 8 --test 8 --batch 4 --steps 4 --eval-every 2 --eta-x 1e-3".split(),
               "--out", str(out), "--checkpoint", str(kept)]  # fmt: skip
    assert main([*command, "--dry-run"]) == 0
    assert "zeroth-order: two-sided gaussian, q = 1" in capsys.readouterr().out and not out.exists()
    assert main(command) == 0
    said = capsys.readouterr()
    assert "Hybrid-LoRA (eta_x 0.001, eta_y" in said.out and "test: 8 of the 600 items" in said.out
    assert "smoothlab: train and dev: builtin's training sentences\n" in said.err
    assert "smoothlab: test: 8 of the 600 items of builtin's own validation sentences\n" in said.err
    wanted = rows_of(out)
    out.write_text("".join(line + "\n" for line in out.read_text().splitlines()[:4]))
    assert main(command) == 0
    assert rows_of(out) == wanted
    assert main(["plot", str(out), "--kind", "finetune", "--out", str(tmp_path / "curves.png")]) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--data sst3", "task 'sst3' is unknown: did you mean sst2?"),
        ("--peft lorra", "--peft lorra is unknown: did you mean lora?"),
        ("--batch 25", "--batch 25 with 24 training examples: use 1 to 24"),
        ("--mu 1e-12", "mu = 1e-12 on block 'base' in float32: rounding lets"),
        ("--mu 1e-4 --dtype bfloat16", "rounding lets"),
        ("--model nowhere", "nowhere"),
        ("--rank 4 --peft ia3", "--rank 4 with --peft ia3, which has no rank: leave --rank out"),
        ("--rule sgd", "--rule of `smoothlab finetune` is --optimizer now"),
        ("--mu 1e30", "at x + mu z, and 0.803 at x: lower --mu (1e+30)"),
        ("--measure base --peft dora", "--peft dora cannot be measured: "),
    ],
)
def test_the_command_line_says_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    from smoothlab.__main__ import main

    out = tmp_path / "run.jsonl"
    sizes = "--train 24 --dev 8 --test 8 --batch 4 --steps 2 --out".split()
    assert main(["finetune", *sizes, str(out), *options.split()]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("smoothlab: error: ") and words in last
    assert not out.exists() or {row["step"] for row in rows_of(out)} == {0}  # what mu is too small for begins behind it


@pytest.mark.parametrize(
    ("method", "given", "idle"),
    [
        ("zo", {"eta_y": 3.0, "q": 2}, ["--eta-y 3.0"]),
        ("fo-peft", {"eta_x": 3.0, "mu": 0.1, "q": 2, "eta_y": 0.1}, ["--eta-x 3.0", "--mu 0.1", "--q 2"]),
        (
            "fo-full",
            {"eta_y": 0.1, "sides": 1, "distribution": "sphere"},
            ["--eta-y 0.1", "--sides 1", "--distribution sphere"],
        ),
        ("hybrid", {"eta_x": 3.0, "eta_y": 0.1, "mu": 0.1, "q": 2, "sides": 1, "distribution": "sphere"}, []),
    ],
)
def test_options_that_a_method_does_not_use_are_told(method: Any, given: dict[str, Any], idle: list[str]) -> None:
    run_ = replace(Finetune(method=method), **given)
    assert unused(run_) == [f"{one} is not used by --method {method}" for one in idle]


def test_the_command_on_a_card_writes_switches_without_a_value() -> None:
    run_ = Finetune(path=False, search=("eta_y=0.01,0.05",), save=Path("my weights"))
    assert command(run_) == "smoothlab finetune --no-path --search eta_y=0.01,0.05 --save 'my weights'"


def test_classes_of_a_file_have_words_and_a_prompt_of_the_users(tmp_path: Path) -> None:
    """Three classes: without words they are refused with the fix, with words and a template each item has them."""
    path = tmp_path / "three.jsonl"
    path.write_text("".join(json.dumps({"sentence": f"film {k}", "label": k % 3}) + "\n" for k in range(60)))
    asked = Finetune(data=str(path), train=12, dev=4, test=4, batch=4, steps=0)
    with pytest.raises(BadInput, match="has 3 classes and no verbalizers: .*--verbalizers WORD"):
        asked.setup()
    setup = replace(asked, verbalizers=("bad", "plain", "good"), template="On {sentence}:").setup()
    tokenizer = load_lm("micro", seed=0).tokenizer
    for context, options in zip(setup.test.contexts, setup.test.options, strict=True):
        assert tokenizer.decode(context[1:]).startswith("on film ") and tokenizer.decode(context).endswith(":")
        assert [tokenizer.decode(option) for option in options] == [" bad", " plain", " good"]


def test_a_run_of_no_steps_says_that_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = tiny_model(tmp_path / "model"), write_sentences(tmp_path / "data.jsonl")
    words = ["--model", str(model), "--data", str(data), "--train", "24", "--dev", "8", "--test", "4", "--batch", "4"]
    assert main(["finetune", *words, "--steps", "0", "--out", str(tmp_path / "run.jsonl")]) == 0
    assert "--steps 0 trains nothing: the test is that of the model as it starts\n" in capsys.readouterr().err


def test_runs_that_test_nothing_name_the_training_data_alone_one_note_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = tiny_model(tmp_path / "model"), write_sentences(tmp_path / "data.jsonl")
    measured = Smoothness(model=str(model), data=str(data), batch=4, peft="lora", measure=("peft",), steps=0, points=1)
    notes = measured.setup().notes
    capsys.readouterr()  # bars of transformers
    say(*notes, "", "the last note")
    assert capsys.readouterr().err.splitlines() == [
        "smoothlab: attention: torch's MATH kernel where curvature is measured, as faster ones have no second "
        "derivatives",
        f"smoothlab: train: {data}",
        "smoothlab: the last note",
    ]
