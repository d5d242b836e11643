"""Counterexamples in interval and high-precision arithmetic: rounding cannot be what refutes a claim.

`mpmath.iv` encloses: every result is an interval that holds the true value, so that a comparison of the ends is
certain. Numbers are given as text or integers ("0.1" is one tenth, not its nearest double).
"""

import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from smoothlab.claims.claim import About, Certificate

mpmath.iv.dps = 40  # decimal digits, of the context that all intervals share
exp, sqrt = mpmath.iv.exp, mpmath.iv.sqrt
"""The intervals of e^x and of the square root of x for x in an interval."""


def enclosed(number: str | int | Fraction | float) -> Any:
    """The interval of a number: of a fraction or a text the smallest one, of a double the double itself."""
    if isinstance(number, Fraction):
        return mpmath.iv.mpf(number.numerator) / mpmath.iv.mpf(number.denominator)
    return mpmath.iv.mpf(number)


def cosh(x: Any) -> Any:
    """The interval of cosh x for x in an interval that is not negative, where cosh grows."""
    return (exp(x) + exp(-x)) / 2


def sinh(x: Any) -> Any:
    """The interval of sinh x for x in a narrow interval."""
    return (exp(x) - exp(-x)) / 2


def ends(x: Any) -> tuple[float, float]:
    """Both ends as doubles, rounded outwards by one ulp."""
    return math.nextafter(float(mpmath.mpf(x.a)), -math.inf), math.nextafter(float(mpmath.mpf(x.b)), math.inf)


def refutes(
    inequality: str, measured: Any, allowed: Any, about: About = "printed", **facts: float | str
) -> tuple[Certificate, ...]:
    """A certificate against measured <= allowed if the least that is measured exceeds the most that is allowed."""
    (least, _), (_, most) = ends(measured), ends(allowed)
    if not least > most:  # also where an interval holds NaN
        return ()
    facts = {"measured, at least": least, "allowed, at most": most, **facts}
    return (Certificate(inequality, about, False, "interval", facts),)


def dense(
    inequality: str, ratios: Any, about: About = "printed", *, rounding: float = 1e-9, **facts: float | str
) -> Certificate:
    """A proof's inequality at points of a grid, as quotients left/right; one above 1 refutes it."""
    values, largest = np.asarray(ratios, dtype=float), math.inf
    if values.size and np.isfinite(values).all():  # a grid that lost its points, or a point its number, proves nothing
        largest = float(values.max())
    facts = {"points": float(values.size), "largest left/right": largest, **facts}
    return Certificate(inequality, about, largest <= 1 + rounding, "proof and dense check", facts)


def equal(
    inequality: str, left: Any, right: Any, about: About = "printed", *, supports: bool = True, **facts: float | str
) -> Certificate:
    """Exact arithmetic: fractions, integers or booleans on both sides, or lists of them, are the same.

    If they are, this supports the statement, or refutes it for `supports` False; if not, the opposite.
    """
    if isinstance(left, list):
        facts["cases"] = float(len(left))
    else:
        facts["value"] = str(left)
    if left != right:
        facts["instead of"] = str(right)[:200]
    return Certificate(inequality, about, (left == right) is supports, "exact", facts)
