"""Exact moments against enumeration: finite rules that integrate polynomials of a direction exactly, distribution by
distribution.

The rules know nothing of cumulants, pairings or closed forms: all sign vectors, all coordinates, Gauss-Hermite nodes,
angles on the circle. On each node the estimator is computed from its definition, with values of f.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth import expectations
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Coordinate, Gaussian, Rademacher, Sparse, Sphere
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.moments import Taylor, control_variate, linear_factor, mean, outer_moment, second_moment
from smoothlab.zeroth.scaled import Known, Masked, Preconditioned
from tests.cases import ESTIMATORS, moved, symmetric
from tests.theory.second_moments import outer, squares

Array = np.ndarray
Rule = tuple[Array, Array]  # points [n, d] or frames [n, q, d], weights [n]


def product_rule(*rules: Rule) -> Rule:
    """Independent entries, or directions."""
    indices = list(itertools.product(*(range(len(w)) for _, w in rules)))
    points = np.array([[p[i] for i, (p, _) in zip(index, rules, strict=True)] for index in indices])
    return points, np.array([math.prod(w[i] for i, (_, w) in zip(index, rules, strict=True)) for index in indices])


def hermite(n: int = 5) -> Rule:
    """One normal number: exact up to degree 2 n - 1 = 9."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    return x, w / w.sum()


def gaussian(d: int) -> Rule:
    return product_rule(*[hermite()] * d)


def circle(n: int = 12) -> Rule:
    """A unit vector of the plane: exact up to degree n - 1."""
    angle = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], 1), np.full(n, 1 / n)


def sphere(d: int) -> Rule:
    """Radius sqrt(d), d <= 3; in space the height is uniform (Archimedes)."""
    if d == 1:
        return np.array([[-1.0], [1.0]]), np.full(2, 0.5)
    points, weights = circle()
    if d == 3:
        heights, w = np.polynomial.legendre.leggauss(6)
        flat = np.concatenate([np.c_[np.sqrt(1 - h * h) * points, np.full(len(points), h)] for h in heights])
        points, weights = flat, np.repeat(w / 2, len(weights)) * np.tile(weights, len(w))
    return math.sqrt(d) * points, weights


def frames(d: int, q: int) -> Rule:
    """q orthogonal vectors of length sqrt(d), uniformly at random, d = 2 or 3."""
    first, weights = sphere(d)
    found, given = [], []
    for z, w in zip(first, weights, strict=True):
        basis = np.linalg.svd(z[None])[2][1:]  # of what is orthogonal to z
        for u, v in zip(*(circle() if d == 3 else sphere(1)), strict=True):
            second = math.sqrt(d) * u @ basis
            third = [np.cross(z, second) * sign / math.sqrt(d) for sign in (1, -1)] if q == 3 else [None]
            for t in third:
                found.append([z, second] + ([t] if q == 3 else []))
                given.append(w * v / len(third))
    return np.array(found)[:, :q], np.array(given)


def low_rank(shapes: tuple[tuple[int, ...], ...], rank: int) -> Rule:
    """U W' / sqrt(rank) from all entries of U and W."""
    sizes = [sum(s) * rank if len(s) == 2 else math.prod(s) for s in shapes]
    numbers, weights = gaussian(sum(sizes))
    parts = []
    for shape, x in zip(shapes, np.split(numbers, np.cumsum(sizes)[:-1], 1), strict=True):
        if len(shape) == 2:
            u, w = x[:, : shape[0] * rank].reshape(-1, shape[0], rank), x[:, shape[0] * rank :]
            x = np.einsum("nik,njk->nij", u, w.reshape(-1, shape[1], rank)).reshape(len(x), -1) / math.sqrt(rank)
        parts.append(x)
    return np.concatenate(parts, 1), weights


def sparse_entry(share: float) -> Rule:
    x, w = hermite()
    return np.append(x / math.sqrt(share), 0.0), np.append(share * w, 1 - share)


SIGN: Rule = (np.array([-1.0, 1.0]), np.full(2, 0.5))
MASK, SCALES = np.array([1.0, 0.0, 1.0]), np.array([2.0, 2.0, 0.25])


@dataclass(frozen=True)
class LawCase:
    distribution: Distribution
    rule: Callable[[], Rule]
    shapes: tuple[tuple[int, ...], ...]


DISTRIBUTIONS: dict[str, LawCase] = {
    "gaussian": LawCase(Gaussian(), lambda: gaussian(3), ((3,),)),
    "sphere 1": LawCase(Sphere(), lambda: sphere(1), ((1,),)),
    "sphere 2": LawCase(Sphere(), lambda: sphere(2), ((2,),)),
    "sphere 3": LawCase(Sphere(), lambda: sphere(3), ((3,),)),
    "rademacher": LawCase(Rademacher(), lambda: product_rule(*[SIGN] * 5), ((2, 2), (1,))),
    "coordinate": LawCase(
        Coordinate(), lambda: (2 * np.concatenate([np.eye(4), -np.eye(4)]), np.full(8, 1 / 8)), ((4,),)
    ),
    "sparse": LawCase(Sparse(0.3), lambda: product_rule(*[sparse_entry(0.3)] * 3), ((3,),)),
    "masked": LawCase(
        Masked((torch.tensor([1, 0]).bool(), torch.tensor([1]).bool())),
        lambda: (gaussian(3)[0] * MASK, gaussian(3)[1]),
        ((2,), (1,)),
    ),
    "preconditioned": LawCase(
        Preconditioned((torch.tensor(2.0), torch.tensor([0.25]))),
        lambda: (gaussian(3)[0] * SCALES, gaussian(3)[1]),
        ((2,), (1,)),
    ),
    "low rank 1": LawCase(LowRank(1), lambda: low_rank(((2, 2), (1,)), 1), ((2, 2), (1,))),
    "low rank 2": LawCase(LowRank(2), lambda: low_rank(((2, 1),), 2), ((2, 1),)),
    "low rank, two matrices": LawCase(LowRank(1), lambda: low_rank(((2, 1), (1, 2)), 1), ((2, 1), (1, 2))),
}  # fmt: skip


def taylor(shapes: tuple[tuple[int, ...], ...], degree: int, seed: int = 0) -> Taylor:
    rng, d = np.random.default_rng(seed), sum(math.prod(s) for s in shapes)
    derivatives = [symmetric(rng, d, k) for k in range(1, degree + 1)]
    return Taylor(*derivatives, *([None] * (4 - degree)), shapes=shapes)


def value(f: Taylor, s: Array) -> Array:
    """F(x + s) - f(x) for points s [..., d]."""
    total = s @ f.gradient + np.einsum("...i,ij,...j->...", s, f.hessian, s) / 2
    if f.third is not None:
        total = total + np.einsum("...i,...j,...k,ijk->...", s, s, s, f.third, optimize=True) / 6
    if f.fourth is not None:
        total = total + np.einsum("...i,...j,...k,...l,ijkl->...", s, s, s, s, f.fourth, optimize=True) / 24
    return total


def estimates(f: Taylor, z: Array, mu: float, sides: int) -> Array:
    """Eq. (2) on directions z [..., q, d], averaged over q."""
    c = value(f, mu * z) / mu if sides == 1 else (value(f, mu * z) - value(f, -mu * z)) / (2 * mu)
    return np.mean(c[..., None] * z, -2)


def moments_by_rule(f: Taylor, rule: Rule, mu: float, sides: int) -> tuple[Array, float]:
    points, weights = rule
    ghat = estimates(f, points, mu, sides)
    return weights @ ghat, float(weights @ (ghat**2).sum(-1))


def single(rule: Rule) -> Rule:
    return rule[0][:, None, :], rule[1]


def pairs(rule: Rule) -> Rule:
    """Two independent directions."""
    points, weights = rule
    i, j = (k.ravel() for k in np.meshgrid(*[range(len(weights))] * 2))
    return np.stack([points[i], points[j]], 1), weights[i] * weights[j]


# Low-rank directions on cubics: up to 20,000 pairs of pairings.
DEGREES = [
    (name, degree) for name in DISTRIBUTIONS for degree in (2, 3, 4) if degree == 2 or not name.startswith("low rank")
]
MORE = [(name, degree) for name in DISTRIBUTIONS for degree in (3, 4) if (name, degree) not in DEGREES]


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(("name", "degree"), [*DEGREES, *(pytest.param(*m, marks=pytest.mark.slow) for m in MORE)])
def test_moments_of_one_direction_are_those_of_the_enumeration(name: str, sides: Any, degree: int) -> None:
    case, mu = DISTRIBUTIONS[name], 0.7
    f, estimator = taylor(case.shapes, degree), ZerothOrder(mu, sides, case.distribution)
    m, second = moments_by_rule(f, single(case.rule()), mu, sides)
    assert mean(estimator, f) == pytest.approx(m, rel=1e-9, abs=1e-12)
    if degree == 4 and sides == 1:
        with pytest.raises(BadInput, match="second moment of a one-sided estimator on a quartic has no closed form"):
            second_moment(estimator, f)
    else:
        assert second_moment(estimator, f) == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("name", ["sphere 2", "rademacher", "coordinate", "preconditioned"])
def test_moments_of_two_averaged_directions_are_those_of_the_enumeration(name: str, sides: Any) -> None:
    case, mu = DISTRIBUTIONS[name], 0.7
    rule = case.rule()
    if name == "preconditioned":  # pairs of 125 nodes
        rule = (gaussian(2)[0] * SCALES[1:], gaussian(2)[1])
        case = LawCase(Preconditioned((torch.from_numpy(SCALES[1:]),)), case.rule, ((2,),))
    f, estimator = taylor(case.shapes, 3), ZerothOrder(mu, sides, case.distribution, q=2)
    m, second = moments_by_rule(f, pairs(rule), mu, sides)
    assert mean(estimator, f) == pytest.approx(m, rel=1e-9, abs=1e-12)
    assert second_moment(estimator, f) == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(("d", "q"), [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)])
def test_moments_of_orthogonal_directions_are_those_of_the_enumeration(d: int, q: int, sides: Any) -> None:
    f, estimator = taylor(((d,),), 3), ZerothOrder(0.7, sides, q=q, average="orthogonal")
    rule = frames(d, q)
    gram = np.einsum("nid,njd->nij", rule[0], rule[0])
    assert np.allclose(gram, d * np.eye(q))
    m, second = moments_by_rule(f, rule, 0.7, sides)
    assert mean(estimator, f) == pytest.approx(m, rel=1e-9, abs=1e-12)
    assert second_moment(estimator, f) == pytest.approx(second, rel=1e-9)
    if q == d and sides == 2:
        linear = Taylor(f.gradient, f.hessian)
        assert second_moment(estimator, linear) == pytest.approx(f.gradient @ f.gradient), "no variance left"


@pytest.mark.parametrize("name", ["gaussian", "sphere 3", "rademacher", "sparse"])
def test_moments_of_antithetic_pairs_are_those_of_the_enumeration(name: str) -> None:
    case = DISTRIBUTIONS[name]
    f, (points, weights) = taylor(case.shapes, 3), case.rule()
    estimator = ZerothOrder(0.7, 1, case.distribution, q=2, average="antithetic")
    m, second = moments_by_rule(f, (np.stack([points, -points], 1), weights), 0.7, 1)
    assert mean(estimator, f) == pytest.approx(m, rel=1e-9, abs=1e-12)
    assert second_moment(estimator, f) == pytest.approx(second, rel=1e-9)


def test_the_enumeration_sees_a_wrong_cumulant_radius_and_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Rademacher().cumulants()._replace(sixth=Rademacher().cumulants().sixth + 0.1)
    monkeypatch.setattr(Rademacher, "cumulants", lambda self: wrong)
    expectations._terms.cache_clear()
    with pytest.raises(AssertionError):
        test_moments_of_one_direction_are_those_of_the_enumeration("rademacher", 1, 2)
    monkeypatch.undo()
    monkeypatch.setattr(expectations, "_connected", lambda *a: ())
    expectations._terms.cache_clear()
    with pytest.raises(AssertionError):
        test_moments_of_one_direction_are_those_of_the_enumeration("low rank 1", 1, 2)
    expectations._terms.cache_clear()


# The formulas of theory.md D, as they stand there


@given(seed=st.integers(0, 10**6), d=st.integers(1, 7), mu=st.floats(1e-3, 2), q=st.integers(1, 5))
@settings(deadline=None, derandomize=True, max_examples=8)
def test_theory_formulas(seed: int, d: int, mu: float, q: int) -> None:
    f = taylor(((d,),), 3, seed)
    assert f.third is not None
    g, a, third, trace = f.gradient, f.hessian, f.third, np.trace(f.hessian)
    t, square, frobenius, diagonal = np.einsum("ijj->i", third), g @ g, (a**2).sum(), (np.diag(a) ** 2).sum()
    norm_t, norm_third = t @ t, (third**2).sum()
    quadratic = Taylor(g, a)
    one_sided = {
        Gaussian(): (d + 2) * square + mu**2 / 4 * (d + 4) * (trace**2 + 2 * frobenius),
        Sphere(): d * square + mu**2 / 4 * d**2 / (d + 2) * (trace**2 + 2 * frobenius),
        Rademacher(): d * square + mu**2 * d / 4 * (trace**2 + 2 * (frobenius - diagonal)),
    }
    for distribution, expected in one_sided.items():
        assert mean(ZerothOrder(mu, 1, distribution), quadratic) == pytest.approx(g)
        averaged = square + (expected - square) / q
        assert second_moment(ZerothOrder(mu, 1, distribution, q=q), quadratic) == pytest.approx(averaged)
    two_sided = {
        Gaussian(): (d + 2) * square
        + mu**2 * (d + 4) * g @ t
        + mu**4 / 36 * (d + 6) * (9 * norm_t + 6 * norm_third),
        Sphere(): d * (square + mu**2 * d / (d + 2) * g @ t
                       + mu**4 / 36 * d**2 / ((d + 2) * (d + 4)) * (9 * norm_t + 6 * norm_third)),
    }  # fmt: skip
    for distribution, expected in two_sided.items():
        assert second_moment(ZerothOrder(mu, 2, distribution), f) == pytest.approx(expected)
    bias = {
        Gaussian(): mu**2 / 2 * t,
        Sphere(): mu**2 / 2 * d / (d + 2) * t,
        Rademacher(): mu**2 / 6 * (3 * t - 2 * np.einsum("iii->i", third)),
    }
    for distribution, b in bias.items():
        for sides in (1, 2):
            assert mean(ZerothOrder(mu, sides, distribution), f) - g == pytest.approx(b, abs=1e-12)  # type: ignore[arg-type]


def test_bias_of_the_quartic_sum_of_theory() -> None:
    """f = sum x^4/4 at x: third derivatives 6 x_i, bias 3 mu^2 x, whatever the fourth derivatives are."""
    x = np.array([0.5, -1.0, 2.0])
    third, fourth = np.zeros((3, 3, 3)), np.zeros((3, 3, 3, 3))
    for i in range(3):
        third[i, i, i], fourth[i, i, i, i] = 6 * x[i], 6
    f = Taylor(x**3, np.diag(3 * x**2), third, fourth)
    assert mean(ZerothOrder(0.1, 1), f) - x**3 == pytest.approx(3 * 0.01 * x)


# Limits at any size


@pytest.mark.parametrize("name", ESTIMATORS)
def test_linear_factor_is_the_second_moment_of_two_sides_without_curvature(name: str) -> None:
    shapes = ((3, 2), (4,), (2, 2))
    f = taylor(shapes, 1 + 1)
    estimator = ESTIMATORS[name].build(shapes, 0.1)
    two = ZerothOrder(0.1, 2, estimator.distribution, estimator.q // (1 + (estimator.average == "antithetic")),
                      "orthogonal" if estimator.average == "orthogonal" else "plain")  # fmt: skip
    square = f.gradient @ f.gradient
    factor = linear_factor(estimator, 14, shapes, gradient=f.gradient)
    assert factor == pytest.approx(second_moment(two, f) / square)
    distribution = Sphere() if estimator.average == "orthogonal" else estimator.distribution
    engine = distribution.expectation(shapes, [f.gradient, f.gradient, np.eye(14)])
    one = linear_factor(ZerothOrder(distribution=distribution), 14, shapes, gradient=f.gradient)
    assert one == pytest.approx(float(engine) / square), "two derivations"


def test_linear_factor_of_simple_distributions_and_millions_of_entries() -> None:
    d, begin = 125_000_000, time.perf_counter()
    shapes = ((50_000, 2_000), (25_000_000,))
    assert linear_factor(ZerothOrder(), d) == d + 2
    assert linear_factor(ZerothOrder(distribution=Sphere(), q=10), d) == pytest.approx(1 + (d - 1) / 10)
    assert linear_factor(ZerothOrder(q=100, average="orthogonal"), d) == d / 100
    assert linear_factor(ZerothOrder(distribution=Sparse(0.5)), d) == d - 1 + 6
    assert linear_factor(ZerothOrder(distribution=LowRank(4)), d, shapes, parts=[3.0, 1.0]) == pytest.approx(
        d + 2 + 0.75 * 2 * 52_001 / 4
    )
    scaled = Preconditioned((torch.tensor(2.0), torch.tensor(0.5)))
    trace = 4 * 1e8 + 0.25 * 2.5e7
    expected = (trace * (4 * 3 + 0.25) + 2 * (16 * 3 + 0.0625)) / 4
    assert linear_factor(ZerothOrder(distribution=scaled), d, shapes, parts=[3.0, 1.0]) == pytest.approx(expected)
    assert time.perf_counter() - begin < 1


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(0, 100))
@settings(deadline=None, derandomize=True, max_examples=10)
def test_low_rank_factor_on_one_matrix_needs_no_gradient(m: int, n: int, rank: int, seed: int) -> None:
    estimator = ZerothOrder(distribution=LowRank(rank))
    factor = linear_factor(estimator, m * n, ((m, n),))
    g = np.random.default_rng(seed).normal(size=m * n)
    exact = LowRank(rank).expectation(((m, n),), [g, g, np.eye(m * n)])
    assert factor == pytest.approx(m * n + 2 + 2 * (m + n + 1) / rank)
    assert factor == pytest.approx(float(exact) / (g @ g))


# Control variates


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("name", ["gaussian", "rademacher", "sphere 3"])
def test_control_variate_moments_are_those_of_the_enumeration(name: str, sides: Any, degree: int) -> None:
    case, mu, n = DISTRIBUTIONS[name], 0.7, 3
    d = sum(math.prod(s) for s in case.shapes)
    away = np.random.default_rng(5).normal(size=d)
    here = [taylor(case.shapes, degree, seed) for seed in range(n)]
    there = [moved(f, away) for f in here]
    anchor = np.mean([f.gradient for f in there], 0)
    points, weights = single(case.rule())
    ghat = np.stack([estimates(a, points, mu, sides) - estimates(b, points, mu, sides) + anchor
                     for a, b in zip(here, there, strict=True)])  # fmt: skip
    m, second = control_variate(ZerothOrder(mu, sides, case.distribution), here, there, anchor)
    assert m == pytest.approx(np.einsum("k,ikd->d", weights, ghat) / n, rel=1e-9, abs=1e-12)
    assert second == pytest.approx(np.einsum("k,ikd->", weights, ghat**2) / n)
    if degree == 2:
        assert m == pytest.approx(np.mean([f.gradient for f in here], 0)), "no bias"


def test_control_variate_on_quadratics_has_the_variance_of_the_moved_gradients() -> None:
    """Gaussian, close to the anchor: (d + 2) mean ||delta_i||^2 instead of (d + 2) mean ||g_i||^2."""
    d, n = 6, 4
    here = [taylor(((d,),), 2, seed) for seed in range(n)]
    there = [moved(f, np.full(d, 1e-3)) for f in here]
    anchor = np.mean([f.gradient for f in there], 0)
    estimator = ZerothOrder(0.1, 1)
    _, second = control_variate(estimator, here, there, anchor)
    moves = [a.gradient - b.gradient for a, b in zip(here, there, strict=True)]
    g = np.mean([f.gradient for f in here], 0)
    expected = (d + 2) * np.mean([m @ m for m in moves]) + 2 * anchor @ (g - anchor) + anchor @ anchor
    assert second == pytest.approx(expected)
    plain = np.mean([second_moment(estimator, f) for f in here])
    assert second - g @ g < 1e-4 * (plain - g @ g)


# Refusals


class Own(Distribution):
    def fill(self, *_: Any) -> None:
        raise AssertionError("moments draw nothing")


class Doubled(ZerothOrder):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        ghat = super().__call__(*arguments, **options)
        return replace(ghat, terms=tuple((seed, 2 * c) for seed, c in ghat.terms))


class Short(Gaussian):
    def fill(self, stream: Any, piece: Any, out: Any) -> None:
        super().fill(stream, piece, out)
        out.mul_(0.5)


F = taylor(((2,), (2,)), 2)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "own distribution": (
        lambda: second_moment(ZerothOrder(distribution=Own()), F),
        "no closed form is known for own directions",
    ),
    "given": (
        lambda: second_moment(ZerothOrder(distribution=Known(())), F),
        "no closed form is known for known directions",
    ),
    "estimator that doubles": (lambda: second_moment(Doubled(), F), "class Doubled overrides ZerothOrder.__call__"),
    "its bias": (lambda: mean(Doubled(), F), "class Doubled overrides ZerothOrder.__call__"),
    "its factor": (lambda: linear_factor(Doubled(), 4), "class Doubled overrides ZerothOrder.__call__"),
    "another class": (lambda: mean(object(), F), "no closed form is known for estimators of class object"),  # type: ignore
    "distribution that halves": (
        lambda: second_moment(ZerothOrder(distribution=Short()), F),
        "no closed form is known for short directions",
    ),
    "own distribution's bias": (
        lambda: mean(ZerothOrder(distribution=Own()), taylor(((2,),), 3)),
        "no closed form is known for own",
    ),
    "shapes": (lambda: linear_factor(ZerothOrder(), 5, ((2,), (2,))), "have 4 entries, not 5"),
    "parts": (
        lambda: linear_factor(ZerothOrder(distribution=LowRank(1)), 8, ((2, 2), (4,))),
        "give parts, the squared",
    ),
    "masked": (
        lambda: linear_factor(ZerothOrder(distribution=Masked((torch.ones(4).bool(),))), 4),
        "variance of masked directions depends on the gradient: give gradient",
    ),
    "masks of other shapes": (
        lambda: mean(ZerothOrder(distribution=Masked((torch.ones(4).bool(),))), F),
        "masked directions: tensors of shapes .* do not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_closed_form_is_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(BadInput, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_drawn_directions_have_the_moments_that_the_closed_forms_use() -> None:
    """Fourth moments E z_i z_j z_k z_l T_jkl of real draws against `expectation`, in one vector."""
    shapes = ((3, 2), (2,))
    block = Block("b", tuple(torch.zeros(s, dtype=torch.float64) for s in shapes))
    third = taylor(shapes, 3).third
    assert third is not None
    for name, distribution in {"low rank": LowRank(2), "sparse": Sparse(0.5), "sphere": Sphere()}.items():
        z = torch.stack([distribution.draw(block, [3, i]) for i in range(600)]).numpy()
        sample = np.einsum("ni,nj,nk,ijk->n", z, z, z, third, optimize=True)[:, None] * z
        exact = distribution.expectation(shapes, [third], free=True)
        score = (sample.mean(0) - exact) / (sample.std(0) / math.sqrt(len(z)))
        assert np.abs(score).max() < 4.5, name


OUTER: dict[str, tuple[ZerothOrder, Array]] = {
    "gaussian": (ZerothOrder(q=3), squares(3, 3)),
    "one side": (ZerothOrder(sides=1, q=3), squares(3, 3)),
    "antithetic": (ZerothOrder(sides=1, q=6, average="antithetic"), squares(3, 3)),
    "sphere": (ZerothOrder(distribution=Sphere(), q=2), squares(3, 2, sphere=True)),
    "rademacher": (ZerothOrder(distribution=Rademacher(), q=2), squares(3, 2, 1.0)),
    "sparse": (ZerothOrder(distribution=Sparse(0.2)), squares(3, 1, 15.0)),
    "low rank, a vector": (ZerothOrder(distribution=LowRank(2)), squares(3)),
    "all orthogonal": (ZerothOrder(q=3, average="orthogonal"), np.eye(9)),
}


@pytest.mark.parametrize("name", OUTER)
def test_outer_moment_against_a_cubature_rule(name: str) -> None:
    """E ghat ghat' = a gg' + b ||g||^2 I + c diag(gg') by a rule that knows no formula for it."""
    estimator, moved = OUTER[name]
    g = np.array([1.0, -2.0, 0.5])
    a, b, c = outer_moment(estimator, 3)
    expected = a * np.outer(g, g) + b * (g @ g) * np.eye(3) + c * np.diag(g**2)
    np.testing.assert_allclose(outer(moved, np.outer(g, g)), expected, atol=1e-12)


@pytest.mark.parametrize("q", [1, 2, 4, 5])
def test_outer_moment_of_orthogonal_frames_by_sampling(q: int) -> None:
    """u'ghat ghat'u along g and across it, of 100,000 frames by QR: z-scores below 4.5."""
    d, rng = 5, np.random.default_rng(q)
    frames, _ = np.linalg.qr(rng.standard_normal((100_000, d, q)))
    estimates = d / q * np.einsum("nij,nj->ni", frames, frames[:, 0])  # of g = e_1
    a, b, c = outer_moment(ZerothOrder(q=q, average="orthogonal"), d)
    assert c == 0
    for j, value in ((0, a + b), (1, b)):
        squared = estimates[:, j] ** 2
        assert abs(squared.mean() - value) <= 4.5 * squared.std() / len(squared) ** 0.5 + 1e-12
    assert a + d * b == pytest.approx(d / q)  # E ||ghat||^2


def test_outer_moment_of_coordinates_and_of_the_factor() -> None:
    """z = sqrt(d) e_j by all its values; and the trace is `linear_factor` where c is 0 or g is any."""
    moved = np.mean([np.kron(s, s) for s in (4 * np.diag(row) for row in np.eye(4))], 0)
    g = np.array([1.0, 2.0, -1.0, 0.5])
    a, b, c = outer_moment(ZerothOrder(distribution=Coordinate()), 4)
    expected = a * np.outer(g, g) + b * (g @ g) * np.eye(4) + c * np.diag(g**2)
    np.testing.assert_allclose(outer(moved, np.outer(g, g)), expected, atol=1e-12)
    for estimator, _ in OUTER.values():
        assert outer_moment(estimator, 3).factor(3) == pytest.approx(linear_factor(estimator, 3))
    with pytest.raises(BadInput, match="have 4 entries, not 5"):
        outer_moment(ZerothOrder(), 5, ((2,), (2,)))
    with pytest.raises(BadInput, match="on matrices is no combination"):
        outer_moment(ZerothOrder(distribution=LowRank(1)), 4, ((2, 2),))
    with pytest.raises(BadInput, match="S z is Gaussian for the Hessian S H S"):
        outer_moment(ZerothOrder(distribution=Masked((torch.ones(4).bool(),))), 4)
