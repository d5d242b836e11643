"""Tiny random models of many families, built as data: what a sound model is, for checks that must leave it alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from smoothlab.blocks import Loss

_SHAPE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 1,
    "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
_DENSE = {**_SHAPE, "intermediate_size": 32, "initializer_range": 0.2}
_GROUPED = {**_DENSE, "num_key_value_heads": 1, "head_dim": 8}
_GPT = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}

CAUSAL: dict[str, Callable[[Any], Any]] = {
    "opt": lambda t: t.OPTConfig(
        **_SHAPE, word_embed_proj_dim=16, ffn_dim=32, activation_function="gelu", dropout=0.0, init_std=0.2
    ),
    "gpt2": lambda t: t.GPT2Config(**_GPT, pad_token_id=1, eos_token_id=2, bos_token_id=2),
    "gpt_neox": lambda t: t.GPTNeoXConfig(**_DENSE),
    "llama": lambda t: t.LlamaConfig(**_GROUPED),
    "qwen2": lambda t: t.Qwen2Config(**_DENSE, num_key_value_heads=1),
    "qwen3": lambda t: t.Qwen3Config(**_GROUPED),
    "gemma": lambda t: t.GemmaConfig(**_GROUPED),
    "gemma2": lambda t: t.Gemma2Config(**_GROUPED),
    "gemma3": lambda t: t.Gemma3TextConfig(**_GROUPED, sliding_window=4),
    "mistral": lambda t: t.MistralConfig(**_GROUPED, sliding_window=4),
    "phi": lambda t: t.PhiConfig(**_DENSE),
    "phi3": lambda t: t.Phi3Config(**_DENSE),
    "bloom": lambda t: t.BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.2),
    "falcon": lambda t: t.FalconConfig(**_SHAPE, initializer_range=0.2),
    "stablelm": lambda t: t.StableLmConfig(**_DENSE, num_key_value_heads=2),
    "olmo2": lambda t: t.Olmo2Config(**_DENSE),
    "cohere": lambda t: t.CohereConfig(**_DENSE),
    "granite": lambda t: t.GraniteConfig(**_DENSE),
    "gptj": lambda t: t.GPTJConfig(**_GPT, rotary_dim=4),
    "smollm3": lambda t: t.SmolLM3Config(**_DENSE, num_key_value_heads=1),
}
"""Model type -> its configuration, given the module transformers; all with smooth activations."""

CLASSIFIERS: dict[str, Callable[[Any], Any]] = {
    "bert": lambda t: t.BertConfig(**_DENSE),
    "roberta": lambda t: t.RobertaConfig(**_DENSE),
    "distilbert": lambda t: t.DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "electra": lambda t: t.ElectraConfig(**_DENSE, embedding_size=16),
}
"""Families that are classifiers here, likewise."""

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 1, 1, 1]])
MASK = (IDS != 1).long()


def family(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random model of the family, in eval mode; the global generator is left as it was."""
    import transformers as t

    config = {**CAUSAL, **CLASSIFIERS}[kind](t)
    make: Any = t.AutoModelForCausalLM if kind in CAUSAL else t.AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = make.from_config(config)
    return model.to(dtype).eval()


def loss_of(model: Any, kind: str) -> Loss:
    """The mean loss of two padded rows: next tokens for language models, two classes for classifiers."""
    labels = IDS.masked_fill(MASK == 0, -100) if kind in CAUSAL else torch.tensor([0, 1])
    return lambda: model(input_ids=IDS, attention_mask=MASK, labels=labels).loss
