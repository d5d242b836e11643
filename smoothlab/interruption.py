"""Ctrl-C and SIGTERM: exit status 130 or 143, and one line that says what the same command will do.

Where the command works, a signal raises KeyboardInterrupt, so that files are closed and child processes ended on the
way out. While modules are imported, and once the command is over, there is nothing to close, and an exception might be
caught or printed by whoever is importing: there the process ends at once. So it does at a second signal, where the
exception was raised in a place that cannot pass it on, and after `PATIENCE`.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

from smoothlab.errors import speaks
from smoothlab.experiments.continuation import AGAIN

PATIENCE = 20.0
"""Seconds that closing files and child processes may take."""
WORDS = {signal.SIGINT: "stopped", signal.SIGTERM: "ended by SIGTERM"}


class Interruption:
    """The signal that this process has received, and the one line about it.

    Attributes:
        working: whether the command runs.
        continuation: says how the command is taken up again, by what is on disk when it is called.
    """

    def __init__(self) -> None:
        self.continuation: Callable[[], str] = lambda: AGAIN
        self.working, self._number, self._printed = False, 0, False

    @property
    def status(self) -> int:
        """The exit status, after a KeyboardInterrupt."""
        return 128 + (self._number or signal.SIGINT)

    def say(self, stream: TextIO | None) -> None:
        """The one line, once."""
        if self._printed or stream is None or not speaks():
            return
        self._printed = True
        words = WORDS[signal.Signals(self._number or signal.SIGINT)]
        if stream.isatty():  # behind ^C, or a progress bar
            print(file=stream)
        print(f"smoothlab: {words}; {self.continuation()}", file=stream, flush=True)

    def leave(self) -> None:
        """Print the line, and end the process at once."""
        self.working = False
        try:
            self.say(sys.__stderr__)  # the parser keeps the other one to itself
            sys.stdout.flush()
        finally:
            os._exit(self.status)  # sys.exit would raise, in the middle of whatever runs

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        repeated, self._number = bool(self._number), number
        if repeated or not self.working or _importing(frame):
            self.leave()
        # A finally block may wait for a lock or a child that never comes.
        late = threading.Timer(PATIENCE, self.leave)
        late.daemon = True  # which a process that leaves in time does not wait for
        late.start()
        raise KeyboardInterrupt

    def unraisable(self, failure: Any) -> None:
        """Take what was raised where Python cannot pass it on, and would print it."""
        if self._number and failure.exc_type is KeyboardInterrupt:
            self.leave()
        sys.__unraisablehook__(failure)


@contextmanager
def handling_signals(*, whole_process: bool) -> Iterator[Interruption]:
    """Take SIGINT and SIGTERM, unless this process ignores them or somebody else takes them.

    Args:
        whole_process: whether the process is the command's, which ends with it: signals are then taken to its very end.
    """
    state = Interruption()
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread take signals
        yield state
        return
    signals = []
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signals.append(signal.SIGINT)
    # Torchrun's other processes write nothing: SIGTERM ends them at once, even where they wait for the first one.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and speaks():
        signals.append(signal.SIGTERM)
    before, hook = [signal.signal(number, state.handle) for number in signals], sys.unraisablehook
    sys.unraisablehook = state.unraisable
    try:
        yield state
    finally:
        state.working = False
        if not whole_process:
            sys.unraisablehook = hook
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
