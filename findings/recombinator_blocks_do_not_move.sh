#!/usr/bin/env bash
# recombinator 0.0.6.1: its moving block bootstrap has blocks that do not move, and never draws the last block of a series.
#
# Guess: moving_block_bootstrap(x, block_length=L) draws from all n - L + 1 blocks of L neighbors, and circular_block_bootstrap from
#        n blocks that wrap around, as in the literature and in the package arch: the former draws both ends less
#        often, the latter all observations equally often.
# Seen:  blocks begin at multiples of L alone: of 30 observations with L = 5 the moving bootstrap knows 5 blocks instead of 26, and
#        observations 26 to 30 are never drawn; with L = 10 it is the last third. The circular bootstrap knows 6 instead of
#        30, and where L does not divide n, what wraps around counts up to 1.9 times as often as the rest. So do the vectorized forms.
#        arch 8.0.0 does what the guess says. No warning.
# Who meets it: whoever gives a learning curve, or curvature along a run, an interval: its last points count for nothing,
#        and where there is a trend the interval misses the mean of the series that it was made for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check arch==8.0.0 numba==0.68.1 scipy==1.17.1 numpy==2.4.6
"$folder/env/bin/pip" install --quiet --disable-pip-version-check --no-deps recombinator==0.0.6.1  # two of its needs are built for long
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import numpy as np
from arch.bootstrap import CircularBlockBootstrap, MovingBlockBootstrap
from recombinator import block_bootstrap

N, DRAWS = 30, 4000
x = np.arange(float(N))
KINDS = {"moving": MovingBlockBootstrap, "circular": CircularBlockBootstrap}


def resampled(library, kind, length):
    if library == "arch":
        return np.array([data[0][0] for data in KINDS[kind](length, x, seed=0).bootstrap(DRAWS)])
    np.random.seed(0)
    return getattr(block_bootstrap, library.replace("KIND", kind))(x, block_length=length, replications=DRAWS)


for kind in KINDS:
    for length in (4, 5, 10):
        for library in ("arch", "KIND_block_bootstrap", "KIND_block_bootstrap_vectorized"):
            samples = resampled(library, kind, length).astype(int)
            counts = np.bincount(samples.ravel(), minlength=N) / DRAWS
            starts = len(np.unique(samples[:, 0]))
            never = (np.flatnonzero(counts == 0) + 1).tolist()
            print(f"{library.replace('KIND', kind)}, {kind}, L = {length}: {starts} blocks, never drawn {never},", end=" ")
            print(f"others {counts[counts > 0].min():.2f} to {counts.max():.2f} times")
            if library == "arch":
                assert not never and starts == (N if kind == "circular" else N - length + 1)
            elif kind == "moving":
                assert starts == len(range(0, N - length, length)), "other blocks are drawn now"
                assert never == list(range(starts * length + 1, N + 1)), "the last block is drawn now"
            else:
                assert not never and starts == -(-N // length), "other blocks are drawn now"
                assert (counts.max() > 1.5) == (N % length != 0)

curve = np.concatenate([np.zeros(20), np.ones(10)])  # a run whose last third differs
np.random.seed(0)
means = block_bootstrap.moving_block_bootstrap(curve, block_length=10, replications=DRAWS).mean(axis=1)
print(f"a series with mean {curve.mean():.3f}: resampled means {means.min():.3f} to {means.max():.3f}")
assert means.max() == 0, "the last third counts now"
PY
