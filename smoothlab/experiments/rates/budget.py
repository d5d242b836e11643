"""The best constant learning rate for a budget of T epochs: by the corrected theorem, by the recursion, by simulation.

Sums whose components curve differently, one rate for both blocks, least (1/T) sum_{t < T} ||grad f(z_t)||^2. The
theorem's rate minimizes its bound (`smoothlab.theory.theorems.best_constant`), the recursion's the exact mean of
quadratics (of the linearized sum for others), and the simulated one is the lowest point of a grid that does not depend
on it, all rates on the same directions. Where the variance w of the zeroth-order estimate rules, the mean is about

    Delta/(n eta T) + eta w sigma_x^2/2   (curvature 1),   least at eta = sqrt(2 Delta/(n T w sigma_x^2)),

sqrt(12) times the theorem's rate, and (sqrt(12) + 1/sqrt(12))/2 = 1.88 times lower than the mean at that rate.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from smoothlab.algorithm1.curved_quadratics import Moments
from smoothlab.errors import BadInput
from smoothlab.experiments.rates import curved
from smoothlab.experiments.rates.config import RatesConfig
from smoothlab.experiments.rates.runs import Array
from smoothlab.experiments.rates.theorem import STOPPED, global_smoothness
from smoothlab.experiments.settings import UNMEASURED, Row, measured_row
from smoothlab.objectives import FiniteSum
from smoothlab.stats import curves, samples
from smoothlab.stats.intervals import Interval
from smoothlab.theory.theorems import best_constant

FACTOR = 1.2  # rates that are tried are powers of it
NEIGHBORS = 6  # on either side of the power that is nearest to the recursion's rate: from a third to three times it
LINEARIZED = "reference: recursion of the linearized sum"


class Best(NamedTuple):
    """The best rate for T epochs, simulated and by the recursion."""

    T: int
    simulated: Interval
    exact: float


@dataclass(frozen=True)
class Series:
    """One sum, its recursion, and the runs on it."""

    config: RatesConfig
    name: str  # of the setting, from which seeds follow
    kind: curved.Kind
    f: FiniteSum
    z0: Tensor
    moments: Moments

    @property
    def exact(self) -> bool:
        """Whether the recursion is that of the sum itself."""
        return self.kind.family == "quadratics"

    def averages(self, rate: float, T: int) -> Array:
        """(1/T) sum ||grad f||^2 of each replica; all rates have the same directions."""
        seed = (self.config.seed, f"{self.name}/{T}")
        return curved.run(self.kind, self.f, self.z0, rate, T, self.config.replicas, seed).average

    def average(self, rule: str, rate: float, T: int, bound: float | None = None) -> Row:
        """The mean over replicas at a rate, beside the recursion's where it is exact, against a bound."""
        averages = self.averages(rate, T)
        mean = samples.mean(averages)
        row: Row = {"quantity": "average", "T": T, "rule": rule, "eta_x": rate, "eta_y": rate, "bound": bound,
                    **measured_row(mean), "reference": None, "verdict": None, "note": None,
                    "flag": samples.rare_draws(averages)}  # fmt: skip
        if self.exact:
            row["reference"] = self.moments.average(rate, T)
        if bound is not None:
            row["verdict"] = curves.verdict(mean, bound)
        return row

    def best(self, near: float, T: int) -> Interval:
        """The rate with the least mean, among powers of `FACTOR`."""
        powers = round(math.log(near, FACTOR)) + np.arange(-NEIGHBORS, NEIGHBORS + 1.0)
        grid = (FACTOR**powers).tolist()
        averages = []
        for rate in grid:
            averages.append(self.averages(rate, T))
        return samples.lowest(grid, np.stack(averages, axis=1))


def measured(config: RatesConfig, point: Row) -> list[Row]:
    """Rows of one series: best rates and averages at each T, and the exponent of the best rate in T."""
    kind = curved.KINDS[point["series"]]
    series = Series(config, point["setting"], kind, *curved.problem(kind))
    rows: list[Row] = []
    best_rates: list[Best] = []
    for T in point["values"]:
        eta, _ = series.moments.best_for(T)
        formula, bound, note = theorems_rate(series.f, kind, series.z0, T)
        best: Row = {"quantity": "best rate", "T": T, **UNMEASURED, "reference": eta, "formula": formula, "note": note,
                     "flag": None}  # fmt: skip
        if not series.exact:
            best["note"] = "; ".join(filter(None, (note, LINEARIZED)))
        if T * series.f.n > config.max_steps:
            rows.append(best | {"note": f"{T * series.f.n} steps are more than {config.max_steps}: not run"})
            continue
        simulated = series.best(eta, T)
        best_rates.append(Best(T, simulated, eta))
        rows += [best | measured_row(simulated), series.average("recursion", eta, T)]
        if formula is not None:
            rows.append(series.average("theorem", formula, T, bound))
    return [*rows, _exponent(best_rates)]


def theorems_rate(f: FiniteSum, kind: curved.Kind, z0: Tensor, T: int) -> tuple[float | None, float | None, str | None]:
    """The corrected theorem's best constant rate, its bound, and a note on its sigma or on why it does not apply."""
    gap, note = float(f.value(z0)) - f.f_star, None
    level = math.inf
    if not math.isfinite(f.sigma2):
        level = STOPPED * gap
        note = f"sigma of the theorem is that of f - f* <= {STOPPED:g} Delta"
    try:
        setting = f.setting(gap, level)
        eta, bound = best_constant(setting, T, global_smoothness(setting), kind.variance)
    except BadInput as error:
        return None, None, str(error)
    return eta, bound, note


def _exponent(best_rates: list[Best]) -> Row:
    """The exponent of the best rate in T, expected -1/2 for large T, beside the recursion's with the same weights."""
    row: Row = {"quantity": "exponent of the best rate", "axis": "T", "expected": -0.5, **UNMEASURED, "reference": None,
                "note": None}  # fmt: skip
    finite = [best for best in best_rates if 0 < best.simulated.low and best.simulated.high < math.inf]
    if len(finite) < 2:
        return row | {"note": "fewer than two best rates lie inside their grid"}
    epochs, intervals, references = zip(*finite, strict=True)
    slope, reference = curves.exponent(epochs, intervals, references, 0.0)
    return row | measured_row(slope) | {"reference": reference}
