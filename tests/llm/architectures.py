"""The table of architectures: tiny random models in fp32, and what is known of each.

To add an architecture is an entry in SOUND, or in CURED where padding on the left would move it; tests of padding,
exact products, hybrid steps, saved weights and self-checks then run on it.
"""

from typing import Any

import torch
from torch import nn

from smoothlab.llm.encoding import Encoded

ENDS: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
SHAPE: dict[str, Any] = {
    **ENDS, "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
KEYS: dict[str, Any] = {**SHAPE, "num_key_value_heads": 1}
SMALL: dict[str, Any] = {**KEYS, "head_dim": 8}
GPT: dict[str, Any] = {**ENDS, "vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
WINDOW: dict[str, Any] = {**SMALL, "sliding_window": 16}
LINEAR: dict[str, Any] = {
    **SMALL, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT: dict[str, Any] = {
    **SHAPE, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0,
}  # fmt: skip

SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("OPTConfig", {**SHAPE, "word_embed_proj_dim": 16, "ffn_dim": 32, "init_std": 0.3}),
    "llama": ("LlamaConfig", KEYS),
    "gpt2": ("GPT2Config", GPT),
    "gpt_neox": ("GPTNeoXConfig", SHAPE),
    "gptj": ("GPTJConfig", {**GPT, "rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT),
    "bloom": ("BloomConfig", {**ENDS, "vocab_size": 60, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "falcon": ("FalconConfig", {**SHAPE, "ffn_hidden_size": 32}),
    "mpt": ("MptConfig", {**ENDS, "vocab_size": 60, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 128}),
    "gemma": ("GemmaConfig", SMALL),
    "gemma2": ("Gemma2Config", WINDOW),
    "olmo2": ("Olmo2Config", KEYS),
    "stablelm": ("StableLmConfig", KEYS),
    "granite": ("GraniteConfig", KEYS),
    "cohere": ("CohereConfig", KEYS),
    "qwen3": ("Qwen3Config", SMALL),
    "qwen3_moe": ("Qwen3MoeConfig", {**SMALL, **EXPERTS}),
    "qwen2_moe": ("Qwen2MoeConfig", {**KEYS, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "olmoe": ("OlmoeConfig", {**KEYS, **EXPERTS}),
    "smollm3": ("SmolLM3Config", KEYS),
    "phi": ("PhiConfig", KEYS),
    "phi3": ("Phi3Config", {**KEYS, "sliding_window": 16}),
    "starcoder2": ("Starcoder2Config", KEYS),
    "deepseek_v3": ("DeepseekV3Config", LATENT),
    "biogpt": ("BioGptConfig", SHAPE),
    "xglm": (
        "XGLMConfig", {**ENDS, "vocab_size": 60, "d_model": 16, "ffn_dim": 32, "num_layers": 2, "attention_heads": 2}
    ),
    "mamba": ("MambaConfig", {**ENDS, "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8}),
}  # fmt: skip
"""Causal language models that need nothing: model type -> name and options of the config."""

CURED: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("MistralConfig", WINDOW),
    "mixtral": ("MixtralConfig", {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma3_text": ("Gemma3TextConfig", {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt_oss": ("GptOssConfig", {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": (
        "Qwen2Config",
        {**WINDOW, "use_sliding_window": True, "max_window_layers": 0, "layer_types": ["sliding_attention"] * 2},
    ),
    "qwen3_5_text": ("Qwen3_5TextConfig", LINEAR),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "rwkv": ("RwkvConfig", {**ENDS, "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2}),
}  # fmt: skip
"""Those that padding before the text, or between virtual tokens and text, would move."""

AHEAD: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-generation": ("BertGenerationConfig", SHAPE),
    "xlnet": ("XLNetConfig", {**ENDS, "vocab_size": 60, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}),
    "cpmant": (
        "CpmAntConfig",
        {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "dim_head": 8, "dim_ff": 32,
         "num_hidden_layers": 2, "init_std": 0.3},
    ),
}  # fmt: skip
"""Models that transformers files under causal language models and that read what is behind a token."""

LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3_longrope": (
        "Phi3Config", {**KEYS, "original_max_position_embeddings": 24, "rope_parameters": LONGROPE}
    ),
}  # fmt: skip
"""Models whose rotary factors change with the longest row of a minibatch: here beyond 24 tokens."""

CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "fnet": ("FNetConfig", SHAPE),
    "xlnet": AHEAD["xlnet"],
    "convbert": ("ConvBertConfig", {**SHAPE, "embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 1}),
    "nystromformer": ("NystromformerConfig", {**SHAPE, "num_landmarks": 4, "segment_means_seq_len": 4}),
    "mobilebert": (
        "MobileBertConfig",
        {**SHAPE, "embedding_size": 8, "intra_bottleneck_size": 16, "num_feedforward_networks": 1},
    ),
    "canine": ("CanineConfig", {**SHAPE, "num_hash_buckets": 256}),
}  # fmt: skip
"""Classifiers that padding moves."""

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", SHAPE),
    "roberta": ("RobertaConfig", SHAPE),
    "distilbert": (
        "DistilBertConfig",
        {"pad_token_id": 1, "vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    ),
    "electra": ("ElectraConfig", {**SHAPE, "embedding_size": 16}),
}
"""Classifiers that read both ways and need nothing."""

_NO_HEADS = ("rwkv", "mpt", "mamba", "xglm")
UNFIT = {
    "prompt": _NO_HEADS,
    "prefix": (*_NO_HEADS, "falcon", "qwen3_5_text", "qwen3_next", "deepseek_v3"),
    "lora": ("mamba",),
}
"""Methods that peft cannot attach: the config names no attention heads or too many, there are no keys to put, or keys
and values differ in size."""

ALL = {**SOUND, **CURED, **AHEAD, **LONG}


def rows(kind: Any) -> Encoded:
    """Five items of 5 to 40 tokens: with ten virtual ones the short ones are in a window of 16, padded they are not."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 60, (count,), generator=generator).tolist())

    lengths = (5, 9, 40, 7, 10)
    fixed = {"verbalizer": ((10,), (11,)), "classifier": ((0,), (1,))}.get(kind)
    options = tuple(fixed or (tokens(3), tokens(4)) for _ in lengths)
    return Encoded(tuple(map(tokens, lengths)), options, (0, 1, 0, 1, 0), kind, 1)


def causal(kind: str, **more: Any) -> nn.Module:
    """A causal language model, in eval mode; its weights are spread, so that what it reads moves what it says."""
    import transformers as t

    return _made(t.AutoModelForCausalLM, *ALL[kind], **more)


def classifier(kind: str, **more: Any) -> nn.Module:
    """A classifier of two classes, in eval mode."""
    import transformers as t

    return _made(t.AutoModelForSequenceClassification, *{**ALL, **CLASSIFIERS, **ENCODERS}[kind], num_labels=2, **more)


def _made(auto: Any, config: str, options: dict[str, Any], **more: Any) -> nn.Module:
    import transformers as t

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(getattr(t, config)(**{**options, **more})).eval()
        for p in model.parameters():
            with torch.no_grad():
                p += 0.1 * torch.randn_like(p)
    return model
