"""Real runs of Algorithm 1, along which the corrected statements are checked: every state at the start of an epoch."""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from smoothlab import objectives
from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.claims.claim import Search
from smoothlab.objectives import Cosh, FiniteSum, Quadratic, objective
from smoothlab.objectives.checks import diagonal, ells
from smoothlab.stats import samples
from smoothlab.stats.intervals import Interval
from smoothlab.theory.constants import Array, constants

LEVEL, EPOCHS, REPLICAS, MU = 10.0, 30, 24, 1e-2
LEVELS = torch.logspace(-3, 0, REPLICAS, dtype=torch.float64) * LEVEL
PROBLEMS: dict[str, FiniteSum] = {
    "quadratic": objective(Quadratic(10.0), Quadratic(0.5), objectives.QuadraticCoupling(2.0), n=4, sigma=0.5),
    "cosh in y": objective(Quadratic(3.0), Cosh(1.0, 0.5), n=4, sigma=0.5),
    "power": objective(objectives.Power(1.0, 3.0), Quadratic(1.0), n=4, sigma=0.5),
    "oscillating": objective(objectives.Oscillating(0.3, 1.75), Quadratic(3.0), n=4, sigma=0.5),
    "cosine": objective(Quadratic(2.0), Quadratic(0.5), objectives.CosineCoupling(1.5), n=4, sigma=0.5),
    "cosh, log cosh": objective(Cosh(1.0, 0.5), Cosh(0.1, 2.0), objectives.LogCoshCoupling(1.5), n=4, sigma=0.5),
    "product": objective(Quadratic(2.0), Quadratic(0.5), objectives.ProductCoupling(1.0), n=4, sigma=0.5),
    "log cosh sum": objectives.log_cosh_sum(0.2, (1.5, 0.5), 1.5),
    "quadratic sum": objectives.quadratic_sum(2.0, 0.5, 1.2, sigma=0.5),
    "exponential sum": objectives.exponential_sum((1.0, 0.5), (0.6, 0.4)),
}
"""n = 4, d_x = 3, d_y = 2, sigma = 1/2 but for the sums of log cosh and of exponentials; components of the last three
curve differently. Those of SMOOTH are smooth everywhere with one constant, and so are all their components."""
SMOOTH = ("quadratic", "cosine", "log cosh sum", "quadratic sum")


@dataclass(frozen=True)
class Run:
    """States of some replicas."""

    name: str  # of the problem
    f: FiniteSum  # the problem
    algorithm: Algorithm1  # one epoch
    z: Tensor  # [epochs + 1, replicas, d], at the starts of the epochs

    @property
    def flat(self) -> Tensor:
        """All states [N, d]."""
        return self.z.flatten(0, 1)


@functools.cache
def runs(seed: int) -> tuple[Run, ...]:
    """Runs of every problem, from f - f* = 0.01 to 10, with sphere directions and the rates of B.6'."""
    runs = []
    for number, (name, f) in enumerate(PROBLEMS.items()):
        rng = torch.Generator().manual_seed(100 * seed + number)
        z = [f.at_level(torch.randn(REPLICAS, f.dim, generator=rng, dtype=torch.float64), LEVELS)]
        algorithm = Algorithm1(*rates(f, *smoothness_near(f)), 1, distribution="sphere", mu=MU)
        for t in range(EPOCHS):
            z.append(torch.from_numpy(algorithm.run(f, z[-1], REPLICAS, seed=(seed, number, t)).z))
        runs.append(Run(name, f, algorithm, torch.stack(z)))
    return tuple(runs)


def smoothness_near(f: FiniteSum) -> tuple[float, float]:
    """L_x and L_y of every component in the neighborhood of f - f* <= LEVEL (B.1 corrected)."""
    c = constants(f.component_ell_x, f.component_ell_y, LEVEL)
    return c.L_x_near, c.L_y_near


def rates(f: FiniteSum, l_x: float, l_y: float) -> tuple[float, float]:
    """The largest that B.6' allows: n eta L <= 1/8, eta_x L_x (d + 1) <= 1/64."""
    return min(1 / (8 * f.n), 1 / (64 * (f.d_x + 1))) / l_x, 1 / (8 * f.n * l_y)


def along(inequality: str, ratios: dict[str, Array]) -> Search:
    """An inequality that holds at every point: the largest measured/allowed of all runs, and a typical one.

    `ratios` are by problem, at the states of `Run.flat`, NaN where there is nothing to compare. The typical one is the
    median over replicas, which are independent, of their own medians over epochs.
    """
    middle = samples.median(np.concatenate([np.nanmedian(r.reshape(-1, REPLICAS), 0) for r in ratios.values()]))
    tops = {f"largest, {name}": float(np.nanmax(r)) for name, r in ratios.items()}
    top, cases = max(tops.values()), sum(int(np.isfinite(r).sum()) for r in ratios.values())
    facts = {"tightness, largest": top, "median": middle.value, "its low": middle.low, "its high": middle.high, **tops}
    return Search(f"{inequality}, along runs of Algorithm 1", "printed", cases, 0, 1 - top, {}, 1.0, facts=facts)


@dataclass
class Means:
    """Means of measured numbers over what is allowed: an inequality between means is broken where one lies above 1.

    Attributes:
        ratios: intervals of measured/allowed, by the case that they are of.
        flagged: how many of the means rare draws may carry (`samples.rare_draws`).
    """

    ratios: dict[str, Interval] = field(default_factory=dict)
    flagged: int = 0

    def add(self, case: str, measured: Interval, allowed: float) -> None:
        """Note the interval of a mean."""
        self.ratios[case] = Interval(*(end / allowed for end in measured))

    def add_squares(self, case: str, squares: Array, allowed: float) -> None:
        """Note the mean of numbers that are not negative and may be far off at times."""
        self.add(case, samples.mean_square(squares), allowed)
        self.flagged += samples.rare_draws(squares) is not None

    def search(self, inequality: str, draws: int) -> Search:
        """The evidence of an inequality from means of so many draws each."""
        worst = max(self.ratios, key=lambda case: self.ratios[case].value)
        top = self.ratios[worst]
        certain = max(interval.low for interval in self.ratios.values())
        facts: dict[str, float | str] = {
            "tightness, largest": top.value, "its low": top.low, "its high": top.high, "where": worst,
            "places": float(len(self.ratios)),
        }  # fmt: skip
        if self.flagged:
            facts["flagged"] = float(self.flagged)
        if certain <= 1:  # a mean above 1 whose interval holds 1 is no violation
            certain = min(top.value, 1.0)
        return Search(inequality, "printed", draws * len(self.ratios), 0, 1 - certain, {}, 1.0, facts=facts)


def ellipsoid(f: FiniteSum, z: Tensor, seed: int) -> tuple[Tensor, Array, Array]:
    """Points s on the edge of B.1's ellipsoid around z [N, d], ||s||_D^2 = G^2/lM(2G), G = ||grad f(z)||; D and G.

    Half of them random, half along D^-1 grad f, where gradients grow fastest, of both signs.
    """
    g = f.gradient(z)
    G = g.norm(dim=-1).numpy()
    ell_x, ell_y = ells(f, 2 * G)
    D = diagonal(f, ell_x, ell_y)
    rng = np.random.default_rng(seed)
    s = rng.standard_normal(D.shape) / np.sqrt(D)
    steep = rng.random(len(s)) < 0.5
    s[steep] = (g.numpy() / D)[steep] * rng.choice([-1.0, 1.0], (int(steep.sum()), 1))
    s *= (G / np.sqrt(np.maximum(ell_x, ell_y)) / np.sqrt((D * s**2).sum(-1)))[:, None]
    return torch.from_numpy(s), D, G


def length(D: Array, s: Tensor) -> Array:
    """||s||_D."""
    length: Array = np.sqrt((D * s.numpy() ** 2).sum(-1))
    return length
