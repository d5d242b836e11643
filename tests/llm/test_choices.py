"""Tasks of language models: prompts, candidates, splits, and what is said of data that cannot be read."""

import gzip
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smoothlab.errors import BadInput
from smoothlab.llm.tasks import TASKS, Choice, load_choices
from tests.llm.test_tasks import write

ROWS: dict[str, tuple[dict[str, Any], Choice]] = {
    "sst2": (
        {"sentence": "it 's a charming journey . ", "label": 1},
        Choice("it 's a charming journey . It was", (" terrible", " great"), 1),
    ),
    "copa": (
        {"premise": "He fell.", "choice1": "I pushed him.", "choice2": "He Was ill.", "question": "cause", "label": 0},
        Choice("He fell because", (" I pushed him.", " he Was ill."), 0),
    ),
    "winogrande": (
        {"sentence": "Ann thanked Sue because _ had helped.", "option1": "Ann", "option2": "Sue", "answer": "2"},
        Choice("Ann thanked Sue because", (" Ann had helped.", " Sue had helped."), 1),
    ),
    "wic": (
        {"word": "place", "sentence1": "A place.", "sentence2": "Place it.", "label": 0},
        Choice(
            'Does the word "place" have the same meaning in these two sentences? Yes, No?\nA place.\nPlace it.\n',
            ("No", "Yes"), 0,
        ),
    ),
    "wsc": (
        {"text": "Mark told Pete lies about Himself.", "span1_text": "Mark", "span2_text": "Himself", "label": 1},
        Choice(
            "Mark told Pete lies about Himself.\n"
            'In the previous sentence, does the pronoun "himself" refer to Mark? Yes or No?\n',
            ("No", "Yes"), 1,
        ),
    ),
}  # fmt: skip
"""A row of each published task, and the choice that the paper's protocol makes of it."""
SIZES = {
    "sst2": (67_349, 1000, 100, 872), "copa": (400, 300, 100, 100), "winogrande": (8968, 1000, 100, 1000),
    "wic": (5428, 1000, 100, 638), "wsc": (554, 454, 100, 104),
}  # fmt: skip
KINDS = {"copa": "multiple choice", "winogrande": "multiple choice"}


def changed(row: dict[str, Any], number: int) -> dict[str, Any]:
    """Another row like it, its label that of an even or an odd number."""
    field = next(name for name, value in row.items() if isinstance(value, str) and name not in ("answer", "question"))
    label = {"answer": str(1 + number % 2)} if "answer" in row else {"label": number % 2}
    return row | {field: f"{number} {row[field]}"} | label


@pytest.mark.parametrize("name", ROWS)
def test_rows_become_the_papers_prompts(name: str) -> None:
    row, choice = ROWS[name]
    assert TASKS[name].choice(row) == choice and TASKS[name].kind == KINDS.get(name, "verbalizer")
    assert [*ROWS] == [name for name, task in TASKS.items() if task.train] and {*TASKS} - {*ROWS} == {"builtin"}


def test_copa_says_so_for_effects() -> None:
    row = ROWS["copa"][0] | {"question": "effect", "premise": "He fell"}
    assert TASKS["copa"].choice(row).prompt == "He fell so"


@pytest.mark.parametrize("name", ROWS)
def test_splits_are_one_permutation_and_the_test_set_never_moves(name: str, tmp_path: Path) -> None:
    """40 training rows: a quarter of them are dev items, and no item is in two splits."""
    task = TASKS[name]
    (tmp_path / name).mkdir()
    write(tmp_path / name / task.train[0], [changed(ROWS[name][0], i) for i in range(40)])
    write(tmp_path / name / task.validation[0], [changed(ROWS[name][0], i) for i in range(100, 112)])
    one, two = (load_choices(name, tmp_path, seed) for seed in (0, 1))
    assert (len(one.train), len(one.dev), len(one.test)) == (30, 10, 12)
    assert len({*one.train, *one.dev, *one.test}) == 52 and one.test == two.test
    assert set(one.train + one.dev) == set(two.train + two.dev) and one.dev != two.dev
    few = load_choices(name, tmp_path, 0, (8, 4, 6))
    assert few.test == load_choices(name, tmp_path, 1, (8, 4, 6)).test
    assert few.train == one.train[:8] and few.dev == one.dev[-4:]
    assert len(few.test) == 6 and set(few.test) < set(one.test) and "6 of the 12 items of" in few.served
    assert f"{name}/{task.validation[0]}" in one.served
    assert ("not the official validation split" in one.served) == (name == "winogrande")


@pytest.mark.parametrize("name", SIZES)
def test_published_sets_have_the_papers_sizes(name: str, shared_data: Path) -> None:
    rows, *sizes = SIZES[name]
    found = load_choices(name, shared_data)
    assert [len(found.train), len(found.dev), len(found.test)] == sizes
    everything = load_choices(name, shared_data, sizes=(rows, 1, 10_000))
    assert len(everything.train) + len(everything.dev) == rows
    assert not set(everything.train) & set(everything.test)


def test_official_winogrande_files_are_taken_as_such(tmp_path: Path) -> None:
    write(tmp_path / "train_l.jsonl", [changed(ROWS["winogrande"][0], i) for i in range(20)])
    write(tmp_path / "dev.jsonl", [changed(ROWS["winogrande"][0], i) for i in range(20, 30)])
    assert load_choices("winogrande", tmp_path).served.endswith("dev.jsonl")


def test_builtin_is_a_task_with_verbalizers() -> None:
    found = load_choices("builtin")
    assert (len(found.train), len(found.dev), len(found.test)) == (1000, 100, 600) and found.kind == "verbalizer"
    assert found.train[0].prompt.endswith(" It was") and found.train[0].candidates == (" terrible", " great")
    assert "builtin" in found.served


def test_a_file_of_sentences_is_asked_with_verbalizers(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl.gz", [{"sentence": f"film {i}", "label": i % 3} for i in range(60)])
    found = load_choices(str(path), template="Review: {sentence}\nMood:\n", verbalizers=("bad", "fair", " good"))
    assert (len(found.train), len(found.dev), len(found.test)) == (41, 13, 6) and found.kind == "verbalizer"
    assert found.train[0].candidates == ("bad", "fair", " good")
    assert found.train[0].prompt.startswith("Review: film ") and found.train[0].prompt.endswith("\nMood:\n")
    assert load_choices(str(path), verbalizers=("bad", "fair", " good")).train[0].candidates == (
        " bad",
        " fair",
        " good",
    )
    assert (
        load_choices(str(path), seed=1, verbalizers=("a", "b", "c")).test
        == load_choices(str(path), verbalizers=("a", "b", "c")).test
    )
    assert "a tenth of" in found.served
    with pytest.raises(BadInput, match="has 3 classes and no verbalizers: give each class its own word"):
        load_choices(str(path))
    with pytest.raises(BadInput, match="the prompt 'Review:' has no place for the text: write {sentence}"):
        load_choices(str(path), template="Review:", verbalizers=("a", "b", "c"))


def test_a_file_of_prompts_is_taken_to_the_letter(tmp_path: Path) -> None:
    """Its candidates differ from line to line: multiple choice; the same ones everywhere are verbalizers."""
    rows = [
        {"prompt": f"{i} and {i} is", "candidates": [f" {2 * i}", f" {i}", " so"], "label": i % 3} for i in range(1, 41)
    ]
    found = load_choices(str(write(tmp_path / "many.jsonl", rows)))
    assert found.kind == "multiple choice" and len(found.test) == 4
    assert Choice("7 and 7 is", (" 14", " 7", " so"), 1) in {*found.train, *found.dev, *found.test}
    rows = [{"prompt": f"{i} is ", "candidates": ["odd", "even"], "label": i % 2} for i in range(40)]
    found = load_choices(str(write(tmp_path / "same.jsonl", rows)))
    assert found.kind == "verbalizer" and found.train[0].candidates == (" odd", " even")  # the space moves over


GOOD = {"prompt": "a", "candidates": ["b", "c"], "label": 0}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (GOOD | {"prompt": " "}, ':2 has no text: give a non-empty string in the field "prompt"'),
        (GOOD | {"candidates": ["b"]}, ":2 has no candidates: give a list of at least two strings"),
        (GOOD | {"candidates": "bc"}, ":2 has no candidates"),
        ({"prompt": "a", "label": 0}, ":2 has no candidates"),
        (GOOD | {"candidates": ["b", ""]}, ':2 has no text: give a non-empty string in the field "candidates"'),
        (GOOD | {"candidates": ["b", "b"]}, ":2 has a candidate twice"),
        (GOOD | {"label": 2}, ":2 has label '2': give a whole number, 0 to 1"),
        (GOOD | {"label": True}, ":2 has label 'True'"),
        ({"prompt": "a", "candidates": ["b", "c"]}, ":2 has label 'None'"),
        (GOOD | {"prompt": "\ud800"}, ":2 has half of a \\u pair"),
    ],
)
def test_bad_lines_name_file_line_and_fix(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "data.jsonl", [GOOD, row, *[GOOD] * 20])
    with pytest.raises(BadInput) as caught:
        load_choices(str(path))
    assert f"data.jsonl{words}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("sst2", {"sentence": ""}, ":2 has no text"),
        ("sst2", {"label": 2}, ":2 has label '2': give a whole number, 0 to 1"),
        ("copa", {"question": "why"}, ':2 has question \'why\': give "cause" or "effect"'),
        ("copa", {"choice2": None}, ':2 has no text: give a non-empty string in the field "choice2"'),
        ("winogrande", {"sentence": "no gap"}, ":2 has no gap, or more than one"),
        ("winogrande", {"answer": ""}, ':2 has answer \'\': give the string "1" or "2"'),
        ("wic", {"word": 3}, ':2 has no text: give a non-empty string in the field "word"'),
        ("wsc", {"label": -1}, ":2 has label '-1'"),
    ],
)
def test_bad_rows_of_published_sets_are_told(tmp_path: Path, name: str, change: dict[str, Any], words: str) -> None:
    rows = [changed(ROWS[name][0], 0), ROWS[name][0] | change]
    write(tmp_path / TASKS[name].train[0], rows)
    write(tmp_path / TASKS[name].validation[0], rows[:1])
    with pytest.raises(BadInput) as caught:
        load_choices(name, tmp_path)
    assert f"{TASKS[name].train[0]}{words}" in str(caught.value) and "\n" not in str(caught.value)


def test_data_that_teaches_nothing_or_is_cut_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", [GOOD] * 20)
    with pytest.raises(BadInput, match="the training items of .*one.jsonl have no label but 0: give examples"):
        load_choices(str(path))
    whole = gzip.compress("".join(json.dumps(GOOD) + "\n" for _ in range(500)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="cannot read .*cut.jsonl.gz.*; give a whole gzip file of UTF-8 JSON Lines"):
        load_choices(str(tmp_path / "cut.jsonl.gz"))
    with pytest.raises(BadInput, match="few.jsonl has 3 examples, too few for a validation split"):
        load_choices(str(write(tmp_path / "few.jsonl", [GOOD] * 3)))


def test_names_folders_and_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="task 'cop' is unknown: did you mean copa"):
        load_choices("cop")
    with pytest.raises(BadInput, match="--data-dir .* is not read for 'builtin', only for sst2, copa"):
        load_choices("builtin", tmp_path)
    with pytest.raises(BadInput, match="no copa/train.jsonl in .*: give --data-dir the folder that holds copa/"):
        load_choices("copa", tmp_path)
    with pytest.raises(BadInput, match=r"sizes \(0, 1, 1\) of train, dev and test: use at least 1 each"):
        load_choices("builtin", sizes=(0, 1, 1))


def hub(monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    from smoothlab.llm import hub as ours

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=read))
    monkeypatch.setattr(ours, "reachable", lambda: True)


@pytest.mark.parametrize("name", ROWS)
def test_the_hub_gives_the_same_items_as_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"train": [changed(ROWS[name][0], i) for i in range(40)], "validation": [ROWS[name][0]] * 3}
    asked = []

    def read(repository: str, configuration: str, *, split: str) -> list[dict[str, Any]]:
        asked.append((repository, configuration))
        return rows[split]

    hub(monkeypatch, read)
    write(tmp_path / TASKS[name].train[0], rows["train"])
    write(tmp_path / TASKS[name].validation[0], rows["validation"])
    there, here = load_choices(name), load_choices(name, tmp_path)
    assert (there.train, there.dev, there.test) == (here.train, here.dev, here.test)
    assert asked == [TASKS[name].hub] * 2 and "validation split of" in there.served


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Connection broken: IncompleteRead(5 bytes read)"), OSError(28, "No space left"), KeyError("x")],
)
def test_a_download_that_fails_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise error

    hub(monkeypatch, read)
    with pytest.raises(BadInput) as caught:
        load_choices("copa")
    told = str(caught.value)
    assert told.startswith("cannot read copa from the hub (") and "or give --data-dir a folder with copa/" in told
    assert "\n" not in told


def test_without_the_library_the_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match="wic without --data-dir is read from the hub .*: pip install datasets, or give"):
        load_choices("wic")


def test_dev_is_the_tail_of_the_seeds_permutation(tmp_path: Path) -> None:
    rows = [changed(ROWS["sst2"][0], i) for i in range(40)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "validation.jsonl", rows[:1])
    order = random.Random(3).sample([TASKS["sst2"].choice(row) for row in rows], 40)
    found = load_choices("sst2", tmp_path, 3, (20, 5, 1))
    assert found.train == tuple(order[:20]) and found.dev == tuple(order[-5:])
