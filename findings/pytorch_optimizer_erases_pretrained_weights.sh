#!/usr/bin/env bash
# pytorch_optimizer 4.1.0: the first step of FTRL and of SRMM destroys pretrained weights, however small the learning rate is.
#
# Guess: a step moves weights by about lr times something made of gradients; with a small rate a pretrained model stays what it is, and a
#        weight without a gradient, such as the embedding of a token that is not in the batch, stays as it is.
# Seen:  both rebuild weights from running sums that start at 0 instead of at the weights. FTRL sets every weight whose gradient is 0
#        to 0 in its first step; with beta = 1 it shrinks the others to |g| / (|g| + 1) of themselves, too, before lr
#        enters. SRMM multiplies all weights by 0.707 in its first step, with lr = 1e-2, 1e-4 or 1e-12 alike. Later steps keep
#        what is left. Neither is weight decay, which is 0, nor is it mentioned.
# Who meets it: whoever sweeps a list of optimizers over one fine-tuning task, as load_optimizer(name) invites to, and takes
#        the loss of an untrained model after step 1 for a rate that is too large.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 pytorch_optimizer==4.1.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY' 2> >(grep -v -e Warning -e warnings.warn >&2)
import pytorch_optimizer
import torch


def kept(kind, steps=1, **options):
    """Share of themselves that embeddings of tokens in the batch, and of others, still are after some steps."""
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(6, 4)
    start = embedding.weight.detach().clone()
    optimizer = kind(embedding.parameters(), **options)
    for _ in range(steps):
        optimizer.zero_grad()
        embedding(torch.tensor([0, 1])).square().sum().mul(0.5).backward()
        optimizer.step()
    share = (embedding.weight / start).detach()
    return float(share[:2].mean()), float(share[2:].mean())


FTRL, SRMM = (pytorch_optimizer.load_optimizer(name) for name in ("ftrl", "srmm"))
for rate in (1e-2, 1e-4, 1e-12):
    plain, shrunk, srmm = kept(FTRL, lr=rate), kept(FTRL, lr=rate, beta=1.0), kept(SRMM, lr=rate)
    print(f"lr {rate}: kept of rows in the batch and of others: FTRL {plain}, with beta = 1 {shrunk}, SRMM {srmm}")
    assert plain[0] > 0.95 and plain[1] == shrunk[1] == 0, "FTRL keeps rows without a gradient now"
    assert shrunk[0] < 0.6, "FTRL keeps the others now"
    assert 0.69 < srmm[0] < 0.71 and abs(srmm[1] - 0.5**0.5) < 1e-6, "SRMM keeps weights now"
    assert abs(kept(SRMM, steps=20, lr=rate)[1] - 0.5**0.5) < 1e-6
for name in ("adamp", "lion", "yogi", "fromage", "adabelief", "sgdw", "madgrad", "soap", "came", "tiger"):
    share = kept(pytorch_optimizer.load_optimizer(name), lr=1e-4)
    print(name, "with lr 0.0001:", share)
    assert min(share) > 0.99
PY
