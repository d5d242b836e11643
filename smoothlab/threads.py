"""CPU threads of torch: how many compute, and whether one would be faster because other programs want the cores too."""

import os
import sys

from smoothlab.errors import BadInput, speaks

MOST_THREADS = 1024


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many CPU threads; with as many as it chooses itself if None.

    Where neither `threads` nor OMP_NUM_THREADS sets a number and one would be faster, a line on stderr advises it.

    Raises:
        BadInput: fewer than 1 or more than MOST_THREADS.
    """
    import torch

    if threads is None:
        cores = os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):  # not on macOS: a container may have fewer cores than the machine
            cores = len(os.sched_getaffinity(0))
        advice = one_thread_advice(torch.get_num_threads(), os.getloadavg()[0], cores)
        if advice and speaks() and "OMP_NUM_THREADS" not in os.environ:  # who has set the number knows
            print(f"smoothlab: {advice}", file=sys.stderr)
        return
    if not 1 <= threads <= MOST_THREADS:
        raise BadInput(f"--threads {threads}: use 1 to {MOST_THREADS}")
    torch.set_num_threads(threads)


def one_thread_advice(threads: int, load: float, cores: int) -> str:
    """Advice to compute with one thread where others keep too many cores busy for all of torch's; else "".

    Threads of one product wait for the slowest of them, and spin while they wait: on two cores that another program
    used, two threads took 2.7 times the CPU time of one.

    >>> one_thread_advice(threads=2, load=2.0, cores=2)
    'other programs keep 2.0 of 2 cores busy: --threads 1 may be faster than 2 threads'
    >>> one_thread_advice(threads=2, load=0.4, cores=2)
    ''
    """
    free = cores - load  # a load of 1 is one thread, of any program, that runs or waits for a core
    if threads == 1 or free > threads - 0.5:
        return ""
    return f"other programs keep {load:.1f} of {cores} cores busy: --threads 1 may be faster than {threads} threads"
