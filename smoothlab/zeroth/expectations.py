"""Expectations of polynomials of a random direction z, exactly: E F_1[z, ..., z] F_2[z, ..., z] ... for tensors F_k.

A distribution is its joint cumulants k_2, k_4, ... (odd ones vanish, as z and -z have one distribution), and a moment
is the sum over the partitions of its factors z_i into blocks of even size, of the products of the blocks' cumulants:

    Gaussian            k_2(i, j) = 1{i = j}, no other: the sum over pairings of Isserlis (1918).
    Rademacher, sparse  independent entries: k_n(i, ..., l) = c_n 1{i = ... = l}, with c_2 = 1, c_4 = m_4 - 3,
                        c_6 = m_6 - 15 m_4 + 30, c_8 = m_8 - 28 m_6 - 35 m_4^2 + 420 m_4 - 630 from m_n = E z_i^n.
    low rank            Z = sum_k u_k w_k' / sqrt(r) has r independent terms, so k_2n = r^(1 - n) k_2n(u w'). Moments of
                        u w' are sums over a pairing p of the rows times a pairing p' of the columns; p and p' together
                        make loops, and what is not a product of others, the cumulant, is the sum over those (p, p')
                        that make a single loop. Tensors are independent of each other.
    sphere              z = sqrt(d) g / ||g|| with g Gaussian, and ||g|| is independent of z: the Gaussian's moment of
                        order 2n times d^n / (d (d + 2) ... (d + 2n - 2)).
    coordinate          z = +-sqrt(d) e_j: E z_i ... z_l = d^(n - 1) 1{i = ... = l} at order 2n.
    masked, scaled      z = S g with diagonal S: the Gaussian's, each index of each F_k times S.

Sums over partitions are made symbolically and equal terms gathered, so that few contractions remain.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, product
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smoothlab.errors import BadInput
from smoothlab.zeroth.distributions import (
    Coordinate,
    Gaussian,
    LowRank,
    Masked,
    Preconditioned,
    Rademacher,
    Sparse,
    Sphere,
)
from smoothlab.zeroth.rng import Directions

Array = NDArray[np.float64]
Shapes = tuple[tuple[int, ...], ...]
Blocks = tuple[tuple[int, ...], ...]  # a partition of range(n)


class Index(NamedTuple):
    """Name of an index: all entries of z if `tensor` is -1, else row and column in that matrix."""

    tensor: int
    row: int
    column: int


Names = tuple[tuple[Index, ...], ...]  # of the indices of each factor, the free one last


def expectation(distribution: Directions, shapes: Shapes, factors: Sequence[Array], *, free: bool = False) -> Array:
    """E prod_k F_k[z, ..., z], or the vector E z prod_k F_k[z, ..., z] with `free`.

    Args:
        distribution: distribution of z.
        shapes: shapes of the block's tensors, whose entries are z [d] in order.
        factors: symmetric arrays F_k [d, ..., d].
        free: multiply by z.

    Raises:
        BadInput: the distribution is a user's own, or directions given.
    """
    order = sum(f.ndim for f in factors) + free
    scale = scales(distribution, shapes)
    if order % 2:
        return np.zeros(len(scale)) if free else np.zeros(())
    d = len(scale)
    if type(distribution) in (Masked, Preconditioned):
        value = expectation(Gaussian(), shapes, [_scaled(f, scale) for f in factors], free=free)
        return value * scale if free else value
    if type(distribution) is Sphere:
        shrink = prod(d / (d + 2 * k) for k in range(order // 2))
        return shrink * expectation(Gaussian(), shapes, factors, free=free)
    if type(distribution) is Coordinate:
        same = Index(-1, 0, 0)
        names = tuple((same,) * f.ndim for f in factors) + (((same,),) if free else ((),))
        return d ** (order // 2 - 1) * _contracted(factors, names, shapes)
    total = np.zeros(d) if free else np.zeros(())
    for names, weight in _terms(distribution, shapes, tuple(f.ndim for f in factors), free).items():
        total = total + weight * _contracted(factors, names, shapes)
    return total


def scales(distribution: Directions, shapes: Shapes) -> Array:
    """Diagonal S of E zz' = S^2, [d]: ones but for masked and preconditioned directions."""
    sizes = [prod(shape) for shape in shapes]
    given = (
        distribution.masks
        if isinstance(distribution, Masked)
        else distribution.scales
        if isinstance(distribution, Preconditioned)
        else ()
    )
    if not given:
        return np.ones(sum(sizes))
    flat = [np.asarray(t.detach().cpu().double(), dtype=np.float64).reshape(-1) for t in given]
    if len(flat) != len(sizes) or any(len(s) not in (1, n) for s, n in zip(flat, sizes, strict=True)):
        raise BadInput(f"{distribution.name} directions of {len(flat)} tensors do not fit tensors of shapes {shapes}")
    return np.concatenate([np.broadcast_to(s, n) for s, n in zip(flat, sizes, strict=True)])


def fourth(distribution: Directions) -> float:
    """E z_i^4 of a distribution with independent entries of variance 1."""
    return {Gaussian: 3.0, Rademacher: 1.0}.get(type(distribution)) or 3 / _share(distribution)


def _share(distribution: Directions) -> float:
    if not isinstance(distribution, Sparse):
        raise BadInput(f"no closed form is known for {distribution.name} directions: measure their moments by sampling")
    return distribution.share


def _cumulants(distribution: Directions) -> dict[int, float]:
    """c_n of independent entries. Sparse ones: m_n = share (n - 1)!! share^(-n / 2)."""
    if type(distribution) in (Gaussian, LowRank):
        return {2: 1.0}
    if type(distribution) is Rademacher:
        m4 = m6 = m8 = 1.0
    else:
        share = _share(distribution)
        m4, m6, m8 = 3 / share, 15 / share**2, 105 / share**3
    c4, c6 = m4 - 3, m6 - 15 * m4 + 30
    return {2: 1.0, 4: c4, 6: c6, 8: m8 - 28 * m6 - 35 * m4**2 + 420 * m4 - 630}


@cache
def _terms(distribution: Directions, shapes: Shapes, orders: tuple[int, ...], free: bool) -> Counter[Names]:
    """The moment as contractions with their weights."""
    order = sum(orders) + free
    if order > 8:
        raise BadInput(f"moments of order {order} of {distribution.name} directions are not worked out: at most 8 are")
    constants = _cumulants(distribution)
    matrices = [t for t, shape in enumerate(shapes) if len(shape) == 2] if isinstance(distribution, LowRank) else []
    found: Counter[Names] = Counter()
    for blocks in _partitions(tuple(range(order))):
        options = []
        for number, block in enumerate(blocks):
            name = Index(-1, number * order, 0)
            ways = [(constants[len(block)], dict.fromkeys(block, name))] if len(block) in constants else []
            if len(block) > 2 and isinstance(distribution, LowRank):
                weight = float(distribution.rank) ** (1 - len(block) // 2)
                ways = [(weight, way) for t in matrices for way in _loops(block, t, number * order)]
            options.append(ways)
        for chosen in product(*options):
            at: dict[int, Index] = {}
            for _, way in chosen:
                at |= way
            # A counter of floats: equal contractions add up.
            found[_canonical(at, orders, free)] += prod(weight for weight, _ in chosen)  # type: ignore[assignment]
    return found


@cache
def _partitions(items: tuple[int, ...]) -> tuple[Blocks, ...]:
    """All partitions into blocks of even size."""
    if not items:
        return ((),)
    first, rest = items[0], items[1:]
    return tuple(
        ((first, *others), *blocks)
        for size in range(1, len(items), 2)
        for others in combinations(rest, size)
        for blocks in _partitions(tuple(i for i in rest if i not in others))
    )


@cache
def _loops(block: tuple[int, ...], tensor: int, start: int) -> tuple[dict[int, Index], ...]:
    """Names of the block's indices for each pair of pairings, of rows and of columns, that makes a single loop."""
    pairings = [p for p in _partitions(block) if len(p) == len(block) // 2]
    found = []
    for rows, columns in product(pairings, pairings):
        row = {i: k for k, pair in enumerate(rows) for i in pair}
        column = {i: k for k, pair in enumerate(columns) for i in pair}
        length, here = 0, block[0]
        while True:  # along a row's pair, then along a column's, until the start
            here = next(i for i in rows[row[here]] if i != here)
            here = next(i for i in columns[column[here]] if i != here)
            length += 2
            if here == block[0]:
                break
        if length == len(block):
            found.append({i: Index(tensor, start + row[i], start + column[i]) for i in block})
    return tuple(found)


def _canonical(at: dict[int, Index], orders: tuple[int, ...], free: bool) -> Names:
    """Names in order of appearance, each symmetric factor's sorted: contractions that are equal mostly look so."""
    positions = iter(range(len(at)))
    factors = [[at[next(positions)] for _ in range(n)] for n in orders]
    last = [at[next(positions)]] if free else []
    for _ in range(2):
        rows: dict[tuple[int, int], int] = {}
        columns: dict[tuple[int, int], int] = {}
        for index in [i for f in factors for i in f] + last:
            rows.setdefault((index.tensor, index.row), len(rows))
            columns.setdefault((index.tensor, index.column), len(columns))
        renamed = [
            [Index(i.tensor, rows[i.tensor, i.row], columns[i.tensor, i.column] if i.tensor >= 0 else 0) for i in f]
            for f in [*factors, last]
        ]
        factors, last = [sorted(f) for f in renamed[:-1]], renamed[-1]
    return tuple(tuple(f) for f in [*factors, last])


def _contracted(factors: Sequence[Array], names: Names, shapes: Shapes) -> Array:
    """The contraction that `names` (the free index last) describe."""
    starts = np.cumsum([0, *(prod(shape) for shape in shapes)])
    letters: dict[tuple[str, int, int], int] = {}

    def letter(kind: str, index: Index, value: int) -> int:
        return letters.setdefault((kind, index.tensor, value), len(letters))

    def labels(index: Index) -> Iterator[int]:
        yield letter("row", index, index.row)
        if index.tensor >= 0:
            yield letter("column", index, index.column)

    arguments: list[object] = []
    for f, indices in zip(factors, names, strict=False):
        if not indices:
            continue
        where = tuple(slice(None) if i.tensor < 0 else slice(*starts[i.tensor : i.tensor + 2]) for i in indices)
        part = f[where]
        sides = [
            s for i, n in zip(indices, part.shape, strict=True) for s in (shapes[i.tensor] if i.tensor >= 0 else (n,))
        ]
        arguments += [part.reshape(sides), [name for i in indices for name in labels(i)]]
    out = list(labels(names[-1][0])) if names[-1] else []
    value = np.asarray(np.einsum(*arguments, out, optimize="greedy"))  # type: ignore[call-overload]
    if names[-1] and names[-1][0].tensor >= 0:
        whole = np.zeros(starts[-1])
        whole[slice(*starts[names[-1][0].tensor : names[-1][0].tensor + 2])] = value.reshape(-1)
        return whole
    return value


def _scaled(f: Array, scale: Array) -> Array:
    """F with every index times S."""
    for axis in range(f.ndim):
        f = f * scale.reshape([-1 if k == axis else 1 for k in range(f.ndim)])
    return f
