"""Measurements: what is too long for a test, and how fast things are."""

import os

from smoothlab.__main__ import QUIET_THREADS

for name, value in QUIET_THREADS.items():  # as the command line runs; read when torch is first imported
    os.environ.setdefault(name, value)
