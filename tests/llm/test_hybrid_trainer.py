"""HybridTrainer against smoothlab's own Trainer, against transformers' Trainer, and as others load what it writes."""

import gc
import os
import random
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import (
    AutoPeftModelForCausalLM,
    CartridgeConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, TrainingArguments

from smoothlab import HybridSGD, HybridTrainer, LowRank, SmoothnessCallback, ZerothOrder
from smoothlab import Trainer as OwnTrainer
from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.llm.heads import blocks
from smoothlab.llm.hybrid_trainer import HybridMixin
from smoothlab.llm.hybrid_trainer import _Minibatches as Minibatches
from tests.llm.tiny import tiny_lm
from tests.llm.trainers import (
    BATCH,
    CASES,
    Annealed,
    Case,
    Ordered,
    OtherSignature,
    TwiceAStep,
    examples,
    language_model,
    minibatch,
)

ROOT = Path(__file__).resolve().parents[2]
ETA_X, ETA_Y, CLIP, SEED = 1e-2, 1e-2, 0.05, 7
CHECK = pytest.mark.check


class OrderedHybrid(HybridMixin, Ordered):  # type: ignore[misc]
    """Trains on the rows in order."""


@pytest.fixture(scope="module", autouse=True)
def _no_garbage() -> Iterator[None]:
    """accelerate collects garbage whenever a Trainer starts: a second each time, as it goes through all modules."""
    gc.freeze()
    yield
    gc.unfreeze()


def lora(kind: str, dtype: torch.dtype = torch.float32, dropout: float = 0.1, folder: Path | None = None) -> Any:
    """A tiny model with LoRA, whose base model has a name if it was saved to a folder."""
    base: Any = tiny_lm(kind).to(dtype)
    if folder is not None:
        base.save_pretrained(folder)
        base = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(base, config)


def arguments(folder: Path, **more: Any) -> Any:
    """Four steps with a rate that falls linearly, and a gradient that is clipped."""
    given: dict[str, Any] = {
        "per_device_train_batch_size": BATCH, "max_steps": 4, "learning_rate": ETA_Y, "max_grad_norm": CLIP,
        "seed": SEED, "report_to": [], "save_strategy": "no", "logging_steps": 1, "use_cpu": True,
        "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **given | more)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(name == name_too and torch.equal(p, q) for (name, p), (name_too, q) in pairs)


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize(("k", "sides"), [(1, 2), (3, 1)])
def test_a_run_is_smoothlabs_own_to_the_bit(kind: str, k: int, sides: Any, tmp_path: Path) -> None:
    """On the same minibatches, with AdamW, clipping, a schedule, and dropout where there is one mask a step."""
    dropout = 0.1 if k == 1 else 0.0
    args, oracle = arguments(tmp_path, gradient_accumulation_steps=k, max_steps=2), ZerothOrder(1e-3, sides)
    mine = OrderedHybrid(lora(kind, dropout=dropout), args, train_dataset=examples(), eta_x=ETA_X, oracle=oracle)
    mine.train()

    model = lora(kind, dropout=dropout).requires_grad_(True)
    parts = blocks(model, base=True, module=True)
    adam, options = transformers.Trainer.get_optimizer_cls_and_kwargs(args)
    groups = [
        {"params": parts["peft"].params, "lr": ETA_Y, "name": "y", "weight_decay": 0.0},
        {"params": parts["base"].params, "lr": ETA_X, "name": "x", "oracle": ZerothOrder(1e-3, sides)},
    ]
    optimizer = HybridSGD(groups, seed=SEED, clip=CLIP, exact=lambda groups: adam(groups, **options))

    def batches(step: int) -> list[tuple[dict[str, Tensor], Tensor]]:
        chosen = [minibatch(step * k + i) for i in range(k)]
        count = mine.get_batch_samples(iter(chosen), k, "cpu")[1]  # versions of transformers count otherwise
        return [(batch, count) for batch in chosen]

    def loss(model: Any, part: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        """A share of the mean over all targets of the step, k times."""
        batch, count = part
        return k * model(**batch, num_items_in_batch=count).loss

    own = OwnTrainer(model, parts, batches, loss, optimizer, steps=2, schedule="linear", seed=SEED, dropout=True)
    list(own.train(2))
    assert own.optimizer.last is not None and own.optimizer.last.norm is not None
    assert own.optimizer.last.norm > CLIP, "nothing would be clipped"
    assert same_weights(mine.model, model) and not same_weights(model, lora(kind))
    logs = [row for row in mine.state.log_history if "loss" in row]
    assert [row["loss"] for row in logs] == pytest.approx(own.losses, rel=1e-6)
    assert [row["eta_x"] for row in logs] == [ETA_X, ETA_X / 2]
    assert [row["learning_rate"] for row in logs] == [ETA_Y, ETA_Y / 2]


TINY_BERT = {
    "vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TINY_OPT = {
    "vocab_size": 99, "hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "ffn_dim": 32, "dropout": 0.0, "pad_token_id": 1,
}  # fmt: skip
MEANS: dict[str, tuple[dict[str, Any], bool]] = {  # configuration, and whether a Trainer takes k times the mean
    "OPTForSequenceClassification": (TINY_OPT, True),
    "BertForMaskedLM": (TINY_BERT, True),
    "OPTForCausalLM": (TINY_OPT, False),
}


@pytest.mark.parametrize("name", MEANS)
def test_minibatches_that_are_accumulated_make_the_step_of_their_mean(name: str, tmp_path: Path) -> None:
    """Also where the model takes num_items_in_batch and does not divide by it."""
    settings, inflated = MEANS[name]
    kind = getattr(transformers, name)
    tokens = torch.randint(3, 99, (8, 6), generator=torch.Generator().manual_seed(0))
    labels = tokens
    if "Classification" in name:
        labels = tokens[:, 0] % 2
    rows = [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]

    def steps(trainer: type, k: int) -> Tensor:
        """The change of the head and of the weights below it after one step with k minibatches."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(kind.config_class(**settings))
        head, body = [], []
        for n, p in model.named_parameters():
            (head if n.startswith(("score", "cls")) else body).append(p)
        start = torch.cat([p.detach().flatten().clone() for p in (*body, *head)])
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-2)
        if trainer is HybridTrainer:
            groups: list[dict[str, Any]] = [{"params": body, "lr": 1e-3, "oracle": ZerothOrder(), "name": "x"}]
            if head:
                groups.append({"params": head, "lr": 1e-2})
            optimizer = HybridSGD(groups, seed=SEED)
        args = arguments(
            tmp_path, per_device_train_batch_size=8 // k, gradient_accumulation_steps=k, max_steps=1, max_grad_norm=0.0
        )
        trainer(model, args, train_dataset=rows, optimizers=(optimizer, None)).train()
        return torch.cat([p.detach().flatten() for p in (*body, *head)]) - start

    def ratio(trainer: type) -> float:
        return float(steps(trainer, 4).norm() / steps(trainer, 1).norm())

    assert ratio(transformers.Trainer) == pytest.approx(4.0 if inflated else 1.0, rel=1e-3), "see transformers #47688"
    if not inflated:
        assert ratio(HybridTrainer) == pytest.approx(1.0, rel=1e-3)
        return
    with pytest.warns(UserWarning, match=f"{name} takes num_items_in_batch and does not use it"):
        assert ratio(HybridTrainer) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("coefficient", [0.0, 0.02])
def test_router_losses_that_accumulation_sums_are_said(coefficient: float, tmp_path: Path) -> None:
    """What a model adds to its share of the mean loss is told from two counts of targets."""
    k = 2
    tokens = torch.randint(3, 99, (4, 6), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    config = transformers.MixtralConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=coefficient,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MixtralForCausalLM(config)
    with torch.no_grad():
        parts = [model(input_ids=part, labels=part) for part in tokens.chunk(k)]
    mean = sum(float(part.loss) for part in parts) / k
    summed = sum(float(part.aux_loss) for part in parts) * coefficient
    assert mean - summed / k > 1, "the share of the tokens' loss is to be the larger one"
    # The loss that is logged is the mean of f at x + mu z and x - mu z.
    groups = [{"params": list(model.parameters()), "lr": 0.0, "oracle": ZerothOrder(1e-5)}]
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=k, max_steps=1)
    trainer = OrderedHybrid(model, args, train_dataset=rows, optimizers=(HybridSGD(groups, seed=SEED), None))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(warning.message) for warning in caught if "router_aux_loss_coef" in str(warning.message)]
    logged = trainer.state.log_history[0]["loss"]
    assert logged == pytest.approx(mean + summed * (1 - 1 / k), rel=1e-5), "not what a Trainer sums"
    if not coefficient:
        assert not said
        return
    (message,) = said
    first = float(parts[0].aux_loss) * coefficient
    assert message.startswith(f"MixtralForCausalLM adds {first:.3g}, as"), message
    assert f"counts {k} times: divide its coefficient (router_aux_loss_coef) by {k}" in message


class Gradients(transformers.TrainerCallback):  # type: ignore[misc]
    """The gradient of every parameter that has one, before each update."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        named = model.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def without_dropout() -> Any:
    model: Any = language_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    return model


def first_step(folder: Path, case: Case, trainer: type, optimizer: Any = None, model: Any = None) -> Any:
    """The case's Trainer after one step with clipping off, and the gradients before its update."""
    model, gradients = model or without_dropout(), Gradients()
    case.model(model)
    args = arguments(
        folder, gradient_accumulation_steps=case.k, max_steps=1, max_grad_norm=0.0, remove_unused_columns=False,
        **case.arguments,
    )  # fmt: skip
    running = trainer(
        model, args, train_dataset=examples(), eval_dataset=examples()[:3], callbacks=[gradients],
        optimizers=(optimizer, None), **case.options,
    )  # fmt: skip
    case.prepare(running)
    running.train()
    return running, gradients.steps[0]


@pytest.mark.parametrize(
    "name", [name if i % 5 == 1 else pytest.param(name, marks=CHECK) for i, name in enumerate(CASES)]
)
def test_both_gradients_are_of_the_loss_by_which_the_trainer_trains(name: str, tmp_path: Path) -> None:
    """Loss functions, overrides, label smoothing: the plain Trainer's gradient is y's, and along z the slope of x's."""
    case = CASES[name]
    plain, expected = first_step(tmp_path, case, case.trainer)
    # Of a model that ignores the count the plain Trainer takes k times the mean, and HybridTrainer the mean.
    inflated = case.k if name == "that ignores the count" else 1
    expected = {key: gradient / inflated for key, gradient in expected.items()}
    model = without_dropout()
    head = [p for name, p in model.named_parameters() if name.startswith("lm_head")]
    body = [(name, p) for name, p in model.named_parameters() if not name.startswith("lm_head")]
    x, oracle = [p for _, p in body], ZerothOrder(1e-3)
    optimizer = HybridSGD([{"params": x, "lr": 0.0, "oracle": oracle, "name": "x"}, {"params": head, "lr": 0.0}])
    hybrid = type("Hybrid", (HybridMixin, case.trainer), {})
    mine, gradients = first_step(tmp_path, case, hybrid, optimizer, model)
    assert set(gradients) == {"lm_head.weight"}
    torch.testing.assert_close(gradients["lm_head.weight"], expected["lm_head.weight"], rtol=1e-4, atol=1e-6)
    ((seed, slope),) = optimizer.last.gradients["x"].terms  # type: ignore[union-attr]
    z = oracle.distribution.draw(Block("x", tuple(x)), seed)
    truth = torch.cat([expected[name].flatten() for name, _ in body]) @ z
    assert slope == pytest.approx(float(truth), rel=0.01, abs=1e-3)
    losses = [[row["loss"] for row in each.state.log_history if "loss" in row] for each in (mine, plain)]
    # That Trainer's training_step divides what it differentiates by k, and returns what it did not divide.
    factor = case.k if case.trainer is OtherSignature else 1
    assert factor * losses[0][0] == pytest.approx(losses[1][0] / inflated, rel=1e-5)


@pytest.mark.parametrize("has_exact", [True, False])
def test_a_trainer_that_keeps_metrics_counts_each_minibatch_once(has_exact: bool, tmp_path: Path) -> None:
    """Its loss depends on its count of calls, and on inputs that it writes to. Measuring does not count either."""
    case = Case(trainer=Annealed)
    plain, expected = first_step(tmp_path, case, Annealed)
    hybrid = type("Hybrid", (HybridMixin, Annealed), {})
    model = without_dropout()
    groups = [{"params": list(model.model.parameters()), "oracle": ZerothOrder(), "lr": 0.0}]
    if has_exact:
        groups.append({"params": list(model.lm_head.parameters()), "lr": 0.0})
    case = Case(trainer=Annealed, prepare=lambda trainer: trainer.add_callback(SmoothnessCallback([0], precision=0.5)))
    mine, gradients = first_step(tmp_path, case, hybrid, HybridSGD(groups), model)
    assert mine.counts == plain.counts == {"calls": case.k}
    assert len(mine.metrics["train"]["loss"]) == case.k
    assert mine.state.log_history[case.k]["loss"] == pytest.approx(plain.state.log_history[case.k]["loss"], rel=1e-5)
    if has_exact:
        torch.testing.assert_close(gradients["lm_head.weight"], expected["lm_head.weight"], rtol=1e-4, atol=1e-6)


class Noisy(Ordered):
    """Its loss is multiplied by random numbers of Python, NumPy and torch."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * (1 + random.random() + np.random.rand() + torch.rand(()))


def test_random_numbers_are_those_of_a_minibatch_of_a_step(tmp_path: Path) -> None:
    """The same in all evaluations, and others for each minibatch and step; the run's own are left alone."""
    hybrid = type("Hybrid", (HybridMixin, Noisy), {})
    trainer = hybrid(lora("llama", dropout=0.5), arguments(tmp_path), train_dataset=examples())
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 2  # as the training loop sets it
    before, values = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()), []
    for step in (0, 1):
        trainer.state.global_step = step
        minibatches = Minibatches(trainer)
        for _ in range(2):
            minibatches.add(trainer.model, minibatch(0), None)
        losses = minibatches.losses()
        with torch.no_grad():
            first, again = ([float(loss()) for loss in losses] for _ in range(2))
        assert first == again
        values += first
    assert len(set(values)) == 4
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("dtype", "more"),
    [
        (torch.float32, {"gradient_accumulation_steps": 2}),
        pytest.param(torch.float32, {"lr_scheduler_type": "cosine", "optim": "sgd", "weight_decay": 0.1}, marks=CHECK),
        pytest.param(torch.float32, {"bf16": True}, marks=CHECK),
        pytest.param(torch.bfloat16, {}, marks=CHECK),
    ],
    ids=["accumulated", "sgd", "autocast", "masters"],
)
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(
    dtype: torch.dtype, more: Mapping[str, Any], tmp_path: Path
) -> None:
    def trainer(folder: Path) -> Any:
        args = arguments(folder, **{"save_strategy": "steps", "save_steps": 2, "max_steps": 5} | dict(more))
        oracle = ZerothOrder(1e-3 if dtype == torch.float32 else 0.05)
        return HybridTrainer(lora("llama", dtype), args, train_dataset=examples(), eta_x=ETA_X, oracle=oracle)

    whole, again = trainer(tmp_path), trainer(tmp_path / "again")
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same_weights(whole.model, again.model)
    rows = [
        [(row["loss"], row["grad_norm"], row["eta_x"]) for row in each.state.log_history if "loss" in row]
        for each in (whole, again)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 5
    states = [each.optimizer.state_dict() for each in (whole, again)]
    assert states[0]["steps"] == states[1]["steps"] == 5
    assert (states[0]["masters"] != {}) == (dtype == torch.bfloat16)


def test_rows_grouped_by_length_keep_their_order_in_a_run_that_is_resumed_within_an_epoch(tmp_path: Path) -> None:
    """The second epoch's order is another one than the first's, and the same after a stop in its middle."""
    more = {"train_sampling_strategy": "group_by_length", "max_steps": 8, "save_strategy": "steps", "save_steps": 5}
    seen: dict[str, list[Tensor]] = {}

    def run(name: str, checkpoint: Path | None = None) -> Any:
        batches = seen[name] = []

        def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            batches.append(torch.stack([row["input_ids"] for row in rows]))
            return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

        args = arguments(tmp_path / name, **more)
        model = lora("llama")
        trainer = HybridTrainer(model, args, train_dataset=examples()[:8], eta_x=ETA_X, data_collator=collate)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return model

    whole = run("whole")
    again = run("again", tmp_path / "whole" / "checkpoint-5")
    assert all(torch.equal(one, other) for one, other in zip(seen["whole"][5:], seen["again"][-3:], strict=True))
    assert not torch.equal(torch.cat(seen["whole"][:4]), torch.cat(seen["whole"][4:]))
    assert same_weights(whole, again)


def test_what_is_saved_is_what_plain_peft_and_transformers_load(tmp_path: Path) -> None:
    """The last weights, and the best ones, which are loaded at the end of training."""
    model = lora("llama", folder=tmp_path / "base")
    args = arguments(
        tmp_path / "run", eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=3,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=True, learning_rate=0.1,
    )  # fmt: skip
    trainer = HybridTrainer(model, args, train_dataset=examples(), eval_dataset=examples()[:4], eta_x=1e-3)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    scores = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert trainer.evaluate()["eval_loss"] == max(scores) != before
    assert trainer.state.best_global_step == 1 + scores.index(max(scores))
    trainer.save_model(str(tmp_path / "saved"))
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md", "training_args.bin"}
    tokens = minibatch(0)["input_ids"]
    expected = model.eval()(input_ids=tokens).logits
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert not torch.equal(base(input_ids=tokens).logits, expected)
    with model.disable_adapter():
        assert not torch.equal(base(input_ids=tokens).logits, model(input_ids=tokens).logits), "base model was trained"
    for loaded in (
        PeftModel.from_pretrained(base, str(tmp_path / "saved")),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved"),
    ):
        assert torch.equal(loaded.eval()(input_ids=tokens).logits, expected)


def test_evaluation_and_prediction_are_transformers(tmp_path: Path) -> None:
    """Also between steps, and without training: no weight moves."""
    model = lora("opt")
    hybrid = HybridTrainer(model, arguments(tmp_path), eval_dataset=examples()[:4])
    plain = transformers.Trainer(model, arguments(tmp_path), eval_dataset=examples()[:4])
    assert hybrid.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    predictions = [each.predict(examples()[:4]).predictions for each in (hybrid, plain)]
    assert (predictions[0] == predictions[1]).all()
    assert same_weights(model, lora("opt"))


def test_a_model_without_a_module_takes_zeroth_order_steps_alone(tmp_path: Path) -> None:
    """What is frozen stays so."""
    model: Any = tiny_lm("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    for _ in range(2):  # a second Trainer of the same model does the same
        trainer = OrderedHybrid(model, arguments(tmp_path), train_dataset=examples(), eta_x=ETA_X)
        trainer.train()
        assert [group["name"] for group in trainer.optimizer.param_groups] == ["base"]
    start: Any = tiny_lm("llama")
    moved = {name for (name, p), q in zip(model.named_parameters(), start.parameters(), strict=True) if (p != q).any()}
    assert moved == {name for name, _ in model.named_parameters()} - {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("schedule", "name"), [("cosine_with_min_lr", "min_lr"), ("polynomial", "lr_end")], ids=lambda value: str(value)
)
@pytest.mark.parametrize("module", [True, False], ids=["beside a module", "alone"])
def test_a_floor_of_the_schedule_is_where_the_modules_rate_ends(
    module: bool, schedule: str, name: str, tmp_path: Path
) -> None:
    """Without a module it is where eta_x ends; beside one, eta_x falls by the same factor."""
    first = ETA_Y if module else ETA_X
    args = arguments(tmp_path, lr_scheduler_type=schedule, lr_scheduler_kwargs={name: first / 8})
    model = lora("llama") if module else tiny_lm("llama")
    trainer = OrderedHybrid(model, args, train_dataset=examples(), eta_x=ETA_X)
    trainer.train()
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates.pop("base") == pytest.approx(ETA_X / 8, rel=1e-9)
    assert list(rates.values()) == [pytest.approx(ETA_Y / 8, rel=1e-9)] * module


def test_what_was_unfrozen_beside_a_module_has_exact_gradients(tmp_path: Path) -> None:
    """Every parameter is in one group, and each of them is moved."""
    model = lora("llama")
    norms = {name for name, p in model.named_parameters() if "norm" in name and p.requires_grad_(True) is p}
    trainer = OrderedHybrid(model, arguments(tmp_path, weight_decay=0.1), train_dataset=examples(), eta_x=ETA_X)
    trainer.train()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups]
    decayed, plain, base = groups
    assert decayed == {name for name in names.values() if ".lora_" in name} and plain == norms != set()
    assert sum(map(len, groups)) == len(names) and decayed | plain | base == set(names.values())
    assert not any((p == q).all() for p, q in zip(model.parameters(), lora("llama").parameters(), strict=True))


def test_curvature_is_measured_along_a_hybrid_run_that_stays_the_same(tmp_path: Path) -> None:
    models = lora("llama"), lora("llama")
    callback = SmoothnessCallback(at=[1], precision=0.3, cross=[("base", "peft")])
    for model, callbacks in zip(models, ([], [callback]), strict=True):
        args = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=2)
        trainer = OrderedHybrid(model, args, train_dataset=examples(), eta_x=ETA_X, callbacks=callbacks)
        trainer.train()
    assert {row["block"] for row in callback.rows if row["quantity"] == "frobenius"} >= {"base", "peft"}
    assert same_weights(*models)


def prefixed_bert(method: str) -> Any:
    """A BERT classifier, which takes rows without padding in train mode whether a prefix is there or not."""
    shape = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = transformers.BertForSequenceClassification(transformers.BertConfig(**shape, intermediate_size=8))
    kind = {"PREFIX_TUNING": PrefixTuningConfig, "CARTRIDGE": CartridgeConfig}[method]
    return get_peft_model(base, kind(num_virtual_tokens=3, task_type="SEQ_CLS"))


@pytest.mark.parametrize("method", ["PREFIX_TUNING", "CARTRIDGE"])
@pytest.mark.parametrize("by", ["arguments", "model"])
def test_a_prefix_under_gradient_checkpointing_is_refused(method: str, by: str, tmp_path: Path) -> None:
    """The layers would drop it: a BERT would be trained without its prefix, in silence."""
    model = prefixed_bert(method)
    if by == "model":
        model.get_base_model().gradient_checkpointing_enable()
    args = arguments(tmp_path, gradient_checkpointing=by == "arguments", max_steps=1)
    rows = [{"input_ids": row["input_ids"], "labels": torch.tensor(i % 2)} for i, row in enumerate(examples())]
    with pytest.raises(BadInput, match=f"drops the virtual tokens of {method} in train mode: train without it"):
        HybridTrainer(model, args, train_dataset=rows).train()


def test_a_prefix_without_gradient_checkpointing_is_trained(tmp_path: Path) -> None:
    model = prefixed_bert("PREFIX_TUNING")
    before = model.prompt_encoder["default"].embedding.weight.detach().clone()
    rows = [{"input_ids": row["input_ids"], "labels": torch.tensor(i % 2)} for i, row in enumerate(examples())]
    HybridTrainer(model, arguments(tmp_path, max_steps=1), train_dataset=rows).train()
    assert not torch.equal(model.prompt_encoder["default"].embedding.weight, before)


@pytest.mark.parametrize("case", ["plain", "other optimizer", "factors", "fp16", "psoft", "own backward"])
def test_what_cannot_be_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    args, kind = arguments(tmp_path), OrderedHybrid
    model, optimizer, words = lora("llama"), None, ""
    if case == "plain":
        kind, optimizer = Ordered, HybridSGD([{"params": list(model.parameters()), "oracle": ZerothOrder()}])
        words = r"HybridSGD.step\(\) got no closure: .* in place of a transformers.Trainer use smoothlab.HybridTrainer"
    elif case == "other optimizer":
        optimizer = torch.optim.SGD(model.parameters())
        words = "HybridTrainer got SGD as its optimizer: leave optimizers out, or give a HybridSGD"
    elif case == "factors":
        oracle = ZerothOrder(distribution=LowRank(1), perturb="forward")
        model = model.bfloat16()
        optimizer = HybridSGD([{"params": list(model.parameters()), "oracle": oracle}], masters="factors")
        words = "HybridTrainer got masters 'factors': use fp32 masters, or smoothlab.Trainer"
    elif case == "fp16":
        args.fp16, words = True, "fp16=True scales the loss, .* use bf16=True"
    elif case == "psoft":
        from peft import PsoftConfig

        model = get_peft_model(tiny_lm("llama"), PsoftConfig(r=4, target_modules=["q_proj"]))
        words = "PSOFT cannot be loaded onto a trained base model: use LoRA"
    else:
        kind = type("Hybrid", (HybridMixin, OwnBackward), {})
        words = "Hybrid.training_step never calls accelerator.backward, .* let it call that, or override compute_loss"
    with pytest.raises(BadInput, match=words) as error:
        kind(model, args, train_dataset=examples(), optimizers=(optimizer, None)).train()
    assert "\n" not in str(error.value)


class OwnBackward(Ordered):
    """Computes its loss and differentiates it by itself."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        return self.compute_loss(model, self._prepare_inputs(inputs))


SCRIPT = """
import gc, sys
from pathlib import Path
from smoothlab.llm.hybrid_trainer import HybridMixin
from smoothlab.llm.hybrid_trainer import _Minibatches as Minibatches
from tests.llm.test_hybrid_trainer import ETA_X, OrderedHybrid, arguments, examples, lora
trainer = OrderedHybrid(lora("llama", dropout=0.1), arguments(Path(sys.argv[1])), train_dataset=examples(), eta_x=ETA_X)
trainer.train()
trainer.save_model(sys.argv[1] + "/saved")
"""


@CHECK
def test_two_processes_take_the_steps_of_one_that_accumulates_two_minibatches(tmp_path: Path) -> None:
    """To the bit, dropout masks too."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path)], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    args = arguments(tmp_path / "one", gradient_accumulation_steps=2)
    one = OrderedHybrid(lora("llama"), args, train_dataset=examples(), eta_x=ETA_X)
    one.train()
    two = PeftModel.from_pretrained(tiny_lm("llama"), str(tmp_path / "saved"))
    assert same_weights(one.model, two) and not same_weights(one.model, lora("llama"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_trainer_with_two_losses_a_minibatch_trains_by_the_one_that_it_hands_on(tmp_path: Path) -> None:
    models = lora("llama", dropout=0.0), lora("llama", dropout=0.0)
    for model, kind in zip(models, (Ordered, TwiceAStep), strict=True):
        hybrid = type("Hybrid", (HybridMixin, kind), {})
        hybrid(model, arguments(tmp_path), train_dataset=examples(), eta_x=ETA_X).train()
    assert same_weights(*models)
