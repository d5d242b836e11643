"""Variants of zeroth-order steps before the judge: right, or wrong for the reasons that their page states."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from smoothlab.conformance.suite import verify
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.muon import Muon
from smoothlab.zeroth.names import VARIANTS
from smoothlab.zeroth.variant import Variant
from smoothlab.zeroth.variants import Adaptive, Momentum, Plain, Spread, Subspace

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS: dict[str, tuple[Variant, dict[str, Any], list[str]]] = {
    "plain": (Plain(), {}, []),
    "momentum": (Momentum(0.5, 4), {}, ["along", "coefficients", "second_moment", "curvature"]),
    "adaptive": (Adaptive(0.9), {}, ["coefficients", "scale", "bias", "curvature", "transformer"]),
    "spread": (
        Spread(), {"q": 8, "sides": 1}, ["coefficients", "second_moment", "bias", "curvature", "transformer"],
    ),
    "subspace": (Subspace(10), {"distribution": LowRank(1)}, []),
    "muon": (
        Muon(), {"distribution": LowRank(1), "q": 2},
        ["along", "coefficients", "scale", "second_moment", "bias", "curvature", "rounding_bf16", "rounding_fp16",
         "transformer"],
    ),
}  # fmt: skip
"""Each variant with options of its estimator, and the probes that call it wrong."""
QUICK = ("along", "coefficients", "tensors", "deterministic", "restored_bf16", "mu")


def maker(name: str) -> Callable[..., HybridSGD]:
    variant, options, _ = SUBJECTS[name]

    def make(params: Sequence[Tensor], lr: float, seed: int, mu: float = 1e-3) -> HybridSGD:
        group = {"params": params, "lr": lr, "oracle": ZerothOrder(mu=mu, **options), "variant": variant}
        return HybridSGD([group], seed=seed)

    return make


@pytest.mark.parametrize("name", SUBJECTS)
def test_single_steps_are_right_or_wrong_for_the_stated_reasons(name: str) -> None:
    report = verify(maker(name), probes=QUICK)
    assert report.wrong == [probe for probe in SUBJECTS[name][2] if probe in QUICK], str(report)


@pytest.mark.check
@pytest.mark.parametrize("name", SUBJECTS)
def test_the_whole_suite_finds_what_is_stated_and_nothing_else(name: str) -> None:
    report = verify(maker(name))
    assert report.wrong == SUBJECTS[name][2], str(report)


def test_the_page_states_the_verdicts_of_every_variant() -> None:
    assert list(SUBJECTS) == list(VARIANTS)
    lines = (ROOT / "docs/howto/variants.md").read_text(encoding="utf-8").splitlines()
    for name, (_, _, wrong) in SUBJECTS.items():
        costs, *verdicts = [line for line in lines if line.startswith((f"| `{name}`", f"| `{name}("))]
        assert costs
        if name != "plain":
            assert all(f"`{probe}`" in verdicts[0] for probe in wrong), name
