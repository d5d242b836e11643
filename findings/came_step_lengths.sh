#!/usr/bin/env bash
# came-pytorch 0.1.3, pytorch_optimizer 4.1.0: CAME moves matrices by up to 50 times the rate, vectors by once at most.
#
# Guess: clip_threshold=1.0 bounds the update's root mean square by 1, so that a weight moves by at most about the rate
#        in a step, as with AdamW and Adafactor, in matrices and vectors alike; a constant rate gives steps of constant
#        length.
# Seen:  the bound is on the update before momentum. In matrices it is then divided by a running root mean square of
#        update minus momentum, whose factor beta3 = 0.9999 has no bias correction: it starts near 0 and takes 10,000
#        steps to fill. The first step is 11 rates. With a gradient that stays, steps grow to 33 rates at step 10 and
#        stay near 50; under noise as large as the gradient they are 20 at step 10, 11 at step 100, 3.6 at step 1000: a
#        schedule like 1 / sqrt(t) that nobody asked for. Vectors (biases, norms, DoRA's magnitudes) skip that part:
#        they move by 0.1 rates at first and 1 at most, up to 110 times less than the matrices beside them. AdamW: 1.00
#        and 0.6 rates in both. Both packages agree. Nothing warns.
# Who meets it: whoever takes a rate from AdamW or Adafactor over to CAME, tunes it on a short run for a long one, adds
#        a schedule of their own, or trains biases and matrices at one rate.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 came-pytorch==0.1.3 pytorch_optimizer==4.1.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY'
from functools import partial

import came_pytorch
import pytorch_optimizer
import torch

RATE, STEPS = 1e-3, (1, 10, 100, 1000)
OPTIMIZERS = {
    "AdamW": partial(torch.optim.AdamW, weight_decay=0.0),
    "came-pytorch": came_pytorch.CAME,
    "pytorch_optimizer": pytorch_optimizer.CAME,
}


def lengths(make, noise):
    """Root mean square of a matrix's and a vector's moves in each of 1000 steps, in rates."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(64, 48)), torch.nn.Parameter(torch.zeros(64))]
    means = [torch.randn_like(p) for p in params]
    optimizer = make(params, lr=RATE)
    seen = []
    for _ in range(STEPS[-1]):
        for p, mean in zip(params, means):
            p.grad = mean + noise * torch.randn_like(p)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        seen.append([((p.detach() - old) / RATE).square().mean().sqrt().item() for p, old in zip(params, before)])
    return {step: seen[step - 1] for step in STEPS}


found = {}
for noise in (0.0, 1.0):
    for name, make in OPTIMIZERS.items():
        found[name, noise] = seen = lengths(make, noise)
        for kind, place in (("matrix", 0), ("vector", 1)):
            print(f"{name}, noise {noise} times the gradient, {kind}:",
                  ", ".join(f"step {step}: {seen[step][place]:.2f} rates" for step in STEPS))
for (name, noise), seen in found.items():
    if name == "AdamW":
        assert all(0.5 < length < 1.01 for pair in seen.values() for length in pair), "AdamW is no measure any more"
        continue
    assert all(vector < 1.01 for _, vector in seen.values()), f"{name}: vectors move further now"
    assert 10 < seen[1][0] < 12 and seen[1][0] > 100 * seen[1][1], f"{name}: the first step is another now"
    if noise:
        assert 15 < seen[10][0] < 25 and 3 < seen[1000][0] < 4.5, f"{name}: steps no longer shrink"
    else:
        assert all(45 < seen[step][0] < 55 for step in (100, 1000)), f"{name}: steps are bounded now"
PY
