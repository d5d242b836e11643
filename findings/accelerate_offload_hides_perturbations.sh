#!/usr/bin/env bash
# accelerate 1.15.0, transformers 5.23.0: weights that are offloaded take in-place moves in silence and stay as they are.
#
# Guess: moving the weights of an offloaded model in place (a zeroth-order perturbation, p.data.add_) moves the model, or
#        raises an error that says that there is no memory behind them.
# Seen:  between forward passes they are tensors on the device "meta", which take any in-place operation; the next forward
#        pass loads the old ones. f(w + mu z) - f(w - mu z) is exactly 0 after cpu_offload and disk_offload. With
#        device_map one layer can lie on disk: the slope is then that of the other layers alone (1.34, not -2.34), and only
#        looks plausible; a line at loading says that some parameters are on the meta device.
# Who meets it: whoever trains a large model by MeZO, which needs no gradients, with offloading, which needs little memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import accelerate
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
config = transformers.LlamaConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    initializer_range=0.2,
)
torch.manual_seed(0)
transformers.LlamaForCausalLM(config).save_pretrained("saved")
ids = torch.arange(3, 20)[None]


def load(**options):
    return transformers.AutoModelForCausalLM.from_pretrained("saved", **options).eval()


@torch.no_grad()
def slope(model, layers=""):
    """(f(w + mu z) - f(w - mu z)) / (2 mu) along the parameters whose names hold `layers`."""
    named = [(name, p) for name, p in model.named_parameters() if layers in name]

    def move(by):
        for seed, (_, p) in enumerate(named):
            p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p.device), alpha=by)

    def loss():
        return float(model(input_ids=ids, labels=ids).loss)

    move(1e-2)
    plus = loss()
    move(-2e-2)
    minus = loss()
    move(1e-2)
    return (plus - minus) / 2e-2


modules = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu",
           "model.rotary_emb": "cpu", "lm_head": "cpu"}
seen = {
    "in memory": slope(load()),
    "cpu_offload": slope(accelerate.cpu_offload(load(), execution_device="cpu")),
    "disk_offload": slope(accelerate.disk_offload(load(), "offloaded", execution_device="cpu")),
    "layer 0 on disk": slope(load(device_map=modules, offload_folder="layers")),
    "layer 0 on disk, its own slope": slope(load(device_map=modules, offload_folder="layers"), "layers.0."),
    "in memory, slope of layer 0": slope(load(), "layers.0."),
}
print("accelerate", accelerate.__version__, transformers.__version__, {k: round(v, 3) for k, v in seen.items()})
assert abs(seen["in memory"]) > 0.5 and abs(seen["in memory, slope of layer 0"]) > 0.1, "the loss does not move at all"
assert seen["cpu_offload"] == seen["disk_offload"] == seen["layer 0 on disk, its own slope"] == 0, "moves show now"
assert abs(seen["layer 0 on disk"] - seen["in memory"]) > 0.1, "one layer on disk changes nothing"
assert seen["layer 0 on disk"] != 0, "other layers do not move"
PY
