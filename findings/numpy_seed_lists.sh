#!/usr/bin/env bash
# numpy 2.4.6: default_rng([seed, 0]) is default_rng(seed): zeros at the end of a list of seeds count for nothing.
#
# Guess: default_rng([seed, step]) gives every pair a stream of its own, as numpy's pages recommend lists of a number and a
#        seed for parallel work; (5,), (5, 0) and (5, 0, 0) are three seeds.
# Seen:  5, [5], [5, 0] and [5, 0, 0] give the same numbers; [5, 1] and [0, 5] give others. SeedSequence puts zeros behind
#        what it is given, up to four words of 32 bits, and mixes those: any lists that agree but for zeros at the end
#        within these four words coincide. So do 5 + 7 * 2**32 and [5, 7], as numbers are cut into 32 bits, and [0] and [].
#        spawn() does not suffer from it: a key that is spawned is put behind the fourth word.
# Who meets it: whoever seeds step or worker i by [seed, i]: number 0 repeats the stream that seed alone has elsewhere,
#        say that of the initial weights or the data order, and directions that should be independent of it are not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import numpy as np


def numbers(seed):
    return tuple(np.random.default_rng(seed).integers(2**62, size=4).tolist())


one = [5, [5], [5, 0], [5, 0, 0], [5, 0, 0, 0]]
others = [[5, 0, 0, 0, 0], [5, 1], [5, 1, 0], [0, 5], [5, 5]]
for seed in one + others:
    print(seed, "is default_rng(5)" if numbers(seed) == numbers(5) else "is another stream")
assert all(numbers(seed) == numbers(5) for seed in one), "zeros at the end count now"
assert all(numbers(seed) != numbers(5) for seed in others)
assert numbers([5, 1]) == numbers([5, 1, 0]) and numbers(5 + 7 * 2**32) == numbers([5, 7]) and numbers([0]) == numbers([])
children = np.random.SeedSequence(5).spawn(3)
assert len({numbers(child) for child in (np.random.SeedSequence(5), *children)}) == 4, "spawned streams coincide"
PY
