"""Growth of L, a Hessian norm, with the gradient norm u: fits of the smoothness function ell of Definition 2.1.

    constant    L = L0
    linear      L = L0 + L1 u          (L0, L1)-smooth: Zhang, He, Sra, Jadbabaie, ICLR 2020
    power       L = L0 + c u^rho       generalized smooth: sub-quadratic where rho < 2 (Li et al., NeurIPS 2023)

Each by non-negative least squares (the conditional mean), by median regression (robust: half of the points may be
wrong), and by the envelope, the curve of least mean that no point exceeds: ell bounds L, it does not average it.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from smoothlab.errors import BadInput
from smoothlab.stats import growth_fits
from smoothlab.stats.block_bootstrap import SHORTEST, Dependence, dependence, interval, picks
from smoothlab.stats.intervals import LEVEL, Interval

Array = NDArray[np.float64]
Form = Literal["constant", "linear", "power"]
Method = Literal["least-squares", "median", "envelope"]
FORMS: tuple[Form, ...] = get_args(Form)
METHODS: tuple[Method, ...] = get_args(Method)
PARAMETERS: dict[Form, tuple[str, ...]] = {
    "constant": ("L0",), "linear": ("L0", "L1"), "power": ("L0", "c", "rho"),
}  # fmt: skip
FITS: dict[Method, growth_fits.Fit] = {
    "least-squares": growth_fits.least_squares, "median": growth_fits.median, "envelope": growth_fits.envelope,
}  # fmt: skip
RESAMPLES = 499


@dataclass(frozen=True)
class GrowthFit:
    """Fit of L against the gradient norm u, with 95 % intervals; made by `fit_growth`.

    >>> import numpy as np
    >>> from smoothlab import fit_growth
    >>> u = np.linspace(0.1, 2.0, 30)
    >>> bound = fit_growth(u, 3 + 2 * u + 0.1 * np.sin(40 * u), method="envelope")
    >>> bound.points, bound([1.0]).round(1).tolist(), round(bound.exceeded_by, 2)
    (30, [5.1], 0.15)

    Attributes:
        form: constant, linear or power.
        method: least-squares, median or envelope.
        parameters: L0; L0 and L1; or L0, c and rho, each with (value, low, high). Ends are NaN for the envelope, as the
            bootstrap of a maximum is not consistent, and for fewer than 8 points. Where c = 0, rho is any.
        points: number of points that were fitted.
        below_floor: number of points that were left out because they are under twice their rounding floor.
        block_length: points in a block of the bootstrap.
        exceeded_by: of the envelope of a constant or linear form: the largest probability, at 95 % confidence, that
            another point of the same distribution lies above it; NaN otherwise.
    """

    form: Form
    method: Method
    parameters: dict[str, Interval]
    points: int
    below_floor: int
    block_length: int
    exceeded_by: float
    _series: Dependence = field(repr=False)
    _draws: Array = field(repr=False)

    def __call__(self, gradient_norms: ArrayLike) -> Array:
        """The fitted L at these gradient norms, in the unit of the curvatures."""
        values = [self.parameters[name].value for name in PARAMETERS[self.form]]
        curves = _values(self.form, np.array([values]), np.asarray(gradient_norms, dtype=float).ravel())
        return np.asarray(curves[0])

    def band(self, gradient_norms: ArrayLike) -> tuple[Array, Array]:
        """Ends of the pointwise 95 % intervals of the fitted curve at these gradient norms; NaN where there is none."""
        u = np.asarray(gradient_norms, dtype=float).ravel()
        middle, ends = self(u), np.full((2, u.size), np.nan)
        if len(self._draws):
            curves = _values(self.form, self._draws, u)
            for i in range(u.size):
                bounds = interval(float(middle[i]), curves[:, i], self._series, len(PARAMETERS[self.form]))
                ends[:, i] = max(bounds.low, 0.0), bounds.high
        return ends[0], ends[1]


def fit_growth(
    gradient_norms: ArrayLike, curvatures: ArrayLike, *, form: Form = "linear", method: Method = "least-squares",
    floors: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0,
) -> GrowthFit:  # fmt: skip
    """Fit the growth of a Hessian norm with the gradient norm: L0, L0 + L1 u, or L0 + c u^rho, no coefficient negative.

    Intervals are those of a circular block bootstrap of the points, whose block length follows from the residuals of
    the least-squares line (`smoothlab.stats.block_bootstrap`). Simulated coverage along series of 12, 20 and 100
    points: benchmarks/fit_coverage.py. For the envelope of p parameters that enter linearly, the probability that
    another independent point lies above it has a Beta(p, n - p + 1) distribution at most (Campi and Garatti, SIAM J.
    Optim. 19, 2008); blocks are counted in place of points.

    >>> import numpy as np
    >>> from smoothlab import fit_growth
    >>> u = np.linspace(0.1, 2.0, 30)
    >>> fit = fit_growth(u, 3 + 2 * u + 0.1 * np.sin(40 * u))
    >>> round(fit.parameters["L0"].value, 1), round(fit.parameters["L1"].value, 1)
    (3.0, 2.0)
    >>> bool(fit.parameters["L1"].low > 1.9), fit([1.0]).round(1).tolist()
    (True, [5.0])

    Args:
        gradient_norms: u, in the order of the steps, [n].
        curvatures: L, e.g. Frobenius or spectral norms of the Hessian at the same steps, [n].
        form: constant, linear or power.
        method: least-squares (equal to `scipy.optimize.nnls` where the form is linear), median or envelope.
        floors: rounding floors of the curvatures, [n]; points under twice their floor are left out and counted.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        BadInput: fewer points than one more than the form's parameters, a value that is negative or not finite, or
            gradient norms that do not differ.
    """
    if form not in FORMS:
        raise BadInput(f"form {form!r} is unknown: use one of {', '.join(FORMS)}")
    if method not in METHODS:
        raise BadInput(f"method {method!r} is unknown: use one of {', '.join(METHODS)}")
    u, L, below = usable(gradient_norms, curvatures, floors)
    check(u, form)
    series = line_dependence(u, L)
    draws = np.empty((0, len(PARAMETERS[form])))
    if method != "envelope" and len(u) >= SHORTEST:
        draws = _fitted(form, method, *sampled(series, resamples, seed, u, L))
    values = _fitted(form, method, u[None], L[None])[0].tolist()
    intervals = {}
    for j, (name, value) in enumerate(zip(PARAMETERS[form], values, strict=True)):
        intervals[name] = Interval(value, np.nan, np.nan)
        if len(draws):
            column = draws[:, j]
            if name == "rho":
                column = _identified(draws)
            intervals[name] = bounded(name, interval(value, column, series, len(values)))
    return GrowthFit(
        form, method, intervals, len(u), below, series.length, _exceeded(form, method, series), series, draws
    )


def usable(
    gradient_norms: ArrayLike, curvatures: ArrayLike, floors: ArrayLike | None = None
) -> tuple[Array, Array, int]:
    """Points that are not below their floor, and how many are.

    Raises:
        BadInput: lengths differ, a value is negative or not finite, or no point is above its floor.
    """
    u, L = np.asarray(gradient_norms, dtype=float), np.asarray(curvatures, dtype=float)
    if u.ndim != 1 or u.shape != L.shape:
        raise BadInput(f"gradient norms of shape {u.shape} and curvatures of shape {L.shape}: give two series of n")
    for name, values in (("gradient norm", u), ("curvature", L)):
        invalid = ~(np.isfinite(values) & (values >= 0))
        if invalid.any():
            position = int(invalid.argmax())
            raise BadInput(
                f"{name} {values[position]} of point {position + 1}: norms are finite and not negative; leave it out"
            )
    if floors is None:
        return u, L, 0
    below = 2 * np.asarray(floors, dtype=float) > L
    if len(u) and below.all():
        raise BadInput(f"all {len(u)} points are below twice their rounding floor: measure with exact products or fp64")
    return u[~below], L[~below], int(below.sum())


def check(u: Array, form: Form) -> None:
    """Refuse points that do not identify the form.

    Raises:
        BadInput: too few points, gradient norms that do not differ, or one that is 0 for a power.
    """
    names = PARAMETERS[form]
    if len(u) <= len(names):
        raise BadInput(
            f"{len(u)} points for {len(names)} parameters ({', '.join(names)}): measure at {len(names) + 1} steps or "
            f"more, {SHORTEST} for intervals"
        )
    if form == "constant":
        return
    different = len(np.unique(u))
    if np.ptp(u) <= 1e-12 * u.max() or different < len(names):
        raise BadInput(
            f"{len(u)} points have {different} different gradient norms, about {u.mean():.3g}: the slope is not "
            "identified; measure where the gradient changes, e.g. on each step's own minibatch or over more steps"
        )
    if form == "power" and (u == 0).any():
        raise BadInput("a gradient norm is 0, where no power of it is told apart: leave that point out")


def line_dependence(u: Array, L: Array) -> Dependence:
    """Dependence of neighboring points: that of the residuals of the least-squares line."""
    line = growth_fits.least_squares(_scaled(u)[None], L[None])
    return dependence(L - line.L0 - line.c * _scaled(u))


def sampled(series: Dependence, resamples: int, seed: int, *columns: Array) -> list[Array]:
    """Bootstrap samples of columns [n], drawn together: [resamples, n] each."""
    chosen = picks(series.n, series.length, resamples, np.random.default_rng(seed))
    return [column[chosen] for column in columns]


def bounded(name: str, estimated: Interval) -> Interval:
    """An interval cut to the parameter's range: not negative, and for rho the range that is searched."""
    low, high = growth_fits.RHO if name == "rho" else (0.0, np.inf)
    return Interval(estimated.value, max(estimated.low, low), min(estimated.high, high))


def _identified(draws: Array) -> Array:
    """Exponents of bootstrap samples; where c = 0 and any exponent fits, half are put at each end of the range."""
    rho, without_growth = draws[:, 2].copy(), np.flatnonzero(draws[:, 1] == 0)
    rho[without_growth[::2]], rho[without_growth[1::2]] = growth_fits.RHO
    return rho


def _scaled(u: Array) -> Array:
    """Gradient norms in a unit of their own size, so that powers neither overflow nor vanish."""
    return u / scale(u)


def scale(u: Array) -> float:
    """Geometric mean of the positive gradient norms."""
    positive = u[u > 0]
    return float(np.exp(np.log(positive).mean())) if positive.size else 1.0


def _fitted(form: Form, method: Method, u: Array, L: Array) -> Array:
    """Parameters of each sample, [samples, parameters]."""
    fit, unit = FITS[method], scale(u)
    if form == "constant":
        return fit(np.zeros_like(L), L, growth_fits.SEARCHED).L0[:, None]
    if form == "linear":
        curves = fit(u / unit, L, growth_fits.SEARCHED)
        return np.stack([curves.L0, curves.c / unit], axis=1)
    curves, rho = growth_fits.power(u / unit, L, fit)
    return np.stack([curves.L0, curves.c / unit**rho, rho], axis=1)


def _values(form: Form, parameters: Array, u: Array) -> Array:
    """Curves of rows of parameters at u, [rows, len(u)]."""
    columns: Array = parameters.T[:, :, None]
    values: Array = columns[0] + np.zeros_like(u)
    if form == "linear":
        values = values + columns[1] * u
    if form == "power":
        values = values + columns[1] * u ** columns[2]
    return values


def _exceeded(form: Form, method: Method, series: Dependence) -> float:
    """Upper 95 % limit of the probability that another point lies above the envelope."""
    count, parameters = int(series.blocks), len(PARAMETERS[form])
    if method != "envelope" or form == "power":  # rho does not enter linearly
        return float("nan")
    if count < parameters:
        return 1.0
    return float(stats.beta.ppf(LEVEL, parameters, count - parameters + 1))
