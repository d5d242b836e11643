"""The subcommands that give a verdict: on the paper's claims, and on an optimizer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from smoothlab.commands.command import Command, Flag, Threads
from smoothlab.commands.machine import machine
from smoothlab.errors import BadInput
from smoothlab.experiments.continuation import continuation
from smoothlab.threads import use_threads

if TYPE_CHECKING:
    from smoothlab.experiments.audit import Audit
    from smoothlab.experiments.verify import Verify

Row = dict[str, Any]


def audit(
    claims: Annotated[Positional[tuple[str, ...]], arg(metavar="CLAIM ...")] = (),
    records: Annotated[tuple[Path, ...], arg(metavar="FILE.jsonl ...")] = (),
    add: Annotated[tuple[Path, ...], arg(metavar="FILE.py ...")] = (),
    seed: int = 0,
    json: Flag = False,
    html: Annotated[Path | None, arg(metavar="FILE")] = None,
    out: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None,
    overwrite: Flag = False,
    threads: Threads = None,
) -> Command:
    """Check the paper's claims: does each hold as printed, what breaks it, what holds instead. A minute for all.

    Exit status 1 means that a verdict differs from the stored one.

    Args:
        claims: names of claims to check, with all evidence; by default all claims, with their verdicts alone.
        records: record files of `smoothlab smoothness`, or of `finetune` for claims on accuracy; by default those in
            the source.
        add: Python files to run, which define CLAIM or CLAIMS; see `python -m pydoc smoothlab.claims`.
        seed: seed of the searches for counterexamples.
        json: print verdicts and evidence as one JSON list.
        html: HTML file to write or replace, with every claim checked; none by default.
        out: record file, none by default; a stopped run checks the missing claims.
        overwrite: discard what the record file holds, and check again.
        threads: number of CPU threads for torch; by default torch's own choice.
    """
    files, names = _files_and_names(add, ".py")
    record_files, more_names = _files_and_names(records, ".jsonl")

    def run() -> int:
        from smoothlab.experiments.audit import Audit

        use_threads(threads)
        return _audit(Audit(claims + names + more_names, record_files, files, seed), json, html, out, overwrite)

    if out is None:
        return Command(run)
    return Command(run, continuation(out, overwrite, lambda: "checks the missing claims"))


def _files_and_names(words: Sequence[Path], ending: str) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Files among the words of an option that takes several, and the positional names that stand behind them."""
    files, names = [], []
    for word in words:
        if word.suffix == ending or word.exists():
            files.append(word)
        else:
            names.append(str(word))
    return tuple(files), tuple(names)


def _audit(experiment: "Audit", as_json: bool, html: Path | None, out: Path | None, overwrite: bool) -> int:
    """Check the claims, print the verdicts, and return the exit status."""
    import json

    from smoothlab.experiments.audit import differs, lines, machine_readable, warn

    names = [claim.name for claim in experiment.chosen()]  # a mistake is reported before anything is written

    def print_row(row: Row) -> None:
        if not as_json:
            print("\n".join(lines(row, evidence=bool(experiment.claims))), flush=True)

    rows = _rows(experiment, names, print_row, out, overwrite)
    if as_json:
        print(json.dumps(machine_readable(rows), indent=1))
    if html is not None:
        from smoothlab.report.audit_page import page

        _write_page(html, page(rows))
    warn(rows)
    return int(any(differs(row) for row in rows))


def verify(
    file: Annotated[Positional[str], arg(metavar="FILE.py[:NAME]")] = "",
    probes: Annotated[tuple[str, ...], arg(metavar="PROBE ...")] = (),
    seed: int = 0,
    dtype: str = "float64",
    step_seconds: float = 60.0,
    json: Flag = False,
    html: Annotated[Path | None, arg(metavar="FILE")] = None,
    out: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None,
    overwrite: Flag = False,
    threads: Threads = None,
) -> Command:
    """Ask whether an optimizer's step is a zeroth-order gradient, and a right one. Half a minute for most.

    Exit status 1 means that something is wrong, or that the optimizer raised an error or took too long.

    Args:
        file: Python file to run, and the class or function in it, NAME(params, lr=..., seed=...), that makes the
            optimizer; without NAME the only one that takes lr.
        probes: names of the questions to ask; all of them by default.
        seed: first seed of the optimizer's runs, and the seed of the problems.
        dtype: format of the parameters where a question is not about another one: float64 or float32.
        step_seconds: longest time of a step, in seconds.
        json: print the answers as one JSON list.
        html: HTML file to write or replace, with every answer; none by default.
        out: record file, none by default; a stopped run asks the missing questions.
        overwrite: discard what the record file holds, and ask again.
        threads: number of CPU threads for torch; by default torch's own choice.
    """

    def run() -> int:
        from smoothlab.experiments.verify import Verify

        if not file:
            raise BadInput("no Python file is named: write smoothlab verify FILE.py[:NAME]")
        use_threads(threads)
        return _verify(Verify(file, probes, seed, dtype, step_seconds), json, html, out, overwrite)

    if out is None:
        return Command(run)
    return Command(run, continuation(out, overwrite, lambda: "asks the missing questions"))


def _verify(experiment: "Verify", as_json: bool, html: Path | None, out: Path | None, overwrite: bool) -> int:
    """Ask the questions, print the answers, and return the exit status."""
    import dataclasses
    import json

    from smoothlab.experiments.verify import answer_of, status, summary

    name = experiment.subject.name  # a mistake is reported before anything is written

    def print_row(row: Row) -> None:
        if not as_json:
            print(answer_of(row), flush=True)

    rows = _rows(experiment, experiment.chosen, print_row, out, overwrite)
    answers = list(map(answer_of, rows))
    if as_json:
        print(json.dumps([dataclasses.asdict(answer) for answer in answers], indent=1))
    else:
        print(summary(name, answers))
    if html is not None:
        from smoothlab.report.verify_page import page

        _write_page(html, page(rows))
    return status(answers)


def _rows(
    experiment: "Audit | Verify",
    names: Sequence[str],
    print_row: Callable[[Row], None],
    out: Path | None,
    overwrite: bool,
) -> list[Row]:
    """The rows of all claims or probes in the order of `names`, each printed as soon as those before it are there."""
    from smoothlab import records

    rows: list[Row] = []
    early_rows: dict[str, Row] = {}  # a continued record file may lack rows in its middle, which come last

    def add(row: Row) -> None:
        early_rows[row[experiment.unit]] = row
        while len(rows) < len(names) and names[len(rows)] in early_rows:
            next_row = early_rows.pop(names[len(rows)])
            rows.append(next_row)
            print_row(next_row)

    if out is None:
        for row in experiment.rows([]):
            add(row)
    else:
        environment = records.environment(**machine(experiment))
        records.run(experiment, out, environment=environment, overwrite=overwrite, each=add)
    for row in early_rows.values():  # a finished file of an earlier release may lack a name of today
        rows.append(row)
        print_row(row)
    return rows


def _write_page(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; choose another --html") from None
