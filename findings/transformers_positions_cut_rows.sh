#!/usr/bin/env bash
# transformers 5.23.0: position_ids with a gap cut a row in two, where there is no attention mask and use_cache is off.
#
# Guess: position_ids say where a token stands, and change rotary or learned embeddings alone: what is before a token stays visible
#        whatever its position, a mask of ones is no mask, and use_cache changes what is kept, not what is computed.
# Seen:  where there is neither a mask nor a cache, each step of position_ids other than +1 begins a new sequence, which does not see
#        what is before it. With positions 0 to 7 and 108 to 115, as training for long contexts skips some (PoSE), the second half is
#        computed as if it were alone: Llama's logits are off by 27 % from those with a mask of ones, or with the cache that is
#        on by default. The same call means two things: activation checkpointing, which is to change nothing and turns the
#        cache off, changes the gradient by 38 %. The other way round, packed rows, whose positions begin anew, see each other
#        as long as the cache is on, and with a mask of ones always. So in Llama, Qwen3 and GPT-2, with sdpa and with eager
#        attention. The one warning is that checkpointing sets use_cache to False, not what depends on it.
#        The mask of ones is known: https://github.com/huggingface/transformers/pull/46634.
# Who meets it: whoever skips positions, or drops tokens and leaves the positions of the others, and switches checkpointing on;
#        whoever packs rows for a model whose cache is on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn >&2)
import torch
import transformers

transformers.logging.set_verbosity_error()
SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = [
    transformers.LlamaConfig(intermediate_size=64, **SHAPE),
    transformers.Qwen3Config(intermediate_size=64, num_key_value_heads=2, head_dim=16, **SHAPE),
    transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
]
torch.manual_seed(0)
ids = torch.randint(3, 60, (1, 16))
ones = torch.ones_like(ids)
gap = torch.cat([torch.arange(8), 108 + torch.arange(8)])[None]
packed = torch.cat([torch.arange(8), torch.arange(8)])[None]


def distance(a, b):
    return float((a - b).norm() / b.norm())


def gradient(model, checkpointing):
    model.train()
    model.activation_checkpointing_enable() if checkpointing else model.activation_checkpointing_disable()
    model.zero_grad()
    model(input_ids=ids, position_ids=gap, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


for config in CONFIGS:
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()

        def logits(tokens=ids, **options):
            with torch.no_grad():
                return model(input_ids=tokens, **options).logits

        whole = logits(position_ids=gap, attention_mask=ones, use_cache=False)
        cached = logits(position_ids=gap)
        cut = logits(position_ids=gap, use_cache=False)
        alone = logits(ids[:, 8:], position_ids=gap[:, 8:], use_cache=False)
        off = distance(cut, whole)
        print(f"{config.model_type}, {attention}: no mask and no cache: logits off by {off:.0%}; second half against it alone "
              f"{distance(cut[:, 8:], alone):.0e}; with a cache {distance(cached, whole):.0e}")
        assert off > 0.05 and distance(cut[:, 8:], alone) < 1e-4, "a gap does not cut the row now"
        assert distance(cached, whole) < 1e-4, "a gap cuts the row with a cache, too"

        apart = torch.cat([logits(ids[:, :8]), logits(ids[:, 8:])], 1)
        mixed = [distance(logits(position_ids=packed, **options), apart) for options in ({}, {"attention_mask": ones, "use_cache": False})]
        clean = distance(logits(position_ids=packed, use_cache=False), apart)
        print(f"    packed rows: with a cache {mixed[0]:.0%}, with a mask of ones {mixed[1]:.0%}, without both {clean:.0e}")
        assert min(mixed) > 0.05 and clean < 1e-4, "packed rows are otherwise now"

        plain, checkpointed = gradient(model, False), gradient(model, True)
        print(f"    gradient under checkpointing: off by {distance(checkpointed, plain):.0%}")
        assert distance(checkpointed, plain) > 0.05, "checkpointing leaves the gradient as it is now"
PY
