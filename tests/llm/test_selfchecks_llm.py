"""Self-checks on transformers: sound architectures are left alone, lies planted in them are seen, by the hook too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from smoothlab.blocks import Block, Loss
from smoothlab.hessian.disagreements import WrongProducts
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.gradients import LossAtPoint
from smoothlab.hessian.hook import SmoothnessHook
from smoothlab.hessian.selfchecks import check_gradient
from smoothlab.llm.partition import partition
from tests.llm.architectures import CURED, ENCODERS, SOUND, causal, classifier
from tests.llm.tiny import IDS, LABELS, MASK
from tests.lying import DetachedNorm

QUICK = ("llama", "bert")


def loss_of(model: Any, kind: str) -> Loss:
    """The mean loss of two padded rows: two classes for encoders, next tokens for language models."""
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    if kind in ENCODERS:
        return lambda: model(**inputs, labels=LABELS).loss
    labels = IDS.masked_fill(MASK == 0, -100)
    return lambda: model(**inputs, labels=labels, use_cache=False).loss


def _blocks(model: nn.Module) -> list[Block]:
    return list(partition(model.requires_grad_(True), "part").values())


@pytest.mark.parametrize(
    "kind",
    [k if k in QUICK else pytest.param(k, marks=pytest.mark.check) for k in (*SOUND, *CURED, *ENCODERS)],
)
def test_sound_architectures_are_left_alone(kind: str) -> None:
    """In fp32, as they are used: no flag in any row, and no refusal."""
    model = classifier(kind) if kind in ENCODERS else causal(kind)
    blocks = _blocks(model)
    assert {e.flag for e in ExactHessian(loss_of(model, kind), blocks).norms()} == {None}
    check_gradient(LossAtPoint(loss_of(model, kind), blocks))


class _Swish(torch.autograd.Function):
    """x sigmoid(x) as a fused kernel would have it: a right backward pass, marked once_differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, up: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return up * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


class _Fused(nn.Module):
    """That function as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return _Swish.apply(x)


def _fuse(model: nn.Module) -> None:
    """Let every layer have it as its activation."""
    for module in model.modules():
        for name in ("activation_fn", "act_fn"):
            if isinstance(getattr(module, name, None), nn.Module):
                setattr(module, name, _Fused())


def _parametrized(module: nn.Module, lie: nn.Module) -> None:
    parametrize.register_parametrization(module, "weight", lie)


def _weight_norm(layer: Any) -> None:
    """With small weights: what double backward leaves out is then no small part of the Hessian."""
    with torch.no_grad():
        layer.weight.mul_(0.01)
    parametrizations.weight_norm(layer)


def _padding(model: Any) -> None:
    model.get_input_embeddings().padding_idx = 8  # a token of the text, as where pad = eos


PLANTED: dict[str, Callable[[Any], None]] = {
    "once_differentiable": _fuse,
    "detached norm": lambda model: _parametrized(_layer(model), DetachedNorm()),
    "weight_norm": lambda model: _weight_norm(_layer(model)),
    "padding row": _padding,
}


def _layer(model: nn.Module) -> nn.Module:
    """The last layer's first projection of the feed-forward part."""
    return [m for n, m in model.named_modules() if n.endswith(("fc1", "up_proj"))][-1]


def _seen(model: nn.Module, loss: Any) -> str:
    """What the check says of a block: the error, or the flags."""
    blocks = [Block("all", tuple(model.requires_grad_(True).parameters()))]
    try:
        return str({e.flag for e in ExactHessian(loss, blocks).norms(precision=0.2)})
    except WrongProducts as error:
        return str(error)


@pytest.mark.parametrize("lie", PLANTED)
@pytest.mark.filterwarnings("ignore")
def test_a_lie_planted_in_one_layer_of_a_language_model_is_seen(lie: str) -> None:
    model = causal("llama")
    PLANTED[lie](model)
    seen = _seen(model, loss_of(model, "llama"))
    assert "not its loss's" in seen or "disagree" in seen


@pytest.mark.slow
@pytest.mark.parametrize("lie", [None, *PLANTED])
@pytest.mark.filterwarnings("ignore")
def test_a_lie_planted_in_one_layer_of_opt_125ms_shape_is_seen(lie: str | None) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OPTForCausalLM(OPTConfig(word_embed_proj_dim=768, activation_function="gelu")).eval()
    if lie is not None:
        PLANTED[lie](model)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 5000, (2, 16), generator=generator)
    ids[:, 3] = 8
    seen = _seen(model, lambda: model(input_ids=ids, labels=ids).loss)
    assert (seen == "{None}") if lie is None else ("not its loss's" in seen or "disagree" in seen)


@pytest.mark.filterwarnings("ignore")
def test_ones_own_dora_model_is_refused_by_hook_and_check() -> None:
    """`attach` refuses dora; a hook is given whatever model its user made."""
    import peft

    model: Any = peft.get_peft_model(
        causal("llama"), peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    model.requires_grad_(True)
    blocks = [Block("peft", tuple(p for n, p in model.named_parameters() if "lora_" in n))]
    labels = IDS.masked_fill(MASK == 0, -100)

    def loss() -> Tensor:
        return model(input_ids=IDS, attention_mask=MASK, labels=labels).loss

    hook = SmoothnessHook(model, blocks, at=[0])
    with pytest.raises(WrongProducts, match="gradient of block 'peft'"):
        hook(0, loss)


@pytest.mark.filterwarnings("ignore")
def test_a_later_point_that_is_refused_is_a_warning_and_no_end_of_the_training() -> None:
    model = causal("llama")
    hook = SmoothnessHook(model, _blocks(model), at=[0, 1], precision=0.3)
    hook(0, loss_of(model, "llama"))
    measured = len(hook.rows)
    _padding(model)
    with pytest.warns(UserWarning, match="step 1 is not measured"):
        hook(1, loss_of(model, "llama"))
    assert len(hook.rows) == measured > 0
