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
from types import FunctionType

import numpy as np

from smoothlab.errors import BadInput
from smoothlab.theory.spectra import OuterMoment
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Sphere
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.expectations import Array, Shapes, entries


@dataclass(frozen=True)
class Taylor:
    """Derivatives of f at a point, from which `mean` and `second_moment` compute an estimator's moments.

    >>> import numpy as np
    >>> from smoothlab import Taylor, ZerothOrder, second_moment
    >>> f = Taylor(gradient=np.ones(3), hessian=np.eye(3))
    >>> second_moment(ZerothOrder(sides=1, mu=0.1), f) > second_moment(ZerothOrder(), f)
    True

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
    """Mean E ghat [d] of an estimator on f of degree <= 4: S^2 g + (mu^2/6) E T[z, z, z] z, for all sides, q, averages.

    >>> import numpy as np
    >>> from smoothlab import Taylor, ZerothOrder, mean
    >>> f = Taylor(gradient=np.array([1.0, 2.0]), hessian=np.eye(2), third=np.ones((2, 2, 2)))
    >>> mean(ZerothOrder(mu=0.1), f)   # g + (mu^2/2) grad Laplace f
    array([1.01, 2.01])

    Raises:
        BadInput: no closed form is known for the estimator or its distribution.
    """
    distribution = _direction(estimator)
    value = distribution.covariance(f.tensors) * f.gradient
    if f.third is not None:
        value = value + estimator.mu**2 / 6 * distribution.expectation(f.tensors, [f.third], free=True)
    return value


def second_moment(estimator: ZerothOrder, f: Taylor) -> float:
    """Second moment E ||ghat||^2 of an estimator on f of degree <= 3 with one side, <= 4 with two.

    >>> import numpy as np
    >>> from smoothlab import Taylor, ZerothOrder, second_moment
    >>> second_moment(ZerothOrder(), Taylor(gradient=np.ones(3), hessian=np.eye(3)))   # (d + 2) ||g||^2
    15.0

    Raises:
        BadInput: a quartic f with one side, whose second moment would take moments of order 10; or no closed form is
            known for the estimator or its distribution.
    """
    distribution, (q, sides) = _direction(estimator), _independent(estimator)
    single = _second_of_one(distribution, estimator.mu, sides, f)
    if estimator.average == "orthogonal":
        return single / q
    m = mean(estimator, f)
    return float(m @ m + (single - m @ m) / q)


def _second_of_one(distribution: Distribution, mu: float, sides: int, f: Taylor) -> float:
    """E ||ghat||^2 of a single direction."""
    g, third, value = f.gradient, f.third, 0.0
    if g.any():  # `second_moment` is a quotient by ||g||^2
        value = float(g @ g) * distribution.second_moment(f.tensors, gradient=g)[0]
    square = np.eye(len(g))  # ||z||^2 = I[z, z]
    if third is not None:
        value += mu**2 / 3 * float(distribution.expectation(f.tensors, [g, third, square]))
        value += mu**4 / 36 * float(distribution.expectation(f.tensors, [third, third, square]))
    if sides == 1:
        if f.fourth is not None and np.any(f.fourth):
            raise BadInput(
                "the second moment of a one-sided estimator on a quartic has no closed form here: use two sides, or "
                "leave the fourth derivative out"
            )
        value += mu**2 / 4 * float(distribution.expectation(f.tensors, [f.hessian, f.hessian, square]))
    return value


def _tensor_shapes(dim: int, shapes: Shapes | None) -> Shapes:
    """Shapes of the block's tensors: one vector if `shapes` leaves them out."""
    tensors = shapes or ((dim,),)
    if entries(tensors) != dim:
        raise BadInput(f"tensors of shapes {tensors} have {entries(tensors)} entries, not {dim}: give shapes that fit")
    return tensors


def _direction(estimator: ZerothOrder) -> Distribution:
    """The distribution of each single direction of an estimator whose closed forms are its own.

    Raises:
        BadInput: the class is none of this package's, or overrides how the estimate is made.
    """
    kind = type(estimator)
    if not issubclass(kind, ZerothOrder):
        raise BadInput(f"no closed form is known for estimators of class {kind.__name__}: measure moments by sampling")
    # A subclass that doubles the gradient, say, would otherwise be given its parent's moments without an error.
    for name, method in vars(ZerothOrder).items():
        if isinstance(method, FunctionType) and getattr(kind, name) is not method and name not in _INDIFFERENT:
            raise BadInput(
                f"class {kind.__name__} overrides ZerothOrder.{name}, so that no closed form is its own: measure "
                "moments by sampling"
            )
    return Sphere() if estimator.average == "orthogonal" else estimator.distribution


_INDIFFERENT = (
    "__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__post_init__", "realized_fraction",
)  # fmt: skip
"""Methods that dataclasses generate, or that draw nothing."""


def _independent(estimator: ZerothOrder) -> tuple[int, int]:
    """Number of independent estimates that are averaged, and their sides."""
    return (estimator.q // 2, 2) if estimator.average == "antithetic" else (estimator.q, estimator.sides)


def linear_factor(
    estimator: ZerothOrder, dim: int, shapes: Shapes | None = None, *, parts: Sequence[float] | None = None,
    gradient: Array | None = None,
) -> float:  # fmt: skip
    """Factor E ||ghat||^2 / ||g||^2 of an estimator as mu -> 0, and of two-sided ones on any quadratic.

    See `Distribution.second_moment` for a single direction: Gaussian d + 2, sphere, coordinate and Rademacher d.

    >>> from smoothlab import ZerothOrder, linear_factor
    >>> linear_factor(ZerothOrder(), 100), linear_factor(ZerothOrder(q=4, average="orthogonal"), 100)
    (102.0, 25.0)

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
    distribution, (q, _) = _direction(estimator), _independent(estimator)
    tensors = _tensor_shapes(dim, shapes)
    single, aligned = distribution.second_moment(tensors, parts=parts, gradient=gradient)
    if estimator.average == "orthogonal":
        return single / q
    return aligned + (single - aligned) / q


def outer_moment(estimator: ZerothOrder, dim: int, shapes: Shapes | None = None) -> OuterMoment:
    """Second moment E ghat ghat' = a gg' + b ||g||^2 I + c diag(gg') as mu -> 0; on quadratics two sides have it too.

    With u = E z_i^2 z_j^2 and k = E z_i^4, one direction has a = 2u, b = u, c = k - 3u; the average of q plain ones
    1 + (a - 1)/q, b/q, c/q; a random frame of q <= d orthogonal ones of length sqrt(d), whose projection of rank q is
    uniform, b = d (d - q)/(q (d + 2)(d - 1)), a = d/q - d b. `smoothlab.theory.edge` takes this form.

    >>> from smoothlab import ZerothOrder, outer_moment
    >>> outer_moment(ZerothOrder(q=4), 100)
    OuterMoment(aligned=1.25, isotropic=0.25, diagonal=0.0)

    Args:
        estimator: the estimator; mu does not matter, and one side has what two have.
        dim: d.
        shapes: shapes of the block's tensors; one vector if left out.

    Raises:
        BadInput: no such form is known for the directions, or there are more orthogonal ones than dimensions.
    """
    distribution, (q, _) = _direction(estimator), _independent(estimator)
    tensors = _tensor_shapes(dim, shapes)
    if estimator.average == "orthogonal":
        if q > dim:
            raise BadInput(f"q = {q} orthogonal directions in {dim} dimensions: use at most {dim}, or plain ones")
        b = dim * (dim - q) / (q * (dim + 2) * max(dim - 1, 1))
        return OuterMoment(dim / q - dim * b, b)
    mixed, fourth = distribution.fourth_moments(tensors)
    return OuterMoment(1 + (2 * mixed - 1) / q, mixed / q, (fourth - 3 * mixed) / q)


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
    means, seconds = [], []
    for a, b in zip(here, there, strict=True):
        third, fourth = _difference(a.third, b.third), _difference(a.fourth, b.fourth)
        f = replace(a, gradient=a.gradient - b.gradient, hessian=a.hessian - b.hessian, third=third, fourth=fourth)
        m = mean(estimator, f)
        means.append(m + anchor)
        seconds.append(second_moment(estimator, f) + 2 * anchor @ m + anchor @ anchor)
    return np.mean(means, 0), float(np.mean(seconds))


def _difference(a: Array | None, b: Array | None) -> Array | None:
    """A - B, where None stands for zeros that are never made: a fourth derivative has d^4 entries."""
    if b is None:
        return a
    if a is None:
        return -b
    return a - b
