"""Algorithm 1 at the constants of Theorem C.1 as printed and of the corrected theorems, on each objective."""

import math
from typing import Any

import numpy as np
import torch

from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.algorithm1.quadratics import moment
from smoothlab.algorithm1.sampling import matrix_shape
from smoothlab.errors import BadInput
from smoothlab.experiments.rates.config import RatesConfig
from smoothlab.experiments.rates.runs import Array, Quadratics
from smoothlab.experiments.settings import UNMEASURED, Row, measured_row, seeded
from smoothlab.objectives import FiniteSum
from smoothlab.objectives.table import build
from smoothlab.stats import curves, samples
from smoothlab.theory.theorems import (
    Horizon,
    Setting,
    descent,
    in_expectation,
    theorem_c1,
    with_high_probability,
)

THEOREMS: tuple[str, ...] = ("printed", "expectation", "probability")
GAP = 1.0  # Delta; L_x is 1 at the minimum, so that ||grad f(z_0)||^2 is 2 on a quadratic of one curvature
FAR = 1e9  # gradients up to which ell is constant where smoothness is called global
STOPPED = 16.0  # F, in Delta, of the theorem in expectation where sigma is bounded on f - f* <= F only
QUANTILES = (0.1, 0.5, 0.9)
EMPTY: Row = {**UNMEASURED, "reference": None, "verdict": None, "note": None, "flag": None}


def measured(config: RatesConfig, point: Row) -> list[Row]:
    """Rows of each theorem for one objective."""
    theorems = THEOREMS
    if point["given"]:  # T is chosen for the printed one alone
        theorems = THEOREMS[:1]
    empty = {"quantity": "average", **EMPTY, "bound": point["eps"] ** 2}
    try:
        f = build(point["family"], ratio=point["ratio"], d=point["d"], n=point["n"], sigma=point["sigma"])
    except BadInput as error:  # pairs of components with odd n, or components that differ by sigma = 0
        return [{"theorem": theorem, **empty, "note": str(error)} for theorem in theorems]
    z0 = f.at_level(torch.ones(f.dim, dtype=torch.float64), GAP)
    rows: list[Row] = []
    for theorem in theorems:
        try:
            setting = f.setting(GAP, _level(f, theorem, point["delta"]))
            horizon = _constants(setting, theorem, point, config.mu)
        except BadInput as error:
            rows.append({"theorem": theorem, **empty, "note": str(error)})
            continue
        rows += _run(config, point, theorem, f, z0, setting, horizon)
    return rows


def _level(f: FiniteSum, theorem: str, delta: float) -> float:
    """The level up to which sigma must be bounded: everywhere, or as far as a theorem's iterate goes."""
    if theorem == "probability":
        return 4 * GAP / delta
    if theorem == "expectation" and not math.isfinite(f.sigma2):
        return STOPPED * GAP
    return math.inf


def _constants(s: Setting, theorem: str, point: Row, mu: float | None) -> Horizon:
    eps, delta = point["eps"], point["delta"]
    if theorem == "printed":
        return theorem_c1(s, eps, delta, T=point["given"] or None, mu=mu)
    if theorem == "probability":
        return with_high_probability(s, eps, delta)
    return in_expectation(s, eps, global_smoothness(s))


def global_smoothness(s: Setting) -> float:
    """The L of the theorem in expectation, with which every component is smooth everywhere.

    Raises:
        BadInput: there is none.
    """
    smoothness = []
    for ell in (s.ell_x, s.ell_y):
        smoothness.append(float(np.asarray(ell(FAR))))
        if smoothness[-1] != float(np.asarray(ell(0.0))):
            raise BadInput("smoothness is not global: the theorem in expectation does not apply")
    return max(smoothness)


def _run(
    config: RatesConfig, point: Row, theorem: str, f: FiniteSum, z0: Any, setting: Setting, h: Horizon
) -> list[Row]:
    """Mean of the running average against eps^2, and the share of replicas where it is below, against 1 - delta."""
    distribution: Any = config.distribution
    if distribution == "fitting":
        spherical = theorem == "probability" or f.gaussian_moments == "infinite"
        distribution = "sphere" if spherical else "gaussian"
    eps, (eta_x, eta_y) = point["eps"], (h.eta_x, h.eta_y)
    if point["rule"] == "one":
        eta_x = eta_y = min(h.eta_x, h.eta_y)
    proven = None
    # The proofs bound E ||ghat||^2 by that of Gaussian directions, which others may exceed.
    covered = point["oracle"] == "exact" or moment(f.d_x, distribution) <= f.d_x + 2
    if theorem != "printed" and covered:
        proven = _proven(setting, h, eta_x, eta_y)
    labels: Row = {
        "theorem": theorem, "distribution": distribution, "eta_x": eta_x, "eta_y": eta_y, "mu": h.mu, "T": h.T,
        "steps": h.gradients, "F": h.F, "L_x": h.L_x, "L_y": h.L_y, "meets": getattr(h, "holds", True),
        "proven": proven,
    }  # fmt: skip
    exact = None
    if point["family"] == "quadratic":
        g = f.gradient(z0).square()
        exact = Quadratics(
            f.d_x, f.n, 1.0, 1 / point["ratio"], f.sigma2_x, f.sigma2_y, float(g[: f.d_x].sum()),
            float(g[f.d_x :].sum()), point["order"], point["oracle"], distribution, mu=h.mu,
        ).average(eta_x, eta_y, h.T)  # fmt: skip
    average = {**labels, "quantity": "average", **EMPTY, "reference": exact, "bound": eps**2}
    if h.gradients > config.max_steps:
        average["note"] = f"{h.gradients:.3g} steps are more than {config.max_steps}: not run"
        if exact is not None:
            average["verdict"] = verdict_of(exact, eps)
        return [average]
    above = None
    if theorem == "expectation" and not math.isfinite(f.sigma2):
        above = STOPPED * GAP
    algorithm = Algorithm1(eta_x, eta_y, h.T, point["order"], point["oracle"], h.mu, distribution, above=above,
                           shape=matrix_shape(distribution, f.d_x))  # fmt: skip
    seed = seeded(config.seed, f"{point['setting']}/{theorem}")
    result = algorithm.run(f, z0, config.replicas, seed=seed)
    averages, note = result.average, {}
    if above is not None:  # of an iterate that is stopped at tau: (1/T) sum_{t < tau}
        averages = averages * np.maximum(result.epochs, 1) / h.T
        stopped = int((result.left >= 0).sum())
        words = f"sigma holds where f - f* <= {STOPPED:g} Delta: {stopped} of {config.replicas} replicas were stopped"
        note = {"note": words}
    success = {**labels, "quantity": "success", **EMPTY, **of_share(averages, eps, h.delta)}
    return [average | of_mean(averages, eps, result.diverged) | note, success]


def _proven(setting: Setting, h: Horizon, eta_x: float, eta_y: float) -> float | None:
    """B.6' summed up: a bound of (1/T) sum E ||grad f||^2 while the iterate stays where B.6' holds; None elsewhere."""
    epoch = descent(setting, eta_x, eta_y, h.mu, h.L_x, h.L_y)
    if not epoch.holds:
        return None
    return (setting.gap / h.T + epoch.noise) / min(epoch.decrease_x, epoch.decrease_y)


def verdict_of(average: float, eps: float) -> str:
    """Whether an average that is known exactly is at most eps^2."""
    return "holds" if average <= eps**2 else "fails"


def of_mean(averages: Array, eps: float, diverged: Any) -> Row:
    """The mean over replicas with its interval, quantiles, the largest, and how many diverged."""
    lost = int(np.sum(diverged))
    row: Row = {}
    for p in QUANTILES:  # of the replicas themselves: between an infinite one and its neighbor lies nothing
        row[f"q{100 * p:.0f}"] = float(np.quantile(averages, p, method="inverted_cdf"))
    row |= {"largest": float(averages.max()), "diverged": lost, "replicas": len(averages)}
    if lost:
        note = f"{lost} of {len(averages)} replicas diverged: their mean is infinite"
        return row | {"verdict": "fails", "note": note}
    mean = samples.mean(averages)
    row |= {"verdict": curves.verdict(mean, eps**2), "flag": samples.rare_draws(averages)}
    return row | measured_row(mean)


def of_share(averages: Array, eps: float, delta: float) -> Row:
    """Clopper-Pearson interval of P((1/T) sum ||grad f||^2 <= eps^2), against 1 - delta; 0 is no delta."""
    share = samples.proportion(int((averages <= eps**2).sum()), len(averages))
    row: Row = {**measured_row(share), "bound": None, "verdict": None, "replicas": len(averages)}
    if delta:
        row |= {"bound": 1 - delta, "verdict": curves.verdict(share, 1 - delta, at_most=False)}
    return row
