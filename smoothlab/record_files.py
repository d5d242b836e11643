"""Record files on disk: JSON Lines with a number and a checksum in every line.

The first line is the header, `{"kind": "header", "experiment": ..., "config": ..., "environment": ..., "crc32": ...}`.
Rows follow, `{"kind": "row", "row": 1, ..., "crc32": "9a3f01bc"}`, numbered from 1, and last
`{"kind": "end", "rows": 12, "seconds": ..., "crc32": ...}`. A checksum is the CRC-32 of its line up to the comma before
"crc32"; for rows and the end it starts from the CRC-32 of experiment and config, so that a row of another run does not
pass, while equal rows of equal runs are equal lines. Files without numbers and checksums, of earlier versions, are read
as they are.
"""

import json
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from smoothlab.disk import lock, locked_file, sync, sync_folder, write_all, writing
from smoothlab.errors import BadInput

Row = dict[str, Any]
START = b'{"kind": "header"'
"""How every record file begins."""
RESERVED = ("kind", "row", "crc32")
"""Fields of a line that are not the experiment's."""
_CHECKSUM = b', "crc32": "'


@dataclass(frozen=True)
class Damage:
    """Fault at a line of a file, in words that follow its name and line number."""

    line: int
    words: str


@dataclass(frozen=True)
class Contents:
    """Contents of a record file.

    Attributes:
        header: experiment, config and environment; None where the header is damaged.
        rows: the rows that are whole and in their place, without the fields of the file; None stands for one or
            several that are lost between two of them, or at the end.
        finished: whether the end line is there and whole.
        damage: all that is wrong, by line.
        numbered: whether its lines carry numbers and checksums.
    """

    header: Row | None
    rows: list[Row | None]
    finished: bool
    damage: list[Damage]
    numbered: bool


class _Entry(NamedTuple):
    """A row or an end line: the line's number, its kind, the number of the row (at the end: of rows), its fields."""

    position: int
    kind: str
    number: int
    fields: Row


class RecordFile:
    """An open and locked record file, to which lines are appended; see `opened`."""

    def __init__(self, path: Path, file: int) -> None:
        self.path, self._file, self._run, self._count = path, file, 0, 0
        self.regular = stat.S_ISREG(os.fstat(file).st_mode)

    @property
    def empty(self) -> bool:
        """Whether nothing is in it; True for pipes and devices."""
        return not self.regular or os.fstat(self._file).st_size == 0

    def read(self, run: int) -> Contents | None:
        """Contents of the file; `run` is the checksum of the run whose rows may be there.

        None where a run was stopped before its first row, which leaves nothing to go on from.
        """
        if self.empty:
            return None
        contents = parse(self.path, self._bytes(), run)
        if not (contents.rows or contents.finished or contents.damage):
            return None
        return contents

    def begin(self, header: Row) -> None:
        """Replace what is there by a header."""
        self._run, self._count = run_sum(header), 0
        self._cut(0)
        self._write(_line({"kind": "header", **header}))
        if self.regular:
            sync_folder(self.path)

    def resume(self, header: Row, rows: int) -> None:
        """Stand behind the header and the first `rows` rows, which must be sound; what follows is cut off."""
        self._run, self._count = run_sum(header), rows
        lines = self._bytes().split(b"\n")[: 1 + rows]
        self._cut(len(b"\n".join(lines)) + 1)

    def rewrite(self, header: Row, rows: Sequence[Row]) -> None:
        """Put a header and rows in the place of all that is there, by a new file that takes the name when it is whole.

        Raises:
            BadInput: it cannot be written; the file is as it was.
        """
        self._run, self._count = run_sum(header), len(rows)
        lines = [_line({"kind": "header", **header})]
        for number, row in enumerate(rows, start=1):
            lines.append(_line({"kind": "row", "row": number, **row}, self._run))
        # A rename replaces a symbolic link, not the file that it leads to, and works within one file system only.
        target = os.path.realpath(self.path)
        with self._writing():
            new, name = tempfile.mkstemp(prefix=".smoothlab-", dir=os.path.dirname(target))
            try:
                lock(new)
                os.fchmod(new, stat.S_IMODE(os.fstat(self._file).st_mode))
                write_all(new, b"".join(lines))
                sync(new)  # before the rename: a machine that dies in between would leave an empty file
                os.replace(name, target)
                os.dup2(new, self._file, inheritable=False)  # the old file is closed, and its lock with it
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(name)
                raise
            finally:
                os.close(new)
            sync_folder(self.path)

    def append(self, row: Row) -> None:
        """Add a row, through to the disk."""
        for name in RESERVED:
            if name in row:
                raise ValueError(f"a row has no field named '{name}'; the file adds it")
        self._count += 1
        self._write(_line({"kind": "row", "row": self._count, **row}, self._run))

    def finish(self, seconds: float | None) -> None:
        """Add the end line."""
        self._write(_line({"kind": "end", "rows": self._count, "seconds": seconds}, self._run))

    def _bytes(self) -> bytes:
        with open(self._file, "rb", closefd=False) as stream:
            stream.seek(0)
            return stream.read()

    def _cut(self, size: int) -> None:
        if self.regular:
            with self._writing():
                os.ftruncate(self._file, size)
                os.lseek(self._file, size, os.SEEK_SET)

    def _write(self, line: bytes) -> None:
        with self._writing():
            write_all(self._file, line)
            sync(self._file)

    def _writing(self) -> AbstractContextManager[None]:
        fix = "the rows already there are whole: make room and start the same command again, without --overwrite"
        return writing(self.path, fix)


@contextmanager
def opened(out: Path) -> Iterator[RecordFile]:
    """The record file `out`, whose folders are made, locked; one that stays empty is removed again.

    Raises:
        BadInput: it cannot be opened for writing, or another run writes it.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = locked_file(out)
    except BlockingIOError:
        raise BadInput(f"{out} is being written by another run; wait for it, or choose another --out") from None
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror}; choose another --out") from None
    try:
        yield RecordFile(out, file)
    finally:
        # While the lock is held: another run that waits for the name would lose its new file.
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            out.unlink(missing_ok=True)
        os.close(file)


def read(path: Path) -> Contents:
    """Contents of a record file, for reading only.

    Raises:
        BadInput: it cannot be read, is empty, or is no record file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; check the path") from None
    contents = parse(path, content)
    if contents.header is None and not contents.damage:
        raise BadInput(f"{path} is empty, or holds a part of its header; wait for the run, or start it again")
    return contents


def run_sum(header: Row) -> int:
    """The CRC-32 of experiment and config, from which the checksums of the run's rows start."""
    return zlib.crc32(json.dumps([header["experiment"], header["config"]], sort_keys=True).encode())


def parse(path: Path, content: bytes, run: int | None = None) -> Contents:
    """Contents of a record file from its bytes; a half-written last line is left out.

    Args:
        path: its name, for errors.
        content: all of it.
        run: the checksum of the run whose rows these should be: they are then known by it where the header is damaged.

    Raises:
        BadInput: it is no record file.
    """
    *lines, half = content.split(b"\n")
    if not lines and START.startswith(content[: len(START)]):
        return Contents(None, [], finished=False, damage=[], numbered=False)  # the run was stopped within the header
    lines = [line.removesuffix(b"\r") for line in lines]
    first, body = (lines or [b""])[0], lines[1:]
    numbered = _CHECKSUM in first or any(_CHECKSUM in line[-30:] for line in body)
    # A file whose header is gone is still ours if a row of it carries this run's checksum.
    if not content.startswith(START) and (run is None or not any(_checked(line, run) for line in body)):
        raise BadInput(f"{path}:1: not a record file of smoothlab; choose another file")
    damage = []
    header = _header(first, numbered)
    if header is not None:
        run = run_sum(header)
    elif _CHECKSUM in first or _header(first, numbered=False):
        damage.append(Damage(1, "the header was changed"))
    else:
        damage.append(Damage(1, "broken line"))
    entries = []
    for position, line in enumerate(body, start=2):
        entry = _entry(line, position, run, numbered)
        if entry is None:
            words = "broken line"
            if _parsed(line):
                words = "the line was changed"
            damage.append(Damage(position, words))
        entries.append(entry)
    contents = _in_order(header, entries, damage, numbered)
    if contents.finished and half:
        contents.damage.append(Damage(len(lines) + 1, "the end line is not at the end"))
        contents = replace(contents, finished=False)
    return contents


def _in_order(header: Row | None, entries: Sequence[_Entry | None], damage: list[Damage], numbered: bool) -> Contents:
    """Rows by their numbers, which their checksums vouch for wherever they stand; gaps between them are losses.

    `entries` are those of the lines behind the header, None where a line cannot be read.
    """
    ends = [entry for entry in entries if entry is not None and entry.kind == "end"]
    rows_by_number = _by_number([entry for entry in entries if entry is not None and entry.kind != "end"], damage)
    highest = max(rows_by_number, default=0)
    last, finished = highest, False
    if ends:
        if numbered:
            last = ends[-1].number
        finished = len(ends) == 1 and ends[0] is entries[-1] and last == highest
        if last <= highest and not finished:
            damage.append(Damage(ends[0].position, "the end line is not at the end"))
        last = max(last, highest)
    rows: list[Row | None] = []
    # Lines that cannot be read are reported as such, and are the missing rows where there are as many.
    reported = last - len(rows_by_number) > entries.count(None)
    previous = 0
    for number in [*sorted(rows_by_number), last + 1]:
        row = rows_by_number.get(number)
        if number > previous + 1:
            rows.append(None)
            if reported:
                gap = f"row {previous + 1} is"
                if number > previous + 2:
                    gap = f"rows {previous + 1} to {number - 1} are"
                following = len(entries) + 1 if row is None else row.position
                damage.append(Damage(following, f"{gap} missing before it"))
        if row is not None:
            rows.append(row.fields)
        previous = number
    return Contents(header, rows, finished, sorted(damage, key=lambda entry: entry.line), numbered)


def _by_number(entries: Sequence[_Entry], damage: list[Damage]) -> dict[int, _Entry]:
    """Rows by their numbers; those that are there twice or out of place are added to the damage."""
    rows: dict[int, _Entry] = {}
    highest = 0
    for entry in entries:
        if entry.number in rows:
            damage.append(Damage(entry.position, f"row {entry.number} is there twice"))
            continue
        if entry.number < highest:
            damage.append(Damage(entry.position, f"row {entry.number} is out of place"))
        highest = max(highest, entry.number)
        rows[entry.number] = entry
    return rows


def _header(line: bytes, numbered: bool) -> Row | None:
    """The header in a file's first line, if it is one and whole."""
    header = _checked(line, 0) if numbered else _parsed(line)
    if header is None or header.pop("kind", None) != "header":
        return None
    for name, kind in (("experiment", str), ("config", dict), ("environment", dict)):
        if not isinstance(header.get(name), kind):
            return None
    header.pop("crc32", None)
    return header


def _entry(line: bytes, position: int, run: int | None, numbered: bool) -> _Entry | None:
    """Content of a line behind the header; None if it is not whole, or of another run."""
    record = None
    if not numbered:
        record = _parsed(line)
    elif run is not None:
        record = _checked(line, run)
    if record is None:
        return None
    kind, number = record.pop("kind", None), position - 1
    if kind not in ("row", "end"):
        return None
    if numbered:  # fields of old rows may have these names
        number = record.pop("row" if kind == "row" else "rows", None)
        del record["crc32"]
    if not isinstance(number, int):
        return None
    return _Entry(position, kind, number, record)


def _parsed(line: bytes) -> Row | None:
    """The object in a line, None if there is none."""
    try:
        record = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # json accepts NaN and Infinity, which are no JSON


def _checked(line: bytes, start: int) -> Row | None:
    """The object in a line whose checksum is right, from that of the run on."""
    text, mark, tail = line.rpartition(_CHECKSUM)  # the last one: texts in a row may hold the word too
    if not mark or tail != b'%08x"}' % zlib.crc32(text, start):
        return None
    return _parsed(line)


def _line(record: Row, start: int = 0) -> bytes:
    text = json.dumps(record, allow_nan=False)[:-1].encode()
    return text + _CHECKSUM + b'%08x"}\n' % zlib.crc32(text, start)
