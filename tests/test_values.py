"""Exact values of the instrument's constants and formulas, which statistical tests leave room to change.

Most of them were found by mutants that no test saw (tests/mutation_runs.py).
"""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.hessian import DifferenceHessian, ExactHessian, Scheme, Step

EPS = torch.finfo(torch.float64).eps

# hessian: rounding


class Rounded(ExactHessian):
    """Products with an independent rounding error of relative size `size` each."""

    size = 1e-3

    def product(self, v: Tensor, along: str, wrt: Sequence[str]) -> tuple[Tensor, ...]:
        (image,) = super().product(v, along, wrt)
        self.calls = getattr(self, "calls", 0) + 1
        generator = torch.Generator().manual_seed(self.calls)
        error = torch.randn(len(image), dtype=image.dtype, generator=generator)
        return (image + error * (self.size * image.norm() / error.norm()),)


def test_the_noise_of_an_exact_product_is_the_size_of_one_rounding_error() -> None:
    """Two independent errors of norm s ||Hv|| differ by sqrt(2) s ||Hv||, to 1/sqrt(2 d) in relative terms."""
    w = nn.Parameter(torch.linspace(1, 2, 20_000, dtype=torch.float64))
    hessian = Rounded(lambda: w.pow(3).sum(), [Block("w", (w,))])
    v = torch.ones_like(w)
    (image,) = hessian.product(v, "w", ["w"])
    noise, spent = hessian.noise(v, image, "w")
    assert noise == pytest.approx(1e-3, rel=5 / math.sqrt(2 * 20_000)) and spent == 1
    assert hessian.noise(v, torch.zeros_like(w), "w") == (0.0, 1)


def test_a_given_step_is_not_checked_and_its_rounding_is_divided_by_it() -> None:
    w = nn.Parameter(torch.linspace(1, 2, 7, dtype=torch.float64))
    v = torch.ones_like(w)
    for scheme, factor in (("forward", math.sqrt(2)), ("central", 1 / math.sqrt(2))):
        hessian = DifferenceHessian(lambda: w.pow(3).sum(), [Block("w", (w,))], h=1e-3, scheme=scheme)
        noise = hessian.gradient_noise(v, "w")
        assert hessian.rounding(v, "w") == pytest.approx(factor * noise / 1e-3, rel=1e-12)
        assert hessian.steps["w"] == Step(h=1e-3, noise=noise, error=None, kinks=False)


class Kinked(nn.Module):
    """f = <c, b> + sum_k J_k relu(side_k (a - t_k ulp)), at a = 0 and b = (1, 0, ...): d f/da jumps at each t_k.

    ulp is eps times the block's norm, so that `length` ulp is the length of the k-th move of `gradient_noise` along a.
    """

    def __init__(self, kinks: dict[float, float], constant: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1 + len(constant), dtype=torch.float64))
        with torch.no_grad():
            self.w[1] = 1.0
        self.kinks, self.constant = kinks, constant

    def forward(self) -> Tensor:
        loss = self.w[1:] @ self.constant
        for ulp, jump in self.kinks.items():
            loss = loss + jump * torch.relu(math.copysign(1.0, ulp) * self.w[0] - abs(ulp) * EPS)
        return loss

    def noise(self) -> float:
        along = torch.zeros_like(self.w)
        along[0] = 3.0
        return DifferenceHessian(self, [Block("w", (self.w,))]).gradient_noise(along.detach(), "w")


@pytest.mark.parametrize(
    ("kinks", "expected"),
    [
        ({40.0: 1.0}, 0.0),  # beyond the moves of 16 and 32 ulp
        ({-1.5: 1.0}, 0.0),  # the first move is enough
        ({20.0: 1.0, -3.0: 1.0}, 0.0),  # moves of -1 and -2
        ({12.0: 1.0, -1.5: 1.0, 0.6: 5.0}, 0.0),  # moves of 1/4 and 1/2
        ({0.4: 1.0, -1.5: 1.0, -0.2: 5.0}, 0.0),  # moves of -1/16 and -1/8
        ({0.4: 1.0, -0.1: 1.0, 10.0: 7.0}, 1.0),  # all of them: the root mean square of the last three
        ({0.4: 2.0, -0.1: 1.0, -0.7: 3.0}, math.sqrt((4**2 + 2**2 + 1) / 3)),
    ],
)
def test_gradient_noise_shortens_its_move_until_no_kink_is_met(kinks: dict[float, float], expected: float) -> None:
    """Without rounding the second difference is a kink's jump J, whose share of the noise is J/sqrt(6)."""
    assert Kinked(kinks, torch.zeros(1).double()).noise() == pytest.approx(expected / math.sqrt(6), rel=1e-12)


@pytest.mark.parametrize(("times", "short"), [(3.9, False), (4.1, True)])
def test_a_second_difference_of_four_times_the_backward_passs_rounding_is_a_kink(times: float, short: bool) -> None:
    constant = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = constant[(3 / 7) * constant * (7 / 3) != constant]  # those that the two factors round
    backward = float(((3 / 7) * constant * (7 / 3) - constant).norm()) / math.sqrt(2)
    assert backward > EPS * float(constant.norm()) / math.sqrt(12)
    noise = Kinked({20.0: times * backward * math.sqrt(6)}, constant).noise()
    assert noise == pytest.approx(backward * (1 if short else times), rel=1e-2)


def test_gradient_noise_is_at_least_the_error_of_storing_the_gradient() -> None:
    """Powers of two survive 3/7 and 7/3, and nothing else rounds: what is left is eps ||g||/sqrt(12)."""
    constant = torch.tensor([4.0, 8.0], dtype=torch.float64)
    assert torch.equal((3 / 7) * constant * (7 / 3), constant)
    expected = EPS * math.sqrt(80) / math.sqrt(12)
    assert Kinked({}, constant).noise() == pytest.approx(expected, rel=1e-12)


# hessian: the chosen step


class Known(DifferenceHessian):
    """Differences whose gradients' rounding error is known, and far above the real one."""

    known = 1e-9

    def gradient_noise(self, v: Tensor, along: str) -> float:
        return self.known


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize("known", [1e-11, 1e-9, 1e-6])
def test_the_chosen_step_has_the_least_of_truncation_and_rounding(scheme: Scheme, known: float) -> None:
    """f = sum w^2/2 + w^3/6 + w^4/24: along u, the quotients are Hu + (h/2) T[u, u] (forward) + (h^2/6) F[u, u, u]."""
    d = 50
    w = nn.Parameter(torch.linspace(-1.0, 2.0, d, dtype=torch.float64))
    hessian = Known(lambda: (w**2 / 2 + w**3 / 6 + w**4 / 24).sum(), [Block("w", (w,))], scheme=scheme)
    hessian.known = known
    v = 3.0 * torch.linspace(0.5, 1.5, d, dtype=torch.float64)
    u, order = v / v.norm(), 1 if scheme == "forward" else 2

    def quotient(h: float) -> Tensor:
        odd = h / 2 * (1 + w) * u**2 if scheme == "forward" else 0.0
        return ((1 + w + w**2 / 2) * u + odd + h**2 / 6 * u**3).detach()

    longest = 16 * float(w.detach().norm()) * EPS ** (1 / (order + 1))
    floor = known * (math.sqrt(2) if scheme == "forward" else math.sqrt(0.5))
    errors = {}
    for i in range(5):  # the gap of two quotients holds 1 - 4^-p of the longer one's truncation
        h = longest / 4**i
        truncation = float((quotient(h) - quotient(h / 4)).norm()) / (4**order - 1)
        errors[h / 4] = truncation + floor / (h / 4)
    best = min(errors, key=errors.__getitem__)
    step = hessian.choose_step(v, "w")
    assert step.h == pytest.approx(best, rel=1e-12) and step.noise == known and not step.kinks
    assert step.error == pytest.approx(errors[best] / float(quotient(best).norm()), rel=1e-3)


def test_a_product_that_is_zero_has_no_relative_rounding_error() -> None:
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    hessian = DifferenceHessian(lambda: w.sum(), [Block("w", (w,))], h=1e-3)
    assert hessian.noise(torch.ones_like(w), torch.zeros_like(w), "w")[0] == 0.0
