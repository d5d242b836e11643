"""Strong statistical tests of the portable generator; its quick ones are in test_portable.py.

Each statistic is one number per stream that is normal, or chi-square, under the hypothesis of independent uniform bits;
the worst of all is held against its probability. `python -m tests.zeroth.test_portable_statistics --bytes 1e10` takes
that many bytes and prints the worst statistic; `--raw COUNT` writes words to stdout, for batteries such as dieharder
(`... --raw 1e12 | dieharder -g 200 -a`).
"""

import argparse
import math
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from smoothlab.zeroth import portable
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.portable import Key
from smoothlab.zeroth.rng import Stream
from tests.zeroth.test_portable import CPU, pair

BATCH = 1 << 15  # words of a stream that are looked at together: 262,144 bytes
LAYOUTS = ("one stream", "adjacent seeds", "adjacent steps", "adjacent tensors")
"""How batches follow one another: along one stream, or from stream to stream at the same positions."""


def key_of(seed: tuple[int, ...]) -> Key:
    key = Stream(Gaussian(generator="portable"), pair(), seed)._key
    assert key is not None
    return key


def batches(layout: str, count: int) -> Iterator[Tensor]:
    """Words [BATCH] of consecutive batches."""
    memory = torch.empty(3, BATCH, dtype=torch.int64)
    fixed = key_of((1, 2, 0))
    for i in range(count):
        key, counter = fixed, i * BATCH
        if layout == "adjacent seeds":
            key, counter = key_of((i, 0, 0, 0)), 0
        elif layout == "adjacent steps":
            key, counter = key_of((0, i, 0, 0)), 0
        elif layout == "adjacent tensors":
            counter = (i % 65536 << 48) + i // 65536 * BATCH
        yield key.words(counter, memory[0], memory[1:])


class Totals:
    """Sums over batches from which z-scores come."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.variances: dict[str, float] = {}
        self.indices = torch.zeros(65536, dtype=torch.int64)
        self.before: tuple[Tensor, Tensor] | None = None
        self.table = portable._table(CPU, torch.float32)
        z = self.table.double()
        self.moments = [float((z**n).mean()) for n in range(17)]
        self.serial = torch.zeros(256, 256, dtype=torch.int64)

    def add(self, name: str, value: float, variance: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.variances[name] = self.variances.get(name, 0.0) + variance

    def look(self, words: Tensor) -> None:
        indices = words.view(torch.uint16).to(torch.int64)
        self.indices += torch.bincount(indices, minlength=65536)
        z, n = self.table[indices].double(), len(indices)
        square = z.square() - self.moments[2]
        spread = self.moments[4] - self.moments[2] ** 2
        for lag in (1, 2, 3, 4, 5, 8, 16, 64, 256, 1024, 4096):
            count = n - lag
            self.add(f"serial {lag}", float(z[lag:] @ z[:-lag]), count * self.moments[2] ** 2)
            self.add(f"serial of squares {lag}", float(square[lag:] @ square[:-lag]), count * spread**2)
        if self.before is not None:
            self.add("batch to batch", float(z @ self.before[0]), n * self.moments[2] ** 2)
            self.add("squares, batch to batch", float(square @ self.before[1]), n * spread**2)
        self.before = z, square
        self._look_at_bits(words)

    def _look_at_bits(self, words: Tensor) -> None:
        n = len(words)
        for i in range(64):
            self.add(f"bit {i}", int((words >> i & 1).sum()) - n / 2, n / 4)
        for distance in (1, 7, 16, 23, 31, 32, 47):
            differences = words ^ (words >> distance)
            for i in (0, 8, 63 - distance):
                self.add(f"bits {i} and {i + distance}", int((differences >> i & 1).sum()) - n / 2, n / 4)
        follows = words[1:] ^ words[:-1]
        for i in range(0, 64, 7):
            self.add(f"bit {i}, word to word", int((follows >> i & 1).sum()) - (n - 1) / 2, (n - 1) / 4)
        octets = words.view(torch.uint8).to(torch.int64)
        self.serial += torch.bincount(octets[:-1] * 256 + octets[1:], minlength=65536).view(256, 256)

    def scores(self) -> dict[str, float]:
        """z-scores of all statistics, those of chi-square by their probability."""
        scores = {name: total / math.sqrt(self.variances[name]) for name, total in self.sums.items()}
        count = float(self.indices.sum())
        excess = self.indices.double() - count / 65536
        for order in range(1, 9):
            variance = self.moments[2 * order] - self.moments[order] ** 2
            scores[f"moment {order}"] = float(excess @ self.table.double() ** order) / math.sqrt(count * variance)
        for name, counts in (("indices", self.indices), ("pairs of bytes", self.serial.flatten())):
            expected = float(counts.sum()) / len(counts)
            chi = float(((counts.double() - expected) ** 2).sum()) / expected
            # Pairs of bytes overlap: their statistic less that of single bytes has 256 * 255 degrees of freedom.
            freedom = len(counts) - 1
            if name == "pairs of bytes":
                singles = self.serial.sum(1).double()
                each = float(singles.sum()) / 256
                chi, freedom = chi - float(((singles - each) ** 2).sum()) / each, 256 * 255
            scores[name] = (chi - freedom) / math.sqrt(2 * freedom)
        return scores


def examine(layout: str, size: float) -> dict[str, float]:
    """z-scores of the words of a layout, `size` bytes."""
    totals = Totals()
    for words in batches(layout, max(2, int(size) // (8 * BATCH))):
        totals.look(words)
    return totals.scores()


def worst(scores: dict[str, float]) -> tuple[str, float, float]:
    """The largest |z|, and the probability that one of so many is as large."""
    name = max(scores, key=lambda name: abs(scores[name]))
    p = 2 * stats.norm.sf(abs(scores[name]))
    return name, scores[name], float(-np.expm1(len(scores) * np.log1p(-p)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [2e6, pytest.param(2.5e9, marks=pytest.mark.slow)])
def test_all_statistics_are_those_of_random_bits(layout: str, size: float) -> None:
    name, z, p = worst(examine(layout, size))
    assert p > 1e-5, (name, z)


def test_the_statistics_see_a_permutation_with_one_round_less(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = portable._mix
    monkeypatch.setattr(portable, "_mix", lambda x, *shifts: honest(x, *shifts) if shifts[0] == 25 else None)
    assert worst(examine("one stream", 2e6))[2] < 1e-6


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=float, default=1e10, help="of all layouts together")
    parser.add_argument("--raw", type=float, help="write so many bytes of one stream to stdout instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.raw:
        for words in batches("one stream", int(args.raw) // (8 * BATCH)):
            sys.stdout.buffer.write(words.numpy().tobytes())
        return
    for layout in LAYOUTS:
        scores = examine(layout, args.bytes / len(LAYOUTS))
        name, z, p = worst(scores)
        print(f"{layout}: {len(scores)} statistics, worst {name} with z = {z:.2f}, p = {p:.3g}", flush=True)


if __name__ == "__main__":
    main()
