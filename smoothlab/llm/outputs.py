"""The outputs of which a training loss is a weighted mean of cross-entropies, for the Gauss-Newton matrix.

With candidates, the loss -log softmax(s)_label is the cross-entropy of their scores s. For multiple choice, completions
and texts the loss is the mean over items of -1/|o| sum_k log p(o_k | ...), cross-entropies of the vocabulary's logits
at each scored position, weighted 1/|o| within an item; they are held at all scored positions at once.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from smoothlab.hessian.gauss_newton import Outputs
from smoothlab.llm.evaluate import scores
from smoothlab.llm.vocabulary import logits as scored_logits


def loss_outputs(model: nn.Module, minibatch: Mapping[str, Tensor]) -> Outputs:
    """Outputs [N, C] and weights [N] of `choice_loss` on a minibatch: L = sum_n w_n CE(f_n, y_n), sum_n w_n = 1.

    Args:
        model: a causal language model or classifier.
        minibatch: made by `smoothlab.llm.encoding.batch`.
    """
    if "labels" in minibatch:
        count = len(minibatch["labels"])
        candidates = scores(model, minibatch).view(count, -1)
        return Outputs(candidates, torch.full((count,), 1 / count, device=candidates.device))
    logits = scored_logits(model, minibatch)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    mask = minibatch["mask"].to(logits.dtype)
    # A place is scored once in each candidate that it belongs to; masked entries only fill the rows up.
    shares = mask / mask.sum(1, keepdim=True) / len(mask)
    weights = torch.zeros(len(logits), dtype=logits.dtype, device=logits.device)
    weights.index_add_(0, minibatch["position"].reshape(-1), shares.reshape(-1))
    return Outputs(logits, weights)
