"""Lemma B.5: both hypotheses, the derivation, and o(mu)."""

import numpy as np
import pytest

from smoothlab.claims import lemma_b5
from smoothlab.claims.search import Statement
from smoothlab.zeroth.bounds import log_truncated_mean
from tests.claims.holding import holds, true_statements


@pytest.mark.parametrize("name", [claim.name for claim in lemma_b5.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(lemma_b5, name)


@pytest.mark.parametrize("statement", true_statements(lemma_b5), ids=lambda statement: statement.what)
def test_false_on_purpose_is_caught(statement: Statement) -> None:
    assert statement.known is not None and statement.falsify(1, statement.known / 2).broken


def test_moments_of_ridges_by_another_quadrature() -> None:
    """Of a quadratic the closed form of theory.md D; of a wave Stein's identity, E psi'(t + mu a)."""
    p = np.array([[0.8, 0.0, 1.0, 0.0, 1.5, 0.3, 7.0], [0.0, 0.6, 2.0, 0.4, 1.5, 0.3, 7.0]])
    mu, L, d, g, bias, error = lemma_b5.ridge_moments(p)  # noqa: N806
    np.testing.assert_allclose(L, [0.8, 2.4])
    second = (7 + 2) * g[0] ** 2 + mu[0] ** 2 / 4 * (d[0] + 4) * 3 * 0.8**2  # (tr A)^2 + 2 ||A||_F^2 = 3 a^2
    assert bias[0] == pytest.approx(0, abs=1e-12) and error[0] == pytest.approx(second - g[0] ** 2)
    assert bias[1] == pytest.approx(abs(g[1]) * (1 - np.exp(-((0.3 * 2.0) ** 2) / 2)), rel=1e-9)


def test_tails_are_those_of_the_mean() -> None:
    """exp(x^4): E ghat^2 >= (E |ghat|)^2, whose truncated integral `smoothlab.zeroth.bounds` has."""
    mu, V = 0.1, 100.0  # noqa: N806
    found = np.log(lemma_b5.LOCAL.ratio(np.array([[1.0, 4.0, mu, 60.0]])))[0]
    assert found == 600, "capped: beyond what doubles hold"
    assert log_truncated_mean(mu, V) > 1000


def test_a_smaller_ell_for_the_counterexample_is_seen(monkeypatch) -> None:
    assert lemma_b5.local_definition().supports
    dense = lemma_b5.exact.dense
    monkeypatch.setattr(lemma_b5.exact, "dense", lambda what, ratios: dense(what, 3 * np.asarray(ratios)))
    assert not lemma_b5.local_definition().supports and lemma_b5.infinite(1) == ()


def test_dimensions_where_the_derivation_and_the_remainder_fit() -> None:
    assert [d for d in range(1, 30) if not all(lemma_b5.derived(d))] == [1, 2, 3, 4]
    assert [d for d in range(1, 30) if (d + 3) ** 1.5 / 2 <= 3 * d] == list(range(2, 26))
