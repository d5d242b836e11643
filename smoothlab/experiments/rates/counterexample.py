"""Runs on which Theorem C.1 as printed fails: all of its conditions are met and its conclusion is false."""

import math
from dataclasses import dataclass

import numpy as np

from smoothlab.experiments.rates.config import RatesConfig
from smoothlab.experiments.rates.runs import Quadratics
from smoothlab.experiments.rates.theorem import EMPTY, of_mean, of_share, verdict_of
from smoothlab.experiments.settings import Row, measured_row
from smoothlab.stats import samples
from smoothlab.theory.constants import ones
from smoothlab.theory.theorems import Printed, Setting, smallest_integer, theorem_c1

REPLICAS = 30


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
        """The problem."""
        return Quadratics(self.d, self.n, sigma2_x=self.sigma**2, start_x=2 * self.gap, start_y=0.0)

    def printed(self) -> Printed:
        """Theorem C.1 at mu -> 0, with the smallest T that it allows."""
        setting = Setting(ones, ones, self.gap, self.n, self.d, self.sigma**2, 0.0)
        return theorem_c1(setting, self.eps, self.delta, mu=0.0)

    def average(self, h: Printed) -> float:
        """(1/T) sum_{t < T} E ||grad f(z_t)||^2 by the exact recursion."""
        return self.quadratics.average(h.eta_x, h.eta_y, h.T)


INSTANCES = {
    "small": Instance(4, 2, 0.025, 25.0, 0.17),  # eps^2 is half of ||grad f(z_0)||^2, T of seconds
    "large": Instance(100, 2, 0.5, 100.0, 0.5),  # theory.md B
    "long": Instance(100, 2, 0.5, 10.0, 0.05),  # theory.md B: T of 3e7
}


def measured(config: RatesConfig, point: Row) -> list[Row]:
    """Rows of one instance: by the exact recursion, and pathwise where asked for; or the smallest d that fails."""
    if point["instance"] == "any":
        return failing(point)
    instance = INSTANCES[point["instance"]]
    h, eps = instance.printed(), instance.eps
    exact = instance.average(h)
    labels: Row = {
        "theorem": "printed", "n": instance.n, "d": instance.d, "eps": eps, "delta": instance.delta,
        "sigma": instance.sigma, "gap": instance.gap, "eta_x": h.eta_x, "eta_y": h.eta_y, "mu": 0.0, "T": h.T,
        "steps": h.gradients, "meets": h.holds,
    }  # fmt: skip
    average = {**labels, "quantity": "average", **EMPTY, "reference": exact, "bound": eps**2,
               "verdict": verdict_of(exact, eps)}  # fmt: skip
    if not point["pathwise"]:
        return [average | {"note": f"{h.gradients:.3g} steps, by the exact recursion alone"}]
    quadratics = instance.quadratics
    keep = (0, *np.unique(np.geomspace(1, h.T, 60).astype(int)).tolist())
    run = quadratics.run(h.eta_x, h.eta_y, h.T, REPLICAS, (config.seed, point["setting"]), keep=keep)
    rows = [
        average | of_mean(run.average, eps, run.diverged) | {"least": float(run.average.min())},
        {**labels, "quantity": "success", **EMPTY, **of_share(run.average, eps, instance.delta)},
    ]
    for t, squares in zip(keep, run.kept_x + run.kept_y, strict=True):
        rows.append({
            **labels, "quantity": "trajectory", **EMPTY, "epoch": t, **measured_row(samples.mean_square(squares)),
            "least": float(squares.min()), "largest": float(squares.max()), "bound": eps**2,
            "reference": float(quadratics.at(h.eta_x, h.eta_y, t)), "flag": samples.rare_draws(squares),
        })  # fmt: skip
    return rows


def failing(point: Row) -> list[Row]:
    """From which d on the printed conclusion fails in expectation where the noise is large, by the exact recursion.

    Delta = 1, eps^2 = L Delta/2 and sigma^2 = 200 d: the learning rate is then the one of the noise in Eq. (3).
    """

    def fails(d: int) -> bool:
        instance = Instance(d, point["n"], 1.0, math.sqrt(200 * d), math.sqrt(0.5))
        return instance.average(instance.printed()) / instance.eps**2 > 1

    return [{"theorem": "printed", "quantity": "smallest d that fails", **EMPTY,
             "reference": float(smallest_integer(fails)), "predicted": 4.0 * point["n"] - 2,
             "verdict": "fails"}]  # fmt: skip
