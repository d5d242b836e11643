"""Which head a model gets, what is trained with it, and classifiers that cannot be trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothlab.errors import BadInput
from smoothlab.llm import heads
from smoothlab.llm.evaluate import encode
from smoothlab.llm.tasks import Choice, Splits, load_choices
from tests.llm.classifiers import checkpoint
from tests.llm.tiny import tokenizer

WORDS = (" bad", " good", " fair")


def splits(kind: Any = "verbalizer", classes: int = 2) -> Splits:
    texts = ["a film", "a very long and tedious film with nothing in it but people who talk", "no film"]
    items = tuple(Choice(f"{text} is", WORDS[:classes], i % 2, text) for i, text in enumerate(texts))
    return Splits(items, items, items, kind, "", "", "some task")


def loaded(folder: Path, because: str = "--head classifier", classes: int = 2) -> Any:
    return heads.load(str(folder), splits(classes=classes), because, seed=0, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("opt", None), ("llama", None), ("gpt2", None), ("bert-decoder", None),
        ("opt-classifier", "it was saved as OPTForSequenceClassification"),
        ("bert-classifier", "it was saved as BertForSequenceClassification"),
        ("bert", "models of type bert generate no text from left to right"),
        ("roberta", "models of type roberta generate"), ("bart", "models of type bart generate"),
        ("vit", "models of type vit generate"),
    ],
)  # fmt: skip
def test_auto_takes_a_classifier_where_there_is_no_language_model(tmp_path: Path, kind: str, why: str | None) -> None:
    found = heads.classifier_reason("auto", str(checkpoint(tmp_path, kind)))
    assert found is None if why is None else found is not None and found.startswith(why)


def test_what_is_asked_for_is_taken_without_a_look_at_the_model() -> None:
    assert (
        heads.classifier_reason("classifier", "nowhere") == "--head classifier"
        and heads.classifier_reason("lm", "nowhere") is None
    )
    assert heads.classifier_reason("auto", "micro") is None is heads.classifier_reason("auto", "random:opt-125m")
    with pytest.raises(BadInput, match="cannot load model './nowhere/model'"):
        heads.classifier_reason("auto", "./nowhere/model")


def test_candidates_that_differ_are_no_classes(tmp_path: Path) -> None:
    many = splits("multiple choice")
    for because, fix in (("--head classifier", "use --head lm"), ("it was saved as X", "nowhere is a classifier, as")):
        with pytest.raises(BadInput, match=f"candidates of some task differ .* cannot be classes: {fix}"):
            heads.load("nowhere", many, because, seed=0, dtype=torch.float32, device="cpu")
    with pytest.raises(BadInput, match="is of type vit, of which transformers has no sequence classifier"):
        loaded(checkpoint(tmp_path, "vit"))


def test_classes_are_named_by_the_candidates_where_a_checkpoint_does_not_name_them(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "bert-classifier")
    assert loaded(folder, classes=3).model.config.id2label == {0: "bad", 1: "good", 2: "fair"}
    config = json.loads((folder / "config.json").read_text())
    named = {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
    (folder / "config.json").write_text(json.dumps(config | named))
    found = loaded(folder, "it was saved so")
    assert found.model.config.id2label == {0: "negative", 1: "positive"}
    assert found.notes[0] == f"{folder} is trained as a classifier of 2 classes: it was saved so"
    assert f"the head is that of {folder}, not a new one" in found.notes
    assert not any("second derivatives" in note for note in found.notes)  # nothing is measured


HEADS = {
    "opt": {"score.weight"},
    "bert": {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"},
    "bert-classifier": {"classifier.weight", "classifier.bias"},
    "distilbert": {f"{name}.{what}" for name in ("pre_classifier", "classifier") for what in ("weight", "bias")},
    "bart": {f"classification_head.{name}.{what}" for name in ("dense", "out_proj") for what in ("weight", "bias")},
}


@pytest.mark.parametrize("method", ["lora", "none"])
@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_a_block_beside_a_module_and_in_the_base_without(tmp_path: Path, kind: str, method: str) -> None:
    """A pooler that the checkpoint lacks is new, as the head is, and in its block; one that it has is the base's."""
    one = loaded(checkpoint(tmp_path, kind))
    bare = {name.removeprefix("model."): p.numel() for name, p in one.model.named_parameters()}
    model = heads.attached(one, method, seed=0)
    names = {id(p): name for name, p in model.named_parameters()}
    found = heads.blocks(model, base=True, module=method != "none")
    plain = {
        block: {
            names[id(p)].removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            .replace(".base_layer", "").removeprefix("model.")
            for p in own.params
        }
        for block, own in found.items()
    }  # fmt: skip
    if method == "none":
        assert plain == {"base": {*bare}}
        return
    assert [*found] == ["base", "peft", "head"] and plain["head"] == HEADS[kind]
    assert plain["base"] == {*bare} - HEADS[kind] and all("lora_" in name for name in plain["peft"])
    assert [*heads.blocks(model, base=False, module=True)] == ["peft", "head"]


@pytest.mark.parametrize("kind", ["opt", "llama", "gpt2"])
def test_a_prefix_starts_as_random_tokens_that_stand_before_the_text(tmp_path: Path, kind: str) -> None:
    bare, one = (loaded(checkpoint(tmp_path, kind)) for _ in range(2))
    state = torch.random.get_rng_state()
    model = heads.attached(one, "prefix", seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    ids = torch.tensor([[2, 40, 50, 60]])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        before = torch.randint(0, 4096, (1, 5))
        wanted = bare.model(input_ids=torch.cat([before, ids], 1)).logits
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["builtin", "sst2", "wic"])
def test_a_classifier_reads_sentences_alone_and_whole_prompts_of_pairs(
    name: str, request: pytest.FixtureRequest
) -> None:
    folder = None if name == "builtin" else request.getfixturevalue("shared_data")
    items = load_choices(name, folder, sizes=(4, 2, 2), verbalizers=None).train
    for item, row in zip(items, encode(tokenizer(), items, 256, "classifier").contexts, strict=True):
        assert bool(item.sentence) == (name != "wic") and item.prompt.endswith("It was") == (name != "wic")
        text = item.sentence or item.prompt
        assert tokenizer().decode(row, skip_special_tokens=True) == tokenizer().decode(
            tokenizer()(text)["input_ids"], skip_special_tokens=True
        )


def test_a_file_of_classes_needs_no_words(tmp_path: Path) -> None:
    path = tmp_path / "four.jsonl"
    path.write_text("".join(json.dumps({"sentence": f"film {i}", "label": i % 4}) + "\n" for i in range(40)))
    found = load_choices(str(path), verbalizers=None)
    assert {item.candidates for item in found.train} == {(" 0", " 1", " 2", " 3")} and found.kind == "verbalizer"
    assert {item.sentence for item in found.train} < {f"film {i}" for i in range(40)}
    with pytest.raises(BadInput, match="has 4 classes and no verbalizers: .*, or use --head classifier"):
        load_choices(str(path))
