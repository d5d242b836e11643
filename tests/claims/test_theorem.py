"""Theorem 3.4: its steps, and its conclusion."""

import numpy as np
import pytest

from smoothlab.claims import exact, theorem
from smoothlab.claims.search import Statement
from smoothlab.theory.theorems import Setting, in_expectation
from tests.claims.holding import holds, true_statements
from tests.theory.test_theorems import Pair, one


@pytest.mark.parametrize("name", [claim.name for claim in theorem.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(theorem, name)


@pytest.mark.parametrize("statement", true_statements(theorem), ids=lambda statement: statement.what)
def test_false_on_purpose_is_caught(statement: Statement) -> None:
    assert statement.known is not None and statement.falsify(1, statement.known / 2).broken


def test_both_instances_are_what_theory_says() -> None:
    (first, second) = (found.facts for found in theorem.conclusions())
    assert (first["smallest_T"], second["smallest_T"]) == (320_288, 32_028_794)
    assert first["times"] == pytest.approx(23.9, abs=0.05) and second["times"] == pytest.approx(25.5, abs=0.05)


@pytest.mark.parametrize(
    ("d", "sigma", "gap", "eps"), [(100, 100.0, 0.5, 0.5), (3, 1.0, 2.0, 0.3), (20, 0.2, 0.1, 0.1)]
)
def test_fast_and_enclosed_averages_are_those_of_the_recursion(d: int, sigma: float, gap: float, eps: float) -> None:
    h, pair = theorem.printed(d, sigma, gap, eps, 0.1), Pair(d, sigma**2, gap)
    truth = pair.average(h.eta_x, h.T)
    p = np.array([[d, sigma, gap, eps, 0.1]])
    T, eta = theorem._smallest_T(*p.T)  # noqa: N806
    assert T[0] == pytest.approx(h.T, abs=1.5) and eta[0] == pytest.approx(h.eta_x, rel=1e-3)
    assert theorem.CONCLUSION.ratio(p)[0] == pytest.approx(truth / eps**2, rel=1e-3)
    given = (exact.enclosed(v) for v in (sigma, gap, eps, 0.1))
    low, high = exact.ends(theorem.enclosed_average(d, *given, h.T)[0])
    assert low <= truth * (1 + 1e-9) and high >= truth * (1 - 1e-9) and high / low < 1 + 1e-9
    right = in_expectation(Setting(one, one, gap, 2, d, sigma**2, 0.0), eps, 1.0)
    assert theorem.CORRECTED.ratio(p)[0] == pytest.approx(pair.average(right.eta_x, right.T) / eps**2, rel=1e-6)


def test_a_t_that_is_too_small_is_seen_not_to_meet_its_condition() -> None:
    T = theorem.printed(100, 100.0, 0.5, 0.5, 0.1).T  # noqa: N806
    given = [exact.enclosed(v) for v in ("100", "0.5", "0.5", "0.1")]
    assert theorem.enclosed_average(100, *given, T + 1)[1] and not theorem.enclosed_average(100, *given, T - 1)[1]
