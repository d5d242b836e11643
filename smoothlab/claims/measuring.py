"""Appendix D.4's norm formula and its step, and what Figure 1 claims, read from records of `smoothlab smoothness`."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smoothlab import samples
from smoothlab.claims import exact
from smoothlab.claims.claim import About, Certificate, Claim, Finding
from smoothlab.claims.search import Array, Statement, falsify
from smoothlab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd

TESTS = "tests/claims/test_measuring.py::"

# ||H||_F from unit vectors. A uniform v on the sphere has E v_i v_j = 1{i = j}/d, E v_i^4 = 3/(d (d + 2)) and
# E v_i^2 v_j^2 = 1/(d (d + 2)), so that for H = diag(h) the mean square of ||Hv|| and its variance are fractions.


def unit_mean(h: Sequence[int]) -> Fraction:
    """E v'H^2 v."""
    return Fraction(sum(one**2 for one in h), len(h))


def unit_variance(h: Sequence[int]) -> Fraction:
    """Relative variance of v'H^2 v."""
    d, square, fourth = len(h), sum(one**2 for one in h), sum(one**4 for one in h)
    second = Fraction(square**2 + 2 * fourth, d * (d + 2))
    return second / unit_mean(h) ** 2 - 1


def _ratio_to_formula(p: Array) -> Array:
    """||H||_F over sqrt(E v'H^2 v), H of eigenvalues k^-decay; the first d of them."""
    d, decay = np.round(p[:, 0]), p[:, 1]
    k = np.arange(1, 1001)
    squares = np.where(k <= d[:, None], k ** (-2 * decay[:, None]), 0.0).sum(1)
    found: Array = np.sqrt(squares) / np.sqrt(squares / d)
    return found


def _spread(p: Array) -> Array:
    """Relative variance of d v'H^2 v over its bound 2."""
    d, decay = np.round(p[:, 0]), p[:, 1]
    k = np.arange(1, 1001)
    fourths = np.where(k <= d[:, None], k ** (-4 * decay[:, None]), 0.0).sum(1)
    squares = np.where(k <= d[:, None], k ** (-2 * decay[:, None]), 0.0).sum(1)
    found: Array = 2 / (d + 2) * (d * fourths / squares**2 - 1) / 2
    return found


_SPECTRA = {"names": ("d", "decay"), "ranges": ((1.0, 1000.0), (0.0, 6.0)), "log": (True, False)}
FORMULA = Statement(
    "||H||_F <= sqrt(E v'H^2 v), v uniform on the unit sphere, H with eigenvalues k^-decay, k <= d",
    ratio=_ratio_to_formula, cases=2000, steps=60, **_SPECTRA,  # type: ignore[arg-type]
)  # fmt: skip
SPREAD = Statement(
    "relative variance of d v'H^2 v <= 2, H with eigenvalues k^-decay, k <= d", ratio=_spread, about="corrected",
    known=999 / 1002, cases=2000, steps=60, **_SPECTRA,  # type: ignore[arg-type]
)  # fmt: skip


def _formula(seed: int) -> Finding:
    rng = np.random.default_rng(seed)
    spectra = [[int(h) for h in rng.integers(-9, 10, d)] for d in range(1, 41)]
    spectra = [h for h in spectra if any(h)]
    isotropic = exact.equal(
        "H = I in two dimensions: every unit v has v'H^2 v = 1, and ||H||_F^2 = 2 is not that", unit_mean([1, 1]),
        Fraction(1), supports=False,
    )  # fmt: skip
    frames = [rng.integers(-9, 10, (d, d)) for d in range(2, 30)]
    symmetric = [(one + one.T).astype(object) for one in frames]
    # +-e_i are a design of degree 3: the mean over them of v'H^2 v is that over the sphere.
    means = [sum(Fraction(int((h[:, i] ** 2).sum()), len(h)) for i in range(len(h))) for h in symmetric]
    corrected = exact.equal(
        "d E v'H^2 v = ||H||_F^2: E vv' = I/d, as flips and permutations of coordinates leave the sphere as it is",
        [len(h) * mean for h, mean in zip(symmetric, means, strict=True)],
        [int((h**2).sum()) for h in symmetric], "corrected",
    )  # fmt: skip
    hundred = exact.dense(
        "100 vectors give ||H||_F^2 with a relative standard deviation of at most sqrt(2/100) = 14 %: relative variance "
        "(2/(d + 2)) (d tr H^4/||H||_F^4 - 1) <= 2, as tr H^4 <= ||H||_F^4",
        [float(unit_variance(h) / 2) for h in spectra], "corrected",
    )  # fmt: skip
    return Finding((isotropic, corrected, hundred, *falsify([FORMULA, SPREAD], seed)))


# The step h = 1e-5 in single precision

OPT_125M = 125_239_296  # weights
TOLERATED = 0.1  # relative error of Hv


def difference_error(d: int, size: float, offset: float, h: float, central: bool) -> float:
    """||q - Hv||/||Hv|| of the difference quotient q of grad f = x - c in fp32, v a random unit vector.

    Args:
        d: number of weights.
        size: root mean square of the weights.
        offset: ||c||/||x||.
        h: step.
        central: (grad f(x + hv) - grad f(x - hv))/(2h) instead of (grad f(x + hv) - grad f(x))/h.
    """
    x, c, v = np.random.default_rng(0).standard_normal((3, d))
    v /= np.linalg.norm(v)
    start, minimum = (size * x).astype(np.float32), (size * offset * c).astype(np.float32)
    move = (h * v).astype(np.float32)
    back = (start - move) - minimum if central else start - minimum
    moved = ((start + move) - minimum) - back
    return float(np.linalg.norm(moved.astype(float) / (h * (1 + central)) - v))


def _step(central: bool, p: Array) -> Array:
    """The error over what is tolerated: h = 1e-5 forward, or h = ||x||/100 central."""
    d, size, offset = np.round(p[:, 0]).astype(int), p[:, 1], p[:, 2]
    steps = size * np.sqrt(d) / 100 if central else np.full(len(p), 1e-5)
    members = zip(d, size, offset, steps, strict=True)
    return np.array([difference_error(n, s, o, h, central) / TOLERATED for n, s, o, h in members])


_WEIGHTS = {
    "names": ("d", "size of weights", "||c||/||x||"), "ranges": ((10.0, 1e5), (1e-3, 1.0), (1e-2, 100.0)),
    "log": (True, True, True), "cases": 150, "starts": 2, "steps": 40,
}  # fmt: skip
STEP = Statement(
    "||q - Hv|| <= ||Hv||/10 for the forward difference at h = 1e-5 in fp32, f = ||x - c||^2/2",
    ratio=lambda p: _step(False, p), **_WEIGHTS,  # type: ignore[arg-type]
)  # fmt: skip
LONG_STEP = Statement(
    "||q - Hv|| <= ||Hv||/10 for the central difference at h = ||x||/100 in fp32, f = ||x - c||^2/2",
    ratio=lambda p: _step(True, p), about="corrected", known=0.00185, **_WEIGHTS,  # type: ignore[arg-type]
)  # fmt: skip


def _steps(seed: int, records: Sequence[Path]) -> Finding:
    # Weights from 1/64 on have a spacing of at least 2^-29 in fp32: less than half of it rounds away.
    move_squared, half_squared = Fraction(1, 10**10 * OPT_125M), Fraction(1, 2**60)
    lost = exact.equal(
        "v of equal entries 1/sqrt(d), d = 125,239,296 (OPT-125M): h v_i is below half the spacing of every fp32 weight "
        "of at least 1/64, so that x + hv rounds to x and the quotient is 0 for every H",
        move_squared < half_squared, True, supports=False, move=float(move_squared) ** 0.5, half=2.0**-30,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    weights = rng.uniform(1 / 64, 1, 100_000).astype(np.float32)
    same = exact.equal(
        "the same in numpy's fp32, on 100,000 random weights from 1/64 to 1: all stay as they are",
        bool((weights + np.float32(1e-5 / OPT_125M**0.5) == weights).all()), True, supports=False,
    )  # fmt: skip
    told = [one for path in records for one in _rounding(path)]
    return Finding((lost, same, *told, *falsify([STEP, LONG_STEP], seed)))


def _rounding(path: Path) -> list[Certificate]:
    """Printed and careful values of the base model beside their rounding floors."""
    from smoothlab.pages.readings import points

    table, found = _loaded(path), []
    for protocol, about, most in (("paper", "printed", 0.5), ("careful", "corrected", 0.01)):
        rows = points(table, "base", protocol=protocol)
        rows = rows[rows["floor"].notna()]
        if rows.empty:
            continue
        share = (rows["floor"] / rows["value"].abs()).to_numpy()
        above = int((share > most).sum())
        what = (
            "printed values (h = 1e-5, fp32) of the base model under twice their rounding floor"
            if protocol == "paper"
            else "careful values (exact products) of the base model with a rounding floor of more than 1 %"
        )
        facts = {"points": float(len(rows)), "such points": float(above), "median floor/value": float(np.median(share)),
                 "largest floor/value": float(share.max()), "records": path.name}  # fmt: skip
        found.append(Certificate(what, about, above == 0, "records", facts))  # type: ignore[arg-type]
    return found


def _loaded(path: Path) -> "pd.DataFrame":
    from smoothlab.records import load

    return load(path)


# Figure 1, from records. Points of one run are not independent: intervals over points are a description of the run.

DEPENDENT = "points of one run are dependent"
BLOCK, TIMES = 4, 1000  # of the bootstrap: consecutive points that are drawn together, and how often


def rank_correlation(x: Array, y: Array, seed: int = 0) -> Interval:
    """Spearman's, with the wider ends of Fisher's interval and of a moving-block bootstrap, which keeps neighbors."""
    from scipy import stats

    from smoothlab.pages.readings import spearman

    found = spearman(x, y)  # type: ignore[arg-type]
    if found is None:
        return Interval(float("nan"), -1.0, 1.0)
    n, rng = len(x), np.random.default_rng(seed)
    starts = rng.integers(0, n - BLOCK + 1, (TIMES, -(-n // BLOCK)))
    picks = (starts[..., None] + np.arange(BLOCK)).reshape(TIMES, -1)[:, :n]
    ranks = stats.rankdata(x[picks], axis=1), stats.rankdata(y[picks], axis=1)
    a, b = (one - one.mean(1, keepdims=True) for one in ranks)
    again = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    low, high = np.nanquantile(again, [0.025, 0.975])
    return Interval(found.rho, min(found.low, float(low)), max(found.high, float(high)))


def given_step(x: Array, y: Array, step: Array) -> float:
    """Rank correlation of what is left when both ranks are freed of their linear part in the step's rank."""
    from scipy import stats

    inverse = np.linalg.inv(np.corrcoef([stats.rankdata(one) for one in (x, y, step)]))
    return float(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]))


def _grows(seed: int, records: Sequence[Path]) -> Finding:
    from smoothlab.pages.readings import points

    found = []
    for path in records:
        for quantity, name in (("frobenius", "||H||_F"), ("spectral", "largest |eigenvalue|")):
            rows = points(_loaded(path), "base", quantity)
            if len(rows) <= 2 * BLOCK:
                continue
            x, y, step = (rows[column].to_numpy(dtype=float) for column in ("grad_norm", "value", "step"))
            rho = rank_correlation(x, y, seed)
            supports = True if rho.low > 0 else False if rho.high < 0 else None
            slope = float(np.polyfit(np.log(x), np.log(y), 1)[0])
            about: About = "printed" if quantity == "frobenius" else "corrected"
            facts = {
                "rank correlation": rho.value, "low": rho.low, "high": rho.high, "given the step": given_step(x, y, step),
                "exponent of the gradient norm (1: linear)": slope, "least gradient norm": float(x.min()),
                "largest": float(x.max()), "points": float(len(x)), "note": DEPENDENT, "records": path.name,
            }  # fmt: skip
            found.append(
                Certificate(f"{name} of the base model grows with its gradient norm", about, supports, "records", facts)
            )
    return Finding(tuple(found))


def _smaller(seed: int, records: Sequence[Path]) -> Finding:
    from smoothlab.pages.readings import points, ratio

    found = []
    for path in records:
        table = _loaded(path)
        rows = ratio(table)
        if rows.empty:
            continue
        median = (
            samples.median(rows["value"]) if len(rows) > 5 else Interval(float(rows["value"].median()), 0.0, np.inf)
        )
        above, below = int((rows["low"] > 1).sum()), int((rows["high"] < 1).sum())
        base, peft = (_dimension(table, block) for block in ("base", "peft"))
        facts = {
            "median base/LoRA": median.value, "low": median.low, "high": median.high,
            "least ratio": float(rows["value"].min()), "its interval's low end at least": float(rows["low"].min()),
            "largest ratio": float(rows["value"].max()), "points": float(len(rows)), "above 1": float(above),
            "median of ||H||_F/sqrt(d)": median.value * (peft / base) ** 0.5, "note": DEPENDENT, "records": path.name,
        }  # fmt: skip
        supports = True if above == len(rows) else False if below == len(rows) else None
        found.append(Certificate("||H||_F of the base model exceeds LoRA's at every point, intervals apart", "printed",
                                 supports, "records", facts))  # fmt: skip
        a, b = (points(table, block, "spectral") for block in ("base", "peft"))
        both = a.merge(b, on=["path", "step"], suffixes=("_a", "_b"))
        if both.empty:
            continue
        least = (both["low_a"] / both["high_b"]).to_numpy()
        supports = True if (least > 1).all() else None
        facts = {"least (lower bound of base)/(upper bound of LoRA)": float(least.min()), "points": float(len(both)),
                 "records": path.name}  # fmt: skip
        found.append(Certificate("so does the largest |eigenvalue|, by its 95 % bounds", "printed", supports, "records",
                                 facts))  # fmt: skip
    return Finding(tuple(found))


def _dimension(table: "pd.DataFrame", block: str) -> float:
    return float(table.loc[table["block"] == block, "dim"].iloc[0])


CLAIMS = (
    Claim(
        "d4-formula", "||H||_F = sqrt(E v'H^2 v) for v on the unit sphere.", "Appendix D.4", "H symmetric",
        "holds once corrected", "||H||_F = sqrt(d E v'H^2 v); 100 vectors give its square to 14 %. The sum over a batch "
        "of 8 is 8 times the mean loss's Hessian.", TESTS + "test_verdicts[d4-formula]", _formula,
    ),
    Claim(
        "d4-step", "(grad f(x + hv) - grad f(x))/h with h = 1e-5, unit v and fp32 is Hv to 10 %.", "Appendix D.4",
        "weights and gradients in fp32", "holds once corrected",
        "Exact products, or central differences with h of about ||x||/100 (1e-3 to 1e-2 ||x||).",
        TESTS + "test_verdicts[d4-step]", _steps, records=True,
    ),
    Claim(
        "l-grows", "Along training L grows with the gradient norm (L as in Fig. 1a: the base model's ||H||_F).",
        "Section 2.1 (1), Figure 1a", "`micro` on SST-2, the runs of these records", "holds", "",
        TESTS + "test_verdicts[l-grows]", _grows, records=True,
    ),
    Claim(
        "lora-smaller", "LoRA has a substantially smaller L than the base model.", "Section 2.1 (2), Figure 1b",
        "`micro` on SST-2 with LoRA of rank 16, the runs of these records", "holds", "",
        TESTS + "test_verdicts[lora-smaller]", _smaller, records=True,
    ),
)  # fmt: skip
STATEMENTS = (FORMULA, SPREAD, STEP, LONG_STEP)
