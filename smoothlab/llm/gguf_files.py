"""GGUF files, the format of llama.cpp: which file a name means, whether it is whole, and how it is known again.

A GGUF file holds metadata (the settings and the tokenizer), a table of tensors, and the tensors, most of them quantized
in blocks. `find` maps the name of a model to such a file, `read` checks it before transformers sees it, and `identity`
names it in records and checkpoints, so that a run is not continued on another file of the same name.
"""

import functools
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from smoothlab.errors import BadInput
from smoothlab.llm import hub

MAGIC = b"GGUF"
FLOATS = ("F32", "F16", "BF16")
"""Types of tensors that hold numbers one by one; all others are quantized in blocks."""
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are settings, not weights: divisors of the rotary frequencies, one for each pair of dimensions."""
MISSING_PACKAGE = "reading GGUF files needs the package gguf: pip install 'smoothlab[gguf]'"
_HUB_FILE = re.compile(r"(?P<owner>[\w.-]+/[\w.-]+)/(?P<file>[^\\]+\.gguf)", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)


class Stored(NamedTuple):
    """A tensor of a file: its type (e.g. "Q4_1"), how many numbers it holds, and where its bytes are, in what shape."""

    kind: str
    elements: int
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself, without its weights.

    Attributes:
        path: the file, absolute.
        architecture: llama.cpp's name of the model's type, e.g. "llama".
        metadata: key -> value, without arrays of text (vocabulary and merges).
        tensors: name -> tensor.
        rope: values of ROPE_TENSORS, those that are there.
        vocabulary: number of tokens.
    """

    path: Path
    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, Stored]
    rope: dict[str, list[float]]
    vocabulary: int

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of the architecture's own key, e.g. "rope.freq_base" for "llama.rope.freq_base"."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def own_keys(self) -> list[str]:
        """Keys of the architecture, without its name."""
        keys = []
        for key in self.metadata:
            before, _, after = key.partition(".")
            if before == self.architecture:
                keys.append(after)
        return keys

    @property
    def quantization(self) -> dict[str, int]:
        """Number of tensors of each type, the most frequent first."""
        return dict(Counter(tensor.kind for tensor in self.tensors.values()).most_common())

    def values(self, name: str) -> Any:
        """The numbers of a tensor, de-quantized by gguf: an fp32 array of numpy."""
        import gguf
        import numpy as np

        tensor = self.tensors[name]
        kind = gguf.GGMLQuantizationType[tensor.kind]
        # As gguf's reader maps them: numbers of these two types, bytes of all others.
        number = {"F32": np.float32, "F16": np.float16}.get(tensor.kind, np.uint8)
        raw = np.memmap(self.path, number, mode="r", offset=tensor.offset, shape=tensor.shape)
        return np.array(gguf.dequantize(raw, kind), dtype=np.float32)

    def losses(self, dtype: str) -> str:
        """How the weights are stored, and what de-quantizing them to `dtype` does not bring back, in one sentence."""
        size, count = self.path.stat().st_size, sum(tensor.elements for tensor in self.tensors.values())
        types = ", ".join(f"{kind} in {number}" for kind, number in self.quantization.items())
        words = (
            f"{self.path.name} ({size / 1e6:.1f} MB, {8 * size / count:.2f} bits a weight) stores tensors as {types}"
        )
        # Numbers of a float type are rounded at most to `dtype`; those of a block share a scale, and few bits each.
        if set(self.quantization) <= set(FLOATS):
            return f"{words}: none is quantized, the weights are those of the file in {dtype}"
        return f"{words}: de-quantized to {dtype}, without what their quantization rounded away"


def find(name: str) -> Path | None:
    """The GGUF file that the name of a model means; None where it means a model of another format.

    A name is that of a file, of a folder with one GGUF file and no safetensors, of such a hub repository
    ("owner/name"), or of one file of a repository ("owner/name/file.gguf"), which is downloaded.

    Raises:
        BadInput: there is no such file, or the folder or repository has several; the message lists them.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix.lower() == ".gguf" or _starts_as_gguf(path):
            return path.absolute()
        return None
    if path.is_dir():
        return _in_folder(path.absolute(), name)
    hub_file = _HUB_FILE.fullmatch(name)
    if hub_file is not None:
        return _from_hub(name, hub_file["owner"], hub_file["file"])
    if path.suffix.lower() == ".gguf":
        raise BadInput(f"cannot load model '{name}': there is no such file; name a GGUF file, or the folder with it")
    return _in_repository(name)


@functools.lru_cache(maxsize=64)
def _in_repository(name: str) -> Path | None:
    """The GGUF file of a hub repository that has no other weights; None where there is no such repository."""
    if "/" not in name or not hub.is_name(name):
        return None
    if hub.reachable():
        chosen = _only(hub.files(name), name)
        if chosen is None:
            return None
        return hub.file(name, chosen)
    try:
        folder = Path(hub.cached(name))
    except BadInput:  # whoever loads the model says so
        return None
    return _in_folder(folder, name)


def _in_folder(folder: Path, model: str) -> Path | None:
    """The one GGUF file in a folder; None where it has none, or other weights."""
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    chosen = _only(names, model)
    if chosen is None:
        return None
    return folder / chosen


def _from_hub(name: str, repository: str, file: str) -> Path:
    """One file of a repository, downloaded or from the cache."""
    if hub.reachable():
        return hub.file(repository, file)
    path = Path(hub.cached(repository)) / file
    if not path.is_file():
        raise BadInput(
            f"cannot load model '{name}': the hub cannot be reached, and its cache has no {file} of {repository}; "
            "connect, or name a local file"
        )
    return path


def _only(names: list[str], model: str) -> str | None:
    """The one GGUF file among names; None where there is none, or weights that transformers reads by itself."""
    files = []
    for name in sorted(names):
        if name.endswith(".safetensors"):
            return None
        if name.lower().endswith(".gguf"):
            files.append(name)
    if not files:
        return None
    if len(files) == 1:
        return files[0]
    # llama.cpp names the files of one large model after their number.
    parts = _PART.search(files[0])
    if parts is not None:
        raise BadInput(_split(model, int(parts[1])))
    listed = ", ".join(files[:8])
    if len(files) > 8:
        listed += f" and {len(files) - 8} more"
    raise BadInput(
        f"model '{model}' has {len(files)} GGUF files ({listed}): name one, as in --model {model}/{files[0]}"
    )


def _split(name: str, parts: int) -> str:
    return (
        f"cannot load model '{name}': it is split into {parts} files; join them with llama.cpp's "
        "llama-gguf-split --merge, and name the file that it writes"
    )


def _starts_as_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do, whatever its name is: some programs name them by their checksum."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> Header:
    """Metadata and table of tensors of a file that is whole.

    Raises:
        BadInput: the package gguf is not installed; the file cannot be opened, is no GGUF file, is cut short or
            damaged, is one part of several, or has a tensor of a type that gguf cannot de-quantize.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise BadInput(f"cannot load model '{path}': {error.strerror}; name a GGUF file that is there") from None
    return _read(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> Header:
    """`read`, once for each state of a file."""
    try:
        import gguf
    except ImportError:
        raise BadInput(f"cannot load model '{path}': {MISSING_PACKAGE}") from None
    try:
        if not _starts_as_gguf(path):
            raise BadInput(f"cannot load model '{path}': it is no GGUF file, which begins with the letters GGUF")
        reader = gguf.GGUFReader(path)
        metadata = {}
        for key, field in reader.fields.items():
            if not _is_text_array(field):  # a vocabulary takes long, and transformers reads it by itself
                metadata[key] = field.contents()
    except OSError as error:
        raise BadInput(f"cannot load model '{path}': {error.strerror}; make the file readable") from None
    except BadInput:
        raise
    except Exception as error:  # gguf raises whatever numpy does on bytes that are not what they should be
        raise BadInput(_broken(path, error)) from None
    if metadata.get("split.count", 1) > 1:
        raise BadInput(_split(str(path), int(metadata["split.count"])))
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise BadInput(f"cannot load model '{path}': its metadata has no general.architecture; convert the model again")
    tensors, rope = {}, {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        tensors[tensor.name] = Stored(kind, int(tensor.n_elements), int(tensor.data_offset), tensor.data.shape)
        if tensor.name in ROPE_TENSORS:
            rope[tensor.name] = gguf.dequantize(tensor.data, tensor.tensor_type).astype(float).ravel().tolist()
    _check_types(gguf, path, reader.tensors)
    words = reader.get_field("tokenizer.ggml.tokens")
    if words is None:
        raise BadInput(f"cannot load model '{path}': it has no tokenizer; convert the model again, with its tokenizer")
    return Header(path, architecture, metadata, tensors, rope, len(words.data))


def _broken(path: Path, error: Exception) -> str:
    """What is wrong with a file that gguf cannot read to its end."""
    words = " ".join(str(error).split())[:100]
    unknown = re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", words)
    if unknown is not None:
        return (
            f"cannot load model '{path}': it has tensors of the unknown quantization type {unknown[1]}; update the "
            "package gguf, or take a file of another quantization, e.g. Q8_0"
        )
    return (
        f"cannot load model '{path}': the file is cut short or damaged ({type(error).__name__}: {words}); download or "
        "copy it again"
    )


def _check_types(gguf: Any, path: Path, tensors: list[Any]) -> None:
    """Refuse quantizations that gguf cannot undo; one row of each type is tried."""
    checked_kinds = set()
    for tensor in tensors:
        kind = tensor.tensor_type
        if kind in checked_kinds:
            continue
        checked_kinds.add(kind)
        row = tensor.data.reshape(-1, tensor.data.shape[-1])[:1]
        try:
            gguf.dequantize(row, kind)
        except NotImplementedError:
            raise BadInput(
                f"cannot load model '{path}': the package gguf cannot de-quantize type {kind.name} of its tensor "
                f"{tensor.name}; take a file of another quantization, e.g. Q8_0"
            ) from None


def _is_text_array(field: Any) -> bool:
    """Whether a metadata field is a list of texts, such as the vocabulary."""
    return len(field.types) > 1 and field.types[-1].name == "STRING"


def identity(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file and the types of its tensors, as records and checkpoints hold them.

    Raises:
        BadInput: see `read`.
    """
    header, state = read(path), path.stat()
    return {
        "name": path.name,
        "bytes": state.st_size,
        "sha256": _checksum(path, state.st_size, state.st_mtime_ns),
        "quantization": header.quantization,
    }


@functools.lru_cache(maxsize=4)
def _checksum(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file, computed once for each state of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
