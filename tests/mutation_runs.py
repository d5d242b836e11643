"""Run the tests of a module against a sample of its mutants, and record those that no test sees.

    python -m tests.mutation_runs        (make mutants)

Libraries are imported once. Every mutant gets a forked process, whose import of the module reads the mutated source
instead of the file; nothing on the disk changes. It runs the test files that mirror the module until the first failure:
first the tests that pass the changed line, the quick ones in front, then the others.
"""

import argparse
import ast
import collections
import gc
import importlib
import importlib.abc
import importlib.machinery
import itertools
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

from tests.mutants import Mutant, mutants, mutated, path_of

TESTS = {
    "smoothlab.hessian.exact": "tests/hessian/test_products.py tests/test_values.py",
    "smoothlab.hessian.finite_differences": "tests/hessian/test_products.py tests/test_values.py",
    "smoothlab.hessian.basis": "tests/hessian/test_norms.py tests/test_values.py",
    "smoothlab.hessian.deflation": "tests/hessian/test_norms.py tests/test_values.py",
    "smoothlab.hessian.norms": "tests/hessian/test_norms.py tests/test_values.py",
    "smoothlab.stats.probes": "tests/stats/test_probes.py tests/hessian/test_norms.py tests/test_values.py",
    "smoothlab.zeroth.estimators": "tests/zeroth/test_estimators.py tests/test_values.py",
    "smoothlab.zeroth.directional": "tests/zeroth/test_estimators.py tests/test_values.py",
    "smoothlab.optim.hybrid": "tests/optim/test_hybrid.py tests/test_values.py",
    "smoothlab.optim.closure_check": "tests/zeroth/test_closures.py",
    "smoothlab.optim.minibatch": "tests/optim/test_hybrid.py tests/llm/test_distributed.py tests/test_values.py",
    "smoothlab.optim.masters": "tests/optim/test_hybrid.py tests/test_values.py",
    "smoothlab.theory.theorems": "tests/theory/test_theorems.py tests/test_values.py",
    "smoothlab.llm.evaluate": "tests/llm/test_evaluate.py tests/llm/test_choices.py tests/llm/test_values.py",
    "smoothlab.llm.vocabulary": "tests/llm/test_vocabulary.py tests/llm/test_evaluate.py tests/llm/test_values.py",
    "smoothlab.hessian.dataset": "tests/hessian/test_dataset.py tests/stats/test_redraws.py",
    "smoothlab.stats.redraws": "tests/stats/test_redraws.py tests/hessian/test_dataset.py",
    "smoothlab.trainer": "tests/test_trainer.py tests/llm/test_values.py",
}
"""The test files of each module, those that mirror it."""
SAMPLED = tuple(module for module in TESTS if module != "smoothlab.trainer")
EXPLAINED = Path(__file__).with_name("equivalent_mutants.jsonl")
"""Mutants that change no result, each with the reason why."""
QUIET = "-q -x --tb=no --no-header --assert=plain -p no:cacheprovider -p no:unraisableexception".split()
"""Without what takes time beside the tests: other packages' plugins are not loaded either."""
CHOSEN = "not check and not slow and not gpu and not network"
"""The tests of `make test`."""
KEY = ("module", "function", "original", "mutated")
MOST_SECONDS = 20
"""CPU seconds, on the unchanged source, of the tests that are run against a mutant."""
LEAST_SECONDS = 10
"""CPU seconds that a run may take beyond 3 times those on the unchanged source: imports."""


@dataclass
class Baseline:
    """What tests do on the unchanged source.

    Attributes:
        seconds: CPU seconds of each test.
        lines: lines that each test passes, by the module's file.
        imported: modules of other packages that they import.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    imported: list[str] = field(default_factory=list)

    def order(self, mutant: Mutant) -> list[str]:
        """The tests of the mutant's module, those that pass its lines first, quick ones in front, as far as time goes.

        A mutant that only longer tests see counts as a survivor: a short test with its exact value is wanted.
        """
        file, place = str(path_of(mutant.module)), set(range(mutant.line, mutant.last + 1))
        tests = [test for test in self.seconds if test.partition("::")[0] in TESTS[mutant.module].split()]
        passing = {test for test in tests if not mutant.body or place & set(self.lines[test].get(file, ()))}
        ordered = sorted(tests, key=lambda test: (test not in passing, self.seconds[test]))
        spent = itertools.accumulate(self.seconds[test] for test in ordered)
        return [test for test, seconds in zip(ordered, spent, strict=True) if seconds <= MOST_SECONDS]


class Watch:
    """Pytest plugin: CPU seconds of each test, and the lines of the modules that it passes."""

    def __init__(self, baseline: Baseline) -> None:
        self.baseline, self.files = baseline, {str(path_of(module)) for module in TESTS}
        self.lines: dict[str, set[int]] = {}

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        self.lines.setdefault(frame.f_code.co_filename, set()).add(frame.f_lineno)
        return self._trace

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        self.lines, start = {}, time.process_time()
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.baseline.seconds[item.nodeid] = round(time.process_time() - start, 4)
            self.baseline.lines[item.nodeid] = {file: sorted(lines) for file, lines in self.lines.items()}


class Order:
    """Pytest plugin: runs these tests in this order, and remembers the first that failed."""

    def __init__(self, order: Sequence[str]) -> None:
        self.order, self.failed = {test: i for i, test in enumerate(order)}, ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda one: self.order[one.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a mutated syntax tree."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.module, self.tree, self.path = module, tree, str(path_of(module))

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, origin=self.path) if name == self.module else None

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.tree, self.path, "exec")

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str | bytes) -> bytes:
        return Path(os.fsdecode(path)).read_bytes()


def in_fork(work: Callable[[], Any], seconds: float) -> tuple[Any, float]:
    """What work() returns in a forked process, or "timeout" after so many CPU seconds; and the CPU seconds it took."""
    with tempfile.TemporaryFile("w+") as answer:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _in_child(work, answer, seconds)
        _, status, usage = _wait(child, time.monotonic() + 20 * seconds)
        answer.seek(0)
        text = answer.read()
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    result = json.loads(text) if text else ("timeout" if killed else "crashed")
    return result, usage.ru_utime + usage.ru_stime


def _in_child(work: Callable[[], Any], answer: Any, seconds: float) -> None:
    """Does the work and ends the process, whatever happens in it."""
    try:
        os.setpgid(0, 0)
        gc.freeze()  # the parent's objects stay: collecting them would copy its memory
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 10))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        json.dump(work(), answer)
        answer.flush()
    finally:
        os._exit(0)


def _wait(child: int, end: float) -> tuple[int, int, Any]:
    """Waits for a child, and stops its process group at a time on the monotonic clock: it may sleep for ever."""
    try:
        while not (done := os.wait4(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.01)
        return done
    except BaseException:  # interrupted: the child is in a process group of its own
        os.killpg(child, signal.SIGKILL)
        raise


def _pytest(arguments: Iterable[str], plugin: object) -> int:
    from hypothesis import Phase, settings

    settings.register_profile(
        "mutants", database=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
    )  # a failing example is not made shorter
    settings.load_profile("mutants")
    return int(pytest.main([*arguments, *QUIET, "-m", CHOSEN], [plugin]))


def files_of(module: str) -> list[str]:
    """The test files of a module that are there."""
    return [name for name in TESTS[module].split() if Path(name).exists()]


def measure(files: Sequence[str], baseline: Baseline) -> None:
    """Adds what tests do on the unchanged source; imports here what they import of other packages."""

    def work() -> dict[str, Any]:
        before, found = set(sys.modules), Baseline()
        status = _pytest(files, Watch(found))
        if status:
            return {"status": status}
        found.imported = sorted(name for name in set(sys.modules) - before if _is_library(sys.modules[name]))
        return vars(found)

    answer, _ = in_fork(work, 3600)
    if not isinstance(answer, dict) or "status" in answer:
        raise SystemExit(f"tests fail on the unchanged source: look at pytest {' '.join(files)}")
    for name in answer["imported"]:
        try:
            importlib.import_module(name)
        except ImportError:  # made by another module under a name of its own
            continue
    baseline.seconds |= answer["seconds"]
    baseline.lines |= answer["lines"]


def _is_library(module: ModuleType) -> bool:
    """Whether this is a module of an installed package, not of this checkout."""
    return str(getattr(module, "__file__", "")).startswith((sys.prefix, sys.base_prefix))


def judge(mutant: Mutant, baseline: Baseline) -> dict[str, Any]:
    """Runs the tests against one mutant: a row that says whether a test failed, and which."""
    tree = mutated(path_of(mutant.module).read_text(), mutant.number)
    files, order = files_of(mutant.module), baseline.order(mutant)

    def work() -> tuple[int, str]:
        sys.meta_path.insert(0, Mutated(mutant.module, tree))
        plugin = Order(order)
        return _pytest(files, plugin), plugin.failed

    answer, spent = in_fork(work, LEAST_SECONDS + 3 * sum(baseline.seconds[test] for test in order))
    status, failed = (1, answer) if isinstance(answer, str) else answer
    passed = status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    row = {"kind": "row", "module": mutant.module, "line": mutant.line, "function": mutant.function}
    row |= {"original": mutant.original, "mutated": mutant.mutated, "outcome": "survived" if passed else "killed"}
    return row | {"by": failed or ("" if passed else "import"), "tests": " ".join(files), "seconds": round(spent, 2)}


def explained() -> dict[tuple[str, ...], str]:
    """Mutants of which the reason why they survive is known, by their keys."""
    if not EXPLAINED.exists():
        return {}
    rows = [json.loads(line) for line in EXPLAINED.read_text().splitlines()]
    return {tuple(row[k] for k in KEY): row["why"] for row in rows}


def reason(mutant: Mutant, reasons: Mapping[tuple[str, ...], str]) -> str | None:
    """Why a mutant changes no result, if that is known."""
    if mutant.mutated.count("strict=False") > mutant.original.count("strict=False"):
        return "strict=True is an assertion that two lengths agree, which they do in every call"
    return reasons.get(mutant.key)


def sample(modules: Sequence[str], count: int, seed: int, text: str = "") -> list[Mutant]:
    """`count` of the mutants of these modules whose statement holds a text, or all; in the order of the source."""
    everything = [one for module in modules for one in mutants(path_of(module).read_text(), module)]
    everything = [one for one in everything if text in one.original]
    chosen = random.Random(seed).sample(everything, min(count, len(everything)))
    return sorted(chosen, key=lambda one: (modules.index(one.module), one.number))


def again(record: Path) -> list[Mutant]:
    """The mutants that survived in a record and that there are still."""
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    lost = {tuple(row[k] for k in KEY) for row in rows if row.get("outcome") == "survived"}
    modules = {key[0]: mutants(path_of(key[0]).read_text(), key[0]) for key in lost}
    return [one for found in modules.values() for one in found if one.key in lost]


def run(chosen: Sequence[Mutant], out: Path, minutes: float) -> list[dict[str, Any]]:
    """Judges mutants until so many CPU minutes are spent; a row each into a file that ends with the counts."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a process with more threads cannot be forked safely
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    reasons, baseline, rows = explained(), Baseline(), list[dict[str, Any]]()
    measured: set[str] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as file:
        for mutant in chosen:
            if sum(row["seconds"] for row in rows) > 60 * minutes:
                break
            if new := [name for name in files_of(mutant.module) if name not in measured]:
                measure(new, baseline)
                measured.update(new)
            row = judge(mutant, baseline)
            if row["outcome"] == "survived" and (why := reason(mutant, reasons)):
                row |= {"outcome": "equivalent", "why": why}
            rows.append(row)
            print(json.dumps(row), file=file, flush=True)
            if row["outcome"] == "survived":
                print(f"{mutant.module}:{mutant.line} {mutant.original}  ->  {mutant.mutated}", flush=True)
        counts = collections.Counter(row["outcome"] for row in rows)
        print(json.dumps({"kind": "end", "mutants": len(rows), **counts}), file=file)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run tests against a sample of mutants of the modules they mirror.")
    parser.add_argument("--module", nargs="*", default=SAMPLED, help="dotted names; default: all of the instrument")
    parser.add_argument("--count", type=int, default=240, help="mutants in the sample; default 240")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample; default 0")
    parser.add_argument("--text", default="", help="only mutants of statements that hold this text")
    parser.add_argument("--again", type=Path, help="a record: only the mutants that survived in it")
    parser.add_argument("--minutes", type=float, default=60.0, help="CPU minutes at which to stop; default 60")
    parser.add_argument("--out", type=Path, default=Path("out/mutants.jsonl"), help="record; default out/mutants.jsonl")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = sample(list(options.module), options.count, options.seed, options.text)
    rows = run(again(options.again) if options.again else chosen, options.out, options.minutes)
    counts = collections.Counter(row["outcome"] for row in rows)
    print(f"{len(rows)} mutants: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    sys.exit(counts["survived"] > 0.05 * len(rows))


if __name__ == "__main__":
    main()
