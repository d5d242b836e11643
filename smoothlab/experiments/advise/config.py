"""How limits of learning rates are found: a choice that the command line knows without loading torch."""

from typing import Literal

By = Literal["auto", "predict", "try", "confirm"]
"""From curvature (predict), by short runs (try), both (confirm), or both where there is time (auto)."""
