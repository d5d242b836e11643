"""The outputs of which a training loss is a weighted mean of cross-entropies, for the Gauss-Newton matrix.

With candidates, the loss -log softmax(s)_label is the cross-entropy of their scores s. For multiple choice, completions
and texts the loss is the mean over items of -1/|o| sum_k log p(o_k | ...), cross-entropies of the vocabulary's logits
at each scored position, weighted 1/|o| within an item; they are held at all scored positions at once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput
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
    # A position is scored once in each candidate that it belongs to; masked entries only pad the rows.
    shares = mask / mask.sum(1, keepdim=True) / len(mask)
    weights = torch.zeros(len(logits), dtype=logits.dtype, device=logits.device)
    weights.index_add_(0, minibatch["position"].reshape(-1), shares.reshape(-1))
    return Outputs(logits, weights)


def called_outputs(model: nn.Module, loss: Callable[[], Tensor]) -> Outputs:
    """Outputs and weights of a loss that calls `model` with labels, as transformers' models are called.

    They are the logits at the labels other than -100, each with the weight 1/N: at the label's own position, or in
    language models at the position before. The value of the loss shows which of the two it is, or that it is neither.

    Args:
        model: called once by `loss`, with the keyword argument `labels`.
        loss: mean loss of a minibatch.

    Raises:
        BadInput: the loss is no mean cross-entropy of the model's logits at its labels.
    """
    calls: list[tuple[Tensor | None, Tensor | None]] = []

    def keep(_module: nn.Module, _args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        calls.append((getattr(output, "logits", None), kwargs.get("labels")))

    with model.register_forward_hook(keep, with_kwargs=True):
        value = float(loss().detach())
    if len(calls) == 1:
        logits, labels = calls[0]
        if isinstance(logits, Tensor) and isinstance(labels, Tensor):
            for outputs, targets in _pairings(logits, labels):
                wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
                mean = float(nn.functional.cross_entropy(wide.detach(), targets))
                # As much as sums in another order round; smoothed or weighted losses are farther away.
                if abs(mean - value) <= 64 * torch.finfo(wide.dtype).eps * max(abs(value), 1.0):
                    return Outputs(wide, torch.full((len(wide),), 1 / len(wide), device=wide.device))
    raise BadInput(
        f"the loss, {value:.6g}, is not the mean cross-entropy of the model's logits at the labels that it is called "
        "with: leave the Gauss-Newton trace out, or give its outputs to SmoothnessHook in a loop of your own"
    )


def _pairings(logits: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Logits [N, C] with labels [N] that may belong to them; positions without a label are left out."""
    if labels.is_floating_point() or labels.ndim != logits.ndim - 1 or not 2 <= logits.ndim <= 3:
        return []
    if logits.ndim == 2:
        pairings = [(logits, labels)]
    else:
        # Virtual tokens of a PEFT method stand before the text, and have logits but no labels.
        labels = nn.functional.pad(labels, (logits.shape[1] - labels.shape[1], 0), value=-100)
        pairings = [(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), (logits.flatten(0, 1), labels.flatten())]
    result = []
    for outputs, targets in pairings:
        labeled = targets != -100
        if bool(labeled.any()):
            result.append((outputs[labeled], targets[labeled]))
    return result
