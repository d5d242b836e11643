"""Who is told of a run: the progress bar, and TensorBoard where it is asked for."""

import contextlib
import sys
from pathlib import Path
from typing import Any

from smoothlab.errors import BadInput

Row = dict[str, Any]


class Bar:
    """A progress bar on stderr: loss, dev accuracy, steps/s and time left; silent where stderr is no terminal."""

    def __init__(self, trials: int, *, silent: bool = False) -> None:
        self._trials, self._silent, self._told = trials, silent or not sys.stderr.isatty(), ""
        self._bar: Any = None

    def begin(self, trial: int, steps: int, step: int) -> None:
        """A trial begins, or goes on at `step`."""
        from tqdm import tqdm

        self.close()
        name = "finetune" if self._trials == 1 else f"trial {trial + 1}/{self._trials}"
        self._bar = tqdm(total=steps, initial=step, desc=name, unit="step", disable=self._silent)

    def stepped(self, step: int, loss: float) -> None:
        """A step was made."""
        self._bar.set_postfix_str(f"loss {loss:.3f}{self._told}", refresh=False)
        self._bar.update()

    def evaluated(self, row: Row) -> None:
        """An evaluation is on record."""
        if row["part"] == "dev":
            self._told = f", dev accuracy {100 * row['accuracy']:.1f} %"

    def close(self) -> None:
        """The bar ends."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class TensorBoard:
    """Curves of loss and accuracy for TensorBoard, one run a trial, beside the progress bar.

    Raises:
        BadInput: TensorBoard is not installed, or its folder cannot be written.
    """

    def __init__(self, folder: Path, bar: Bar) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BadInput(f"--tensorboard {folder}: pip install tensorboard, or leave the option out") from None
        self._folder, self._bar, self._writer = folder, bar, SummaryWriter
        self._open: Any = None

    def begin(self, trial: int, steps: int, step: int) -> None:
        """A trial begins, or goes on at `step`; what a stopped run wrote after it is left out."""
        self.close()
        try:
            self._open = self._writer(str(self._folder / f"trial-{trial}"), purge_step=step)
        except OSError as error:
            raise BadInput(f"--tensorboard {self._folder}: cannot write there ({error.strerror})") from None
        self._bar.begin(trial, steps, step)

    def stepped(self, step: int, loss: float) -> None:
        """A step was made."""
        self._open.add_scalar("train/loss", loss, step)
        self._bar.stepped(step, loss)

    def evaluated(self, row: Row) -> None:
        """An evaluation is on record."""
        for name in ("dev_loss", "accuracy", "steps_per_second"):
            if row.get(name) is not None:
                self._open.add_scalar(f"dev/{name.removeprefix('dev_')}", row[name], row["step"])
        self._bar.evaluated(row)

    def close(self) -> None:
        """Write what is not written yet."""
        self._bar.close()
        if self._open is not None:
            with contextlib.suppress(OSError):  # the records have it all
                self._open.close()
            self._open = None
