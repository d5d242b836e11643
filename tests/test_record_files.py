"""Damaged record files: every damage is seen, and what is concerned is measured again, no more and no less."""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smoothlab import record_files, records
from smoothlab.errors import BadInput
from smoothlab.records import Row

KEYED = pytest.mark.parametrize("keyed", [pytest.param(False, marks=pytest.mark.check), True], ids=["places", "keys"])
HEADER = b'{"kind": "header", "experiment": '


@dataclass(frozen=True)
class Replay:
    """Measures rows that are known: `count` at every place, with a key where there is one; notes what it measures."""

    name: ClassVar[str] = "replay"
    unit: ClassVar[str] = "step"
    places: int = 5
    keyed: bool = False
    count: int = 4

    def table(self) -> list[Row]:
        rows = range(self.places * self.count)
        return [{"step": n // self.count, "key": n % self.count, "value": n / 7, "text": "\u00e9" * n} for n in rows]

    def place(self, row: Row) -> int:
        return int(row["step"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        return records.whole(rows, self.place, (lambda row: row["key"]) if self.keyed else None)

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        behind = {row["step"] for row in done}
        yield from (row for row in self.table() if row["step"] not in behind)


def written(experiment: Any, out: Path) -> list[bytes]:
    records.run(experiment, out, environment={"device": "cpu"})
    return out.read_bytes().splitlines(keepends=True)


def measured_again(experiment: Any, out: Path) -> set[int]:
    """Places that a run measures, which continues the file."""
    seen: list[int] = []

    class Watched(type(experiment)):  # type: ignore[misc]
        def rows(self, done: Sequence[Row]) -> Iterator[Row]:
            for row in super().rows(done):
                seen.append(self.place(row))
                yield row

    records.run(Watched(**vars_of(experiment)), out, environment={"device": "cpu"})
    return set(seen)


def vars_of(experiment: Any) -> dict[str, Any]:
    return {"places": experiment.places, "keyed": experiment.keyed, "count": experiment.count}


DAMAGE: dict[str, tuple[Callable[[list[bytes]], Any], str, set[int], set[int]]] = {
    # what is done to the 22 lines; what is said; places measured again where rows have no key, and where they have one
    "removed": (lambda x: x.pop(6), ":7: row 6 is missing before it", {1}, {1}),
    "several removed": (
        lambda x: x.__delitem__(slice(5, 14)), ":6: rows 5 to 13 are missing before it", {0, 1, 2, 3}, {1, 2, 3}
    ),
    "a place removed": (lambda x: x.__delitem__(slice(5, 9)), ":6: rows 5 to 8 are missing before it", {0, 1, 2}, {1}),
    "first removed": (lambda x: x.pop(1), ":2: row 1 is missing before it", {0}, {0}),
    "last removed": (lambda x: x.pop(20), ":21: row 20 is missing before it", {4}, {4}),
    "doubled": (lambda x: x.insert(6, x[6]), ":8: row 6 is there twice", set(), set()),
    "doubled far away": (lambda x: x.insert(18, x[2]), ":19: row 2 is there twice", set(), set()),
    "swapped": (lambda x: swap(x, 6, 14), ":8: row 7 is out of place, line 9: row 8 is", set(), set()),
    "neighbors swapped": (lambda x: swap(x, 8, 9), ":10: row 8 is out of place", set(), set()),
    "changed": (lambda x: change(x, 10, b'"value": ', b'"value": 1'), ":11: the line was changed", {2}, {2}),
    "changed into no JSON": (lambda x: change(x, 10, b"{", b"("), ":11: broken line", {2}, {2}),
    "a number changed": (lambda x: change(x, 10, b'"row": 10', b'"row": 3'), ":11: the line was changed", {2}, {2}),
    "no checksum": (
        lambda x: change(x, 10, x[10][x[10].rindex(b', "crc32"') :], b"}\n"), ":11: the line was changed", {2}, {2}
    ),
    "brackets": (lambda x: x.__setitem__(10, b"[" * 100_000 + b"\n"), ":11: broken line", {2}, {2}),
    "an empty line": (lambda x: x.insert(10, b"\n"), ":11: broken line", set(), set()),
    "end changed": (lambda x: change(x, 21, b'"rows": 20', b'"rows": 19'), ":22: the line was changed", {4}, set()),
    "end twice": (lambda x: x.append(x[-1]), ":22: the end line is not at the end", {4}, set()),
    "header changed": (lambda x: change(x, 0, b'"cpu"', b'"gpu"'), ":1: the header was changed", set(), set()),
    "header broken": (lambda x: x.__setitem__(0, b"garbage\n"), ":1: broken line", set(), set()),
}  # fmt: skip


def swap(lines: list[bytes], i: int, j: int) -> None:
    lines[i], lines[j] = lines[j], lines[i]


def change(lines: list[bytes], i: int, old: bytes, new: bytes) -> None:
    assert old in lines[i]
    lines[i] = lines[i].replace(old, new, 1)


@KEYED
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_and_measured_again(tmp_path: Path, capsys: Any, damage: str, keyed: bool) -> None:
    out, experiment = tmp_path / "r.jsonl", Replay(keyed=keyed)
    whole = written(experiment, out)
    lines = list(whole)
    do, said, *again = DAMAGE[damage]
    do(lines)
    out.write_bytes(b"".join(lines))
    with pytest.raises(BadInput) as refused:
        records.load(out)
    fix = "choose another file" if damage == "header broken" else "start its command again"
    assert "\n" not in str(refused.value) and fix in str(refused.value)
    capsys.readouterr()
    assert measured_again(experiment, out) == again[keyed]
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and said in told, told
    assert all(f"step {place}" in told for place in again[keyed] - ({1, 2} if "removed" in damage else set())), told
    assert out.read_bytes().splitlines(keepends=True)[1:-1] == whole[1:-1]
    assert records.header(out)["config"] == vars_of(experiment)
    table = records.load(out)
    assert list(table.columns) == ["path", "experiment", "step", "key", "value", "text"]  # and nothing of the file's
    assert list(table["value"]) == [row["value"] for row in experiment.table()]


def test_rows_of_another_run_are_not_taken(tmp_path: Path, capsys: Any) -> None:
    """A row with the right number and a right checksum, of a run with another config."""
    whole = written(Replay(), tmp_path / "r.jsonl")
    other = written(Replay(keyed=True), tmp_path / "other.jsonl")
    (tmp_path / "r.jsonl").write_bytes(b"".join([*whole[:10], other[10], *whole[11:]]))
    assert measured_again(Replay(), tmp_path / "r.jsonl") == {2}
    assert ":11: the line was changed" in capsys.readouterr().err
    assert whole[1:] != other[1:]
    assert whole[1:-1] == written(Replay(), tmp_path / "same.jsonl")[1:-1], "equal rows of equal runs are equal lines"


def test_an_end_that_counts_fewer_rows_than_there_are_repeats_none(tmp_path: Path) -> None:
    lines = written(Replay(), tmp_path / "r.jsonl")
    start = record_files.run_sum(json.loads(lines[0]))
    lines[-1] = record_files._line({"kind": "end", "rows": 7, "seconds": None}, start)
    contents = record_files.parse(tmp_path / "r.jsonl", b"".join(lines))
    assert contents.rows == Replay().table() and not contents.finished
    assert [entry.words for entry in contents.damage] == ["the end line is not at the end"]


def test_the_other_rows_of_a_damaged_file_can_be_had(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    lines = written(Replay(), out)
    change(lines, 10, b'"value": ', b'"value": 1')
    out.write_bytes(b"".join(lines))
    table = records.load(out, damaged="leave out")
    assert list(table["value"]) == [row["value"] for n, row in enumerate(Replay().table()) if n != 9]
    lines[0] = lines[0].replace(b"cpu", b"gpu")
    out.write_bytes(b"".join(lines))
    with pytest.raises(BadInput, match=":1: the header was changed"):
        records.load(out, damaged="leave out")


def test_a_reader_of_plain_json_can_check_a_file(tmp_path: Path) -> None:
    """As the module says, by other means than its own."""
    head, *rows, end = written(Replay(), tmp_path / "r.jsonl")
    told = json.loads(head)
    start = zlib.crc32(json.dumps([told["experiment"], told["config"]], sort_keys=True).encode())
    for n, line in enumerate(rows, start=1):
        record = json.loads(line)
        assert record["kind"] == "row" and record["row"] == n
        assert int(record["crc32"], 16) == zlib.crc32(line[: line.rindex(b', "crc32"')], start)
    assert json.loads(end)["rows"] == len(rows)


@pytest.mark.parametrize(
    "head",
    [
        b"[1, 2]", b"3", b'{"kind": "header"}', HEADER + b"[" * 100_000,
        HEADER + b'[], "config": {}, "environment": {}}',
        HEADER + b'"x", "config": 3, "environment": {}}', HEADER + b'"x", "config": {}, "environment": null}',
    ],
    ids=lambda head: head[:60].decode(),
)  # fmt: skip
def test_a_header_that_is_none_is_one_line(tmp_path: Path, head: bytes) -> None:
    (out := tmp_path / "r.jsonl").write_bytes(head + b'\n{"kind": "row", "step": 0}\n')
    before = out.read_bytes()
    for attempt in (
        lambda: records.load(out), lambda: records.header(out),
        lambda: records.run(Replay(), out, environment={}),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=r"r\.jsonl:1: ") as error:
            attempt()
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert out.read_bytes() == before


def old(lines: Sequence[bytes]) -> list[bytes]:
    """The lines as earlier versions wrote them."""
    plain = []
    for line in lines:
        record = {k: v for k, v in json.loads(line).items() if k not in ("row", "rows", "crc32")}
        plain.append(json.dumps(record).encode() + b"\n")
    return plain


@KEYED
@pytest.mark.parametrize("kept", [1, 6, 9, 11, 20, 21])
def test_old_files_are_read_and_continued(tmp_path: Path, capsys: Any, keyed: bool, kept: int) -> None:
    out, experiment = tmp_path / "r.jsonl", Replay(keyed=keyed)
    whole = written(experiment, out)
    out.write_bytes(b"".join(old(whole)))
    assert list(records.load(out)["value"]) == [row["value"] for row in experiment.table()]
    before = out.read_bytes()
    assert measured_again(experiment, out) == set() and out.read_bytes() == before, "it is finished"
    out.write_bytes(b"".join(old(whole)[:kept]))
    capsys.readouterr()
    first = (kept - 1) // 4 if keyed and kept > 5 else max((kept - 2) // 4, 0)
    assert measured_again(experiment, out) == set(range(first, 5))
    assert capsys.readouterr().err == "" and out.read_bytes().splitlines(keepends=True)[1:-1] == whole[1:-1]


def test_old_files_that_lost_rows_are_completed_by_their_keys(tmp_path: Path, capsys: Any) -> None:
    """By what a row is, not by how many there are."""
    out, experiment = tmp_path / "r.jsonl", Replay(keyed=True)
    whole = written(experiment, out)
    lines = old(whole)[:-1]
    out.write_bytes(b"".join([*lines[:6], *lines[7:12], lines[11], *lines[12:]]))  # row 6 lost, row 11 doubled
    assert measured_again(experiment, out) == {1, 2}
    assert "r.jsonl lacks rows; 12 rows stand, measured again: step 1, step 2" in capsys.readouterr().err
    assert out.read_bytes().splitlines(keepends=True)[1:-1] == whole[1:-1]


def test_a_kill_while_damage_is_mended_loses_nothing(tmp_path: Path) -> None:
    """After any number of rows measured again, the rows that stand are on disk, and the next run ends the same."""
    experiment = Replay(keyed=True)
    whole = written(experiment, tmp_path / "r.jsonl")
    damaged = b"".join([*whole[:2], *whole[3:14], *whole[15:]])

    class Stops(Replay):
        def rows(self, done: Sequence[Row]) -> Iterator[Row]:
            for n, row in enumerate(super().rows(done)):
                if n == after:
                    raise KeyboardInterrupt
                yield row

    for after in range(8):
        (out := tmp_path / f"{after}.jsonl").write_bytes(damaged)
        with pytest.raises(KeyboardInterrupt):
            records.run(Stops(keyed=True), out, environment={"device": "cpu"})
        if after:
            assert len(records.load(out)) == 12 + after
        assert measured_again(experiment, out) == ({0, 3} if after < 4 else {3})
        assert out.read_bytes().splitlines(keepends=True)[1:-1] == whole[1:-1]
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_rows_and_names_are_brought_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, sizes, sync = tmp_path / "r.jsonl", [], os.fsync

    def counted(file: int) -> None:
        sync(file)
        sizes.append("folder" if os.path.samestat(os.fstat(file), os.stat(tmp_path)) else os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", counted)
    lines = written(Replay(places=2), out)
    ends = [sum(map(len, lines[: n + 1])) for n in range(len(lines))]
    assert sizes == [ends[0], "folder", *ends[1:]]


@st.composite
def damages(draw: Any, lines: int) -> list[tuple[str, int, int, int]]:
    one = st.tuples(
        st.sampled_from(["flip", "drop", "double", "swap", "cut"]), st.integers(0, lines - 1),
        st.integers(0, lines - 1), st.integers(1, 255),
    )  # fmt: skip
    return draw(st.lists(one, min_size=1, max_size=3))


def damaged_by(lines: Sequence[bytes], damage: Sequence[tuple[str, int, int, int]]) -> bytes:
    lines = list(lines)
    for kind, i, j, bits in damage:
        i, j = i % len(lines), j % len(lines)
        if kind == "flip" and lines[i]:
            at = (j * 7919 + bits) % len(lines[i])
            lines[i] = lines[i][:at] + bytes([lines[i][at] ^ bits]) + lines[i][at + 1 :]
        elif kind == "drop" and len(lines) > 2:
            del lines[i]
        elif kind == "double":
            lines.insert(j, lines[i])
        elif kind == "swap":
            swap(lines, i, j)
        elif kind == "cut":
            lines[-1] = lines[-1][: bits % (len(lines[-1]) + 1)]
    return b"".join(lines)


def check_damage(experiment: Any, whole: Sequence[bytes], content: bytes, out: Path, capsys: Any) -> None:
    """No changed row is ever taken, and the run ends as if nothing had happened, with what was lost measured again."""
    table = [json.loads(line) for line in whole[1:-1]]
    original = [{k: v for k, v in row.items() if k not in record_files.RESERVED} for row in table]
    place = {json.dumps(row): experiment.place(row) for row in original}
    out.write_bytes(content)
    try:
        run = record_files.run_sum(json.loads(whole[0]))
        rows = [row for row in record_files.parse(out, content, run).rows if row is not None]
        left = [json.dumps(row) for row in rows]
    except BadInput:
        left = []
    assert left == [row for row in place if row in left], "a row that nobody measured, or rows in another order"
    try:
        loaded = len(records.load(out))
    except BadInput as error:
        assert "\n" not in str(error)
    else:
        assert left == list(place)[:loaded], "what is read without complaint is all there is up to a cut"
    capsys.readouterr()
    try:
        again = measured_again(experiment, out)
    except BadInput as error:
        assert ":1: " in str(error) or "holds" in str(error), "only a file without a sound header and row is refused"
        assert out.read_bytes() == content
        return
    lost = [n for n, row in enumerate(place) if row not in left]
    assert {place[row] for row in place if row not in left} <= again
    beside = {list(place.values())[m] for n in lost for m in (n - 1, n, n + 1) if 0 <= m < len(place)}
    assert again <= beside | {max(place.values())} or not left
    told = capsys.readouterr().err
    assert told == "" or told.count("\n") <= 2
    if any(n < len(left) for n in lost):
        assert f"{out.name}:" in told, "a loss in the middle is told"
    assert out.read_bytes().splitlines(keepends=True)[1:-1] == list(whole[1:-1])


@pytest.mark.parametrize("keyed", [False, True], ids=["places", "keys"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage(tmp_path: Path, capsys: Any, keyed: bool, data: st.DataObject) -> None:
    experiment, out = Replay(places=3, keyed=keyed, count=2), tmp_path / "r.jsonl"
    out.unlink(missing_ok=True)
    whole = written(experiment, out)
    check_damage(experiment, whole, damaged_by(whole, data.draw(damages(len(whole)))), out, capsys)


@pytest.mark.check
@pytest.mark.parametrize("keyed", [False, True], ids=["places", "keys"])
def test_every_byte_that_changes_is_seen(tmp_path: Path, capsys: Any, keyed: bool) -> None:
    """One bit of each byte in turn, by reading alone: the file is refused, or reads as one that was cut."""
    experiment, out = Replay(places=2, keyed=keyed, count=2), tmp_path / "r.jsonl"
    whole = b"".join(written(experiment, out))
    rows = [row for row in record_files.parse(out, whole).rows]
    seen = 0
    for at in range(len(whole)):
        for bit in (1, 2, 32, 128):
            content = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
            try:
                found = record_files.parse(out, content)
            except BadInput:
                seen += 1
                continue
            assert found.damage or (at == len(whole) - 1 and found.rows == rows and not found.finished), at
            seen += bool(found.damage)
    assert seen >= 4 * (len(whole) - 1)
