"""Logits and log-probabilities at scored positions: the vocabulary's table is never held at all of a row's positions.

Hidden states are gathered at the scored positions before the vocabulary head, by a hook on it, so that whatever a model
does to its logits afterwards is done here too. Where positions x vocabulary is more than CHUNK numbers, as with
completions of many tokens, head and softmax run for a chunk of positions at a time and are computed again in the
backward pass (Chen et al. 2016, arXiv:1604.06174), and where that is differentiated in turn: memory holds one chunk of
the table at a time.
"""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from smoothlab.llm.caches import CACHED, cache_argument
from smoothlab.llm.recomputation import depends_only_on, recomputed

CHUNK = 2**24
"""Logits that are computed at a time: 64 MiB in fp32, 341 positions of a vocabulary of 49,152.

glibc gives blocks above 32 MiB back to the system when they are freed. Smaller ones stay in its heap, where small
tensors nibble at them until the next chunk needs a new one: with 16 MiB the process grew by as much as the whole table.
"""
Minibatch = Mapping[str, Tensor]
"""What `smoothlab.llm.encoding.batch` returns."""


def token_logs(model: nn.Module, minibatch: Minibatch) -> Tensor:
    """Log-probability of each token of each candidate [C, L], in fp32 at least; of no meaning where the mask is 0."""
    base = without_peft(model)
    head, positions = base.get_output_embeddings(), len(minibatch["row"])
    if head is not None:
        size = max(1, CHUNK // len(head.weight))
        if positions > size:
            logs = _in_chunks(model, base, minibatch, size)
            if logs is not None:
                return logs
    return _log_softmax(logits(model, minibatch))[minibatch["position"], minibatch["token"]]


def whole_token_logs(model: nn.Module, minibatch: Minibatch) -> Tensor:
    """`token_logs` with the head on all positions at once, as `evaluate.repeated_choice_loss` needs it."""
    return _log_softmax(logits(model, minibatch))[minibatch["position"], minibatch["token"]]


def logits(model: nn.Module, minibatch: Minibatch) -> Tensor:
    """Logits [P, vocabulary] at the minibatch's positions, or a classifier's [P, classes]."""
    base = without_peft(model)
    if base.get_output_embeddings() is None:
        inputs = {name: minibatch[name] for name in ("input_ids", "attention_mask")}
        result: Tensor = model(**inputs).logits[minibatch["row"]]
        return result
    return _through_head(model, base, minibatch, lambda hidden: hidden)


def without_peft(model: Any) -> Any:
    """The model under the PEFT method, whose head takes hooks and whose forward still runs."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def _log_softmax(logits: Tensor) -> Tensor:
    # A softmax over the vocabulary in 16 bits would round differences between candidates away.
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _through_head(model: Any, base: Any, minibatch: Minibatch, select: Callable[[Tensor], Tensor]) -> Tensor:
    """The model's own logits at those of the gathered hidden states [P, d] that `select` returns."""
    row, back = minibatch["row"], minibatch["back"]

    def gather(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (select(args[0][row, args[0].shape[1] - back])[None], *args[1:])

    # Logits of a large vocabulary at all positions would cost more than the rest of the forward pass.
    handle = base.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        result: Tensor = forward(model, base, minibatch).logits[0]
        return result
    finally:
        handle.remove()


def _in_chunks(model: Any, base: Any, minibatch: Minibatch, size: int) -> Tensor | None:
    """`token_logs` with the head on `size` positions at a time; None where a model's logits are not understood."""
    gathered: list[Tensor] = []

    def keep_first(hidden: Tensor) -> Tensor:
        gathered.append(hidden)
        return hidden[:1]

    example = _through_head(model, base, minibatch, keep_first)
    hidden, head = gathered[0], base.get_output_embeddings()
    after_head = _after_head(base, head, hidden, example)
    if after_head is None:
        return None

    def logs_of(chunk: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        return _log_softmax(after_head(head(chunk[None])[0]))[positions, tokens]

    def logs_at(positions: Tensor, tokens: Tensor, chunk: Tensor, *values: Tensor) -> Tensor:
        result = functional_call(head, dict(zip(weights, values, strict=True)), (chunk[None],))
        return _log_softmax(after_head(result[0]))[positions, tokens]

    weights: dict[str, Tensor] = dict(head.named_parameters())
    plain = not head.training and depends_only_on(example, (hidden, *weights.values()))
    positions, tokens = minibatch["position"].flatten(), minibatch["token"].flatten()
    real = minibatch["mask"].flatten() > 0  # candidates are filled up to the longest one's length
    entries, parts = [], []
    for start in range(0, len(hidden), size):
        in_chunk = (real & (positions >= start) & (positions < start + size)).nonzero()[:, 0]
        inputs = hidden[start : start + size], positions[in_chunk] - start, tokens[in_chunk]
        if torch.is_grad_enabled() and plain:
            part = recomputed(partial(logs_at, *inputs[1:]), inputs[0], *weights.values())
        elif torch.is_grad_enabled():
            # It repeats dropout's draws and finds tensors outside the head, but what a product computes is kept.
            # The non-reentrant kind alone can be differentiated twice, as exact Hessian products are.
            part = checkpoint(logs_of, *inputs, use_reentrant=False)
        else:
            part = logs_of(*inputs)
        entries.append(in_chunk)
        parts.append(part)
    values = torch.cat(parts)
    flat = values.new_zeros(len(positions)).index_put((torch.cat(entries),), values)
    return flat.view(minibatch["position"].shape)


def _after_head(base: Any, head: nn.Module, hidden: Tensor, example: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The model's function of its head's output, found from its logits [1, vocabulary] at the first hidden state."""
    config = base.config.get_text_config()

    def number(name: str) -> float:
        return float(getattr(config, name, None) or 1.0)

    forms: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x,
        lambda x: torch.tanh(x / number("final_logit_softcapping")) * number("final_logit_softcapping"),  # Gemma
        lambda x: x * number("logit_scale"),  # Cohere
        lambda x: x / number("logits_scaling"),  # Granite
    )
    with torch.no_grad():
        plain = head(hidden[None, :1])[0]
        tolerance = 16 * torch.finfo(plain.dtype).eps
        for form in forms:
            # Both come from the same numbers: a form that is not the model's would differ by far more.
            if torch.allclose(form(plain), example, rtol=tolerance, atol=tolerance * float(example.abs().max())):
                return form
    return None


def forward(model: Any, base: Any, minibatch: Minibatch) -> Any:
    """The forward pass with positions counted from the first real token, virtual tokens before it included.

    peft's own forward of prompt methods drops positions: those of padding could then exceed the model's table.
    """
    ids, config = minibatch["input_ids"], getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return model(input_ids=ids, use_cache=False, **_attention_inputs(base, minibatch, 0))
    virtual = config.num_virtual_tokens
    prompt, attention = model.get_prompt(batch_size=len(ids)), _attention_inputs(base, minibatch, virtual)
    if config.peft_type in CACHED:
        if "position_ids" in attention:
            attention["position_ids"] = attention["position_ids"][:, virtual:]
        return base(input_ids=ids, **{cache_argument(base): prompt}, **attention)
    # Prompt methods put their virtual tokens before the embedded text.
    token_embeddings = model.word_embeddings(ids)
    embedded = torch.cat([prompt.to(token_embeddings.dtype), token_embeddings], 1)
    return base(inputs_embeds=embedded, use_cache=False, **attention)


def _attention_inputs(base: Any, minibatch: Minibatch, virtual: int) -> dict[str, Tensor]:
    """attention_mask of the whole rows, virtual tokens first, and position_ids [R, V + T] for models that take them."""
    mask = minibatch["attention_mask"]
    mask = torch.cat([mask.new_ones(len(mask), virtual), mask], 1)
    if "position_ids" not in signature(base.forward).parameters:  # these models make their own of the mask
        return {"attention_mask": mask}
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
