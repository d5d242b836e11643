"""The queue of `python -m benchmarks.real_model --run`: what is done, what is next, and how long the rest will take.

Each run is a record file of its own, FOLDER/NAME.jsonl. The files are the queue's whole memory: a run is done when its
file has an end line, and one that was stopped goes on from its checkpoint in FOLDER/checkpoints/NAME, which is deleted
once the run is done. Starting the same command again is therefore how a stopped queue goes on.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.real_runs import PARTS, Run
from smoothlab import record_files
from smoothlab.commands.machine import machine
from smoothlab.environment import environment
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.finetune.options import grid
from smoothlab.records import run as record

PLACES = ("model", "data_dir", "checkpoint", "save", "tensorboard")
"""Options that say where something is: records made in another folder are the same records."""
BACKWARD = 2.0  # forwards that a backward pass takes
PRODUCT = 6.0  # forwards of an exact Hessian-vector product, two gradients
PRODUCTS = 30  # products of a block at a measuring point


class Status(NamedTuple):
    """State of a run."""

    state: str  # to do, begun, done, diverged (which is done too), waiting
    seconds: float | None  # that the run took; None where it was continued, or is not done
    test: Mapping[str, Any] | None  # the row of its test
    detail: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do for the run."""
        return self.state in ("done", "diverged")


@dataclass(frozen=True)
class Queue:
    """Runs in their order, and the folder of their records.

    Attributes:
        every: all runs; those that are not chosen may have selected rates of chosen ones.
        folder: of the records.
        only: names of the runs and parts that are chosen; all of them by default.
    """

    every: Sequence[Run]
    folder: Path
    only: Sequence[str] | None = None

    @property
    def runs(self) -> list[Run]:
        """The chosen runs."""
        return [run for run in self.every if self.only is None or {run.name, run.part} & set(self.only)]

    def path(self, run: Run) -> Path:
        """Record file of a run."""
        return self.folder / f"{run.name}.jsonl"

    def statuses(self) -> dict[str, Status]:
        """Status of every run, by name.

        Raises:
            BadInput: a record file is of another run, or damaged.
        """
        statuses: dict[str, Status] = {}
        for run in self.every:
            status = self._status(run)
            missing = [name for name in run.takes.values() if not _tested(statuses, name)]
            if missing and status.state == "to do":
                status = Status("waiting", None, None, f"for {', '.join(dict.fromkeys(missing))}")
            elif status.finished:
                self._check(run, statuses)
            statuses[run.name] = status
        return statuses

    def _status(self, run: Run) -> Status:
        path = self.path(run)
        # An empty file is that of a run that is being started, or whose start was stopped.
        if not path.exists() or path.stat().st_size == 0:
            return Status("to do", None, None)
        contents = record_files.read(path)
        rows = [row for row in contents.rows if row is not None]
        tests = [row for row in rows if row.get("part") == "test"]
        if contents.finished and not contents.damage:
            test = tests[-1] if tests else None
            end = json.loads(path.read_bytes().splitlines()[-1])
            return Status("done", end["seconds"], test)
        if rows and rows[-1].get("part") == "stopped" and len(_trials(run.experiment)) == 1:
            # Starting it again would diverge again: what diverged is a result.
            return Status("diverged", None, None, str(rows[-1]["why"]))
        return Status("begun", None, None, f"{len(rows)} rows")

    def _check(self, run: Run, statuses: Mapping[str, Status]) -> None:
        """Refuse the records of a run with other settings."""
        path = self.path(run)
        experiment = run.experiment
        if all(_tested(statuses, name) for name in run.takes.values()):
            experiment = run.with_rates(_selected(statuses))
        header = record_files.read(path).header
        assert header is not None
        config = experiment.upgrade(header["config"])
        configured = json.loads(json.dumps(asdict(experiment), default=str))
        left_out = PLACES
        if experiment is run.experiment:  # the rates that it takes are not known any more
            left_out += tuple(run.takes)
        for name, value in configured.items():
            if name not in left_out and json.loads(json.dumps(config[name])) != value:
                raise BadInput(
                    f"{path} has {name} {config[name]}, this queue has {value}: choose another --out, or the "
                    "--size and options that the folder was made with"
                )

    def remaining(self, statuses: Mapping[str, Status]) -> list[Run]:
        """Runs that are not over, in their order."""
        return [run for run in self.runs if not statuses[run.name].finished]

    def seconds(self, run: Run, statuses: Mapping[str, Status]) -> float | None:
        """Expected seconds of a run from those of timed ones: of its method, else of its experiment; None without any.

        The work of both is counted in forward passes, see `forwards`, and the seconds of a pass are the timed runs'.
        """
        timed = [other for other in self.every if statuses[other.name].seconds is not None]
        same_experiment = [other for other in timed if other.experiment.name == run.experiment.name]
        same_method = [
            other
            for other in same_experiment
            if other.experiment.method == run.experiment.method and forwards(other) > 0
        ]
        for measured in (same_method, same_experiment):
            work = sum(forwards(other) for other in measured)
            if work:
                seconds = sum(statuses[other.name].seconds or 0.0 for other in measured)
                return seconds / work * forwards(run)
        return None

    def eta(self, statuses: Mapping[str, Status]) -> tuple[float, int]:
        """Seconds of the remaining runs that can be told, and how many runs cannot be."""
        expected = [self.seconds(run, statuses) for run in self.remaining(statuses)]
        timed = [seconds for seconds in expected if seconds is not None]
        return sum(timed), len(expected) - len(timed)

    def lines(self) -> list[str]:
        """The queue as text: a line a run, then what was measured and what is ahead."""
        statuses, lines, part = self.statuses(), [], ""
        for run in self.runs:
            if run.part != part:
                part = run.part
                lines.append(f"{PARTS.get(part, part)}:")
            status = statuses[run.name]
            duration = ""
            expected = self.seconds(run, statuses)
            if status.seconds is not None:
                duration = f"{status.seconds:.0f} s"
            elif not status.finished and expected is not None:
                duration = f"about {expected:.0f} s"
            lines.append(f"  {run.name:34s} {status.state:9s} {duration:14s} {status.detail}".rstrip())
        return [*lines, self.summary(statuses)]

    def summary(self, statuses: Mapping[str, Status]) -> str:
        """One line: runs that are done, seconds that were measured, and what is ahead."""
        count = len(self.runs) - len(self.remaining(statuses))
        measured = sum(statuses[run.name].seconds or 0.0 for run in self.runs)
        line = f"{count} of {len(self.runs)} runs done, {hours(measured)} measured"
        expected, unknown = self.eta(statuses)
        if expected:
            line += f", about {hours(expected)} ahead"
        if unknown:
            line += f", {unknown} runs of unknown duration (no run of their kind is timed yet)"
        return line

    def work(
        self, *, budget: float | None = None, say: Callable[[str], None] = print
    ) -> tuple[list[str], dict[str, str]]:
        """Make the remaining runs, one after the other, in this process.

        Args:
            budget: seconds after which no run is started any more; one that would end later is not started either, as
                far as timed runs tell.
            say: prints a line.

        Returns:
            Names of runs that were left out for want of time, and reasons of runs that failed, by name.
        """
        started, failed = time.monotonic(), dict[str, str]()
        for run in self.runs:
            statuses = self.statuses()
            status = statuses[run.name]
            if status.finished:
                continue
            if status.state == "waiting":
                failed[run.name] = f"waits {status.detail}"
                continue
            elapsed = time.monotonic() - started
            if budget is not None and elapsed + (self.seconds(run, statuses) or 0.0) >= budget:
                remaining = [other.name for other in self.remaining(statuses) if other.name not in failed]
                return remaining, failed
            say(f"{run.name}: next; {self.summary(statuses)}")
            try:
                self._record(run, statuses)
            except Exception as error:
                # The others go on; the next start tries this one again, unless it has diverged.
                if self._status(run).state != "diverged":
                    failed[run.name] = " ".join(f"{type(error).__name__}: {error}".split())
                    say(f"{run.name}: {failed[run.name]}")
        return [], failed

    def _record(self, run: Run, statuses: Mapping[str, Status]) -> None:
        experiment = run.with_rates(_selected(statuses))
        checkpoints = self.folder / "checkpoints" / run.name
        if experiment.steps:  # a run of no steps has nothing to go on from
            experiment = replace(experiment, checkpoint=checkpoints)
        record(experiment, self.path(run), environment=environment(**machine(experiment)))
        # Twice the weights a run: a queue's checkpoints would fill a disk.
        shutil.rmtree(checkpoints, ignore_errors=True)


def forwards(run: Run) -> float:
    """Work of a run in forward passes of a minibatch: steps, evaluations and measuring points; an estimate.

    A step takes its evaluations of the loss, and two forwards for a backward pass where it has one. A product with the
    Hessian takes two gradients, one of the paper's protocol one.
    """
    experiment = run.experiment
    trials = len(_trials(experiment))
    step = float(experiment.sides * experiment.q) if experiment.recipe.base == "zeroth" else 0.0
    if experiment.method != "zo":
        step += 1 + BACKWARD
    work = trials * experiment.steps * step
    if isinstance(experiment, Finetune):
        evaluations = 1 + experiment.steps / experiment.eval_every
        return work + (trials * evaluations * experiment.dev + experiment.test) / experiment.batch
    point = len(experiment.measure) * (PRODUCTS * PRODUCT + experiment.probes * (1 + BACKWARD))
    return work + experiment.points * point


def hours(seconds: float) -> str:
    """A duration: "45 s", "12 min", "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _trials(experiment: Any) -> Sequence[Any]:
    if isinstance(experiment, Finetune):
        return grid(experiment)
    return [experiment.rates]


def _tested(statuses: Mapping[str, Status], name: str) -> bool:
    return name in statuses and statuses[name].test is not None


def _selected(statuses: Mapping[str, Status]) -> dict[str, Mapping[str, Any]]:
    """Rows of the tests that are there, by name of the run."""
    return {name: status.test for name, status in statuses.items() if status.test is not None}


def report(queue: Queue, left: Sequence[str], failed: Mapping[str, str], budget: float | None) -> int:
    """Say what was left out and what failed; the exit status."""
    print(queue.summary(queue.statuses()))
    if left:
        print(f"left out, as {budget or 0:g} hours are over: {', '.join(left)}; start the command again to go on")
    for name, reason in failed.items():
        print(f"real_model: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0
