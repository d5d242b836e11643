"""Rotary embeddings of GGUF files, as parameters of transformers' configuration.

The angle of position t in pair i of D rotated dimensions is t base^(-2i/D) / s_i (Su et al., arXiv:2104.09864). The
divisor s_i is 1 without scaling, one factor for all pairs with "linear", a ramp between 1 and the factor with "yarn"
(Peng et al., arXiv:2309.00071), and a tensor of the file for Llama 3.1 and its successors and for "longrope".
"""

import math
from typing import Any

from smoothlab.errors import BadInput
from smoothlab.llm.gguf_files import Header

LLAMA_3_CONTEXT, LLAMA_3_LOW, LLAMA_3_HIGH = 8192, 1.0, 4.0
"""Rotary scaling of Llama 3.1 to 3.3: original context length, and rotations in it that bound the ramp."""
YARN_FAST, YARN_SLOW = 32.0, 1.0
"""Rotations at which YaRN's ramp begins and ends where the file states none, in llama.cpp and in transformers."""
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
"""Tensors of divisors: for all inputs, and for those beyond and within the original context."""
WINDOW_BASE, GEMMA_3_WINDOW_BASE = "rope.freq_base_swa", 10000.0
"""Key of the base in layers that see a sliding window, and what it is in Gemma 3, whose files do not state it."""
ROPE_KEYS = (
    "rope.freq_base", "rope.dimension_count", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)  # fmt: skip
"""Keys that `rope` reads."""


def rope(config: Any, header: Header, *, partial: bool, windows: bool = False) -> list[str]:
    """Set the file's rotary embedding in a configuration; returns a note where it is a scaled one.

    Args:
        config: transformers' configuration of the file, which is changed.
        header: of the file.
        partial: whether fewer dimensions than a head has may be rotated.
        windows: whether layers that see a sliding window have a base of their own, and no scaling.

    Raises:
        BadInput: a scaling that transformers does not have, or that the file states in part.
    """
    size = head_size(config)
    rotated = header.setting("rope.dimension_count", size)
    require(rotated == size or partial, header, "rope.dimension_count", f"its heads have {size} dimensions")
    base = float(header.setting("rope.freq_base", 10000.0))
    _check_divisors(header, rotated)
    # llama.cpp multiplies sines and cosines by this number, whatever the scaling is.
    magnitude = header.setting("rope.scaling.attn_factor")
    if FREQUENCIES in header.rope:
        scaling = _divided(config, header.rope[FREQUENCIES], base)
    else:
        scaling = _scaled(config, header, float(magnitude or 1.0))
    if "attention_factor" not in scaling or FREQUENCIES in header.rope:
        reason = f"not with rotary scaling of type {scaling['rope_type']}"
        require(magnitude in (None, 1.0), header, "rope.scaling.attn_factor", reason)
    scaling["rope_theta"] = base
    if rotated != size:
        scaling["partial_rotary_factor"] = rotated / size
    previous = dict(getattr(config, "rope_parameters", None) or {})
    config.rope_parameters = scaling
    if windows:
        previous = dict(previous.get("full_attention") or {})
        window = {"rope_type": "default", "rope_theta": float(header.setting(WINDOW_BASE, GEMMA_3_WINDOW_BASE))}
        config.rope_parameters = {"full_attention": scaling, "sliding_attention": window}
    if scaling["rope_type"] == previous.get("rope_type", "default"):
        return []
    return [f"rotary scaling {scaling['rope_type']} is read from the file: transformers' reader leaves it out"]


def _kind(header: Header) -> tuple[str, float]:
    """Type and factor of the scaling; "none" where positions are not scaled."""
    factor = float(header.setting("rope.scaling.factor", header.setting("rope.scale_linear", 1.0)))
    if factor == 0.0:
        factor = 1.0  # llama.cpp reads 0 as not stated
    kind = str(header.setting("rope.scaling.type", "linear"))  # llama.cpp's default, as older files leave it out
    if kind == "linear" and factor == 1.0:
        kind = "none"
    return kind, factor


def _scaled(config: Any, header: Header, magnitude: float) -> dict[str, Any]:
    """Rotary scaling by the file's keys, or by its two tensors of "longrope"."""
    kind, factor = _kind(header)
    context = int(header.setting("rope.scaling.original_context_length", config.max_position_embeddings))
    if header.rope:
        require(kind in ("none", "longrope"), header, "rope.scaling.type", f"it has {next(iter(header.rope))} as well")
        require(len(header.rope) == 2, header, "rope.scaling.type", f"it needs both {LONG} and {SHORT}")
        config.original_max_position_embeddings = context  # Phi-3's code reads it there
        return {
            "rope_type": "longrope",
            "short_factor": header.rope[SHORT],
            "long_factor": header.rope[LONG],
            "original_max_position_embeddings": context,
            "attention_factor": magnitude,
        }
    if kind == "none":
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    require(kind == "yarn", header, "rope.scaling.type", f"only none, linear, yarn, and longrope with {LONG} are read")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": context,
        "beta_fast": float(header.setting("rope.scaling.yarn_beta_fast", YARN_FAST)),
        "beta_slow": float(header.setting("rope.scaling.yarn_beta_slow", YARN_SLOW)),
        # llama.cpp's number comes on top of YaRN's own; transformers takes the product.
        "attention_factor": magnitude * (0.1 * math.log(max(factor, 1.0)) + 1.0),
    }


def _divided(config: Any, divisors: list[float], base: float) -> dict[str, Any]:
    """Rotary scaling by the tensor rope_freqs.

    These are Llama 3.1's own parameters where they give the same divisors. Else they are the divisors themselves: the
    type "longrope" of transformers takes a list for short and one for long inputs, which are equal here.
    """
    factor = max(divisors)
    if factor == min(divisors) == 1.0:
        return {"rope_type": "default"}
    if _close(divisors, _llama_3_divisors(len(divisors), base, factor)):
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


def _close(first: list[float], second: list[float]) -> bool:
    """Whether two lists are equal up to the single precision in which converters compute them."""
    return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(first, second, strict=True))


def _check_divisors(header: Header, rotated: int) -> None:
    """Refuse tensors of divisors that have another length than pairs of dimensions, or numbers that are no divisors."""
    if FREQUENCIES in header.rope:
        kind, _ = _kind(header)
        require(kind == "none", header, "rope.scaling.type", f"it scales by the tensor {FREQUENCIES} as well")
    for name, divisors in header.rope.items():
        if len(divisors) != rotated // 2:
            raise refused(header, name, f"{len(divisors)} numbers", f"{rotated // 2} pairs of dimensions are rotated")
        if not all(0 < divisor < math.inf for divisor in divisors):
            raise refused(header, name, "a number that is not positive", "frequencies are divided by it")


def head_size(config: Any) -> int:
    """Dimensions of an attention head."""
    stated = getattr(config, "head_dim", None)
    return int(stated or config.hidden_size // config.num_attention_heads)


def require(holds: bool, header: Header, key: str, reason: str) -> None:
    """Refuse a setting of the file unless something holds.

    Raises:
        BadInput: it does not; see `refused`.
    """
    if not holds:
        raise refused(header, key, header.setting(key), reason)


def refused(header: Header, key: str, value: Any, reason: str) -> BadInput:
    """The error for a setting of the file that would be lost."""
    return BadInput(
        f"cannot load model '{header.path}': its setting {key} = {value} would be lost ({reason}); give the model's "
        "safetensors instead"
    )
