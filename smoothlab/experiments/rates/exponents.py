"""Exponents of nT in eps, n, d and delta: what the theorems' conditions ask for, and what Algorithm 1 needs.

Theorem 3.4 claims T >= O(eps^-2/delta + eps^-4/n): nT of exponent -4 in eps and 0 in n, d and (at small eps) delta. The
corrected theorems (theory.md B) say d eps^-4 in expectation, times delta^-2 with high probability where ell_x is
bounded, and more where it is not (`smoothlab.theory.theorems.delta_exponent`: delta^-3 for affine ell). What is
needed is seen on the quadratic with the best two rates, by the exact recursion down to tiny eps, and measured at
moderate eps.

With exact gradients a quadratic reshuffled is better than eps^-3 sqrt(n): the sum of r^(n - j) c_j over an epoch has
variance sigma^2 n^3 (eta L)^2/12, so that the floor is eta^3 L^3 n^2 sigma^2/24, and nT ~ Delta/(eta eps^2) is
n^(2/3) eps^(-8/3).

Components that curve differently have one learning rate for both blocks, as in the corrected theorem in expectation,
the best one by the recursion of the quadratics that have the components' gradients and Hessians at the minimum: exact
for quadratics, a choice for others. Zeroth-order needs eps^-4 as before. Reshuffled exact gradients need eps^-3 n^0 at
small eps, as the corrected theorem says, not the eps^(-8/3) of components with one Hessian: the mean over orders of an
epoch leaves

    sum_{j < k} H_k c_j  ->  -(1/2) sum_i H_i c_i,   so that   E grad f = -(eta/2) mean (H_i - H) c_i  in the limit,

a floor of eta^2 ||mean (H_i - H) c_i||^2/4, above the eta^3 n^2 sigma^2/24 of the variance once eta is small.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from smoothlab.algorithm1.quadratics import tuned
from smoothlab.experiments.rates import curved
from smoothlab.experiments.rates.config import RatesConfig
from smoothlab.experiments.rates.curved import KINDS, NEAR
from smoothlab.experiments.rates.runs import Array, Quadratics
from smoothlab.experiments.settings import UNMEASURED, Row, measured_row
from smoothlab.stats import curves, samples
from smoothlab.stats.intervals import Interval
from smoothlab.theory.theorems import (
    Reading,
    Setting,
    delta_exponent,
    in_expectation,
    theorem_c1,
    with_high_probability,
)

AXES = ("eps", "n", "d", "delta")
CLAIMED: dict[str, float | None] = {"eps": -4.0, "n": 0.0, "d": 0.0, "delta": 0.0, "variance": None}
"""Theorem 3.4's, of nT at small eps; it knows one Gaussian direction alone."""
SERIES = {
    "zo": Quadratics(10, 4, sigma2_x=0.5, sigma2_y=0.5),
    "fo-reshuffle": Quadratics(10, 4, sigma2_x=0.5, sigma2_y=0.5, oracle="exact"),
    "fo-replace": Quadratics(10, 4, sigma2_x=0.5, sigma2_y=0.5, oracle="exact", order="replace"),
}
"""Zeroth- or first-order in x, sigma = 1, ||grad f(z_0)|| = 1 with L = 1, Delta = 1/2."""
EXPECTED = {
    "expectation": {"eps": -4.0, "n": 0.0, "d": 1.0},
    "probability": {"eps": -4.0, "n": 0.0, "d": 1.0, "delta": -2.0},
    "zo": {"eps": -4.0, "n": 0.0, "d": 1.0},
    "fo-reshuffle": {"eps": -8 / 3, "n": 2 / 3},
    "fo-replace": {"eps": -4.0, "n": 0.0},
}
EXPECTED |= dict.fromkeys(KINDS, {"eps": -4.0, "variance": 1.0}) | {"fo-quadratics": {"eps": -3.0}}
"""By the corrected theorems (leading terms), and on the quadratic."""
ELLS: dict[str, tuple[float, float]] = {
    "constant": (0.0, 0.0), "affine": (1.0, 1.0), "root": (0.5, 0.5), "affine in y": (0.0, 1.0),
}  # fmt: skip
"""ell_x and ell_y as 1 + u^rho, or 1 for rho = 0; all but the first on the axis of delta, where they matter."""
REGIMES = {"small eps": 1e-3, "moderate eps": 0.3}
SWEEPS: dict[str, tuple[float, ...]] = {
    "eps": (2.0, 1.0, 0.5), "n": (2, 8, 32), "d": (30, 100, 300), "delta": (0.2, 0.05, 0.0125),
}  # fmt: skip
"""Values on each axis; eps in that of the regime. Elsewhere n = 8 (4 on the quadratic), d = 10, delta = 0.1."""
CURVED_SWEEP = (1.0, 0.3, 0.1)  # of eps, in that of NEAR
EPS = 0.2  # of what is measured on the other axes
TOLERANCE = 0.05  # of an exponent that is computed, not measured
LONGER = 1.6  # a run against the T that is expected
LONGEST_TAIL = 3.0  # the same for quantiles


def measured(config: RatesConfig, point: Row) -> list[Row]:
    """Rows of one setting: what is asked for or needed by computation, or what runs need."""
    if point["axis"] is not None:
        return measured_exponent(config, point)
    if point["series"] == "conditions":
        return conditions()
    if point["series"] in KINDS:
        return needed_curved(point["series"])
    return needed(point["series"])


# Computed: conditions of the theorems, and the recursions


def conditions() -> list[Row]:
    """nT that the theorems ask for: L = 1, for delta also other ell; exponents of the ends, slopes between."""
    rows: list[Row] = []
    for regime, middle in REGIMES.items():
        for axis in AXES:
            # the shape of ell matters for delta alone, and at small eps
            for ell in ELLS if (axis, regime) == ("delta", "small eps") else ["constant"]:
                rows += _required(regime, middle, axis, ell)
    return rows


def _required(regime: str, middle: float, axis: str, ell: str) -> list[Row]:
    def bound(rho: float, u: Any) -> Any:
        return 1 + np.asarray(u, dtype=float) ** rho if rho else np.ones(np.shape(u))

    ell_x, ell_y = (partial(bound, rho) for rho in ELLS[ell])
    unit = {"eps": middle}.get(axis, 1.0)  # eps is swept relative to the regime's
    reading: Reading = "doubled"  # as the proof reads G and L; both readings agree for constant ell
    if ell == "constant":
        reading = "printed"

    def gradients(theorem: str, value: float) -> float:
        point = {"eps": middle, "n": 8, "d": 10, "delta": 0.1, axis: value * unit}
        s = Setting(ell_x, ell_y, 1.0, int(point["n"]), int(point["d"]), 0.5, 0.5)
        if theorem == "expectation":
            return in_expectation(s, point["eps"], 1.0).gradients
        if theorem == "probability":
            return with_high_probability(s, point["eps"], point["delta"]).gradients
        return theorem_c1(s, point["eps"], point["delta"], reading=reading).gradients

    rows = []
    for theorem in ("printed", "expectation", "probability"):
        if theorem == "expectation" and axis == "delta":
            continue  # there is no delta in it
        if theorem == "printed" and ell not in ("constant", "affine"):
            continue  # the question is for which ell the corrected theorem has which exponent
        labels = {"series": theorem, "regime": regime, "axis": axis, "ell": ell}
        rows += computed(labels, SWEEPS[axis], partial(gradients, theorem), unit)
    return rows


def needed(series: str) -> list[Row]:
    """The smallest nT with the best two rates by the exact recursion, from moderate to tiny eps."""

    def steps(axis: str, middle: float, unit: float, value: float) -> float:
        problem, eps = _moved(series, axis, value * unit, middle)
        return problem.n * tuned(eps**2, problem.x, problem.y, "two").T

    rows: list[Row] = []
    for regime, middle in REGIMES.items():
        for axis in EXPECTED[series]:
            unit = {"eps": middle}.get(axis, 1.0)
            labels = {"series": series, "regime": regime, "axis": axis, "ell": "constant"}
            rows += computed(labels, SWEEPS[axis], partial(steps, axis, middle, unit), unit)
    return rows


def needed_curved(series: str) -> list[Row]:
    """Steps nT by the recursion of components that curve differently at small eps: in eps, and in the variance."""
    unit = NEAR[series]
    f, _, moments = curved.problem(KINDS[series])
    labels = {"series": series, "regime": "small eps", "axis": "eps", "ell": "constant", "near": unit}
    rows = computed(labels, CURVED_SWEEP, lambda value: f.n * moments.best((value * unit) ** 2)[1], unit)
    if series != "zo-quadratics":
        return rows

    def steps(variance: float) -> float:
        f, _, moments = curved.problem(curved.with_variance(series, variance))
        return f.n * moments.best(unit**2)[1]

    return rows + computed(labels | {"axis": "variance"}, tuple(curved.ESTIMATES), steps, 1.0)


def computed(labels: Row, values: tuple[float, ...], steps: Callable[[float], float], unit: float) -> list[Row]:
    """Rows of nT, `steps` at `values` in a unit, and of its exponent, with the flattest and steepest slope.

    There are no statistics in it; `labels` are series, regime, axis and ell.
    """
    counts = [float(steps(value)) for value in values]
    x, y = np.log(values), np.log(counts)
    slopes = np.diff(y) / np.diff(x)
    slope, axis, expected = float((y[-1] - y[0]) / (x[-1] - x[0])), labels["axis"], None
    if labels["ell"] == "constant":
        expected = EXPECTED.get(labels["series"], {}).get(axis)
    if (labels["series"], axis) == ("probability", "delta"):
        rho_x, rho_y = ELLS[labels["ell"]]
        expected = delta_exponent(rho_x, max(rho_x, rho_y))
    low, high = float(slopes.min()), float(slopes.max())
    rows: list[Row] = []
    for value, count in zip(values, counts, strict=True):
        rows.append({**labels, "quantity": "steps asked", "value": value * unit, "reference": count, **UNMEASURED})
    verdicts = judged(Interval(slope, low - TOLERANCE, high + TOLERANCE), axis, expected)
    return [*rows, {**labels, "quantity": "exponent asked", "reference": slope, "low": low, "high": high,
                    "measured": None, **verdicts}]  # fmt: skip


def judged(interval: Interval, axis: str, expected: float | None) -> Row:
    """Whether the claimed exponent and the expected one are in an interval."""

    def verdict(exponent: float | None) -> str | None:
        if exponent is None:
            return None
        if interval.low <= exponent <= interval.high:
            return "consistent"
        return "inconsistent"

    claimed = CLAIMED[axis]
    return {"claimed": claimed, "verdict": verdict(claimed), "expected": expected,
            "verdict_expected": verdict(expected)}  # fmt: skip


# Measured: runs


class Trial(NamedTuple):
    """Runs at one value on an axis: the best rates by the recursion, T by it, and running averages of runs."""

    n: int
    eps: float
    eta_x: float
    eta_y: float
    epochs: float
    running: Callable[[int], Array]


def measured_exponent(config: RatesConfig, point: Row) -> list[Row]:
    """nT at which the mean running average is eps^2 (for delta: at which that of a share 1 - delta of replicas is).

    Rates are the best by the recursion. The exponent is that of the best line, beside the recursion's with the same
    weights; a recursion that is not exact is no reference (nor one of means for the quantiles of delta).
    """
    series, axis = point["series"], point["axis"]
    exact = axis != "delta" and (series in SERIES or KINDS[series].family == "quadratics")
    rows, steps_of = [], []
    for value in point["values"]:
        trial = _trial(config, point, value)
        expected = trial.n * trial.epochs
        row: Row = {
            "quantity": "steps", "value": value, "eta_x": trial.eta_x, "eta_y": trial.eta_y, **UNMEASURED,
            "reference": None, "note": None,
        }  # fmt: skip
        if exact:
            row["reference"] = expected
        length = math.ceil(trial.epochs * {"delta": LONGEST_TAIL}.get(axis, LONGER)) + 5
        if length * trial.n > config.max_steps:
            rows.append(row | {"note": f"{length * trial.n} steps are more than {config.max_steps}: not run"})
            continue
        running = trial.running(length)
        if axis == "delta":
            reached = running <= trial.eps**2
            epochs = samples.quantile(np.where(reached.any(0), reached.argmax(0) + 1.0, np.inf), 1 - value)
        else:
            epochs = curves.first_time(running, trial.eps**2)
        steps = Interval(trial.n * epochs.value, trial.n * epochs.low, trial.n * epochs.high)
        rows.append(row | measured_row(steps))
        if 0 < steps.low and steps.high < math.inf:
            steps_of.append((value, steps, expected, float(trial.n)))
    if len(steps_of) < 2:
        return [*rows, {"quantity": "exponent", **UNMEASURED, "note": "fewer than two values were measured"}]
    slope, reference = curves.exponent(*zip(*steps_of, strict=True))
    last: Row = {"quantity": "exponent", **measured_row(slope), "note": None, "reference": None}
    if exact:
        last["reference"] = reference
    if series not in SERIES:
        last["linearized"] = reference
    return [*rows, last | judged(slope, axis, EXPECTED[series].get(axis))]


def _trial(config: RatesConfig, point: Row, value: float) -> Trial:
    seed = (config.seed, f"{point['setting']}/{value:g}")
    if point["series"] in SERIES:
        problem, eps = _moved(point["series"], point["axis"], value)
        best = tuned(eps**2, problem.x, problem.y, "two")
        return Trial(
            problem.n, eps, best.eta_x, best.eta_y, best.T,
            lambda length: problem.running(best.eta_x, best.eta_y, length, config.replicas, seed),
        )  # fmt: skip
    kind, eps = KINDS[point["series"]], value
    if point["axis"] == "variance":
        kind, eps = curved.with_variance(point["series"], value), EPS
    f, z0, moments = curved.problem(kind)
    eta, epochs = moments.best(eps**2)
    return Trial(
        f.n, eps, eta, eta, epochs, lambda length: curved.running(kind, f, z0, eta, length, config.replicas, seed)
    )


def _moved(series: str, axis: str, value: float, eps: float = EPS) -> tuple[Quadratics, float]:
    """The quadratic and eps at a value on an axis."""
    if axis == "eps":
        return SERIES[series], value
    if axis == "delta":
        return SERIES[series], eps
    return replace(SERIES[series], **{axis: int(value)}), eps  # type: ignore[arg-type]
