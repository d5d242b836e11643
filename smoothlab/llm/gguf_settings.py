"""Settings of a GGUF file, held against the configuration that transformers makes of them: read, equal, or refused.

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

LLAMA_3_CONTEXT, LLAMA_3_LOW, LLAMA_3_HIGH = 8192, 1.0, 4.0
"""Rotary scaling of Llama 3.1 to 3.3: original context length, and rotations in it that bound the ramp."""
YARN_FAST, YARN_SLOW = 32.0, 1.0
"""Rotations at which YaRN's ramp begins and ends where the file states none, in llama.cpp and in transformers."""


@dataclass(frozen=True)
class Architecture:
    """How the settings of one architecture are called.

    Attributes:
        attributes: key -> attribute of transformers' configuration, beside those of COMMON.
        rotary: whether positions are rotary.
        partial: whether fewer dimensions than a head has may be rotated.
        without: keys of COMMON that the architecture has no attribute for.
    """

    attributes: Mapping[str, str] = field(default_factory=dict)
    rotary: bool = True
    partial: bool = False
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
ROPE_KEYS = (
    "rope.freq_base", "rope.dimension_count", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
)  # fmt: skip
"""Keys that `_rope` reads."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "pooling_type": (0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (True,),
}
"""Keys that may be there with these values, under which they change nothing."""
IGNORED = ("rope.scaling.finetuned", "tensor_data_layout")
"""Keys that no result depends on."""
GEMMA_2_27B_LAYERS = 46
"""Layers of the one Gemma 2 whose attention is not scaled by the size of a head; GGUF files do not state the scale."""


def settle(config: Any, header: Header) -> list[str]:
    """Complete the configuration that transformers read from a GGUF file; what was added, for the reader.

    Args:
        config: transformers' configuration of the file, which is changed.
        header: of the file.

    Raises:
        BadInput: a setting that transformers' model of this type cannot have.
    """
    known, attributes = ARCHITECTURES[header.architecture], _attributes(header)
    notes = []
    for key in sorted(_own_keys(header)):
        value = header.setting(key)
        if key in attributes:
            notes += _hold(config, attributes[key], value)
        elif key == "attention.value_length":
            _require(value == _head_size(config), header, key, f"its heads have {_head_size(config)} keys")
        elif key in NEUTRAL:
            _require(value in NEUTRAL[key], header, key, f"only {NEUTRAL[key][0]} can be loaded")
        elif not (key in IGNORED or (known.rotary and key in ROPE_KEYS)):
            _require(False, header, key, "transformers' reader does not know this setting")
    if known.rotary:
        notes += _rope(config, header, partial=known.partial)
    elif header.rope:
        raise _refused(header, next(iter(header.rope)), "present", "its positions are not rotary")
    if header.architecture == "gemma2":
        notes += _hold(config, "query_pre_attn_scalar", _gemma_2_scale(config))
    if f"{header.architecture}.attention.head_count_kv" not in header.metadata and hasattr(
        config, "num_key_value_heads"
    ):
        config.num_key_value_heads = config.num_attention_heads  # what llama.cpp does without the key
    # Biases are told by their tensors alone.
    for attribute, tensor in (("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_up.bias")):
        if header.architecture == "llama" and tensor in header.tensors:
            notes += _hold(config, attribute, True)
    return notes


def check(header: Header) -> None:
    """Refuse what transformers' reader would stumble over: other architectures, and settings layer by layer.

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
        _require(not listed, header, key, "transformers' model has one value for all layers")


def _attributes(header: Header) -> dict[str, str]:
    """Key -> attribute of transformers' configuration."""
    known = ARCHITECTURES[header.architecture]
    return {key: name for key, name in COMMON.items() if key not in known.without} | dict(known.attributes)


def _own_keys(header: Header) -> list[str]:
    """Keys of the architecture, without its name."""
    prefix = header.architecture + "."
    return [key.removeprefix(prefix) for key in header.metadata if key.startswith(prefix)]


def _hold(config: Any, attribute: str, value: Any) -> list[str]:
    """Let the configuration hold a value; a note where it held another one."""
    held = getattr(config, attribute, None)
    same = held == value
    if isinstance(value, float) and isinstance(held, int | float):
        same = math.isclose(held, value, rel_tol=1e-6)  # files hold numbers in single precision
    if same:
        return []
    setattr(config, attribute, value)
    if held is None:
        return []
    return [f"{attribute} {value} is read from the file: transformers' reader had {held}"]


def _rope(config: Any, header: Header, *, partial: bool) -> list[str]:
    """Let the configuration hold the file's rotary embedding; a note where it is not the unscaled one.

    The angle of position t in pair i of D rotated dimensions is t base^(-2i/D) / s_i, where s_i is 1 without scaling,
    the factor with "linear", and the i-th number of the tensor rope_freqs where the file has one.
    """
    rotated = header.setting("rope.dimension_count", _head_size(config))
    whole = rotated == _head_size(config)
    _require(whole or partial, header, "rope.dimension_count", f"its heads have {_head_size(config)} dimensions")
    base = float(header.setting("rope.freq_base", 10000.0))
    kind = header.setting("rope.scaling.type", "none")
    factor = float(header.setting("rope.scaling.factor", header.setting("rope.scale_linear", 1.0)))
    if kind == "none" and "rope.scale_linear" in _own_keys(header):
        kind = "linear"  # as older files say it
    context = int(header.setting("rope.scaling.original_context_length", config.max_position_embeddings))
    magnitude = header.setting("rope.scaling.attn_factor", header.setting("rope.scaling.yarn_attn_factor"))
    tables = dict(header.rope)
    _check_tables(header, tables, rotated)
    scaling: dict[str, Any]
    if tables and kind not in ("none", "longrope"):
        raise _refused(header, "rope.scaling.type", kind, f"it scales by the tensor {next(iter(tables))} as well")
    if "rope_freqs.weight" in tables:
        scaling = _divided(config, tables["rope_freqs.weight"], base)
    elif tables:
        scaling = {
            "rope_type": "longrope",
            "short_factor": tables.get("rope_factors_short.weight"),
            "long_factor": tables.get("rope_factors_long.weight"),
            "original_max_position_embeddings": context,
            "attention_factor": float(magnitude or 1.0),
        }
        _require(len(tables) == 2, header, "rope.scaling.type", "it needs both rope_factors_long and _short")
        magnitude = None
        config.original_max_position_embeddings = context
    elif kind in ("none", "linear") and factor == 1.0:
        scaling = {"rope_type": "default"}
    elif kind == "linear":
        scaling = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context}
        scaling["beta_fast"] = float(header.setting("rope.scaling.yarn_beta_fast", YARN_FAST))
        scaling["beta_slow"] = float(header.setting("rope.scaling.yarn_beta_slow", YARN_SLOW))
        # llama.cpp multiplies YaRN's own factor; transformers takes the product.
        scaling["attention_factor"] = float(magnitude or 1.0) * (0.1 * math.log(factor) + 1.0)
        magnitude = None
    else:
        raise _refused(header, "rope.scaling.type", kind, "only none, linear, yarn, and longrope with its tensors are")
    _require(magnitude in (None, 1.0), header, "rope.scaling.attn_factor", f"not with rotary scaling of type {kind}")
    scaling["rope_theta"] = base
    if not whole:
        scaling["partial_rotary_factor"] = rotated / _head_size(config)
    held = dict(getattr(config, "rope_parameters", None) or {})
    config.rope_parameters = scaling
    if scaling["rope_type"] == held.get("rope_type", "default"):
        return []
    return [f"rotary scaling {scaling['rope_type']} is read from the file: transformers' reader leaves it out"]


def _divided(config: Any, divisors: list[float], base: float) -> dict[str, Any]:
    """Rotary scaling that divides the frequencies by the tensor rope_freqs.

    Llama 3.1's own parameters where they give these divisors; else the divisors themselves, which transformers' type
    "longrope" takes as a list for short and one for long inputs, here equal.
    """
    if all(divisor == 1.0 for divisor in divisors):
        return {"rope_type": "default"}
    factor = max(divisors)
    if all(
        math.isclose(divisor, expected, rel_tol=1e-4)
        for divisor, expected in zip(divisors, _llama_3_divisors(len(divisors), base, factor), strict=True)
    ):
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LLAMA_3_LOW,
            "high_freq_factor": LLAMA_3_HIGH,
            "original_max_position_embeddings": LLAMA_3_CONTEXT,
        }
    return {
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "original_max_position_embeddings": config.max_position_embeddings,
        "attention_factor": 1.0,
    }


def _llama_3_divisors(pairs: int, base: float, factor: float) -> list[float]:
    """Divisors of the frequencies in Llama 3.1: 1 for short waves, `factor` for long ones, between them a ramp."""
    divisors = []
    for i in range(pairs):
        rotations = LLAMA_3_CONTEXT / (2 * math.pi * base ** (i / pairs))  # in the original context
        part = min(max((rotations - LLAMA_3_LOW) / (LLAMA_3_HIGH - LLAMA_3_LOW), 0.0), 1.0)
        divisors.append(1 / ((1 - part) / factor + part))
    return divisors


def _check_tables(header: Header, tables: Mapping[str, list[float]], rotated: int) -> None:
    """Refuse tensors of divisors that have another length than pairs of dimensions, or numbers that are no divisors."""
    for name, divisors in tables.items():
        if len(divisors) != rotated // 2:
            raise _refused(header, name, f"{len(divisors)} numbers", f"{rotated // 2} pairs of dimensions are rotated")
        if not all(math.isfinite(divisor) and divisor > 0 for divisor in divisors):
            raise _refused(header, name, "a number that is not positive", "frequencies are divided by it")


def _head_size(config: Any) -> int:
    """Dimensions of an attention head."""
    stated = getattr(config, "head_dim", None)
    return int(stated or config.hidden_size // config.num_attention_heads)


def _gemma_2_scale(config: Any) -> int:
    """The number whose root Gemma 2 divides attention scores by."""
    if config.num_hidden_layers == GEMMA_2_27B_LAYERS:
        return int(config.hidden_size // config.num_attention_heads)
    return _head_size(config)


def _require(holds: bool, header: Header, key: str, reason: str) -> None:
    if not holds:
        raise _refused(header, key, header.setting(key), reason)


def _refused(header: Header, key: str, value: Any, reason: str) -> BadInput:
    """The complaint about a setting that would be lost."""
    return BadInput(
        f"cannot load model '{header.path}': its setting {key} = {value} would be lost ({reason}); give the model's "
        "safetensors instead"
    )
