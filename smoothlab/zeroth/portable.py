"""The portable generator: the same bits on every device, thread count, instruction set and torch version.

Number i of a tensor is a function of the direction's seed, the tensor and i alone, made of integer operations, look-ups
and single products, which every machine rounds alike. A counter c becomes a word of 64 bits by a keyed permutation,

    word(c) = M(C_2 M(C_1 M(C_0 c + k_0) + k_1) + k_2)  mod 2^64,    M(x) = x ^ (x >> s) ^ (x >> t).

Its steps are one-to-one: the C are odd, and M, whose >> repeats the sign, adds to each bit higher ones only, the two
copies of the sign canceling in the top s bits. The constants and shifts are those of Evensen's mixing function nasam,
which were chosen for counters. The bits of a word, from the lowest on, are

    normal numbers   4 indices of 16 bits into a table of 65,536 normal quantiles, scaled to variance 1
    signs            64 signs
    masks            2 numbers of 32 bits, held against a probability

The counter holds tensor, purpose and position, so that no two words of a direction coincide. The seed, of any length
(run, step, group, number of the direction), fixes the key k by numpy's SeedSequence, whose bits are the same in all
versions of numpy and whose pool holds 128 of them: that any two of n seeds have one key has probability n^2/2^129 at
most (1.5e-21 for 10^9 seeds), if its hash is as good as a random one. A key that is only added to the counter would put
all seeds on one orbit, where long streams overlap; here two streams of N words are related only if their k_0 agree to
within N C_0 and their k_1 in all bits, which has probability N/2^127 for any two (1.5e-28 for 10^11 numbers).

The table is a file, `normal_quantiles.npy`, as quantiles that a machine computes depend on its logarithm. Its entries
are multiples of 2^-19, of at most 22 bits: products of two of them are exact in fp64, and so are sums of 1,024 such.
Numbers are drawn on machines whose integers begin with their lowest byte, as those of all devices of torch's wheels do.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smoothlab.errors import BadInput

NAME = "portable-1"
"""Name of the generator in records and seed logs; other bits would have another number."""
FRACTION_BITS = 19
"""Entries of the table are multiples of 2^-FRACTION_BITS."""
MOMENTS = (2.999247083959085, 14.972468778736559, 104.1805310261809)
"""E z^4, E z^6 and E z^8 of an entry of the table; E z^2 is 1 to 1e-8."""
LARGEST_RANK = 1024
"""Largest rank at which U W' of table normals is exact in fp64, whatever the order of its sums."""
_DIGEST = "4a8d33d40dd54c0405bdaf9c2e72037225a667dbe26fcd35e716b1c6a56aa644"

_C0, _C1, _C2 = 0x9E3779B97F4A7C15, 0x9E6C63D0676A9A99, 0x9E6D62D06F6A9A9B
_SHIFTS = ((25, 47), (23, 51), (23, 51))
_POSITION, _LANE = 46, 2  # bits of the counter for the word's number and for its purpose; the rest is the tensor's
SHARED_LANE = (1 << _LANE) - 1  # purpose of numbers that all pieces of a tensor share
_WORDS = 1 << 15  # that are made at a time: calls of torch are cheap beside them, and they stay in cache


def _signed(number: int) -> int:
    """The integer that has the same 64 bits for torch, whose integers have a sign."""
    number &= (1 << 64) - 1
    return number - (number >> 63 << 64)


class Key:
    """Key of a direction's permutation.

    Args:
        state: three words of 64 bits.
        device: where the numbers are made.
    """

    def __init__(self, state: Sequence[int], device: torch.device) -> None:
        self.device, self._k0 = device, state[0]
        self._k1, self._k2 = (torch.tensor(_signed(k), device=device) for k in state[1:])

    def words(self, counter: int, out: Tensor, scratch: Tensor) -> Tensor:
        """The words of `len(out)` consecutive counters, in `out`; `scratch` is [2, len(out)]."""
        a, b = scratch
        first = torch.tensor(_signed(_C0 * counter + self._k0), device=self.device)
        torch.add(first, _counters(self.device)[: len(out)], out=out)
        _mix(out, *_SHIFTS[0], a, b)
        torch.add(self._k1, out, alpha=_signed(_C1), out=out)
        _mix(out, *_SHIFTS[1], a, b)
        torch.add(self._k2, out, alpha=_signed(_C2), out=out)
        _mix(out, *_SHIFTS[2], a, b)
        return out


def _mix(x: Tensor, near: int, far: int, a: Tensor, b: Tensor) -> None:
    torch.bitwise_right_shift(x, near, out=a)
    torch.bitwise_right_shift(x, far, out=b)
    x.bitwise_xor_(a.bitwise_xor_(b))


class PortableDraws:
    """Numbers of one tensor from entry `start` on; every call takes numbers of its own, for a purpose of its own.

    Args:
        key: the direction's.
        tensor: number of the tensor in its block.
        start: number of the first entry that is asked for.
        lane: purpose of the first call; the next has the next.
    """

    def __init__(self, key: Key, tensor: int, start: int, lane: int = 0) -> None:
        self._key, self._tensor, self._start, self._lane = key, tensor, start, lane

    def normal_(self, out: Tensor) -> Tensor:
        """Write normal numbers of the table to `out` [n]."""
        table = _table(out.device, out.dtype)
        memory = torch.empty(min(4 * _WORDS, len(out)), dtype=torch.int64, device=out.device)
        for part, words, skip in self._parts(out, 4):
            index = memory[: len(part)].copy_(words.view(torch.uint16)[skip : skip + len(part)])
            torch.index_select(table, 0, index, out=part)
        return out

    def signs_(self, out: Tensor) -> Tensor:
        """Write +-1 to `out` [n]: 1 where a bit is set."""
        for part, words, skip in self._parts(out, 64):
            eights = torch.index_select(_signs_of_byte(out.device), 0, words.view(torch.uint8).to(torch.int32))
            part.copy_(eights.view(torch.int8)[skip : skip + len(part)])
        return out

    def keep_(self, out: Tensor, density: float) -> Tensor:
        """Set the entries of `out` [n] to 0 but for those that a mask of this density, to 2^-32, keeps."""
        last = max(round(density * 2**32), 1) - 1 - 2**31
        for part, words, skip in self._parts(out, 2):
            part.mul_(words.view(torch.int32)[skip : skip + len(part)] <= last)
        return out

    def _parts(self, out: Tensor, per_word: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Parts of `out`, the words that hold their numbers, and how many of these stand before the first."""
        lane, self._lane = self._lane, self._lane + 1
        base = self._tensor << _POSITION + _LANE | lane << _POSITION
        skip = self._start % per_word  # the same for all parts, which are of whole words
        memory = torch.empty(3, min(_WORDS, len(out) // per_word) + 2, dtype=torch.int64, device=out.device)
        step = _WORDS * per_word
        for begin in range(0, len(out), step):
            part = out[begin : begin + step]
            count = -(-(skip + len(part)) // per_word)
            words = self._key.words(base + (self._start + begin) // per_word, memory[0, :count], memory[1:, :count])
            yield part, words, skip


@cache
def quantiles() -> NDArray[np.int32]:
    """The upper half of the table [32,768], in units of 2^-FRACTION_BITS; entry -1 - i of the whole is minus entry i.

    Raises:
        BadInput: the file is not the one that the bits are made from.
    """
    with files("smoothlab.zeroth").joinpath("normal_quantiles.npy").open("rb") as file:
        upper: NDArray[np.int32] = np.load(file, allow_pickle=False)
    if hashlib.sha256(upper.astype("<i4").tobytes()).hexdigest() != _DIGEST:
        raise BadInput("smoothlab/zeroth/normal_quantiles.npy is damaged: install smoothlab again")
    return upper


@cache
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    upper = torch.from_numpy(quantiles().astype(np.float64)) / 2**FRACTION_BITS
    return torch.cat([-upper.flip(0), upper]).to(device, dtype)


@cache
def _signs_of_byte(device: torch.device) -> Tensor:
    """The eight signs of each byte, side by side in one number of 64 bits."""
    signs = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1) * 2 - 1
    return signs.to(torch.int8).view(torch.int64).view(-1).to(device)


@cache
def _counters(device: torch.device) -> Tensor:
    """C_0 c for the first counters c."""
    return torch.arange(_WORDS + 1, device=device) * _signed(_C0)


def sum_of_squares(numbers: Tensor) -> int:
    """The sum of squares of table normals in units of 2^-38: exact, in any order."""
    squares = (numbers * 2**FRACTION_BITS).long().square()
    # An int64 holds the sum of 2^20 of them at least.
    return sum(torch.stack([part.sum() for part in squares.split(1 << 18)]).tolist())


def radius(dim: int, squares: Sequence[int]) -> float:
    """sqrt(dim) / ||g|| from `sum_of_squares` of the pieces of g."""
    return math.sqrt(dim / (sum(squares) / 4**FRACTION_BITS))


def low_rank(u: Tensor, w: Tensor, out: Tensor) -> None:
    """Write U W' / sqrt(r) [m, n] from table normals U [m, r], W [n, r] of fp64: exact until it is rounded once."""
    out.copy_(torch.mm(u, w.T).mul_(1 / math.sqrt(u.shape[1])))
