"""Lemma B.6 and what its proof uses."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate, stats

from smoothlab.claims import lemma_b6
from smoothlab.claims.search import Statement
from tests.claims.holding import holds, true_statements
from tests.theory.test_theorems import Pair


@pytest.mark.parametrize("name", [claim.name for claim in lemma_b6.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(lemma_b6, name)


@pytest.mark.parametrize("statement", true_statements(lemma_b6), ids=lambda statement: statement.what)
def test_false_on_purpose_is_caught(statement: Statement) -> None:
    assert statement.known is not None and statement.falsify(1, statement.known / 2).broken


@pytest.mark.parametrize("d", [1, 5])
def test_the_epoch_is_the_recursion_that_was_simulated(d: int) -> None:
    pair, eta = Pair(d, 4.0, 1.0, 2.0), 0.03
    assert lemma_b6.epoch(d, 2.0, 4.0, eta) == pytest.approx(pair.step(eta))


def test_the_counterexample_has_the_ratio_768() -> None:
    (found,) = lemma_b6.counterexample()
    assert found.facts["ratio"] == pytest.approx(768, abs=0.01)


def test_stopped_means_by_quadrature() -> None:
    eta, root = 1e-2, 0.995
    ends = np.sqrt((1 - root) / eta), np.sqrt((1 + root) / eta)
    truth = 2 * integrate.quad(lambda v: (v**2 - 1) * stats.norm.pdf(v), *ends, epsabs=1e-13)[0]
    assert lemma_b6.AHEAD.ratio(np.array([[eta, root**2]]))[0] / 1000 == pytest.approx(abs(truth), rel=1e-9)


@pytest.mark.parametrize("bend", [-1.0, 0.0, 0.5, 1.0])
def test_drift_in_closed_form_is_the_mean_over_all_orders(bend: float) -> None:
    shifts, g = (5, 1, -2, -4), 3
    n, s2 = 4, sum(c * c for c in shifts) / 4
    r = 1 - Fraction(bend) / (2 * n)
    truth = float(lemma_b6.deviation(tuple(map(Fraction, shifts)), Fraction(g), r, Fraction(1)))
    found = lemma_b6.CONTROL.ratio(np.array([[n, bend, g**2 / (g**2 + s2)]]))[0]
    assert found == pytest.approx(truth / (n**3 * g**2 + n**2 * s2), rel=1e-12)
