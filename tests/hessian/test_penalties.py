"""What peft adds to the loss that a model computes itself: seen, left out of `smoothness`, and named in every row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smoothlab.blocks import fixed_loss
from smoothlab.hessian.hook import SmoothnessHook
from smoothlab.hessian.penalties import penalty
from smoothlab.llm.adapters import attach
from smoothlab.llm.partition import partition
from smoothlab.llm.peft_methods import MEASURABLE
from tests.cases import started
from tests.llm.tiny import IDS, LABELS, MASK, tiny

BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}


def by_hand(model: nn.Module, batch: dict[str, Tensor] = BATCH) -> Tensor:
    """-mean log p(label), from logits alone."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"]
    return -logits.log_softmax(-1)[range(len(labels)), labels].mean()


def orthogonality(model: nn.Module) -> float:
    """Mean of ||P'P - I||_F over AdaLoRA's factors P, with as many rows or columns as there are ranks."""
    sizes = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            p = p.detach() if "lora_A" in name else p.detach().T
            sizes.append(float((p @ p.T - torch.eye(len(p), dtype=p.dtype)).square().sum().sqrt()))
    return sum(sizes) / len(sizes)


LOSSES: dict[str, tuple[Callable[[nn.Module], Tensor], str, float]] = {
    "included": (lambda model: model(**BATCH).loss, "included", 0.5),
    "left out": (by_hand, "left out", 0.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_hook_names_the_penalty_of_its_loss(name: str) -> None:
    loss, word, weight = LOSSES[name]
    model = attach(tiny("opt"), "adalora", seed=0)
    hook = SmoothnessHook(model, [partition(model)["head"]], at=[0])
    hook(0, lambda: loss(model))
    expected = float(by_hand(model).detach()) + weight * orthogonality(model)
    assert orthogonality(model) > 1
    for row in hook.rows:
        assert row["penalty"] == word and row["loss"] == pytest.approx(expected, rel=1e-12)
    assert model.active_peft_config.orth_reg_weight == 0.5


@pytest.mark.check
def test_smoothness_leaves_the_penalty_out_and_says_so() -> None:
    """Of what it measures, and of what it trains by."""
    from smoothlab.experiments.smoothness import Smoothness

    run = Smoothness(
        model="micro", peft="adalora", measure=("head",), cross=(), steps=0, points=1, precision=0.3, batch=2,
        protocol="both", probes=2,
    )  # fmt: skip
    rows = list(run.rows([]))
    trainer = run.setup().trainer()
    (minibatch,) = trainer.batches(0)
    named = ("input_ids", "attention_mask", "labels")
    value = float(by_hand(trainer.model, {name: minibatch[name] for name in named}).detach())
    assert {row["quantity"] for row in rows} >= {"frobenius", "spectral", "gradient_lipschitz"}
    assert {row["penalty"] for row in rows} == {"left out"}
    assert all(row["loss"] == pytest.approx(value, rel=1e-5) for row in rows)
    assert trainer.update() == pytest.approx(value, rel=1e-5)


@pytest.mark.check
@pytest.mark.parametrize("method", MEASURABLE)
def test_no_other_method_adds_to_the_loss(method: str) -> None:
    """Or `penalty` has to know of it."""
    model = attach(tiny("opt").float(), method, seed=0, **started(method)).double().eval()  # PSOFT starts in fp32
    with torch.no_grad():
        more = float(model(**BATCH).loss - by_hand(model))
    assert (abs(more) > 1e-9) == (method == "adalora")
    names = penalty(fixed_loss(lambda: model(**BATCH).loss, model), model)
    assert names == ({"penalty": "included"} if method == "adalora" else {})


@pytest.mark.check
def test_a_trainers_loss_has_the_penalty_and_says_so(tmp_path: Path) -> None:
    """It is what the Trainer trains by; with a smoothed loss, which it takes of the logits, there is none."""
    transformers = pytest.importorskip("transformers")
    from smoothlab.llm.callback import SmoothnessCallback

    rows: list[Any] = [{name: tensor[i] for name, tensor in BATCH.items()} for i in range(2)]
    for factor, word, weight in ((0.0, "included", 0.5), (0.5, "left out", 0.0)):
        model = attach(tiny("opt"), "adalora", seed=0)
        with torch.no_grad():
            logs = model(input_ids=IDS, attention_mask=MASK).logits.log_softmax(-1)
        expected = float(-(1 - factor) * logs[range(2), LABELS].mean() - factor * logs.mean())
        expected += weight * orthogonality(model)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=1, report_to=[], save_strategy="no",
            use_cpu=True, disable_tqdm=True, label_smoothing_factor=factor,
        )  # fmt: skip
        callback = SmoothnessCallback(at=[0], blocks=["head"])
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
        for row in callback.rows:
            assert row["penalty"] == word and row["loss"] == pytest.approx(expected, rel=1e-6)
