"""The subcommands, `smoothlab smoothness | plot | audit | demo`: one an experiment, and what they are asked with.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import contextlib
import functools
import importlib
import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from smoothlab.errors import BadInput, speaks
from smoothlab.experiments.advise.experiment import Advise
from smoothlab.experiments.complaints import usage_error
from smoothlab.experiments.continuation import AGAIN, continuation
from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.options import check_renamed
from smoothlab.experiments.fit.experiment import Fit
from smoothlab.experiments.positionals import files_first
from smoothlab.experiments.quadratic.experiment import QuadraticExample
from smoothlab.experiments.rates.experiment import Rates
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.paths import check_all
from smoothlab.report import FIGURES
from smoothlab.threads import use_threads

EXPERIMENTS: dict[str, type[Any]] = {
    "smoothness": Smoothness, "estimators": Estimators, "quadratic": QuadraticExample, "rates": Rates,
    "finetune": Finetune, "advise": Advise,
}  # fmt: skip
READERS = ("fit", "plot", "report")
"""Subcommands whose positional words are record files."""
SUMMARIZED = ("quadratic", "rates", "finetune", "advise")
"""Experiments of which a summary is printed after the run."""
SUMMARIES = {"advise": "advise"}
"""Modules of smoothlab.report that make it, where it is not the table of comparisons."""
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # no --no-flag
Threads = Annotated[
    int | None, arg(metavar="INT", help="number of CPU threads for torch; by default torch's own choice.")
]
STOPPED = {
    "smoothness": "a stopped run trains again, from --checkpoint where it has one, and measures the missing points",
    "finetune": "a stopped run continues from --checkpoint; without one it starts again",
    "advise": "a stopped run starts again",
}
"""What the same command does after a run was stopped, where it is not to measure the missing settings."""


@dataclass(frozen=True)
class Command:
    """What a subcommand does, and what the same command line does after this one was stopped, in words."""

    run: Callable[[], int | None]
    continuation: Callable[[], str] = lambda: AGAIN

    def __call__(self) -> int | None:
        """Run it and return its exit status, None for 0."""
        return self.run()


def parse(argv: list[str]) -> Command:
    """The command that `argv` asks for; --help and mistakes end the process as usual, a mistake with one line."""
    check_renamed(argv)
    commands: dict[str, Callable[..., Command]] = {name: _measuring(name, kind) for name, kind in EXPERIMENTS.items()}
    commands |= {
        "fit": fit,
        "plot": plot,
        "report": report,
        "replay": replay,
        "audit": audit,
        "verify": verify,
        "demo": demo,
    }
    for name, command in commands.items():
        commands[name] = _with_checked_paths(command)
    if argv and argv[0] in READERS:
        argv = files_first(argv, commands[argv[0]])
    complaint = io.StringIO()
    try:
        # tyro draws a box over many lines on stderr, of which one line is made.
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="smoothlab",
                description="Hybrid zeroth- and first-order fine-tuning: its training, curvature, rates and claims.",
                args=argv,
            )
    except SystemExit as end:
        if not end.code:
            sys.stdout.flush()
            raise
        if not speaks():
            time.sleep(2)  # torchrun ends all processes as soon as one has failed: the first one needs time to speak
            raise
        raise BadInput(usage_error(complaint.getvalue(), argv, commands)) from None


def _with_checked_paths(command: Callable[..., Command]) -> Callable[..., Command]:
    """The subcommand, which first looks whether its paths can be used."""

    @functools.wraps(command)
    def checked(*values: Any, **named: Any) -> Command:
        check_all(inspect.signature(command).bind(*values, **named).arguments)
        return command(*values, **named)

    return checked


def _measuring(name: str, kind: type[Any]) -> Callable[..., Command]:
    """The subcommand that runs an experiment; its options are the experiment's fields, and where the records go."""

    def measure(
        experiment: Any,
        out: Annotated[
            Path,
            arg(
                metavar="FILE.jsonl",
                help=f"record file; {STOPPED.get(name, 'a stopped run measures the missing settings')}.",
            ),
        ] = Path("out") / f"{name}.jsonl",
        overwrite: Annotated[Flag, arg(help="discard what the record file holds, and run again.")] = False,
        dry_run: Annotated[Flag, arg(help="print what would be run and what it takes, and stop.")] = False,
        threads: Threads = None,
    ) -> Command:
        command = functools.partial(_measure, experiment, out, overwrite, dry_run, threads)
        if dry_run:
            return Command(command)
        return Command(command, continuation(out, overwrite, getattr(experiment, "continuation", None)))

    # tyro reads options from annotations; without a name, the experiment's are --seed, not --experiment.seed.
    measure.__annotations__["experiment"] = Annotated[kind, arg(name="")]
    measure.__doc__ = kind.__doc__
    return measure


def _measure(experiment: Any, out: Path, overwrite: bool, dry_run: bool, threads: int | None) -> None:
    from smoothlab import records

    use_threads(threads)  # before the header of the records, which says how many

    def lead() -> None:
        if dry_run:
            print(experiment.plan())
            return
        records.run(experiment, out, environment=records.environment(**machine(experiment)), overwrite=overwrite)
        print(out)
        if experiment.name in SUMMARIZED and out.is_file():  # a pipe or device keeps no records to read
            summary = importlib.import_module(f"smoothlab.report.{SUMMARIES.get(experiment.name, 'comparisons')}")
            print("\n".join(summary.text(records.load(out))))

    if isinstance(experiment, Finetune) and int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun
        from smoothlab.llm import distributed

        follow = experiment.plan if dry_run else lambda: list(experiment.rows([]))
        distributed.run(lead, follow, experiment.device, met=dry_run)
    else:
        lead()


def machine(experiment: Any) -> dict[str, Any]:
    """What records cannot know by themselves: the device, and how torch computes on it."""
    import torch

    threads = {"threads": torch.get_num_threads()}
    device = getattr(experiment, "device", None)
    if device is None:
        return threads
    from smoothlab.llm.memory import check_device
    from smoothlab.llm.models import file_identity

    known = {"device": device} | threads
    try:
        file = file_identity(getattr(experiment, "model", "micro"))
        if file is not None:
            known["model_file"] = file
        check_device(device)
    except BadInput:  # the experiment says so, unless its records are finished
        return known
    if device.startswith("cuda"):
        return known | {"gpu": torch.cuda.get_device_name(device)}
    return known | {"cpu_capability": torch.backends.cpu.get_cpu_capability()}


def fit(  # noqa: D103
    experiment: Annotated[Fit, arg(name="")],
    out: Annotated[
        Path | None, arg(metavar="FILE.jsonl", help="record file for points, fits, curves and tests; none by default.")
    ] = None,
    overwrite: Annotated[Flag, arg(help="replace the record file if it exists.")] = False,
) -> Command:
    # The docstring is the configuration's, which describes the options.
    def run() -> None:
        from smoothlab.report import growth

        _check_files(experiment.records, "fit out/smoothness.jsonl", out, overwrite)
        print("\n".join(growth.text(experiment.written(out, overwrite))))

    return Command(run)


fit.__doc__ = Fit.__doc__


def plot(
    records: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE.jsonl ...")] = (),
    kind: Annotated[
        str,
        arg(
            constructor=tyro.extras.literal_type_from_choices(FIGURES),
            help="figure to draw. " + "; ".join(f"{name}: {figure.shows}" for name, figure in FIGURES.items()) + ".",
        ),
    ] = "fig1a",
    block: tuple[str, ...] = (),
    quantity: str = "frobenius",
    out: Annotated[Path | None, arg(metavar="FILE.png|pdf|svg")] = None,
    overwrite: Flag = False,
) -> Command:
    """Draw a figure from record files; measures nothing.

    Args:
        records: record files or glob patterns, e.g. 'out/*.jsonl'.
        kind: kind of figure.
        block: names of the blocks that figures of Hessian norms draw; by default all, in fig1a the first one.
        quantity: quantity of the Hessian that these figures draw: frobenius, spectral, trace or gauss_newton_trace.
        out: figure file, in the format of its ending (.png, .pdf or .svg); by default KIND.png.
        overwrite: replace the figure file if it exists.
    """

    def run() -> None:
        from smoothlab.records import load

        picture = out or Path(f"{kind}.png")
        form = picture.suffix[1:]
        if form not in ("png", "pdf", "svg"):
            raise BadInput(f"--out {picture} does not end in .png, .pdf or .svg; give it one of these endings")
        _check_files(records, "plot out/smoothness.jsonl", picture, overwrite)
        table = load(records)
        several = sorted(set(table["experiment"].replace("hook", "smoothness")))  # whose rows are the same
        if len(several) > 1:
            raise BadInput(
                f"these records are of {' and '.join(several)}: draw the records of one experiment at a time"
            )

        from smoothlab.report import draw, panels

        for path in panels.save(draw(kind, table, quantity, block), picture.with_suffix(""), (form,)):
            print(path)

    return Command(run)


def _check_files(records: Sequence[str], example: str, out: Path | None, overwrite: bool) -> None:
    if not records:
        raise BadInput(f"no record file is named; give one, e.g. smoothlab {example}")
    if out is not None and out.exists() and not overwrite:
        raise BadInput(f"{out} exists; choose another --out, or replace it with --overwrite")


def report(
    records: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE.jsonl ...")] = (),
    where: Annotated[tuple[str, ...], arg(metavar="COLUMN=VALUE ...")] = (),
    out: Annotated[Path, arg(metavar="FILE.html")] = Path("report.html"),
    overwrite: Flag = False,
) -> Command:
    """Write one page on any record files: what to take away, figures, measured beside references; measures nothing.

    Args:
        records: record files or glob patterns of any experiments, e.g. 'out/*.jsonl'.
        where: columns of the records and the values that rows must have there to be in the tables, e.g. part=theorem.
        out: HTML file, which needs no other file.
        overwrite: replace the page if it exists.
    """

    def run() -> None:
        from smoothlab.report import page

        _check_files(records, "report out/*.jsonl", out, overwrite)
        filters = {}
        for text in where:
            name, equals, value = text.partition("=")
            if not equals:
                raise BadInput(f"--where {text}: write COLUMN=VALUE, e.g. part=theorem")
            filters[name] = value
        print(page.write(out, records, title="smoothlab report", where=filters))

    return Command(run)


def replay(
    log: Annotated[Positional[str], arg(metavar="LOG")] = "",
    model: str = "micro",
    save: Path = Path("out/replayed"),
    steps: int | None = None,
    device: str = "cpu",
) -> Command:
    """Rebuild a fine-tuned base model, to the bit, from its seed log and the model that its run began with.

    Args:
        log: seed log of `finetune --checkpoint log:FOLDER`: the file, a folder that holds one, or a repository on the
            hub (owner/name, or owner/name/FILE).
        model: model that the run began with, as its --model named it; other weights are refused.
        save: folder that model/ is written to, for plain transformers.
        steps: number of steps to make, such as the best one that finetune found; by default all.
        device: device to draw the directions on.
    """

    def run() -> None:
        from smoothlab.experiments.replay import Replay

        if not log:
            raise BadInput("no seed log is named: write smoothlab replay LOG --model MODEL --save FOLDER")
        print(Replay(log, model, save, steps, device).run())

    return Command(run)


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
    settings = (claims + names + more_names, record_files, files, seed)
    command = functools.partial(_audit, settings, json, html, out, overwrite, threads)
    if out is None:
        return Command(command)
    return Command(command, continuation(out, overwrite, lambda: "checks the missing claims"))


def _files_and_names(words: Sequence[Path], ending: str) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Files among the words of an option that takes several, and the positional names that stand behind them."""
    files, names = [], []
    for word in words:
        if word.suffix == ending or word.exists():
            files.append(word)
        else:
            names.append(str(word))
    return tuple(files), tuple(names)


def _audit(
    settings: tuple[Any, ...], as_json: bool, html: Path | None, out: Path | None, overwrite: bool, threads: int | None
) -> int:
    import json

    from smoothlab import records
    from smoothlab.experiments.audit import Audit, differs, lines, loaded, machine_readable, warn

    use_threads(threads)
    experiment = Audit(*settings)
    experiment.chosen()  # a mistake is reported before anything is written
    checked: Iterable[dict[str, Any]] = experiment.rows([])
    if out is not None:
        records.run(experiment, out, environment=records.environment(**machine(experiment)), overwrite=overwrite)
        checked = loaded(out)
    rows = []
    for row in checked:
        rows.append(row)
        if not as_json:
            print("\n".join(lines(row, evidence=bool(settings[0]))), flush=True)
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
    settings = (file, probes, seed, dtype, step_seconds)
    command = functools.partial(_verify, settings, json, html, out, overwrite, threads)
    if out is None:
        return Command(command)
    return Command(command, continuation(out, overwrite, lambda: "asks the missing questions"))


def _verify(
    settings: tuple[Any, ...], as_json: bool, html: Path | None, out: Path | None, overwrite: bool, threads: int | None
) -> int:
    import dataclasses
    import json

    from smoothlab import records
    from smoothlab.experiments.verify import Verify, answer_of, read, status, summary

    if not settings[0]:
        raise BadInput("no Python file is named: write smoothlab verify FILE.py[:NAME]")
    use_threads(threads)
    experiment = Verify(*settings)
    name = experiment.subject.name  # a mistake is reported before anything is written
    rows: Iterable[dict[str, Any]] = experiment.rows([])
    if out is not None:
        records.run(experiment, out, environment=records.environment(**machine(experiment)), overwrite=overwrite)
        rows = read(out)
    found, shown = [], []
    for row in rows:
        shown.append(row)
        found.append(answer_of(row))
        if not as_json:
            print(found[-1], flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(answer) for answer in found], indent=1))
    else:
        print(summary(name, found))
    if html is not None:
        from smoothlab.report.verify_page import page

        _write_page(html, page(shown))
    return status(found)


def _write_page(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; choose another --html") from None


def demo(
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("out/demo"), seed: int = 0, overwrite: Flag = False
) -> Command:
    """Measure and draw Fig. 1a, 1b, the estimators and the rates with built-in model and data, in four minutes.

    Args:
        out: folder for record files and index.html; a stopped run measures what is missing.
        seed: seed of data order, PEFT initialization and probes.
        overwrite: discard what the record files hold, and measure again.
    """

    def run() -> None:
        from smoothlab import records
        from smoothlab.experiments.demo import measure
        from smoothlab.report import page

        measured = measure(out, seed, records.environment(**machine(Smoothness()) | {"threads": 1}), overwrite)
        title = "smoothlab in small: curvature, fine-tuning, estimators, rates"
        print(page.write(out / "index.html", measured, title=title))

    without = " without --overwrite" if overwrite else ""
    return Command(run, lambda: f"the same command{without} measures what is missing in {out}")
