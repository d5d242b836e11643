"""Intervals from draws: how often they hold the truth, by simulation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from smoothlab.stats import samples
from tests.mutations import mutate

LEAST = 0.93  # 300 samples of a true 95 % fall below with probability 5 %; seeds are fixed
RNG = np.random.default_rng


def share(draw: Callable[[np.random.Generator], np.ndarray], interval: Callable, truth: float, times: int) -> float:
    rng = RNG(7)
    found = [interval(draw(rng)) for _ in range(times)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def estimate(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """||ghat|| of two-sided Gaussian estimates of a unit gradient: mean square d + 2."""
    z = rng.standard_normal((n, d))
    return np.abs(z[:, 0]) * np.linalg.norm(z, axis=1)


def sparse(rng: np.random.Generator, n: int) -> np.ndarray:
    """The same for entries that move a quarter of the time, d = 4: d - 1 + 12 = 15 for a single coordinate."""
    z = rng.standard_normal((n, 4)) * (rng.random((n, 4)) < 0.25) * 2
    return np.abs(z[:, 0]) * np.linalg.norm(z, axis=1)


Draw = Callable[[np.random.Generator, int], np.ndarray]
DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (normal, 1.0),
    "squares": (lambda rng, n: normal(rng, n) ** 2, 3.0),
    "cubes": (lambda rng, n: normal(rng, n) ** 3, 15.0),
    "fifth powers": (lambda rng, n: normal(rng, n) ** 5, 945.0),
    "eighth powers": (lambda rng, n: normal(rng, n) ** 8, 2027025.0),
    "products": (lambda rng, n: rng.standard_normal((3, n)).prod(0), 1.0),
    "sinh": (lambda rng, n: np.sinh(normal(rng, n)), (math.exp(2) - 1) / 2),
    "cosh - 1": (lambda rng, n: np.cosh(normal(rng, n)) - 1, (math.exp(2) + 1) / 2 - 2 * math.exp(0.5) + 1),
    "cubic forms": (lambda rng, n: (rng.standard_normal((n, 4)) ** 3).sum(1), 60.0),
    "estimates, d = 100": (lambda rng, n: estimate(rng, n, 100), 102.0),
    "estimates, d = 4": (lambda rng, n: estimate(rng, n, 4), 6.0),
    "sparse": (sparse, 15.0),
}
FEW = [(distribution, 24) for distribution in DISTRIBUTIONS] + [
    ("normal", 6),
    ("squares", 8),
    ("cubes", 8),
    ("sinh", 12),
]


def covers(distribution: str, n: int, times: int) -> float:
    draw, truth = DISTRIBUTIONS[distribution]
    return share(lambda rng: draw(rng, n) ** 2, samples.mean_square, truth, times)


@pytest.mark.parametrize(
    ("distribution", "n"), [*FEW, ("normal", 400), ("cubes", 400), ("cubes", 4000), ("sparse", 4000)]
)
def test_intervals_of_mean_squares_cover(distribution: str, n: int) -> None:
    assert covers(distribution, n, 250) >= LEAST


def test_those_of_root_mean_squares_are_their_roots() -> None:
    x = normal(RNG(0), 30)
    found, square = samples.root_mean_square(x), samples.mean_square(x**2)
    assert found == pytest.approx([end**0.5 for end in square])


@pytest.mark.slow
@pytest.mark.parametrize("n", [24, 48, 100])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_intervals_of_mean_squares_cover_as_their_docstring_says(distribution: str, n: int) -> None:
    assert covers(distribution, n, 2000) >= 0.942  # a true 95 % fall below with probability 5 %


def test_they_are_not_much_wider_than_if_the_distribution_were_known() -> None:
    """Normal numbers: chi-square intervals are exact."""
    for n, most in ((24, 2.0), (100, 1.7), (4000, 1.1)):
        rng = RNG(1)
        widths = [math.log(found.high / found.low) for found in
                  (samples.mean_square(rng.standard_normal(n) ** 2) for _ in range(50))]  # fmt: skip
        exact = math.log(stats.chi2.ppf(0.975, n) / stats.chi2.ppf(0.025, n))
        assert 1.0 <= np.median(widths) / exact < most


# Whether rare draws may carry the mean. The distributions: draws, and their mean.

RARE: dict[str, tuple[Draw, float]] = {
    "1 % at 100": (lambda rng, n: np.where(rng.random(n) < 0.01, 100.0, 1 + 0.2 * normal(rng, n) ** 2), 2.188),
    "1 % at 1000": (lambda rng, n: np.where(rng.random(n) < 0.01, 1000.0, normal(rng, n) ** 2), 10.99),
    "log-normal 2.5": (lambda rng, n: np.exp(2.5 * normal(rng, n)), math.exp(2.5**2 / 2)),
    "log-normal 1": (lambda rng, n: np.exp(normal(rng, n)), math.exp(0.5)),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "squares": (lambda rng, n: normal(rng, n) ** 2, 1.0),
}


def missed_and_flagged(distribution: str, n: int, times: int) -> np.ndarray:
    """Shares of samples: whose interval misses, of these without the flag, and with the flag."""
    (draw, truth), rng = RARE[distribution], RNG(11)
    found = []
    for _ in range(times):
        x = draw(rng, n)
        held, flag = samples.mean_square(x), samples.rare_draws(x)
        missed = not held.low <= truth <= held.high
        found.append((missed, missed and flag is None, flag == "rare draws"))
    return np.mean(found, axis=0)


SEEN = [("1 % at 100", 24), ("1 % at 100", 100), ("1 % at 100", 300), ("1 % at 100", 1000), ("1 % at 1000", 1000),
        ("log-normal 2.5", 24), ("log-normal 2.5", 300), ("log-normal 2.5", 4000)]  # fmt: skip


@pytest.mark.parametrize("times", [200, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("distribution", "n"), SEEN)
def test_where_rare_draws_carry_the_mean_what_misses_it_is_flagged(distribution: str, n: int, times: int) -> None:
    missed, silent, flagged = missed_and_flagged(distribution, n, times)
    assert silent * times <= stats.binom.isf(1e-3, times, 0.055)
    assert n > 100 or (flagged == 1 and missed > 0.05), "these intervals are the ones that do not cover"
    assert distribution != "1 % at 1000" or flagged > 0.95, "seen, not only unseen"


@pytest.mark.parametrize("distribution", ["squares", "exponential", "log-normal 1"])
def test_where_many_draws_carry_it_and_there_are_enough_nothing_is_flagged(distribution: str) -> None:
    assert missed_and_flagged(distribution, 300, 100)[2] == 0
    assert missed_and_flagged(distribution, 298, 20)[2] == 1, "298 draws have none of 1 % with probability 5.003 %"


def test_how_many_draws_must_carry_half_the_mean() -> None:
    for n, least in ((300, 7), (4000, 52)):  # the 95 % quantiles of binom(n, 0.01) are 6 and 51
        for carrying in (1, least - 1, least, n // 2):
            x = np.zeros(n)
            x[: 2 * carrying] = 3.0
            assert (samples.rare_draws(RNG(0).permutation(x)) is None) == (carrying >= least)
    assert samples.rare_draws(np.zeros(300)) is None and samples.rare_draws(np.zeros(2)) is not None
    assert samples.rare_draws(np.full(299, 2.0)) is None


@pytest.mark.parametrize(
    ("distribution", "n", "old", "new"),
    [("1 % at 100", 100, "> 1 - LEVEL", "> 1"), ("1 % at 1000", 1000, "carrying <= ", "carrying < 0 * ")],
)
def test_a_flag_without_one_of_its_tests_would_be_seen(
    distribution: str, n: int, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, (samples, "rare_draws"), old, new)
    _, silent, flagged = missed_and_flagged(distribution, n, 100)
    assert silent > 1 - LEAST or flagged < 0.95


@pytest.mark.parametrize(
    ("distribution", "n", "where", "old", "new"),
    [
        ("eighth powers", 24, "mean_square", "_variation_of_power(x)", "0.0"),
        ("sinh", 400, "mean_square", "(1 + 20 * ", "(1 + 0 * "),
        ("fifth powers", 8, "_variation_of_power", "(1 + 2 / k**0.5)", "1.0"),
        ("normal", 24, "mean_square", "variation / n", "variation / n / 9"),
    ],
)
def test_without_one_of_their_parts_they_would_not(
    distribution: str, n: int, where: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, (samples, where), old, new)
    assert covers(distribution, n, 250) < 0.9


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


def test_one_draw_that_is_not_zero_tells_no_upper_end() -> None:
    found = samples.mean_square([0.0, 0.0, 0.0, 4.0])
    assert found.value == 1 and 0 < found.low < 0.1 and found.high == math.inf
    assert all(math.isfinite(end) for end in samples.mean_square([1e-300, 1e-10, 1.0]))


# Where a curve is lowest: errors a mu^s x + e y / mu of s sides, E x^2 = E y^2 = 1, have the mean square
# a^2 mu^2s + e^2 / mu^2, least where s a^2 mu^(2s + 2) = e^2.


def lowest_held(sides: int, power: int, points: int, n: int, times: int = 200, ends: tuple[float, float] = (-2, 2)):
    """Share of intervals that hold the lowest point, and the intervals; `ends`: decades of the grid around it."""
    rng, noise, found = RNG(7), 1e-4, []
    for _ in range(times):
        a = 10 ** rng.uniform(-1.5, 1.5)
        truth = (noise**2 / (sides * a**2)) ** (1 / (2 * sides + 2))
        grid = truth * 10 ** (rng.uniform(-0.5, 0.5) / points + np.arange(ends[0], ends[1] + 1e-9, 1 / points))
        x = rng.standard_normal((n, 1)) ** power / {1: 1.0, 3: 15.0}[power] ** 0.5
        squares = (a * grid**sides * x + noise / grid * rng.standard_normal((n, len(grid)))) ** 2
        one = samples.lowest(grid, squares)
        found.append((one.low <= truth <= one.high, one, grid))
    return float(np.mean([held for held, _, _ in found])), found


CURVES = [(1, 3, 8, 12), (1, 3, 4, 6), (2, 3, 2, 6), (2, 1, 1, 200), (2, 3, 2, 24)]


@pytest.mark.parametrize(("sides", "power", "points", "n"), CURVES)
def test_the_lowest_point_of_a_curve_is_covered_on_any_grid(sides: int, power: int, points: int, n: int) -> None:
    assert lowest_held(sides, power, points, n)[0] >= LEAST


@pytest.mark.parametrize(
    ("curve", "old", "new"),
    [
        ((1, 3, 8, 6), "max(n // 2, 3)", "n"),
        ((1, 3, 8, 12), 'np.quantile(minima, [TAIL, 1 - TAIL], method="nearest").astype(int).tolist()', "(best, best)"),
        ((2, 1, 2, 24), "neighbors[max(last, best) + 2]", "neighbors[max(last, best) + 1]"),
    ],
)  # fmt: skip
def test_a_careless_one_would_not_be(
    curve: tuple[int, int, int, int], old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, (samples, "lowest"), old, new)
    assert lowest_held(*curve)[0] < 0.9


@pytest.mark.parametrize("sides", [1, 2])
def test_a_lowest_point_beyond_the_grid_leaves_the_interval_open(sides: int) -> None:
    for ends, side in (((0.6, 3), "low"), ((-3, -0.6), "high")):
        held, found = lowest_held(sides, 3, 2, 16, ends=ends)
        assert held >= 0.99
        at_end = [(one, grid) for _, one, grid in found if one.value in (grid[0], grid[-1])]
        assert len(at_end) > 100
        assert all(getattr(one, side) == {"low": 0.0, "high": math.inf}[side] for one, _ in at_end)


def test_the_lowest_point_stays_between_its_neighbors_on_an_uneven_grid() -> None:
    grid = np.array([1e-9, 1e-6, 1e-5, 1e-4])
    assert samples.lowest(grid, np.tile([3.0, 1.0, 2.0, 4.0], (10, 1))) == (1e-6, 1e-9, 1e-5)
    assert samples.lowest(grid, np.tile([1.0, 2.0, 3.0, 4.0], (10, 1))) == (1e-9, 0.0, 1e-6)
    assert samples.lowest(grid, np.tile([4.0, 3.0, 2.0, 1.0], (10, 1))) == (1e-4, 1e-5, math.inf)
