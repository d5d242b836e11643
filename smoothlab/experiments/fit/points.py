"""Points (gradient norm, L) of each block, from records of curvature or from a table of somebody else's run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smoothlab.errors import BadInput
from smoothlab.stats.block_bootstrap import SHORTEST
from smoothlab.stats.growth import PARAMETERS

if TYPE_CHECKING:
    import pandas as pd

BELOW = "below floor"
HARMLESS = ("precision not reached",)
"""Flags of values that are right, if wide."""
FULL = "of all measured blocks"
OWN = "of the block itself"


@dataclass(frozen=True)
class Series:
    """Points of one block.

    Attributes:
        block: its name.
        gradient: whose gradient norm they have, in words.
        table: columns path, step, gradient_norm, value, low, high, floor, left_out (None, or why).
    """

    block: str
    gradient: str
    table: "pd.DataFrame"

    @property
    def usable(self) -> "pd.DataFrame":
        """Points that are not left out, by run and step."""
        return self.table[self.table["left_out"].isna()].reset_index(drop=True)

    def counts(self) -> dict[str, int]:
        """Number of points that were left out, by reason."""
        counted = self.table["left_out"].dropna().value_counts()
        return {str(reason): int(count) for reason, count in counted.items()}

    def check(self) -> None:
        """Refuse a block with too few points for the power, the form with the most parameters.

        Raises:
            BadInput: says how many points there are and were left out, and what to measure.
        """
        names, left_out = PARAMETERS["power"], self.counts()
        usable, below = len(self.usable), left_out.get(BELOW, 0)
        if usable > len(names):
            return
        if below and below == len(self.table):
            raise BadInput(
                f"block {self.block}: all {below} points are below twice their rounding floor: measure with exact "
                "products (--product exact, --protocol estimated) or --dtype float64"
            )
        lost = "".join(f", {count} left out ({reason})" for reason, count in left_out.items())
        raise BadInput(
            f"block {self.block} has {usable} points{lost}, and L0 + c u^rho has {len(names)} parameters: measure "
            f"at {len(names) + 1} steps or more (--points), {SHORTEST} for intervals"
        )


def from_records(files: Sequence[str], blocks: Sequence[str], quantity: str, gradient: str) -> list[Series]:
    """Points of records of `smoothlab smoothness`, `finetune --measure` or a hook, of the estimated protocol if any.

    Raises:
        BadInput: other records, a quantity or block that was not measured, or no full gradient norm where asked for.
    """
    import numpy as np

    from smoothlab.records import load
    from smoothlab.stats.smoothness_table import blocks_of, check, points, protocols_of

    df = load(files)
    check(df)
    measured = blocks_of(df, quantity)
    _check_blocks(blocks, measured, quantity)
    protocol = protocols_of(df, quantity)[0]
    series = []
    for block in blocks or measured:
        table = points(df, block, quantity, protocol)
        full = gradient != "own" and bool(np.isfinite(table["grad_norm_total"]).all())
        if gradient == "full" and not full:
            raise BadInput(
                f"--gradient full: rows of {block} have no grad_norm_total; measure all blocks with --protocol "
                "estimated, or use --gradient own"
            )
        table["gradient_norm"] = table["grad_norm_total" if full else "grad_norm"]
        table["left_out"] = [_reason(flag, below) for flag, below in zip(table["flag"], table["below"], strict=True)]
        _check_numbers(table, f"block {block}", {"gradient_norm": "its gradient norm", "value": quantity})
        series.append(Series(block, FULL if full else OWN, table[_COLUMNS]))
    return series


_COLUMNS = ["path", "step", "gradient_norm", "value", "low", "high", "floor", "left_out"]


def from_table(files: Sequence[str], blocks: Sequence[str], columns: Mapping[str, str], gradient: str) -> list[Series]:
    """Points of CSV files with a row for each step and block.

    Args:
        files: CSV files with a line of column names.
        blocks: names of the blocks to take, all by default.
        columns: column of step, block, gradient, curvature and, where they are not "", full_gradient and floor.
        gradient: auto, full or own; full without a column is the root of the sum of squares over the blocks of a step.

    Raises:
        BadInput: a file that cannot be read, a column that is missing, or a value that is no finite norm.
    """
    import numpy as np
    import pandas as pd

    parts = []
    for file in files:
        parts.append(_read(file, columns).assign(path=file))
    df = pd.concat(parts, ignore_index=True)
    measured = tuple(df["block"].drop_duplicates())
    _check_blocks(blocks, measured, columns["curvature"])
    gradient_of = OWN
    if gradient == "full" or (gradient == "auto" and columns["full_gradient"]):
        gradient_of = "of all parameters"
        if columns["full_gradient"]:
            df["gradient_norm"] = df["full_gradient"]
        else:
            gradient_of = "of all blocks"
            squares = (df["gradient_norm"] ** 2).groupby([df["path"], df["step"]])
            df["gradient_norm"] = np.sqrt(squares.transform("sum"))
    df["left_out"] = [BELOW if below else None for below in df["value"] < 2 * df["floor"]]
    series = []
    for block in blocks or measured:
        table = df[df["block"] == block].sort_values(["path", "step"], kind="stable").reset_index(drop=True)
        series.append(Series(block, gradient_of, table[_COLUMNS]))
    return series


def _read(file: str, columns: Mapping[str, str]) -> "pd.DataFrame":
    """One CSV file with columns of today's names; what it has no column for is NaN."""
    import numpy as np
    import pandas as pd

    try:
        raw = pd.read_csv(file)
    except FileNotFoundError:
        raise BadInput(f"there is no file {file}; check the path") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is no table of comma-separated values: {str(error).strip()}; give a CSV file") from None
    df = pd.DataFrame(index=raw.index)
    names = {"step": "step", "block": "block", "gradient": "gradient_norm", "curvature": "value",
             "full_gradient": "full_gradient", "floor": "floor"}  # fmt: skip
    for option, name in names.items():
        column = columns[option]
        if column and column not in raw.columns:
            flag = f"--{option.replace('_', '-')}-column"
            raise BadInput(
                f"{file} has no column '{column}': name the one with {flag}; its columns are "
                f"{', '.join(map(str, raw.columns))}"
            )
        if not column:
            df[name] = {"block": "all"}.get(option, np.nan)
        elif option == "block":
            df[name] = raw[column].astype(str)
        else:
            df[name] = pd.to_numeric(raw[column], errors="coerce").astype(float)
    norm_columns = {names[option]: column for option, column in columns.items() if column and option != "block"}
    _check_numbers(df, file, norm_columns)
    df["step"] = df["step"].astype(int)
    return df.assign(low=np.nan, high=np.nan)


def _check_numbers(table: "pd.DataFrame", origin: str, columns: Mapping[str, str]) -> None:
    """Refuse values that are no norms: not finite, or negative."""
    import numpy as np

    for name, column in columns.items():
        values = table[name].to_numpy(dtype=float)
        invalid = ~(np.isfinite(values) & (values >= 0))
        if invalid.any():
            row = int(invalid.argmax())
            raise BadInput(
                f"{origin}: {column} is {values[row]:g} in row {row + 1}, and must be finite and not negative: leave "
                "that row out, or measure it again"
            )


def _check_blocks(blocks: Sequence[str], measured: Sequence[str], quantity: str) -> None:
    for block in blocks:
        if block not in measured:
            listed = ", ".join(measured[:12]) + (", ..." if len(measured) > 12 else "")
            raise BadInput(f"--block {block}: {quantity} was measured of {listed}; name some of these")


def _reason(flag: object, below: bool) -> str | None:
    """Reason for which a point is left out, or None: it is below its floor, or a flag doubts its value."""
    if below:
        return BELOW
    if not isinstance(flag, str):  # None, or NaN in a column without any flag
        return None
    doubts = [part for part in flag.split(", ") if part not in HARMLESS]
    return ", ".join(doubts) or None
