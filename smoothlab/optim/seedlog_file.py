"""Format of a seed log's file: the head that binds it to a run, and entries in a chain of checksums.

The file is one line of JSON that says what the seeds are bound to (generator, distribution, shapes of parameters) and
what the weights at step 0 were (a hash), then entries of fixed size; a last entry that is cut off is left out. The
portable generator makes the same bits everywhere, so that such a log replays on any machine; torch's is named with
device, torch version and instruction set, and another one is refused.

Each entry ends with a checksum, the CRC-32 of its bytes continued from the checksum of the entry before it, the first
from that of the line of JSON: what was changed, removed, doubled or swapped breaks the chain there. Logs of format 1,
written before there were checksums, can be replayed, not continued.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.shards import any_sharded
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.rng import Terms, stream_name
from smoothlab.zeroth.variant import Variant
from smoothlab.zeroth.variants import Plain

FORMAT, UNCHECKED = "smoothlab seed log 2", "smoothlab seed log 1"
BODY = struct.Struct("<IHHHddd")
"""One direction of one step: step, group, number of the group's directions in it, number j of this one, coefficient,
learning rate, decay; 34 bytes. The direction's seed is (seed of the run, step, group, j)."""
CHECKSUM = struct.Struct("<I")
ENTRY = struct.Struct(BODY.format + "I")
"""A body and its checksum; 38 bytes. Entries of format 1 are bodies alone."""

Head = dict[str, Any]
"""The line of JSON: format, seed of the run, stream (generator), base (`fingerprint` of the weights at step 0, which
older logs lack), and what is bound to each group by its number."""


@dataclass(frozen=True)
class Move:
    """One step of one group."""

    step: int
    group: int
    terms: Terms
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Contents:
    """Contents of a log.

    Attributes:
        path: the log.
        head: the line of JSON.
        line: the same as bytes.
        moves: moves that are whole and undamaged, up to the first that is not.
        damaged: whether more stands behind them than a move that was cut off.
    """

    path: Path
    head: Head
    line: bytes
    moves: list[Move]
    damaged: bool

    def until(self, step: int | None) -> list[Move]:
        """The moves before a step, or all of the whole steps; what is damaged behind them does not matter.

        Raises:
            BadInput: the log ends before, or is damaged before.
        """
        groups = len(self.head["groups"])
        steps = len(self.moves) // groups  # a step that was cut off between two groups is none
        if self.damaged and (step is None or step > steps):
            raise BadInput(f"{self.path} is broken behind step {steps}: give a whole one, or start again without")
        if step is None:
            step = steps
        if step > steps:
            raise too_short(self.path, steps, step)
        return self.moves[: step * groups]

    def check_base(self, head: Head) -> None:
        """Refuse to replay the log from other weights than those of its step 0.

        Raises:
            BadInput: `head` is of others.
        """
        if self.head.get("base") not in (None, head["base"]):
            raise BadInput(
                f"{self.path} starts from other weights than these: give the model that its run began with, in the "
                "same number format"
            )

    def check_run(self, head: Head) -> None:
        """Refuse to go on in the log, or to replay it, with seeds that are bound to something else.

        Raises:
            BadInput: the log is of another generator, seed, distribution, variant, or shape of parameters than `head`.
        """
        of_log, of_head = (_variants(groups) for groups in (self.head["groups"], head["groups"]))
        if of_log != of_head:
            raise BadInput(f"{self.path} is of steps of variant {of_log}, these are {of_head}: give the same variant")
        kinds_of_log = [group.get("generator", "torch") for group in self.head["groups"].values()]
        kinds_of_head = [group.get("generator", "torch") for group in head["groups"].values()]
        if kinds_of_log != kinds_of_head:
            raise BadInput(
                f"{self.path}: its directions are of generator {', '.join(kinds_of_log)}, these of "
                f"{', '.join(kinds_of_head)}: use distributions of the same"
            )
        if self.head["stream"] != head["stream"]:
            raise BadInput(
                f"{self.path}: its seeds are of generator {self.head['stream']}, this is {head['stream']}: replay it "
                "there"
            )
        # Logs of before 0.2 have "law" and Sparse(share=0.1).
        text = json.dumps(self.head["groups"])
        text = text.replace('"law": ', '"distribution": ').replace("Sparse(share=", "Sparse(density=")
        for name, value in (("seed", self.head["seed"]), ("groups", json.loads(text))):
            if value != head[name]:
                raise BadInput(
                    f"{self.path} is of another run ({name} differ): name the log of this model, its distributions and "
                    "its seed"
                )


def head_of(
    seed: int, blocks: Mapping[int, Block], distributions: Mapping[int, Distribution], variants: Mapping[int, Variant]
) -> Head:
    """Head of a log: all that the seeds of a run are bound to; groups without a variant are plain."""
    groups: dict[str, dict[str, Any]] = {}
    for k, block in blocks.items():
        shapes, dtype = list(map(list, block.shapes)), str(block.params[0].dtype)
        groups[str(k)] = {"distribution": repr(distributions[k]), "shapes": shapes, "dtype": dtype}
        if distributions[k].generator != "torch":
            groups[str(k)]["generator"] = distributions[k].generator
        if variants.get(k, Plain()) != Plain():
            groups[str(k)]["variant"] = variants[k].name
    device = next(iter(blocks.values())).params[0].device
    streams = {stream_name(device, distributions[k].generator) for k in blocks}
    streams.discard(stream_name(device, "portable"))  # which binds to nothing
    stream = streams.pop() if streams else stream_name(device, "portable")
    return {"format": FORMAT, "seed": seed, "stream": stream, "base": fingerprint(blocks.values()), "groups": groups}


def _variants(groups: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(str(group.get("variant", "plain")) for group in groups.values())


def fingerprint(blocks: Iterable[Block]) -> str:
    """SHA-256 of the present weights: shapes, number formats and bytes."""
    digest = hashlib.sha256()
    for block in blocks:
        if any_sharded(block.params):
            raise BadInput(
                f"block '{block.name}' is sharded (DTensor), and no process holds the weights that a seed log is bound "
                "to: make the log, or replay it, with the whole model, before fully_shard"
            )
        for p in block.params:
            digest.update(f"{tuple(p.shape)} {p.dtype} ".encode())
            digest.update(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def line_of(head: Head) -> bytes:
    """The first line of the file."""
    return json.dumps(head).encode() + b"\n"


def holds_part_of(line: bytes, path: Path) -> bool:
    """Whether a file holds the beginning of this first line and nothing more."""
    with path.open("rb") as file:
        first = file.readline().rstrip(b"\0")  # a machine that died leaves zeros where nothing was written yet
    return line.startswith(first) and line != first


def too_short(path: Path, last: int, step: int) -> BadInput:
    """The error for a log of `last` steps where a run goes on from step `step`."""
    stands = f"ends before step {last}" if last else "holds no step"
    return BadInput(
        f"{path} {stands}, the run goes on from step {step}: give the log that was written along with that "
        "checkpoint, or start again without both"
    )


def read(path: Path) -> Contents:
    """Contents of a log, as far as it is whole.

    Raises:
        BadInput: it cannot be read, or is no seed log.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; name a seed log") from None
    first, newline, entries = content.partition(b"\n")
    head = None
    if newline:
        with suppress(ValueError, RecursionError):
            head = json.loads(first)
    if not _is_head(head):
        raise BadInput(f"{path} is no seed log of smoothlab, or its first line is broken: give a whole one")
    moves, damaged = _moves(head, zlib.crc32(first + newline), entries)
    return Contents(path, head, first + newline, moves, damaged)


def packed(move: Move, checksum: int) -> tuple[bytes, int]:
    """The entries of a move behind an entry of this checksum, and the checksum of the last of them."""
    entries = b""
    for seed, c in move.terms:
        body = BODY.pack(move.step, move.group, len(move.terms), seed[3], c, move.lr, move.weight_decay)
        checksum = zlib.crc32(body, checksum)
        entries += body + CHECKSUM.pack(checksum)
    return entries, checksum


def _is_head(head: Any) -> TypeGuard[Head]:
    if not isinstance(head, dict) or head.get("format") not in (FORMAT, UNCHECKED):
        return False
    groups = head.get("groups")
    if not isinstance(groups, dict) or not groups or type(head.get("seed")) is not int or "stream" not in head:
        return False
    # Numbers of at most 5 digits: int() refuses thousands of digits with an error of its own.
    return all(k.isascii() and k.isdecimal() and len(k) < 6 for k in groups)


def _moves(head: Head, checksum: int, entries: bytes) -> tuple[list[Move], bool]:
    """The moves in the bytes behind a head, up to the first that is damaged, and whether there is such."""
    groups = list(map(int, head["groups"]))
    checked = head["format"] == FORMAT
    size = ENTRY.size if checked else BODY.size
    moves: list[Move] = []
    terms: Terms = ()
    for start in range(0, len(entries) - size + 1, size):
        body, end = entries[start : start + BODY.size], entries[start + BODY.size : start + size]
        checksum = zlib.crc32(body, checksum)
        if checked and CHECKSUM.pack(checksum) != end:
            return moves, True
        step, group, count, j, c, lr, decay = BODY.unpack(body)
        due = (len(moves) // len(groups), groups[len(moves) % len(groups)])
        # Without checksums the order of steps, groups and directions is all that shows a damage.
        if (step, group) != due or len(terms) >= count:
            return moves, True
        terms = (*terms, ((head["seed"], step, group, j), c))
        if len(terms) == count:
            moves.append(Move(step, group, terms, lr, decay))
            terms = ()
    return moves, False
