"""Arguments of the edge of stability: the spectrum of a Hessian block, and the second moment of a step.

A spectrum is known in part: the largest eigenvalues (Ritz values of Lanczos), and of the rest only the trace and the
Frobenius norm. Sums over the rest are then bounded: for eigenvalues l_j in [0, m] of trace t and sum of squares s, and
a convex function phi,

    t phi(s/t) <= sum_j l_j phi(l_j) <= t phi(0) + (s/m)(phi(m) - phi(0)),

on the left by Jensen's inequality with the weights l_j/t, on the right by the chord of phi over [0, m]. Where t or s is
unknown, Cauchy's inequality and l_j <= m bound it: t^2/k <= s <= m t for k eigenvalues.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from smoothlab.errors import BadInput

_TOLERANCE = 1e-9  # rounding of a trace or a sum of squares that is computed from the eigenvalues


class OuterMoment(NamedTuple):
    """Second moment of an estimate ghat of a gradient g: E ghat ghat' = a gg' + b ||g||^2 I + c diag(gg').

    `smoothlab.outer_moment` has it for each estimator: Gaussian directions, q of them averaged, have
    a = 1 + 1/q and b = 1/q (theory.md F); c is (k - 3)/q for independent entries of kurtosis k.

    >>> from smoothlab import OuterMoment
    >>> OuterMoment(2.0, 1.0).factor(10)   # one Gaussian direction: d + 2
    12.0

    Attributes:
        aligned: a.
        isotropic: b.
        diagonal: c; 0 for directions whose law has no preferred basis.
    """

    aligned: float
    isotropic: float
    diagonal: float = 0.0

    def factor(self, dim: int) -> float:
        """E ||ghat||^2 / ||g||^2 = a + b d + c."""
        return self.aligned + self.isotropic * dim + self.diagonal


EXACT = OuterMoment(1.0, 0.0)
"""The exact gradient: E ghat ghat' = gg'."""
GAUSSIAN = OuterMoment(2.0, 1.0)
"""One Gaussian direction: E vv'Avv' = 2A + tr(A) I."""


class Estimate(Protocol):
    """An estimate of a norm or trace, as `smoothlab.NormEstimate` is one."""

    @property
    def block(self) -> str:
        """Block in which the vectors lie."""

    @property
    def wrt(self) -> str:
        """Block in which the products lie."""

    @property
    def quantity(self) -> str:
        """The estimated quantity: "spectral", "trace" or "frobenius"."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """Lower end of its interval."""

    @property
    def high(self) -> float:
        """Upper end of its interval."""

    @property
    def sign(self) -> int | None:
        """Of a spectral norm: the sign of its eigenvalue, 0 where it is not certain."""


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of a Hessian H >= 0 of one block, as far as it is known.

    >>> from smoothlab import Spectrum
    >>> Spectrum.of([4.0, 1.0, 1.0]).trace
    6.0
    >>> Spectrum((4.0,), dim=1000, trace=10.0, frobenius=4.5).largest
    4.0

    Attributes:
        values: the largest eigenvalues, in descending order; all others are at most the last.
        dim: number d of the block's parameters.
        trace: tr H of the whole block; None if it is unknown.
        frobenius: ||H||_F of the whole block; None if it is unknown.

    Raises:
        BadInput: no eigenvalue is positive, one is negative or not finite, there are more than d, or no matrix without
            negative eigenvalues has that trace and norm.
    """

    values: tuple[float, ...]
    dim: int
    trace: float | None = None
    frobenius: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(sorted(map(float, self.values), reverse=True)))
        numbers = [*self.values, *(x for x in (self.trace, self.frobenius) if x is not None)]
        if not all(map(math.isfinite, numbers)):
            raise BadInput(f"the spectrum has the numbers {numbers}: all must be finite; measure the block again")
        if not self.values or self.values[0] <= 0:
            raise BadInput(
                "the largest eigenvalue is 0 or negative: the loss does not curve upwards along this block, which sets "
                "no edge; check that the loss depends on the block, and measure elsewhere"
            )
        if self.values[-1] < 0:
            raise BadInput(f"eigenvalue {self.values[-1]:.4g} is negative: {_INDEFINITE}")
        if len(self.values) > self.dim:
            raise BadInput(f"{len(self.values)} eigenvalues of a block of dimension {self.dim}: give at most that many")
        self._check_rest()

    def _check_rest(self) -> None:
        """Refuse a trace and a Frobenius norm that no H >= 0 with these largest eigenvalues has."""
        k, m = self.dim - len(self.values), self.values[-1]
        known_trace, squares = sum(self.values), sum(x * x for x in self.values)
        tolerance = _TOLERANCE * known_trace
        if self.trace is not None and not -tolerance <= self.trace - known_trace <= k * m + tolerance:
            raise BadInput(
                f"trace {self.trace:.4g} does not belong to the largest eigenvalues, whose sum is {known_trace:.4g}, "
                f"and {k} others between 0 and {m:.4g}: {_INDEFINITE}"
            )
        if self.frobenius is not None:
            s = self.frobenius**2 - squares
            least, most = 0.0, k * m**2
            if self.trace is not None:
                t = max(self.trace - known_trace, 0.0)
                least, most = t**2 / max(k, 1), m * t
            if not least - _TOLERANCE * squares <= s <= most + _TOLERANCE * squares:
                raise BadInput(
                    f"Frobenius norm {self.frobenius:.4g} does not belong to eigenvalues that are not negative, with "
                    f"that trace and a largest one of {self.largest:.4g}: {_INDEFINITE}"
                )

    @classmethod
    def of(cls, eigenvalues: Iterable[float]) -> "Spectrum":
        """The spectrum of all eigenvalues."""
        values = tuple(map(float, eigenvalues))
        return cls(values, len(values), math.fsum(values), math.sqrt(math.fsum(x * x for x in values)))

    @classmethod
    def of_estimates(cls, estimates: Sequence[Estimate], block: str, dim: int) -> "Spectrum":
        """The spectrum of a block from its norms: "spectral" is lambda_max, "trace" and "frobenius" where present.

        Where a trace or norm belongs to no H >= 0 with the others, the value of its interval nearest to one that does.

        Raises:
            BadInput: there is no spectral norm of the block, or none of those values does: H has negative eigenvalues.
        """
        measured = {e.quantity: e for e in estimates if e.block == e.wrt == block}
        if "spectral" not in measured:
            raise BadInput(f"there is no spectral norm of block '{block}': measure it with Hessian.norms")
        top = measured["spectral"].value
        if measured["spectral"].sign == -1:
            top = -top
        trace, frobenius, t = None, None, None
        if "trace" in measured:
            trace = _nearest(measured["trace"], top, dim * top)
            t = trace - top
        if "frobenius" in measured:
            least, most = (0.0, (dim - 1) * top**2) if t is None else (t**2 / max(dim - 1, 1), top * t)
            frobenius = _nearest(measured["frobenius"], math.sqrt(top**2 + least), math.sqrt(top**2 + max(most, 0.0)))
        return cls((top,), dim, trace, frobenius)

    @property
    def largest(self) -> float:
        """lambda_max."""
        return self.values[0]

    @property
    def complete(self) -> bool:
        """Whether every eigenvalue that is not 0 is known."""
        rest = self.rest()
        return max(t for t, _ in rest) <= _TOLERANCE * self.largest

    def rest(self) -> list[tuple[float, float]]:
        """The pairs (t, s) of trace and sum of squares that the rest may have: the corners of what is known."""
        k, m = self.dim - len(self.values), self.values[-1]
        known_trace, squares = math.fsum(self.values), math.fsum(x * x for x in self.values)
        if not k or not m:
            return [(0.0, 0.0)]
        s = None if self.frobenius is None else max(self.frobenius**2 - squares, 0.0)
        if self.trace is not None:
            t = max(self.trace - known_trace, 0.0)
            return [(t, t * t / k), (t, m * t)] if s is None else [(t, min(max(s, t * t / k), m * t))]
        if s is None:
            return [(0.0, 0.0), (k * m, k * m * m)]
        return [(s / m, s), (math.sqrt(k * s), s)]

    def sums(self, rate: float, a: float, b: float) -> tuple[float, float]:
        """Bounds of sum_j x_j/(a - b x_j) over all eigenvalues, x_j = rate l_j, for a > 0, b >= 0, b x_j < a.

        With phi(l) = 1/(a - b rate l). t phi(s/t) = t^2/(a t - b rate s) is smallest at t = 2 b rate s/a.
        """
        x = rate * np.array(self.values)
        known_sum = float((x / (a - b * x)).sum())
        slope = (1 / (a - b * x[-1]) - 1 / a) / self.values[-1] if x[-1] else 0.0
        corners = self.rest()
        low = high = 0.0
        for number, (t, s) in enumerate(corners):
            least = t
            if self.trace is None and t:
                least = min(max(2 * b * rate * s / a, corners[0][0]), corners[-1][0])
            below = least**2 / (a * least - b * rate * s) if least else 0.0
            low = below if not number else min(low, below)
            high = max(high, t / a + s * slope)
        return known_sum + rate * low, known_sum + rate * high


def _nearest(estimate: Estimate, low: float, high: float) -> float:
    """The value of the estimate's interval nearest to [low, high], from its value."""
    return min(max(min(max(estimate.value, low), high), estimate.low), estimate.high)


_INDEFINITE = (
    "the spectrum is partly negative, where mean squares have no edge; use gradient_norm_edge, which takes ||H||_F and "
    "one product along the gradient"
)
