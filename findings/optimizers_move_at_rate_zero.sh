#!/usr/bin/env bash
# torch 2.13.0, prodigyopt 1.1.2, schedulefree 1.4.1: some optimizers move a group on whose rate was set to 0.
#
# Guess: with group["lr"] = 0 a group stands still from the next step on. Both packages allow 0; prodigyopt refuses any
#        other second rate.
# Seen:  true of SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop, Adafactor and Muon. ASGD takes one
#        more full step: it computes a step's rate at the end of the step before, so that a schedule acts one step late.
#        Rprop reads the rate at its first step alone and trains on: no schedule reaches it; even with 0 from the start
#        it moves, by steps of 1e-6 that grow. Prodigy takes all groups' steps at the largest rate; a rate of 0 only
#        stops the update of the group's momentum, which is added unchanged in every later step: the weights leave in a
#        straight line, at the speed they had. Its weight decay acts on such a group, too, and on one whose rate was
#        never above 0. Schedule-free optimizers move the group on, toward their fast iterate. Nothing warns.
# Who meets it: whoever freezes the base model or the adapter after a while, warms up one block before the other, or
#        gives blocks schedules that end at different steps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 prodigyopt==1.1.2 schedulefree==1.4.1 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY'
from functools import partial

import torch
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree, SGDScheduleFree

STILL, ONE_STEP, MOVES = "stands still", "takes one more step", "moves on"
CASES = {
    **{
        name: (partial(getattr(torch.optim, name), lr=0.01), STILL)
        for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "Adafactor", "Muon")
    },
    "SGD with momentum": (partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1), STILL),
    "RMSprop with momentum": (partial(torch.optim.RMSprop, lr=0.01, momentum=0.9), STILL),
    "ASGD": (partial(torch.optim.ASGD, lr=0.01), ONE_STEP),
    "Rprop": (partial(torch.optim.Rprop, lr=0.01), MOVES),
    "Prodigy": (partial(Prodigy, lr=1.0), MOVES),
    "Prodigy with weight decay": (partial(Prodigy, lr=1.0, weight_decay=0.1), MOVES),
    "AdamWScheduleFree": (partial(AdamWScheduleFree, lr=0.01), MOVES),
    "SGDScheduleFree": (partial(SGDScheduleFree, lr=0.01), MOVES),
}


def moves(make, stop, steps=60):
    """How far the second group moves in each step on a quadratic; from step `stop` on its rate is 0."""
    torch.manual_seed(0)
    target = torch.randn(8, 8)
    first, second = (torch.nn.Parameter(torch.randn(8, 8)) for _ in range(2))
    optimizer = make([{"params": [first]}, {"params": [second]}])
    if hasattr(optimizer, "train"):
        optimizer.train()
    lengths = []
    for step in range(steps):
        if step == stop:
            optimizer.param_groups[1]["lr"] = 0.0
        optimizer.zero_grad()
        ((first - target).square().sum() + (second + target).square().sum()).backward()
        before = second.detach().clone()
        optimizer.step()
        lengths.append((second.detach() - before).norm().item())
    return lengths


for name, (make, expected) in CASES.items():
    lengths = moves(make, stop=20)
    after = lengths[20:]
    seen = MOVES if after[1] else ONE_STEP if after[0] else STILL
    print(f"{name}: {seen}; before {lengths[19]:.4f}, then {after[0]:.4f}, {after[1]:.4f}, ... {after[-1]:.4f}")
    assert seen == expected, f"{name} {seen} now"
    if name == "Prodigy":
        assert max(after) / min(after) < 1.001, "Prodigy no longer keeps its speed"
for name, still in (
    ("Prodigy", True), ("AdamWScheduleFree", True), ("ASGD", True),
    ("Prodigy with weight decay", False), ("Rprop", False),
):  # fmt: skip
    total = sum(moves(CASES[name][0], stop=0))
    print(f"{name}, rate 0 from the start: moves {total:.4f} in 60 steps")
    assert (total == 0) == still, f"{name} with rate 0 from the start is otherwise now"
PY
