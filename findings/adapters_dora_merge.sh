#!/usr/bin/env bash
# adapters 1.3.0: a DoRA adapter that was merged and reset stays in the base model; merged, it is often another model.
#
# Guess: merge_adapter gives the model that the active adapter gave, and reset_adapter takes it out again, as for LoRA.
# Seen:  that holds for LoRA, and for LoRA and DoRA in peft 0.21.2, up to rounding. DoRA in adapters: after
#        reset_adapter the weights stay the merged ones. With the adapter active again its update is added a second
#        time, off by 26 to 41 % of its effect; with no adapter active the base model is off by 78 to 100 % of it.
#        Merging itself is right only where alpha = r and the layer has no bias: it leaves out alpha / r (off by 45 % at
#        alpha = 2 r), and the active adapter scales the layer's bias by magnitude / norm, which a merged weight cannot
#        (off by 10 % here). No error, no warning.
# Who meets it: whoever merges for a fast evaluation between two stretches of training, compares an adapter with its
#        base model afterwards, or hands on a merged model that has biases in attention or was trained at alpha = 2 r.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 adapters==1.3.0 transformers==4.57.6 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v "none are activated" >&2)
import adapters
import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.randint(1, 50, (4, 12), generator=torch.Generator().manual_seed(0))


def base(bias):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=0, attention_bias=bias, initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.5)  # a new model's biases are 0, a trained one's are not
    return model


def train(model):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


@torch.no_grad()
def logits(model):
    return model(input_ids=ids).logits


def of_adapters(dora, alpha, bias):
    """Logits of the base model, then with the adapter active, merged, reset, and set aside."""
    model = base(bias)
    seen = [logits(model)]
    adapters.init(model)
    model.add_adapter("a", config=(adapters.DoRAConfig if dora else adapters.LoRAConfig)(r=4, alpha=alpha))
    model.train_adapter("a")
    train(model)
    seen.append(logits(model))
    model.merge_adapter("a")
    seen.append(logits(model))
    model.reset_adapter()
    seen.append(logits(model))
    model.set_active_adapters(None)
    return [*seen, logits(model)]


def of_peft(dora, alpha, bias):
    model = base(bias)
    seen = [logits(model)]
    config = peft.LoraConfig(r=4, lora_alpha=alpha, use_dora=dora, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(model, config)
    train(model)
    seen.append(logits(model))
    model.merge_adapter()
    seen.append(logits(model))
    model.unmerge_adapter()
    seen.append(logits(model))
    with model.disable_adapter():
        return [*seen, logits(model)]


for name, library in (("peft", of_peft), ("adapters", of_adapters)):
    for dora in (False, True):
        for alpha, bias in ((4, False), (8, False), (4, True)):
            plain, active, merged, reset, aside = library(dora, alpha, bias)
            effect = (active - plain).norm().item()
            off = [(a - b).norm().item() / effect for a, b in ((merged, active), (reset, active), (aside, plain))]
            print(f"{name}, {'DoRA' if dora else 'LoRA'}, alpha / r = {alpha // 4}, biases {bias}: off, in parts of",
                  "the adapter's effect: merged {:.1e}, reset {:.1e}, the base model {:.1e}".format(*off))
            wrong = name == "adapters" and dora
            assert (off[0] > 0.02) if wrong and (alpha != 4 or bias) else off[0] < 1e-5, "merging is otherwise now"
            assert all(value > 0.1 for value in off[1:]) if wrong else max(off[1:]) < 1e-5, "resetting is otherwise now"
PY
