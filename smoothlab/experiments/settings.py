"""Base of the experiments that measure a list of settings: resumption, progress, and the checks of options.

A subclass is a frozen dataclass, whose fields are the options. It lists its settings (`points`), makes the rows of a
setting (`measured`), and says in the tables `choices` and `ranges` which values its options may have.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar

from smoothlab.errors import BadInput

Row = dict[str, Any]
UNMEASURED: Row = {"measured": None, "low": None, "high": None}
"""The fields of an estimate in a row that has none."""


class SettingsExperiment:
    """An experiment whose rows are measured setting by setting."""

    unit: ClassVar[str] = "setting"
    device: ClassVar[str] = "cpu"  # for the header: seeds are bound to the generator of one kind of CPU
    # values that an option, or each of its several values, may have, by field
    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}  # least and greatest number, by field
    optional: ClassVar[tuple[str, ...]] = ()  # fields that may be empty

    def points(self) -> list[Row]:
        """List the settings in their order: `part`, `setting` (a name of its own), and what the setting varies."""
        raise NotImplementedError

    def measured(self, point: Row) -> list[Row]:
        """Measure one setting and return its rows."""
        raise NotImplementedError

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {point["setting"]: number for number, point in enumerate(self.points())}

    def place(self, row: Row) -> int:
        """Return the number of a row's setting, or -1 for a setting of another experiment."""
        return self._numbers.get(row["setting"], -1)

    def standing(self, rows: Sequence[Row | None]) -> list[Row]:
        """Keep the rows of whole settings, which are not beside a loss."""
        from smoothlab.records import whole

        return whole(rows, self.place)

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """Yield the rows of every setting that `done` lacks, in the order of `points`."""
        from tqdm import tqdm

        from smoothlab.experiments import grid

        self.check()
        finished = {row["setting"] for row in done}
        points = [point for point in self.points() if point["setting"] not in finished]
        progress = tqdm(total=len(points), desc="settings", unit="setting", disable=not sys.stderr.isatty())
        setting = None
        for row in grid.rows(points, self.measured):
            progress.update(row["setting"] != setting)
            setting = row["setting"]
            yield row
        progress.close()

    def check(self) -> None:
        """Refuse values out of range, and names that are none of the choices.

        Raises:
            BadInput: names the first option that is wrong, and what it may be.
        """
        for field, value in asdict(self).items():  # type: ignore[call-overload]  # subclasses are dataclasses
            option, values = "--" + field.replace("_", "-"), value if isinstance(value, tuple) else (value,)
            listed = ", ".join(map(str, values))
            if not values and field not in self.optional:
                raise BadInput(f"{option} names nothing: give at least one, or leave the option out")
            if len(set(values)) < len(values):
                raise BadInput(f"{option} {listed} names one twice: name each once")
            for number in values:
                if field in self.choices and number not in self.choices[field]:
                    raise BadInput(f"{option} {number} is unknown: use some of {', '.join(self.choices[field])}")
                least, most = self.ranges.get(field, (-float("inf"), float("inf")))
                if field in self.ranges and number is not None and not least <= number <= most:
                    raise BadInput(f"{option} {number}: use a number from {least:g} to {most:.10g}")


def short(value: object) -> str:
    """Return a value as it stands in a setting's name: numbers with six significant digits at most."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def measured_row(ends: Sequence[float]) -> Row:
    """Return an estimate and the ends of its interval as the fields of a row."""
    return dict(zip(UNMEASURED, ends, strict=True))
