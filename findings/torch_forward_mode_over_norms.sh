#!/usr/bin/env bash
# torch 2.13.0, CPU: forward-mode derivatives of layer_norm, batch_norm, slogdet and solve can't be differentiated again.
#
# Guess: torch.func's transforms nest in any order: jacfwd(jacrev), jacrev(jacfwd) and jacfwd(jacfwd) are one Hessian, to
#        rounding, or an error says that an operation has no such rule.
# Seen:  jacfwd(jacrev), which is torch.func.hessian, and jacrev(jacrev) are right for all six functions below. The two
#        orders with jacfwd inside are wrong by 34 % to 520 % in fp64 for layer_norm, batch_norm (training), slogdet and
#        solve, without an error or a warning; for rms_norm and softmax they are right.
# Who meets it: whoever takes the curvature v'Hv of a transformer by two forward-mode passes, to save the backward pass.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import torch
import torch.nn.functional as F
from torch.func import grad, jacfwd, jacrev

torch.manual_seed(0)
x = torch.randn(4, 4, dtype=torch.float64) + 2 * torch.eye(4, dtype=torch.float64)
weights = torch.randn(4, 4, dtype=torch.float64)


def of(output):
    return (weights * output).sum() + output.square().sum()


functions = {
    "layer_norm": lambda x: of(F.layer_norm(x, (4,), weights[0])),
    "batch_norm": lambda x: of(F.batch_norm(x, None, None, weights[0], training=True)),
    "slogdet": lambda x: torch.linalg.slogdet(x)[1],
    "solve": lambda x: of(torch.linalg.solve(x, weights)),
    "rms_norm": lambda x: of(F.rms_norm(x, (4,), weights[0])),
    "softmax": lambda x: of(x.softmax(-1)),
}
orders = {"fwd(rev)": (jacfwd, jacrev), "rev(rev)": (jacrev, jacrev), "rev(fwd)": (jacrev, jacfwd), "fwd(fwd)": (jacfwd, jacfwd)}


def errors(function):
    """Relative error of each order's Hessian against central differences of the gradient."""
    rows = []
    for v in torch.eye(16, dtype=torch.float64).view(16, 4, 4):
        rows.append((grad(function)(x + 1e-5 * v) - grad(function)(x - 1e-5 * v)) / 2e-5)
    reference = torch.stack(rows).view(16, 16)
    hessians = {order: outer(inner(function))(x).reshape(16, 16) for order, (outer, inner) in orders.items()}
    return {order: float((matrix - reference).norm() / reference.norm()) for order, matrix in hessians.items()}


seen = {name: errors(function) for name, function in functions.items()}
for name, by_order in seen.items():
    print(torch.__version__, name, {order: f"{value:.2g}" for order, value in by_order.items()})
for name, by_order in seen.items():
    assert max(by_order["fwd(rev)"], by_order["rev(rev)"]) < 1e-6, f"{name}: an order that was right is wrong"
    inside = by_order["rev(fwd)"], by_order["fwd(fwd)"]
    if name in ("rms_norm", "softmax"):
        assert max(inside) < 1e-6, f"{name}: an order that was right is wrong"
    else:
        assert min(inside) > 0.05, f"{name}: forward mode can be differentiated again now"
PY
