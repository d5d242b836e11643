"""The suite on small right and broken optimizers, the adapter, and what cannot be looked at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smoothlab
from benchmarks.verify import table
from smoothlab.blocks import Block
from smoothlab.conformance import problems
from smoothlab.conformance.adapter import Subject, observe
from smoothlab.conformance.answer import Finding, Probe
from smoothlab.conformance.bench import LR, SEEDS, WIDE_SEEDS, Bench
from smoothlab.conformance.identify import identify
from smoothlab.conformance.problems import SMALL, WIDE
from smoothlab.conformance.suite import ALPHA, COMPARISONS, PROBES, answer, answers, verify
from smoothlab.errors import BadInput
from smoothlab.stats import scores
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Coordinate, Gaussian, Rademacher, Sparse, Sphere
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.expectations import Shapes
from smoothlab.zeroth.low_rank import LowRank
from tests.conformance.optimizers import FAULTS, UNUSABLE, MeZO, faulty
from tests.conformance.subjects import control_variate, estimator, hybrid

STRUCTURE = ("along", "coefficients", "mirrored", "tensors", "steps", "seeds", "deterministic", "layout", "loss")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("make", [MeZO, hybrid, ZerothOrder(sides=1, q=2)], ids=["MeZO", "HybridSGD", "estimator"])
def test_right_ones_are_right_in_structure(make: Callable[..., Any]) -> None:
    report = verify(make, probes=STRUCTURE)
    assert report.passed, str(report)
    assert report["along"].verdict == report["coefficients"].verdict == "right"
    assert report["along"].evaluations > 200


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_probe(fault: str) -> None:
    report = verify(faulty(fault), probes=STRUCTURE)
    assert FAULTS[fault] in report.wrong, str(report)
    assert report[FAULTS[fault]].case and not report.passed


def test_mezos_restore_drifts_and_ours_does_not() -> None:
    drift = verify(MeZO, probes=("restored_fp32", "restored_bf16"))
    assert drift.wrong == ["restored_fp32", "restored_bf16"]
    assert "weights are changed after step 1" in drift["restored_fp32"].case
    assert verify(hybrid, probes=("restored_fp32", "restored_bf16", "restored_fp16")).passed


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_looked_at_is_one_line_and_the_other_probes_go_on(name: str) -> None:
    make, line = UNUSABLE[name]
    report = verify(make, probes=("along", "accumulation"), step_seconds=0.3)
    assert report["along"].verdict == "not observable"
    assert report["along"].note.startswith(line) and "\n" not in report["along"].note
    assert len(report.answers) == 2
    assert report.passed == (name == "no perturbation"), str(report)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"probes": ["weight"]}, "probe 'weight' is unknown: use one of along"),
        ({"dtype": "int8"}, "dtype int8: use one of float64, float32"),
        ({"claims": {"rank": 2}}, "claim 'rank' is unknown: use distribution, mu"),
        ({"claims": {"distribution": "cauchy"}}, "claimed distribution cauchy is unknown"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        verify(MeZO, **options)
    with pytest.raises(BadInput, match="3 cannot be verified: give a function or class"):
        verify(3)  # type: ignore[arg-type]


def test_what_only_some_expose_is_observed_there() -> None:
    exposed = ("mu", "exact", "accumulation", "given", "value", "held", "applied")
    ours = verify(hybrid, probes=exposed)
    assert [ours[name].verdict for name in exposed[:3]] == ["right"] * 3
    theirs = verify(ZerothOrder(sides=1), probes=exposed)
    assert [theirs[name].verdict for name in exposed[3:]] == ["right"] * 4
    assert theirs["exact"].verdict == "not observable" and "`exact` is no keyword" in theirs["exact"].note


def test_claims_are_compared_with_what_is_seen() -> None:
    maker = estimator("two-sided low rank")
    right = verify(maker, probes=("rank",))

    def make(params: Any, lr: float, seed: int) -> Callable[..., Any]:
        subject = Subject(maker)
        made = maker(params, lr, seed, torch.nn.Module())
        return subject.step_of(made, params, lr, seed)

    wrong = verify(make, probes=("rank",), claims={"distribution": "lowrank(3)"})
    assert right.passed and wrong.wrong == ["rank"]
    assert wrong["rank"].case == "matrix (6, 8): rank 1 where 3 is claimed"
    assert verify(MeZO, probes=("length",), claims={"mu": 2e-3}).wrong == ["length"]


def test_a_control_variate_at_its_anchor_has_no_direction_to_look_at() -> None:
    report = verify(control_variate, probes=("along", "deterministic"))
    assert report["along"].verdict == "not observable" and report.passed


def test_an_optimizer_without_a_seed_has_one_fault_and_not_several() -> None:
    report = verify(faulty("the seed has no effect"), probes=("seeds", "distribution", "sign"))
    assert report.wrong == ["seeds"], str(report)


KNOWN: dict[str, Distribution] = {
    "gaussian": Gaussian(), "sphere": Sphere(), "rademacher": Rademacher(), "coordinate": Coordinate(),
    "sparse(0.5)": Sparse(0.5), "lowrank(2)": LowRank(2),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_distributions_are_told_apart(name: str) -> None:
    """At d = 8, from 400 directions; ranks from tensors with larger matrices."""
    small, wide = (problems.wide(shapes, 0, torch.float64) for shapes in (SMALL, WIDE))
    drawn = []
    for problem, count in ((small, 400), (wide, 20)):
        block = smoothlab.Block("x", tuple(problem.params))
        drawn.append(np.array([KNOWN[name].draw(block, (5, i)).numpy() for i in range(count)]))
    found = identify(*drawn, WIDE)
    words = found.words if name != "sparse(0.5)" else found.words[:7].replace("sparse(", "sparse(0.5)")
    assert words == name and found.z < scores.limit(ALPHA, COMPARISONS)


def test_a_distribution_that_is_none_of_the_known_is_told() -> None:
    rng = np.random.default_rng(0)
    uniform = rng.uniform(-(3**0.5), 3**0.5, (4000, 8))
    found = identify(uniform, rng.uniform(-1, 1, (20, 108)), WIDE)
    assert found.distribution is None and "none of the known" in found.words


def test_steps_are_observed_as_they_are() -> None:
    problem = problems.quadratic(SMALL, 0, torch.float64)
    look = observe(Subject(MeZO), problem, LR, 0, 1)[0]
    plus, minus = look.displacements
    assert np.allclose(plus, -minus, atol=1e-12) and look.evaluations == 2
    slope = (look.values[0] - look.values[1]) / 2e-3
    assert np.allclose(look.update, slope * plus / 1e-3, rtol=1e-6)
    home = problem.home
    s = plus
    f = problem.taylor
    assert look.values[0] == pytest.approx(1 + f.gradient @ s + s @ f.hessian @ s / 2, rel=1e-12)
    assert np.linalg.norm(f.gradient) == pytest.approx(1) and len(home) == 8


def test_a_sample_is_made_once_and_what_kept_it_from_being_made_is_kept() -> None:
    bench = Bench(Subject(MeZO))
    assert bench.wide() is bench.wide()
    report = list(answers(Subject(UNUSABLE["raises"][0]), ("along", "steps")))
    assert [answer.note for answer in report] == ["raises TypeError: no such parameter"] * 2


@pytest.mark.parametrize(
    ("first", "second", "verdict", "looks"),
    [(3.0, 3.0, "right", 1), (6.0, 1.0, "right", 2), (-6.0, -6.0, "wrong", 2), (40.0, 1.0, "wrong", 1)],
)
def test_what_chance_may_have_done_is_looked_at_again(first: float, second: float, verdict: str, looks: int) -> None:
    seen: list[Bench] = []

    def look(bench: Bench, shapes: Shapes) -> Finding:
        seen.append(bench)
        return Finding("seen", z=first if len(seen) == 1 else second)

    bench = Bench(Subject(estimator("two-sided gaussian")))
    assert answer(bench, Probe("x", "Is it?", look, comparisons=1)).verdict == verdict
    assert len(seen) == looks
    if looks == 2:
        seeds = [range(b.seed, b.seed + max(SEEDS, WIDE_SEEDS)) for b in seen]
        assert not set(seeds[0]) & set(seeds[1]) and seen[1].steps == 4 * seen[0].steps


def test_a_step_in_bf16_that_nearly_cancels_a_weight_is_right() -> None:
    """Of a weight and its step what is left may be smaller than what fp32 rounds of them."""

    class Cancels(ZerothOrder):
        """Moves each weight to where the step takes it to nearly 0, which bf16 can be told to 8 bits."""

        def __call__(self, loss: Any, block: Block, *args: Any, **kwargs: Any) -> Any:
            made = super().__call__(loss, block, *args, **kwargs)
            with torch.no_grad():
                for p, part in zip(block.params, block.split(LR * made.dense(block)), strict=True):
                    p.copy_(-part.view(p.shape))
            return made

    # Of 108 entries in 20 tries about one in 128 is left with less than fp32's rounding times 2^8.
    assert verify(Cancels(), probes=["applied"])["applied"].verdict == "right"


def test_the_page_has_every_probe_with_its_question() -> None:
    page = (ROOT / "docs/howto/verify.md").read_text(encoding="utf-8")
    for probe in PROBES.values():
        assert f"| `{probe.name}` | {probe.asks} |" in page, probe.name
    assert f"{COMPARISONS} comparisons" in page and f"{scores.limit(ALPHA, COMPARISONS):.2f}" in page


def test_the_scoreboards_table_is_that_of_its_records() -> None:
    page = (ROOT / "docs/scoreboard.md").read_text(encoding="utf-8")
    assert table.table() in page
    for name, found in table.rows().items():
        if any(row["verdict"] == "wrong" for row in found):
            assert f"**{name}**" in page, f"{name}: say what its wrong answers come from"
