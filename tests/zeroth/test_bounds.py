"""Bounds against mpmath; that they hold is in test_paper.py."""

import math

import mpmath
import numpy as np
import pytest

from smoothlab.zeroth import bounds


def test_bounds_of_chi_means_against_mpmath() -> None:
    for s, d in ((0.1, 1), (1e-6, 5), (0.5, 30), (1e-4, 10**6), (3.0, 4)):
        half = mpmath.mpf(s) ** 2 / 2
        exact = mpmath.hyp1f1(mpmath.mpf(d) / 2, 0.5, half) - 1
        ratio = mpmath.gamma(mpmath.mpf(d + 1) / 2) / mpmath.gamma(mpmath.mpf(d) / 2)
        exact += s * mpmath.sqrt(2) * ratio * mpmath.hyp1f1(mpmath.mpf(d + 1) / 2, 1.5, half)
        assert bounds.generalized_bias_bound(s, 2.0, 1.0, d, 3.0) == pytest.approx(5 * float(exact), rel=1e-9)
    assert bounds.generalized_bias_bound(10.0, 1.0, 1.0, 10**6, 0.0) == math.inf
    near, limit = (bounds.generalized_bias_bound(0.1, 2.0, l1, 9, 1.0) for l1 in (1e-9, 0.0))
    assert near == pytest.approx(limit) and limit <= bounds.bias_bound(0.1, 2.0, 9)


def test_truncated_mean_against_mpmath() -> None:
    for cutoff in (3, 10):
        with mpmath.workdps(30):
            exact = mpmath.quad(
                lambda z: (mpmath.exp((z / 2) ** 4) - 1) * 2 * z * mpmath.exp(-(z**2) / 2), np.linspace(0, cutoff, 15)
            )
            expected = float(mpmath.log(exact * mpmath.sqrt(2 / mpmath.pi)))
        assert bounds.log_truncated_mean(0.5, cutoff) == pytest.approx(expected, abs=1e-6)
