import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.record_files import RESERVED
from smoothlab.records import Row

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Walk:
    """A random walk whose state lives in memory: rows come in pairs, and a lone first half is measured again."""

    name: ClassVar[str] = "walk"
    unit: ClassVar[str] = "step"
    steps: int = 4
    seed: int = 0
    folder: Path | None = None

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        rng, position = np.random.default_rng(self.seed), np.zeros(3)
        for step in range(self.steps):
            position += rng.normal(size=3)
            if step in [row["step"] for row in done]:
                continue
            for quantity in ("first", "norm"):
                time.sleep(float(os.environ.get("WALK_PAUSE", 0)))
                value = position[0] if quantity == "first" else np.linalg.norm(position)
                yield {"step": step, "quantity": quantity, "value": value, "flag": None}

    def place(self, row: Row) -> int:
        return row["step"]

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        return records.whole(rows, self.place, lambda row: row["quantity"])


class Stop(Exception):
    pass


@dataclass(frozen=True)
class Stopped(Walk):
    """A walk that fails once it has yielded `after` rows."""

    after: int = 3

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        for number, row in enumerate(super().rows(done)):
            if number == self.after:
                raise Stop
            yield row


def run(experiment: records.Experiment, out: Path, **options) -> Path:
    return records.run(experiment, out, environment={"device": "cpu"}, **options)


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path: Path) -> list[Row]:
    return [bare(line) for line in lines(path) if line["kind"] == "row"]


def bare(line: Row) -> Row:
    return {key: value for key, value in line.items() if key not in RESERVED}


def without_end(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if not line.startswith(b'{"kind": "end"')]


def test_a_file_has_header_rows_and_end(tmp_path):
    out = run(Walk(folder=Path("a/b")), tmp_path / "new" / "walk.jsonl")
    head, *body, end = lines(out)
    config = {"steps": 4, "seed": 0, "folder": "a/b"}
    told = {"experiment": "walk", "config": config, "environment": {"device": "cpu"}}
    assert head == {"kind": "header", **told, "crc32": head["crc32"]}
    assert [(row["kind"], row["row"]) for row in body] == [("row", n) for n in range(1, 9)]
    assert end["kind"] == "end" and end["seconds"] >= 0 and end["rows"] == 8
    assert records.header(out) == {"experiment": "walk", "config": config, "environment": {"device": "cpu"}}


def test_each_row_is_on_disk_before_the_experiment_goes_on(tmp_path):
    out, seen = tmp_path / "walk.jsonl", []

    @dataclass(frozen=True)
    class Watching(Walk):
        def rows(self, done):
            for row in super().rows(done):
                yield row
                seen.append(len(rows(out)))

    run(Watching(), out)
    assert seen == list(range(1, 9))


def test_each_row_is_told_once_it_is_on_disk_those_that_stand_first(tmp_path):
    out, told, there = tmp_path / "walk.jsonl", [], []

    def tell(row):
        told.append(bare(row))
        there.append(len(rows(out)))

    run(Walk(), out, each=tell)
    assert told == rows(out) and there == list(range(1, 9))
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:4]))  # stopped within the second pair
    for expected in ([2, 2, 3, 4, 5, 6, 7, 8], [8] * 8):  # continued, then finished
        told.clear()
        there.clear()
        run(Walk(), out, each=tell)
        assert told == rows(out) and there == expected


@pytest.mark.parametrize("cut", [0, 5, 30, 200, 201, 270, 330, 400, 500, 600])
def test_a_file_cut_anywhere_is_continued_to_the_same_rows(tmp_path, cut):
    whole = run(Walk(), tmp_path / "whole.jsonl").read_bytes()
    (out := tmp_path / "cut.jsonl").write_bytes(whole[:cut])
    run(Walk(), out)
    assert out.read_bytes().splitlines()[:-1] == whole.splitlines()[:-1]
    assert lines(out)[-1]["kind"] == "end"


def test_rows_that_do_not_stand_are_measured_again(tmp_path):
    out = tmp_path / "walk.jsonl"
    with pytest.raises(Stop):
        run(Stopped(), out)
    assert len(rows(out)) == 3  # the second pair is not whole
    told: list[int] = []

    @dataclass(frozen=True)
    class Told(Stopped):
        def rows(self, done):
            told.append(len(done))
            yield from Walk.rows(self, done)

    run(Told(), out)
    assert told == [2]
    assert rows(out) == rows(run(Walk(), tmp_path / "undisturbed.jsonl"))
    assert lines(out)[-1]["seconds"] is None  # the time of the first part is not known


def test_a_run_that_fails_before_its_first_row_changes_nothing(tmp_path):
    out = tmp_path / "walk.jsonl"
    with pytest.raises(Stop):
        run(Stopped(after=0), out)
    assert not out.exists()
    with pytest.raises(Stop):
        run(Stopped(), out)
    before = out.read_bytes()
    for options in ({}, {"overwrite": True}):
        with pytest.raises(Stop):
            run(FailsAtOnce(), out, **options)
        assert out.read_bytes() == before


@dataclass(frozen=True)
class FailsAtOnce(Stopped):
    def rows(self, done):
        raise Stop
        yield


def test_a_finished_file_is_not_run_again_unless_overwritten(tmp_path, capsys):
    out = run(Walk(), tmp_path / "walk.jsonl")
    before = out.read_bytes()
    capsys.readouterr()
    run(Walk(), out)
    assert out.read_bytes() == before
    assert "finished (8 rows); --overwrite runs it again" in capsys.readouterr().err
    out.write_bytes(before.replace(b'"step": 0', b'"step": 7'))
    run(Walk(), out, overwrite=True)
    assert out.read_bytes().splitlines()[:-1] == before.splitlines()[:-1]


def test_overwriting_with_a_shorter_run_leaves_nothing_of_the_longer(tmp_path):
    out = run(Walk(steps=9), tmp_path / "walk.jsonl")
    run(Walk(steps=1), out, overwrite=True)
    assert len(rows(out)) == 2 and lines(out)[-1]["kind"] == "end"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Walk(seed=1), "seed = 0, this one has seed = 1"),
        (Walk(folder=Path("x")), 'folder = null, this one has folder = "x"'),
    ],
)
def test_another_config_is_refused_by_its_first_differing_field(tmp_path, other, told):
    out = run(Walk(), tmp_path / "walk.jsonl")
    before = out.read_bytes()
    with pytest.raises(BadInput, match=told) as error:
        run(other, out)
    assert "--overwrite" in str(error.value) and "\n" not in str(error.value)
    assert out.read_bytes() == before


def test_an_option_that_is_wrong_in_itself_is_told_before_the_difference(tmp_path):
    @dataclass(frozen=True)
    class Checked(Walk):
        def check(self) -> None:
            if self.seed < 0:
                raise BadInput(f"--seed {self.seed} is too small: use at least 0")

    out = run(Checked(), tmp_path / "walk.jsonl")
    with pytest.raises(BadInput, match="--seed -1 is too small"):
        run(Checked(seed=-1), out)
    with pytest.raises(BadInput, match="seed = 0, this one has seed = 1"):
        run(Checked(seed=1), out)


def test_what_is_written_elsewhere_may_change_until_the_end(tmp_path):
    @dataclass(frozen=True)
    class Saving(Walk):
        elsewhere: ClassVar[tuple[str, ...]] = ("save",)
        save: str = "here"

    out = run(Saving(), tmp_path / "walk.jsonl")
    with pytest.raises(BadInput, match='save = "here", this one has save = "there"'):
        run(Saving(save="there"), out)  # nothing would be saved there
    out.write_bytes(b"".join(without_end(out)))
    run(Saving(save="there"), out)
    assert records.load(out)["path"].nunique() == 1 and b'"kind": "end"' in out.read_bytes()


def test_a_field_or_experiment_that_the_file_does_not_know_is_refused(tmp_path):
    out = run(Walk(), tmp_path / "walk.jsonl")
    with pytest.raises(BadInput, match='after = "absent", this one has after = 3'):
        run(Stopped(), out)

    @dataclass(frozen=True)
    class Later(Stopped):
        name: ClassVar[str] = "walk"

        @staticmethod
        def upgrade(config: records.Row) -> records.Row:
            return {"after": 3, **config}

    before = out.read_bytes()
    run(Later(), out)  # the option came later, and these records were made as it is by default
    assert out.read_bytes() == before
    with pytest.raises(BadInput, match="after = 3, this one has after = 4"):
        run(Later(after=4), out)

    @dataclass(frozen=True)
    class Other(Walk):
        name: ClassVar[str] = "other"

    with pytest.raises(BadInput, match="holds the experiment walk, not other"):
        run(Other(), out)


def test_another_environment_is_told_but_continued(tmp_path, capsys):
    out = tmp_path / "walk.jsonl"
    whole = run(Walk(), out).read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    records.run(Walk(), out, environment={"device": "cuda"})
    assert 'it began with device = "cpu", now device = "cuda"' in capsys.readouterr().err
    assert records.header(out)["environment"] == {"device": "cpu"}
    assert len(rows(out)) == 8


def test_a_file_of_something_else_is_never_touched(tmp_path):
    (out := tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="not a record file"):
        run(Walk(), out)
    assert out.read_text() == "years of work"


def test_full_disk_is_one_line_of_bad_input():
    with pytest.raises(
        BadInput,
        match="cannot write /dev/full: No space left on device; the rows already there are whole: make room and start",
    ):
        run(Walk(), Path("/dev/full"))


def limited(out: Path, size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run(Walk(), out)
    except BadInput:
        os._exit(2)


@pytest.mark.parametrize("size", [100, 350, 500])
def test_rows_written_before_the_disk_was_full_stay_and_the_run_continues(tmp_path, size):
    out = tmp_path / "walk.jsonl"
    whole = run(Walk(), tmp_path / "whole.jsonl")
    child = multiprocessing.get_context("fork").Process(target=limited, args=(out, size))
    child.start()
    child.join()
    assert child.exitcode == 2
    assert out.stat().st_size == size  # a half-written line at its end
    if size > 350:
        table = records.load(out)
        assert list(table["value"]) == [row["value"] for row in rows(whole)[: len(table)]]
    assert rows(run(Walk(), out)) == rows(whole)


def test_folders_and_missing_permission_are_bad_input(tmp_path):
    with pytest.raises(BadInput, match="Is a directory"):
        run(Walk(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        run(Walk(), tmp_path / "file" / "walk.jsonl")


def test_two_runs_cannot_write_one_file(tmp_path):
    out = tmp_path / "walk.jsonl"

    @dataclass(frozen=True)
    class Rival(Walk):
        def rows(self, done):
            for row in super().rows(done):
                with pytest.raises(BadInput, match="being written by another run"):
                    run(Walk(), out, overwrite=True)
                yield row

    run(Rival(), out)
    assert len(rows(out)) == 8


def test_numbers_json_does_not_know_are_null(tmp_path):
    values = [
        math.nan,
        math.inf,
        -math.inf,
        np.float32("nan"),
        np.float64(0.1),
        np.int64(3),
        np.array([1.0, math.nan]),
        True,
    ]

    @dataclass(frozen=True)
    class Odd(Walk):
        def rows(self, done):
            yield {f"v{number}": value for number, value in enumerate(values)}

        def place(self, row):
            return 0

    out = run(Odd(), tmp_path / "odd.jsonl")
    assert "NaN" not in out.read_text() and "Infinity" not in out.read_text()
    assert list(rows(out)[0].values()) == [None, None, None, None, 0.1, 3, [1.0, None], True]


def test_an_experiment_that_breaks_the_contract_is_told(tmp_path):
    @dataclass(frozen=True)
    class Bad(Walk):
        def rows(self, done):
            yield {"kind": "mine"}

    with pytest.raises(ValueError, match="kind"):
        run(Bad(), tmp_path / "bad.jsonl")

    @dataclass(frozen=True)
    class Holds(Walk):
        def rows(self, done):
            yield {"value": object()}

    with pytest.raises(TypeError, match="cannot hold a object"):
        run(Holds(), tmp_path / "holds.jsonl")


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
names = st.text().filter(lambda name: name not in RESERVED)


@settings(max_examples=20, deadline=None)
@given(table=st.lists(st.dictionaries(names, plain), min_size=1, max_size=5), stop=st.integers(0, 2000))
def test_any_row_survives_the_disk_and_any_cut(tmp_path_factory, table, stop):
    out = tmp_path_factory.mktemp("any") / "any.jsonl"

    @dataclass(frozen=True)
    class Fixed(Walk):
        def rows(self, done):
            assert list(done) == table[: len(done)]
            yield from table[len(done) :]

        def place(self, row):
            return 0

        def standing(self, rows):
            return [row for row in rows if row is not None]

    whole = run(Fixed(), out).read_bytes()
    assert [bare(row) for row in rows_of(whole)] == table
    body = whole[: whole.rindex(b'{"kind": "end"')]
    out.write_bytes(body[:stop])
    assert rows_of(run(Fixed(), out).read_bytes()) == rows_of(whole)


def rows_of(content: bytes) -> list[Row]:
    return [line for line in map(json.loads, content.splitlines()) if line["kind"] == "row"]


def test_load_joins_files_and_keeps_their_headers(tmp_path):
    run(Walk(), tmp_path / "a.jsonl")
    run(Walk(seed=1, steps=2), tmp_path / "b.jsonl")
    table = records.load(tmp_path / "*.jsonl")
    assert len(table) == 12 and set(table["experiment"]) == {"walk"}
    assert list(table.columns[:2]) == ["path", "experiment"] and "kind" not in table
    assert table["value"].dtype == float and table["flag"].dtype == float  # nothing but null
    assert {path: head["config"]["seed"] for path, head in table.attrs["headers"].items()} == {
        str(tmp_path / "a.jsonl"): 0,
        str(tmp_path / "b.jsonl"): 1,
    }
    assert table["value"].head(2).attrs["headers"] is table.attrs["headers"], "pandas copies attributes at each step"
    both = [tmp_path / "b.jsonl", str(tmp_path / "*.jsonl")]  # b counts once
    assert len(records.load(both)) == 12
    (odd := tmp_path / "[1].jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert len(records.load(odd)) == 8  # a name, though it looks like a pattern


def test_load_reads_a_run_in_progress(tmp_path):
    out = run(Walk(), tmp_path / "walk.jsonl")
    content = out.read_bytes()
    out.write_bytes(content[: content.index(b'"step": 2')])
    assert list(records.load(out)["step"]) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("line", "text"),
    [(1, "hello"), (1, '{"kind": "header"}'), (3, "{"), (4, '{"kind": "row", "v": NaN}'), (5, '{"kind": "x"}')],
)
def test_a_broken_line_is_named(tmp_path, line, text):
    out = run(Walk(), tmp_path / "walk.jsonl")
    content = out.read_text().split("\n")
    content[line - 1] = text
    out.write_text("\n".join(content))
    with pytest.raises(BadInput, match=rf"walk\.jsonl:{line}: ") as error:
        records.load(out)
    assert "\n" not in str(error.value)
    run(Walk(), out)  # measures it again
    assert rows(out) == rows(run(Walk(), tmp_path / "undisturbed.jsonl"))


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(BadInput, match="no record file matches"):
        records.load(tmp_path / "*.jsonl")
    with pytest.raises(BadInput, match="cannot read"):
        records.load(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BadInput, match="is empty"):
        records.load(tmp_path / "empty.jsonl")
    (tmp_path / "half.jsonl").write_text('{"kind": "hea')
    with pytest.raises(BadInput, match="holds a part of its header; wait for the run"):
        records.load(tmp_path / "half.jsonl")
    run(Walk(steps=0), tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="holds no row yet"):
        records.load(tmp_path / "none.jsonl")


def test_environment_names_versions_and_what_it_is_told():
    told = records.environment(device="cpu", threads=2)
    assert told["device"] == "cpu" and told["threads"] == 2
    assert told["packages"]["numpy"] == np.__version__
    assert told["python"] == sys.version.split()[0]
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    if commit.returncode == 0:
        assert told["git"].split("+")[0] == commit.stdout.strip()
    assert json.loads(json.dumps(told)) == told


def test_records_load_no_heavy_library():
    heavy = "{'torch', 'pandas', 'transformers'}"
    code = f"import sys, smoothlab.records as r; r.environment(); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"


@pytest.mark.parametrize("after", [0, 1, 4, 15])
def test_a_killed_process_is_continued_to_identical_records(tmp_path, after):
    out, walk = tmp_path / "walk.jsonl", Walk(seed=5, steps=40)
    code = f"from tests.test_records import *; run(Walk(seed=5, steps=40), Path({str(out)!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "WALK_PAUSE": "0.02"})
    while not out.exists() or out.read_bytes().count(b"\n") < after + (after > 0):
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    if out.stat().st_size:
        assert lines(out)[-1]["kind"] != "end"
    run(walk, out)
    undisturbed = run(walk, tmp_path / "undisturbed.jsonl")
    assert lines(out)[:-1] == lines(undisturbed)[:-1]
    assert lines(out)[-1].keys() == lines(undisturbed)[-1].keys()
