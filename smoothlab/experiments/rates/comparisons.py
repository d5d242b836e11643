"""What two rates buy, and what reshuffling buys, on quadratics: Algorithm 1 beside its exact recursion."""

import math
from typing import Any

import numpy as np

from smoothlab.algorithm1.quadratics import Order, Rule, gain_exact, tuned
from smoothlab.experiments.rates.runs import Quadratics
from smoothlab.stats import curves as intervals
from smoothlab.stats import samples
from smoothlab.stats.intervals import Interval

Row = dict[str, Any]
RULES: tuple[Rule, ...] = ("one", "two")
ORDERS: tuple[Order, ...] = ("reshuffle", "replace")
NOISY = 4  # components where there is noise
BUY_EPS = 0.2  # relative to ||grad f(z_0)|| = 1
MANY = 4  # times the replicas, where runs are short
LONGER = 1.5  # a run against the T that is expected, so that both ends of the interval are seen


def counted(problem: Quadratics, eta: tuple[float, float], expected: float, eps: float, replicas: int, longest: int,
            seed: tuple[int, str]) -> Row:  # fmt: skip
    """T until the running average of ||grad f||^2 is eps^2: in the mean over replicas, beside the recursion's."""
    row: Row = {"measured": None, "low": None, "high": None, "reference": expected, "note": None}
    if math.isinf(expected):
        return row | {"note": "never: the floor is above eps^2"}
    if expected * problem.n > longest:
        return row | {"note": f"{expected * problem.n:.3g} steps are more than {longest}: not run"}
    length = math.ceil(LONGER * expected) + 5
    if problem.oracle == "exact" and problem.sigma2_x + problem.sigma2_y == 0:
        count = float(problem.run(*eta, length, 1, seed, below=eps**2).reached[0])
        return row | {"measured": count, "low": count, "high": count}
    found = intervals.first_time(problem.running(*eta, length, replicas, seed), eps**2)
    return row | {"measured": found.value, "low": found.low, "high": found.high}


def buys(point: Row, replicas: int, longest: int, seed: int) -> list[Row]:
    """T with the best single rate and with the best two, tuned by the recursion with one budget, and their quotient."""
    kappa, noise = point["ratio"], point["sigma"] ** 2 / 2
    problem = Quadratics(
        point["d"], NOISY if noise else 1, 1.0, 1 / kappa, noise, noise, oracle=point["oracle"], order="reshuffle"
    )
    rows: list[Row] = []
    for rule in RULES:
        best = tuned(BUY_EPS**2, problem.x, problem.y, rule)
        row = counted(problem, (best.eta_x, best.eta_y), best.T, BUY_EPS, replicas, longest,
                      (seed, f"{point['setting']}/{rule}"))  # fmt: skip
        rows.append({"quantity": "epochs", "rule": rule, "n": problem.n, "eps": BUY_EPS, "eta_x": best.eta_x,
                     "eta_y": best.eta_y, **row})  # fmt: skip
    gain: Row = {"measured": None, "low": None, "high": None, "note": None}
    if all(row["measured"] is not None and math.isfinite(row["high"]) for row in rows):
        one, two = (Interval(row["measured"], row["low"], row["high"]) for row in rows)
        gain = samples.ratio(one, two)._asdict() | {"note": None}
        gain["measured"] = gain.pop("value")
    certain = point["oracle"] == "exact" and not noise
    limit = gain_exact(kappa) if certain else None
    reference = rows[0]["reference"] / rows[1]["reference"]
    rows.append({"quantity": "gain", "rule": None, "n": problem.n, "eps": BUY_EPS, "reference": reference,
                 "closed_form": limit, **gain})  # fmt: skip
    return rows


def reshuffling(point: Row, replicas: int, longest: int, seed: int) -> list[Row]:
    """Mean ||grad f||^2 of the second half of a run, reshuffled over with replacement: below 1 reshuffling is better.

    L = 1; point["scale"] is eta n, with exact gradients, lowered to where a zeroth-order step is stable, eta m <= 1/2.
    """
    n, d, q = point["n"], point["d"], point["q"]
    problem = Quadratics(d, n, sigma2_x=point["sigma"] ** 2, start_x=point["start"], start_y=0.0,
                         oracle=point["oracle"], q=q)  # fmt: skip
    eta = min(point["scale"] / n, 0.5 / problem.x.moment)
    half = max(2, math.ceil(point["lengths"] / (eta * n)))
    row: Row = {"quantity": "error ratio", "eta_x": eta, "eta_y": 0.0, "T": 2 * half, "measured": None, "low": None,
                "high": None, "verdict": None, "note": None, "flag": None}  # fmt: skip
    late = range(half, 2 * half)
    exact = [float(problem.ordered(o).at(eta, 0.0, np.array(late)).mean()) for o in ORDERS]
    row |= {"reference": exact[0] / exact[1], "error": exact[0], "error_replace": exact[1]}
    if 2 * half * n > longest:
        return [row | {"note": f"{2 * half * n} steps are more than {longest}: not run"}]
    means, flags = [], []
    for order in ORDERS:
        this, key = problem.ordered(order), (seed, f"{point['setting']}/{order}")
        squares = this.run(eta, 0.0, 2 * half, MANY * replicas, key, keep=tuple(late)).kept_x
        means.append(samples.mean_square(squares.mean(0)))
        flags.append(samples.rare_draws(squares.mean(0)))
    found = samples.ratio(*means)
    told = "better" if found.high < 1 else "worse" if found.low > 1 else "hidden"
    flag = flags[0] or flags[1]
    return [row | {"measured": found.value, "low": found.low, "high": found.high, "verdict": told, "flag": flag}]
