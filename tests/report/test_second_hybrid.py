"""figures/second_hybrid.py on this project's records and on made-up ones."""

from pathlib import Path

import pytest

from figures import second_hybrid
from tests.claims.test_second_hybrid import run, start

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "second_hybrid"


def test_the_figure_is_drawn_of_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second_hybrid.main(["--out", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert "| micro on sst2 | lora less lora-ga |" in capsys.readouterr().out


def test_rows_hold_means_over_seeds_and_both_ends_of_a_run(tmp_path: Path) -> None:
    runs = [run(tmp_path, "lora", right, seed) for seed, right in enumerate((100, 120))]
    (row,) = second_hybrid.accuracies([*runs]).to_dict("records")
    assert row["measured"] == pytest.approx(55.0) and row["seeds"] == 2
    assert row["low"] < 55 < row["high"]
    (norm,) = second_hybrid.norms([start(tmp_path, "boft", 2.0)]).to_dict("records")
    assert norm["measured"] == 2.0 and norm["method"] == second_hybrid.METHODS.index("boft")
    assert norm["when"] == "micro on sst2, start"
