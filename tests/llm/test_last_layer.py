"""The last layer at some places only: what it gives there, what it is spared, and that nothing of it stays behind."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache

from smoothlab.llm.last_layer import LAYERS, only
from tests.llm.tiny import other_family, tiny_lm

EPS = torch.finfo(torch.float32).eps
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16], [5, 6, 20, 21, 22, 23]])
ROW, BACK = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([1, 4, 6, 2, 3, 1])
LINEAR = {"gpt2": ["c_attn", "c_fc"], "gpt_neox": ["query_key_value", "dense_h_to_4h"]}


def family(name: str) -> nn.Module:
    return tiny_lm(name) if name in ("opt", "llama") else other_family(name)


def states(model: nn.Module, prompt: Any = None) -> Tensor:
    """What enters the vocabulary head, [R, T, d], behind `prompt`, virtual tokens' keys and values."""
    found: list[Tensor] = []
    virtual = 0 if prompt is None else prompt.get_seq_length()
    seen = torch.ones(IDS.shape[1], virtual + IDS.shape[1]).tril(virtual)
    mask = torch.zeros_like(seen).masked_fill(seen == 0, float("-inf")).expand(len(IDS), 1, -1, -1)
    places = (virtual + torch.arange(IDS.shape[1])).expand(len(IDS), -1)
    head = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    more = {} if prompt is None else {"past_key_values": prompt}
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=mask, position_ids=places, use_cache=prompt is not None, **more)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("way", ["none", "lora", "prefix"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_chosen_places_are_what_they_are_in_the_whole_layer(name: str, way: str) -> None:
    model = family(name)
    if way == "lora":
        targets = LINEAR.get(name, ["q_proj", "k_proj", "fc1" if name == "opt" else "up_proj"])
        get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()  # type: ignore[arg-type]

    def prompt() -> DynamicCache | None:
        """Two layers' keys and values of three tokens; a run appends to it."""
        generator, cache = torch.Generator().manual_seed(0), DynamicCache()
        own = model.config
        heads = getattr(own, "num_key_value_heads", own.num_attention_heads)
        for layer in range(2 if way == "prefix" else 0):
            cache.update(*torch.randn(2, len(IDS), heads, 3, 16 // own.num_attention_heads, generator=generator), layer)
        return cache if way == "prefix" else None

    whole, place = states(model, prompt()), IDS.shape[1] - BACK
    with only(model, ROW, BACK):
        cut = states(model, prompt())
    torch.testing.assert_close(cut[ROW, place], whole[ROW, place], rtol=0, atol=100 * EPS)
    assert torch.equal(cut[1, 0], cut[1, 1]) and torch.equal(cut[1, 0], cut[2, 0])  # not chosen
    assert torch.equal(states(model, prompt()), whole)  # and it is over


@pytest.mark.parametrize("name", LAYERS)
def test_what_follows_the_last_attention_reads_the_chosen_places_only(name: str) -> None:
    """Counted at the linear maps of every layer: all tokens in the first; three a row behind the last one's keys."""
    model, read = family(name), dict[str, int]()

    def count(path: str, tokens: int) -> None:
        read[path] = read.get(path, 0) + tokens

    for path, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and module is not model.get_output_embeddings():  # type: ignore[operator]
            module.register_forward_hook(lambda m, args, out, path=path: count(path, out.numel() // out.shape[-1]))
    with only(model, ROW, BACK):
        states(model)
    few, tokens = 3 * len(IDS), IDS.numel()
    before = ("q_proj", "k_proj", "v_proj", "c_attn", "query_key_value")
    for path, count in read.items():
        last = ".1." in path
        assert count == (tokens + few if last and path.endswith(before) else few if last else tokens), path


def test_an_error_inside_leaves_no_hook() -> None:
    model = family("opt")
    with pytest.raises(RuntimeError, match="here"), only(model, ROW, BACK):
        raise RuntimeError("here")
    whole = states(model)
    assert bool((whole.flatten(0, 1).norm(dim=1) > 0).all()) and whole.shape[:2] == IDS.shape
