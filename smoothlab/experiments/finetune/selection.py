"""The course of a fine-tuning: trials of rates, evaluations on dev, early stopping, snapshots; then one look at test.

Selection sees the dev split only: the best weights are those with the most right answers there, of equal ones those
with the lowest dev loss, over all trials and evaluations, step 0 included. The test split is looked at once, with them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.llm import distributed
from smoothlab.llm.checkpoints import Folder, Snapshot
from smoothlab.llm.evaluate import Accuracy, Encoded, NotFinite
from smoothlab.llm.tuning import Diverged, Rates, Tuning, part

Row = dict[str, Any]


class Score(NamedTuple):
    """Right answers on a split, the accuracy's 95 % interval, and the mean loss."""

    correct: int
    items: int
    low: float
    high: float
    loss: float

    @staticmethod
    def of(found: Accuracy, encoded: Encoded) -> "Score":
        """From what was measured on a split."""
        losses = []
        for scores, label in zip(found.scores, encoded.labels, strict=True):
            peak = max(scores)
            every = encoded.kind != "multiple choice"
            total = peak + math.log(sum(math.exp(s - peak) for s in scores)) if every else 0.0
            losses.append(total - scores[label])
        return Score(found.correct, found.count, *found.interval, math.fsum(losses) / len(losses))

    def row(self) -> Row:
        """The columns of a record."""
        return {
            "accuracy": self.correct / self.items, "low": self.low, "high": self.high, "correct": self.correct,
            "count": self.items,
        }  # fmt: skip


class Watcher(Protocol):
    """Is told of what happens: a progress bar, a sink of curves."""

    def begin(self, trial: int, steps: int, step: int) -> None:
        """A trial begins, or goes on at `step`."""

    def stepped(self, step: int, loss: float) -> None:
        """A step was made."""

    def evaluated(self, row: Row) -> None:
        """An evaluation is on record."""

    def close(self) -> None:
        """The course has ended."""


@dataclass
class RunState:
    """Where the course stands, beside the weights: what a snapshot holds as JSON.

    Attributes:
        rows: rows on record.
        trial: number of the trial.
        over: whether the trial has ended early.
        waited: evaluations since the trial's last better one.
        top: the trial's best (correct, -dev loss).
        first: the trial's first step with as many right answers.
        seconds: spent on steps and evaluations.
        best: the best evaluation of all trials, as far as the row of the test tells of it.
        best_rows: rows that were on record with it.
    """

    rows: int = 0
    trial: int = 0
    over: bool = False
    waited: int = 0
    top: tuple[int, float] | None = None
    first: int = 0
    seconds: float = 0.0
    best: Row | None = None
    best_rows: int = 0


@dataclass
class Course:
    """Trials of `grid`, each of at most `steps` steps.

    Attributes:
        tuning: model and data.
        grid: rates of each trial.
        steps: steps of a trial.
        every: steps between evaluations.
        patience: evaluations without a better one after which a trial ends; 0: never.
        dev: evaluates the model on the dev split.
        watcher: is told of steps and evaluations.
        folder: where snapshots go; without it the best weights are kept in memory.
    """

    tuning: Tuning
    grid: Sequence[Rates]
    steps: int
    every: int
    patience: int
    dev: Callable[[], Score]
    watcher: Watcher
    folder: Folder | None = None
    at: RunState = field(default_factory=RunState, init=False)
    _best: Mapping[str, Tensor] | None = field(default=None, init=False)

    @property
    def alone(self) -> bool:
        """Whether there is a single trial: if it diverges, the course ends with an error, after a row that says so."""
        return len(self.grid) == 1

    def resume(self, rows: int) -> None:
        """Go on from the snapshot taken after so many rows."""
        assert self.folder is not None
        if not self.alone or self.tuning.logged:
            self.tuning.remember_start()
        found = self.folder.get(self.folder.after(rows))
        self.at = RunState(**found.state["course"])
        self.at.top = None if self.at.top is None else (int(self.at.top[0]), float(self.at.top[1]))
        self._begin(found.state["step"])
        self.tuning.restore(found, self.folder.log(self.at.trial))

    def rows(self) -> Iterator[Row]:
        """Rows of the evaluations that are ahead; after each is on record, a snapshot is taken."""
        resumed = self.at.rows > 0
        if not resumed and (not self.alone or self.tuning.logged):
            self.tuning.remember_start()
        while self.at.trial < len(self.grid):
            if not resumed:
                self._begin()
            self.watcher.begin(self.at.trial, self.steps, self.tuning.step)
            if self.at.top is None and not self.at.over:
                yield from self._kept(self._evaluation(None))
            while self.tuning.step < self.steps and not self.at.over:
                row = self._leg()
                if self.alone and row["part"] == "stopped":  # without a snapshot: the last good one stays the newest
                    yield row
                    raise self._told(row["why"])
                yield from self._kept(row)
            if self.at.trial == len(self.grid) - 1:
                return
            stay = {name: getattr(self.at, name) for name in ("rows", "seconds", "best", "best_rows")}
            self.at = RunState(trial=self.at.trial + 1, **stay)
            resumed = False

    def stand_at_best(self) -> Row:
        """Take the best weights on dev; what is known of them."""
        assert self.at.best is not None
        log = None
        if self.folder is not None:
            self._best = part(self.folder.get(self.folder.best(self.at.best_rows)), "weights")
            log = self.folder.log(self.at.best["trial"])
        assert self._best is not None
        self.tuning.stand_at(self._best, log, self.at.best["step"])
        return self.at.best

    def _begin(self, steps: int = 0) -> None:
        """Begin the trial; `steps` of its seed log stand."""
        write = self.tuning.logged and self.folder is not None and distributed.rank() == 0
        log = self.folder.log(self.at.trial) if write and self.folder is not None else None
        self.tuning.start(self.grid[self.at.trial], log, steps)

    def _leg(self) -> Row:
        """Steps up to the next evaluation, and its row."""
        begun, losses = time.monotonic(), []
        try:
            while True:
                losses.append(self.tuning.update())
                self.watcher.stepped(self.tuning.step, losses[-1])
                if self.tuning.step % self.every == 0 or self.tuning.step == self.steps:
                    break
            mean = sum(losses) / len(losses)
            self.tuning.check(mean)
            seconds = time.monotonic() - begun
            return self._evaluation(mean, len(losses) / seconds, seconds)
        except BadInput as error:
            if not isinstance(error, Diverged) and not self._refused(error):
                raise
            self.at.over = True
            return {"part": "stopped", **self._place(), "why": str(error)}

    def _refused(self, error: BadInput) -> bool:
        """Whether it is these rates that are refused (a mu below rounding): others of the search may do."""
        elsewhere = isinstance(error, distributed.PeerLost) or isinstance(error.__context__, OSError)
        return not self.alone and self.tuning.step == 0 and not elsewhere

    def _told(self, why: str) -> BadInput:
        """The error with what is left of the run."""
        if self.folder is None:
            return BadInput(f"{why}; the rows so far are on record")
        return BadInput(f"{why}; the checkpoint of the last evaluation before is in {self.folder.path}")

    def _evaluation(self, loss: float | None, speed: float | None = None, seconds: float = 0.0) -> Row:
        """Evaluate on dev, compare with what was, and make the row."""
        begun = time.monotonic()
        told = distributed.broadcast(self._score() if distributed.rank() == 0 else None, len(Score._fields))
        score = Score(int(told[0]), int(told[1]), *told[2:])
        if not math.isfinite(score.loss):
            raise self.tuning.diverged(score.loss)
        self.at.seconds += seconds + time.monotonic() - begun
        found = (score.correct, -score.loss)
        if self.at.top is None or score.correct > self.at.top[0]:
            self.at.first = self.tuning.step
        self.at.waited = 0 if self.at.top is None or found > self.at.top else self.at.waited + 1
        self.at.top = found if self.at.top is None else max(found, self.at.top)
        self.at.over = 0 < self.patience <= self.at.waited
        return {
            "part": "dev", **self._place(), "train_loss": loss, "dev_loss": score.loss, **score.row(),
            "steps_per_second": speed, "forwards": self.tuning.step * self.tuning.evaluations,
            "seconds": round(self.at.seconds, 3),
        }  # fmt: skip

    def _score(self) -> Score:
        """What `dev` says; scores that are not finite are a loss that is not, which every process hears of."""
        try:
            return self.dev()
        except NotFinite:
            return Score(0, 1, 0.0, 1.0, math.nan)

    def _place(self) -> Row:
        rates = self.tuning.rates
        epoch = self.tuning.step / (self.tuning.count // self.tuning.batch)
        return {"trial": self.at.trial, **rates._asdict(), "step": self.tuning.step, "epoch": round(epoch, 4)}

    def _kept(self, row: Row) -> Iterator[Row]:
        """Yield the row; once it is on record, take the snapshots that belong to it."""
        yield row
        self.at.rows += 1
        self.watcher.evaluated(row)
        if row["part"] == "dev" and self._better(row):
            same = ("trial", *Rates._fields, "step", "dev_loss")
            self.at.best = {name: row[name] for name in same} | {
                "steps_to_best": self.at.first, "dev_correct": row["correct"], "dev_accuracy": row["accuracy"],
            }  # fmt: skip
            self.at.best_rows = self.at.rows
            if self.folder is None:
                self._best = self.tuning.weights()
            elif distributed.rank() == 0:
                weights = {f"weights/{name}": tensor for name, tensor in self.tuning.weights().items()}
                self.folder.put(self.folder.best(self.at.rows), Snapshot(weights, {"best": self.at.best}))
        if self.folder is not None and distributed.rank() == 0:
            stands = self.tuning.snapshot()
            state = {**stands.state, "course": asdict(self.at)}
            self.folder.put(self.folder.after(self.at.rows), Snapshot(stands.tensors, state))
            assert self.at.best is not None
            self.folder.keep([self.folder.after(self.at.rows), self.folder.best(self.at.best_rows)])

    def _better(self, row: Row) -> bool:
        best = self.at.best
        return best is None or (row["correct"], -row["dev_loss"]) > (best["dev_correct"], -best["dev_loss"])
