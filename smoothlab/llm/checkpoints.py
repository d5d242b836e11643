"""Snapshots: where a run stands, in one safetensors file that is there as a whole or not at all.

A snapshot holds named tensors and a state that JSON can hold (steps, sums, random seeds, the shape of an optimizer's
state). It is written to a new file, which is forced to disk and only then renamed: whenever the process is killed or
the disk is full, the snapshot before stays as it was. Each tensor has a checksum (CRC-32) of its bytes, and these, the
state and the tensors' names, types and shapes have a common one (SHA-256): a file with a bit that has flipped on disk
is refused. No pickle.

A folder holds the checkpoints of one run. Of `smoothlab finetune`, `after-00000012.safetensors` is where the run stood
when its twelfth row was on record, so that a stopped run keeps twelve rows and continues from there;
`best-00000009.safetensors` are the best weights so far, found with the ninth. Of `smoothlab smoothness`, which keeps
one checkpoint a measuring point, `after-00000250.safetensors` is where it stood before update 250.
"""

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smoothlab.disk import sync
from smoothlab.errors import BadInput

PARTIAL = ".partial"
"""Folder beside the snapshots where they are written before they are renamed."""
_TENSOR, _TUPLE, _PAIRS = "__tensor__", "__tuple__", "__pairs__"  # how `pack` marks what JSON does not know


@dataclass(frozen=True)
class Snapshot:
    """Named tensors on the CPU, and a state of numbers, text, lists and dicts."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot; complete, and on disk, or not at all.

    Raises:
        BadInput: it cannot be written (no space, no permission); what was at `path` is there as before.
    """
    from safetensors import SafetensorError

    tensors = {name: compact(tensor) for name, tensor in snapshot.tensors.items()}
    state, sums = json.dumps(snapshot.state), json.dumps(_checksums(tensors))
    try:
        write_whole(path, tensors, {"state": state, "sums": sums, "sum": _sum(state, tensors, sums)})
    except (OSError, SafetensorError) as error:
        if not path.parent.is_dir():
            raise BadInput(f"cannot write {path}: {reason(error)}; name a folder that can be made") from None
        raise BadInput(
            f"cannot write {path}: {reason(error)}; make room and start the same command again; checkpoints "
            "written before are whole"
        ) from None


def write_whole(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, complete and on disk, or not at all; leaves an empty folder `PARTIAL` beside it."""
    from safetensors.torch import save_file

    room = path.parent / PARTIAL  # a folder, because safetensors makes files of its own on the way
    new = not path.parent.exists()
    room.mkdir(parents=True, exist_ok=True)
    try:
        if new:
            force(path.parent.parent)
        save_file({name: compact(tensor) for name, tensor in tensors.items()}, room / path.name, metadata=metadata)
        # In this order: after a power cut, a name must not stand for content that never reached the disk.
        force(room / path.name)
        (room / path.name).replace(path)
        force(path.parent)
    except BaseException:
        shutil.rmtree(room, ignore_errors=True)
        raise


def reason(error: Exception) -> str:
    """Why the operating system did not write, in its words, from Python or from safetensors."""
    text = getattr(error, "strerror", None) or str(error)
    # The second form is that of safetensors 0.5.
    match = re.search(r"I/O error: (.+?) \(os error", text) or re.search(r'IoError\(.*message: "([^"]+)"', text)
    return match[1] if match else text


def read(path: Path) -> Snapshot:
    """The snapshot in a file that `write` wrote.

    Raises:
        BadInput: there is no such file, it cannot be read, or it was changed.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        fault = _changed(metadata, tensors)
    except Exception as error:  # whatever safetensors raises on bytes that are not its own
        fault = "there is no such file"
        if path.exists():
            fault = f"it is damaged ({' '.join(str(error).split())})"
    if fault:
        raise BadInput(f"cannot read {path}: {fault}; put the file back, or delete {path.parent} to start again")
    return Snapshot(tensors, json.loads(metadata["state"]))


def _changed(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the content of a file; "" where it is as it was written."""
    sums = metadata.get("sums", "")
    if metadata.get("sum") != _sum(metadata.get("state", ""), tensors, sums):
        return "it is no checkpoint of smoothlab, or was changed since"
    recorded = json.loads(sums)
    for name, checksum in _checksums(tensors).items():
        if checksum != recorded[name]:
            return f"it is damaged (the numbers of {name} are not those that were written)"
    return ""


def _sum(state: str, tensors: Mapping[str, Tensor], sums: str) -> str:
    """SHA-256 of the state, of the tensors' names, types and shapes, and of their checksums."""
    shapes = sorted((name, str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items())
    return hashlib.sha256(json.dumps([state, shapes, sums]).encode()).hexdigest()


def _checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """CRC-32 of each tensor's bytes: it sees every change of up to 32 neighboring bits."""
    checksums = {}
    for name, tensor in sorted(tensors.items()):
        # As bytes, because numpy has no bfloat16.
        content: Any = tensor.cpu().reshape(-1).view(torch.uint8).numpy()
        checksums[name] = zlib.crc32(content)
    return checksums


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """`value` as JSON holds it; its tensors go to `tensors`, named after the keys that lead to them from `name` on.

    Takes what a `state_dict` is made of: tensors, numbers, text, None, lists, tuples, and dicts whose keys are of
    these. Numbers stay the same to the bit.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: pack(item, tensors, f"{name}/{key}") for key, item in value.items()}
        # An optimizer's state has parameter numbers as keys, which JSON would turn into text.
        pairs = []
        for n, (key, item) in enumerate(value.items()):
            pairs.append([pack(key, tensors, name), pack(item, tensors, f"{name}/{n}")])
        return {_PAIRS: pairs}
    if isinstance(value, tuple):
        return {_TUPLE: pack(list(value), tensors, name)}
    if isinstance(value, list):
        return [pack(item, tensors, f"{name}/{n}") for n, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a snapshot cannot hold a {type(value).__name__}")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if _TENSOR in packed:
        return tensors[packed[_TENSOR]]
    if _TUPLE in packed:
        return tuple(unpack(packed[_TUPLE], tensors))
    if _PAIRS in packed:
        return {unpack(key, tensors): unpack(item, tensors) for key, item in packed[_PAIRS]}
    return {key: unpack(item, tensors) for key, item in packed.items()}


@dataclass(frozen=True)
class Folder:
    """The checkpoints of one run."""

    path: Path  # made when the first checkpoint is written
    run: str  # what the weights depend on, as "name=value, name=value": checkpoints of another run are refused

    def after(self, number: int) -> Path:
        """File of a whole run's state, after so many rows on record or before the update of such a step."""
        return self.path / f"after-{number:08d}.safetensors"

    def best(self, rows: int) -> Path:
        """File of the weights that were the best so far after so many rows."""
        return self.path / f"best-{rows:08d}.safetensors"

    def log(self, trial: int) -> Path:
        """Seed log of a trial's base model, where checkpoints leave that out."""
        return self.path / f"zeroth-{trial:03d}.log"

    def put(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a nested state of tensors, numbers and text, see `pack`."""
        tensors: dict[str, Tensor] = {}
        packed = {key: pack(value, tensors, key) for key, value in state.items()}
        write(path, Snapshot(tensors, {"run": self.run, "packed": packed}))

    def get(self, path: Path) -> dict[str, Any]:
        """Read the state in a file that `put` wrote."""
        return contents(path, self.run)

    def numbers(self) -> list[int]:
        """Numbers of the checkpoints in the folder, ascending; a newest one of another run is refused."""
        numbers = saved_numbers(self.path)
        if numbers:
            self.get(self.after(numbers[-1]))
        return numbers

    def keep(self, paths: Iterable[Path]) -> None:
        """Delete all other checkpoints of this folder, and what was half written when the process was killed."""
        keep = set(paths)
        shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
        for path in (*self.path.glob("after-*.safetensors"), *self.path.glob("best-*.safetensors")):
            if path not in keep:
                path.unlink(missing_ok=True)


def contents(path: Path, run: str | None = None) -> dict[str, Any]:
    """The state that `Folder.put` wrote, of `run` where one is named; others are refused."""
    snapshot = read(path)
    saved_run = str(snapshot.state.get("run"))
    if run is not None and saved_run != run:
        old, new = difference(saved_run, run)
        raise BadInput(f"{path} is of another run ({old}, this one has {new}): name another --checkpoint folder")
    if "packed" not in snapshot.state:
        raise BadInput(f"{path} was written by smoothlab 0.1: finish that run with it, or name another folder")
    state: dict[str, Any] = unpack(snapshot.state["packed"], snapshot.tensors)
    return state


def saved_numbers(folder: Path, option: str = "--checkpoint") -> list[int]:
    """Numbers of the checkpoints after-NUMBER.safetensors in a folder, ascending; refuses one of smoothlab 0.1."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{option} {folder} is a file: name a folder")
    numbers = []
    for path in folder.glob("after-*.safetensors"):
        number = path.stem.removeprefix("after-")
        if number.isascii() and number.isdecimal():  # others are not ours; int() takes digits of all scripts
            numbers.append(int(number))
    if not numbers and any(folder.glob("step-*.safetensors")):
        raise BadInput(
            f"{option} {folder} holds step-*.safetensors, which --keep-weights of smoothlab 0.1 wrote: name another "
            "folder, and train again with --checkpoint"
        )
    return sorted(numbers)


def compact(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in memory that is theirs alone; views would be refused, or written as a whole."""
    tensor = tensor.detach()
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def force(path: Path) -> None:
    """Let the operating system bring a file, or a folder's names, to disk now, where its file system knows of that."""
    file = os.open(path, os.O_RDONLY)  # by number: Python's open refuses folders
    try:
        sync(file)
    finally:
        os.close(file)


def difference(old_run: str, new_run: str) -> tuple[str, str]:
    """The first setting that differs between two runs written as "name=value, name=value"."""
    for old, new in zip_longest(old_run.split(", "), new_run.split(", "), fillvalue="nothing more"):
        if old != new:
            return old, new
    return old_run, new_run
