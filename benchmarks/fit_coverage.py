"""Do the intervals of `fit_growth` cover, and are its tests of their size? `python -m benchmarks.fit_coverage`.

Series of n points, L = 1 + 2 u plus noise of a first-order autoregression with correlation r, standard deviation 0.3;
gradient norms u are stationary (log-normal, correlation 0.7) or fall along the series by a factor of 4.5 with noise.
One row a series, form, method and parameter: the share of simulations whose 95 % interval holds the truth (`value`,
Clopper-Pearson limits `low` and `high`). Rows of part "size" are shares of simulations in which a test at 5 % refuses
a null hypothesis that is true: L1 = 0, rho = 2, two blocks with equal curves. Rows of part "power" are those where it
is false: L1 = 2, rho = 1, a block with L1 = 3. Rows of part "exceeded" are shares in which the stated limit of the
probability to exceed the envelope holds, for noise that is bounded (uniform after the normal distribution function).
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from smoothlab.records import Row, environment, run
from smoothlab.stats.growth import FORMS, fit_growth
from smoothlab.stats.growth_tests import grows, same, sub_quadratic
from smoothlab.stats.samples import proportion

Array = NDArray[np.float64]
NOISE = 0.3
TRUTH = {"L0": 1.0, "L1": 2.0, "c": 2.0, "rho": 1.0}
LEVEL = 0.05  # of the tests


def autoregressive(rng: np.random.Generator, n: int, r: float) -> Array:
    """Stationary series of variance 1 whose neighbors have the correlation r."""
    series = rng.standard_normal(n)
    for t in range(1, n):
        series[t] = r * series[t - 1] + math.sqrt(1 - r * r) * series[t]
    return series


def gradient_norms(rng: np.random.Generator, n: int, design: str) -> Array:
    """Series of gradient norms around 1."""
    wander = autoregressive(rng, n, 0.7)
    if design == "stationary":
        return np.exp(0.5 * wander)
    return np.exp(0.7 - 1.5 * np.linspace(0, 1, n) + 0.3 * wander)


@dataclass(frozen=True)
class FitCoverage:
    """Coverage of the intervals of `fit_growth`, and sizes and power of its tests.

    Attributes:
        simulations: series for each row.
        resamples: bootstrap samples of each series.
        ns: numbers of points.
        correlations: of neighbors' noise.
        designs: stationary or falling.
        medians: simulate median regression of powers too, which takes most of the time.
        seed: of the series.
    """

    name: ClassVar[str] = "fit_coverage"
    unit: ClassVar[str] = "setting"
    simulations: int = 1000
    resamples: int = 399
    ns: tuple[int, ...] = (12, 20, 100)
    correlations: tuple[float, ...] = (0.0, 0.5, 0.9)
    designs: tuple[str, ...] = ("stationary", "falling")
    medians: bool = True
    seed: int = 0

    def settings(self) -> list[str]:
        """Names of the kinds of series."""
        combinations = itertools.product(self.designs, self.ns, self.correlations)
        return [f"{design}/n={n}/r={r:g}" for design, n, r in combinations]

    def place(self, row: Row) -> int:
        """Number of the row's series."""
        return self.settings().index(row["setting"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Whole settings stand; each ends with its row of part exceeded."""
        finished = {row["setting"] for row in rows if row is not None and row["part"] == "exceeded"}
        return [row for row in rows if row is not None and row["setting"] in finished]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Rows of each setting that is not done."""
        finished = {row["setting"] for row in done}
        for design, n, r in itertools.product(self.designs, self.ns, self.correlations):
            setting = f"{design}/n={n}/r={r:g}"
            if setting in finished:
                continue
            counts: dict[tuple[str, str, str], list[bool]] = {}
            for i in range(self.simulations):
                rng = np.random.default_rng([self.seed, n, int(100 * r), self.designs.index(design), i])
                for key, hit in self._outcomes(rng, n, r, design):
                    counts.setdefault(key, []).append(hit)
            common = {
                "setting": setting,
                "design": design,
                "points": n,
                "correlation": r,
                "simulations": self.simulations,
            }
            for (kind, fit, quantity), hits in counts.items():
                value, low, high = proportion(sum(hits), len(hits))
                yield common | {"part": kind, "fit": fit, "quantity": quantity, "value": value, "low": low,
                                "high": high}  # fmt: skip

    def _outcomes(self, rng: np.random.Generator, n: int, r: float, design: str) -> Iterator[tuple[Any, bool]]:
        u, noise = gradient_norms(rng, n, design), NOISE * autoregressive(rng, n, r)
        L = np.maximum(1 + 2 * u + noise, 0.0)
        seed = int(rng.integers(2**31))
        for form, method in itertools.product(FORMS[1:], ("least-squares", "median")):
            if (form, method) == ("power", "median") and not self.medians:
                continue
            fit = fit_growth(u, L, form=form, method=method, resamples=self.resamples, seed=seed)
            for name, (_, low, high) in fit.parameters.items():
                yield ("coverage", f"{form} {method}", name), low <= TRUTH[name] <= high
            low, high = fit.band([1.0])
            yield ("coverage", f"{form} {method}", "L at u = 1"), bool(low[0] <= 3 <= high[0])
        options = {"resamples": self.resamples, "seed": seed}
        square = np.maximum(1 + 2 * u**2 + noise, 0.0)
        other_L = 1 + 2 * u + NOISE * autoregressive(rng, n, r)
        yield ("size", "", "grows"), grows(u, 3 + noise, **options).p_value < LEVEL
        yield ("size", "", "sub-quadratic"), sub_quadratic(u, square, **options).p_value < LEVEL
        yield ("size", "", "same"), same((u, L), (u, other_L), **options).p_value < LEVEL
        yield ("power", "", "grows"), grows(u, L, **options).p_value < LEVEL
        yield ("power", "", "sub-quadratic"), sub_quadratic(u, L, **options).p_value < LEVEL
        yield ("power", "", "same"), same((u, L), (u, other_L + u), **options).p_value < LEVEL
        uniform = special.ndtr(noise / NOISE)
        bound = fit_growth(u, (1 + 2 * u) * (0.5 + uniform), method="envelope")
        new_norms = gradient_norms(np.random.default_rng([seed, 1]), 2000, design)
        exceeded = (1 + 2 * new_norms) * (0.5 + np.random.default_rng([seed, 2]).random(2000)) > bound(new_norms)
        yield ("exceeded", "linear envelope", "probability"), bool(exceeded.mean() <= bound.exceeded_by)


COLUMNS = (("linear least-squares", "L0"), ("linear least-squares", "L1"), ("linear least-squares", "L at u = 1"),
           ("power least-squares", "rho"))  # fmt: skip
"""Fits and quantities of the table in docs/howto/growth.md."""


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of the table of coverage: least and largest of the designs that are on record; bold where one is low."""
    lines = []
    for n, r in itertools.product(FitCoverage.ns, FitCoverage.correlations):
        cells = []
        for fit, quantity in COLUMNS:
            matching = [row for row in rows if (row["part"], row["points"], row["correlation"], row["fit"],
                                             row["quantity"]) == ("coverage", n, r, fit, quantity)]  # fmt: skip
            cells.append(_cell(matching))
        lines.append(f"| {n} | {r:g} | {' | '.join(cells)} |")
    return lines


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return "not run"
    ends = sorted({f"{100 * row['value']:.1f}" for row in rows}, key=float)
    text = f"{' to '.join(dict.fromkeys((ends[0], ends[-1])))} %"
    if len(rows) < len(FitCoverage.designs):
        text += f" ({rows[0]['design']})"
    low = any(row["high"] < 1 - LEVEL for row in rows)
    return f"**{text}**" if low else text


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=399)
    parser.add_argument("--no-medians", dest="medians", action="store_false")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fit_coverage.jsonl"))
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the table of a record, whole or not, and stop")
    args = parser.parse_args()
    if args.table:
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
        print("\n".join(table([row for row in rows if row["kind"] == "row"])))
        return
    experiment = FitCoverage(args.simulations, args.resamples, medians=args.medians)
    run(experiment, args.out, environment=environment(device="cpu", threads=1), overwrite=args.overwrite)


if __name__ == "__main__":
    main()
