"""Scores of candidates: what is tokenized, what is scored, the two losses, and accuracy with its interval."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from smoothlab.errors import BadInput
from smoothlab.llm.adapters import attach
from smoothlab.llm.encoding import notes
from smoothlab.llm.evaluate import Accuracy, Encoded, accuracy, accuracy_one_by_one, batch, choice_loss, encode
from smoothlab.llm.models import load_lm
from smoothlab.llm.tasks import TASKS, Choice, Kind, load_choices
from tests.llm.tiny import encoded, tiny, tiny_lm, tokenizer

KINDS: tuple[Kind, ...] = ("verbalizer", "multiple choice")
EPS = torch.finfo(torch.float32).eps
YES_NO = ("No", "Yes")


def words(tokens: tuple[int, ...]) -> str:
    return tokenizer().decode(tokens)


def test_an_option_is_what_the_candidate_adds() -> None:
    """micro's tokenizer begins a text with </s>, and takes a space and the word behind it as one token."""
    items = [
        Choice("a fine film It was", (" terrible", " great"), 1),
        Choice("the sun so ", ("he slept .", "I ran"), 0),
    ]
    found = encode(tokenizer(), items, 256, "verbalizer")
    assert found.contexts[0] == tuple(tokenizer()("a fine film It was")["input_ids"]) and found.contexts[0][0] == 2
    assert [words(o) for o in found.options[0]] == [" terrible", " great"]
    assert [words(o) for o in found.options[1]] == [" he slept .", " i ran"]
    assert found.labels == (1, 0) and found.pad == 1 and found.cut == 0 == found.merged
    for context, options, item in zip(found.contexts, found.options, items, strict=True):
        for option, candidate in zip(options, item.candidates, strict=True):
            assert context + option == tuple(tokenizer()(item.prompt + candidate)["input_ids"])


def test_a_candidate_that_merges_with_its_prompt_is_scored_from_the_same_place_as_the_others() -> None:
    """ "fil" + "m" is one token, "fil" + "ter ." others: both are scored behind what all share."""
    item = Choice("a fine fil", ("m", "ter ."), 0)
    found = encode(tokenizer(), [item], 256, "multiple choice")
    assert found.merged == 1
    assert words(found.contexts[0]).endswith("a fine")
    for option, candidate in zip(found.options[0], item.candidates, strict=True):
        assert found.contexts[0] + option == tuple(tokenizer()(item.prompt + candidate)["input_ids"])


def test_cut_prompts_and_merged_candidates_are_counted() -> None:
    merging = Choice("a fine fil", ("m", "ter ."), 0)
    plain = Choice("a fine film It was", (" bad", " good"), 0)
    long = Choice("fine " * 40, (" bad", " good"), 0)
    splits = [encode(tokenizer(), items, 30, "multiple choice") for items in ([merging, plain], [long], [plain])]
    assert notes(splits) == [
        "1 of 4 prompts are longer than the model takes and lost words at their start",
        "in 1 of 4 items the tokenizer merges letters of a candidate with the end of the prompt: these letters of the "
        "prompt are scored as the candidate's",
    ]
    assert notes(splits[2:]) == []


@pytest.mark.parametrize("room", [64, 40, 12])
def test_long_prompts_are_cut_on_the_left_behind_the_start_token(room: int) -> None:
    prompt = " ".join(f"word{i}" for i in range(60))
    items = [Choice(prompt, (" fine", " very fine indeed"), 0), Choice("short", (" fine", " bad"), 1)]
    found = encode(tokenizer(), items, room, "multiple choice")
    whole = tuple(tokenizer()(prompt)["input_ids"])
    rows = [c + o for c, os in zip(found.contexts, found.options, strict=True) for o in os]
    assert found.cut == 1 and max(map(len, rows)) == room + 1  # the last token is scored, not read
    assert found.contexts[0][0] == 2 and found.contexts[0][1:] == whole[len(whole) - len(found.contexts[0]) + 1 :]
    assert batch(found, [0, 1], all_candidates=True, multiple=1)["input_ids"].shape[1] == room


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "there are no items to encode"),
        ([Choice("a", (" fine " * 30, " bad"), 0)], "has 60 tokens, and rows of 16 leave no room for its prompt"),
        ([Choice("a", ("", " bad"), 0)], "the candidate '' adds no token"),
        ([Choice("a", (" Fine", " fine"), 0)], "the candidates of 'a' are the same tokens"),
    ],
)
def test_items_that_cannot_be_scored_are_told(items: list[Choice], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        encode(tokenizer(), items, 16, "multiple choice")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_item_that_begins_with_its_candidate_is_scored_behind_a_start_token() -> None:
    found = encode(tokenizer(), [Choice("", ("Ann ran", "Bob ran"), 0)], 16, "multiple choice")
    assert found.contexts == ((2,),) and words(found.options[0][0]) == "ann ran"
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = _nothing()
    found = encode(bare, [Choice("", ("Ann ran", "Bob ran"), 0)], 16, "multiple choice")
    assert found.contexts == ((2,),) and words(found.options[0][0]) == "ann ran"


def _nothing() -> object:
    from tokenizers import processors

    return processors.ByteLevel(trim_offsets=False)


def test_what_a_tokenizer_puts_behind_a_text_is_not_scored() -> None:
    from tokenizers import processors

    closing = tokenizer()
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A <s>", special_tokens=[("</s>", 2), ("<s>", 0)]
    )
    item = [Choice("a film It was", (" bad", " good"), 0)]
    assert closing("a")["input_ids"][-1] == 0
    assert encode(closing, item, 99, "verbalizer") == encode(tokenizer(), item, 99, "verbalizer")


def test_batches_are_padded_on_the_right_and_share_rows() -> None:
    """Two candidates of one token read the same row; longer ones have rows of their own, and the right is trained."""
    one = batch(encoded("verbalizer"), [0, 2])
    assert one["input_ids"].shape == (2, 16) and one["attention_mask"].sum(1).tolist() == [3, 12]
    assert one["input_ids"][0, 3:].tolist() == [1] * 13 and one["back"].tolist() == [14, 5]
    assert one["token"].tolist() == [[10], [11]] * 2 and one["position"].tolist() == [[0], [0], [1], [1]]
    assert one["labels"].tolist() == [0, 0]
    choices = encoded("multiple choice")
    trained, every = batch(choices, [0, 1]), batch(choices, [0, 1], all_candidates=True)
    assert len(trained["input_ids"]) == 2 and len(every["input_ids"]) == 4 and "labels" not in trained
    assert trained["token"][1][trained["mask"][1] == 1].tolist() == list(choices.options[1][1])
    twice = batch(choices, [0, 0])
    assert len(twice["token"]) == 2 and choices.labels[0] == 0


def dense(model: nn.Module, items: Encoded) -> float:
    """The loss in a few lines, from the model's own logits, a row at a time."""
    losses = []
    for context, options, label in zip(items.contexts, items.options, items.labels, strict=True):
        scores = []
        for option in options:
            logits = model(input_ids=torch.tensor([context + option])).logits[0, len(context) - 1 : -1]
            scores.append(-nn.functional.cross_entropy(logits, torch.tensor(option)))
        stacked = torch.stack(scores)
        losses.append(-(stacked.log_softmax(0) if items.kind == "verbalizer" else stacked)[label])
    return float(torch.stack(losses).mean().detach())


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_tasks(kind: Kind, family: str) -> None:
    model, items = tiny_lm(family), encoded(kind)
    loss = choice_loss(model, batch(items, range(6)))
    assert abs(float(loss.detach()) - dense(model, items)) < 100 * EPS
    assert float(loss.detach()) == float(choice_loss(model, batch(items, range(6))).detach())
    halves = [float(choice_loss(model, batch(items, half)).detach()) for half in (range(3), range(3, 6))]
    assert abs(float(loss.detach()) - sum(halves) / 2) < 100 * EPS  # a finite sum: the mean over items


def test_the_vocabulary_head_runs_at_scored_places_only() -> None:
    model, items, seen = tiny_lm("opt"), encoded("verbalizer"), []
    model.lm_head.register_forward_hook(lambda m, i, out: seen.append(out.shape[:-1].numel()))  # type: ignore[operator, union-attr]
    accuracy(model, items, tokens=10_000)
    assert seen == [6]
    seen.clear()
    accuracy_one_by_one(model, items)
    assert sum(seen) == sum(2 * (len(context) + 1) for context in items.contexts)
    assert not model.lm_head._forward_pre_hooks  # type: ignore[union-attr]


@pytest.mark.parametrize("tokens", [1, 30, 100])
def test_batches_keep_to_their_size(tokens: int) -> None:
    """No more tokens than asked for, padding included, but for a single row; the rows are all there."""
    model, items = tiny_lm("llama"), encoded("multiple choice")
    shapes: list[tuple[int, int]] = []
    model.get_input_embeddings().register_forward_hook(lambda m, args, out: shapes.append(tuple(args[0].shape)))  # type: ignore[operator]
    accuracy(model, items, tokens=tokens)
    assert sum(rows for rows, _ in shapes) == sum(map(len, items.options))
    assert all(rows * width <= tokens or rows == 1 for rows, width in shapes)
    assert (len(shapes) == sum(map(len, items.options))) == (tokens == 1)


def test_every_item_is_predicted_in_its_own_place() -> None:
    """Items of many lengths, in small batches: predictions stand in the order of the items."""
    model, items = tiny_lm("llama"), encoded("multiple choice")
    order = [4, 2, 0, 5, 1, 3]
    mixed = Encoded(
        tuple(items.contexts[i] for i in order), tuple(items.options[i] for i in order),
        tuple(items.labels[i] for i in order), items.kind, items.pad,
    )  # fmt: skip
    one, two = accuracy(model, items, tokens=30), accuracy(model, mixed, tokens=1000)
    assert two.predictions == tuple(one.predictions[i] for i in order)
    assert one.correct == two.correct == sum(p == label for p, label in zip(one.predictions, items.labels, strict=True))


def test_evaluation_leaves_modes_and_gradients() -> None:
    model = tiny_lm("opt").train()
    model.model.decoder.layers[0].eval()  # type: ignore[union-attr, index]
    before = [m.training for m in model.modules()]
    found = accuracy(model, encoded("verbalizer"))
    assert [m.training for m in model.modules()] == before
    assert found == accuracy(model, encoded("verbalizer")) and all(p.grad is None for p in model.parameters())


def test_broken_weights_are_told() -> None:
    model = tiny_lm("opt")
    with torch.no_grad():
        model.lm_head.weight[20] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(BadInput, match="6 of 6 items have a score that is not finite: .* lower the learning rate"):
        accuracy(model, encoded("verbalizer"))


@pytest.mark.parametrize("count", [20, 100])
def test_the_interval_covers_as_it_says(count: int) -> None:
    """Exactly, from the binomial distribution, for every probability on a grid: at least 95 % of samples."""
    intervals = [Accuracy(k, count, (), ()).interval for k in range(count + 1)]
    for p in np.linspace(0.005, 0.995, 199):
        inside = [low <= p <= high for low, high in intervals]
        assert stats.binom.pmf(np.arange(count + 1), count, p)[inside].sum() >= 0.95
    low, high = Accuracy(93, 100, (), ()).interval
    assert Accuracy(93, 100, (), ()).value == 0.93 and 0.86 < low < 0.93 < high < 0.98


QUICK = ("copa", "wic")
"""A task of multiple choice, and one with verbalizers."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.check) for n in TASKS])
def test_micro_scores_the_published_tasks_as_one_by_one(name: str, shared_data: Path) -> None:
    loaded = load_lm("micro", seed=0)
    splits = load_choices(name, shared_data if TASKS[name].train else None, sizes=(8, 4, 24))
    items = encode(loaded.tokenizer, splits.test, loaded.max_length, splits.kind)
    fast, slow = accuracy(loaded.model, items), accuracy_one_by_one(loaded.model, items)
    torch.testing.assert_close(torch.tensor(fast.scores), torch.tensor(slow.scores), rtol=0, atol=1e-4)
    if splits.kind == "verbalizer":
        assert all(len(option) == 1 for options in items.options for option in options)
    assert items.merged == 0 == items.cut


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("method", ["none", "lora", "prompt", "prefix"])
def test_classifiers_are_scored_by_their_classes(method: str, family: str) -> None:
    """The loss is transformers' own; batches score as single sentences do; to 1e-5 where Llama's norms are in fp32."""
    model = attach(tiny(family), method, seed=0).double().eval()
    rows = encoded("verbalizer").contexts
    items = Encoded(rows, (((0,), (1,)),) * 6, (0, 1, 0, 1, 1, 0), "classifier", 1)
    minibatch = batch(items, range(6))
    assert minibatch["input_ids"].shape == (6, 16) and minibatch["input_ids"][0, 3:].tolist() == [1] * 13
    inputs = {name: minibatch[name] for name in ("input_ids", "attention_mask", "labels")}
    torch.testing.assert_close(choice_loss(model, minibatch), model(**inputs).loss, rtol=1e-12, atol=1e-12)
    fast, slow = (torch.tensor(f(model, items).scores) for f in (accuracy, accuracy_one_by_one))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    assert torch.allclose(fast.exp().sum(1), torch.ones(6))


def test_classifiers_read_prompts_cut_on_the_left() -> None:
    items = [Choice("fine " * 40 + "film", (" bad", " good"), 1), Choice("dull", (" bad", " good"), 0)]
    found = encode(tokenizer(), items, 20, "classifier")
    assert found.cut == 1 and [len(row) for row in found.contexts] == [20, len(tokenizer()("dull")["input_ids"])]
    assert found.contexts[0][0] == 2 and words(found.contexts[0]).endswith("fine film")
    assert found.options == (((0,), (1,)),) * 2 and found.labels == (1, 0)
    with pytest.raises(BadInput, match="rows of 1 tokens hold nothing but special ones"):
        encode(tokenizer(), items, 1, "classifier")
