"""B.5', B.6' and the corrected theorems: exact steps of their proofs, and how tight they are along Algorithm 1.

B.6' (theory.md B), with theta = n max(eta_x L_x, eta_y L_y) <= 1/8, drift = eta_x L_x (d + 1) <= 1/64 and
W = sum_i E ||z_i - z_0||_D^2 over the n steps of an epoch, P = diag(eta_x, eta_y), S = (1/n) sum E ||xi_j||^2:

    E f(z_n) <= f(z_0) - (n/2) ||grad f||_P^2 + (theta/(2n)) W + n eta_x^2 L_x S + bias terms
    (1 - 2 theta^2) W <= 4 [theta n^2/3 ||grad f||_P^2 + theta n/3 ||sigma||_P^2 + n^2 eta_x^2 L_x S + theta n^2 eta_x
                            beta^2/3]
    S <= 4 (d + 1)(||grad_x f||^2 + sigma_x^2) + v + 4 (d + 1) L_x W/n

`collected` puts the second and third into the first, in fractions.
"""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smoothlab import objectives
from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.claims import exact
from smoothlab.claims.claim import About, Certificate, Claim, Finding
from smoothlab.claims.runs import LEVEL, MU, PROBLEMS, SMOOTH, Means, Run, runs, smoothness_near
from smoothlab.objectives import Cosh, FiniteSum, Quadratic, objective
from smoothlab.stats import samples
from smoothlab.stats.intervals import Interval
from smoothlab.theory.constants import Array, constants, ones
from smoothlab.theory.theorems import Setting, descent, in_expectation, with_high_probability
from smoothlab.zeroth import bounds

DRAWS = 4000  # directions, or replicas of an epoch
SMALL: dict[str, FiniteSum] = {
    "quadratic": objective(Quadratic(1.0), Quadratic(0.5), n=2, d_x=2, d_y=1, sigma=0.3),
    "cosine": objective(Quadratic(1.0), Quadratic(0.5), objectives.CosineCoupling(0.5), n=2, d_x=2, d_y=1, sigma=0.3),
    "cosh in y": objective(Quadratic(1.0), Cosh(0.5, 0.5), n=2, d_x=2, d_y=1, sigma=0.3),
    "log cosh sum": objectives.log_cosh_sum(0.5, (0.3, 0.3), 1.0, n=4, d_x=2, d_y=1),
    "quadratic sum": objectives.quadratic_sum(1.0, 0.5, 0.1, sigma=0.2, n=4, d_x=2, d_y=1),
    "exponential sum": objectives.exponential_sum(1.0, (0.15, 0.15), n=2, d_x=2, d_y=1),
}
"""Problems on which the theorems' own T are run; Delta = 1, and eps^2 is half of ||grad f(z_0)||^2."""
RUNS, DELTA = 100, 0.5
STOPPED = 16.0  # F, in Delta, of the theorem in expectation where sigma is bounded on f - f* <= F only

# B.5'


def third_square(d: int) -> int:
    """E ||v||^6 of v ~ N(0, I_d), from E v_i^2 = 1, E v_i^4 = 3, E v_i^6 = 15 over all triples of coordinates."""
    return d * 15 + 3 * d * (d - 1) * 3 + d * (d - 1) * (d - 2)


def linear_error(g: list[int]) -> int:
    """E ||<g, v> v - g||^2 = sum_ij g_i g_j E v_i v_j ||v||^2 - ||g||^2, from E v_i^2 ||v||^2 = 3 + (d - 1)."""
    return sum(entry**2 for entry in g) * (len(g) + 2 - 1)


def estimates(f: FiniteSum, z: Tensor, mu: float, sides: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Directions v [DRAWS, d_x], coefficients c(v) of ghat = c(v) v, and grad_x f(z)."""
    v = torch.from_numpy(rng.standard_normal((DRAWS, f.d_x)))
    step = torch.cat([mu * v, torch.zeros(DRAWS, f.d_y, dtype=torch.float64)], 1)
    back = f.value(z)
    if sides == 2:
        back = f.value(z - step)
    return v.numpy(), ((f.value(z + step) - back) / (sides * mu)).numpy(), f.gradient(z)[: f.d_x].numpy()


def _b5(seed: int) -> Finding:
    gradients = [np.random.default_rng(seed).integers(-9, 10, d).tolist() for d in range(1, 30)]
    sixth = exact.equal("E ||v||^6 = d (d + 2)(d + 4) for d = 1, ..., 200", [third_square(d) for d in range(1, 201)],
                        [d * (d + 2) * (d + 4) for d in range(1, 201)])  # fmt: skip
    linear = exact.equal("E ||<g, v> v - g||^2 = (d + 1) ||g||^2", [linear_error(g) for g in gradients],
                         [(len(g) + 1) * sum(entry**2 for entry in g) for g in gradients])  # fmt: skip
    rng, remainders, errors, biases = np.random.default_rng(seed), [], Means(), Means()
    for run in _smooth(seed):
        L, d = float(run.f.ell_x(0.0)), run.f.d_x
        states = enumerate(run.flat[:: len(run.flat) // 6])
        for (number, z), sides, mu in itertools.product(states, (1, 2), (0.01, 0.3, 3.0)):
            v, c, g = estimates(run.f, z, mu, sides, rng)
            remainder = c - v @ g
            remainders.append(np.abs(remainder) / (mu * L * (v**2).sum(1) / 2))
            where = f"{run.name}, state {number}, {sides} sides, mu = {mu:g}"
            squares = ((c[:, None] * v - g) ** 2).sum(1)
            errors.add_squares(where, squares, bounds.error_bound(mu, L, d, float(np.linalg.norm(g))))
            deviations = remainder[:, None] * v  # of mean E ghat - g: <g, v> v has the mean g
            radius = samples.mean_radius(np.cov(deviations.T), DRAWS)
            bias = float(np.linalg.norm(deviations.mean(0)))
            biases.add(where, Interval(bias, max(0.0, bias - radius), bias + radius), bounds.bias_bound(mu, L, d))
    taylor = exact.dense("|c(v) - <g, v>| <= mu L ||v||^2/2 (Taylor) for every direction drawn, so that ghat - g = "
                         "(<g, v> v - g) + r v and ||a + b||^2 <= 2 ||a||^2 + 2 ||b||^2; the bias by Stein's identity",
                         np.concatenate(remainders), rounding=1e-6)  # fmt: skip
    return Finding((
        sixth, linear, taylor,
        errors.search("E ||ghat - g||^2 <= 2 (d + 1) ||g||^2 + mu^2 L^2 d (d + 2)(d + 4)/2, at states of runs", DRAWS),
        biases.search("||E ghat - g|| <= mu L sqrt(d), at states of runs", DRAWS),
    ))  # fmt: skip


def _smooth(seed: int) -> list[Run]:
    return [run for run in runs(seed) if run.name in SMOOTH]


# B.6'


class Collected(NamedTuple):
    """Coefficients of the collected bound, by what B.6' says they are at most (or at least)."""

    decrease_x: Fraction  # of n eta_x ||grad_x f||^2
    decrease_y: Fraction  # of n eta_y ||grad_y f||^2
    reshuffling: Fraction  # of theta^2 ||sigma||_P^2
    noise: Fraction  # of n (d + 1) L_x eta_x^2 sigma_x^2
    bias: Fraction  # of n eta_x beta^2
    remainder: Fraction  # of n eta_x^2 L_x v


PROMISED = Collected(Fraction(1, 4), Fraction(3, 8), Fraction(1), Fraction(6), Fraction(3), Fraction(2))


def collected(theta: Fraction, drift: Fraction) -> Collected:
    """All terms of the proof, with W eliminated."""
    third = Fraction(1, 3)
    # 4 n^2 eta_x^2 L_x * 4 (d + 1) L_x W/n is at most 16 theta drift W.
    # The coefficient of W/n, from ||grad f - gbar||_P^2 and from S in n eta_x^2 L_x S, times that of W's own bound.
    through_w = (theta / 2 + 4 * theta * drift) * 4 / (1 - 2 * theta**2 - 16 * theta * drift)
    common = through_w * theta * third  # of n ||grad f||_P^2, of theta^0 (1) ||sigma||_P^2 and of n eta_x beta^2
    return Collected(
        decrease_x=Fraction(1, 2) - common - 4 * drift - through_w * 4 * drift - Fraction(1, 8),
        decrease_y=Fraction(1, 2) - common,
        reshuffling=common / theta**2,
        noise=4 + through_w * 4,
        # Young: n eta_x ||grad_x f|| beta <= n eta_x (||grad_x f||^2/8 + 2 beta^2); 2 theta beta^2 from the square
        bias=2 + 2 * theta + common,
        remainder=1 + through_w,
    )


def as_promised(terms: Collected) -> bool:
    """Whether the coefficients are what B.6' promises."""
    room = np.array(PROMISED, dtype=object) - np.array(terms, dtype=object)  # of fractions, exactly
    return bool((room[:2] <= 0).all() and (room[2:] >= 0).all())


def reshuffled(n: int) -> tuple[int, Fraction]:
    """Sums over i < n of i^2 and i (n - i)/(n - 1), as E ||sum_{j <= i} grad f_j||^2 = i^2 g^2 + (...) sigma^2."""
    return sum(i * i for i in range(n)), sum((Fraction(i * (n - i), max(n - 1, 1)) for i in range(n)), Fraction(0))


def collection(about: About = "printed") -> tuple[Certificate, ...]:
    """Certificates of B.6': the collected coefficients, and the sums over an epoch."""
    worst = collected(Fraction(1, 8), Fraction(1, 64))
    facts: dict[str, Any] = {f"{name} at theta = 1/8, drift = 1/64": str(x) for name, x in worst._asdict().items()}
    promised, summable = True, True
    for i, j in itertools.product(range(1, 41), range(41)):
        promised = promised and as_promised(collected(Fraction(i, 8 * 40), Fraction(j, 64 * 40)))
    for n in range(1, 201):
        squares, noise = reshuffled(n)
        summable = summable and 3 * squares <= n**3 and 3 * noise <= n**2
    return (
        exact.equal("B.6' (proof: theory.md B): coefficients after W is eliminated are at least 1/4, 3/8 and at most "
                    "theta^2, 6, 3, 2, for 1,640 pairs theta <= 1/8, drift <= 1/64 with their largest",
                    promised, True, about, **facts),
        exact.equal("sum i^2 <= n^3/3 and sum i (n - i)/(n - 1) <= n^2/3 over an epoch, n = 1, ..., 200",
                    summable, True, about),
    )  # fmt: skip


def epoch_change(run: Run, z: Tensor, seed: int) -> tuple[Interval, float]:
    """E f(z_{t+1}) - f(z_t) + decrease of B.6' from one state z, and the noise that it allows; sigma is that at z."""
    f, algorithm = run.f, run.algorithm
    sigma2_x, sigma2_y = f.variance(z)
    setting = replace(f.setting(1.0, LEVEL), sigma2_x=float(sigma2_x), sigma2_y=float(sigma2_y))
    bound = descent(setting, algorithm.eta_x, algorithm.eta_y, algorithm.mu, *smoothness_near(f))
    squares = f.gradient(z).square()
    decrease = bound.decrease_x * float(squares[: f.d_x].sum()) + bound.decrease_y * float(squares[f.d_x :].sum())
    after = torch.from_numpy(algorithm.run(f, z, DRAWS, seed=(seed, 7)).z)
    change = (f.value(after) - f.value(z)).numpy()
    return samples.mean(change + decrease), bound.noise


def _b6(seed: int) -> Finding:
    changes = Means()
    for run in _smooth(seed):
        distribution: Any = "sphere"
        if run.name == SMOOTH[0]:  # both distributions of directions are tried
            distribution = "gaussian"
        states = [run.f.center, *run.z[[0, 1, 5, 15, 30], -1]]
        for name, z in zip(("minimum", "0", "1", "5", "15", "30"), states, strict=True):
            for mu in (0.0, MU):
                changed = replace(run, algorithm=replace(run.algorithm, distribution=distribution, mu=mu))
                changes.add(f"{run.name}, epoch {name}, mu = {mu:g}", *epoch_change(changed, z, seed))
    # Sums of exponentials are smooth within B.1's radius only, so that an epoch must not leave it: slower rates.
    steep = next(run for run in runs(seed) if run.name == "exponential sum")
    eta_x, eta_y = steep.algorithm.eta_x, steep.algorithm.eta_y
    slower = 1 / max(1.0, epoch_radius(steep.f.setting(1.0, LEVEL), steep.algorithm, LEVEL))
    steep = replace(steep, algorithm=replace(steep.algorithm, eta_x=eta_x * slower, eta_y=eta_y * slower))
    for epoch in (0, 15):
        changes.add(f"{steep.name}, epoch {epoch}, mu = {MU:g}", *epoch_change(steep, steep.z[epoch, -1], seed))
    inequality = "E f(z_{t+1}) - f(z_t) + (n/4) eta_x ||grad_x f||^2 + (3n/8) eta_y ||grad_y f||^2 <= noise of B.6'"
    return Finding((*collection(), changes.search(f"{inequality}, at states of runs", DRAWS)))


# The corrected theorems


def bound_over_eps2(s: Setting, eps: float, smoothness: float) -> float:
    """4 Delta/(n eta T) + 4 noise/(n eta) over eps^2, at the constants of the theorem in expectation."""
    h = in_expectation(s, eps, smoothness)
    epoch = descent(s, h.eta_x, h.eta_y, h.mu, smoothness, smoothness)
    if max(epoch.theta * 8, epoch.drift * 64) > 1 + 1e-12:
        return math.inf
    return 4 * (s.gap / h.T + epoch.noise) / (s.n * h.eta_x) / eps**2


def _expectation(seed: int) -> Finding:
    rng, ratios = np.random.default_rng(seed), []
    for _ in range(2000):
        eps, L, gap, sx, sy = np.exp(rng.uniform(np.log(1e-3), np.log(10), 5))
        n, d = np.exp(rng.uniform(0, np.log(1000), 2)).astype(int).tolist()
        ratios.append(bound_over_eps2(Setting(ones, ones, gap, n, d, sx, sy), eps, L))
    proof = exact.dense("B.6' summed over T epochs: (1/T) sum E ||grad f||^2 <= 4 Delta/(n eta T) + 4 noise/(n eta) <= "
                        "eps^2 at the theorem's constants", ratios)  # fmt: skip
    means = Means()
    for name in ("quadratic", "cosine", "log cosh sum", "quadratic sum"):
        f, z0, eps = _small(name)
        level, above, note = math.inf, None, ""
        if not math.isfinite(f.sigma2):  # of components that curve differently sigma grows with f - f*
            level, above, note = STOPPED, STOPPED, f", stopped where f - f* > {STOPPED:g} Delta"
        h = in_expectation(f.setting(1.0, level), eps, max(float(f.component_ell_x(0)), float(f.component_ell_y(0))))
        algorithm = Algorithm1(h.eta_x, h.eta_y, h.T, mu=h.mu, above=above)
        result = algorithm.run(f, z0, RUNS, seed=(seed, 11))
        sums = result.average * np.maximum(result.epochs, 1) / h.T  # up to tau where the iterate is stopped
        means.add_squares(f"{name}, T = {h.T}{note}", sums, eps**2)
    bound = "(1/T) sum E ||grad f||^2 <= eps^2 at the theorem's T, eta, mu, runs of Algorithm 1"
    return Finding((proof, means.search(bound, RUNS)))


def _small(name: str) -> tuple[FiniteSum, Tensor, float]:
    """A problem of `SMALL`, where it starts, and eps."""
    f = SMALL[name]
    z0 = f.at_level(torch.ones(f.dim, dtype=torch.float64), 1.0)
    return f, z0, math.sqrt(float(f.gradient(z0).square().sum()) / 2)


def epoch_radius(s: Setting, algorithm: Algorithm1, level: float) -> float:
    """Largest distance of an epoch and its perturbations from f - f* <= level, over the radius of B.1', sphere v."""
    c, d = constants(s.ell_x, s.ell_y, level), s.d
    l_x, l_y, top = c.L_x_near, c.L_y_near, 2 * c.G + s.spread
    eta_x, eta_y, mu = algorithm.eta_x, algorithm.eta_y, algorithm.mu
    step = math.sqrt(l_x) * eta_x * d * (top + mu * l_x * math.sqrt(d) / 2) + math.sqrt(l_y) * eta_y * top
    return (s.n * step + math.sqrt(l_x * d) * mu) / c.radius


def hypotheses(f: FiniteSum, eps: float, delta: float, gap: float = 1.0) -> list[float]:
    """Conditions of the high-probability theorem at its own constants, as quotients that must be at most 1."""
    s = f.setting(gap, 4 * gap / delta)
    h = with_high_probability(s, eps, delta)
    epoch = descent(s, h.eta_x, h.eta_y, h.mu, h.L_x, h.L_y)
    needed = 16 * gap / (delta * eps**2 * s.n * min(h.eta_x, 1.5 * h.eta_y))
    algorithm = Algorithm1(h.eta_x, h.eta_y, h.T, mu=h.mu, distribution="sphere")
    radius = epoch_radius(s, algorithm, 4 * gap / delta)
    return [epoch.theta * 8, epoch.drift * 64, epoch.noise * h.T / gap, needed / h.T, radius]


def _probability(seed: int) -> Finding:
    # With Delta = 1 and eta' = min(eta_x, 3 eta_y/2), n eta' = 1: P(tau < T) <= 2/F, P(sum too large) <= 8/(T eps^2).
    probabilities, deltas = [], []
    for a, b in itertools.product(range(2, 30), range(1, 30)):
        share, square = Fraction(1, a), Fraction(1, b) ** 2  # delta and eps^2
        probabilities.append(2 / (4 / share) + 8 / (16 / (share * square) * square))
        deltas.append(share)
    markov = exact.equal("Markov twice: E f(z_tau) - f* <= 2 Delta, F = 4 Delta/delta give P(tau < T) <= delta/2, and "
                         "T = 16 Delta/(delta eps^2 n eta') gives P(sum_{t < tau} ||grad f||^2 > T eps^2) <= 2 Delta * "
                         "4/(n eta' T eps^2) = delta/2", probabilities, deltas)  # fmt: skip
    quotients: list[float] = []
    for f, eps, delta in itertools.product([*PROBLEMS.values(), *SMALL.values()], (0.3, 1.0), (0.1, 0.3)):
        quotients += hypotheses(f, eps, delta)
    dense = exact.dense("at the theorem's constants: B.6's conditions, noise T <= Delta, T, and an epoch stays within "
                        f"the radius of B.1', for {len(PROBLEMS) + len(SMALL)} problems", quotients)  # fmt: skip
    failed, sizes, escaped = Means(), Means(), Means()
    for name in ("quadratic", "cosh in y", "quadratic sum", "exponential sum"):
        f, z0, eps = _small(name)
        h = with_high_probability(f.setting(1.0, 4 / DELTA), eps, DELTA)
        algorithm = Algorithm1(h.eta_x, h.eta_y, h.T, mu=h.mu, distribution="sphere", above=h.F, halt=False)
        result = algorithm.run(f, z0, RUNS, seed=(seed, 13))
        where = f"{name}, T = {h.T}"
        failed.add(where, samples.proportion(int((result.average > eps**2).sum()), RUNS), DELTA)
        escaped.add(where, samples.proportion(int((result.left >= 0).sum()), RUNS), DELTA / 2)
        sizes.add_squares(where, result.average, eps**2)
    return Finding((
        markov, dense,
        failed.search("P((1/T) sum ||grad f||^2 > eps^2) <= delta, runs of Algorithm 1, v on the sphere", RUNS),
        escaped.search("P(tau < T) <= delta/2, the same runs", RUNS),
        sizes.search("mean of (1/T) sum ||grad f||^2 <= eps^2, the same runs", RUNS),
    ))  # fmt: skip


_SMOOTH = "all f_i block-smooth with D = diag(L_x, L_y) where the epoch and its perturbations go"
CLAIMS = (
    Claim("b.5-corrected", "||E ghat - grad f|| <= mu L sqrt(d), E ||ghat - grad f||^2 <= 2 (d + 1) ||grad f||^2 + "
          "(mu^2 L^2/2) d (d + 2)(d + 4), one- and two-sided.", "sharpens Lemma B.5 (theory.md B)",
          "gradient L-Lipschitz everywhere, v Gaussian", "holds", "", _b5),
    Claim("b.6-corrected", "E f(z_{t+1}) <= f(z_t) - (n/4) eta_x ||grad_x f||^2 - (3n/8) eta_y ||grad_y f||^2 + "
          "theta^2 (eta_x sigma_x^2 + eta_y sigma_y^2) + 6n (d + 1) L_x eta_x^2 sigma_x^2 + 3n eta_x beta^2 + 2n "
          "eta_x^2 L_x v.", "corrects Lemma B.6 (theory.md B)",
          _SMOOTH + ", n max(eta_x L_x, eta_y L_y) = theta <= 1/8, eta_x L_x (d + 1) <= 1/64", "holds", "", _b6),
    Claim("theorem-expectation", "(1/T) sum E ||grad f||^2 <= eps^2 for eta = min{1/(8nL), 1/(64 L (d + 1)), eps/(4 "
          "sqrt(n) L sigma), eps^2/(96 (d + 1) L sigma_x^2)}, T = 16 Delta/(n eta eps^2): nT = O(L Delta [d sigma_x^2 "
          "eps^-4 + sqrt(n) sigma eps^-3 + (n + d) eps^-2]).", "corrects Theorem 3.4 (theory.md B)",
          "all f_i L-smooth, mu small", "holds", "", _expectation),
    Claim("theorem-probability", "P((1/T) sum ||grad f||^2 <= eps^2) >= 1 - delta for T = 16 Delta/(delta eps^2 n "
          "min(eta_x, 3 eta_y/2)), F = 4 Delta/delta, rates that keep an epoch within B.1's radius and noise T <= "
          "Delta.", "corrects Theorem 3.4 (theory.md B)", "Definition 2.1 for every f_i, two-sided; v on the sphere",
          "holds", "", _probability),
)  # fmt: skip
