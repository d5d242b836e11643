"""The whole suite: every broken estimator of the tests is found, and right ones are not accused."""

import time
from typing import Any

import numpy as np
import pytest
import torch

from smoothlab.conformance.adapter import Observed, Subject
from smoothlab.conformance.directions import outside
from smoothlab.conformance.suite import answers, verify
from smoothlab.zeroth.distributions import Gaussian
from tests.cases import ESTIMATORS
from tests.conformance.subjects import control_variate, estimator, hybrid
from tests.mutations import mutate
from tests.zeroth.test_estimators import MUTATIONS

MINUTES = 120.0
BROKEN: dict[str, Any] = {
    "forgets 2 in 2 mu": estimator("two-sided rademacher"),
    "forgets 1/q": estimator("three averaged, one-sided rademacher"),
    "1/sqrt(q)": estimator("three averaged, one-sided rademacher"),
    "forgets f(x)": estimator("one-sided rademacher"),
    "another step back": estimator("two-sided sphere"),
    "orthogonal without sqrt(d)": estimator("orthogonal"),
    "orthogonal in name only": estimator("orthogonal"),
    "antithetic pairs of one sign": estimator("antithetic sphere"),
    "a sphere of another radius": estimator("two-sided sphere"),
    "the same noise for all tensors": estimator("two-sided rademacher"),
    "the seed is ignored": estimator("two-sided sphere"),
    "only a part of the seed is used": estimator("two-sided gaussian"),
    "a stuck bit": estimator("one-sided rademacher"),
    "coordinates without a sign": estimator("one-sided coordinate"),
    "coordinates without sqrt(d)": estimator("two-sided coordinate"),
    "never the last coordinate": estimator("two-sided coordinate"),
    "sparse with another factor": estimator("two-sided sparse"),
    "sparse that keeps all": estimator("two-sided sparse"),
    "no mask": estimator("two-sided masked"),
    "no scale": estimator("two-sided preconditioned"),
    "low rank with another factor": estimator("one-sided low rank"),
    "control variate without its anchor": control_variate,
    "control variate that does not subtract": control_variate,
    "a loss in fp32": estimator("two-sided gaussian"),
    "a step of its own": estimator("kept"),
    "given directions are not used": estimator("kept"),
    "the value is not used": estimator("one-sided gaussian"),
    "kept directions of the next step": estimator("kept"),
    "kept directions are stale": estimator("kept"),
    "kept directions without their weights": estimator("orthogonal", keep=True),
    "added without alpha": estimator("two-sided gaussian"),
    "transposed weights are not written": estimator("two-sided gaussian"),
    "rounded twice": estimator("two-sided gaussian"),
}
"""The optimizer that each of the tests' mutations breaks."""


def first_fault(make: Any) -> tuple[str, float]:
    """The first probe that finds a fault, "" if none does, and CPU seconds until then."""
    begun, found = time.process_time(), ""
    for answer in answers(Subject(make)):
        if answer.verdict == "wrong":
            found = answer.probe
            break
    return found, time.process_time() - begun


def test_every_broken_estimator_has_an_optimizer_here() -> None:
    assert set(BROKEN) == set(MUTATIONS)


@pytest.mark.check
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_estimator_is_found(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    where, old, new, _ = MUTATIONS[mutation]
    mutate(monkeypatch, where, old, new)
    found, seconds = first_fault(BROKEN[mutation])
    assert found and seconds < MINUTES


@pytest.mark.check
def test_gaussian_numbers_that_are_5_percent_too_long_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Gaussian.fill
    monkeypatch.setattr(Gaussian, "fill", lambda *a: honest(*a) or a[3].mul_(1.05))
    found, seconds = first_fault(estimator("two-sided gaussian"))
    assert found and seconds < MINUTES


@pytest.mark.check
def test_hybrid_steps_are_right_within_a_minute() -> None:
    torch.set_num_threads(1)
    begun = time.process_time()
    report = verify(hybrid)
    assert report.passed, str(report)
    assert time.process_time() - begun < 60


def test_what_is_outside_of_the_span_of_pairs() -> None:
    """Directions and their mirror images: two of each, and an update with a part of length 5 that none reaches."""
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    d, e, off = frame[0], 0.6 * frame[0] + 0.8 * frame[1], 5 * frame[2]
    points = np.array([d, -d, e, -e])
    for part in (0 * off, off):
        look = Observed(points, np.zeros(4), 0.0, 2 * d - 7 * e + part, None, 4)
        assert outside(look) == pytest.approx(float(np.linalg.norm(part)), abs=1e-12)


@pytest.mark.check
def test_an_average_of_pairs_is_not_accused() -> None:
    """One of the estimators of the slow test below, which runs on request."""
    torch.set_num_threads(1)
    report = verify(estimator("three averaged"), seed=7)
    assert not report.wrong, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_right_estimators_are_not_accused(name: str) -> None:
    torch.set_num_threads(1)
    report = verify(estimator(name), seed=7)
    assert not report.wrong, str(report)
