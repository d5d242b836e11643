#!/usr/bin/env bash
# torch 2.13.0, CPU: the Hessian of a network under weight_norm, taken by double backward, is not symmetric.
#
# Guess: weight_norm is g v / ||v||, made of differentiable operations, so that torch.autograd.grad of a gradient gives
#        the Hessian, which is symmetric; and the hook form (torch.nn.utils) and the parametrization agree with that.
# Seen:  both forms give one and the same matrix with ||H - H'||_F of 6 % of ||H||_F in fp64, without an error or a
#        warning. Written out by hand, v g / ||v||, the same function has a symmetric Hessian. First gradients agree.
# Who meets it: whoever measures curvature of models with weight_norm (speech and diffusion models have many) on a CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import torch
import warnings
from torch import nn
from torch.nn.utils import parametrizations

warnings.simplefilter("ignore")


class ByHand(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.g = nn.Parameter(linear.weight.detach().norm(dim=1, keepdim=True))
        self.v, self.bias = nn.Parameter(linear.weight.detach().clone()), nn.Parameter(linear.bias.detach().clone())

    def forward(self, x):
        return nn.functional.linear(x, self.v * (self.g / self.v.norm(dim=1, keepdim=True)), self.bias)


def hessian(form):
    torch.manual_seed(0)
    net = nn.Sequential(form(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    params = list(net.parameters())
    gradient = torch.autograd.grad(net(x).square().mean(), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [torch.autograd.grad(g, params, retain_graph=True, allow_unused=True, materialize_grads=True) for g in flat]
    matrix = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    return float((matrix - matrix.T).norm() / matrix.norm())


seen = {name: hessian(form) for name, form in
        {"parametrization": parametrizations.weight_norm, "hook": nn.utils.weight_norm, "by hand": ByHand}.items()}
print(torch.__version__, {name: f"{value:.2g}" for name, value in seen.items()})
assert 0.05 < seen["parametrization"] < 0.07 and 0.05 < seen["hook"] < 0.07, "weight_norm's double backward has changed"
assert seen["by hand"] < 1e-12, "the reference is not symmetric"
PY
