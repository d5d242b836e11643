#!/usr/bin/env bash
# loralib 0.1.2: in eval mode a LoRA layer does not see its adapter's values, and afterwards its base weights are others.
#
# Guess: eval() merges the update for speed; what is loaded or moved later counts, train() takes out what eval() put in, and a
#        state dict holds the pretrained weights in either mode.
# Seen:  eval() adds B A to the weight, and train() subtracts what B A is by then. With B moved in place in eval mode the output
#        stays as it is to the bit: the slope of a zeroth-order difference is 0. An adapter that is loaded in eval mode, as
#        lora_state_dict's dictionary is with strict=False, does nothing there; the next train() subtracts it, so that
#        outputs are those without the adapter and the base weights of a Linear layer are off by 205 %. A whole state dict that
#        was saved in eval mode has B A in the weight and beside it, and a new model adds it twice (outputs off by 67 %). So with
#        Linear, MergedLinear and Embedding. No warning.
# Who meets it: whoever evaluates and then loads the next adapter, saves the best model after an evaluation, or takes zeroth-order
#        steps in eval mode, so that dropout is off.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 loralib==0.1.2 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import loralib
import torch

torch.manual_seed(0)
inputs, tokens = torch.randn(5, 16), torch.randint(20, (5,))
LAYERS = {
    "Linear": (lambda: loralib.Linear(16, 16, r=2), inputs),
    "MergedLinear": (lambda: loralib.MergedLinear(16, 48, r=2, enable_lora=[True, False, True]), inputs),
    "Embedding": (lambda: loralib.Embedding(20, 16, r=2), tokens),
}


def distance(a, b):
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def trained(make):
    torch.manual_seed(1)
    layer = make()
    layer.lora_A.normal_(std=0.3)
    layer.lora_B.normal_(std=0.3)
    return layer


@torch.no_grad()
def outputs(layer, x, training=None):
    if training is not None:
        layer.train(training)
    return layer(x)


for name, (make, x) in LAYERS.items():
    source = trained(make)
    truth, weight, update = outputs(source, x), source.weight.detach().clone(), loralib.lora_state_dict(source)
    for training in (False, True):
        assert distance(outputs(source, x, training), truth) < 1e-5, "the modes differ"

    before = outputs(source, x, training=False)
    with torch.no_grad():
        source.lora_B.add_(1.0)
    stays = torch.equal(outputs(source, x), before)

    target = make()
    target.load_state_dict({"weight": weight}, strict=False)
    plain = outputs(target, x, training=False)
    target.load_state_dict(update, strict=False)
    ignored = torch.equal(outputs(target, x), plain)
    undone, drift = distance(outputs(target, x, training=True), plain), distance(target.weight.detach(), weight)

    saved, fresh = trained(make), make()
    saved.eval()
    fresh.load_state_dict(saved.state_dict())
    twice = distance(outputs(fresh, x), truth)
    print(f"{name}: B moved in eval mode: output stays {stays}; adapter loaded in eval mode: ignored {ignored}, in train mode "
          f"outputs are the base model's to {undone:.0e}, weights off by {drift:.0%}; saved in eval mode: outputs off by {twice:.0%}")
    assert stays and ignored and undone < 1e-5 and drift > 0.05, f"{name} follows its adapter in eval mode now"
    assert twice > 0.05, f"{name} is saved alike in both modes now"
PY
