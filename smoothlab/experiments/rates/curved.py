"""Exponents of nT in eps where components curve differently: by the exact recursion of quadratics, and measured.

One learning rate for both blocks, as in the corrected theorem in expectation, the best one by the recursion of the
quadratics that have the components' gradients and Hessians at the minimum: exact for quadratics, a choice for others.
Zeroth-order needs eps^-4 as before. Reshuffled exact gradients need eps^-3 n^0 at small eps, as the corrected theorem
says, not the eps^(-8/3) of components with one Hessian: the mean over orders of an epoch leaves

    sum_{j < k} H_k c_j  ->  -(1/2) sum_i H_i c_i,   so that   E grad f = -(eta/2) mean (H_i - H) c_i  in the limit,

a floor of eta^2 ||mean (H_i - H) c_i||^2/4, above the eta^3 n^2 sigma^2/24 of the variance once eta is small.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from smoothlab.algorithm1.curved_quadratics import Moments, linearized
from smoothlab.experiments.rates.fits import LONGER, computed, judged
from smoothlab.experiments.rates.runs import seeded
from smoothlab.stats import curves as intervals
from smoothlab.stats.intervals import Interval

if TYPE_CHECKING:
    from torch import Tensor

    from smoothlab.objectives import FiniteSum

Row = dict[str, Any]
SERIES = ("zo-quadratics", "fo-quadratics", "zo-log-cosh", "zo-exponentials")
EXPECTED = {"fo-quadratics": -3.0}  # -4 elsewhere
SWEEP = (1.0, 0.3, 0.1)  # of eps, in that of NEAR
NEAR = {"zo-quadratics": 1e-3, "fo-quadratics": 1e-5}  # where the floor of fo-quadratics is that of the mean


def problem(series: str) -> tuple["FiniteSum", "Tensor"]:
    """The sum: n = 4, d_x = 3, d_y = 1, sigma near 1 at the minimum, and a start with ||grad f|| = 1."""
    import torch

    from smoothlab.objectives import exponential_sum, log_cosh_sum, quadratic_sum

    sizes: Any = {"d_x": 3, "d_y": 1, "n": 4}
    if series == "zo-log-cosh":
        f: FiniteSum = log_cosh_sum(0.5, (0.9, 0.9), 1.0, **sizes)
    elif series == "zo-exponentials":
        f = exponential_sum(0.7, (0.7, 0.7), 1.0, **sizes)
    else:
        f = quadratic_sum(1.0, 1.0, 0.5, sigma=1.0, **sizes)
    way, low, high = torch.ones(f.dim, dtype=torch.float64), 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(f.gradient(middle * way).norm()) < 1 else (low, middle)
    return f, low * way


def _moments(series: str) -> tuple["FiniteSum", "Tensor", Moments]:
    f, z0 = problem(series)
    oracle = "exact" if series.startswith("fo") else "two-sided"
    return (
        f,
        z0,
        Moments(linearized(f), z0.numpy(), oracle, "sphere" if f.gaussian_moments == "infinite" else "gaussian"),
    )


def needed(series: str) -> list[Row]:
    """Steps nT by the recursion at small eps; at moderate ones they are measured."""
    f, _, moments = _moments(series)
    unit = NEAR[series]
    told = {"series": series, "regime": "small eps", "axis": "eps", "ell": "constant", "near": unit}
    return computed(
        told, SWEEP, lambda value: f.n * moments.best((value * unit) ** 2)[1], unit, EXPECTED.get(series, -4.0)
    )


def measured(point: Row, replicas: int, longest: int, seed: int) -> list[Row]:
    """Steps nT at which the mean running average of ||grad f||^2 is eps^2, and its exponent, by runs."""
    from smoothlab.algorithm1.engine import Algorithm1

    series = point["series"]
    f, z0, moments = _moments(series)
    exact = series == "zo-quadratics"
    rows: list[Row] = []
    found, places, expected = [], [], []
    for eps in point["values"]:
        eta, T = moments.best(eps**2)  # noqa: N806
        row: Row = {"quantity": "steps", "value": eps, "eta_x": eta, "eta_y": eta, "measured": None, "low": None,
                    "high": None, "reference": f.n * T if exact else None, "note": None}  # fmt: skip
        length = math.ceil(LONGER * T) + 5
        if length * f.n > longest:
            rows.append(row | {"note": f"{length * f.n} steps are more than {longest}: not run"})
            continue
        how = Algorithm1(eta, eta, length, distribution=moments.distribution, keep=tuple(range(length)))
        kept = how.run(f, z0, replicas, seed=seeded((seed, f"{point['setting']}/{eps:g}")))
        running = (kept.kept_x + kept.kept_y).cumsum(0) / np.arange(1, length + 1)[:, None]
        ends = [f.n * end for end in intervals.first_time(running, eps**2)]
        rows.append(row | {"measured": ends[0], "low": ends[1], "high": ends[2]})
        if all(0 < end < math.inf for end in ends):
            found.append(Interval(*ends))
            places.append(eps)
            expected.append(f.n * T)
    if len(found) < 2:
        note = "fewer than two values were measured"
        return [*rows, {"quantity": "exponent", "measured": None, "low": None, "high": None, "note": note}]
    slope, reference = intervals.exponent(places, found, expected, float(f.n))
    last: Row = {"quantity": "exponent", "measured": slope.value, "low": slope.low, "high": slope.high, "note": None,
                 "reference": reference if exact else None, "linearized": reference}  # fmt: skip
    return [*rows, last | judged(slope, "eps", EXPECTED.get(series, -4.0))]
