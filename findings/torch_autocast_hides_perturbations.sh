#!/usr/bin/env bash
# torch 2.13.0, CPU: a zeroth-order step inside one autocast block measures a slope of exactly 0 on trainable weights.
#
# Guess: autocast casts weights to bfloat16 in each operation, so that moving a weight in place between two forward
#        passes shows in the second; if anything depends on requires_grad, then frozen weights go unseen.
# Seen:  f(w + mu z) - f(w - mu z) is exactly 0 for trainable weights, under no_grad too, with p.add_ as with p.data.add_:
#        casts of trainable fp32 leaves are kept until the block ends. Frozen weights, and a block a forward pass, give
#        the right slope, and so does cache_enabled=False.
# Who meets it: whoever puts MeZO's two forward passes into the block that a first-order training step sits in.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import contextlib
from functools import partial

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
inputs = torch.randn(64, 8)
directions = [torch.randn(p.shape) for p in model.parameters()]
mu = 0.1
block = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def slope(trainable, around_step, around_forward, through_data=True):
    """(f(w + mu z) - f(w - mu z)) / (2 mu), the weights being moved in place."""
    model.requires_grad_(trainable)

    def move(by):
        for p, z in zip(model.parameters(), directions):
            (p.data if through_data else p).add_(z, alpha=by)

    def loss():
        with around_forward():
            return float(model(inputs).float().square().mean())

    with torch.no_grad(), around_step():
        move(mu)
        plus = loss()
        move(-2 * mu)
        minus = loss()
        move(mu)
    return (plus - minus) / (2 * mu)


plain = contextlib.nullcontext
reference = slope(True, plain, plain)
seen = {
    "trainable": slope(True, block, plain),
    "trainable, p.add_": slope(True, block, plain, through_data=False),
    "frozen": slope(False, block, plain),
    "a block a forward": slope(True, plain, block),
    "cache_enabled=False": slope(True, partial(block, cache_enabled=False), plain),
}
print(torch.__version__, f"fp32: {reference:.3f}", {name: round(value, 3) for name, value in seen.items()})
hidden = {name for name, value in seen.items() if value == 0}
assert hidden == {"trainable", "trainable, p.add_"}, "autocast shows and hides perturbations of other weights now"
assert all(abs(value / reference - 1) < 0.2 for name, value in seen.items() if name not in hidden), "another slope"
PY
