"""The mutation tool: which mutants a source has, which of them tests see; and those of the instrument (slow)."""

import ast
import json
import textwrap
import time
from pathlib import Path

import pytest

from tests import mutation_runs
from tests.mutants import mutants, mutated, path_of

CHANGES = {
    "if a < b: x()": ["if a <= b:", "if a >= b:", "pass"],
    "x = 0 < a <= b": ["x = 1 < a <= b", "x = -1 < a <= b"]
    + ["x = 0 <= a <= b", "x = 0 >= a <= b", "x = 0 < a < b", "x = 0 < a > b"],
    "x = a is not b": ["x = a is b"],
    "x = a + b * c": ["x = a - b * c", "x = a + b / c"],
    "x = a ** 0.5": ["x = a * 0.5", "x = a ** 0.45", "x = a ** 1.5"],
    "x = a // b % c": ["x = a // b * c", "x = a * b % c"],
    "x += 1": ["pass", "x -= 1", "x += 2", "x += 0"],
    "x = -a": ["x = a"],
    "x = not a and b": ["x = not a or b", "x = a and b"],
    "x = True": ["x = False"],
    "x = 0.0": ["x = 1.0"],
    "if a and b: x()": ["if not (a and b):", "if a or b:", "pass"],
    "x = a if b else c": ["x = a if not b else c"],
    "x = min(a, b).max()": ["x = min(a, b).min()", "x = max(a, b).max()"],
    "x[0] = a.b = c": ["x[1] = a.b = c", "x[-1] = a.b = c"],
    "x[i] = a": ["pass"],
    "self.x = a": ["pass"],
    "raise A(1 + 2)": ["pass"],
    "assert a < 1": [],
    "'text'": [],
    "x: Literal[1, 2] = a": [],
    "x = f'{a + 1}'": [],
    "from a import b": [],
}


@pytest.mark.parametrize("statement", CHANGES)
def test_a_statement_has_these_mutants_and_no_others(statement: str) -> None:
    source = f"def f(a: int = 1) -> int:\n    {statement}\n"
    found = [mutant for mutant in mutants(source, "m") if mutant.line == 2]
    assert sorted(mutant.mutated for mutant in found) == sorted(CHANGES[statement])
    assert all(mutant.body and mutant.function == "f" for mutant in found)
    for mutant in mutants(source, "m"):
        text = ast.unparse(mutated(source, mutant.number))
        assert mutant.mutated in text and text != ast.unparse(ast.parse(source))
    assert ast.unparse(ast.parse(source)) == ast.unparse(ast.parse(source)), "a mutant leaves nothing behind"


def test_what_runs_at_import_is_told_from_what_runs_in_a_function() -> None:
    source = "A = 1\nclass C:\n    b: float = 2.0\n    def f(self, c=3):\n        return c\n"
    assert {(m.original, m.function, m.body) for m in mutants(source, "m")} == {
        ("A = 1", "", False),
        ("b: float = 2.0", "C", False),
        ("def f(self, c=3):", "C", False),
        ("return c", "C.f", True),
    }
    with pytest.raises(IndexError, match="no mutant 99"):
        mutated(source, 99)


def test_a_sample_goes_by_its_seed_and_by_the_text() -> None:
    modules = ["smoothlab.stats.probes"]
    chosen = [mutation_runs.sample(modules, 10, seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2] and len({m.key for m in chosen[0]}) == 10
    by_text = {m.mutated for m in mutation_runs.sample(modules, 99, 0, "_LOW_RANK =")}
    assert by_text == {"_LOW_RANK = 9.0", "_LOW_RANK = 11.0"}


@pytest.mark.check
def test_reasons_are_of_mutants_that_there_are() -> None:
    """A reason whose statement has changed since is to be looked at again."""
    reasons = mutation_runs.explained()
    modules = {module for module, *_ in reasons}
    there = {m.key for module in modules for m in mutants(path_of(module).read_text(), module)}
    assert set(reasons) <= there and all(len(why.split()) > 3 for why in reasons.values())


TOY = """
    LEVEL = 0.5

    def wait(n):
        while n > 3:
            n = n + 0
        return n

    def size(x, unseen=7):
        if x < 0:
            return 0
        return 2 * x + LEVEL
"""
TESTS = """
    import toy

    def test_size():
        assert toy.size(3) == 6.5 and toy.size(-3) == 0

    def test_wait():
        assert toy.wait(3) == 3
"""
SURVIVORS = {
    "def size(x, unseen=8):",  # nobody reads it
    "def size(x, unseen=6):",
    "n = n - 0",  # runs in no test
    "n = n + 1",
    "n = n + -1",
    "while n > 4:",
    "if x <= 0:",  # 0 is not tried
    "if x < 1:",
    "if x < -1:",
}


@pytest.mark.check
def test_mutants_are_killed_survive_and_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"toy.py": TOY, "test_toy.py": TESTS}.items():
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mutation_runs, "path_of", lambda module: tmp_path / f"{module}.py")
    monkeypatch.setattr(mutation_runs, "TESTS", {"toy": "test_toy.py"})
    monkeypatch.setattr(mutation_runs, "LEAST_SECONDS", 2)
    out = tmp_path / "out.jsonl"
    chosen = mutation_runs.sample(["toy"], 99, 0)
    rows = mutation_runs.run(chosen, out, 60)
    assert [json.loads(line) for line in out.read_text().splitlines()][:-1] == rows
    by = {row["mutated"]: (row["outcome"], row["by"]) for row in rows}
    assert {mutant for mutant, (outcome, _) in by.items() if outcome == "survived"} == SURVIVORS
    assert by["LEVEL = 0.45"] == ("killed", "test_toy.py::test_size")
    assert by["while n >= 3:"] == ("killed", "timeout")
    assert by["return None"][0] == "killed"
    assert (tmp_path / "toy.py").read_text() == textwrap.dedent(TOY), "files stay as they are"


def test_work_in_a_fork_comes_back_times_out_or_crashes() -> None:
    assert mutation_runs.in_fork(lambda: {"a": [1, 2]}, 5)[0] == {"a": [1, 2]}
    assert mutation_runs.in_fork(lambda: 1 / 0, 5)[0] == "crashed"
    before = time.monotonic()
    assert mutation_runs.in_fork(lambda: time.sleep(60), 0.05)[0] == "timeout"
    assert time.monotonic() - before < 30


@pytest.mark.slow
def test_at_most_5_percent_of_mutants_survive_without_a_reason(tmp_path: Path) -> None:
    """The sample of `make mutants`."""
    rows = mutation_runs.run(mutation_runs.sample(mutation_runs.SAMPLED, 240, 0), tmp_path / "mutants.jsonl", 60)
    survivors = [f"{row['module']}:{row['line']} {row['mutated']}" for row in rows if row["outcome"] == "survived"]
    assert len(survivors) <= 0.05 * len(rows), survivors
