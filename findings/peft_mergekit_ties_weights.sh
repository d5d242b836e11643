#!/usr/bin/env bash
# peft 0.21.2, mergekit 0.1.5: weights of TIES mean two things; in peft an adapter of weight 0 halves and erases parts of the other.
#
# Guess: TIES of the same two changes with the same weights is the same in both, to rounding: signs are elected by the weighted sum, and
#        what agrees is averaged by weight. Weights 0.5 and 0.5 give what 1 and 1 give, and weights 1 and 0 give the first change alone.
# Seen:  with weights 1 and 1 and density 1 both are the same to rounding. In mergekit the rest is so, too. peft's ties_svd elects signs
#        without weights, multiplies by weights after that, and divides by the number of adapters that agree. So 0.5 and 0.5 give half of
#        it, and with 1 and 0 the adapter of weight 0 still votes and counts: of the first change's entries a quarter become 0, about
#        half are halved, and a quarter stay; the merged change is 44 % off. With 0.9 and 0.1 the two packages are 52 % apart. No warning.
# Who meets it: whoever takes weights that sum to 1 from a mergekit recipe to peft, fades an adapter out, or searches for weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 mergekit==0.1.5 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn -e "it/s" -e "Failed to load" >&2)
import pathlib

import peft
import safetensors.torch
import torch
import transformers
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

transformers.logging.set_verbosity_error()
HERE = pathlib.Path.cwd()  # mergekit takes a relative name for one on the hub
LAYER = "model.layers.0.self_attn.q_proj"
config = transformers.LlamaConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, pad_token_id=0
)


def base():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


adapter = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"])
model = peft.get_peft_model(base(), adapter, adapter_name="a")
model.add_adapter("b", adapter)
torch.manual_seed(0)
for name, p in model.named_parameters():
    if "lora_" in name:
        p.data = torch.randn_like(p) / 10
layer = model.base_model.model.get_submodule(LAYER)
changes = {name: layer.get_delta_weight(name).detach() for name in "ab"}
base().save_pretrained(HERE / "base")
for name, change in changes.items():  # the same changes as whole models, for mergekit
    whole = base()
    whole.get_submodule(LAYER).weight.data += change
    whole.save_pretrained(HERE / name)


def of_peft(weights):
    name = f"merged {len(model.peft_config)}"
    model.add_weighted_adapter(["a", "b"], list(weights), name, combination_type="ties_svd", density=1.0, svd_rank=32)
    return layer.get_delta_weight(name).detach()  # rank 32 is full: the decomposition loses nothing


def of_mergekit(weights):
    models = [{"model": str(HERE / name), "parameters": {"weight": w, "density": 1.0}} for name, w in zip("ab", weights)]
    recipe = {"merge_method": "ties", "base_model": str(HERE / "base"), "dtype": "float32", "models": models}
    run_merge(MergeConfiguration.model_validate(recipe), "out", MergeOptions(copy_tokenizer=False))
    return safetensors.torch.load_file("out/model.safetensors")[f"{LAYER}.weight"] - base().get_submodule(LAYER).weight.detach()


def distance(one, other):
    return float((one - other).norm() / other.norm())


def close(one, other):
    return distance(one, other) < 1e-3


merged = {}
for weights in ((1.0, 1.0), (0.5, 0.5), (1.0, 0.0), (0.9, 0.1)):
    merged[weights] = of_peft(weights), of_mergekit(weights)
    mine, other = merged[weights]
    print(f"weights {weights}: norms {mine.norm():.3f} in peft and {other.norm():.3f} in mergekit, {distance(mine, other):.1%} apart")
(both, same), (half, equal), (first, alone), (uneven, graded) = merged.values()
assert close(both, same), "the packages differ with weights 1 and 1"
assert close(equal, same) and close(alone, changes["a"]), "mergekit weighs otherwise now"
assert close(half, both / 2), "peft no longer halves with weights 0.5 and 0.5"
assert distance(uneven, graded) > 0.3, "the packages agree about weights 0.9 and 0.1 now"
ratios = (first / changes["a"])[changes["a"].abs() > 1e-3]
shares = {value: float(((ratios - value).abs() < 0.02).float().mean()) for value in (0.0, 0.5, 1.0)}
print("weights (1, 0) in peft: entries of the first change are multiplied by", {k: f"{v:.0%}" for k, v in shares.items()})
assert distance(first, changes["a"]) > 0.3, "an adapter of weight 0 does nothing now"
assert sum(shares.values()) > 0.98 and min(shares.values()) > 0.15 and shares[0.5] > 0.35, "entries are scaled otherwise now"
PY
