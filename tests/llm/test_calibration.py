"""Calibrated scores: each task's content-free prompt, scores beside the model's own forward pass, what they undo."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smoothlab.__main__ import main
from smoothlab.llm.calibration import calibrated, content_free
from smoothlab.llm.evaluate import accuracy, encode, scores_alone
from smoothlab.llm.models import load_lm
from smoothlab.llm.tasks import TASKS, Choice, jsonlines
from tests.experiments.command import write_sentences
from tests.experiments.test_finetune import rows_of
from tests.test_docs import misfits

ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "builtin": ({"sentence": "a fine film .", "label": 1}, "N/A It was"),
    "sst2": ({"sentence": "a fine film .", "label": 1}, "N/A It was"),
    "copa": (
        {"premise": "It rained.", "choice1": "He ran.", "choice2": "He sat.", "question": "cause", "label": 0},
        "because"
    ),
    "wic": (
        {"word": "bank", "sentence1": "The bank.", "sentence2": "A bank.", "label": 0},
        'Does the word "N/A" have the same meaning in these two sentences? Yes, No?\nN/A\nN/A\n',
    ),
    "wsc": (
        {"text": "Ann met Eve.", "span2_text": "her", "span1_text": "Eve", "label": 1},
        'N/A\nIn the previous sentence, does the pronoun "N/A" refer to N/A? Yes or No?\n',
    ),
    "winogrande": ({"sentence": "The _ is big.", "option1": "cat", "option2": "dog", "answer": "1"}, "N/A"),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_content_free_prompts_keep_what_all_prompts_of_a_task_share(task: str) -> None:
    row, free = ROWS[task]
    item = TASKS[task].choice(row)
    assert item.content_free == free
    content = set(" ".join(str(value) for value in row.values()).split())
    assert not content & set(free.replace('"', " ").split()) - {"the", "The"}


@pytest.mark.parametrize(
    ("line", "free"),
    [
        ({"prompt": "Is it so?\n", "candidates": ["No", "Yes"]}, "N/A\n"),
        ({"prompt": "It is ", "candidates": ["so", "not so"]}, "N/A"),
        ({"prompt": "Q: 1 + 1? A:", "candidates": [" 2", " 3"], "content_free": "Q: ? A:"}, "Q: ? A:"),
        ({"prompt": "Q: 1 + 1? A:", "candidates": [" 2", " 3"], "content_free": ""}, None),
    ],
)
def test_lines_of_a_file_may_bring_their_own(line: dict[str, Any], free: str | None, tmp_path: Path) -> None:
    from smoothlab.errors import BadInput

    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(line | {"label": 0}) + "\n")
    if free is None:
        with pytest.raises(
            BadInput, match='a.jsonl:1 has no text: give a non-empty string in the field "content_free"'
        ):
            jsonlines.choices(path, jsonlines.TEMPLATE, ())
        return
    ((item,), _) = jsonlines.choices(path, jsonlines.TEMPLATE, ())
    assert item.content_free == free and item.prompt + item.candidates[0] == line["prompt"] + line["candidates"][0]


ITEMS = {
    "verbalizer": [TASKS["sst2"].choice({"sentence": f"the film is {word} .", "label": k % 2})
                   for k, word in enumerate(("dull", "moving", "long", "clever"))],
    "multiple choice": [
        Choice(f"It rained {word} so", (" he ran home .", " the cat sat on a mat ."), k % 2, content_free="so")
        for k, word in enumerate(("today", "again", "hard"))
    ],
}  # fmt: skip


def shifted(model: nn.Module, tokenizer: Any, kind: Any) -> Any:
    """Accuracy by calibrated scores, and the number of distinct content-free prompts."""
    tokenized = partial(encode, tokenizer, max_length=256, kind=kind)
    items = tokenized(ITEMS[kind])
    free = content_free(ITEMS[kind], tokenized)
    prior = accuracy(model, free.encoded).scores
    return calibrated(accuracy(model, items), [prior[k] for k in free.number], items.labels), len(free.encoded)


@pytest.mark.parametrize("kind", ITEMS)
def test_calibrated_scores_are_differences_of_the_model_s_own(kind: Any) -> None:
    loaded = load_lm("micro", seed=0)
    result, distinct = shifted(loaded.model, loaded.tokenizer, kind)
    assert distinct == 1, "a prompt that all items share is scored once"
    with torch.no_grad():
        for number, item in enumerate(ITEMS[kind]):
            own = []
            for prompt in (item.prompt, item.content_free):
                alone = encode(loaded.tokenizer, [Choice(prompt, item.candidates, 0)], 256, kind)
                own.append(torch.tensor(scores_alone(loaded.model, alone, 0)))
            wanted = own[0] - own[1]
            assert torch.allclose(torch.tensor(result.scores[number]), wanted, atol=2e-5)
            assert result.predictions[number] == int(wanted.argmax())
    assert result.correct == sum(p == item.label for p, item in zip(result.predictions, ITEMS[kind], strict=True))


def test_a_word_that_is_preferred_everywhere_gains_nothing() -> None:
    """A constant on one word's logit decides all plain answers, and none by calibrated scores."""
    loaded = load_lm("micro", seed=0)
    before, _ = shifted(loaded.model, loaded.tokenizer, "verbalizer")
    (great,) = loaded.tokenizer(" great", add_special_tokens=False).input_ids

    def prefer(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 9.0 * nn.functional.one_hot(torch.tensor(great), output.shape[-1])

    handle = loaded.model.get_output_embeddings().register_forward_hook(prefer)
    items = encode(loaded.tokenizer, ITEMS["verbalizer"], 256, "verbalizer")
    assert set(accuracy(loaded.model, items).predictions) == {1}
    after, _ = shifted(loaded.model, loaded.tokenizer, "verbalizer")
    handle.remove()
    margins = [[great - terrible for terrible, great in result.scores] for result in (before, after)]
    assert margins[0] == pytest.approx(margins[1], abs=1e-4) and after.predictions == before.predictions


def test_the_test_row_has_calibrated_answers_beside_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sentences(tmp_path / "data.jsonl", 200)
    options = "--data data.jsonl --train 8 --dev 4 --test 20 --batch 4 --steps 0 --method fo-peft".split()
    assert main(["finetune", *options, "--calibrate", "--out", "a.jsonl"]) == 0
    assert main(["finetune", *options, "--out", "b.jsonl"]) == 0
    assert not misfits(Path("a.jsonl"))
    (test, plain) = (rows_of(Path(name))[-1] for name in ("a.jsonl", "b.jsonl"))
    more = {name: test.pop(name) for name in list(test) if name.startswith("calibrated_")}
    assert test == plain
    assert more["calibrated_right"].count("1") == round(20 * more["calibrated_accuracy"])
    assert more["calibrated_low"] < more["calibrated_accuracy"] < more["calibrated_high"]
    assert "calibrated test accuracy" in capsys.readouterr().out
    assert main(["finetune", *options, "--calibrate", "--head", "classifier", "--out", "c.jsonl"]) == 2
    assert "--calibrate with classes: it compares candidates that a language model scores" in capsys.readouterr().err
