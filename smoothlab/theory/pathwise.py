"""Stability of a single run with zeroth-order gradients: the almost-sure edge, and the edge of runs of N steps.

Along one run of z+ = (I - eta V V'H/q) z, V = (v_1, ..., v_q), log ||z|| grows by the Lyapunov exponent L(eta) a step,
almost surely (Furstenberg and Kesten 1960). L < 0 at rates far above the mean-square edge if few eigenvalues rule: the
mean of ||z||^2 is then that of rare runs. In one dimension L(eta) = E log |1 - eta lambda chi_q^2/q|, which is 0 at
eta = 2.42/lambda for q = 1, where the mean-square edge is 0.667/lambda. With a broad spectrum every step averages over
many eigenvalues and multiplies ||z|| by nearly the same number: both edges meet.

In the eigenbasis of H, Gaussian V are as they were. What is known of the rest of a spectrum as its trace t and sum of
squares s enters as t^2/s equal eigenvalues s/t, at most `REST` of them of the same trace.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special

from smoothlab.errors import BadInput
from smoothlab.theory.edge import Edge, exact_edge, mean_square_edge
from smoothlab.theory.spectra import OuterMoment, Spectrum

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
REST = 128
_NORMAL = 1.959964  # of a 95 % interval


def lyapunov_exponent(rate: float, q: int = 1) -> float:
    """E log |1 - rate chi_q^2/q|, the exponent in one dimension with lambda = 1.

    By quadrature in chi_q, cut at the logarithm's singularity.

    >>> round(lyapunov_exponent(1.0), 4)
    -0.417
    """
    scale = (1 - q / 2) * math.log(2) - special.gammaln(q / 2)

    def integrand(r: float) -> float:
        gap = abs(1 - rate * r * r / q)
        if not gap or not r:
            return 0.0
        return math.log(gap) * math.exp(scale + (q - 1) * math.log(r) - r * r / 2)

    # Beyond 12 of its standard deviations, at most 1 each, chi_q has no mass left.
    low, high = max(math.sqrt(q) - 12, 0.0), math.sqrt(q) + 12
    singular = min(max(math.sqrt(q / rate), low), high)
    ends = ((low, singular), (singular, (singular + high) / 2), ((singular + high) / 2, high))
    return math.fsum(integrate.quad(integrand, a, b, limit=200, epsabs=1e-12)[0] for a, b in ends)


def pathwise_edge(
    spectrum: Spectrum, *, q: int = 1, replicas: int = 64, steps: int = 400, seed: int = 0, draw: Draw | None = None
) -> Edge:
    """Rate at which the Lyapunov exponent is 0: below, almost every run converges (theory.md F.7).

    One eigenvalue: exact by quadrature. Else simulated: replicas of the product, all rates with the same directions,
    the first fifth of the steps left out; the 95 % interval is that of the exponent's mean over replicas (normal),
    carried over to rates.

    >>> from smoothlab import Spectrum, pathwise_edge
    >>> round(pathwise_edge(Spectrum.of([1.0])).value, 3)
    2.421

    Args:
        spectrum: of a block moved by zeroth-order gradients, H >= 0.
        q: directions averaged, plain.
        replicas: independent runs.
        steps: steps of each.
        seed: of the directions.
        draw: makes directions [...] from a generator and a shape [..., d], in the eigenbasis of H; Gaussian by default.

    Raises:
        BadInput: q, replicas or steps are too small.
    """
    _sizes(q, replicas, steps)
    if len(_eigenvalues(spectrum)) == 1 and draw is None:
        root = optimize.brentq(lambda rate: lyapunov_exponent(rate, q), 0.5, 8.0, xtol=1e-10)
        return Edge(*(float(root) / spectrum.largest,) * 3)

    def exponents(rates: Array) -> Array:
        log_norms = _growth(spectrum, rates, q, replicas, steps, seed, draw, loss=False)
        rates_of_growth = (log_norms[-1] - log_norms[steps // 5]) / (steps - steps // 5)
        mean, error = rates_of_growth.mean(0), rates_of_growth.std(0, ddof=1) / math.sqrt(replicas)
        return np.stack([mean - _NORMAL * error, mean, mean + _NORMAL * error])

    return _crossing(spectrum, q, exponents)


def run_edge(
    spectrum: Spectrum, *, q: int = 1, replicas: int = 256, steps: int = 60, seed: int = 0, draw: Draw | None = None
) -> Edge:
    """Smallest rate at which half of the runs stand above their start, f(z_N) > f(z_0), after N steps.

    z_0 is uniform on a sphere. The interval covers the median over all runs with 95 % (order statistics).

    >>> from smoothlab import Spectrum, pathwise_edge, run_edge
    >>> long, short = pathwise_edge(Spectrum.of([1.0])), run_edge(Spectrum.of([1.0]), steps=60)
    >>> short.low < long.value < short.high
    True

    Args:
        spectrum: of a block moved by zeroth-order gradients, H >= 0.
        q: directions averaged, plain.
        replicas: independent runs.
        steps: N.
        seed: of starts and directions.
        draw: as in `pathwise_edge`.

    Raises:
        BadInput: q, replicas or steps are too small.
    """
    _sizes(q, replicas, steps)
    width = _NORMAL / 2 / math.sqrt(replicas)  # of the median's rank, over their number

    def medians(rates: Array) -> Array:
        grown = _growth(spectrum, rates, q, replicas, steps, seed, draw, loss=True)
        curves: Array = np.quantile(grown[-1] - grown[0], [0.5 - width, 0.5, 0.5 + width], axis=0)
        return curves

    return _crossing(spectrum, q, medians)


def _growth(
    spectrum: Spectrum, rates: Array, q: int, replicas: int, steps: int, seed: int, draw: Draw | None, *, loss: bool
) -> Array:
    """log ||z||, or log f(z), of every step, replica and rate: [steps + 1, replicas, rates]."""
    rng = np.random.default_rng(seed)
    eigenvalues = _eigenvalues(spectrum)
    d = len(eigenvalues)
    z = np.repeat(rng.standard_normal((replicas, 1, d)), len(rates), axis=1)
    sizes, log = np.empty((steps + 1, replicas, len(rates))), np.zeros((replicas, len(rates)))
    for step in range(steps + 1):
        # Each state is scaled back to length 1, as 400 steps above the edge leave the range of fp64.
        norm = np.linalg.norm(z, axis=2)
        log += np.log(norm)
        z /= norm[:, :, None]
        sizes[step] = log
        if loss:
            sizes[step] += np.log(z**2 @ eigenvalues) / 2
        if step < steps:
            shape = (replicas, q, d)
            v = rng.standard_normal(shape) if draw is None else draw(rng, shape)
            slopes = (z * eigenvalues) @ v.transpose(0, 2, 1)
            z -= rates[:, None] / q * (slopes @ v)
    return sizes


def _eigenvalues(spectrum: Spectrum) -> Array:
    """The eigenvalues that are simulated."""
    values = np.array(spectrum.values)
    if spectrum.complete:
        return values[values > 0]
    if spectrum.trace is None:
        raise BadInput("a run's edge follows from the bulk of the spectrum too: give the trace")
    t, s = spectrum.rest()[0]
    count = max(1, min(REST, round(t * t / s), spectrum.dim - len(values)))
    return np.concatenate([values, np.full(count, t / count)])


def _crossing(spectrum: Spectrum, q: int, curves: Callable[[Array], Array]) -> Edge:
    """The rate at which each of three curves [3, rates], the lowest first, becomes positive.

    On a coarse grid of rates, then on a fine one around all three crossings.
    """
    stable = mean_square_edge(spectrum, OuterMoment(1 + 1 / q, 1 / q)).low
    rates = np.geomspace(0.5 * stable, 2 * exact_edge(spectrum.largest), 24)
    for _ in range(2):
        exponents = curves(rates)
        first = [int(np.argmax(curve > 0)) if (curve > 0).any() else len(rates) - 1 for curve in exponents]
        rates, old = np.geomspace(rates[max(min(first) - 1, 0)], rates[max(first)], 16), rates
    high, value, low = (_interpolated(old, curve) for curve in exponents)
    return Edge(value, low, high)


def _interpolated(rates: Array, curve: Array) -> float:
    """Rate at which the curve first becomes positive, between two rates; the last rate if nowhere."""
    above = np.flatnonzero(curve > 0)
    if not len(above) or not above[0]:
        return float(rates[above[0] if len(above) else -1])
    j = above[0]
    part = curve[j - 1] / (curve[j - 1] - curve[j])
    return float(rates[j - 1] * (rates[j] / rates[j - 1]) ** part)


def _sizes(q: int, replicas: int, steps: int) -> None:
    if q < 1 or replicas < 8 or steps < 10:
        raise BadInput(
            f"q = {q} directions, {replicas} replicas, {steps} steps: use at least 1 direction, 8 replicas, 10 steps"
        )
