"""Variants of zeroth-order steps: updates against their definitions, moments against simulation, what is refused."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.stats import scores
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distributions import Gaussian, Rademacher, Sphere
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import KeptSubspace, LowRank
from smoothlab.zeroth.moments import Taylor
from smoothlab.zeroth.muon import Muon
from smoothlab.zeroth.names import VARIANTS
from smoothlab.zeroth.variant import State, Variant
from smoothlab.zeroth.variants import Adaptive, Momentum, Plain, Spread, Subspace, variant_named

Array = np.ndarray
GRADIENT = np.array([1.0, -2.0, 0.5, 0.3, 1.5])


def vector(d: int = 5) -> Block:
    return Block("x", (nn.Parameter(torch.zeros(d, dtype=torch.float64)),))


def linear(block: Block, gradient: Array = GRADIENT) -> Callable[[], Tensor]:
    g = torch.from_numpy(gradient)
    return lambda: g @ block.params[0]


def updates(variant: Variant, estimator: ZerothOrder, state: State, count: int, apart: int) -> Array:
    """Every `apart`-th update of a run at weights that stand still; with 0 each from the same state."""
    block = vector()
    rows = []
    for t in range(count * max(apart, 1)):
        update, after = variant.update(state, estimator(linear(block), block, (7, t), value=0.0))
        if apart:
            state = after
        if not apart or t % apart == apart - 1:
            rows.append(update.dense(block).numpy())
    return np.array(rows)


F = Taylor(GRADIENT, np.zeros((5, 5)))
ONE, SEVERAL = ZerothOrder(sides=1), ZerothOrder(sides=1, q=3)
# variant, estimator, state before, steps between two independent updates, closed form
MOMENTS: dict[str, tuple[Variant, ZerothOrder, State, int, Any]] = {
    "plain": (Plain(), ONE, (), 1, Momentum(0.0).moments(ONE, F, 1)),
    "momentum": (Momentum(0.8, 3), ONE, (), 3, Momentum(0.8, 3).moments(ONE, F, 9)),
    "momentum of several signs": (
        Momentum(0.5, 2), ZerothOrder(sides=1, q=2, distribution=Rademacher()), (), 2,
        Momentum(0.5, 2).moments(ZerothOrder(sides=1, q=2, distribution=Rademacher()), F, 2),
    ),
    "adaptive, first step": (Adaptive(), ONE, (), 0, Adaptive().moments(ONE, F)),
    "adaptive, later": (Adaptive(0.6), ONE, (4.0, 0.36), 0, Adaptive(0.6).moments(ONE, F, (4.0, 0.36))),
    "adaptive, several": (Adaptive(0.2), SEVERAL, (0.5, 0.2), 0, Adaptive(0.2).moments(SEVERAL, F, (0.5, 0.2))),
    "spread": (Spread(), ZerothOrder(sides=1, q=8), (), 0, Spread().moments(ZerothOrder(sides=1, q=8), F)),
}  # fmt: skip


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_are_those_of_simulated_updates(name: str) -> None:
    variant, estimator, state, apart, (mean, second) = MOMENTS[name]
    rows = updates(variant, estimator, state, 1000, apart)
    found = [scores.clustered(rows[:, [i]], mean[i]).z for i in range(5)]
    found.append(scores.clustered((rows**2).sum(1, keepdims=True), second).z)
    assert max(map(abs, found)) < scores.limit(1e-3, 6 * len(MOMENTS)), found


def test_moments_of_momentum_are_those_over_all_signs() -> None:
    """Three steps of one direction on two entries: 64 equally likely runs."""
    g, estimator = np.array([1.0, -3.0]), ZerothOrder(sides=1, distribution=Rademacher())
    weights, signs = Momentum(0.6, 3).weights(7), list(itertools.product((-1.0, 1.0), repeat=2))
    ends = []
    for run in itertools.product(map(np.array, signs), repeat=3):
        ends.append(sum(w * (g @ z) * z for w, z in zip(weights, run, strict=True)))
    mean, second = Momentum(0.6, 3).moments(estimator, Taylor(g, np.zeros((2, 2))), 7)
    assert np.allclose(np.mean(ends, 0), mean) and np.mean([u @ u for u in ends]) == pytest.approx(second, rel=1e-12)
    squares = 0.4 * (1 + 0.6**3) / (1.6 * (1 - 0.6**3))  # the sum of squared weights in closed form
    assert sum(w * w for w in weights) == pytest.approx(squares, rel=1e-12)


@pytest.mark.parametrize("kind", ["adaptive", "spread"])
def test_second_moments_are_those_of_many_normal_numbers(kind: str) -> None:
    """Updates made from their definitions, a million at a time, on which a relative error of 1 % is seen."""
    rng, g, q, n = np.random.default_rng(1), np.array([0.6, -0.8, 1.0]), 6, 200_000
    z = rng.normal(size=(n, q, 3))
    slopes = z @ g
    estimator, f = ZerothOrder(q=q), Taylor(g, np.zeros((3, 3)))
    mean, second = Spread().moments(estimator, f)
    scale = 1 / slopes.std(1, ddof=1)
    if kind == "adaptive":
        mean, second = Adaptive(0.3).moments(estimator, f, (0.1, 0.3))
        scale = 1 / np.sqrt((0.3 * 0.1 + 0.7 * (slopes**2).sum(1) / q**2) / (1 - 0.09))
    updates = (slopes[:, :, None] * z).mean(1) * scale[:, None]
    square = (updates**2).sum(1)
    found = [scores.clustered(updates[:, [i]], mean[i]).z for i in range(3)]
    found.append(scores.clustered(square[:, None], second).z)
    assert max(map(abs, found)) < scores.limit(1e-3, 8), found
    assert square.std() / square.mean() / math.sqrt(n) < 0.01 / 5


def test_moments_of_a_first_adaptive_step_are_those_of_its_length() -> None:
    mean, second = Adaptive().moments(SEVERAL, F)
    root = math.sqrt(2) * math.gamma(2) / math.gamma(1.5)  # E of chi with 3 degrees
    assert np.allclose(mean, GRADIENT / np.linalg.norm(GRADIENT) * root, rtol=1e-6)
    assert second == pytest.approx(3 + 5 - 1, rel=1e-6)


def test_spread_has_a_mean_from_three_directions_on_and_a_second_moment_from_four() -> None:
    assert Spread().moments(ZerothOrder(q=3), F)[1] == math.inf
    assert Spread().moments(ZerothOrder(q=4), F)[1] < math.inf
    # The mean with two would be that of 1/|xi_1 - xi_2|, whose truncated means grow with the logarithm of the bound.
    normal = torch.Generator().manual_seed(0)
    gaps = torch.randn(2, 10**6, generator=normal, dtype=torch.float64).diff(dim=0).abs()
    means = [float((1 / gaps.clamp(min=10.0**-k)).mean()) for k in (1, 2, 3, 4)]
    steps = np.diff(means)
    density = 2 / math.sqrt(4 * math.pi)  # of |xi_1 - xi_2| at 0
    assert np.allclose(steps, density * math.log(10), rtol=0.25), steps


def enumerated(variant: Variant, q: int, gradient: Array) -> Array:
    """Mean update over all signs of q directions."""
    d, total = len(gradient), np.zeros(len(gradient))
    frames = list(itertools.product(itertools.product((-1.0, 1.0), repeat=d), repeat=q))
    for frame in frames:
        z = np.array(frame)
        terms = tuple(((j,), float(z[j] @ gradient) / q) for j in range(q))
        update, _ = variant.update((), Directional(Rademacher(), terms))
        total += np.array([c for _, c in update.terms]) @ z
    return total / len(frames)


@pytest.mark.parametrize(("variant", "q"), [(Adaptive(), 1), (Spread(), 3)])
def test_with_signs_the_mean_leaves_the_gradients_line(variant: Variant, q: int) -> None:
    g = np.array([3.0, 2.0, 1.5])
    m, unit = enumerated(variant, q, g), g / np.linalg.norm(g)
    assert np.linalg.norm(m - unit * (unit @ m)) > 0.05 * np.linalg.norm(m)
    assert np.allclose(enumerated(Plain(), q, g), g)


def test_momentum_is_the_recursion_over_its_weight() -> None:
    block, m, state = vector(), torch.zeros(5, dtype=torch.float64), ()
    estimates = [ONE(linear(block), block, (0, t), value=0.0) for t in range(12)]
    windowed: State = ()
    for t, estimate in enumerate(estimates):
        m = 0.7 * m + estimate.dense(block)
        update, state = Momentum(0.7, 100).update(state, estimate)
        torch.testing.assert_close(update.dense(block), m * 0.3 / (1 - 0.7 ** (t + 1)), rtol=1e-12, atol=1e-12)
        short, windowed = Momentum(0.7, 4).update(windowed, estimate)
    # What a window of 4 forgets: 0.7^4 times the difference to the mean of the older estimates.
    older = sum(0.7**j * estimates[7 - j].dense(block) for j in range(8)) / sum(0.7**j for j in range(8))
    forgotten = 0.7**4 * (1 - 0.7**8) / (1 - 0.7**12)
    apart = short.dense(block) - update.dense(block)
    torch.testing.assert_close(apart, forgotten * (short.dense(block) - older), rtol=1e-10, atol=1e-12)
    assert Momentum(0.7).window == 13 and 0.7**13 < 0.01 < 0.7**12 and Momentum(0.0).window == 1


def test_adaptive_is_adams_form_of_one_number() -> None:
    block, v, state = vector(), 0.0, ()
    for t in range(6):
        estimate = SEVERAL(linear(block), block, (0, t), value=0.0)
        v = 0.9 * v + 0.1 * sum(c * c for _, c in estimate.terms)
        update, state = Adaptive(0.9).update(state, estimate)
        expected = estimate.dense(block) / (math.sqrt(v / (1 - 0.9 ** (t + 1))) + 1e-8)
        torch.testing.assert_close(update.dense(block), expected, rtol=1e-12, atol=0)
    assert Adaptive().update((), Directional(Gaussian(), (((0,), 0.0),)))[0].terms == (((0,), 0.0),)


def test_spread_is_fzoos_step_from_its_losses() -> None:
    block, mu, q = vector(), 1e-2, 5
    g, curvature = torch.from_numpy(GRADIENT), torch.linspace(0.1, 2, 5, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return 3 + g @ x + (curvature * x * x).sum()

    estimator = ZerothOrder(mu, sides=1, q=q, distribution=Rademacher())
    estimate = estimator(lambda: loss(block.params[0]), block, (4, 0))
    zs = [Rademacher().draw(block, (4, 0, j)) for j in range(q)]
    losses = torch.stack([loss(mu * z) for z in zs])
    step = sum((value - 3) * z for value, z in zip(losses, zs, strict=True)) / (q * losses.std())
    update, _ = Spread().update((), estimate)
    torch.testing.assert_close(update.dense(block), step, rtol=1e-9, atol=1e-9)
    scaled = estimator(lambda: 40 * loss(block.params[0]) + 1, block, (4, 0))
    torch.testing.assert_close(Spread().update((), scaled)[0].dense(block), step, rtol=1e-9, atol=1e-9)
    flat = Directional(Gaussian(), (((0,), 0.25), ((1,), 0.25)))
    assert [c for _, c in Spread().update((), flat)[0].terms] == [0.0, 0.0]


def rows_of(z: Tensor) -> Tensor:
    return torch.linalg.svd(z.view(6, 4))[2][:2].double()


@pytest.mark.parametrize("generator", ["torch", "portable"])
def test_the_columns_stay_for_a_window_and_the_rows_do_not(generator: Any) -> None:
    block = Block("x", (torch.zeros(6, 4), torch.zeros(6, 4), torch.zeros(3)))
    kept = KeptSubspace(2, 5, generator=generator)

    def projections(seed: Sequence[int]) -> list[Tensor]:
        parts = block.split(kept.draw(block, seed))[:2]
        return [rows.T @ rows for rows in map(rows_of, parts)]

    first = projections((3, 10, 0, 0))
    for step in (11, 14):
        for a, b in zip(first, projections((3, step, 0, 0)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    others = [
        first[1],
        *(projections(seed)[0] for seed in ((3, 15, 0, 0), (3, 10, 0, 1), (3, 10, 1, 0), (4, 10, 0, 0))),
    ]
    assert all(float((first[0] - other).abs().max()) > 0.05 for other in others)
    assert not torch.equal(kept.draw(block, (3, 10, 0, 0)), kept.draw(block, (3, 11, 0, 0)))
    # In the first step of all, W is that of `LowRank`, and without a step in the seed in all.
    plain = LowRank(2, generator=generator)
    assert torch.equal(kept.draw(block, (3, 0, 0, 0)), plain.draw(block, (3, 0, 0, 0)))
    assert torch.equal(kept.draw(block, (3, 9)), plain.draw(block, (3, 9)))


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_the_mean_of_a_window_has_its_second_moment(steps: int) -> None:
    shapes, kept = ((4, 3), (2,)), KeptSubspace(2, 6)
    block = Block("x", tuple(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
    g = torch.linspace(-1, 2, 14, dtype=torch.float64)
    parts = [float(part.square().sum()) for part in block.split(g)]
    squares, means = [], []
    for run in range(400):
        z = torch.stack([kept.draw(block, (run, t, 0, 0)) for t in range(steps)])
        estimate = ((z @ g)[:, None] * z).mean(0)
        means.append(estimate.numpy())
        squares.append([float(estimate.square().sum() / g.square().sum())])
    expected = kept.second_moment_of_window(shapes, parts, steps)
    found = [scores.clustered(np.array(squares), expected).z]
    found += [scores.clustered(np.array(means)[:, [i]], float(g[i])).z for i in range(14)]
    assert max(map(abs, found)) < scores.limit(1e-3, 3 * 15), found
    assert expected == pytest.approx(kept.second_moment(shapes, parts=parts)[0]) or steps > 1


def test_the_second_moment_of_a_window_is_that_of_many_normal_numbers() -> None:
    m, n, r, k, count = 3, 5, 2, 8, 20_000
    normal = torch.Generator().manual_seed(2)
    g = torch.randn(m, n, generator=normal, dtype=torch.float64)
    u = torch.randn(count, k, m, r, generator=normal, dtype=torch.float64)
    w = torch.randn(count, 1, n, r, generator=normal, dtype=torch.float64)
    z = u @ w.mT / r**0.5
    estimate = ((z * g).sum((-2, -1), keepdim=True) * z).mean(1)
    squares = (estimate.square().sum((-2, -1)) / g.square().sum()).numpy()
    expected = KeptSubspace(r, k).second_moment_of_window(((m, n),), (1.0,), k)
    found = scores.clustered(squares[:, None], expected)
    assert abs(found.z) < 4 and found.error < 0.03 * expected
    assert expected > 1.3 * LowRank(r).second_moment(((m, n),))[0] / k + 1  # what independent steps would have


def test_mixtures_take_the_columns_of_the_window() -> None:
    block, kept = Block("x", (torch.zeros(6, 4),)), KeptSubspace(1, 5)
    seeds = ((3, 7, 0, 0), (3, 8, 0, 0), (3, 8, 0, 1))
    gradient = Directional(kept, tuple((seed, 1.0 + i) for i, seed in enumerate(seeds)))
    expected = sum((1.0 + i) * kept.draw(block, seed) for i, seed in enumerate(seeds))
    torch.testing.assert_close(gradient.dense(block), expected)


def dense_update(estimate: Directional, block: Block) -> list[Tensor]:
    """What Muon adds to zeros."""
    zeros = Block("x", tuple(torch.zeros_like(p) for p in block.params))
    Muon().update((), estimate)[0].add_to(zeros, 1.0)
    return list(zeros.params)


MUONS = {"one": (1, 1), "several": (3, 2), "more than columns": (4, 2)}  # q and rank on matrices [6, 5] and [3, 7]


@pytest.mark.parametrize("name", MUONS)
def test_muon_is_the_decomposition_of_the_estimate(name: str) -> None:
    q, rank = MUONS[name]
    block = Block("x", tuple(torch.zeros(shape, dtype=torch.float64) for shape in ((6, 5), (3, 7), (2, 1, 2), (0, 3))))
    estimator = ZerothOrder(q=q, distribution=LowRank(rank))
    estimate = Directional(LowRank(rank), tuple(((5, j), (-2.0) ** j) for j in range(q)))
    *matrices, vector_update, _ = dense_update(estimate, block)
    *parts, last, _ = block.split(estimate.dense(block))
    square = float(vector_update.square().sum())
    for u, part in zip(matrices, parts, strict=True):
        left, s, right = torch.linalg.svd(part.view(u.shape), full_matrices=False)
        seen = s > 1e-9 * s[0]
        torch.testing.assert_close(u, left[:, seen] @ right[seen], rtol=1e-8, atol=1e-10)
        square += float(u.square().sum())
    torch.testing.assert_close(vector_update.flatten(), last / last.norm())
    assert square == pytest.approx(Muon().second_moment(estimator, ((6, 5), (3, 7), (2, 1, 2))), rel=1e-9)
    # A direction without a slope adds nothing, and a step is alpha times the update.
    idle = Directional(LowRank(rank), (*estimate.terms, ((5, 99), 0.0)))
    moved = Block("x", tuple(torch.full_like(p, 3.0) for p in block.params))
    Muon().update((), idle)[0].add_to(moved, -0.5)
    for p, u in zip(moved.params, dense_update(estimate, block), strict=True):
        torch.testing.assert_close(p, 3.0 - 0.5 * u, rtol=1e-9, atol=1e-9)
    nothing = Directional(LowRank(rank), (((5, 0), 0.0),))
    assert not any(float(u.abs().sum()) for u in dense_update(nothing, block))


def test_muon_goes_downhill_on_average_and_its_mean_is_not_along_the_gradient() -> None:
    block, g = Block("x", (torch.zeros(2, 2, dtype=torch.float64),)), torch.diag(torch.tensor([3.0, 1.0])).double()
    rows = []
    for i in range(1500):
        z = LowRank(1).draw(block, (3, i))
        estimate = Directional(LowRank(1), (((3, i), float(g.flatten() @ z)),))
        rows.append(dense_update(estimate, block)[0].flatten().numpy())
    updates, flat = np.array(rows), g.flatten().numpy()
    assert scores.clustered((updates @ flat)[:, None], 0.0).z > 10
    # Along the gradient both would be 3 times the lower entry: the larger singular value is held back.
    assert scores.clustered((updates[:, 0] - 3 * updates[:, 3])[:, None], 0.0).z < -5
    assert np.allclose((updates**2).sum(1), 1.0)


def test_every_name_is_its_class_in_lower_case_and_is_read_again() -> None:
    for name in VARIANTS:
        variant = variant_named(name)
        assert type(variant).__name__.lower() == name == variant.name.partition("(")[0]
        assert variant_named(variant.name) == variant
    assert variant_named("momentum(0.9, 7)") == Momentum(0.9, 7) and variant_named("subspace(9)").name == "subspace(9)"


LINEAR_ONLY = "has closed forms on quadratics with two sides, and on linear functions with one"
GAUSSIAN_ONLY = "has closed forms for plain averages of Gaussian directions of torch's generator, not for"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown": (lambda: variant_named("lion", "--variant"), "--variant lion is unknown: use one of plain, momentum"),
    "no numbers": (lambda: variant_named("momentum(x)"), "momentum\\(x\\) has the parameters beta, window"),
    "too many": (lambda: variant_named("spread(2)"), "spread\\(2\\) has the parameters none: give numbers"),
    "beta": (lambda: variant_named("momentum(1)"), "momentum's beta = 1: use a number from 0 to below 1"),
    "window": (lambda: Momentum(0.9, 1.5), "momentum over 1.5 steps: use a whole number"),  # type: ignore[arg-type]
    "infinite": (lambda: variant_named("momentum(0.9, inf)"), "has the parameters beta, window"),
    "adaptive": (lambda: Adaptive(-0.1), "adaptive beta = -0.1: use a number from 0 to below 1"),
    "subspace": (lambda: Subspace(0), "a subspace kept for 0 steps: use a whole number of at least 1"),
    "spread of one": (lambda: Spread().oracle(ZerothOrder()), "variant spread with q = 1 plain directions"),
    "spread of a frame": (
        lambda: Spread().oracle(ZerothOrder(q=4, average="orthogonal")), "with q = 4 orthogonal directions"
    ),
    "spread of one term": (
        lambda: Spread().update((), Directional(Gaussian(), (((0,), 1.0),))), "spread with one direction"
    ),
    "full rank of muon": (lambda: Muon().oracle(ZerothOrder()), "with gaussian directions: it is made for low-rank"),
    "portable muon": (
        lambda: Muon().oracle(ZerothOrder(distribution=LowRank(1), generator="portable")),
        "muon with portable directions: its decompositions are rounded otherwise",
    ),
    "full rank": (lambda: Subspace().oracle(ZerothOrder()), "with gaussian directions: it is made for low-rank"),
    "vector": (
        lambda: Momentum().update((), Directional(Gaussian(), (((0,), 1.0),), torch.ones(5))),
        "variant momentum\\(0.9, 44\\) takes plain zeroth-order estimates: leave control variates out",
    ),
    "moments of signs": (lambda: Adaptive().moments(ZerothOrder(distribution=Rademacher()), F), GAUSSIAN_ONLY),
    "moments on the sphere": (lambda: Spread().moments(ZerothOrder(q=4, distribution=Sphere()), F), GAUSSIAN_ONLY),
    "moments of table normals": (lambda: Adaptive().moments(ZerothOrder(generator="portable"), F), GAUSSIAN_ONLY),
    "moments of curvature": (lambda: Adaptive().moments(ONE, replace(F, hessian=np.eye(5))), LINEAR_ONLY),
    "moments of a cubic": (lambda: Adaptive().moments(ONE, replace(F, third=np.ones((5, 5, 5)))), LINEAR_ONLY),
    "moments of two": (lambda: Spread().moments(ZerothOrder(q=2), F), "its mean is finite from q = 3 on"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_variant_refuses_is_one_line(name: str) -> None:
    work, words = REFUSED[name]
    with pytest.raises(BadInput, match=words) as told:
        work()
    assert "\n" not in str(told.value)
