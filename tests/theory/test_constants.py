"""From ell to G: quadrature and roots against closed forms and mpmath."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smoothlab.errors import BadInput
from smoothlab.theory.constants import Ell, constants, gradient_bound, gradient_bound_printed, largest, phi

some = settings(deadline=None, derandomize=True, max_examples=25)
sizes = st.floats(-8, 8).map(lambda s: 10.0**s)


def affine(l0: float, l1: float) -> Ell:
    return lambda u: l0 + l1 * np.asarray(u, dtype=float)


def constant(value: float) -> Ell:
    return lambda u: np.full_like(np.asarray(u, dtype=float), value)


@given(sizes, sizes, sizes)
@example(1000.0, 1e-7, 1.0)
@some
def test_closed_forms_of_affine_ell(l0: float, l1: float, level: float) -> None:
    """Phi(u) = u/L1 - (L0/L1^2) log(1 + L1 u/L0); Lemma B.3: L1 F + sqrt(L1^2 F^2 + 2 L0 F) and twice the L1."""
    ell = affine(l0, l1)
    g = gradient_bound(ell, level)
    s = mpmath.mpf(l1 * g / l0)
    with mpmath.workdps(50):  # s may be 1e-9, of whose square the difference is half
        exact = (l0 / l1**2) * float(s - mpmath.log1p(s))
    assert exact == pytest.approx(level, rel=1e-8)
    for stretch in (1, 2):
        printed = stretch * l1 * level + math.sqrt((stretch * l1 * level) ** 2 + 2 * l0 * level)
        assert gradient_bound_printed(ell, level, stretch) == pytest.approx(printed, rel=1e-10)


@given(sizes, sizes, sizes, st.floats(0.05, 0.95))
@some
def test_closed_forms_of_constant_cosh_and_power_ell(a: float, b: float, level: float, exponent: float) -> None:
    assert gradient_bound(constant(a), level) == pytest.approx(math.sqrt(2 * a * level), rel=1e-9)
    # sqrt(a^2 + b^2 u^2): ell(G) = a + b^2 F
    g = gradient_bound(lambda u: np.hypot(a, b * np.asarray(u)), level)
    assert g == pytest.approx(math.sqrt(level * (2 * a + b**2 * level)), rel=1e-7)
    # a u^q: Phi = u^(2 - q)/(a (2 - q))
    g = gradient_bound(lambda u: a * np.asarray(u) ** exponent, level)
    assert g == pytest.approx((a * (2 - exponent) * level) ** (1 / (2 - exponent)), rel=1e-8)


def test_ell_with_kinks_jumps_and_crossings() -> None:
    step = lambda u: np.where(np.asarray(u) < 3, 1.0, 5.0)  # noqa: E731
    assert gradient_bound(step, 10.0) == pytest.approx(8, rel=1e-9)  # 9/2 + (64 - 9)/10
    crossing = largest(constant(4.0), affine(1.0, 1.0))  # 4 up to u = 3, then 1 + u
    g = gradient_bound(crossing, 5.0)
    assert 9 / 8 + (g - math.log1p(g)) - (3 - math.log(4)) == pytest.approx(5, rel=1e-9)
    # u^2 = 2 ell(u) F has three roots here: the supremum is the last.
    assert gradient_bound_printed(step, 2.0) == pytest.approx(math.sqrt(20))
    assert gradient_bound(step, 2.0) == pytest.approx(2)


@pytest.mark.parametrize("exponent", [1.5, 1.9])
def test_steep_ell_against_mpmath(exponent: float) -> None:
    ell = lambda u: 2 + 3 * np.asarray(u, dtype=float) ** exponent  # noqa: E731
    for u in (0.1, 3.0, 1e4):
        cuts = [0, *(c for c in (0.01, 1, 10, 100) if c < u), u]
        exact = mpmath.quad(lambda v: v / (2 + 3 * v**exponent), cuts)
        assert float(phi(ell, u)) == pytest.approx(float(exact), rel=1e-8)
    g = gradient_bound(ell, 5.0)
    assert float(phi(ell, g)) == pytest.approx(5, rel=1e-9)


def test_phi_of_arrays_is_phi_of_each() -> None:
    ell = affine(1.0, 2.0)
    u = np.array([[3.0, 0.0], [1e-6, 3.0]])
    values = phi(ell, u)
    assert values.shape == u.shape and values[0, 1] == 0
    for i, j in np.ndindex(2, 2):
        assert float(phi(ell, u[i, j])) == pytest.approx(values[i, j], rel=1e-12, abs=0)
    assert not phi(ell, np.zeros(3)).any()


@given(sizes, sizes, sizes)
@some
def test_printed_is_never_below_sharp_and_f_to_cf_scales_both(l0: float, l1: float, level: float) -> None:
    """f -> c f has ell -> c ell(u/c), F -> c F, G -> c G."""
    ell, c = affine(l0, l1), 7.0
    scaled = lambda u: c * ell(np.asarray(u) / c)  # noqa: E731
    here, there = constants(ell, ell, level), constants(scaled, scaled, c * level)
    assert here.G <= here.G_printed * (1 + 1e-9) <= here.G_doubled * (1 + 2e-9)
    for a, b in ((here.G, there.G), (here.G_printed, there.G_printed), (here.L_x, there.L_x)):
        assert b == pytest.approx(c * a, rel=1e-7)


def test_constants_of_two_blocks() -> None:
    c = constants(constant(4.0), affine(1.0, 1.0), 0.5)
    assert (c.G, c.L_x) == (pytest.approx(2), 4) and c.L_y == pytest.approx(3)
    assert c.L_y_near == pytest.approx(5) and c.radius == pytest.approx(2 / math.sqrt(5))
    zero = constants(constant(4.0), constant(1.0), 0.0)
    assert (zero.G, zero.G_printed, zero.G_doubled, zero.L_x, zero.radius) == (0, 0, 0, 4, 0)


@pytest.mark.parametrize(
    ("ell", "level", "message"),
    [
        (lambda u: 1 + np.asarray(u) ** 2, 10.0, "quadratic"),
        (constant(1.0), -1.0, "level"),
        (constant(1.0), math.nan, "level"),
        (constant(1.0), math.inf, "level"),
        (constant(math.nan), 1.0, "must be a positive number"),
        (lambda u: np.asarray(u) - 1.0, 10.0, "must be a positive number"),
        (lambda u: 2 + np.sin(1e7 * np.asarray(u)), 10.0, "rough"),
    ],
)
def test_what_is_no_ell_is_refused(ell: Ell, level: float, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        gradient_bound(ell, level)
    with pytest.raises(BadInput, match="norm"):
        phi(constant(1.0), -1.0)
