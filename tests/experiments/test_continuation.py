"""What the line after Ctrl-C says of the same command, and that the same command then does so."""

from pathlib import Path

import pytest

from smoothlab import commands, record_files, records
from smoothlab.__main__ import main
from smoothlab.experiments.continuation import AGAIN, continuation
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.trainer import Trainer
from tests.experiments import toy, toy_finetune

FINETUNE = "finetune --train 24 --batch 8 --steps 8"
SMOOTHNESS = "smoothness --steps 8 --points 3 --protocol estimated --no-path"
ESTIMATORS = "estimators --parts bias --functions cosh --distributions gaussian rademacher --draws 100 --mus 0.1 1.0"
QUADRATIC = "quadratic --parts rates --ratios 2 3 --steps 10 --max-steps 100"
RATES = "rates --parts theorem --eps 1 --deltas 0.5 --families quadratic --ns 8 --dims 5 --replicas 20 --max-steps 500"
# command, rows after which it is stopped, what the line says, first step that is trained again (None: no training)
STOPPED = {
    "finetune": (FINETUNE, 2, "starts from step 0 again, as there is no --checkpoint", 0),
    "before its checkpoint": (f"{FINETUNE} --checkpoint kept", 1, "starts from step 0 again, as kept holds no", 0),
    "with checkpoint": (f"{FINETUNE} --checkpoint kept", 2, "continues from the last checkpoint in kept", 0),
    "with log": (f"{FINETUNE} --checkpoint log:kept", 3, "continues from the last checkpoint in kept", 4),
    "smoothness": (SMOOTHNESS, 5, "trains from step 0 again, and measures the missing points", 0),
    "its checkpoint": (f"{SMOOTHNESS} --checkpoint kept", 12, "measures the missing points, from the last", 4),
    "estimators": (ESTIMATORS, 7, "measures the missing settings", None),
    "quadratic": (QUADRATIC, 20, "measures the missing settings", None),
    "rates": (RATES, 4, "measures the missing settings", None),
    "audit": ("audit eq-2 b.3 prop-2.2", 2, "checks the missing claims", None),
}


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C as soon as so many rows are on disk."""
    append, rows = record_files.RecordFile.append, []

    def stopped(self: record_files.RecordFile, row: records.Row) -> None:
        append(self, row)
        rows.append(row)
        if len(rows) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(record_files.RecordFile, "append", stopped)


QUICK = ("finetune", "with checkpoint", "smoothness", "estimators")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.check) for name in STOPPED]
)
def test_the_same_command_does_what_the_line_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str
) -> None:
    words, rows, says, first = STOPPED[name]
    argv = [*words.split(), "--out", "run.jsonl"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(commands.EXPERIMENTS, "finetune", toy_finetune.Toy)
    monkeypatch.setitem(commands.EXPERIMENTS, "smoothness", toy.Toy)
    trained, update = [], Trainer.update

    def watched(self: Trainer) -> float:
        trained.append(self.step)
        return update(self)

    monkeypatch.setattr(Trainer, "update", watched)
    with monkeypatch.context() as stopping:
        stop_after(rows, stopping)
        assert main(argv) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"smoothlab: stopped; the same command {says}"), line
    before = Path("run.jsonl").read_text().splitlines()
    trained.clear()
    assert main(argv) == 0
    assert (trained[0] if trained else None) == first
    assert record_files.read(Path("run.jsonl")).finished
    if first is None:  # rows that were there are not measured again
        assert Path("run.jsonl").read_text().splitlines()[: len(before)] == before
    capsys.readouterr()


def interrupted(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 130
    return capsys.readouterr().err.removeprefix("smoothlab: stopped; ")


def test_a_command_that_has_stored_nothing_is_to_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.jsonl").write_text('{"kind": "header", "experiment": "x", "config": {}, "environment": {}}\n')
    monkeypatch.setattr(records, "load", interrupted)
    monkeypatch.setattr(Finetune, "plan", interrupted)
    monkeypatch.setattr(Finetune, "rows", interrupted)
    monkeypatch.setattr("smoothlab.experiments.audit.Audit.rows", interrupted)
    for argv in (["plot", "run.jsonl"], ["report", "run.jsonl"], ["finetune", "--dry-run", "--out", "new.jsonl"],
                 ["finetune", "--out", "new.jsonl"], ["finetune", "--overwrite", "--out", "run.jsonl"],
                 ["audit", "b.3"], ["audit", "--out", "new.jsonl"]):  # fmt: skip
        assert said(capsys, *argv) == f"{AGAIN}\n", argv
    assert said(capsys, "finetune", "--out", "/dev/null") == f"/dev/null keeps no records: {AGAIN}\n"


def test_the_demo_measures_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("smoothlab.experiments.demo.measure", interrupted)
    argv = ["demo", "--out", str(tmp_path / "d")]
    assert said(capsys, *argv) == f"the same command measures what is missing in {tmp_path}/d\n"
    assert said(capsys, *argv, "--overwrite").startswith("the same command without --overwrite measures what is")


def test_overwrite_is_left_out_once_the_old_rows_are_gone(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    out.write_text("rows of before\n")
    words = continuation(out, True, lambda: "measures the rest")
    assert words() == AGAIN
    out.write_text("")  # as while its first row is measured
    assert words() == AGAIN
    out.write_text("rows of now\n")
    assert words() == "the same command without --overwrite measures the rest"
    assert continuation(out, False, lambda: "measures the rest")() == AGAIN
