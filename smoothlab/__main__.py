"""The command line, `smoothlab COMMAND ...` or `python -m smoothlab COMMAND ...`: its exit status and its last line.

Exit status: 0; 1 for a failed check, or settings that are left to be measured; 2 for bad input, 130 after Ctrl-C and
143 after SIGTERM, each with one line on stderr, while modules are imported as well. Hence this module imports next to
nothing.
"""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from smoothlab import __version__
from smoothlab.errors import BadInput, out_of_memory
from smoothlab.interruption import handling_signals

# Threads that spin long while they wait are many times slower where other programs want the cores too; threads that
# sleep at once halve the speed of small models. GNU's OpenMP counts spins, Intel's milliseconds.
QUIET_THREADS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}

MEMORY_OPTIONS = {
    "batch": "lower --batch", "replicas": "lower --replicas", "model": "take a smaller --model",
    "blocks": "measure smaller --blocks, e.g. layer",
}  # fmt: skip
"""Options of experiments that save memory, and what to do with each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return its exit status."""
    whole_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        print(f"smoothlab {__version__}")
        return 0
    with handling_signals(whole_process=whole_process) as interruption:
        for name, value in QUIET_THREADS.items():
            os.environ.setdefault(name, value)  # read when torch is first imported
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal may not know every character of the help
        warnings.showwarning = _warned
        from smoothlab import paths
        from smoothlab.commands import parse

        try:
            try:
                interruption.working = True
                command = parse(argv)
                interruption.continuation = command.continuation
                status = command()
                sys.stdout.flush()  # here, where a reader that has left can still be answered, and not at exit
            finally:
                interruption.working = False
            return status or 0
        except BadInput as error:
            return _fail(str(error), error.status)
        except KeyboardInterrupt:
            interruption.say(sys.stderr)
            return interruption.status
        except BrokenPipeError:
            # Whoever read our output has left, as `| head` does. Nothing more can be said on stdout, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:
            # Paths were checked before the command ran; what they lead to may have changed since.
            if error.errno not in paths.UNUSABLE or error.filename is None:
                raise
            return _fail(f"cannot use {paths.shortened(str(error.filename))}: {error.strerror}; name another path")
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return _fail(f"out of memory: {_memory_advice(argv)} ({interruption.continuation()})")


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line for a warning of ours, without the place in the code; those of libraries as Python shows them."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        print("smoothlab: warning: " + " ".join(str(message).split()), file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)


def _fail(message: str, status: int = 2) -> int:
    print("smoothlab: error: " + " ".join(message.split()), file=sys.stderr)
    return status


def _memory_advice(argv: Sequence[str]) -> str:
    """Options of the subcommand that save memory, those that it has and that matter here."""
    from smoothlab.commands.experiments import EXPERIMENTS

    experiment = EXPERIMENTS.get(argv[0])
    advice = []
    for name, words in MEMORY_OPTIONS.items():
        if experiment is None or name not in experiment.__dataclass_fields__:
            continue
        if name == "blocks" and not experiment.measure and not any(word.startswith("--measure") for word in argv):
            continue  # nothing is measured
        advice.append(words)
    return ", or ".join(advice) or "free some memory"


if __name__ == "__main__":
    sys.exit(main())
