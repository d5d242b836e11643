#!/usr/bin/env bash
# peft 0.21.2: merging a LoRA adapter with layer_replication gives another model, as copies of a layer share what is merged into.
#
# Guess: merge_adapter() and merge_and_unload() give the model that the adapter makes, to rounding; where layers share weights, as
#        replicated layers do so that they take no memory, merging gives each its own copy, or refuses.
# Seen:  layer_replication=[[0, 2], [1, 3]] runs layer 1 twice, each time with an adapter of its own, and the config calls these
#        adapters separate. Merging adds both to the one weight: each copy then has the sum of both updates, and logits are off by
#        40 % of what the adapter does. Saving, loading and unmerging are right, and so is merging where no layer is used twice. No
#        warning. In PeftModel.named_parameters() the shared weights come once, so that a count of parameters stays small.
# Who meets it: whoever deepens a model by replicated layers, evaluates the adapter, and ships the merged model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn >&2)
import peft
import torch
import transformers

transformers.logging.set_verbosity_error()
ids = torch.arange(3, 20)[None]


def base():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=ids).logits


def distances(replication):
    """How far the logits are from the adapter's after a reload, merged, unmerged and unloaded, in units of what it does."""
    options = peft.LoraConfig(
        target_modules=["q_proj", "v_proj"], r=4, layer_replication=replication, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base(), options).eval()
    without = logits(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    adapted = logits(model)

    def off(other):
        return float((logits(other) - adapted).norm() / (adapted - without).norm())

    folder = f"adapter{len(replication)}"
    model.save_pretrained(folder)
    seen = {"reloaded": off(peft.PeftModel.from_pretrained(base(), folder).eval())}
    model.merge_adapter()
    seen["merged"] = off(model)
    model.unmerge_adapter()
    seen["unmerged"] = off(model)
    seen["unloaded"] = off(model.merge_and_unload())
    return seen


for replication, wrong in (([[0, 3]], set()), ([[0, 2], [1, 3]], {"merged", "unloaded"})):
    seen = distances(replication)
    print(replication, {name: f"{value:.2g}" for name, value in seen.items()})
    for name, value in seen.items():
        assert (value > 0.1) == (name in wrong) and (value < 1e-4) == (name not in wrong), f"{name} is otherwise now"
PY
