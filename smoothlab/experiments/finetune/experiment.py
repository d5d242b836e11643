"""Fine-tuning a language model or a classifier: zeroth-order, first-order, or hybrid (Algorithm 1; Fig. 2 and 3)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.config import FinetuneOptions
from smoothlab.experiments.finetune.options import check, grid, measuring_steps, say, unused

if TYPE_CHECKING:
    from smoothlab.experiments.finetune.selection import Selection
    from smoothlab.experiments.finetune.setup import Setup
    from smoothlab.llm.checkpoints import Folder

Row = dict[str, Any]
ELSEWHERE = ("checkpoint", "save", "tensorboard")
"""Options that the weights do not depend on."""


@dataclass(frozen=True)
class Finetune(FinetuneOptions):
    """Fine-tune a model on a task, select on dev, test once (Algorithm 1; Tables 1 and 2, Fig. 2 and 3).

    With --measure, curvature of the named blocks is recorded along the run, which stays the same to the bit.
    """

    name: ClassVar[str] = "finetune"
    unit: ClassVar[str] = "step"
    elsewhere: ClassVar[Sequence[str]] = ("save", "tensorboard")

    def check(self) -> None:
        """Refuse options that are wrong in themselves or together.

        Raises:
            BadInput: the message names them.
        """
        check(self)

    def place(self, row: Row) -> int:
        """The same place for all rows: each row follows from those before it."""
        return 0

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """As many rows are kept as there were when the newest checkpoint was taken; without one, none."""
        self.check()
        done = []
        for row in rows:
            if row is None:  # a damaged line: what follows it was computed after it, and cannot be placed
                break
            done.append(row)
        folder = self._folder()
        if folder is None:
            say("without --checkpoint a stopped run starts again")
            return []
        numbers = folder.numbers()
        if done and not numbers:
            say(f"--checkpoint {self.checkpoint} holds no checkpoint: the run starts again")
        # A checkpoint is taken once its rows are on record, so that a later one belongs to a longer record file.
        usable = [number for number in numbers if number <= len(done)]
        if numbers and not usable:
            self._refuse(numbers[-1])
        return done[: max(usable, default=0)]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Train, evaluate on dev and measure on the way, and test once at the end."""
        from smoothlab.llm import distributed
        from smoothlab.llm.locks import locked

        if distributed.rank():
            yield from self._rows(done)
            return
        check(self)
        with locked({"--checkpoint": self.folder, "--save": self.save}):
            yield from self._rows(done)

    def _rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """The same, in folders that no other run writes to."""
        from smoothlab.experiments.finetune.card import story
        from smoothlab.llm import distributed
        from smoothlab.llm.export import claim, make_room

        folder, is_first = self._folder(), distributed.rank() == 0
        if is_first:
            # Before the model loads and the other processes begin: what is refused here costs no time.
            if not done and folder is not None:
                numbers = folder.numbers()
                if numbers:
                    self._refuse(numbers[-1])
            if self.save is not None:
                say(make_room(self.save, self._run()))
        recorded = distributed.begin(len(done))
        setup = self.setup()
        selection = self._selection(setup, folder)
        if is_first:
            untrained = [] if self.steps else ["--steps 0 trains nothing: the test is that of the model as it starts"]
            say(*untrained, *setup.notes, *unused(self))
        if recorded:
            step = selection.resume(recorded)
            if is_first:
                say(f"resumed at step {step} from --checkpoint {self.checkpoint}, with {recorded} rows on record")
        try:
            yield from selection.rows()
        finally:
            selection.logger.close()
        if is_first:  # the others took all steps, and have nothing to add
            best = selection.load_best()
            row = {"part": "test", **best, **setup.test_row()}
            yield row
            if self.save is not None:
                claim(self.save, self._run())
                setup.save(self.save, story(self, row))

    def continuation(self) -> str:
        """What the same command does after this run was stopped."""
        if self.folder is None:
            return "starts from step 0 again, as there is no --checkpoint"
        if not self.has_checkpoint():
            return f"starts from step 0 again, as {self.folder} holds no checkpoint yet"
        return f"continues from the last checkpoint in {self.folder}"

    def plan(self) -> str:
        """What a run would train, measure and cost, from three timed steps and a timed evaluation."""
        from smoothlab.experiments.finetune.plan import plan

        check(self)
        return plan(self, self.setup(), grid(self))

    def setup(self) -> "Setup":
        """Model, blocks and data as configured, before step 0."""
        from smoothlab.experiments.finetune.setup import setup

        return setup(self)

    def _selection(self, setup: "Setup", folder: "Folder | None") -> "Selection":
        from smoothlab.experiments.finetune.loggers import Progress, TensorBoard
        from smoothlab.experiments.finetune.selection import Selection
        from smoothlab.llm import distributed

        trials, is_first = grid(self), distributed.rank() == 0
        logger = Progress("finetune", len(trials), silent=not is_first)
        if self.tensorboard is not None and is_first:
            logger = TensorBoard(self.tensorboard, "finetune", len(trials))
        return Selection(self, setup, trials, logger, folder, measuring_steps(self))

    def _folder(self) -> "Folder | None":
        from smoothlab.llm.checkpoints import Folder

        if self.folder is None:
            return None
        run = self._run()
        if self.logged:  # its checkpoints lack the base model, and cannot be those of a run without a log
            run += ", base=log"
        return Folder(self.folder, run)

    def _run(self) -> str:
        """All settings that weights and rows depend on, in one line."""
        return self.settings(*ELSEWHERE)

    def _refuse(self, rows: int) -> NoReturn:
        raise BadInput(
            f"--checkpoint {self.checkpoint} holds this run after {rows} rows, which are in no record file given here: "
            "give the --out that has them, or delete the folder to start again"
        )
