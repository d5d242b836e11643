"""Which GGUF file a name means, what of it is kept, and what is said of files that cannot be read."""

import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from smoothlab.errors import BadInput
from smoothlab.llm import gguf_files, hub
from smoothlab.llm.gguf_files import find, identity, read
from smoothlab.llm.models import load_lm
from tests.llm.gguf_writing import QUANTIZED, model, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with Q4_1 matrices and a Q8_0 embedding."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path, model("llama"), types={"token_embd": QUANTIZED.Q8_0}, default=QUANTIZED.Q4_1)
    return path


def said(name: object) -> str:
    """The one line that refuses a model."""
    with pytest.raises(BadInput) as caught:
        load_lm(str(name), seed=0)
    line = str(caught.value)
    assert "\n" not in line and caught.value.status == 2
    return line


def test_names_of_files_and_folders(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = whole.read_bytes()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("GGUF")
    assert find(str(folder)) is None and find("micro") is None and find(__file__) is None
    (folder / "one.gguf").write_bytes(content)
    (folder / "config.json").write_text('{"model_type": "llama"}')  # as many hub repositories have beside the file
    assert find(str(folder)) == find(str(folder / "one.gguf")) == folder / "one.gguf"
    monkeypatch.chdir(folder)
    assert find("one.gguf") == folder / "one.gguf"
    (tmp_path / "sha256-1234").write_bytes(content)
    assert find(str(tmp_path / "sha256-1234")) == tmp_path / "sha256-1234"
    (folder / "model.safetensors").touch()
    assert find(str(folder)) is None


def test_several_files_are_listed_and_one_is_to_be_named(whole: Path, tmp_path: Path) -> None:
    for name in ("b.Q8_0.gguf", "a.Q4_1.gguf"):
        (tmp_path / name).write_bytes(whole.read_bytes())
    line = said(tmp_path)
    assert "has 2 GGUF files (a.Q4_1.gguf, b.Q8_0.gguf)" in line and line.endswith(f"--model {tmp_path}/a.Q4_1.gguf")
    for part in (1, 2):
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / f"x-0000{part}-of-00002.gguf").write_bytes(whole.read_bytes())
    assert "split into 2 files" in said(tmp_path / "parts") and "llama-gguf-split --merge" in said(tmp_path / "parts")


def test_files_of_a_repository_in_the_cache_of_the_hub(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without network the client's cache serves them; "owner/name" and "owner/name/file" mean the same file."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    gguf_files._in_repository.cache_clear()
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text("0" * 40)
    (snapshot / "tiny.gguf").write_bytes(whole.read_bytes())
    assert find("someone/tiny") == find("someone/tiny/tiny.gguf") == snapshot / "tiny.gguf"
    assert "its cache has no other.gguf of someone/tiny" in said("someone/tiny/other.gguf")
    assert "its cache has no such model" in said("someone/else")


def test_files_of_a_repository_on_the_hub(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub answers it is asked which files there are, and for the one that is meant."""
    there = {
        "a/one": ["README.md", "x.gguf"],
        "a/two": ["x.gguf", "y.gguf"],
        "a/plain": ["x.gguf", "model.safetensors"],
    }
    asked = []

    def file(name: str, path: str) -> Path:
        asked.append((name, path))
        return whole

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(hub, "files", lambda name: there.get(name, []))
    monkeypatch.setattr(hub, "file", file)
    gguf_files._in_repository.cache_clear()
    assert find("a/one") == find("a/two/folder/y.gguf") == whole
    assert asked == [("a/one", "x.gguf"), ("a/two", "folder/y.gguf")]
    assert find("a/plain") is None and find("a/none") is None
    assert "has 2 GGUF files (x.gguf, y.gguf): name one, as in --model a/two/x.gguf" in said("a/two")
    gguf_files._in_repository.cache_clear()


def test_what_a_file_says_of_itself(whole: Path) -> None:
    header = read(whole)
    assert header.architecture == "llama" and header.setting("embedding_length") == 64 and header.vocabulary == 300
    assert header.quantization == {"Q4_1": 15, "F32": 5, "Q8_0": 1}
    assert header.tensors["token_embd.weight"][:2] == ("Q8_0", 300 * 64)
    words = header.losses("float32")
    assert "Q4_1 in 15, F32 in 5, Q8_0 in 1: de-quantized to float32, without what their quantization" in words
    bits = 8 * whole.stat().st_size / sum(tensor.elements for tensor in header.tensors.values())
    assert f"{bits:.2f} bits a weight" in words


def test_a_file_of_floats_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", model("llama"), default=QUANTIZED.F16)
    assert "none is quantized, the weights are those of the file in float32" in read(tmp_path / "x.gguf").losses(
        "float32"
    )


def test_a_file_is_known_again_by_its_content(whole: Path, tmp_path: Path) -> None:
    import hashlib

    copy = tmp_path / whole.name
    content = bytearray(whole.read_bytes())
    copy.write_bytes(content)
    assert identity(copy) == identity(whole)
    assert identity(copy)["sha256"] == hashlib.sha256(content).hexdigest() and identity(copy)["bytes"] == len(content)
    content[-1] ^= 1
    copy.write_bytes(content)
    assert identity(copy)["sha256"] == hashlib.sha256(content).hexdigest() != identity(whole)["sha256"]


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.3, 0.9, 0.9999])
def test_files_that_are_cut_short(whole: Path, tmp_path: Path, share: float) -> None:
    """In the first bytes, the metadata, the table of tensors, or the tensors."""
    content = whole.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: int(len(content) * share)])
    line = said(cut)
    assert f"cannot load model '{cut}': " in line
    assert re.search(
        "is cut short or damaged .*; download or copy it again$|it is no GGUF file, which begins with", line
    )


def with_type(content: bytes, name: bytes, kind: int) -> bytes:
    """The file with another type in the table's entry of a tensor: name, number of sizes, sizes, type."""
    place = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    (sizes,) = struct.unpack_from("<I", content, place)
    place += 4 + 8 * sizes
    return content[:place] + struct.pack("<I", kind) + content[place + 4 :]


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another format": (lambda content: b"PK" + content[2:], "it is no GGUF file, which begins with the letters GGUF"),
    "later version": (lambda content: content[:4] + struct.pack("<I", 9) + content[8:], "cut short or damaged"),
    "unknown type": (
        lambda content: with_type(content, b"output_norm.weight", 99),
        "it has tensors of the unknown quantization type 99; update the package gguf",
    ),
    "type without formula": (
        lambda content: with_type(content, b"output_norm.weight", int(QUANTIZED.I8)),
        "the package gguf cannot de-quantize type I8 of its tensor output_norm.weight; take a file of another",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_read(whole: Path, tmp_path: Path, case: str) -> None:
    change, words = BROKEN[case]
    (tmp_path / "x.gguf").write_bytes(change(whole.read_bytes()))
    assert words in said(tmp_path / "x.gguf")


def test_other_reasons_not_to_read(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no such file" in said(tmp_path / "none.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert "the directory needs config.json" in said(tmp_path / "folder.gguf")
    source = model("llama")
    write(tmp_path / "split.gguf", source, metadata={"split.count": 3})
    assert "it is split into 3 files" in said(tmp_path / "split.gguf")
    write(tmp_path / "mute.gguf", source, words=0)
    assert "it has no tokenizer" in said(tmp_path / "mute.gguf")
    assert gguf.GGUFReader(whole).tensors  # the package is there, and is taken away now
    monkeypatch.setitem(sys.modules, "gguf", None)
    gguf_files._read.cache_clear()
    assert "pip install 'smoothlab[gguf]'" in said(whole)
