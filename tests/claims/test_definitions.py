"""Claims on Definition 2.1, L-smoothness, Eq. (2) and Example 2.3."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate

from smoothlab.claims import definitions
from smoothlab.claims.search import Statement
from tests.claims.holding import holds, true_statements


@pytest.mark.parametrize("name", [claim.name for claim in definitions.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(definitions, name)


@pytest.mark.parametrize("statement", true_statements(definitions), ids=lambda statement: statement.what)
def test_false_on_purpose_is_caught(statement: Statement) -> None:
    assert statement.known is not None and statement.falsify(1, statement.known / 2).broken


def test_slopes_of_the_dip_are_the_integral_of_its_curvature() -> None:
    found = definitions.dip_slopes(np.array(10.0), np.array(0.1), np.array(2.95), np.array(3.3))
    truth = integrate.quad(lambda x: 1 - 10 * np.exp(-((x - 3) ** 2) / 0.02), 2.95, 3.3, epsabs=1e-12)[0]
    assert float(found) == pytest.approx(truth, abs=1e-10)


def test_means_of_estimates_of_a_cubic_by_quadrature() -> None:
    """sum_k w_k h(v_k) with the nodes of Gauss and Hermite is exact here."""
    v, w = np.polynomial.hermite_e.hermegauss(6)
    f = np.polynomial.Polynomial([1, -2, 3, 5])
    for back, over in ((0, 1), (1, 2)):
        values = (f(0.5 + 0.3 * v) - f(0.5 - back * 0.3 * v)) / (over * 0.3) * v
        found = definitions.estimate_mean((1, -2, 3, 5), Fraction(1, 2), Fraction(3, 10), back, over)
        assert float(found) == pytest.approx(float(w @ values / w.sum()), rel=1e-12)
