"""Intervals; every one that smoothlab reports has the confidence level `LEVEL`."""

import math
from typing import NamedTuple

from scipy import special

LEVEL = 0.95
"""Confidence level."""
TAIL = (1 - LEVEL) / 2
"""Probability of missing on each side."""
Z = float(special.ndtri(1 - TAIL))
"""Standard deviations of a normal number that a two-sided interval reaches to each side."""


class Interval(NamedTuple):
    """A value with a two-sided interval."""

    value: float
    low: float
    high: float


def half_width(square: Interval) -> float:
    """Half-width of a norm's interval relative to the norm, from that of its square; 0 for a square of 0 or below."""
    if square.value <= 0.0:
        return 0.0
    return (math.sqrt(square.high) - math.sqrt(max(square.low, 0.0))) / (2 * math.sqrt(square.value))
