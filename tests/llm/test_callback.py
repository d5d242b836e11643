"""SmoothnessCallback in a real transformers.Trainer, against losses written out by hand and training without it."""

import gc
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab import records
from smoothlab.blocks import fixed_loss
from smoothlab.errors import BadInput
from smoothlab.hessian.trajectory import estimated
from smoothlab.llm import distributed
from smoothlab.llm.partition import partition

pytest.importorskip("accelerate")

from smoothlab.llm.callback import SmoothnessCallback
from tests.llm.trainers import (
    CASES,
    Annealed,
    Case,
    ClassWeights,
    DividedByHand,
    Gathers,
    K,
    TwiceAStep,
    Weights,
    language_model,
    mean_loss,
    minibatch,
    tokens_mean,
    trained,
    weighted,
)

PRECISION = 0.3
LONGER = pytest.mark.check


@pytest.fixture(scope="module", autouse=True)
def _no_garbage() -> Iterator[None]:
    """accelerate collects garbage whenever a Trainer starts: a second each time, as it goes through all modules."""
    gc.freeze()
    yield
    gc.unfreeze()


def reference(
    weights: Mapping[str, Tensor],
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
    batch: Any,
    step: int,
    product: Any = "exact",
) -> list[dict[str, Any]]:
    """Rows of a loss that is written out by hand, at such weights."""
    model = language_model()
    model.load_state_dict(weights)
    blocks = list(partition(model).values())
    model.requires_grad_(True)
    return list(
        estimated(
            fixed_loss(lambda: loss(model, batch), model), blocks, product=product, precision=PRECISION, seed=(0, step)
        )
    )


def same(rows: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], rounding: float = 1e-4) -> None:
    """Losses, gradients and norms agree up to fp32 rounding; every fault of the kind is of a tenth or more."""
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected, strict=True):
        assert row["quantity"] == other["quantity"] and row["block"] == other["block"]
        for name in ("loss", "grad_norm", "value"):
            assert row[name] == pytest.approx(other[name], rel=rounding), (name, row["quantity"])


@pytest.mark.parametrize("name", [name if i < 3 else pytest.param(name, marks=LONGER) for i, name in enumerate(CASES)])
def test_the_loss_is_the_trainers_own_of_one_minibatch(tmp_path: Path, name: str) -> None:
    """k = 4: the minibatch of the second update is the eighth, and its loss is a mean over its own targets."""
    case, weights = CASES[name], Weights()
    callback = SmoothnessCallback(at=[1], precision=PRECISION)
    trained(tmp_path, case, [weights, callback])
    same(callback.rows, reference(weights.steps[1], case.loss, minibatch(2 * case.k - 1), 1))


@LONGER
def test_the_last_accumulation_of_an_epoch_may_be_incomplete(tmp_path: Path) -> None:
    """10 minibatches: updates 0 and 1 take four each, update 2 the last two, and update 3 begins again."""
    weights, callback = Weights(), SmoothnessCallback(at=[2, 3], precision=PRECISION)
    trained(tmp_path, Case(trainer=DividedByHand), [weights, callback], steps=4)
    for step, number in ((2, 9), (3, 3)):
        rows = [row for row in callback.rows if row["step"] == step]
        same(rows, reference(weights.steps[step], mean_loss, minibatch(number), step))


@LONGER
def test_autocast_is_the_trainers(tmp_path: Path) -> None:
    """In bf16 the model computes with 8 bits and gives its logits in fp32."""
    weights, callback = Weights(), SmoothnessCallback(at=[0], precision=PRECISION)
    trained(tmp_path, Case(weighted, ClassWeights, arguments={"bf16": True}), [weights, callback], steps=1)

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        def cast(**inputs: Tensor) -> SimpleNamespace:
            with torch.autocast("cpu", torch.bfloat16):
                return SimpleNamespace(logits=model(**inputs).logits.float())

        return weighted(cast, batch)  # type: ignore[arg-type]

    expected = reference(weights.steps[0], loss, minibatch(K - 1), 0)
    same(callback.rows, expected)
    plain = reference(weights.steps[0], weighted, minibatch(K - 1), 0)
    assert plain[0]["loss"] != pytest.approx(expected[0]["loss"], rel=1e-4)


@LONGER
def test_a_minibatch_in_place_of_the_steps_own_and_two_callbacks(tmp_path: Path) -> None:
    weights = Weights()
    first = SmoothnessCallback(at=[0], precision=PRECISION, minibatch=minibatch(7))
    second = SmoothnessCallback(at=[1], precision=PRECISION)
    trainer = trained(tmp_path, Case(options={"compute_loss_func": tokens_mean}), [weights, first, second])
    same(first.rows, reference(weights.steps[0], mean_loss, minibatch(7), 0))
    same(second.rows, reference(weights.steps[1], mean_loss, minibatch(2 * K - 1), 1))
    assert "compute_loss" not in vars(trainer)


@LONGER
@pytest.mark.parametrize("product", ["exact", "central"])
def test_a_loss_that_counts_its_calls_is_measured_as_it_was_trained_by(tmp_path: Path, product: Any) -> None:
    """The eighth call's loss is eight times the mean of inputs changed once, in every evaluation of it."""
    weights, callback = Weights(), SmoothnessCallback(at=[1], precision=PRECISION, product=product)
    trained(tmp_path, Case(trainer=Annealed), [weights, callback])
    batch = minibatch(2 * K - 1)
    batch["input_ids"] = (batch["input_ids"] + 1) % 30
    expected = reference(weights.steps[1], lambda model, batch: 8 * mean_loss(model, batch), batch, 1, product)
    same(callback.rows, expected)


def test_a_trainer_is_left_as_it_is(tmp_path: Path) -> None:
    """Its counters, metrics and logs, the generators of Python and NumPy, and with them its weights."""
    ends = []
    for at in ([], [0]):
        random.seed(0)
        callback = SmoothnessCallback(at, precision=PRECISION)
        trainer = trained(tmp_path, Case(trainer=Annealed), [callback])
        logs = [log["own"] for log in trainer.state.log_history if "own" in log]
        noise = random.random(), np.random.rand(), float(torch.rand(()))
        ends.append((trainer.counts, trainer.metrics, logs, noise, [p.tolist() for p in trainer.model.parameters()]))
    assert ends[0] == ends[1]
    assert len(callback.rows) == 3 and len(trainer.metrics["train"]["loss"]) == 8 and not trainer.metrics["eval"]


@LONGER
def test_the_first_of_two_processes_measures_its_own_minibatch(tmp_path: Path) -> None:
    """k = 2: in update 1 the first process has minibatches 4 and 6; a loss that gathers finds no other process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    done = subprocess.run(
        [*command, "-m", "tests.llm.test_callback", str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    table = records.load(tmp_path / "rows.jsonl")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    same(table.to_dict("records"), reference(weights, mean_loss, minibatch(6), 1))


def in_two_processes(folder: Path) -> None:
    """What the test above runs in each process."""
    case = Case(trainer=Gathers, k=2, options={"compute_loss_func": tokens_mean}, arguments={"ddp_backend": "gloo"})
    weights, callback = Weights(), SmoothnessCallback(at=[1], precision=PRECISION, out=folder / "rows.jsonl")
    trainer = trained(folder, case, [weights, callback])
    assert trainer.accelerator.num_processes == 2
    if trainer.state.is_world_process_zero:
        torch.save(weights.steps[1], folder / "weights.pt")
    else:
        assert callback.rows == []
    time.sleep(distributed.PAUSE)


# ---------------------------------------------------------------------------- what is refused


class ByHand(torch.autograd.Function):
    """A backward pass that cannot be differentiated, as in TRL's kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.mul(2 * x, grad, out=torch.empty_like(x))


def squared(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    squares: Tensor = ByHand.apply(outputs.logits)  # type: ignore[no-untyped-call]
    return squares.mean()


CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
REFUSALS: dict[str, tuple[Case, dict[str, Any], str]] = {
    "unknown block": (Case(), {"blocks": ["bass"]}, "block 'bass' is unknown: use some of base"),
    "two losses": (Case(trainer=TwiceAStep), {}, "calls compute_loss 2 times a minibatch.*SmoothnessHook"),
    "no labels": (
        Case(options={"compute_loss_func": tokens_mean}), {"minibatch": {"input_ids": torch.ones(1, 4).long()}},
        r"fails on SmoothnessCallback\(minibatch=...\).*labels too",
    ),
    "no second derivatives": (Case(options={"compute_loss_func": squared}), {}, "fail.*out=.*product='central'"),
    "checkpointing in train mode": (Case(arguments=CHECKPOINTED), {"train": True}, "checkpointing.*leave .*train=True"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    case, options, message = REFUSALS[name]
    with pytest.raises(BadInput, match=message) as caught:
        trained(tmp_path, case, [SmoothnessCallback(at=[0], **options)], steps=1)
    assert "\n" not in str(caught.value)


def test_a_loop_that_is_no_trainers_is_refused() -> None:
    with pytest.raises(BadInput, match="in a transformers.Trainer alone: use SmoothnessHook"):
        SmoothnessCallback(at=[0]).on_train_begin(None, None, None, model=nn.Linear(2, 2))


# ---------------------------------------------------------------------------- classifiers with LoRA, to the bit


def train(folder: Path, callback: object | None, joint: bool = False) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Six steps of AdamW with dropout and accumulation; the state dict, and what the RNG gives afterwards."""
    from peft import LoraConfig, get_peft_model
    from transformers import OPTConfig, OPTForSequenceClassification, Trainer, TrainingArguments, set_seed

    set_seed(0)
    config = OPTConfig(
        vocab_size=60, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32,
        max_position_embeddings=40, num_labels=2, activation_function="gelu", dropout=0.1,
    )  # fmt: skip
    model = get_peft_model(OPTForSequenceClassification(config), LoraConfig(task_type="SEQ_CLS", r=2))
    if joint:
        model.requires_grad_(True)
    rows = [
        {"input_ids": torch.randint(4, 60, (9,)), "attention_mask": torch.ones(9, dtype=torch.long), "labels": i % 2}
        for i in range(24)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=6,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[callback] if callback else [])  # type: ignore[arg-type]
    trainer.train()
    flags = torch.tensor([p.requires_grad for p in model.parameters()])
    return [*(t.clone() for t in model.state_dict().values()), flags], torch.rand(4)


@pytest.mark.parametrize("joint", [pytest.param(False, marks=LONGER), True])
def test_training_with_the_callback_is_training_without_it(tmp_path: Path, joint: bool) -> None:
    plain, noise = train(tmp_path, None, joint)
    callback = SmoothnessCallback(at=[0, 4], out=tmp_path / "run.jsonl", cross=[("base", "peft")], precision=0.2)
    watched, noise_after = train(tmp_path, callback, joint)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(noise, noise_after)
    table = records.load(tmp_path / "run.jsonl")
    assert sorted(set(table["step"])) == [0, 4]
    assert set(table["block"]) == {"base", "peft", "head"}
    assert len(table) == len(callback.rows) == 2 * (3 * 3 + 1)
    assert (table[table["quantity"] == "frobenius"]["value"] >= 0).all()


def test_a_fixed_minibatch_and_chosen_blocks(tmp_path: Path) -> None:
    fixed = {
        "input_ids": torch.full((2, 5), 7),
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
        "labels": torch.tensor([0, 1]),
    }
    callback = SmoothnessCallback(at=[1], blocks=["peft"], minibatch=fixed)
    train(tmp_path, callback)
    assert {row["block"] for row in callback.rows} == {"peft"} and {row["step"] for row in callback.rows} == {1}


def test_layers_and_the_gauss_newton_trace_of_a_trainers_loss(tmp_path: Path) -> None:
    """G of a language model's mean loss, from the Jacobian of its logits at the places before a target."""
    weights = Weights()
    callback = SmoothnessCallback(
        at=[1], blocks=["base"], precision=PRECISION, block_rows="layer", gauss_newton=True, outputs_precision=0.1
    )
    trained(tmp_path, Case(), [weights, callback])
    model = language_model().eval()
    model.load_state_dict(weights.steps[1])
    batch = minibatch(2 * K - 1)
    parts, targets = partition(model, "layer"), batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1][targets != -100]
    squares = dict.fromkeys(parts, 0.0)
    for f in logits:
        p = f.detach().softmax(0)
        values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
        for value, vector in zip(values.clamp_min(0), vectors.T, strict=True):
            for name, part in parts.items():
                gradient = torch.autograd.grad(f @ vector, part.params, retain_graph=True)
                squares[name] += float(value) / len(logits) * sum(float(g.square().sum()) for g in gradient)
    rows = {row["block"]: row for row in callback.rows if row["quantity"] == "gauss_newton_trace"}
    truths = squares | {"base": sum(squares.values())}
    assert rows.keys() == truths.keys()
    for name, truth in truths.items():
        z = (rows[name]["value"] - truth) / (rows[name]["high"] - rows[name]["low"]) * 2 * 1.96
        assert abs(z) < 4 and rows[name]["loss"] == pytest.approx(float(mean_loss(model, batch).detach()), rel=1e-5)
    assert {row["wrt"] for row in callback.rows if row["block"] == "base"} == {"base", *parts}


@pytest.mark.parametrize("name", ["class weights", "smoothed"])
def test_the_gauss_newton_trace_of_another_loss_is_refused(tmp_path: Path, name: str) -> None:
    callback = SmoothnessCallback(at=[0], precision=PRECISION, gauss_newton=True)
    with pytest.raises(BadInput, match="is not the mean cross-entropy of the model's logits at the labels"):
        trained(tmp_path, CASES[name], [callback], steps=1)


def test_blocks_that_are_split_into_themselves_are_refused() -> None:
    with pytest.raises(BadInput, match="block_rows 'layer' with by 'layer': its blocks are not split"):
        SmoothnessCallback(at=[0], by="layer", block_rows="layer")


if __name__ == "__main__":
    in_two_processes(Path(sys.argv[1]))
