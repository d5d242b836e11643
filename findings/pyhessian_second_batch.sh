#!/usr/bin/env bash
# PyHessian 0.1: of two objects for two batches of one model, the second holds the Hessian of the sum of both losses.
#
# Guess: hessian(model, criterion, data=batch) is the Hessian of that batch's loss, as its eigenvalues and trace of a
#        model without earlier gradients are; the model is as before.
# Seen:  the object's gradient is what .grad holds after backward(create_graph=True), and .grad is left there. A second
#        object for another batch adds to it: its top eigenvalue is that of H_1 + H_2, not of H_2, without a warning. Asked
#        after the first has answered, it is right: answering clears .grad. The model stays in eval mode, too.
# Who meets it: whoever prepares a training and a test batch, or two points of a run, and then compares their curvatures.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 PyHessian==0.1 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import warnings
from importlib.metadata import version

import torch
from torch import nn

warnings.simplefilter("ignore")
from pyhessian import hessian

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 3))
criterion = nn.CrossEntropyLoss()
first, second = ((torch.randn(20, 4), torch.randint(3, (20,))) for _ in range(2))
params = list(model.parameters())


def dense(inputs, targets):
    gradient = torch.autograd.grad(criterion(model(inputs), targets), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    return torch.stack([torch.cat([r.reshape(-1) for r in torch.autograd.grad(g, params, retain_graph=True)]) for g in flat])


def top(matrix):
    return float(torch.linalg.eigvalsh(matrix)[-1])


def of_pyhessian(prepared):
    return prepared.eigenvalues(maxIter=1000, tol=1e-6)[0][0]


of_first, of_second = dense(*first), dense(*second)
one = hessian(model, criterion, data=first, cuda=False)
two = hessian(model, criterion, data=second, cuda=False)
together = of_pyhessian(one), of_pyhessian(two)
alone = of_pyhessian(hessian(model, criterion, data=second, cuda=False))
print(f"PyHessian {version('PyHessian')}: first {together[0]:.4f} (dense {top(of_first):.4f}), second {together[1]:.4f}",
      f"(dense {top(of_second):.4f}, sum of both {top(of_first + of_second):.4f}), second alone {alone:.4f}")
assert abs(together[0] / top(of_first) - 1) < 1e-3 and abs(alone / top(of_second) - 1) < 1e-3, "alone it is not right"
assert abs(together[1] / top(of_first + of_second) - 1) < 1e-3, "the second one is not that of the sum any more"
assert not model.training, "the model's mode is kept now"
PY
