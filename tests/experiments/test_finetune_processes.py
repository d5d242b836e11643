"""`smoothlab finetune` in two processes: what is told, killed and continued; torchrun itself."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

from smoothlab.llm import distributed
from smoothlab.optim.hybrid import HybridSGD
from tests.experiments.command import Plant, dies, ended, forked
from tests.experiments.test_finetune import rows_of

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = "--train 24 --dev 8 --test 4 --batch 4 --eval-every 4 --patience 0 --mu 1e-2 --dtype float64"


@pytest.fixture(autouse=True)
def without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody stops the process that waits for the other one's word."""
    monkeypatch.setattr(distributed, "PATIENCE", 1.0)
    monkeypatch.setattr(distributed, "SENTENCE", 0.0)


def command(folder: Path, place: Path, options: str = "--steps 12") -> list[str]:
    place.mkdir(exist_ok=True)
    given = ["--model", folder / "model", "--data", folder / "data.jsonl", "--out", place / "run.jsonl"]
    return ["finetune", *map(str, given), *OPTIONS.split(), *options.split()]


def two(argv: list[str], said: Path, plants: Sequence[Plant | None] = (None, None)) -> list[tuple[int, str]]:
    """Exit status and stderr of two processes, told who they are, and where they meet, as torchrun tells them."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    files = [said / f"said.{n}" for n in range(2)]
    children = [forked(argv, files[n], plants[n], RANK=str(n), LOCAL_RANK=str(n), **shared) for n in range(2)]
    return [(ended(child), file.read_text()) for child, file in zip(children, files, strict=True)]


def errors(said: str) -> list[str]:
    """All lines but what the run says of its data."""
    of_data = ("smoothlab: train and dev", "smoothlab: test: ")
    return [line for line in said.splitlines() if not line.startswith(of_data)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--eta-y 1e300", "the loss is nan at step 1, and was"),
        ("--method fo-peft --batch 5", "--batch 5 with 2 processes: use a multiple of 2"),
        ("--dry-run --batch 5", "--batch 5 with 2 processes: use a multiple of 2"),
        ("--method none", "--method none is unknown"),
    ],
)
def test_an_error_is_told_once(folder: Path, tmp_path: Path, options: str, words: str) -> None:
    (first, said), (second, nothing) = two(command(folder, tmp_path, options), tmp_path)
    assert (first, second) == (2, 2) and nothing == ""
    (line,) = errors(said)
    assert line.startswith("smoothlab: error: ") and words in line


def test_a_folder_that_cannot_be_made_is_told_before_the_others_begin(folder: Path, tmp_path: Path) -> None:
    """The second process, which has nothing to do then, ends in peace."""
    (first, said), second = two(command(folder, tmp_path, "--checkpoint /proc/none"), tmp_path)
    assert first == 2 and second == (0, "")
    (line,) = errors(said)
    assert line.startswith("smoothlab: error: cannot write --checkpoint /proc/none: No such file or directory")


def test_a_plan_is_made_by_all_and_told_once(folder: Path, tmp_path: Path) -> None:
    assert two(command(folder, tmp_path, "--dry-run"), tmp_path) == [(0, ""), (0, "")]
    first, second = ((tmp_path / f"said.{n}.stdout").read_text() for n in range(2))
    assert "a step takes" in first and second == ""


@pytest.mark.parametrize("number", [0, 1])
def test_who_outlives_another_says_one_line(folder: Path, tmp_path: Path, number: int) -> None:
    plants: list[Plant | None] = [None, None]
    plants[number] = dies(HybridSGD, "_move", 2)
    found = two(command(folder, tmp_path), tmp_path, plants)
    assert [status for status, _ in found] == ([-9, 2], [2, -9])[number]
    (line,) = errors(found[1 - number][1])
    assert f"process {1 - number} of 2 cannot reach another one, which has ended" in line
    assert [row["step"] for row in rows_of(tmp_path / "run.jsonl")] == [0]


def torchrun(argv: list[str]) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "smoothlab", *argv]


def seen(argv: list[str]) -> str:
    """What a terminal shows of a command that ends well."""
    lead, follow = pty.openpty()
    termios.tcsetwinsize(follow, (24, 200))
    process = subprocess.Popen(argv, cwd=ROOT, stdout=follow, stderr=follow, env=os.environ | {"OMP_NUM_THREADS": "1"})
    os.close(follow)
    shown = b""
    with contextlib.suppress(OSError):  # what a terminal says at its end
        while part := os.read(lead, 65536):
            shown += part
    assert process.wait() == 0, shown.decode()
    return shown.decode()


@pytest.mark.slow
def test_torchrun_makes_the_run_of_one_process(folder: Path, tmp_path: Path) -> None:
    """The same rows to the bit, one record file, one progress bar; killed, it goes on to the bit."""
    options = "--steps 32 --peft prefix --checkpoint"
    one, whole, place = (tmp_path / name for name in ("one", "whole", "killed"))
    assert ended(forked(command(folder, one, f"{options} {one}/kept"), one / "said")) == 0
    shown = seen(torchrun(command(folder, whole, f"{options} {whole}/kept")))
    assert shown.count(" 0/32 [") == 1 and " 32/32 [" in shown and shown.count("smoothlab: train and dev") == 1
    assert [path.name for path in whole.iterdir() if path.suffix == ".jsonl"] == ["run.jsonl"]
    wanted, found = rows_of(one / "run.jsonl"), rows_of(whole / "run.jsonl")
    assert len(wanted) == 10 and wanted == found

    argv = torchrun(command(folder, place, f"{options} {place}/kept"))
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=open(place / "said", "w"))
    out = place / "run.jsonl"
    while not out.exists() or out.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, (place / "said").read_text()
        time.sleep(0.01)
    workers = {one.environ()["RANK"]: one for one in psutil.Process(process.pid).children() if "RANK" in one.environ()}
    workers["1"].kill()
    assert process.wait() == 1 and "SIGKILL" in (place / "said").read_text()
    assert " 32/32 [" in seen(argv)
    assert rows_of(out) == found
    for path in (whole / "kept").iterdir():
        ours, theirs = (safetensors.torch.load_file(each / "kept" / path.name) for each in (place, whole))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
