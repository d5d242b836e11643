#!/usr/bin/env bash
# transformers 5.23.0: in model.double() the loss of a causal language model is fp32, and its logits may be, too.
#
# Guess: after model.double(), losses and logits have fp64's resolution, about 1e-16; attn_implementation="eager", plain
#        matrix products and a softmax, is the reference to hold faster kernels against.
# Seen:  .loss of Llama, OPT and GPT-2 has dtype float32, BERT's float64. All logits have dtype float64, but those of Llama
#        have noise of 1e-8 (its norm computes in fp32), and OPT's have it with eager attention (softmax in fp32) and not
#        with sdpa. Eager attention with left padding gives nan throughout; sdpa does not.
# Who meets it: whoever takes finite differences or checks gradients in fp64: steps of 1e-6 measure rounding.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import warnings

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
common = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
configs = {
    "llama": transformers.LlamaConfig(**common, intermediate_size=32),
    "opt": transformers.OPTConfig(**common, ffn_dim=32, word_embed_proj_dim=16),
    "gpt2": transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "bert": transformers.BertConfig(**common, intermediate_size=32),
}
ids = torch.arange(3, 20)[None]


def noise(model):
    """Rounding of a mean of logits along a line, from fourth differences at steps of 1e-5, relative to its size."""
    embedding = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(embedding.shape, dtype=torch.float64, generator=generator) / embedding.numel() ** 0.5
    values = []
    for step in range(5):
        with torch.no_grad():
            embedding.add_(direction, alpha=1e-5 * step)
            logits = model(input_ids=ids).logits
            embedding.sub_(direction, alpha=1e-5 * step)
        weights = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        values.append(float((weights * logits).mean()))
    a, b, c, d, e = values
    return abs(a - 4 * b + 6 * c - 4 * d + e) / 70**0.5 / abs(a)


seen, losses = {}, {}
for name, config in configs.items():
    head = AutoModelForSequenceClassification if name == "bert" else AutoModelForCausalLM
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = head.from_config(config, attn_implementation=attention).double().eval()
        output = model(input_ids=ids, labels=torch.tensor([1]) if name == "bert" else ids)
        losses[name] = output.loss.dtype
        assert output.logits.dtype == torch.float64
        seen[name, attention] = noise(model)

padded = torch.cat([torch.zeros_like(ids[:, :3]), ids], 1)
mask = torch.arange(padded.shape[1])[None] >= 3
lost = {}
for attention in ("eager", "sdpa"):
    model = AutoModelForCausalLM.from_config(configs["llama"], attn_implementation=attention).double().eval()
    lost[attention] = bool(model(input_ids=padded, attention_mask=mask.long()).logits[:, 3:].isnan().all())

print(transformers.__version__, {name: str(dtype) for name, dtype in losses.items()})
print({" ".join(key): f"{value:.0e}" for key, value in seen.items()}, "left padding, nan:", lost)
assert losses == dict.fromkeys(("llama", "opt", "gpt2"), torch.float32) | {"bert": torch.float64}, "other dtypes of losses"
single = {("llama", "eager"), ("llama", "sdpa"), ("opt", "eager")}
assert all((value > 1e-11) == (key in single) for key, value in seen.items()), "other models have fp64's resolution now"
assert lost == {"eager": True, "sdpa": False}, "left padding is treated otherwise"
PY
