"""Experiment records: JSON Lines that a stopped run continues and that stay readable whatever happens.

A file is one header line `{"kind": "header", "experiment": ..., "config": ..., "environment": ...}`, then flat rows
`{"kind": "row", ...}`, each written as it is measured, then `{"kind": "end", "seconds": ...}`. The config is the whole
truth about what was measured: a file with the same config and no end line is continued, one with another config is
refused. NaN and infinity, which JSON cannot hold, are written as null. This module imports no machine learning
library; it is told the device and its like (`environment`).
"""

import dataclasses
import glob
import importlib.metadata
import json
import math
import os
import platform
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from smoothlab.errors import BadInput

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock there
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]
PACKAGES = ("smoothlab", "torch", "transformers", "peft", "numpy", "scipy", "tokenizers", "safetensors")
START = b'{"kind": "header"'  # how every record file begins


class Experiment(Protocol):
    """A frozen dataclass that is at once the config, the command line and the header of one run.

    It may have a class attribute `later`: fields that records of before lack, with what these were made at.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Yield the rows after `done`; code after a yield runs once that row is on disk."""

    def resume_at(self, done: Sequence[Row]) -> int:
        """How many of the rows on disk stand; the others are cut off and measured again."""


def run(experiment: Experiment, out: Path, *, environment: Row, overwrite: bool = False) -> Path:
    """Run `experiment` into the record file `out`, or continue it there, and return `out`.

    The file is created, and rows that do not stand are cut off, only when the first new row exists: a run that fails
    while it loads its model leaves everything as it was. The end line carries the wall-clock seconds of the run, null
    if it was continued from a stopped one.

    Raises:
        BadInput: `out` cannot be written (no space, no permission, another process writes it), holds something else
            than records, or holds the records of another config. Rows already in it stay readable.
    """
    config = _plain(dataclasses.asdict(experiment))
    head = {"kind": "header", "experiment": experiment.name, "config": config, "environment": _plain(environment)}
    with _opened(out) as file:
        old: list[tuple[Row, int]] = []
        if not overwrite and stat.S_ISREG(os.fstat(file).st_mode):
            old = _read(out, file)
        rows = [(_row(record), end) for record, end in old if record["kind"] == "row"]
        if rows or (old and old[-1][0]["kind"] == "end"):
            finished = old[-1][0]["kind"] == "end"
            elsewhere = () if finished else getattr(experiment, "elsewhere", ())
            _check_same(out, old[0][0], head, getattr(experiment, "later", {}), elsewhere)
            if finished:
                print(f"smoothlab: {out} is finished ({len(rows)} rows); --overwrite runs it again", file=sys.stderr)
                return out
            _tell_changes(out, old[0][0]["environment"], head["environment"])
        keep = experiment.resume_at([row for row, _ in rows]) if rows else 0
        if not 0 <= keep <= len(rows):
            raise ValueError(f"resume_at returned {keep} for {len(rows)} rows")
        stands = rows[keep - 1][1] if keep else 0  # bytes of the file that stay
        begun = time.monotonic()
        with closing(_closable(experiment.rows([row for row, _ in rows[:keep]]))) as fresh:
            row = next(fresh, None)
            _cut(out, file, stands)
            if not keep:
                _append(out, file, head)
            while row is not None:
                if "kind" in row:
                    raise ValueError("a row has no field named 'kind'; records adds it")
                _append(out, file, {"kind": "row", **_plain(row)})
                row = next(fresh, None)
        _append(out, file, {"kind": "end", "seconds": None if keep else round(time.monotonic() - begun, 3)})
    return out


class Writer:
    """A record file written from somebody else's loop, where no generator can be resumed: header, rows, end.

    Raises:
        BadInput: the file cannot be written, or holds something and `overwrite` is not set.
    """

    def __init__(self, out: Path, name: str, config: Row, environment: Row, *, overwrite: bool = False) -> None:
        self._out, self._stack, self._begun = out, ExitStack(), time.monotonic()
        self._file = self._stack.enter_context(_opened(out))
        if os.fstat(self._file).st_size and not overwrite:
            self._stack.close()
            raise BadInput(f"{out} exists; choose another file, or pass overwrite=True to replace it")
        _cut(out, self._file, 0)
        head = {"kind": "header", "experiment": name, "config": _plain(config), "environment": _plain(environment)}
        _append(out, self._file, head)

    def write(self, row: Row) -> None:
        """Append one row, through to the operating system."""
        _append(self._out, self._file, {"kind": "row", **_plain(row)})

    def end(self) -> None:
        """Append the end line and close the file."""
        _append(self._out, self._file, {"kind": "end", "seconds": round(time.monotonic() - self._begun, 3)})
        self._stack.close()


def environment(**told: Any) -> Row:
    """What a reader needs to judge or repeat the numbers: versions, machine, git commit, and what the caller tells.

    Args:
        told: what only the caller knows, e.g. device, threads, dtype.
    """
    packages: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            packages[package] = None
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "packages": packages,
        "git": _commit(),
        **told,
    }


def load(pattern: str | Path | Sequence[str | Path]) -> "pandas.DataFrame":
    """All rows of the record files that match, as one table.

    Args:
        pattern: a file, a glob pattern (`**` too), or several of them. Unfinished files count with the rows they have.

    Returns:
        One row a record, with the columns `path` and `experiment` before the record's own; a column with nothing but
        null is NaN. `df.attrs["headers"]` maps each path to its header.

    Raises:
        BadInput: nothing matches, a line is broken (named as file:line), or there is no row at all.
    """
    import pandas

    paths: list[str] = []
    for one in [pattern] if isinstance(pattern, str | Path) else pattern:
        found = [str(one)] if os.path.exists(one) else sorted(glob.glob(str(one), recursive=True))
        if not found:
            raise BadInput(f"no record file matches {str(one)!r}; check the path, or measure first with --out {one}")
        paths += [path for path in found if path not in paths]
    rows, headers = [], {}
    for path in paths:
        records = [record for record, _ in _read_path(Path(path))]
        headers[path] = {key: value for key, value in records[0].items() if key != "kind"}
        name = headers[path]["experiment"]
        rows += [{"path": path, "experiment": name, **_row(r)} for r in records if r["kind"] == "row"]
    if not rows:
        raise BadInput(f"{', '.join(paths)} holds no row yet; wait for the run, or start it again to continue it")
    table = pandas.DataFrame(rows)
    empty = [column for column in table.columns if table[column].isna().all()]
    table[empty] = table[empty].astype(float)
    table.attrs["headers"] = headers
    return table


def header(path: str | Path) -> Row:
    """The header of one record file: `experiment`, `config`, `environment`.

    Raises:
        BadInput: the file cannot be read or holds no records.
    """
    return {key: value for key, value in _read_path(Path(path))[0][0].items() if key != "kind"}


def _plain(value: Any) -> Any:
    """`value` as JSON holds it: paths as text, numpy and torch numbers as Python's, NaN and infinity as None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return _plain(value.tolist())
    raise TypeError(f"a record cannot hold a {type(value).__name__}")


def _row(record: Row) -> Row:
    """The row as the experiment yielded it."""
    return {key: value for key, value in record.items() if key != "kind"}


def _closable(rows: Iterator[Row]) -> Any:
    """`rows` as a generator, so that its finally blocks run at once when the run stops."""
    return rows if hasattr(rows, "close") else (row for row in rows)


@contextmanager
def _opened(out: Path) -> Iterator[int]:
    """A locked file descriptor of `out`, whose folders are made; a file that stays empty is removed again."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(out, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(out) and os.path.samestat(os.fstat(file), os.stat(out)):
                    break
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # another run removed its empty file between our open and our lock: open anew
    except BlockingIOError:
        raise BadInput(f"{out} is being written by another run; wait for it, or choose another --out") from None
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror}; choose another --out") from None
    try:
        yield file
    finally:
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            out.unlink(missing_ok=True)
        os.close(file)


def _cut(out: Path, file: int, size: int) -> None:
    """Cut the file to its first `size` bytes and go to its end."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return
    try:
        os.ftruncate(file, size)
        os.lseek(file, size, os.SEEK_SET)
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror}; choose another --out") from None


def _append(out: Path, file: int, record: Row) -> None:
    """Write one line through to the operating system."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    try:
        while line:
            line = line[os.write(file, line) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        fix = "make room and start again (without --overwrite): the run continues after the rows already there"
        raise BadInput(f"cannot write {out}: {error.strerror}; {fix}") from None


def _read_path(path: Path) -> list[tuple[Row, int]]:
    """`_read` of a file for reading only, which must hold a header."""
    try:
        with open(path, "rb") as file:
            records = _read(path, file.fileno())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    if not records:
        raise BadInput(f"{path} is empty; wait for the run, or start it again")
    return records


def _read(path: Path, file: int) -> list[tuple[Row, int]]:
    """The complete lines of a record file, each with the offset of its end; a half-written last line is left out."""
    with open(file, "rb", closefd=False) as stream:
        stream.seek(0)
        content = stream.read()
    if content[: len(START)] != START[: len(content)]:
        raise BadInput(f"{path}:1: not a record file of smoothlab; choose another file")
    records: list[tuple[Row, int]] = []
    end = 0
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        end += len(line) + 1
        try:
            record = json.loads(line, parse_constant=_refuse)
            wanted = {"header"} if number == 1 else {"row", "end"}
            if not isinstance(record, dict) or record.get("kind") not in wanted:
                raise ValueError
            if number == 1 and not {"experiment", "config", "environment"} <= record.keys():
                raise ValueError
        except ValueError:
            raise BadInput(f"{path}:{number}: broken line; delete it, or measure again with --overwrite") from None
        records.append((record, end))
    return records


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _check_same(out: Path, old: Row, new: Row, later: Mapping[str, Any], elsewhere: Sequence[str]) -> None:
    """Refuse to go on in a file that holds another run.

    Fields that came `later` stood at these values before; those of what is written `elsewhere` may differ.
    """
    fix = "choose another --out, or discard what is there with --overwrite"
    if old["experiment"] != new["experiment"]:
        raise BadInput(f"{out} holds the experiment {old['experiment']}, not {new['experiment']}; {fix}")
    configs = {**_plain(dict(later)), **old["config"]}, new["config"]
    difference = _first_difference(*({k: v for k, v in one.items() if k not in elsewhere} for one in configs))
    if difference is not None:
        name, there, here = difference
        raise BadInput(f"{out} holds a run with {name} = {there}, this one has {name} = {here}; {fix}")


def _tell_changes(out: Path, old: Row, new: Row) -> None:
    """Say on stderr if the machine or the versions changed: the rows may then differ in their last digits."""
    difference = _first_difference({**old, "date": None}, {**new, "date": None})
    if difference is not None:
        name, there, here = difference
        told = f"it began with {name} = {there}, now {name} = {here}"
        print(f"smoothlab: continuing {out} in another environment ({told})", file=sys.stderr)


def _first_difference(old: Row, new: Row) -> tuple[str, str, str] | None:
    """Name and both values (as JSON) of the first field that differs, in the order of `new`."""
    for name in [*new, *(name for name in old if name not in new)]:
        there, here = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(there, dict) and isinstance(here, dict):
            inner = _first_difference(there, here)
            if inner is not None:
                return f"{name}.{inner[0]}", inner[1], inner[2]
        elif there != here or (name in old) != (name in new):
            return name, json.dumps(there), json.dumps(here)
    return None


def _cpu() -> str | None:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _commit() -> str | None:
    """The git commit of the checkout that this package runs from, with "+changes" if files differ; else None."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        told = [
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, timeout=10, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0].strip() + ("+changes" if told[1].strip() else "")
