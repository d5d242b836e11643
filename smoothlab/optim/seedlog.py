"""The seed log: zeroth-order training as (seed, coefficient, learning rate) a step, a few bytes each.

    theta_T = theta_0 moved by theta <- (1 - lr lambda) theta - lr sum_j c_j z_j, once for each entry,

so that the log and theta_0 are a checkpoint: `replay` makes the same moves in the same order, and its weights equal
the trained ones to the bit. The file is one line of JSON that says what the seeds are bound to (generator,
distribution, number of parameters), then entries of fixed size; a last entry that is cut off is left out.

Each entry ends with a checksum, the CRC-32 of its bytes continued from the checksum of the entry before it, the first
from that of the line of JSON: what was changed, removed, doubled or swapped breaks the chain there. Logs of format 1,
written before there were checksums, are read and continued as they are.
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth.distributions import Distribution
from smoothlab.zeroth.estimators import Directional
from smoothlab.zeroth.rng import stream_name

if TYPE_CHECKING:
    from smoothlab.zeroth.rng import Terms

FORMAT, UNCHECKED = "smoothlab seed log 2", "smoothlab seed log 1"
BODY = struct.Struct("<IHHHddd")
"""One direction of one step: step, group, number of the group's directions in it, number j of this one, coefficient,
learning rate, decay; 34 bytes. The direction's seed is (seed of the run, step, group, j)."""
CHECKSUM = struct.Struct("<I")
ENTRY = struct.Struct(BODY.format + "I")
"""A body and its checksum; 38 bytes. Entries of format 1 are bodies alone."""


@dataclass(frozen=True)
class Move:
    """One step of one group."""

    step: int
    group: int
    terms: "Terms"
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class _Content:
    """What a log holds.

    Attributes:
        head: the line of JSON.
        moves: moves that are whole and undamaged, up to the first that is not.
        ends: number of the byte behind each move; ends[0] is the one behind the head.
        sums: the checksum there.
        damaged: whether more stands behind them than a move that was cut off.
    """

    head: dict[str, Any]
    moves: list[Move]
    ends: list[int]
    sums: list[int]
    damaged: bool

    @property
    def steps(self) -> int:
        """Whole steps; one that was cut off between two groups is none."""
        return len(self.moves) // len(self.head["groups"])

    def until(self, step: int | None, path: Path) -> list[Move]:
        """The moves before a step, or all of the whole steps; what is damaged behind them does not matter.

        Raises:
            BadInput: the log ends before, or is damaged before.
        """
        if self.damaged and (step is None or step > self.steps):
            raise BadInput(f"{path} is broken behind step {self.steps}: give a whole one, or start again without")
        if step is not None and step > self.steps:
            raise _ends(path, self.steps, step)
        return self.moves[: (self.steps if step is None else step) * len(self.head["groups"])]


class SeedLog:
    """A seed log that is written along a run.

    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from smoothlab import Block, Gaussian, HybridSGD, SeedLog, ZerothOrder, replay
    >>> path = Path(tempfile.mkdtemp()) / "x.log"
    >>> x, y = (Block("x", (torch.nn.Parameter(torch.ones(3)),)) for _ in range(2))
    >>> log = SeedLog(path, 0, {0: x}, {0: Gaussian()})
    >>> optimizer = HybridSGD([{"params": x.params, "oracle": ZerothOrder(), "name": "x"}], log=log)
    >>> loss = optimizer.step(lambda: x.params[0].square().sum())
    >>> log.steps
    1

    Args:
        path: the file; one that exists is continued if its head is the same, and begun anew if it holds a part of the
            head alone (the process or the machine died while that was written).
        seed: seed of the run, `HybridSGD.seed`.
        blocks: the zeroth-order blocks by number of their group.
        distributions: distributions of their directions, likewise.
        keep: entries of steps from this one on are cut off (a run that goes on from an earlier checkpoint).

    Attributes:
        steps: whole steps that it holds; a step is one move of every group.

    Raises:
        BadInput: there is no block; the file cannot be written, is of another run, or ends or is damaged before step
            `keep`.
    """

    def __init__(
        self,
        path: Path,
        seed: int,
        blocks: Mapping[int, Block],
        distributions: Mapping[int, Distribution],
        keep: int | None = None,
    ) -> None:
        if not blocks:
            raise BadInput(
                f"{path} would be a seed log of no group: give the zeroth-order blocks, or leave the log out"
            )
        self.path, self.seed, self.groups, self._distributions = path, seed, tuple(blocks), dict(distributions)
        self._checked, self._in_folder = True, False
        head = _head(seed, blocks, distributions)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not _is_part_of(head, path):
                content = _read(path)
                _same(path, content.head, head)
                self._checked = content.head["format"] == FORMAT
                self._file = os.open(path, os.O_WRONLY)
                self._stand_behind(content, content.until(keep, path))
            elif keep:
                raise _ends(path, 0, keep)
            else:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                line = _line(head)
                _write(self._file, line)
                self._moves, self._sum = 0, zlib.crc32(line)
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror}; choose another folder, or make room") from None

    @property
    def steps(self) -> int:
        """See `SeedLog`."""
        return self._moves // len(self.groups)

    def cut(self, step: int) -> None:
        """Stand before a step: what is there of it and of later ones is cut off.

        Raises:
            BadInput: the log ends, or is damaged, before.
        """
        content = _read(self.path)
        self._stand_behind(content, content.until(step, self.path))

    def _stand_behind(self, content: _Content, kept: list[Move]) -> None:
        self._moves = len(kept)
        self._sum, size = content.sums[self._moves], content.ends[self._moves]
        os.ftruncate(self._file, size)
        os.lseek(self._file, size, os.SEEK_SET)

    def append(self, step: int, group: int, gradient: Directional, lr: float, weight_decay: float) -> None:
        """Add what one step does to one group, through to the operating system.

        Raises:
            BadInput: the gradient is more than directions of this run's distribution and seeds (control variates); the
                log does not stand before this step of this group; no space, and then the log is as it was before.
        """
        due = (self.steps, self.groups[self._moves % len(self.groups)])
        if (step, group) != due:
            raise BadInput(
                f"{self.path} stands before step {due[0]} of group {due[1]}, not before step {step} of group {group}: "
                "load the checkpoint that belongs to it, or name a new file"
            )
        if gradient.anchor is not None or any(seed[:3] != (self.seed, step, group) for seed, _ in gradient.terms):
            raise BadInput("a seed log holds plain zeroth-order steps: leave control variates or given directions out")
        if gradient.distribution != self._distributions[group]:
            there, here = self._distributions[group].name, gradient.distribution.name
            raise BadInput(f"{self.path} is for {there} directions, these are other ones ({here}): name a new file")
        count = len(gradient.terms)
        entries, checksum = [], self._sum
        for seed, c in gradient.terms:
            entries.append(BODY.pack(step, group, count, seed[3], c, lr, weight_decay))
            if self._checked:
                checksum = zlib.crc32(entries[-1], checksum)
                entries.append(CHECKSUM.pack(checksum))
        stood = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            _write(self._file, b"".join(entries))
            self._moves, self._sum = self._moves + 1, checksum
        except OSError as error:
            os.ftruncate(self._file, stood)
            os.lseek(self._file, stood, os.SEEK_SET)
            raise BadInput(f"cannot write {self.path}: {error.strerror}; make room, and go on from here") from None

    def force(self) -> None:
        """Let the operating system bring the log to disk now, so that it is there if the machine dies.

        Raises:
            BadInput: it cannot.
        """
        try:
            os.fsync(self._file)
            if not self._in_folder:
                folder = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)  # the file's name
                finally:
                    os.close(folder)
                self._in_folder = True
        except OSError as error:
            raise BadInput(f"cannot write {self.path}: {error.strerror}; make room, and go on from here") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def replay(
    path: Path,
    blocks: Mapping[int, Block],
    distributions: Mapping[int, Distribution],
    until: int | None = None,
    masters: Mapping[int, Block] | None = None,
) -> int:
    """Move blocks at theta_0 to where the logged run left them, to the bit; the number of steps made.

    16-bit blocks are moved in fp32 copies and rounded once at the end, as `HybridSGD` does with masters: no rounding of
    the weights enters these.

    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from smoothlab import Block, Gaussian, HybridSGD, SeedLog, ZerothOrder, replay
    >>> path = Path(tempfile.mkdtemp()) / "x.log"
    >>> x, y = (Block("x", (torch.nn.Parameter(torch.ones(3)),)) for _ in range(2))
    >>> log = SeedLog(path, 0, {0: x}, {0: Gaussian()})
    >>> optimizer = HybridSGD([{"params": x.params, "oracle": ZerothOrder(), "name": "x"}], log=log)
    >>> loss = optimizer.step(lambda: x.params[0].square().sum())
    >>> replay(path, {0: y}, {0: Gaussian()}), torch.equal(x.params[0], y.params[0])
    (1, True)

    Args:
        path: the log.
        blocks: the blocks, by number of their group.
        distributions: distributions of their directions, likewise.
        until: make the steps before this one only.
        masters: fp32 copies of 16-bit blocks, to be moved in place of new ones; they then are the run's, to the bit.

    Raises:
        BadInput: no log, one of other blocks or distributions, or seeds of another generator than this machine's; or it
            ends, or is damaged, before step `until`, and anywhere without `until`.
    """
    content = _read(path)
    _same(path, content.head, _head(content.head["seed"], blocks, distributions))
    stands = {k: widened(block, (masters or {}).get(k)) for k, block in blocks.items()}
    steps = 0
    for move in content.until(until, path):
        gradient = Directional(distributions[move.group], move.terms, stream=content.head["stream"])
        descend(stands[move.group], gradient, move.lr, move.weight_decay)
        steps = move.step + 1
    for k, block in blocks.items():
        if stands[k] is not block:
            for p, wide in zip(block.params, stands[k].params, strict=True):
                p.data.copy_(wide)
    return steps


def descend(block: Block, gradient: Directional, lr: float, weight_decay: float = 0.0) -> None:
    """w <- (1 - lr lambda) w - lr ghat, in place: what a step does, and its replay."""
    if lr == 0:
        return  # adding 0 would turn -0.0 into 0.0
    with torch.no_grad():
        if weight_decay:
            for p in block.params:
                p.mul_(1 - lr * weight_decay)
        gradient.add_to(block, -lr)


def widened(block: Block, copies: Block | None = None) -> Block:
    """Fp32 copies of a 16-bit block's parameters, in `place` where it is given; other blocks themselves."""
    if block.params[0].dtype.itemsize > 2:
        return block
    if copies is None:
        return Block(block.name, tuple(p.detach().float().contiguous() for p in block.params))
    for p, wide in zip(block.params, copies.params, strict=True):
        wide.copy_(p.detach())
    return copies


def _ends(path: Path, there: int, wanted: int) -> BadInput:
    stands = f"ends before step {there}" if there else "holds no step"
    return BadInput(
        f"{path} {stands}, the run goes on from step {wanted}: give the log that was written along with that "
        "checkpoint, or start again without both"
    )


def _head(seed: int, blocks: Mapping[int, Block], distributions: Mapping[int, Distribution]) -> dict[str, object]:
    groups = {
        str(k): {
            "distribution": repr(distributions[k]),
            "shapes": [list(p.shape) for p in block.params],
            "dtype": str(block.params[0].dtype),
        }
        for k, block in blocks.items()
    }
    device = next(iter(blocks.values())).params[0].device
    return {"format": FORMAT, "seed": seed, "stream": stream_name(device), "groups": groups}


def _line(head: Mapping[str, object]) -> bytes:
    return json.dumps(head).encode() + b"\n"


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


_RENAMED = {"law": "distribution"}


def _current(value: object) -> object:
    """A value with the names of today: logs of before 0.2 have Sparse(share=0.1)."""
    return value.replace("Sparse(share=", "Sparse(density=") if isinstance(value, str) else value


def _renamed(head: Mapping[str, object]) -> Mapping[str, object]:
    """A head with the names of today: logs of before 0.2 call a group's distribution its "law"."""
    groups = head["groups"]
    if isinstance(groups, dict):
        groups = {
            key: {_RENAMED.get(name, name): _current(value) for name, value in group.items()}
            for key, group in groups.items()
        }
    return {**head, "groups": groups}


def _same(path: Path, there: Mapping[str, object], here: Mapping[str, object]) -> None:
    if there["stream"] != here["stream"]:
        raise BadInput(
            f"{path}: its seeds are of generator {there['stream']}, this is {here['stream']}: replay it there"
        )
    for what in ("seed", "groups"):
        if _renamed(there)[what] != here[what]:
            raise BadInput(
                f"{path} is of another run ({what} differ): name the log of this model, its distributions and its seed"
            )


def _is_part_of(head: Mapping[str, object], path: Path) -> bool:
    """Whether a file holds the beginning of this head, of either format, and nothing more."""
    with path.open("rb") as file:
        first = file.readline()
    first = first.rstrip(b"\0")  # a machine that died leaves zeros where nothing was written yet
    lines = (_line({**head, "format": name}) for name in (FORMAT, UNCHECKED))
    return any(line.startswith(first) and line != first for line in lines)


def _read(path: Path) -> _Content:
    """What a log holds, as far as it is whole."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; name a seed log") from None
    first, newline, rest = content.partition(b"\n")
    try:
        head = json.loads(first) if newline else None
    except (ValueError, RecursionError):
        head = None
    if not _is_head(head):
        raise BadInput(f"{path} is no seed log of smoothlab, or its first line is broken: give a whole one")
    return _checked(head, rest, zlib.crc32(first + newline), len(first) + 1)


def _is_head(head: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(head, dict) or head.get("format") not in (FORMAT, UNCHECKED):
        return False
    groups = head.get("groups")
    if not isinstance(groups, dict) or not groups or type(head.get("seed")) is not int or "stream" not in head:
        return False
    return all(k.isascii() and k.isdecimal() and len(k) < 6 for k in groups)


def _checked(head: dict[str, Any], rest: bytes, checksum: int, start: int) -> _Content:
    """The moves in the bytes behind a head that ends at `start`, up to the first that is damaged."""
    groups = [int(k) for k in head["groups"]]
    size = ENTRY.size if head["format"] == FORMAT else BODY.size
    moves: list[Move] = []
    ends, sums = [start], [checksum]
    terms: list[tuple[tuple[int, ...], float]] = []
    for offset in range(0, len(rest) - size + 1, size):
        body = rest[offset : offset + BODY.size]
        if size == ENTRY.size:
            checksum = zlib.crc32(body, checksum)
            if CHECKSUM.pack(checksum) != rest[offset + BODY.size : offset + size]:
                return _Content(head, moves, ends, sums, True)
        step, group, count, j, c, lr, decay = BODY.unpack(body)
        due = (len(moves) // len(groups), groups[len(moves) % len(groups)])
        if (step, group) != due or len(terms) >= count:
            return _Content(head, moves, ends, sums, True)
        terms.append(((head["seed"], step, group, j), c))
        if len(terms) == count:
            moves.append(Move(step, group, tuple(terms), lr, decay))
            ends.append(start + offset + size)
            sums.append(checksum)
            terms = []
    return _Content(head, moves, ends, sums, False)
