#!/usr/bin/env bash
# pytorch_optimizer 4.1.0: its Prodigy and D-Adaptation give all parameter groups the first group's rate, a frozen group too.
#
# Guess: each group moves at its own "lr", as in torch's optimizers; a group with lr = 0 stays. Where an algorithm knows one step size
#        only, it refuses other rates, as the packages prodigyopt and dadaptation do, whose groups may have lr = 0.
# Seen:  Prodigy, DAdaptAdam, DAdaptSGD, DAdaptLion, DAdaptAdan and DAdaptAdaGrad read the first group's rate alone, and move
#        every group by it. With rates 1 and 0 the second group moves as far as the first; with 0 and 1 none moves,
#        and with 1 and 0.1 both move at 1. param_groups show the rates that were asked for, and a scheduler's rates for
#        other groups than the first are without effect. No warning.
# Who meets it: whoever tunes base model and adapter at two rates, keeps a group still by lr = 0, or tries these two in
#        place of the authors' own packages.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 pytorch_optimizer==4.1.0 prodigyopt==1.1.2 dadaptation==3.2 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn >&2)
import dadaptation
import prodigyopt
import pytorch_optimizer
import torch

ADAPTIVE = ("Prodigy", "DAdaptAdam", "DAdaptSGD", "DAdaptLion", "DAdaptAdan", "DAdaptAdaGrad")
OTHERS = ("AdamP", "Lion", "AdaBelief", "ADOPT", "Lamb", "SOAP", "Tiger", "CAME")


def moves(kind, first, second, steps=30):
    """How far the weights of two groups with these rates come from 1 on a sum of squares."""
    weights = [torch.nn.Parameter(torch.ones(5, 5)) for _ in range(2)]
    optimizer = kind([{"params": [w], "lr": rate} for w, rate in zip(weights, (first, second))])
    for _ in range(steps):
        optimizer.zero_grad()
        sum(w.square().sum() for w in weights).backward()
        optimizer.step()
    return [float((w - 1).abs().max()) for w in weights]


for name in ADAPTIVE:
    kind = getattr(pytorch_optimizer, name)
    seen = {rates: moves(kind, *rates) for rates in ((1.0, 1.0), (1.0, 0.0), (1.0, 0.1), (0.0, 1.0))}
    print(name, {rates: [f"{move:.2g}" for move in both] for rates, both in seen.items()})
    both = seen[1.0, 1.0]
    assert both[0] > 0 and seen[1.0, 0.0] == seen[1.0, 0.1] == both, "groups have rates of their own now"
    assert seen[0.0, 1.0] == [0.0, 0.0], "the second group moves by itself now"
for name in OTHERS:
    kind = getattr(pytorch_optimizer, name)
    frozen, alone = moves(kind, 1e-2, 0.0), moves(kind, 1e-2, 1e-2)
    print(name, "with rates 0.01 and 0:", frozen)
    assert frozen == [alone[0], 0.0], "another optimizer has one rate"
for kind in (prodigyopt.Prodigy, dadaptation.DAdaptAdam):
    frozen = moves(kind, 1.0, 0.0)
    print(kind.__module__, "with rates 1 and 0:", frozen)
    assert frozen[0] > 0 and frozen[1] == 0
    try:
        moves(kind, 1.0, 0.1)
        raise AssertionError("the authors' package takes two rates now")
    except RuntimeError as error:
        print(kind.__module__, "with rates 1 and 0.1:", str(error)[:80])
PY
