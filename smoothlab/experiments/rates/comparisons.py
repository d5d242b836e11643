"""Speedup of two learning rates, and of reshuffling, on quadratics: Algorithm 1 beside its exact recursion."""

import math
from dataclasses import replace

import numpy as np

from smoothlab.algorithm1.quadratics import Order, Rule, gain_exact, tuned
from smoothlab.experiments.rates.config import RatesConfig
from smoothlab.experiments.rates.runs import Quadratics
from smoothlab.experiments.settings import UNMEASURED, Row, measured_row
from smoothlab.stats import curves, samples
from smoothlab.stats.intervals import Interval

RULES: tuple[Rule, ...] = ("one", "two")
ORDERS: tuple[Order, ...] = ("reshuffle", "replace")
NOISY = 4  # components where there is noise
EPS = 0.2  # accuracy of speedup, relative to ||grad f(z_0)|| = 1
MANY = 4  # times the replicas, where runs are short
LONGER = 1.5  # a run against the T that is expected, so that both ends of the interval are seen


def counted(
    problem: Quadratics, eta: tuple[float, float], expected: float, config: RatesConfig, seed: tuple[int, str]
) -> Row:
    """T until the running average of ||grad f||^2 is eps^2: in the mean over replicas, beside the recursion's."""
    row: Row = {**UNMEASURED, "reference": expected, "note": None}
    if math.isinf(expected):
        return row | {"note": "never: the floor is above eps^2"}
    if expected * problem.n > config.max_steps:
        return row | {"note": f"{expected * problem.n:.3g} steps are more than {config.max_steps}: not run"}
    length = math.ceil(LONGER * expected) + 5
    if problem.oracle == "exact" and problem.sigma2_x + problem.sigma2_y == 0:
        count = float(problem.run(*eta, length, 1, seed, below=EPS**2).reached[0])
        return row | measured_row(Interval(count, count, count))
    return row | measured_row(curves.first_time(problem.running(*eta, length, config.replicas, seed), EPS**2))


def speedup(config: RatesConfig, point: Row) -> list[Row]:
    """T with the best single rate and with the best two, tuned by the recursion with one budget, and their quotient."""
    kappa, noise = point["ratio"], point["sigma"] ** 2 / 2
    n = NOISY if noise else 1  # without noise all components are alike
    problem = Quadratics(point["d"], n, 1.0, 1 / kappa, noise, noise, oracle=point["oracle"])
    # Records of before called this part "buys": runs keep the seeds that they had under that name.
    name = "buys" + point["setting"].removeprefix(point["part"])
    rows: list[Row] = []
    for rule in RULES:
        best = tuned(EPS**2, problem.x, problem.y, rule)
        row = counted(problem, (best.eta_x, best.eta_y), best.T, config, (config.seed, f"{name}/{rule}"))
        rows.append({"quantity": "epochs", "rule": rule, "n": problem.n, "eps": EPS, "eta_x": best.eta_x,
                     "eta_y": best.eta_y, **row})  # fmt: skip
    single, pair = rows
    gain: Row = {"quantity": "gain", "rule": None, "n": problem.n, "eps": EPS,
                 "reference": single["reference"] / pair["reference"], "closed_form": None, **UNMEASURED,
                 "note": None}  # fmt: skip
    if point["oracle"] == "exact" and not noise:
        gain["closed_form"] = gain_exact(kappa)
    intervals = []
    for row in rows:
        if row["measured"] is not None and math.isfinite(row["high"]):
            intervals.append(Interval(row["measured"], row["low"], row["high"]))
    if len(intervals) == 2:
        gain |= measured_row(samples.ratio(*intervals))
    return [*rows, gain]


def reshuffling(config: RatesConfig, point: Row) -> list[Row]:
    """Mean ||grad f||^2 of the second half of a run, reshuffled over with replacement: below 1 reshuffling is better.

    L = 1; point["scale"] is eta n, with exact gradients, lowered to where a zeroth-order step is stable, eta m <= 1/2.
    """
    n, d, q = point["n"], point["d"], point["q"]
    problem = Quadratics(d, n, sigma2_x=point["sigma"] ** 2, start_x=point["start"], start_y=0.0,
                         oracle=point["oracle"], q=q)  # fmt: skip
    eta = min(point["scale"] / n, 0.5 / problem.x.moment)
    half = max(2, math.ceil(point["lengths"] / (eta * n)))
    second_half = range(half, 2 * half)
    errors, means, flags = [], [], []
    for order in ORDERS:
        ordered = replace(problem, order=order)
        errors.append(float(ordered.at(eta, 0.0, np.array(second_half)).mean()))
        if 2 * half * n <= config.max_steps:
            seed = (config.seed, f"{point['setting']}/{order}")
            result = ordered.run(eta, 0.0, 2 * half, MANY * config.replicas, seed, keep=tuple(second_half))
            squares = result.kept_x.mean(0)
            means.append(samples.mean_square(squares))
            flags.append(samples.rare_draws(squares))
    row: Row = {"quantity": "error ratio", "eta_x": eta, "eta_y": 0.0, "T": 2 * half, **UNMEASURED, "verdict": None,
                "note": None, "flag": None, "reference": errors[0] / errors[1], "error": errors[0],
                "error_replace": errors[1]}  # fmt: skip
    if not means:
        return [row | {"note": f"{2 * half * n} steps are more than {config.max_steps}: not run"}]
    ratio = samples.ratio(*means)
    verdict = "hidden"
    if ratio.high < 1:
        verdict = "better"
    elif ratio.low > 1:
        verdict = "worse"
    return [row | measured_row(ratio) | {"verdict": verdict, "flag": flags[0] or flags[1]}]
