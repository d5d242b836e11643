"""Example 2.3, run with Algorithm 1 and held against closed forms: one learning rate or two, exact or zeroth-order."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.algorithm1.quadratics import moment
from smoothlab.algorithm1.replicas import Oracle
from smoothlab.algorithm1.sampling import matrix_shape
from smoothlab.experiments.quadratic import closed_forms as forms
from smoothlab.experiments.quadratic.config import QuadraticConfig
from smoothlab.experiments.quadratic.stable_map import SCALES
from smoothlab.experiments.settings import UNMEASURED, Row, measured_row, seeded
from smoothlab.objectives import Quadratic, objective
from smoothlab.stats import samples

LOOKS = 2000  # of one run
ROUNDING = 1e-12  # of a factor
NEAR = 3.0  # factor of the level within which intervals of the mean may hold it
CARRIED = 5.0  # relative variance of ||z||^2 up to which a few hundred runs show its mean


class Run(NamedTuple):
    """||x||^2 and ||y||^2 [looks, R] from ||x|| = ||y|| = 1, and the steps looked at."""

    square_x: Any
    square_y: Any
    steps: Any


def run(
    config: QuadraticConfig, a: float, d: int, eta: tuple[float, float], steps: int, *, stride: int = 1,
    distribution: Any = "gaussian", exact: bool = False, seed: str = "",
) -> Run:  # fmt: skip
    """Run Algorithm 1 on a ||x||^2 + ||y||^2, x in d dimensions; there is one summand."""
    f = objective(Quadratic(2 * a), Quadratic(2.0), d_x=d, d_y=1)
    keep = tuple(range(0, steps + 1, stride))
    oracle: Oracle = "two-sided"
    replicas = config.replicas
    if exact:  # all replicas would be the same run
        oracle, replicas = "exact", 1
    shape = matrix_shape(distribution, d)
    algorithm = Algorithm1(*eta, steps, oracle=oracle, distribution=distribution, keep=keep, shape=shape)
    z0 = torch.ones(d + 1, dtype=torch.float64)
    z0[:d] /= d**0.5
    result = algorithm.run(f, z0, replicas, seed=seeded(config.seed, seed))
    return Run(result.kept_x / (2 * a) ** 2, result.kept_y / 4, np.array(keep))


def rates(config: QuadraticConfig, point: Row) -> list[Row]:
    """Exact gradients in one dimension each, from (1, 1): what |x|, |y| and the larger are multiplied by a step."""
    a, rows = point["ratio"], []
    for rule in forms.RULES:
        eta = forms.rates(rule, a, 1.0)
        closed = forms.factors(a, 1.0, *eta)
        labels = {"rule": rule, "eta_x": eta[0], "eta_y": eta[1]}
        squares = run(config, a, 1, eta, 8, exact=True)[:2]
        x, y = (float(square[1, 0] / square[0, 0]) ** 0.5 for square in squares)
        slower = max(float((square[8, 0] / square[0, 0]) ** (1 / 16)) for square in squares)
        for quantity, value, reference in (("factor x", x, closed[0]), ("factor y", y, closed[1]),
                                           ("factor", slower, max(closed))):  # fmt: skip
            room = ROUNDING * max(1.0, value)
            row = {**labels, "quantity": quantity, "measured": value, "low": value - room, "high": value + room,
                   "reference": reference, "found": _verdict(value), "printed": None}  # fmt: skip
            if (rule, quantity) == ("large", "factor x") and a > 1:
                row["printed"] = "diverges"
            rows.append(row)
        counted = _steps(config, a, 1, eta, (closed[0] ** 2, closed[1] ** 2), exact=True)
        rows.append({**labels, "quantity": "steps", **counted})
    return rows


def noise(config: QuadraticConfig, point: Row) -> list[Row]:
    """Quotients ||x+||^2 / ||x||^2 of zeroth-order steps at several rates; curvature 2, so s = 2 eta_x."""
    d, distribution = point["d"], point["distribution"]
    m, rows = moment(d, distribution), []
    for scale in config.scales:
        s = 2 * scale / m
        seed = point["setting"] + f"/{scale:g}"
        square = run(config, 1.0, d, (s / 2, 0.0), config.steps, distribution=distribution, seed=seed).square_x
        quotients = square[1:][square[:-1] > 0] / square[:-1][square[:-1] > 0]  # in one dimension signs reach 0
        labels = {"rule": None, "eta_x": s / 2, "eta_y": 0.0, "scale": scale}
        mean = _widened(samples.mean_square(quotients))  # not negative, and far off at times
        flag = samples.rare_draws(quotients)
        row = {**measured_row(mean), "reference": forms.mean_square(s, m), "flag": flag}
        rows.append({**labels, "quantity": "mean square factor", **row})
        if distribution == "gaussian":
            with np.errstate(divide="ignore"):
                log = _widened(samples.mean(np.log(quotients)))
            row = {**measured_row(log), "reference": forms.typical(s, d)}
            rows.append({**labels, "quantity": "typical log factor", **row})
        # E <u, v>^2 = 1 is known: the mean of the quotients gives E <u, v>^2 ||v||^2 = m, and 2/m is the limit
        growth = np.maximum(np.array(mean) - 1 + 2 * s, 0.0)  # s^2 m: rounding or few runs may put it below 0
        with np.errstate(divide="ignore"):
            value, high, low = (2 * s * s / growth).tolist()  # the larger m, the smaller the limit
        row = {**measured_row((value, low, high)), "reference": 2 / m, "flag": flag}
        rows.append({**labels, "quantity": "largest stable rate", **row})
    if distribution == "gaussian":
        rows.append({"rule": None, "eta_x": None, "eta_y": None, "quantity": "largest typical rate", **UNMEASURED,
                     "reference": forms.typical_limit(d)})  # fmt: skip
    return rows


def hybrid(config: QuadraticConfig, point: Row) -> list[Row]:
    """Steps until the mean of ||z||^2 is eps^2 of what it was: x zeroth-order in d dimensions, y exact."""
    a, d, rows = point["ratio"], point["d"], []
    for rule, eta, squares in hybrid_rates(a, d):
        counted = _steps(config, a, d, eta, squares, seed=f"{point['setting']}/{rule}")
        rows.append({"rule": rule, "eta_x": eta[0], "eta_y": eta[1], "quantity": "steps", **counted})
    return rows


def hybrid_rates(a: float, d: int) -> list[tuple[str, tuple[float, float], tuple[float, float]]]:
    """The best single rate and the best two: rule, eta_x and eta_y, and the factors of E ||x||^2 and of ||y||^2."""
    m = moment(d, "gaussian")
    single = forms.best_single(a, 1.0, m)
    rules = []
    for rule, eta_x, eta_y in (("best", single, single), ("two", 1 / (2 * a * m), 1 / 2)):
        squares = (forms.mean_square(2 * a * eta_x, m), (1 - 2 * eta_y) ** 2)
        rules.append((rule, (eta_x, eta_y), squares))
    return rules


def _left_out(
    config: QuadraticConfig, a: float, d: int, eta_x: float, squares: tuple[float, float], exact: bool
) -> str | None:
    """Reason for which a run to eps is left out, or None."""
    expected, limit = forms.steps(*squares, config.eps), config.max_steps
    if exact:
        limit *= 10
    if math.isinf(expected):
        return "diverges"
    if expected > limit:
        return f"more than {limit} steps: not run"
    if not exact:
        share = squares[0] ** expected / (2 * config.eps**2)  # of x in ||z||^2; y is the same in every run
        if share**2 * forms.spread(2 * a * eta_x, d, expected) > CARRIED:
            return "the mean is carried by rare runs: not run"
    return None


def _steps(
    config: QuadraticConfig, a: float, d: int, eta: tuple[float, float], squares: tuple[float, float], *,
    exact: bool = False, seed: str = "",
) -> Row:  # fmt: skip
    """Steps to eps, measured and from the factors of E||x||^2 and E||y||^2.

    Of a run at least one and a half times as long, and its interval is that between the first look at which the
    mean's lower end, and the last at which its upper end, is on the other side.
    """
    expected, level = forms.steps(*squares, config.eps), config.eps**2
    row: Row = {**UNMEASURED, "reference": expected, "note": _left_out(config, a, d, eta[0], squares, exact),
                "flag": None}  # fmt: skip
    if row["note"] is not None:
        return row
    length = math.ceil(1.5 * expected) + 5
    stride = max(1, length // LOOKS)
    square_x, square_y, steps = run(config, a, d, eta, length, stride=stride, exact=exact, seed=seed)
    means = (square_x + square_y) / 2
    if exact:
        count = float(steps[int(np.argmax(means[:, 0] <= level))])
        return row | measured_row((count, count, count))
    values = means.mean(1)
    lows, highs = values.copy(), values.copy()
    for i in np.flatnonzero(np.abs(np.log(values / level)) < math.log(NEAR)):
        _, lows[i], highs[i] = samples.mean_square(means[i])
        row["flag"] = row["flag"] or samples.rare_draws(means[i])
    if (values <= level).any():
        row["measured"] = float(steps[np.argmax(values <= level)])
    if (lows <= level).any():
        row["low"] = max(float(steps[np.argmax(lows <= level)]) - stride + 1, 0.0)
    above = np.flatnonzero(highs > level)[-1]
    if above + 1 < len(steps):
        row["high"] = float(steps[above + 1])
    return row


def seconds(config: QuadraticConfig, points: Sequence[Row], clock: Callable[[], float] = time.perf_counter) -> float:
    """About how long the settings take: the steps of their runs, and what a step takes on this machine now.

    By the clock on the wall, so that other programs count that want the processor too; `clock` may be another one.
    """
    total = 0.0
    exact = _timed(partial(run, config, 1.0, 1, (0.1, 0.1), 30, exact=True), clock) / 30
    of_dim = {}
    for d in {point["d"] for point in points}:
        of_dim[d] = _timed(partial(run, config, 1.0, d, (0.1 / d, 0.1), 30), clock) / 30
    quadrature = _timed(partial(forms.typical, 0.1, 2), clock)
    for point in points:
        a, d = point["ratio"], point["d"]
        if point["part"] == "noise":
            total += config.steps * len(config.scales) * of_dim[d]
            if point["distribution"] == "gaussian":
                total += (len(config.scales) + 12) * quadrature  # and a root of `typical`
        elif point["part"] == "map":
            uncoupled = len(SCALES) ** 2 * config.steps * of_dim[d]
            total += 1.5 * uncoupled if point["coupling"] else uncoupled  # a coupling adds its term to each gradient
        elif point["part"] == "hybrid":
            total += 2 * quadrature
            for _, eta, squares in hybrid_rates(a, d):
                if _left_out(config, a, d, eta[0], squares, False) is None:
                    total += 1.5 * forms.steps(*squares, config.eps) * of_dim[d]
        else:
            for rule in forms.RULES:
                x, y = forms.factors(a, 1.0, *forms.rates(rule, a, 1.0))
                if _left_out(config, a, 1, 0.0, (x**2, y**2), True) is None:
                    total += 1.5 * forms.steps(x**2, y**2, config.eps) * exact
    return total


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of `work`, the mean over a tenth of a second; on one thread, as settings are measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work()  # the first call warms up
    started, count = clock(), 0
    while clock() - started < 0.1:
        work()
        count += 1
    torch.set_num_threads(threads)
    return (clock() - started) / count


def _widened(ends: Sequence[float]) -> Sequence[float]:
    """By rounding: on the sphere and in one dimension some quotients are the same in every run."""
    return ends[0], ends[1] - ROUNDING, ends[2] + ROUNDING


def _verdict(factor: float) -> str:
    """Verdict of a factor that is measured to rounding."""
    if abs(factor - 1) < ROUNDING:
        return "neither"
    return "converges" if factor < 1 else "diverges"
