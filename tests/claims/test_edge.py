"""The edge of stability: verdicts, and certificates that see what is wrong."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from smoothlab.claims import edge, exact
from smoothlab.claims.search import Statement
from tests.claims.holding import all_support, holds, true_statements


@pytest.mark.parametrize("name", [claim.name for claim in edge.CLAIMS])
def test_verdicts(name: str) -> None:
    holds(edge, name)


@pytest.mark.parametrize("statement", true_statements(edge), ids=lambda statement: statement.what)
def test_false_on_purpose_is_caught(statement: Statement) -> None:
    assert statement.known is not None and statement.falsify(1, statement.known / 2).broken


def test_the_enumeration_knows_second_moments_and_the_law() -> None:
    """Of one direction E v^4 = k; of two averaged ones, all pairs by hand."""
    one = np.array([[1]], dtype=object)
    assert [edge.fourth_moment(one, k)[0, 0] for k in (1, 3, 10)] == [1, 3, 10]
    assert edge.averaged(one, 2)[0, 0] == Fraction(1, 2) * 3 + Fraction(1, 2)


@pytest.mark.parametrize(
    ("what", "name", "wrong"),
    [
        ("isserlis", "fourth_moment", lambda a, k, right=edge.fourth_moment: right(a, k) + 1),
        ("of_entries", "fourth_moment", lambda a, k, right=edge.fourth_moment: right(a, k + 1)),
        (
            "both_sides",
            "mean_square_edge",
            lambda s, m, right=edge.mean_square_edge: right(s, m._replace(isotropic=2.0)),
        ),
        (
            "positive_part",
            "mean_square_edge",
            lambda s, right=edge.mean_square_edge: right(s)._replace(value=1.02 * right(s).value),
        ),
        ("adam", "adam_edge", lambda top, beta1: 1.01 * 2 * (1 + beta1) / (1 - beta1)),
    ],
)
def test_certificates_see_what_is_wrong(what: str, name: str, wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_support(getattr(edge, what)())
    monkeypatch.setattr(edge, name, wrong)
    assert not all_support(getattr(edge, what)())


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_the_exponents_interval_holds_its_integral(rate: int) -> None:
    mpmath.mp.dps = 20
    cut = 1 / mpmath.sqrt(rate)
    value = mpmath.quad(lambda v: 2 * mpmath.log(abs(1 - rate * v * v)) * mpmath.npdf(v), [0, cut, 2 * cut, 4, 12])
    low, high = exact.ends(edge.exponent(Fraction(rate)))
    assert low - 1e-9 <= float(value) <= high + 1e-9 and high - low < 1e-12
