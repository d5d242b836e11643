"""Figure 1: per-block Hessian norms along a training run, by default a classifier's under plain SGD."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import Exact, Method, Training
from smoothlab.experiments.finetune.options import check, measuring_steps, say, unused

if TYPE_CHECKING:
    from smoothlab.experiments.finetune.setup import Setup
    from smoothlab.llm.checkpoints import Folder
    from smoothlab.trainer import Trainer

Row = dict[str, Any]
KEY = ("protocol", "block", "wrt", "quantity")
"""Fields that tell the rows of a measuring point apart."""
MEASURING = (
    "measure", "cross", "points", "spacing", "minibatch", "over", "block_rows", "diagonal", "gauss_newton", "protocol",
    "product", "precision", "probes", "path", "steps", "checkpoint", "from_weights",
)  # fmt: skip
"""Options that the weights at a step do not depend on."""


@dataclass(frozen=True)
class Smoothness(Training):
    """Measure the Hessian norms of each block along a training run, with 95 % intervals (Fig. 1).

    The run is that of `smoothlab finetune` without selection; its defaults are those of Fig. 1: a classifier, all
    blocks by exact gradients and plain SGD.

    Attributes:
        dropout: train and measure in train mode, with dropout masks fixed by the seed, instead of eval mode.
        from_weights: folder with checkpoints of `smoothlab smoothness --checkpoint`; curvature is measured at each of
            them, without training.
    """

    name: ClassVar[str] = "smoothness"
    unit: ClassVar[str] = "step"
    head: Literal["auto", "lm", "classifier"] = "classifier"
    train: int = 100_000
    method: Method = "fo-joint"
    optimizer: Exact = "sgd"
    eta_x: float = 5e-5
    eta_y: float = 5e-5
    steps: int = 5000
    batch: int = 8
    measure: tuple[str, ...] = ("all",)
    points: int = 20
    dropout: bool = False
    from_weights: Path | None = None

    def place(self, row: Row) -> int:
        """The step of the measuring point."""
        return int(row["step"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Rows of complete measuring points are kept: each has one row for every protocol, block and quantity."""
        from smoothlab.records import whole

        return whole(rows, self.place, lambda row: tuple(str(row.get(name)) for name in KEY))

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Train to each point that is not done, measure there, yield its rows."""
        from smoothlab.experiments.finetune.loggers import Progress

        self.check()
        if any("method" not in row for row in done):
            raise BadInput(
                "a smoothness run of smoothlab 0.1 trained on other minibatches and cannot be continued: choose "
                "another --out, or measure again with --overwrite (--lr is --eta-x and --eta-y now)"
            )
        folder = None
        if self.folder is not None:
            folder = self._folder(self.folder)
            folder.numbers()  # refuses checkpoints of another run before anything loads
        measured = {row["step"] for row in done}
        remaining = [step for step in self._points() if step not in measured]
        setup = self.setup()
        say(*setup.notes, *unused(self))
        # Points on record are left out: the trainer would measure them again on its way from a checkpoint.
        trainer = setup.trainer(at=remaining, dropout=self.dropout)
        if trainer.kinks:
            say("the gradient has kinks (ReLU): exact products ignore them, finite differences have no right step")
        source = ""
        if folder is not None and measured and remaining:
            source = self._resume(trainer, folder, remaining[0])
        if measured:
            say(f"resumed: {len(measured)} points are on record, training continues at step {trainer.step}{source}")
        progress = Progress("smoothness")
        progress.begin(0, self.steps, trainer.step)
        trainer.on_step = progress.stepped
        for step in remaining:
            for row in self._point(trainer, folder, step):
                yield {"step": row["step"], "method": self.method, **row}
                progress.recorded(row)
        progress.close()

    def setup(self) -> "Setup":
        """Model, blocks and data as configured, before step 0."""
        from smoothlab.experiments.finetune.setup import setup

        return setup(self)

    def continuation(self) -> str:
        """What the same command does after this run was stopped."""
        if self.from_weights is not None:
            return "measures the missing points"
        if not self.has_checkpoint():
            return "trains from step 0 again, and measures the missing points"
        return f"measures the missing points, from the last checkpoint in {self.folder} before them"

    def plan(self) -> str:
        """What a run would measure and cost, from three timed steps and a timed gradient."""
        from smoothlab.experiments.finetune.plan import plan

        self.check()
        saved_steps = None
        if self.from_weights is not None:
            saved_steps = self._points()
        return plan(self, self.setup(), [self.rates], saved_steps)

    def check(self) -> None:
        """Refuse options that are wrong in themselves or together.

        Raises:
            BadInput: the message names them.
        """
        check(self)
        if not self.measure:
            raise BadInput("--measure names no block: use all, or some of base, peft, head")
        if self.checkpoint is not None and self.from_weights is not None:
            raise BadInput(
                f"--checkpoint {self.checkpoint} with --from-weights {self.from_weights}: nothing is trained, leave "
                "one of them out"
            )
        if self.logged:
            raise BadInput(f"--checkpoint {self.checkpoint}: seed logs are for finetune, leave log: out")

    def _points(self) -> list[int]:
        """Steps to measure at."""
        from smoothlab.llm.checkpoints import saved_numbers

        if self.from_weights is None:
            return measuring_steps(self)
        steps = saved_numbers(self.from_weights, "--from-weights")
        if not steps:
            raise BadInput(
                f"--from-weights {self.from_weights}: no after-*.safetensors there; make them with --checkpoint"
            )
        return steps

    def _point(self, trainer: "Trainer", folder: "Folder | None", step: int) -> Iterator[Row]:
        """Train to a point, or take its weights from the folder, and measure there."""
        if self.from_weights is not None:
            from smoothlab.llm.checkpoints import contents

            # Of any run: the options of this one may be others, such as the data to measure on.
            trainer.load_state_dict(contents(self._folder(self.from_weights).after(step)))
        yield from trainer.train(step)
        if folder is not None:  # before measuring, which may take longer than the training did
            folder.put(folder.after(step), trainer.state_dict())
        yield from trainer.point()

    def _resume(self, trainer: "Trainer", folder: "Folder", step: int) -> str:
        """Load the latest checkpoint at or before `step`; which one, in words, if there is any."""
        numbers = [number for number in folder.numbers() if number <= step]
        if not numbers:
            return ""
        path = folder.after(numbers[-1])
        trainer.load_state_dict(folder.get(path))
        return f" from {path}"

    def _folder(self, path: Path) -> "Folder":
        from smoothlab.llm.checkpoints import Folder

        return Folder(path, self.settings(*MEASURING))
