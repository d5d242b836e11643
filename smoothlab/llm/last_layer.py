"""The last layer of a language model at some places only: nothing reads its output elsewhere.

Its keys and values are still those of all tokens. The layer runs on all tokens until its attention hands keys and
values to a cache, which keeps them and ends the run there; then it runs on the chosen tokens, and the cache gives their
attention the kept ones. What a PEFT method has put into the layer takes part as always.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

__all__ = ["LAYERS", "only"]

LAYERS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "llama": "model.layers",
    "opt": "model.decoder.layers",
    "qwen2": "model.layers",
    "qwen3": "model.layers",
}
"""Model types whose attention takes any mask [R, 1, T, V + T] and any positions, and where their layers stand."""


class _Kept(Exception):
    """Keys and values are there: what follows in the layer is not needed."""


class _Keeper:
    """A cache that keeps the first keys and values that come, behind those of another cache, and then returns them."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        """As of transformers' caches; `more` is the layer's number and what a version adds to it."""
        if self.kept is None:
            self.kept = (keys, values) if self.before is None else self.before.update(keys, values, *more)
            raise _Kept
        return self.kept


@contextmanager
def only(base: Any, row: Tensor, back: Tensor) -> Iterator[None]:
    """Within it, the last layer gives its output [R, T, d] at the chosen places, and 0 at all others.

    The model must be given what each token sees, a mask [R, 1, T, V + T]: of its own making it may make none.

    Args:
        base: a causal language model of LAYERS, without its PEFT method's wrapper.
        row: of each place [N], not decreasing and every row at least once.
        back: how far each place stands from the end of its row [N]: 1 is the last token.
    """
    counts = row.bincount()
    among = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    backs = back.new_ones(len(counts), int(counts.max())).index_put((row, among), back)
    rows = torch.arange(len(counts), device=row.device)[:, None]

    def choose(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = signature(layer.forward).bind(*args, **kwargs).arguments
        named |= named.pop("kwargs", {})
        cache = "layer_past" if "layer_past" in signature(layer.forward).parameters else "past_key_values"
        named[cache] = _Keeper(named.get(cache))
        with suppress(_Kept):
            layer.forward(**named)
        hidden = named.pop("hidden_states")
        length.append(hidden.shape[1])
        place = hidden.shape[1] - backs
        named["attention_mask"] = named["attention_mask"][rows, :, place].transpose(1, 2)
        if (rotary := named.get("position_embeddings")) is not None:
            named["position_embeddings"] = tuple(each.expand(len(hidden), -1, -1)[rows, place] for each in rotary)
        if (positions := named.get("position_ids")) is not None:
            named["position_ids"] = positions.expand(len(hidden), -1)[rows, place]
        return (hidden[rows, place],), named

    def spread(layer: Any, args: tuple[Any, ...], found: Any) -> Any:
        first = found[0] if isinstance(found, tuple) else found  # some versions of transformers put more behind it
        whole = first.new_zeros(len(first), length.pop(), first.shape[-1])
        whole[rows, whole.shape[1] - backs] = first
        return (whole, *found[1:]) if isinstance(found, tuple) else whole

    length: list[int] = []
    last = attrgetter(LAYERS[base.config.model_type])(base)[-1]
    handles = last.register_forward_pre_hook(choose, with_kwargs=True), last.register_forward_hook(spread)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
