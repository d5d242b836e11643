"""Loggers of a training run: progress on stderr, and TensorBoard where it is asked for.

A run calls `begin` for each trial, `stepped` after each update, `recorded` for each row on record, and `close`.
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from smoothlab.errors import BadInput

Row = dict[str, Any]


class Progress:
    """Loss, dev accuracy or loss, point and time left on stderr: a bar on a terminal, else a line every 30 seconds.

    Args:
        name: subcommand that the lines begin with.
        trials: number of trials of the run.
        silent: print nothing, as all processes but rank 0 do.
    """

    interval: ClassVar[float] = 30.0
    """Seconds between two lines where stderr is no terminal."""

    def __init__(self, name: str, trials: int = 1, *, silent: bool = False) -> None:
        self._name, self._trials, self._silent = name, trials, silent
        self._bar: Any = None
        self._accuracy = ""

    def begin(self, trial: int, steps: int, step: int) -> None:
        """A trial of `steps` steps begins, or continues at `step`."""
        self.close()
        # The time left follows from the steps made since here: those before a checkpoint cost this process nothing.
        self._steps, self._step, self._first, self._loss = steps, step, step, ""
        self._started = self._last_line = time.monotonic()
        self._title = self._name
        if self._trials > 1:
            self._title += f" trial {trial + 1}/{self._trials}"
        if sys.stderr.isatty() and not self._silent:
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=step, desc=self._title, unit="step")

    def stepped(self, step: int, loss: float) -> None:
        """Update number `step`, counted from 1, was made; `loss` is that before it."""
        self._step, self._loss = step, f", loss {loss:.3f}"
        if self._bar is not None:
            # tqdm redraws at its own pace; a refresh here would slow fast steps down.
            self._bar.set_postfix_str(f"{self._loss[2:]}{self._accuracy}", refresh=False)
            self._bar.update()
        self._write_line(self._loss)

    def recorded(self, row: Row) -> None:
        """A row is on record: an evaluation, or curvature of a block."""
        if "accuracy" in row:
            self._accuracy = f", dev accuracy {100 * row['accuracy']:.1f} %"
        elif "dev_loss" in row:
            self._accuracy = f", dev loss {row['dev_loss']:.3f}"
        if "quantity" not in row:
            return
        # A point can take minutes in which no step is made: each of its rows is news.
        measured = f", measured {row['quantity']} of {row['block']}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._loss[2:]}{measured}")
        self._write_line(f"{self._loss}{measured}")

    def close(self) -> None:
        """The run, or a trial of it, has ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write_line(self, news: str) -> None:
        now = time.monotonic()
        if self._bar is not None or self._silent or now - self._last_line < self.interval:
            return
        self._last_line, time_left = now, ""
        if self._step > self._first:
            seconds = (now - self._started) / (self._step - self._first) * (self._steps - self._step)
            time_left = f", about {seconds:.0f} s left"
        print(f"smoothlab: {self._title} step {self._step} of {self._steps}{news}{time_left}", file=sys.stderr)


class TensorBoard(Progress):
    """Curves of loss, accuracy and curvature for TensorBoard, one run a trial, beside the progress of rank 0.

    Raises:
        BadInput: TensorBoard is not installed, or its folder cannot be written.
    """

    def __init__(self, folder: Path, name: str, trials: int) -> None:
        super().__init__(name, trials)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BadInput(f"--tensorboard {folder}: pip install tensorboard, or leave the option out") from None
        self._folder, self._writer = folder, SummaryWriter
        self._event_file: Any = None

    def begin(self, trial: int, steps: int, step: int) -> None:
        """A trial begins, or continues at `step`."""
        super().begin(trial, steps, step)
        try:
            # What a stopped run wrote behind its last checkpoint will be written again: purge_step hides it.
            self._event_file = self._writer(str(self._folder / f"trial-{trial}"), purge_step=step)
        except OSError as error:
            raise BadInput(f"--tensorboard {self._folder}: cannot write there ({error.strerror})") from None

    def stepped(self, step: int, loss: float) -> None:
        """An update was made."""
        self._event_file.add_scalar("train/loss", loss, step)
        super().stepped(step, loss)

    def recorded(self, row: Row) -> None:
        """A row is on record."""
        for name in ("dev_loss", "accuracy", "exact_match", "f1", "steps_per_second"):
            if row.get(name) is not None:
                self._event_file.add_scalar(f"dev/{name.removeprefix('dev_')}", row[name], row["step"])
        if row["part"] == "rate":
            self._event_file.add_scalar(f"rate/{row['option']}", row["rate"], row["step"])
        if row.get("value") is not None:
            name = f"{row['quantity']}/{row['block']}-{row['wrt']} ({row['protocol']})"
            self._event_file.add_scalar(name, row["value"], row["step"])
        super().recorded(row)

    def close(self) -> None:
        """Write what is not written yet."""
        super().close()
        if self._event_file is not None:
            with contextlib.suppress(OSError):  # A full disk costs the curves alone: the records hold all numbers.
                self._event_file.close()
            self._event_file = None
