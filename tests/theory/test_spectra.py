"""What is known of a spectrum, and what belongs to none."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothlab import Block, ExactHessian, NormEstimate
from smoothlab.errors import BadInput
from smoothlab.theory.spectra import OuterMoment, Spectrum

some = settings(deadline=None, derandomize=True, max_examples=60)


def estimate(quantity: str, value: float, low: float, high: float, sign: int | None = None) -> NormEstimate:
    return NormEstimate("base", "base", quantity, value, low, high, 10, 0.0, None, sign)  # type: ignore[arg-type]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=10), st.integers(1, 4), st.floats(0.0, 0.9))
@some
def test_sums_bracket_that_of_all_eigenvalues(values: list[float], known: int, rate: float) -> None:
    values = sorted([1.0, *values], reverse=True)
    x = rate * np.array(values)
    truth = float((x / (2 - 1.5 * x)).sum())
    whole = Spectrum.of(values)
    assert whole.sums(rate, 2.0, 1.5) == pytest.approx((truth, truth), rel=1e-12)
    for trace in (whole.trace, None):
        for frobenius in (whole.frobenius, None):
            low, high = Spectrum(tuple(values[:known]), len(values), trace, frobenius).sums(rate, 2.0, 1.5)
            assert low <= truth * (1 + 1e-9) + 1e-12 and truth <= high * (1 + 1e-9) + 1e-12


def test_bounds_are_reached() -> None:
    """By equal others, and by others at 0 and at the largest: no bound of that knowledge is narrower."""
    equal, ends = [2.0, 0.5, 0.5, 0.5, 0.5], [2.0, 2.0, 0.0, 0.0, 0.0]
    x = [np.array(values) * 0.4 for values in (equal, ends)]
    least, most = (float((v / (2 - 1.5 * v)).sum()) for v in x)
    assert Spectrum((2.0,), 5, 4.0).sums(0.4, 2.0, 1.5) == pytest.approx((least, most), rel=1e-12)
    for values, which in ((equal, 0), (ends, 1)):
        norm = float(np.linalg.norm(values))
        assert Spectrum((2.0,), 5, 4.0, norm).sums(0.4, 2.0, 1.5)[which] == pytest.approx(
            (least, most)[which], rel=1e-9
        )


def test_from_measured_norms_of_a_block() -> None:
    w = torch.nn.Parameter(torch.zeros(30, dtype=torch.float64))
    curvature = torch.linspace(0.1, 3.0, 30, dtype=torch.float64)
    hessian = ExactHessian(lambda: (curvature * w**2).sum() / 2, [Block("w", (w,))])
    spectrum = Spectrum.of_estimates(hessian.norms(precision=0.02), "w", 30)
    assert spectrum.largest == pytest.approx(3.0, rel=0.02)
    assert spectrum.trace == pytest.approx(float(curvature.sum()), rel=0.2)
    assert spectrum.frobenius == pytest.approx(float(curvature.norm()), rel=0.1)


def test_values_that_contradict_each_other_move_within_their_intervals() -> None:
    top, trace = estimate("spectral", 4.0, 4.0, 4.4, 1), estimate("trace", 3.5, 2.0, 6.0)
    frobenius = estimate("frobenius", 3.9, 3.7, 4.1)
    spectrum = Spectrum.of_estimates([top, trace, frobenius], "base", 100)
    assert (spectrum.trace, spectrum.frobenius) == (4.0, 4.0)
    with pytest.raises(BadInput, match="partly negative"):
        Spectrum.of_estimates([top, replace(trace, value=-75.0, low=-80.0, high=3.0)], "base", 100)
    with pytest.raises(BadInput, match="partly negative"):
        Spectrum.of_estimates([top, trace, replace(frobenius, value=9.0, low=8.0, high=10.0)], "base", 100)
    with pytest.raises(BadInput, match="0 or negative"):
        Spectrum.of_estimates([replace(top, sign=-1)], "base", 100)
    with pytest.raises(BadInput, match="no spectral norm of block 'lora'"):
        Spectrum.of_estimates([top], "lora", 100)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "zero": (lambda: Spectrum.of([0.0, 0.0]), "0 or negative: the loss does not curve upwards"),
    "none": (lambda: Spectrum((), 3), "0 or negative"),
    "one negative": (lambda: Spectrum.of([1.0, -0.1]), "eigenvalue -0.1 is negative"),
    "too many": (lambda: Spectrum((1.0, 1.0), 1), "2 eigenvalues of a block of dimension 1"),
    "not finite": (lambda: Spectrum((1.0,), 2, float("nan")), "all must be finite"),
    "negative trace": (lambda: Spectrum((1.0,), 9, -75.0), "trace -75 does not belong"),
    "large trace": (lambda: Spectrum((1.0,), 9, 9.5), "trace 9.5 does not belong"),
    "large norm": (lambda: Spectrum((1.0,), 9, 2.0, 1.9), "Frobenius norm 1.9 does not belong"),
    "small norm": (lambda: Spectrum((1.0,), 9, 8.0, 1.01), "Frobenius norm 1.01 does not belong"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_one_line(what: str) -> None:
    call, words = REFUSED[what]
    with pytest.raises(BadInput) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_factor() -> None:
    assert OuterMoment(2.0, 1.0, -2.0).factor(7) == 7
