"""Lines and figures of fits: numbers are those of the rows, few blocks are shown in full, many one a line."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from smoothlab.errors import BadInput
from smoothlab.experiments.fit.experiment import Fit
from smoothlab.report import draw
from smoothlab.report.growth import text

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fig1b_micro_sst2.jsonl"


def fitted(*blocks: str) -> list[dict[str, Any]]:
    """Rows of fits to a run of `micro` in the source."""
    return list(Fit((str(RECORDS),), block=blocks, resamples=99).rows())


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Fits of the PEFT module and the head, with a point that is left out."""
    found = fitted("peft", "head")
    point = next(row for row in found if row["part"] == "points")
    point["left_out"] = "below floor"
    return found


def renamed(rows: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """The same block's rows under several names."""
    own = [row for row in rows if row["block"] == "peft" and "other" not in row]
    return [row | {"block": name} for name in names for row in own]


def test_lines_of_few_blocks_name_every_fit_and_test(rows: list[dict[str, Any]]) -> None:
    lines = text(rows)
    assert lines[0] == "L: frobenius; u: gradient norm of all measured blocks; in parentheses 95 % intervals"
    assert sum("L0 + c u^rho" in line for line in lines) == 6
    (line,) = [line for line in lines if "L0 + L1 u     least-squares" in line and "0.474" in line]
    assert "L1 = 0.555 (" in line
    assert sum("exceeded with probability at most" in line for line in lines) == 4
    assert any(line.startswith("peft and head: equal (L0, L1)? differ, p = ") for line in lines)
    head = lines.index(next(line for line in lines if line.startswith("head:")))
    assert "rho not identified" in "".join(lines[head:]) and "grows? open" in "".join(lines[head:])


def test_lines_of_many_blocks_are_one_each_with_counts(rows: list[dict[str, Any]]) -> None:
    lines = text(renamed(rows, list("abcde")))
    assert len(lines) == 2 + 5 + 2
    assert lines[2].startswith("a      20      0") and "0.555 (" in lines[2]
    assert lines[-2] == "grows? grows in 5 of 5 blocks; p below 0.05/5 in 5"
    assert lines[-1] == "sub-quadratic? open in 5 of 5 blocks; p below 0.05/5 in 0"


def test_the_figure_has_two_panels_a_block_and_its_points(rows: list[dict[str, Any]]) -> None:
    figure = draw("fit", pd.DataFrame(rows))
    axes = figure.get_axes()
    assert len(axes) == 4
    left, right = axes[:2]
    measured = [row for row in rows if row["part"] == "points" and row["block"] == "peft"]
    values = np.concatenate([line.get_ydata() for line in left.lines if line.get_marker() == "o"])
    assert sorted(values) == pytest.approx(sorted(row["value"] for row in measured))
    assert right.get_xscale() == right.get_yscale() == "log"
    (dashed,) = [line for line in right.lines if line.get_linestyle() == "--"]
    above = np.interp([row["gradient_norm"] for row in measured[1:]], dashed.get_xdata(), dashed.get_ydata())
    assert (above >= [row["value"] * (1 - 1e-4) for row in measured[1:]]).all()
    hollow = [line for line in right.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert hollow[0].get_xdata()[0] == measured[0]["gradient_norm"]


def test_of_many_blocks_four_are_drawn_or_those_that_are_named(rows: list[dict[str, Any]]) -> None:
    df = pd.DataFrame(renamed(rows, list("abcdef")))
    titles = [ax.get_legend().get_title().get_text() for ax in draw("fit", df).get_axes()[::2]]
    assert titles == ["a", "c", "d", "f"]
    named = draw("fit", df, blocks=("e",)).get_axes()
    assert len(named) == 2 and named[0].get_legend().get_title().get_text() == "e"
    with pytest.raises(BadInput, match="--block z: these records hold fits of a, b, c, d, e, f; name some of these"):
        draw("fit", df, blocks=("z",))


def test_the_map_has_a_row_a_block_and_a_column_a_step(rows: list[dict[str, Any]]) -> None:
    axis = draw("fit-map", pd.DataFrame(rows)).get_axes()[0]
    cells = axis.images[0].get_array()
    assert cells.shape == (2, 20)
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["head", "peft"]
    peft = [row["value"] for row in rows if row["part"] == "points" and row["block"] == "peft"]
    assert np.asarray(cells[1]) == pytest.approx(peft)


def test_a_map_of_many_blocks_thins_its_labels(rows: list[dict[str, Any]]) -> None:
    figure = draw("fit-map", pd.DataFrame(renamed(rows, [str(i) for i in range(73)])))
    labels = [tick.get_text() for tick in figure.get_axes()[0].get_yticklabels()]
    assert labels[:3] == ["0", "3", "6"] and figure.get_figheight() < 8


@pytest.mark.parametrize("kind", ["fit", "fit-map"])
def test_records_of_something_else_are_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="these records lack part, gradient_norm"):
        draw(kind, pd.DataFrame({"block": ["a"], "value": [1.0]}))
