"""The peak of a process's memory."""

import subprocess
import sys

LARGE = 2**30


def test_the_peak_is_not_that_of_the_program_that_started_it() -> None:
    """Linux hands ru_maxrss on: --dry-run stated 2.5 times what a run took where a large process had started it."""
    held = bytearray(LARGE)
    held[::4096] = bytes(len(held[::4096]))  # each page is written, and so resident
    code = "from smoothlab.llm.memory import peak; print(peak('cpu'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 50e6 < int(printed) < len(held)
