"""Algorithm 1 for many replicas against the plain loop, `ZerothOrder`, and exact recursions of its moments."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothlab.algorithm1 import engine
from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.algorithm1.quadratics import shapes_of_x
from smoothlab.algorithm1.reference import one_replica
from smoothlab.algorithm1.result import Result
from smoothlab.algorithm1.sampling import Draws, Fixed, Fresh, matrix_shape
from smoothlab.errors import BadInput
from smoothlab.objectives import (
    Cosh,
    CosineCoupling,
    FiniteSum,
    Oscillating,
    Power,
    Quadratic,
    QuadraticCoupling,
    objective,
    quadratic_sum,
)
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import named
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.names import DISTRIBUTIONS
from tests.cases import CURVED

OBJECTIVES: dict[str, FiniteSum] = {
    "quadratic": objective(Quadratic(3.0), Quadratic(0.5), d_x=4, d_y=2, n=3, sigma=0.7),
    "coupled": objective(Quadratic(3.0), Quadratic(0.5), QuadraticCoupling(0.4, 1.0, 0.5), n=3, sigma=0.7),
    "no noise": objective(Quadratic(3.0), Quadratic(0.5), d_x=2, d_y=1, n=2),
    "one summand": objective(Oscillating(0.3, 1.75), Quadratic(3.0)),
    "cosh": objective(Cosh(1.0, 0.5), Power(1.0, 4.0), n=4, sigma=0.5),
    "non-convex": objective(Oscillating(0.3, 1.75), Quadratic(3.0), CosineCoupling(0.5, 1.0, 0.5), n=2, sigma=1.0),
    **CURVED,
}
HOW = Algorithm1(eta_x=0.02, eta_y=0.05, epochs=4, distribution="sphere")
ORACLES = [("exact", 0.0), ("one-sided", 0.3), ("two-sided", 0.3), ("two-sided", 0.0)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tasks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def given(f: FiniteSum, epochs: int, replicas: int, seed: int = 0, q: int = 1) -> Fixed:
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.broadcast_to(np.arange(f.n), (epochs, replicas, f.n)), axis=2)
    return Fixed(torch.from_numpy(orders), torch.from_numpy(rng.normal(size=(epochs, f.n * q, replicas, f.d_x))))


class Recorded:
    """The draws of another, kept by replica."""

    def __init__(self, draws: Draws, epochs: int, f: FiniteSum, replicas: int, q: int = 1) -> None:
        self.draws, self.kept = draws, given(f, epochs, replicas, q=q)

    def order(self, epoch: int, live: Tensor) -> Tensor:
        order = self.draws.order(epoch, live)
        self.kept.orders[epoch, live] = order.T
        return order

    def direction(self, epoch: int, step: int, live: Tensor) -> Tensor:
        v = self.draws.direction(epoch, step, live)
        self.kept.directions[epoch, step, live] = v
        return v


def same_as_plain(how: Algorithm1, f: FiniteSum, z0: Tensor, draws: Fixed, found: Result) -> None:
    # To rounding: the plain loop sums inner products in another order, and differences include <c_i, z>, which the
    # engine takes out. 24 steps of at most 1e-13 of a value each.
    for r in range(len(found.epochs)):
        plain = one_replica(how, f, z0, draws.orders[:, r], draws.directions[:, :, r])
        times = (found.epochs[r], found.left[r], found.reached[r], found.diverged[r])
        assert times == (plain.epochs, plain.left, plain.reached, plain.diverged)
        for name, value in (("average_x", plain.average_x), ("average_y", plain.average_y), ("z", plain.z.numpy())):
            np.testing.assert_allclose(getattr(found, name)[r], value, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize(("name", "oracle"), list(product(OBJECTIVES, ORACLES)), ids=str)
def test_replicas_are_the_plain_loop_on_the_same_draws(name: str, oracle: tuple[Any, float], q: int) -> None:
    f = OBJECTIVES[name]
    how, z0 = replace(HOW, oracle=oracle[0], mu=oracle[1], q=q), torch.linspace(-1, 1.5, f.dim).double()
    draws = given(f, how.epochs, 5, q=q)
    same_as_plain(how, f, z0, draws, how.run(f, z0, 5, draws=draws))


def test_a_thousand_replicas_of_sums_that_curve_differently_are_the_plain_loop() -> None:
    """Ten of the thousand are replayed; the first step of all is that of the mean of their q estimates."""
    how, count = replace(HOW, epochs=3, q=2, mu=0.1), 1000
    for name, f in CURVED.items():
        recorded = Recorded(Fresh((3,), f.n, f.d_x, "reshuffle", "sphere"), how.epochs, f, count, q=2)
        found = how.run(f, torch.ones(f.dim).double(), count, draws=recorded)
        assert len({tuple(z) for z in found.z}) == count, name
        for r in range(0, count, 100):
            kept = recorded.kept
            plain = one_replica(how, f, torch.ones(f.dim), kept.orders[:, r], kept.directions[:, :, r])
            np.testing.assert_allclose(found.z[r], plain.z.numpy(), rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("distribution", "order"), list(product(("gaussian", "sphere", "rademacher"), ("reshuffle", "once", "replace")))
)
def test_fresh_draws_make_the_same_run_when_they_are_replayed(distribution: Any, order: Any) -> None:
    f, z0 = OBJECTIVES["coupled"], torch.ones(5).double()
    how = replace(HOW, distribution=distribution, order=order, mu=0.1)
    recorded = Recorded(Fresh((7, 0), f.n, f.d_x, order, distribution), how.epochs, f, 6)
    same_as_plain(how, f, z0, recorded.kept, how.run(f, z0, 6, draws=recorded))
    alone = how.run(f, z0, 6, seed=7)
    np.testing.assert_array_equal(alone.z, how.run(f, z0, 6, draws=recorded.kept).z)


@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "sparse(0.4)", "lowrank(1)"])
def test_every_distribution_of_the_table_makes_the_steps_of_the_plain_loop(distribution: str, q: int) -> None:
    """On a sum whose components curve differently, x a matrix [2, 3] where directions go by its shape."""
    f, shape = quadratic_sum(1.0, 0.6, 0.5, sigma=1.0, d_x=6, d_y=1, n=3), matrix_shape(distribution, 6)
    how = replace(HOW, distribution=distribution, q=q, mu=0.1, shape=shape)
    recorded = Recorded(Fresh((7, 0), f.n, f.d_x, "reshuffle", distribution, shape=shape), how.epochs, f, 5, q)
    same_as_plain(how, f, torch.ones(7), recorded.kept, how.run(f, torch.ones(7), 5, draws=recorded))
    np.testing.assert_array_equal(how.run(f, torch.ones(7), 5, seed=7).z,
                                  how.run(f, torch.ones(7), 5, draws=recorded.kept).z)  # fmt: skip
    ranks = torch.linalg.matrix_rank(recorded.kept.directions.view(-1, 2, 3), rtol=1e-5)
    assert set(ranks.tolist()) == {1} or distribution != "lowrank(1)"


@pytest.mark.parametrize("halt", [True, False])
def test_replicas_that_stop_leave_the_others_as_they_are(halt: bool) -> None:
    f, z0 = OBJECTIVES["quadratic"], torch.ones(6).double()
    how = replace(
        HOW, eta_x=0.11, epochs=8, above=7.5, below=13.0, halt=halt, distribution="gaussian", keep=(0, 2, 5, 8)
    )
    for order in ("reshuffle", "once"):
        recorded = Recorded(Fresh((1,), f.n, f.d_x, order, "gaussian"), how.epochs, f, 40)
        found = how.run(f, z0, 40, draws=recorded)
        assert (found.left >= 0).sum() > 5 and (found.reached >= 0).sum() > 5
        assert (
            len(set(found.epochs)) == (1 if not halt else len(set(found.epochs))) and (found.epochs.min() < 8) == halt
        )
        same_as_plain(how, f, z0, recorded.kept, found)
        for number, epoch in enumerate(how.keep):  # what is kept is that of the run that ends there
            if epoch:
                short = replace(how, epochs=epoch, keep=())
                np.testing.assert_allclose(
                    found.kept_gap[number], short.run(f, z0, 40, draws=recorded.kept).gap, rtol=1e-10
                )
        if order == "once":
            orders = recorded.kept.orders[:, found.epochs == 8]
            assert (orders == orders[0]).all()


def test_groups_are_independent_of_each_other_and_fixed_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "GROUP", 30)
    f, z0 = OBJECTIVES["quadratic"], torch.ones(6).double()
    found = HOW.run(f, z0, 12, seed=3)
    assert len({tuple(z) for z in found.z}) == 12 and (found.epochs == 4).all()
    np.testing.assert_array_equal(found.z, HOW.run(f, z0, 12, seed=3).z)
    assert (found.z != HOW.run(f, z0, 12, seed=(3, 1)).z).all()
    draws = given(f, 4, 12)
    several = HOW.run(f, z0, 12, draws=draws).z
    monkeypatch.setattr(engine, "GROUP", 1 << 17)
    np.testing.assert_array_equal(several, HOW.run(f, z0, 12, draws=draws).z)


def test_one_step_is_that_of_the_estimator() -> None:
    for (name, f), sides in product(OBJECTIVES.items(), (1, 2)):
        z0, draws = torch.linspace(0.2, 1, f.dim).double(), given(f, 1, 1)
        how = replace(HOW, oracle="one-sided" if sides == 1 else "two-sided", mu=0.2, epochs=1)
        blocks = f.blocks(z0)
        estimator = ZerothOrder(0.2, sides=sides)  # type: ignore[arg-type]
        for step, i in enumerate(draws.orders[0, 0].tolist()):
            loss = f.loss(blocks, i)
            ghat = estimator(loss, blocks["x"], (0,), directions=[draws.directions[0, step, 0]]).dense(blocks["x"])
            (g_y,) = torch.autograd.grad(loss(), blocks["y"].params)
            blocks["x"].params[0].data -= how.eta_x * ghat
            blocks["y"].params[0].data -= how.eta_y * g_y
        end = torch.cat([blocks["x"].params[0], blocks["y"].params[0]]).detach()
        np.testing.assert_allclose(how.run(f, z0, 1, draws=draws).z[0], end, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_moments_follow_their_exact_recursion(precision: Any) -> None:
    """f_{1,2} = (L/2)||x||^2 +- <a, x>: E||x - eta v v'g||^2 = ||x||^2 - 2 eta <x, g> + eta^2 (d + 2) ||g||^2."""
    f = objective(Quadratic(2.0), Quadratic(1.0), d_x=7, d_y=1, n=2, sigma=(3.0, 0.0))
    a, eta, epochs, replicas, squares = f.shifts[0, :7], 0.03, 5, 20_000, []
    for first in (1, -1):  # reshuffling: each epoch a + then a -, or the other way round; the mean over all orders
        for rest in product((1, -1), repeat=epochs - 1):
            m, q, aa = float(a.sum()), 7.0, float(a @ a)
            for sign in [s for e in (first, *rest) for s in (e, -e)]:
                gg, xg = 4 * q + 4 * sign * m + aa, 2 * q + sign * m
                m, q = m - eta * (2 * m + sign * aa), q - 2 * eta * xg + eta**2 * 9 * gg
            squares.append(q)
    how = Algorithm1(eta, 0.1, epochs, precision=precision)
    found = (how.run(f, torch.ones(8).double(), replicas, seed=5).z[:, :7] ** 2).sum(1)
    assert abs(found.mean() - np.mean(squares)) < 4 * found.std() / replicas**0.5
    assert found.std() / replicas**0.5 < 0.02 * np.mean(squares)  # else the line above says nothing


def test_a_replica_that_overflows_is_marked_and_the_others_go_on() -> None:
    f = objective(Power(1.0, 4.0), Quadratic(1.0), n=2, sigma=0.1)
    z0 = torch.ones(4, f.dim).double()
    z0[2, :3] = 50.0
    how = replace(HOW, epochs=30, oracle="exact", keep=(0, 30))
    draws = given(f, 30, 4)
    found = how.run(f, z0, 4, draws=draws)
    assert found.diverged.tolist() == [False, False, True, False] and 1 <= found.epochs[2] < 10
    assert (
        np.isinf([found.average_x[2], found.gap[2], found.kept_gap[1, 2]]).all()
        and np.isfinite(found.kept_gap[0]).all()
    )
    fine = how.run(f, z0[[0, 1, 3]], 3, draws=Fixed(draws.orders[:, [0, 1, 3]], draws.directions[:, :, [0, 1, 3]]))
    np.testing.assert_array_equal(found.z[[0, 1, 3]], fine.z)
    assert np.isfinite(fine.average).all()
    assert replace(how, above=1e8).run(f, z0, 4, draws=draws).left.tolist() == [-1, -1, 1, -1]


def test_memory_does_not_grow_with_epochs() -> None:
    f, held = OBJECTIVES["quadratic"], []

    class Counting(Fresh):
        def order(self, epoch: int, live: Tensor) -> Tensor:
            if epoch in (3, 20, 39):
                held.append(sum(one.numel() for one in gc.get_objects() if type(one) is Tensor))
            return super().order(epoch, live)

    draws = Counting((0,), f.n, f.d_x, "reshuffle", "gaussian")
    replace(HOW, epochs=40).run(f, torch.ones(6).double(), 10, draws=draws)
    assert len(held) == 3 and len(set(held)) == 1


# ------------------------------------------------------------------------------------------------ draws


def fresh(
    distribution: Any = "gaussian", order: Any = "reshuffle", precision: Any = "float32", n: int = 3, dim: int = 5
) -> Fresh:
    return Fresh((2,), n, dim, order, distribution, precision)


@pytest.mark.parametrize(
    ("distribution", "precision"),
    [("gaussian", "float32"), ("gaussian", "float64"), ("sphere", "float32"), ("rademacher", "float32")],
)
def test_directions_have_the_moments_of_their_distribution(distribution: Any, precision: Any) -> None:
    draws, live = fresh(distribution, precision=precision), torch.arange(4000)
    v = torch.stack([draws.direction(0, step, live).clone() for step in range(12)])  # blocks hold 6 steps
    assert draws._block.shape[0] == 6 and v.shape == (12, 4000, 5) and v.dtype == torch.float64
    flat = v.permute(1, 0, 2).reshape(4000, 60).numpy()  # all steps of a replica side by side
    second = flat.T @ flat / 4000
    spread = np.sqrt(np.maximum((flat**2).T @ (flat**2) / 4000 - second**2, 1e-30) / 4000)
    assert (np.abs(second - np.eye(60)) <= 4.8 * spread + 1e-12).all()  # 1,830 entries: 4.8 is exceeded once in 350
    fourth = {"gaussian": 3.0, "sphere": 15 / 7, "rademacher": 1.0}[distribution]
    assert abs((flat**4).mean() - fourth) <= 4 * (flat**4).std() / flat.size**0.5 + 1e-12
    if distribution == "sphere":
        np.testing.assert_allclose((v**2).sum(-1), 5, rtol=1e-12)


@pytest.mark.parametrize("name", [*DISTRIBUTIONS, "sparse(0.4)", "lowrank(1)"])
def test_replicas_have_the_directions_of_the_seeded_ones(name: str) -> None:
    """Directions of one generator against those that a seed fixes, one at a time, and both against closed forms."""
    distribution, d, generator = named(name), 6, torch.Generator().manual_seed(1)
    shape = matrix_shape(name, d)
    fast, slow = torch.empty(40_000, d).double(), torch.empty(700, d).double()
    distribution.fill_replicas(fast, torch.empty(fast.shape), generator, shape)
    Distribution.fill_replicas(distribution, slow, torch.empty(slow.shape), generator, shape)
    g = torch.tensor([1.0, -0.5, 2.0, 0.0, 0.3, 1.0]).double()
    truths = (
        distribution.second_moment(shapes_of_x(d, name))[0],
        distribution.sixth_moment_of_length(shapes_of_x(d, name)),
    )
    for v in (fast, slow):
        outer = v[:, :, None] * v[:, None, :]
        spread = outer.std(0) / len(v) ** 0.5
        assert ((outer.mean(0) - torch.eye(d)).abs() <= 4.5 * spread + 1e-9).all()
        length = v.square().sum(1)
        values = ((v @ g).square() * length / g.square().sum(), length**3)
        for value, truth in zip(values, truths, strict=True):
            rounding = 2e-6 * truth  # directions are drawn in fp32
            assert abs(float(value.mean()) - truth) <= 4.5 * float(value.std()) / len(v) ** 0.5 + rounding


def test_orders_are_permutations_each_as_likely() -> None:
    draws, live = fresh(), torch.arange(6000)
    orders = torch.stack([draws.order(t, live) for t in range(2)]).numpy()  # [2, n, R]
    codes = orders[:, 0] * 3 + orders[:, 1]
    assert (np.sort(orders, 1) == np.arange(3)[:, None]).all()
    counts = np.unique(codes[0] * 9 + codes[1], return_counts=True)[1]
    assert len(counts) == 36 and ((counts - 6000 / 36) ** 2 / (6000 / 36)).sum() < 35 + 4 * 70**0.5
    again = fresh(order="replace").order(0, live).numpy()
    counts = np.unique(again[0] * 9 + again[1] * 3 + again[2], return_counts=True)[1]
    assert len(counts) == 27 and ((counts - 6000 / 27) ** 2 / (6000 / 27)).sum() < 26 + 4 * 52**0.5


def test_a_first_order_is_kept_by_replica() -> None:
    draws, live = fresh(order="once"), torch.arange(100, 120)
    first = draws.order(0, live)
    assert torch.equal(draws.order(1, live), first)
    assert torch.equal(draws.order(2, live[[3, 7]]), first[:, [3, 7]])


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eta_x": -1.0}, "eta_x = -1.0: use a finite number"),
        ({"eta_y": float("nan")}, "eta_y = nan"),
        ({"mu": float("inf")}, "mu = inf"),
        ({"epochs": 0}, "0 epochs: use at least 1"),
        ({"order": "shuffle"}, "order 'shuffle' is unknown: use one of reshuffle, once, replace"),
        ({"oracle": "zo"}, "oracle 'zo' is unknown: use one of exact, one-sided, two-sided"),
        ({"distribution": "cauchy"}, "distribution cauchy is unknown: use one of gaussian"),
        ({"keep": (3, 1)}, "keep = (3, 1): name epochs from 0 to 4, ascending"),
        ({"keep": (5,)}, "keep = (5,): name epochs from 0 to 4"),
        ({"above": -1.0}, "above = -1.0"),
        ({"below": float("nan")}, "below = nan"),
        ({"precision": "bfloat16"}, "precision 'bfloat16' is unknown"),
        ({"q": 0}, "q = 0 directions a step: use an integer of at least 1"),
        ({"q": 1.5}, "q = 1.5 directions a step"),
        ({"distribution": "sparse(2)"}, "distribution sparse(2): density 2.0 of sparse directions"),
    ],
)
def test_bad_options_are_named(change: dict, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        replace(HOW, **change)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_fit_the_objective_is_named() -> None:
    f = OBJECTIVES["cosh"]
    with pytest.raises(BadInput, match=r"z0 has shape \(3,\): give \(5,\), or \(10, 5\)"):
        HOW.run(f, torch.ones(3), 10)
    with pytest.raises(BadInput, match=r"shape = \(2, 2\) of x has 4 entries, not d_x = 3"):
        replace(HOW, shape=(2, 2)).run(f, torch.ones(5), 2)
    with pytest.raises(BadInput, match="0 replicas"):
        HOW.run(f, torch.ones(5), 0)
    with pytest.raises(BadInput, match="not finite"):
        HOW.run(f, torch.full((5,), float("nan")), 2)
    with pytest.raises(BadInput, match="(?i)sphere.*no finite mean after a Gaussian step"):
        replace(HOW, distribution="gaussian").run(f, torch.ones(5), 2)
    assert np.isfinite(replace(HOW, distribution="gaussian", oracle="exact").run(f, torch.ones(5), 2).average).all()
