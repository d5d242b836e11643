"""Record files on disk: JSON Lines with a number and a checksum in every line.

The first line is the header, `{"kind": "header", "experiment": ..., "config": ..., "environment": ..., "crc32": ...}`.
Rows follow, `{"kind": "row", "row": 1, ..., "crc32": "9a3f01bc"}`, numbered from 1, and last
`{"kind": "end", "rows": 12, "seconds": ..., "crc32": ...}`. A checksum is the CRC-32 of its line up to the comma before
"crc32"; for rows and the end it starts from the CRC-32 of experiment and config, so that a row of another run does not
pass, while equal rows of equal runs are equal lines. Files without numbers and checksums, of earlier versions, are read
as they are.
"""

import errno
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smoothlab.errors import BadInput

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock there
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]
START = b'{"kind": "header"'
"""How every record file begins."""
RESERVED = ("kind", "row", "crc32")
"""Fields of a line that are not the experiment's."""
_CHECKSUM = b', "crc32": "'


@dataclass(frozen=True)
class Damage:
    """What is wrong at a line of a file, in words that follow its name and line number."""

    line: int
    words: str


@dataclass(frozen=True)
class Contents:
    """What a record file holds.

    Attributes:
        header: experiment, config and environment; None where the header is damaged.
        rows: the rows that are whole and in their place, without the fields of the file; None stands for one or
            several that are lost between two of them, or at the end.
        ends: for each of `rows`, where its line ends [bytes].
        finished: whether the end line is there and whole.
        damage: all that is wrong, by line.
        numbered: whether its lines carry numbers and checksums.
    """

    header: Row | None
    rows: list[Row | None]
    ends: list[int]
    finished: bool
    damage: list[Damage]
    numbered: bool


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
        """What is in it, None if that is nothing; `run` is the checksum of the run whose rows may be there."""
        return None if self.empty else parse(self.path, _whole(self._file), run)

    def begin(self, header: Row) -> None:
        """Replace what is there by a header."""
        self._run, self._count = run_sum(header), 0
        self._cut(0)
        self._write(_line({"kind": "header", **header}))
        if self.regular:
            _sync_folder(self.path)

    def resume(self, header: Row, rows: int, end: int) -> None:
        """Stand behind the first `rows` rows, which end at byte `end`; what follows is cut off."""
        self._run, self._count = run_sum(header), rows
        self._cut(end)

    def rewrite(self, header: Row, rows: Sequence[Row]) -> None:
        """Put a header and rows in the place of all that is there, by a new file that takes the name when it is whole.

        Raises:
            BadInput: it cannot be written; the file is as it was.
        """
        self._run, self._count = run_sum(header), len(rows)
        lines = [_line({"kind": "header", **header})]
        lines += [_line({"kind": "row", "row": n, **row}, self._run) for n, row in enumerate(rows, start=1)]
        place = os.path.realpath(self.path)
        try:
            new, name = tempfile.mkstemp(prefix=".smoothlab-", dir=os.path.dirname(place))
            try:
                if fcntl is not None:
                    fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fchmod(new, stat.S_IMODE(os.fstat(self._file).st_mode))
                _write_all(new, b"".join(lines))
                _sync(new)
                os.replace(name, place)
                os.dup2(new, self._file, inheritable=False)  # the old file is closed, and its lock with it
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(name)
                raise
            finally:
                os.close(new)
            _sync_folder(self.path)
        except OSError as error:
            raise self._unwritten(error) from None

    def append(self, row: Row) -> None:
        """Add a row, through to the disk."""
        if taken := [name for name in RESERVED if name in row]:
            raise ValueError(f"a row has no field named '{taken[0]}'; the file adds it")
        self._count += 1
        self._write(_line({"kind": "row", "row": self._count, **row}, self._run))

    def finish(self, seconds: float | None) -> None:
        """Add the end line."""
        self._write(_line({"kind": "end", "rows": self._count, "seconds": seconds}, self._run))

    def _cut(self, size: int) -> None:
        if not self.regular:
            return
        try:
            os.ftruncate(self._file, size)
            os.lseek(self._file, size, os.SEEK_SET)
        except OSError as error:
            raise self._unwritten(error) from None

    def _write(self, line: bytes) -> None:
        try:
            _write_all(self._file, line)
            _sync(self._file)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> BadInput:
        fix = "make room and start again (without --overwrite): the run continues after the rows already there"
        return BadInput(f"cannot write {self.path}: {error.strerror}; {fix}")


def locked_file(path: Path) -> int:
    """A locked descriptor of the file that lies at `path`, which is made where it is not there.

    The operating system holds the lock, so that a killed run leaves none.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # another run removed or replaced the file between our open and our lock: open anew


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
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            out.unlink(missing_ok=True)
        os.close(file)


def read(path: Path) -> Contents:
    """What a record file holds, for reading only.

    Raises:
        BadInput: it cannot be read, is empty, or is no record file.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; check the path") from None
    if not content:
        raise BadInput(f"{path} is empty; wait for the run, or start it again")
    return parse(path, content)


def run_sum(header: Row) -> int:
    """The CRC-32 of experiment and config, from which the checksums of the run's rows start."""
    return zlib.crc32(json.dumps([header["experiment"], header["config"]], sort_keys=True).encode())


def parse(path: Path, content: bytes, run: int | None = None) -> Contents:
    """What the bytes of a record file hold; a half-written last line is left out.

    Args:
        path: its name, for errors.
        content: all of it.
        run: the checksum of the run whose rows these should be: they are then known by it where the header is damaged.

    Raises:
        BadInput: it is no record file.
    """
    lines = [line.removesuffix(b"\r") for line in content.split(b"\n")[:-1]]
    first = lines[0] if lines else b""
    header, damage = _header(first)
    if not lines:
        damage = []
    known = run
    if header is not None:
        known = run_sum(header)
    numbered = _CHECKSUM in first or any(_CHECKSUM in line[-30:] for line in lines[1:])
    if content[: len(START)] != START[: len(content)] and not (
        run is not None and any(_checked(line, run) is not None for line in lines[1:])
    ):
        raise BadInput(f"{path}:1: not a record file of smoothlab; choose another file")
    if numbered and header is not None and "crc32" not in header:
        header, known, damage = None, run, [Damage(1, "the header was changed")]
    entries: list[tuple[int, int, Row | None]] = []  # line, end of the line, record
    end = content.find(b"\n") + 1
    starts = [end]
    for line in content[end:].split(b"\n")[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    for number, line in enumerate(lines[1:], start=2):
        record = None
        if not numbered:
            record = _parsed(line)
        elif known is not None:
            record = _checked(line, known)
        if record is None or not _is_record(record, numbered):
            record, words = None, "broken line"
            if _parsed(line):
                words = "the line was changed"
            damage.append(Damage(number, words))
        entries.append((number, starts[number - 1], record))
    contents = _in_order(header, entries, damage, numbered)
    if contents.finished and starts[-1] < len(content):
        contents.damage.append(Damage(len(lines) + 1, "the end line is not at the end"))
        contents = replace(contents, finished=False)
    return contents


def _in_order(
    header: Row | None, entries: Sequence[tuple[int, int, Row | None]], damage: list[Damage], numbered: bool
) -> Contents:
    """Rows by their numbers, which their checksums vouch for wherever they stand; gaps between them are losses."""
    by_number: dict[int, tuple[int, int, Row]] = {}
    end_lines: list[tuple[int, Row]] = []
    unreadable = highest = 0
    for line, stop, record in entries:
        if record is None:
            unreadable += 1
            continue
        if record["kind"] == "end":
            end_lines.append((line, record))
            continue
        number = line - 1
        if numbered:
            number = record["row"]
        if number in by_number:
            damage.append(Damage(line, f"row {number} is there twice"))
            continue
        if number < highest:
            damage.append(Damage(line, f"row {number} is out of place"))
        highest = max(highest, number)
        by_number[number] = (line, stop, record)
    total = highest
    finished = False
    if end_lines:
        line, record = end_lines[-1]
        if numbered:
            total = record["rows"]
        finished = len(end_lines) == 1 and line == entries[-1][0] and total == highest
        if total <= highest and not finished:
            damage.append(Damage(end_lines[0][0], "the end line is not at the end"))
    rows: list[Row | None] = []
    stops: list[int] = []
    reserved: tuple[str, ...] = ("kind",)
    if numbered:
        reserved = RESERVED
    # Lines that cannot be read are reported as such, and are the missing rows where there are as many.
    reported = max(total, highest) - len(by_number) > unreadable
    previous = 0
    for number in [*sorted(by_number), max(total, highest) + 1]:
        if number > previous + 1:
            rows.append(None)
            stops.append(stops[-1] if stops else 0)
            if reported:
                following = by_number.get(number, (entries[-1][0],))[0]
                damage.append(Damage(following, f"{_numbered(previous + 1, number - 1)} before it"))
        if number in by_number:
            _, stop, record = by_number[number]
            rows.append({name: value for name, value in record.items() if name not in reserved})
            stops.append(stop)
        previous = max(previous, number)
    if header is not None:
        header = {name: value for name, value in header.items() if name not in RESERVED}
    return Contents(header, rows, stops, finished, sorted(damage, key=lambda entry: entry.line), numbered)


def _numbered(first: int, last: int) -> str:
    if first == last:
        return f"row {first} is missing"
    return f"rows {first} to {last} are missing"


def _header(line: bytes) -> tuple[Row | None, list[Damage]]:
    """The header, if it is one and whole."""
    header = _checked(line, 0) if _CHECKSUM in line else _parsed(line)
    kinds = {"experiment": str, "config": dict, "environment": dict}
    if header is None or header.get("kind") != "header":
        return None, [Damage(1, "broken line" if _CHECKSUM not in line else "the header was changed")]
    if not all(isinstance(header.get(name), kind) for name, kind in kinds.items()):
        return None, [Damage(1, "broken line")]
    return header, []


def _is_record(record: Row, numbered: bool) -> bool:
    if record.get("kind") == "end":
        return not numbered or isinstance(record.get("rows"), int)
    return record.get("kind") == "row" and (not numbered or isinstance(record.get("row"), int))


def _parsed(line: bytes) -> Row | None:
    """The object in a line, None if there is none."""
    try:
        record = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _checked(line: bytes, start: int) -> Row | None:
    """The object in a line whose checksum is right, from that of the run on."""
    text, mark, tail = line.rpartition(_CHECKSUM)
    if not mark or tail != b'%08x"}' % zlib.crc32(text, start):
        return None
    return _parsed(line)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _line(record: Row, start: int = 0) -> bytes:
    text = json.dumps(record, allow_nan=False)[:-1].encode()
    return text + _CHECKSUM + b'%08x"}\n' % zlib.crc32(text, start)


def _whole(file: int) -> bytes:
    with open(file, "rb", closefd=False) as stream:
        stream.seek(0)
        return stream.read()


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _sync(file: int) -> None:
    """Bring what was written to disk; pipes, devices and some file systems know no such thing."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise


def _sync_folder(path: Path) -> None:
    """Bring a new name to disk; where the system cannot, the file is there all the same."""
    with suppress(OSError):
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
