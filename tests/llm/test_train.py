"""Joint SGD with reshuffling: minibatches, updates, kept weights."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.llm.train import saved_steps, weights_path
from tests.experiments.toy import Toy


def test_an_epoch_visits_every_example_once_in_a_new_order() -> None:
    tuning = Toy(batch=10).tuning()
    epochs = [[i for step in range(e * 5, e * 5 + 5) for i in tuning.minibatch(step)] for e in range(3)]
    assert all(Counter(epoch) == Counter(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert tuning.minibatch(7) == tuning.minibatch(7) != Toy(batch=10, seed=1).tuning().minibatch(7)


def test_a_last_incomplete_minibatch_is_left_out() -> None:
    tuning = Toy(batch=8).tuning()
    assert {len(tuning.minibatch(step)) for step in range(20)} == {8}
    assert len({i for step in range(6) for i in tuning.minibatch(step)}) == 48


@pytest.mark.parametrize("dropout", [False, True])
def test_an_update_is_plain_sgd_with_a_rate_a_block(dropout: bool) -> None:
    tuning = Toy(dropout=dropout).tuning()
    before = {n: [p.detach().clone() for p in b.params] for n, b in tuning.blocks.items()}
    params = [p for b in tuning.blocks.values() for p in b.params]
    gradients = iter(torch.autograd.grad(tuning.loss(0)(), params))
    value = tuning.update()
    assert value == float(Toy(dropout=dropout).tuning().loss(0)().detach())
    for name, rate in (("base", 0.2), ("peft", 0.1)):
        for p, old in zip(tuning.blocks[name].params, before[name], strict=True):
            torch.testing.assert_close(p.detach(), old - rate * next(gradients), rtol=1e-14, atol=1e-16)
    assert tuning.step == 1 and all(p.grad is None for p in params)


def test_dropout_masks_belong_to_the_step() -> None:
    tuning = Toy(dropout=True).tuning()
    assert float(tuning.loss(3)().detach()) == float(tuning.loss(3)().detach())
    eval_loss = Toy().tuning().loss(3)()
    assert float(tuning.loss(3)().detach()) != float(eval_loss.detach())
    assert tuning.model.training


def test_a_loss_that_is_not_finite_leaves_the_weights_alone() -> None:
    tuning = Toy().tuning()
    with torch.no_grad():
        tuning.blocks["peft"].params[0].fill_(float("inf"))
    before = [p.detach().clone() for b in tuning.blocks.values() for p in b.params]
    with pytest.raises(BadInput, match="at step 0: lower --lr"):
        tuning.update()
    after = [p for b in tuning.blocks.values() for p in b.params]
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True)) and tuning.step == 0


def test_weights_come_back_to_the_bit(tmp_path: Path) -> None:
    tuning = Toy().tuning()
    for _ in range(3):
        tuning.update()
    tuning.save(tmp_path)
    assert saved_steps(tmp_path) == [3] and not list(tmp_path.glob("*.partial"))
    other = Toy().tuning()
    other.load(weights_path(tmp_path, 3))
    assert other.step == 3
    pairs = zip(tuning.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_weights_of_another_run_or_broken_ones_are_refused(tmp_path: Path) -> None:
    tuning = Toy().tuning()
    tuning.save(tmp_path)
    path = weights_path(tmp_path, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="cannot read weights .*delete the file"):
        tuning.load(path)
    path.write_bytes(whole)
    other = Toy().tuning()
    other.blocks = {"base": other.blocks["base"]}
    with pytest.raises(BadInput, match="another model"):
        other.load(path)


def test_weights_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--keep-weights"):
        Toy().tuning().save(tmp_path / "file" / "folder")


def test_a_full_disk_is_told_and_leaves_no_half_written_weights(tmp_path: Path) -> None:
    """Files of this process may not grow beyond 1 KiB while the weights are written, as on a disk with no more room."""
    resource = pytest.importorskip("resource")
    tuning, usual = Toy().tuning(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, usual[1]))
    try:
        with pytest.raises(BadInput, match="cannot write .*step-00000000.safetensors: .*; make room"):
            tuning.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not any(tmp_path.iterdir())


def test_other_files_beside_kept_weights_are_passed_over(tmp_path: Path) -> None:
    Toy().tuning().save(tmp_path)
    for name in ("step-.safetensors", "step-last.safetensors", "step-3.partial", "notes.txt"):
        (tmp_path / name).touch()
    assert saved_steps(tmp_path) == [0]


@pytest.mark.parametrize("rate", [1e39, float("nan"), float("inf"), -1.0])
def test_a_rate_that_the_weights_cannot_be_moved_by_is_refused(rate: float) -> None:
    """1e39 is beyond fp32; torch itself raises only at the first update."""
    from smoothlab.llm.train import FineTuning

    toy = Toy().tuning()
    model = toy.model.float()
    blocks = {name: Block(name, block.params) for name, block in toy.blocks.items()}
    with pytest.raises(BadInput, match="learning rate .* of block 'peft': use a rate of torch.float32, at least 0"):
        FineTuning(model, blocks, toy.examples, 50, 8, {"base": 0.1, "peft": rate})


def test_a_rate_for_no_block_and_a_trainable_parameter_in_no_block_are_refused() -> None:
    from smoothlab.llm.train import FineTuning

    good = Toy().tuning()
    with pytest.raises(BadInput, match="learning rate for unknown block 'bass'"):
        FineTuning(good.model, good.blocks, good.examples, 50, 8, {"base": 0.1, "peft": 0.1, "bass": 1.0})
    with pytest.raises(BadInput, match="peft.weight is in no block"):
        FineTuning(good.model, {"base": good.blocks["base"]}, good.examples, 50, 8, {"base": 0.1})
    short = {"base": good.blocks["base"], "peft": Block("peft", (good.model.peft.weight,))}  # type: ignore[union-attr]
    with pytest.raises(BadInput, match="peft.bias is in no block"):
        FineTuning(good.model, short, good.examples, 50, 8, {"base": 0.1, "peft": 0.1})


def test_weights_of_another_run_do_not_pass_for_this_ones(tmp_path: Path) -> None:
    tuning = Toy().tuning()
    tuning.save(tmp_path, "lr=0.1")
    path = weights_path(tmp_path, 0)
    tuning.load(path, "lr=0.1")
    tuning.load(path)
    with pytest.raises(BadInput, match=r"kept by another run \(lr=0.1, this one is lr=0.2\): name another"):
        tuning.load(path, "lr=0.2")


def test_weights_of_another_run_are_not_replaced(tmp_path: Path) -> None:
    tuning = Toy().tuning()
    tuning.save(tmp_path, "lr=0.1")
    path = weights_path(tmp_path, 0)
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"kept by another run \(lr=0.1, this one is lr=0.2\): name another"):
        tuning.save(tmp_path, "lr=0.2")
    assert path.read_bytes() == before
    path.write_bytes(before[:50])  # nobody's
    tuning.save(tmp_path, "lr=0.2")
    tuning.load(path, "lr=0.2")


def test_kept_weights_with_a_flipped_bit_are_refused_and_those_of_before_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tuning = Toy().tuning()
    tuning.save(tmp_path, "lr=0.1")
    path = weights_path(tmp_path, 0)
    content = path.read_bytes()
    for place in (len(content) - 3, len(content) // 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(BadInput, match="^cannot read weights .*; delete the file, and go on$"):
            tuning.load(path)
    moved = {name: tensor + 1 for name, tensor in tuning._named().items()}
    save_file(moved, path, metadata={"step": "0", "run": "lr=0.1"})
    tuning.load(path, "lr=0.1")
    assert all(torch.equal(tensor, moved[name]) for name, tensor in tuning._named().items())
    with pytest.raises(BadInput, match="kept by another run"):
        tuning.load(path, "lr=0.2")
