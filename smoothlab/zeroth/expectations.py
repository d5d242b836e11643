"""Expectations of polynomials of a random direction z, exactly: E F_1[z, ..., z] F_2[z, ..., z] ... for tensors F_k.

A distribution is its joint cumulants k_2, k_4, ... (odd ones vanish, as z and -z have one distribution), and a moment
is the sum over the partitions of its factors z_i into blocks of even size, of the products of the blocks' cumulants:

    Gaussian            k_2(i, j) = 1{i = j}, no other: the sum over pairings of Isserlis (1918).
    Rademacher, sparse  independent entries: k_n(i, ..., l) = c_n 1{i = ... = l}, with c_2 = 1, c_4 = m_4 - 3,
                        c_6 = m_6 - 15 m_4 + 30, c_8 = m_8 - 28 m_6 - 35 m_4^2 + 420 m_4 - 630 from m_n = E z_i^n.
    low rank            Z = sum_k u_k w_k' / sqrt(r) has r independent terms, so k_2n = r^(1 - n) k_2n(u w'). Moments of
                        u w' are sums over a partition p of the rows times a partition p' of the columns, weighted by
                        the cumulants of u and of w of their blocks' sizes (normal ones: pairings alone). What is not a
                        product of others, the cumulant, is the sum over those (p, p') that together connect all
                        factors. Tensors are independent of each other.
    sphere              z = sqrt(d) g / ||g|| with g Gaussian, and ||g|| is independent of z: the Gaussian's moment of
                        order 2n times d^n / (d (d + 2) ... (d + 2n - 2)).
    coordinate          z = +-sqrt(d) e_j: E z_i ... z_l = d^(n - 1) 1{i = ... = l} at order 2n.
    masked, scaled      z = S g with diagonal S: the Gaussian's, each index of each F_k times S.

Sums over partitions are made symbolically and equal terms gathered, so that few contractions remain.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import combinations, pairwise, product
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smoothlab.errors import BadInput

Array = NDArray[np.float64]
Shapes = tuple[tuple[int, ...], ...]
Blocks = tuple[tuple[int, ...], ...]  # a partition of range(n)


class Index(NamedTuple):
    """Name of an index: all entries of z if `tensor` is -1, else row and column in that matrix.

    A tensor that is no matrix is one column.
    """

    tensor: int
    row: int
    column: int


Term = tuple[float, dict[int, Index]]
"""A weight, and the name of each of its factors' indices."""
Names = tuple[tuple[Index, ...], ...]  # of the indices of each factor, the free one last


def entries(shapes: Shapes) -> int:
    """Number d of entries of tensors of these shapes."""
    return sum(map(prod, shapes))


class Cumulants(NamedTuple):
    """Cumulants of orders 4, 6 and 8 of an entry of variance 1; entries are independent unless `rank` is set.

    Attributes:
        fourth: c_4.
        sixth: c_6.
        eighth: c_8.
        rank: of matrices Z = U W' / sqrt(rank), U and W of such entries; 0: no tensor is such a matrix.
    """

    fourth: float = 0.0
    sixth: float = 0.0
    eighth: float = 0.0
    rank: int = 0

    @classmethod
    def of_moments(cls, m4: float, m6: float, m8: float) -> "Cumulants":
        """From the moments E z_i^4, E z_i^6 and E z_i^8 of independent entries, symmetric about 0, of variance 1."""
        return cls(m4 - 3, m6 - 15 * m4 + 30, m8 - 28 * m6 - 35 * m4**2 + 420 * m4 - 630)

    def of_order(self, order: int) -> float:
        """c_2 = 1, c_4, c_6 or c_8."""
        return (1.0, self.fourth, self.sixth, self.eighth)[order // 2 - 1]


def from_cumulants(cumulants: Cumulants, shapes: Shapes, factors: Sequence[Array], *, free: bool) -> Array:
    """E prod_k F_k[z, ..., z], or the vector E z prod_k F_k[z, ..., z] with `free`.

    Raises:
        BadInput: the order is above 8.
    """
    orders = tuple(f.ndim for f in factors)
    total = _zero(shapes, free)
    # Odd moments vanish, as z and -z have one distribution.
    if (sum(orders) + free) % 2 == 0:
        for names, weight in _terms(cumulants, shapes, orders, free).items():
            total = total + weight * _contracted(factors, names, shapes)
    return total


def by_coordinates(shapes: Shapes, factors: Sequence[Array], *, free: bool) -> Array:
    """E prod_k F_k[z, ..., z], or E z prod_k F_k[z, ..., z] with `free`, for z = +-sqrt(d) e_j."""
    orders = [f.ndim for f in factors] + [int(free)]
    if sum(orders) % 2:
        return _zero(shapes, free)
    names = tuple((Index(-1, 0, 0),) * order for order in orders)  # one index everywhere
    return float(entries(shapes)) ** (sum(orders) // 2 - 1) * _contracted(factors, names, shapes)


def _zero(shapes: Shapes, free: bool) -> Array:
    return np.zeros([entries(shapes)] * free)  # a vector, or a number


@cache
def _terms(cumulants: Cumulants, shapes: Shapes, orders: tuple[int, ...], free: bool) -> Counter[Names]:
    """The moment as contractions with their weights."""
    order = sum(orders) + free
    if order > 8:
        raise BadInput(f"moments of order {order} of directions are not worked out: at most 8 are")
    terms: Counter[Names] = Counter()
    for blocks in _partitions(tuple(range(order))):
        options = []
        for number, block in enumerate(blocks):
            start = number * order  # no block has more names than that, so that those of two blocks differ
            options.append(_cumulant(cumulants, shapes, block, start))
        for choice in product(*options):
            weight = 1.0
            combined: dict[int, Index] = {}
            for factor, indices in choice:
                weight *= factor
                combined |= indices
            # A counter of floats: equal contractions add up.
            terms[_canonical(combined, orders, free)] += weight  # type: ignore[assignment]
    return terms


def _cumulant(cumulants: Cumulants, shapes: Shapes, block: tuple[int, ...], start: int) -> list[Term]:
    """The joint cumulant of a block of indices as a sum of terms, each a weight and names from number `start` on."""
    if len(block) == 2 or not cumulants.rank:
        constant = cumulants.of_order(len(block))
        return [(constant, dict.fromkeys(block, Index(-1, start, 0)))] if constant else []
    # Tensors are independent, so that a cumulant has all of its indices in one tensor.
    terms: list[Term] = []
    for t, shape in enumerate(shapes):
        if len(shape) == 2:
            scale = float(cumulants.rank) ** (1 - len(block) // 2)
            terms += [(scale * weight, names) for weight, names in _connected(cumulants, block, t, start)]
        elif cumulants.of_order(len(block)):
            terms.append((cumulants.of_order(len(block)), dict.fromkeys(block, Index(t, start, start))))
    return terms


@cache
def _partitions(items: tuple[int, ...]) -> tuple[Blocks, ...]:
    """All partitions into blocks of even size."""
    if not items:
        return ((),)
    # The block of the first item is chosen, then the rest is partitioned: every partition comes once.
    first, remaining = items[0], items[1:]
    partitions: list[Blocks] = []
    for size in range(1, len(items), 2):
        for companions in combinations(remaining, size):
            unassigned = tuple(i for i in remaining if i not in companions)
            for blocks in _partitions(unassigned):
                partitions.append(((first, *companions), *blocks))
    return tuple(partitions)


@cache
def _connected(cumulants: Cumulants, block: tuple[int, ...], tensor: int, start: int) -> tuple[Term, ...]:
    """The cumulant of a block of entries of u w': pairs of partitions, of rows and of columns, that connect all."""
    weighted = []
    for partition in _partitions(block):
        weight = prod(cumulants.of_order(len(part)) for part in partition)
        if weight:
            weighted.append((weight, partition))
    terms = []
    for (row_weight, rows), (column_weight, columns) in product(weighted, weighted):
        joined, parts = {block[0]}, [set(part) for part in (*rows, *columns)]
        # What shares a row or a column with those that are joined joins them, until nothing does.
        while touching := [part for part in parts if not joined.isdisjoint(part)]:
            joined = joined.union(*touching)
            parts = [part for part in parts if part not in touching]
        if len(joined) < len(block):  # a product of cumulants
            continue
        row = {i: k for k, part in enumerate(rows, start) for i in part}
        column = {i: k for k, part in enumerate(columns, start) for i in part}
        terms.append((row_weight * column_weight, {i: Index(tensor, row[i], column[i]) for i in block}))
    return tuple(terms)


def _canonical(at: dict[int, Index], orders: tuple[int, ...], free: bool) -> Names:
    """Names in order of appearance, each symmetric factor's sorted: contractions that are equal mostly look so."""
    indices_in_order = [at[i] for i in range(sum(orders) + free)]
    ends = np.cumsum((0, *orders, int(free))).tolist()
    factors = [indices_in_order[a:b] for a, b in pairwise(ends)]
    for _ in range(2):  # sorting changes the order of appearance, once
        rows: dict[tuple[int, int], int] = {}
        columns: dict[tuple[int, int], int] = {}
        renamed = []
        for factor in factors:
            indices = []
            for tensor, row, column in factor:
                k, m = rows.setdefault((tensor, row), len(rows)), 0
                if tensor >= 0:
                    m = columns.setdefault((tensor, column), len(columns))
                indices.append(Index(tensor, k, m))
            renamed.append(indices)
        factors = [*map(sorted, renamed[:-1]), renamed[-1]]
    return tuple(map(tuple, factors))


def _contracted(factors: Sequence[Array], names: Names, shapes: Shapes) -> Array:
    """The contraction that `names` (the free index last) describe."""
    starts = np.cumsum([0, *map(prod, shapes)])
    letters: dict[tuple[str, int, int], int] = {}

    def labels(index: Index) -> list[int]:
        """Letters of einsum: one for an index of the whole vector, two for a row and a column of a matrix."""
        keys = [("row", index.tensor, index.row)]
        if index.tensor >= 0:
            keys.append(("column", index.tensor, index.column))
        return [letters.setdefault(key, len(letters)) for key in keys]

    arguments: list[object] = []
    for f, indices in zip(factors, names, strict=False):
        sides: list[int] = []
        letters_of_f: list[int] = []
        for axis, index in enumerate(indices):
            letters_of_f += labels(index)
            if index.tensor < 0:
                sides.append(f.shape[axis])
                continue
            # Entries of one matrix, by row and column: where z is in it, no other tensor's entries count.
            f = f.take(range(*starts[index.tensor : index.tensor + 2]), axis)
            shape = shapes[index.tensor]
            sides += shape if len(shape) == 2 else (prod(shape), 1)
        if indices:
            arguments += [f.reshape(sides), letters_of_f]
    if not names[-1]:
        return np.asarray(np.einsum(*arguments, [], optimize="greedy"))  # type: ignore[call-overload]
    (free,) = names[-1]
    value = np.asarray(np.einsum(*arguments, labels(free), optimize="greedy"))  # type: ignore[call-overload]
    if free.tensor < 0:
        return value
    vector = np.zeros(starts[-1])
    vector[slice(*starts[free.tensor : free.tensor + 2])] = value.reshape(-1)
    return vector
