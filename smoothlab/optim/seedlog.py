"""The seed log: zeroth-order training as (seed, coefficient, learning rate) a step, a few bytes each.

    theta_T = theta_0 moved by theta <- (1 - lr lambda) theta - lr sum_j c_j z_j, once for each entry,

so that the log and theta_0 are a checkpoint: `replay` makes the same moves in the same order, and its weights equal
the trained ones to the bit. The file is one line of JSON that says what the seeds are bound to (generator,
distribution, number of parameters), then entries of fixed size; a last entry that is cut off is left out.

Each entry ends with a checksum, the CRC-32 of its bytes continued from the checksum of the entry before it, the first
from that of the line of JSON: what was changed, removed, doubled or swapped breaks the chain there. Logs of format 1,
written before there were checksums, can be replayed, not continued.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth.distributions import Distribution
from smoothlab.zeroth.estimators import Directional
from smoothlab.zeroth.rng import Terms, stream_name

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
    terms: Terms
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class _Content:
    """What a log holds.

    Attributes:
        head: the line of JSON.
        line: the same as bytes.
        moves: moves that are whole and undamaged, up to the first that is not.
        damaged: whether more stands behind them than a move that was cut off.
    """

    head: dict[str, Any]
    line: bytes
    moves: list[Move]
    damaged: bool

    def until(self, step: int | None, path: Path) -> list[Move]:
        """The moves before a step, or all of the whole steps; what is damaged behind them does not matter.

        Raises:
            BadInput: the log ends before, or is damaged before.
        """
        groups = len(self.head["groups"])
        steps = len(self.moves) // groups  # a step that was cut off between two groups is none
        if self.damaged and (step is None or step > steps):
            raise BadInput(f"{path} is broken behind step {steps}: give a whole one, or start again without")
        if step is not None and step > steps:
            raise _ends(path, steps, step)
        return self.moves[: (steps if step is None else step) * groups]


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
        self._in_folder = False
        head = _head(seed, blocks, distributions)
        with _writing(path, "choose another folder, or make room"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not _is_part_of(head, path):
                content = _read(path)
                _check_head(path, content.head, head)
                if content.head["format"] != FORMAT:
                    raise BadInput(f"{path} is of before 0.2, and cannot be continued: replay it, or name a new file")
                self._file = os.open(path, os.O_RDWR)
                self._stand_behind(content, content.until(keep, path))
            elif keep:
                raise _ends(path, 0, keep)
            else:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
                line = _line(head)
                _write(self._file, line)
                self._moves, self._sum = 0, zlib.crc32(line)

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

    def _stand_behind(self, content: _Content, moves: list[Move]) -> None:
        size = len(content.line) + ENTRY.size * sum(len(move.terms) for move in moves)
        os.ftruncate(self._file, size)
        os.lseek(self._file, size, os.SEEK_SET)
        self._moves, self._sum = len(moves), zlib.crc32(content.line)
        if moves:  # the chain goes on from the checksum of the last entry
            (self._sum,) = CHECKSUM.unpack(os.pread(self._file, CHECKSUM.size, size - CHECKSUM.size))

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
            raise BadInput("a seed log holds plain zeroth-order steps: leave control variates or known directions out")
        if gradient.distribution != self._distributions[group]:
            logged, other = self._distributions[group].name, gradient.distribution.name
            raise BadInput(f"{self.path} is for {logged} directions, these are other ones ({other}): name a new file")
        entries, checksum = b"", self._sum
        for seed, c in gradient.terms:
            body = BODY.pack(step, group, len(gradient.terms), seed[3], c, lr, weight_decay)
            checksum = zlib.crc32(body, checksum)
            entries += body + CHECKSUM.pack(checksum)
        end = os.lseek(self._file, 0, os.SEEK_CUR)
        with _writing(self.path, "make room, and go on from here"):
            try:
                _write(self._file, entries)
            except OSError:  # no part of a step stays
                os.ftruncate(self._file, end)
                os.lseek(self._file, end, os.SEEK_SET)
                raise
        self._moves, self._sum = self._moves + 1, checksum

    def force(self) -> None:
        """Let the operating system bring the log to disk now, so that it is there if the machine dies.

        Raises:
            BadInput: it cannot.
        """
        with _writing(self.path, "make room, and go on from here"):
            os.fsync(self._file)
            if not self._in_folder:
                folder = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)  # the file's name
                finally:
                    os.close(folder)
                self._in_folder = True

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

    16-bit blocks are moved in fp32 copies and rounded once at the end, as `HybridSGD` does with masters: no rounding of
    the weights enters these.

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
    _check_head(path, content.head, _head(content.head["seed"], blocks, distributions))
    moved = {k: widened(block, (masters or {}).get(k)) for k, block in blocks.items()}
    steps = 0
    for move in content.until(until, path):
        gradient = Directional(distributions[move.group], move.terms, stream=content.head["stream"])
        descend(moved[move.group], gradient, move.lr, move.weight_decay)
        steps = move.step + 1
    for k, block in blocks.items():
        if moved[k] is not block:
            for p, wide in zip(block.params, moved[k].params, strict=True):
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
    """fp32 copies of a 16-bit block's parameters, written to `copies` if there are such; other blocks themselves."""
    if block.params[0].dtype.itemsize > 2:
        return block
    if copies is None:
        return Block(block.name, tuple(p.detach().float().contiguous() for p in block.params))
    for p, wide in zip(block.params, copies.params, strict=True):
        wide.copy_(p.detach())
    return copies


def _ends(path: Path, last: int, wanted: int) -> BadInput:
    stands = f"ends before step {last}" if last else "holds no step"
    return BadInput(
        f"{path} {stands}, the run goes on from step {wanted}: give the log that was written along with that "
        "checkpoint, or start again without both"
    )


def _head(seed: int, blocks: Mapping[int, Block], distributions: Mapping[int, Distribution]) -> dict[str, object]:
    """What the seeds of a run are bound to."""
    groups = {}
    for k, block in blocks.items():
        shapes, dtype = list(map(list, block.shapes)), str(block.params[0].dtype)
        groups[str(k)] = {"distribution": repr(distributions[k]), "shapes": shapes, "dtype": dtype}
    device = next(iter(blocks.values())).params[0].device
    return {"format": FORMAT, "seed": seed, "stream": stream_name(device), "groups": groups}


def _line(head: Mapping[str, object]) -> bytes:
    return json.dumps(head).encode() + b"\n"


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


@contextmanager
def _writing(path: Path, fix: str) -> Iterator[None]:
    """One line for what the operating system refuses."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; {fix}") from None


def _current(groups: Any) -> Any:
    """Groups of a head with the names of today: logs of before 0.2 have "law" and Sparse(share=0.1)."""
    text = json.dumps(groups).replace('"law": ', '"distribution": ').replace("Sparse(share=", "Sparse(density=")
    return json.loads(text)


def _check_head(path: Path, logged: Mapping[str, Any], own: Mapping[str, object]) -> None:
    if logged["stream"] != own["stream"]:
        raise BadInput(
            f"{path}: its seeds are of generator {logged['stream']}, this is {own['stream']}: replay it there"
        )
    for name, value in (("seed", logged["seed"]), ("groups", _current(logged["groups"]))):
        if value != own[name]:
            raise BadInput(
                f"{path} is of another run ({name} differ): name the log of this model, its distributions and its seed"
            )


def _is_part_of(head: Mapping[str, object], path: Path) -> bool:
    """Whether a file holds the beginning of this head and nothing more."""
    with path.open("rb") as file:
        first = file.readline().rstrip(b"\0")  # a machine that died leaves zeros where nothing was written yet
    line = _line(head)
    return line.startswith(first) and line != first


def _read(path: Path) -> _Content:
    """What a log holds, as far as it is whole."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; name a seed log") from None
    first, newline, entries = content.partition(b"\n")
    head = None
    if newline:
        try:
            head = json.loads(first)
        except (ValueError, RecursionError):
            pass  # refused below
    if not _is_head(head):
        raise BadInput(f"{path} is no seed log of smoothlab, or its first line is broken: give a whole one")
    return _parsed(head, first + newline, entries)


def _is_head(head: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(head, dict) or head.get("format") not in (FORMAT, UNCHECKED):
        return False
    groups = head.get("groups")
    if not isinstance(groups, dict) or not groups or type(head.get("seed")) is not int or "stream" not in head:
        return False
    return all(k.isascii() and k.isdecimal() and len(k) < 6 for k in groups)


def _parsed(head: dict[str, Any], line: bytes, entries: bytes) -> _Content:
    """The moves in the bytes behind a head, up to the first that is damaged."""
    groups = [int(k) for k in head["groups"]]
    checked, checksum = head["format"] == FORMAT, zlib.crc32(line)
    size = ENTRY.size if checked else BODY.size
    moves: list[Move] = []
    terms: Terms = ()
    for offset in range(0, len(entries) - size + 1, size):
        body, end = entries[offset : offset + BODY.size], entries[offset + BODY.size : offset + size]
        checksum = zlib.crc32(body, checksum)
        step, group, count, j, c, lr, decay = BODY.unpack(body)
        due = (len(moves) // len(groups), groups[len(moves) % len(groups)])
        broken = checked and CHECKSUM.pack(checksum) != end
        if broken or (step, group) != due or len(terms) >= count:
            return _Content(head, line, moves, True)
        terms = (*terms, ((head["seed"], step, group, j), c))
        if len(terms) == count:
            moves.append(Move(step, group, terms, lr, decay))
            terms = ()
    return _Content(head, line, moves, False)
