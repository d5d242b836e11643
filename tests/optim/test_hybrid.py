"""HybridSGD against a dense reference, the plain loop of Algorithm 1, torch's optimizers, and what users do wrong."""

import resource
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.algorithm1.engine import Algorithm1
from smoothlab.algorithm1.reference import one_replica
from smoothlab.blocks import Block, Loss
from smoothlab.errors import BadInput
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.optim.seedlog import SeedLog, replay
from smoothlab.optim.seedlog_file import ENTRY
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.estimators import ZerothOrder
from tests.cases import ESTIMATORS, OBJECTIVES


def reference(
    loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, zs: Sequence[Tensor], mu: float, sides: int,
    eta_x: float, eta_y: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of Algorithm 1, dense: Eq. (2) along each z, and the exact gradient of y, at the same (x, y)."""
    ghat = torch.zeros_like(x)
    for z in zs:
        back = loss(x - mu * z, y) if sides == 2 else loss(x, y)
        ghat += (loss(x + mu * z, y) - back) / (sides * mu) * z / len(zs)
    leaf = y.clone().requires_grad_()
    (g_y,) = torch.autograd.grad(loss(x, leaf), leaf)
    return x - eta_x * ghat, y - eta_y * g_y


def net(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A small net of two layers, and a loss of it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    data, labels = torch.randn(7, 3).to(dtype), torch.arange(7) % 2
    return module, lambda: nn.functional.cross_entropy(module(data).float(), labels)


def halves(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    return list(module[0].parameters()), list(module[2].parameters())  # type: ignore[index]


def flat(params: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in params])


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_iterates_are_the_dense_references(name: str, sides: int) -> None:
    f = OBJECTIVES[name]
    blocks = f.blocks(0.1 * torch.arange(1, f.dim + 1, dtype=torch.float64) / f.dim)
    x, y = (flat(blocks[part].params) for part in "xy")
    estimator = ZerothOrder(1e-3, sides=sides, q=2)  # type: ignore[arg-type]
    groups = [
        {"params": blocks["x"].params, "lr": 1e-4, "oracle": estimator},
        {"params": blocks["y"].params, "lr": 1e-3},
    ]
    optimizer = HybridSGD(groups, seed=3)
    for step in range(5):
        i = step % f.n
        expected = float(f.value(torch.cat([x, y])) + f.shifts[i] @ torch.cat([x, y]))
        zs = [estimator.distribution.draw(blocks["x"], (3, step, 0, j)) for j in range(2)]

        def dense(x: Tensor, y: Tensor, i: int = i) -> Tensor:
            z = torch.cat([x, y])
            return f.value(z) + z @ f.shifts[i]

        x, y = reference(dense, x, y, zs, 1e-3, sides, 1e-4, 1e-3)
        value = optimizer.step(f.loss(blocks, i))
        assert float(value) == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(flat(blocks["x"].params), x, rtol=1e-9, atol=1e-12)  # rounding of f over mu
        torch.testing.assert_close(flat(blocks["y"].params), y, rtol=1e-13, atol=1e-15)


@dataclass
class Drawn:
    """A user's estimator: along directions that were drawn elsewhere."""

    estimator: ZerothOrder
    upcoming: Iterator[Tensor]

    @property
    def distribution(self) -> Distribution:
        return self.estimator.distribution

    @property
    def sides(self) -> int:
        return self.estimator.sides

    def __call__(self, loss: Loss, block: Block, seed: Sequence[int], *, value: float | None = None) -> Directional:
        return self.estimator(loss, block, seed, value=value, directions=[next(self.upcoming)])


@pytest.mark.parametrize("oracle", ["one-sided", "two-sided"])
@pytest.mark.parametrize("name", ["E2", "E6", "E7"])
def test_iterates_are_algorithm_1s(name: str, oracle: str) -> None:
    f = OBJECTIVES[name]
    how = Algorithm1(1e-3, 1e-2, epochs=3, oracle=oracle, mu=1e-2, distribution="sphere")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    orders = torch.stack([torch.randperm(f.n, generator=generator) for _ in range(3)])
    directions = torch.randn(3, f.n, f.d_x, dtype=torch.float64, generator=generator)
    z0 = torch.full((f.dim,), 0.3, dtype=torch.float64)
    plain = one_replica(how, f, z0, orders, directions)
    blocks, upcoming = f.blocks(z0), iter(directions.flatten(0, 1))
    zeroth = ZerothOrder(1e-2, sides=1 if oracle == "one-sided" else 2)
    optimizer = HybridSGD(
        [
            {
                "params": blocks["x"].params,
                "lr": 1e-3,
                "oracle": Drawn(zeroth, upcoming),
            },
            {"params": blocks["y"].params, "lr": 1e-2},
        ]
    )
    for i in orders.flatten().tolist():
        optimizer.step(f.loss(blocks, i))
    torch.testing.assert_close(flat([*blocks["x"].params, *blocks["y"].params]), plain.z, rtol=1e-10, atol=1e-12)


class Incomplete:
    """A user's estimator with some of what the contract asks for."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)

    def __call__(self, loss: Loss, block: Block, seed: Sequence[int]) -> object:
        return 1.0


@pytest.mark.parametrize(
    ("oracle", "complaint"),
    [
        (
            Incomplete(),
            "has no attribute `distribution` that is a smoothlab Distribution: use None (exact), ZerothOrder",
        ),
        (Incomplete(distribution=Gaussian()), "has no attribute `sides` that is 1 or 2"),
        (Incomplete(distribution=Gaussian(), sides=1), "cannot be called as estimator(loss, block, seed, value=f(x))"),
    ],
)
def test_a_users_estimator_is_checked_when_the_optimizer_is_made(oracle: object, complaint: str) -> None:
    with pytest.raises(BadInput) as error:
        HybridSGD([{"params": [nn.Parameter(torch.ones(2))], "oracle": oracle}])
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_an_estimator_that_returns_no_gradient_is_refused_at_its_first_step() -> None:
    p = nn.Parameter(torch.ones(2))
    oracle = Incomplete(distribution=Gaussian(), sides=2)
    optimizer = HybridSGD([{"params": [p], "oracle": oracle, "name": "x"}])
    with pytest.raises(BadInput, match="the oracle of group 'x' returned a float: return a smoothlab"):
        optimizer.step(lambda: p.sum())


def test_both_oracles_see_the_same_point() -> None:
    """With x updated first, the gradient of y would be that at another x: the reference tells."""
    module, loss = net()
    x, y = halves(module)
    before = flat(x)
    for p in module.parameters():
        p.grad = None
    loss().backward()
    expected = flat(y) - 0.1 * torch.cat([p.grad.reshape(-1) for p in y])  # type: ignore[union-attr]
    optimizer = HybridSGD([{"params": x, "lr": 1.0, "oracle": ZerothOrder()}, {"params": y, "lr": 0.1}])
    optimizer.step(loss)
    torch.testing.assert_close(flat(y), expected, rtol=1e-14, atol=1e-15)
    assert not torch.equal(flat(x), before)


@pytest.mark.parametrize(("sides", "forwards"), [(1, 2), (2, 3)])
def test_a_one_sided_estimate_takes_f_from_the_first_order_part(sides: int, forwards: int) -> None:
    module, loss = net()
    x, y = halves(module)
    count = 0

    def counted() -> Tensor:
        nonlocal count
        count += 1
        return loss()

    optimizer = HybridSGD([{"params": x, "oracle": ZerothOrder(sides=sides)}, {"params": y}])  # type: ignore[arg-type]
    optimizer.step(counted)  # its first call looks at the loss twice more
    count = 0
    optimizer.step(counted)
    assert count == forwards


def test_the_backward_pass_differentiates_exact_groups_alone() -> None:
    module, loss = net()
    x, y = halves(module)
    seen: list[bool] = []

    def watched() -> Tensor:
        if torch.is_grad_enabled():
            seen.extend(p.requires_grad for p in x)
        return loss()

    HybridSGD([{"params": x, "oracle": ZerothOrder()}, {"params": y}]).step(watched)
    assert seen == [False] * len(x)
    assert all(p.grad is None and p.requires_grad for p in x) and all(p.grad is not None for p in y)


def test_no_activation_is_kept_for_the_zeroth_order_part() -> None:
    """The graph holds what that of the exact part alone holds, and less than that of both."""

    def held(make: Callable[[list[Tensor], list[Tensor]], list[dict[str, Any]]]) -> int:
        module, loss = net()
        sizes: list[int] = []

        def counted() -> Tensor:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
                return loss()

        HybridSGD(make(*halves(module))).step(counted)
        return sum(sizes)

    hybrid = held(lambda x, y: [{"params": x, "oracle": ZerothOrder()}, {"params": y}])
    assert hybrid < held(lambda x, y: [{"params": [*x, *y]}])

    def frozen(x: list[Tensor], y: list[Tensor]) -> list[dict[str, Any]]:
        for p in x:
            p.requires_grad_(False)
        return [{"params": y}]

    assert hybrid == held(frozen)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_rates_of_zero_leave_every_bit(name: str, dtype: torch.dtype) -> None:
    module, loss = net(dtype)
    x, y = halves(module)
    x[0].data[0] = -0.0
    mu = 0.05 if dtype.itemsize == 2 else 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = ESTIMATORS[name].build([tuple(p.shape) for p in x], mu, module)
        optimizer = HybridSGD([{"params": x, "lr": 0.0, "oracle": oracle}, {"params": y, "lr": 0.0}])
        before = [p.detach().clone() for p in module.parameters()]
        for _ in range(3):
            optimizer.step(loss)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert x[0][0].signbit().all(), "-0.0 is -0.0"


@pytest.mark.parametrize("exact", ["sgd", "adamw"])
def test_exact_groups_are_torchs_optimizers(exact: str) -> None:
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
        "adamw": lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.3),
    }
    (mine, mine_loss), (theirs, their_loss) = net(), net()
    if exact == "sgd":
        optimizer = HybridSGD([{"params": mine.parameters()}], 0.1, momentum=0.9, weight_decay=0.01, clip=0.5)
    else:
        optimizer = HybridSGD(
            [{"params": mine.parameters()}], 0.1, clip=0.5, exact=lambda g: torch.optim.AdamW(g, weight_decay=0.3)
        )
    reference = makers[exact](theirs.parameters())
    schedulers = [torch.optim.lr_scheduler.LinearLR(each, 1.0, 0.1, 5) for each in (optimizer, reference)]
    for _ in range(6):
        optimizer.step(mine_loss)
        reference.zero_grad()
        their_loss().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
        for scheduler in schedulers:
            scheduler.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weight_decay_of_zeroth_order_groups_is_the_gradients() -> None:
    module, loss = net()
    params = list(module.parameters())
    before = flat(params)
    optimizer = HybridSGD([{"params": params, "lr": 0.1, "oracle": ZerothOrder(), "weight_decay": 0.5}])
    optimizer.step(loss)
    (ghat,) = optimizer.last.gradients.values()  # type: ignore[union-attr]
    expected = before - 0.1 * (ghat.dense(Block("x", tuple(params))) + 0.5 * before)
    torch.testing.assert_close(flat(params), expected, rtol=1e-13, atol=1e-14)


def test_accumulation_is_the_mean_minibatch() -> None:
    torch.manual_seed(1)
    data, labels = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    found = []
    for parts in (1, 4):
        module, _ = net()
        x, y = halves(module)
        optimizer = HybridSGD([{"params": x, "lr": 0.01, "oracle": ZerothOrder(sides=1)}, {"params": y, "lr": 0.1}])
        closures = [
            lambda part=part, module=module: nn.functional.cross_entropy(module(data[part]), labels[part])
            for part in torch.arange(8).chunk(parts)
        ]
        for _ in range(3):
            optimizer.step(closures if parts > 1 else closures[0])
        found.append(flat(list(module.parameters())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_sixteen_bit_gradients_of_parts_are_added_in_fp32() -> None:
    """256 + 1 + 1 + 1 is 259, which bf16 rounds to 260; neighbors that were added in bf16 would give 258."""
    p, wide = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(1))
    optimizer = HybridSGD([{"params": [wide, p], "lr": 1.0}])
    optimizer.step([lambda c=c: 4 * c * p.sum() + wide.sum() for c in (256.0, 1.0, 1.0, 1.0)])
    assert float(p.detach()) == -260.0 and float(wide.detach()) == -1.0


def test_an_odd_last_part_counts() -> None:
    """Gradients are added in pairs: the third of three parts is none's partner."""
    p = nn.Parameter(torch.zeros(1))
    HybridSGD([{"params": [p], "lr": 1.0}]).step([lambda c=c: 3 * c * p.sum() for c in (1.0, 2.0, 4.0)])
    assert float(p.detach()) == -7.0


@pytest.mark.parametrize("exact", [None, torch.optim.AdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_goes_on_to_the_bit(
    dtype: torch.dtype, exact: Callable[..., torch.optim.Optimizer] | None
) -> None:
    def made(module: nn.Module) -> HybridSGD:
        x, y = halves(module)
        groups = [{"params": x, "lr": 1e-3, "oracle": ZerothOrder(0.05), "name": "x"}, {"params": y, "name": "y"}]
        return HybridSGD(groups, 0.05, momentum=0.0 if exact else 0.9, exact=exact)

    (one, loss), (two, loss_two) = net(dtype), net(dtype)
    whole, first = made(one), made(two)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(whole, 0.9), torch.optim.lr_scheduler.ExponentialLR(first, 0.9)
    for _ in range(3):
        whole.step(loss), first.step(loss_two)
        scheduler[0].step(), scheduler[1].step()
    again = made(two)
    again.load_state_dict(first.state_dict())
    later = torch.optim.lr_scheduler.ExponentialLR(again, 0.9)  # writes to the groups that were loaded
    later.load_state_dict(scheduler[1].state_dict())
    for _ in range(3):
        whole.step(loss), again.step(loss_two)
        scheduler[0].step(), later.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with pytest.raises(BadInput, match="is of other groups than x, y"):
        again.load_state_dict({**first.state_dict(), "groups": []})
    with pytest.raises(BadInput, match="is of other oracles or masters"):
        again.load_state_dict({**first.state_dict(), "exact": None})


def test_masters_hold_steps_that_bf16_would_lose() -> None:
    moved = {}
    for masters in (True, False):
        module, loss = net(torch.bfloat16)
        x, _ = halves(module)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            optimizer = HybridSGD([{"params": x, "lr": 2e-4, "oracle": ZerothOrder(0.05)}], masters=masters)
        assert any("without masters" in str(one.message) for one in told) == (not masters)
        before = flat(x)
        for _ in range(60):
            optimizer.step(loss)
        moved[masters] = float((flat(x).float() - before.float()).norm())
        if masters:
            assert all(torch.equal(p, m.bfloat16()) for p, m in zip(x, optimizer._masters[0].params, strict=True))
    assert moved[False] < moved[True]


def test_fp16_warns_and_the_share_of_mu_z_is_told() -> None:
    module, loss = net(torch.float16)
    x, _ = halves(module)
    with pytest.warns(UserWarning, match="block 'x' is fp16"):
        optimizer = HybridSGD([{"params": x, "lr": 1e-5, "oracle": ZerothOrder(0.05), "name": "x"}])
    optimizer.step(loss)
    assert 0.9 < optimizer.last.realized_fractions["x"] < 1.1  # type: ignore[union-attr]


def test_a_loss_that_is_not_finite_leaves_weights_and_gradients() -> None:
    module, loss = net()
    x, y = halves(module)
    optimizer = HybridSGD([{"params": x, "oracle": ZerothOrder()}, {"params": y}])
    optimizer.step(loss)
    before = [p.detach().clone() for p in module.parameters()]
    for broken in (lambda: loss() * float("nan"), lambda: loss() * (1 if torch.is_grad_enabled() else float("inf"))):
        with pytest.raises(BadInput, match="is (nan|inf): lower"):
            optimizer.step(broken)
    steep = torch.zeros((), dtype=torch.float64)

    def kinked() -> Tensor:
        return loss() + (y[0].sum() * steep).abs().sqrt()  # finite, its gradient is 0 times infinity

    with pytest.raises(BadInput, match="the exact gradient's norm is nan at step 1: lower the learning rates"):
        optimizer.step(kinked)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def wrong(what: str) -> list[dict]:  # type: ignore[type-arg]
    module, _ = net()
    x, y = halves(module)
    zo = ZerothOrder()
    if what == "frozen":
        x[0].requires_grad_(False)
    return {
        "none": [],
        "empty": [{"params": [], "name": "x"}],
        "two": [{"params": x, "oracle": zo, "name": "x"}, {"params": [*y, x[0]], "name": "y"}],
        "tied": [{"params": x, "oracle": zo, "name": "x"}, {"params": [nn.Parameter(x[0].data)], "name": "y"}],
        "frozen": [{"params": x, "name": "x"}],
        "oracle": [{"params": x, "oracle": "zo", "name": "x"}],
        "integer": [{"params": [torch.ones(2, dtype=torch.int8)], "oracle": zo, "name": "x"}],
        "rate": [{"params": x, "lr": -1.0, "name": "x"}],
        "decay": [{"params": x, "weight_decay": -1.0, "oracle": zo, "name": "x"}],
        "names": [{"params": x, "name": "x"}, {"params": y, "name": "x"}],
        "offloaded": [{"params": [*x[1:], x[0].to("meta")], "oracle": zo, "name": "x"}],
    }[what]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("none", "no groups: give at least one"),
        ("empty", "group 'x' has no parameters: leave it out"),
        ("two", "is in groups 'x' and 'y' (a tie, or the same one twice): keep it in one"),
        ("tied", "is in groups 'x' and 'y' (a tie, or the same one twice): keep it in one"),
        ("frozen", "frozen (requires_grad = False): give the group an estimator, or let"),
        ("oracle", "oracle 'zo' of group 'x' is not callable: use None (exact), ZerothOrder, or a class"),
        ("integer", "holds torch.int8 parameters: leave quantized or integer ones out"),
        ("rate", "lr = -1.0 of group 'x': use a finite rate of at least 0"),
        ("decay", "weight_decay = -1.0 of group 'x'"),
        ("names", "two groups are named 'x'"),
        ("offloaded", "without memory (device meta), as accelerate's offloading leaves it between forward passes"),
    ],
)
def test_wrong_groups_are_refused(what: str, told: str) -> None:
    with pytest.raises(BadInput) as error:
        HybridSGD(wrong(what))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_loss_without_exact_parameters_and_a_mu_below_rounding_are_refused() -> None:
    module, loss = net(torch.float32)
    x, y = halves(module)
    with pytest.raises(BadInput, match="depends on no parameter of an exact group"):
        HybridSGD([{"params": x, "oracle": ZerothOrder()}, {"params": [nn.Parameter(torch.ones(2))]}]).step(
            lambda: loss().detach() if torch.is_grad_enabled() else loss()
        )
    with pytest.raises(BadInput, match="rounding lets"):
        HybridSGD([{"params": x, "oracle": ZerothOrder(1e-9)}, {"params": y}]).step(loss)


def test_a_logged_run_replays_to_the_bit(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        (module, loss), (fresh, _) = net(dtype), net(dtype)
        oracle = ZerothOrder(0.05, q=3, average="orthogonal")
        x, _ = halves(module)
        path = tmp_path / f"{dtype}.log"
        log = SeedLog(path, 4, {0: Block("x", tuple(x))}, {0: oracle.distribution})
        group = {"params": x, "lr": 1e-2, "oracle": oracle, "weight_decay": 0.1, "name": "x"}
        optimizer = HybridSGD([group], seed=4, log=log)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for _ in range(5):
            optimizer.step(loss)
            scheduler.step()
        log.close()
        block = Block("x", tuple(halves(fresh)[0]))
        assert replay(path, {0: block}, {0: oracle.distribution}) == 5
        assert all(torch.equal(a, b) for a, b in zip(block.params, x, strict=True))


def test_what_is_in_no_group_gets_no_gradient() -> None:
    module, loss = net()
    x, y = halves(module)
    HybridSGD([{"params": [x[0]], "oracle": ZerothOrder()}, {"params": [y[0]]}]).step(loss)
    assert [p.grad is not None for p in module.parameters()] == [False, False, True, False]


def test_one_sided_groups_alone_evaluate_f_once_and_tell_it() -> None:
    module, loss = net()
    x, y = halves(module)
    count, oracle = 0, ZerothOrder(0.1, sides=1)

    def counted() -> Tensor:
        nonlocal count
        count += 1
        return loss()

    optimizer = HybridSGD([{"params": x, "oracle": oracle}, {"params": y, "oracle": oracle}])
    optimizer.step(counted)
    count, expected = 0, float(loss().detach())
    assert float(optimizer.step(counted)) == expected and count == 3


def test_a_loss_that_does_not_depend_on_a_group_is_refused() -> None:
    module, loss = net()
    dead = nn.Parameter(torch.ones(3))
    even = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # both sides are equal there, and yet it counts
    groups = [{"params": [dead], "oracle": ZerothOrder(), "name": "x"}, {"params": module.parameters()}]
    with pytest.raises(BadInput, match="does not depend on group 'x': leave it out, or look at what the closure"):
        HybridSGD(groups).step(loss)
    optimizer = HybridSGD([{"params": [even], "oracle": ZerothOrder(), "name": "x"}, {"params": module.parameters()}])
    assert float(optimizer.step(lambda: loss() + even.square().sum())) == float(loss().detach()) or optimizer.steps == 1


def test_calls_that_cannot_be_meant_are_refused() -> None:
    module, loss = net()
    optimizer = HybridSGD([{"params": module.parameters()}])
    with pytest.raises(
        BadInput, match=r"step\(\) got no closure: call step\(closure\), .* use smoothlab.HybridTrainer"
    ):
        optimizer.step()
    with pytest.raises(BadInput, match="got an empty list of closures: give a function"):
        optimizer.step([])
    with pytest.raises(BadInput, match="groups cannot be added to HybridSGD: make a new one"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(BadInput, match="has shape"):
        optimizer.step(lambda: loss() * torch.ones(2))


def test_backward_and_a_step_without_closure_are_the_step() -> None:
    """With clipping between them, and a rate that is set between them; no weight moves in `backward`."""
    weights = []
    for apart in (False, True):
        module, loss = net()
        x, y = halves(module)
        groups = [{"params": x, "lr": 0.5, "oracle": ZerothOrder()}, {"params": y, "lr": 0.5}]
        optimizer = HybridSGD(groups, clip=None if apart else 0.1)
        for rate in (0.1, 0.05):
            if apart:
                before = flat([*x, *y])
                expected = float(loss().detach())
                assert float(optimizer.backward(loss)) == expected and torch.equal(flat([*x, *y]), before)
                assert torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1) > 0.1
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step(None if apart else loss)
        assert optimizer.steps == 2 and optimizer.last is not None
        weights.append(flat([*x, *y]))
    assert torch.equal(*weights)


def test_masters_follow_weights_that_somebody_else_has_written() -> None:
    """A step of rate 0 keeps every bit of them; a Trainer that loads its best weights and goes on does so."""
    module, loss = net(torch.bfloat16)
    params = list(module.parameters())
    optimizer = HybridSGD([{"params": params, "lr": 0.1, "oracle": ZerothOrder(0.05)}])
    optimizer.step(loss)
    with torch.no_grad():
        params[0].add_(1)
    written = flat(params)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(loss)
    assert torch.equal(flat(params), written)


def test_gradients_serve_one_step_and_none_after_zero_grad() -> None:
    module, loss = net()
    optimizer = HybridSGD([{"params": module.parameters(), "oracle": ZerothOrder()}])
    optimizer.backward(loss)
    optimizer.zero_grad()
    before = flat(list(module.parameters()))
    with pytest.raises(BadInput, match="got no closure"):
        optimizer.step()
    assert torch.equal(flat(list(module.parameters())), before)
    optimizer.backward(loss)
    optimizer.step()
    with pytest.raises(BadInput, match="got no closure"):
        optimizer.step()
    with pytest.raises(BadInput, match="has shape"):
        optimizer.backward(lambda: loss() * torch.ones(2))
    with pytest.raises(BadInput, match="got no closure"):
        optimizer.step()


def logged(x: list[Tensor], path: Path, oracle: ZerothOrder, seed: int = 0, **more: Any) -> HybridSGD:
    log = SeedLog(path, seed, {0: Block("x", tuple(x))}, {0: oracle.distribution})
    return HybridSGD([{"params": x, "lr": 0.1, "oracle": oracle, "name": "x"}], log=log, **more)


def test_a_run_that_goes_on_from_a_checkpoint_cuts_its_log_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (module, loss), (fresh, _), oracle = net(torch.float32), net(torch.float32), ZerothOrder(0.05)
    x, _ = halves(module)
    optimizer = logged(x, tmp_path / "log", oracle)
    for _ in range(3):
        optimizer.step(loss)
    state, stood = optimizer.state_dict(), [p.detach().clone() for p in x]
    for _ in range(2):
        optimizer.step(loss)
    with torch.no_grad():
        for p, value in zip(x, stood, strict=True):
            p.copy_(value)
    with pytest.raises(BadInput, match="stands before step 5 of group 0, not before step 0 of group 0: load"):
        logged(x, tmp_path / "log", oracle).step(loss)
    assert all(torch.equal(a, b) for a, b in zip(x, stood, strict=True))
    again = logged(x, tmp_path / "log", oracle)
    forced: list[int] = []
    again.load_state_dict(state)
    monkeypatch.setattr(again.log, "force", lambda: forced.append(again.steps))
    again.state_dict()
    assert forced == [3], "a checkpoint is worth as much as its log"
    for _ in range(4):
        again.step(loss)
    block = Block("x", tuple(halves(fresh)[0]))
    assert replay(tmp_path / "log", {0: block}, {0: oracle.distribution}) == 7
    assert all(torch.equal(a, b) for a, b in zip(block.params, x, strict=True))
    with pytest.raises(BadInput, match="holds no step, the run goes on from step 3"):
        logged(x, tmp_path / "new", oracle).load_state_dict(state)


def test_masters_are_rebuilt_from_a_log(tmp_path: Path) -> None:
    """A state without masters, and the log: the same steps follow, from masters that hold what bf16 does not."""
    (module, loss), (fresh, fresh_loss), oracle = net(torch.bfloat16), net(torch.bfloat16), ZerothOrder(0.05)
    x = halves(module)[0]
    optimizer = logged(x, tmp_path / "log", oracle)
    for _ in range(3):
        optimizer.step(loss)
    state, short = optimizer.state_dict(masters=False), (tmp_path / "log").read_bytes()
    assert state["masters"] is None and optimizer.state_dict()["masters"]["0"][0].dtype == torch.float32
    for _ in range(3):
        optimizer.step(loss)
    (tmp_path / "again").write_bytes(short)
    again = logged(halves(fresh)[0], tmp_path / "again", oracle)
    for _ in range(2):  # from theta_0; a second time from where the first has left the masters
        for p, start in zip(halves(fresh)[0], halves(net(torch.bfloat16)[0])[0], strict=True):
            p.data.copy_(start)
        assert again.replay(tmp_path / "again") == 3
    again.load_state_dict(state)
    for _ in range(3):
        again.step(fresh_loss)
    for one, two in ((optimizer._masters[0].params, again._masters[0].params), (x, halves(fresh)[0])):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(p.float(), m) for p, m in zip(x, optimizer._masters[0].params, strict=True))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "log").read_bytes()


def test_logs_that_would_not_replay_are_refused(tmp_path: Path) -> None:
    (module, _), (short, _), oracle = net(), net(torch.bfloat16), ZerothOrder(0.05)
    x, (some, _) = halves(module)[0], halves(short)
    log = SeedLog(tmp_path / "log", 1, {0: Block("x", tuple(x))}, {0: oracle.distribution})
    with pytest.raises(BadInput, match=r"is of seed 1 and groups \[0\], the .* here are \[0\], of seed 2"):
        HybridSGD([{"params": x, "oracle": oracle}], seed=2, log=log)
    with pytest.raises(BadInput, match=r"the zeroth-order ones here are \[1\], of seed 1: make the log for them"):
        HybridSGD([{"params": halves(module)[1]}, {"params": x, "oracle": oracle}], seed=1, log=log)
    with pytest.raises(BadInput, match="needs masters"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logged(some, tmp_path / "short", oracle, masters=False)


def test_a_full_disk_leaves_weights_and_log_as_they_were(tmp_path: Path) -> None:
    """The second of two groups does not fit any more: neither has moved, and the step can be made again."""
    module, loss = net(torch.float32)
    x, y = halves(module)
    path, oracle = tmp_path / "log", ZerothOrder(0.05)
    blocks = {0: Block("x", tuple(x)), 1: Block("y", tuple(y))}
    groups = [{"params": x, "lr": 0.1, "oracle": oracle}, {"params": y, "lr": 0.1, "oracle": oracle}]
    optimizer = HybridSGD(groups, log=SeedLog(path, 0, blocks, {0: oracle.distribution, 1: oracle.distribution}))
    optimizer.step(loss)
    before, content = [p.detach().clone() for p in module.parameters()], path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + ENTRY.size + 5, limits[1]))
    try:
        with pytest.raises(BadInput, match="cannot write .*: File too large; make room, and go on"):
            optimizer.step(loss)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == content
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    optimizer.step(loss)
    assert len(path.read_bytes()) == len(content) + 2 * ENTRY.size and optimizer.steps == 2
