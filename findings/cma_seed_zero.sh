#!/usr/bin/env bash
# cma 4.5.0: the seed 0 is no seed: two runs of CMA-ES with {"seed": 0} differ, and numpy's seed does not reach it.
#
# Guess: each whole number is a seed, 0 as well; or, where none is given, numpy.random.seed decides, from which cma draws.
# Seen:  with seed 1 two runs draw the same points. With seed 0 they do not, whether numpy.random.seed was set before or
#        not: None and 0 both stand for the clock (the option's help text says so), and cma sets numpy's seed from it.
#        Such a run can be repeated by the seed that es.opts holds afterwards alone. Nothing warns; the seed nan leaves
#        numpy's own seed in force.
# Who meets it: whoever compares zeroth-order methods over seeds 0, 1, 2: the first one comes out anew each time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check cma==4.5.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import time

import cma
import numpy as np


def run(options, numpy_seed=None):
    """The best point of 20 generations on a quadratic."""
    if numpy_seed is not None:
        np.random.seed(numpy_seed)
    strategy = cma.CMAEvolutionStrategy([1.0, 2.0, 3.0], 0.5, {"verbose": -9, **options})
    for _ in range(20):
        points = strategy.ask()
        strategy.tell(points, [float(np.square(point).sum()) for point in points])
    return tuple(strategy.result.xbest), strategy.opts["seed"]


for options, numpy_seed, repeats in (
    ({"seed": 1}, None, True), ({"seed": 2}, None, True), ({"seed": 0}, None, False),
    ({"seed": 0}, 3, False), ({}, 3, False),
):  # fmt: skip
    first = run(options, numpy_seed)
    time.sleep(0.1)
    second = run(options, numpy_seed)
    print(options, f"numpy.random.seed({numpy_seed}):", "repeats" if first[0] == second[0] else "differs", first[1], second[1])
    assert (first[0] == second[0]) == repeats, f"{options} changed"
point, used = run({"seed": 0})
assert used not in (0, None) and run({"seed": used})[0] == point, "opts no longer hold the seed that was used"
PY
