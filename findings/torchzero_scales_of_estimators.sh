#!/usr/bin/env bash
# torchzero 0.4.4: some zeroth-order gradients have a mean of 1000 or 0.001 times the gradient, at the default h of 1e-3.
#
# Guess: all estimators of torchzero.modules estimate one gradient, so that on a linear function, where a difference is
#        exact, each one's mean is the gradient, whatever the distribution of directions; torch.manual_seed chooses them.
# Seen:  SPSA is unbiased with all four distributions, and so is MeZO with rademacher, gaussian and sphere. MeZO with
#        "uniform" is 1/h = 1000 times too large, and moves weights by up to 0.055 instead of 0.0017; SPSA1 is h times
#        the gradient. MeZO draws the same directions whatever the seed of torch; SPSA's follow it.
# Who meets it: whoever compares estimators, or distributions, at one learning rate, or runs MeZO with several seeds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 torchzero==0.4.4 scipy==1.17.1 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
from importlib.metadata import version

import torch
import torchzero as tz

gradient = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)


def steps(estimator, count):
    """Steps of length 1 against the estimates, each from 0, and the largest move of a weight."""
    weights = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = tz.Optimizer([weights], estimator, tz.m.LR(1.0))
    estimates, moves = [], []

    def loss(backward=True):
        moves.append(float(weights.detach().abs().max()))
        return gradient @ weights

    for _ in range(count):
        weights.data.zero_()
        optimizer.step(loss)
        estimates.append(-weights.detach().clone())
    return torch.stack(estimates), max(moves)


def scale(estimator):
    """Mean estimate along the gradient, in gradients, with its standard error; the largest move."""
    estimates, move = steps(estimator, 1000)
    along = estimates @ gradient / gradient.square().sum()
    return float(along.mean()), float(along.std() / len(along) ** 0.5), move


torch.manual_seed(0)
distributions = ("rademacher", "gaussian", "sphere", "uniform")
seen = {f"{kind} {d}": scale(getattr(tz.m, kind)(distribution=d)) for kind in ("SPSA", "MeZO") for d in distributions}
seen["SPSA1"] = scale(tz.m.SPSA1())
print("torchzero", version("torchzero"))
for name, (mean, error, move) in seen.items():
    print(f"{name:15} {mean:8.3g} +- {error:.1g}, weights move by up to {move:.2g}")
expected = {name: 1.0 for name in seen} | {"MeZO uniform": 1000.0, "SPSA1": 0.001}
for name, (mean, error, _) in seen.items():
    assert abs(mean - expected[name]) < 6 * error, f"{name} has another scale"


def follows_seed(kind):
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        runs.append(steps(getattr(tz.m, kind)(), 10)[0])
    return not torch.equal(*runs)


assert not follows_seed("MeZO") and follows_seed("SPSA"), "directions follow the seed otherwise"
PY
