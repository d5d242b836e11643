"""LoRA-GA starts from the gradient: against singular vectors by numpy, in fp64, with proven bounds."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput
from smoothlab.llm.adapters import attach
from smoothlab.llm.gradient_start import EXACT_UP_TO, GAMMA, leading_factors
from tests.cases import start_loss
from tests.llm.tiny import IDS, LABELS, MASK, tiny, tiny_lm

RANK = 3


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def started(kind: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A classifier in fp64, and the same one with LoRA-GA, whose module peft makes in fp32."""
    bare = tiny(kind)
    return bare, attach(tiny(kind), "lora-ga", seed=0, rank=RANK, loss=start_loss, **options)


def merged(layer: Any) -> Tensor:
    """W + s B A."""
    total: Tensor = layer.get_base_layer().weight.detach() + layer.get_delta_weight("default").detach()
    return total


def full_gradients(model: nn.Module) -> dict[str, Tensor]:
    model.requires_grad_(True)
    start_loss(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_the_model_computes_what_it_did(kind: str) -> None:
    """W - s B0 A0 + s B0 A0 is W to fp64's rounding, where neither term is small; so are the logits."""
    bare, model = started(kind)
    weights = dict(bare.named_parameters())
    for name, layer in layers(model).items():
        before = weights[name.removeprefix("base_model.model.") + ".weight"]
        assert layer.get_delta_weight("default").norm() > 0.1 * before.norm()
        torch.testing.assert_close(merged(layer), before.detach(), rtol=0, atol=1e-14)
    with torch.no_grad():
        one, two = (m(input_ids=IDS, attention_mask=MASK).logits for m in (bare, model.double()))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("eta", [1e-1, 1e-3])
def test_the_first_step_is_the_best_step_of_rank_2r(kind: str, eta: float) -> None:
    """||change + eta s^2 c^2 G_2r|| <= eta^2 s^3 c^2 ||G||^2: the rest is s times the product of both factors' changes.

    G_2r is the best approximation of rank 2r of the full gradient (Eckart and Young), by numpy's SVD. peft's module is
    in fp32, from whose rounding of A0 and B0 the singular vectors are off by at most 1e-6 times their number.
    """
    bare, model = started(kind)
    truth = full_gradients(bare)
    model.double()
    before = {name: merged(layer) for name, layer in layers(model).items()}
    model.zero_grad()
    start_loss(model).backward()
    with torch.no_grad():
        for layer in layers(model).values():
            for factor in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                factor -= eta * factor.grad
    for name, layer in layers(model).items():
        gradient = truth[name.removeprefix("base_model.model.") + ".weight"].numpy()
        u, values, vh = np.linalg.svd(gradient)
        best = u[:, : 2 * RANK] * values[: 2 * RANK] @ vh[: 2 * RANK]
        scaling, square = layer.scaling["default"], np.sqrt(len(gradient)) / GAMMA
        expected = -eta * scaling**2 * square * best
        error = np.linalg.norm((merged(layer) - before[name]).numpy() - expected)
        largest = np.linalg.norm(gradient)
        assert error < eta**2 * scaling**3 * square * largest**2 + 1e-6 * np.linalg.norm(expected) * 2 * RANK, name
        assert np.linalg.norm(expected) > 1e-2 * eta * largest  # and not by being nothing


def test_one_gradient_is_computed_and_flags_stay() -> None:
    calls = []

    def counted(model: Any) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return start_loss(model)

    model = attach(tiny_lm("opt").train(), "boft-ga", seed=0, rank=RANK, loss=counted)
    assert calls == [True] and model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_large_gradients_are_cut_by_subspace_iteration_as_small_ones_exactly() -> None:
    """The subspaces of 4 singular values that stand out by a factor 10 agree to 1e-4 with those by numpy."""
    generator = torch.Generator().manual_seed(0)
    size = EXACT_UP_TO + 8
    u, v = (torch.linalg.qr(torch.randn(size, 4, generator=generator))[0] for _ in range(2))
    gradient = u * torch.tensor([8.0, 7.0, 2.0, 1.0]) @ v.T + 1e-4 * torch.randn(size, size, generator=generator)
    a, b = leading_factors(gradient, rank=2)
    square = size**0.5 / GAMMA
    torch.testing.assert_close(a.T @ a / square, v[:, :2] @ v[:, :2].T, rtol=0, atol=1e-3)
    torch.testing.assert_close(b @ b.T / square, u[:, 2:] @ u[:, 2:].T, rtol=0, atol=1e-3)


def silent(model: Any) -> Tensor:
    """A loss without gradient for any layer but the head."""
    loss: Tensor = 0.0 * start_loss(model)
    return loss


def test_a_zero_gradient_has_no_start() -> None:
    words = "--peft lora-ga is undefined where the first gradient is zero, as that of model.decoder.layers.0.self_attn"
    with pytest.raises(BadInput, match=f"^{words}.*or --peft lora$"):
        attach(tiny("opt"), "lora-ga", seed=0, rank=RANK, loss=silent)
    model = attach(tiny("opt"), "lora-ga", seed=0, rank=RANK, loss=silent, plain_where_zero=True)
    assert all(not layer.lora_B["default"].weight.any() for layer in layers(model).values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": None}, "--peft lora-ga starts from the gradient of a minibatch: give attach"),
        ({"target_modules": ["embed_tokens"]}, "fits linear layers alone, and model.decoder.embed_tokens is Embedding"),
        ({"rank": 9}, "has fewer than 18 singular vectors: use --rank 8 or less"),
        ({"loss": lambda model: start_loss(model) * float("nan")}, "is not finite at the start"),
    ],
)
def test_what_has_no_start_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        attach(tiny("opt"), "lora-ga", seed=0, **{"loss": start_loss, "rank": RANK} | options)


@pytest.mark.check
def test_pefts_own_start_gives_up_the_best_step() -> None:
    """Why it is not used: once this fails, peft's own B0 holds singular vectors alone, and may be taken."""
    from peft import LoraConfig, LoraGAConfig, get_peft_model
    from peft.tuners.lora import preprocess_loraga

    bare: Any = tiny_lm("opt")
    config = LoraConfig(
        r=RANK, target_modules=["q_proj", "v_proj"], init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )
    preprocess_loraga(bare, config, lambda: start_loss(bare).backward())
    for layer in layers(get_peft_model(bare, config)).values():
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        assert torch.linalg.matrix_norm(a @ a.T - torch.eye(RANK)) < 1e-4  # c is missing from A0
        spread = torch.linalg.svdvals(b)
        assert spread[0] > 1.2 * spread[-1]  # B0 is no multiple of orthonormal vectors


def test_labels_of_the_start_are_those_of_the_cases() -> None:
    """`start_loss` is the loss of tests.llm.tiny's minibatch."""
    model = tiny("opt")
    there = model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss
    assert torch.equal(start_loss(model), there)
