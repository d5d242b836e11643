"""Directions of low rank on the matrices of a block, drawn anew in each step or in a subspace kept for several."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth import portable
from smoothlab.zeroth.distribution import Distribution, Parts, Vector
from smoothlab.zeroth.distributions import Gaussian
from smoothlab.zeroth.expectations import Cumulants, Shapes, entries
from smoothlab.zeroth.rng import SHARED, Draws, Piece, Seed, Stream, chunk_of, cut


@dataclass(frozen=True)
class LowRank(Distribution):
    """Directions z = U W' / sqrt(rank) for matrices [m, n], U [m, rank] and W [n, rank] Gaussian; else Gaussian.

    E vec(Z) vec(Z)' = I, but the entries are uncorrelated, not independent (LOZO, Chen et al. 2024).

    >>> from smoothlab import LowRank
    >>> LowRank(2).second_moment(((10,),))
    (12.0, 1.0)

    Attributes:
        rank: rank of the direction, from 1.
    """

    by_shape: ClassVar[bool] = True
    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank != int(self.rank) or self.rank < 1:
            raise BadInput(f"rank {self.rank} of low-rank directions: use a whole number of at least 1")
        if self.generator == "portable" and self.rank > portable.LARGEST_RANK:
            raise BadInput(
                f"rank {self.rank} of portable low-rank directions: use at most {portable.LARGEST_RANK}, up to which "
                "U W' is exact in fp64 on every machine, or generator 'torch'"
            )
        object.__setattr__(self, "rank", int(self.rank))

    def pieces(self, block: Block) -> list[Piece]:
        """Whole rows of matrices, as many as fit a chunk."""
        pieces: list[Piece] = []
        for i, p in enumerate(block.params):
            pieces += _pieces(i, tuple(p.shape), chunk_of(p.device))
        return pieces

    def fill(self, stream: Stream, piece: Piece, out: Tensor) -> None:
        """U of the piece's rows times W', which every piece of the tensor draws alike."""
        shape = stream.block.params[piece.tensor].shape
        if len(shape) != 2:
            if stream.memory is None:
                stream.draws(piece).normal_(out)
            else:
                out.copy_(self._normal(stream, piece, 1).view(-1))
            return
        n = shape[1]
        # W is drawn before U: a thread has one generator of torch's, which each call of `draws` seeds anew.
        w = self._columns(stream, piece.tensor, n)
        u = self._rows(stream, piece, n)
        out = out.view(-1, n)
        if self.generator == "portable":
            portable.low_rank(u, w, out)
        else:
            torch.mm(u, w.T, out=out)
            if self.rank > 1:
                out.mul_(self.rank**-0.5)

    def kept_stream(self, block: Block, seed: Sequence[int]) -> Stream:
        """`stream`, but what it draws for the factors stays in memory: (m + n) r numbers a matrix [m, n]."""
        stream = self.stream(block, seed)
        stream.memory = {}
        return stream

    def factors(self, stream: Stream, tensor: int) -> tuple[Tensor, Tensor]:
        """U [m, rank] and W [n, rank] of matrix number `tensor` of the block, in working precision.

        The stream's numbers are U W' / sqrt(rank).
        """
        p = stream.block.params[tensor]
        n = p.shape[1]
        w = self._columns(stream, tensor, n)
        rows = [self._rows(stream, piece, n) for piece in _pieces(tensor, tuple(p.shape), chunk_of(p.device))]
        u = rows[0]
        if len(rows) > 1:
            u = torch.cat(rows)
        return u.to(stream.dtype), w.to(stream.dtype)  # the portable table's entries are exact in fp32

    def columns_seed(self, seed: Seed) -> Seed:
        """The seed that fixes W: directions for which it is the same share W."""
        return tuple(seed)

    def numbers(self, stream: Stream, tensor: int) -> Tensor:
        """The stream's numbers of one tensor that is no matrix, in its shape."""
        p = stream.block.params[tensor]
        parts = [self._normal(stream, piece, 1) for piece in _pieces(tensor, tuple(p.shape), chunk_of(p.device))]
        if not parts:
            return torch.empty(p.shape, dtype=stream.dtype, device=p.device)
        if len(parts) == 1:
            return parts[0].view(p.shape)
        return torch.cat(parts).view(p.shape)

    def _columns(self, stream: Stream, tensor: int, n: int) -> Tensor:
        """W [n, rank], which all pieces of a matrix [m, n] share."""
        return self._normal(stream, Piece(tensor, SHARED, 0, n * self.rank), self.rank)

    def _rows(self, stream: Stream, piece: Piece, n: int) -> Tensor:
        """The rows of U [m, rank] for a piece of whole rows of a matrix [m, n]."""
        rank = self.rank
        return self._normal(
            stream, Piece(piece.tensor, piece.number, piece.start // n * rank, piece.stop // n * rank), rank
        )

    def _normal(self, stream: Stream, piece: Piece, columns: int) -> Tensor:
        """Normal numbers [entries / columns, columns], taken from memory where it holds them."""
        memory = stream.memory
        if memory is not None and piece in memory:
            return memory[piece]
        dtype = stream.dtype
        if self.generator == "portable" and stream.block.params[piece.tensor].dim() == 2:
            dtype = torch.float64  # sums of products of two portable factors are exact
        numbers = torch.empty(piece.stop - piece.start, dtype=dtype, device=stream.device)
        numbers = stream.draws(piece).normal_(numbers).view(-1, columns)
        if memory is not None:
            memory[piece] = numbers
        return numbers

    def fill_replicas(
        self, out: Tensor, scratch: Tensor, generator: torch.Generator, shape: tuple[int, ...] = ()
    ) -> None:
        """U W' / sqrt(rank) where the tensor is a matrix; elsewhere Gaussian directions."""
        if self.generator == "portable":
            return super().fill_replicas(out, scratch, generator, shape)
        if len(shape) != 2:
            out.copy_(scratch.normal_(generator=generator))
            return
        m, n = shape
        sizes = out.shape[:-1]
        u = scratch.new_empty(*sizes, m, self.rank).normal_(generator=generator)
        w = scratch.new_empty(*sizes, n, self.rank).normal_(generator=generator)
        out.view(*sizes, m, n).copy_(u @ w.mT).mul_(self.rank**-0.5)

    def cumulants(self) -> Cumulants:
        """Cumulants of the entries of U, of W and of other tensors, see `smoothlab.zeroth.expectations`."""
        return Gaussian(generator=self.generator).cumulants()._replace(rank=self.rank)

    def second_moment(self, shapes: Shapes, parts: Parts = None, gradient: Vector = None) -> tuple[float, float]:
        """sum_t (||g_t||^2 / ||g||^2) e_t with e_t = d + 2 + 2 (m_t + n_t + 1)/r for matrices [m_t, n_t], else d + 2.

        Rows pair in 3 ways and columns in 3; equal pairings give mn + 2, the 6 unequal ones 2m + 2n + 2 over r; other
        tensors add their d_s, being independent. Entries of fourth cumulant c (portable ones) add
        (c (m_t + n_t + 4) + c^2)/r for matrices, where all four of a row or of a column are one entry, and c elsewhere.
        """
        c = self.cumulants().fourth
        extra = np.full(len(shapes), 2.0 + c)
        for t, shape in enumerate(shapes):
            if len(shape) == 2:
                extra[t] = 2 + (2 * (sum(shape) + 1) + c * (sum(shape) + 4) + c**2) / self.rank
        if gradient is not None and parts is None:
            ends = np.cumsum([*map(prod, shapes)])[:-1]
            parts = [float(g @ g) for g in np.split(gradient, ends)]
        if parts is not None:
            return entries(shapes) + float(extra @ parts / sum(parts)), 1.0
        if extra.min() < extra.max():
            raise BadInput(
                f"{self.name} directions on tensors of shapes {shapes}: give parts, the squared gradient norm of each"
            )
        return entries(shapes) + float(extra[0]), 1.0

    def fourth_moments(self, shapes: Shapes) -> tuple[float, float]:
        """The Gaussian's moments where no tensor is a matrix.

        Raises:
            BadInput: one is, whose rows and columns pair among themselves.
        """
        if any(len(shape) == 2 for shape in shapes):
            raise BadInput(
                f"the second moment of {self.name} directions on matrices is no combination of gg', ||g||^2 I and "
                "diag(gg'): use Gaussian directions, or find the largest stable rate by trying"
            )
        return 1.0, 3 + self.cumulants().fourth

    def sixth_moment_of_length(self, shapes: Shapes) -> float:
        """E ||z||^6 of one tensor; of a matrix Z = U W'/sqrt(r) it is E (tr A B)^3/r^3, A = U'U and B = W'W.

        Given B, tr AB is a sum of m independent quadratic forms of normal numbers, whose cumulants are m tr B,
        2m tr B^2 and 8m tr B^3: E (tr AB)^3 = m^3 (tr B)^3 + 6 m^2 tr B tr B^2 + 8 m tr B^3. The Wishart matrix B
        [r, r] of n degrees has, with N = n r, E (tr B)^3 = N (N + 2)(N + 4), E tr B tr B^2 = N (N + 4)(n + r + 1) and
        E tr B^3 = N (n^2 + r^2 + 3 (n r + n + r) + 4).

        Raises:
            BadInput: there are several tensors, or the numbers are the table's.
        """
        if self.generator == "portable":
            raise BadInput(f"E ||z||^6 of portable {self.name} directions is not worked out: use generator 'torch'")
        if len(shapes) > 1:
            raise BadInput(f"E ||z||^6 of {self.name} directions on several tensors is not worked out: use one tensor")
        if len(shapes[0]) != 2:
            return super().sixth_moment_of_length(shapes)
        (m, n), r = shapes[0], self.rank
        N = n * r
        cubes = m**3 * N * (N + 2) * (N + 4) + 6 * m**2 * N * (N + 4) * (n + r + 1)
        cubes += 8 * m * N * (n**2 + r**2 + 3 * (N + n + r) + 4)
        return cubes / r**3


@lru_cache(maxsize=1 << 14)  # a block of hundreds of small tensors is cut twice a step
def _pieces(tensor: int, shape: tuple[int, ...], length: int) -> tuple[Piece, ...]:
    """Pieces of at most `length` entries that one tensor of the block is cut into."""
    size = prod(shape)
    if len(shape) == 2 and size:  # a row is one product with W', which no piece may cut
        length = max(1, length // shape[1]) * shape[1]
    return tuple(cut(tensor, size, length))


@dataclass(frozen=True)
class KeptSubspace(LowRank):
    """Low-rank directions U W' / sqrt(rank) whose W stays for `window` steps, while U is new in each (LOZO).

    The step is the second number of a seed (run, step, ..., direction), as `HybridSGD` and estimators make them; seeds
    of one or two numbers have no step, and a W each. A single direction has the distribution of `LowRank`'s, and so
    have the directions of one step together; those of several steps in one window are dependent.

    >>> import torch
    >>> from smoothlab import Block
    >>> from smoothlab.zeroth.low_rank import KeptSubspace
    >>> x = Block("x", (torch.zeros(4, 3),))
    >>> first, second = (KeptSubspace(1, 10).draw(x, (0, step, 0)).view(4, 3) for step in (0, 9))
    >>> int(torch.linalg.matrix_rank(torch.cat([first, second])))   # rows of both are multiples of one W'
    1

    Attributes:
        window: steps for which W stays.
    """

    window: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window != int(self.window) or self.window < 1:
            raise BadInput(f"a subspace kept for {self.window:g} steps: use a whole number of at least 1")
        object.__setattr__(self, "window", int(self.window))

    def stream(self, block: Block, seed: Sequence[int]) -> Stream:
        """The direction that `seed` fixes on `block`."""
        return _KeptStream(self, block, seed)

    def columns_seed(self, seed: Seed) -> Seed:
        """The seed of the direction's window."""
        if len(seed) <= 2:
            return tuple(seed)
        run, step, *suffix = seed
        return (run, step // self.window, *suffix)

    # The moments of one direction are the same: W of a window is as random as W of a step.
    cumulants = LowRank.cumulants
    second_moment = LowRank.second_moment
    fourth_moments = LowRank.fourth_moments
    sixth_moment_of_length = LowRank.sixth_moment_of_length

    def second_moment_of_window(self, shapes: Shapes, parts: Sequence[float], steps: int) -> float:
        """E ||(1/k) sum_t ghat_t||^2 / ||g||^2 of k steps of one window, q = 1, at weights that stand still.

        Given W, E ghat = G W W'/r on a matrix, so that two steps of a window have the product ||G W W'||^2 / r^2, of
        mean ||G||^2 (n + r + 1)/r for W [n, r]; other tensors have ||g||^2.

            (1/k) E_1 + (1 - 1/k) sum_t (||g_t||^2 / ||g||^2) c_t,   c_t = (n_t + r + 1)/r or 1.

        It does not fall to 1 with k, as it does for `LowRank`: within a window the mean of the steps is the gradient
        projected to W's columns, and only over windows is it the gradient.

        Args:
            shapes: shapes of the block's tensors.
            parts: squared gradient norm of each tensor.
            steps: k, at most `window`.
        """
        pair = 0.0
        for shape, part in zip(shapes, parts, strict=True):
            factor = 1.0
            if len(shape) == 2:
                factor = (shape[1] + self.rank + 1 + self.cumulants().fourth) / self.rank
            pair += part / sum(parts) * factor
        single, _ = self.second_moment(shapes, parts=parts)
        return single / steps + (1 - 1 / steps) * pair


class _KeptStream(Stream):
    """A direction whose pieces share the numbers that belong to its window."""

    def __init__(self, distribution: KeptSubspace, block: Block, seed: Sequence[int]) -> None:
        super().__init__(distribution, block, seed)
        self._window = Stream(distribution, block, distribution.columns_seed(self.seed))

    def draws(self, piece: Piece) -> Draws:
        """Random numbers for one piece: the window's where all pieces of the tensor share them."""
        if piece.number == SHARED:
            return self._window.draws(piece)
        return super().draws(piece)
