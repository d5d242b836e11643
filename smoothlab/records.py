"""Experiment records: JSON Lines that a stopped run continues and that stay readable whatever happens.

A file holds a header, flat rows, each written as it is measured, and an end line (`smoothlab.record_files`). The config
is the whole truth about what was measured: a file with the same config and no end line is continued, one with another
config is refused. Rows that were removed, doubled, moved or changed are seen by their numbers and checksums: they, and
those measured together with them, are measured again. NaN and infinity, which JSON cannot hold, are written as null.
This module imports no machine learning library; callers add the device and its like (`smoothlab.environment`).
"""

import dataclasses
import glob
import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from smoothlab import record_files
from smoothlab.environment import environment as environment  # scripts take it from here, beside run()
from smoothlab.errors import BadInput
from smoothlab.record_files import Contents, Damage

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]


class Experiment(Protocol):
    """A frozen dataclass that is at once the config, the command line and the header of one run.

    It may have a method `upgrade`, which brings the config of an older record file to the fields of today, and a method
    `continuation`, which says what the same command does after a stopped run, see `smoothlab.experiments.continuation`,
    and a method `check`, which refuses options that are wrong whatever was measured before.

    Attributes:
        name: its subcommand.
        unit: the field of a row that names its place.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Yield the rows that `done` lacks; code after a yield runs once that row is on disk."""

    def place(self, row: Row) -> int | None:
        """The place of a row: rows of one place are measured together, and places ascend; None if it lacks a field."""

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Those of the rows on disk that are kept, see `whole`; the others are measured again.

        None among the rows marks where one or several were lost, or may have been: at the end of a stopped run.
        """


def whole(
    rows: Sequence[Row | None], place: Callable[[Row], int | None], key: Callable[[Row], Any] | None = None
) -> list[Row]:
    """The rows of places that were measured completely and have lost nothing.

    Without `key` these are the places with no loss (None) beside their rows, as the lost row may have been theirs. With
    `key`, which tells the rows of a place apart and takes the same values at every place, they are the places that have
    each key once, those beside a loss too, if another place shows which keys a place has.
    """
    keys: defaultdict[int | None, list[Any]] = defaultdict(list)
    doubtful: set[int | None] = set()
    for n, row in enumerate(rows):
        if row is None:
            continue
        keys[place(row)].append(n if key is None else key(row))
        if None in rows[max(n - 1, 0) : n + 2]:
            doubtful.add(place(row))
    intact = set(keys) - doubtful
    if key is not None:
        complete = set().union(*keys.values())
        intact = {
            number for number, found_keys in keys.items() if len(found_keys) == len(set(found_keys)) == len(complete)
        }
        if intact <= doubtful:  # no place shows for certain what belongs to one
            intact = set()
    return [row for row in rows if row is not None and place(row) in intact]


def run(
    experiment: Experiment, out: Path, *, environment: Row, overwrite: bool = False,
    each: Callable[[Row], None] = lambda row: None,
) -> Path:  # fmt: skip
    """Run `experiment` into the record file `out`, or continue it there, and return `out`.

    `each` is called with every row of the file: first with those that are kept, then with each new one once it is on
    disk.

    The file is created, and rows that are not kept are taken out, only when the first new row exists: a run that fails
    while it loads its model leaves everything as it was. Damage is reported on stderr, and measured again. The end
    line carries the wall-clock seconds of the run, null if it was continued from a stopped one.

    Raises:
        BadInput: `out` cannot be written (no space, no permission, another process writes it), holds something else
            than records, or holds the records of another config. Rows already in it stay readable.
    """
    config = _plain(dataclasses.asdict(experiment))
    head = {"experiment": experiment.name, "config": config, "environment": _plain(environment)}
    with record_files.opened(out) as file:
        old = None if overwrite else file.read(record_files.run_sum(head))
        if old is not None and old.header is not None:
            finished = old.finished and not old.damage
            elsewhere = () if finished else getattr(experiment, "elsewhere", ())
            # Where results are saved may change while a run goes on; after its end nothing would be saved there.
            upgrade = getattr(experiment, "upgrade", dict)
            try:
                _check_same(out, {**old.header, "config": upgrade(old.header["config"])}, head, elsewhere)
            except BadInput:
                # An option that is wrong in itself would only be told in the next file.
                getattr(experiment, "check", lambda: None)()
                raise
            if finished:
                count = f"{len(old.rows)} rows"
                print(f"smoothlab: {out} is finished ({count}); --overwrite runs it again", file=sys.stderr)
                for done in old.rows:
                    if done is not None:
                        each(done)
                return out
            _report_changes(out, old.header["environment"], head["environment"])
        kept_rows = [] if old is None else _standing(out, experiment, old)
        started = time.monotonic()
        rows = list(kept_rows)
        with closing(_generator(experiment.rows(kept_rows))) as new_rows:
            row = next(new_rows, None)
            # Only now, with a new row at hand, is anything on disk changed.
            if old is None or not kept_rows:
                file.begin(head)
            elif old.numbered and not old.damage and old.rows[: len(kept_rows)] == kept_rows:
                head = old.header or head  # its environment is that of the rows that stand
                file.resume(head, len(kept_rows))
            else:
                head = old.header or head
                file.rewrite(head, kept_rows)
            for done in kept_rows:
                each(done)
            while row is not None:
                rows.append(_plain(row))
                file.append(rows[-1])
                each(rows[-1])
                row = next(new_rows, None)
        ordered = _ordered(experiment, rows)
        if ordered != rows:  # what was measured again comes to its place
            file.rewrite(head, ordered)
        file.finish(None if kept_rows else round(time.monotonic() - started, 3))
    return out


class Writer:
    """A record file written from somebody else's loop, where no generator can be resumed: header, rows, end.

    Raises:
        BadInput: the file cannot be written, or holds something and `overwrite` is not set.
    """

    def __init__(self, out: Path, name: str, config: Row, environment: Row, *, overwrite: bool = False) -> None:
        self._stack, self._begun = ExitStack(), time.monotonic()
        self._file = self._stack.enter_context(record_files.opened(out))
        if not self._file.empty and not overwrite:
            self._stack.close()
            raise BadInput(f"{out} exists; choose another file, or pass overwrite=True to replace it")
        self._file.begin({"experiment": name, "config": _plain(config), "environment": _plain(environment)})

    def write(self, row: Row) -> None:
        """Append one row, through to the disk."""
        self._file.append(_plain(row))

    def end(self) -> None:
        """Append the end line and close the file."""
        self._file.finish(round(time.monotonic() - self._begun, 3))
        self._stack.close()


class Headers(dict[str, Row]):
    """Headers by path. pandas copies a table's `attrs` deeply with every column that is taken; these stay the same."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Headers":
        return self


def load(
    pattern: str | Path | Sequence[str | Path], *, damaged: Literal["refuse", "leave out"] = "refuse"
) -> "pandas.DataFrame":
    """All rows of the record files that match, as one table.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from smoothlab import load
    >>> from smoothlab.records import Writer
    >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
    >>> writer = Writer(path, "mine", {}, {})
    >>> writer.write({"value": 2.0})
    >>> writer.end()
    >>> load(path)["value"].tolist()
    [2.0]

    Args:
        pattern: a file, a glob pattern (`**` too), or several of them. Unfinished files count with the rows they have.
        damaged: what is done with a file that lost rows or whose lines were changed; "leave out" takes its other rows.

    Returns:
        One row a record, with the columns `path` and `experiment` before the record's own; a column with nothing but
        null is NaN. `df.attrs["headers"]` maps each path to its header.

    Raises:
        BadInput: nothing matches, a file is damaged (at file:line), or there is no row at all.
    """
    import pandas

    patterns = [pattern] if isinstance(pattern, str | Path) else pattern
    paths: dict[str, None] = {}  # in order, and a file that two patterns match once
    for name in patterns:
        matches = [str(name)]
        if not os.path.exists(name):  # a file named run[1].jsonl comes before its reading as a pattern
            matches = sorted(glob.glob(str(name), recursive=True))
        if not matches:
            raise BadInput(f"no record file matches {str(name)!r}; check the path, or measure first with --out {name}")
        paths |= dict.fromkeys(matches)
    rows, headers = [], Headers()
    for path in paths:
        contents = record_files.read(Path(path))
        if contents.header is None or (contents.damage and damaged == "refuse"):
            raise _unreadable(Path(path), contents.damage)
        headers[path] = contents.header
        for row in contents.rows:
            if row is not None:
                rows.append({"path": path, "experiment": contents.header["experiment"], **_renamed(row)})
    if not rows:
        raise BadInput(f"{', '.join(paths)} holds no row yet; wait for the run, or start it again to continue it")
    table = pandas.DataFrame(rows)
    # NaN was written as null: a column of nothing else would be of objects, on which arithmetic fails.
    empty = [column for column in table.columns if table[column].isna().all()]
    table[empty] = table[empty].astype(float)
    table.attrs["headers"] = headers
    return table


def header(path: str | Path) -> Row:
    """The header of one record file: `experiment`, `config`, `environment`.

    Raises:
        BadInput: the file cannot be read or holds no records.
    """
    contents = record_files.read(Path(path))
    if contents.header is None:
        raise _unreadable(Path(path), contents.damage)
    return contents.header


def _renamed(row: Row) -> Row:
    """A row with the names of today.

    Files of before 0.2 say "law" for a distribution, "careful" for "estimated", "buys" for "speedup_of_two_rates".
    """
    if "law" in row:
        row = {"distribution" if name == "law" else name: value for name, value in row.items()}
    if row.get("protocol") == "careful":
        row = row | {"protocol": "estimated"}
    if row.get("part") == "buys":
        part = "speedup_of_two_rates"
        row = row | {"part": part, "setting": part + row["setting"].removeprefix("buys")}
    return row


def _plain(value: Any) -> Any:
    """`value` as JSON holds it: paths as text, numpy and torch numbers as Python's, NaN and infinity as None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):  # numpy's float64 is one too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return _plain(value.tolist())
    raise TypeError(f"a record cannot hold a {type(value).__name__}")


def _generator(rows: Iterable[Row]) -> Generator[Row]:
    """A generator can be closed: an experiment's finally blocks then run at once when the run stops."""
    yield from rows


def _standing(out: Path, experiment: Experiment, old: Contents) -> list[Row]:
    """The rows of a stopped or damaged file that are kept, in order; the others are reported on stderr."""
    rows: list[Row | None] = []
    for row in old.rows:
        if row is not None and _place(experiment, row) is None:
            row = None  # not what the experiment writes
        rows.append(row)
    if not old.finished:
        rows.append(None)
    rows_read = [row for row in old.rows if row is not None]
    if old.header is None and not (rows_read and old.numbered):
        raise _unreadable(out, old.damage)
    fault = f"{out} lacks rows"
    if old.damage:
        fault = _listed(out, old.damage)
    kept_rows: list[Row] = []
    if rows_read:
        try:
            kept_rows = experiment.standing(rows)
        except BadInput as error:
            if old.damage:
                raise BadInput(f"{fault}; {error}") from None
            raise
    if old.damage or old.rows[: len(kept_rows)] != kept_rows:
        kept_ids = set(map(id, kept_rows))  # by identity: a row that is there twice may stand once
        names = [f"{experiment.unit} {row.get(experiment.unit)}" for row in rows_read if id(row) not in kept_ids]
        again = ", ".join(dict.fromkeys(names)) or "only what is not there"
        print(f"smoothlab: {fault}; {len(kept_rows)} rows stand, measured again: {again}", file=sys.stderr)
    return _ordered(experiment, kept_rows)


def _place(experiment: Experiment, row: Row) -> int | None:
    """The place of a row; None for a row that the experiment does not write."""
    try:
        return experiment.place(row)
    except (KeyError, TypeError, ValueError):
        return None


def _ordered(experiment: Experiment, rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: experiment.place(row) or 0)  # sorted() keeps the order within a place


def _listed(path: Path, damage: Sequence[Damage]) -> str:
    """List of a file's damage, as file:line with words."""
    words = [damage[0].words]
    words += [f"line {entry.line}: {entry.words}" for entry in damage[1:3]]
    if len(damage) > 3:
        words.append(f"and {len(damage) - 3} more")
    return f"{path}:{damage[0].line}: {', '.join(words)}"


def _unreadable(path: Path, damage: Sequence[Damage]) -> BadInput:
    fix = "start its command again, which measures again what is concerned, or put the file back"
    if damage[0].line > 1:
        fix += ", or take the other rows with smoothlab.load(..., damaged='leave out')"
    return BadInput(f"{_listed(path, damage)}; {fix}")


def _check_same(out: Path, old: Row, new: Row, elsewhere: Sequence[str]) -> None:
    """Refuse to continue in a file that holds another run; fields of what is written `elsewhere` may differ."""
    fix = "choose another --out, or discard what is there with --overwrite"
    if old["experiment"] != new["experiment"]:
        raise BadInput(f"{out} holds the experiment {old['experiment']}, not {new['experiment']}; {fix}")
    configs = _plain(old["config"]), dict(new["config"])
    # A name of a model may mean another file than before, whose weights are others.
    for config, head in zip(configs, (old, new), strict=True):
        if "model_file" in head["environment"]:
            config["model_file"] = head["environment"]["model_file"]
    difference = _first_difference(*configs, elsewhere)
    if difference is not None:
        name, old_value, new_value = difference
        raise BadInput(f"{out} holds a run with {name} = {old_value}, this one has {name} = {new_value}; {fix}")


def _report_changes(out: Path, old: Row, new: Row) -> None:
    """Say on stderr if the machine or the versions changed: the rows may then differ in their last digits."""
    difference = _first_difference(old, new, ignored=("date",))
    if difference is not None:
        name, old_value, new_value = difference
        change = f"it began with {name} = {old_value}, now {name} = {new_value}"
        print(f"smoothlab: continuing {out} in another environment ({change})", file=sys.stderr)


def _first_difference(old: Row, new: Row, ignored: Sequence[str] = ()) -> tuple[str, str, str] | None:
    """Name and both values (as JSON) of the first field that differs, in the order of `new`."""
    for name in new | old:
        old_value, new_value = old.get(name, "absent"), new.get(name, "absent")
        if name in ignored:
            continue
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            inner = _first_difference(old_value, new_value)
            if inner is not None:
                return f"{name}.{inner[0]}", inner[1], inner[2]
        elif old_value != new_value or (name in old) != (name in new):
            return name, json.dumps(old_value), json.dumps(new_value)
    return None
