"""Edges against second-moment maps that are built as matrices, and against one step of Algorithm 1."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothlab import Algorithm1, Rademacher, Sparse, Sphere, ZerothOrder
from smoothlab.errors import BadInput
from smoothlab.objectives import QuadraticSum
from smoothlab.theory.edge import (
    EXACT,
    GAUSSIAN,
    OuterMoment,
    Spectrum,
    adam_edge,
    best_rate,
    exact_edge,
    gradient_norm_edge,
    mean_square_edge,
)
from smoothlab.zeroth.moments import outer_moment
from tests.theory.second_moments import Array, outer, radius, rotated, squares, step_map

some = settings(deadline=None, derandomize=True, max_examples=60)
SPECTRA = {
    "one": [3.0, 0.0, 0.0, 0.0],
    "dominated": [5.0, 0.1, 0.05, 0.01],
    "broad": [1.0, 0.9, 0.8, 0.7],
    "equal": [2.0, 2.0, 2.0, 2.0],
    "with a kernel": [4.0, 1.0, 0.0, 0.0],
}
STEPS: dict[str, tuple[ZerothOrder, Array]] = {
    "one Gaussian direction": (ZerothOrder(), squares(4)),
    "4": (ZerothOrder(q=4), squares(4, 4)),
    "16": (ZerothOrder(q=16), squares(4, 16)),
    "one side": (ZerothOrder(q=2, sides=1), squares(4, 2)),
    "antithetic": (ZerothOrder(q=4, sides=1, average="antithetic"), squares(4, 2)),
    "sphere": (ZerothOrder(distribution=Sphere()), squares(4, sphere=True)),
    "sphere, 3": (ZerothOrder(distribution=Sphere(), q=3), squares(4, 3, sphere=True)),
    "one orthogonal": (ZerothOrder(average="orthogonal"), squares(4, sphere=True)),
    "all orthogonal": (ZerothOrder(q=4, average="orthogonal"), np.eye(16)),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("step", STEPS)
def test_the_map_has_radius_one_at_the_edge(step: str, spectrum: str) -> None:
    """.99 and 1.01 times the edge lie on both sides, and at the edge the radius is 1 to rounding."""
    estimator, moved = STEPS[step]
    h = rotated(SPECTRA[spectrum], seed=1)
    edge = mean_square_edge(Spectrum.of(SPECTRA[spectrum]), outer_moment(estimator, 4))
    assert edge.low == edge.value == edge.high
    below, at, above = (radius(step_map(h, c * edge.value, moved), h) for c in (0.99, 1.0, 1.01))
    assert below < 1 < above
    assert at == pytest.approx(1, abs=1e-9)


def test_limits_of_many_directions_and_of_one_dimension() -> None:
    spectrum = Spectrum.of([3.0, 1.0, 0.5])
    assert mean_square_edge(spectrum, EXACT).value == exact_edge(3.0) == pytest.approx(2 / 3)
    assert mean_square_edge(spectrum, OuterMoment(1 + 1e-9, 1e-9)).value == pytest.approx(2 / 3, rel=1e-8)
    assert mean_square_edge(Spectrum.of([4.0])).value == pytest.approx(2 / 3 / 4, rel=1e-12)
    signs = outer_moment(ZerothOrder(distribution=Rademacher()), 1)  # vv' = 1: the exact gradient
    assert mean_square_edge(Spectrum.of([4.0]), signs).value == pytest.approx(0.5, rel=1e-12)
    equal = mean_square_edge(Spectrum.of([1.0] * 50), OuterMoment(1.25, 0.25)).value
    assert equal == pytest.approx(2 / (50 / 4 + 1 + 1 / 4), rel=1e-12)


def test_the_radius_falls_again_below_the_edge_of_a_single_rate() -> None:
    """The stable rates are an interval from 0."""
    h = rotated(SPECTRA["dominated"], seed=2)
    edge = mean_square_edge(Spectrum.of(SPECTRA["dominated"])).value
    assert all(radius(step_map(h, c * edge, squares(4)), h) < 1 for c in np.linspace(0.02, 0.99, 12))


@given(
    st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=12), st.integers(1, 20), st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 0.9]),
)  # fmt: skip
@some
def test_bounds_bracket_the_edge_of_the_whole_spectrum(
    values: list[float], q: int, known: int, momentum: float
) -> None:
    values = sorted(values, reverse=True)
    top, d = tuple(values[:known]), len(values)
    moment = OuterMoment(1 + 1 / q, 1 / q)
    whole = Spectrum.of(values)
    truth = mean_square_edge(whole, moment, momentum=momentum).value
    widths = []
    for trace, frobenius in (
        (whole.trace, whole.frobenius),
        (whole.trace, None),
        (None, whole.frobenius),
        (None, None),
    ):
        edge = mean_square_edge(Spectrum(top, d, trace, frobenius), moment, momentum=momentum)
        assert edge.low <= truth * (1 + 1e-9) and truth <= edge.high * (1 + 1e-9)
        widths.append(edge.high / edge.low)
    assert widths[0] <= min(widths[1:]) * (1 + 1e-9), "both numbers say more than one"
    if not momentum:
        trace, a = sum(values), 1 + 1 / q
        assert 2 / (trace / q + a * values[0]) <= truth * (1 + 1e-12)
        assert truth <= min(2 * q / trace, 2 / ((1 + 2 / q) * values[0])) * (1 + 1e-12)


KURTOSES = {"signs": (Rademacher(), 1.0), "sparse": (Sparse(0.1), 30.0), "mild": (Sparse(0.75), 4.0)}


def found_edge(h: Array, moved: Array) -> float:
    """The edge by bisection on the dense map."""
    low, high = 0.0, 2.1 / float(np.linalg.eigvalsh(h)[-1])
    for _ in range(40):
        middle = (low + high) / 2
        if radius(step_map(h, middle, moved), h) < 1:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("law", KURTOSES)
def test_bounds_where_directions_see_the_basis(law: str, turned: bool) -> None:
    """One spectrum, two bases: different edges, both between the bounds, narrower with the diagonal."""
    distribution, kurtosis = KURTOSES[law]
    values = [2.0, 1.0, 0.5, 0.25]
    h = rotated(values, seed=3) if turned else np.diag(values)
    moved, moment = squares(4, 2, kurtosis), outer_moment(ZerothOrder(distribution=distribution, q=2), 4)
    truth = found_edge(h, moved)
    wide = mean_square_edge(Spectrum.of(values), moment)
    ends = float(np.diag(h).min()), float(np.diag(h).max())
    narrow = mean_square_edge(Spectrum.of(values), moment, diagonal=ends)
    assert wide.low <= narrow.low <= truth <= narrow.high <= wide.high
    assert narrow.high / narrow.low <= wide.high / wide.low


def test_the_basis_changes_the_edge() -> None:
    values = [2.0, 1.0, 0.5, 0.25]
    for kurtosis in (1.0, 30.0):  # a function of the spectrum would be the same
        edges = [found_edge(h, squares(4, 1, kurtosis)) for h in (np.diag(values), rotated(values, seed=3))]
        assert abs(math.log(edges[0] / edges[1])) > 0.15


# Momentum: the state is (z, m) [2d]


def momentum_map(values: list[float], rate: float, momentum: float, dampening: float, moved: Array) -> Array:
    """E (A kron A) of (z, m) -> (z - rate m+, m+), m+ = momentum m + (1 - dampening) S H z."""
    d = len(values)
    h, one, none = np.diag(values), np.eye(d), np.zeros((d, d))
    fixed = np.block([[one, -rate * momentum * one], [none, momentum * one]])
    random = (1 - dampening) * np.block([[-rate * one], [one]])  # times S H z
    seen = np.hstack([h, none])
    mean = fixed + random @ seen
    # E (fixed + random S seen) kron itself: the mean's, and the covariance of S.
    extra = moved - np.eye(d * d)
    return np.kron(mean, mean) + np.kron(random, random) @ extra @ np.kron(seen, seen)


@pytest.mark.parametrize("q", [1, 4])
@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.5, 0.0), (0.9, 0.0), (0.9, 0.9), (0.3, 0.6)])
def test_momentum_against_the_map_of_position_and_momentum(momentum: float, dampening: float, q: int) -> None:
    values = [2.0, 1.0, 0.2]
    edge = mean_square_edge(Spectrum.of(values), OuterMoment(1 + 1 / q, 1 / q), momentum=momentum, dampening=dampening)
    sizes = []
    for c in (0.99, 1.0, 1.01):
        whole = momentum_map(values, c * edge.value, momentum, dampening, squares(3, q))
        sizes.append(float(np.abs(np.linalg.eigvals(whole)).max()))
    assert sizes[0] < 1 < sizes[2]
    assert sizes[1] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.9), (0.3, 0.6)])
def test_exact_steps_with_momentum(momentum: float, dampening: float) -> None:
    edge = exact_edge(3.0, momentum=momentum, dampening=dampening)
    for c, stable in ((0.99, True), (1.01, False)):
        polynomial = [1.0, -(1 + momentum - (1 - dampening) * c * edge * 3), momentum]
        assert (np.abs(np.roots(polynomial)).max() < 1) == stable
    assert mean_square_edge(Spectrum.of([3.0]), EXACT, momentum=momentum, dampening=dampening).value == pytest.approx(
        edge
    )


def test_momentum_helps_exact_steps_and_hurts_the_bulk_of_zeroth_order_ones() -> None:
    """Torch's momentum .9 takes 2/lambda to 3.8/lambda, and 2/tr to .2/tr; Adam's average leaves 2/tr."""
    bulk = Spectrum.of([1.0] * 10_000)
    plain = mean_square_edge(bulk).value
    assert mean_square_edge(bulk, momentum=0.9).value / plain == pytest.approx(0.1, rel=2e-3)
    assert mean_square_edge(bulk, momentum=0.9, dampening=0.9).value / plain == pytest.approx(1, rel=2e-3)
    assert exact_edge(1.0, momentum=0.9) / exact_edge(1.0) == pytest.approx(1.9)
    assert adam_edge(1.0) == pytest.approx(38)


def test_adam_by_running_it() -> None:
    """torch's Adam with a second moment that stands still, on lambda z^2/2, below and above 38 sqrt(v)/lambda."""
    scale, curvature = 0.5, 2.0  # sqrt(v), lambda
    for c, grows in ((0.97, False), (1.03, True)):
        z = torch.nn.Parameter(torch.tensor([1e-9], dtype=torch.float64))
        optimizer = torch.optim.Adam([z], lr=c * adam_edge(curvature / scale), eps=0.0)
        sizes = []
        for _ in range(300):
            z.grad = curvature * z.detach()
            state = optimizer.state[z]
            if state:  # past the corrections of the bias, and a second moment that the tiny gradients leave as it is
                state["exp_avg_sq"].fill_(scale**2 / 0.999)
                state["step"].fill_(1e6)
                optimizer.step()
            else:
                optimizer.step()
                z.data.fill_(1e-9)
                state["exp_avg"].zero_()
            sizes.append(abs(float(z.detach())))
        assert (max(sizes[-20:]) > max(sizes[40:60])) == grows


# The gradient's norm after one step


def indefinite(seed: int) -> tuple[Array, Array]:
    """A Hessian of both signs that curves upwards along the gradient."""
    h = rotated([3.0, -1.5, 0.7, -0.2], seed)
    g = np.random.default_rng(seed).standard_normal(4)
    top = np.linalg.eigh(h)[1][:, -1]
    return h, g + 3 * math.copysign(1.0, top @ g) * top


@pytest.mark.parametrize("step", STEPS)
def test_one_step_keeps_the_norm_at_the_edge(step: str) -> None:
    estimator, moved = STEPS[step]
    for seed in range(5):
        h, g = indefinite(seed)
        rho, size = g @ h @ g / (g @ g), float(np.linalg.norm(h @ g) / np.linalg.norm(g))
        eta = gradient_norm_edge(rho, size, float(np.linalg.norm(h)), outer_moment(estimator, 4))

        def after(rate: float, h: Array = h, g: Array = g) -> float:
            """E ||g - rate H S g||^2 over ||g||^2."""
            noise = float(np.trace(h @ outer(moved, np.outer(g, g)) @ h))
            return float(1 - (2 * rate * g @ h @ g - rate**2 * noise) / (g @ g))

        assert after(eta) == pytest.approx(1, abs=1e-12)
        assert after(0.99 * eta) < 1 < after(1.01 * eta)


def test_minibatches_lower_the_edge_by_their_noise() -> None:
    """Gradients g_B = g +- n of two halves, one Hessian: E over both halves and the directions."""
    h, g = indefinite(0)
    moved, n = squares(4, 2), np.array([0.5, -1.0, 0.3, 0.8])
    batches = [g + n, g - n]
    square = float(np.mean([b @ b for b in batches]))
    image = float(np.mean([(h @ b) @ (h @ b) for b in batches]))
    eta = gradient_norm_edge(
        g @ h @ g / (g @ g), (image / square) ** 0.5, float(np.linalg.norm(h)), OuterMoment(1.5, 0.5),
        noise=square / (g @ g),
    )  # fmt: skip
    noise = float(np.mean([np.trace(h @ outer(moved, np.outer(b, b)) @ h) for b in batches]))
    assert 2 * eta * g @ h @ g == pytest.approx(eta**2 * noise, rel=1e-12)


def test_best_rate_minimizes_the_expected_loss_after_a_step() -> None:
    h = rotated([3.0, 1.0, 0.7, 0.1], 5)
    g, moved = h @ np.array([1.0, -2.0, 0.5, 3.0]), squares(4, 2)
    z = np.linalg.solve(h, g)
    eta = best_rate(g @ h @ g / (g @ g), float(np.trace(h)), OuterMoment(1.5, 0.5))

    def loss(rate: float) -> float:
        return float(z @ h @ z / 2 - rate * g @ g + rate**2 / 2 * np.trace(h @ outer(moved, np.outer(g, g))))

    assert loss(eta) < min(loss(0.999 * eta), loss(1.001 * eta))


@pytest.mark.parametrize(
    ("law", "oracle", "q"), [("gaussian", "two-sided", 1), ("gaussian", "two-sided", 3), ("sphere", "two-sided", 2)]
)
def test_ratios_of_algorithm_1_at_the_edge(law: str, oracle: str, q: int) -> None:
    """E ||g+||^2/||g||^2 = 1 at the edge, by 40,000 replicas of one step; |z| < 4.5, and 20 % more is told apart."""
    h, g = rotated([3.0, 1.0, 0.5, 0.2], 7), np.array([1.0, 0.5, -1.0, 0.3])
    hessian = np.zeros((5, 5))
    hessian[:4, :4], hessian[4, 4] = h, 1.0  # y apart, at its minimum
    f = QuadraticSum("one", 4, 1, torch.tensor(hessian)[None], torch.zeros(1, 5, dtype=torch.float64))
    z0 = torch.tensor(np.r_[np.linalg.solve(h, g), 0.0])
    estimator = ZerothOrder(distribution=Sphere(), q=q) if law == "sphere" else ZerothOrder(q=q)
    size = float(np.linalg.norm(h @ g) / np.linalg.norm(g))
    eta = gradient_norm_edge(g @ h @ g / (g @ g), size, float(np.linalg.norm(h)), outer_moment(estimator, 4))
    scores = []
    for c in (1.0, 1.2):
        run = Algorithm1(c * eta, 0.0, 1, oracle=oracle, mu=0.1, distribution=law, q=q, keep=(1,), precision="float64")
        ratios = run.run(f, z0, replicas=40_000, seed=3).kept_x[0] / (g @ g)
        scores.append((ratios.mean() - 1) / (ratios.std() / len(ratios) ** 0.5))
    assert abs(scores[0]) < 4.5 < scores[1]


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "flat": (lambda: exact_edge(0.0), "does not curve upwards along this block"),
    "momentum": (lambda: exact_edge(1.0, momentum=1.0), "momentum 1.0 and dampening 0.0"),
    "no estimate": (lambda: mean_square_edge(Spectrum.of([1.0, 1.0]), OuterMoment(0.5, 1.0)), "is no estimate's"),
    "orthogonal": (lambda: outer_moment(ZerothOrder(q=5, average="orthogonal"), 4), "5 orthogonal directions in 4"),
    "diagonal": (
        lambda: mean_square_edge(Spectrum.of([1.0, 0.5]), OuterMoment(2.0, 1.0, 3.0), diagonal=(0.0, 2.0)),
        "are not those of a matrix with eigenvalues from 0 to 1",
    ),
    "downwards": (lambda: gradient_norm_edge(-0.1, 1.0, 2.0), "curves downwards along its gradient"),
    "no dependence": (lambda: gradient_norm_edge(0.0, 0.0, 2.0), "does not depend on this block"),
    "contradiction": (lambda: gradient_norm_edge(1.0, 0.5, 2.0), "contradict each other"),
    "not finite": (lambda: gradient_norm_edge(math.nan, 0.5, 2.0), "all must be finite"),
    "basis": (lambda: gradient_norm_edge(1.0, 1.0, 2.0, OuterMoment(2.0, 1.0, -2.0)), "see the basis"),
    "cancelling trace": (lambda: best_rate(1.0, -75.0), "use gradient_norm_edge"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_one_line(what: str) -> None:
    call, words = REFUSED[what]
    with pytest.raises(BadInput) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_estimated_norm_below_h_counts_as_h() -> None:
    assert gradient_norm_edge(1.0, 1.1, 1.0) == gradient_norm_edge(1.0, 1.1, 1.1) == 2 / (1.1**2 + 2 * 1.1**2)
    assert GAUSSIAN.factor(10) == 12
