#!/usr/bin/env bash
# transformers 5.23.0: with pad_token_id = eos_token_id, the gradient of that token's embedding is 0, though it moves the loss.
#
# Guess: padding is masked by attention_mask and labels; pad_token_id names a token and changes no derivative of rows
#        without padding.
# Seen:  Llama's embedding gets padding_idx = config.pad_token_id when it is made, and torch's Embedding then drops the
#        gradient of that row wherever the token stands. With pad = eos, in a row of real text with <eos> between its
#        sentences, autograd says 0 where differences of the loss, and autograd without a pad token, say 4.39. Setting
#        config.pad_token_id after the model is made does nothing.
# Who meets it: whoever trains embeddings of a model whose tokenizer has no pad token of its own; zeroth-order steps move
#        the row and first-order steps don't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import torch
import transformers

eos, ids = 2, torch.tensor([[5, 6, 2, 7, 8, 2, 9]])


def slopes(pad, later=False):
    """Slope of the loss along the row of <eos> in the embedding: by autograd, by central differences."""
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.2, eos_token_id=eos, pad_token_id=None if later else pad,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    if later:
        model.config.pad_token_id = pad
    embedding = model.model.embed_tokens.weight
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        embedding[eos] = 0.2 * torch.randn(16, generator=generator)
    direction = torch.randn(16, generator=generator)

    def loss():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss

    loss().backward()
    values = []
    with torch.no_grad():
        start = embedding[eos].clone()
        for step in (1e-3, -1e-3):
            embedding[eos] = start + step * direction
            values.append(float(loss()))
    return float(embedding.grad[eos] @ direction), (values[0] - values[1]) / 2e-3


seen = {"pad None": slopes(None), "pad = eos": slopes(eos), "pad = eos, set later": slopes(eos, later=True)}
print(transformers.__version__, {name: f"{a:.4f} (differences {b:.4f})" for name, (a, b) in seen.items()})
assert all(abs(b) > 0.1 for _, b in seen.values()), "the row does not move the loss"
for name in ("pad None", "pad = eos, set later"):
    exact, difference = seen[name]
    assert abs(exact / difference - 1) < 1e-2, f"{name}: the gradient is not the loss's"
assert seen["pad = eos"][0] == 0, "the gradient of the padding row is kept now"
PY
