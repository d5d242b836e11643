"""What an interval is; every one that smoothlab reports has the confidence level `LEVEL`."""

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
