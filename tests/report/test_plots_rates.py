"""Figure and sentences of the rates, from the records in benchmarks/results."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figures import rates as figure_script
from smoothlab import records
from smoothlab.__main__ import main
from smoothlab.errors import BadInput
from smoothlab.report import plots_rates, sentences_rates

RECORDS = Path(__file__).parents[2] / "benchmarks" / "results" / "rates.jsonl"
PARTS = ("theorem", "exponents", "counterexample", "speedup_of_two_rates", "reshuffling")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return records.load(RECORDS)


@pytest.fixture(scope="module")
def text(table: pd.DataFrame) -> str:
    return "\n".join(sentences_rates.reading(table))


def changed(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Some rows alone."""
    found = table.loc[rows.index].copy()
    found.attrs = table.attrs
    return found


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_is_drawn_and_read(table: pd.DataFrame, part: str) -> None:
    alone = changed(table, table[table["part"] == part])
    assert len(plots_rates.rates_figure(alone).axes) == 2
    lines = sentences_rates.reading(alone)
    assert lines and all("nan" not in line.split() and "None" not in line for line in lines)


def test_points_are_the_measurements_and_lines_the_recursion(table: pd.DataFrame) -> None:
    fig = plots_rates.rates_figure(table)
    assert len(fig.axes) == 2 * len(PARTS)
    by_title = {ax.get_legend().get_title().get_text(): ax for ax in fig.axes if ax.get_legend()}
    ax = by_title["Exact gradients: reshuffling wins"]
    found = plots_rates.rows_of(table, "reshuffling", "error ratio")
    rows = found[(found["axis"] == "rate") & (found["n"] == 8)].sort_values("scale")
    (points,) = [line for line in ax.get_lines() if line.get_label() == "$n$ = 8"]
    np.testing.assert_allclose(points.get_ydata(), rows["measured"])
    assert any(np.array_equal(line.get_ydata(), rows["reference"]) for line in ax.get_lines())
    path = next(ax for title, ax in by_title.items() if title.startswith("C.1 fails"))
    bounds = [line for line in path.get_lines() if "promised" in str(line.get_label())]
    kept = plots_rates.rows_of(table, "counterexample", "trajectory")
    assert bounds[0].get_ydata()[0] == kept.loc[kept["T"] == kept["T"].max(), "bound"].iloc[0]


def test_settings_are_named_by_what_differs(table: pd.DataFrame) -> None:
    names = plots_rates.settings_of(table)
    assert list(names.values())[0] == "base" and len(set(names.values())) == len(names)
    assert {"L_x/L_y 10", "cosh-x", "one rate", "exact gradients", "T 100"} <= set(names.values())


def test_many_settings_are_drawn_without_names(table: pd.DataFrame) -> None:
    rows = table[table["part"] == "theorem"]
    many = pd.concat([rows.assign(setting=rows["setting"] + f"/{i}") for i in range(4)])
    fig = plots_rates.rates_figure(many)
    assert fig.get_figheight() < 12 and fig.axes[0].get_ylabel().endswith(" settings")


def test_the_reading_gives_verdicts(table: pd.DataFrame, text: str) -> None:
    assert "Theorem C.1 as printed fails although all its conditions are met" in text
    assert "T = 320,288" in text and "success in 0 %" in text and "promised 90 %" in text
    assert "Theorem C.1 asks for nT of exponent -4.00 in eps, 1.00 in n (not as claimed)" in text
    assert "zeroth-order needs nT of exponent -4.00 in eps, 0.00 in n, 0.99 in d (not as claimed)" in text
    assert "as eps -> 0 1,275 at 10,000, about L_x/(8 L_y)" in text and "hidden" in text
    assert "smoothness is not global" in text and "With T = 100, less than its condition asks for" in text
    held = [line for line in text.splitlines() if "measured 95 % intervals of" in line]
    for line in held:
        inside, count = (int(word) for word in line.split(" measured")[0].split(" of "))
        assert inside >= 0.95 * count - 4 * (0.95 * 0.05 * count) ** 0.5
    assert len(held) == 3


def test_what_failed_is_told(table: pd.DataFrame) -> None:
    row = table[table["part"] == "speedup_of_two_rates"].iloc[[0]].copy()
    row["failed"] = "BadInput: no"
    told = sentences_rates.reading(row)
    assert told == [f"{row['setting'].iloc[0]} failed: BadInput: no"]
    both = pd.concat([table[table["part"] == "reshuffling"], row.assign(quantity=None)])
    assert sentences_rates.reading(both)[-1] == told[0]
    plots_rates.rates_figure(both)


def test_other_records_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(BadInput, match="these records lack quantity"):
        plots_rates.rates_figure(table.drop(columns="quantity"))
    with pytest.raises(BadInput, match="hold none of the parts theorem, counterexample"):
        plots_rates.rates_figure(table[:0])


def test_the_commands_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone.jsonl"
    lines = RECORDS.read_text().splitlines(keepends=True)
    alone.write_text("".join([lines[0], *(line for line in lines[1:] if '"part": "reshuffling"' in line)]))
    out = tmp_path / "a.png"
    assert main(["plot", str(alone), "--kind", "rates", "--out", str(out)]) == 0 and out.exists()
    assert figure_script.main(["--records", str(alone), "--out", str(tmp_path / "f")]) == 0
    assert (tmp_path / "f" / "rates.pdf").exists() and "that quotient by d" in capsys.readouterr().out
    assert figure_script.main(["--records", "nothing.jsonl"]) == 2
