"""Checks of the rate of Theorem 3.4 in eps, n, d, delta and L_x/L_y, and of where it stops holding."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from smoothlab.experiments.rates.config import RatesConfig
from smoothlab.experiments.settings import Row


@dataclass(frozen=True)
class Rates(RatesConfig):
    """Measure the convergence rates of Theorem 3.4: promised, proven and needed by Algorithm 1, with 95 % intervals."""

    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """Measure settings through joblib, and yield their rows in order."""
        from smoothlab.experiments import grid

        return grid.rows(points, self.measured)

    def measured(self, point: Row) -> list[Row]:
        """Measure one setting and return its rows."""
        from smoothlab.experiments.rates import budget, comparisons, counterexample, exponents, theorem

        runs = {
            "theorem": theorem.measured, "exponents": exponents.measured, "counterexample": counterexample.measured,
            "speedup_of_two_rates": comparisons.speedup, "reshuffling": comparisons.reshuffling,
            "curved": exponents.measured, "budget": budget.measured,
        }  # fmt: skip
        return runs[point["part"]](self, point)

    def plan(self) -> str:
        """Say what a run would measure, and about how long it takes."""
        self.check()
        points = self.points()
        steps = len(points) * min(self.max_steps, 200_000) * 0.55 + 8e5 * ("large" in self.instances)
        # A budget is spent at each rate of a grid, in 4 steps an epoch.
        steps += 60 * sum(self.budgets) * sum(point["part"] == "budget" for point in points)
        minutes = max(steps * (6e-5 + self.replicas * 2e-7) / 60, 0.1)
        counts = Counter(point["part"] for point in points)
        lines = [f"  {part:20s} {count:4d} settings" for part, count in counts.items()]
        exact = dict.fromkeys(point["instance"] for point in points if not point.get("pathwise", True))
        if exact:
            lines[list(counts).index("counterexample")] += f", by exact recursion alone: {', '.join(exact)}"
        return "\n".join([
            f"The rates of Theorem 3.4, {len(points)} settings, {self.replicas} replicas each", *lines,
            f"  runs of more than {self.max_steps:,d} steps nT are left out, which their rows say (--max-steps)",
            f"  about {minutes:.1f} minutes, one process",
        ])  # fmt: skip
