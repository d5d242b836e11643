"""Claims of Section 2.1 and Figure 1 on real training, checked on records of `smoothlab smoothness`.

No model is loaded.

Points of one run are not independent: intervals over points describe the run. A claim holds where the intervals of all
runs say so, is false where one says the opposite, and is left open where an interval holds both.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smoothlab.claims.claim import About, Certificate, Claim, Facts, Finding
from smoothlab.records import load
from smoothlab.stats import samples
from smoothlab.stats.ranks import BLOCK, partial_spearman, spearman_of_series
from smoothlab.stats.smoothness_table import points, ratio

DEPENDENT = "points of one run are dependent"
RECORDS = ("fig1b_micro_sst2.jsonl", "fast_1b_micro_sst2.jsonl")


def _supports(holds: bool, fails: bool) -> bool | None:
    """The answer of an interval: None where it leaves the claim open."""
    if holds or fails:
        return holds
    return None


def _grows(seed: int, records: Sequence[Path]) -> Finding:
    certificates = []
    # Figure 1a draws ||H||_F; that the largest eigenvalue grows too is more than the paper says.
    quantities: dict[str, tuple[str, About]] = {
        "frobenius": ("||H||_F", "printed"), "spectral": ("largest |eigenvalue|", "corrected"),
    }  # fmt: skip
    for path, quantity in itertools.product(records, quantities):
        rows = points(load(path), "base", quantity)
        if len(rows) <= 2 * BLOCK:
            continue
        x, y, step = (rows[column].to_numpy(dtype=float) for column in ("grad_norm", "value", "step"))
        rho = spearman_of_series(x, y, seed)
        facts: Facts = {
            "rank correlation": rho.value, "low": rho.low, "high": rho.high,
            "given the step": partial_spearman(x, y, step),
            "exponent of the gradient norm (1: linear)": float(np.polyfit(np.log(x), np.log(y), 1)[0]),
            "least gradient norm": float(x.min()), "largest": float(x.max()), "points": float(len(x)),
            "note": DEPENDENT, "records": path.name,
        }  # fmt: skip
        name, about = quantities[quantity]
        statement = f"{name} of the base model grows with its gradient norm"
        certificates.append(Certificate(statement, about, _supports(rho.low > 0, rho.high < 0), "records", facts))
    return Finding(tuple(certificates))


def _smaller(seed: int, records: Sequence[Path]) -> Finding:
    certificates = []
    for path in records:
        table = load(path)
        rows = ratio(table)
        if len(rows) < 6:
            continue
        median = samples.median(rows["value"])
        above, below = int((rows["low"] > 1).sum()), int((rows["high"] < 1).sum())
        base, peft = (float(table.loc[table["block"] == block, "dim"].iloc[0]) for block in ("base", "peft"))
        facts: Facts = {
            "median base/LoRA": median.value, "low": median.low, "high": median.high,
            "least ratio": float(rows["value"].min()), "its interval's low end at least": float(rows["low"].min()),
            "largest ratio": float(rows["value"].max()), "points": float(len(rows)), "above 1": float(above),
            "median of ||H||_F/sqrt(d)": median.value * (peft / base) ** 0.5, "note": DEPENDENT, "records": path.name,
        }  # fmt: skip
        certificates.append(Certificate(
            "||H||_F of the base model exceeds LoRA's at every point, intervals apart", "printed",
            _supports(above == len(rows), below == len(rows)), "records", facts,
        ))  # fmt: skip
        a, b = (points(table, block, "spectral") for block in ("base", "peft"))
        pairs = a.merge(b, on=["path", "step"], suffixes=("_a", "_b"))
        if pairs.empty:
            continue
        least = (pairs["low_a"] / pairs["high_b"]).to_numpy()
        facts = {"least (lower bound of base)/(upper bound of LoRA)": float(least.min()), "points": float(len(pairs)),
                 "records": path.name}  # fmt: skip
        certificates.append(Certificate(
            "so does the largest |eigenvalue|, by its 95 % bounds", "printed",
            _supports(bool((least > 1).all()), False), "records", facts,
        ))  # fmt: skip
    return Finding(tuple(certificates))


CLAIMS = (
    Claim("l-grows", "Along training L grows with the gradient norm (L as in Fig. 1a: the base model's ||H||_F).",
          "Section 2.1 (1), Figure 1a", "`micro` on SST-2, the runs of these records", "holds", "", _grows,
          records=RECORDS),
    Claim("lora-smaller", "LoRA has a substantially smaller L than the base model.", "Section 2.1 (2), Figure 1b",
          "`micro` on SST-2 with LoRA of rank 16, the runs of these records", "holds", "", _smaller, records=RECORDS),
)  # fmt: skip
