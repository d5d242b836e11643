"""Settings of GGUF files that transformers' reader leaves out: read, or refused in one line."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput
from smoothlab.llm.gguf_settings import ARCHITECTURES, _gemma_scale
from smoothlab.llm.models import load_lm
from tests.llm.gguf_writing import model, write

PAIRS = 8
"""Rotated pairs of a head of 16 dimensions."""
BASE = 10000.0


def logits(of: Any, length: int = 40) -> Tensor:
    tokens = torch.randint(4, 300, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = of(input_ids=tokens).logits
    return found


def llama_3_divisors(factor: float) -> list[float]:
    """Written out after the converter of llama.cpp: wavelengths against those that make 1 and 4 turns in 8192."""
    divisors = []
    for i in range(PAIRS):
        wave = 2 * math.pi * BASE ** (2 * i / (2 * PAIRS))
        if wave < 8192 / 4:
            divisors.append(1.0)
        elif wave > 8192 / 1:
            divisors.append(factor)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def tensor(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@dataclass(frozen=True)
class Case:
    """Rotary scaling of transformers, and how a GGUF file says the same."""

    scaling: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    kind: str = "llama"


def _yarn(**more: float) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16} | more


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
UNEVEN = [1.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0]
SCALINGS: dict[str, Case] = {
    "linear": Case(
        {"rope_type": "linear", "factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    ),
    "linear, by its factor": Case({"rope_type": "linear", "factor": 4.0}, {"rope.scaling.factor": 4.0}),
    "none in spite of a factor": Case(
        {"rope_type": "default"}, {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    ),
    "linear, of old": Case({"rope_type": "linear", "factor": 4.0}, {"rope.scale_linear": 4.0}),
    "linear, qwen2": Case(
        {"rope_type": "linear", "factor": 2.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
        kind="qwen2",
    ),
    "yarn": Case(_yarn(), YARN | {"rope.scaling.finetuned": True}),
    "yarn, ramp": Case(
        # The ramp is rounded to whole pairs: from pair 1 to 3 here, from 0 to 4 with the default ends.
        _yarn(beta_fast=16.0, beta_slow=8.0, original_max_position_embeddings=512),
        {
            "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 512,
            "rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 8.0,
        },
    ),
    "yarn, magnitude": Case(
        _yarn(attention_factor=0.5 * (0.1 * math.log(4) + 1)), YARN | {"rope.scaling.attn_factor": 0.5}, kind="qwen3"
    ),
    "llama 3": Case(
        {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        tensors={"rope_freqs.weight": tensor(llama_3_divisors(32.0))},
    ),
    "divisors": Case(
        {
            "rope_type": "longrope", "short_factor": UNEVEN, "long_factor": UNEVEN, "attention_factor": 1.0,
            "original_max_position_embeddings": 64,
        },
        tensors={"rope_freqs.weight": tensor(UNEVEN)},
    ),
    "divisors of 1": Case({"rope_type": "default"}, tensors={"rope_freqs.weight": tensor([1.0] * PAIRS)}),
    "long and short": Case(
        {
            "rope_type": "longrope", "short_factor": UNEVEN, "long_factor": UNEVEN[::-1], "attention_factor": 1.25,
            "original_max_position_embeddings": 16,
        },
        {
            "rope.scaling.type": "longrope", "rope.scaling.original_context_length": 16,
            "rope.scaling.attn_factor": 1.25,
        },
        {"rope_factors_long.weight": tensor(UNEVEN[::-1]), "rope_factors_short.weight": tensor(UNEVEN)},
        kind="phi3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SCALINGS)
def test_rotary_scaling_is_that_of_the_source(tmp_path: Path, case: str) -> None:
    """Logits of the loaded model equal the source's to the bit, and differ from those without the scaling."""
    scaled = SCALINGS[case]
    parameters = {"rope_theta": BASE, **scaled.scaling}
    more = {"original_max_position_embeddings": 16} if scaled.kind == "phi3" else {}
    head = {"head_dim": 2 * PAIRS} if scaled.kind == "qwen3" else {}
    source = model(scaled.kind, rope_parameters=parameters, **more, **head)
    write(tmp_path / "x.gguf", source, metadata=scaled.metadata, tensors=scaled.tensors)
    loaded = load_lm(str(tmp_path / "x.gguf"), seed=0)
    for length in (12, 40):  # within and beyond the original context of some
        assert torch.equal(logits(loaded.model, length), logits(source, length))
    plain: nn.Module = model(scaled.kind, rope_parameters={"rope_theta": BASE, "rope_type": "default"}, **head)
    moved = float((logits(plain) - logits(source)).abs().max())
    told = [note for note in loaded.notes if "rotary scaling" in note]
    if scaled.scaling["rope_type"] == "default":
        assert moved == 0 and not told
    else:
        assert moved > 1e-4
        assert told == [
            f"rotary scaling {scaled.scaling['rope_type']} is read from the file: transformers' reader leaves it out"
        ]


def test_divisors_divide_the_frequencies(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", model("llama"), tensors={"rope_freqs.weight": tensor(UNEVEN)})
    found = load_lm(str(tmp_path / "x.gguf"), seed=0).model.model.rotary_emb.inv_freq
    expected = [BASE ** (-i / PAIRS) / divisor for i, divisor in enumerate(UNEVEN)]
    assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6)


def said(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_lm(str(path), seed=0)
    line = str(caught.value)
    assert "\n" not in line and caught.value.status == 2
    return line


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray], str]] = {
    "experts": ("llama", {"expert_count": 4}, {}, "expert_count = 4 would be lost (only 0 can be loaded)"),
    "scaled experts": ("qwen2moe", {"expert_weights_scale": 2.0}, {}, "expert_weights_scale = 2.0 would be lost"),
    "another base in windows": ("gemma2", {"rope.freq_base_swa": 5.0}, {}, "rope.freq_base_swa = 5.0 would be lost"),
    "another pattern": ("gemma3", {"attention.sliding_window_pattern": 2}, {}, "sliding_window_pattern = 2 would be"),
    "unknown key": ("llama", {"attention.sparsity": 0.5}, {}, "attention.sparsity = 0.5 would be lost (transformers'"),
    "unknown scaling": ("llama", {"rope.scaling.type": "dynamic"}, {}, "rope.scaling.type = dynamic would be lost"),
    "longrope without tensors": (
        "phi3", {"rope.scaling.type": "longrope"}, {}, "rope.scaling.type = longrope would be lost (only none, linear"
    ),
    "longrope, one tensor": (
        "phi3", {"rope.scaling.type": "longrope"}, {"rope_factors_long.weight": tensor(UNEVEN)}, "it needs both"
    ),
    "two scalings": (
        "llama", YARN, {"rope_freqs.weight": tensor(UNEVEN)}, "it scales by the tensor rope_freqs.weight as well"
    ),
    "longrope tensors and yarn": (
        "phi3", YARN, {"rope_factors_long.weight": tensor(UNEVEN), "rope_factors_short.weight": tensor(UNEVEN)},
        "rope.scaling.type = yarn would be lost (it has rope_factors_long.weight as well)",
    ),
    "magnitude and divisors": (
        "llama", {"rope.scaling.attn_factor": 2.0}, {"rope_freqs.weight": tensor(UNEVEN)}, "not with rotary scaling of"
    ),
    "magnitude alone": ("llama", {"rope.scaling.attn_factor": 2.0}, {}, "rope.scaling.attn_factor = 2.0 would be lost"),
    "few divisors": (
        "llama", {}, {"rope_freqs.weight": tensor(UNEVEN[:4])}, "rope_freqs.weight = 4 numbers would be lost (8 pairs"
    ),
    "zero divisor": ("llama", {}, {"rope_freqs.weight": tensor([0.0] * 8)}, "a number that is not positive"),
    "part of a head": ("llama", {"rope.dimension_count": 8, "attention.key_length": 16}, {}, "its heads have 16"),
    "values of another length": ("llama", {"attention.value_length": 8}, {}, "attention.value_length = 8"),
    "magnitude of yarn's own": ("qwen2", YARN | {"rope.scaling.yarn_attn_factor": 0.5}, {}, "only 1.0 can be loaded"),
    "log multiplier": ("qwen2", YARN | {"rope.scaling.yarn_log_multiplier": 0.1}, {}, "yarn_log_multiplier"),
    "layers of several widths": (
        "llama", {"feed_forward_length": [96, 64]}, {}, "feed_forward_length = [96, 64] would be lost"
    ),
    "not rotary": ("gpt2", {}, {"rope_freqs.weight": tensor(UNEVEN)}, "its positions are not rotary"),
    "rotary key, not rotary": ("gpt2", {"rope.freq_base": 1e4}, {}, "rope.freq_base = 10000.0 would be lost"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_would_be_lost_are_refused(tmp_path: Path, case: str) -> None:
    kind, metadata, tensors, words = REFUSED[case]
    write(tmp_path / "x.gguf", model(kind), metadata=metadata, tensors=tensors)
    line = said(tmp_path / "x.gguf")
    assert words in line and line.endswith("give the model's safetensors instead")


def test_settings_at_which_nothing_changes(tmp_path: Path) -> None:
    neutral = {
        "expert_count": 0, "attention.causal": True, "rope.scaling.finetuned": False, "rope.scaling.factor": 0.0,
        "rope.scaling.yarn_attn_factor": 1.0,
    }  # fmt: skip
    source = model("llama")
    write(tmp_path / "x.gguf", source, metadata=neutral)
    assert torch.equal(logits(load_lm(str(tmp_path / "x.gguf"), seed=0).model), logits(source))


def test_unknown_architectures(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", model("llama"), architecture="mystery")
    line = said(tmp_path / "x.gguf")
    assert "GGUF files of architecture mystery are not read, only llama, " in line
    assert all(name in line for name in ARCHITECTURES)


STATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "phi3": ({"sliding_window": 8}, {"attention.sliding_window": 8}),
    "gemma2": ({"sliding_window": 8, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.2}, {}),
    "qwen3": ({"head_dim": 32}, {}),
    "gemma3": ({"sliding_window": 5}, {}),
    "qwen2moe": ({"num_experts_per_tok": 3}, {}),
    "llama": ({"head_dim": 32, "rms_norm_eps": 0.1}, {"attention.key_length": 32, "attention.value_length": 32}),
}
"""Settings unlike the defaults of transformers' configuration, and keys that the writer does not write by itself."""


@pytest.mark.parametrize("kind", STATED)
def test_settings_unlike_the_defaults_are_read(tmp_path: Path, kind: str) -> None:
    unlike, metadata = STATED[kind]
    source = model(kind, **unlike)
    write(tmp_path / "x.gguf", source, metadata=metadata)
    loaded = load_lm(str(tmp_path / "x.gguf"), seed=0)
    if kind in ("gemma2", "gemma3"):  # files do not state the scale of attention, which is a head's size
        source = model(kind, **unlike, query_pre_attn_scalar=256)
    assert torch.equal(logits(loaded.model), logits(source))
    by_default = {name: type(source.config)().to_dict()[name] for name in unlike}
    assert float((logits(source) - logits(_with(source, by_default, kind))).abs().max()) > 1e-3


def _with(source: nn.Module, settings: dict[str, Any], kind: str) -> nn.Module:
    """Another model with the same weights where they fit."""
    other = model(kind, **settings)
    if "head_dim" not in settings:
        other.load_state_dict(source.state_dict())
    return other


@pytest.mark.parametrize(("kind", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_scale_of_the_gemma_of_27b_is_of_its_width(kind: str, layers: int) -> None:
    """5376 / 32 = 168 in Gemma 3, whose heads have 128 dimensions."""
    config = SimpleNamespace(num_hidden_layers=layers, hidden_size=5376, num_attention_heads=32, head_dim=128)
    assert _gemma_scale(config, kind) == 168
    config.num_hidden_layers -= 1
    assert _gemma_scale(config, kind) == 128


@pytest.mark.parametrize("stated", [True, False])
def test_layers_of_gemma_3_that_see_a_window_have_a_base_of_their_own(tmp_path: Path, stated: bool) -> None:
    """The full layers' positions are scaled, as those of the larger models are; the others' are not."""
    window = 500.0 if stated else 10000.0
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": window},
    }
    source = model("gemma3", rope_parameters=parameters, query_pre_attn_scalar=256)
    metadata = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    if stated:
        metadata["rope.freq_base_swa"] = window
    write(tmp_path / "x.gguf", source, metadata=metadata)
    loaded = load_lm(str(tmp_path / "x.gguf"), seed=0)
    assert torch.equal(logits(loaded.model), logits(source))
    assert "rotary scaling linear is read from the file: transformers' reader leaves it out" in loaded.notes
    other = model("gemma3", rope_parameters=parameters | {"sliding_attention": parameters["full_attention"]})
    assert float((logits(other) - logits(source)).abs().max()) > 1e-3
    unscaled = {"full_attention": parameters["full_attention"] | {"rope_type": "default"}}
    other = model("gemma3", rope_parameters=parameters | unscaled)
    assert float((logits(other) - logits(source)).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_the_scale_of_gemma_attention(tmp_path: Path, kind: str) -> None:
    """Files do not state it: a head's size, which transformers' reader takes for 256."""
    source = model(kind, head_dim=32, query_pre_attn_scalar=32)
    write(tmp_path / "x.gguf", source)
    loaded = load_lm(str(tmp_path / "x.gguf"), seed=0)
    assert torch.equal(logits(loaded.model), logits(source))
    assert "query_pre_attn_scalar 32 is read from the file: transformers' reader had 256" in loaded.notes
