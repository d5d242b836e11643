"""Verify an optimizer from a Python file: is its step a zeroth-order gradient, and a right one?"""

import dataclasses
import difflib
import inspect
import runpy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from smoothlab.conformance.adapter import Subject
from smoothlab.conformance.answer import Answer
from smoothlab.conformance.suite import DTYPES, PROBES, answers
from smoothlab.errors import BadInput
from smoothlab.records import Row


@dataclass(frozen=True)
class Verify:
    """Ask whether an optimizer's step is a zeroth-order gradient, and a right one.

    Attributes:
        file: Python file to run, FILE.py, or FILE.py:NAME.
        probes: names of the questions; all of them by default.
        seed: first seed of the optimizer's runs, and the seed of the problems.
        dtype: format of the parameters where a question is not about another one.
        step_seconds: longest time of a step, in seconds.
    """

    name: ClassVar[str] = "verify"
    unit: ClassVar[str] = "probe"

    file: str
    probes: tuple[str, ...] = ()
    seed: int = 0
    dtype: str = "float64"
    step_seconds: float = 60.0

    def __post_init__(self) -> None:
        for probe in self.probes:
            if probe not in PROBES:
                matches = difflib.get_close_matches(probe, PROBES, 1)
                hint = f"did you mean {matches[0]}? " if matches else ""
                raise BadInput(f"--probes {probe} is unknown: {hint}use one of {', '.join(PROBES)}")
        if self.dtype not in DTYPES:
            raise BadInput(f"--dtype {self.dtype} is unknown: use one of {', '.join(DTYPES)}")
        if not self.step_seconds > 0:
            raise BadInput(f"--step-seconds {self.step_seconds:g}: use a number above 0")

    @cached_property
    def subject(self) -> Subject:
        """The optimizer of the file."""
        return loaded(self.file, self.step_seconds)

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the questions that are asked."""
        return tuple(dict.fromkeys(self.probes)) or tuple(PROBES)

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Yield one row a question that `done` lacks."""
        finished = {row["probe"] for row in done}
        missing = [probe for probe in self.chosen if probe not in finished]
        for answer in answers(self.subject, missing, self.seed, self.dtype) if missing else ():
            yield {"subject": self.subject.name, **dataclasses.asdict(answer)}

    def place(self, row: Row) -> int:
        """Return the number of the row's question."""
        return self.chosen.index(row["probe"])

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Keep every row, as questions do not depend on each other."""
        return list({row["probe"]: row for row in rows if row is not None}.values())


def loaded(text: str, step_seconds: float) -> Subject:
    """The optimizer of FILE.py:NAME, or the only class or function that the file defines, with its CLAIMS if any.

    Raises:
        BadInput: the file cannot be read or run, or has no such name.
    """
    path, _, name = text.partition(".py:")
    file = Path(path if not name else path + ".py")
    if not file.is_file() or file.suffix != ".py":
        raise BadInput(f"{text}: there is no such Python file; give FILE.py, or FILE.py:NAME")
    try:
        # under a name of its own, so that an `if __name__ == "__main__"` block stays out
        names = runpy.run_path(str(file), run_name=f"smoothlab_verified_{file.stem}")
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{file}: {type(error).__name__}: {error}; correct the file") from error
    if not name:
        name = _only(file, names)
    if name not in names:
        raise BadInput(f"{file} defines no '{name}': {_offer(_makers(file, names))}")
    claims = names.get("CLAIMS", {}).get(name, {})
    return Subject(names[name], f"{file.stem}:{name}", claims, step_seconds)


def _makers(file: Path, names: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """Classes and functions that the file itself defines and that take parameters and a learning rate."""
    options = {}
    for name, value in names.items():
        defined_here = getattr(value, "__module__", "") == f"smoothlab_verified_{file.stem}"
        if not defined_here or name.startswith("_") or not callable(value):
            continue
        try:
            parameters = inspect.signature(value).parameters
        except ValueError:
            continue
        if "lr" in parameters:
            options[name] = value
    return options


def _only(file: Path, names: dict[str, Any]) -> str:
    makers = _makers(file, names)
    if len(makers) != 1:
        raise BadInput(f"{file}: name what to verify, {file}:NAME: {_offer(makers)}")
    return next(iter(makers))


def _offer(makers: dict[str, Any]) -> str:
    if not makers:
        return "define a class or function NAME(params, lr=..., seed=...)"
    return f"use one of {', '.join(makers)}"


def answer_of(row: Row) -> Answer:
    """The answer that a row holds."""
    fields = {field.name for field in dataclasses.fields(Answer)}
    return Answer(**{name: value for name, value in row.items() if name in fields})


def summary(subject: str, answers: Sequence[Answer]) -> str:
    """One line on all answers."""
    counts = {verdict: 0 for verdict in ("right", "wrong", "not observable")}
    for answer in answers:
        counts[answer.verdict.removesuffix(" within")] += 1
    seconds = sum(answer.seconds for answer in answers)
    evaluations = sum(answer.evaluations for answer in answers)
    parts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"{subject}: {parts}; {evaluations:,} evaluations, {seconds:.0f} s"


def status(answers: Sequence[Answer]) -> int:
    """Exit status: 1 if anything is wrong, or the optimizer raised or took too long somewhere."""
    return int(any(answer.verdict == "wrong" or answer.failed for answer in answers))
