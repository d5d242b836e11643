"""The seed log: zeroth-order training as (seed, coefficient, learning rate) a step, a few bytes each.

    theta_T = theta_0 moved by theta <- (1 - lr lambda) theta - lr sum_j c_j z_j, once for each entry,

so that the log and theta_0 are a checkpoint: `replay` makes the same moves in the same order, and its weights equal
the trained ones to the bit. The file is one line of JSON that says what the seeds are bound to (generator, law,
number of parameters), then entries of fixed size; a last entry that is cut off is left out.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.streams import Directions, stream_name
from smoothlab.zeroth import Directional

if TYPE_CHECKING:
    from smoothlab.streams import Terms

FORMAT = "smoothlab seed log 1"
ENTRY = struct.Struct("<IHHHddd")
"""One direction of one step: step, group, number of the group's directions in it, number j of this one, coefficient,
learning rate, decay; 34 bytes. The direction's seed is (seed of the run, step, group, j)."""


@dataclass(frozen=True)
class Move:
    """One step of one group."""

    step: int
    group: int
    terms: "Terms"
    lr: float
    weight_decay: float


class SeedLog:
    """A seed log that is written along a run.

    Args:
        path: the file; one that exists is continued if its head is the same.
        seed: seed of the run, `HybridSGD.seed`.
        blocks: the zeroth-order blocks by number of their group.
        laws: laws of their directions, likewise.
        keep: entries of steps from this one on are cut off (a run that goes on from an earlier checkpoint).

    Attributes:
        steps: whole steps that it holds; a step is one move of every group.

    Raises:
        BadInput: the file cannot be written, is of another run, or ends before step `keep`.
    """

    def __init__(
        self,
        path: Path,
        seed: int,
        blocks: Mapping[int, Block],
        laws: Mapping[int, Directions],
        keep: int | None = None,
    ) -> None:
        self.path, self.seed, self.groups, self._laws = path, seed, tuple(blocks), dict(laws)
        head = _head(seed, blocks, laws)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size:
                there, moves, _ = _read(path)
                _same(path, there, head)
                self._file = os.open(path, os.O_WRONLY)
                self.cut(len(moves) // len(self.groups) if keep is None else keep)
            elif keep:
                raise _ends(path, 0, keep)
            else:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                _write(self._file, _line(head))
                self._moves = 0
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror}; choose another folder, or make room") from None

    @property
    def steps(self) -> int:
        """See `SeedLog`."""
        return self._moves // len(self.groups)

    def cut(self, step: int) -> None:
        """Stand before a step: what is there of it and of later ones is cut off.

        Raises:
            BadInput: the log ends before.
        """
        _, moves, start = _read(self.path)
        kept = step * len(self.groups)
        if kept > len(moves):
            raise _ends(self.path, len(moves) // len(self.groups), step)
        self._moves, size = kept, start + ENTRY.size * sum(len(move.terms) for move in moves[:kept])
        os.ftruncate(self._file, size)
        os.lseek(self._file, size, os.SEEK_SET)

    def append(self, step: int, group: int, gradient: Directional, lr: float, weight_decay: float) -> None:
        """Add what one step does to one group, through to the operating system.

        Raises:
            BadInput: the gradient is more than directions of this run's law and seeds (control variates); the log does
                not stand before this step of this group; no space, and then the log is as it was before.
        """
        due = (self.steps, self.groups[self._moves % len(self.groups)])
        if (step, group) != due:
            raise BadInput(
                f"{self.path} stands before step {due[0]} of group {due[1]}, not before step {step} of group {group}: "
                "load the checkpoint that belongs to it, or name a new file"
            )
        if gradient.anchor is not None or any(seed[:3] != (self.seed, step, group) for seed, _ in gradient.terms):
            raise BadInput("a seed log holds plain zeroth-order steps: leave control variates or given directions out")
        if gradient.law != self._laws[group]:
            there, here = self._laws[group].name, gradient.law.name
            raise BadInput(f"{self.path} is for {there} directions, these are other ones ({here}): name a new file")
        count = len(gradient.terms)
        entries = [ENTRY.pack(step, group, count, seed[3], c, lr, weight_decay) for seed, c in gradient.terms]
        stood = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            _write(self._file, b"".join(entries))
            self._moves += 1
        except OSError as error:
            os.ftruncate(self._file, stood)
            os.lseek(self._file, stood, os.SEEK_SET)
            raise BadInput(f"cannot write {self.path}: {error.strerror}; make room, and go on from here") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def replay(
    path: Path,
    blocks: Mapping[int, Block],
    laws: Mapping[int, Directions],
    until: int | None = None,
    masters: Mapping[int, Block] | None = None,
) -> int:
    """Move blocks at theta_0 to where the logged run left them, to the bit; the number of steps made.

    16-bit blocks are moved in fp32 copies and rounded once at the end, as `HybridSGD` does with masters: no rounding of
    the weights enters these.

    Args:
        path: the log.
        blocks: the blocks, by number of their group.
        laws: laws of their directions, likewise.
        until: make the steps before this one only.
        masters: fp32 copies of 16-bit blocks, to be moved in place of new ones; they then are the run's, to the bit.

    Raises:
        BadInput: no log, one of other blocks or laws, or seeds of another generator than this machine's; or it ends
            before step `until`.
    """
    there, moves, _ = _read(path)
    _same(path, there, _head(there["seed"], blocks, laws))
    moves = moves[: len(moves) // len(blocks) * len(blocks)]  # a step that was cut off between two groups is left out
    if until is not None and len(moves) < until * len(blocks):
        raise _ends(path, len(moves) // len(blocks), until)
    stands = {k: widened(block, (masters or {}).get(k)) for k, block in blocks.items()}
    steps = 0
    for move in moves:
        if until is not None and move.step >= until:
            break
        gradient = Directional(laws[move.group], move.terms, stream=there["stream"])
        descend(stands[move.group], gradient, move.lr, move.weight_decay)
        steps = move.step + 1
    for k, block in blocks.items():
        if stands[k] is not block:
            for p, wide in zip(block.params, stands[k].params, strict=True):
                p.data.copy_(wide)
    return steps


def descend(block: Block, gradient: Directional, lr: float, weight_decay: float = 0.0) -> None:
    """W <- (1 - lr lambda) w - lr ghat, in place: what a step does, and its replay."""
    if lr == 0:
        return  # adding 0 would turn -0.0 into 0.0
    with torch.no_grad():
        if weight_decay:
            for p in block.params:
                p.mul_(1 - lr * weight_decay)
        gradient.add_to(block, -lr)


def widened(block: Block, place: Block | None = None) -> Block:
    """Fp32 copies of a 16-bit block's parameters, in `place` where it is given; other blocks themselves."""
    if block.params[0].dtype.itemsize > 2:
        return block
    if place is None:
        return Block(block.name, tuple(p.detach().float().contiguous() for p in block.params))
    for p, wide in zip(block.params, place.params, strict=True):
        wide.copy_(p.detach())
    return place


def _ends(path: Path, there: int, wanted: int) -> BadInput:
    stands = f"ends before step {there}" if there else "holds no step"
    return BadInput(
        f"{path} {stands}, the run goes on from step {wanted}: give the log that was written along with that "
        "checkpoint, or start again without both"
    )


def _head(seed: int, blocks: Mapping[int, Block], laws: Mapping[int, Directions]) -> dict[str, object]:
    told = {
        str(k): {
            "law": repr(laws[k]),
            "shapes": [list(p.shape) for p in block.params],
            "dtype": str(block.params[0].dtype),
        }
        for k, block in blocks.items()
    }
    device = next(iter(blocks.values())).params[0].device
    return {"format": FORMAT, "seed": seed, "stream": stream_name(device), "groups": told}


def _line(head: Mapping[str, object]) -> bytes:
    return json.dumps(head).encode() + b"\n"


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _same(path: Path, there: Mapping[str, object], here: Mapping[str, object]) -> None:
    if there["stream"] != here["stream"]:
        raise BadInput(
            f"{path}: its seeds are of generator {there['stream']}, this is {here['stream']}: replay it there"
        )
    for what in ("seed", "groups"):
        if there[what] != here[what]:
            raise BadInput(
                f"{path} is of another run ({what} differ): name the log of this model, its laws and its seed"
            )


def _read(path: Path) -> tuple[dict[str, Any], list[Move], int]:
    """Head, whole moves, and where they start."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; name a seed log") from None
    first, newline, rest = content.partition(b"\n")
    try:
        head = json.loads(first) if newline else None
    except ValueError:
        head = None
    known = isinstance(head, dict) and head.get("format") == FORMAT and {"seed", "stream", "groups"} <= head.keys()
    if not isinstance(head, dict) or not known or not all(map(str.isdecimal, head["groups"])):
        raise BadInput(f"{path} is no seed log of smoothlab, or its first line is broken: give a whole one")
    moves = list(_moves(head["seed"], rest[: len(rest) // ENTRY.size * ENTRY.size]))
    groups = [int(k) for k in head["groups"]]
    for n, move in enumerate(moves):
        if (move.step, move.group) != (n // len(groups), groups[n % len(groups)]):
            raise BadInput(f"{path} is broken behind step {n // len(groups)}: give a whole one, or start again without")
    return head, moves, len(first) + 1


def _moves(seed: int, entries: bytes) -> Iterator[Move]:
    """Whole steps; one whose directions are not all there was cut off."""
    terms: list[tuple[tuple[int, ...], float]] = []
    for step, group, count, j, c, lr, decay in ENTRY.iter_unpack(entries):
        terms.append(((seed, step, group, j), c))
        if len(terms) == count:
            yield Move(step, group, tuple(terms), lr, decay)
            terms = []
