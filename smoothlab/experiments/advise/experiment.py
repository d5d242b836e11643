"""The subcommand `smoothlab advise`: which learning rates and mu fit a model, its data and a method."""

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_type_hints

from tyro.conf import Fixed, Suppress

from smoothlab.errors import BadInput
from smoothlab.experiments.advise.config import BUDGET, LARGE, MOST_STEPS, By
from smoothlab.experiments.finetune.config import Training
from smoothlab.experiments.finetune.options import check, say, unused
from smoothlab.experiments.options import option

if TYPE_CHECKING:
    from smoothlab.experiments.advise.advice import Advice
    from smoothlab.experiments.finetune.setup import Setup

Row = dict[str, Any]
DIGITS = 2
"""Significant digits of advised numbers in the printed command."""
LEFT_OUT = ("blocks", "measure", "cross", "points", "spacing", "minibatch", "over", "protocol", "product",
            "precision", "block_rows", "diagonal", "gauss_newton", "probes", "path", "checkpoint", "eta",
            "variant")  # fmt: skip
"""Options of runs along which curvature is measured, that are continued, that have rates by block, or whose steps are
not plain ones."""


@dataclass(frozen=True)
class Advise(Training):
    """Advise on eta_x, eta_y and mu for a run of `smoothlab finetune`, and print the command that trains with them.

    All other options are those of the run; its rates and mu are where trying begins.

    Attributes:
        by: how limits of the rates are found. predict: from curvature measured at the start; try: by short runs from
            the same weights, at rates a factor 3 apart and then closer; confirm: predicted, and tried from there on;
            auto: confirm where a prediction leaves time for runs, else try.
        budget: number of training steps whose time the advice may take, all that it measures included: no run begins
            that would end later. Timed steps, mu, and a prediction or a run for each rate are made whatever it is; a
            note says so where they take more. By default 100 for a model of 135 million parameters or more, and in
            proportion more for a smaller one, at most 2000. From 1000 on, a third of it is kept for longer runs, at
            half, once and twice the usual shares of the limits; the best rates are advised.
        try_steps: number of steps of a short run; its rate is stable if the mean loss of the first four minibatches has
            risen by at most 1 % after them. By default 60 where the budget is at least 1000, else 20.
    """

    name: ClassVar[str] = "advise"
    unit: ClassVar[str] = "part"
    by: By = "auto"
    budget: int | None = None
    try_steps: int | None = None

    def place(self, row: Row) -> int:
        """The same place for all rows, as the budget is spent from one row to the next."""
        return 0

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """No row is kept, as a stopped run starts again."""
        return []

    def continuation(self) -> str:
        """What the same command does after a run was stopped."""
        return "starts again"

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Rows of the limits, the runs, the advice, and the command."""
        from smoothlab.experiments.advise.advice import advise

        self.check()
        setup = self.setup()
        say(*setup.notes, *unused(self))
        advice = advise(
            setup.trainer(), by=self.by, budget=self.budget, steps=self.try_steps, seed=self.seed, tell=_Throttled()
        )
        if advice.steps > advice.budget:
            say(f"all of it took the time of {advice.steps:.0f} steps, more than --budget {advice.budget:g}")
        yield from advice.rows
        for advised in advice.advised:
            yield {"part": "advice", **advised._asdict()}
        yield {
            "part": "cost", "forwards": round(advice.forwards), "seconds": round(advice.seconds, 3),
            "training_steps": round(advice.steps, 1), "budget": advice.budget, "command": self.command(advice),
        }  # fmt: skip

    def setup(self) -> "Setup":
        """Model, blocks and data as configured, before step 0."""
        from smoothlab.experiments.finetune.setup import setup

        return setup(self)

    def plan(self) -> str:
        """What a run would do, in one line."""
        self.check()
        source = {"predict": "predicted", "try": "tried"}.get(self.by, "predicted and tried, or tried alone")
        limit = f"{self.budget} training steps at most"
        if self.budget is None:
            small = f"{MOST_STEPS} on models far below {LARGE / 1e6:.0f} million parameters"
            limit = f"{BUDGET} training steps at most ({small})"
        return f"{self.model} on {self.data}, {self.method}: limits of the rates are {source}, in the time of {limit}"

    def command(self, advice: "Advice") -> str:
        """The `smoothlab finetune` command of this run with the advised rates."""
        values = {advised.option: rounded(advised.value) for advised in advice.advised}
        words = ["smoothlab", "finetune"]
        for field in fields(Training):
            value = values.get(field.name, getattr(self, field.name))
            printed = field.name in ("model", "data", "method") or field.name in values
            if printed or value != field.default:
                words += written(field.name, value)
        return shlex.join(words)

    def check(self) -> None:
        """Refuse options that are wrong in themselves or together.

        Raises:
            BadInput: the message names them.
        """
        check(self)
        for name in ("budget", "try_steps"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise BadInput(f"{option(name)} {number} is too small: use at least 1")
        for field in fields(Training):
            if field.name in LEFT_OUT and getattr(self, field.name) != field.default:
                raise BadInput(
                    f"{option(field.name)} with advise, which advises on --eta-x, --eta-y and --mu at the start of a "
                    "run: leave it out, and give it to finetune"
                )


class _Throttled:
    """Writes news to stderr, at most a line every `interval` seconds."""

    interval: ClassVar[float] = 10.0

    def __init__(self) -> None:
        self._last_line = time.monotonic()

    def __call__(self, news: str) -> None:
        if time.monotonic() - self._last_line >= self.interval:
            self._last_line = time.monotonic()
            say(f"advise: {news}")


# Fields of every run, which its setup reads at their defaults, and no options of this subcommand.
_annotated: Any = Annotated
_MARKS = get_args(Fixed[Any])[1], get_args(Suppress[Any])[1]  # type: ignore[misc]  # a mark, and no type here
for _name, _hint in get_type_hints(Training, include_extras=True).items():
    if _name in LEFT_OUT:
        Advise.__annotations__[_name] = _annotated[(_hint, *_MARKS)]


def rounded(value: float) -> float:
    """A number with few digits, not above it: a rate that is rounded up is closer to its limit."""
    digits = DIGITS - 1 - math.floor(math.log10(value))
    return math.floor(value * 10.0**digits) / 10.0**digits if digits >= 0 else value


def written(name: str, value: Any) -> list[str]:
    """An option as the words of a command line."""
    if isinstance(value, bool):
        return [option(name) if value else option(f"no_{name}")]
    if isinstance(value, float):
        return [option(name), f"{value:g}"]
    if isinstance(value, tuple):
        return [option(name), *map(str, value)]
    return [option(name), str(value)]
