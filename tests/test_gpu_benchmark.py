"""`python -m benchmarks.gpu`: rehearsed in micro size on a CPU, stopped and continued, and what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_pieces, gpu_runs
from benchmarks.gpu import CLOSING, Gpu, Piece, Unfinished, main, pieces, selected
from benchmarks.gpu_pieces import SIZES, STEPS, Bench, differing
from smoothlab import records
from smoothlab.hessian.trajectory import schedule
from tests.test_docs import misfits

MICRO = ["--size", "micro", "--device", "cpu", "--out"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "row"]


def finished(path: Path) -> bool:
    return json.loads(path.read_text().splitlines()[-1])["kind"] == "end"


def two_pieces(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Two pieces that take no time, the second of which fails at its first call, after a row."""

    def rows(bench: Bench, name: str) -> Iterator[dict[str, Any]]:
        calls.append(name)
        told = {"unit": "seconds", "low": None, "high": None, "target": None}
        yield {"what": "first", "value": 1.0, **told}
        if calls == ["a-1", "b"]:
            raise torch.OutOfMemoryError("CUDA out of\nmemory")
        yield {"what": "second", "value": 2.0, **told}

    made = [Piece(name, lambda bench, name=name: rows(bench, name), 60) for name in ("a-1", "b")]  # type: ignore[misc]
    monkeypatch.setattr(gpu, "pieces", lambda size: made)


def test_a_piece_that_fails_is_told_and_made_by_the_next_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    two_pieces(monkeypatch, calls)
    out = tmp_path / "gpu.jsonl"
    assert main([*MICRO, str(out)]) == 1
    errors = capsys.readouterr().err
    assert "gpu: b is missing: OutOfMemoryError: CUDA out of memory\n" in errors and not finished(out)
    assert "gpu: a-1: next, 0 of 2 done, about 2 min ahead (a guess)\n" in errors
    assert main([*MICRO, str(out)]) == 0
    assert calls == ["a-1", "b", "b"] and finished(out)
    assert "gpu: b: next, 1 of 2 done, about " in capsys.readouterr().err
    whats = [(row["piece"], row["what"]) for row in rows_of(out)]
    assert whats == [(name, what) for name in ("a-1", "b") for what in ("first", "second", CLOSING)]
    assert main([*MICRO, str(out)]) == 0 and len(calls) == 3
    assert not misfits(out)


def test_chosen_pieces_leave_room_for_the_others_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    two_pieces(monkeypatch, calls)
    out = tmp_path / "gpu.jsonl"
    assert main([*MICRO, str(out), "--pieces", "b"]) == 0 and not finished(out)
    assert main([*MICRO, str(out), "--pieces", "b"]) == 0
    assert main([*MICRO, str(out), "--pieces", "a"]) == 0 and finished(out)
    assert calls == ["b", "a-1"]
    assert [row["piece"] for row in rows_of(out)] == ["a-1"] * 3 + ["b"] * 3


def test_rows_stand_where_their_piece_is_whole() -> None:
    experiment = Gpu("micro", "cpu", None, None, Path())
    row = {"piece": "stream", "what": "x", "value": 1.0}
    closing = {"piece": "stream", "what": CLOSING, "value": 3}
    assert experiment.standing([row, row, closing, {**row, "piece": "pretrain"}, None]) == [row, row, closing]
    assert experiment.standing([row, None, closing]) == []
    with pytest.raises(Unfinished):
        next(experiment.rows([]))


def test_bits_are_compared_not_values() -> None:
    nan, zero = float("nan"), torch.tensor([0.0, 1.0])
    assert differing(zero, -zero) == 2 and differing(zero, zero.clone()) == 0
    assert differing(torch.tensor([nan]), torch.tensor([nan])) == 0
    half = torch.tensor([1.0, 1.0], dtype=torch.bfloat16)
    assert differing(half, half * torch.tensor([1.0, 1.01], dtype=torch.bfloat16)) == 1


def test_bits_that_a_device_changes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("micro", "cpu", None, None, tmp_path)
    gaussian = gpu_pieces._portable()[:1]
    monkeypatch.setattr(gpu_pieces, "_portable", lambda: gaussian)
    monkeypatch.setattr(gpu_pieces, "speedups", lambda *arguments: iter(()))
    assert [row["value"] for row in gpu_pieces.stream(bench)] == [0.0] * 4

    draw, calls = type(gaussian[0]).draw, []

    def drawn(self: Any, block: Any, seed: Any) -> torch.Tensor:
        z = draw(self, block, seed)
        calls.append(block)
        if len(calls) % 2 == 0:  # what the device draws
            z[5] *= 1 + 2**-7
        return z

    monkeypatch.setattr(type(gaussian[0]), "draw", drawn)
    assert [row["value"] for row in gpu_pieces.stream(bench)] == [2.0, 0.0] * 2  # an entry for each of two seeds


def test_the_ratio_is_that_of_a_step_to_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that takes forward passes for seconds, a step has as many as its parts say."""
    forwards = [0]
    loss_of = gpu_pieces.loss_of

    def counted(*arguments: Any, **options: Any) -> Any:
        loss = loss_of(*arguments, **options)

        def counting() -> torch.Tensor:
            forwards[0] += 1
            return loss()

        return counting

    def clock(job: Any) -> float:
        forwards[0] = 0
        job()
        return float(forwards[0])

    monkeypatch.setattr(gpu_pieces, "loss_of", counted)
    monkeypatch.setattr(gpu_pieces, "timed_on", lambda device: clock)
    rows = list(gpu_pieces.steps(Bench("micro", "cpu", None, None, tmp_path), "7b"))
    ratios = {row["what"]: (row["value"], row["target"]) for row in rows if row["unit"] == "parts"}
    expected = {
        f"{what}, {kept}": (1.0, aim) for what, (*_, aim) in STEPS.items() for kept in ("fp32 masters", "no masters")
    }
    assert ratios == expected
    assert all(row["model"] == "llama-2-7b, made small" and row["device_bytes"] is None for row in rows)


def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (["--size", "micro", "--device", "cpu", "--pieces", "zo"], "--pieces zo: no such piece; name one, or a group"),
        (["--device", "cpu"], "--size full with --device cpu: models of 7 billion need a GPU, use --size micro"),
    ]
    if not torch.cuda.is_available():
        cases.append(([], "--device cuda: torch sees no CUDA device here; use --device cpu"))
    for arguments, words in cases:
        assert main([*arguments, "--out", str(tmp_path / "x.jsonl")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("gpu: error: ") and words in line
    assert not list(tmp_path.iterdir())


def test_a_piece_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MICRO, str(tmp_path / "x.jsonl"), "--pieces", "table1-zo-seed0"]) == 1
    assert "table1-zo-seed0 is missing: no pre-trained model in " in capsys.readouterr().err
    with pytest.raises(gpu.BadInput, match="there is no text: name a folder with novels.txt.gz and movie_reviews"):
        next(gpu_runs.pretrain(Bench("full", "cuda", None, None, tmp_path)))


def test_pieces_of_the_full_size_are_those_of_the_issue() -> None:
    names = [piece.name for piece in pieces("full")]
    assert names[:5] == ["stream", "steps-125m", "steps-1.3b", "steps-7b", "pretrain"] and len(set(names)) == len(names)
    much = SIZES["full"]
    assert [name for name in names if name.startswith("d4-full")] == [f"d4-full-{k}" for k in (1, 2, 3, 4)]
    assert much.points == len(schedule(5000, much.points, "linear")) == 20
    assert sum(name.startswith("table1-") for name in names) == 7 * 3  # methods and seeds
    assert selected("full", ["steps", "table1-zo-seed1"]) == [*names[1:4], "table1-zo-seed1"]
    assert all(piece.expected < 9 * 60 for piece in pieces("full"))


@pytest.mark.check
def test_the_whole_rehearsal_is_made_and_makes_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.jsonl"
    assert main([*MICRO, str(out), "--pieces", "stream", "pretrain", "d4-full-1"]) == 0 and not finished(out)
    half = rows_of(tmp_path / "gpu" / "d4-full-pretrained.jsonl")
    assert main([*MICRO, str(out)]) == 0 and finished(out)
    assert not misfits(out) and "gpu: steps-125m: next, 3 of 11 done" in capsys.readouterr().err
    rows = rows_of(out)
    assert list(dict.fromkeys(row["piece"] for row in rows)) == [piece.name for piece in pieces("micro")]
    assert all(row["value"] == 0 for row in rows if row["unit"] == "entries")
    for name in ("d4-full-pretrained", "d4-lora-pretrained", "table1/sst2-zo-seed0", "table1/sst2-hybrid-lora-seed0"):
        assert finished(tmp_path / "gpu" / f"{name}.jsonl") and not misfits(tmp_path / "gpu" / f"{name}.jsonl")
    # The second slice goes on where the first one ended, and measures its points anew nowhere.
    whole = rows_of(tmp_path / "gpu" / "d4-full-pretrained.jsonl")
    assert whole[: len(half)] == half and len(set(row["step"] for row in half)) == 2
    assert not list((tmp_path / "gpu" / "checkpoints").iterdir())
    norm = {row["what"]: row["value"] for row in rows if row["piece"] == "d4-full-1"}[
        "estimated norm: base, median of points"
    ]
    table = records.load(tmp_path / "gpu" / "d4-full-pretrained.jsonl")
    estimated = table.query("protocol == 'estimated' and quantity == 'frobenius' and block == 'base' and wrt == 'base'")
    assert norm == estimated.sort_values("step")["value"][:2].mean()
