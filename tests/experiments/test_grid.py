"""Grids: order, failures, several processes, a local dask cluster."""

import json
import os
import signal
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from smoothlab.__main__ import main
from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.errors import BadInput, Unfinished
from smoothlab.experiments import grid
from smoothlab.objectives import Quadratic, objective

POINTS = [{"d": d, "eta": eta} for d in (2, 3) for eta in (0.1, -1.0, 0.2)]


def measure(point: dict) -> list[dict]:
    f = objective(Quadratic(1.0), Quadratic(1.0), d_x=point["d"], n=2, sigma=0.1)
    found = Algorithm1(point["eta"], 0.1, 3).run(f, torch.ones(f.dim), 20)
    return [{"average": float(found.average.mean()), "process": os.getpid()}, {"threads": torch.get_num_threads()}]


def broken(point: dict) -> list[dict]:
    raise {"bad": BadInput("two\nlines"), "wrong": ValueError("x"), "stop": KeyboardInterrupt()}[point["kind"]]


def wanting(point: dict) -> list[dict]:
    """What runs out of memory or disk, really."""
    if point["kind"] == "torch":
        torch.empty(2**50)
    elif point["kind"] == "numpy":
        np.empty(2**50)
    elif point["kind"] == "disk":
        with open("/dev/full", "wb") as file:
            file.write(b"0")
    elif point["kind"] == "inner":
        try:
            torch.empty(2**50)
        except RuntimeError as error:
            raise ValueError("no replicas") from error
    elif point["kind"] == "worker":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point["kind"] == "wrong":
        raise FloatingPointError("no best rate")
    return [{"value": 1}]


def slow(point: dict) -> list[dict]:
    time.sleep(0.5)
    return [{"process": os.getpid()}]


def told(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "process"} for row in rows]


def test_every_point_has_its_rows_in_order_and_a_failed_one_says_why() -> None:
    threads = torch.get_num_threads()
    rows = list(grid.rows(POINTS, measure))
    assert [(row["d"], row["eta"]) for row in rows] == [
        (d, eta) for d in (2, 3) for eta, count in ((0.1, 2), (-1.0, 1), (0.2, 2)) for _ in range(count)
    ]
    assert [row["failed"] for row in rows if row["eta"] < 0] == [
        "BadInput: eta_x = -1.0: use a finite number of at least 0"
    ] * 2
    assert all(row["failed"] is None for row in rows if row["eta"] > 0)
    assert [row["threads"] for row in rows if "threads" in row] == [1] * 4 and torch.get_num_threads() == threads


def test_what_fails_is_told_in_one_line_but_an_interrupt_stops_all() -> None:
    rows = list(grid.rows([{"kind": "bad"}, {"kind": "wrong"}], broken))
    assert [row["failed"] for row in rows] == ["BadInput: two lines", "ValueError: x"]
    with pytest.raises(KeyboardInterrupt):
        list(grid.rows([{"kind": "stop"}, {"kind": "bad"}], broken))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("torch", "RuntimeError"), ("numpy", "MemoryError"), ("disk", "OSError"), ("inner", "ValueError")],
)
def test_what_runs_out_of_memory_or_disk_has_no_row(kind: str, name: str) -> None:
    """The points behind it are measured, then it is told; one that fails by itself is a row as ever."""
    seen: list[dict] = []
    with pytest.raises(Unfinished, match=f"^1 of 4 settings failed for want of room .*{name}.*: make room") as caught:
        seen.extend(grid.rows([{"kind": kind_} for kind_ in ("well", kind, "wrong", "well")], wanting))
    assert [(row["kind"], row["failed"]) for row in seen] == [
        ("well", None), ("wrong", "FloatingPointError: no best rate"), ("well", None),
    ]  # fmt: skip
    assert caught.value.status == 1 and "\n" not in str(caught.value)


@pytest.mark.check
def test_the_next_start_measures_what_was_wanting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1 and no end of the records, then 0 and the rows of an undisturbed run; nothing twice."""
    from smoothlab.experiments.quadratic import runs

    argv = "quadratic --parts rates --ratios 1 10 100 --out".split()
    out, whole = tmp_path / "run.jsonl", tmp_path / "whole.jsonl"
    assert main([*argv, str(whole)]) == 0
    measured, calls = runs.rates, []

    def full(config: object, point: dict) -> list[dict]:
        calls.append(point["ratio"])
        if len(calls) == 2:
            torch.empty(2**50)
        return measured(config, point)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "rates", full)
    capsys.readouterr()
    assert main([*argv, str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("smoothlab: error: 1 of 3 settings failed for want of room (RuntimeError: ")
    kinds = [json.loads(text)["kind"] for text in out.read_text().splitlines()]
    assert set(kinds[1:]) == {"row"}
    assert main([*argv, str(out)]) == 0 and calls[:3] == [1.0, 10.0, 100.0] and 1.0 not in calls[3:]

    def rows(path: Path) -> list[dict]:
        found = [json.loads(text) for text in path.read_text().splitlines()]
        return sorted((row for row in found if row["kind"] == "row"), key=json.dumps)

    assert rows(out) == rows(whole) and json.loads(out.read_text().splitlines()[-1])["kind"] == "end"


@pytest.mark.check
def test_a_worker_that_is_killed_ends_the_grid_in_one_line() -> None:
    with pytest.raises(Unfinished, match=r"^a worker has ended \(TerminatedWorkerError: .*: make room, and start"):
        list(grid.rows([{"kind": kind} for kind in ("well", "worker", "well")], wanting, jobs=2))


def test_rows_come_one_by_one() -> None:
    seen: list[int] = []
    for row in grid.rows([{"i": i} for i in range(5)], lambda point: seen.append(point["i"]) or [{}]):
        assert seen[-1] == row["i"]
        if row["i"] == 2:
            break
    assert seen == [0, 1, 2]


@pytest.mark.slow
def test_processes_measure_the_same() -> None:
    assert told(list(grid.rows(POINTS, measure, jobs=2))) == told(list(grid.rows(POINTS, measure)))


@pytest.mark.slow
def test_a_dask_cluster_measures_the_same() -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config(backend="dask", n_jobs=2),
    ):
        assert len(client.scheduler_info()["workers"]) == 2
        rows = list(grid.rows(POINTS, measure))
        processes = {row["process"] for row in grid.rows([{"i": i} for i in range(4)], slow)}
    assert told(rows) == told(list(grid.rows(POINTS, measure)))
    assert len(processes) == 2 and os.getpid() not in processes | {row.get("process") for row in rows}
