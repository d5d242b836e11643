"""What the benchmarks of rates conclude from their rows: edges by PEFT method, and other ways to choose a rate."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import advice, advice_cases, advice_peers, peft_edges, random_walk
from benchmarks.advice_peers import Peer, peers_of
from benchmarks.peft_edges import comparison, summaries, table

Row = dict[str, Any]
EDGES = {"lora": 2.0, "vera": 64.0, "lokr": 16.0, "loha": 0.25}


def method(peft: str, seed: int, edge: float, best: float, runs: dict[float, float | None]) -> list[Row]:
    """Rows of a PEFT method and seed, whose runs end with the given losses, from 1 on."""
    point = {"setting": f"{peft}/{seed}", "peft": peft, "seed": seed}
    rows: list[Row] = [{"part": "start", "dim": 8, "measured": edge}]
    rows += [{"part": "run", "rate": rate, "loss_after": loss} for rate, loss in runs.items()]
    losses = [loss for loss in runs.values() if loss is not None]
    rows += [{"part": "best", "measured": best, "loss_before": 1.0, "loss_after": min(losses)},
             {"part": "end", "measured": 2 * edge}]  # fmt: skip
    return [{**point, **row} for row in rows]


def at_the_edge(seeds: int) -> list[Row]:
    """Each method learns most at a quarter of its edge, is stable at half of it, and diverges at the edge."""
    return [
        row for peft, edge in EDGES.items() for seed in range(seeds)
        for row in method(peft, seed, edge, edge / 4, {edge / 4: 0.5, edge / 2: 0.75, edge: None})
    ]  # fmt: skip


@pytest.mark.parametrize(("stable", "share"), [(False, 1 / 4), (True, 1 / 2)])
def test_methods_that_differ_by_lambda_max_alone_have_one_share_of_the_edge(stable: bool, share: float) -> None:
    chosen = summaries(at_the_edge(1))
    for summary in chosen:
        assert summary.unstable_above and (summary.stable_ratios if stable else summary.ratios) == [share]
    told = comparison(chosen, stable=stable)
    assert told["slope"] == pytest.approx(1) and told["low"] <= 1 <= told["high"] and told["spread_of_ratios"] == 1
    assert told["spread_of_rates"] > 10 and told["p_value"] is None


def test_best_rates_may_be_alike_where_stable_ones_follow_the_edge() -> None:
    rows = [row for peft, edge in EDGES.items() for row in method(peft, 0, edge, 0.01, {0.01: 0.5, edge / 2: 0.75})]
    best, stable = (comparison(summaries(rows), stable=stable) for stable in (False, True))
    assert (best["slope"], best["spread_of_rates"]) == (0, 1) and best["spread_of_ratios"] > 10
    assert (stable["slope"], stable["spread_of_ratios"]) == (1, 1) and stable["spread_of_rates"] > 10


def test_methods_that_differ_by_more_are_told_apart() -> None:
    rows = [row for row in at_the_edge(2) if row["peft"] != "vera"]
    for seed in range(2):  # two seeds that agree nearly: the F test sees methods apart
        rows += method("vera", seed, 64.0, 0.5 + seed / 8, {0.5 + seed / 8: 0.5, 32.0: None})
        rows += method("ia3", seed, 8.0, 2.0 + seed / 8, {2.0 + seed / 8: 0.5, 8.0: None})
    told = comparison(summaries(rows), stable=False)
    assert told["methods"] == 5 and told["p_value"] < 1e-6 and told["spread_of_ratios"] > 4 and told["slope"] < 0.9


def test_seeds_without_a_best_rate_or_an_edge_are_left_out() -> None:
    """One seed diverges at every rate, another has no positive curvature: the third is the method's."""
    rows = [row for seed in range(3) for row in method("lora", seed, 2.0 + seed, 0.5, {0.5: 0.5, 2.0: None})]
    rows = [row for row in rows if (row["seed"], row["part"]) != (0, "best")]
    for row in rows:
        if (row["seed"], row["part"]) == (1, "start"):
            row |= {"measured": None, "failed": "no curvature is positive"}
    (summary,) = summaries(rows)
    assert (summary.seeds, summary.edges, summary.ratios) == ((2,), (4.0,), [0.125])
    assert summary.reason == "no curvature is positive"
    (without,) = summaries([row | {"measured": None} if row["part"] == "start" else row for row in rows])
    assert (without.seeds, without.edges, without.ratios) == ((1, 2), (), [])


def test_a_method_without_an_unstable_run_has_a_bound_alone() -> None:
    lines = table([*at_the_edge(1), *method("miss", 0, 1.0, 0.5, {0.25: 0.9, 0.5: 0.5})]).splitlines()
    assert lines[2] == "| lora | 8 | 2 | 4 | 0.5 | 0.25 | 0.5 | -0.500 |"
    assert lines[6] == "| miss | 8 | 1 | 2 | 0.5 | 0.5 | at least 0.5 | -0.500 |"


def written(path: Path, rows: list[Row]) -> None:
    """A record file of these rows, without numbers and checksums."""
    lines: list[Row] = [{"kind": "header", "experiment": "", "config": {}}, *({"kind": "row", **row} for row in rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_ways_are_judged_by_the_sweep_that_advice_is_judged_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice_peers, "RESULTS", tmp_path)
    rows: list[Row] = [
        {"setting": "advice/zo-0", "part": "cost", "training_steps": 1500},
        {"setting": "edge/zo-0", "part": "edge", "measured": 0.5},
    ]
    for source, loss in (("0.125 of the edge", 0.8), ("0.25 of the edge", 0.5), ("advised", 0.52)):
        rate = 0.1 if source == "advised" else float(source.split()[0]) / 2
        rows.append({"setting": "long/zo-0", "part": "long", "source": source, "rate": rate, "loss_before": 1.0,
                     "loss_after": loss})  # fmt: skip
    written(tmp_path / "advice_network.jsonl", rows)
    chosen: Row = {"setting": "zo-0", "part": "chosen", "loss_before": 1.0, "reference": 0.5}
    written(tmp_path / "advice_peers_network.jsonl", [
        {**chosen, "source": "Table 2", "rate": 1e-7, "loss_after": 0.995, "training_steps": 200},
        {**chosen, "part": "run", "source": "Table 2", "rate": 1e-7, "loss_after": 0.1},
        {**chosen, "source": "range test", "rate": 0.75, "loss_after": None, "training_steps": 130},
    ])  # fmt: skip
    close = {"rel": 1e-12}
    assert peers_of("network") == [
        Peer("advice", [1500], [pytest.approx(0.2, **close)], 1, pytest.approx(0.96, **close), 1),
        Peer("Table 2", [200], [pytest.approx(2e-7, **close)], 0, pytest.approx(0.01, **close), 1),
        Peer("range test", [130], [1.5], 0, pytest.approx(-6.0, **close), 1),
    ]


def test_peers_have_the_cases_whose_runs_are_on_record() -> None:
    names = [point["setting"] for point in advice_peers.AdvicePeers("network").points()]
    assert names == [name for name in advice.CASES["network"] if not name.startswith("full")]


def test_the_real_model_has_eight_variants_of_lora() -> None:
    assert len(set(peft_edges.EIGHT)) == 8 and set(peft_edges.EIGHT) <= set(peft_edges.LORA_VARIANTS)


@pytest.mark.parametrize(
    ("losses", "ahead"),
    [
        ({-3: 0.6, -2: 0.5, -1: 0.7, 0: None}, []),
        ({-3: 0.4, -2: 0.5, -1: 0.7, 0: None}, [-4]),
        ({-3: 0.6, -2: 0.5, -1: 0.4, 0: 0.3}, [1]),
        ({-3: None, -2: 0.8, -1: None, 0: None}, [-4]),  # a run above the stable rates that ended well by chance
        ({-4: 0.6, -3: None, -2: 0.8, -1: None, 0: None}, [-5]),
        ({-5: 0.7, -4: 0.6, -3: None, -2: 0.8}, []),
        ({-3: 1.7, -2: 0.7, -1: 0.8, 0: None}, [-4]),  # the lowest rate has raised the loss
        ({-1: None, 0: None}, [-2]),
    ],
)  # fmt: skip
def test_rates_are_added_until_the_best_has_worse_neighbors(losses: dict[int, float | None], ahead: list[int]) -> None:
    found = peft_edges.further({k: math.inf if loss is None else loss for k, loss in losses.items()}, 1.0)
    assert found == ahead


def swept(case: str, part: str, losses: dict[float, list[float | None]]) -> list[Row]:
    """Runs of a sweep by rate, whose loss is 1 at the start."""
    return [
        {"setting": f"edge/{case}", "part": part, "option": "eta_x",
         "rate": rate, "loss_before": 1.0, "loss_after": end}
        for rate, ends in losses.items() for end in ends
    ]  # fmt: skip


def judged(case: str, advised: float, second: float, best: float) -> list[Row]:
    """A case with the edge 1.2, one advised limit, a second edge, and the advised rate's loss beside the best one."""
    once: dict[float, list[float | None]] = {0.5: [0.6] * 5, 1.0: [0.5] * 5, 1.2: [None] * 4, 2.0: [1.5] * 4}
    again: dict[float, list[float | None]] = {0.5: [0.6] * 5, 1.2: [0.5] * 5, 1.44: [None] * 4, 2.0: [1.5] * 4}
    return [
        {"setting": f"advice/{case}", "part": "cost", "training_steps": 100.0},
        {"setting": f"advice/{case}", "part": "limit", "option": "eta_x", "value": 9.0, "low": 8.0, "high": 10.0},
        {"setting": f"advice/{case}", "part": "limit", "option": "eta_x",
         "value": advised, "low": advised / 2, "high": advised * 1.1},
        *swept(case, "sweep", once),
        {"setting": f"edge/{case}", "part": "edge", "option": "eta_x", "measured": 1.2},
        *swept(case, "second sweep", again),
        {"setting": f"again/{case}", "part": "second edge", "option": "eta_x", "measured": second},
        {"setting": f"long/{case}", "part": "long", "source": "half", "loss_before": 1.0, "loss_after": best},
        {"setting": f"long/{case}", "part": "long", "source": "advised", "loss_before": 1.0, "loss_after": 0.5},
    ]  # fmt: skip


def test_cases_are_judged_by_both_sweeps_and_by_all_their_runs() -> None:
    rows = [*judged("near", 1.1, 1.7, 0.49), *judged("far", 0.5, 3.0, 0.4)]
    rows += swept("none", "sweep", {1.0: [0.5, None], 9.0: [0.5]})
    rows.append({"setting": "edge/none", "part": "edge", "option": "both", "measured": None})
    near, far, none = advice_cases.results(rows)
    assert near.together and 1.0 < near.together.low < 1.2 < near.together.high < 1.44
    assert near.loss_ratio == pytest.approx(0.5 / 0.49) and far.loss_ratio == pytest.approx(1.25)
    assert none.advised is none.first is none.together is none.loss_ratio is None
    assert advice_cases.counts([near, far, none]) == {
        "advised limit within 1.5 of the first sweep's": [True, False],
        "advised limit within 1.5 of that of all runs": [True, False],
        "second sweep within 1.5 of the first": [True, False],
        "interval from all runs within 1.5 of its value": [True, True],
        "advised interval holds the first sweep's": [True, False],
        "advised interval holds the mean of both (of logarithms)": [False, False],
        "advised interval holds that of all runs": [True, False],
        "loss after 200 steps within 5 % of the lowest": [True, False],
    }


def test_a_limit_is_known_worse_where_single_runs_differ() -> None:
    mixed: dict[float, list[float | None]] = {0.1: [0.6, None], 0.3: [0.5, 1.5], 1.0: [0.6, None], 3.0: [None, 0.8]}
    rows = [row for row in judged("spread", 1.1, 1.2, 0.5) if "sweep" not in row["part"]]
    (case,) = advice_cases.results([*rows, *swept("spread", "sweep", mixed)])
    assert case.together and case.together.high > 4 * case.together.low
    assert advice_cases.counts([case])["interval from all runs within 1.5 of its value"] == [False]


def test_a_walks_limit_is_measured_beside_that_of_runs() -> None:
    """Runs of 20 steps on one network: the ratios on record are 0.91 to 1.54, on a grid of factor 1.2."""
    experiment = random_walk.RandomWalk()
    (point,) = (point for point in experiment.points() if point["setting"] == "zo-4 20")
    (row,) = experiment.rows_of([point])
    assert 0.91 / 1.2 < row["ratio"] < 1.54 * 1.2 and row["measured"] == row["ratio"] * row["reference"]
