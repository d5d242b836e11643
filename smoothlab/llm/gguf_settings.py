"""Settings of a GGUF file, compared with the configuration that transformers makes of them.

transformers' reader takes the settings in its own table and leaves out the others without a word, in version 5.23 the
rotary scaling of Llama 3.1 and its successors (rope.scaling.*, rope_freqs). The loss would then be another model's.
Here each key of the architecture is looked up in ARCHITECTURES and brought into the configuration; a key that no table
knows, or a value that the configuration cannot hold, is refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smoothlab.errors import BadInput
from smoothlab.llm.gguf_files import Header
from smoothlab.llm.gguf_rope import ROPE_KEYS, WINDOW_BASE, head_size, refused, require, rope


@dataclass(frozen=True)
class Architecture:
    """Names of the settings of one architecture.

    Attributes:
        attributes: key -> attribute of transformers' configuration, beside those of COMMON.
        rotary: whether positions are rotary.
        partial: whether fewer dimensions than a head has may be rotated.
        windows: whether layers that see a sliding window have rotary embeddings of their own.
        without: keys of COMMON that the architecture has no attribute for.
    """

    attributes: Mapping[str, str] = field(default_factory=dict)
    rotary: bool = True
    partial: bool = False
    windows: bool = False
    without: tuple[str, ...] = ()


COMMON = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
}
"""Keys of most architectures -> attribute of transformers' configuration."""
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "phi3": Architecture({"attention.sliding_window": "sliding_window"}, partial=True),
    "gemma2": Architecture(
        {
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        }
    ),
    "gemma3": Architecture({"attention.sliding_window": "sliding_window"}, windows=True),
    "qwen2moe": Architecture(
        {
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        }
    ),
    "gpt2": Architecture(
        {
            "context_length": "n_positions",
            "block_count": "n_layer",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        rotary=False,
        without=("attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length"),
    ),
}
"""llama.cpp's name of an architecture -> its settings; the tests compare logits of each with those of its source."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "pooling_type": (0,),
    "rope.scaling.yarn_attn_factor": (1.0,),  # versions of llama.cpp disagree on what it multiplies
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (True,),
}
"""Keys that may be there with these values, under which they change nothing."""
IGNORED = ("rope.scaling.finetuned", "tensor_data_layout")
"""Keys that no result depends on."""
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Layers of the Gemma whose attention is not scaled by the size of a head; GGUF files do not state the scale."""


def settle(config: Any, header: Header) -> list[str]:
    """Complete the configuration that transformers read from a GGUF file; returns a note for each addition.

    Args:
        config: transformers' configuration of the file, which is changed.
        header: of the file.

    Raises:
        BadInput: a setting that transformers' model of this type cannot have.
    """
    architecture, attributes = ARCHITECTURES[header.architecture], _attributes(header)
    notes = []
    for key in sorted(header.own_keys):
        value = header.setting(key)
        if key in attributes:
            notes += _set_attribute(config, attributes[key], value)
        elif key == "attention.value_length":
            require(value == head_size(config), header, key, f"its heads have {head_size(config)} keys")
        elif key in NEUTRAL:
            require(value in NEUTRAL[key], header, key, f"only {NEUTRAL[key][0]} can be loaded")
        elif not (
            key in IGNORED
            or (architecture.rotary and key in ROPE_KEYS)
            or (architecture.windows and key == WINDOW_BASE)
        ):
            raise refused(header, key, value, "transformers' reader does not know this setting")
    if architecture.rotary:
        notes += rope(config, header, partial=architecture.partial, windows=architecture.windows)
    elif header.rope:
        raise refused(header, next(iter(header.rope)), "present", "its positions are not rotary")
    if header.architecture in GEMMA_27B_LAYERS:
        notes += _set_attribute(config, "query_pre_attn_scalar", _gemma_scale(config, header.architecture))
    if "attention.head_count_kv" not in header.own_keys and "attention.head_count_kv" in attributes:
        config.num_key_value_heads = config.num_attention_heads  # as in llama.cpp
    # Biases are told by their tensors alone.
    for attribute, tensor in (("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_up.bias")):
        if header.architecture == "llama" and tensor in header.tensors:
            notes += _set_attribute(config, attribute, True)
    return notes


def check(header: Header) -> None:
    """Refuse architectures that are not in the table, and settings that differ from layer to layer.

    Raises:
        BadInput: an architecture without an entry in ARCHITECTURES, or a list where the model has one value.
    """
    if header.architecture not in ARCHITECTURES:
        raise BadInput(
            f"cannot load model '{header.path}': GGUF files of architecture {header.architecture} are not read, only "
            f"{', '.join(ARCHITECTURES)}; give the model's safetensors instead"
        )
    for key in _attributes(header):
        listed = isinstance(header.setting(key), list)
        require(not listed, header, key, "transformers' model has one value for all layers")


def _attributes(header: Header) -> dict[str, str]:
    """Key -> attribute of transformers' configuration."""
    architecture = ARCHITECTURES[header.architecture]
    attributes = COMMON | dict(architecture.attributes)
    for key in architecture.without:
        del attributes[key]
    return attributes


def _set_attribute(config: Any, attribute: str, value: Any) -> list[str]:
    """Set a value of the configuration; returns a note where it had another one."""
    previous = getattr(config, attribute, None)
    equal = previous == value
    if isinstance(value, float) and isinstance(previous, int | float):
        equal = math.isclose(previous, value, rel_tol=1e-6)  # files hold numbers in single precision
    if equal:
        return []
    setattr(config, attribute, value)
    if previous is None:
        return []
    return [f"{attribute} {value} is read from the file: transformers' reader had {previous}"]


def _gemma_scale(config: Any, architecture: str) -> int:
    """The number whose root Gemma 2 and 3 divide attention scores by."""
    if config.num_hidden_layers == GEMMA_27B_LAYERS[architecture]:
        return int(config.hidden_size // config.num_attention_heads)
    return head_size(config)
