"""Tiny GGUF files, written with the package gguf from transformers models as llama.cpp's converter writes them.

The converter's conventions, each written out here on its own: the rows of Llama's queries and keys are reordered,
Gemma's norms are stored plus one, GPT-2's matrices are transposed, and tied embeddings are stored once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import nn

from tests.llm.tiny import tokenizer

SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
"""Rows of 64 and 96 numbers: whole blocks of 32 for Q4_1 and Q8_0."""
QUANTIZED = gguf.GGMLQuantizationType
MORE: dict[str, dict[str, Any]] = {
    # The sixth layer is the first that sees more than a window.
    "gemma3": {"num_hidden_layers": 6, "sliding_window": 8},
    "qwen2moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64
    },
}  # fmt: skip
"""Sizes that only some architectures have."""
NAMES = {"gemma3_text": "gemma3", "qwen2_moe": "qwen2moe"}
"""transformers' names of architectures -> llama.cpp's, where they differ."""
Metadata = Mapping[str, Any]


def model(kind: str, **more: Any) -> nn.Module:
    """A random causal language model of transformers, with norms that are not all one."""
    import transformers as t

    sizes = SIZES | MORE.get(kind, {}) | more
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = {
            "llama": t.LlamaConfig,
            "qwen2": t.Qwen2Config,
            "qwen3": t.Qwen3Config,
            "phi3": t.Phi3Config,
            "gemma2": t.Gemma2Config,
            "gemma3": t.Gemma3TextConfig,
            "qwen2moe": t.Qwen2MoeConfig,
            "gpt2": t.GPT2Config,
        }[kind]
        if kind == "gpt2":
            names = {"vocab_size": "vocab_size", "hidden_size": "n_embd", "num_hidden_layers": "n_layer"}
            names |= {"num_attention_heads": "n_head", "max_position_embeddings": "n_positions"}
            names |= {"intermediate_size": "n_inner", "bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id"}
            sizes = {name: sizes[key] for key, name in names.items()}
        made: nn.Module = t.AutoModelForCausalLM.from_config(config(**sizes)).eval()
        for name, p in made.named_parameters():
            if "norm" in name or name.endswith("bias") or ".ln_" in name:
                nn.init.normal_(p, mean=float(p.detach().mean()), std=0.2)
            else:
                p.data.mul_(4)  # logits that differ by more than rounding
    return made


def write(
    path: Path,
    source: nn.Module,
    *,
    types: Mapping[str, Any] | None = None,
    default: Any = QUANTIZED.F32,
    metadata: Metadata | None = None,
    drop: tuple[str, ...] = (),
    tensors: Mapping[str, np.ndarray] | None = None,
    architecture: str = "",
    words: int | None = None,
) -> dict[str, np.ndarray]:
    """Write a GGUF file; what a reader of it should get as the weights of `source`, by transformers' names.

    Args:
        path: of the file.
        source: made by `model`.
        types: ending of a tensor's name -> quantization.
        default: quantization of the other matrices; vectors are F32 always.
        metadata: keys and values to write beside, or instead of, the converter's.
        drop: keys to leave out.
        tensors: more tensors, such as rope_freqs.weight.
        architecture: instead of the model's own.
        words: number of tokens, the first of micro's vocabulary; by default those of the model, 0 for no tokenizer.
    """
    config: Any = source.config
    kind = NAMES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture or kind)
    keys = settings(config) | dict(metadata or {})
    for key, value in keys.items():
        if key not in drop:
            add(writer, key, value, architecture or kind)
    if words is None:
        words = config.vocab_size
    if words:
        add_tokenizer(writer, words, drop, keys)
    kinds = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[kind], config.num_hidden_layers)
    found = {}
    for name, p in source.named_parameters():
        values = p.detach().float().numpy()
        read = []
        for target, part in parts(name, stored_as(name, values, config), names):
            chosen = QUANTIZED.F32
            if part.ndim > 1:
                chosen = next((q for end, q in (types or {}).items() if end in target), default)
            raw = gguf.quantize(np.ascontiguousarray(part), chosen)
            writer.add_tensor(target, raw, raw_dtype=chosen)
            read.append(gguf.dequantize(raw, chosen).reshape(part.shape))
        found[name] = read_as(name, np.concatenate(read, 1 if len(read) > 1 else 0), config).reshape(values.shape)
    for name, more in (tensors or {}).items():
        writer.add_tensor(name, more)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def parts(name: str, stored: np.ndarray, names: Any) -> list[tuple[str, np.ndarray]]:
    """Names and values of the tensors that hold one weight: the experts' gates and their inputs lie apart."""
    if name.endswith("experts.gate_up_proj"):
        layer, half = name.split(".")[2], stored.shape[1] // 2
        return [
            (f"blk.{layer}.ffn_gate_exps.weight", stored[:, :half]),
            (f"blk.{layer}.ffn_up_exps.weight", stored[:, half:]),
        ]
    if name.endswith("experts.down_proj"):
        return [(f"blk.{name.split('.')[2]}.ffn_down_exps.weight", stored)]
    target = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert target is not None, name
    return [(target, stored)]


def settings(config: Any) -> dict[str, Any]:
    """The architecture's keys, as the converter writes them."""
    if config.model_type == "gpt2":
        return {
            "context_length": config.n_positions, "block_count": config.n_layer, "embedding_length": config.n_embd,
            "feed_forward_length": config.n_inner, "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }  # fmt: skip
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope: dict[str, Any] = config.rope_parameters
    rope = rope.get("full_attention", rope)
    keys = {
        "context_length": config.max_position_embeddings, "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
    }  # fmt: skip
    if config.model_type == "qwen2_moe":
        keys |= {
            "expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
            "expert_shared_feed_forward_length": config.shared_expert_intermediate_size,
        }  # fmt: skip
    if config.model_type in ("llama", "phi3"):
        keys |= {"vocab_size": config.vocab_size, "rope.dimension_count": head}
    if config.model_type in ("qwen3", "gemma2", "gemma3_text"):
        keys |= {"attention.key_length": head, "attention.value_length": head}
    if config.model_type == "gemma3_text":
        keys |= {"attention.sliding_window": config.sliding_window}
    if config.model_type == "gemma2":
        keys |= {
            "attention.sliding_window": config.sliding_window,
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
        }
    return keys


def add(writer: Any, key: str, value: Any, architecture: str) -> None:
    """A key with its value; one without "general" or "tokenizer" before it is the architecture's own."""
    if not key.startswith(("general.", "tokenizer.", "split.")):
        key = f"{architecture}.{key}"
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


def add_tokenizer(writer: Any, size: int, drop: tuple[str, ...], keys: Metadata) -> None:
    """A byte-level vocabulary of the first words of micro's, with the merges among them."""
    import json

    held = json.loads(tokenizer().backend_tokenizer.to_str())["model"]
    words = sorted(held["vocab"], key=held["vocab"].__getitem__)[:size]
    pairs = [" ".join(pair) for pair in held["merges"]]
    pairs = [pair for pair in pairs if set(pair.split(" ")) <= set(words) and pair.replace(" ", "") in words]
    writer.add_tokenizer_model("gpt2")
    if "tokenizer.ggml.pre" not in (*drop, *keys):
        writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3] * 4 + [1] * (size - 4))
    writer.add_token_merges(pairs)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)


def stored_as(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """Weights in llama.cpp's form."""
    if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if config.model_type in ("gemma2", "gemma3_text") and "norm" in name:
        return values + 1
    if name.endswith("shared_expert_gate.weight"):
        return values[0]
    if config.model_type == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    return values


def read_as(name: str, stored: np.ndarray, config: Any) -> np.ndarray:
    """Weights in transformers' form, from llama.cpp's: index by index, where the writer above reshapes."""
    if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        size = stored.shape[0] // heads
        rows = np.empty_like(stored)
        for row in range(stored.shape[0]):
            head, place = divmod(row, size)
            pair, half = divmod(place, 2)
            rows[head * size + half * size // 2 + pair] = stored[row]
        return rows
    if config.model_type in ("gemma2", "gemma3_text") and "norm" in name:
        return stored - 1
    if config.model_type == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return stored.T
    return stored
