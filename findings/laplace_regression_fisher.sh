#!/usr/bin/env bash
# laplace-torch 0.3: for regression the empirical Fisher matrix is 2 sigma^2 times what it is, in all three of its backends.
#
# Guess: BackPackEF, CurvlinopsEF and AsdlEF give the sum over rows of g g', with g the gradient of a row's negative log likelihood,
#        |y - f|^2 / (2 sigma^2) for regression: that is what GGN, which is the Fisher matrix, and Hessian refer to.
# Seen:  GGN and Hessian are exact, and so is EF for classification. For regression EF is 2 sigma^2 times the sum, whichever backend:
#        backends take g of the loss |y - f|^2, twice the gradient, and multiply the product of two of them by 1/2 once, and by
#        1/sigma^2 once. It is right at sigma^2 = 1/2 alone. Where the model fits and sigma is the noise, EF should be near GGN: here
#        its trace should be 1.26 times that of GGN, and is 0.025 times at sigma = 0.1 and 2.5 times at sigma = 1. Full and diagonal
#        matrices are alike. No warning.
# Who meets it: whoever compares curvature matrices of a fine-tuned model (a reward model, a regression head), fits sigma or the
#        prior by marginal likelihood, or takes the cheaper EF for GGN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 laplace-torch==0.3 numpy==2.4.6
# laplace-torch asks for torchvision and does not need it; one that was built for another torch cannot be imported.
"$folder/env/bin/pip" uninstall --quiet --yes torchvision
cd "$folder"
"$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e "backward(" -e non_full_backward -e "Failed to load" >&2)
import torch
from laplace import Laplace, curvature
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
inputs = torch.randn(60, 5)
network = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
start = nn.utils.parameters_to_vector(network.parameters()).detach()
sizes = [p.numel() for p in network.parameters()]


def outputs(vector):
    parts = zip(network.named_parameters(), vector.split(sizes))
    return functional_call(network, {name: part.view_as(p) for (name, p), part in parts}, (inputs,))


jacobian, f = jacrev(outputs)(start), outputs(start)
labels, noise = torch.randint(0, 3, (60,)), torch.randn(60, 3)


def exact(kind, targets, sigma):
    """The matrix of the negative log likelihood of all rows; sigma is None for classification."""
    if sigma is None:
        residuals, p = f.softmax(-1) - one_hot(targets), f.softmax(-1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    else:
        residuals, inner = (f - targets) / sigma**2, torch.eye(3).expand(60, 3, 3) / sigma**2
    if kind == "EF":
        rows = torch.einsum("nc,ncd->nd", residuals, jacobian)
        return rows.T @ rows
    if kind == "GGN":
        return torch.einsum("nci,ncd,ndj->ij", jacobian, inner, jacobian)
    if sigma is None:
        return hessian(lambda v: cross_entropy(outputs(v), targets, reduction="sum"))(start)
    return hessian(lambda v: (outputs(v) - targets).square().sum() / (2 * sigma**2))(start)


def fitted(backend, structure, targets, sigma):
    copy = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))  # backends leave hooks behind
    nn.utils.vector_to_parameters(start.clone(), copy.parameters())
    options = {"likelihood": "classification"} if sigma is None else {"likelihood": "regression", "sigma_noise": sigma}
    posterior = Laplace(
        copy, subset_of_weights="all", hessian_structure=structure, backend=getattr(curvature, backend), prior_precision=1.0, **options
    )
    posterior.fit(DataLoader(TensorDataset(inputs, targets), batch_size=20))
    matrix = posterior.posterior_precision
    return (matrix if matrix.dim() == 2 else torch.diag(matrix)) - torch.eye(len(start))


for structure in ("full", "diag"):
    for sigma in (None, 0.1, 0.5**0.5, 1.0):
        targets = labels if sigma is None else f + sigma * noise  # the model fits, and sigma is the noise
        for backend in ("BackPackGGN", "CurvlinopsGGN", "AsdlGGN", "CurvlinopsHessian", "BackPackEF", "CurvlinopsEF", "AsdlEF"):
            if structure == "diag" and backend.endswith("Hessian"):
                continue
            kind = backend[-3:] if backend.endswith("GGN") else "EF" if backend.endswith("EF") else "Hessian"
            truth, found = exact(kind, targets, sigma), fitted(backend, structure, targets, sigma)
            ggn = exact("GGN", targets, sigma)
            if structure == "diag":
                truth, ggn = truth.diag().diag(), ggn.diag().diag()
            ratio = float((found * truth).sum() / truth.square().sum())
            rest = float((found - ratio * truth).norm() / found.norm())
            label = "classification" if sigma is None else f"regression, sigma {sigma:.2f}"
            print(f"{structure}, {label}, {backend}: {ratio:.4f} times the exact matrix; rest {rest:.0e}", end="")
            print(f"; trace {float(found.trace() / ggn.trace()):.3f} times that of GGN" if kind == "EF" else "")
            expected = 2 * sigma**2 if kind == "EF" and sigma is not None else 1.0
            assert abs(ratio / expected - 1) < 1e-3 and rest < 1e-3, f"{backend} gives another multiple now"
PY
