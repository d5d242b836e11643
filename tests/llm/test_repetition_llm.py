"""Evaluations of transformers in one forward pass: the same estimates and steps as one after the other."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from smoothlab.blocks import flatten
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.options import check
from smoothlab.llm import vocabulary
from smoothlab.llm.compute import compute_in_float32
from smoothlab.llm.evaluate import batch, choice_loss, repeated_choice_loss
from smoothlab.llm.partition import partition
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.estimators import ZerothOrder
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.repetition import BatchedLoss
from tests.llm.architectures import causal, rows
from tests.llm.test_architectures import ETA_X, ETA_Y, ITEMS, KINDS, MU, made, put

QUICK = ("opt", "llama", "gpt2", "gemma2", "mixtral")
"""In the default run: two norms each; transposed weights; norms of 1 + w; experts."""
OTHERWISE = {
    "gpt_oss": "is read by __getitem__",
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3"), "experts.gate_up_proj of shape"),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text"), "conv1d.weight of shape"),
    "rwkv": "time_mix_key of shape",
}
"""Architectures that are refused, and what of them cannot be repeated."""
CASES = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.check) for kind in KINDS]


class ChoiceLoss:
    """`choice_loss` on the items of a kind."""

    def __init__(self, model: Any, items: Any = ITEMS) -> None:
        self.model, self.minibatch = model, batch(items, range(len(items)))

    def __call__(self) -> Tensor:
        return choice_loss(self.model, self.minibatch)

    def repeated(self, count: int) -> Tensor:
        return repeated_choice_loss(self.model, self.minibatch, count)


@pytest.mark.parametrize("kind", CASES)
def test_slopes_are_those_of_one_evaluation_after_the_other(kind: str) -> None:
    """To the rounding of two losses, divided by 2 mu; or the architecture is refused."""
    model = made(kind)
    loss, base = ChoiceLoss(model), partition(model)["base"]
    with torch.no_grad():
        loss()  # RWKV rescales its weights when it is first called
    oracles = [ZerothOrder(MU, 2, LowRank(1), q=3, perturb="forward", parallel=parallel) for parallel in (1, 4)]
    try:
        found = [slope for _, slope in oracles[1](loss, base, 3).terms]
    except BadInput as error:
        assert kind in OTHERWISE and OTHERWISE[kind] in str(error)
        return
    assert kind not in OTHERWISE
    wanted = [slope for _, slope in oracles[0](loss, base, 3).terms]
    eps = torch.finfo(torch.float32).eps
    assert found == pytest.approx(wanted, abs=100 * eps / MU)
    assert max(map(abs, wanted)) > 100 * eps / MU


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("hybrid", [True, False])
def test_steps_are_those_of_one_evaluation_after_the_other(kind: str, hybrid: bool) -> None:
    """Two steps of base model and LoRA, or of the base model alone."""
    model = made(kind)
    blocks = partition(model)
    home = {name: block.copies() for name, block in blocks.items()}
    ends = []
    for parallel in (1, 2):
        oracle = ZerothOrder(MU, 2, LowRank(2), q=2, perturb="forward", parallel=parallel)
        groups: list[dict[str, Any]] = [{"params": blocks["base"].params, "lr": ETA_X, "oracle": oracle}]
        if hybrid:
            groups.append({"params": blocks["peft"].params, "lr": ETA_Y})
        optimizer = HybridSGD(groups, seed=2)
        try:
            losses = [float(optimizer.step(ChoiceLoss(model))) for _ in range(2)]
            ends.append((flatten(blocks["base"].copies()), flatten(blocks["peft"].copies()), losses))
        finally:
            put(blocks, home)
    for theirs, ours, name in zip(*(end[:2] for end in ends), ("base", "peft"), strict=True):
        moved = float((theirs - flatten(home[name])).abs().max())
        assert (moved > 0) == (hybrid or name == "base")
        torch.testing.assert_close(ours, theirs, rtol=0, atol=100 * torch.finfo(torch.float32).eps / MU * moved)
    assert ends[0][2] == pytest.approx(ends[1][2], rel=1e-5)


def test_a_causal_model_of_ones_own_is_repeated_by_its_rows() -> None:
    """peft's LoRA on a Llama of transformers, with the mean loss of next tokens of each row."""
    model: Any = get_peft_model(causal("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).eval()
    ids = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(0))

    def losses(minibatch: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=minibatch["ids"]).logits[:, :-1].double()
        return torch.nn.functional.cross_entropy(logits.mT, minibatch["ids"][:, 1:], reduction="none").mean(1)

    loss, base = BatchedLoss(losses, {"ids": ids}), partition(model)["base"]
    slopes = []
    for parallel in (1, 2):
        oracle = ZerothOrder(MU, 2, LowRank(1), perturb="forward", parallel=parallel)
        slopes.append(oracle(loss, base, 1).terms[0][1])
    assert slopes[1] == pytest.approx(slopes[0], abs=100 * torch.finfo(torch.float32).eps / MU)
    assert float(loss()) == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-5)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_bf16_weights_with_steps_as_factors_have_the_slopes_of_one_after_the_other(kind: str) -> None:
    """Weights that compute in float32 and are never written, after a step, too."""
    slopes = []
    for parallel in (1, 4):
        model: Any = causal(kind).bfloat16()
        compute_in_float32(model)
        oracle = ZerothOrder(MU, 2, LowRank(2), q=2, perturb="forward", parallel=parallel, dtype=torch.float32)
        groups = [{"params": partition(model)["base"].params, "lr": ETA_X, "oracle": oracle, "name": "base"}]
        optimizer = HybridSGD(groups, masters="factors")
        for _ in range(3):
            optimizer.step(ChoiceLoss(model))
        assert optimizer.last is not None
        slopes.append([slope for _, slope in optimizer.last.gradients["base"].terms])
    assert slopes[1] == pytest.approx(slopes[0], abs=100 * torch.finfo(torch.float32).eps / MU)


@pytest.mark.parametrize("kind", ["verbalizer", "multiple choice"])
def test_the_loss_of_repetitions_is_that_of_the_minibatch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the head of a single one runs in chunks."""
    monkeypatch.setattr(vocabulary, "CHUNK", 1000)
    loss = ChoiceLoss(made("opt"), rows(kind))
    with torch.no_grad():
        torch.testing.assert_close(loss.repeated(3), loss().expand(3), rtol=1e-12, atol=0)


RUN = Finetune(
    distribution="lowrank(1)", perturb="forward", q=2, train=16, dev=8, test=8, batch=4, steps=2, eta_x=1e-3, patience=0
)  # fmt: skip


def test_finetune_takes_the_same_steps() -> None:
    losses = []
    for run in (RUN, replace(RUN, parallel=4), replace(RUN, parallel=4, parts=2)):
        trainer = run.setup().trainer()
        losses.append([trainer.update() for _ in range(2)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_finetune_names_the_options_that_do_not_fit() -> None:
    for run, words in (
        (replace(RUN, parallel=2, sides=1), "--parallel 2 with --sides 1 and --perturb forward: use --sides 2 and"),
        (replace(RUN, parallel=2, perturb="weights"), "with --sides 2 and --perturb weights: use --sides 2 and"),
        (replace(RUN, parallel=0), "--parallel 0: use at least 1"),
    ):
        with pytest.raises(BadInput, match=words):
            check(run)
