"""Definition 2.1 and L-smoothness, Eq. (2), Example 2.3."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy import special

from smoothlab.claims import exact
from smoothlab.claims.claim import Certificate, Claim, Finding
from smoothlab.claims.search import Array, Log, Statement, check_by, statement

# Proposition 2.2


@statement(
    "Hess f <= diag(L, L) for quadratics with ||Hess f|| = L",
    {"H_xx": (-10, 10), "H_yy": (-10, 10), "H_xy": (-10, 10)}, known=1.0, cases=5000, starts=1,
)  # fmt: skip
def SMOOTH_IS_HYBRID(p: Array) -> Array:
    """The largest eigenvalue of D^(-1/2) H D^(-1/2), D = ||H|| I, H = [[a, c], [c, b]]."""
    a, b, c = p.T
    middle, half = (a + b) / 2, np.hypot((a - b) / 2, c)
    return (middle + half) / (np.abs(middle) + half)


def _proposition() -> Certificate:
    multiples = [(L * np.eye(3, dtype=int)).tolist() for L in (1, 7)]
    return exact.equal("diag(ell_x I, ell_y I) with ell_x = ell_y = L is L I: both conditions are the same matrix "
                       "inequality", [np.diag([L, L, L]).tolist() for L in (1, 7)], multiples)  # fmt: skip


# One-sided bounds of the Hessian. f''(x) = 1 - A exp(-(x - 3)^2/(2 w^2)) is at most 1, and f is coercive.


def dip_slopes(height: Array, width: Array, a: Array, b: Array) -> Array:
    """f'(b) - f'(a) of the dip at 3."""
    scale = math.sqrt(2) * width
    mass = special.erf((b - 3) / scale) - special.erf((a - 3) / scale)
    return b - a - height * width * math.sqrt(math.pi / 2) * mass


def _dip(p: Array) -> Array:
    height, width, a, length = p.T
    return np.abs(dip_slopes(height, width, a, a + length)) / length


_DIPS = {"A": (0, 20), "w": Log(1e-2, 1), "a": (0, 6), "b - a": Log(1e-2, 1)}
ONE_SIDED = Statement("|f'(a) - f'(b)| <= |a - b| where f'' = 1 - A exp(-(x - 3)^2/(2 w^2)) <= 1", _DIPS, _dip,
                      cases=5000)  # fmt: skip
TWO_SIDED = Statement("|f'(a) - f'(b)| <= L |a - b| where f'' is within [-L, L], L = max(1, A - 1)", _DIPS,
                      lambda p: _dip(p) / np.maximum(1, np.abs(1 - p[:, 0])), "corrected", known=1.0,
                      cases=5000)  # fmt: skip


def one_sided_counterexample(inequality: str) -> tuple[Certificate, ...]:
    """The dip of A = 10, w = 0.1 between 2.95 and 3.05: exp is at least e^(-1/8) there, so |f'| moves by more."""
    gap = exact.enclosed("0.1")
    least = 10 * gap * exact.exp(exact.enclosed(Fraction(-1, 8))) - gap
    return exact.refutes(inequality, least, gap, function="f'' = 1 - 10 exp(-(x - 3)^2/0.02)", points="2.95 and 3.05")


def _lipschitz_dense() -> Certificate:
    a, b = np.meshgrid(np.linspace(2, 4, 201), np.linspace(2, 4, 201))
    differ = a != b
    ratios = np.abs(dip_slopes(np.array(10.0), np.array(0.1), a[differ], b[differ]))
    return exact.dense("grad f(z) - grad f(z') = int Hess f (z - z'), so -L I <= Hess f <= L I gives L ||z - z'||; the "
                       "converse by z' -> z; on the dip with L = 9", ratios / (9 * np.abs(a - b)[differ]),
                       "corrected")  # fmt: skip


# Eq. (2)


def estimate_mean(coefficients: Sequence[int], x: Fraction, mu: Fraction, backward: int, denominator: int) -> Fraction:
    """E [f(x + mu v) - f(x - back mu v)] v/(over mu), v normal, f = sum_k c_k x^k: exact, E v^(2k) = (2k - 1)!!."""
    total = Fraction(0)
    for k, c in enumerate(coefficients):
        for j in range(1, k + 1, 2):  # only even powers of v survive v^j v
            moment = math.prod(range(1, j + 1, 2))
            total += c * math.comb(k, j) * x ** (k - j) * mu**j * moment * (1 + backward)
    return total / (denominator * mu)


def _eq2(seed: int) -> Finding:
    rng = np.random.default_rng(seed)
    left, right, doubled = [], [], []
    for _ in range(50):
        c = rng.integers(-9, 10, 5).tolist()
        x, mu = (Fraction(v, 7) for v in rng.integers(1, 20, 2).tolist())
        slope = sum(k * c[k] * x ** (k - 1) for k in range(1, 5))
        third = 6 * c[3] + 24 * c[4] * x
        left += [estimate_mean(c, x, mu, 0, 1), estimate_mean(c, x, mu, 1, 2)]
        right += [slope + mu**2 / 2 * third] * 2
        doubled.append(estimate_mean(c, x, mu, 1, 1) == 2 * (slope + mu**2 / 2 * third))
    same = exact.equal("one side over mu and two sides over 2 mu both have the mean f' + (mu^2/2) f''' on quartics: f' "
                       "as mu -> 0", left, right)  # fmt: skip
    note = exact.equal("over mu instead of 2 mu the two-sided estimate has twice that mean", all(doubled), True)
    return Finding((same, note))


# Example 2.3


def _factor(p: Array) -> Array:
    return 1 / np.abs(1 - p[:, 0])


DIVERGES = Statement("1 <= |1 - a/b|, the factor of x at the rate 1/(2b), for a > b", {"a/b": (1.0001, 10)}, _factor,
                     cases=1000)  # fmt: skip
DIVERGES_BEYOND = Statement("1 <= |1 - a/b| for a > 2b", {"a/b": (2, 10)}, _factor, "corrected", 1.0, cases=1000)


def _example() -> tuple[Certificate, Certificate]:
    a, b = Fraction(3, 2), Fraction(1)
    x = Fraction(1)
    for _ in range(10):
        x -= 1 / (2 * b) * 2 * a * x
    contracts = exact.equal("x after 10 steps at the rate 1/(2b), a = 3/2, b = 1, x_0 = 1, is not of size >= 1 but "
                            "2^-10", abs(x), Fraction(1, 1024), supports=False)  # fmt: skip
    ratios = [Fraction(k, 20) for k in range(21, 200)]
    diverges = exact.equal("|1 - a/b| > 1 exactly if a/b > 2, for 179 fractions a/b > 1 (1 - r < -1)",
                           [abs(1 - r) > 1 for r in ratios], [r > 2 for r in ratios], "corrected")  # fmt: skip
    return contracts, diverges


_DIP = "f'' = 1 - 10 exp(-(x - 3)^2/0.02), ell = 1"
CLAIMS = (
    Claim("prop-2.2", "If Hess f <= L I everywhere, Definition 2.1 holds with ell_x = ell_y = L.", "Proposition 2.2",
          "f C^2", "holds", "", check_by(_proposition, searches=(SMOOTH_IS_HYBRID,))),
    Claim("equivalently", "L I >= Hess f everywhere if and only if ||grad f(z) - grad f(z')|| <= L ||z - z'||.",
          "Section 2.1", "f C^2", "holds once corrected", "-L I <= Hess f <= L I everywhere if and only if the "
          "gradient is L-Lipschitz.",
          check_by(lambda: one_sided_counterexample("L I >= Hess f with L = 1, yet the gradient is not 1-Lipschitz"),
          _lipschitz_dense, searches=(ONE_SIDED, TWO_SIDED))),
    Claim("definition-2.1", "Hess f <= diag(ell_x(u) I, ell_y(u) I), u = ||grad f||, bounds differences of gradients "
          "(B.1).", "Definition 2.1, used in Lemma B.1", "f C^2, coercive", "holds once corrected",
          "Two-sided, -D <= Hess f <= D; counterexample to the one-sided form: " + _DIP,
          check_by(lambda: one_sided_counterexample("Definition 2.1 with ell = 1 as printed, yet Lemma B.1 (1) "
          "fails"), _lipschitz_dense, searches=(ONE_SIDED, TWO_SIDED))),
    Claim("eq-2", "Both estimates have the mean grad f as mu -> 0 (two sides over 2 mu: the scan has lost "
          "denominators).", "Eq. (2)", "f a polynomial, v normal", "holds", "", _eq2),
    Claim("example-2.3", "f = a x^2 + b y^2, a > b: with one rate 1/(2b) x diverges, as a/b > 1.", "Example 2.3",
          "a > b > 0", "holds once corrected", "It diverges if and only if a/b > 2; at a/b = 2 it neither grows nor "
          "falls.", check_by(_example, searches=(DIVERGES, DIVERGES_BEYOND))),
)  # fmt: skip
