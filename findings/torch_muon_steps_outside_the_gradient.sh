#!/usr/bin/env bash
# torch 2.13.0: where a gradient has a low rank, torch.optim.Muon's step is for a good part noise in directions the gradient lacks.
#
# Guess: Muon makes the gradient's singular values alike, about 0.7 to 1.2, and leaves singular vectors and zeros as they are: a step
#        from a minibatch of 4 rows leaves a layer's outputs alone for inputs that are orthogonal to the 4 rows' inputs. That it
#        computes in bfloat16, of float32 weights too, costs a percent.
# Seen:  each of its 5 iterations multiplies small singular values by 3.44, by 480 in all, those too that rounding to bfloat16 puts
#        where the gradient has 0. With options as they are, 73 % of the squared step lie outside the gradient's rows and columns for a
#        gradient of rank 1, 32 % for rank 4 and 12 % for rank 16 (layers of 256; 74 %, 36 % and 17 % for 1024); the same
#        iterations in float64 leave 1e-10. A layer that learns from 4 rows answers inputs orthogonal to theirs otherwise, by 9 %
#        of what it changes for as long inputs like theirs; a step of SGD changes these answers by 5e-9 of it.
# Who meets it: whoever fine-tunes with Muon on small minibatches with one target a row, where layers near the head have gradients of
#        that rank, or puts low-rank zeroth-order estimates through it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import torch


def step(gradient):
    """Muon's first step from a gradient, at the rate 1."""
    weight = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0)
    weight.grad = gradient.clone()
    optimizer.step()
    return -weight.detach().double()


def iterated(gradient, a=3.4445, b=-4.775, c=2.0315):
    """The same iterations in float64."""
    x = gradient.double() / gradient.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


def outside(move, left, right):
    """Share of the squared move that is not between the spaces of the gradient's columns (left) and rows (right)."""
    columns, rows = torch.linalg.qr(left.double())[0], torch.linalg.qr(right.double().T)[0]
    inside = columns @ (columns.T @ move @ rows) @ rows.T
    return float((move - inside).square().sum() / move.square().sum())


expected = {1: (0.6, 0.85), 4: (0.25, 0.42), 16: (0.03, 0.25)}
for size in (64, 256, 1024):
    for rank, (low, high) in expected.items():
        torch.manual_seed(0)
        left, right = torch.randn(size, rank), torch.randn(rank, size)
        gradient = left @ right
        share, exact = outside(step(gradient), left, right), outside(iterated(gradient), left, right)
        print(f"layer of {size}, gradient of rank {rank}: {share:.0%} of the squared step outside; in float64 {exact:.0e}")
        assert low < share < high and exact < 1e-6, "another part of the step lies outside now"

torch.manual_seed(0)
inputs, labels = torch.randn(4, 256), torch.tensor([0, 1, 1, 0])
layer, head = torch.nn.Linear(256, 256, bias=False), torch.nn.Linear(256, 2)
torch.nn.functional.cross_entropy(head(torch.tanh(layer(inputs))), labels).backward()
gradient = layer.weight.grad
basis = torch.linalg.qr(inputs.T.double())[0]
others = torch.randn(1000, 256, dtype=torch.float64)
like = others @ basis @ basis.T
like, others = like / like.norm(dim=1, keepdim=True), others - like
others = others / others.norm(dim=1, keepdim=True)
for name, move in (("Muon", step(gradient)), ("SGD", gradient.double()), ("Muon in float64", iterated(gradient))):
    ratio = float((others @ move.T).norm() / (like @ move.T).norm())
    print(f"{name}: a step from 4 rows changes outputs for orthogonal inputs by {ratio:.0e} of what it does for inputs like theirs")
    assert (ratio > 0.05) if name == "Muon" else (ratio < 1e-3), f"{name} changes other outputs now"
PY
