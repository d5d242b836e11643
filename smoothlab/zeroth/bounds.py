"""Bounds on zeroth-order estimators with Gaussian directions: Lemma B.5 as printed, sharper ones, and where none holds.

Lemma B.5 asks for an L-Lipschitz gradient "at x". That has to mean everywhere: Gaussian directions go arbitrarily far.
f = exp(x^4) satisfies Definition 2.1 with ell(u) = 80 + 3 u^1.5 (theory.md B.5), yet E |ghat| is infinite for every
mu > 0, one-sided everywhere and two-sided at every x but 0, where the two values cancel. One-sided at x = 0:

    E |ghat(0)| = sqrt(2/pi) int_0^inf (exp(mu^4 z^4) - 1) (z/mu) exp(-z^2/2) dz

and the integrand itself grows without limit, as mu^4 z^4 - z^2/2 does for z > 1/(2 mu^2). Every sample of any size has
a finite mean, which says nothing: with mu = 0.1 the integrand turns upwards at z = 50.
"""

import math

import numpy as np
from scipy import integrate, special


def printed_bias_bound(mu: float, lipschitz: float, dim: int, gradient_norm: float) -> float:
    """E <g, ghat - g> <= (mu/2) L (d + 3)^1.5 ||g||: Lemma B.5 (1), one-sided, true if f is L-smooth everywhere."""
    return mu / 2 * lipschitz * math.pow(dim + 3, 1.5) * gradient_norm


def printed_error_bound(mu: float, lipschitz: float, dim: int, gradient_norm: float) -> float:
    """E ||ghat - g||^2 <= 32 d ||g||^2 + 108 mu^2 L^2 d^4: Lemma B.5 (2), true if f is L-smooth everywhere."""
    return 32 * dim * gradient_norm**2 + 108 * mu**2 * lipschitz**2 * dim**4


def bias_bound(mu: float, lipschitz: float, dim: int) -> float:
    """||E ghat - g|| <= mu L sqrt(d), one- or two-sided, f L-smooth everywhere.

    By Stein's identity E ghat = E grad f(x + mu v), so the bias is at most E ||grad f(x + mu v) - g|| <= mu L E ||v||.
    The rate sqrt(d) is attained (theory.md B.5); the printed (1) has d^1.5.
    """
    return mu * lipschitz * math.sqrt(dim)


def error_bound(mu: float, lipschitz: float, dim: int, gradient_norm: float) -> float:
    """E ||ghat - g||^2 <= 2 (d + 1) ||g||^2 + mu^2 L^2 d (d + 2)(d + 4)/2, one- or two-sided, f L-smooth everywhere.

    ghat - g = (<g, v> v - g) + r v with |r| <= mu L ||v||^2/2; E ||<g, v> v - g||^2 = (d + 1) ||g||^2;
    E ||v||^6 = d (d + 2)(d + 4); ||a + b||^2 <= 2 ||a||^2 + 2 ||b||^2.
    """
    return 2 * (dim + 1) * gradient_norm**2 + mu**2 * lipschitz**2 / 2 * dim * (dim + 2) * (dim + 4)


def generalized_bias_bound(mu: float, l0: float, l1: float, dim: int, gradient_norm: float) -> float:
    """||E ghat - g|| <= (L0/L1 + ||g||) (E exp(L1 mu ||v||) - 1) if ||Hess f|| <= L0 + L1 ||grad f|| everywhere.

    u(s) = ||grad f(x + s e)|| has u' <= L0 + L1 u, so ||grad f(x + s) - g|| <= (L0/L1 + ||g||)(exp(L1 ||s||) - 1)
    (Gronwall); then Stein as for `bias_bound`, which is the limit L1 -> 0. ||v|| is chi distributed with d degrees of
    freedom, and E ||v||^(k + 2) = (d + k) E ||v||^k makes a series of positive terms, which loses no digits.
    """
    if l1 == 0:
        return mu * l0 * _chi_mean(dim)
    s, total, k = l1 * mu, 0.0, 1
    before, term = 1.0, l1 * mu * _chi_mean(dim)  # s^k E ||v||^k / k! for k = 0, 1
    # The recurrence goes two orders at a time, so that even and odd terms fall apart: both must have died out.
    while term > total * 1e-17 or before > total * 1e-17:
        total += term
        before, term = term, before * s**2 * (dim + k - 1) / (k * (k + 1))
        k += 1
        if not math.isfinite(total):
            return math.inf
    return (l0 / l1 + gradient_norm) * total


def _chi_mean(dim: int) -> float:
    """E ||v|| = sqrt(2) Gamma((d + 1)/2) / Gamma(d/2)."""
    # The quotient is Pochhammer's symbol; both Gamma functions overflow from d of about 340 on.
    return math.sqrt(2) * float(special.poch(dim / 2, 0.5))


def log_truncated_mean(mu: float, cutoff: float) -> float:
    """log E |ghat(0)| 1{|z| <= cutoff} of f = exp(x^4), one-sided: it grows without limit with the cutoff.

    The logarithm, because the integral is beyond 1e308 soon; the integrand is scaled by its largest value.
    """
    z = np.linspace(0, cutoff, 100_001)
    a = (mu * z) ** 4
    # The integrand is 0 at z = 0, whose logarithm -inf numpy would warn of.
    with np.errstate(divide="ignore"):
        # log(e^a - 1) = a + log(1 - e^-a), whose left side overflows from a = 710 on.
        logs = a + np.log(-np.expm1(-a)) + np.log(z / mu) - z**2 / 2
    top = float(logs.max())
    scaled = float(integrate.simpson(np.exp(logs - top), x=z))
    return top + math.log(scaled) + 0.5 * math.log(2 / math.pi)
