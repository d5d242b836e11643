"""Prefixes reach a model whichever of transformers' two names its cache has."""

import copy
import inspect
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel
from transformers import LlamaForSequenceClassification as Llama

from smoothlab.llm.adapters import attach, pool_at_last_token
from smoothlab.llm.caches import accept_past_key_values, cache_argument, cache_of
from smoothlab.llm.export import save
from tests.llm.tiny import IDS, LABELS, MASK, tiny, tiny_lm, tokenizer


class LlamaWithCache(Llama):  # type: ignore[misc]
    """A Llama classifier whose forward pass takes its keys and values as `cache`, as in transformers 5.24."""

    def forward(self, input_ids: Any = None, cache: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, **{cache_argument(super()): cache}, **kwargs)


class BertModelWithCache(BertModel):  # type: ignore[misc]
    """A BERT encoder whose forward pass takes its keys and values as `cache`."""

    def forward(self, input_ids: Any = None, cache: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, **{cache_argument(super()): cache}, **kwargs)


def prefixed(base: nn.Module) -> Any:
    """What peft makes of a classifier by itself, with a prefix of three random positions."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return peft.get_peft_model(base, peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")).eval()


def bert() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        return BertForSequenceClassification(BertConfig(vocab_size=60, **shape)).eval()


def bases(kind: str) -> tuple[Any, Any]:
    """Two classifiers with the same weights: transformers' own, and one that takes `cache`."""
    if kind == "the classifier takes it":
        model = tiny("llama").float()
        renamed = copy.deepcopy(model)
        renamed.__class__ = LlamaWithCache
    else:
        model = bert()
        renamed = copy.deepcopy(model)
        renamed.bert.__class__ = BertModelWithCache
    return model, renamed


@pytest.mark.parametrize("kind", ["the classifier takes it", "the model below its head takes it"])
def test_a_classifier_that_takes_cache_gets_the_prefix(kind: str) -> None:
    """The logits are those of the model with the old name, and depend on the prefix."""
    one, two = (prefixed(base) for base in bases(kind))
    for model in (one, two):
        accept_past_key_values(model)
        accept_past_key_values(model)  # a second time changes nothing
    with torch.no_grad():
        old, new = (model(input_ids=IDS, attention_mask=MASK).logits for model in (one, two))
        two.prompt_encoder["default"].embedding.weight.mul_(-1)
        other = two(input_ids=IDS, attention_mask=MASK).logits
    assert torch.equal(old, new)
    assert not torch.allclose(new, other, rtol=1e-3)


def test_peft_alone_does_not_give_the_prefix_to_a_model_that_takes_cache() -> None:
    """Why it is mended here: when this fails, peft does it, and the mend can go."""
    _, renamed = bases("the model below its head takes it")
    with pytest.raises(ValueError, match="does not support past key values"):
        prefixed(renamed)(input_ids=IDS, attention_mask=MASK)


def test_a_copy_of_the_model_computes_with_its_own_weights() -> None:
    model = prefixed(bases("the classifier takes it")[1])
    accept_past_key_values(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(input_ids=IDS, attention_mask=MASK).logits
        for p in twin.parameters():
            p.zero_()
        assert not twin(input_ids=IDS, attention_mask=MASK).logits.any()
        assert torch.equal(model(input_ids=IDS, attention_mask=MASK).logits, before) and before.all()


def test_other_arguments_stay_listed() -> None:
    """A Trainer reads from the forward pass which columns of a data set the model takes."""
    model = prefixed(bases("the model below its head takes it")[1])
    accept_past_key_values(model)
    forward = model.get_base_model().bert.forward
    assert [*inspect.signature(forward).parameters] == ["input_ids", "cache", "past_key_values", "kwargs"]


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_models_without_a_prefix_are_left_alone(method: str) -> None:
    model = attach(bases("the classifier takes it")[1], method, seed=0)
    assert "forward" not in vars(model.get_base_model())  # type: ignore[operator]


@pytest.mark.filterwarnings("error:.*past_key_values:FutureWarning")
@pytest.mark.parametrize("lm", [False, True])
def test_no_name_that_transformers_gives_up_is_used(lm: bool) -> None:
    base = tiny_lm("opt") if lm else tiny("opt").float()
    model = attach(base, "prefix", seed=0)
    labels = IDS if lm else LABELS
    model(input_ids=IDS, attention_mask=MASK, labels=labels).loss.backward()
    assert model.prompt_encoder["default"].embedding.weight.grad.any()  # type: ignore[index, union-attr]


def test_the_cache_of_outputs() -> None:
    outputs = tiny_lm("llama")(input_ids=IDS, use_cache=True)
    assert cache_of(outputs).get_seq_length() == IDS.shape[1]


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_the_card_of_a_saved_classifier_says_what_a_reloaded_one_needs(method: str, tmp_path: Path) -> None:
    model = attach(tiny("opt").float(), method, seed=0).eval()
    with torch.no_grad():
        before = model(input_ids=IDS, attention_mask=MASK).logits
    save(model, tokenizer(), tmp_path, base=True)
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert ("`smoothlab.llm.caches.accept_past_key_values(model)`" in card) == (method == "prefix")
    again = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter").eval()
    accept_past_key_values(again)
    if method == "prompt":
        pool_at_last_token(again)
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS, attention_mask=MASK).logits, before)
