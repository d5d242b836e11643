"""The edge of stability of zeroth-order training (theory.md F), in exact arithmetic where it can be.

Fourth moments of directions by enumeration: independent entries of kurtosis k have those of sqrt(k) t, t in {-1, 0, 1},
P(t = 0) = 1 - 1/k, so that E vv'Avv' = k^2 E tt'Att' is a sum of fractions over all t. No formula of `theory` enters.
"""

import itertools
import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
from scipy import optimize

from smoothlab.claims import exact
from smoothlab.claims.claim import Certificate, Claim
from smoothlab.claims.search import Array, Log, check_by, statement
from smoothlab.theory.coupled_edge import second_moment_radius
from smoothlab.theory.edge import Edge, OuterMoment, Spectrum, adam_edge, mean_square_edge

Matrix = Any  # of Python's integers and fractions


def matrices(count: int, d: int, seed: int = 0) -> list[Matrix]:
    """Symmetric ones of small integers, of both signs."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(-4, 5, (count, d, d))
    return [(a + a.T).astype(object) for a in drawn]


def fourth_moment(a: Matrix, kurtosis: int) -> Matrix:
    """E vv'Avv' by enumeration."""
    total, d = 0 * a, len(a)
    for entries in itertools.product((-1, 0, 1), repeat=d):
        weight, t = Fraction(1), np.array(entries, dtype=object)
        for entry in entries:
            probability = 1 - Fraction(1, kurtosis)
            if entry:
                probability = Fraction(1, 2 * kurtosis)
            weight *= probability
        total = total + weight * kurtosis**2 * (t @ a @ t) * np.outer(t, t)
    return total


def averaged(a: Matrix, q: int, kurtosis: int = 3) -> Matrix:
    """E SAS of S = (v_1 v_1' + ... + v_q v_q')/q: the mean of pairs of equal and of different directions."""
    return Fraction(1, q) * fourth_moment(a, kurtosis) + (1 - Fraction(1, q)) * a


# The mean square


def isserlis() -> Certificate:
    """E vv'Avv' of Gaussian directions."""
    cases = [a for d in (1, 2, 3, 4) for a in matrices(3, d)]
    return exact.equal("E vv'Avv' = 2A + tr(A) I for Gaussian v, A of d = 1, ..., 4: hence M+",
                       [fourth_moment(a, 3).tolist() for a in cases],
                       [(2 * a + np.trace(a) * np.eye(len(a), dtype=int)).tolist() for a in cases])  # fmt: skip


def spectra(count: int, seed: int) -> list[Array]:
    """Eigenvalues of many decays, d = 1, ..., 8."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.random(1 + i % 8) ** rng.uniform(0.1, 5))[::-1] + 1e-3 for i in range(count)]


def both_sides() -> Certificate:
    """The radius of the dense map at .99 and 1.01 of the edge."""
    ratios = []
    for values in spectra(24, 0):
        for q in (1, 4, 16):
            moment = OuterMoment(1 + 1 / q, 1 / q)
            edge = mean_square_edge(Spectrum.of(values), moment).value
            below, above = (
                second_moment_radius(np.diag(values), len(values), c * edge, 0.0, moment) for c in (0.99, 1.01)
            )
            ratios += [below, 1 / above]
    return exact.dense("the map's spectral radius is below 1 at .99 of the edge and above 1 at 1.01 of it (proof: "
                       "Perron and Frobenius, theory.md F.1), q = 1, 4, 16", ratios)  # fmt: skip


def _power(d: float, decay: float) -> Array:
    return (np.arange(1, round(d) + 1) ** -decay).astype(np.float64)


_SPECTRA: dict[str, Any] = {
    "ranges": {"d": Log(1.0, 40.0), "decay": (0.0, 4.0), "q": Log(1.0, 64.0)}, "cases": 150, "starts": 2, "steps": 40,
}  # fmt: skip


def _edges(p: Array) -> list[tuple[Array, int, Edge]]:
    edges = []
    for d, decay, count in p:
        q, values = round(count), _power(d, decay)
        edges.append((values, q, mean_square_edge(Spectrum.of(values), OuterMoment(1 + 1 / q, 1 / q))))
    return edges


@statement("2/(tr H/q + (1 + 1/q) lambda_max) <= edge <= min{2q/tr H, 2/((1 + 2/q) lambda_max)}, eigenvalues k^-decay",
           known=1.0, **_SPECTRA)  # fmt: skip
def BOUNDS(p: Array) -> Array:
    """The larger of lower bound over edge and edge over upper bound."""
    ratios = []
    for values, q, edge in _edges(p):
        low = 2 / (values.sum() / q + 1 + 1 / q)
        ratios.append(max(low / edge.value, edge.value / min(2 * q / values.sum(), 2 / (1 + 2 / q))))
    return np.array(ratios)


def lumped(values: Array, q: int) -> float:
    """The rate at which (1/q)[x/(2 - (1 + 1/q) x) + eta (tr H - lambda_max)/2] = 1, x = eta lambda_max."""
    top, others_trace = float(values[0]), float(values[1:].sum())
    pole = 2 / ((1 + 2 / q) * top)

    def excess(eta: float) -> float:
        x = eta * top
        return (x / (2 - (1 + 1 / q) * x) + eta * others_trace / 2) / q - 1

    if others_trace <= 0:
        return pole
    return float(optimize.brentq(excess, 0.0, pole, xtol=1e-14 * pole))


@statement("the rate with all but the largest eigenvalue by their trace <= 1.04 edge, q = 1 to 64", **_SPECTRA)
def LUMPED(p: Array) -> Array:
    """That rate over 1.04 times the edge."""
    return np.array([lumped(values, q) / edge.value / 1.04 for values, q, edge in _edges(p)])


@statement("edge <= the rate with all but the largest eigenvalue by their trace < 2 edge, q = 1 to 64",
           about="corrected", known=1.0, **_SPECTRA)  # fmt: skip
def LUMPED_ABOVE(p: Array) -> Array:
    """The larger of edge over that rate and that rate over 2 edges."""
    pairs = [(lumped(values, q), edge.value) for values, q, edge in _edges(p)]
    return np.array([max(edge / rate, rate / (2 * edge)) for rate, edge in pairs])


def four_equal() -> Certificate:
    """At 1.04 times the edge of four equal eigenvalues the lumped condition still says stable."""
    x = Fraction(104, 100) * Fraction(2, 4 + 2)
    value = x / (2 - 2 * x) + Fraction(3, 2) * x
    return exact.equal("four equal eigenvalues, q = 1: edge 2/(4 + 2); at 1.04 of it x/(2 - 2x) + 3x/2 is below 1, so "
                       "that the lumped rate is more than 4 % above the edge", value < 1, True, supports=False,
                       lumped_rate_over_edge=3 - math.sqrt(3))  # fmt: skip


def at_most_twice() -> Certificate:
    """Both bounds of F.1 hold of the two rates: min{(u + w)/u, (u + w)/(w + l/q)} with u = tr/q, w = (1 + 1/q) l."""
    pairs = [(Fraction(i, 7), Fraction(j, 7)) for i in range(1, 60) for j in range(1, 60)]
    return exact.equal("1/(2 - ax) >= 1/2 term by term, so it is never below the edge; lumped <= min{2q/tr, 2/((1 + "
                       "2/q) l)} and edge >= 2/(tr/q + (1 + 1/q) l) give a quotient below 2",
                       all(min((u + w) / u, (u + w) / w) <= 2 for u, w in pairs), True, "corrected")  # fmt: skip


def positive_part() -> Certificate:
    """60 steps of the diagonal of M, for eigenvalues of both signs, beside those of the positive ones alone."""
    rng, ratios = np.random.default_rng(2), []
    for values in spectra(24, 1):
        signed = values * np.where(rng.random(len(values)) < 0.5, -1.0, 1.0)
        signed[0] = values[0]
        positive = signed > 0
        edge = mean_square_edge(Spectrum.of(values[positive])).value
        for share in (0.99, 1.01):
            x = share * edge * signed
            step = np.diag(1 - 2 * x + 2 * x**2) + x**2
            positive_block = step[np.ix_(positive, positive)]
            m, largest_feed = np.ones(len(x)), 0.0
            for _ in range(60):
                largest_feed = max(largest_feed, float(x[~positive] ** 2 @ m[~positive]))
                m = step @ m
            start = np.linalg.matrix_power(positive_block, 60) @ np.ones(len(positive_block))
            radius = float(np.abs(np.linalg.eigvals(positive_block)).max())
            if share < 1:
                ones = np.ones(len(positive_block))
                fed = largest_feed * np.linalg.solve(np.eye(len(ones)) - positive_block, ones)
                ratios += [radius, *(m[positive] / (start + fed))]
            else:
                ratios += [1 / radius, *(start / m[positive])]
    return exact.dense("below the positive part's edge its mean squares stay below what they decay to and what the "
                       "negative ones feed; above it they grow at least as they would alone (proof: a matrix without "
                       "negative entries is monotone, theory.md F.8)", ratios)  # fmt: skip


# Directions


def of_entries() -> Certificate:
    """The law of independent entries."""
    cases = [(a, k) for d in (2, 3) for a in matrices(3, d) for k in (1, 2, 5, 30)]
    return exact.equal("E vv'Avv' = 2A + tr(A) I + (k - 3) diag(A) for independent entries of kurtosis k = 1, 2, 5, 30",
                       [fourth_moment(a, k).tolist() for a, k in cases],
                       [(2 * a + np.trace(a) * np.eye(len(a), dtype=int) + (k - 3) * np.diag(np.diag(a))).tolist()
                        for a, k in cases])  # fmt: skip


def two_bases() -> tuple[Certificate, ...]:
    """One spectrum, two edges; and on the sphere the length is fixed."""
    eigen, ratios = np.diag([2.0, 1.0]), []
    turned = np.array([[1.5, 0.5], [0.5, 1.5]])
    for k, rate, (stable, unstable) in ((1, 0.58, (eigen, turned)), (10, 0.11, (turned, eigen))):
        moment = OuterMoment(2.0, 1.0, k - 3.0)
        ratios += [second_moment_radius(stable, 2, rate, 0.0, moment),
                   1 / second_moment_radius(unstable, 2, rate, 0.0, moment)]  # fmt: skip
    sphere = all(Fraction(d, d + 2) * (2 + d) == d for d in range(1, 200))
    return (
        exact.dense("eigenvalues 2 and 1, diagonal or turned by 45 degrees: at one rate stable in one basis only, for "
                    "signs and for k = 10: the edge is no function of the spectrum", ratios),
        exact.equal("sphere of radius sqrt(d): d/(d + 2) times the Gaussian's 2A + tr(A) I has trace d tr(A), that of "
                    "||v||^2 = d, and an invariant law has no other form, d = 1, ..., 199", sphere, True),
    )  # fmt: skip


def frames() -> Certificate:
    """Orthogonal directions: two numbers fix a and b."""
    mismatches = []
    for d in range(2, 40):
        for q in range(1, d + 1):
            b = Fraction(d * (d - q), q * (d + 2) * (d - 1))
            a = Fraction(d, q) - d * b
            # E ||Pg||^2 = q/d, and E (g'Pg)^2 = q (q + 2)/(d (d + 2)) of a beta law, for unit g.
            second = Fraction(d, q) ** 2 * Fraction(q * (q + 2), d * (d + 2))
            if a + d * b != Fraction(d, q) or a + b != second:
                mismatches.append((d, q))
    return exact.equal("(d/q)^2 E Pgg'P = a gg' + b ||g||^2 I for a uniform projection P of rank q: its trace d/q and "
                       "its entry along g, (d/q)^2 q (q + 2)/(d (d + 2)), give the stated a and b, d < 40", mismatches,
                       [])  # fmt: skip


# Momentum, and single runs


def adam() -> tuple[Certificate, ...]:
    """The root -1 at the edge, and both roots' moduli around it."""
    b = Fraction(9, 10)
    x = 2 * (1 + b)  # (1 - b1) eta lambda
    ratios = []
    for beta in np.linspace(0, 0.99, 12):
        for c, power in ((0.999, 1), (1.001, -1)):
            roots = np.roots([1, -(1 + beta - (1 - beta) * c * adam_edge(1.0, beta1=beta)), beta])
            ratios.append(float(np.abs(roots).max()) ** power)
    return (
        exact.equal("b1 = 9/10: r = -1 is a root of r^2 - (1 + b1 - (1 - b1) eta lambda) r + b1 at eta lambda = 38",
                    [x / (1 - b), 1 + (1 + b - x) + b], [Fraction(38), Fraction(0)]),
        exact.dense("both roots lie inside the unit circle at .999 of the edge, one outside at 1.001, b1 from 0 to .99",
                    ratios),
    )  # fmt: skip


def exponent(rate: Fraction) -> Any:
    """An interval that holds E log |1 - rate v^2| = log rate - gamma - log 2 + (1/rate) sum_n x^n/((3/2)_n (n + 1)).

    x = -1/(2 rate): the terms alternate and fall, so that two sums in a row hold the limit between them.
    """
    x, term, total, sums = -1 / (2 * rate), Fraction(1), Fraction(0), []
    for n in range(25):
        total += term / (n + 1)
        sums.append(total / rate)
        term *= x / (Fraction(3, 2) + n)
    gamma = mpmath.iv.mpf(["0.5772156649015328", "0.5772156649015329"])
    series = exact.enclosed(min(sums[-2:])), exact.enclosed(max(sums[-2:]))
    between = mpmath.iv.mpf([series[0].a, series[1].b])
    return mpmath.iv.log(exact.enclosed(rate)) - gamma - mpmath.iv.log(2) + between


def single_runs() -> tuple[Certificate, ...]:
    """The exponent's sign on both sides of 2.4212."""
    low, high, printed = (exact.ends(exponent(Fraction(n, 10_000))) for n in (24_212, 24_213, 24_350))
    return (
        exact.equal("E log |1 - c v^2| at c = 2.435 is positive: its zero is not 2.44 to three digits", printed[0] > 0,
                    True, supports=False, exponent_at_2_435=printed[0]),
        exact.equal("E log |1 - c v^2| is negative at c = 2.4212 and positive at 2.4213; the mean square's edge is 2/3",
                    low[1] < 0 < high[0], True, "corrected", exponent_at_2_4212=low[1]),
    )  # fmt: skip


QUADRATIC = "f = z'Hz/2, mu -> 0 or two-sided, q Gaussian directions averaged"
POSITIVE = QUADRATIC + ", H >= 0, on its range"
CLAIMS = (
    Claim("edge-mean-square", "M+ = M - eta (HM + MH) + (1 + 1/q) eta^2 HMH + (eta^2/q) tr(HMH) I, stable iff "
          "(1 + 1/q) eta lambda_max < 2 and (1/q) sum_j eta lambda_j/(2 - (1 + 1/q) eta lambda_j) < 1.",
          "theory.md F.1", POSITIVE, "holds", "", check_by(isserlis, both_sides, searches=(BOUNDS,))),
    Claim("edge-lumped", "All but the largest eigenvalue by their trace: the edge within 4 % (q = 1).", "theory.md F.1",
          POSITIVE, "holds once corrected", "Never below the edge, and below twice the edge; 27 % above it for "
          "four equal eigenvalues.", check_by(four_equal, at_most_twice, searches=(LUMPED, LUMPED_ABOVE))),
    Claim("edge-positive-part", "Eigenvalues of both signs: mean squares along the positive ones grow geometrically by "
          "themselves iff the rate is above the mean-square edge of the positive part; below it they stay below a "
          "multiple of what the negative ones feed them.", "theory.md F.8", QUADRATIC, "holds", "",
          check_by(positive_part)),
    Claim("edge-directions", "Entries of kurtosis k add (k - 3) diag(A) to E vv'Avv', so that the edge is no function "
          "of the spectrum; the sphere multiplies it by d/(d + 2).", "theory.md F.2", "independent entries; sphere of "
          "radius sqrt(d)", "holds", "", check_by(of_entries, two_bases)),
    Claim("edge-orthogonal", "q orthogonal directions: E ghat ghat' = a gg' + b ||g||^2 I, b = d (d - q)/(q (d + 2) "
          "(d - 1)), a = d/q - d b.", "theory.md F.2", "a Haar frame of length sqrt(d), q <= d", "holds", "",
          check_by(frames)),
    Claim("edge-adam", "Adam's steps are unstable from 2 (1 + b1)/((1 - b1) eta) = 38/eta on, not 2/eta.",
          "theory.md F.3", "exact gradients, a preconditioner that stands still", "holds", "", check_by(adam)),
    Claim("edge-pathwise", "For d = q = 1 the mean-square edge is .667/lambda, the almost-sure one 2.44/lambda.",
          "theory.md F.7", "Gaussian directions", "holds once corrected", "2.4212/lambda.", check_by(single_runs)),
)  # fmt: skip
