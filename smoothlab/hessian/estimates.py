"""Results of measuring a Hessian block: a value with its 95 % interval, its cost, floor and flag."""

from dataclasses import dataclass
from typing import Literal

from smoothlab.stats.intervals import Interval

Quantity = Literal["frobenius", "spectral", "trace", "gauss_newton_trace"]
NOT_REACHED = "precision not reached"


@dataclass(frozen=True)
class NormEstimate:
    """A norm or trace of a block H_bc of the Hessian, with its 95 % interval.

    H_bc holds the second derivatives by parameters of b = `wrt` and of c = `block`, which are often the same block.

    >>> import torch
    >>> from smoothlab import frobenius
    >>> w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    >>> estimate = frobenius(lambda: (w**4).sum() / 4, [w])
    >>> estimate.quantity, estimate.low <= estimate.value <= estimate.high
    ('frobenius', True)

    Attributes:
        block: name of block c, in which the vectors lie that H_bc multiplies.
        wrt: name of block b, in which the products lie.
        quantity: "frobenius", "trace" and "gauss_newton_trace" have two-sided intervals; "spectral" is the largest
            |Ritz value|, which bounds ||H||_2 from below without doubt (low = value), with a one-sided 95 % upper bound
            in `high`: at most 1 + 10 x precision times the value where Lanczos steps ended early, 1.00 to 1.33 times it
            after all 12.
        value: the estimate, in units of the loss per squared parameter.
        low: lower end of the interval.
        high: upper end of the interval.
        hvps: Hessian-vector products spent so far on `block`, those shared with other quantities included.
        floor: size of what rounding alone contributes, in the unit of `value`.
        flag: None, or what makes the value doubtful, e.g. "below floor": it is less than twice `floor`.
        sign: of "spectral" only: 1 or -1, the sign of the eigenvalue of the largest modulus, where the other end of the
            spectrum falls short of it with 97.5 % confidence; 0 where both ends may reach as far.
    """

    block: str
    wrt: str
    quantity: Quantity
    value: float
    low: float
    high: float
    hvps: int
    floor: float
    flag: str | None = None
    sign: int | None = None


@dataclass(frozen=True)
class TraceEstimate(NormEstimate):
    """A trace that was asked for to a precision; see `NormEstimate`.

    >>> from smoothlab import TraceEstimate
    >>> TraceEstimate("base", "base", "trace", 3.0, -1.0, 7.0, 18, 0.0, "precision not reached", needed=400).needed
    400

    Attributes:
        needed: where the precision was not reached, the products at which it would be, as far as the estimate itself
            can say: they grow with 1 / value^2, so that a value near 0 says little. None where it was reached, and
            where the value is 0.
    """

    needed: int | None = None


def frobenius_estimate(block: str, wrt: str, square: Interval, hvps: int, floor: float, reached: bool) -> NormEstimate:
    """A Frobenius norm from the interval of its square, widened by the rounding floor."""
    value, low, high = (max(x, 0.0) ** 0.5 for x in square)
    low, high = max(low - floor, 0.0), high + floor
    return NormEstimate(block, wrt, "frobenius", value, low, high, hvps, floor, doubt(value, floor, reached))


def doubt(value: float, floor: float, reached: bool = True) -> str | None:
    """The flag of a value: rounding first, then an interval that is longer than was asked for."""
    if abs(value) < 2 * floor:
        return "below floor"
    if not reached:
        return NOT_REACHED
    return None
