#!/usr/bin/env bash
# torch 2.13.0: after vector_to_parameters(v, params) the parameters are v: they share its memory, and have its dtype.
#
# Guess: its docstring says "Copy slices of a vector into an iterable of parameters", and so it does: v and the parameters
#        have nothing in common afterwards, and a bfloat16 parameter stays one.
# Seen:  each parameter's .data becomes a view of v. A later change of v moves the model, and each optimizer step moves v:
#        theta, kept to go back to, has moved along with the training when it is put back, so that nothing is undone. Where
#        v is float32, as parameters_to_vector makes it of mixed parameters, bfloat16 ones become float32, without a word,
#        and a mixed model computes in float32 from then on. vector_to_parameters(v.clone(), params) keeps v apart.
# Who meets it: whoever perturbs weights along flat vectors (random directions, loss surfaces, finite differences, averages of
#        weights, evolution strategies) and writes theta + mu z, then theta again, into the model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

assert "Copy slices" in nn.utils.vector_to_parameters.__doc__, "the docstring is another one"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def undone(keep):
    """How far weights are from the start after: keep theta, look beside it, go back, train, and go back again."""
    model, inputs = network(), torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    start = [p.detach().clone() for p in model.parameters()]
    theta = parameters_to_vector(model.parameters()).detach()
    for move in (1e-3, -1e-3, 0.0):
        vector_to_parameters(keep(theta + move if move else theta), model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        (model(inputs) - 1).square().mean().backward()
        optimizer.step()
    vector_to_parameters(keep(theta), model.parameters())
    return max(float((p.detach() - s).abs().max()) for p, s in zip(model.parameters(), start))


plain, cloned = undone(lambda vector: vector), undone(torch.clone)
print(f"weights that were put back are off by {plain:.2g}; from clones by {cloned:.2g}")
assert cloned == 0 and plain > 0.01, "vector_to_parameters copies now"

model = network()
vector = parameters_to_vector(model.parameters()).detach()
vector_to_parameters(vector, model.parameters())
vector.zero_()
print("zeroing the vector afterwards zeroes the model:", all(not p.any() for p in model.parameters()))
assert all(not p.any() for p in model.parameters())

mixed = nn.Sequential(nn.Linear(3, 4).bfloat16(), nn.Linear(4, 1))
before = [p.dtype for p in mixed.parameters()]
vector_to_parameters(parameters_to_vector(mixed.parameters()).detach(), mixed.parameters())
print("dtypes before", before, "after", [p.dtype for p in mixed.parameters()])
assert before[0] == torch.bfloat16 and {p.dtype for p in mixed.parameters()} == {torch.float32}
PY
