"""The subcommands that run what is in `smoothlab.experiments`: one an experiment, the demo, and a replay.

The options of an experiment's subcommand are the fields of its class.
"""

import functools
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from smoothlab.commands.command import Command, Flag, Threads
from smoothlab.commands.machine import machine
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.experiment import Advise
from smoothlab.experiments.continuation import continuation
from smoothlab.experiments.estimators.experiment import Estimators
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.quadratic.experiment import QuadraticExample
from smoothlab.experiments.rates.experiment import Rates
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.threads import use_threads

EXPERIMENTS: dict[str, type[Any]] = {
    "smoothness": Smoothness, "estimators": Estimators, "quadratic": QuadraticExample, "rates": Rates,
    "finetune": Finetune, "advise": Advise,
}  # fmt: skip
SUMMARIZED = ("quadratic", "rates", "finetune", "advise")
"""Experiments of which a summary is printed after the run."""
SUMMARIES = {"advise": "advise"}
"""Modules of smoothlab.report that make it, where it is not the table of comparisons."""
STOPPED = {
    "smoothness": "a stopped run trains again, from --checkpoint where it has one, and measures the missing points",
    "finetune": "a stopped run continues from --checkpoint; without one it starts again",
    "advise": "a stopped run starts again",
}
"""What the same command does after a run was stopped, where it is not to measure the missing settings."""


def measuring(name: str, kind: type[Any]) -> Callable[..., Command]:
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

    replacing = " without --overwrite" if overwrite else ""
    return Command(run, lambda: f"the same command{replacing} measures what is missing in {out}")


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
