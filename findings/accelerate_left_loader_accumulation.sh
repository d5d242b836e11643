#!/usr/bin/env bash
# accelerate 1.15.0: a loop over a second loader that is left early changes how often the training loop takes a step.
#
# Guess: accelerator.accumulate counts the batches of the training loop: with gradient_accumulation_steps=4 and 10
#        batches an epoch a step follows batches 4, 8 and 10 of each, whatever else was read from other loaders in
#        between.
# Seen:  so it is where other loaders are read to their end. A prepared loader that is left by break, or gave one batch
#        by next(iter(loader)), stays the "active" one, as only its last batch takes it off the list, and accumulate
#        asks it whether this is the end. Left before its last batch, the epoch's last step is not taken: gradients of
#        two batches wait and are added to the next epoch's first step. Left at its last batch, which a loader with one
#        batch always is, it says "end" from then on: each of the epoch's batches is a step of its own, at a quarter of
#        its gradient, as the loss is divided by 4 all the same. No warning. (Leaving early: open pull request
#        https://github.com/huggingface/accelerate/pull/4248.)
# Who meets it: whoever evaluates on the first few batches of a loader in mid-epoch, draws a fixed minibatch there for
#        curvature or for a learning-rate test, or draws a second batch for a two-point estimate.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY'
from itertools import islice

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

K, BATCHES, EPOCHS = 4, 10, 2


def run(between):
    """Batches, counted from 1 over all epochs, after which weights move; between(other, single) runs after batch 4."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=K)
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(BATCHES, 3)
    rows = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    model, optimizer, training, other, single = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.01), DataLoader(rows, batch_size=1),
        DataLoader(rows, batch_size=2), DataLoader(rows, batch_size=BATCHES),
    )  # fmt: skip
    moved, batch = [], 0
    for _ in range(EPOCHS):
        for x, y in training:
            batch += 1
            before = model.weight.detach().clone()
            with accelerator.accumulate(model):
                accelerator.backward((model(x) - y).square().mean())
                optimizer.step()
                optimizer.zero_grad()
            if not torch.equal(before, model.weight):
                moved.append(batch)
            if batch == K:
                between(other, single)
    return moved


RIGHT = [4, 8, 10, 14, 18, 20]
CASES = {
    "nothing": (lambda other, single: None, RIGHT),
    "a whole second loader": (lambda other, single: list(other), RIGHT),
    "2 of 5 batches of a second loader": (lambda other, single: list(islice(other, 2)), [4, 8, 12, 16, 20]),
    "5 of 5 batches of it, and then break": (
        lambda other, single: list(islice(other, 5)), [4, *range(5, 11), 14, 18, 20]
    ),
    "next(iter(loader)) of a loader with one batch": (
        lambda other, single: next(iter(single)), [4, *range(5, 11), 14, 18, 20]
    ),
}  # fmt: skip
for name, (between, expected) in CASES.items():
    moved = run(between)
    print(f"after batch 4, {name}: weights move after batches", *moved)
    assert moved == expected, f"{name}: otherwise now"
PY
