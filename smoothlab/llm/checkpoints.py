"""Snapshots: where a run stands, in one safetensors file that is there as a whole or not at all.

A snapshot holds named tensors and a state that JSON can hold (steps, sums, random seeds, the shape of an optimizer's
state). It is written to a new file, which is forced to disk and only then renamed: whenever the process is killed or
the disk is full, the snapshot before stays as it was. Each tensor has a checksum (CRC-32) of its bytes, and these, the
state and the tensors' names, types and shapes have a common one (SHA-256): a file with a bit that has flipped on disk
is refused. Files of before have no checksums of their tensors' bytes, and are read without. No pickle.

A folder holds the snapshots of one run. `after-00000012.safetensors` is where the run stood when its twelfth row was on
record, so that a stopped run keeps twelve rows and goes on from there; `best-00000009.safetensors` are the best weights
so far, found with the ninth.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    from safetensors.torch import save_file

    room = path.parent / PARTIAL  # a folder, because safetensors makes files of its own on the way
    try:
        new = not path.parent.exists()
        room.mkdir(parents=True, exist_ok=True)
        if new:
            force(path.parent.parent)
        tensors = {name: own(tensor) for name, tensor in snapshot.tensors.items()}
        state, sums = json.dumps(snapshot.state), json.dumps(_checksums(tensors))
        whole = {"state": state, "sums": sums, "sum": _sum(state, tensors, sums)}
        save_file(tensors, room / path.name, metadata=whole)
        force(room / path.name)
        (room / path.name).replace(path)
        force(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(room, ignore_errors=True)
        if not path.parent.is_dir():
            raise BadInput(f"cannot write {path}: {reason(error)}; name a folder that can be made") from None
        raise BadInput(
            f"cannot write {path}: {reason(error)}; make room and start the same command again: it goes on from the "
            "last checkpoint, which is whole"
        ) from None


def reason(error: Exception) -> str:
    """Why the operating system did not write, in its words, from Python or from safetensors."""
    said = getattr(error, "strerror", None) or str(error)
    return said.partition("I/O error: ")[2].partition(" (os error")[0] or said


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
        why = _changed(metadata, tensors)
    except Exception as error:
        why = f"it is damaged ({' '.join(str(error).split())})" if path.exists() else "there is no such file"
    if why:
        raise BadInput(f"cannot read {path}: {why}; put the file back, or delete {path.parent} to start again")
    return Snapshot(tensors, json.loads(metadata["state"]))


def _changed(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the content of a file; "" where it is as it was written."""
    sums = metadata.get("sums")
    if metadata.get("sum") != _sum(metadata.get("state", ""), tensors, sums):
        return "it is no checkpoint of smoothlab, or was changed since"
    if sums is None:  # of before: its tensors' bytes are taken as they are
        return ""
    written, there = json.loads(sums), _checksums(tensors)
    broken = [name for name in there if there[name] != written[name]]
    return f"it is damaged (the numbers of {broken[0]} are not those that were written)" if broken else ""


def _sum(state: str, tensors: Mapping[str, Tensor], sums: str | None) -> str:
    """SHA-256 of the state, of the tensors' names, types and shapes, and, where there are any, of their checksums."""
    shapes = sorted((name, str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items())
    return hashlib.sha256(json.dumps([state, shapes] + ([] if sums is None else [sums])).encode()).hexdigest()


def _checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """CRC-32 of each tensor's bytes: it sees every change of up to 32 neighboring bits."""
    found = {}
    for name, tensor in sorted(tensors.items()):
        content: Any = tensor.cpu().reshape(-1).view(torch.uint8).numpy()
        found[name] = zlib.crc32(content)
    return found


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """`value` as JSON holds it; its tensors go to `tensors` under names that begin with name/.

    Takes what an optimizer's `state_dict` is made of: tensors, numbers, text, None, lists, tuples, and dicts whose keys
    are of these. Numbers stay the same to the bit.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, Tensor):
        key = f"{name}/{len(tensors)}"
        tensors[key] = value
        return {_TENSOR: key}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: pack(one, tensors, name) for key, one in value.items()}
        return {_PAIRS: [[pack(key, tensors, name), pack(one, tensors, name)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [pack(one, tensors, name) for one in value]}
    if isinstance(value, list):
        return [pack(one, tensors, name) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a snapshot cannot hold a {type(value).__name__}")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given."""
    if isinstance(packed, list):
        return [unpack(one, tensors) for one in packed]
    if not isinstance(packed, dict):
        return packed
    if _TENSOR in packed:
        return tensors[packed[_TENSOR]]
    if _TUPLE in packed:
        return tuple(unpack(one, tensors) for one in packed[_TUPLE])
    if _PAIRS in packed:
        return {unpack(key, tensors): unpack(one, tensors) for key, one in packed[_PAIRS]}
    return {key: unpack(one, tensors) for key, one in packed.items()}


@dataclass(frozen=True)
class Folder:
    """The snapshots of one run.

    Attributes:
        path: the folder; made when the first snapshot is written.
        run: what the weights depend on, in one line; snapshots of another run are refused.
    """

    path: Path
    run: str

    def after(self, rows: int) -> Path:
        """File of where the run stood after so many rows."""
        return self.path / f"after-{rows:08d}.safetensors"

    def best(self, rows: int) -> Path:
        """File of the weights that were the best so far after so many rows."""
        return self.path / f"best-{rows:08d}.safetensors"

    def log(self, trial: int) -> Path:
        """Seed log of a trial's base model, where snapshots leave that out."""
        return self.path / f"zeroth-{trial:03d}.log"

    def put(self, path: Path, snapshot: Snapshot) -> None:
        """Write a snapshot of this run."""
        write(path, Snapshot(snapshot.tensors, {"run": self.run, **snapshot.state}))

    def get(self, path: Path) -> Snapshot:
        """Read one.

        Raises:
            BadInput: it cannot be read, or is of another run.
        """
        found = read(path)
        if found.state.get("run") != self.run:
            there, here = difference(str(found.state.get("run")), self.run)
            raise BadInput(f"{path} is of another run ({there}, this one has {here}): name another --checkpoint folder")
        return found

    def rows(self) -> list[int]:
        """After how many rows there are snapshots, ascending; all are of this run.

        Raises:
            BadInput: the newest cannot be read or is of another run, or the folder is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"--checkpoint {self.path} is a file: name a folder")
        names = (path.stem.removeprefix("after-") for path in self.path.glob("after-*.safetensors"))
        found = sorted(int(name) for name in names if name.isascii() and name.isdecimal())  # others are not ours
        if found:
            self.get(self.after(found[-1]))
        return found

    def keep(self, paths: Iterable[Path]) -> None:
        """Delete all other snapshots of this folder, and what was half written when the process was killed."""
        kept = set(paths)
        shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
        for pattern in ("after-*.safetensors", "best-*.safetensors"):
            for path in self.path.glob(pattern):
                if path not in kept:
                    path.unlink(missing_ok=True)


def own(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in memory that is theirs alone; views would be refused, or written as a whole."""
    tensor = tensor.detach()
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def force(path: Path) -> None:
    """Let the operating system bring a file, or a folder's names, to disk now."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def difference(there: str, here: str) -> tuple[str, str]:
    """The first setting that differs between two runs told as "name=value, name=value"."""
    for old, new in zip_longest(there.split(", "), here.split(", "), fillvalue="nothing more"):
        if old != new:
            return old, new
    return there, here
