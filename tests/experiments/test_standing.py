"""What stands of a damaged record file, by every experiment, on the records in benchmarks/results."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from smoothlab import record_files, records
from smoothlab.errors import BadInput
from smoothlab.experiments.audit import Audit
from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.quadratic.experiment import QuadraticExample
from smoothlab.experiments.rates.experiment import Rates
from smoothlab.experiments.smoothness import Smoothness

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
KINDS = {kind.name: kind for kind in (Audit, Estimators, QuadraticExample, Rates, Smoothness)}
RENAMED = {"laws": "distributions", "buy_ratios": "speedup_ratios", "buy_dims": "speedup_dims", "longest": "max_steps"}
"""Fields of the configurations on record, and what they are called today."""
KEYED = ["audit", "fig1b_micro_sst2", "fast_1b_micro_sst2"]  # whose rows are told apart by what they are
FILES = [*KEYED, "estimators_micro", "estimators_synthetic", "quadratic", "rates"]


def there(name: str) -> tuple[Any, list[dict]]:
    """The experiment of a record file, and its rows."""
    contents = record_files.read(RESULTS / f"{name}.jsonl")
    assert contents.header is not None and not contents.damage and contents.finished
    kind = KINDS[contents.header["experiment"]]
    fields = {field.name for field in dataclasses.fields(kind)}
    old = {RENAMED.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in contents.header["config"].items()}
    config = {k: v for k, v in old.items() if k in fields}
    if name == "rates":
        config["parts"] = kind.choices["parts"]
    return kind(**config), [records._renamed(row) for row in contents.rows if row is not None]


@pytest.mark.parametrize("name", FILES)
def test_places_ascend_and_whole_files_stand(name: str) -> None:
    experiment, rows = there(name)
    places = [experiment.place(row) for row in rows]
    assert places == sorted(places) and places[0] >= 0 and len(set(places)) > 1
    named = [row[experiment.unit] for row in rows]
    assert len(set(named)) == len(set(places)) == len([*itertools.groupby(named)])
    assert experiment.standing(rows) == rows


@pytest.mark.parametrize("name", FILES)
def test_a_loss_takes_its_place_with_it_and_no_place_that_it_cannot_be_of(name: str) -> None:
    experiment, rows = there(name)
    places = [experiment.place(row) for row in rows]
    for n in range(0, len(rows), max(1, len(rows) // 40)):
        stand = experiment.standing([*rows[:n], None, *rows[n + 1 :]])
        gone = {places[n]}
        if name not in KEYED:
            gone |= {places[m] for m in (n - 1, n + 1) if 0 <= m < len(rows)}
        assert stand == [row for row, place in zip(rows, places, strict=True) if place not in gone], n


@pytest.mark.parametrize("name", FILES)
def test_a_stopped_run_keeps_what_was_measured_to_its_end(name: str) -> None:
    experiment, rows = there(name)
    places = [experiment.place(row) for row in rows]
    for n in range(1, len(rows), max(1, len(rows) // 40)):
        stand = experiment.standing([*rows[:n], None])
        full = 0 if experiment.unit == "step" else n  # whole points are known by their keys, from the second one on
        if name == "audit":
            assert stand == rows[:n]
            continue
        while experiment.unit == "step" and full < n and places.count(places[full]) <= n - full:
            full += places.count(places[full])
        if experiment.unit == "setting":
            full = places.index(places[n - 1])
        assert stand == rows[: full if len(set(places[:n])) > 1 or experiment.unit == "setting" else 0], n


def test_rows_without_the_field_that_places_them_do_not_stand(tmp_path: Path, capsys: Any) -> None:
    """As in a file that somebody edited."""
    from smoothlab import records

    experiment, rows = there("fig1b_micro_sst2")
    assert records._place(experiment, {"step": None}) is records._place(experiment, {"value": 1}) is None
    odd = {key: value for key, value in rows[3].items() if key != "quantity"}
    stand = experiment.standing([*rows[:3], odd, *rows[4:]])
    assert stand == [] or {row["step"] for row in rows} - {row["step"] for row in stand} == {rows[3]["step"]}


def test_fine_tuning_stands_up_to_the_first_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Rows follow from each other: they stand up to the newest checkpoint before the loss, or the run is refused."""
    from smoothlab.llm.checkpoints import Folder

    run = Finetune(checkpoint=tmp_path / "kept")
    rows: list[Any] = [{"part": "dev", "step": step} for step in range(0, 125, 25)]
    taken = [3]
    monkeypatch.setattr(Folder, "numbers", lambda self: taken)
    assert run.standing([*rows[:4], None]) == rows[:3]
    assert run.standing([*rows[:3], None, *rows[4:]]) == rows[:3]
    with pytest.raises(BadInput, match="holds this run after 3 rows, which are in no record file given here"):
        run.standing([rows[0], None, *rows[2:]])
    taken.clear()
    assert run.standing(rows) == [] and "holds no checkpoint: the run starts again" in capsys.readouterr().err
