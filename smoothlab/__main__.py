"""The command line, `smoothlab COMMAND ...` or `python -m smoothlab COMMAND ...`: its exit status and its last line.

Exit status: 0; 1 for a failed check, or settings that are left to be measured; 2 for bad input, told in one line; 130
after Ctrl-C and 143 after SIGTERM, told in one line too, while modules are imported as well. Hence this module imports
next to nothing.
"""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from smoothlab.errors import BadInput
from smoothlab.interruption import watched

# Threads that spin long while they wait are many times slower where other programs want the cores too; threads that
# sleep at once halve the speed of small models. GNU's OpenMP counts spins, Intel's milliseconds.
QUIET_THREADS = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return its exit status."""
    own, argv = argv is None, sys.argv[1:] if argv is None else list(argv)
    again = (
        "the same command" + (" without --overwrite" if "--overwrite" in argv else "") + " goes on from what is on disk"
    )
    with watched(again, own=own) as interruption:
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
                status = parse(argv)()
                sys.stdout.flush()
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
            if error.errno not in paths.UNUSABLE or error.filename is None:
                raise
            return _fail(f"cannot use {paths.shown(str(error.filename))}: {error.strerror}; name another path")
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            return _fail(f"out of memory; lower --batch, or take a smaller --model or smaller --blocks ({again})")


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


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, a device's (torch.OutOfMemoryError, by name), or that of torch on the CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


if __name__ == "__main__":
    sys.exit(main())
