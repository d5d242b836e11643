"""Growth of L with the gradient norm along a run: fits, their curves, and tests, from records or a CSV file."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from smoothlab import records
from smoothlab.errors import BadInput

if TYPE_CHECKING:
    from smoothlab.experiments.fit.points import Series

Row = dict[str, Any]
Optional = Annotated[str, arg(metavar="NAME")]
COMPARED = 4  # blocks of which every pair is compared; of more there would be more pairs than one reads
GRID = 40  # gradient norms at which a fitted curve is written


@dataclass(frozen=True)
class Fit:
    """Fit how L, a norm of each block's Hessian, grows with the gradient norm: L0, L0 + L1 u, L0 + c u^rho.

    Each by non-negative least squares, median regression and as an envelope that no point exceeds, with 95 % intervals
    from a block bootstrap, and tests: does L grow, less than quadratically, alike in two blocks. Measures nothing.

    Attributes:
        records: record files of `smoothlab smoothness` or `finetune --measure`, or CSV files with a row for each step
            and block.
        block: names of the blocks to fit; all by default.
        quantity: norm of the Hessian that is L, of record files: frobenius or spectral, a lower bound of the largest
            absolute eigenvalue.
        gradient: gradient norm that is u. full: that of all measured blocks together, as in Definition 2.1 (of a CSV
            file without such a column, the root of the sum of squares over its blocks); own: the block's; auto: full
            where the file has it, else own.
        step_column: column of a CSV file with the step.
        block_column: column of a CSV file with the block's name or number; "" where all rows are of one block.
        gradient_column: column of a CSV file with the gradient norm of the block.
        full_gradient_column: column of a CSV file with the gradient norm of all parameters; none by default.
        curvature_column: column of a CSV file with L.
        floor_column: column of a CSV file with the rounding floor of L; none by default. Points under twice their
            floor are left out and counted.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.
    """

    name: ClassVar[str] = "fit"

    records: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE.jsonl|FILE.csv ...")] = ()
    block: tuple[str, ...] = ()
    quantity: Literal["frobenius", "spectral"] = "frobenius"
    gradient: Literal["auto", "full", "own"] = "auto"
    step_column: Optional = "step"
    block_column: Optional = "block"
    gradient_column: Optional = "grad_norm"
    full_gradient_column: Optional = ""
    curvature_column: Optional = "value"
    floor_column: Optional = ""
    resamples: int = 499
    seed: int = 0

    def series(self) -> "list[Series]":
        """Points of each block, those left out included.

        Raises:
            BadInput: files of both kinds, a file that cannot be read, or a block with too few points.
        """
        from smoothlab.experiments.fit.points import from_records, from_table

        if self.resamples < 99:
            raise BadInput(f"--resamples {self.resamples} is too small: use at least 99, for ends of 95 % intervals")
        tables = [file for file in self.records if file.lower().endswith(".csv")]
        if tables and len(tables) < len(self.records):
            raise BadInput("record files and CSV files together: fit the files of one kind at a time")
        if tables:
            names = ("step", "block", "gradient", "full_gradient", "curvature", "floor")
            columns = {name: str(getattr(self, f"{name}_column")) for name in names}
            series = from_table(tables, self.block, columns, self.gradient)
        else:
            series = from_records(self.records, self.block, self.quantity, self.gradient)
        for points_of_block in series:
            points_of_block.check()
        return series

    def written(self, out: Path | None, overwrite: bool) -> list[Row]:
        """All rows, which are written to the record file `out` where there is one; a stopped run leaves none."""
        rows = list(self.rows())
        if out is not None:
            environment = records.environment()
            writer = records.Writer(out, self.name, asdict(self), environment, overwrite=overwrite)
            for row in rows:
                writer.write(row)
            writer.end()
        return rows

    def rows(self) -> Iterator[Row]:
        """Rows of part points, parameters, curves and tests of each block, and tests of pairs of blocks."""
        from tqdm import tqdm

        series = self.series()
        quantity = self.curvature_column if self.records[0].lower().endswith(".csv") else self.quantity
        common = {"norm": quantity, "gradient": series[0].gradient}
        for points_of_block in tqdm(series, desc="fit", unit="block", disable=len(series) <= COMPARED):
            try:
                for row in self._block(points_of_block):
                    yield row | common
            except BadInput as error:
                raise BadInput(f"block {points_of_block.block}: {error}; or choose other blocks with --block") from None
        if len(series) <= COMPARED:
            for first, second in itertools.combinations(series, 2):
                for row in self._pair(first, second):
                    yield row | common

    def _block(self, series: "Series") -> Iterator[Row]:
        from smoothlab.stats.growth import FORMS, METHODS, fit_growth
        from smoothlab.stats.growth_tests import grows, sub_quadratic

        block = {"block": series.block}
        for row in series.table.to_dict("records"):
            point = {str(name): value for name, value in row.items()}
            yield block | {"part": "points", "setting": f"points/{series.block}"} | point
        usable = series.usable
        u, L = usable["gradient_norm"].to_numpy(dtype=float), usable["value"].to_numpy(dtype=float)
        options = {"resamples": self.resamples, "seed": self.seed}
        for form, method in itertools.product(FORMS, METHODS):
            fit = fit_growth(u, L, form=form, method=method, **options)
            about = block | {"form": form, "fitted_by": method}
            setting = f"{series.block}/{form}/{method}"
            for name, interval in fit.parameters.items():
                yield about | {
                    "part": "parameters", "setting": f"parameters/{setting}", "quantity": name, **_ends(*interval),
                    "count": fit.points, "left_out_points": series.counts(), "block_length": fit.block_length,
                    "exceeded_by": fit.exceeded_by,
                }  # fmt: skip
            yield from _curve(fit, u, about | {"part": "curves", "setting": f"curves/{setting}"})
        for test in (grows(u, L, **options), sub_quadratic(u, L, **options)):
            yield block | _tested(test, f"tests/{series.block}")

    def _pair(self, first: "Series", second: "Series") -> Iterator[Row]:
        """Whether two blocks have equal curves, at the steps where both were measured."""
        from smoothlab.stats.growth_tests import same

        merged = first.usable.merge(second.usable, on=["path", "step"], suffixes=("_a", "_b"))
        if len(merged) < 3:
            return
        columns = ((f"gradient_norm_{end}", f"value_{end}") for end in "ab")
        a, b = ((merged[u].to_numpy(float), merged[value].to_numpy(float)) for u, value in columns)
        test = same(a, b, self.resamples, self.seed)
        yield _tested(test, f"tests/{first.block} and {second.block}") | {"block": first.block, "other": second.block}


def _curve(fit: Any, u: Any, about: Row) -> Iterator[Row]:
    """The fitted curve with its pointwise interval, from the least gradient norm to the largest."""
    import numpy as np

    smallest = max(float(u.min()), float(u.max()) * 1e-6)
    norms = np.geomspace(smallest, float(u.max()), GRID)
    low, high = fit.band(norms)
    for norm, value, bottom, top in zip(norms, fit(norms), low, high, strict=True):
        yield about | {"gradient_norm": float(norm), "value": float(value), "low": float(bottom), "high": float(top)}


def _ends(value: float, low: float, high: float) -> Row:
    return {"measured": value, "low": low, "high": high}


VERDICTS = {
    "grows": ("falls", "open", "grows"),
    "sub-quadratic": ("sub-quadratic", "open", "not sub-quadratic"),
}
"""Verdicts of an interval below zero, around it, and above it."""


def _tested(test: Any, setting: str) -> Row:
    """Row of a test, with its verdict at 95 % confidence."""
    verdict = "too few points"
    if test.name == "same" and not math.isnan(test.p_value):
        verdict = "differ" if test.p_value < 0.05 else "open"
    elif not math.isnan(test.p_value):
        verdict = VERDICTS[test.name][1 + (test.low > 0) - (test.high < 0)]
    return {
        "part": "tests", "setting": setting, "quantity": test.name, "null": test.null,
        **_ends(test.value, test.low, test.high), "p_value": test.p_value, "verdict": verdict,
    }  # fmt: skip
