"""Numbers as the report writes them: the one formatter of tables, sentences and labels."""

import math
from typing import Any


def number(value: Any, digits: int = 3) -> str:
    """Number with `digits` significant digits, whole numbers below 1e15 in full: ``12.1``, ``1,230``, ``3e-4``, ``7``.

    None and NaN read "not measured", infinite values "unbounded".

    >>> number(0.04213), number(1234.5), number(1.2345e-7), number(640576), number(None)
    ('0.0421', '1,230', '1.23e-7', '640,576', 'not measured')
    """
    if value is None or math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "unbounded"
    if float(value).is_integer() and abs(value) < 1e15:  # from there on not every digit would be significant
        return f"{int(value):,}"
    # rounded before the power of ten is taken: 9.996 has one digit more once it is 10.0
    rounded = float(f"{value:.{digits}g}")
    if 1e-3 <= abs(rounded) < 1e6:
        decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
        return f"{rounded:,.{max(0, decimals)}f}"
    mantissa, power = f"{rounded:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"


def interval(value: Any, low: Any, high: Any) -> str:
    """Value with its 95 % interval: ``12.1 (11.6 to 12.7)``; the value alone where there is no interval.

    >>> interval(12.06, 11.6, 12.71), interval(10.0, None, 11.0), interval(0.5, None, None)
    ('12.1 (11.6 to 12.7)', '10 (at most 11)', '0.500')
    """
    bounded = [end is not None and math.isfinite(end) for end in (low, high)]
    if all(bounded):
        return f"{number(value)} ({number(low)} to {number(high)})"
    if bounded[1]:
        return f"{number(value)} (at most {number(high)})"
    if bounded[0]:
        return f"{number(value)} (at least {number(low)})"
    return number(value)


def rate(value: float) -> str:
    """Learning rate as it is written by hand: ``0.002``, ``3e-4``, ``10``.

    >>> rate(0.002), rate(3e-4), rate(10.0)
    ('0.002', '3e-4', '10')
    """
    if value == 0 or value >= 1e-3:
        return f"{value:.3g}"
    return number(value)
