"""Unitary layers and the mix of BOFT and LoRA-GA: against matrices by hand, peft's own BOFT, and orthogonality."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput
from smoothlab.llm.adapters import attach
from smoothlab.llm.own_layers import MixLinear, UnitaryLinear
from smoothlab.llm.own_methods import CONFIGS
from smoothlab.llm.partition import partition
from tests.cases import start_loss
from tests.llm.tiny import IDS, MASK, tiny, tiny_lm

OWN = {"unitary": {}, "boft-ga": {"rank": 3, "loss": start_loss}}
OPTIONS: dict[str, dict[str, Any]] = {**OWN, "lora-ga": OWN["boft-ga"], "boft": {}}


def alone(name: str, size: int = 16, outputs: int = 12) -> Any:
    """One adapted layer without a model, in fp64, its parameters drawn at random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config: Any = CONFIGS[name](r=3, lora_alpha=6)
        layer = config.layer(nn.Linear(size, outputs), "default", config, r=3, lora_alpha=6).double()
        with torch.no_grad():
            for parameter, p in layer.named_parameters():
                if "lora_" in parameter:
                    p.add_(0.5 * torch.randn_like(p))
    return layer


def moved(model: nn.Module, scale: float = 0.1) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in partition(model)["peft"].params:
            p += scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, attention_mask=MASK).logits
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", OWN)
def test_the_model_is_unchanged_to_the_bit_at_the_start(method: str, dtype: torch.dtype) -> None:
    bare = tiny("opt").to(dtype)
    before, weights = logits(bare), [p.detach().clone() for p in bare.parameters()]
    model = attach(bare, method, seed=0, **OPTIONS[method])
    assert torch.equal(logits(model), before)
    kept = {id(p): p for p in partition(model)["base"].params}
    assert sum(any(torch.equal(p, q) for q in weights) for p in kept.values()) == len(kept)


def test_a_unitary_layer_is_the_product_of_its_factors() -> None:
    """By numpy's complex matrices; of the real inputs pairs of neighbors are complex numbers."""
    layer = alone("UnitaryConfig")
    phases, turns = layer.lora_phases["default"].detach().numpy(), layer.lora_turns["default"].detach().numpy()
    vectors = torch.view_as_complex(layer.lora_reflectors["default"].detach()).numpy()
    fourier = np.fft.fft(np.eye(8), norm="ortho")
    turning = []
    for v, phi in zip(vectors, turns, strict=True):
        turning.append(np.eye(8) + (np.exp(1j * phi) - 1) * np.outer(v, v.conj()) / np.vdot(v, v))
    first, second, third = (np.diag(np.exp(1j * angle)) for angle in phases)
    u = third @ turning[1] @ fourier.conj().T @ second @ turning[0] @ fourier @ first
    x = np.random.default_rng(0).standard_normal(16)
    image = u @ (x[::2] + 1j * x[1::2])
    expected = np.stack([image.real, image.imag], 1).reshape(-1)
    with torch.no_grad():
        np.testing.assert_allclose(layer.rotated(torch.tensor(x), "default").numpy(), expected, atol=1e-13)
        np.testing.assert_allclose(layer.factor("default").numpy() @ x, expected, atol=1e-13)
        there = layer.base_layer(torch.tensor(expected))
        torch.testing.assert_close(layer(torch.tensor(x)), there, rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", ["boft", "lora"])
def test_the_mix_is_pefts_boft_and_pefts_lora_by_their_weights(part: str) -> None:
    """With the whole weight on one part it is that part, as peft computes it."""
    from peft import BOFTConfig
    from peft.tuners.boft.layer import Linear as BoftLinear

    layer = alone("BoftGaConfig")
    x = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer.mix("default").norms.copy_(torch.tensor([1.0, 0.0] if part == "boft" else [0.0, 1.0]))
    plain = layer.base_layer(x)
    if part == "boft":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft looks for a CUDA compiler
            theirs = BoftLinear(layer.base_layer, "default", BOFTConfig(boft_block_size=4)).double()
        with torch.no_grad():
            theirs.boft_R["default"].copy_(layer.lora_skew["default"][None])
            theirs.boft_s["default"].copy_(layer.lora_scale["default"][:, None])
        expected = theirs(x)
    else:
        a, b, mix = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.mix("default")
        expected = plain + 2 * x @ (b @ a - mix.start_out @ mix.start_in).T
    assert (expected - plain).norm() > 0.1 * plain.norm()
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    layer.mix("default").norms.copy_(torch.tensor([1.0, 3.0]))
    whole = layer(x)
    layer.mix("default").norms.copy_(torch.tensor([0.0, 1.0] if part == "boft" else [1.0, 0.0]))
    share = 0.25 if part == "boft" else 0.75
    torch.testing.assert_close(whole, share * expected + (1 - share) * layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("method", ["lora-ga", "boft-ga", "unitary"])
def test_merged_equals_unmerged(method: str, kind: str) -> None:
    """In fp64 to rounding; unmerging smoothlab's own layers gives back the base weights to the bit."""
    model: Any = moved(attach(tiny(kind), method, seed=0, **OPTIONS[method]).double())
    apart, weights = logits(model), [p.detach().clone() for p in model.parameters()]
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), apart, rtol=1e-10, atol=1e-12)
    model.unmerge_adapter()
    if method in OWN:
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    with model.disable_adapter():
        assert not torch.allclose(logits(model), apart)
    alone_ = model.merge_and_unload()
    torch.testing.assert_close(logits(alone_), apart, rtol=1e-10, atol=1e-12)
    assert not any("lora_" in name for name, _ in alone_.named_parameters())


def error(factor: Tensor) -> float:
    """||F'F - I||, spectral, in fp64."""
    wide = factor.detach().double()
    return float(torch.linalg.matrix_norm(wide.T @ wide - torch.eye(len(wide), dtype=torch.float64), 2))


def factor_of(layer: Any) -> Tensor:
    if isinstance(layer, UnitaryLinear | MixLinear):
        return layer.factor("default")
    matrix: Tensor = layer.get_delta_weight("default")[0]  # of peft's BOFT
    return matrix


def trained(method: str, steps: int, dtype: torch.dtype) -> list[Any]:
    """Adapted layers of a small model after Adam steps at a rate that turns them far, all in one type."""
    model = attach(tiny_lm("opt"), method, seed=0, **OPTIONS[method]).to(dtype)
    block = partition(model)["peft"]
    optimizer = torch.optim.Adam(block.params, lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        start_loss(model).backward()
        optimizer.step()
    return [module for module in model.modules() if hasattr(module, "lora_A") or hasattr(module, "boft_R")]


@pytest.mark.parametrize("steps", [20, pytest.param(1000, marks=pytest.mark.check)])
@pytest.mark.parametrize("method", ["boft", "boft-ga", "unitary"])
def test_factors_stay_orthogonal(method: str, steps: int) -> None:
    """To 1e-5 in fp32 after 1,000 steps, whose angles have moved far from the start."""
    for layer in trained(method, steps, torch.float32):
        factor = factor_of(layer)
        assert error(factor) < 1e-5
        assert float((factor.detach() - torch.eye(len(factor))).norm()) > 0.1


def test_oft_turns_weights_and_does_not_stretch_them() -> None:
    """Singular values of W R are those of W. With peft's default, five terms of a series, they move by 2 % here."""
    model = attach(tiny_lm("opt"), "oft", seed=0)
    layers = [module for module in model.modules() if hasattr(module, "oft_R")]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        start_loss(model).backward()
        optimizer.step()
    for layer in layers:
        before = layer.get_base_layer().weight.detach().clone()
        layer.merge()
        after = layer.get_base_layer().weight.detach()
        assert float((after - before).norm()) > 0.1 * float(before.norm())
        values = [torch.linalg.svdvals(weight.double()) for weight in (before, after)]
        assert torch.allclose(*values, rtol=0, atol=1e-5 * float(values[0][0]))


@pytest.mark.parametrize("method", ["boft-ga", "unitary"])
def test_in_bf16_the_rounding_of_the_factor_is_the_error(method: str) -> None:
    """Parameters in bf16 give a factor in fp32 that is orthogonal to 1e-5; rounded to bf16, F + E with

    |E| <= 2^-9 |F|, so that ||E|| <= 2^-9 ||F||_F = 2^-9 sqrt(d), and ||(F+E)'(F+E) - I|| <= 2 ||E|| + ||E||^2.
    """
    for layer in trained(method, 20, torch.bfloat16):
        factor = factor_of(layer)
        assert factor.dtype == torch.float32 and error(factor) < 1e-5
        largest = 2**-9 * len(factor) ** 0.5
        assert 1e-5 < error(factor.bfloat16()) < 2 * largest + largest**2 + 1e-5


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("boft-ga", {"boft_block_size": 5}, "a layer with 16 inputs is not divided by boft_block_size=5"),
        ("boft", {"boft_block_size": 5}, "must be divisible by boft_block_size .5"),
        ("boft-ga", {"smoothing": 1.0}, "smoothing=1: use at least 0 and less than 1"),
        ("boft-ga", {"target_modules": ["embed_tokens"]}, "a layer of type Embedding is not torch.nn.Linear"),
        ("unitary", {"target_modules": ["embed_tokens"]}, "a layer of type Embedding is not torch.nn.Linear"),
        ("unitary", {"use_dora": True}, "use_dora and lora_bias have no place in this method: leave them out"),
        ("unitary", {"rank": 4}, "--rank 4 with --peft unitary, which has no rank"),
    ],
)
def test_layers_that_do_not_fit_are_refused(method: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=f"--peft {method}.*{words}|{words}"):
        attach(tiny("opt"), method, seed=0, **OPTIONS[method] | options)


def test_an_odd_width_has_no_unitary_factor() -> None:
    config: Any = CONFIGS["UnitaryConfig"]()
    with pytest.raises(ValueError, match="a layer with 5 inputs: pairs of inputs are complex numbers"):
        UnitaryLinear(nn.Linear(5, 4), "default", config)


@pytest.mark.parametrize("method", OWN)
def test_peft_alone_refuses_what_it_would_load_without_effect(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    model: Any = moved(attach(tiny_lm("opt"), method, seed=0, **OPTIONS[method]))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = PeftModel.from_pretrained(tiny_lm("opt"), tmp_path)
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    name = "SMOOTHLAB_" + method.upper().replace("-", "_")
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, name)
    with pytest.raises(KeyError, match=name):
        PeftModel.from_pretrained(tiny_lm("opt"), tmp_path)
