"""Exponents of nT in eps, n, d and delta: what the theorems' conditions ask for, and what Algorithm 1 needs.

Theorem 3.4 claims T >= O(eps^-2/delta + eps^-4/n): nT of exponent -4 in eps and 0 in n, d and (at small eps) delta. The
corrected theorems (theory.md B) say d eps^-4 in expectation, times delta^-2 with high probability where ell_x is
bounded, and more where it is not (`smoothlab.theory.theorems.delta_exponent`: delta^-3 for affine ell). What is
needed is seen on the quadratic with the best two rates, by the exact recursion down to tiny eps, and measured at
moderate eps.

With exact gradients a quadratic reshuffled is better than eps^-3 sqrt(n): the sum of r^(n - j) c_j over an epoch has
variance sigma^2 n^3 (eta L)^2/12, so that the floor is eta^3 L^3 n^2 sigma^2/24, and nT ~ Delta/(eta eps^2) is
n^(2/3) eps^(-8/3).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from smoothlab.algorithm1.quadratics import tuned
from smoothlab.experiments.rates.runs import Quadratics
from smoothlab.stats import curves as intervals
from smoothlab.stats import samples
from smoothlab.stats.intervals import Interval
from smoothlab.theory.theorems import Setting, delta_exponent, in_expectation, theorem_c1, with_high_probability

Row = dict[str, Any]
AXES = ("eps", "n", "d", "delta")
CLAIMED = {"eps": -4.0, "n": 0.0, "d": 0.0, "delta": 0.0}
"""Theorem 3.4's, of nT at small eps."""
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
EPS = 0.2  # of what is measured on the other axes
TOLERANCE = 0.05  # of an exponent that is computed, not measured
LONGER = 1.6  # a run against the T that is expected
LONGEST_TAIL = 3.0  # the same for quantiles


def conditions() -> list[Row]:
    """nT that the theorems ask for: L = 1, for delta also other ell; exponents of the ends, slopes between."""
    rows: list[Row] = []
    for regime, middle in REGIMES.items():
        for axis in AXES:
            for ell in ELLS if (axis, regime) == ("delta", "small eps") else ("constant",):
                rows += _asked(regime, middle, axis, ell)
    return rows


def _asked(regime: str, middle: float, axis: str, ell: str) -> list[Row]:
    def bound(rho: float, u: Any) -> Any:
        u = np.asarray(u, dtype=float)
        return 1 + u**rho if rho else np.ones_like(u)

    ell_x, ell_y = (partial(bound, rho) for rho in ELLS[ell])

    def at(theorem: str, value: float) -> float:
        now = {"eps": middle, "n": 8, "d": 10, "delta": 0.1}
        now[axis] = value * middle if axis == "eps" else value
        s = Setting(ell_x, ell_y, 1.0, int(now["n"]), int(now["d"]), 0.5, 0.5)
        if theorem == "expectation":
            return in_expectation(s, now["eps"], 1.0).gradients
        if theorem == "probability":
            return with_high_probability(s, now["eps"], now["delta"]).gradients
        return theorem_c1(s, now["eps"], now["delta"], reading="printed" if ell == "constant" else "doubled").gradients

    rows = []
    for theorem in ("printed", "expectation", "probability"):
        if theorem == "expectation" and axis == "delta":
            continue  # there is no delta in it
        if theorem == "printed" and ell not in ("constant", "affine"):
            continue  # what is asked is for which ell the corrected theorem has which exponent
        told = {"series": theorem, "regime": regime, "axis": axis, "ell": ell}
        rows += computed(told, SWEEPS[axis], partial(at, theorem), middle if axis == "eps" else 1.0)
    return rows


def needed(series: str) -> list[Row]:
    """The smallest nT with the best two rates by the exact recursion, from moderate to tiny eps."""
    rows: list[Row] = []
    for regime, middle in REGIMES.items():
        for axis in [axis for axis in AXES if axis in EXPECTED[series]]:
            unit = middle if axis == "eps" else 1.0

            def at(value: float, axis: str = axis, middle: float = middle, unit: float = unit) -> float:
                this, eps = _moved(series, axis, value * unit)
                eps = eps if axis == "eps" else middle
                return this.n * tuned(eps**2, this.x, this.y, "two").T

            rows += computed(
                {"series": series, "regime": regime, "axis": axis, "ell": "constant"}, SWEEPS[axis], at, unit
            )
    return rows


def _moved(series: str, axis: str, value: float) -> tuple[Quadratics, float]:
    """The problem and eps at a value on an axis."""
    base = SERIES[series]
    if axis in ("n", "d"):
        return (replace(base, n=int(value)) if axis == "n" else replace(base, d=int(value))), EPS
    return base, value if axis == "eps" else EPS


def computed(
    told: Row, values: tuple[float, ...], at: Callable[[float], float], unit: float, expected: float | None = None
) -> list[Row]:
    """Rows of nT and of its exponent, with the flattest and steepest slope between neighbors; no statistics in it.

    Args:
        told: series, regime, axis and ell.
        values: on the axis, in `unit`.
        at: nT at a value.
        unit: of the values.
        expected: exponent; by default that of EXPECTED.
    """
    steps = [float(at(value)) for value in values]
    x, y = np.log(values), np.log(steps)
    slopes = np.diff(y) / np.diff(x)
    slope, axis = float((y[-1] - y[0]) / (x[-1] - x[0])), told["axis"]
    if expected is None and told["ell"] == "constant":
        expected = EXPECTED.get(told["series"], {}).get(axis)
    if (told["series"], axis) == ("probability", "delta"):
        rho_x, rho_y = ELLS[told["ell"]]
        expected = delta_exponent(rho_x, max(rho_x, rho_y))
    ends = Interval(slope, float(slopes.min()), float(slopes.max()))
    loose = Interval(slope, ends.low - TOLERANCE, ends.high + TOLERANCE)
    rows: list[Row] = [
        {**told, "quantity": "steps asked", "value": value * unit, "reference": count, "measured": None, "low": None,
         "high": None} for value, count in zip(values, steps, strict=True)
    ]  # fmt: skip
    return [*rows, {**told, "quantity": "exponent asked", "reference": slope, "low": ends.low, "high": ends.high,
                    "measured": None, **judged(loose, axis, expected)}]  # fmt: skip


def judged(found: Interval, axis: str, expected: float | None) -> Row:
    """Whether the claimed exponent and the expected one are in an interval."""

    def told(exponent: float | None) -> str | None:
        return None if exponent is None else "consistent" if found.low <= exponent <= found.high else "inconsistent"

    claimed = CLAIMED[axis]
    return {"claimed": claimed, "verdict": told(claimed), "expected": expected, "verdict_expected": told(expected)}


def measured(point: Row, replicas: int, longest: int, seed: int) -> list[Row]:
    """nT at which the mean running average is eps^2 (for delta: at which that of a share 1 - delta of replicas is).

    Rates are the best two by the recursion. The exponent is that of the best line, beside the recursion's with the same
    weights.
    """
    series, axis = point["series"], point["axis"]
    rows, found, places, exact, units = [], [], [], [], []
    for value in point["values"]:
        this, eps = _moved(series, axis, value)
        best = tuned(eps**2, this.x, this.y, "two")
        expected = this.n * best.T
        row: Row = {
            "quantity": "steps", "value": value, "eta_x": best.eta_x, "eta_y": best.eta_y, "measured": None,
            "low": None, "high": None, "reference": None if axis == "delta" else expected, "note": None,
        }  # fmt: skip
        length = math.ceil(best.T * (LONGEST_TAIL if axis == "delta" else LONGER)) + 5
        if length * this.n > longest:
            rows.append(row | {"note": f"{length * this.n} steps are more than {longest}: not run"})
            continue
        running = this.running(best.eta_x, best.eta_y, length, replicas, (seed, f"{point['setting']}/{value:g}"))
        if axis == "delta":
            under = running <= eps**2
            times = np.where(under.any(0), under.argmax(0) + 1.0, np.inf)
            one = samples.quantile(times, 1 - value)
        else:
            one = intervals.first_time(running, eps**2)
        ends = [this.n * end for end in one]
        rows.append(row | {"measured": ends[0], "low": ends[1], "high": ends[2]})
        if all(0 < end < math.inf for end in ends):
            found.append(Interval(*ends))
            places.append(value)
            exact.append(expected)
            units.append(float(this.n))
    if len(found) < 2:
        note = "fewer than two values were measured"
        return [*rows, {"quantity": "exponent", "measured": None, "low": None, "high": None, "note": note}]
    slope, reference = intervals.exponent(places, found, exact, units)
    verdicts = judged(slope, axis, EXPECTED[series].get(axis))
    last: Row = {"quantity": "exponent", "measured": slope.value, "low": slope.low, "high": slope.high, "note": None,
                 "reference": None if axis == "delta" else reference, **verdicts}  # fmt: skip
    return [*rows, last]
