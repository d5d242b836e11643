"""Lemma B.6, the descent of an epoch: zeroth-order noise at small gradients, integrability, stopping times, control.

Pairs f_{1,2} = L ||z||^2/2 +- <a, x>, ||a||^2 = sigma^2, n = 2, two-sided Gaussian directions: with r = 1 - 2 eta L +
eta^2 (d + 2) L^2 an epoch has E ||x_1||^2 = r^2 ||x_0||^2 + c, exactly (tests/theory/test_theorems.py runs it).
"""

from fractions import Fraction
from itertools import permutations
from typing import Any

import mpmath
import numpy as np

from smoothlab.claims import exact
from smoothlab.claims.claim import Certificate, Claim
from smoothlab.claims.definitions import estimate_mean
from smoothlab.claims.descent import collection, reshuffled
from smoothlab.claims.search import Array, Log, Statement, check_by, statement


def epoch(d: Any, L: Any, noise: Any, eta: Any) -> tuple[Any, Any]:
    """r^2 and c of the pair, in floats, arrays or fractions."""
    second = eta * eta * (d + 2)
    r = 1 - 2 * eta * L + second * L * L
    return r * r, noise * (r * second - 2 * eta * eta + second * (1 + 2 * L * eta))


def _pair(p: Array, corrected: bool) -> Array:
    d, L, noise, share, q = np.round(p[:, 0]), *p.T[1:]
    if corrected:
        eta = share * np.minimum(1 / (16 * L), 1 / (64 * L * (d + 1)))
        allowed = (2 * eta * L) ** 2 * eta * noise + 12 * (d + 1) * L * eta**2 * noise
    else:
        eta = share * (1 / (768 * L * d))
        allowed = 2 * eta**3 * L**2 * noise
    shrink, c = epoch(d, L, noise, eta)
    change = L / 2 * (shrink * q + c - q) + eta / 2 * L**2 * q  # n eta/4 = eta/2
    return change / allowed


_PAIR: dict[str, Any] = {
    "ranges": {"d": Log(0.6, 1000.0), "L": Log(0.1, 10.0), "sigma^2": Log(0.01, 100.0),
               "eta/its largest": Log(1e-3, 1.0), "||x_0||^2": Log(1e-9, 10.0)},
    "cases": 5000,
}  # fmt: skip
PRINTED = Statement("an epoch of a pair of quadratics, mu -> 0, against n^2 eta^3 L^2 sigma^2/2",
                    ratio=lambda p: _pair(p, False), **_PAIR)  # fmt: skip
CORRECTED = Statement("B.6': an epoch of a pair of quadratics, mu -> 0", ratio=lambda p: _pair(p, True),
                      about="corrected", known=0.083334, **_PAIR)  # fmt: skip


def counterexample() -> tuple[Certificate, ...]:
    """f_{1,2} = (x^2 + y^2)/2 +- x from 0, eta_x = 1/768, eta_y = 1e-6, T = 1, and F, H that stop nothing."""
    eta, eta_y = Fraction(1, 768), Fraction(1, 10**6)
    measured = epoch(1, 1, 1, eta)[1] / 2
    allowed = 2 * (eta**3 + eta_y**3)
    return exact.refutes("E f(z_1) - f* at grad f(z_0) = 0, n = 2, d = 1, L = sigma = 1, eta_x = 1/768 (mu -> 0)",
                         exact.enclosed(measured), exact.enclosed(allowed), ratio=float(measured / allowed),
                         rule="(d + 1)/(n eta) = 768",
                         stopping="F, H large, then mu small: E f(z_tau) tends to E f(z_1), o(mu) to 0")  # fmt: skip


# Integrability


@statement(
    "E f(z_1) <= 1e6 for f = cosh from x = 1, by what v in [V, V + 1] contributes",
    {"eta": Log(1e-6, 1e-2), "mu": Log(1e-3, 0.1), "V": Log(1.0, 1e5)}, cases=5000,
)  # fmt: skip
def INTEGRABLE(p: Array) -> Array:
    """What v in [V, V + 1] contributes to E cosh(1 - eta (cosh(1 + mu v) - cosh 1) v/mu), over 10^6."""
    eta, mu, V = p.T
    jump = eta * (np.exp(1.0 + mu * V) / 2 - np.exp(1.0)) * V / mu
    logs = jump - 1.0 - np.log(2) - (V + 1) * (V + 1) / 2 - np.log(2 * np.pi) / 2
    return np.exp(np.clip(logs - np.log(1e6), -600, 600))


def _integrable() -> tuple[Certificate, ...]:
    iv = mpmath.iv
    eta, mu, V = exact.enclosed(1) / 768, exact.enclosed(1) / 100, exact.enclosed(4000)
    x = exact.enclosed(1)
    logs = eta * (iv.exp(x + mu * V) / 2 - iv.exp(x)) * V / mu - x - iv.log(2) - (V + 1) ** 2 / 2 - iv.log(9) / 2
    return exact.refutes("E f(z_1) <= 10^(10^15) for f = cosh, x = 1, eta = 1/768, mu = 1/100: v in [4000, 4001] "
                         "alone, logarithms (double exponential of a Gaussian)", logs,
                         exact.enclosed(10**15) * iv.log(10))  # fmt: skip


def _bounded() -> Certificate:
    """On the sphere, f = cosh x_1 + cosh x_2: every f(z_1) is below a number, so that its mean is finite."""
    angles, ratios = np.linspace(0, 2 * np.pi, 2000), []
    v = np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], 1)
    for eta, mu in ((1 / 768, 0.01), (1 / 768, 1.0), (0.01, 3.0)):
        for x in (np.array([1.0, 0.0]), np.array([-2.0, 3.0])):
            c = (np.cosh(x + mu * v).sum(1) - np.cosh(x).sum()) / mu
            farthest = np.abs(x) + eta * np.sqrt(2) * np.cosh(np.abs(x) + mu * np.sqrt(2)).sum() / mu
            ratios.append(np.cosh(x - eta * c[:, None] * v).sum(1) / np.cosh(farthest).sum())
    return exact.dense("||v|| = sqrt(d) on the sphere: f(z_1) is at most max f over |z - x| <= eta sqrt(d) max f(x + "
                       "mu v)/mu, for f = cosh x_1 + cosh x_2", np.concatenate(ratios), "corrected")  # fmt: skip


# Stopping times that look ahead: f = x^2/2, x_0 = 1, ghat = v^2 x, noise v^2 - 1


@statement(
    "|E 1{0 < tau} <grad f, noise>| <= ||grad f||^2/1000, f = x^2/2 from 1",
    {"eta": Log(1e-5, 1 / 384), "F/f(z_0)": (0.99, 1.01)}, cases=5000,
)  # fmt: skip
def AHEAD(p: Array) -> Array:
    """The correlation for every F, over 1/1000: v^2 is above (1 - sqrt(2F))/eta too if 2F < 1."""
    eta, root = p[:, 0], np.sqrt(p[:, 1])
    a = np.sqrt([(1 + root) / eta, np.maximum(1 - root, 0) / eta])
    outer, inner = 2 * a * np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
    return np.abs(inner - outer) / 1e-3


def _stopping() -> tuple[Certificate, ...]:
    """The correlation is -2 a phi(a), as {f(z_1) <= F} = {v^2 <= a^2 = (1 + sqrt(2F))/eta} for 2F >= 1."""
    eta, level = exact.enclosed(1) / 384, exact.enclosed(Fraction(3, 5))
    a = exact.sqrt((1 + exact.sqrt(2 * level)) / eta)
    size = 2 * a * exact.exp(-a * a / 2) / exact.sqrt(2 * mpmath.iv.pi)
    refuted = exact.refutes("E 1{0 < tau} <grad f, noise> = 0 with tau_1 = min{t: f(z_{t+1}) - f* > F}: its size for "
                            "f = x^2/2, x_0 = 1, eta = 1/384, F = 3/5", size, exact.enclosed(0))  # fmt: skip
    points = [Fraction(k, 7) for k in range(-10, 11)]
    stopping = exact.equal("with tau = min{t: f(z_t) - f* > F} the event {t < tau} is known at z_t, and given z_t the "
                           "mean of ghat is grad f for f = x^2",
                           [estimate_mean((0, 0, 1), x, Fraction(1, 9), 0, 1) for x in points],
                           [2 * x for x in points], "corrected")  # fmt: skip
    return (*refuted, stopping)


# Control: exact gradients


def deviation(shifts: tuple[Fraction, ...], g: Fraction, r: Fraction, eta: Fraction) -> Fraction:
    """Sum over i < n of E (x_i - x_0)^2 over all orders, f_i' = g + c_i at x_0, curvature (1 - r)/eta."""
    orders = list(permutations(shifts))
    total = Fraction(0)
    for order in orders:
        x = Fraction(0)
        for c in order:
            total += x * x
            x = r * x - eta * (g + c)
    return total / len(orders)


@statement(
    "sum E ||x_i - x_0||^2 <= eta^2 n^3 ||grad f||^2 + eta^2 n^2 sigma^2, quadratics of curvature within [-L, L]",
    {"n": Log(1.5, 100), "curvature/L": (-1.0, 1.0), "share of ||grad f||^2": (0.0, 1.0)}, known=0.4823, cases=2000,
)  # fmt: skip
def CONTROL(p: Array) -> Array:
    """`deviation` in closed form for n components, over eta^2 n^3 g^2 + eta^2 n^2 sigma^2; eta |L| = curvature/(2n)."""
    n, curvature, share = np.round(p[:, 0]), p[:, 1], p[:, 2]
    g2, s2 = share, 1 - share
    k = np.arange(100)
    r = (1 - curvature / (2 * n))[:, None]
    inside = k < (n - 1)[:, None]  # i = 1, ..., n - 1: sums of i powers
    first, second = np.cumsum(r**k, 1), np.cumsum(r ** (2 * k), 1)
    squares = first**2 * g2[:, None] + s2[:, None] * (second - (first**2 - second) / (np.maximum(n, 2) - 1)[:, None])
    return np.where(inside, squares, 0).sum(1) / (n**3 * g2 + n**2 * s2)


def _control() -> tuple[Certificate, Certificate]:
    sums = True
    for n in range(2, 201):
        squares, noise = reshuffled(n)
        sums = sums and 3 * squares <= n**3 and noise * (n - 1) * 6 == (n - 1) * n * (n + 1)
    proof = exact.equal("W (1 - eta^2 L^2 n^2) <= 2 eta^2 [n^3/3 ||grad f||^2 + n (n + 1)/6 sigma^2], so W <= (8/9) "
                        "eta^2 n^3 ||grad f||^2 + (4/9) eta^2 n (n + 1) sigma^2 for eta <= 1/(2Ln): the sums for n = "
                        "2, ..., 200 (proof: theory.md B)", sums, True)  # fmt: skip
    eta, fits = Fraction(1, 7), []
    for shifts in ((1, -1), (3, -1, -2), (5, 1, -2, -4), (1, 1, 1, 1, -4)):
        n, s2 = len(shifts), Fraction(sum(c * c for c in shifts), len(shifts))
        for g in (0, 1, 5):
            for r in (1 - Fraction(1, 2 * n), Fraction(1), 1 + Fraction(1, 2 * n)):
                W = deviation(tuple(map(Fraction, shifts)), Fraction(g), r, eta)
                fits.append(eta**2 * (n**3 * g * g + n**2 * s2) >= W)
    all_orders = exact.equal("all orders of 2 to 5 quadratics, in fractions", fits, [True] * len(fits))
    return proof, all_orders


_B6 = ("B.6' (theory.md B): the noise is theta^2 (eta_x sigma_x^2 + eta_y sigma_y^2) + 6n (d + 1) L_x eta_x^2 "
       "sigma_x^2 + terms in mu; its part n (d + 1) L eta^2 sigma^2 is necessary")  # fmt: skip
CLAIMS = (
    Claim("b.6", "E f(z_tau) - f* + E sum_{t < tau} [(n eta_x/4) ||grad_x f||^2 + (3 n eta_y/8) ||grad_y f||^2] <= f_0 "
          "- f* + [(sigma^2 n^2/2)(eta_x^3 L_x^2 + eta_y^3 L_y^2) + o(mu)] T.", "Lemma B.6", "Assumptions 3.2, 3.3, "
          "eta_x <= min{1/(2Ln), 1/(384 L n d)}, eta_y <= 1/(2Ln)", "holds once corrected", _B6,
          check_by(counterexample, lambda: collection("corrected"), searches=(PRINTED, CORRECTED))),
    Claim("b.6-expectation", "E f(z_{t+1}) is finite, so that the proof may take expectations.", "Lemma B.6, proof",
          "Definition 2.1, Gaussian directions", "holds once corrected", "With directions on the sphere of radius "
          "sqrt(d), which are bounded.", check_by(_integrable, _bounded, searches=(INTEGRABLE,))),
    Claim("b.6-stopping", "E 1{t < tau} <grad f(z_t), noise of epoch t> = 0 for tau_1 = min{t: f(z_{t+1}) - f* > F}.",
          "Lemma B.6, proof", "unbiased noise", "holds once corrected", "For tau = min{t: f(z_t) - f* > F}, which does "
          "not look ahead.", check_by(_stopping, searches=(AHEAD,))),
    Claim("b.6-control", "sum_i E ||x_i - x_0||^2 <= eta^2 n^3 ||grad f||^2 + eta^2 n^2 sigma^2 for EXACT gradients, "
          "one block.", "Lemma 5 of Mishchenko et al. (2020), used in Lemma B.6", "f_i L-smooth, eta <= 1/(2Ln)",
          "holds", "", check_by(_control, searches=(CONTROL,))),
)  # fmt: skip
