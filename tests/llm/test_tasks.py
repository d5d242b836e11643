"""Named tasks and JSON Lines files: what is read, and what is said when it cannot be."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from smoothlab.errors import BadInput
from smoothlab.llm.tasks import TASKS, load_choices, published
from smoothlab.llm.tasks.builtin import TRAIN, VALIDATION, read


def write(path: Path, rows: list) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_builtin_is_large_balanced_and_split() -> None:
    train, validation = read("train"), read("validation")
    assert (len(train), len(validation)) == (TRAIN, VALIDATION)
    everything = [row["sentence"] for row in (*train, *validation)]
    assert len({text.lower().strip() for text in everything}) == len(everything) >= 2000
    assert sum(row["label"] for row in train) * 2 == TRAIN and sum(row["label"] for row in validation) * 2 == VALIDATION
    assert read("train") == train
    assert not any(" a awkward" in text or " a honest" in text for text in everything)


def test_no_keyword_solves_builtin() -> None:
    """The best single word, present or absent, is right as often as chance allows the best of all the words to be."""
    rows = [*read("train"), *read("validation")]
    labels = np.array([row["label"] for row in rows])
    bags = [set(row["sentence"].split()) for row in rows]
    words = sorted(set.union(*bags))
    best = 0.0
    for word in words:
        present = np.array([word in bag for bag in bags])
        right = float((present == (labels == 1)).mean())
        best = max(best, right, 1 - right)
    assert best <= stats.binom.isf(1e-3 / (2 * len(words)), len(labels), 0.5) / len(labels)


def test_word_order_decides_builtin() -> None:
    """The rule that its grammar states (last adjective, turned by negation) is right everywhere."""
    from smoothlab.llm.tasks.builtin import _BAD, _GOOD

    for row in read("validation"):
        text = row["sentence"]
        last = [word for word in text.split() if word in _GOOD + _BAD][-1]
        turned = any(mark in text for mark in ("not ", "anything but", "nothing about", "no one could"))
        assert ((last in _GOOD) != turned) == bool(row["label"]), text


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
@pytest.mark.parametrize("field", ["sentence", "text"])
def test_files_are_read_and_split(tmp_path: Path, name: str, field: str) -> None:
    path = write(tmp_path / name, [{field: f" phrase {i} ", "label": i % 3, "idx": i} for i in range(30)])
    splits = load_choices(str(path), verbalizers=None)
    assert [len(part) for part in (splits.train, splits.dev, splits.test)] == [21, 6, 3]
    items = [*splits.train, *splits.dev, *splits.test]
    assert {(item.sentence, item.label) for item in items} == {(f"phrase {i}", i % 3) for i in range(30)}
    assert all(item.candidates == (" 0", " 1", " 2") for item in items)
    assert load_choices(str(path), verbalizers=None) == splits


GOOD = {"sentence": "fine", "label": 0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "data.jsonl is empty"),
        (b"\n \n", "data.jsonl is empty"),
        (b'{"sentence": "fine", "label": 0}\n{broken\n', "data.jsonl:2 is not JSON"),
        (b"[1, 2]\n", "data.jsonl:1 is not a JSON object"),
        (b'{"label": 0}\n', "data.jsonl:1 has no text"),
        (b'{"sentence": "  ", "label": 0}\n', "data.jsonl:1 has no text"),
        (b'{"prompt": "2 + 2 ="}\n', 'data.jsonl:1 has a "prompt" and no "completion", or "candidates" with "label"'),
        (b'{"sentence": 3, "label": 0}\n', "data.jsonl:1 has no text"),
        (b'{"sentence": "fine"}\n', "data.jsonl:1 has no label: give a whole number, from 0,"),
        (b'{"sentence": "fine", "label": "good"}\n', 'data.jsonl:1 has label "good"'),
        (b'{"sentence": "fine", "label": true}\n', "data.jsonl:1 has label true"),
        (b'{"sentence": "fine", "label": -1}\n', "data.jsonl:1 has label -1"),
        (b'{"sentence": "fine", "label": 1.0}\n', "data.jsonl:1 has label 1.0"),
        (b'{"sentence": "fine", "label": 5000}\n', "data.jsonl:1 has label 5000"),
        (b'{"sentence": "fine", "label": 0}\n{"sentence": "bad", "label": 2}\n', "no example with label 1"),
        (
            b'{"sentence": "fine", "label": 1}\n{"sentence": "caf\xe9", "label": 0}\n',
            "data.jsonl:2 is not UTF-8 (byte 0xe9 at character 18): save the file as UTF-8; "
            "Latin-1 becomes it by iconv -f latin1 -t utf-8",
        ),
        (
            b'{"sentence": "fine", "label": 1, "label": 0}\n',
            'data.jsonl:1 has the field "label" twice: leave one of them out',
        ),
        (b'{"sentence": "fine", "label": NaN}\n', "data.jsonl:1 has label NaN"),
        (b'{"sentence": "fine", "label": ' + b"1" * 5000 + b"}\n", "data.jsonl:1 is not JSON (a number too long"),
        (b"[" * 100_000 + b"\n", "data.jsonl:1 is not JSON"),
        (b'{"sentence": "fine", "label": ' + str([0] * 99).encode() + b"}\n", "[0, 0, 0, 0, 0, 0, 0: number"),
        (b'{"sentence": "f \\ud800", "label": 0}\n', "data.jsonl:1 has half of a \\u pair"),
        (b'{"sentence": "fine", "label": 0}\n' * 30, "data.jsonl has no label but 0: give examples of at least two"),
    ],
)
def test_bad_files_name_file_line_and_fix(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load_choices(str(path))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read .*missing.jsonl: No such file"):
        load_choices(str(tmp_path / "missing.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(BadInput, match="is a folder: name a .jsonl"):
        load_choices(str(tmp_path / "folder.jsonl"))
    whole = write(tmp_path / "cut.jsonl.gz", [GOOD] * 1000).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="cannot read .*cut.jsonl.gz"):
        load_choices(str(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "plain.jsonl.gz").write_text("not gzip")
    with pytest.raises(BadInput, match="cannot read .*plain.jsonl.gz: Not a gzipped file"):
        load_choices(str(tmp_path / "plain.jsonl.gz"))


@pytest.mark.parametrize("name", ["bits.jsonl.gz", "tail.jsonl.gz", "crc.jsonl.gz"])
def test_broken_archives_are_told(tmp_path: Path, name: str) -> None:
    """A flipped run of bytes in the middle, garbage behind the end, a checksum that does not hold."""
    path = write(tmp_path / name, [{"sentence": f"fine {i * 7919 % 1000}", "label": i % 2} for i in range(2000)])
    whole = bytearray(path.read_bytes())
    if name == "bits.jsonl.gz":
        whole[200:260] = bytes(byte ^ 0xFF for byte in whole[200:260])
    elif name == "tail.jsonl.gz":
        whole += b"garbage"
    else:
        whole[-6] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(BadInput, match=f"cannot read .*{name}.*; give a whole gzip file of UTF-8 JSON Lines"):
        load_choices(str(path))


@pytest.mark.parametrize("name", ["mark.jsonl", "mark.jsonl.gz"])
def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path, name: str) -> None:
    text = b"\xef\xbb\xbf" + b'{"sentence": "fine", "label": 0}\r\n{"sentence": "dull", "label": 1}\r\n' * 20
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    splits = load_choices(str(tmp_path / name))
    assert {item.sentence for item in splits.train} == {"fine", "dull"}


def test_sst2_from_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line within seconds, instead of the retries of `datasets`."""
    from types import SimpleNamespace

    from huggingface_hub import constants

    def read(*_: object, **__: object) -> None:
        raise AssertionError("asked although nobody answers")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=read))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="sst2 is read from the hub, which cannot be reached: give --data-dir"):
        load_choices("sst2")


def test_a_file_too_small_to_split_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "small.jsonl", [GOOD | {"label": i % 2} for i in range(5)])
    with pytest.raises(BadInput, match="small.jsonl has 5 examples, too few for a validation split: give at least 10"):
        load_choices(str(path))


def test_unknown_tasks_are_guessed_at() -> None:
    with pytest.raises(BadInput, match="task 'sst-2' is unknown: did you mean sst2"):
        load_choices("sst-2")


def test_sst2_folders(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no folder"):
        load_choices("sst2", tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no sst2/train.jsonl.gz in"):
        load_choices("sst2", tmp_path)
    rows = [{"sentence": "fine ", "label": 1, "idx": 0}, {"sentence": "dull ", "label": 0}]
    write(tmp_path / "train.jsonl.gz", rows)
    items, served = published.items(TASKS["sst2"], "train", tmp_path)
    assert [item.sentence for item in items] == ["fine", "dull"] and served.endswith("train.jsonl.gz")


def test_sst2_is_the_published_set(shared_data: Path) -> None:
    train, validation = (published.items(TASKS["sst2"], split, shared_data)[0] for split in ("train", "validation"))
    assert (len(train), sum(item.label for item in train)) == (67_349, 37_569)
    assert (len(validation), sum(item.label for item in validation)) == (872, 444)
    assert all(item.sentence == item.sentence.strip() for item in train)
