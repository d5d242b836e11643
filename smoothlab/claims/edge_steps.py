"""One step at the edge: gradient norms, hybrid steps, minibatches and the best rate (theory.md F.4 to F.6).

Means over directions by enumeration, see `smoothlab.claims.edge`.
"""

from fractions import Fraction

import numpy as np

from smoothlab.claims import exact
from smoothlab.claims.claim import Certificate, Claim
from smoothlab.claims.edge import QUADRATIC, averaged, matrices
from smoothlab.claims.search import check_by
from smoothlab.theory.coupled_edge import coupled_radius, second_moment_radius
from smoothlab.theory.edge import OuterMoment, Spectrum, mean_square_edge


def gradient_norms() -> Certificate:
    """E ||g+||^2 by enumeration, H of both signs."""
    left, right = [], []
    for q in (1, 2, 5):
        for number, h in enumerate(matrices(6, 3)):
            g = np.array([1, -2, number], dtype=object)
            eta = Fraction(1 + number, 10)
            noise = np.trace(h @ averaged(np.outer(g, g), q) @ h)
            left.append(g @ g - 2 * eta * (g @ h @ g) + eta**2 * noise)
            image, norm = h @ g, (h * h).sum()
            right.append(g @ g - 2 * eta * (g @ h @ g) + eta**2 * ((1 + Fraction(1, q)) * (image @ image)
                                                                   + Fraction(1, q) * norm * (g @ g)))  # fmt: skip
    return exact.equal("E ||g+||^2 = ||g||^2 - 2 eta g'Hg + eta^2 [(1 + 1/q) ||Hg||^2 + ||H||_F^2 ||g||^2/q], H of "
                       "both signs, d = 3, q = 1, 2, 5", left, right)  # fmt: skip


def identity() -> Certificate:
    """For H = I both edges are the same."""
    dims, counts = range(1, 60), range(1, 20)
    same = all(Fraction(2) / (Fraction(d, q) + 1 + Fraction(1, q)) * (Fraction(d, q) + 1 + Fraction(1, q)) == 2
               and _sum_at(d, q) == 1 for d in dims for q in counts)  # fmt: skip
    return exact.equal("H = I: 2/(d/q + 1 + 1/q) is the mean-square edge too, d < 60, q < 20", same, True)


def _sum_at(d: int, q: int) -> Fraction:
    """The sum (1/q) sum_j x/(2 - (1 + 1/q) x) at x = 2/(d/q + 1 + 1/q)."""
    x = 2 / (Fraction(d, q) + 1 + Fraction(1, q))
    return Fraction(d, q) * x / (2 - (1 + Fraction(1, q)) * x)


def hybrid_steps() -> tuple[Certificate, ...]:
    """E z+z+' and E ||g+||^2 of x by q = 2 directions in 2 dimensions and y exact in 2."""
    left, right, norms, formulas = [], [], [], []
    for number, h in enumerate(matrices(6, 4, seed=1)):
        z = np.array([1, -1, number, 2], dtype=object)
        x, y, q, g = Fraction(1, 7), Fraction(1 + number, 5), 2, h @ z
        lam, p = np.diag([x, x, y, y]), np.diag([1, 1, 0, 0]).astype(object)
        noise = np.zeros((4, 4), dtype=object)
        noise[:2, :2] = averaged(np.outer(g[:2], g[:2]), q) - np.outer(g[:2], g[:2])
        m, mean = np.outer(z, z), np.eye(4, dtype=int) - lam @ h
        second = mean @ m @ mean.T + x**2 * noise
        hmh = h @ m @ h
        left.append(second.tolist())
        right.append((mean @ m @ mean.T + Fraction(1, q) * x**2 * p @ (
            hmh + np.trace(p @ hmh @ p) * np.eye(4, dtype=int)) @ p).tolist())  # fmt: skip
        norms.append(np.trace(h @ second @ h))
        image, columns, move = h[:, :2] @ g[:2], (h[:, :2] ** 2).sum(), h @ lam @ g
        formulas.append(g @ g - 2 * g @ move + move @ move
                        + Fraction(1, q) * x**2 * (image @ image + columns * (g[:2] @ g[:2])))  # fmt: skip
    return (
        exact.equal("E z+z+' = (I - LH) M (I - HL) + (eta_x^2/q) P [HMH + tr(P HMH P) I] P, d_x = d_y = 2, q = 2", left,
                    right),
        exact.equal("E ||g+||^2 = ||g||^2 - 2 g'HLg + ||HLg||^2 + (eta_x^2/q) [||H_:x g_x||^2 + ||H_:x||_F^2 "
                    "||g_x||^2], cross block included", norms, formulas),
    )  # fmt: skip


def on_ritz_vectors() -> tuple[Certificate, ...]:
    """The small map has the dense one's radius, and without coupling both conditions separate."""
    moment, differences, ratios = OuterMoment(2.0, 1.0), [], []
    rng = np.random.default_rng(0)
    for number in range(12):
        root = rng.standard_normal((5, 3 + number % 3))
        h = root @ root.T
        values, vectors = np.linalg.eigh(h)
        keep = values > 1e-9 * values[-1]
        x, y = rng.uniform(0.05, 0.8, 2) / values[-1]
        radius = coupled_radius(values[keep], vectors[:3, keep].T @ vectors[:3, keep], x, y, moment)
        differences.append(1 + abs(radius - second_moment_radius(h, 3, x, y, moment)) - 1e-7)
        edge = mean_square_edge(Spectrum.of(np.linalg.eigvalsh(h[:3, :3]))).value
        top = 2 / np.linalg.eigvalsh(h[3:, 3:])[-1]
        h[:3, 3:] = h[3:, :3] = 0
        ratios += [second_moment_radius(h, 3, 0.99 * edge, 0.99 * top, moment),
                   1 / second_moment_radius(h, 3, 1.01 * edge, 0.5 * top, moment),
                   1 / second_moment_radius(h, 3, 0.5 * edge, 1.01 * top, moment)]  # fmt: skip
    return (
        exact.dense("on the range of H the map of E ss', s = U'z, from eigenvalues and U_x'U_x alone, has the dense "
                    "map's radius to 1e-7", differences),
        exact.dense("H_xy = 0: stable at .99 of x's edge and of 2/lambda_max(H_yy), unstable at 1.01 of either",
                    ratios),
    )  # fmt: skip


def minibatches() -> Certificate:
    """The excess of random Hessians is a mean of squares."""
    left, right = [], []
    for number in range(5):
        batches, z = matrices(3, 3, seed=number), np.array([1, 2, -number], dtype=object)
        m, mean = np.outer(z, z), Fraction(1, 3) * sum(batches[1:], batches[0])
        left.append((Fraction(1, 3) * sum(b @ m @ b for b in batches) - mean @ m @ mean).tolist())
        right.append((Fraction(1, 3) * sum((b - mean) @ m @ (b - mean) for b in batches)).tolist())
    return exact.equal("E H_B M H_B - HMH = E (H_B - H) M (H_B - H) >= 0 in both terms, so that the map only grows and "
                       "the edge only falls (positive maps are monotone)", left, right)  # fmt: skip


def expected_losses() -> Certificate:
    """E ghat'H ghat by enumeration."""
    left, right = [], []
    for q in (1, 3):
        for h in matrices(6, 3, seed=2):
            g = np.array([2, -1, 3], dtype=object)
            left.append(np.trace(h @ averaged(np.outer(g, g), q)))
            right.append(Fraction(1, q) * np.trace(h) * (g @ g) + (1 + Fraction(1, q)) * (g @ h @ g))
    return exact.equal("E ghat'H ghat = tr H ||g||^2/q + (1 + 1/q) g'Hg: the loss after a step is a parabola in eta "
                       "with its least value at the stated rate", left, right)  # fmt: skip


CLAIMS = (
    Claim("edge-gradient-norm", "One step shrinks ||grad f|| in mean square iff eta < 2 rho/(||H||_F^2/q + (1 + 1/q) "
          "h^2), rho = g'Hg/||g||^2, h = ||Hg||/||g||.", "theory.md F.4", QUADRATIC + ", H of any sign", "holds", "",
          check_by(gradient_norms, identity)),
    Claim("edge-hybrid", "Hybrid steps: the second-moment map and the gradient's norm with the cross block in it; "
          "stable iff the radius on range(H) is below 1; without coupling it separates.", "theory.md F.5",
          QUADRATIC + " for x, y exact", "holds", "", check_by(hybrid_steps, on_ritz_vectors)),
    Claim("edge-minibatches", "With random H_B, HMH becomes E H_B M H_B, and the edge only falls.", "theory.md F.6",
          "minibatches drawn anew", "holds", "", check_by(minibatches)),
    Claim("edge-best-rate", "One step's expected loss is smallest at eta = 1/(tr H/q + (1 + 1/q) g'Hg/||g||^2).",
          "theory.md F.6", QUADRATIC, "holds", "", check_by(expected_losses)),
)  # fmt: skip
