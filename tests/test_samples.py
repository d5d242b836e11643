"""Intervals from draws: how often they hold the truth, by simulation."""

from collections.abc import Callable

import numpy as np
import pytest

from smoothlab import samples

LEAST = 0.93
RNG = np.random.default_rng


def share(draw: Callable[[np.random.Generator], np.ndarray], interval: Callable, truth: float, times: int) -> float:
    rng = RNG(7)
    found = [interval(draw(rng)) for _ in range(times)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def estimate(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """||ghat||^2 of two-sided Gaussian estimates of a unit gradient: mean d + 2."""
    z = rng.standard_normal((n, d))
    return z[:, 0] ** 2 * (z**2).sum(1)


def sparse(rng: np.random.Generator, n: int) -> np.ndarray:
    """The same for entries that move a quarter of the time, d = 4: mean d - 1 + 12 = 15 for a single coordinate."""
    z = rng.standard_normal((n, 4)) * (rng.random((n, 4)) < 0.25) * 2
    return z[:, 0] ** 2 * (z**2).sum(1)


@pytest.mark.parametrize(
    ("draw", "truth", "times"),
    [
        (lambda rng: rng.standard_normal(6) ** 2, 1.0, 600),
        (lambda rng: rng.standard_normal(16) ** 2, 1.0, 600),
        (lambda rng: rng.standard_normal(400) ** 2, 1.0, 500),
        (lambda rng: rng.standard_normal(400) ** 6, 15.0, 400),
        (lambda rng: rng.standard_normal(4000) ** 6, 15.0, 400),
        (lambda rng: estimate(rng, 100, 100), 102.0, 500),
        (lambda rng: estimate(rng, 1000, 4), 6.0, 500),
        (lambda rng: estimate(rng, 4000, 16), 18.0, 400),
        (lambda rng: sparse(rng, 4000), 15.0, 400),
    ],
    ids=["normal 6", "normal 16", "normal 400", "cubes 400", "cubes 4000", "d 100", "d 4", "d 16", "sparse"],
)
def test_intervals_of_mean_squares_cover(draw: Callable, truth: float, times: int) -> None:
    assert share(draw, samples.mean_square, truth, times) >= LEAST
    assert share(draw, lambda x: samples.root_mean_square(x**0.5), truth**0.5, times) >= LEAST


def test_without_regard_to_skewness_they_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples.stats, "skew", lambda x: 0.0)
    assert share(lambda rng: rng.standard_normal(400) ** 6, samples.mean_square, 15.0, 500) < LEAST


def test_intervals_of_means_and_medians_cover() -> None:
    for n in (8, 200):
        assert 0.93 <= share(lambda rng, n=n: rng.standard_normal(n), samples.mean, 0.0, 1000) <= 0.97
    for n in (6, 9, 15, 40):
        assert share(lambda rng, n=n: rng.exponential(size=n), samples.median, np.log(2), 500) >= LEAST
    found = samples.median(np.arange(15.0))
    assert found == (7.0, 3.0, 11.0), "ranks 4 and 12 of 15"


def test_what_does_not_vary_has_no_width() -> None:
    assert samples.mean_square([0.0, 0.0, 0.0]) == (0, 0, 0)
    assert samples.mean_square([2.0, 2.0]) == (2, 2, 2)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_lowest_point_is_covered(scale: float) -> None:
    """Errors a mu^2 x + e y / mu have their least mean square where 2 a^2 mu^6 = e^2."""
    grid, noise = 10 ** np.arange(-4, 1.01, 0.5), 1e-4
    truth = (noise**2 / (2 * scale**2)) ** (1 / 6)

    def draw(rng: np.random.Generator) -> np.ndarray:
        x, y = rng.standard_normal((24, 1)), rng.standard_normal((24, len(grid)))
        return (scale * grid**2 * x + noise / grid * y) ** 2

    assert share(draw, lambda squares: samples.lowest(grid, squares), truth, 300) >= LEAST


def test_the_lowest_point_stays_on_an_uneven_grid() -> None:
    grid = np.array([1e-9, 1e-6, 1e-5, 1e-4])
    found = samples.lowest(grid, np.tile([3.0, 1.0, 2.0, 4.0], (10, 1)))
    assert found == pytest.approx((1e-6, 10**-7.5, 10**-5.5))
    edge = samples.lowest(grid, np.tile([1.0, 2.0, 3.0, 4.0], (10, 1)))
    assert edge == pytest.approx((1e-9, 10**-10.5, 10**-7.5))
