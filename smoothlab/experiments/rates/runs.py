"""The quadratic of `smoothlab rates`, as blocks of the exact recursion and run with Algorithm 1; parts of rows."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.algorithm1.quadratics import Block, Order, moment, shapes_of_x
from smoothlab.algorithm1.result import Result
from smoothlab.algorithm1.sampling import matrix_shape
from smoothlab.experiments.settings import seeded
from smoothlab.objectives import Quadratic, objective
from smoothlab.zeroth.distributions import named

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Quadratics:
    """L_x ||x||^2/2 + L_y y^2/2 + <c_i, z>, x [d] by zeroth-order or exact gradients, y [1] by exact ones."""

    d: int  # dimension of x
    n: int  # number of components
    L_x: float = 1.0  # curvature of x
    L_y: float = 1.0  # curvature of y
    sigma2_x: float = 0.0  # sigma_x^2
    sigma2_y: float = 0.0  # sigma_y^2
    start_x: float = 0.5  # ||grad_x f(z_0)||^2
    start_y: float = 0.5  # ||grad_y f(z_0)||^2
    order: Order = "reshuffle"  # how an epoch goes through the components
    oracle: str = "two-sided"  # gradient of x, "exact", "two-sided" or "one-sided"
    distribution: str = "gaussian"  # distribution of the directions
    q: int = 1  # directions a step, averaged
    mu: float = 0.0  # perturbation; the two-sided estimate does not depend on it

    @property
    def x(self) -> Block:
        """Block x of the recursion."""
        if self.oracle == "exact":
            return Block(self.L_x, self.start_x, self.n, self.sigma2_x, moment(self.d, "exact"), self.order)
        extra = 0.0
        if self.oracle == "one-sided":
            sixth = named(self.distribution).sixth_moment_of_length(shapes_of_x(self.d, self.distribution))
            extra = (self.mu * self.L_x) ** 2 / 4 * sixth / self.q
        m = moment(self.d, self.distribution, self.q)
        return Block(self.L_x, self.start_x, self.n, self.sigma2_x, m, self.order, extra)

    @property
    def y(self) -> Block:
        """Block y of the recursion."""
        return Block(self.L_y, self.start_y, self.n, self.sigma2_y, 1, self.order)

    def average(self, eta_x: float, eta_y: float, epochs: int) -> float:
        """(1/T) sum_{t < T} E ||grad f(z_t)||^2."""
        return float(self.x.average(eta_x, epochs) + self.y.average(eta_y, epochs))

    def at(self, eta_x: float, eta_y: float, epochs: int | Array) -> Array:
        """E ||grad f(z_T)||^2."""
        return self.x.at(eta_x, epochs) + self.y.at(eta_y, epochs)

    def run(
        self, eta_x: float, eta_y: float, epochs: int, replicas: int, seed: tuple[int, str], *,
        keep: tuple[int, ...] = (), below: float | None = None,
    ) -> Result:  # fmt: skip
        """Run Algorithm 1 from that start; see `smoothlab.algorithm1.engine` for `keep` and `below`."""
        sigma = (math.sqrt(self.sigma2_x), math.sqrt(self.sigma2_y))
        f = objective(Quadratic(self.L_x), Quadratic(self.L_y), d_x=self.d, d_y=1, n=self.n, sigma=sigma)
        z0 = torch.full((self.d + 1,), math.sqrt(self.start_x / self.d) / self.L_x, dtype=torch.float64)
        z0[-1] = math.sqrt(self.start_y) / self.L_y
        algorithm = Algorithm1(
            eta_x, eta_y, epochs, self.order, self.oracle, self.mu, self.distribution,  # type: ignore[arg-type]
            keep=keep, below=below, q=self.q, shape=matrix_shape(self.distribution, self.d),
        )  # fmt: skip
        return algorithm.run(f, z0, replicas, seed=seeded(*seed))

    def running(self, eta_x: float, eta_y: float, epochs: int, replicas: int, seed: tuple[int, str]) -> Array:
        """(1/t) sum_{s < t} ||grad f(z_s)||^2 for t = 1, ..., T: [T, R]."""
        return running_average(self.run(eta_x, eta_y, epochs, replicas, seed, keep=tuple(range(epochs))))


def running_average(result: Result) -> Array:
    """Running averages of ||grad f||^2 of a run that kept every epoch, [T, R]."""
    averages: Array = (result.kept_x + result.kept_y).cumsum(0) / np.arange(1, len(result.kept_x) + 1)[:, None]
    return averages
