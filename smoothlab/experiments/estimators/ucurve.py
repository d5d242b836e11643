"""The U-curve: the error of a directional derivative against mu, between third derivative and rounding.

For one direction z of E zz' = I the quotient D(mu) is off from <g, z> by a part that grows with mu and one that falls:

    two-sided   D - <g, z> = (mu^2/6) T[z, z, z] + (e1 - e2) / (2 mu)
    one-sided   D - <g, z> = (mu/2) A[z, z]      + (e1 - e2) / mu

with e1, e2 the rounding errors of two values of the loss, taken as independent, of standard deviation e ("noise"). With
tau^2 = E T[z, z, z]^2 and kappa^2 = E A[z, z]^2 the root mean square is predicted as

    two-sided   sqrt((mu^2 tau / 6)^2 + e^2 / (2 mu^2)),     lowest at mu = (3 e / tau)^(1/3)
    one-sided   sqrt((mu kappa / 2)^2 + 2 e^2 / mu^2),       lowest at mu = (2 sqrt(2) e / kappa)^(1/2)

(the trade-off of Gill, Murray, Saunders and Wright, SIAM J. Sci. Stat. Comput. 4, 1983). The noise is measured from
values of the loss alone, in the way of More and Wild (ECnoise, SIAM J. Sci. Comput. 33, 2011): sixth differences of
nearby values leave nothing of a smooth function. It holds what rounding the moved weights does to the loss as well.
On micro's LoRA block in fp32 the two-sided errors left of the best mu are twice the prediction, on its base block and
head 0.8 to 1.2 times (benchmarks/results/estimators_micro.jsonl); best mu goes with the cube root of that.
Where mu is so small that rounding leaves the weights where they are, D is 0 and the error stops at <g, z> itself, which
the prediction does not know. For the whole estimate the error is this one beside the directions' own, (d + 1) ||g||^2.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import factorial

from smoothlab.stats.intervals import Interval
from smoothlab.stats.samples import rare_draws, root_mean_square

Array = NDArray[np.float64]

ORDER = 6  # of the differences that leave nothing but noise
OFFSETS = np.arange(ORDER + 3) - (ORDER + 2) / 2  # positions in units of the spacing; three differences a direction
STENCIL = (-2.0, -1.0, 0.0, 1.0, 2.0)  # points that third and second derivatives are taken from
RESOLUTION = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-9}  # half an ulp of 1


def spacing(dtype: str, size: float) -> float:
    """Distance of the values that show the noise: the weights' size times sqrt(half an ulp of 1)."""
    # far enough for the rounded weights to move, near enough for a smooth loss to vanish in sixth differences
    return float(size * RESOLUTION[dtype] ** 0.5)


def noise(values: ArrayLike) -> Interval:
    """Standard deviation of the rounding errors in values [directions, OFFSETS] of a function at equal distances.

    A sixth difference of independent errors has the variance (12)! / (6!)^2 = 924 e^2.
    """
    return root_mean_square(_roughness(values) ** 0.5)


def noise_flag(values: ArrayLike) -> str | None:
    """The flag of `noise`, see `smoothlab.stats.samples.rare_draws`."""
    return rare_draws(_roughness(values))


def _roughness(values: ArrayLike) -> Array:
    """Mean square of the sixth differences of each direction, in units of e^2."""
    differences = np.diff(np.asarray(values, dtype=float), ORDER, axis=1)
    squares: Array = (differences**2).mean(1) / float(factorial(2 * ORDER) / factorial(ORDER) ** 2)
    return squares


def derivatives(values: ArrayLike, step: float) -> tuple[Array, Array]:
    """A[z, z] and T[z, z, z] by direction, from values [directions, STENCIL] that are `step` apart; O(step^2)."""
    a, b, c, d, e = np.asarray(values, dtype=float).T
    return (b - 2 * c + d) / step**2, (e - 2 * d + 2 * b - a) / (2 * step**3)


def rounding(mu: ArrayLike, sides: int, noise: float) -> Array:
    """Root mean square of what rounding adds to D(mu), by sides."""
    return noise * {1: 2**0.5, 2: 2**-0.5}[sides] / np.asarray(mu, dtype=float)


def predicted(mu: ArrayLike, sides: int, spread: float, noise: float) -> Array:
    """Root mean square error of D(mu); `spread` is tau for two sides and kappa for one, `noise` is e."""
    mu = np.asarray(mu, dtype=float)
    curved = mu * spread / 2
    if sides == 2:
        curved = mu**2 * spread / 6
    return np.hypot(curved, rounding(mu, sides, noise))


def best(sides: int, spread: float, noise: float) -> float:
    """The mu where `predicted` is lowest."""
    if sides == 2:
        return float((3 * noise / spread) ** (1 / 3))
    return float((2 * 2**0.5 * noise / spread) ** 0.5)


def gaussian_spread(hessian: Array, third: Array) -> tuple[float, float]:
    """kappa and tau for Gaussian z: E A[z, z]^2 = (tr A)^2 + 2 ||A||_F^2, E T[z, z, z]^2 = 9 ||t||^2 + 6 ||T||^2."""
    t = np.einsum("ijj->i", third)
    kappa = np.trace(hessian) ** 2 + 2 * (hessian**2).sum()
    return float(kappa**0.5), float((9 * t @ t + 6 * (third**2).sum()) ** 0.5)


def errors(at: Callable[[float], Array], center: float, exact: Array, mus: Sequence[float]) -> dict[int, Array]:
    """D(mu) - <g, z> by sides, [directions, mus].

    `at` maps h to the values of the loss at theta + h z by direction; `center` is the loss at theta, `exact` <g, z>.
    """
    two_sided, one_sided = [], []
    for mu in mus:
        plus, minus = at(mu), at(-mu)
        two_sided.append((plus - minus) / (2 * mu) - exact)
        one_sided.append((plus - center) / mu - exact)
    return {1: np.stack(one_sided, 1), 2: np.stack(two_sided, 1)}
