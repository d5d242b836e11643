import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from smoothlab import __main__ as command_line
from smoothlab import commands, records
from smoothlab.commands import experiments
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.experiment import LEFT_OUT
from smoothlab.records import Row

ROOT = Path(__file__).resolve().parents[1]


ALL = ", ".join([*commands.EXPERIMENTS, "squares", *commands.COMMANDS])
"""Subcommands, with that of these tests."""


class OutOfMemoryError(RuntimeError):
    """Named as torch names a device's."""


@dataclass(frozen=True)
class Squares:
    """Squares of the first numbers."""

    name: ClassVar[str] = "squares"
    unit: ClassVar[str] = "number"

    count: int = 5
    """How many [numbers]."""
    seed: int = 0
    """Seed of nothing at all."""
    fails: Literal["no", "bad", "memory", "device", "cpu", "bug", "interrupt"] = "no"
    """How it goes wrong after two rows."""

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        for number in sorted({*range(self.count)} - {row["number"] for row in done}):
            if number == 2 and self.fails != "no":
                raise {
                    "bad": BadInput("the number 2 is even;\nuse 3"),
                    "memory": MemoryError(),
                    "device": OutOfMemoryError("CUDA out of memory"),
                    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
                    "bug": RuntimeError("a bug"),
                    "interrupt": KeyboardInterrupt(),
                }[self.fails]
            time.sleep(float(os.environ.get("SQUARES_PAUSE", 0)))
            yield {"number": number, "value": number**2}

    def place(self, row: Row) -> int:
        return row["number"]

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        return [row for row in rows if row is not None]

    def plan(self) -> str:
        return f"{self.count} numbers"

    def continuation(self) -> str:
        return "measures the rest"


@pytest.fixture
def squares(monkeypatch, tmp_path):
    """Call `smoothlab squares ...` in this process, in a folder of its own."""
    monkeypatch.setitem(commands.EXPERIMENTS, "squares", Squares)
    monkeypatch.chdir(tmp_path)
    for name in command_line.QUIET_THREADS:
        monkeypatch.setenv(name, "as it was")
    return lambda *options: command_line.main(["squares", *options])


def smoothlab(*argv: str, **options) -> subprocess.Popen[str]:
    """A process of `smoothlab argv...` that knows the subcommand squares."""
    code = (
        "import sys; from tests.test_main import Squares; from smoothlab import __main__ as m, commands; "
        f"commands.EXPERIMENTS['squares'] = Squares; sys.exit(m.main({list(argv)}))"
    )
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **(pipe | options))


def one_line(capsys) -> str:
    told = capsys.readouterr().err
    assert told.startswith("smoothlab: error: ") and told.count("\n") == 1, told
    return told


def test_an_experiment_writes_its_records(squares, tmp_path, capsys):
    assert squares("--count", "3", "--seed", "4", "--out", "new/s.jsonl") == 0
    assert capsys.readouterr().out == "new/s.jsonl\n"
    table = records.load(tmp_path / "new" / "s.jsonl")
    assert list(table["value"]) == [0, 1, 4]
    head = records.header(tmp_path / "new" / "s.jsonl")
    assert head["config"] == {"count": 3, "seed": 4, "fails": "no"}
    assert head["environment"]["python"] == sys.version.split()[0]


def test_a_finished_file_and_another_config(squares, tmp_path, capsys):
    out = tmp_path / "out" / "squares.jsonl"
    assert squares() == 0
    before = out.read_bytes()
    assert squares() == 0 and out.read_bytes() == before
    capsys.readouterr()
    assert squares("--count", "6") == 2
    assert "count = 5, this one has count = 6" in one_line(capsys)
    assert out.read_bytes() == before
    assert squares("--count", "6", "--overwrite") == 0
    assert len(records.load(out)) == 6


def test_dry_run_tells_the_plan_and_measures_nothing(squares, tmp_path, capsys):
    assert squares("--dry-run") == 0
    assert capsys.readouterr().out == "5 numbers\n"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "status", "told"),
    [
        ("bad", 2, "smoothlab: error: the number 2 is even; use 3\n"),
        ("memory", 2, "smoothlab: error: out of memory: free some memory (the same command measures the rest)"),
        ("device", 2, "smoothlab: error: out of memory: free some memory (the same command measures the rest)"),
        ("cpu", 2, "smoothlab: error: out of memory: free some memory (the same command measures the rest)"),
        ("interrupt", 130, "smoothlab: stopped; the same command measures the rest"),
    ],
)
def test_what_goes_wrong_is_one_line_and_keeps_the_rows(squares, tmp_path, capsys, how, status, told):
    assert squares("--fails", how) == status
    error = capsys.readouterr().err.strip("\n") + "\n"
    assert error.startswith(told) and error.count("\n") == 1
    assert list(records.load(tmp_path / "out" / "squares.jsonl")["value"]) == [0, 1]


def test_a_bug_is_not_hidden(squares):
    with pytest.raises(RuntimeError, match="a bug"):
        squares("--fails", "bug")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["squares", "--count", "x"], ["--count x: use a whole number", "see smoothlab squares --help"]),
        (
            ["squares", "--cuont", "3"],
            ["smoothlab squares has no option --cuont: did you mean --count? see smoothlab squares --help\n"],
        ),
        (
            ["squares", "--tensorboard", "3"],
            ["squares has no option --tensorboard, which is an option of finetune: leave it out; see smooth"],
        ),
        (["squares", "--weird"], ["squares has no option --weird: leave it out; see smoothlab squares --help\n"]),
        (["squares", "weird"], ["squares has no place for 'weird': leave it out, or name its option; see"]),
        (["squares", "--fails", "how"], ["--fails how is unknown: use no", "interrupt"]),
        (["squares", "--seed"], ["--seed"]),
        (["sqares"], [f"'sqares' is no command of smoothlab: did you mean squares? use one of {ALL}; see smoothlab"]),
        (["help"], [f"'help' is no command of smoothlab: use one of {ALL}; see smoothlab --help\n"]),
        (["--seed", "1"], [f"smoothlab has no option --seed before its command: use one of {ALL}; see smoothlab"]),
        ([], [f"smoothlab: error: no command is named: use one of {ALL}; see smoothlab --help\n"]),
        (["plot"], ["no record file"]),
        (["plot", "none*.jsonl"], ["no record file matches 'none*.jsonl'"]),
        (["plot", "a.jsonl", "--out", "a.gif"], ["a.gif", ".png"]),
        (["plot", "a.jsonl", "--kind", "pie"], ["--kind pie is unknown: use fig1a"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(squares, capsys, argv, told):
    assert command_line.main(argv) == 2
    line = one_line(capsys)
    assert all(words in line for words in told), line
    assert not set(line) & set("│╭─")


def test_a_device_keeps_no_records_to_read(squares, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "SUMMARIZED", ("squares",))
    assert squares("--out", "/dev/null") == 0 and capsys.readouterr().out == "/dev/null\n"
    assert (
        squares("--out", "s.jsonl") == 0 and len(capsys.readouterr().out.splitlines()) == 1 + 1 + 5
    )  # file, heading, rows


def test_threads_are_set_and_in_the_records_environment(squares, tmp_path, capsys):
    import torch

    before = torch.get_num_threads()
    try:
        assert squares("--threads", "3") == 0
        assert records.header(tmp_path / "out" / "squares.jsonl")["environment"]["threads"] == 3
    finally:
        torch.set_num_threads(before)
    capsys.readouterr()
    assert squares("--threads", "0", "--overwrite") == 2
    assert one_line(capsys) == "smoothlab: error: --threads 0: use 1 to 1024\n"


def test_a_busy_machine_is_told_once(squares, monkeypatch, capsys):
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    for load, line in ((1.7, "other programs keep 1.7 of 2 cores busy: --threads 1 may be faster than 2 threads"),
                       (0.3, "")):  # fmt: skip
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert squares("--overwrite") == 0
        assert capsys.readouterr().err == (f"smoothlab: {line}\n" if line else "")


def test_the_version_is_said(capsys):
    import smoothlab as package

    assert command_line.main(["--version"]) == 0
    assert capsys.readouterr().out == f"smoothlab {package.__version__}\n"


LESS = "lower --batch, or take a smaller --model, or measure smaller --blocks, e.g. layer"


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        (
            "finetune --measure base",
            LESS,
        ),
        ("smoothness", LESS),
        ("finetune", "lower --batch, or take a smaller --model"),
        ("rates", "lower --replicas"),
    ],
)
def test_out_of_memory_names_options_that_the_command_has(monkeypatch, tmp_path, capsys, command, advice):
    def full(*args, **options):
        raise MemoryError

    monkeypatch.setattr(records, "run", full)
    assert command_line.main([*command.split(), "--out", str(tmp_path / "r.jsonl")]) == 2
    assert one_line(capsys) == f"smoothlab: error: out of memory: {advice} (start the same command again)\n"


def test_plot_does_not_replace_a_file_unasked(squares, tmp_path, capsys):
    (tmp_path / "fig1a.png").write_text("mine")
    squares()
    capsys.readouterr()
    assert command_line.main(["plot", "out/squares.jsonl"]) == 2
    assert "fig1a.png exists" in one_line(capsys)
    assert (tmp_path / "fig1a.png").read_text() == "mine"


@pytest.mark.parametrize("kind", ["fig1a", "fig1b", "path", "estimators", "quadratic"])
def test_plot_refuses_records_of_another_experiment(squares, capsys, kind):
    squares()
    capsys.readouterr()
    assert command_line.main(["plot", "out/squares.jsonl", "--kind", kind]) == 2
    assert "these records lack" in (told := one_line(capsys)) and "give records of `smoothlab" in told


def test_plot_refuses_to_mix_experiments(squares, tmp_path, capsys):
    squares()
    head = {"kind": "header", "experiment": "cubes", "config": {}, "environment": {}}
    other = tmp_path / "out" / "cubes.jsonl"
    other.write_text(json.dumps(head) + "\n" + json.dumps({"kind": "row", "value": 8}) + "\n")
    capsys.readouterr()
    assert command_line.main(["plot", "out/squares.jsonl", str(other)]) == 2
    assert "these records are of cubes and squares: draw the records of one experiment" in one_line(capsys)


SETTINGS = {"dim": 100, "wrt": "base", "block": "base", "hvps": 20, "flag": None, "h": None, "floor": 0.001}


@pytest.mark.parametrize("kind", ["fig1a", "fig1b", "path"])
@pytest.mark.parametrize("form", ["png", "pdf"])
def test_plot_draws_each_kind(squares, tmp_path, capsys, kind, form):
    rows = []
    for step in range(4):
        told = {**SETTINGS, "step": step, "loss": 1.0, "grad_norm": 3.0 - step / 2, "grad_norm_total": 3.0}
        told |= {"protocol": "estimated", "normalized": None}
        rows.append({**told, "quantity": "frobenius", "value": 9.0 + step, "low": 8.0 + step, "high": 10.0 + step})
        path = {"quantity": "gradient_lipschitz", "value": 2.0 + step, "low": None, "high": None, "hvps": 0}
        rows.append({**told, **path})
    head = {"kind": "header", "experiment": "smoothness", "config": {}, "environment": {}}
    lines = [json.dumps(one) for one in (head, *({"kind": "row", **row} for row in rows))]
    (tmp_path / "s.jsonl").write_text("\n".join(lines) + "\n")
    assert command_line.main(["plot", "s.jsonl", "--kind", kind, "--out", f"f/x.{form}"]) == 0
    assert capsys.readouterr().out == f"f/x.{form}\n"
    assert (tmp_path / "f" / f"x.{form}").read_bytes()[:4] == {"png": b"\x89PNG", "pdf": b"%PDF"}[form]


@pytest.mark.parametrize("command", [[], ["squares"], ["smoothness"], ["plot"], ["demo"]], ids=" ".join)
def test_help_explains_every_option_with_its_default(squares, capsys, command):
    with pytest.raises(SystemExit) as end:
        command_line.main([*command, "--help"])
    assert not end.value.code
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: smoothlab" in words
    if command in (["squares"], ["smoothness"]):
        assert "--dry-run print what would be run" in words
        assert "--out FILE.jsonl" in words and "--overwrite" in words and "--seed INT" in words
        assert f"(default: out/{command[0]}.jsonl)" in words
    if command == ["squares"]:
        assert "--count INT How many [numbers]. (default: 5)" in words


@pytest.mark.parametrize("kind", commands.EXPERIMENTS.values())
def test_help_breaks_no_line_inside_a_sentence(kind):
    """tyro keeps a line break of a docstring in front of a line that does not begin with a letter."""
    for part in kind.__mro__[:-1]:
        for line in (inspect.getdoc(part) or "").splitlines():
            if line.startswith(" " * 8):  # the text of an option goes on
                assert line.strip()[0].isalpha(), line


EMPTY_HEAD = '{"kind": "header", "experiment": "smoothness", "config": {}, "environment": {}}\n'
IMPORTED = "sorted({'torch', 'transformers', 'peft', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules))"


@pytest.mark.parametrize("argv", [["--help"], ["smoothness", "--help"]])
def test_help_imports_nothing_heavy(argv):
    code = f"""
import runpy, sys
sys.argv = ["smoothlab", *{argv}]
try:
    runpy.run_module("smoothlab", run_name="__main__")
finally:
    print({IMPORTED}, file=sys.stderr)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0 and "usage: smoothlab" in told.stdout
    assert told.stderr == "[]\n"


def test_the_package_imports_nothing_heavy_and_has_its_names():
    code = f"import sys, smoothlab; names = dir(smoothlab); print({IMPORTED}, *names)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.split()
    import smoothlab

    assert told[0] == "[]" and set(smoothlab.__all__) <= set(told[1:])
    for name in set(smoothlab.__all__) - {"__version__"}:
        assert getattr(smoothlab, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        smoothlab.nonsense  # noqa: B018


def test_threads_wait_quietly_unless_the_user_says_otherwise(squares, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    squares()
    assert os.environ["GOMP_SPINCOUNT"] == "10000" and os.environ["KMP_BLOCKTIME"] == "7"


SIGNALS = {signal.SIGINT: (130, "stopped"), signal.SIGTERM: (143, "ended by SIGTERM")}


def by_default() -> None:
    """In a child: a signal that this process ignores, as under nohup, would be ignored by the child too."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", SIGNALS)
def test_stopped_by_a_signal_and_continued(tmp_path, number):
    out = tmp_path / "s.jsonl"
    argv = ["squares", "--count", "40", "--out", str(out)]
    process = smoothlab(*argv, env={**os.environ, "SQUARES_PAUSE": "0.1"}, preexec_fn=by_default)
    while not out.exists() or out.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    output, error = process.communicate()
    status, words = SIGNALS[number]
    assert process.returncode == status
    assert error == f"smoothlab: {words}; the same command measures the rest\n" and not output
    assert 2 <= len(records.load(out)) < 40
    assert smoothlab(*argv).wait() == 0
    assert list(records.load(out)["value"]) == [number**2 for number in range(40)]


@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGTERM, "tyro"),
        *(pytest.param(number, module, marks=pytest.mark.check) for number in SIGNALS
          for module in ("smoothlab.experiments.rates.experiment", "pandas")),
    ],
)  # fmt: skip
def test_a_signal_while_importing_is_one_line(tmp_path, number, module):
    """The signal comes in the middle of an import, whoever imports, also one that would swallow an exception."""
    (tmp_path / "squares.jsonl").write_text(EMPTY_HEAD)
    code = f"""
import importlib.abc, os, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), {int(number)})
            except KeyboardInterrupt:
                raise ImportError("swallowed") from None
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["plot", "squares.jsonl"]
from smoothlab.__main__ import main
sys.exit(main())
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, preexec_fn=by_default,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    status, words = SIGNALS[number]
    assert told.returncode == status, told.stderr
    assert told.stderr == f"smoothlab: {words}; start the same command again\n" and not told.stdout


@pytest.mark.parametrize("where", ["__del__", "at exit"])
def test_a_signal_where_an_exception_cannot_be_passed_on_is_one_line(where):
    code = f"""
import atexit, os, signal, sys
from smoothlab import __main__ as m, commands
class Closing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
def work(argv):
    def run():
        if {where == "__del__"}:
            Closing()
        else:
            atexit.register(os.kill, os.getpid(), signal.SIGTERM)
    return commands.Command(run)
commands.parse = work
sys.exit(m.main())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, preexec_fn=by_default)
    assert told.returncode == 143
    assert told.stderr == "smoothlab: ended by SIGTERM; start the same command again\n"


def test_signals_are_left_as_they_were(squares):
    before = [signal.getsignal(number) for number in SIGNALS]
    squares()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    """As under `nohup smoothlab ... &`."""

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    out = tmp_path / "s.jsonl"
    environment = {**os.environ, "SQUARES_PAUSE": "0.1"}
    process = smoothlab("squares", "--count", "6", "--out", str(out), env=environment, preexec_fn=ignore)
    while not out.exists() or out.read_bytes().count(b"\n") < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0 and len(records.load(out)) == 6


PATHS = {
    "smoothness": ["--data-dir", "--checkpoint", "--from-weights", "--out"],
    "estimators": ["--data-dir", "--out"],
    "quadratic": ["--out"],
    "rates": ["--out"],
    "finetune": ["--data-dir", "--checkpoint", "--save", "--tensorboard", "--out"],
    "advise": ["--data-dir", "--out"],
    "fit": ["--out"],
    "plot": ["--out"],
    "replay": ["--save"],
    "audit": ["--records", "--add", "--html", "--out"],
    "verify": ["--html", "--out"],
    "demo": ["--out"],
}
"""Every option that is a path."""
NAMES = {"smoothness": ["--model", "--data"], "estimators": ["--model", "--data"], "finetune": ["--model", "--data"],
         "advise": ["--model", "--data"], "replay": ["--model"], "fit": [""], "plot": [""]}  # fmt: skip
"""Options that are a path or something else."""
UNUSABLE = {
    "file/below": "Not a directory",
    "loop/x": "Too many levels of symbolic links",
    "n" * 256: "File name too long",
    "new/" + "n" * 256: "File name too long",
    "folder/" * 600: "File name too long",
}


def test_the_table_of_paths_is_whole():
    for name, kind in commands.EXPERIMENTS.items():
        fields = [f.name for f in dataclasses.fields(kind) if "Path" in str(f.type)]
        if name == "advise":
            fields = [field for field in fields if field not in LEFT_OUT]
        assert [*(f"--{field.replace('_', '-')}" for field in fields), "--out"] == PATHS[name]
    for name in ("fit", "plot", "replay", "audit", "verify", "demo"):
        parameters = inspect.signature(commands.COMMANDS[name]).parameters.values()
        assert [f"--{p.name}" for p in parameters if "Path" in str(p.annotation)] == PATHS[name]


@pytest.fixture
def crooked(monkeypatch, tmp_path):
    """A folder with a file, a link to itself, and a folder that may not be entered."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    Path("locked").mkdir()
    Path("locked").chmod(0)
    yield tmp_path
    Path("locked").chmod(0o700)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "locked", "loop"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        pytest.param(
            *one, marks=() if one[0] in ("rates", "plot") else pytest.mark.check, id=" ".join([one[0], *one[1]])
        )
        for one in [*PATHS.items(), *NAMES.items()]
    ],
)
def test_a_path_that_cannot_be_used_is_one_line(crooked, capsys, command, options):
    for option in options:
        for path, words in UNUSABLE.items():
            if command in NAMES and option not in PATHS[command] and words == "Not a directory":
                continue  # may be a name of the hub
            for given in [path] + [f"log:{path}"] * (option == "--checkpoint"):
                assert command_line.main([command, *filter(None, [option]), given]) == 2
                line = one_line(capsys)
                assert f"error: {option} "[: 7 + len(option)] in line and f"{words}; name another path" in line
                assert len(line) < 250


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
@pytest.mark.parametrize("path", ["locked", "locked/below"])
@pytest.mark.parametrize(("command", "options"), PATHS.items())
def test_a_folder_that_may_not_be_entered_is_one_line(crooked, capsys, command, options, path):
    for option in options:
        assert command_line.main([command, option, path]) == 2
        assert f"{option} {path}: Permission denied; name another path" in one_line(capsys)


def test_a_path_that_turns_out_to_be_unusable_later_is_one_line(squares, monkeypatch, capsys):
    """Whatever opens it, and after the look at the options."""

    def fails(self, done):
        open("/dev/null/below")
        yield {}

    monkeypatch.setattr(Squares, "rows", fails)
    assert squares() == 2
    assert "cannot use /dev/null/below: Not a directory; name another path" in one_line(capsys)


def test_after_overwrite_the_command_that_continues_has_none(squares, capsys):
    squares("--fails", "interrupt", "--overwrite")
    assert "the same command without --overwrite measures the rest" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["squares", "--dry-run"]])
def test_a_reader_that_left_is_no_traceback(argv):
    read, write = os.pipe()
    os.close(read)
    process = smoothlab(*argv, stdout=write)
    os.close(write)
    _, error = process.communicate()
    assert process.returncode == 141 and error == ""
