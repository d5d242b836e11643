#!/usr/bin/env bash
# peft 0.21.2: an adapter that was started by pissa_niter_4 (fast PiSSA) comes back from its folder as another model.
#
# Guess: an adapter's folder and its base model determine the model, whatever the adapter was started from.
# Seen:  the folder holds A and B and the name of the initialization; loading runs that initialization again, since it also
#        changes the base weights. The full SVD of "pissa" and the QR of "olora" give the same base weights again, and logits
#        come back exactly. "pissa_niter_4", a fast SVD, starts from a random matrix: with another seed, logits come back off
#        by 83 % (weights are random here; for those of a small trained model it was 20 %), without a warning. With the seed
#        of the start set again before loading they come back exactly.
# Who meets it: whoever loads a fast PiSSA adapter for evaluation, or goes on training from it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import peft
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
config = transformers.LlamaConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    initializer_range=0.2,
)
torch.manual_seed(0)
transformers.LlamaForCausalLM(config).save_pretrained("base")
ids = torch.arange(3, 20)[None]


def base():
    return transformers.AutoModelForCausalLM.from_pretrained("base")


@torch.no_grad()
def off(start, seed):
    """How far logits of an adapter started at seed 1, saved, and loaded at this seed are off, relative to their size."""
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=start, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base(), lora).eval()
    started = model(input_ids=ids).logits
    plain = base().eval()(input_ids=ids).logits
    assert (started - plain).norm() < 1e-5 * plain.norm(), f"{start} does not start at the base model"
    generator = torch.Generator().manual_seed(2)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    model.save_pretrained("adapter")
    logits = model(input_ids=ids).logits
    torch.manual_seed(seed)
    again = peft.PeftModel.from_pretrained(base(), "adapter").eval()
    return float((again(input_ids=ids).logits - logits).norm() / logits.norm())


seen = {start: off(start, seed=3) for start in (True, "pissa", "olora", "pissa_niter_4")}
seen["pissa_niter_4, same seed"] = off("pissa_niter_4", seed=1)
print(peft.__version__, {str(start): f"{value:.2g}" for start, value in seen.items()})
assert all(value < 1e-5 for start, value in seen.items() if start != "pissa_niter_4"), "others do not come back"
assert seen["pissa_niter_4"] > 0.05, "fast PiSSA comes back now"
PY
