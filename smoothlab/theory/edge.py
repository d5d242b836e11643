"""The theory of the edge: at which learning rate training with exact or zeroth-order gradients becomes unstable.

Around a minimum of f = z'Hz/2 a step is z+ = z - eta ghat with E ghat = g = Hz and E ghat ghat' = a gg' + b ||g||^2 I
(`OuterMoment`; mu -> 0, and any mu for two sides). M = E zz' then follows

    M+ = M - eta (HM + MH) + a eta^2 HMH + b eta^2 tr(HMH) I                                         (theory.md F.1)

One side with mu > 0 adds (mu/2) v'Hv v to ghat, which is even in v where the rest is odd: it adds a constant to M+, a
floor below which M does not fall, and leaves the edge as it is.

`mean_square_edge` is the rate at which M stops shrinking for H >= 0; `gradient_norm_edge` that at which one step stops
shrinking ||grad f|| in mean square, H of any sign; `smoothlab.theory.pathwise` has what a single run does. Rates are
those of torch.optim.SGD: m+ = momentum m + (1 - dampening) ghat, z+ = z - eta m+.
"""

import math
from typing import NamedTuple

from scipy import optimize

from smoothlab.errors import BadInput
from smoothlab.theory.spectra import EXACT, GAUSSIAN, OuterMoment, Spectrum


class Edge(NamedTuple):
    """A stable rate that is known up to bounds: low <= edge <= high; all three are equal where it is known exactly.

    >>> from smoothlab import Edge
    >>> Edge.between(0.1, 0.4)   # the value is the geometric mean
    Edge(value=0.2, low=0.1, high=0.4)

    Attributes:
        value: the rate, or the geometric mean of its bounds.
        low: lower bound.
        high: upper bound.
    """

    value: float
    low: float
    high: float

    @classmethod
    def between(cls, low: float, high: float) -> "Edge":
        """Bounds, and their geometric mean as the value."""
        return cls(math.sqrt(low) * math.sqrt(high), low, high)


def exact_edge(largest: float, *, momentum: float = 0.0, dampening: float = 0.0) -> float:
    """Edge of exact gradients with heavy-ball momentum: 2 (1 + momentum)/((1 - dampening) lambda_max).

    s+ = s - eta m+, m+ = b m + (1 - c) lambda s has the characteristic polynomial r^2 - (1 + b - (1 - c) eta lambda) r
    + b, whose roots lie inside the unit circle iff (1 - c) eta lambda < 2 (1 + b)   (theory.md F.3).

    >>> from smoothlab import exact_edge
    >>> exact_edge(4.0), exact_edge(4.0, momentum=0.9)
    (0.5, 0.95)

    Raises:
        BadInput: lambda_max is not positive, or momentum or dampening is not in [0, 1).
    """
    _check(momentum, dampening)
    if not 0 < largest < math.inf:
        raise BadInput(
            f"the largest eigenvalue is {largest:.4g}: the loss does not curve upwards along this block, which sets no "
            "edge; check that the loss depends on the block, and measure elsewhere"
        )
    return 2 * (1 + momentum) / ((1 - dampening) * largest)


def adam_edge(largest: float, *, beta1: float = 0.9) -> float:
    """Edge of Adam with a preconditioner that stands still: 2 (1 + beta1)/((1 - beta1) lambda), 38/lambda by default.

    Adam's first moment is momentum with dampening = beta1, so its edge is momentum's for the preconditioned Hessian
    P^(-1/2) H P^(-1/2), P = diag(sqrt(v) + eps): not 2/lambda. How far it holds while v moves is open (theory.md
    F.3).

    >>> from smoothlab import adam_edge
    >>> round(adam_edge(2.0), 9)
    19.0

    Args:
        largest: lambda_max of the preconditioned Hessian.
        beta1: decay of the first moment.

    Raises:
        BadInput: `largest` is not positive, or beta1 is not in [0, 1).
    """
    return exact_edge(largest, momentum=beta1, dampening=beta1)


def mean_square_edge(
    spectrum: Spectrum, moment: OuterMoment = GAUSSIAN, *, momentum: float = 0.0, dampening: float = 0.0,
    diagonal: tuple[float, float] | None = None,
) -> Edge:  # fmt: skip
    """Rate below which E ||z||^2 -> 0 on the range of H >= 0, exactly or between bounds (theory.md F.1, F.3).

    With x_j = (1 - dampening) eta lambda_j, A = 2 (1 - momentum) and B = (1 - momentum)/(1 + momentum) + a - 1, which
    are 2 and a without momentum, a rate is stable iff

        B x_max < A   and   b sum_j x_j/(A - B x_j) < 1.

    So A/(b tr H + B lambda_max) <= edge <= min{A/(b tr H), A/((B + b) lambda_max)}. Exact gradients (a = 1, b = 0) have
    `exact_edge`. Of eigenvalues that are not known `Spectrum.sums` bounds the sum, and the edge lies between two roots.

    Directions with c != 0 (Rademacher, sparse, coordinates) see the basis, and the edge is no function of the
    spectrum (theory.md F.2). Positive maps are monotone, and diag(A) <= tr(A) I; with M = H^-1 and its dual X = H, and
    no momentum,

        2/(b tr H + a lambda_max + max_i c H_ii) <= edge <= 2/(b tr H + min_i c H_ii).

    >>> from smoothlab import Spectrum, mean_square_edge
    >>> mean_square_edge(Spectrum.of([1.0])).value        # 2/3: one direction in one dimension
    0.6666666666666666
    >>> low, high = mean_square_edge(Spectrum((4.0,), dim=1000, trace=40.0))[1:]
    >>> 2 / (40 + 2 * 4) <= low < high <= 2 / 40
    True

    Args:
        spectrum: of the block that the step moves.
        moment: of the estimate, e.g. `smoothlab.outer_moment(ZerothOrder(q=4), dim)`; one Gaussian direction by
            default.
        momentum: of torch.optim.SGD.
        dampening: of torch.optim.SGD; equal to `momentum` for an exponential average.
        diagonal: smallest and largest H_ii, for directions with c != 0; without it the bounds are wide.

    Raises:
        BadInput: momentum or dampening is not in [0, 1), or `diagonal` does not belong to the spectrum.
    """
    _check(momentum, dampening)
    if spectrum.dim == 1:  # all of A, tr(A) I and diag(A) are the same number
        moment = OuterMoment(sum(moment), 0.0)
    if not moment.diagonal:
        return _isotropic(spectrum, moment, momentum, dampening)
    return _in_a_basis(spectrum, moment, momentum, dampening, diagonal)


def _isotropic(spectrum: Spectrum, moment: OuterMoment, momentum: float, dampening: float) -> Edge:
    a, b, _ = moment
    if a < 1 - 1e-9:
        raise BadInput(
            f"the second moment {moment} is no estimate's: E ghat ghat' >= gg' asks for an aligned part >= 1"
        )
    A, B = 2 * (1 - momentum), (1 - momentum) / (1 + momentum) + max(a - 1, 0.0)
    pole = A / (B * spectrum.largest)
    if not b:
        return Edge(*(pole / (1 - dampening),) * 3)

    def root(index: int) -> float:
        def excess(rate: float) -> float:
            return b * spectrum.sums(rate, A, B)[index] - 1

        # (B + b) x_max < A at the edge, as one term of the sum is below 1: the pole is never met.
        top = A / ((B + b) * spectrum.largest)
        if excess(top) <= 0:  # of a single eigenvalue, up to rounding
            return top
        return float(optimize.brentq(excess, 0.0, top, xtol=1e-14 * top, rtol=1e-14))

    low, high = root(1) / (1 - dampening), root(0) / (1 - dampening)
    return Edge(low, low, low) if spectrum.complete else Edge.between(low, max(low, high))


def _in_a_basis(
    spectrum: Spectrum, moment: OuterMoment, momentum: float, dampening: float, diagonal: tuple[float, float] | None
) -> Edge:
    a, b, c = moment
    smallest, largest = diagonal or (0.0, spectrum.largest)
    if not -1e-9 * spectrum.largest <= smallest <= largest <= spectrum.largest * (1 + 1e-9):
        raise BadInput(
            f"diagonal entries from {smallest:.4g} to {largest:.4g} are not those of a matrix with eigenvalues from 0 "
            f"to {spectrum.largest:.4g}: give the smallest and the largest H_ii"
        )
    upper = OuterMoment(max(a, 1.0), b + max(c, 0.0))
    low = _isotropic(spectrum, upper, momentum, dampening).low
    high = exact_edge(spectrum.largest, momentum=momentum, dampening=dampening)
    if c > 0 and a >= 1:
        high = _isotropic(spectrum, OuterMoment(a, b), momentum, dampening).high
    if not momentum:
        rest_traces = [t for t, _ in spectrum.rest()]
        known_trace = math.fsum(spectrum.values)
        extra = a * spectrum.largest + max(c * smallest, c * largest)
        low = max(low, 2 / (b * (known_trace + max(rest_traces)) + extra))
        denominator = b * (known_trace + min(rest_traces)) + min(c * smallest, c * largest)
        if denominator > 0:
            high = min(high, 2 / denominator / (1 - dampening))
    return Edge.between(low, high)


def gradient_norm_edge(
    rho: float, h: float, frobenius: float, moment: OuterMoment = GAUSSIAN, *, noise: float = 1.0
) -> float:
    """Rate below which one step shrinks ||grad f|| in mean square, H of any sign (theory.md F.4).

        E ||g+||^2 = ||g||^2 - 2 eta g'Hg + eta^2 [a ||Hg||^2 + b ||H||_F^2 ||g||^2],

    exact for quadratics, so eta < 2 rho/(b ||H||_F^2 + a h^2). With minibatches B (the step by g_B, the norm of the
    full gradient) both terms in brackets are means over B: `noise` multiplies them. It falls in h, ||H||_F and noise
    and rises in rho, so that intervals of those give one of the edge.

    >>> from smoothlab import Spectrum, gradient_norm_edge, mean_square_edge
    >>> round(gradient_norm_edge(306.0, 443.0, 1457.0), 6)   # a base model of 135M parameters, q = 1
    0.000243
    >>> round(gradient_norm_edge(1.0, 1.0, 10**0.5), 6), round(mean_square_edge(Spectrum.of([1.0] * 10)).value, 6)
    (0.166667, 0.166667)

    Args:
        rho: g'Hg/||g||^2, from one product along the gradient.
        h: ||Hg||/||g||, from the same product; with minibatches sqrt(E ||H g_B||^2/E ||g_B||^2).
        frobenius: ||H||_F; h in its stead where an estimate falls below h.
        moment: of the estimate; one Gaussian direction by default. Its diagonal part must be 0.
        noise: E ||g_B||^2/||g||^2; 1 for one fixed batch.

    Raises:
        BadInput: rho is not positive, norms contradict each other, or the directions see the basis.
    """
    _no_basis(moment)
    if not all(map(math.isfinite, (rho, h, frobenius, noise))):
        raise BadInput(f"rho = {rho}, h = {h}, ||H||_F = {frobenius}, noise = {noise}: all must be finite")
    if h == 0 or frobenius <= 0:
        raise BadInput("H g is 0: the loss is flat along its gradient, or does not depend on this block; measure at "
                       "another point or another block")  # fmt: skip
    if rho <= 0:
        raise BadInput(
            f"rho = g'Hg/||g||^2 = {rho:.4g} is not positive: the loss curves downwards along its gradient, where "
            "every small step makes the gradient grow; measure at another point, or on another minibatch"
        )
    if noise < 1 or (noise == 1 and rho > h * (1 + 1e-6)) or h > 2 * frobenius:
        raise BadInput(
            f"rho = {rho:.4g}, h = {h:.4g}, ||H||_F = {frobenius:.4g} and noise = {noise:.4g} contradict each other: "
            "rho <= h <= ||H||_F and noise >= 1; measure all of them on the same loss"
        )
    square = max(frobenius, h) ** 2  # an estimated norm may fall below h, the true one does not
    return 2 * rho / (noise * (moment.isotropic * square + moment.aligned * h**2))


def best_rate(rho: float, trace: float, moment: OuterMoment = GAUSSIAN, *, noise: float = 1.0) -> float:
    """Rate of the largest expected decrease in one step: ||g||^2/E ghat'H ghat = 1/(noise (a rho + b tr H)).

    E f(z - eta ghat) = f - eta ||g||^2 + (eta^2/2) E ghat'H ghat (theory.md F.6): about half the edge where
    the bulk rules. With minibatches rho is E g_B'H g_B/E ||g_B||^2.

    >>> best_rate(1.0, 10.0)   # H = I, d = 10: half of 2/(d + 2)
    0.08333333333333333

    Raises:
        BadInput: the step has no curvature to stop at, noise < 1, or the directions see the basis.
    """
    _no_basis(moment)
    curvature = moment.aligned * rho + moment.isotropic * trace
    if not 0 < curvature < math.inf or not 1 <= noise < math.inf:
        raise BadInput(
            f"rho = {rho:.4g} and trace {trace:.4g} give the mean curvature {curvature:.4g} along a step, noise "
            f"{noise:.4g}: it must be positive, and noise at least 1; use gradient_norm_edge where the trace nearly "
            "cancels"
        )
    return 1 / (noise * curvature)


def _check(momentum: float, dampening: float) -> None:
    if not (0 <= momentum < 1 and 0 <= dampening < 1):
        raise BadInput(f"momentum {momentum} and dampening {dampening}: use numbers in [0, 1)")


def _no_basis(moment: OuterMoment) -> None:
    if moment.diagonal:
        raise BadInput(
            f"directions with the second moment {moment} see the basis, and this rate depends on more than norms: use "
            "Gaussian or sphere directions, or mean_square_edge with H's diagonal"
        )


__all__ = [
    "EXACT", "GAUSSIAN", "Edge", "OuterMoment", "Spectrum", "adam_edge", "best_rate", "exact_edge",
    "gradient_norm_edge", "mean_square_edge",
]  # fmt: skip
