"""Appendix D.4: the norm formula, and the step in single precision."""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from smoothlab.claims import exact, figure_1
from smoothlab.claims.claim import About, Certificate, Claim, Facts, Finding
from smoothlab.claims.search import Array, Log, Statement, statement
from smoothlab.records import load
from smoothlab.stats.smoothness_table import points

# ||H||_F from unit vectors. A uniform v on the sphere has E v_i v_j = 1{i = j}/d, E v_i^4 = 3/(d (d + 2)) and
# E v_i^2 v_j^2 = 1/(d (d + 2)), so that for H = diag(h) the mean square of ||Hv|| and its variance are fractions.


def unit_mean(h: Sequence[int]) -> Fraction:
    """E v'H^2 v."""
    return Fraction(int(np.square(h).sum()), len(h))


def unit_variance(h: Sequence[int]) -> Fraction:
    """Relative variance of v'H^2 v."""
    d, square, fourth = len(h), int(np.square(h).sum()), int(np.power(h, 4).sum())
    second = Fraction(square**2 + 2 * fourth, d * (d + 2))
    return second / unit_mean(h) ** 2 - 1


_SPECTRA = {"d": Log(1.0, 1000.0), "decay": (0.0, 6.0)}


def _traces(p: Array, power: int) -> tuple[Array, Array]:
    """d, and tr H^power for H with the first d of the eigenvalues k^-decay."""
    d, decay = np.round(p[:, 0]), p[:, 1]
    k = np.arange(1, 1001)
    return d, np.where(k <= d[:, None], k ** (-power * decay[:, None]), 0.0).sum(1)


@statement(
    "||H||_F <= sqrt(E v'H^2 v), v uniform on the unit sphere, H with eigenvalues k^-decay, k <= d",
    _SPECTRA, cases=2000, steps=60,
)  # fmt: skip
def FORMULA(p: Array) -> Array:
    """||H||_F over sqrt(E v'H^2 v)."""
    d, squares = _traces(p, 2)
    ratio: Array = np.sqrt(squares) / np.sqrt(squares / d)
    return ratio


@statement(
    "relative variance of d v'H^2 v <= 2, H with eigenvalues k^-decay, k <= d",
    _SPECTRA, about="corrected", known=999 / 1002, cases=2000, steps=60,
)  # fmt: skip
def SPREAD(p: Array) -> Array:
    """Relative variance of d v'H^2 v over its bound 2."""
    (d, squares), (_, fourths) = _traces(p, 2), _traces(p, 4)
    ratio: Array = 2 / (d + 2) * (d * fourths / squares**2 - 1) / 2
    return ratio


def _formula(seed: int) -> Finding:
    rng = np.random.default_rng(seed)
    spectra = [rng.integers(-9, 10, d).tolist() for d in range(1, 41)]
    isotropic = exact.equal("H = I in two dimensions: every unit v has v'H^2 v = 1, and ||H||_F^2 = 2 is not that",
                            unit_mean([1, 1]), Fraction(1), supports=False)  # fmt: skip
    scaled, squares = [], []
    for d in range(2, 30):
        a = rng.integers(-9, 10, (d, d))
        H = (a + a.T).astype(object)  # Python's integers
        # +-e_i are a design of degree 3: the mean over them of v'H^2 v is that over the sphere.
        scaled.append(d * sum(Fraction(column @ column, d) for column in H.T))
        squares.append((H**2).sum())
    corrected = exact.equal("d E v'H^2 v = ||H||_F^2: E vv' = I/d, as flips and permutations of coordinates leave the "
                            "sphere as it is", scaled, squares, "corrected")  # fmt: skip
    hundred = exact.dense("100 vectors give ||H||_F^2 with a relative standard deviation of at most sqrt(2/100) = 14 "
                          "%: relative variance (2/(d + 2)) (d tr H^4/||H||_F^4 - 1) <= 2, as tr H^4 <= ||H||_F^4",
                          [float(unit_variance(h) / 2) for h in spectra if any(h)], "corrected")  # fmt: skip
    return Finding((isotropic, corrected, hundred, FORMULA.falsify(seed), SPREAD.falsify(seed)))


# The step h = 1e-5 in single precision

OPT_125M = 125_239_296  # weights
TOLERATED = 0.1  # relative error of Hv


def difference_error(d: int, size: float, offset: float, h: float, central: bool) -> float:
    """||q - Hv||/||Hv|| of the difference quotient q of grad f = x - c in fp32, v a random unit vector.

    d weights of root mean square `size`, `offset` = ||c||/||x||; q = (grad f(x + hv) - grad f(x))/h, or `central`
    (grad f(x + hv) - grad f(x - hv))/(2h).
    """
    x, c, v = np.random.default_rng(0).standard_normal((3, d))
    v /= np.linalg.norm(v)
    start, minimum = (size * x).astype(np.float32), (size * offset * c).astype(np.float32)
    move = (h * v).astype(np.float32)
    base = start
    if central:
        base = start - move
    # Each gradient rounds before they are subtracted, as a backward pass would: the order of the brackets matters.
    difference = ((start + move) - minimum) - (base - minimum)
    return float(np.linalg.norm(difference.astype(float) / (h * (1 + central)) - v))


def _step(central: bool, p: Array) -> Array:
    """The error over what is tolerated: h = 1e-5 forward, or h = ||x||/100 central."""
    errors = np.zeros(len(p))
    for i, (d, size, offset) in enumerate(p):
        n, h = int(np.round(d)), 1e-5
        if central:
            h = size * np.sqrt(n) / 100
        errors[i] = difference_error(n, size, offset, h, central)
    return errors / TOLERATED


_WEIGHTS: dict[str, Any] = {
    "ranges": {"d": Log(10.0, 1e5), "size of weights": Log(1e-3, 1.0), "||c||/||x||": Log(1e-2, 100.0)},
    "cases": 150, "starts": 2, "steps": 40,
}  # fmt: skip
STEP = Statement(
    "||q - Hv|| <= ||Hv||/10 for the forward difference at h = 1e-5 in fp32, f = ||x - c||^2/2",
    ratio=lambda p: _step(False, p), **_WEIGHTS,
)  # fmt: skip
LONG_STEP = Statement(
    "||q - Hv|| <= ||Hv||/10 for the central difference at h = ||x||/100 in fp32, f = ||x - c||^2/2",
    ratio=lambda p: _step(True, p), about="corrected", known=0.0019, **_WEIGHTS,
)  # fmt: skip


def _steps(seed: int, records: Sequence[Path]) -> Finding:
    # Weights from 1/64 on have a spacing of at least 2^-29 in fp32: less than half of it rounds away.
    move_squared, half_squared = Fraction(1, 10**10 * OPT_125M), Fraction(1, 2**60)
    lost = exact.equal("v of equal entries 1/sqrt(d), d = 125,239,296 (OPT-125M): h v_i is below half the spacing of "
                       "every fp32 weight of at least 1/64, so that x + hv rounds to x and the quotient is 0 for every "
                       "H", move_squared < half_squared, True, supports=False, move=float(move_squared) ** 0.5,
                       half=2.0**-30)  # fmt: skip
    rng = np.random.default_rng(seed)
    weights = rng.uniform(1 / 64, 1, 100_000).astype(np.float32)
    same = exact.equal("the same in numpy's fp32, on 100,000 random weights from 1/64 to 1: all stay as they are",
                       bool((weights + np.float32(1e-5 / OPT_125M**0.5) == weights).all()), True,
                       supports=False)  # fmt: skip
    rounding = itertools.chain(*map(_rounding, records))
    return Finding((lost, same, *rounding, STEP.falsify(seed), LONG_STEP.falsify(seed)))


def _rounding(path: Path) -> list[Certificate]:
    """Printed and estimated values of the base model beside their rounding floors."""
    table, certificates = load(path), []
    protocols: tuple[tuple[str, About, float, str], ...] = (
        ("paper", "printed", 0.5,
         "printed values (h = 1e-5, fp32) of the base model under twice their rounding floor"),
        ("estimated", "corrected", 0.01,
         "estimated values (exact products) of the base model with a rounding floor of more than 1 %"),
    )  # fmt: skip
    for protocol, about, most, description in protocols:
        rows = points(table, "base", protocol=protocol)
        rows = rows[rows["floor"].notna()]
        if rows.empty:
            continue
        share = (rows["floor"] / rows["value"].abs()).to_numpy()
        above = int((share > most).sum())
        facts: Facts = {
            "points": float(len(rows)), "such points": float(above), "median floor/value": float(np.median(share)),
            "largest floor/value": float(share.max()), "records": path.name,
        }  # fmt: skip
        certificates.append(Certificate(description, about, above == 0, "records", facts))
    return certificates


CLAIMS = (
    Claim("d4-formula", "||H||_F = sqrt(E v'H^2 v) for v on the unit sphere.", "Appendix D.4", "H symmetric",
          "holds once corrected", "||H||_F = sqrt(d E v'H^2 v); 100 vectors give its square to 14 %. The sum over a "
          "batch of 8 is 8 times the mean loss's Hessian.", _formula),
    Claim("d4-step", "(grad f(x + hv) - grad f(x))/h with h = 1e-5, unit v and fp32 is Hv to 10 %.", "Appendix D.4",
          "weights and gradients in fp32", "holds once corrected", "Exact products, or central differences with h of "
          "about ||x||/100 (1e-3 to 1e-2 ||x||).", _steps, records=figure_1.RECORDS),
)  # fmt: skip
