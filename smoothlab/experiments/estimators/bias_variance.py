"""Parts "bias", "variance" and "curve" of the estimators experiment: functions whose closed forms are known.

How each is measured, over N directions that `ZerothOrder` would draw from these seeds:

- bias: the mean of ghat - <g, z> z, and with one side also - (mu/2) A[z, z] z. What is subtracted is known to have the
  mean g (and 0, as z and -z are alike), so that the mean stays that of ghat - g while the variance falls from that of
  the estimate to that of its bias: a control variate. A record holds its component along the closed form of the bias
  (an unbiased number, as a norm would not be), over ||g||, with a t interval; `p_value` is that of Hotelling's test
  that the whole vector is the closed form. All mu of a curve share their directions. Signs and coordinates repeat the
  same few moves, so that the rounding errors r of their quotients do not average out: by Cauchy-Schwarz with E zz' = I
  their mean E r z is at most sqrt(E r^2) long in any direction. This `floor`, from the noise that
  `smoothlab.experiments.estimators.ucurve` measures, is added to the interval on both sides.
- variance: the mean of ||ghat - g||^2 / ||g||^2, as it comes, with the interval of `samples.mean_square` and the flag
  of `samples.rare_draws`, as all means of squares here. One side and two, and all q of one average, share their
  directions.
- curve: the root mean square of D(mu) - <g, z> over ||g||, see `smoothlab.experiments.estimators.ucurve`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from scipy import stats

from smoothlab.experiments.estimators import ucurve
from smoothlab.experiments.estimators.config import Config
from smoothlab.experiments.estimators.synthetic import SHAPES, Ridges, directions, frames, slopes
from smoothlab.experiments.settings import Row, measured_row
from smoothlab.stats import samples
from smoothlab.stats.intervals import Interval
from smoothlab.zeroth.distributions import Gaussian, named
from smoothlab.zeroth.estimators import Average, ZerothOrder
from smoothlab.zeroth.moments import second_moment
from smoothlab.zeroth.rng import stream_name

REPEATING = ("rademacher", "coordinate")  # distributions that move a weight by few different numbers
NEARBY = 50  # directions along which rounding is measured
CURVE, CURVE_DIM = "cosh", 64  # the function of the U-curve and its dimension
AVERAGE_DIM = 64  # d of the averages over q directions
DIGITS = 7  # significant ones in records
ALWAYS = ("measured", "low", "high", "reference", "predicted")  # null where there is none; others are left out


def row(
    setting: str, quantity: str, measured: Interval, estimator: ZerothOrder, *, dtype: str, d: int, draws: int,
    reference: float | None = None, predicted: float | None = None, device: str = "cpu", **extra: Any,
) -> Row:  # fmt: skip
    """Return one flat row of a setting "part/..."; `extra` holds further columns."""
    columns: Row = {
        "part": setting.split("/")[0], "setting": setting, "quantity": quantity, "estimator": estimator.name,
        "distribution": estimator.distribution.name, "sides": estimator.sides, "q": estimator.q,
        "average": estimator.average, "mu": estimator.mu, "dtype": dtype, "d": d, "draws": draws,
        **measured_row(measured), "reference": reference, "predicted": predicted, "stream": stream_name(device),
        **extra,
    }  # fmt: skip
    for name in list(columns):
        if isinstance(columns[name], float) and name != "mu":
            columns[name] = float(f"{columns[name]:.{DIGITS}g}")
        elif columns[name] is None and name not in ALWAYS:
            del columns[name]
    return columns


def bias(run: Config, setting: str) -> Iterator[Row]:
    """Setting "bias/FUNCTION/DISTRIBUTION": two sides in fp64; for Gaussian directions also one side, and fp32."""
    _, function, name = setting.split("/")
    f, distribution = Ridges.random(function, run.dim, run.seed), named(name)
    taylor = f.taylor(2)
    g, size = taylor.gradient, float(np.linalg.norm(taylor.gradient))
    # rounding shows in fp32; one side has another bias
    series: dict[str, tuple[int, ...]] = {"float64": (2,)}
    if name == "gaussian":
        series = {"float64": (2, 1), "float32": (2,)}
    for dtype, all_sides in series.items():
        kind = getattr(torch, dtype)
        drawn = directions(distribution, f.block(kind), (run.seed, 1, list(SHAPES).index(function)), run.draws)
        noise = ucurve.noise(_nearby(f, drawn[:NEARBY, 0], kind)).high if name in REPEATING else 0.0
        for sides in all_sides:
            for mu in run.mus:
                estimator = ZerothOrder(mu, sides=sides, distribution=distribution)  # type: ignore[arg-type]
                c, z = slopes(f, mu, sides, drawn, kind)
                c, z = c[:, 0] - z[:, 0] @ g, z[:, 0]
                if sides == 1:  # the second-order term has the mean 0, and most of the variance
                    c = c - mu / 2 * ((z @ taylor.hessian) * z).sum(1)
                expected = f.mean(estimator) - g
                floor = float(ucurve.rounding(mu, sides, noise)) / size
                component = _along(c[:, None] * z, expected, size, floor)
                yield row(
                    setting, "bias", component[0], estimator, dtype=dtype, d=f.dim, draws=run.draws, function=function,
                    block="theta", reference=float(np.linalg.norm(expected)) / size, p_value=component[1],
                    floor=floor or None, exact=f.exact(distribution),
                )  # fmt: skip


def _nearby(f: Ridges, drawn: torch.Tensor, kind: torch.dtype) -> np.ndarray:
    """Values of f in this precision at `ucurve.OFFSETS` along directions [n, d], which show its rounding errors."""
    spacing = ucurve.spacing(str(kind).removeprefix("torch."), float(np.square(f.point).mean() ** 0.5))
    return np.stack([f.along(drawn, float(position * spacing), kind) for position in ucurve.OFFSETS], 1)


def _along(vectors: np.ndarray, expected: np.ndarray, size: float, floor: float = 0.0) -> tuple[Interval, float | None]:
    """Interval of the mean's component along `expected`, over `size`, and Hotelling's p-value of the whole.

    Both allow for rounding with a mean of up to `floor` (over `size`): the test looks at what has ten times that as its
    standard error, and where nothing has, there is no p-value.
    """
    n = len(vectors)
    axis = expected / np.linalg.norm(expected)
    deviation = vectors.mean(0) - expected
    scale = vectors.std(0, ddof=1) + 1e-300  # the covariance would underflow at small mu
    values, axes = np.linalg.eigh(np.cov(vectors / scale, rowvar=False))
    rounded_away = n * (10 * floor * size / scale.min()) ** 2
    free = values > max(1e-9 * values[-1], rounded_away)  # one sum of a coordinate estimate's components does not vary
    component = samples.mean(vectors @ axis / size)
    interval = Interval(component.value, component.low - floor, component.high + floor)
    rank = int(free.sum())
    if rank == 0:
        return interval, None
    statistic = float(n * ((deviation / scale @ axes[:, free]) ** 2 / values[free]).sum())
    return interval, float(stats.f.sf(statistic * (n - rank) / (rank * (n - 1)), rank, n - rank))


def variance(run: Config, setting: str) -> Iterator[Row]:
    """Setting "variance/DISTRIBUTION": one direction, against d."""
    distribution = named(setting.split("/")[1])
    for d in run.dims:
        f = Ridges.random("quadratic", d, run.seed)
        drawn = directions(distribution, f.block(torch.float64), (run.seed, 2, d), run.draws)
        for sides in (2, 1):
            yield _error(setting, f, ZerothOrder(run.mu, sides=sides, distribution=distribution), drawn)


def averages(run: Config, setting: str) -> Iterator[Row]:
    """Setting "averages/AVERAGE": q directions, plain (one side and two), in antithetic pairs, orthogonal."""
    average = setting.split("/")[1]
    f = Ridges.random("quadratic", AVERAGE_DIM, run.seed)
    seed = (run.seed, 3, get_args(Average).index(average))
    drawn = directions(Gaussian(), f.block(torch.float64), seed, max(run.draws // 8, 20), max(run.qs))
    for sides in (2, 1):
        for q in run.qs:
            if average == "antithetic" and (sides == 2 or q % 2):
                continue
            estimator = ZerothOrder(run.mu, sides=sides, q=q, average=average)  # type: ignore[arg-type]
            yield _error(setting, f, estimator, drawn)


def _error(setting: str, f: Ridges, estimator: ZerothOrder, drawn: torch.Tensor) -> Row:
    taylor = f.taylor(2)
    g, square = taylor.gradient, float(taylor.gradient @ taylor.gradient)
    estimates = slopes(f, estimator.mu, estimator.sides, frames(estimator, drawn), torch.float64).estimates
    reference = (second_moment(estimator, taylor) - square) / square  # E ghat = g on quadratics
    errors = ((estimates - g) ** 2).sum(1) / square
    measured = samples.mean_square(errors)
    return row(
        setting, "error", measured, estimator, dtype="float64", d=f.dim, draws=len(drawn), function=f.shape,
        reference=reference, exact=True, block="theta", flag=samples.rare_draws(errors),
    )  # fmt: skip


def curve(run: Config, setting: str) -> Iterator[Row]:
    """Setting "curve/DTYPE": errors of directional derivatives on `CURVE`, noise, and the best mu."""
    dtype = setting.split("/")[1]
    kind = getattr(torch, dtype)
    f = Ridges.random(CURVE, CURVE_DIM, run.seed)
    taylor = f.taylor(3)
    assert taylor.third is not None
    drawn = directions(Gaussian(), f.block(kind), (run.seed, 4), run.curve_draws)[:, 0]
    values_at = partial(f.along, drawn, dtype=kind)
    errors = ucurve.errors(values_at, float(values_at(0.0)[0]), drawn.double().numpy() @ taylor.gradient, run.curve_mus)
    spreads = ucurve.gaussian_spread(taylor.hessian, taylor.third)
    size = float(np.linalg.norm(taylor.gradient))
    nearby = _nearby(f, drawn, kind)
    yield from curve_rows(setting, errors, run.curve_mus, nearby, spreads, size, seed=run.seed, dtype=dtype, d=f.dim,
                          function=CURVE, block="theta")  # fmt: skip


def curve_rows(
    setting: str, errors: dict[int, np.ndarray], mus: Sequence[float], nearby: np.ndarray, spreads: Sequence[float],
    size: float, *, seed: int, dtype: str, **extra: Any,
) -> Iterator[Row]:  # fmt: skip
    """Rows of a U-curve: its points over `size` = ||g||, the noise it is predicted from, and the best mu, by sides.

    `errors` is what `ucurve.errors` returns, `nearby` the values at `ucurve.OFFSETS`, which show the noise, `spreads`
    kappa and tau, `seed` that of the resampling for the best mu's interval; `extra` holds further columns.
    """
    noise = ucurve.noise(nearby)
    for sides, deviations in errors.items():
        spread, n = spreads[sides - 1], len(deviations)
        expected = ucurve.predicted(mus, sides, spread, noise.value) / size
        for mu, column, predicted in zip(mus, deviations.T, expected.tolist(), strict=True):
            estimator = ZerothOrder(mu, sides=sides)  # type: ignore[arg-type]
            measured = samples.root_mean_square(column / size)
            yield row(setting, "derivative error", measured, estimator, dtype=dtype, draws=n, predicted=predicted,
                      flag=samples.rare_draws(column**2), **extra)  # fmt: skip
        lowest = samples.lowest(mus, deviations**2, seed=seed)
        estimator = ZerothOrder(lowest.value, sides=sides)  # type: ignore[arg-type]
        best = None  # without curvature or without noise the error falls or rises all along
        if spread > 0 and noise.value > 0:
            best = ucurve.best(sides, spread, noise.value)
        edge = lowest.value in (mus[0], mus[-1])  # the lowest one may lie beyond
        yield row(setting, "best mu", lowest, estimator, dtype=dtype, draws=n, predicted=best, edge=edge, **extra)
    yield row(setting, "noise", noise, ZerothOrder(), dtype=dtype, draws=len(nearby),
              flag=ucurve.noise_flag(nearby), **extra)  # fmt: skip


PARTS: dict[str, Callable[[Config, str], Iterator[Row]]] = {
    "bias": bias, "variance": variance, "averages": averages, "curve": curve
}  # fmt: skip
