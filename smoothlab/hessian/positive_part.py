"""The positive part of a Hessian block's spectrum: tr H+, the sum of its positive eigenvalues.

Where eigenvalues of both signs cancel in tr H, tr H+ says how strongly the loss curves upwards in all. It is estimated
by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017) on what deflation leaves (Lin, Saad and Yang 2016). With
the basis Q of Lanczos vectors, T = Q H Q', B = (I - Q'Q) H (I - Q'Q) and a Gaussian probe g orthogonal to Q,

    tr H+ = about tr T+ + E g'B+g,     g'B+g = about ||g||^2 sum_i w_i max(theta_i, 0),

theta_i being the eigenvalues of the tridiagonal matrix of some Lanczos steps from g, w_i the squared first entries of
its eigenvectors. Two things are left out. The coupling of Q with the rest makes the sum low: tr H+ is convex in H, and
taking H for T and B apart can only lower it. And few steps do not resolve the kink at 0: the number of steps says how
far to trust it, not the scatter of the probes.
"""

from typing import NamedTuple

import numpy as np

from smoothlab.hessian.deflation import Deflation


class PositivePart(NamedTuple):
    """What one probe says of a block.

    Attributes:
        trace: tr H+.
        squares: ||H||_F^2.
    """

    trace: float
    squares: float


def positive_part(run: Deflation, steps: int) -> PositivePart:
    """One probe's estimate of tr H+, and of ||H||_F^2; its Lanczos vectors join Q, and it costs a product each.

    Args:
        run: a deflation whose basis holds Lanczos vectors from another start.
        steps: Lanczos steps from the probe, at most; fewer where its Krylov space closes.
    """
    trace = float(np.maximum(np.linalg.eigvalsh(run.projected()), 0.0).sum())
    first = run.basis.size
    squares = run.known(first)
    if run.complete:
        return PositivePart(trace, squares)
    run.basis.reserve(min(steps, run.block.dim - first))
    length = run.restart(steps)
    t = run.projected()[first:, first:]
    values, vectors = np.linalg.eigh(t)
    # Of g'B^2 g the tridiagonal matrix has the first row, which the residual of the first step completes.
    squares += length * float(t[0, 0] ** 2 + run.residuals[first] ** 2)
    return PositivePart(trace + length * float(vectors[0] ** 2 @ np.maximum(values, 0.0)), squares)
