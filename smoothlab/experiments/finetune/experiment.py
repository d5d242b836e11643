"""Fine-tuning a language model or a classifier: zeroth-order, first-order, or hybrid (Algorithm 1; Fig. 2 and 3)."""

import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.options import ZEROTH, check, grid, unused, used
from smoothlab.experiments.options import DistributionName
from smoothlab.llm.tasks.jsonlines import TEMPLATE

if TYPE_CHECKING:
    from smoothlab.experiments.finetune.selection import Course
    from smoothlab.experiments.finetune.setup import Setup
    from smoothlab.llm.checkpoints import Folder

Row = dict[str, Any]
Method = Literal["hybrid", "zo", "fo-peft", "fo-full"]
LOG = "log:"
"""Before a checkpoint folder whose snapshots hold the base model as a seed log."""
LATER = {"head": "auto", "template": TEMPLATE, "verbalizers": (), "parts": 1}
"""Options that records and checkpoints of before lack, and what these were made at."""
ELSEWHERE = ("checkpoint", "save", "tensorboard")
"""Options that the weights do not depend on."""


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a model on a task, select on dev, test once (Algorithm 1; Tables 1 and 2, Fig. 2 and 3).

    Attributes:
        model: hub name, local directory, or "micro" (in the package); a causal language model or a classifier.
        head: lm: candidates are scored by the language model's own head; classifier: there is a class for each
            candidate, and a sentence is read alone, without a prompt, where the data have sentences. Its head is the
            checkpoint's, or a new one; it is trained with the PEFT module, at eta_y, and as part of the base model for
            zo and fo-full. "auto" is classifier where config.json says ...ForSequenceClassification, or names a type
            that is no causal language model (BERT, RoBERTa).
        data: task (builtin, sst2, copa, winogrande, wic, wsc) or a JSON Lines file (.gz too) with the fields sentence
            and label, or prompt, candidates and label.
        data_dir: folder with the task's files; without it a task is read from the hub.
        template: prompt of the sentences of a JSON Lines file, with {sentence} in it.
        verbalizers: the word of each class of such a file, in the order of the labels; by default terrible and great
            for two classes. A classifier needs none.
        train: items to train on, at most.
        dev: items to select by.
        test: items to test on, at most.
        method: hybrid: base model by zeroth-order, PEFT module by first-order gradients, both at the same point; zo:
            base model alone, zeroth-order; fo-peft: PEFT module alone, first-order; fo-full: base model alone,
            first-order.
        peft: PEFT method (lora, prompt, prefix, ...); "auto" is lora, and none for zo and fo-full.
        rule: what is done with exact gradients: sgd, as Algorithm 1 does, or adam. Zeroth-order ones are always sgd.
        eta_x: learning rate of the base model.
        eta_y: learning rate of the PEFT module, and of a classifier's head beside it.
        mu: step of the zeroth-order differences along directions with entries of variance 1.
        q: directions averaged in a zeroth-order gradient.
        sides: 1: f(x + mu z) - f(x), which shares f(x) with the first-order part; 2: f(x + mu z) - f(x - mu z).
        distribution: distribution of the directions.
        steps: steps of training, at most.
        batch: items in a minibatch, of all processes together.
        parts: equal parts that a minibatch is computed in on a CPU, one after the other; numbers of processes that
            divide it give the same records to the bit. 1 is fastest for one process.
        eval_every: steps between evaluations on dev.
        patience: evaluations without a better one (more right answers on dev, or as many at a lower loss) after which
            training stops; 0: never.
        schedule: both rates over the steps.
        search: values to try, each "name=a,b,..." with name eta_x, eta_y or mu; all combinations are trained for
            --steps, and the best on dev is tested.
        dtype: precision of the weights.
        device: "cpu" or "cuda".
        checkpoint: folder for checkpoints, one after each evaluation; a stopped run then goes on from them. log:FOLDER
            holds the base model as seeds and coefficients of its zeroth-order steps (under 1 MB for 20,000 with q = 1),
            which rebuild it to the bit.
        save: folder for the best weights: adapter/ for peft (a classifier's head too; with the base model's weights
            where these were trained), model/ for transformers where the base model was trained.
        tensorboard: folder for TensorBoard's curves.
        seed: seed of splits, minibatches, PEFT module and directions.
    """

    name: ClassVar[str] = "finetune"
    unit: ClassVar[str] = "step"
    later: ClassVar[Mapping[str, Any]] = LATER
    elsewhere: ClassVar[Sequence[str]] = ("save", "tensorboard")
    model: str = "micro"
    head: Literal["auto", "lm", "classifier"] = "auto"
    data: str = "builtin"
    data_dir: Path | None = None
    template: str = TEMPLATE
    verbalizers: tuple[str, ...] = ()
    train: int = 1000
    dev: int = 100
    test: int = 1000
    method: Method = "hybrid"
    peft: str = "auto"
    rule: Literal["sgd", "adam"] = "adam"
    eta_x: float = 1e-4
    eta_y: float = 5e-3
    mu: float = 1e-3
    q: int = 1
    sides: Literal[1, 2] = 2
    distribution: DistributionName = "gaussian"
    steps: int = 200
    batch: int = 16
    parts: int = 4
    eval_every: int = 25
    patience: int = 10
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    search: tuple[str, ...] = ()
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    checkpoint: Path | None = None
    save: Path | None = None
    tensorboard: Path | None = None
    seed: int = 0

    @property
    def module(self) -> str:
        """The PEFT method, or none."""
        if self.peft == "auto":
            return "lora" if self.method in ("hybrid", "fo-peft") else "none"
        return self.peft

    @property
    def evaluations(self) -> int:
        """Evaluations of the loss in a step; a one-sided estimate shares f(x, y) with the exact gradient."""
        shared = self.method != "zo" or self.sides == 1
        return shared + (self.sides * self.q if self.method in ZEROTH else 0)

    def place(self, row: Row) -> int:
        """One for all rows: each follows from those before it."""
        return 0

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """As many rows stand as there were when the newest checkpoint was taken; without one, none."""
        check(self)
        done = [row for row in itertools.takewhile(lambda row: row is not None, rows) if row is not None]
        if (folder := self._folder()) is None:
            _say("without --checkpoint a stopped run starts again")
            return []
        taken = folder.rows()
        if done and not taken:
            _say(f"--checkpoint {self.checkpoint} holds no checkpoint: the run starts again")
        stand = [rows for rows in taken if rows <= len(done)]
        if taken and not stand:
            self._refuse(taken[-1])
        return done[: stand[-1]] if stand else []

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Train, evaluate on dev on the way, and test once at the end."""
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

        folder = self._folder()
        if distributed.rank() == 0:
            if not done and folder is not None and (taken := folder.rows()):
                self._refuse(taken[-1])
            if self.save is not None and (note := make_room(self.save, self._run())):
                _say(note)
        stands = distributed.begin(len(done))
        setup = self.setup()
        course = self._course(setup, folder)
        if stands:
            course.resume(stands)
        try:
            yield from course.rows()
        finally:
            course.watcher.close()
        if distributed.rank() == 0:
            best = course.stand_at_best()
            row = {"part": "test", **best, **setup.test_row()}
            yield row
            if self.save is not None:
                claim(self.save, self._run())
                setup.save(self.save, story(self, row))

    def plan(self) -> str:
        """What a run would train and cost, from two timed steps and one timed evaluation."""
        check(self)
        setup, trials = self.setup(), grid(self)
        tuning = setup.tuning
        tuning.start(trials[0])
        tuning.update()
        marks = [time.perf_counter()]
        for do in (tuning.update, setup.score_dev):
            do()
            marks.append(time.perf_counter())
        step, evaluation = (end - start for start, end in itertools.pairwise(marks))
        looks = 1 + -(-self.steps // self.eval_every)
        seconds = len(trials) * (self.steps * step + looks * evaluation)
        seconds += evaluation * len(setup.test) / len(setup.dev)
        sizes = [f"  block {b.name:5s} {b.dim:13,d} parameters, {self._told(b.name)}" for b in tuning.blocks.values()]
        each = ", ".join(" ".join(f"{name} {getattr(r, name):g}" for name in used(self.method)) for r in trials[:4])
        asked = "classifier" if setup.dev.kind == "classifier" else "language model"
        return "\n".join([
            *(f"({note})" for note in unused(self)),
            f"{self.model} ({asked}) on {self.data}, {self.method}, PEFT method {self.module}, {self.dtype} on "
            f"{self.device}",
            *sizes,
            f"  {tuning.count} training items in minibatches of {self.batch}, {len(setup.dev)} to select by, "
            f"{len(setup.test)} to test on; {setup.served}",
            f"  {len(trials)} trial(s) of {self.steps} steps and {looks} evaluations: {each}"
            + (", ..." if len(trials) > 4 else ""),
            f"  a step takes {step:.2f} s here, an evaluation {evaluation:.2f} s: about {seconds / 60:.1f} minutes",
        ])  # fmt: skip

    def _told(self, block: str) -> str:
        if block == "base" and self.method in ZEROTH:
            return f"zeroth-order: {'one' if self.sides == 1 else 'two'}-sided {self.distribution}, q = {self.q}"
        return "first-order"

    def setup(self) -> "Setup":
        """Model, blocks and data as configured, before step 0."""
        from smoothlab.experiments.finetune.setup import setup

        return setup(self)

    @property
    def folder(self) -> Path | None:
        """Where checkpoints go."""
        return None if self.checkpoint is None else Path(str(self.checkpoint).removeprefix(LOG))

    @property
    def logged(self) -> bool:
        """Whether checkpoints hold the base model as a seed log."""
        return str(self.checkpoint).startswith(LOG)

    def _course(self, setup: "Setup", folder: "Folder | None") -> "Course":
        from smoothlab.experiments.finetune.loggers import Bar, TensorBoard
        from smoothlab.experiments.finetune.selection import Course
        from smoothlab.llm import distributed

        trials, lead = grid(self), distributed.rank() == 0
        bar: Any = Bar(len(trials), silent=not lead)
        watcher = TensorBoard(self.tensorboard, bar) if self.tensorboard is not None and lead else bar
        if lead and (notes := [*setup.notes, *unused(self)]):
            _say("; ".join(notes))
        return Course(
            setup.tuning, trials, self.steps, self.eval_every, self.patience, setup.score_dev, watcher, folder
        )

    def _folder(self) -> "Folder | None":
        from smoothlab.llm.checkpoints import Folder

        told = self._run() + (", base=log" if self.logged else "")
        return None if self.folder is None else Folder(self.folder, told)

    def _run(self) -> str:
        """What the weights depend on, in one line."""
        names = [f.name for f in fields(self) if f.name not in (*ELSEWHERE, *LATER)]
        names += [name for name, before in LATER.items() if getattr(self, name) != before]
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _refuse(self, rows: int) -> NoReturn:
        raise BadInput(
            f"--checkpoint {self.checkpoint} holds this run after {rows} rows, which are in no record file given here: "
            "give the --out that has them, or delete the folder to start again"
        )


def _say(text: str) -> None:
    print(f"smoothlab: {text}", file=sys.stderr)
