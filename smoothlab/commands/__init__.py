"""The subcommands, `smoothlab smoothness | plot | audit | demo`: one an experiment, and what they are asked with.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import contextlib
import functools
import inspect
import io
import sys
import time
from collections.abc import Callable
from typing import Any

import tyro

from smoothlab.commands.checks import audit, verify
from smoothlab.commands.command import Command
from smoothlab.commands.experiments import EXPERIMENTS, demo, measuring, replay
from smoothlab.commands.readers import READERS
from smoothlab.errors import BadInput, speaks
from smoothlab.experiments.complaints import usage_error
from smoothlab.experiments.finetune.options import check_renamed
from smoothlab.experiments.positionals import files_first
from smoothlab.paths import check_all

COMMANDS: dict[str, Callable[..., Command]] = READERS | {
    "replay": replay, "audit": audit, "verify": verify, "demo": demo,
}  # fmt: skip
"""Subcommands beside those of `EXPERIMENTS`."""


def parse(argv: list[str]) -> Command:
    """The command that `argv` asks for; --help and mistakes end the process as usual, a mistake with one line."""
    check_renamed(argv)
    commands: dict[str, Callable[..., Command]] = {name: measuring(name, kind) for name, kind in EXPERIMENTS.items()}
    commands |= COMMANDS
    for name, command in commands.items():
        commands[name] = _with_checked_paths(command)
    if argv and argv[0] in READERS:
        argv = files_first(argv, commands[argv[0]])
    complaint = io.StringIO()
    try:
        # tyro draws a box over many lines on stderr, of which one line is made.
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="smoothlab",
                description="Hybrid zeroth- and first-order fine-tuning: its training, curvature, rates and claims.",
                args=argv,
            )
    except SystemExit as end:
        if not end.code:
            sys.stdout.flush()
            raise
        if not speaks():
            time.sleep(2)  # torchrun ends all processes as soon as one has failed: the first one needs time to speak
            raise
        raise BadInput(usage_error(complaint.getvalue(), argv, commands)) from None


def _with_checked_paths(command: Callable[..., Command]) -> Callable[..., Command]:
    """The subcommand, which first looks whether its paths can be used."""

    @functools.wraps(command)
    def checked(*values: Any, **named: Any) -> Command:
        check_all(inspect.signature(command).bind(*values, **named).arguments)
        return command(*values, **named)

    return checked
