"""Products with the Hessian, against dense Hessians, closed forms, fp64 and two independent packages."""

from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from smoothlab.blocks import Block, fixed_loss, flatten, norm
from smoothlab.errors import BadInput
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.hessian.gradients import gradient
from smoothlab.shift import Shift
from smoothlab.zeroth.distributions import draw
from tests.cases import PROBLEMS, WIDE, Classifier, Cubic, Problem, Quadratic

SMOOTH = [name for name, problem in PROBLEMS.items() if not problem.kinks]
NETWORKS = [name for name in SMOOTH if name not in ("quadratic", "cubic")]
SCHEMES = ("forward", "central")
DTYPES = (torch.float32, torch.float64)
EPS = torch.finfo(torch.float64).eps


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exact_hvp(loss: Callable[[], Tensor], along: Block, wrt: Block, v: Tensor) -> Tensor:
    """H_bc v, b = `wrt` and c = `along`."""
    return ExactHessian(loss, list({id(b): b for b in (along, wrt)}.values())).product(v, along.name, [wrt.name])[0]


def fd_hvp(loss: Callable[[], Tensor], along: Block, wrt: Block, v: Tensor, **options: Any) -> Tensor:
    """The same by finite differences."""
    blocks = list({id(b): b for b in (along, wrt)}.values())
    return FiniteDifferenceHessian(loss, blocks, **options).product(v, along.name, [wrt.name])[0]


def dense(module: nn.Module, blocks: list[Block]) -> Tensor:
    """The Hessian [d, d] over all blocks by torch.autograd.functional, in the order of the blocks' flat vectors."""
    names = {id(p): name for name, p in module.named_parameters()}
    params = [p for block in blocks for p in block.params]

    def loss(*values: Tensor) -> Tensor:
        return functional_call(module, dict(zip((names[id(p)] for p in params), values, strict=True)), ())

    with sdpa_kernel(SDPBackend.MATH):
        rows = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in params))
    return torch.cat(
        [torch.cat([h.reshape(p.numel(), -1) for h in row], 1) for p, row in zip(params, rows, strict=True)]
    )


def parts(matrix: Tensor, blocks: list[Block]) -> dict[tuple[str, str], Tensor]:
    """Blocks H_bc of the dense Hessian, by (b, c)."""
    sizes = [block.dim for block in blocks]
    return {
        (b.name, c.name): part
        for b, rows in zip(blocks, matrix.split(sizes), strict=True)
        for c, part in zip(blocks, rows.split(sizes, 1), strict=True)
    }


def pair(problem: Problem, seed: int = 0) -> tuple[nn.Module, list[Block], nn.Module, list[Block]]:
    """A problem in fp32 and the same numbers in fp64."""
    module, blocks = problem.build(seed, torch.float32)
    reference, exact = problem.build(seed)
    reference.load_state_dict(module.state_dict())
    return module, blocks, reference, exact


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


# Exact products


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_products_are_the_dense_hessians_on_every_pair_of_blocks(name: str) -> None:
    module, blocks = PROBLEMS[name].build()
    truth = dense(module, blocks)
    hessian = ExactHessian(module, blocks)
    plain = flatten(gradient(module, hessian.blocks)[1].values())  # may use another attention kernel
    assert torch.allclose(flatten(hessian.gradients.values()), plain, rtol=1e-12, atol=1e-14)
    size = float(truth.norm())
    for block in blocks:
        v = draw(block, "gaussian", [1])
        found = hessian.product(v, block.name, ["y", "x"])
        for other, image in zip(("y", "x"), found, strict=True):
            assert image.shape == (hessian.blocks[other].dim,)
            expected = parts(truth, blocks)[other, block.name] @ v
            assert float((image - expected).norm()) < 100 * EPS * size * norm(v)
            alone = exact_hvp(module, block, hessian.blocks[other], v)
            assert float((alone - expected).norm()) < 100 * EPS * size * norm(v)


def test_products_of_one_block_alone_equal_those_beside_others() -> None:
    module, (x, y) = PROBLEMS["tanh"].build()
    v = draw(x, "gaussian", [1])
    (beside,) = ExactHessian(module, [x, y]).product(v, "x", ["x"])
    (alone,) = ExactHessian(module, [x]).product(v, "x", ["x"])
    assert relative(alone, beside) < 100 * EPS


def test_quadratics_and_cubics_have_their_closed_forms() -> None:
    quadratic, blocks = PROBLEMS["quadratic"].build()
    assert isinstance(quadratic, Quadratic)
    cubic, cubic_blocks = PROBLEMS["cubic"].build()
    assert isinstance(cubic, Cubic)
    w = torch.cat([cubic.x, cubic.y]).detach()
    for module, both, matrix in ((quadratic, blocks, quadratic.a), (cubic, cubic_blocks, cubic.t @ w)):
        hessian = ExactHessian(module, both)
        for (b, c), part in parts(matrix, both).items():
            columns = [hessian.product(e, c, [b])[0] for e in torch.eye(hessian.blocks[c].dim).double()]
            assert torch.allclose(torch.stack(columns, 1), part, rtol=1e-13, atol=1e-14)


def test_unused_parameters_and_linear_ones_have_zero_rows() -> None:
    module, (x, y) = PROBLEMS["unused parameter"].build()
    v = torch.ones(x.dim).double()
    image, cross = ExactHessian(module, [x, y]).product(v, "x", ["x", "y"])
    found = {id(p): part for p, part in zip(x.params, x.views(image), strict=True)}
    for p in (module.dead, module.linear):
        assert torch.equal(found[id(p)], torch.zeros_like(p))
    assert found[id(module.x)].abs().min() > 0 and cross.abs().min() > 0
    linear = Block("linear", (module.linear,))
    assert torch.equal(exact_hvp(module, linear, y, torch.ones(2).double()), torch.zeros(2).double())


def _bad(kind: str) -> tuple[Callable[[], Tensor], list[Block]]:
    module, (x, y) = PROBLEMS["tanh"].build()
    other = Block("other", (nn.Parameter(torch.ones(2).double()),))
    if kind == "same name":
        return module, [x, Block("x", y.params)]
    if kind == "frozen":
        y.params[0].requires_grad_(False)
    losses = {
        "nan": lambda: module() * float("nan"),
        "inf": lambda: module() / 0.0,
        "vector": lambda: module().repeat(2),
        "one entry": lambda: module().reshape(1),
        "no graph": lambda: module().detach(),
    }
    return losses.get(kind, module), [x, other] if kind == "not reached" else [x, y]


BAD = {
    "not reached": "the loss does not depend on block 'other': leave it out",
    "nan": "the loss is nan",
    "inf": "the loss is inf",
    "vector": r"the loss has shape \(2,\): return the mean",
    "one entry": r"the loss has shape \(1,\)",
    "no graph": "the loss has no graph",
    "same name": "two blocks are called 'x'",
    "frozen": "block 'y' has frozen parameters",
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(
    "make", [ExactHessian, FiniteDifferenceHessian, lambda f, b: exact_hvp(f, *b, torch.ones(49).double())]
)
def test_what_has_no_hessian_is_told_in_one_line(kind: str, make: Callable[..., object]) -> None:
    loss, blocks = _bad(kind)
    with pytest.raises(BadInput, match=BAD[kind]) as caught:
        make(loss, blocks)
    assert "\n" not in str(caught.value)


def test_bad_settings_of_differences_are_refused() -> None:
    module, (x, y) = PROBLEMS["tanh"].build()
    for settings, message in (
        ({"scheme": "backward"}, "scheme 'backward' is unknown: use forward or central"),
        ({"h": 0.0}, "h = 0.0 must be above 0"),
        ({"h": -1e-3}, "must be above 0"),
        ({"h": float("nan")}, "must be above 0"),
    ):
        with pytest.raises(BadInput, match=message):
            FiniteDifferenceHessian(module, [x, y], **settings)
    ones = torch.ones(x.dim).double()
    with pytest.raises(BadInput, match="changes no weight of 'x'"):
        fd_hvp(module, x, y, ones, h=1e-30)
    with pytest.raises(BadInput, match="the loss is not finite .* use a smaller step h"):
        fd_hvp(module, x, y, ones, h=float("inf"))


def test_a_zero_vector_has_a_zero_image() -> None:
    module, blocks = PROBLEMS["tanh"].build()
    for hessian in (ExactHessian(module, blocks), FiniteDifferenceHessian(module, blocks)):
        assert all(not image.any() for image in hessian.product(torch.zeros(49).double(), "x", ["x", "y"]))


# Nothing is changed


class _Noisy(nn.Module):
    """Dropout, batch normalization and a counter: everything that a forward pass may change. May fail at call `at`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = (
            nn.Linear(3, 6),
            nn.BatchNorm1d(6),
            nn.Dropout(0.4),
            nn.Linear(6, 1),
        )
        self.calls, self.fails_at, self.how = 0, -1, ""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        value = self.last(self.drop(torch.tanh(self.norm(self.first(x))))).square().mean()
        if self.calls == self.fails_at:
            if self.how == "raises":
                raise OSError("the disk is gone")
            return value * float("nan")
        return value


def _state(module: nn.Module) -> dict[str, object]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "pointers": [t.data_ptr() for t in tensors.values()],
        "values": flatten(t.detach().double() for t in tensors.values()).clone(),
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone().tolist()) for p in module.parameters()],
        "flags": [m.training for m in module.modules()],
        "requires": [p.requires_grad for p in module.parameters()],
        "rng": torch.get_rng_state(),
    }


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("how", ["", "raises", "is nan"])
@pytest.mark.parametrize(
    "settings", [None, {}, {"scheme": "forward"}, {"h": 1e-3}], ids=["exact", "auto", "forward", "h"]
)
def test_products_leave_everything_as_it_was(settings: dict[str, object] | None, how: str, train: bool) -> None:
    torch.manual_seed(4)
    module = _Noisy()
    data = torch.randn(5, 3)
    module.norm.eval()
    x, y = Block("x", tuple(module.first.parameters())), Block("y", tuple(module.last.parameters()))
    for p in list(module.parameters())[:3]:
        p.grad = torch.randn_like(p)
    loss = fixed_loss(lambda: module(data), module, train=train, seed=1)
    before = _state(module)

    def measure() -> None:
        hessian = ExactHessian(loss, [x, y]) if settings is None else FiniteDifferenceHessian(loss, [x, y], **settings)
        for block in (x, y):
            hessian.product(draw(block, "gaussian", [0]), block.name, ["x", "y"])

    module.how = how
    module.fails_at = -1 if not how else 1 if settings is None else 3 if "h" in settings else 5
    if how:
        with pytest.raises(OSError if how == "raises" else BadInput):
            measure()
        assert module.calls == module.fails_at
    else:
        measure()
    after = _state(module)
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key], key


# Finite differences


@pytest.mark.parametrize("h", [1e-2, 1e-1])
def test_differences_of_a_cubic_have_the_error_of_theory(h: float) -> None:
    module, blocks = PROBLEMS["cubic"].build()
    assert isinstance(module, Cubic)
    v = draw(blocks[0], "gaussian", [0])
    third = torch.einsum("ijk,j,k->i", module.t[:, :3, :3], v, v)  # T[v, v]
    for b in blocks:
        truth = exact_hvp(module, blocks[0], b, v)
        bias = h / norm(v) / 2 * third.split([3, 2])[b is blocks[1]]
        forward = fd_hvp(module, blocks[0], b, v, h=h, scheme="forward")
        central = fd_hvp(module, blocks[0], b, v, h=h, scheme="central")
        assert torch.allclose(forward - truth, bias, rtol=1e-9, atol=1e-12)  # h is the length of the move
        assert torch.allclose(central, truth, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*NETWORKS, *(f"wide {n}" for n in WIDE if n != "relu")])
def test_the_chosen_step_tells_its_error_and_smooth_networks_have_no_kinks(
    name: str, dtype: torch.dtype, scheme: str
) -> None:
    problem = WIDE[name.removeprefix("wide ")] if name.startswith("wide") else PROBLEMS[name]
    module, blocks, reference, exact = pair(problem)
    if dtype == torch.float64:
        module, blocks = reference, exact
    expected = {("forward", 4): 5e-3, ("central", 4): 3e-4, ("forward", 8): 2e-7, ("central", 8): 1e-9}
    # Medians, as along one direction a ratio can reach 6: rounding is a draw, and the processor's.
    told, noise, cross_error, steps = [], [], [], []
    for seed in range(7):
        v = draw(blocks[0], "gaussian", [seed])
        hessian = FiniteDifferenceHessian(module, blocks, scheme=scheme)
        image, cross = hessian.product(v, "x", ["x", "y"])
        truth, cross_truth = ExactHessian(reference, exact).product(v.double(), "x", ["x", "y"])
        step, error = hessian.steps["x"], relative(image, truth)
        assert step.error is not None and not step.kinks
        steps.append(step.error)
        told.append(step.error / error)
        cross_error.append(float((cross - cross_truth).norm()) / (step.error * (norm(truth) + norm(cross_truth))))
        least, spent = hessian.noise(v, image, "x")
        assert least > 0 and spent in ((9, 11, 13, 15) if scheme == "forward" else (8, 9, 10, 11))
        noise.append(least / error)
    assert 1 / 2.5 < np.median(told) < 2.5
    assert np.median(noise) < 2  # rounding is a part of the error
    assert np.median(cross_error) < 2.5
    assert np.median(steps) < expected[scheme, dtype.itemsize] * (8 if name == "opt" else 1)  # its gradients are tiny


def _sized(activation: Callable[[], nn.Module], width: int) -> Problem:
    def make() -> nn.Module:
        body = nn.Sequential(nn.Linear(width, 2 * width), activation(), nn.Linear(2 * width, width), activation())
        return Classifier(body, torch.randn(64, width))

    return Problem(make, kinks=activation is nn.ReLU)


SIZED = {
    f"{activation.__name__} {width}": _sized(activation, width)
    for activation in (nn.Tanh, nn.GELU, nn.ReLU)
    for width in (8, 64, 160)
}


def noise_of_a_difference(
    hessian: FiniteDifferenceHessian, reference: nn.Module, exact: Block, v: Tensor, h: float
) -> float:
    """Rounding error of one gradient, from a difference at the move h v / ||v|| and fp64 at the very same weights."""
    block = hessian.blocks[exact.name]
    start = gradient(reference, {"b": exact})[1]["b"]
    with Shift(block).along(v, h / norm(v)):
        moved = gradient(hessian._loss, {"b": block})[1]["b"]
        home = [p.detach().clone() for p in exact.params]
        with torch.no_grad():
            for p, at in zip(exact.params, block.params, strict=True):
                p.copy_(at)
    end = gradient(reference, {"b": exact})[1]["b"]
    with torch.no_grad():
        for p, at in zip(exact.params, home, strict=True):
            p.copy_(at)
    found = moved.double() - hessian.gradients[exact.name].double()
    return norm(found - (end - start)) / 2**0.5


# The truth is two draws of the rounding error, and the estimate is a root mean square of others. Over these 26 cases
# their ratio on x has a mean of 1.03 and a standard deviation of .06: a factor of 1.5 is more than 6 of them.
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [*WIDE, *SIZED])
def test_measured_gradient_noise_is_that_against_fp64(name: str, seed: int) -> None:
    module, blocks, reference, exact = pair({**WIDE, **SIZED}[name], seed)
    hessian = FiniteDifferenceHessian(module, blocks)
    for block, same in zip(blocks, exact, strict=True):
        v = draw(block, "gaussian", [seed])
        real = noise_of_a_difference(hessian, reference, same, v, 1e-5)
        # The head's moves of 1e-5 change few roundings below it; more of them count at longer moves.
        above = 1.5 if block.name == "x" else 3
        assert real / 1.5 < hessian.gradient_noise(v, block.name) < above * real


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_kink_a_few_ulp_away_is_no_rounding_noise(seed: int) -> None:
    module, (x, _), reference, (exact, _) = pair(WIDE["relu"], seed)
    v = draw(x, "gaussian", [seed])
    move = 16 * torch.finfo(v.dtype).eps * norm(flatten(p.detach() for p in x.params)) / norm(v) * v
    first = module.body[0]
    parts = dict(zip((id(p) for p in x.params), x.views(move), strict=True))
    example = module.features[0].double()
    change = parts[id(first.weight)].double() @ example + parts[id(first.bias)]
    unit = int(change.abs().argmax())
    with torch.no_grad():  # one unit's kink half-way along the first move, 8 ulp away
        first.bias[unit] = -(first.weight[unit].double() @ example) - change[unit] / 2
        reference.body[0].bias.copy_(first.bias)
    hessian = FiniteDifferenceHessian(module, [x])
    real = norm(hessian.gradients["x"].double() - gradient(reference, {"x": exact})[1]["x"])
    near, far = (flatten(hessian._moved(v, "x", k * norm(move) / norm(v), ["x"])[0]) for k in (1, 2))
    assert norm(hessian.gradients["x"] - 2 * near + far) > 30 * real, "the kink is met, and outweighs rounding"
    assert real / 2.5 < hessian.gradient_noise(v, "x") < 2.5 * real


# In bf16 16 ulp are far, and rounding itself meets kinks: of a few tens of jumps some may be the largest part.
@pytest.mark.parametrize("name", WIDE)
def test_gradient_noise_in_bf16_has_the_size_of_that_against_fp64(name: str) -> None:
    module, blocks = WIDE[name].build(0, torch.bfloat16)
    reference, exact = WIDE[name].build(0)
    reference.load_state_dict(module.state_dict())
    hessian = FiniteDifferenceHessian(module, blocks)
    truth = gradient(reference, {b.name: b for b in exact})[1]
    for block in blocks:
        measured = hessian.gradient_noise(draw(block, "gaussian", [0]), block.name)
        real = norm(hessian.gradients[block.name].double() - truth[block.name])
        assert real / 4 < measured < 4 * real


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("h", [1e-6, 1e-5])
def test_a_given_step_below_rounding_tells_its_noise(h: float, scheme: str) -> None:
    module, blocks, reference, exact = pair(WIDE["gelu"])
    v = draw(blocks[0], "sphere", [0])
    truth = exact_hvp(reference, exact[0], exact[0], v.double())
    hessian = FiniteDifferenceHessian(module, blocks, h=h, scheme=scheme)
    (image,) = hessian.product(v, "x", ["x"])
    excess = norm(image.double() - truth) / norm(image)
    told, spent = hessian.noise(v, image, "x")
    assert excess > 0.05, "the setting is one where rounding matters"
    assert excess / 2 < told < 2 * excess
    assert spent == (3 if scheme == "forward" else 2)
    assert hessian.noise(v, image, "x")[1] == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dividing_by_the_realized_move_keeps_the_size_where_rounding_eats_steps(scheme: str) -> None:
    # f = ||w||^2 / 2 has the gradient w without any rounding, so v'Hv / v'v = 1 isolates the rounding of the move.
    w = nn.Parameter(0.1 + torch.rand(2000, generator=torch.Generator().manual_seed(0)))
    block = Block("w", (w,))
    v = draw(block, "sphere", [0])

    def size(effective: bool) -> float:
        hessian = FiniteDifferenceHessian(
            lambda: w.square().sum() / 2, [block], h=1e-6, scheme=scheme, effective=effective
        )
        return float(v @ hessian.product(v, "w", ["w"])[0]) / norm(v) ** 2

    assert size(effective=True) == pytest.approx(1, abs=1e-5)
    assert abs(size(effective=False) - 1) > 1e-2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kinks_are_flagged_where_the_step_meets_them_and_else_the_error_is_true(seed: int) -> None:
    module, blocks, reference, exact = pair(WIDE["relu"], seed)
    v = draw(blocks[0], "gaussian", [seed])
    truth = exact_hvp(reference, exact[0], exact[0], v.double())
    for scheme in SCHEMES:
        for net, of in ((module, blocks), (reference, exact)):
            hessian = FiniteDifferenceHessian(net, of, scheme=scheme)
            (image,) = hessian.product(v.to(of[0].params[0].dtype), "x", ["x"])
            step = hessian.steps["x"]
            if scheme == "central" and net is module:  # steps of 1e-2 and more meet many of its 4,000 kinks
                assert step.kinks
            assert step.kinks or (step.error is not None and relative(image, truth) < 4 * step.error)


# fp32 against fp64 on a real model


def _micro(dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Block]]:
    import transformers

    folder = resources.files("smoothlab.llm") / "micro"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            str(folder), num_labels=2, dtype=torch.float32, attn_implementation="sdpa"
        )
        model = model.to(dtype).eval()
    tokens = torch.randint(3, 4000, (3, 12), generator=torch.Generator().manual_seed(1))
    tokens[0, 8:] = model.config.pad_token_id
    batch = {"input_ids": tokens, "attention_mask": (tokens != model.config.pad_token_id).long()}
    labels = torch.tensor([0, 1, 1])

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(**batch).logits, labels)

    attention = [p for n, p in model.named_parameters() if "self_attn" in n]
    return fixed_loss(loss, model), [Block("x", tuple(attention)), Block("y", (model.score.weight,))]


def test_on_micro_fp32_products_agree_with_fp64_as_far_as_they_say() -> None:
    loss, blocks = _micro(torch.float32)
    reference, exact = _micro(torch.float64)
    v = draw(blocks[0], "gaussian", [0])
    truth, cross_truth = ExactHessian(reference, exact).product(v.double(), "x", ["x", "y"])
    hessian = ExactHessian(loss, blocks)
    image, cross = hessian.product(v, "x", ["x", "y"])
    told, spent = hessian.noise(v, image, "x")
    error = relative(image, truth)
    assert spent == 1 and error / 10 < told < 10 * error and error < 1e-4
    assert relative(cross, cross_truth) < 1e-4
    (difference,) = FiniteDifferenceHessian(reference, exact, h=1e-2).product(v.double(), "x", ["x"])
    assert relative(difference, truth) < 1e-5, "two ways to the same product in fp64"


# Quotients of gradients in place of exact products


def test_a_quotient_is_off_by_half_the_third_derivative_along_its_move() -> None:
    # f = -sum cos(k w) / k^2 at w = 1 has f'' = cos k and f''' = -k sin k: truncation is far above rounding.
    k = 1e4
    x, y = (torch.nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (50, 3))
    blocks = [Block("x", (x,)), Block("y", (y,))]
    hessian = ExactHessian(lambda: -((k * x).cos().sum() + (k * y).cos().sum()) / k**2, blocks)
    v = draw(blocks[0], "gaussian", [5])
    h = torch.finfo(torch.float64).eps ** 0.5 * norm(x.detach()) / norm(v)
    for sign in (1.0, -1.0):  # the error does not change its sign with v
        quotients = hessian.quotient(sign * v, "x", ["x", "y"])
        assert quotients is not None and not quotients[1].any()
        error = quotients[0] - sign * np.cos(k) * v
        assert error.numpy() == pytest.approx((-0.5 * h * k * np.sin(k) * v**2).numpy(), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("why", ["kinks", "16 bit", "zero weights", "zero vector", "not wanted", None])
def test_there_is_no_quotient_where_it_would_not_serve(why: str | None) -> None:
    dtype = torch.bfloat16 if why == "16 bit" else torch.float32
    w = torch.nn.Parameter(torch.full((6,), 0.0 if why == "zero weights" else 1.0, dtype=dtype))
    inputs = torch.arange(6.0, dtype=dtype)

    def loss() -> Tensor:
        activation = torch.relu if why == "kinks" else torch.tanh
        return activation(w * inputs).square().sum()

    hessian = ExactHessian(loss, [Block("w", (w,))], quotients=why != "not wanted")
    v = torch.zeros(6, dtype=dtype) if why == "zero vector" else torch.ones(6, dtype=dtype)
    assert (hessian.quotient(v, "w", ["w"]) is None) == (why is not None)


# Independent packages


def _theirs(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor], Tensor, Tensor]:
    """A classifier, its batch, a vector on all of its parameters and our product with it."""
    module, _ = PROBLEMS[name].build()
    network = nn.Sequential(module.body, module.head)
    everything = Block("all", tuple(network.parameters()))
    v = draw(everything, "gaussian", [2])
    return network, (module.features, module.labels), v, exact_hvp(module, everything, everything, v)


# No "layer norm" here: grad(jvp(.)) through layer_norm, on which curvlinops 3 rests, is wrong in torch 2.13 (by 3 % on
# this problem), while dense Hessians, finite differences and the two other packages agree.
@pytest.mark.parametrize("name", ["tanh", "gelu"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_curvlinops_finds_the_same_product(name: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    network, batch, v, ours = _theirs(name)
    operator = curvlinops.HessianLinearOperator(network, nn.CrossEntropyLoss(), list(network.parameters()), [batch])
    assert relative(operator @ v, ours) < 1000 * EPS


@pytest.mark.parametrize("name", ["gelu", "layer norm"])
def test_hessian_eigenthings_finds_the_same_product(name: str) -> None:
    eigenthings = pytest.importorskip("hessian_eigenthings")
    network, batch, v, ours = _theirs(name)
    operator = eigenthings.HessianOperator(network, [batch], eigenthings.supervised_loss(nn.CrossEntropyLoss()))
    assert relative(operator.matvec(v), ours) < 1000 * EPS


@pytest.mark.parametrize("name", ["gelu", "layer norm"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pyhessian_finds_the_same_product(name: str) -> None:
    pyhessian = pytest.importorskip("pyhessian")
    network, batch, v, ours = _theirs(name)
    operator = pyhessian.hessian(network, nn.CrossEntropyLoss(), data=batch, cuda=False)
    parts = Block("all", tuple(network.parameters())).views(v)
    theirs = pyhessian.hessian_vector_product(operator.gradsH, operator.params, parts)
    assert relative(flatten(theirs), ours) < 1000 * EPS
