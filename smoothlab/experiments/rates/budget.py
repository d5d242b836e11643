"""The best constant learning rate for a budget of T epochs: by the corrected theorem, by the recursion, by simulation.

Sums whose components curve differently, one rate for both blocks, least (1/T) sum_{t < T} ||grad f(z_t)||^2. The
theorem's rate minimizes its bound (`smoothlab.theory.theorems.best_constant`), the recursion's the exact mean of
quadratics (of the linearized sum for others), and the simulated one is the lowest point of a grid that does not depend
on it, all rates on the same directions. Where the variance w of the zeroth-order estimate rules, the mean is about

    Delta/(n eta T) + eta w sigma_x^2/2   (curvature 1),   least at eta = sqrt(2 Delta/(n T w sigma_x^2)),

sqrt(12) times the theorem's rate, and (sqrt(12) + 1/sqrt(12))/2 = 1.88 times lower than the mean at that rate.
"""

import math

import numpy as np

from smoothlab.experiments.rates import curved
from smoothlab.experiments.rates.config import RatesConfig
from smoothlab.experiments.rates.runs import Array
from smoothlab.experiments.settings import UNMEASURED, Row, measured_row
from smoothlab.objectives import FiniteSum
from smoothlab.stats import curves, samples
from smoothlab.stats.intervals import Interval
from smoothlab.theory.theorems import best_constant

FACTOR = 1.2  # rates that are tried are powers of it
NEIGHBORS = 6  # on either side of the power that is nearest to the recursion's rate: from a third to three times it
STOPPED = 16.0  # level F, in Delta, below which sigma is taken where it is not bounded everywhere
FAR = 1e9  # gradients up to which ell is constant where smoothness is called global


def measured(config: RatesConfig, point: Row) -> list[Row]:
    """Rows of one series: best rates and averages at each T, and the exponent of the best rate in T."""
    kind = curved.KINDS[point["series"]]
    f, z0, moments = curved.problem(kind)
    exact = kind.family == "quadratics"
    gap = float(f.value(z0)) - f.f_star
    rows: list[Row] = []
    best_rates = []
    for T in point["values"]:
        eta, least = moments.best_for(T)
        row: Row = {"T": T, "note": None, "flag": None}
        formula, bound, note = theorems_rate(f, kind, gap, T)
        if not exact:
            note = "; ".join(filter(None, (note, "reference: recursion of the linearized sum")))
        rates = {**row, "quantity": "best rate", **UNMEASURED, "reference": eta, "formula": formula, "note": note}
        if T * f.n > config.max_steps:
            rows.append(rates | {"note": f"{T * f.n} steps are more than {config.max_steps}: not run"})
            continue
        seed = (config.seed, f"{point['setting']}/{T}")

        def averages(rate: float, T: int = T, seed: tuple[int, str] = seed) -> Array:
            return curved.run(kind, f, z0, rate, T, config.replicas, seed).average

        grid = FACTOR ** (round(math.log(eta, FACTOR)) + np.arange(-NEIGHBORS, NEIGHBORS + 1.0))
        lowest = samples.lowest(grid, np.stack([averages(float(rate)) for rate in grid], axis=1))
        rows.append(rates | measured_row(lowest))
        best_rates.append((T, lowest, eta))
        rows.append({**row, "rule": "recursion", "bound": None, **_average(eta, averages(eta))})
        rows[-1]["reference"] = least if exact else None
        if formula is not None:
            rows.append({**row, "rule": "theorem", "bound": bound, **_average(formula, averages(formula), bound)})
            rows[-1]["reference"] = moments.average(formula, T) if exact else None
    return [*rows, _exponent(best_rates)]


def theorems_rate(f: FiniteSum, kind: curved.Kind, gap: float, T: int) -> tuple[float | None, float, str | None]:
    """The corrected theorem's best constant rate, its bound, and what keeps it from applying."""
    level = math.inf if math.isfinite(f.sigma2) else STOPPED * gap
    setting = f.setting(gap, level)
    smoothness = [float(np.asarray(ell(u))) for ell in (setting.ell_x, setting.ell_y) for u in (0.0, FAR)]
    if smoothness[0] != smoothness[1] or smoothness[2] != smoothness[3]:
        return None, math.nan, "smoothness is not global: the theorem in expectation does not apply"
    eta, bound = best_constant(setting, T, max(smoothness), kind.variance)
    note = None
    if math.isfinite(level):
        note = f"sigma of the theorem is that of f - f* <= {STOPPED:g} Delta"
    return eta, bound, note


def _average(eta: float, averages: Array, bound: float | None = None) -> Row:
    """The mean over replicas at a rate, against a bound if there is one."""
    mean = samples.mean(averages)
    verdict = None if bound is None else curves.verdict(mean, bound)
    return {"quantity": "average", "eta_x": eta, "eta_y": eta, **measured_row(mean), "verdict": verdict,
            "flag": samples.rare_draws(averages)}  # fmt: skip


def _exponent(best_rates: list[tuple[int, Interval, float]]) -> Row:
    """The exponent of the best rate in T, expected -1/2 for large T, beside the recursion's with the same weights."""
    row: Row = {"quantity": "exponent of the best rate", "axis": "T", "expected": -0.5, **UNMEASURED, "reference": None,
                "note": None}  # fmt: skip
    closed = [entry for entry in best_rates if 0 < entry[1].low and entry[1].high < math.inf]
    if len(closed) < 2:
        return row | {"note": "fewer than two best rates lie inside their grid"}
    epochs, intervals, references = zip(*closed, strict=True)
    slope, reference = curves.exponent(epochs, intervals, references, 0.0)
    return row | measured_row(slope) | {"reference": reference}
