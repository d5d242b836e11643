"""Exponents of nT on sums whose components curve differently: with averaged, and with low-rank directions.

Both blocks have one constant rate, the best by the recursion of second moments (`smoothlab.algorithm1
.curved_quadratics`): exact for quadratics, of the linearized sum for others. The corrected theorem's leading term at
small eps is w sigma_x^2 eps^-4, w = (m - 1)/q the variance of the estimate, E ||ghat||^2 = m ||g||^2 for one of q
directions: the exponent of nT in eps is -4 for each distribution of directions, and that in w is 1.
"""

from typing import Any, NamedTuple

import torch

from smoothlab.algorithm1.curved_quadratics import Moments, linearized
from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.algorithm1.quadratics import moment
from smoothlab.algorithm1.result import Result
from smoothlab.algorithm1.sampling import matrix_shape
from smoothlab.experiments.rates.runs import Array, running_average
from smoothlab.experiments.settings import seeded
from smoothlab.objectives import FiniteSum, exponential_sum, log_cosh_sum, quadratic_sum


class Kind(NamedTuple):
    """One sum and one estimate of its gradient in x."""

    family: str  # of the sums of `smoothlab.objectives.curved`
    oracle: str = "two-sided"
    distribution: str = "gaussian"
    q: int = 1
    d: int = 3  # dimension of x; y has one

    @property
    def variance(self) -> float:
        """w = (m - 1)/q, of the estimate."""
        if self.oracle == "exact":
            return 0.0
        return moment(self.d, self.distribution, self.q) - 1


KINDS: dict[str, Kind] = {
    "zo-quadratics": Kind("quadratics"),
    "fo-quadratics": Kind("quadratics", oracle="exact"),
    "zo-log-cosh": Kind("log-cosh"),
    "zo-exponentials": Kind("exponentials", distribution="sphere"),
    "zo-quadratics-q4": Kind("quadratics", q=4),
    "zo-log-cosh-q4": Kind("log-cosh", q=4),
    "zo-exponentials-q4": Kind("exponentials", distribution="sphere", q=4),
    "zo-quadratics-lowrank": Kind("quadratics", distribution="lowrank(1)", d=6),
    "zo-log-cosh-lowrank": Kind("log-cosh", distribution="lowrank(1)", d=6),
}
"""Series of `smoothlab rates` on these sums; exponentials, which have no mean after unbounded steps, on the sphere."""
NEAR = {"zo-quadratics": 1e-3, "fo-quadratics": 1e-5, "zo-quadratics-q4": 1e-3, "zo-quadratics-lowrank": 1e-3}
"""eps of exact recursions, where the floor of fo-quadratics is that of the mean."""
ESTIMATES = {
    1.75: Kind("", q=4, d=6), 3.5: Kind("", q=2, d=6), 7.0: Kind("", d=6),
    10.0: Kind("", distribution="lowrank(4)", d=6), 13.0: Kind("", distribution="lowrank(2)", d=6),
    19.0: Kind("", distribution="lowrank(1)", d=6),
}  # fmt: skip
"""Estimates by their variance w, values of the axis "variance"; all in 6 dimensions, so that the sum is the same."""


def with_variance(series: str, variance: float) -> Kind:
    """The sum of a series with the estimate of this variance, a key of `ESTIMATES`."""
    return ESTIMATES[variance]._replace(family=KINDS[series].family)


def problem(kind: Kind) -> tuple[FiniteSum, torch.Tensor, Moments]:
    """The sum: n = 4, sigma near 1 at the minimum; a start with ||grad f|| = 1; the recursion."""
    sizes: Any = {"d_x": kind.d, "d_y": 1, "n": 4}
    if kind.family == "log-cosh":
        f: FiniteSum = log_cosh_sum(0.5, (0.9, 0.9), 1.0, **sizes)
    elif kind.family == "exponentials":
        f = exponential_sum(0.7, (0.7, 0.7), 1.0, **sizes)
    else:
        f = quadratic_sum(1.0, 1.0, 0.5, sigma=1.0, **sizes)
    diagonal, low, high = torch.ones(f.dim, dtype=torch.float64), 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        if float(f.gradient(middle * diagonal).norm()) < 1:
            low = middle
        else:
            high = middle
    z0 = low * diagonal
    return f, z0, Moments(linearized(f), z0.numpy(), kind.oracle, kind.distribution, kind.q)


def run(
    kind: Kind, f: FiniteSum, z0: torch.Tensor, eta: float, epochs: int, replicas: int, seed: tuple[int, str], *,
    keep: tuple[int, ...] = (),
) -> Result:  # fmt: skip
    """Run Algorithm 1 with one rate for both blocks."""
    algorithm = Algorithm1(
        eta, eta, epochs, oracle=kind.oracle, distribution=kind.distribution, keep=keep, q=kind.q,  # type: ignore[arg-type]
        shape=matrix_shape(kind.distribution, kind.d),
    )  # fmt: skip
    return algorithm.run(f, z0, replicas, seed=seeded(*seed))


def running(
    kind: Kind, f: FiniteSum, z0: torch.Tensor, eta: float, epochs: int, replicas: int, seed: tuple[int, str]
) -> Array:
    """(1/t) sum_{s < t} ||grad f(z_s)||^2 for t = 1, ..., T: [T, R]."""
    return running_average(run(kind, f, z0, eta, epochs, replicas, seed, keep=tuple(range(epochs))))
