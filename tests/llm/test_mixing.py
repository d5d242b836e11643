"""The weights of the mix follow their formula, survive checkpoints and saving, and move under every optimizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smoothlab.blocks import fixed_loss
from smoothlab.llm import allocators, mixing
from smoothlab.llm.adapters import attach
from smoothlab.llm.evaluate import batch, choice_loss
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.trainer import Trainer
from smoothlab.zeroth.estimators import ZerothOrder
from tests.cases import start_loss
from tests.llm.tiny import IDS, encoded, tiny_lm

ITEMS = encoded("multiple choice")
PARTS = (("lora_skew", "lora_scale"), ("lora_A", "lora_B"))


def mixed() -> nn.Module:
    return attach(tiny_lm("opt"), "boft-ga", seed=0, rank=3, loss=start_loss)


def trainer(steps: int = 8) -> Trainer:
    """A hybrid run: the base model by zeroth order, the module by exact gradients."""
    model = mixed()
    blocks = partition(model)
    optimizer = HybridSGD(
        [
            {"params": blocks["base"].params, "lr": 1e-4, "oracle": ZerothOrder(), "name": "base"},
            {"params": blocks["peft"].params, "lr": 0.05, "name": "peft"},
        ]
    )
    batches = lambda step: [batch(ITEMS, [step % 6, (step + 1) % 6])]  # noqa: E731
    return Trainer(model, blocks, batches, choice_loss, optimizer, steps=steps, allocator=allocators)


def gradient_norms(model: nn.Module) -> dict[str, list[float]]:
    """Norms of the gradients of both parts of each layer, from names alone."""
    squares: dict[str, list[float]] = {}
    for name, p in model.named_parameters():
        for k, members in enumerate(PARTS):
            if p.grad is not None and any(f".{member}." in name for member in members):
                layer = name.partition(".lora_")[0].removeprefix("base_model.model.")
                squares.setdefault(layer, [0.0, 0.0])[k] += float((p.grad.double() ** 2).sum())
    return {layer: [value**0.5 for value in pair] for layer, pair in squares.items()}


def test_weights_follow_the_formula() -> None:
    run = trainer()
    assert set(mixing.weights(run.model).values()) == {(0.5, 0.5)}
    means: dict[str, np.ndarray] = {}
    moved = 0.0
    for _ in range(5):
        before = mixing.weights(run.model)
        run.update()
        for layer, pair in gradient_norms(run.model).items():
            at_weight_one = np.array(pair) / np.array(before[layer])
            means[layer] = at_weight_one if layer not in means else 0.9 * means[layer] + 0.1 * at_weight_one
            expected = means[layer] / means[layer].sum()
            found = mixing.weights(run.model)[layer]
            np.testing.assert_allclose(found, expected, rtol=1e-5)
            assert sum(found) == pytest.approx(1.0, abs=1e-6)
            moved = max(moved, abs(found[0] - 0.5))
    assert len(means) == 4 and moved > 0.05


def test_norms_are_those_at_weight_one() -> None:
    """The same layer with other weights has the same n_p at the start, so that no part feeds its own weight."""
    found = []
    for norms in ([1.0, 1.0], [1.0, 9.0]):
        model = mixed()
        layers = [module for module in model.modules() if hasattr(module, "lora_mix")]
        for layer in layers:
            layer.mix("default").norms.copy_(torch.tensor(norms))
            layer.mix("default").smoothing = 0.0
        start_loss(model).backward()
        mixing.after_step(model)
        found.append(torch.stack([layer.mix("default").norms for layer in layers]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=0)


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole, stopped = trainer(), trainer()
    for _ in range(4):
        whole.update()
        stopped.update()
    other = trainer()
    state = {key: value for key, value in stopped.state_dict().items()}
    other.load_state_dict(state)
    for _ in range(3):
        whole.update()
        other.update()
    assert mixing.weights(whole.model) == mixing.weights(other.model) != mixing.weights(mixed())
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), other.model.parameters(), strict=True))
    allocators.restore(other.model, {})
    assert set(mixing.weights(other.model).values()) == {(0.5, 0.5)}


def test_the_best_weights_have_the_mix_of_their_step() -> None:
    """As selection on dev takes them: after more steps, what is loaded scores as it did."""
    run = trainer()
    for _ in range(3):
        run.update()
    best, mix, loss = run.weights(), mixing.weights(run.model), float(start_loss(run.model).detach())
    for _ in range(3):
        run.update()
    assert mixing.weights(run.model) != mix
    run.load_weights(best, 3)
    assert mixing.weights(run.model) == mix and float(start_loss(run.model).detach()) == loss


def test_weights_are_saved_with_the_module(tmp_path: Path) -> None:
    from peft import PeftModel

    run = trainer()
    for _ in range(3):
        run.optimizer.param_groups[0]["lr"] = 0.0
        run.update()
    run.model.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(tiny_lm("opt"), tmp_path)
    assert mixing.weights(again) == mixing.weights(run.model)


@pytest.mark.parametrize("kind", ["adam", "hybrid"])
def test_an_optimizer_that_is_followed_moves_them(kind: str) -> None:
    model = mixed()
    blocks = partition(model)
    loss = fixed_loss(lambda: start_loss(model), model)
    if kind == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(blocks["peft"].params, lr=1e-3)
        loss().backward()
    else:
        optimizer = HybridSGD([{"params": blocks["peft"].params, "lr": 1e-3, "name": "y"}])
        optimizer.backward(loss)  # type: ignore[attr-defined]
    mixing.follow(model, optimizer)
    optimizer.step()
    assert all(pair != (0.5, 0.5) for pair in mixing.weights(model).values())


@pytest.mark.parametrize("method", ["boft-ga", "lora-ga"])
def test_hybrid_trainer_trains_and_saves(method: str, tmp_path: Path) -> None:
    """It moves the mix's weights after each step, and plain peft loads what it wrote onto the model of before."""
    from peft import PeftModel
    from transformers import TrainingArguments

    from smoothlab import HybridTrainer
    from tests.llm.trainers import examples, language_model, minibatch

    inputs = minibatch(1)
    model: Any = attach(language_model(), method, seed=0, rank=2, loss=lambda model: model(**inputs).loss)
    for p in partition(model)["base"].params:
        p.requires_grad_(False)  # as peft leaves them: HybridTrainer's x is what is frozen
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = HybridTrainer(model, args, train_dataset=examples(), eta_x=1e-3)
    trainer.train()
    moved = mixing.weights(model)
    assert len(moved) == (2 if method == "boft-ga" else 0) and all(pair != (0.5, 0.5) for pair in moved.values())
    trainer.save_model(str(tmp_path / "saved"))
    again: Any = PeftModel.from_pretrained(language_model(), tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)


def test_other_methods_have_no_weights() -> None:
    model = attach(tiny_lm("opt"), "lora", seed=0)
    optimizer = torch.optim.SGD(partition(model)["peft"].params, lr=0.1)
    mixing.follow(model, optimizer)
    mixing.after_step(model)
    allocators.restore(model, {})
    assert mixing.weights(model) == {} and allocators.state(model) == {} and not optimizer._optimizer_step_post_hooks
    assert model(input_ids=IDS).logits.shape[0] == 2
