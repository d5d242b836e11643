"""The training loop: minibatches, updates, measuring that changes nothing, states that continue to the bit."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block
from smoothlab.divergence import Diverged
from smoothlab.errors import BadInput
from smoothlab.hessian.points import Points
from smoothlab.objectives import objective
from smoothlab.objectives.couplings import QuadraticCoupling
from smoothlab.objectives.psi import Quadratic
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.trainer import Trainer, reshuffled
from smoothlab.zeroth.estimators import ZerothOrder
from tests.experiments.toy import Toy

PATHS = {"hybrid": True, "exact": False}
"""Whether block base is moved by zeroth-order steps."""


def synthetic(zeroth: bool = True, measure: Points | None = None, **options: Any) -> Trainer:
    """A coupled quadratic sum of 6 components, L_x = 4 and L_y = 0.5, trained in minibatches of 2."""
    f = objective(Quadratic(4.0), Quadratic(0.5), QuadraticCoupling(0.1), d_x=5, d_y=3, n=6, sigma=0.2)
    x = torch.ones(5, dtype=torch.float64, requires_grad=True)
    y = torch.ones(3, dtype=torch.float64, requires_grad=True)
    blocks = {"base": Block("base", (x,)), "peft": Block("peft", (y,))}
    oracle = ZerothOrder(mu=1e-3) if zeroth else None
    optimizer = HybridSGD([
        {"params": [x], "lr": 0.02, "name": "base", "oracle": oracle}, {"params": [y], "lr": 0.2, "name": "peft"},
    ])  # fmt: skip

    def loss(f: Any, numbers: list[int]) -> Tensor:
        z = torch.cat([x, y])
        return torch.stack([f.value_of(z, i) for i in numbers]).mean()

    return Trainer(f, blocks, lambda step: [reshuffled(6, 2, 0, step)], loss, optimizer, measure, **options)


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for block in trainer.blocks.values() for p in block.params]


@pytest.mark.parametrize("path", PATHS)
def test_a_synthetic_sum_is_trained_and_its_curvature_is_the_closed_form(path: str) -> None:
    """Hess f = diag(4 I, 0.5 I) + c w w': block x has 4 + c |w_x|^2 once and 4 otherwise, at all points."""
    trainer = synthetic(PATHS[path], steps=40)
    blocks = list(trainer.blocks.values())
    trainer.measure = Points([0, 17, 40], blocks, cross=[("base", "peft")])
    start = float(trainer.minibatch_loss(0)().detach())
    rows = [*trainer.train(40), *trainer.point()]
    assert trainer.step == 40 and float(trainer.minibatch_loss(0)().detach()) < 0.3 * start
    z = torch.cat([p.detach() for block in blocks for p in block.params])
    hessian = trainer.model.hessian(z)
    truth = {("base", "base"): hessian[:5, :5], ("peft", "peft"): hessian[5:, 5:], ("base", "peft"): hessian[5:, :5]}
    seen = Counter((row["step"], row["quantity"]) for row in rows)
    assert seen == {(s, q): n for s in (0, 17, 40) for q, n in
                    (("frobenius", 3), ("spectral", 2), ("trace", 2), ("gradient_lipschitz", 2))}  # fmt: skip
    for row in rows:
        if row["quantity"] == "frobenius":
            pair = tuple(sorted((row["block"], row["wrt"])))
            assert row["value"] == pytest.approx(float(truth[pair].norm()), rel=1e-6), row
        if row["quantity"] == "gradient_lipschitz" and row["block"] == "base":
            assert 3.5 < row["value"] < 5.0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("minibatch", ["step", "fixed"])
def test_measuring_does_not_change_a_run_by_a_bit(path: str, minibatch: Any) -> None:
    plain, measured = (synthetic(PATHS[path], steps=12, schedule="cosine") for _ in range(2))
    points = [0, 3, 4, 12]
    measured.measure = Points(points, list(measured.blocks.values()), protocol="both", probes=3, minibatch=minibatch)
    for _ in range(12):
        plain.update()
    rows = [*measured.train(12), *measured.point()]
    assert [*dict.fromkeys(row["step"] for row in rows)] == points
    assert measured.losses == plain.losses and measured.step == plain.step == 12
    for a, b in zip(weights(plain), weights(measured), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("path", PATHS)
def test_a_state_continues_to_the_bit(path: str) -> None:
    """Within a run and at a point, whose rows are those of a run that was never stopped."""

    def fresh() -> Trainer:
        trainer = synthetic(PATHS[path], steps=10, schedule="linear")
        trainer.measure = Points([2, 7], list(trainer.blocks.values()))
        return trainer

    whole, first, second = fresh(), fresh(), fresh()
    rows = list(whole.train(10))
    early = list(first.train(5))
    second.load_state_dict(first.state_dict())
    assert early + list(second.train(10)) == rows and second.losses == whole.losses
    for a, b in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(a, b)


def test_a_point_is_not_measured_twice_and_without_path_makes_no_update() -> None:
    trainer = synthetic(steps=3)
    trainer.measure = Points([0, 1], list(trainer.blocks.values()), path=False)
    assert len(list(trainer.point())) == 6 and trainer.step == 0 and not trainer.due()
    assert {row["step"] for row in trainer.train(3)} == {1} and trainer.step == 3


def test_an_epoch_visits_every_example_once_in_a_new_order() -> None:
    epochs = [[i for step in range(e * 5, e * 5 + 5) for i in reshuffled(50, 10, 0, step)] for e in range(3)]
    assert all(Counter(epoch) == Counter(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert reshuffled(50, 10, 0, 7) == reshuffled(50, 10, 0, 7) != reshuffled(50, 10, 1, 7)


def test_a_last_incomplete_minibatch_is_left_out() -> None:
    steps = [reshuffled(50, 8, 0, step) for step in range(20)]
    assert {len(numbers) for numbers in steps} == {8} and len({i for numbers in steps[:6] for i in numbers}) == 48


@pytest.mark.parametrize("dropout", [False, True])
def test_an_update_is_plain_sgd_with_a_rate_a_block(dropout: bool) -> None:
    trainer = Toy().setup().trainer(dropout=dropout)
    before = {n: [p.detach().clone() for p in b.params] for n, b in trainer.blocks.items()}
    params = [p for b in trainer.blocks.values() for p in b.params]
    gradients = iter(torch.autograd.grad(trainer.minibatch_loss(0)(), params))
    value = trainer.update()
    assert value == float(Toy().setup().trainer(dropout=dropout).minibatch_loss(0)().detach())
    for name, rate in (("base", 0.2), ("peft", 0.1)):
        for p, old in zip(trainer.blocks[name].params, before[name], strict=True):
            torch.testing.assert_close(p.detach(), old - rate * next(gradients), rtol=1e-14, atol=1e-16)
    assert trainer.step == 1 and trainer.first_loss == value and trainer.losses == [value]


def test_dropout_masks_belong_to_the_step() -> None:
    trainer, plain = Toy().setup().trainer(dropout=True), Toy().setup().trainer()
    assert float(trainer.minibatch_loss(3)()) == float(trainer.minibatch_loss(3)())
    assert float(trainer.minibatch_loss(3)()) != float(plain.minibatch_loss(3)())
    assert trainer.model.training


def test_parts_are_averaged() -> None:
    trainer = synthetic()
    whole, numbers = trainer.minibatch_loss(0)(), reshuffled(6, 2, 0, 0)
    trainer.batches = lambda step: [[number] for number in numbers]
    torch.testing.assert_close(trainer.minibatch_loss(0)(), whole, rtol=1e-15, atol=0)


def overflow(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.blocks["peft"].params[0].fill_(float("inf"))


def far(trainer: Trainer) -> None:
    trainer.optimizer.param_groups[0]["oracle"] = ZerothOrder(mu=1e200)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (overflow, r"the loss is (nan|inf) before training, as peft\.0 holds numbers that are not finite: use other"),
        (far, r"the loss is (nan|inf) at x \+ mu z, and 11 at x: lower --mu \(1e\+200\)"),
    ],
)
def test_what_is_wrong_before_the_first_update_is_named(spoil: Callable[[Trainer], None], words: str) -> None:
    trainer = synthetic()
    spoil(trainer)
    before = weights(trainer)
    with pytest.raises(Diverged, match=words):
        trainer.update()
    assert trainer.step == 0 and all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))


def test_the_option_of_any_other_block_is_named() -> None:
    model = nn.Linear(2, 1).double()
    blocks = {"layer.0": Block("layer.0", (model.weight,)), "peft": Block("peft", (model.bias,))}
    optimizer = HybridSGD([{"params": list(b.params), "lr": 0.5, "name": n} for n, b in blocks.items()])
    trainer = Trainer(model, blocks, lambda step: [step], lambda model, _: model.weight.sum(), optimizer)
    trainer.first_loss = 1.0
    with torch.no_grad():
        model.weight.mul_(100)
    assert "lower --eta layer.0=RATE (0.5); size of the weights" in str(trainer.diverged(math.inf))


def test_weights_of_another_model_and_incomplete_blocks_are_refused() -> None:
    trainer, model = synthetic(), nn.Linear(2, 1)
    kept = trainer.weights()
    with pytest.raises(BadInput, match="the checkpoint's weights are of another model or PEFT method"):
        trainer.load_weights({name: t[:1] for name, t in kept.items()}, 0)
    optimizer = HybridSGD([{"params": [model.weight], "name": "base"}])
    with pytest.raises(BadInput, match="parameter bias is in no block"):
        Trainer(model, {"base": Block("base", (model.weight,))}, len, nn.Module.__call__, optimizer)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="a linear schedule over 0 steps"):
        synthetic(schedule="linear")
