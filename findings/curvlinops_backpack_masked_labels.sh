#!/usr/bin/env bash
# curvlinops 3.0.1, BackPACK 1.7.1: labels of -100, which a loss leaves out, count in Fisher, KFAC and Gauss-Newton matrices.
#
# Guess: CrossEntropyLoss(ignore_index=-100) averages over the rows that have a label; its Gauss-Newton matrix, which is the
#        Fisher matrix, has no part of the others, and a package that does not know ignore_index says so, as BackPACK
#        does of class weights.
# Seen:  both packages take ignore_index in silence. BackPACK's DiagGGNExact, DiagHessian and DiagGGNMC, and curvlinops's
#        FisherMC, KFAC and EKFAC are those of all rows as if each had a label: masking does not change them to the bit, or
#        to Monte Carlo noise (36 % off with 7 of 20 rows masked, 18 % for BackPACK's diagonal). curvlinops's Hessian and
#        GGN of one minibatch are right to rounding; of two minibatches they are weighted by rows, not by labels (7 % off).
#        BackPACK's gradients of single rows are right.
# Who meets it: whoever measures the curvature of fine-tuning, where the tokens of prompts and padding are masked by -100:
#        most of a minibatch, so that most of the matrix is of tokens that the loss never sees.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import curvlinops
import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, DiagGGNExact, DiagGGNMC, DiagHessian
from torch import nn
from torch.func import functional_call, hessian, jacrev

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
ROWS, CLASSES = 20, 6
inputs, labels = torch.randn(ROWS, 3), torch.randint(CLASSES, (ROWS,))
masked = labels.clone()
masked[::3] = -100
kept = masked != -100
mean = nn.CrossEntropyLoss()


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES))


plain = network()
sizes = {name: p.shape for name, p in plain.named_parameters()}
theta = torch.cat([p.detach().flatten() for p in plain.parameters()])


def outputs(vector, chosen):
    parts = vector.split([shape.numel() for shape in sizes.values()])
    weights = {name: part.view(shape) for (name, shape), part in zip(sizes.items(), parts)}
    return functional_call(plain, weights, (inputs[chosen],))


def gauss_newton(chosen):
    """Sum over rows of J' (diag p - p p') J / rows, from the rows with a label alone."""
    jacobian = jacrev(outputs)(theta, chosen)
    p = outputs(theta, chosen).softmax(-1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nci,ncd,ndj->ij", jacobian, middle, jacobian) / len(p)


def off(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


true, of_all = gauss_newton(kept), gauss_newton(torch.ones(ROWS, dtype=torch.bool))
true_hessian = hessian(lambda vector: mean(outputs(vector, kept), labels[kept]))(theta)


def matrix(kind, targets, minibatches=1, **options):
    model, cut = network(), ROWS // minibatches
    data = [(inputs[i : i + cut], targets[i : i + cut]) for i in range(0, ROWS, cut)]
    return kind(model, mean, list(model.parameters()), data, **options) @ torch.eye(len(theta))


one = {"Hessian": curvlinops.HessianLinearOperator, "GGN": curvlinops.GGNLinearOperator}
for name, kind in one.items():
    wanted = true_hessian if name == "Hessian" else true
    single, double = off(matrix(kind, masked), wanted), off(matrix(kind, masked, 2), wanted)
    print(f"curvlinops {name}: off by {single:.1g}, of two minibatches {double:.1g}")
    assert single < 1e-12 and double > 0.005
    assert off(matrix(kind, labels, 2), matrix(kind, labels)) < 1e-12, "without masks two minibatches are right"
sampled = matrix(curvlinops.FisherMCLinearOperator, masked, mc_samples=4000, check_deterministic=False)
print(f"curvlinops FisherMC: off by {off(sampled, true):.2g}; from the matrix of all rows, unmasked, by {off(sampled, of_all):.2g}")
assert off(sampled, true) > 0.2 and off(sampled, of_all) < 0.03, "FisherMC knows masks now"
for kind in (curvlinops.KFACLinearOperator, curvlinops.EKFACLinearOperator):
    options = {"fisher_type": "type-2", "check_deterministic": False}
    with_mask, without = matrix(kind, masked, **options), matrix(kind, labels, **options)
    print(f"{kind.__name__}: masked and unmasked differ by {off(with_mask, without):.2g}; trace is {float(with_mask.trace() / true.trace()):.3f} of the true one")
    assert off(with_mask, without) < 1e-12, "KFAC knows masks now"
model = extend(network())
with backpack(DiagGGNExact(), DiagHessian(), DiagGGNMC(mc_samples=4000), BatchGrad()):
    extend(nn.CrossEntropyLoss())(model(inputs), masked).backward()


def flat(name, start=0):
    return torch.cat([getattr(p, name).flatten(start) for p in model.parameters()], dim=start)


for name in ("diag_ggn_exact", "diag_ggn_mc"):
    print(f"BackPACK {name}: off by {off(flat(name), true.diag()):.2g}; from that of all rows by {off(flat(name), of_all.diag()):.2g}")
    assert off(flat(name), true.diag()) > 0.1 and off(flat(name), of_all.diag()) < 0.03, "BackPACK knows masks now"
print(f"BackPACK diag_h: off by {off(flat('diag_h'), true_hessian.diag()):.2g}")
assert off(flat("diag_h"), true_hessian.diag()) > 0.1
rows = flat("grad_batch", 1)
assert not rows[~kept].any() and off(rows.sum(0), flat("grad")) < 1e-12, "gradients of single rows are wrong, too"
PY
