"""Greedy answers beside transformers' own generation, and SQuAD's exact match and F1 beside its definition."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from smoothlab.llm.answers import CompletionScores, are_short, completion_scores, f1, greedy, normalized
from smoothlab.llm.evaluate import Encoded
from smoothlab.llm.peft_methods import PEFT_METHODS
from smoothlab.stats.samples import mean
from tests.llm.tiny import tiny_lm


def items(count: int = 6, longest: int = 4) -> Encoded:
    """Prompts of 2 to 9 tokens; token 2 ends an answer."""
    generator = torch.Generator().manual_seed(3)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 60, (count,), generator=generator).tolist())

    contexts = tuple(tokens(2 + 3 * i % 8) for i in range(count))
    options = tuple(((*tokens(1 + i % longest), 2),) for i in range(count))
    return Encoded(contexts, options, (0,) * count, "completion", 1, ends=(2,), answers=("x",) * count)


def ending(model: Any, often: float = 0.15) -> Any:
    """The model, more inclined to end an answer."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: output + often * torch.eye(60)[2])
    return model


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("method", ["none", "lora", "prefix", "prompt"])
def test_answers_are_those_of_transformers(method: str, mixed: bool) -> None:
    from smoothlab.llm.adapters import attach

    data = items()
    model = ending(attach(tiny_lm("opt"), method, seed=0) if method != "none" else tiny_lm("opt"))
    answers = greedy(model, data, 5, mixed=mixed)
    for context, answer in zip(data.contexts, answers, strict=True):
        # Alone and unpadded; prompt methods' own generation differs in what it counts as the prompt.
        ids = torch.tensor([context])
        wanted: list[int] = []
        with torch.no_grad():
            for _ in range(5):
                row = torch.cat([ids, torch.tensor([wanted], dtype=torch.long)], 1)
                token = int(model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, -1].argmax())
                if token == 2:
                    break
                wanted.append(token)
        assert answer == tuple(wanted)
    assert len(set(map(len, answers))) > 1, "some end early"
    assert not model.training
    assert method == "none" or method in PEFT_METHODS


def test_answers_are_those_of_generate() -> None:
    model, data = ending(tiny_lm("opt")), items()
    for context, answer in zip(data.contexts, greedy(model, data, 5), strict=True):
        whole = model.generate(
            torch.tensor([context]), attention_mask=torch.ones(1, len(context)), max_new_tokens=5, do_sample=False,
            eos_token_id=2, pad_token_id=1,
        )[0].tolist()  # fmt: skip
        assert answer == tuple(token for token in whole[len(context) :] if token not in (1, 2))


def test_a_row_ends_where_the_model_has_no_more_positions() -> None:
    model, data = tiny_lm("opt"), items()
    data = replace(data, contexts=((*range(3, 60), 3, 4, 5, 6, 7, 8), *data.contexts[1:]))  # 63 of 64 positions
    answers = greedy(model, data, 5, max_length=64)
    assert len(answers[0]) <= 2 and max(map(len, answers)) == 5


@pytest.mark.parametrize(
    ("answer", "reference", "match", "value"),
    [
        ("Paris", "paris.", True, 1.0),
        ("The  Eiffel-Tower", "eiffeltower", True, 1.0),
        ("in the city of Paris", "Paris, France", False, 1 / 3),  # precision 1/4, recall 1/2
        ("no no no yes", "no no", False, 2 / 3),  # two words in common of four and two
        ("", "Paris", False, 0.0),
        ("the", "a", True, 1.0),  # nothing is left of either
        ("theatre", "atre", False, 0.0),  # articles are whole words
        ("Rome", "Paris", False, 0.0),
    ],
)
def test_exact_match_and_f1_are_those_of_squad(answer: str, reference: str, match: bool, value: float) -> None:
    assert (normalized(answer) == normalized(reference)) is match
    assert f1(answer, reference) == pytest.approx(value)
    assert f1(reference, answer) == pytest.approx(value)


def test_scores_are_means_over_items_with_their_interval() -> None:
    model, data = ending(tiny_lm("opt")), items()
    texts = {answer: f"answer {number}" for number, answer in enumerate(dict.fromkeys(greedy(model, data, 5)))}
    wanted = [texts[answer] for answer in greedy(model, data, 5)]
    wanted[1] = "answer none"  # one word in common of two
    result = completion_scores(
        model, replace(data, answers=tuple(wanted)), decode=lambda answer: texts[answer], longest=5
    )
    row = result.row()
    assert row["right"] == "101111" and row["exact_match"] == pytest.approx(5 / 6)
    assert row["f1"] == pytest.approx((5 + 0.5) / 6)
    assert (row["loss"], row["low"], row["high"]) == pytest.approx(tuple(mean(result.losses)))
    assert row["tokens"] == sum(len(tail) for (tail,) in data.options) and row["count"] == 6
    assert CompletionScores((1.0,), (3,)).row() == {
        "loss": 1.0, "low": None, "high": None, "token_loss": 1.0, "tokens": 3, "count": 1,
    }  # fmt: skip
    assert "exact_match" not in completion_scores(model, data).row()


def test_answers_are_short_where_none_has_more_tokens() -> None:
    data = items(longest=4)
    assert are_short([data], 5) and not are_short([data], 4)
    assert not are_short([data, items(longest=5)], 5)
    assert not are_short([replace(data, kind="text")], 5)
    assert not are_short([replace(data, shortened=1)], 5)
