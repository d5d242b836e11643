#!/usr/bin/env bash
# nngeometry 0.4: the Fisher matrix of a network that uses a layer twice has the first use's gradient times the last use's input.
#
# Guess: FIM(...) is the sum over examples of J' (diag(p) - p p') J with J the Jacobian of the logits, whatever the network
#        does with its layers; a network that it cannot treat raises an error.
# Seen:  without sharing it is, to fp32 rounding. With one linear layer applied twice (as blocks that share weights do) it
#        is a third off in Frobenius norm, without a warning: the layer's input is kept by a hook, the last use overwrites
#        that of the first, and the first use's part of J becomes its output gradient times the last use's input. The
#        shape is right, and the matrix is symmetric and positive semidefinite, so that nothing looks wrong.
# Who meets it: whoever compares curvature of models that share layers (ALBERT-like blocks, recurrent depth, siamese towers).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 nngeometry==0.4 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import warnings
from importlib.metadata import version

import torch
from nngeometry.metrics import FIM
from nngeometry.object import PMatDense
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")


class Network(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first if shared else nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def jacobian(network, inputs):
    """Of the logits by the parameters, [examples, logits, parameters]."""
    named = dict(network.named_parameters())

    def logits(*values):
        return functional_call(network, dict(zip(named, values)), inputs)

    parts = torch.autograd.functional.jacobian(logits, tuple(p.detach() for p in named.values()))
    return torch.cat([part.flatten(2) for part in parts], 2)


def fisher(j, network, inputs):
    p = torch.softmax(network(inputs), 1).detach()
    return torch.einsum("eik,eil,elj->kj", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j) / len(inputs)


torch.manual_seed(0)
inputs, labels = torch.randn(8, 4), torch.randint(3, (8,))
loader = DataLoader(TensorDataset(inputs, labels), batch_size=8)
errors = {}
for shared in (False, True):
    network = Network(shared)
    seen = FIM(model=network, loader=loader, representation=PMatDense, variant="classif_logits").to_torch()
    truth = fisher(jacobian(network, inputs), network, inputs)
    errors[shared] = float((seen - truth).norm() / truth.norm())
# The same function with two layers of equal weights tells the two uses apart.
apart = Network(shared=False)
for part, source in ((apart.first, network.first), (apart.second, network.first), (apart.head, network.head)):
    part.load_state_dict(source.state_dict())
first, last, head = jacobian(apart, inputs).split([20, 20, 15], 2)
assert torch.allclose(torch.cat([first + last, head], 2), jacobian(network, inputs), atol=1e-5)
outputs, kept = first[..., 16:], torch.tanh(network.first(inputs)).detach()
first = torch.cat([torch.einsum("eio,ej->eioj", outputs, kept).flatten(2), outputs], 2)
mixed = fisher(torch.cat([first + last, head], 2), network, inputs)
errors["mixed"] = float((seen - mixed).norm() / mixed.norm())
print(f"nngeometry {version('nngeometry')}: relative errors: separate layers {errors[False]:.1e}, a shared layer "
      f"{errors[True]:.2f}; against gradients of the first use times inputs of the last {errors['mixed']:.1e}")
assert errors[False] < 1e-5, "separate layers are wrong, too"
assert errors[True] > 0.1, "a shared layer is right now"
assert errors["mixed"] < 1e-5, "a shared layer is wrong in another way now"
PY
