"""The hook: training with it is training without it, and its rows are those of what it is asked for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from smoothlab import records
from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.gauss_newton import Outputs
from smoothlab.hessian.hook import SmoothnessHook
from tests.hessian.test_gauss_newton import Net
from tests.hessian.test_trajectory import Quadratic


def train(model: nn.Module, data: Tensor, hook: Callable[[int, Callable[[], Tensor]], None] | None) -> list[Tensor]:
    """A plain loop with dropout, momentum and batch norm; its states after training."""
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for step in range(6):
        batch = data[torch.randperm(len(data))[:8]]

        def compute(batch: Tensor = batch) -> Tensor:
            return model(batch).square().mean()

        if hook is not None:
            hook(step, compute)
        optimizer.zero_grad()
        compute().backward()
        optimizer.step()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [*(t.detach().clone() for t in model.state_dict().values()), *grads, torch.rand(3)]


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("product", ["exact", "central"])
def test_training_with_the_hook_is_training_without_it(tmp_path, mode: bool, product: str) -> None:
    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Tanh(), nn.Linear(12, 2))

    data = torch.randn(64, 6, generator=torch.Generator().manual_seed(2))
    plain = train(network(), data, None)
    model = network()
    blocks = {
        "first": Block("first", tuple(model[0].parameters())),
        "last": Block("last", tuple(model[4].parameters())),
    }
    model[4].weight.requires_grad_(True)
    hook = SmoothnessHook(
        model, blocks, at=[0, 3], out=tmp_path / "run.jsonl", cross=[("first", "last")], product=product, train=mode
    )  # type: ignore[arg-type]
    watched = train(model, data, hook)
    hook.close()
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    table = records.load(tmp_path / "run.jsonl")
    assert sorted(set(table["step"])) == [0, 3] and len(table) == len(hook.rows) == 14
    assert set(table["block"]) == {"first", "last"}
    with pytest.raises(BadInput, match="exists"):
        SmoothnessHook(model, blocks, at=[0], out=tmp_path / "run.jsonl")


def test_hook_measures_frozen_blocks_and_leaves_them_frozen() -> None:
    model = Quadratic()
    model.x.requires_grad_(False)
    hook = SmoothnessHook(model, model.blocks, at=[0])
    hook(0, model.loss)
    assert {row["block"] for row in hook.rows} == {"x", "y"}
    assert not model.x.requires_grad and model.y.requires_grad


def test_a_hook_refuses_cross_blocks_that_are_not_there() -> None:
    model = nn.Linear(2, 2)
    blocks = [Block("base", tuple(model.parameters()))]
    with pytest.raises(BadInput, match="cross names block 'peft': use two of base, or leave cross out"):
        SmoothnessHook(model, blocks, at=[0], cross=[("base", "peft")])
    assert "weight" not in repr(SmoothnessHook(model, blocks, at=[0]))


def cross_entropy(net: Net) -> Tensor:
    logits, weights = net()
    labels = torch.arange(len(logits)) % logits.shape[1]
    return (weights * nn.functional.cross_entropy(logits, labels, reduction="none")).sum()


def test_layers_and_the_gauss_newton_trace_are_those_of_the_dense_matrices() -> None:
    net = Net(5, 2)
    hook = SmoothnessHook(net, net.blocks, at=[4], layers={layer.name: layer for layer in net.layers}, diagonal=400)
    hook(4, lambda: cross_entropy(net), net)
    units = torch.eye(net.blocks[0].dim, dtype=torch.float64)
    exact = ExactHessian(lambda: cross_entropy(net), net.blocks)
    hessian = torch.stack([exact.product(unit, "all", ["all"])[0] for unit in units])
    cut = net.blocks[0].offset(2)
    rows = {(row["block"], row["wrt"], row["quantity"]): row for row in hook.rows}
    for name, part in (("first", slice(0, cut)), ("last", slice(cut, None))):
        for key, truth in {
            ("all", name, "frobenius"): hessian[part].norm(),
            (name, name, "frobenius"): hessian[part, part].norm(),
            (name, name, "trace"): hessian[part, part].trace(),
            (name, name, "gauss_newton_trace"): torch.tensor(net.truths()[name], dtype=torch.float64),
        }.items():
            row = rows.pop(key)
            z = (row["value"] - float(truth)) / ((row["high"] - row["low"]) / (2 * 1.96))
            assert abs(z) < 4 and row["step"] == 4 and row["loss"] == float(cross_entropy(net).detach())
            assert row["high"] - row["low"] < 0.5 * float(hessian.norm())
            assert row["dim"] == {"all": len(hessian), name: len(hessian[part])}[key[0]]
    assert set(rows) == {("all", "all", name) for name in ("frobenius", "spectral", "trace", "gauss_newton_trace")}


def test_outputs_are_computed_in_the_mode_of_the_loss() -> None:
    """With dropout on in the outputs alone the trace would be that of another function each time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)).double()
    inputs, labels = torch.ones(4, 3).double(), torch.tensor([0, 1, 1, 0])

    def outputs() -> Outputs:
        return Outputs(model(inputs), torch.full((4,), 0.25))

    hook = SmoothnessHook(model, [Block("all", tuple(model.parameters()))], at=[0])
    hook(0, lambda: nn.functional.cross_entropy(model(inputs), labels), outputs)
    p = model.eval()(inputs)[0].softmax(0)  # all items are alike: tr G = (1 - |p|^2) (|x|^2 + 1)
    assert hook.rows[-1]["quantity"] == "gauss_newton_trace"
    assert hook.rows[-1]["value"] == pytest.approx(float((1 - p.square().sum()) * 4), rel=1e-9)


def test_what_a_hook_cannot_split_is_refused_before_the_first_step() -> None:
    net = Net(5, 2)
    for options, message in (
        ({"diagonal": 100}, "100 products for the diagonal norms of layers, and no rows"),
        ({"layers": net.layers, "diagonal": 5}, "5 products for the diagonal norms of the 2 layers of block 'all'"),
        ({"layers": net.layers[:1]}, "is in no layer: give layers that hold the whole block"),
    ):
        with pytest.raises(BadInput, match=message):
            SmoothnessHook(net, net.blocks, at=[0], **options)


def test_rounding_is_measured_at_the_first_point_and_kept() -> None:
    """A later point takes a product less than the same as a first one, and has the same numbers."""
    net, rows = Net(5, 2), []
    for steps in ((0, 1), (1,)):
        hook = SmoothnessHook(net, net.blocks, at=steps)
        for step in steps:
            hook(step, lambda: cross_entropy(net))
        rows.append([row for row in hook.rows if row["step"] == 1])
    for later, first in zip(*rows, strict=True):
        assert later["hvps"] == first["hvps"] - 1
        assert later["value"] == first["value"]
        assert later["floor"] == pytest.approx(first["floor"], rel=1e-9) and later["floor"] > 0


def test_a_point_evaluates_the_loss_once_for_its_padding_its_products_and_its_gradient() -> None:
    """The first evaluation is differentiated; at the first point another repeats it; all others are moved."""
    net, moved = Net(5, 2), []
    start = [p.detach().clone() for p in net.parameters()]

    def loss() -> Tensor:
        moved.append(any(not torch.equal(p, q) for p, q in zip(net.parameters(), start, strict=True)))
        return cross_entropy(net)

    hook = SmoothnessHook(net, net.blocks, at=[0, 1])
    for step, still in ((0, 2), (1, 1)):
        moved.clear()
        hook(step, loss)
        assert moved.count(False) == still and not any(moved[:still])
