"""Selection: trials of rates, evaluations on dev, early stopping, checkpoints; then one look at test.

Selection sees the dev split only: the best weights are those with the most right answers there, of equal ones those
with the lowest dev loss, over all trials and evaluations, step 0 included; with completions or texts the dev loss alone
decides. The test split is looked at once, with the best weights.
Curvature is measured on the way, where the run has measuring points, and is no part of selection.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from smoothlab.divergence import Diverged
from smoothlab.errors import BadInput
from smoothlab.experiments.advise.trying import BACKWARD, forwards_of_step
from smoothlab.experiments.finetune.config import FinetuneOptions, Rates
from smoothlab.experiments.finetune.following import followed
from smoothlab.experiments.finetune.loggers import Progress
from smoothlab.experiments.finetune.options import say
from smoothlab.experiments.finetune.setup import Setup
from smoothlab.llm import distributed
from smoothlab.llm.checkpoints import Folder
from smoothlab.llm.evaluate import Accuracy, NotFinite, mean_loss
from smoothlab.llm.tasks import GENERATIVE
from smoothlab.trainer import Trainer

Row = dict[str, Any]


@dataclass
class RunState:
    """State of a selection beside the trainer's: what a checkpoint holds as JSON."""

    rows: int = 0  # rows on record
    trial: int = 0
    stopped: bool = False  # the trial has ended early
    evals_without_gain: int = 0  # since the trial's last better evaluation
    best: tuple[int, float] | None = None  # the trial's best (correct, -dev loss); correct is 0 without a choice
    best_step: int = 0  # the trial's first step with as many right answers; without a choice that of the best loss
    evaluated: int = -1  # last step that was evaluated: a checkpoint may be taken at a point, just before an evaluation
    seconds: float = 0.0  # spent on steps and evaluations
    best_row: Row | None = None  # the best evaluation of all trials, as far as the row of the test repeats it
    best_rows: int = 0  # rows that were on record with it
    followed: int = -1  # last step at which the rates were set to follow the curvature
    follow_gradients: float = 0.0  # spent on that, in the trial
    follow_seconds: float = 0.0
    limits: dict[str, list[float]] = field(default_factory=dict)  # the last measured, by the rate's option


@dataclass
class Selection:
    """Trials of `grid`, each of at most `run.steps` steps."""

    run: FinetuneOptions
    setup: Setup
    grid: Sequence[Rates]  # rates of each trial
    logger: Progress
    folder: Folder | None = None  # of the checkpoints; without it the best weights are kept in memory
    points: Sequence[int] = ()  # steps to measure curvature at
    state: RunState = field(default_factory=RunState, init=False)
    _best: Mapping[str, Tensor] | None = field(default=None, init=False)

    @property
    def single_trial(self) -> bool:
        """Whether there is a single trial: if it diverges, the run ends with an error, after a row with the reason."""
        return len(self.grid) == 1

    def resume(self, rows: int) -> int:
        """Continue from the checkpoint taken after so many rows; returns its step."""
        assert self.folder is not None
        snapshot = self.folder.get(self.folder.after(rows))
        self.state = RunState(**snapshot["selection"])
        self._begin(snapshot["trainer"]["step"])
        self.trainer.load_state_dict(snapshot["trainer"])
        return self.trainer.step

    def rows(self) -> Iterator[Row]:
        """Rows of the evaluations and points that are ahead; checkpoints are taken once they are on record."""
        resumed = self.state.rows > 0
        while self.state.trial < len(self.grid):
            if not resumed:
                self._begin()
            self.logger.begin(self.state.trial, self.run.steps, self.trainer.step)
            if self.state.best is None and not self.state.stopped:
                yield from self._evaluated(self._evaluation(None))
            # A checkpoint of the last step may have been taken by its point, before its evaluation.
            while not self.state.stopped and (self.trainer.step < self.run.steps or self._is_evaluation()):
                yield from self._until_evaluation()
            if not self.state.stopped:
                yield from self._point()
            if self.run.follow:
                say(self._cost_of_following())
            state, resumed = self.state, False
            if state.trial == len(self.grid) - 1:
                return  # with the state of the last trial: `load_best` needs its trainer
            self.state = RunState(
                state.rows, state.trial + 1, seconds=state.seconds, best_row=state.best_row, best_rows=state.best_rows
            )

    def load_best(self) -> Row:
        """Copy the best weights on dev into the model; returns what is recorded of them."""
        assert self.state.best_row is not None
        log = None
        if self.folder is not None:
            self._best = self.folder.get(self.folder.best(self.state.best_rows))["weights"]
            log = self.folder.log(self.state.best_row["trial"])
        assert self._best is not None
        self.trainer.load_weights(self._best, self.state.best_row["step"], log)
        return self.state.best_row

    def _begin(self, steps: int = 0) -> None:
        """Begin the trial; the first `steps` steps of its seed log are kept."""
        # The next trial begins at the start, and a seed log is replayed from it; other runs need no copy of it.
        if self.setup.start is None and (not self.single_trial or self.run.logged):
            self.setup.remember_start()
        log = None
        if self.run.logged and self.folder is not None:
            log = self.folder.log(self.state.trial)
        rates = self.grid[self.state.trial]
        self.trainer: Trainer = self.setup.trainer(rates, at=self.points, log=log, log_steps=steps)
        self.trainer.on_step = self.logger.stepped

    def _until_evaluation(self) -> Iterator[Row]:
        """Steps up to the next evaluation, and its row."""
        trainer, steps, seconds = self.trainer, 0, 0.0
        try:
            while not self._is_evaluation():
                before = trainer.step
                yield from self._follow()
                yield from self._point()
                if trainer.step == before:  # a point that measures path smoothness has made the update
                    started = time.monotonic()
                    trainer.update()
                    seconds += time.monotonic() - started
                    steps += 1
            mean = sum(trainer.losses) / len(trainer.losses)
            trainer.losses.clear()
            trainer.check(mean)
            self.state.seconds += seconds
            speed = None
            if seconds:  # none where points have made all updates: these take a point's time
                speed = steps / seconds
            row = self._evaluation(mean, speed)
        except BadInput as error:
            if not isinstance(error, Diverged) and not self._refused(error):
                raise
            self.state.stopped = True
            row = {"part": "stopped", **self._position_fields(), "why": str(error)}
        if self.single_trial and row["part"] == "stopped":
            # No checkpoint is taken: the last good one stays the newest, to go on from with other rates.
            yield row
            stored = "the rows so far are on record"
            if self.folder is not None:
                stored = f"the checkpoint of the last evaluation before is in {self.folder.path}"
            raise BadInput(f"{row['why']}; {stored}")
        yield from self._evaluated(row)

    def _is_evaluation(self) -> bool:
        """Whether the current step is one to evaluate at, and is not evaluated yet."""
        step = self.trainer.step
        return step > self.state.evaluated and (step % self.run.eval_every == 0 or step == self.run.steps)

    def _point(self) -> Iterator[Row]:
        """Rows of curvature, if the current step is a point, and a checkpoint behind them."""
        if not self.trainer.due():
            return
        keys = {"part": "curvature", "trial": self.state.trial, "method": self.run.method}
        for row in self.trainer.point():
            yield from self._on_record(keys | row)
        self._checkpoint()

    def _follow(self) -> Iterator[Row]:
        """Rows of the rates, set to follow the curvature, if it is time to."""
        trainer, state, interval = self.trainer, self.state, self.run.follow
        if not interval or trainer.step % interval or trainer.step == state.followed:
            return
        started = time.monotonic()
        for row in followed(trainer, self.run.seed, interval, state.limits):
            state.follow_gradients += row["gradients"]
            keys = {"part": "rate", "trial": state.trial, "method": self.run.method, "step": trainer.step}
            yield from self._on_record(keys | row)
        seconds = time.monotonic() - started
        # Following is a part of this training, unlike curvature that is measured for the records.
        state.seconds += seconds
        state.follow_seconds += seconds
        state.followed = trainer.step

    def _cost_of_following(self) -> str:
        """The cost of setting the rates, beside that of the steps."""
        state, step = self.state, self.trainer.step
        of_steps = step * forwards_of_step(self.trainer.optimizer)
        forwards = state.follow_gradients * (1 + BACKWARD)
        text = f"--follow {self.run.follow} took {forwards:.0f} forward passes' work"
        if of_steps:
            text += f", {forwards / of_steps:.2f} of that of the {step} steps"
        return f"{text}, and {state.follow_seconds:.0f} s"

    def _refused(self, error: BadInput) -> bool:
        """Whether only these rates are refused (a mu below rounding), so that others of the search may be accepted."""
        # A log that cannot be written, or a process that is gone, fails under all rates.
        external = isinstance(error.__context__, OSError | RuntimeError)
        return not self.single_trial and self.trainer.step == 0 and not external

    def _evaluation(self, loss: float | None, speed: float | None = None) -> Row:
        """Evaluate on dev, compare with the evaluations before, and make the row."""
        started, state = time.monotonic(), self.state
        score = None
        if distributed.rank() == 0:
            score = self._score()
        # All processes get the same numbers, so that all of them stop, and keep the best, at the same evaluation.
        correct, count, dev_loss, *answers = distributed.broadcast(score, 5)
        if not math.isfinite(dev_loss):
            raise self.trainer.diverged(dev_loss)
        state.seconds += time.monotonic() - started
        state.evaluated = self.trainer.step
        result = (int(correct), -dev_loss)
        chooses = self.setup.dev.kind not in GENERATIVE
        if state.best is None or correct > state.best[0] or (not chooses and result > state.best):
            state.best_step = self.trainer.step
        if state.best is None or result > state.best:
            state.best, state.evals_without_gain = result, 0
        else:
            state.evals_without_gain += 1
        state.stopped = 0 < self.run.patience <= state.evals_without_gain
        quality: Row = {"count": int(count)}
        if chooses:
            quality = Accuracy(int(correct), int(count), (), ()).row()
        elif not math.isnan(answers[0]):
            quality |= dict(zip(("exact_match", "f1"), answers, strict=True))
        return {
            "part": "dev", **self._position_fields(), "train_loss": loss, "dev_loss": dev_loss,
            **quality, "steps_per_second": speed,
            "forwards": self.trainer.step * self.run.evaluations, **self._following(),
            "seconds": round(state.seconds, 3),
        }  # fmt: skip

    def _following(self) -> Row:
        """Gradients that were spent on setting the rates; nothing where they stay as given."""
        if not self.run.follow:
            return {}
        return {"follow_gradients": round(self.state.follow_gradients, 1)}

    def _score(self) -> tuple[float, float, float, float, float]:
        """Right answers, items, mean loss, exact match and F1 on dev; NaN where there is no such number."""
        try:
            result = self.setup.judge(self.setup.dev)
        except NotFinite:
            return 0, 1, math.nan, math.nan, math.nan  # sent instead of raised: all processes are to end alike
        if isinstance(result, Accuracy):
            return result.correct, result.count, mean_loss(result, self.setup.dev), math.nan, math.nan
        answers = result.answers()
        return 0, len(result.losses), result.loss, answers.get("exact_match", math.nan), answers.get("f1", math.nan)

    def _position_fields(self) -> Row:
        """Trial, rates, step and epoch of a row."""
        rates = self.grid[self.state.trial]
        epoch = self.trainer.step / self.setup.steps_per_epoch
        return {"trial": self.state.trial, **rates._asdict(), "step": self.trainer.step, "epoch": round(epoch, 4)}

    def _on_record(self, row: Row) -> Iterator[Row]:
        """Yield a row; it is on record, and is counted, when the caller asks for the next one."""
        yield row
        self.state.rows += 1
        self.logger.recorded(row)

    def _evaluated(self, row: Row) -> Iterator[Row]:
        """Yield the row; once it is on record, take the checkpoints that belong to it."""
        yield from self._on_record(row)
        state, best = self.state, self.state.best_row
        if row["part"] == "dev" and (
            best is None or (row.get("correct", 0), -row["dev_loss"]) > (best.get("dev_correct", 0), -best["dev_loss"])
        ):
            repeated = ("trial", *Rates._fields, "step", "dev_loss")
            state.best_row = {name: row[name] for name in repeated} | {"steps_to_best": state.best_step}
            for name in ("correct", "accuracy", "exact_match", "f1"):
                if name in row:
                    state.best_row[f"dev_{name}"] = row[name]
            state.best_rows = state.rows
            if self.folder is None:
                self._best = self.trainer.weights()
            elif distributed.rank() == 0:
                self.folder.put(self.folder.best(state.rows), {"weights": self.trainer.weights()})
        self._checkpoint()

    def _checkpoint(self) -> None:
        """Save the state of the run and the best weights; nothing without a folder, or before the first evaluation."""
        if self.folder is None or distributed.rank() != 0:
            return
        after = self.folder.after(self.state.rows)
        self.folder.put(after, {"trainer": self.trainer.state_dict(), "selection": asdict(self.state)})
        # Only now are older files deleted: a run that is killed in between has the checkpoint before.
        self.folder.keep([after, self.folder.best(self.state.best_rows)])
