#!/usr/bin/env bash
# transformers 5.23.0: with labels = input_ids, half of the causal heads below learn to repeat the token that they were given.
#
# Guess: every AutoModelForCausalLM shifts labels by one inside, as Llama, GPT-2 and OPT do, and as the collator for
#        language modeling (labels = input_ids) takes for granted.
# Seen:  the decoders of BART, mBART, Pegasus, Marian, Blenderbot and Whisper do not: their .loss compares the logits of a
#        position with its own token, which they see. On tokens drawn at random from 29, where no model can predict the next
#        one better than log(29) = 3.37, 300 steps take the loss of BART's decoder to 0.00; OPT's stays at 3.37. No warning.
# Who meets it: whoever fine-tunes, or measures the curvature of, such a decoder by model(input_ids, labels=input_ids).loss.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import math
import warnings

import torch
import torch.nn.functional as F
import transformers

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
VOCABULARY = 32
ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "vocab_size": VOCABULARY}
plain = {**ends, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
pair = {**ends, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "dropout": 0.0,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
configs = {
    "Llama": transformers.LlamaConfig(**plain, intermediate_size=64),
    "GPT-2": transformers.GPT2Config(**ends, n_embd=32, n_layer=1, n_head=2),
    "OPT": transformers.OPTConfig(**plain, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0),
    "GPT-NeoX": transformers.GPTNeoXConfig(**plain, intermediate_size=64),
    "BioGPT": transformers.BioGptConfig(**plain, intermediate_size=64),
    "Bloom": transformers.BloomConfig(**ends, hidden_size=32, n_layer=1, n_head=2),
    "BART": transformers.BartConfig(**pair),
    "mBART": transformers.MBartConfig(**pair),
    "Pegasus": transformers.PegasusConfig(**pair),
    "Marian": transformers.MarianConfig(**pair),
    "Blenderbot": transformers.BlenderbotConfig(**pair),
    "Whisper": transformers.WhisperConfig(**pair, max_target_positions=64),
}


def made(name):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(configs[name])


def compares(name):
    """What the loss compares logits with; whether a position sees tokens behind it."""
    model, ids = made(name).eval(), torch.randint(3, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        output = model(input_ids=ids, labels=ids)
        other = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % VOCABULARY], 1)
        assert torch.equal(model(input_ids=other).logits[:, :-1], output.logits[:, :-1]), f"{name} is not causal"
    losses = {
        "next": F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()),
        "same": F.cross_entropy(output.logits.flatten(0, 1), ids.flatten()),
    }
    return min(losses, key=lambda token: abs(float(losses[token] - output.loss)))


def trained(name):
    """Mean loss of the last 20 of 300 steps on random tokens, new ones in each step."""
    model, generator = made(name).train(), torch.Generator().manual_seed(3)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(300):
        ids = torch.randint(3, VOCABULARY, (8, 16), generator=generator)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-20:]) / 20


seen = {name: compares(name) for name in configs}
losses = {name: trained(name) for name in ("OPT", "BART")}
print(transformers.__version__, seen)
print(f"loss on random tokens, log(29) = {math.log(VOCABULARY - 3):.2f}:", {k: round(v, 2) for k, v in losses.items()})
repeat = {"BART", "mBART", "Pegasus", "Marian", "Blenderbot", "Whisper"}
assert {name for name, token in seen.items() if token == "same"} == repeat, "other heads shift their labels"
assert losses["OPT"] > 3.3 and losses["BART"] < 0.1, "training on random tokens ends otherwise"
PY
