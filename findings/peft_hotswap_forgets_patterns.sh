#!/usr/bin/env bash
# peft 0.21.2: an adapter with alpha_pattern or rank_pattern that is hot-swapped for itself gives another model.
#
# Guess: after hotswap_adapter(model, FOLDER) the model is PeftModel.from_pretrained(base, FOLDER); swapping an adapter
#        for itself changes nothing. peft checks both configurations and refuses adapters whose alpha_pattern differ, so
#        that equal ones are served.
# Seen:  true without patterns, for other ranks and alphas, too. With them each scale becomes the configuration's own
#        lora_alpha / r: patterns are looked up by the weight's name, which ends in lora_A.default.weight, and match
#        names of modules alone. Scales of 4 become 1 here; the adapter swapped for itself is off by 33 to 44 % of its
#        effect. Nothing warns. (For rank_pattern known: https://github.com/huggingface/peft/pull/3762.) Also, an
#        lm_head that was trained with the first adapter (modules_to_save) stays when an adapter without one is swapped
#        in.
# Who meets it: whoever serves or compares adapters in one model whose ranks differ by layer, as rank searches give
#        them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn >&2)
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    return LlamaForCausalLM(config)


def save(folder, seed, options):
    """An adapter whose values are those of `seed`, as if trained."""
    model = base()
    torch.manual_seed(seed)
    defaults = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    model = get_peft_model(model, LoraConfig(**defaults | options))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.mul_(2)
    model.save_pretrained(folder)


def load(folder):
    return PeftModel.from_pretrained(base(), folder).eval()


def scales(model):
    return [m.scaling["default"] for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)]


PLAIN = {}
CASES = {
    "no patterns": (PLAIN, PLAIN, True),
    "other rank and alpha": (PLAIN, {"r": 4, "lora_alpha": 16}, True),
    "alpha_pattern in both": ({"alpha_pattern": {"v_proj": 32}}, {"alpha_pattern": {"v_proj": 32}}, False),
    "rank_pattern in both": ({"rank_pattern": {"v_proj": 2}}, {"rank_pattern": {"v_proj": 2}}, False),
    "rank_pattern in the second": (PLAIN, {"rank_pattern": {"v_proj": 2}}, False),
    "lm_head trained with the first": ({"modules_to_save": ["lm_head"]}, PLAIN, False),
}
for number, (name, (first, second, right)) in enumerate(CASES.items()):
    save(f"first-{number}", 1, first)
    save(f"second-{number}", 2, second)
    swapped, loaded = load(f"first-{number}"), load(f"second-{number}")
    hotswap_adapter(swapped, f"second-{number}", "default")
    with torch.no_grad():
        plain, one, other = base().eval()(ids).logits, swapped(ids).logits, loaded(ids).logits
        off = ((one - other).norm() / (other - plain).norm()).item()
    print(f"{name}: swapped in, scales {scales(swapped)}, loaded {scales(loaded)};",
          f"off by {off:.1e} of the adapter's effect")
    assert off < 1e-5 if right else off > 0.05, f"{name}: otherwise now"

for name in ("alpha_pattern in both", "rank_pattern in both"):
    folder = f"first-{list(CASES).index(name)}"
    model = load(folder)
    with torch.no_grad():
        before = model(ids).logits
        hotswap_adapter(model, folder, "default")
        off = ((model(ids).logits - before).norm() / (before - base().eval()(ids).logits).norm()).item()
    print(f"{name}, swapped for itself: off by {off:.1e} of the adapter's effect")
    assert off > 0.05, f"{name}: it may be swapped for itself now"
PY
