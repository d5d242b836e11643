"""Exact moments of zeroth-order estimators, beside them; where only bounds are known, see `smoothlab.zeroth.bounds`.

Let f(x + s) = f(x) + g's + A[s, s]/2 + T[s, s, s]/6 + Q[s, s, s, s]/24. One direction z gives ghat = c(z) z with

    two-sided   c(z) = g'z + (mu^2/6) T[z, z, z]
    one-sided   c(z) = the same + (mu/2) A[z, z] + (mu^3/24) Q[z, z, z, z]

All distributions are symmetric (z and -z alike), so that the even terms of c drop out of the mean, and cross terms of
even with odd ones out of the second moment:

    E ghat = S^2 g + (mu^2/6) E T[z, z, z] z                       for degree <= 4, one side as two; E zz' = S^2
    E ||ghat||^2 = E (g'z + (mu^2/6) T[z, z, z])^2 ||z||^2  [+ (mu^2/4) E A[z, z]^2 ||z||^2 with one side]

The second moment holds for degree <= 3 (two-sided: 4). Moments of z are `smoothlab.zeroth.expectations`'; for
Gaussian and sphere they give the formulas of theory.md D, e.g. (d + 2) ||g||^2 and bias (mu^2/2) grad Laplace f.
Averages:

    plain       E ||.||^2 = ||m||^2 + (E_1 - ||m||^2)/q, with m the mean and E_1 one direction's second moment.
    antithetic  the pair z, -z of one-sided estimates averages to (f(x + mu z) - f(x - mu z))/(2 mu) z: two-sided with
                q/2 directions.
    orthogonal  each row of the random frame is uniform on the sphere of radius sqrt(d), so mean and E_1 are the
                sphere's (the Gaussian's lengths are gone); and <ghat_i, ghat_j> = c_i c_j <z_i, z_j> = 0, so that
                E ||.||^2 = E_1/q for every f: d ||g||^2/q on quadratics, two-sided, and no variance left at q = d.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from smoothlab.errors import BadInput
from smoothlab.zeroth.distributions import Coordinate, LowRank, Masked, Preconditioned, Rademacher, Sphere
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.expectations import Array, Shapes, expectation, fourth, scales
from smoothlab.zeroth.rng import Directions


@dataclass(frozen=True)
class Taylor:
    """What the closed forms need of f at the point.

    Attributes:
        gradient: g [d].
        hessian: A [d, d].
        third: T [d, d, d], symmetric; None for zero.
        fourth: Q [d, d, d, d], symmetric; None for zero.
        shapes: shapes of the block's tensors, which low-rank and preconditioned directions go by; one vector if empty.
    """

    gradient: Array
    hessian: Array
    third: Array | None = None
    fourth: Array | None = None
    shapes: Shapes = ()

    @property
    def tensors(self) -> Shapes:
        """`shapes`, or one vector."""
        return self.shapes or ((len(self.gradient),),)


def mean(estimator: ZerothOrder, f: Taylor) -> Array:
    """E ghat [d] for f of degree <= 4: S^2 g + (mu^2/6) E T[z, z, z] z, whatever the sides, q and the average are."""
    distribution = _distribution(estimator)
    value = scales(distribution, f.tensors) ** 2 * f.gradient
    if f.third is not None:
        value = value + estimator.mu**2 / 6 * expectation(distribution, f.tensors, [f.third], free=True)
    return value


def second_moment(estimator: ZerothOrder, f: Taylor) -> float:
    """E ||ghat||^2, for f of degree <= 3 with one side and <= 4 with two.

    Raises:
        BadInput: a quartic f with one side, whose second moment would take moments of order 10; the user's own
            distribution.
    """
    distribution, q, sides = _distribution(estimator), *_independent(estimator)
    one = _second_of_one(distribution, estimator.mu, sides, f)
    if estimator.average == "orthogonal":
        return one / q
    m = mean(estimator, f)
    return float(m @ m + (one - m @ m) / q)


def _second_of_one(distribution: Directions, mu: float, sides: int, f: Taylor) -> float:
    """E ||ghat||^2 of a single direction."""
    g, third, d = f.gradient, f.third, len(f.gradient)
    value = float(g @ g) and linear_factor(ZerothOrder(distribution=distribution), d, f.tensors, gradient=g) * float(
        g @ g
    )
    square = np.diag(scales(distribution, f.tensors) ** 0)  # ||z||^2 = I[z, z]
    if third is not None:
        value += mu**2 / 3 * float(expectation(distribution, f.tensors, [g, third, square]))
        value += mu**4 / 36 * float(expectation(distribution, f.tensors, [third, third, square]))
    if sides == 1:
        if f.fourth is not None and np.any(f.fourth):
            raise BadInput(
                "the second moment of a one-sided estimator on a quartic has no closed form here: use two sides, or "
                "leave the fourth derivative out"
            )
        value += mu**2 / 4 * float(expectation(distribution, f.tensors, [f.hessian, f.hessian, square]))
    return value


def _distribution(estimator: ZerothOrder) -> Directions:
    """The distribution of each single direction."""
    return Sphere() if estimator.average == "orthogonal" else estimator.distribution


def _independent(estimator: ZerothOrder) -> tuple[int, int]:
    """How many independent estimates are averaged, and their sides."""
    return (estimator.q // 2, 2) if estimator.average == "antithetic" else (estimator.q, estimator.sides)


def linear_factor(
    estimator: ZerothOrder,
    dim: int,
    shapes: Shapes | None = None,
    *,
    parts: Sequence[float] | None = None,
    gradient: Array | None = None,
) -> float:
    """E ||ghat||^2 / ||g||^2 as mu -> 0, which is also that of two sides on any quadratic. Cheap for any dim.

    One direction has E (g'z)^2 ||z||^2 = sum_ij g_i g_j E z_i z_j ||z||^2, and by Isserlis

        independent entries   d - 1 + E z_i^4: Gaussian d + 2, Rademacher d, sparse d - 1 + 3/share
        sphere, coordinate    d, as ||z||^2 = d
        low rank              sum_t (||g_t||^2 / ||g||^2) e_t: d + 2 + 2 (m_t + n_t + 1)/r of matrices, else d + 2.
                              Rows pair in 3 ways and columns in 3; equal pairings give mn + 2, the 6 unequal ones
                              2m + 2n + 2 over r; other tensors add their d_s, being independent.
        z = S g               (tr S^2 ||Sg||^2 + 2 ||S^2 g||^2) / ||g||^2, S the mask or the scales

    Args:
        estimator: the estimator; its sides and mu do not matter.
        dim: d.
        shapes: shapes of the block's tensors; one vector if left out.
        parts: squared gradient norm of each tensor: needed for low-rank directions when there are several tensors of
            different extra terms, and for preconditioned ones unless `gradient` is given.
        gradient: g [d], which gives everything.

    Raises:
        BadInput: the factor depends on the gradient and neither `parts` nor `gradient` tells enough.
    """
    distribution, (q, _) = _distribution(estimator), _independent(estimator)
    tensors = shapes or ((dim,),)
    sizes = [prod(shape) for shape in tensors]
    if sum(sizes) != dim:
        raise BadInput(f"tensors of shapes {tensors} have {sum(sizes)} entries, not {dim}")
    if parts is None and gradient is not None:
        parts = [float(g @ g) for g in np.split(gradient, np.cumsum(sizes)[:-1])]
    aligned = 1.0  # ||E ghat||^2 / ||g||^2
    if type(distribution) in (Sphere, Coordinate, Rademacher):
        one = float(dim)
    elif isinstance(distribution, LowRank):
        each = [2 + 2 * (sum(s) + 1) / distribution.rank if len(s) == 2 else 2.0 for s in tensors]
        if parts is None and len(set(each)) > 1:
            raise BadInput(
                f"{distribution.name} directions on tensors of shapes {tensors}: give parts, the squared gradient "
                "norm of each"
            )
        one = dim + (each[0] if parts is None else float(np.dot(each, parts) / sum(parts)))
    elif isinstance(distribution, Masked | Preconditioned):
        one, aligned = _scaled_factor(distribution, tensors, parts, gradient)
    else:
        one = dim - 1 + fourth(distribution)
    return one / q if estimator.average == "orthogonal" else aligned + (one - aligned) / q


def _scaled_factor(
    distribution: Masked | Preconditioned, shapes: Shapes, parts: Sequence[float] | None, gradient: Array | None
) -> tuple[float, float]:
    """E ||ghat||^2 and ||E ghat||^2 over ||g||^2, from g or, where S is one number a tensor, from its norms."""
    given = distribution.masks if isinstance(distribution, Masked) else distribution.scales
    if gradient is not None:
        s, g2 = scales(distribution, shapes) ** 2, gradient**2
        trace = s.sum()
    elif parts is not None and all(t.numel() == 1 for t in given):
        s, g2 = np.array([float(t) ** 2 for t in given]), np.array(parts)
        trace = s @ [prod(shape) for shape in shapes]
    else:
        raise BadInput(f"the variance of {distribution.name} directions depends on the gradient: give gradient")
    total, aligned = g2.sum(), s**2 @ g2
    return float((trace * (s @ g2) + 2 * aligned) / total), float(aligned / total)


def control_variate(
    estimator: ZerothOrder, here: Sequence[Taylor], there: Sequence[Taylor], anchor: Array
) -> tuple[Array, float]:
    """Mean and second moment of ghat_i(x) - ghat_i(x~) + anchor, the same z in both, i uniform over a finite sum.

    s -> f_i(x + s) - f_i(x~ + s) is a polynomial whose derivatives are the differences, so ghat_i(x) - ghat_i(x~) is
    the estimator on it: with m_i and E_i its mean and second moment,

        E = mean_i m_i + anchor,    E ||.||^2 = mean_i (E_i + 2 <anchor, m_i> + ||anchor||^2).

    On quadratics the differences are delta_i = g_i(x) - g_i(x~) and A_i - A_i = 0: no bias, no term in mu even with one
    side, and per direction (d + 2) ||delta_i||^2 in place of (d + 2) ||g_i||^2 for Gaussian directions.

    Args:
        estimator: the estimator of both differences.
        here: f_i at x.
        there: f_i at x~.
        anchor: the gradient of the whole sum at x~, [d]; taken as exact and fixed.
    """
    moments = []
    for a, b in zip(here, there, strict=True):
        third, fourth = _difference(a.third, b.third), _difference(a.fourth, b.fourth)
        f = replace(a, gradient=a.gradient - b.gradient, hessian=a.hessian - b.hessian, third=third, fourth=fourth)
        m = mean(estimator, f)
        moments.append((m + anchor, second_moment(estimator, f) + 2 * anchor @ m + anchor @ anchor))
    means, seconds = zip(*moments, strict=True)
    return np.mean(means, 0), float(np.mean(seconds))


def _difference(a: Array | None, b: Array | None) -> Array | None:
    return a if b is None else -b if a is None else a - b
