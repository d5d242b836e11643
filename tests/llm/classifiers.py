"""Tiny checkpoints of several families as folders, which a classifier can be made of, with micro's tokenizer."""

from pathlib import Path
from typing import Any

import torch

from tests.llm.tiny import tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 1,
}  # fmt: skip
SHAPED = {**SHAPE, "intermediate_size": 32, "initializer_range": 0.3}  # at 0.02 all sentences look alike to two layers


def checkpoint(folder: Path, kind: str) -> Path:
    """A folder with a random model of the family: without a classifier's head, but for those named -classifier."""
    import transformers as t

    def bart() -> Any:
        sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in
                 (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
        return t.BartConfig(
            vocab_size=4096, d_model=16, max_position_embeddings=64, pad_token_id=1, eos_token_id=2, **sizes
        )

    opt = t.OPTConfig(**SHAPE, word_embed_proj_dim=16, ffn_dim=32, dropout=0.0)
    made = {
        "opt": lambda: t.OPTForCausalLM(opt),
        "opt-classifier": lambda: t.OPTForSequenceClassification(opt),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SHAPED)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=4096, n_embd=16, n_layer=1, n_head=2, n_positions=64)
        ),
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(**SHAPED)),
        "bert-classifier": lambda: t.BertForSequenceClassification(t.BertConfig(**SHAPED)),
        "bert-decoder": lambda: t.BertLMHeadModel(t.BertConfig(**SHAPED, is_decoder=True)),
        "roberta": lambda: t.RobertaForMaskedLM(t.RobertaConfig(**SHAPED)),
        "distilbert": lambda: t.DistilBertForMaskedLM(
            t.DistilBertConfig(
                vocab_size=4096, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=64
            )
        ),
        "esm": lambda: t.EsmForMaskedLM(t.EsmConfig(**SHAPED, mask_token_id=3, token_dropout=False)),
        "bart": lambda: t.BartForConditionalGeneration(bart()),
        "xlnet": lambda: t.XLNetLMHeadModel(
            t.XLNetConfig(vocab_size=4096, d_model=16, n_layer=1, n_head=2, d_inner=32, pad_token_id=1)
        ),
        "vit": lambda: t.ViTForImageClassification(
            t.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        ),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = made()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
