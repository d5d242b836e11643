#!/usr/bin/env bash
# pytorch_optimizer 4.1.0: AdaHessian's running "Hessian diagonal" is the norms of the Hessian's rows; SophiaH's is the diagonal.
#
# Guess: AdaHessian's second state estimates the squares of the Hessian's diagonal, as its name exp_hessian_diag_sq says:
#        each z * Hz has the diagonal as its mean, and more samples a step (num_samples) only lower the noise.
# Seen:  it averages the squares of z * Hz. For one sample of signs z that is a mean of sum_j H_ij^2: on a quadratic
#        with a diagonal entry of 0.1 in a row of norm 1.12 the square root of the state goes to 1.12. For n samples
#        the state goes to H_ii^2 + (sum_j H_ij^2 - H_ii^2) / n: num_samples changes what is estimated, and the step.
#        SophiaH of the same package averages z * Hz before anything nonlinear, and goes to the diagonal.
# Who meets it: whoever reads curvature, or learning rates, off AdaHessian's state, or tunes num_samples as a noise knob.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 pytorch_optimizer==4.1.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import warnings
from importlib.metadata import version

import torch
from pytorch_optimizer import AdaHessian, SophiaH

warnings.simplefilter("ignore")
torch.manual_seed(0)
matrix = torch.full((6, 6), 0.5) + torch.diag(torch.tensor([-0.4, 1.5, 2.5, 3.5, 4.5, 5.5]))
diagonal, rows, steps, beta = matrix.diag(), matrix.norm(dim=1), 8000, 0.9995


def state(kind, name, **options):
    """The bias-corrected state after many steps of a rate that moves nothing."""
    w = torch.ones(6, requires_grad=True)
    optimizer = kind([w], lr=1e-30, betas=(0.9, beta), hessian_distribution="rademacher", update_period=1, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (w @ matrix @ w / 2).backward(create_graph=True)
        optimizer.step()
    return optimizer.state[w][name].detach() / (1 - beta**steps)


one, four = (state(AdaHessian, "exp_hessian_diag_sq", num_samples=n).sqrt() for n in (1, 4))
sophia = state(SophiaH, "hessian_moment")
print(f"pytorch_optimizer {version('pytorch_optimizer')}; diagonal {diagonal.tolist()}")
for name, value in {"norms of rows": rows, "AdaHessian, 1 sample": one, "4 samples": four, "SophiaH": sophia}.items():
    print(f"{name:22}", [round(x, 2) for x in value.tolist()])
# An average of about 4,000 values: the largest standard error is 0.03.
assert (one - rows).abs().max() < 0.15, "AdaHessian's state is not the norms of rows any more"
mixed = (diagonal**2 + (rows**2 - diagonal**2) / 4).sqrt()
assert (four - mixed).abs().max() < 0.15, "num_samples no longer changes the limit"
assert (sophia - diagonal).abs().max() < 0.15, "SophiaH's state is not the diagonal any more"
PY
