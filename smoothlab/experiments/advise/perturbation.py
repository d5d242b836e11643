"""The perturbation mu of zeroth-order differences: where truncation and rounding together are least.

Values of the loss along a few random directions, at steps that double from one to the next, give the third derivative
(two sides) or the second (one side) along each; values at equal distances far below give the rounding of the loss, that
of the moved weights included, in the number format in use. The U-curve of both and its lowest point are those of
`smoothlab.experiments.estimators.ucurve`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smoothlab.blocks import Block, Loss
from smoothlab.errors import BadInput
from smoothlab.experiments.estimators import ucurve
from smoothlab.experiments.estimators.model_blocks import size_of, values_along
from smoothlab.stats import samples
from smoothlab.stats.intervals import Interval
from smoothlab.zeroth.closures import evaluate
from smoothlab.zeroth.distribution import Distribution

CURVED, ROUNDED = 4, 3
"""Directions for derivatives and, others, for the rounding; each is evaluated at 10 and 9 points, or more."""
STEPS = (0.0125, 0.025, 0.05, 0.1, 0.2)
"""Steps in units of the weights' root mean square; doubled further where rounding hides all derivatives."""
LONGEST = 10.0
"""In the same units, the step beyond which none is tried."""
RESOLVED = 10.0
"""Times its rounding that a difference must be, in root mean square over the directions, to count."""
LARGEST_ERROR = 0.3
"""Error at the best mu, in units of the gradient's norm, above which zeroth-order gradients are mostly rounding."""


@dataclass(frozen=True)
class BestPerturbation:
    """The best mu.

    Attributes:
        mu: where the root mean square error of a directional derivative is least, with its 95 % interval.
        error: that error, in the loss's unit per unit of mu z.
        slope: root mean square of the directional derivatives, about the gradient's norm; the error stands beside it.
        noise: rounding of the loss, as a standard deviation.
        evaluations: evaluations of the loss.
        flag: None, or what makes mu doubtful.
    """

    mu: Interval
    error: float
    slope: float
    noise: float
    evaluations: int
    flag: str | None


def best_perturbation(
    loss: Loss, block: Block, distribution: Distribution, sides: int, *, seed: Sequence[int] = (0,)
) -> BestPerturbation:
    """The best mu for differences of one or two sides on a block.

    The interval is that of the ratio of rounding to derivative, both root mean squares over few directions, to the
    power of the U-curve's lowest point: 1/3 for two sides, 1/2 for one.

    Raises:
        BadInput: no difference of the loss stands above its rounding: the loss does not depend on the block, or its
            number format is too coarse.
    """
    size = size_of(block) or 1.0
    dtype = str(block.params[0].dtype).removeprefix("torch.")
    short_steps = ucurve.spacing(dtype, size) * ucurve.OFFSETS
    nearby = values_along(loss, block, (*seed, 1), ROUNDED, short_steps, distribution=distribution)
    noise, center, units = ucurve.noise(nearby), evaluate(loss, block), [*STEPS]
    plus = minus = np.empty((CURVED, 0))
    while True:
        new = size * np.array(units[plus.shape[1] :])
        both_signs = np.concatenate([new, -new])
        values = values_along(loss, block, (*seed, 0), CURVED, both_signs, distribution=distribution)
        plus, minus = (np.hstack(pair) for pair in zip((plus, minus), np.split(values, 2, axis=1), strict=True))
        steps = size * np.array(units)
        spread, flag = _spread(plus, minus, center, steps, sides, noise.value)
        if flag is None or units[-1] > LONGEST / 2:
            break
        units.append(2 * units[-1])
    if not spread.value > 0:
        raise BadInput(
            f"the loss, {center:.4g}, does not bend along block '{block.name}' by more than its rounding of "
            f"{noise.value:.2g}: it may not depend on the block; look at the groups, or use a wider --dtype"
        )
    mu = _lowest(sides, noise, spread)
    nearest = int(np.abs(np.log(steps / mu.value)).argmin())
    slope = float(np.sqrt((((plus - minus)[:, nearest] / (2 * steps[nearest])) ** 2).mean()))
    error = float(ucurve.predicted(mu.value, sides, spread.value, noise.value))
    if error > LARGEST_ERROR * slope:
        flag = f"error {error:.2g} at the best mu, slopes {slope:.2g}: no mu is good in {dtype}"
    return BestPerturbation(mu, error, slope, noise.value, nearby.size + plus.size + minus.size + 1, flag)


def _lowest(sides: int, noise: Interval, spread: Interval) -> Interval:
    """`ucurve.best` of both and its interval."""
    tiny = float(np.finfo(float).tiny)  # a loss that rounds nothing: the shorter the better
    ratio = samples.ratio(Interval(*(max(end, tiny) for end in noise)), spread)
    power = {1: 1 / 2, 2: 1 / 3}[sides]
    low, high = ((end / ratio.value) ** power for end in ratio[1:])
    value = ucurve.best(sides, spread.value, noise.value or tiny)
    return Interval(value, value * low, value * high)


def _spread(
    plus: np.ndarray, minus: np.ndarray, center: float, steps: np.ndarray, sides: int, noise: float
) -> tuple[Interval, str | None]:
    """tau or kappa of the U-curve from the shortest step at which it is resolved, and a flag.

    Third derivatives: (f(2h) - 2 f(h) + 2 f(-h) - f(-2h)) / (2 h^3), whose rounding is sqrt(10) e / (2 h^3). Second
    ones: (f(h) - 2 f(0) + f(-h)) / h^2, with sqrt(6) e / h^2.
    """
    if sides == 2:
        odd = plus - minus
        derivatives = (odd[:, 1:] - 2 * odd[:, :-1]) / (2 * steps[:-1] ** 3)
        rounding = 10**0.5 * noise / (2 * steps[:-1] ** 3)
    else:
        derivatives = (plus + minus - 2 * center) / steps**2
        rounding = 6**0.5 * noise / steps**2
    size = np.sqrt((derivatives**2).mean(0))
    if not np.isfinite(size).all():
        size, derivatives = np.nan_to_num(size, posinf=0.0), np.nan_to_num(derivatives, posinf=0.0, neginf=0.0)
    resolved = np.flatnonzero(size > RESOLVED * rounding)
    if not len(resolved):
        best = int(np.argmax(size / np.maximum(rounding, np.finfo(float).tiny)))
        return samples.root_mean_square(derivatives[:, best]), "derivatives are hardly above rounding"
    return samples.root_mean_square(derivatives[:, resolved[0]]), None
