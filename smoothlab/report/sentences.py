"""Plain-language reading of the smoothness records: every sentence is generated from the numbers.

A sentence claims a change, a growth or a difference only where the 95 % intervals say so, and says "open" where they do
not. Values of Appendix D.4 are read in the unit of the estimated ones (``smoothlab.stats.smoothness_table``) and as
printed.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from smoothlab.stats.ranks import Correlation, spearman
from smoothlab.stats.smoothness_table import blocks_of, points, protocols_of, ratio

NAMES = {"frobenius": "Frobenius norm", "spectral": "largest absolute eigenvalue", "trace": "trace"}
OWNERS = {"base": "base model's", "peft": "PEFT module's", "head": "classification head's"}


def number(value: float | None) -> str:
    """Three significant digits: ``12.1``, ``0.0421``, ``1,230``, ``1.23e-07``; ``not measured`` for None and NaN."""
    if value is None or not math.isfinite(value):
        return "not measured"
    rounded = float(f"{value:.3g}")
    if rounded == 0:
        return "0"
    if not 1e-3 <= abs(rounded) < 1e6:
        return f"{rounded:.3g}"
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def with_interval(row: Any, one_sided: bool = False) -> str:
    """``12.1 (11.6 to 12.7)``; a one-sided bound reads ``12.1 (at most 12.7)``; no interval, only the value."""
    if math.isfinite(row.low) and math.isfinite(row.high) and not one_sided:
        return f"{number(row.value)} ({number(row.low)} to {number(row.high)})"
    return f"{number(row.value)} (at most {number(row.high)})" if math.isfinite(row.high) else number(row.value)


def along_training(df: pd.DataFrame, block: str, quantity: str = "frobenius", protocol: str = "estimated") -> list[str]:
    """How one block's quantity moved, run by run; nothing where it was not measured."""
    found, bound = points(df, block, quantity, protocol), quantity == "spectral"
    told = []
    for index, (_, rows) in enumerate(found.groupby("path")):
        runs = found["path"].nunique()
        where = f"Run {index + 1} of {runs}: " if runs > 1 else ""
        what = f"{NAMES.get(quantity, quantity)} of the {OWNERS.get(block, block + ' block' + chr(39) + 's')} Hessian"
        first, last = rows.iloc[0], rows.iloc[-1]
        if len(rows) == 1:
            told.append(f"{where}At step {first.step} the {what} was {with_interval(first, bound)}.")
            continue
        least, most = rows.iloc[int(rows["value"].argmin())], rows.iloc[int(rows["value"].argmax())]
        told.append(
            f"{where}From step {first.step} to step {last.step} the {what} went from {with_interval(first, bound)} to "
            f"{with_interval(last, bound)}; over the {len(rows)} measured points it lay between {number(least.value)} "
            f"(step {least.step}) and {number(most.value)} (step {most.step}).{_change(first, last)}"
        )
    return told


def _change(first: Any, last: Any) -> str:
    limits = (first.low, first.high, last.low, last.high)
    if not all(math.isfinite(limit) for limit in limits):
        return ""
    if first.low <= last.high and last.low <= first.high:
        return " The first and the last interval overlap: measuring error may explain the difference."
    factor = max(last.value / first.value, first.value / last.value) if first.low > 0 < last.low else math.nan
    by = f" by a factor of {number(factor)}" if factor > 0 else ""
    moved = "rose" if last.value > first.value else "fell"
    return f" It {moved}{by}, and the first and the last interval do not overlap."


def with_gradient(df: pd.DataFrame, block: str, quantity: str = "frobenius") -> list[str]:
    """Whether the quantity grows with the block's gradient norm, for each protocol; open if the interval holds 0."""
    told, conclusive = [], False
    for protocol in protocols_of(df, quantity):
        rows = points(df, block, quantity, protocol)
        who = "The estimated norm" if protocol == "estimated" else "The norm at the settings of Appendix D.4"
        found = spearman(rows["grad_norm"], rows["value"])
        if found is None:
            told.append(
                f"{who}: no correlation with the gradient norm, it takes 4 differing points and there are {len(rows)}."
            )
            continue
        conclusive |= found.low > 0 or found.high < 0
        told.append(f"{who} {_growth(found)}")
        share = rows["floor"] / rows["value"].abs()
        if protocol == "paper" and found.low > 0 and share.max() > 0.3:
            told.append(
                f"Its rounding floor makes up to {_percent(share.max())} of the value and moves with the gradient "
                "norm as well "
                f"(rank correlation {spearman(rows['grad_norm'], rows['floor']) or 'unknown'}), so that rounding "
                "can fake this growth."
            )
    if conclusive:
        told.append(
            "Points of one run are not independent and may all drift with the step: this describes the run, it "
            "proves no distribution."
        )
    return told


def _growth(found: Correlation) -> str:
    numbers = f"Spearman rank correlation {found}"
    if found.low > 0:
        return f"grows with the gradient norm along this training: {numbers}."
    if found.high < 0:
        return f"falls where the gradient norm grows along this training: {numbers}."
    return f"shows no clear relation to the gradient norm: {numbers}. The interval holds zero, so this stays open."


def paper_beside(df: pd.DataFrame, block: str, quantity: str = "frobenius") -> list[str]:
    """What the settings of Appendix D.4 gave at the same points, and where they lie against their rounding floor."""
    rows, printed = (points(df, block, quantity, "paper", printed=as_printed) for as_printed in (False, True))
    if rows.empty:
        return []
    own = (df["protocol"] == "paper") & (df["block"] == block)
    steps = pd.to_numeric(df.loc[own, "h"], errors="coerce").dropna().unique()
    h = f" (h = {', '.join(f'{step:g}' for step in steps)})" if len(steps) else ""
    what = f"{NAMES.get(quantity, quantity)} of {block}"
    told = [
        f"At the settings of Appendix D.4{h} the {what} reads {_range(printed['value'])} as printed, which is "
        f"{_range(rows['value'])} in the unit of the estimated values (times sqrt(d)/batch = "
        f"{number(rows['factor'].median())})."
    ]
    both = rows.merge(points(df, block, quantity, "estimated"), on=["path", "step"], suffixes=("", "_careful"))
    times = (both["value"] / both["value_careful"].where(both["value_careful"] > 0)).dropna()
    if len(times):
        told.append(f"That is {_spread(times)} times the estimated value at the same point.")
    share = (rows["floor"] / rows["value"].abs()).dropna()
    if share.empty:
        told.append("These rows carry no rounding floor, so they cannot tell curvature from rounding.")
    else:
        under = int(rows["below"].sum())
        of = f"of {len(rows)} point{'s' * (len(rows) > 1)}"
        verdict = f"{of} {under or 'none'} lie{'s' * (under < 2)} under twice the floor"
        if under:
            verdict += ", where the value cannot be trusted"
        told.append(f"Rounding alone can produce {_spread(100 * share, ' %')} of these values; {verdict}.")
    return told


def base_over_peft(df: pd.DataFrame, quantity: str = "frobenius") -> list[str]:
    """The ratio base / PEFT with its interval, and what leaving out sqrt(d) makes of it."""
    told = []
    rows = ratio(df, quantity=quantity)
    if len(rows):
        first, last = rows.iloc[0], rows.iloc[-1]
        above, under = int((rows["low"] > 1).sum()), int((rows["high"] < 1).sum())
        end = f" and {with_interval(last)} times at step {last.step}" if len(rows) > 1 else ""
        median = f"; the median over {len(rows)} points is {number(rows['value'].median())}" if len(rows) > 1 else ""
        told.append(
            f"The base model's {NAMES.get(quantity, quantity)} is {with_interval(first)} times the PEFT module's at "
            f"step {first.step}{end}{median}. The 95 % interval of this ratio lies above 1 at {above} of {len(rows)} "
            f"point{'s' * (len(rows) > 1)} and below 1 at {under}."
        )
    rescaled, printed = (ratio(df, quantity=quantity, protocol="paper", printed=p) for p in (False, True))
    if len(rescaled):
        told.append(
            f"At the settings of Appendix D.4 the median ratio is {number(rescaled['value'].median())} after "
            "rescaling and "
            f"{number(printed['value'].median())} as printed: without sqrt(d) it is "
            f"{number((rescaled['value'] / printed['value']).median())} times too small, the square root of the "
            "ratio of dimensions."
        )
        if rescaled["below"].any():
            told.append(
                f"At {int(rescaled['below'].sum())} of {len(rescaled)} of these points at least one of the two "
                "norms lies under twice its floor."
            )
    return told


def along_path(df: pd.DataFrame) -> list[str]:
    """The path-based smoothness of each block beside its largest absolute eigenvalue."""
    told = []
    for block in blocks_of(df, "gradient_lipschitz"):
        rows, spectral = points(df, block, "gradient_lipschitz", None), points(df, block, "spectral")
        most = rows.iloc[int(rows["value"].argmax())]
        beside = (
            f", beside a largest absolute eigenvalue of at least {_range(spectral['value'])}" if len(spectral) else ""
        )
        told.append(
            f"{block}: between consecutive weights the gradient changed {number(rows['value'].median())} times as "
            "much as the "
            f"weights (median of {len(rows)} steps; at most {number(most.value)}, at step {most.step}){beside}."
        )
    return told


def fig1a(df: pd.DataFrame) -> list[str]:
    """Reading of Figure 1a."""
    block = blocks_of(df)[0]
    told = [line for quantity in NAMES for line in along_training(df, block, quantity)]
    return told + with_gradient(df, block) + paper_beside(df, block)


def fig1b(df: pd.DataFrame) -> list[str]:
    """Reading of Figure 1b."""
    blocks = [b for b in blocks_of(df) if b in OWNERS] or list(blocks_of(df))
    told = [line for block in blocks for line in along_training(df, block)] + base_over_peft(df)
    return told + [line for block in blocks if block != "head" for line in paper_beside(df, block)]


def uncertain(df: pd.DataFrame) -> list[str]:
    """What these records leave open, counted from them."""
    runs = df["path"].nunique() if "path" in df else 1
    rows = df[df["quantity"] != "gradient_lipschitz"]
    two_sided = rows["low"].notna() & rows["high"].notna() & (rows["quantity"] != "spectral")
    intervals = int(two_sided.sum())
    told = [
        "Each point is the Hessian of the loss on one minibatch; the intervals cover the random directions of the "
        "estimate, not the choice of that minibatch.",
        "There is one run behind this: what differs between seeds, models and tasks does not show."
        if runs == 1
        else f"There are {runs} runs behind this: what differs between seeds, models and tasks shows only as far as "
        "these runs differ.",
        f"Intervals are pointwise: of the {intervals} two-sided ones about {intervals / 20:.1f} miss the true "
        "value even if all is right.",
    ]
    if any(header.get("config", {}).get("minibatch") == "step" for header in df.attrs.get("headers", {}).values()):
        told.insert(
            1,
            "Each point has the minibatch of its own step: a difference between points can come from the sentences as "
            "well as from the weights.",
        )
    if (rows["quantity"] == "spectral").any():
        told.append(
            "A largest absolute eigenvalue is a lower bound with a one-sided 95 % upper bound; it has no "
            "two-sided interval."
        )
    estimated = rows[rows["protocol"] == "estimated"]
    share = (
        pd.to_numeric(estimated["floor"], errors="coerce") / pd.to_numeric(estimated["value"], errors="coerce").abs()
    )
    if share.notna().any():
        told.append(f"Rounding can produce at most {_percent(share[np.isfinite(share)].max())} of a estimated value.")
    else:
        told.append("The estimated values carry no rounding floor.")
    flags = df.loc[df["flag"].notna(), ["flag", "protocol"]].value_counts(sort=False).reset_index(name="rows")
    for flag, protocol, count in zip(flags["flag"], flags["protocol"], flags["rows"], strict=True):
        told.append(f"{count} {protocol} row{'s carry' if count != 1 else ' carries'} the flag '{flag}'.")
    lost = int(df["value"].isna().sum())
    if lost:
        told.append(f"{lost} value{'s' * (lost != 1)} could not be measured: null in the records, and not drawn.")
    return told


def _range(values: pd.Series) -> str:
    low, high = number(values.min()), number(values.max())
    return low if low == high else f"{low} to {high}"


def _spread(values: pd.Series, unit: str = "") -> str:
    """``1.00 to 3.78 (median 1.05)``, or the one number."""
    told = _range(values)
    return f"{told}{unit} (median {number(values.median())}{unit})" if " to " in told else told + unit


def _percent(share: float) -> str:
    return f"{number(100 * share)} %"
