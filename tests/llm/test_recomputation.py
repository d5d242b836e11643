"""A function that is computed again for each derivative: they equal autograd's."""

import pytest
import torch
from torch import Tensor, nn

from smoothlab.llm.recomputation import depends_only_on, recomputed


def function(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return (x @ weight).log_softmax(-1)[:, 0] * scale.sin()


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


SHAPES = ((3, 4), (4, 5), ())


@pytest.mark.parametrize("frozen", [None, 0, 1, 2])
def test_two_derivatives_are_autograds(frozen: int | None) -> None:
    inputs = tensors(*SHAPES)
    if frozen is not None:
        inputs[frozen].requires_grad_(False)
    learned = [tensor for tensor in inputs if tensor.requires_grad]

    def derivatives(value: Tensor) -> list[Tensor]:
        gradient = torch.autograd.grad(value.square().sum(), learned, create_graph=True)
        along = sum((g * (g.detach() + 1)).sum() for g in gradient)
        twice = [torch.autograd.grad(along, learned, retain_graph=True) for _ in range(2)]
        return [value, *gradient, *twice[0], *twice[1]]

    truth = derivatives(function(*inputs))
    for mine, theirs in zip(derivatives(recomputed(function, *inputs)), truth, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_inputs_that_are_computed_pass_derivatives_on() -> None:
    x, weight, scale = tensors(*SHAPES)
    results = []
    for call in (function, lambda *inputs: recomputed(function, *inputs)):
        value = call(x.tanh(), weight * 2, scale).sum()
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), [x, weight, scale]))
    for mine, theirs in zip(results[1], results[0], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_a_linear_function_has_second_derivatives_of_zero() -> None:
    x, weight, _ = tensors(*SHAPES)
    value = recomputed(lambda x: x * 3.0, x)
    (gradient,) = torch.autograd.grad(value.sum() + weight.square().sum(), x, create_graph=True)
    assert torch.equal(gradient, torch.full_like(gradient, 3.0))
    second = torch.autograd.grad(gradient.sum(), [x], allow_unused=True)[0]
    assert second is None or not second.any()


def test_a_third_derivative_is_right() -> None:
    inputs, results = tensors(*SHAPES), []
    for call in (function, lambda *inputs: recomputed(function, *inputs)):
        outputs = [call(*inputs).square().sum()]
        for _ in range(2):
            outputs.append(sum(g.sum() for g in torch.autograd.grad(outputs[-1], inputs, create_graph=True)))
        results.append(torch.autograd.grad(outputs[-1], inputs))
    for mine, theirs in zip(results[1], results[0], strict=True):
        assert theirs.norm() > 1e-3
        assert torch.allclose(mine, theirs, rtol=1e-11, atol=1e-13)


def test_leaves_that_are_not_among_the_inputs_are_seen() -> None:
    x, weight, scale = tensors(*SHAPES)
    hidden = x.tanh()
    result = function(hidden, weight, scale)
    assert depends_only_on(result, (hidden, weight, scale))
    assert depends_only_on(result, (x, weight, scale))
    assert not depends_only_on(result, (hidden, weight))
    assert depends_only_on(nn.Parameter(torch.ones(2)).detach(), ())
