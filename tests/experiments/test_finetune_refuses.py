"""What `smoothlab finetune` says of bad data, models, rates and checkpoints: one line, exit status 2, rows kept."""

import gzip
import http.server
import json
import os
import shutil
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from smoothlab.__main__ import main
from tests.experiments.test_finetune import rows_of

OPTIONS = "--train 24 --dev 8 --test 4 --batch 4 --eval-every 2 --patience 0 --steps 4"
KNOWN = ("smoothlab: train and dev: ", "smoothlab: test: ", "smoothlab: resumed at step")
Said = Callable[..., str]


@pytest.fixture
def said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """What the command says on stderr, less what it says of its data; it runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_bytes((folder / "data.jsonl").read_bytes())

    def run(options: str, *, status: int = 2, model: object = folder / "model") -> str:
        capsys.readouterr()
        given = ["--model", str(model), "--data", "data.jsonl", "--out", "run.jsonl", *OPTIONS.split()]
        assert main(["finetune", *given, *options.split()]) == status
        lines = capsys.readouterr().err.splitlines()
        told = [line for line in lines if not line.startswith(KNOWN)]
        (line,) = told
        assert line.startswith("smoothlab: error: ") == (status == 2)
        return line.removeprefix("smoothlab: ").removeprefix("error: ")

    return run


GOOD = "".join(json.dumps({"sentence": f"film {i}", "label": i % 2}) + "\n" for i in range(40))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (GOOD[:-12], ":40, the last line, is cut off (Expecting property name enclosed in double quotes at"),
        (GOOD[:-20], ":40, the last line, is cut off (Unterminated string starting at character 14): give a whole"),
        (GOOD[:90] + GOOD[110:], ":3 is not JSON (Expecting ',' delimiter at character 27): mend or delete"),
        (GOOD + '{"sentence": "x"}\n', ':41 has no label: give a whole number, from 0, in the field "label"'),
        (GOOD.replace(": 1", ': "1"'), ':2 has label "1": write it without quotes'),
        (GOOD.replace(": 1", ': "good"'), ':2 has label "good": number the classes 0, 1, ..., below 1000'),
        (GOOD.replace(": 1}", ": 1.0}"), ":2 has label 1.0: number the classes 0, 1, ..."),
        ("", ' is empty: give lines like {"sentence": "fine", "label": 1}'),
        (GOOD.replace(": 1}", ": 0}"), " has no label but 0: give examples of at least two classes"),
        (GOOD.replace(": 0}", ": 1}"), " has no label but 1: give examples of at least two classes"),
        (GOOD + '{"sentence": "x", "label": 2}\n', " has 3 classes and no verbalizers: give each class its own word"),
    ],
)
def test_bad_data_files(said: Said, content: str, told: str) -> None:
    for name in ("bad.jsonl", "bad.jsonl.gz"):
        packed = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
        Path(name).write_bytes(packed)
        assert f"{name}{told}" in said(f"--data {name}")
    assert not Path("run.jsonl").exists()


def test_archives_that_are_cut_and_files_that_are_none(said: Said) -> None:
    whole = gzip.compress((GOOD * 20).encode())
    for size, told in ((len(whole) // 2, " after line "), (5, ": "), (len(whole) - 4, " after line 800: ")):
        Path("cut.jsonl.gz").write_bytes(whole[:size])
        line = said("--data cut.jsonl.gz")
        assert line.startswith(f"cannot read cut.jsonl.gz{told}") and "Compressed file ended before the end" in line
        assert line.endswith("; give a whole gzip file of UTF-8 JSON Lines")
    Path("table.csv").write_text("a,b")
    assert said("--data table.csv").startswith("--data table.csv does not end in .jsonl or .jsonl.gz: write it as JSON")
    assert said("--data .").startswith("--data . is a folder: name a .jsonl or .jsonl.gz file in it, or a task with")
    assert said("--data no.jsonl") == "cannot read no.jsonl: No such file or directory; check the name"


def test_data_folders(said: Said, folder: Path) -> None:
    Path("sets").mkdir()
    assert said("--data sst2 --data-dir sets").startswith("no sst2/train.jsonl.gz in sets: give --data-dir the folder")
    assert said("--data copa --data-dir none").startswith("--data-dir none is no folder: give the one that holds copa/")
    Path("sets/sst2").mkdir()
    Path("sets/sst2/train.jsonl").write_text(GOOD)
    line = said("--data sst2 --data-dir sets")
    assert line == "sets/sst2 has no validation.jsonl, packed (.gz) or not: put the validation split there"
    Path("sets/sst2/validation.jsonl").write_text(GOOD.replace(": 1}", ": -1}"))
    assert "sets/sst2/validation.jsonl:2 has label '-1': give a whole number, 0 to 1" in said(
        "--data sst2 --data-dir sets"
    )


class Interrupted(http.server.BaseHTTPRequestHandler):
    """A stand-in for the hub that breaks off in the middle of every large file."""

    files: dict[str, bytes] = {}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1].partition("?")[0]
        content = self.files.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        for header, value in {
            "Content-Length": len(content), "ETag": f'"{name}"', "X-Repo-Commit": "a" * 40, "Accept-Ranges": "none",
        }.items():  # fmt: skip
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content if len(content) < 5000 else content[: len(content) // 2])
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a hub on this machine, to which the client and its cache are turned."""
    from huggingface_hub import constants

    Interrupted.files = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    Interrupted.files["data.jsonl"] = GOOD.encode() * 10
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Interrupted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield address
    server.shutdown()
    server.server_close()


def test_an_interrupted_download_of_data(said: Said, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> list[Any]:
        with urllib.request.urlopen(f"{hub}/data.jsonl") as stream:  # raises IncompleteRead
            return [json.loads(line) for line in stream.read().splitlines()]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=read))
    line = said("--data copa")
    assert line.startswith("cannot read copa from the hub (IncompleteRead(")
    assert line.endswith("): try again, or give --data-dir a folder with copa/train.jsonl")


@pytest.mark.slow  # the hub's client tries five times
def test_an_interrupted_download_of_a_model(said: Said, hub: str) -> None:
    line = said("", model="owner/model")
    assert line.startswith("cannot load model 'owner/model': the download of its tokenizer broke off (")
    assert line.endswith("): try the same command again") and "peer closed connection" in line


@pytest.mark.parametrize(
    ("options", "told", "parts"),
    [
        (
            "--peft adaption_prompt",
            "--peft adaption_prompt does not fit this model of type opt (Unsupported model type",
            [],
        ),
        (
            "--mu 1e-12",
            "mu = 1e-12 on block 'base' in float32: rounding lets 1 % of the step through; use mu of",
            ["dev", "dev"],
        ),
        ("--save data.jsonl/new", "--save data.jsonl/new: Not a directory; name another path", []),
        ("--eta-y 1e30", "the loss is nan at step 1, and was 0.69", ["dev", "stopped"]),
        (
            "--method zo --eta-x 1 --steps 20",
            "lower --eta-x (1); size of the weights, times that at",
            ["dev", "stopped"],
        ),
    ],
)
def test_methods_and_rates(said: Said, options: str, told: str, parts: list[str]) -> None:
    assert told in said(options)
    rows = rows_of(Path("run.jsonl")) if Path("run.jsonl").exists() else []
    assert [row["part"] for row in (rows and [rows[0], rows[-1]])] == parts


def edited(path: Path, edit: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> None:
    """Change the state, which is JSON, or the tensors of a snapshot."""
    with safetensors.safe_open(path, "pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    state = json.loads(metadata["state"])
    edit(state, tensors)
    safetensors.torch.save_file(tensors, path, metadata={**metadata, "state": json.dumps(state)})


def without(tensors: dict[str, torch.Tensor], word: str) -> None:
    for name in [name for name in tensors if word in name]:
        del tensors[name]


DAMAGE: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "cut": (lambda after, best: os.truncate(after, 999), "after-00000003.safetensors: it is damaged ("),
    "empty": (lambda after, best: os.truncate(after, 0), "after-00000003.safetensors: it is damaged ("),
    "best cut": (lambda after, best: os.truncate(best, 999), ".safetensors: it is damaged ("),
    "best lost": (lambda after, best: best.unlink(), ".safetensors: there is no such file; put the file back, or"),
    "count": (
        lambda after, best: edited(after, lambda s, t: s["packed"]["selection"].update(rows=2)),
        "or was changed since;",
    ),
    "step": (
        lambda after, best: edited(after, lambda s, t: s["packed"]["trainer"].update(step="x")),
        "or was changed since;",
    ),
    "part": (lambda after, best: edited(after, lambda s, t: s["packed"].pop("selection")), "or was changed since;"),
    "weights": (lambda after, best: edited(after, lambda s, t: without(t, "lora_A")), "or was changed since;"),
    "best": (lambda after, best: edited(best, lambda s, t: without(t, "lora_A")), "or was changed since;"),
    "no JSON": (lambda after, best: after.write_bytes(b"{broken"), "after-00000003.safetensors: it is damaged ("),
}


@pytest.fixture(scope="module")
def stopped(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before its test row, and what is on disk then."""
    place = tmp_path_factory.mktemp("stopped")
    here = os.getcwd()
    os.chdir(place)
    try:
        shutil.copy(folder / "data.jsonl", place)
        given = ["--model", str(folder / "model"), "--data", "data.jsonl", "--out", "run.jsonl", *OPTIONS.split()]
        for log in ("", "log:"):
            assert main(["finetune", *given, "--overwrite", "--checkpoint", f"{log}kept{log[:3]}"]) == 0
            lines = Path("run.jsonl").read_text().splitlines(keepends=True)
            Path(f"stopped{log[:3]}.jsonl").write_text("".join(lines[:-2]))
    finally:
        os.chdir(here)
    return place


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints(said: Said, stopped: Path, damage: str) -> None:
    shutil.copytree(stopped / "kept", "kept")
    shutil.copy(stopped / "stopped.jsonl", "run.jsonl")
    before = rows_of(Path("run.jsonl"))
    (after,), (best,) = (list(Path("kept").glob(f"{kind}-*")) for kind in ("after", "best"))
    do, told = DAMAGE[damage]
    do(after, best)
    line = said("--checkpoint kept")
    assert told in line and line.endswith("; put the file back, or delete kept to start again")
    assert rows_of(Path("run.jsonl")) == before


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (lambda log: log.unlink(), "zeroth-000.log holds no step, the run goes on from step 4: give the log that"),
        (lambda log: os.truncate(log, log.stat().st_size - 40), "zeroth-000.log ends before step 2, the run goes on"),
        (lambda log: log.write_bytes(b"x" * 400), "zeroth-000.log is no seed log of smoothlab, or its first line"),
    ],
)
def test_damaged_seed_logs(said: Said, stopped: Path, do: Callable[[Path], Any], told: str) -> None:
    shutil.copytree(stopped / "keptlog", "keptlog")
    shutil.copy(stopped / "stoppedlog.jsonl", "run.jsonl")
    log = Path("keptlog/zeroth-000.log")
    do(log)
    content = log.read_bytes() if log.exists() else None
    assert told in said("--checkpoint log:keptlog")
    assert content == (log.read_bytes() if log.exists() else None)
    assert len(rows_of(Path("run.jsonl"))) == 3


def test_a_checkpoint_that_is_gone_is_told(said: Said, stopped: Path) -> None:
    shutil.copy(stopped / "stopped.jsonl", "run.jsonl")
    before = rows_of(Path("run.jsonl"))
    Path("kept").mkdir()
    Path("kept/after-mine.safetensors").touch()  # somebody else's
    assert said("--checkpoint kept", status=0) == "--checkpoint kept holds no checkpoint: the run starts again"
    assert rows_of(Path("run.jsonl"))[:3] == before
