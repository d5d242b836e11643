"""Every accepted PEFT method differentiates its own loss, twice; every refused one does not."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smoothlab.blocks import Block, dot, fixed_loss, norm
from smoothlab.errors import BadInput
from smoothlab.hessian.exact import ExactHessian
from smoothlab.hessian.finite_differences import FiniteDifferenceHessian
from smoothlab.llm.adapters import attach, check_derivatives, pool_at_last_token, virtual_tokens
from smoothlab.llm.caches import accept_past_key_values
from smoothlab.llm.export import add_base
from smoothlab.llm.partition import live_parameters, partition, unfreeze
from smoothlab.llm.peft_methods import MEASURABLE, PEFT_METHODS, attachable
from smoothlab.shift import Shift
from smoothlab.zeroth.distributions import draw
from tests.cases import ADAPTER_CASES, WRONG_DERIVATIVES, started
from tests.llm.tiny import IDS, LABELS, MASK, exact_norms, tiny

METHODS = [pytest.param(m, marks=() if case.quick else pytest.mark.slow) for m, case in ADAPTER_CASES.items()]
DOUBLE, SINGLE = 1e-6, 1e-2  # bounds of the relative discrepancy; it is 1e-12 to 1e-8, and 1e-4 to 1e-3


def attached(kind: str, method: str) -> nn.Module:
    """A model with a module, both in fp64; peft makes the module in fp32, as it is used."""
    return attach(exact_norms(tiny(kind).float()), method, seed=0, **ADAPTER_CASES[method].options).double().eval()


def moved(model: nn.Module, *names: str) -> nn.Module:
    """The model with blocks moved off their initial values, where many modules have a factor 0."""
    generator = torch.Generator().manual_seed(3)
    blocks = partition(model)
    with torch.no_grad():
        for p in (p for name in names for p in blocks[name].params):
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def discrepancy(model: nn.Module, block: Block, enough: float = 0.0) -> float:
    """Relative error of <grad, v> or of H v, whichever is larger, against central differences along a random v.

    The error of <grad, v> is relative to its root mean square over v, ||grad|| / sqrt(d). Differences have an error of
    their own, from curvature and kinks (long moves) and from rounding (short ones): the best of several lengths counts,
    and none is tried after one below `enough`.
    """
    loss = fixed_loss(lambda: model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss, model)
    v = draw(block, "gaussian", [1])
    v /= norm(v)
    exact, differences, shift = ExactHessian(loss, [block]), FiniteDifferenceHessian(loss, [block], h=1.0), Shift(block)
    gradient = exact.gradients[block.name]
    product = exact.product(v, block.name, [block.name])[0]
    slopes, products = [float("inf")], [float("inf")]
    for h in (1e-3, 1e-4, 1e-5, 1e-2):
        ends = []
        for length in (h, -h):
            with shift.along(v, length):
                ends.append(float(loss().detach()))
        slopes.append(abs(dot(gradient, v) - (ends[0] - ends[1]) / (2 * h)) / (norm(gradient) / block.dim**0.5))
        quotient = differences.difference(v, block.name, h, [block.name], 1.0)[0]
        products.append(norm(product - quotient) / norm(quotient))
        worst = max(min(x for x in found if x == x) for found in (slopes, products))
        if worst < enough:
            break
    return worst


def test_every_method_has_a_case() -> None:
    assert tuple(ADAPTER_CASES) == MEASURABLE


@pytest.mark.parametrize("state", ["initial", "moved"])
@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_every_block_is_differentiated_truly(method: str, kind: str, state: str) -> None:
    model = attached(kind, method)
    if state == "moved":
        moved(model, "peft")
    bound = SINGLE if ADAPTER_CASES[method].single else DOUBLE
    for block in partition(model).values():
        assert discrepancy(model, block, enough=bound) < bound, block.name


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_that_moves_the_loss_is_in_one_block(method: str, kind: str) -> None:
    """The base is the model as it was, less its head; every parameter of every block gets a gradient."""
    model = exact_norms(tiny(kind).float())
    bare = {id(p): n for n, p in model.named_parameters()}
    model = attach(model, method, seed=0, **ADAPTER_CASES[method].options)
    blocks = partition(model)
    members = [id(p) for block in blocks.values() for p in block.params]
    live = dict(live_parameters(model))
    assert set(blocks) == {"base", "peft", "head"}
    assert sorted(members) == sorted(id(p) for p in live.values())
    assert all(p.requires_grad is (id(p) in set(members)) for p in model.parameters())
    assert not {id(p) for p in blocks["peft"].params} & set(bare)
    norms = {i for i, n in bare.items() if "norm" in n} if method == "ln_tuning" else set()
    assert {id(p) for p in blocks["base"].params} == {i for i, n in bare.items() if "score" not in n} - norms
    model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss.backward()
    assert [n for n, p in live.items() if p.grad is None] == []


def plain(name: str, **options: Any) -> nn.Module:
    """What peft makes of a tiny OPT by itself, without `attach`, in fp64 with everything unfrozen."""
    import peft

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = getattr(peft, name)(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], **options)
        model = peft.get_peft_model(tiny("opt").float(), config).double().eval()
    unfreeze(model)
    return model


@pytest.mark.parametrize("method", WRONG_DERIVATIVES)
def test_wrong_derivatives_are_refused_for_a_reason(method: str) -> None:
    """The discrepancy is five times what fp32 could explain, in base or module, at the initial weights or near them."""
    name, options = WRONG_DERIVATIVES[method]
    models = (plain(name, **options), moved(plain(name, **options), "peft"))
    blocks = ((model, partition(model)[block]) for model in models for block in ("peft", "base"))
    assert any(discrepancy(model, block) > 5 * SINGLE for model, block in blocks)
    assert PEFT_METHODS[method].refusal


def test_lily_mixes_the_sentences_of_a_batch() -> None:
    """Its loss moves with the embedding of padding, which gets no gradient, and its other derivatives are right."""
    model = moved(plain("LilyConfig"), "peft")
    words = model.get_input_embeddings()  # type: ignore[operator]
    loss = fixed_loss(lambda: model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss, model)
    loss().backward()
    before = float(loss().detach())
    with torch.no_grad():
        words.weight[words.padding_idx] = words.weight[2]  # of another word; a constant shift LayerNorm would undo
    assert abs(float(loss().detach()) - before) > 1e-4 and not words.weight.grad[words.padding_idx].any()
    assert discrepancy(model, partition(model)["peft"], enough=DOUBLE) < DOUBLE
    assert PEFT_METHODS["lily"].refusal


@pytest.mark.parametrize(
    ("method", "name", "options", "words"),
    [
        ("adaption_prompt", "AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2}, "Unsupported model type"),
        ("cpt", "CPTConfig", {"num_virtual_tokens": 5}, "CAUSAL_LM"),
        ("poly", "PolyConfig", {"r": 4, "target_modules": ["q_proj"]}, "task_ids"),
        ("multitask_prompt", "MultitaskPromptTuningConfig", {"num_virtual_tokens": 5, "num_tasks": 1}, "task_ids"),
    ],
)
def test_methods_that_cannot_be_attached_are_refused(method: str, name: str, options: dict, words: str) -> None:
    import peft

    with pytest.raises(ValueError, match=words):
        peft.get_peft_model(tiny("opt"), getattr(peft, name)(task_type="SEQ_CLS", **options))(input_ids=IDS)
    assert PEFT_METHODS[method].refusal


def test_shadow_has_parameters_that_move_nothing() -> None:
    import peft

    model = peft.get_peft_model(tiny("opt"), peft.ShadowConfig(task_type="SEQ_CLS"))
    unfreeze(model)
    model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss.backward()
    assert any(p.grad is None for _, p in live_parameters(model))
    assert not hasattr(peft, "BoneConfig")


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_padding_changes_nothing(method: str, kind: str) -> None:
    """The second sentence alone, without its padding, has the logits that it has in the padded batch."""
    model = moved(attached(kind, method), "peft")
    with torch.no_grad():
        padded = model(input_ids=IDS, attention_mask=MASK).logits[1]
        alone = model(input_ids=IDS[1:, :4], attention_mask=MASK[1:, :4]).logits[0]
    torch.testing.assert_close(padded, alone, rtol=1e-5 if ADAPTER_CASES[method].single else 1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["prompt", "ptuning"])
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_peft_alone_reads_the_padding(kind: str, method: str) -> None:
    """Why `attach` mends the pooling: when this fails, transformers does it, and the mend can go."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry = PEFT_METHODS[method]
        config = getattr(peft, entry.config)(task_type="SEQ_CLS", **entry.settings())
        model = peft.get_peft_model(tiny(kind), config).double().eval()
    with torch.no_grad():
        padded = model(input_ids=IDS, attention_mask=MASK).logits[1]
        alone = model(input_ids=IDS[1:, :4], attention_mask=MASK[1:, :4]).logits[0]
        pool_at_last_token(model)
        mended = model(input_ids=IDS, attention_mask=MASK).logits[1]
    assert (padded - alone).norm() > 1e-2 * alone.norm()
    torch.testing.assert_close(mended, alone, rtol=1e-12 if kind == "opt" else 1e-5, atol=1e-14)


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_saved_modules_come_back(method: str, kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    before = attach(tiny(kind).float(), method, seed=0, **ADAPTER_CASES[method].options)
    model = moved(before, "peft", "head")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    if method == "lora-ga":  # its start moved the base model's weights
        add_base(model, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists() and not list(tmp_path.glob("*.bin"))
    again = PeftModel.from_pretrained(tiny(kind).float(), tmp_path).eval()
    accept_past_key_values(again)
    if again.active_peft_config.is_prompt_learning:
        pool_at_last_token(again)
    with torch.no_grad():
        one, two = (m(input_ids=IDS, attention_mask=MASK).logits for m in (model, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize("method", METHODS)
def test_methods_fit_the_width_of_micro(method: str) -> None:
    from transformers import OPTConfig, OPTForSequenceClassification

    config = OPTConfig(
        vocab_size=60, hidden_size=192, word_embed_proj_dim=192, num_hidden_layers=1, num_attention_heads=6,
        ffn_dim=768, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bare = OPTForSequenceClassification(config)
    peft_dim = partition(attach(bare, method, seed=0, **started(method)))["peft"].dim
    assert 0 < peft_dim < 100_000


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


def test_the_rank_is_8_unless_it_is_given() -> None:
    """LoRA's dimension is 2 layers x (q and v) x (A and B) x 16 x rank; alpha is twice the rank."""
    assert partition(attach(tiny("opt"), "lora", seed=0))["peft"].dim == 2 * 2 * 2 * 16 * 8
    model = attach(tiny("opt"), "lora", seed=0, rank=16)
    assert partition(model)["peft"].dim == 2 * 2 * 2 * 16 * 16 and model.active_peft_config.lora_alpha == 32
    ranked = attach(tiny("opt"), "adalora", seed=0, rank=4).active_peft_config
    assert (ranked.target_r, ranked.init_r) == (4, 6)
    with pytest.raises(BadInput, match="^--rank 4 with --peft prompt, which has no rank: leave --rank out$"):
        attach(tiny("opt"), "prompt", seed=0, rank=4)


def test_methods_with_wrong_derivatives_are_refused_by_what_is_seen_of_them() -> None:
    """No list: the very model is looked at. Lily is the padding check's; for the two others see the next test."""
    inspected = {name for name, entry in PEFT_METHODS.items() if entry.inspected}
    assert set(WRONG_DERIVATIVES) | {"lily"} == inspected == set(attachable(measured=True)) - set(MEASURABLE)
    for method in set(WRONG_DERIVATIVES) - {"delora", "frod"}:
        model = attach(tiny("opt").float(), method, seed=0, **WRONG_DERIVATIVES[method][1]).eval()
        loss = fixed_loss(lambda: model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss, model)  # noqa: B023
        with pytest.raises(BadInput, match=f"--peft {method} cannot be measured: the .* of block"):
            check_derivatives(loss, partition(model), method)


@pytest.mark.parametrize("method", [m if ADAPTER_CASES[m].quick else pytest.param(m, marks=pytest.mark.check)
                                    for m in MEASURABLE])  # fmt: skip
def test_methods_with_right_derivatives_are_let_through_in_fp32(method: str) -> None:
    model = attach(tiny("opt").float(), method, seed=0, **ADAPTER_CASES[method].options).eval()
    loss = fixed_loss(lambda: model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss, model)
    kept = [p.detach().clone() for p in model.parameters()]
    check_derivatives(loss, partition(model), method)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), kept, strict=True))


@pytest.mark.parametrize(
    ("method", "words"),
    [("delora", "product of block 'peft' is not finite"), ("frod", "products of block 'peft' are not its loss's")],
)
def test_methods_whose_products_alone_are_wrong_are_refused_at_the_first_point(method: str, words: str) -> None:
    """DeLoRA has none at its initial weights, and right ones near them; FRoD's are not symmetric."""
    model = attach(tiny("opt").float(), method, seed=0, **WRONG_DERIVATIVES[method][1]).eval()
    loss = fixed_loss(lambda: model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss, model)
    with pytest.raises(BadInput, match=words):
        ExactHessian(loss, [partition(model)["peft"]]).norms()


@pytest.mark.parametrize("method", [m for m in PEFT_METHODS if m not in attachable(measured=True)])
def test_refused_methods_say_why(method: str) -> None:
    with pytest.raises(BadInput, match=f"--peft {method} is refused: .*use one of lora"):
        attach(tiny("opt"), method, seed=0)


def test_unknown_methods_are_guessed_at() -> None:
    with pytest.raises(BadInput, match="--peft lorra is unknown: did you mean lora"):
        attach(tiny("opt"), "lorra", seed=0)
    with pytest.raises(BadInput, match="--peft lroa is unknown: did you mean lora"):
        attach(tiny("opt"), "lroa", seed=0)


def test_a_method_that_does_not_fit_says_so() -> None:
    with pytest.raises(BadInput, match="--peft lora does not fit this model"):
        attach(tiny("opt"), "lora", seed=0, target_modules=["no_such_module"])


def test_none_lets_everything_train() -> None:
    model = attach(tiny("opt").requires_grad_(False), "none", seed=0)
    assert all(p.requires_grad for p in model.parameters())
