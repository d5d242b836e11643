#!/usr/bin/env bash
# torch 2.13.0: SGD with Nesterov momentum writes to .grad where it is foreach, which is the default on a GPU.
#
# Guess: step() reads gradients and writes weights and its own state, whichever implementation computes it, so that after it
#        .grad is the gradient still.
# Seen:  with foreach=True and nesterov=True, .grad is the gradient plus momentum times the buffer after the step, at every
#        step. The loop and the fused kernel leave it alone, and so do foreach SGD without Nesterov momentum and foreach
#        Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta, Adamax and Rprop, with weight decay too. Steps are equal.
# Who meets it: whoever logs gradient norms after step(), goes on adding to .grad, or takes the difference of gradients
#        before and after a step (as curvature along a run is read off), on a GPU, and not on the CPU it was tested on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import torch
from torch import optim


def run(kind, **options):
    """Weights after three steps, and by how much .grad differs from the gradient after each, relative to it."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    optimizer, off = kind([weights], lr=0.1, **options), []
    for _ in range(3):
        gradient = torch.randn(50, dtype=torch.float64)
        weights.grad = gradient.clone()
        optimizer.step()
        off.append(float((weights.grad - gradient).norm() / gradient.norm()))
    return weights.detach(), off


nesterov = {"momentum": 0.9, "nesterov": True}
results = {name: run(optim.SGD, **nesterov, **how) for name, how in (
    ("loop", {"foreach": False}), ("foreach", {"foreach": True}), ("fused", {"fused": True}),
)}  # fmt: skip
for name, (weights, off) in results.items():
    print(f"SGD, Nesterov, {name}: .grad is off by", [f"{x:.2g}" for x in off])
    assert torch.allclose(weights, results["loop"][0], rtol=0, atol=1e-14), "steps differ"
    assert (min(off) > 0.5) == (name == "foreach") and (max(off) == 0) == (name != "foreach"), f"{name} changed"
for kind, options in (
    (optim.SGD, {"momentum": 0.9}), (optim.SGD, {"weight_decay": 0.1}), (optim.Adam, {"weight_decay": 0.1}),
    (optim.AdamW, {}), (optim.NAdam, {"weight_decay": 0.1}), (optim.RAdam, {"weight_decay": 0.1}),
    (optim.RMSprop, {"weight_decay": 0.1, "momentum": 0.5, "centered": True}), (optim.Adagrad, {"weight_decay": 0.1}),
    (optim.Adadelta, {"weight_decay": 0.1}), (optim.Adamax, {"weight_decay": 0.1}), (optim.Rprop, {}),
):  # fmt: skip
    assert max(run(kind, foreach=True, **options)[1]) == 0, f"{kind.__name__} {options} writes to .grad, too"
PY
