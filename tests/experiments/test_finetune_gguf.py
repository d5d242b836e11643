"""`smoothlab finetune` on a GGUF file: records, checkpoints and saved weights are of that file, and of no other."""

import json
from pathlib import Path
from typing import Any

import pytest

from smoothlab.__main__ import main
from smoothlab.llm.gguf_files import identity, read
from tests.experiments.command import write_sentences
from tests.llm.gguf_writing import QUANTIZED, model, write

OPTIONS = (
    "--model tiny.gguf --data data.jsonl --method hybrid --peft lora --steps 4 --eval-every 2 --patience 0 --train 16 "
    "--dev 4 --test 4 --batch 4 --parts 1"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and data."""
    monkeypatch.chdir(tmp_path)
    write(Path("tiny.gguf"), model("llama", max_position_embeddings=96), default=QUANTIZED.Q4_1)
    write_sentences(Path("data.jsonl"))
    return tmp_path


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_runs_are_continued_on_the_same_file_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(options: str, status: int) -> list[str]:
        capsys.readouterr()
        assert main(["finetune", *OPTIONS.split(), *options.split()]) == status
        return capsys.readouterr().err.splitlines()

    told = run("--out run.jsonl --checkpoint ck --save saved", 0)
    words = read(here / "tiny.gguf").losses("float32")
    assert sum(words in line for line in told) == 1
    header, *rows = lines("run.jsonl")
    assert header["environment"]["model_file"] == identity(here / "tiny.gguf")

    # Stopped before the test, it goes on from the checkpoint to the same rows.
    first = Path("run.jsonl").read_text().splitlines(keepends=True)
    Path("run.jsonl").write_text("".join(first[:-2]))
    run("--out run.jsonl --checkpoint ck --save saved", 0)
    again = lines("run.jsonl")
    assert [row for row in again if row["kind"] == "row"] == [row for row in rows if row["kind"] == "row"]

    # A file of the same name with one other weight is another model.
    sum_there = identity(here / "tiny.gguf")["sha256"]
    content = bytearray(Path("tiny.gguf").read_bytes())
    content[-1] ^= 1
    Path("tiny.gguf").write_bytes(content)
    sum_here = identity(here / "tiny.gguf")["sha256"]
    (line,) = run("--out run.jsonl --checkpoint ck --save saved", 2)
    assert f'run.jsonl holds a run with model_file.sha256 = "{sum_there}", this one has' in line and sum_here in line
    (line,) = run("--out other.jsonl --checkpoint ck", 2)
    assert (
        f"is of another run (model_file=tiny.gguf of {len(content)} bytes with SHA-256 {sum_there[:16]}, this" in line
    )
    (line,) = run("--out other.jsonl --save saved", 2)
    assert "--save saved holds the weights of another run (model_file=tiny.gguf of" in line and sum_here[:16] in line
    assert not Path("other.jsonl").exists()


def test_a_file_that_is_cut_short_ends_the_command_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.gguf").write_bytes(Path("tiny.gguf").read_bytes()[:-100])
    for command in (["finetune", *OPTIONS.split()], ["smoothness", "--model", "tiny.gguf", "--data", "data.jsonl"]):
        capsys.readouterr()
        assert main([*command, "--out", "run.jsonl", "--checkpoint", "ck"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("smoothlab: error: cannot load model") and "is cut short or damaged" in line
    assert not Path("run.jsonl").exists() and not Path("ck").exists()
