"""Named tasks and JSON Lines files: what is read, and what is said when it cannot be."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from smoothlab.errors import BadInput
from smoothlab.llm.tasks import load_task
from smoothlab.llm.tasks.builtin import TRAIN, VALIDATION


def write(path: Path, rows: list) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_builtin_is_large_balanced_and_split() -> None:
    train, validation = load_task("builtin", "train"), load_task("builtin", "validation")
    assert (len(train.texts), len(validation.texts)) == (TRAIN, VALIDATION)
    everything = [*train.texts, *validation.texts]
    assert len({text.lower().strip() for text in everything}) == len(everything) >= 2000
    assert sum(train.labels) * 2 == TRAIN and sum(validation.labels) * 2 == VALIDATION and train.classes == 2
    assert load_task("builtin", "train") == train
    assert not any(" a awkward" in text or " a honest" in text for text in everything)


def test_no_keyword_solves_builtin() -> None:
    """The best single word, present or absent, is right as often as chance allows the best of all the words to be."""
    train, validation = load_task("builtin", "train"), load_task("builtin", "validation")
    labels = np.array([*train.labels, *validation.labels])
    bags = [set(text.split()) for text in (*train.texts, *validation.texts)]
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

    for text, label in zip(
        load_task("builtin", "validation").texts, load_task("builtin", "validation").labels, strict=True
    ):
        last = [word for word in text.split() if word in _GOOD + _BAD][-1]
        turned = any(mark in text for mark in ("not ", "anything but", "nothing about", "no one could"))
        assert ((last in _GOOD) != turned) == bool(label), text


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
@pytest.mark.parametrize("field", ["sentence", "text"])
def test_files_are_read_and_split(tmp_path: Path, name: str, field: str) -> None:
    path = write(tmp_path / name, [{field: f" phrase {i} ", "label": i % 3, "idx": i} for i in range(30)])
    train, validation = load_task(str(path), "train"), load_task(str(path), "validation")
    assert train.classes == 3 and len(train.texts) == 27 and len(validation.texts) == 3
    pairs = set(zip(train.texts + validation.texts, train.labels + validation.labels, strict=True))
    assert pairs == {(f"phrase {i}", i % 3) for i in range(30)}
    assert load_task(str(path), "train") == train


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
        (b'{"sentence": "fine", "label": 0}\n' * 30, "data.jsonl has no label but 0: a classifier needs"),
    ],
)
def test_bad_files_name_file_line_and_fix(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load_task(str(path), "train")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read .*missing.jsonl: No such file"):
        load_task(str(tmp_path / "missing.jsonl"), "train")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(BadInput, match="is a folder: name a .jsonl"):
        load_task(str(tmp_path / "folder.jsonl"), "train")
    whole = write(tmp_path / "cut.jsonl.gz", [GOOD] * 1000).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="cannot read .*cut.jsonl.gz"):
        load_task(str(tmp_path / "cut.jsonl.gz"), "train")
    (tmp_path / "plain.jsonl.gz").write_text("not gzip")
    with pytest.raises(BadInput, match="cannot read .*plain.jsonl.gz: Not a gzipped file"):
        load_task(str(tmp_path / "plain.jsonl.gz"), "train")


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
        load_task(str(path), "train")


@pytest.mark.parametrize("name", ["mark.jsonl", "mark.jsonl.gz"])
def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path, name: str) -> None:
    text = b"\xef\xbb\xbf" + b'{"sentence": "fine", "label": 0}\r\n{"sentence": "dull", "label": 1}\r\n' * 20
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert set(load_task(str(tmp_path / name), "train").texts) == {"fine", "dull"}


def test_a_training_split_of_one_class_is_refused(tmp_path: Path) -> None:
    """The only example with label 1 falls into the validation split."""
    for place in range(20):
        rows = [{"sentence": f"{i}", "label": int(i == place)} for i in range(20)]
        path = write(tmp_path / "one.jsonl", rows)
        if 1 in load_task(str(path), "validation").labels:
            break
    with pytest.raises(BadInput, match="the training split of .*one.jsonl has no label but 0"):
        load_task(str(path), "train")


def test_a_data_folder_that_is_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--data-dir .* is not read for 'builtin', only for sst2: leave it out"):
        load_task("builtin", "train", tmp_path)


def test_sst2_has_two_labels(tmp_path: Path) -> None:
    write(tmp_path / "validation.jsonl", [{"sentence": "fine", "label": i} for i in range(3)])
    with pytest.raises(BadInput, match="validation.jsonl has label 2: those of SST-2 are 0 and 1"):
        load_task("sst2", "validation", tmp_path)


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
        load_task("sst2", "train")


def test_a_file_too_small_to_split_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "small.jsonl", [GOOD] * 5)
    with pytest.raises(BadInput, match="small.jsonl has 5 examples, too few for a validation split: give at least 10"):
        load_task(str(path), "validation")


def test_unknown_tasks_are_guessed_at() -> None:
    with pytest.raises(BadInput, match="task 'sst-2' is unknown: did you mean sst2"):
        load_task("sst-2", "train")
    with pytest.raises(BadInput, match="split 'test' is unknown"):
        load_task("builtin", "test")


def test_sst2_folders(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no folder"):
        load_task("sst2", "train", tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no sst2/train.jsonl.gz in"):
        load_task("sst2", "train", tmp_path)
    write(tmp_path / "train.jsonl.gz", [{"sentence": "fine ", "label": 1, "idx": 0}, {"sentence": "dull ", "label": 0}])
    assert load_task("sst2", "train", tmp_path).texts == ("fine", "dull")


def test_sst2_is_the_published_set(shared_data: Path) -> None:
    train, validation = (load_task("sst2", split, shared_data) for split in ("train", "validation"))
    assert (len(train.labels), sum(train.labels)) == (67_349, 37_569)
    assert (len(validation.labels), sum(validation.labels)) == (872, 444)
    assert all(text == text.strip() for text in train.texts)
