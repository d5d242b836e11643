#!/usr/bin/env bash
# peft 0.21.2: its LoRA-GA start is not that of the paper: B0 is multiplied by singular values, and scaled alone.
#
# Guess: init_lora_weights="lora_ga" starts as Algorithm 1 of arXiv:2407.05000 does, with A0 = c V[:r]' and B0 = c U[r:2r], so
#        that the first SGD step on A and B changes W by the best rank-2r approximation of the full-gradient step.
# Seen:  peft sets A0 = V[:r]' and B0 = c U[r:2r] S[r:2r]. The change of the first step is then another matrix: its distance
#        to the best one of the same rank, at the best of all step sizes, is 54 % of its norm here; by the paper's factors
#        it is 0.3 %, which is the step size's share. Gradients that are small make B0 small too, and with it the half of the step that B0
#        carries.
# Who meets it: whoever takes peft's LoRA-GA for that of the paper, or compares methods with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PY'
import peft
import torch
from peft.tuners.lora import preprocess_loraga

RANK, ETA = 4, 1e-4
torch.manual_seed(0)
x, target = torch.randn(64, 32), torch.randn(64, 24)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(32, 24, bias=False)

    def forward(self, x):
        return self.layer(x)


def loss(model):
    return torch.nn.functional.mse_loss(model(x), target)


def off(factors):
    """Distance of the first step's change of W to the best one of rank 2r, relative, at the best step size."""
    net = Net()
    (gradient,) = torch.autograd.grad(loss(net), [net.layer.weight])
    u, s, vh = torch.linalg.svd(gradient)
    best = u[:, : 2 * RANK] * s[: 2 * RANK] @ vh[: 2 * RANK]
    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=["layer"], init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()
    )
    preprocess_loraga(net, config, lambda: loss(net).backward())
    model = peft.get_peft_model(net, config)
    layer = model.base_model.model.layer
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if factors == "paper":
        with torch.no_grad():
            layer.base_layer.weight += b @ a  # what peft took away
            a.copy_(vh[:RANK])
            b.copy_(u[:, RANK : 2 * RANK])
            layer.base_layer.weight -= b @ a
    before = b.detach() @ a.detach()
    da, db = torch.autograd.grad(loss(model), [a, b])
    with torch.no_grad():
        change = (b - ETA * db) @ (a - ETA * da) - before
        size = (change * best).sum() / (change * change).sum()
        return float((size * change - best).norm() / best.norm())


seen = {factors: off(factors) for factors in ("peft", "paper")}
print(peft.__version__, {name: f"{value:.2g}" for name, value in seen.items()})
assert seen["paper"] < 1e-2, "the paper's factors do not give the best step"
assert seen["peft"] > 0.2, "peft starts as the paper does now"
PY
