"""The subcommands whose positional words are record files: what they hold, fitted, drawn, or put on a page."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from smoothlab.commands.command import Command, Flag
from smoothlab.errors import BadInput
from smoothlab.experiments.fit.experiment import Fit
from smoothlab.report import FIGURES


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


def _check_files(records: Sequence[str], example: str, out: Path | None, overwrite: bool) -> None:
    if not records:
        raise BadInput(f"no record file is named; give one, e.g. smoothlab {example}")
    if out is not None and out.exists() and not overwrite:
        raise BadInput(f"{out} exists; choose another --out, or replace it with --overwrite")


READERS: dict[str, Callable[..., Command]] = {"fit": fit, "plot": plot, "report": report}
