"""How limits of learning rates are found, and what is advised from them; loads no torch, for the command line."""

from typing import Literal

By = Literal["auto", "predict", "try", "confirm"]
"""From curvature (predict), by short runs (try), both (confirm), or both where there is time (auto)."""
FRACTION = {"zeroth": 0.25, "exact": 0.5, "adam": 0.25}
"""Advised rate in units of its stability limit, by the kind of steps."""
