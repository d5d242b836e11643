"""`smoothlab quadratic`: Example 2.3 by Algorithm 1, beside its closed forms."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from smoothlab.experiments.quadratic.config import QuadraticConfig
from smoothlab.experiments.settings import Row


@dataclass(frozen=True)
class QuadraticExample(QuadraticConfig):
    """Run Example 2.3, f(x, y) = a ||x||^2 + b ||y||^2 with b = 1: how fast one learning rate converges, and two.

    The learning rates are 1/(2a) or 1/(2b) for both blocks, the best single one 1/(a + b), or 1/(2a) and 1/(2b).
    """

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """Measure settings through joblib, and yield their rows in order."""
        from smoothlab.experiments import grid

        return grid.rows(points, self.measured)

    def measured(self, point: Row) -> list[Row]:
        """Measure one setting and return its rows."""
        from smoothlab.experiments.quadratic import runs, stable_map

        measures = {"rates": runs.rates, "noise": runs.noise, "hybrid": runs.hybrid, "map": stable_map.stable_map}
        return measures[point["part"]](self, point)

    def plan(self) -> str:
        """Say what a run would measure, and about how long it takes."""
        from smoothlab.experiments.quadratic import runs

        self.check()
        points = self.points()
        minutes = max(runs.seconds(self, points) / 60, 0.1)
        return f"Example 2.3 by Algorithm 1, {len(points)} settings\n  about {minutes:.1f} minutes"
