"""Tiny transformers models in fp64, and one padded minibatch for them."""

import torch
from torch import nn

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 1, 1, 1]])
MASK = (IDS != 1).long()
LABELS = torch.tensor([0, 1])


def tiny(kind: str) -> nn.Module:
    """A sequence classifier of two layers, hidden size 16, with its default SDPA attention."""
    from transformers import LlamaConfig, LlamaForSequenceClassification, OPTConfig, OPTForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "opt":
            model: nn.Module = OPTForSequenceClassification(
                OPTConfig(
                    vocab_size=60, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2,
                    ffn_dim=32, max_position_embeddings=64, num_labels=2, activation_function="gelu", dropout=0.0,
                )
            )  # fmt: skip
        else:
            model = LlamaForSequenceClassification(
                LlamaConfig(
                    vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=2, max_position_embeddings=64, num_labels=2, pad_token_id=1,
                )
            )  # fmt: skip
    return model.double().eval()
