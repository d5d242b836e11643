"""Algorithm 1 at the constants of Theorem C.1 as printed and of the corrected theorems; where the printed one fails."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smoothlab.errors import BadInput
from smoothlab.experiments.rates.runs import Array, Quadratics, seeded
from smoothlab.stats import curves as intervals
from smoothlab.stats import samples
from smoothlab.theory.theorems import (
    Horizon,
    Printed,
    Setting,
    descent,
    in_expectation,
    theorem_c1,
    with_high_probability,
)

if TYPE_CHECKING:
    from smoothlab.objectives import FiniteSum

Row = dict[str, Any]
THEOREMS = ("printed", "expectation", "probability")
GAP = 1.0  # Delta; L_x is 1 at the minimum, so that ||grad f(z_0)||^2 is 2 on a quadratic of one curvature
FAR = 1e9  # gradients up to which ell is constant where smoothness is called global
STOPPED = 16.0  # F, in Delta, of the theorem in expectation where sigma is bounded on f - f* <= F only
BEND = 0.1  # how far the Hessians of single quadratics are from their mean, in units of it
REPLICAS = 30  # of the counterexample
QUANTILES = (0.1, 0.5, 0.9)
EMPTY: Row = {"measured": None, "low": None, "high": None, "reference": None, "verdict": None, "note": None,
              "flag": None}  # fmt: skip


def _families() -> dict[str, Callable[[float], Row]]:
    from smoothlab.objectives import Cosh, CosineCoupling, Oscillating, Quadratic

    coupling = CosineCoupling(0.9, 1.0, 0.5)  # 0.9 times |w|^2 = 1.25 is more than 1: not convex
    return {
        "quadratic": lambda ratio: {"x": Quadratic(1.0), "y": Quadratic(1 / ratio)},
        "cosh-y": lambda ratio: {"x": Quadratic(1.0), "y": Cosh(1 / ratio, 0.2)},
        "cosh-x": lambda ratio: {"x": Cosh(1.0, 0.2), "y": Quadratic(1 / ratio)},
        "oscillating": lambda ratio: {"x": Oscillating(0.3, 1.4), "y": Quadratic(1 / ratio)},
        "cosine": lambda ratio: {"x": Quadratic(1.0), "y": Quadratic(1 / ratio), "coupling": coupling},
    }


def problem(family: str, ratio: float, d: int, n: int, sigma: float) -> "FiniteSum":
    """psi_x with curvature 1 at the minimum and psi_y with 1/ratio, y in one dimension.

    quadratic; cosh-y, (L0, L1)-smooth in y; cosh-x, in x; oscillating, not convex in x; cosine, quadratics with a
    coupling 1 - cos: not convex, and smooth everywhere. Components of one Hessian but for the last three, whose
    quadratic part has these curvatures: log-cosh, sigma of which is the bound for every z; quadratics, exponentials,
    with sigma at the minimum and unbounded variance.
    """
    from smoothlab.objectives import exponential_sum, log_cosh_sum, objective, quadratic_sum

    lengths, sizes = (sigma / math.sqrt(2),) * 2, {"d_x": d, "d_y": 1, "n": n, "name": family}
    if family == "log-cosh":
        return log_cosh_sum((1.0, 1 / ratio), lengths, **sizes)  # type: ignore[arg-type]
    if family == "exponentials":
        return exponential_sum((1.0, 1 / ratio), lengths, **sizes)  # type: ignore[arg-type]
    if family == "quadratics":
        return quadratic_sum(1.0, 1 / ratio, BEND if n > 1 else 0.0, sigma=sigma if n > 1 else 0.0, **sizes)  # type: ignore[arg-type]
    noise = (sigma / math.sqrt(2),) * 2 if n > 1 else 0.0
    return objective(**_families()[family](ratio), d_x=d, d_y=1, n=n, sigma=noise, name=family)


def measured(point: Row, replicas: int, longest: int, seed: int, distribution: str, mu: float | None) -> list[Row]:
    """Rows of each theorem for one objective."""
    import torch

    try:
        f = problem(point["family"], point["ratio"], point["d"], point["n"], point["sigma"])
    except BadInput as error:  # pairs of components with odd n, or components that differ by sigma = 0
        empty = {"quantity": "average", **EMPTY, "bound": point["eps"] ** 2, "note": str(error)}
        return [{"theorem": theorem, **empty} for theorem in (THEOREMS[:1] if point["given"] else THEOREMS)]
    z0 = f.at_level(torch.ones(f.dim, dtype=torch.float64), GAP)
    rows: list[Row] = []
    for theorem in THEOREMS[:1] if point["given"] else THEOREMS:  # T is chosen for the printed one alone
        told: Row = {"theorem": theorem}
        try:
            setting = f.setting(GAP, _level(f, theorem, point["delta"]))
            found = _constants(setting, theorem, point, mu)
        except BadInput as error:
            rows.append({**told, "quantity": "average", **EMPTY, "bound": point["eps"] ** 2, "note": str(error)})
            continue
        own = "sphere" if theorem == "probability" or f.gaussian_moments == "infinite" else "gaussian"
        this = (f, setting, z0, found)
        rows += _tried(*this, point | told, distribution if distribution != "fitting" else own, replicas, longest, seed)
    return rows


def _level(f: "FiniteSum", theorem: str, delta: float) -> float:
    """Where sigma must be bounded: everywhere, or as far as a theorem's iterate goes."""
    if theorem == "probability":
        return 4 * GAP / delta
    return STOPPED * GAP if theorem == "expectation" and not math.isfinite(f.sigma2) else math.inf


def _constants(s: Setting, theorem: str, point: Row, mu: float | None) -> Horizon:
    eps, delta = point["eps"], point["delta"]
    if theorem == "printed":
        return theorem_c1(s, eps, delta, T=point["given"] or None, mu=mu)
    if theorem == "probability":
        return with_high_probability(s, eps, delta)
    ends = [float(np.asarray(ell(FAR))) for ell in (s.ell_x, s.ell_y)]
    if ends != [float(np.asarray(ell(0.0))) for ell in (s.ell_x, s.ell_y)]:
        raise BadInput("smoothness is not global: the theorem in expectation does not apply")
    return in_expectation(s, eps, max(ends))


def _tried(
    f: "FiniteSum",
    setting: Setting,
    z0: Any,
    h: Horizon,
    point: Row,
    distribution: str,
    replicas: int,
    longest: int,
    seed: int,
) -> list[Row]:
    """Mean of the running average against eps^2, and the share of replicas where it is below, against 1 - delta."""
    from smoothlab.algorithm1.engine import Algorithm1

    theorem, eps = point["theorem"], point["eps"]
    eta_x, eta_y = (h.eta_x, h.eta_y) if point["rule"] == "two" else (min(h.eta_x, h.eta_y),) * 2
    epoch = descent(setting, eta_x, eta_y, h.mu, h.L_x, h.L_y)
    stops = theorem == "expectation" and not math.isfinite(f.sigma2)
    told: Row = {
        "theorem": theorem,
        "distribution": distribution,
        "eta_x": eta_x,
        "eta_y": eta_y,
        "mu": h.mu,
        "T": h.T,
        "steps": h.gradients,
        "F": h.F,
        "L_x": h.L_x,
        "L_y": h.L_y,
        "meets": h.holds if isinstance(h, Printed) else True,
        "proven": _proven(setting, h, eta_x, eta_y) if epoch.holds and theorem != "printed" else None,
    }
    g = f.gradient(z0).square()
    exact = None
    if point["family"] == "quadratic":
        here = Quadratics(
            f.d_x, f.n, 1.0, 1 / point["ratio"], f.sigma2_x, f.sigma2_y, float(g[: f.d_x].sum()),
            float(g[f.d_x :].sum()), point["order"], point["oracle"], distribution, mu=h.mu,
        )  # fmt: skip
        exact = here.average(eta_x, eta_y, h.T)
    average = {**told, "quantity": "average", **EMPTY, "reference": exact, "bound": eps**2}
    success = {**told, "quantity": "success", **EMPTY, "bound": 1 - h.delta if h.delta else None}
    if h.gradients > longest:
        average["note"] = f"{h.gradients:.3g} steps are more than {longest}: not run"
        if exact is not None:
            average["verdict"] = "holds" if exact <= eps**2 else "fails"
        return [average]
    how = Algorithm1(
        eta_x,
        eta_y,
        h.T,
        order=point["order"],
        oracle=point["oracle"],
        distribution=distribution,
        mu=h.mu,
        above=STOPPED * GAP if stops else None,
    )
    key = f"{point['setting']}/{theorem}"
    result = how.run(f, z0, replicas, seed=seeded((seed, key)))
    # Of an iterate that is stopped at tau: (1/T) sum_{t < tau}.
    averages = result.average * np.maximum(result.epochs, 1) / h.T if stops else result.average
    told = of_mean(averages, eps, result.diverged)
    if stops:
        left = int((result.left >= 0).sum())
        told["note"] = f"sigma holds where f - f* <= {STOPPED:g} Delta: {left} of {replicas} replicas were stopped"
    return [average | told, success | of_share(averages, eps, h.delta)]


def _proven(s: Setting, h: Horizon, eta_x: float, eta_y: float) -> float:
    """B.6' summed up: what (1/T) sum E ||grad f||^2 is at most, while it stays where B.6' holds."""
    epoch = descent(s, eta_x, eta_y, h.mu, h.L_x, h.L_y)
    return (s.gap / h.T + epoch.noise) / min(epoch.decrease_x, epoch.decrease_y)


def of_mean(averages: Array, eps: float, diverged: Any) -> Row:
    """The mean over replicas with its interval, quantiles, the largest, and how many diverged."""
    lost = int(np.sum(diverged))
    quantiles = {f"q{100 * p:.0f}": float(np.quantile(averages, p, method="inverted_cdf")) for p in QUANTILES}
    row = {**quantiles, "largest": float(averages.max()), "diverged": lost, "replicas": len(averages)}
    if lost:
        told = f"{lost} of {len(averages)} replicas diverged: their mean is infinite"
        return row | {"verdict": "fails", "note": told}
    found = samples.mean(averages)
    return row | {"measured": found.value, "low": found.low, "high": found.high,
                  "verdict": intervals.verdict(found, eps**2), "flag": samples.rare_draws(averages)}  # fmt: skip


def of_share(averages: Array, eps: float, delta: float) -> Row:
    """Clopper and Pearson's interval of P((1/T) sum ||grad f||^2 <= eps^2), against 1 - delta if delta is not 0."""
    count = int((averages <= eps**2).sum())
    found = samples.proportion(count, len(averages))
    told = intervals.verdict(found, 1 - delta, at_most=False) if delta else None
    return {"measured": found.value, "low": found.low, "high": found.high, "verdict": told, "replicas": len(averages)}


# Where the printed theorem fails


@dataclass(frozen=True)
class Instance:
    """f_{1,2} = ||x||^2/2 + y^2/2 +- <a, x>, y_0 = 0: all conditions of Theorem C.1 are met and its conclusion fails.

    With much noise T = 8 Delta^2 sigma^2 L^2 eps^-4 and eta_x = sqrt(2/T)/(sigma n L) = eps^2/(2 n Delta sigma^2 L^2):
    the floor eta_x L (d + 2) sigma^2/2 is (d + 2)/(4 n L Delta) times eps^2 (theory.md B).
    """

    d: int
    n: int
    gap: float
    sigma: float
    eps: float
    delta: float = 0.1

    @property
    def quadratics(self) -> Quadratics:
        """Its problem."""
        return Quadratics(self.d, self.n, sigma2_x=self.sigma**2, start_x=2 * self.gap, start_y=0.0)

    def printed(self) -> Printed:
        """Theorem C.1 at mu -> 0, with the smallest T that it allows."""

        def one(u: Any) -> Any:
            return np.ones_like(np.asarray(u, dtype=float))

        return theorem_c1(Setting(one, one, self.gap, self.n, self.d, self.sigma**2, 0.0), self.eps, self.delta, mu=0.0)


INSTANCES = {
    "small": Instance(4, 2, 0.025, 25.0, 0.17),  # eps^2 is half of ||grad f(z_0)||^2, T of seconds
    "large": Instance(100, 2, 0.5, 100.0, 0.5),  # theory.md B
    "long": Instance(100, 2, 0.5, 10.0, 0.05),  # theory.md B: T of 3e7
}


def counterexample(point: Row, seed: int) -> list[Row]:
    """The instance by the exact recursion, and pathwise where asked for: averages, success, trajectory."""
    one = INSTANCES[point["instance"]]
    h, this = one.printed(), one.quadratics
    exact, eps = this.average(h.eta_x, h.eta_y, h.T), one.eps
    told: Row = {
        "theorem": "printed", "n": one.n, "d": one.d, "eps": eps, "delta": one.delta, "sigma": one.sigma,
        "gap": one.gap, "eta_x": h.eta_x, "eta_y": h.eta_y, "mu": 0.0, "T": h.T, "steps": h.gradients,
        "meets": h.holds,
    }  # fmt: skip
    average = {**told, "quantity": "average", **EMPTY, "reference": exact, "bound": eps**2,
               "verdict": "holds" if exact <= eps**2 else "fails"}  # fmt: skip
    if not point["pathwise"]:
        return [average | {"note": f"{h.gradients:.3g} steps, by the exact recursion alone"}]
    keep = tuple(sorted({0, *(int(t) for t in np.geomspace(1, h.T, 60))}))
    found = this.run(h.eta_x, h.eta_y, h.T, REPLICAS, (seed, point["setting"]), keep=keep)
    success = {**told, "quantity": "success", **EMPTY, "bound": 1 - one.delta}
    rows = [
        average | of_mean(found.average, eps, found.diverged) | {"least": float(found.average.min())},
        success | of_share(found.average, eps, one.delta),
    ]
    for t, squares in zip(keep, found.kept_x + found.kept_y, strict=True):
        mean = samples.mean_square(squares)
        rows.append({
            **told, "quantity": "trajectory", **EMPTY, "epoch": t, "measured": mean.value, "low": mean.low,
            "high": mean.high, "least": float(squares.min()), "largest": float(squares.max()),
            "reference": float(this.at(h.eta_x, h.eta_y, t)), "bound": eps**2, "flag": samples.rare_draws(squares),
        })  # fmt: skip
    return rows


def failing(point: Row) -> list[Row]:
    """From which d on the printed conclusion fails in expectation where the noise is large, by the exact recursion.

    Delta = 1, eps^2 = L Delta/2 and sigma^2 = 200 d: the learning rate is then the one of the noise in Eq. (3).
    """

    def quotient(d: int) -> float:
        one = Instance(d, point["n"], 1.0, math.sqrt(200 * d), math.sqrt(0.5))
        h = one.printed()
        return one.quadratics.average(h.eta_x, h.eta_y, h.T) / one.eps**2

    low, high = 0, 1
    while quotient(high) <= 1:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if quotient(middle) <= 1 else (low, middle)
    return [{"theorem": "printed", "quantity": "smallest d that fails", **EMPTY, "reference": float(high),
             "predicted": 4.0 * point["n"] - 2, "verdict": "fails"}]  # fmt: skip
