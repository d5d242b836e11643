"""Tables of smoothness records: the values of a block in one unit, and ratios of blocks.

Read by the plots and the report, so that a sentence and the curve beside it come from the same numbers. Rows of
Appendix D.4 (protocol ``paper``) are brought to the unit of the estimated ones, that of ``normalized``:

    ||H||_F  ~  sqrt(d) / batch * (value as printed),      since E ||H v||^2 = ||H||_F^2 / d for v on the unit sphere.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smoothlab.errors import BadInput

NEEDED = ("step", "protocol", "block", "wrt", "quantity", "value", "low", "high", "floor", "flag", "grad_norm")
ORDER = {"base": 0, "peft": 1, "head": 2}  # other blocks follow


def check(df: pd.DataFrame) -> None:
    """Refuse rows of other experiments.

    Raises:
        BadInput: a column of the smoothness experiment is missing.
    """
    missing = [name for name in NEEDED if name not in df.columns]
    if missing:
        raise BadInput(f"these records lack {', '.join(missing)}: give records of `smoothlab smoothness`")


def points(
    df: pd.DataFrame,
    block: str,
    quantity: str = "frobenius",
    protocol: str | None = "estimated",
    *,
    printed: bool = False,
) -> pd.DataFrame:
    """Rows of one block's own Hessian, by run and step, in the unit that is drawn.

    Args:
        df: records as ``smoothlab.records.load`` gives them.
        block: name of the block; cross blocks (``wrt`` differs) are left out.
        quantity: ``frobenius``, ``spectral``, ``trace`` or ``gradient_lipschitz``.
        protocol: ``estimated``, ``paper``, or None for any.
        printed: leave paper rows as printed in Appendix D.4 (sum over the batch, no sqrt(d)) instead of rescaling them.

    Returns:
        Columns path, step, value, low, high, floor, grad_norm, grad_norm_total (float; NaN where it was not recorded),
        flag, below (under twice its floor, or flagged so) and factor (drawn value / recorded value; 1 unless rescaled).
        Rows without a finite value are dropped.

    Raises:
        BadInput: a column of the smoothness experiment is missing.
    """
    check(df)
    # Cross blocks are rows of a block's probes too, and differ in `wrt` alone.
    chosen = (df["block"] == block) & (df["wrt"] == block) & (df["quantity"] == quantity)
    if protocol is not None:
        chosen &= df["protocol"] == protocol
    rows = df[chosen.to_numpy()].reset_index(drop=True)

    def column(name: str) -> NDArray[np.float64]:
        return pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)

    value = column("value")
    factor: NDArray[np.float64] = np.ones(len(rows))
    if protocol == "paper" and not printed and "normalized" in rows:
        factors = pd.Series(column("normalized") / np.where(value == 0, np.nan, value))
        # sqrt(d)/batch is one number a run: a row whose value is 0 borrows it from the others.
        factor = np.asarray(factors.fillna(factors.median()).fillna(1.0), dtype=np.float64)
    out = pd.DataFrame({"path": "", "step": rows["step"].astype(int)})
    if "path" in rows:
        out["path"] = rows["path"].astype(str)
    for name in ("value", "low", "high", "floor"):
        out[name] = column(name) * factor
    out["grad_norm"], out["factor"] = column("grad_norm"), factor
    out["grad_norm_total"] = column("grad_norm_total") if "grad_norm_total" in rows else np.nan
    out["flag"] = rows["flag"].where(rows["flag"].notna(), None)
    # A flag may name several things, and a record without any flag has a column of NaN, which has no `str`.
    flagged = rows["flag"].astype(str).str.contains("below floor", regex=False).astype(bool)
    out["below"] = flagged | (out["value"].abs() < 2 * out["floor"])
    finite: pd.DataFrame = out.loc[np.isfinite(out["value"])]
    return finite.sort_values(["path", "step"], kind="stable").reset_index(drop=True)


def ratio(
    df: pd.DataFrame, over: str = "base", under: str = "peft", quantity: str = "frobenius", protocol: str = "estimated",
    *, printed: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Ratio of two blocks' norms at the steps where both were measured, with a 95 % interval.

    The two estimates use independent directions, so their distances to the limits add in quadrature on the log scale,
    as in `smoothlab.stats.samples.ratio`.

    Returns:
        Columns path, step, value, low, high, below (either block under twice its floor); limits are NaN where an
        interval is missing or reaches zero, and steps where a value is not positive are left out.
    """
    a = points(df, over, quantity, protocol, printed=printed)
    b = points(df, under, quantity, protocol, printed=printed)
    return quotient(a, b, ["path", "step"])


def quotient(a: pd.DataFrame, b: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """Ratio of the rows of two results of `points` that agree in the columns `on`; see `ratio`.

    Returns:
        Columns `on`, value, low, high, below.
    """
    merged = a.merge(b, on=list(on), suffixes=("_a", "_b"))
    merged = merged[(merged["value_a"] > 0) & (merged["value_b"] > 0)]

    def distance(upper: str, lower: str) -> NDArray[np.float64]:
        # An interval that reaches zero has no end on the log scale: NaN, which is drawn as none.
        positive = merged[lower].where(merged[lower] > 0)
        return np.asarray(np.log(merged[upper].to_numpy() / positive.to_numpy()), dtype=float)

    log = distance("value_a", "value_b")
    up = np.hypot(distance("high_a", "value_a"), distance("value_b", "low_b"))
    down = np.hypot(distance("value_a", "low_a"), distance("high_b", "value_b"))
    out = merged[list(on)].assign(value=np.exp(log), low=np.exp(log - down), high=np.exp(log + up))
    return out.assign(below=merged["below_a"] | merged["below_b"]).reset_index(drop=True)


def protocols_of(df: pd.DataFrame, quantity: str = "frobenius") -> tuple[str, ...]:
    """Protocols that have rows of this quantity, estimated first."""
    names = df.loc[(df["quantity"] == quantity) & df["value"].notna(), "protocol"].drop_duplicates()
    return tuple(sorted(names, key=lambda name: (name != "estimated", name)))


def blocks_of(df: pd.DataFrame, quantity: str = "frobenius") -> tuple[str, ...]:
    """Blocks whose own Hessian was measured: base, peft, head, then the others as they come.

    Raises:
        BadInput: there is none; names the quantities of the records.
    """
    blocks = df.loc[(df["quantity"] == quantity) & (df["wrt"] == df["block"]), "block"].drop_duplicates()
    if blocks.empty:
        raise BadInput(missing_rows(df, (), quantity, ()))
    return tuple(sorted(blocks, key=lambda name: ORDER.get(name, len(ORDER))))


def missing_rows(df: pd.DataFrame, blocks: Sequence[str], quantity: str, protocols: Sequence[str]) -> str:
    """One line that says which rows were asked for and which the records have."""
    measured = df.loc[df["value"].notna(), ["block", "quantity", "protocol"]].drop_duplicates()
    names = measured["quantity"] + " of " + measured["block"] + " (" + measured["protocol"] + ")"
    listed = ", ".join(names) or "no rows"
    request = quantity
    if blocks:
        request += f" of {', '.join(blocks)}"
    if protocols:
        request += f" ({', '.join(protocols)})"
    return f"these records hold no finite value for {request}; they hold: {listed}"
