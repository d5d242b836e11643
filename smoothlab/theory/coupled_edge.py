"""The edge of hybrid training: x by zeroth-order gradients, y by exact ones, coupled through H_xy.

With z = (x, y), L = diag(eta_x I, eta_y I), P the projection to x, and x's estimate of second moment (a, b, 0), around
a minimum of f = z'Hz/2

    M+ = (I - L H) M (I - H L) + eta_x^2 P [(a - 1) HMH + b tr(P HMH P) I] P                           (theory.md F.5)

and both rates are stable iff the spectral radius of this map is below 1 on the range of H. There z is s = U'z, with H =
U diag(l) U' and U = (U_x, U_y): all that enters is l and the Gram matrix G = U_x'U_x, as U_y'U_y = I - G. What Lanczos
does not resolve, the bulk of H_xx, enters through its trace t: it returns b eta_x t/2 of the noise that it is given, so
that at the edge b is b/(1 - b eta_x t/2). Without coupling the condition separates into x's own (`mean_square_edge`)
and eta_y lambda_max(H_yy) < 2.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smoothlab.errors import BadInput
from smoothlab.theory.spectra import GAUSSIAN, OuterMoment

Array = NDArray[np.float64]
_LARGEST = 40  # Ritz vectors, or dimensions of the dense map, a matrix of their number squared
_KERNEL = 1e-12  # of an eigenvalue in the largest: H's kernel, up to rounding


def second_moment_radius(hessians: Array, d_x: int, eta_x: float, eta_y: float, moment: OuterMoment) -> float:
    """Spectral radius of the map of M = E zz' on the range of the mean H, built as a dense matrix [d^2, d^2].

    The truth that every edge here is tested against. With several Hessians [B, d, d], one minibatch's each, drawn anew
    in every step, HMH is their mean of H_B M H_B in both terms of noise: E (I - L H_B) M (I - H_B L) has it too
    (theory.md F.6).

    >>> import numpy as np
    >>> H = np.diag([1.0, 2.0])
    >>> round(second_moment_radius(H, 1, 0.1, 0.5, OuterMoment(2.0, 1.0)), 6)   # (1 - .1)^2 + 2 (.1)^2
    0.83

    Args:
        hessians: H [d, d], or one for each minibatch [B, d, d]; symmetric.
        d_x: the first d_x coordinates move by the estimate, the others by exact gradients.
        eta_x: rate of x.
        eta_y: rate of y.
        moment: of x's estimate; a part along diag(gg') is allowed.

    Raises:
        BadInput: H is not symmetric, all of it is 0, minibatches curve where it does not, or d is above 40.
    """
    batches = np.asarray(hessians, dtype=float)
    batches = batches[None] if batches.ndim == 2 else batches
    _square(batches)
    d = batches.shape[-1]
    mean = batches.mean(0)
    values, vectors = np.linalg.eigh(mean)
    keep = np.abs(values) > _KERNEL * np.abs(values).max()
    if not keep.any():
        raise BadInput("the mean Hessian is 0: the loss depends on nothing here, which sets no edge")
    basis = vectors[:, keep]
    if not np.allclose(batches - basis @ (basis.T @ batches), 0, atol=1e-9 * np.abs(batches).max()):
        raise BadInput(
            "minibatches curve along directions where the mean does not, in which M grows at every rate: "
            "leave these directions out"
        )
    rates = np.r_[np.full(d_x, eta_x), np.full(d - d_x, eta_y)][:, None]
    in_x = np.diag((np.arange(d) < d_x).astype(float))
    a, b, c = moment
    # vec(A M A') = (A kron A) vec(M), row by row; tr(P H M H P) = <H P H, M>.
    second_moment_map = np.zeros((d * d, d * d))
    for h in batches:
        shrink, noise = np.eye(d) - rates * h, eta_x * in_x @ h
        second_moment_map += np.kron(shrink, shrink) + (a - 1) * np.kron(noise, noise)
        second_moment_map += b * np.outer(in_x, noise.T @ noise)
        for i in range(d_x):
            second_moment_map[i * d + i] += c * np.kron(noise[i], noise[i])
    inward = np.kron(basis, basis)
    return _radius(inward.T @ (second_moment_map / len(batches)) @ inward)


def coupled_radius(
    values: Array, gram_x: Array, eta_x: float, eta_y: float, moment: OuterMoment, *, rest_trace: float = 0.0
) -> float:
    """Spectral radius of the map of E ss' on the Ritz vectors, below 1 iff both rates are stable.

    Exact where the Ritz vectors span the range of H (rest_trace = 0). With a rest the radius says on which side of 1
    the whole is; infinite where the rest alone is unstable, b eta_x rest_trace >= 2.

    >>> import numpy as np
    >>> round(coupled_radius(np.array([1.0, 2.0]), np.diag([1.0, 0.0]), 0.1, 0.5, OuterMoment(2.0, 1.0)), 6)
    0.83

    Args:
        values: eigenvalues l [k] of H over both blocks, e.g. Ritz values; positive.
        gram_x: G = U_x'U_x [k, k] of the x parts of their orthonormal vectors.
        eta_x: rate of x.
        eta_y: rate of y.
        moment: of x's estimate, without a part along diag(gg').
        rest_trace: tr H_xx less sum_j l_j G_jj.

    Raises:
        BadInput: shapes, eigenvalues, Gram matrix or rest are those of no H >= 0.
    """
    m = _map(*_checked(values, gram_x, moment, rest_trace), eta_x, eta_y, moment, rest_trace)
    return math.inf if m is None else _radius(m)


def _map(
    eigenvalues: Array, g: Array, eta_x: float, eta_y: float, moment: OuterMoment, rest_trace: float
) -> Array | None:
    """The map of E ss' as a matrix [k^2, k^2]; None where the rest alone is unstable."""
    shrunk = 1 - moment.isotropic * eta_x * rest_trace / 2
    if shrunk <= 0:
        return None
    identity = np.eye(len(eigenvalues))
    shrink = identity - (eta_x * g + eta_y * (identity - g)) * eigenvalues
    noise = eta_x * g * eigenvalues
    spread = moment.isotropic / shrunk * eta_x**2 * np.outer(g, eigenvalues[:, None] * g * eigenvalues)
    return np.kron(shrink, shrink) + (moment.aligned - 1) * np.kron(noise, noise) + spread


def coupled_edge(
    values: Array, gram_x: Array, ratio: float, moment: OuterMoment, *, rest_trace: float = 0.0
) -> tuple[float, float]:
    """The largest stable (eta_x, eta_y) with eta_y = ratio eta_x.

    The stable rates of a ratio are an interval from 0: where some X > 0 shows stability by X - T(X) > 0, T the dual
    map, it does so at every smaller common factor. X = H shows it for

        lambda_max(L^(1/2) H L^(1/2) + eta_x [(a - 1) H_xx + b tr(H_xx) I_x]) < 2,

    and 2/lambda_max(L H), the edge of E z, is an upper bound. Close to ratio 0 or infinity one block hardly moves, and
    the other has its own edge, that of H_xx or H_yy. In between coupling lowers eta_x, or raises it a little, as y
    follows its minimum: by 6 % for unit curvatures, H_xy = 0.9 and eta_y = eta_x/2.

    >>> import numpy as np
    >>> from smoothlab import OuterMoment, coupled_edge
    >>> x, y = coupled_edge(np.array([1.0, 2.0]), np.diag([1.0, 0.0]), 10.0, OuterMoment(2.0, 1.0))
    >>> round(x, 6), round(y, 6)   # eta_y = 2/2 rules, as x alone is stable up to 2/3
    (0.1, 1.0)

    Args:
        values: as in `coupled_radius`.
        gram_x: as in `coupled_radius`.
        ratio: eta_y/eta_x, positive.
        moment: as in `coupled_radius`.
        rest_trace: as in `coupled_radius`.

    Raises:
        BadInput: the ratio is not positive, or see `coupled_radius`.
    """
    eigenvalues, g = _checked(values, gram_x, moment, rest_trace)
    if not 0 < ratio < math.inf:
        raise BadInput(
            f"ratio eta_y/eta_x = {ratio}: use a positive number; where a block stands still, use mean_square_edge or "
            "exact_edge of the other one"
        )
    # U L^(1/2) has the Gram matrix L in s: with R = sqrt(l), L^(1/2) H L^(1/2) has the eigenvalues of R U'LU R.
    root = np.sqrt(eigenvalues)[:, None]
    drift = float(np.linalg.eigvalsh(root * (g + ratio * (np.eye(len(eigenvalues)) - g)) * root.T)[-1])
    inner = root * g * root.T  # with the eigenvalues of H_xx
    spread = (moment.aligned - 1) * float(np.linalg.eigvalsh(inner)[-1])
    spread += moment.isotropic * (float(np.trace(inner)) + rest_trace)
    low, high = 2 / (drift + spread), 2 / max(drift, moment.isotropic * rest_trace)
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if _stable(_map(eigenvalues, g, middle, ratio * middle, moment, rest_trace)):
            low = middle
        else:
            high = middle
    return low, ratio * low


def _stable(m: Array | None) -> bool:
    """Whether a positive map's radius is below 1: iff X - T(X) = I has a solution X >= 0 (Perron and Frobenius)."""
    if m is None:
        return False
    k = math.isqrt(len(m))
    try:
        x = np.linalg.solve(np.eye(len(m)) - m, np.eye(k).ravel()).reshape(k, k)
    except np.linalg.LinAlgError:  # an eigenvalue of exactly 1
        return False
    return bool(np.linalg.eigvalsh((x + x.T) / 2)[0] > 0)


def _radius(m: Array) -> float:
    return float(np.abs(np.linalg.eigvals(m)).max())


@dataclass(frozen=True)
class HybridGradient:
    """Norms and inner products that decide a hybrid step's gradient norm, from products with (g_x, 0) and (0, g_y).

    >>> import numpy as np
    >>> from smoothlab import HybridGradient
    >>> gradient = HybridGradient.of(np.diag([1.0, 2.0]), np.array([3.0, 1.0]), 1)   # x is the first entry
    >>> gradient.xx, gradient.xy, gradient.yy
    (9.0, 0.0, 2.0)

    Attributes:
        g_x: ||g_x||, g = (g_x, g_y) the gradient.
        g_y: ||g_y||.
        xx: g_x'H_xx g_x.
        xy: g_x'H_xy g_y.
        yy: g_y'H_yy g_y.
        image_x: ||H_{:x} g_x||, over both blocks' rows.
        image_y: ||H_{:y} g_y||.
        inner: <H_{:x} g_x, H_{:y} g_y>.
        frobenius: ||H_{:x}||_F = sqrt(||H_xx||_F^2 + ||H_xy||_F^2), cross block included.
    """

    g_x: float
    g_y: float
    xx: float
    xy: float
    yy: float
    image_x: float
    image_y: float
    inner: float
    frobenius: float

    @classmethod
    def of(cls, hessian: Array, gradient: Array, d_x: int) -> "HybridGradient":
        """From a dense Hessian [d, d] and gradient [d] whose first d_x entries are x's."""
        x, y = (
            np.where(np.arange(len(gradient)) < d_x, gradient, 0),
            np.where(np.arange(len(gradient)) < d_x, 0, gradient),
        )
        u, w = hessian @ x, hessian @ y
        norm = np.linalg.norm
        return cls(*map(float, (norm(x), norm(y), x @ u, x @ w, y @ w, norm(u), norm(w), u @ w,
                                norm(hessian[:, :d_x]))))  # fmt: skip

    def ratio_of_squares(self, eta_x: float, eta_y: float, moment: OuterMoment) -> float:
        """E ||g+||^2/||g||^2 after a step, exact for quadratics of any sign:

        ||g||^2 - 2 g'HLg + ||HLg||^2 + eta_x^2 [(a - 1) ||H_{:x} g_x||^2 + b ||H_{:x}||_F^2 ||g_x||^2], over ||g||^2.
        """  # noqa: D400, D415
        square, first, second = self._powers(eta_x, eta_y, moment)
        return 1 - (2 * first - second) / square

    def _powers(self, x: float, y: float, moment: OuterMoment) -> tuple[float, float, float]:
        """||g||^2, and the coefficients of -2 s and s^2 at the rates s x and s y."""
        if moment.diagonal:
            raise BadInput(f"directions with the second moment {moment} see the basis: use Gaussian or sphere ones")
        first = x * self.xx + (x + y) * self.xy + y * self.yy
        second = (x * self.image_x) ** 2 * moment.aligned + 2 * x * y * self.inner + (y * self.image_y) ** 2
        second += moment.isotropic * (x * self.frobenius * self.g_x) ** 2
        return self.g_x**2 + self.g_y**2, first, second


def hybrid_gradient_norm_edge(
    gradient: HybridGradient, ratio: float, moment: OuterMoment = GAUSSIAN
) -> tuple[float, float]:
    """The largest (eta_x, eta_y), eta_y = ratio eta_x, at which one step shrinks ||g|| in mean square (theory.md F.4).

    >>> import numpy as np
    >>> from smoothlab import HybridGradient, hybrid_gradient_norm_edge
    >>> g = HybridGradient.of(np.eye(10), np.r_[np.ones(9), 0.0], 9)   # y's gradient is 0: x alone, 2/(d_x + 2)
    >>> round(11 * hybrid_gradient_norm_edge(g, 1.0)[0], 6)
    2.0

    Args:
        gradient: norms and inner products at the point.
        ratio: eta_y/eta_x; inf moves y alone, 0 x alone.
        moment: of x's estimate, without a part along diag(gg').

    Raises:
        BadInput: the ratio is negative, the loss curves downwards along the step, or not at all.
    """
    if not ratio >= 0:
        raise BadInput(f"ratio eta_y/eta_x = {ratio}: use a number of at least 0")
    x, y = (0.0, 1.0) if math.isinf(ratio) else (1.0, ratio)
    _, first, second = gradient._powers(x, y, moment)
    if not (first > 0 and second > 0):
        raise BadInput(
            f"g'H L g = {first:.4g}: the loss curves downwards along the step, or not at all, and every small step "
            "makes the gradient grow; measure at another point, or check that the loss depends on both blocks"
        )
    return x * 2 * first / second, y * 2 * first / second


def _checked(values: Array, gram_x: Array, moment: OuterMoment, rest_trace: float) -> tuple[Array, Array]:
    """The eigenvalues and the Gram matrix as arrays."""
    eigenvalues, g = np.asarray(values, dtype=float), np.asarray(gram_x, dtype=float)
    k = eigenvalues.size
    if eigenvalues.shape != (k,) or g.shape != (k, k) or not 1 <= k <= _LARGEST:
        raise BadInput(
            f"eigenvalues of shape {eigenvalues.shape} and a Gram matrix of shape {g.shape}: give [k] and [k, k] with "
            f"k from 1 to {_LARGEST}"
        )
    if not (np.isfinite(eigenvalues).all() and np.isfinite(g).all() and (eigenvalues > 0).all()):
        raise BadInput(
            f"the smallest Ritz value is {eigenvalues.min():.4g}: leave out those that are not positive; where many "
            "are negative, use hybrid_gradient_norm_edge, which takes H of any sign"
        )
    ends = np.linalg.eigvalsh((g + g.T) / 2)
    if not np.allclose(g, g.T, atol=1e-8) or ends[0] < -1e-6 or ends[-1] > 1 + 1e-6:
        raise BadInput(
            f"the Gram matrix of x parts has eigenvalues from {ends[0]:.4g} to {ends[-1]:.4g}: parts of orthonormal "
            "vectors have a symmetric one between 0 and 1"
        )
    if not 0 <= rest_trace < math.inf:
        raise BadInput(
            f"the trace of the rest is {rest_trace:.4g}: the spectrum is partly negative; use hybrid_gradient_norm_edge"
        )
    if moment.diagonal:
        raise BadInput(f"directions with the second moment {moment} see the basis: use Gaussian or sphere directions")
    return eigenvalues, g


def _square(batches: Array) -> None:
    """Refuse what are no symmetric matrices of a size that the dense map has room for."""
    d = batches.shape[-1]
    if batches.ndim != 3 or batches.shape[1] != d or not 1 <= d <= _LARGEST:
        raise BadInput(f"Hessians of shape {batches.shape}: give [d, d] or [B, d, d] with d from 1 to {_LARGEST}")
    if not np.allclose(batches, batches.transpose(0, 2, 1), atol=1e-9 * np.abs(batches).max()):
        raise BadInput("a Hessian is not symmetric: symmetrize it, or check the products that it was made from")
