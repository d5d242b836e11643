"""Values of blocks in one unit, ratios and rank correlations, from records whose every number is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from smoothlab.stats import ranks, smoothness_table
from tests.report.curved_path import BASE, BATCH, PEFT, SPREAD, gradients, table, truth


def test_paper_rows_are_rescaled_by_sqrt_d_over_batch():
    df = table(noise=0.02)
    printed, rescaled = (smoothness_table.points(df, "base", protocol="paper", printed=p) for p in (True, False))
    factor = np.sqrt(BASE.dim) / BATCH
    floor = 0.02 * gradients() * factor
    np.testing.assert_allclose(rescaled["value"], np.hypot(truth(), floor), rtol=1e-12)
    for column in ("value", "low", "high", "floor"):
        np.testing.assert_allclose(rescaled[column], printed[column] * factor, rtol=1e-12)
    np.testing.assert_allclose(rescaled["floor"], floor, rtol=1e-12)


def test_a_paper_row_of_value_zero_borrows_the_factor_of_its_run():
    df = table(protocols=("paper",))
    df.loc[0, ["value", "normalized"]] = 0.0
    found = smoothness_table.points(df, "base", protocol="paper")
    np.testing.assert_allclose(found["factor"], np.sqrt(BASE.dim) / BATCH)
    assert found["value"][0] == 0 and found["below"][0]


def test_ratio_interval_by_hand_and_by_simulation():
    found = smoothness_table.ratio(table([BASE, PEFT]))
    np.testing.assert_allclose(found["value"], truth() / truth(PEFT), rtol=1e-12)
    up = np.hypot(np.log(1 + SPREAD), np.log(1 / (1 - SPREAD)))
    np.testing.assert_allclose(np.log(found["high"] / found["value"]), up)
    np.testing.assert_allclose(np.log(found["value"] / found["low"]), up)
    # log-normal estimates with exact 95 % limits: the interval of the ratio must cover 95 % of the time
    generator, n, sigma = np.random.default_rng(0), 4000, np.array([0.05, 0.2])
    logs = generator.normal(np.log([12.0, 3.0]), sigma, (n, 2))
    half = stats.norm.ppf(0.975) * sigma
    both = [
        pd.DataFrame({"path": "r", "step": range(n), "block": name, "wrt": name, "quantity": "frobenius", "flag": None,
                      "protocol": "estimated", "value": np.exp(log), "low": np.exp(log - w), "high": np.exp(log + w),
                      "floor": None, "grad_norm": 1.0})
        for name, log, w in zip(("base", "peft"), logs.T, half, strict=True)
    ]  # fmt: skip
    found = smoothness_table.ratio(pd.concat(both, ignore_index=True))
    covered = int(((found["low"] <= 4) & (4 <= found["high"])).sum())
    assert stats.binomtest(covered, n, 0.95).pvalue > 1e-3


def test_ratio_without_usable_limits_has_no_interval():
    df = table([BASE, PEFT])
    df.loc[(df["block"] == "peft") & (df["quantity"] == "frobenius"), "low"] = 0.0
    found = smoothness_table.ratio(df)
    assert found["high"].isna().all() and found["low"].notna().all()
    assert smoothness_table.ratio(df[df["block"] == "base"]).empty


def test_spearman_agrees_with_scipy_and_its_interval_covers():
    generator = np.random.default_rng(1)
    correlation, n = 0.5, 30
    truth_rho = 6 / np.pi * np.arcsin(correlation / 2)  # Spearman's rho of the bivariate normal
    covered = 0
    for _ in range(1000):
        x, y = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], n).T
        found = ranks.spearman(x, y)
        covered += found.low <= truth_rho <= found.high
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert stats.binomtest(covered, 1000, 0.95, alternative="less").pvalue > 1e-3
    assert covered < 985  # an interval that always covers would say nothing


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, np.nan], [1, 2, 3, 4])]
)
def test_no_correlation_of_too_few_or_constant_points(x, y):
    assert ranks.spearman(x, y) is None


def test_perfect_order_of_few_points_stays_uncertain():
    four, six = (
        ranks.spearman(range(4), range(4)),
        ranks.spearman(range(6), [-i for i in range(6)]),
    )
    assert four.rho == 1 and four.low < 0 and four.high == 1  # p = 2/24 two-sided: not significant at 5 %
    assert six.rho == -1 and six.low == -1 and -1 < six.high < 0  # p = 2/720
