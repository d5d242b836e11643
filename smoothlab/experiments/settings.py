"""Base of the experiments that measure a list of settings: resumption, progress, and the checks of options.

A subclass is a frozen dataclass, whose fields are the options. It lists its settings (`points`), makes the rows of the
settings that are not on record (`rows_of`), and says in the tables `choices` and `ranges` which values its options may
have.
"""

import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar

from smoothlab.errors import BadInput
from smoothlab.experiments.options import option
from smoothlab.records import whole

Row = dict[str, Any]
UNMEASURED: Row = {"measured": None, "low": None, "high": None}
"""The fields of an estimate in a row that has none."""


class SettingsExperiment(ABC):
    """An experiment whose rows are measured setting by setting."""

    unit: ClassVar[str] = "setting"
    device: ClassVar[str] = "cpu"  # for the header: seeds are bound to the generator of one kind of CPU
    # values that an option, or each of its several values, may have, by field
    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}  # least and greatest number, by field
    optional: ClassVar[tuple[str, ...]] = ()  # fields that may be empty

    @abstractmethod
    def points(self) -> list[Row]:
        """List the settings in their order: `setting` (a name of its own), and what the setting varies."""

    @abstractmethod
    def rows_of(self, points: Sequence[Row]) -> Iterator[Row]:
        """Measure settings one after another, and yield their rows as they come."""

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {point["setting"]: number for number, point in enumerate(self.points())}

    def place(self, row: Row) -> int:
        """Return the number of a row's setting, or -1 for a setting of another experiment."""
        return self._numbers.get(row["setting"], -1)

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Keep the rows of complete settings: those without a lost row beside them."""
        return whole(rows, self.place)

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Yield the rows of every setting that `done` lacks, in the order of `points`."""
        from tqdm import tqdm

        self.check()
        # rows of a setting that was only begun are not kept, so that those in `done` are of complete ones
        finished = {row["setting"] for row in done}
        points = [point for point in self.points() if point["setting"] not in finished]
        setting = ""
        with tqdm(total=len(points), desc="settings", unit="setting", disable=not sys.stderr.isatty()) as progress:
            for row in self.rows_of(points):
                progress.update(row["setting"] != setting)  # a setting counts when its first row is there
                setting = row["setting"]
                progress.set_postfix_str(setting)
                yield row

    def continuation(self) -> str:
        """Say what the same command does after this run was stopped."""
        return "measures the missing settings"

    def check(self) -> None:
        """Refuse values out of range, and names that are none of the choices.

        Raises:
            BadInput: names the first option that is wrong, and what it may be.
        """
        for field, value in asdict(self).items():  # type: ignore[call-overload]  # subclasses are dataclasses
            values = value if isinstance(value, tuple) else (value,)
            if not values and field not in self.optional:
                raise BadInput(f"{option(field)} names nothing: give at least one, or leave the option out")
            if len(set(values)) < len(values):
                raise BadInput(f"{option(field)} {listed(values)} names one twice: name each once")
            for item in values:
                self._check_value(field, item)

    def _check_value(self, field: str, value: Any) -> None:
        choices = self.choices.get(field, (value,))
        if value not in choices:
            raise BadInput(f"{option(field)} {value} is unknown: use some of {', '.join(choices)}")
        if field in self.ranges and value is not None:
            low, high = self.ranges[field]
            if not low <= value <= high:  # NaN is out of every range
                raise BadInput(f"{option(field)} {value}: use a number from {low:g} to {high:.10g}")


def listed(values: Sequence[Any]) -> str:
    """Return the values of an option as a message shows them."""
    return ", ".join(map(str, values))


def point_of(part: str, words: Sequence[str], values: Row) -> Row:
    """Return a setting: its part, its name of the part and some words, and what it varies."""
    return {"part": part, "setting": "/".join([part, *words]), **values}


def as_text(value: object) -> str:
    """Return a value as a setting's name has it: numbers with six significant digits at most."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def seeded(seed: int, name: str) -> tuple[int, int]:
    """Return the seed of a run by the experiment's seed and the run's name, whatever else is run before it."""
    return seed, zlib.crc32(name.encode())


def measured_row(ends: Sequence[float]) -> Row:
    """Return an estimate and the ends of its interval as the fields of a row."""
    return dict(zip(UNMEASURED, ends, strict=True))
