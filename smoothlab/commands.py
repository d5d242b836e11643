"""The subcommands, `smoothlab smoothness | plot | audit | demo`: one an experiment, and what they are asked with.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import contextlib
import functools
import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from smoothlab.errors import BadInput
from smoothlab.experiments.complaints import plain
from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.quadratic.experiment import QuadraticExample
from smoothlab.experiments.rates.experiment import Rates
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.paths import check_all

EXPERIMENTS: dict[str, type[Any]] = {
    "smoothness": Smoothness, "estimators": Estimators, "quadratic": QuadraticExample, "rates": Rates,
    "finetune": Finetune,
}  # fmt: skip
Command = Callable[[], int | None]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # no --no-flag


def parse(argv: list[str]) -> Command:
    """The command that `argv` asks for; --help and mistakes end the process as usual, a mistake with one line."""
    commands: dict[str, Callable[..., Command]] = {name: _measuring(name, kind) for name, kind in EXPERIMENTS.items()}
    commands |= {"plot": plot, "audit": audit, "demo": demo}
    commands = {name: _with_checked_paths(command) for name, command in commands.items()}
    complaint = io.StringIO()
    try:
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
        if os.environ.get("RANK", "0") != "0":  # of torchrun's processes the first one says it, if it is given time
            time.sleep(2)
            raise
        command = next((one for one in argv if one in commands), None)
        help_for = f"smoothlab {command} --help" if command else "smoothlab --help"
        raise BadInput(f"{_first_words(complaint.getvalue())}; see {help_for}") from None


def _with_checked_paths(command: Callable[..., Command]) -> Callable[..., Command]:
    """The subcommand, which first looks whether its paths can be used."""

    @functools.wraps(command)
    def checked(*values: Any, **named: Any) -> Command:
        check_all(inspect.signature(command).bind(*values, **named).arguments)
        return command(*values, **named)

    return checked


def _first_words(box: str) -> str:
    """What tyro says in its box, on one line: the mistake, and the first thing that may have been meant."""
    lines = [line.strip("│╭╮╰╯|+ ") for line in box.splitlines()]  # drawn in ASCII where the terminal is
    title, body = lines[0].strip("─- ") if lines else "", [line for line in lines[1:] if line]
    parts: list[list[str]] = [[]]
    for line in body:
        if line.strip("─-"):
            parts[-1].append(line)
        else:
            parts.append([])
    words = " ".join(next(filter(None, parts), [])).rstrip(" .").replace(" (required)", "")
    meant = next((part[1] for part in parts if len(part) > 1 and part[0].startswith("Perhaps you meant")), None)
    choices = next((part[0] for part in parts if part and part[0].startswith("Available")), None)
    hint = f"; perhaps you meant {meant}" if meant else f"; {choices[0].lower()}{choices[1:]}" if choices else ""
    return plain(words or title) + hint


def _measuring(name: str, kind: type[Any]) -> Callable[..., Command]:
    """The subcommand that runs an experiment; its options are the experiment's fields, and where the records go."""

    def measure(
        experiment: Any,
        out: Annotated[
            Path,
            arg(metavar="FILE.jsonl", help="Record file; one that was stopped halfway is continued."),
        ] = Path("out") / f"{name}.jsonl",
        overwrite: Annotated[Flag, arg(help="Discard what the record file holds, and measure again.")] = False,
        dry_run: Annotated[Flag, arg(help="Say what would be measured and what it costs, and stop.")] = False,
    ) -> Command:
        return lambda: _measure(experiment, out, overwrite, dry_run)

    measure.__annotations__["experiment"] = Annotated[kind, arg(name="")]
    measure.__doc__ = kind.__doc__
    return measure


def _measure(experiment: Any, out: Path, overwrite: bool, dry_run: bool) -> None:
    from smoothlab import records

    def lead() -> None:
        if dry_run:
            print(experiment.plan())
            return
        records.run(experiment, out, environment=records.environment(**_machine(experiment)), overwrite=overwrite)
        print(out)
        if hasattr(experiment, "reading"):
            print("\n".join(experiment.reading(out)))

    if isinstance(experiment, Finetune) and int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun
        from smoothlab.llm import distributed

        follow = experiment.plan if dry_run else lambda: list(experiment.rows([]))
        distributed.run(lead, follow, experiment.device, met=dry_run)
    else:
        lead()


def _machine(experiment: Any) -> dict[str, Any]:
    """What records cannot know by themselves: the device, and how torch computes on it."""
    device = getattr(experiment, "device", None)
    if device is None:
        return {}
    import torch

    from smoothlab.llm.memory import check_device

    known = {"device": device, "threads": torch.get_num_threads()}
    try:
        check_device(device)
    except BadInput:  # the experiment says so, unless its records are finished
        return known
    if device.startswith("cuda"):
        return known | {"gpu": torch.cuda.get_device_name(device)}
    return known | {"cpu_capability": torch.backends.cpu.get_cpu_capability()}


def plot(
    records: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE.jsonl ...")] = (),
    kind: Literal["fig1a", "fig1b", "path", "estimators", "quadratic", "rates", "finetune"] = "fig1a",
    quantity: str = "frobenius",
    out: Annotated[Path | None, arg(metavar="FILE.png|pdf|svg")] = None,
    overwrite: Flag = False,
) -> Command:
    """Draw a figure from record files; measures nothing.

    Args:
        records: Record files or glob patterns, e.g. 'out/*.jsonl'.
        kind: fig1a: one block against step and gradient norm; fig1b: the blocks side by side, and their ratio;
            path: path-based smoothness of each block; estimators: all that `smoothlab estimators` measured;
            quadratic, rates: all that `smoothlab quadratic` and `smoothlab rates` measured;
            finetune: training curves and accuracies of the runs.
        quantity: Which norm fig1a and fig1b draw: frobenius or spectral (or trace).
        out: Figure file, its ending tells the format; default: KIND.png.
        overwrite: Replace the figure file if it exists.
    """
    return lambda: _plot(records, kind, quantity, out or Path(f"{kind}.png"), overwrite)


def _plot(patterns: Sequence[str], kind: str, quantity: str, out: Path, overwrite: bool) -> None:
    from smoothlab.records import load

    if not patterns:
        raise BadInput("no record file is named; give one, e.g. smoothlab plot out/smoothness.jsonl")
    form = out.suffix[1:]
    if form not in ("png", "pdf", "svg"):
        raise BadInput(f"--out {out} does not end in .png, .pdf or .svg; give it one of these endings")
    if out.exists() and not overwrite:
        raise BadInput(f"{out} exists; choose another --out, or replace it with --overwrite")
    table = load(patterns)
    several = sorted(set(table["experiment"].replace("hook", "smoothness")))  # whose rows are the same
    if len(several) > 1:
        raise BadInput(f"these records are of {' and '.join(several)}: draw the records of one experiment at a time")

    from smoothlab.report import plots
    from smoothlab.stats import smoothness_table

    if kind in ("fig1a", "fig1b", "path"):
        smoothness_table.check(table)
    if kind == "path":
        figure = plots.path_figure(table)
    elif kind == "estimators":
        from smoothlab.report.plots_estimators import estimators_figure

        figure = estimators_figure(table)
    elif kind == "finetune":
        from smoothlab.report.plots_finetune import finetune_figure

        figure = finetune_figure(table)
    elif kind == "quadratic":
        from smoothlab.report.plots_quadratic import quadratic_figure

        figure = quadratic_figure(table)
    elif kind == "rates":
        from smoothlab.report.plots_rates import rates_figure

        figure = rates_figure(table)
    else:
        figure = plots.figure(height=2.9 if kind == "fig1a" else 3.9)
        {"fig1a": plots.fig1a, "fig1b": plots.fig1b}[kind](figure, table, quantity)
    for path in plots.save(figure, out.with_suffix(""), (form,)):
        print(path)


def audit(
    claims: Annotated[Positional[tuple[str, ...]], arg(metavar="CLAIM ...")] = (),
    records: Annotated[tuple[Path, ...], arg(metavar="FILE.jsonl ...")] = (),
    add: Annotated[tuple[Path, ...], arg(metavar="FILE.py ...")] = (),
    seed: int = 0,
    json: Flag = False,
    html: Annotated[Path | None, arg(metavar="FILE")] = None,
    out: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None,
    overwrite: Flag = False,
) -> Command:
    """Check the paper's claims: does each hold as printed, what breaks it, what holds instead. A minute for all.

    Exit status 1 means that a verdict differs from the stored one.

    Args:
        claims: Names of claims, whose evidence is printed in full; all verdicts in short by default.
        records: Record files of `smoothlab smoothness`, for the claims on measurements.
        add: Python files that define claims of yours, CLAIM or CLAIMS (`pydoc smoothlab.claims` tells how); they run.
        seed: Seed of the searches.
        json: Print verdicts and evidence as one JSON list.
        html: Write a page with every claim.
        out: Record file; one that was stopped halfway is continued.
        overwrite: Discard what the record file holds, and check again.
    """
    return lambda: _audit((claims, records, add, seed), json, html, out, overwrite)


def _audit(given: tuple[Any, ...], as_json: bool, html: Path | None, out: Path | None, overwrite: bool) -> int:
    import json

    from smoothlab import records
    from smoothlab.experiments.audit import Audit, differs, lines, loaded, machine_readable, warn

    experiment = Audit(*given)
    rows: list[dict[str, Any]] = []
    experiment.chosen()  # a mistake is told before anything is written
    if out is not None:
        records.run(experiment, out, environment=records.environment(), overwrite=overwrite)
        rows = loaded(out)
    for row in rows if out is not None else experiment.rows([]):
        if out is None:
            rows.append(row)
        if not as_json:
            print("\n".join(lines(row, evidence=bool(experiment.claims))), flush=True)
    if as_json:
        print(json.dumps(machine_readable(rows), indent=1))
    if html is not None:
        from smoothlab.report.audit_page import page

        try:
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(page(rows), encoding="utf-8")
        except OSError as error:
            raise BadInput(f"cannot write {html}: {error.strerror}; choose another --html") from None
    warn(rows)
    return int(any(differs(row) for row in rows))


def demo(
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("out/demo"), seed: int = 0, overwrite: Flag = False
) -> Command:
    """Measure and draw Fig. 1a, 1b, the estimators and the rates with built-in model and data, in under four minutes.

    Args:
        out: Where records, figures and index.html go; a run that was stopped is continued.
        seed: Seed of data order, PEFT initialization and probes.
        overwrite: Measure again although the records are there.
    """

    def run() -> None:
        from smoothlab import records
        from smoothlab.experiments.demo import measure_and_draw

        told = records.environment(**_machine(Smoothness()))
        print(measure_and_draw(out, seed=seed, environment=told, overwrite=overwrite))

    return run
