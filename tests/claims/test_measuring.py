"""Appendix D.4."""

from pathlib import Path

import numpy as np
import pytest

from smoothlab.claims import measuring
from smoothlab.claims.search import Statement
from tests.claims.holding import claim, true_statements
from tests.claims.test_figure_1 import RECORDS, written


@pytest.mark.parametrize("name", ["d4-formula", "d4-step"])
def test_verdicts(name: str) -> None:
    entry = claim(measuring, name)
    finding = entry.finding(0, RECORDS)
    assert finding.verdict == entry.verdict
    assert [search.broken for search in finding.searches] == [True, False]
    without = {"d4-formula": "holds once corrected", "d4-step": "false as printed"}
    assert entry.finding(0).verdict == without[name], "without records no estimated value supports the correction"


@pytest.mark.parametrize("statement", true_statements(measuring), ids=lambda statement: statement.what)
def test_false_on_purpose_is_caught(statement: Statement) -> None:
    assert statement.known is not None and statement.falsify(1, statement.known / 2).broken


def test_moments_of_unit_vectors_by_sampling() -> None:
    h = [5, -3, 2, 0, 1]
    v = np.random.default_rng(0).standard_normal((400_000, 5))
    squares = ((v * h) ** 2).sum(1) / (v**2).sum(1)
    mean, spread = float(measuring.unit_mean(h)), float(measuring.unit_variance(h))
    assert abs(squares.mean() / mean - 1) < 4.5 * (spread / len(v)) ** 0.5
    assert squares.var() / mean**2 == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize("central", [False, True])
def test_the_quotient_is_right_where_nothing_rounds(central: bool) -> None:
    """Of small weights and a long step: only fp32's seven digits are left."""
    assert measuring.difference_error(1000, 1e-3, 0.1, 0.1, central) < 1e-6
    assert measuring.difference_error(1000, 1.0, 0.1, 1e-7, central) > 0.5


def test_careful_values_under_their_floor_take_the_correction_back(tmp_path: Path) -> None:
    table = written(tmp_path / "a.jsonl", [1.0] * 8, [1.0] * 8, floor=0.5)
    finding = claim(measuring, "d4-step").finding(0, [table])
    assert finding.verdict == "false as printed"
