"""Example 2.3: closed forms against brute force, rows against closed forms, coverage, resumption, figure, bad input."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from smoothlab import records
from smoothlab.__main__ import main
from smoothlab.algorithm1.quadratics import moment
from smoothlab.errors import BadInput
from smoothlab.experiments.quadratic import closed_forms as forms
from smoothlab.experiments.quadratic import runs, stable_map
from smoothlab.experiments.quadratic.experiment import QuadraticExample
from smoothlab.experiments.rates.experiment import Rates
from smoothlab.report import comparisons, draw, panels, quadratic
from smoothlab.theory.coupled_edge import coupled_edge
from smoothlab.theory.edge import GAUSSIAN
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.names import DISTRIBUTIONS

SMALL = QuadraticExample(
    ratios=(1.5, 2.0, 3.0, 30.0), hybrid_ratios=(1.0, 3.0, 30.0), dims=(1, 10), hybrid_dims=(10,), scales=(0.5, 1.0),
    replicas=100, steps=20, eps=0.1, max_steps=150, parts=("rates", "noise", "hybrid"),
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tasks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    path = tmp_path_factory.mktemp("quadratic") / "run.jsonl"
    records.run(SMALL, path, environment={})
    return SimpleNamespace(path=path, rows=rows_of(path), table=records.load(path))


def rows_of(path: Path) -> list[dict]:
    return [row for line in path.read_text().splitlines() if (row := json.loads(line))["kind"] == "row"]


# ------------------------------------------------------------------------------------------------ closed forms


def test_steps_are_those_of_a_loop() -> None:
    for square_x, square_y, eps in [(0.81, 0.0, 0.1), (0.5, 0.5, 1e-3), (0.98, 0.9, 1e-2), (0.0, 0.3, 0.2)]:
        k, x, y = 0, 1.0, 1.0
        while (x + y) / 2 > eps**2:
            k, x, y = k + 1, x * square_x, y * square_y
        assert forms.steps(square_x, square_y, eps) == k
    assert forms.steps(1.0, 0.0, 0.1) == math.inf and forms.steps(0.0, 0.0, 0.1) == 1


def test_the_best_single_rates_are_best() -> None:
    for a in (1.0, 3.0, 50.0):
        etas = np.linspace(1e-4, 1, 20_001)
        worst = np.maximum(abs(1 - 2 * a * etas), abs(1 - 2 * etas))
        best = max(forms.factors(a, 1.0, *forms.rates("best", a, 1.0)))
        assert worst.min() >= best - 1e-12 and best == pytest.approx((a - 1) / (a + 1))
        for m in (3, 12):
            found = forms.best_single(a, 1.0, m)
            squares = np.maximum(1 - 4 * a * etas + (2 * a * etas) ** 2 * m, (1 - 2 * etas) ** 2)
            assert max(forms.mean_square(2 * a * found, m), (1 - 2 * found) ** 2) <= squares.min() + 1e-9


def test_a_zeroth_order_step_has_the_mean_square_of_all_signs() -> None:
    x, every = np.array([0.3, -1.0, 2.0]), np.array(list(product((-1.0, 1.0), repeat=3)))
    after = x - 0.2 * (every @ x)[:, None] * every
    quotient = (after**2).sum(1).mean() / (x @ x)
    assert quotient == pytest.approx(forms.mean_square(0.2, moment(3, "rademacher")))


@pytest.mark.parametrize("d", [1, 2, 10])
def test_gaussian_quotients_have_the_moments_of_the_quadrature(d: int) -> None:
    s, n = 2.2 / (d + 2), 400_000
    v = np.random.default_rng(d).standard_normal((n, d))
    quotients = 1 - 2 * s * v[:, 0] ** 2 + s**2 * v[:, 0] ** 2 * (v**2).sum(1)
    logs = np.log(np.maximum(quotients, 1e-300))
    assert abs(logs.mean() - forms.typical(s, d)) < 4 * logs.std() / n**0.5
    w, r, weights = forms._normal_parts(d)
    assert (weights * w * (w + r)).sum() == pytest.approx(d + 2, rel=1e-6)  # m
    squares = quotients**2
    expected = (forms.spread(s, d, 1) + 1) * forms.mean_square(s, d + 2) ** 2
    assert abs(squares.mean() - expected) < 4 * squares.std() / n**0.5
    assert forms.spread(s, d, 3) == pytest.approx((forms.spread(s, d, 1) + 1) ** 3 - 1)
    assert abs(forms.typical(forms.typical_limit(d), d)) < 1e-4


# ------------------------------------------------------------------------------------------------ rows


def test_exact_rows_are_their_closed_forms(small: SimpleNamespace) -> None:
    rows = [row for row in small.rows if row["part"] == "rates"]
    assert len(rows) == 4 * 4 * 4 and all(row["failed"] is None for row in rows)
    for row in rows:
        if row["quantity"] == "steps" and row["reference"] is not None:
            assert row["measured"] == row["reference"]
        elif row["quantity"] != "steps":
            assert row["low"] <= row["reference"] <= row["high"] and row["measured"] == pytest.approx(
                row["reference"], rel=1e-12, abs=1e-12
            )
    printed = {"small": lambda a: (1 / (2 * a), 1 / (2 * a)), "large": lambda a: (0.5, 0.5),
               "best": lambda a: (1 / (a + 1), 1 / (a + 1)), "two": lambda a: (1 / (2 * a), 0.5)}  # fmt: skip
    assert all((row["eta_x"], row["eta_y"]) == printed[row["rule"]](row["ratio"]) for row in rows)
    large = {row["ratio"]: row for row in rows if row["rule"] == "large" and row["quantity"] == "factor x"}
    assert {a: row["found"] for a, row in large.items()} == {
        1.5: "converges", 2.0: "neither", 3.0: "diverges", 30.0: "diverges"
    }  # fmt: skip
    assert {row["printed"] for row in large.values()} == {"diverges"}
    never = {row["ratio"] for row in rows if row["quantity"] == "steps" and row["note"] == "diverges"}
    assert never == {2.0, 3.0, 30.0}


def test_rows_tell_what_was_not_run(small: SimpleNamespace) -> None:
    notes = {(row["ratio"], row["rule"]): row["note"] for row in small.rows if row["part"] == "hybrid"}
    assert notes.pop((30.0, "best")) == "more than 150 steps: not run" and set(notes.values()) == {None}
    carried = replace(SMALL, parts=("hybrid",), max_steps=10**4, hybrid_ratios=(30.0,))
    (row,) = [row for row in carried.measured(carried.points()[0]) if row["rule"] == "best"]
    assert row["note"] == "the mean is carried by rare runs: not run" and row["measured"] is None


def test_mean_squares_that_rare_draws_may_carry_are_flagged(small: SimpleNamespace) -> None:
    factors = {row["setting"]: row for row in small.rows if row["quantity"] == "mean square factor"}
    limits = {row["setting"]: row for row in small.rows if row["quantity"] == "largest stable rate"}
    assert factors and all(limits[name]["flag"] in (None, "rare draws") for name in factors)
    assert all("flag" in row for row in small.rows if row["quantity"] == "steps")


@pytest.mark.check
def test_noise_intervals_cover() -> None:
    held, count = {}, 50
    for seed in range(count):
        experiment = replace(
            SMALL, parts=("noise",), distributions=("gaussian", "rademacher"), dims=(1, 10), replicas=40, seed=seed
        )
        for point in experiment.points():
            for row in experiment.measured(point):
                if row["measured"] is not None:
                    key = (point["distribution"], point["d"], row["quantity"], row["scale"])
                    held.setdefault(key, []).append(row["low"] <= row["reference"] <= row["high"])
    shares = {key: np.mean(one) for key, one in held.items()}
    assert len(shares) == 4 * 3 + 4 * 2 and all(len(one) == count for one in held.values())
    assert min(shares.values()) > 0.95 - 4 * (0.95 * 0.05 / count) ** 0.5, shares
    tight = [share for (distribution, d, *_), share in shares.items() if (distribution, d) == ("gaussian", 10)]
    assert np.mean(tight) < 0.995  # intervals that always hold would say nothing


@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "sparse(0.5)", "lowrank(1)"])
def test_every_distribution_of_the_table_is_accepted_and_has_its_closed_form(distribution: str) -> None:
    """Within two and a half times the 95 % interval's half-widths, of 12 rows a distribution."""
    experiment = replace(SMALL, parts=("noise",), distributions=(distribution,), dims=(6,), replicas=400)
    experiment = replace(experiment, scales=(0.3, 0.8))
    experiment.check()
    factors = [row for row in experiment.measured(experiment.points()[0]) if row["quantity"] == "mean square factor"]
    assert [row["scale"] for row in factors] == [0.3, 0.8]
    for row in factors:
        half = max(row["high"] - row["measured"], row["measured"] - row["low"])
        assert abs(row["measured"] - row["reference"]) < 2.5 * half and half < 0.2


def test_a_distribution_without_closed_form_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uniform(Distribution):
        def fill(self, stream: Any, piece: Any, out: torch.Tensor) -> None:
            out.uniform_(-(3**0.5), 3**0.5)

    monkeypatch.setitem(DISTRIBUTIONS, "uniform", Uniform)
    for experiment in (replace(SMALL, distributions=("uniform",)), Rates(distribution="uniform")):
        with pytest.raises(BadInput, match="uniform: no closed form of its .* or give its class the method cumulants"):
            experiment.check()


@pytest.mark.check
def test_hybrid_intervals_cover() -> None:
    held = []
    for seed in range(25):
        experiment = replace(SMALL, parts=("hybrid",), hybrid_ratios=(3.0,), replicas=60, seed=seed)
        for row in experiment.measured(experiment.points()[0]):
            held.append(row["low"] <= row["reference"] <= row["high"])
            assert row["low"] <= row["measured"] <= row["high"]
    assert len(held) == 50 and np.mean(held) > 0.95 - 4 * (0.95 * 0.05 / 50) ** 0.5


@pytest.mark.check
def test_the_estimate_of_the_duration_is_right_within_a_factor_of_one_and_a_half() -> None:
    experiment = QuadraticExample(
        replicas=150, steps=30, dims=(3, 100), ratios=(1.5, 30.0, 300.0), hybrid_ratios=(3.0, 10.0), hybrid_dims=(10,),
        max_steps=2000,
    )  # fmt: skip
    estimate = runs.seconds(experiment, experiment.points(), time.process_time)  # a busy machine does not count
    begun = time.process_time()
    for point in experiment.points():
        experiment.measured(point)
    assert 1 / 1.5 < estimate / (time.process_time() - begun) < 1.5


def test_a_stopped_run_goes_on_to_the_same_rows(small: SimpleNamespace, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    again.write_bytes(b"".join(small.path.read_bytes().splitlines(keepends=True)[:70]))
    records.run(SMALL, again, environment={})
    assert rows_of(again) == small.rows


def test_a_setting_that_fails_does_not_lose_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise FloatingPointError("no best rate")

    monkeypatch.setattr(forms, "best_single", fail)
    path = records.run(replace(SMALL, parts=("hybrid", "rates")), tmp_path / "run.jsonl", environment={})
    rows = rows_of(path)
    assert [row["failed"] for row in rows[:3]] == ["FloatingPointError: no best rate"] * 3
    assert len(rows) == 3 + 64 and all(row["failed"] is None for row in rows[3:])
    table = records.load(path)
    assert "hybrid/30/10/gaussian: failed: FloatingPointError: no best rate" in comparisons.notes(table)
    draw("quadratic", table)


# ------------------------------------------------------------------------------------------------ figure, command line


def test_the_figure_draws_what_is_there(small: SimpleNamespace, tmp_path: Path) -> None:
    fig = draw("quadratic", small.table)
    assert len(fig.axes) == 6
    (path,) = panels.save(fig, tmp_path / "q", ("png",))
    assert path.stat().st_size > 50_000
    noise = small.table[small.table["part"] == "noise"]
    assert len(draw("quadratic", noise).axes) == 3
    color = quadratic.RULES["large"]
    points = [line for line in fig.axes[0].get_lines() if line.get_marker() == "o" and line.get_color() == color]
    assert list(points[0].get_xdata()) == [1.5, 2.0] and list(points[0].get_ydata()) == [0.5, 1.0]
    with pytest.raises(BadInput, match="these records lack rule"):
        draw("quadratic", small.table.drop(columns="rule"))
    with pytest.raises(BadInput, match="hold none of the parts"):
        draw("quadratic", small.table[:0])


def test_the_table_gives_verdicts(small: SimpleNamespace) -> None:
    table = comparisons.comparisons(small.table)
    printed = table[(table["quantity"] == "factor x") & table["verdict"].str.endswith("as printed")]
    assert list(zip(printed["measured"], printed["verdict"], strict=True)) == [
        (0.5, "not as printed"), (1.0, "not as printed"), (2.0, "as printed"), (29.0, "as printed"),
    ]  # fmt: skip


def test_the_command_line_measures_draws_and_reads(
    small: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quadratic", "--parts", "rates", "--ratios", "1.5", "3", "--out", "a.jsonl"]) == 0
    assert "rule=large factor x 0.500 (0.500 to 0.500) 0.500 not as printed" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["plot", "a.jsonl", "--kind", "quadratic", "--out", "a.png"]) == 0 and Path("a.png").exists()
    capsys.readouterr()  # pytest shows what matplotlib 3.9 and 3.10 call that pyparsing 3.3 deprecates
    for options in (["--eps", "0"], ["--parts", "pie"], ["--dims", "0"], ["--ratios", "0.5"], ["--replicas", "3"]):
        assert main(["quadratic", *options]) == 2
        told = capsys.readouterr().err
        assert told.startswith("smoothlab: error: ") and told.count("\n") == 1
    assert main(["quadratic", "--dry-run"]) == 0
    assert "33 settings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parts": ("pie",)}, "--parts pie is unknown: use some of rates, noise, hybrid, map"),
        ({"distributions": ("cauchy",)}, "--distributions cauchy is unknown: use one of gaussian, sphere"),
        ({"distributions": ("sparse(3)",)}, "--distributions sparse(3): density 3.0 of sparse directions"),
        ({"ratios": ()}, "--ratios names nothing"),
        ({"dims": (3, 3)}, "--dims 3, 3 names one twice"),
        ({"eps": float("nan")}, "--eps nan: use a number from 1e-12 to 0.5"),
        ({"scales": (-1.0,)}, "--scales -1.0: use a number from 0.001 to 10"),
        ({"seed": -1}, "--seed -1: use a number from 0 to 4294967295"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        records.run(replace(SMALL, **change), tmp_path / "run.jsonl", environment={})
    assert words in str(caught.value) and not (tmp_path / "run.jsonl").exists()


# ------------------------------------------------------------------------------------------------ stable rates


def test_the_map_of_stable_rates_is_the_theorys(tmp_path: Path) -> None:
    """Well inside the edge most runs fall, beyond 2/lambda in y all grow; without coupling the edge is a rectangle."""
    alone = replace(SMALL, parts=("map",), couplings=(0.0,), map_dims=(2,), replicas=50)
    path = records.run(alone, tmp_path / "run.jsonl", environment={})
    rows = rows_of(path)
    cells = [row for row in rows if row["quantity"] == "share above start"]
    assert len(cells) == 144
    for row in cells:
        assert row["low"] <= row["measured"] <= row["high"]
        assert row["radius"] >= 0
        if row["radius"] < 0.5:
            assert row["measured"] < 0.2
        if row["eta_y"] > 1.05 and row["eta_x"] < 0.05:
            assert row["radius"] > 1 and row["measured"] > 0.9
    edge = [row for row in rows if row["quantity"] == "mean-square edge"]
    x = 2 / (4 * 6)  # 2/((d + 2) 2a), d = 2, a = 3
    for row in edge:
        assert max(row["eta_x"] / x, row["eta_y"] / 1.0) == pytest.approx(1, rel=1e-6)
    assert len(quadratic.figure(records.load(path)).axes) == 2, "the map and its color bar"


def test_coupling_cuts_the_corner_of_the_map() -> None:
    point = next(
        p for p in replace(SMALL, parts=("map",), couplings=(8.0,), map_dims=(2,)).points() if p["coupling"] == 8.0
    )
    hessian = stable_map.problem(point).hessian(torch.zeros(3, dtype=torch.float64)).numpy()
    x, y = stable_map.own_edges(hessian, 2)
    values, vectors = np.linalg.eigh(hessian)
    eta_x, eta_y = coupled_edge(values, vectors[:2].T @ vectors[:2], y / x, GAUSSIAN)
    assert eta_x < 0.9 * x and eta_y < 0.9 * y
