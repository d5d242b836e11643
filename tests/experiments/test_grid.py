"""Grids: order, failures, several processes, a local dask cluster."""

import os
import time

import joblib
import pytest
import torch

from smoothlab.errors import BadInput
from smoothlab.experiments import grid
from smoothlab.objectives import Quadratic, objective
from smoothlab.reshuffling import Algorithm1

POINTS = [{"d": d, "eta": eta} for d in (2, 3) for eta in (0.1, -1.0, 0.2)]


def measure(point: dict) -> list[dict]:
    f = objective(Quadratic(1.0), Quadratic(1.0), d_x=point["d"], n=2, sigma=0.1)
    found = Algorithm1(point["eta"], 0.1, 3).run(f, torch.ones(f.dim), 20)
    return [{"average": float(found.average.mean()), "process": os.getpid()}, {"threads": torch.get_num_threads()}]


def broken(point: dict) -> list[dict]:
    raise {"bad": BadInput("two\nlines"), "wrong": ValueError("x"), "stop": KeyboardInterrupt()}[point["kind"]]


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
