#!/usr/bin/env bash
# hessian-eigenthings 1.0.0a5: microbatch_size, an option that saves memory, changes the Hessian of a language model.
#
# Guess: with microbatch_size, HessianOperator adds up products of chunks, so that the Hessian of a batch's loss is the
#        same to rounding; the package refuses models with BatchNorm, where that can't be.
# Seen:  products of chunks are averaged with equal weights. Where chunks have one number of items and of tokens, that
#        is the batch's Hessian; for rows whose labels are masked by -100, or a last chunk that is shorter, it's another:
#        80 % off for prompts with short answers, 37 % for a batch of 5 in chunks of 4, without a warning.
# Who meets it: whoever measures a fine-tuning loss (prompts masked, answers of several lengths) in less memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 hessian-eigenthings==1.0.0a5 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
from importlib.metadata import version
from types import SimpleNamespace

import torch
from hessian_eigenthings.loss_fns import hf_lm_loss, supervised_loss
from hessian_eigenthings.operators.hessian import HessianOperator
from torch import nn


class LanguageModel(nn.Module):
    """Gives logits and the mean loss of tokens that are not masked, as transformers' models do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 4), nn.Linear(4, 12)

    def forward(self, input_ids, labels):
        logits = self.head(torch.tanh(self.embedding(input_ids).cumsum(1)))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return SimpleNamespace(loss=loss, logits=logits)


torch.manual_seed(0)


def off(model, batch, loss, size):
    """How far the Hessian by chunks is from that of the whole batch, relative to its Frobenius norm."""
    whole, chunks = (HessianOperator(model, [batch], loss, microbatch_size=s) for s in (None, size))
    basis = torch.eye(whole.size, dtype=whole.dtype)
    wanted, got = (torch.stack([operator.matvec(v) for v in basis]) for operator in (whole, chunks))
    return float((got - wanted).norm() / wanted.norm())


ids = torch.randint(12, (4, 8))
masked = ids.clone()
for row, answer in enumerate((7, 1, 1, 1)):
    masked[row, : 8 - answer] = -100
classifier = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
items = torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))
loss, mean_loss = hf_lm_loss(), supervised_loss(nn.CrossEntropyLoss())
lm = LanguageModel().double()
seen = {
    "all tokens": off(lm, {"input_ids": ids, "labels": ids}, loss, 2),
    "prompts masked": off(lm, {"input_ids": ids, "labels": masked}, loss, 2),
    "4 items": off(classifier, tuple(t[:4] for t in items), mean_loss, 2),
    "5 items": off(classifier, items, mean_loss, 4),
}
print("hessian-eigenthings", version("hessian-eigenthings"), {name: f"{value:.2g}" for name, value in seen.items()})
assert max(seen["all tokens"], seen["4 items"]) < 1e-10, "equal chunks are not right any more"
assert min(seen["prompts masked"], seen["5 items"]) > 0.2, "chunks are weighted by what they hold now"
PY
