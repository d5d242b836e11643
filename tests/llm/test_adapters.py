"""Every accepted PEFT method differentiates its own loss, twice; every refused one does not."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from smoothlab.blocks import Block, Shift, dot, draw, fixed_loss, norm
from smoothlab.errors import BadInput
from smoothlab.hessian import DifferenceHessian, ExactHessian
from smoothlab.llm.adapters import ADAPTERS, REFUSED, attach, virtual_tokens
from smoothlab.llm.parts import live_parameters, partition, unfreeze
from tests.cases import QUICK_ADAPTERS, REFUSED_CONFIGS
from tests.llm.tiny import IDS, LABELS, MASK, tiny

METHODS = [pytest.param(m, marks=() if m in QUICK_ADAPTERS else pytest.mark.slow) for m in ADAPTERS]
# Rounding of the loss: fp64 in OPT; Llama's RMSNorm and rotary embedding compute in fp32 whatever the weights are.
LOSS_ROUNDING = {"opt": 1e-15, "llama": 2e-8}


def moved(model: nn.Module) -> nn.Module:
    """The model with its PEFT module moved off its initial values, where many have B = 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in partition(model)["peft"].params:
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def excess(model: nn.Module, kind: str, block: Block) -> float:
    """Largest deviation of gradient and Hessian product from differences of the loss, in units of its tolerance.

    The derivative along v is compared with central differences at h and 2h: their difference bounds the truncation
    error, to which rounding / h is added. Likewise the product with difference quotients at 10 h and 20 h.
    """
    loss = fixed_loss(lambda: model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss, model)
    v = draw(block, "gaussian", [1])
    v /= norm(v)
    shift, h = Shift(block), 1e-3
    values = {}
    for length in (-2 * h, -h, h, 2 * h):
        with shift.along(v, length):
            values[length] = float(loss().detach())
    near, far = ((values[k * h] - values[-k * h]) / (2 * k * h) for k in (1, 2))
    rounding = LOSS_ROUNDING[kind] * max(1.0, abs(values[h]))
    exact = ExactHessian(loss, [block])
    slope = abs(dot(exact.gradients[block.name], v) - near) / (abs(near - far) + 10 * rounding / h)
    product = exact.product(v, block.name, [block.name])[0]
    quotients = [DifferenceHessian(loss, [block], h=10 * k * h).product(v, block.name, [block.name])[0] for k in (1, 2)]
    noise = 10 * rounding * (1 + norm(exact.gradients[block.name])) / (10 * h)
    curve = norm(product - quotients[0]) / (norm(quotients[0] - quotients[1]) + noise)
    return max(slope, curve) if slope == slope and curve == curve else float("inf")


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_every_block_is_differentiated_truly(method: str, kind: str) -> None:
    model = moved(attach(tiny(kind), method, seed=0).double())
    blocks = partition(model)
    assert set(blocks) == {"base", "peft", "head"}
    live = dict(live_parameters(model))
    assert sum(b.dim for b in blocks.values()) == sum(p.numel() for p in live.values())
    assert all(p.requires_grad for p in live.values())
    for block in blocks.values():
        assert excess(model, kind, block) < 1, (method, kind, block.name)


@pytest.mark.parametrize("method", REFUSED_CONFIGS)
def test_refusals_are_deserved(method: str) -> None:
    """The deviation is at least ten tolerances in base or module, at the initial weights or near them."""
    import peft

    name, options = REFUSED_CONFIGS[method]
    worst = 0.0
    for shift in (lambda m: m, moved):
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            config = getattr(peft, name)(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], **options)
            model = peft.get_peft_model(tiny("opt"), config).double().eval()
        unfreeze(model)
        blocks = partition(shift(model))
        worst = max(worst, *(excess(model, "opt", blocks[block]) for block in ("base", "peft")))
    assert worst > 10


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_padding_changes_nothing(method: str, kind: str) -> None:
    """The second sentence alone, without its padding, has the logits that it has in the padded batch."""
    model = attach(tiny(kind), method, seed=0).double()
    with torch.no_grad():
        padded = model(input_ids=IDS, attention_mask=MASK).logits[1]
        alone = model(input_ids=IDS[1:, :4], attention_mask=MASK[1:, :4]).logits[0]
    torch.testing.assert_close(padded, alone, rtol=1e-12 if kind == "opt" else 1e-5, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_saved_modules_come_back(method: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = moved(attach(tiny("opt"), method, seed=0).double())
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = PeftModel.from_pretrained(tiny("opt"), tmp_path).double().eval()
    from smoothlab.llm.adapters import _pool_at_last_token

    if virtual_tokens(again):
        _pool_at_last_token(again)
    with torch.no_grad():
        one, two = (m(input_ids=IDS, attention_mask=MASK).logits for m in (model, again))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_the_seed_fixes_the_module_and_leaves_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    first, same, other = (partition(attach(tiny("opt"), "lora", seed=s))["peft"].params for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_prompts_start_as_vocabulary_embeddings() -> None:
    model = tiny("opt")
    words = model.get_input_embeddings().weight.detach().clone()  # type: ignore[operator]
    (prompt,) = partition(attach(model, "prompt", seed=0))["peft"].params
    assert all((words - row).abs().sum(1).min() < 1e-6 for row in prompt.detach())
    assert prompt.shape == (10, 16) and virtual_tokens(model) == 0


def test_lora_has_the_papers_rank() -> None:
    block = partition(attach(tiny("opt"), "lora", seed=0))["peft"]
    assert block.dim == 2 * 2 * 16 * (16 + 16)  # layers, q and v, rank, A and B


@pytest.mark.parametrize("method", REFUSED)
def test_refused_methods_say_why(method: str) -> None:
    with pytest.raises(BadInput, match=f"--peft {method} is refused: .*use one of lora"):
        attach(tiny("opt"), method, seed=0)


def test_unknown_methods_are_guessed_at() -> None:
    with pytest.raises(BadInput, match="--peft lorra is unknown: did you mean lora"):
        attach(tiny("opt"), "lorra", seed=0)


def test_a_method_that_does_not_fit_says_so() -> None:
    with pytest.raises(BadInput, match="--peft lora does not fit this model"):
        attach(tiny("opt"), "lora", seed=0, target_modules=["no_such_module"])


def test_none_lets_everything_train() -> None:
    model = attach(tiny("opt").requires_grad_(False), "none", seed=0)
    assert all(p.requires_grad for p in model.parameters())
