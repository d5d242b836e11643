"""Traces to a precision: reached where it is possible, else what it would take, with coverage against dense truth."""

import numpy as np
import pytest

from smoothlab.hessian.estimates import TraceEstimate
from tests.cases import SPECTRA, DenseHessian
from tests.hessian.test_norms import covers, least, one_thread, simulated

__all__ = ["one_thread"]
POSITIVE = np.linspace(0.5, 1.5, 400)
"""Eigenvalues whose trace is well seen: few probes tell it to 20 %."""


def trace(hessian: DenseHessian, **options: object) -> TraceEstimate:
    (e,) = [e for e in hessian.norms(lanczos=4, **options) if e.quantity == "trace"]
    assert isinstance(e, TraceEstimate)
    return e


def test_probing_goes_on_until_the_trace_is_known() -> None:
    hessian = DenseHessian(np.diag(POSITIVE))
    loose, tight = trace(hessian, precision=0.5, trace=0.5), trace(hessian, precision=0.5, trace=0.04)
    assert loose.hvps < tight.hvps < 100
    for e, precision in ((loose, 0.5), (tight, 0.04)):
        assert e.flag is None and e.needed is None
        assert (e.high - e.low) / 2 <= 1.0001 * precision * e.value
        assert covers(e, float(POSITIVE.sum()))


def test_a_trace_out_of_reach_costs_nothing_and_says_what_it_would_take() -> None:
    signs = np.where(np.arange(400) % 8 == 0, -1.0, 1.0) * np.where(np.arange(400) % 2, 1.0, -1.0)
    hessian = DenseHessian(np.diag(signs))
    plain = hessian.norms(lanczos=4)[0].hvps
    e = trace(hessian, trace=0.01)
    assert e.hvps == plain
    assert e.flag == "precision not reached"
    assert e.needed is not None and e.needed > 100
    # 2 (1.96 ||B||_F / (0.01 value))^2, where ||B||_F^2 is 400 up to the Lanczos vectors and the norm's precision.
    assert e.needed == pytest.approx(2 * 400 * (1.96 / (0.01 * e.value)) ** 2, rel=0.15)


def test_needed_products_reach_the_precision() -> None:
    hessian = DenseHessian(np.diag(POSITIVE - 0.9))
    short = trace(hessian, precision=0.3, trace=0.1, budget=20)
    assert short.needed is not None and short.hvps <= 20 < short.needed
    enough = trace(hessian, precision=0.3, trace=0.1, budget=3 * short.needed)
    assert enough.flag is None


def test_a_block_within_the_basis_needs_no_probes() -> None:
    e = [e for e in DenseHessian(np.diag([3.0, -1.0, 2.0])).norms(trace=0.01) if e.quantity == "trace"][0]
    assert (e.flag, e.value) == (None, pytest.approx(4.0))


@simulated(15, 2000)
@pytest.mark.parametrize("spectrum", ["positive", *(pytest.param(s, marks=pytest.mark.check) for s in SPECTRA)])
def test_intervals_cover_although_probing_stops_by_them(spectrum: str, runs: int) -> None:
    values = {"positive": POSITIVE, **SPECTRA}[spectrum]
    hessian = DenseHessian(np.diag(values))
    held = 0
    for seed in range(runs):
        held += covers(trace(hessian, precision=0.3, trace=0.1, seed=(seed,)), float(values.sum()))
    assert held >= least(runs), held
