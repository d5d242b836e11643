"""A subcommand whose options are read, and the options that several subcommands share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import arg

from smoothlab.experiments.continuation import AGAIN

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # no --no-flag
Threads = Annotated[
    int | None, arg(metavar="INT", help="number of CPU threads for torch; by default torch's own choice.")
]


@dataclass(frozen=True)
class Command:
    """The work of a subcommand, and what the same command line does after this one was stopped, in words."""

    run: Callable[[], int | None]
    continuation: Callable[[], str] = lambda: AGAIN

    def __call__(self) -> int | None:
        """Run it and return its exit status, None for 0."""
        return self.run()
