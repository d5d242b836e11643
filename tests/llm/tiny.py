"""Tiny transformers models, one padded minibatch for classifiers, and a few encoded items for language models."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from smoothlab.llm.evaluate import Encoded
from smoothlab.llm.tasks import Kind

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 1, 1, 1]])
MASK = (IDS != 1).long()
LABELS = torch.tensor([0, 1])
SHAPE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 64,
}  # fmt: skip


def tiny(kind: str) -> nn.Module:
    """A sequence classifier of two layers, hidden size 16, in fp64, with its default SDPA attention."""
    import transformers as t

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "opt":
            model: nn.Module = t.OPTForSequenceClassification(_opt(num_labels=2))
        else:
            model = t.LlamaForSequenceClassification(_llama(num_labels=2, num_key_value_heads=2))
    return model.double().eval()


def tiny_lm(kind: str) -> nn.Module:
    """A causal language model of the same size, in fp32: OPT with tied embeddings, or Llama with grouped queries."""
    import transformers as t

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "opt":
            return t.OPTForCausalLM(_opt()).eval()
        return t.LlamaForCausalLM(_llama(num_attention_heads=4, num_key_value_heads=2)).eval()


def _opt(**more: Any) -> Any:
    from transformers import OPTConfig

    small = {"word_embed_proj_dim": 16, "num_attention_heads": 2, "ffn_dim": 32}
    return OPTConfig(**SHAPE, **small, activation_function="gelu", dropout=0.0, **more)


def _llama(**more: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPE, **{"num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": 1} | more)


def exact_norms(model: nn.Module) -> nn.Module:
    """The model with torch's RMSNorm, on the same weights, for Llama's own, which computes in fp32."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm_ = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)  # type: ignore[arg-type]
            norm_.weight = module.weight  # type: ignore[assignment]
            model.set_submodule(name, norm_)
    return model


def encoded(kind: Kind) -> Encoded:
    """Six items of 3 to 12 tokens, with candidates of one token, or of two to five."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 60, (count,), generator=generator).tolist())

    contexts = tuple(tokens(n) for n in (3, 7, 12, 5, 7, 4))
    words = ((10,), (11,))
    options = tuple(words if kind == "verbalizer" else (tokens(2 + i % 3), tokens(5 - i % 2)) for i in range(6))
    return Encoded(contexts, options, (0, 1, 0, 1, 1, 0), kind, 1)


def tokenizer() -> Any:
    """micro's."""
    from transformers import AutoTokenizer

    import smoothlab.llm.micro as micro

    return AutoTokenizer.from_pretrained(Path(str(micro.__file__)).parent)
