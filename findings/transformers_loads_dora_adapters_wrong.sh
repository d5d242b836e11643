#!/usr/bin/env bash
# transformers 5.23.0 and peft 0.21.2: AutoModelForCausalLM.from_pretrained(ADAPTER) loads a DoRA adapter as another model.
#
# Guess: a folder that peft's save_pretrained wrote loads alike in peft (PeftModel, AutoPeftModelForCausalLM) and in
#        transformers, which accepts adapter folders too; at worst it refuses.
# Seen:  LoRA comes back to rounding either way. DoRA comes back to rounding in peft; in transformers it loads without an
#        error and with logits that are off by 20 %: its load report lists the magnitudes under one name as unexpected
#        and under another as missing, newly initialized.
# Who meets it: whoever serves or evaluates a DoRA adapter with the plain transformers call.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import os
import warnings

import peft
import torch
import transformers

warnings.simplefilter("ignore")
config = transformers.LlamaConfig(
    vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    initializer_range=0.2,
)
torch.manual_seed(0)
transformers.LlamaForCausalLM(config).save_pretrained("base")
ids = torch.arange(3, 20)[None]


def off(dora):
    """How far logits of the reloaded model are from those of the saved one: by peft, by transformers."""
    base = transformers.AutoModelForCausalLM.from_pretrained("base")
    lora = peft.LoraConfig(r=4, use_dora=dora, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
            if "magnitude" in name:
                p.mul_(1.2)
    model.peft_config["default"].base_model_name_or_path = os.path.abspath("base")
    adapter = f"adapter-{dora}"
    model.save_pretrained(adapter)
    again = transformers.AutoModelForCausalLM.from_pretrained("base")
    loaded = (peft.PeftModel.from_pretrained(again, adapter), transformers.AutoModelForCausalLM.from_pretrained(adapter))
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
        return [float((one.eval()(input_ids=ids).logits - logits).norm() / logits.norm()) for one in loaded]


seen = {name: off(dora) for name, dora in {"lora": False, "dora": True}.items()}
print(transformers.__version__, peft.__version__, {name: [f"{x:.1g}" for x in both] for name, both in seen.items()})
assert max(*seen["lora"], seen["dora"][0]) < 1e-5, "peft, or transformers with LoRA, does not come back to rounding"
assert seen["dora"][1] > 1e-3, "transformers loads DoRA adapters as they were saved now"
PY
