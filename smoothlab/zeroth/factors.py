"""Zeroth-order steps of low rank, kept as factors beside 16-bit matrices that are never written.

A step moves a matrix A [m, n] by -eta sum_j c_j U_j W_j' / sqrt(r), less than the spacing of bf16's numbers, which
rounding would swallow. Masters in float32 would hold it in 4 more bytes an entry. Here the steps' sum S = U W' is kept
as its factors U [m, R] and W [n, R] in float32, and x stands at A + S: whatever computes with A adds x W U' to x A'.
A is not written, so that it may stay a file that is mapped into memory. All other tensors of the block (norms, biases)
are small, and have float32 copies that are moved and computed with in their place.

R grows with the steps: by r for every direction whose W is new, 4 r (m + n) bytes a matrix. Steps along directions that
share their W (`KeptSubspace`), or that were taken before (momentum), add to the U that is there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.zeroth.directional import Directional
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.low_rank import LowRank
from smoothlab.zeroth.rng import Seed, stream_name

ROWS = 32
"""Rows of a chunk of factors, or the next multiple of the rank below. Chunks are made as they are needed, never copied:
one takes 0.33 GB on Llama-2-7B. Products with 512 columns in chunks of 16, 32 and 64 rows took 22, 14 and 9 ms."""
_NAME = "_smoothlab_factors"  # attribute of a parameter, and of what stands for it in a forward pass


class MatrixFactors:
    """The sum S = U W' of the steps of one matrix A [m, n].

    Attributes:
        rank: R, columns of U and of W.
        merged: whether S was added to A, so that no step may follow.
    """

    def __init__(self, matrix: Tensor, rows: int) -> None:
        self._shape, self._device, self._rows = matrix.shape, matrix.device, rows
        self._chunks: list[tuple[Tensor, Tensor]] = []  # U' [rows, m] and W' [rows, n]
        self.rank, self.merged = 0, False

    @property
    def nbytes(self) -> int:
        """Bytes of the chunks."""
        return sum(u.nbytes + w.nbytes for u, w in self._chunks)

    def add(self, start: int, u: Tensor, w: Tensor, scale: float) -> None:
        """S <- S + scale U W', in columns `start` to start + r of the factors, which are new ones or have this W.

        Args:
            start: a multiple of r, at most `rank`.
            u: U [m, r].
            w: W [n, r].
            scale: the scale.
        """
        number, row = divmod(start, self._rows)
        if number == len(self._chunks):
            m, n = self._shape
            self._chunks.append(tuple(torch.zeros(self._rows, k, device=self._device) for k in (m, n)))  # type: ignore[arg-type]
        left, right = self._chunks[number]
        stop = row + u.shape[1]
        if start == self.rank:
            right[row:stop] = w.T
            self.rank += u.shape[1]
        left[row:stop] += scale * u.T

    def plus(self, product: Tensor, x: Tensor) -> Tensor:
        """`product` [..., m] + x S' for x [..., n], in float32."""
        if not self.rank:
            return product
        flat, sums = x.reshape(-1, x.shape[-1]), product.reshape(-1, product.shape[-1])
        for u, w in self._parts():
            sums = torch.addmm(sums, torch.mm(w, flat.T).T, u)  # w first, see `products._plus`
        return sums.view(product.shape)

    def plus_rows(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """`rows` [..., n] + S[numbers] for row numbers [...], in float32."""
        if not self.rank:
            return rows
        sums = rows.reshape(-1, rows.shape[-1])
        for u, w in self._parts():
            sums = torch.addmm(sums, u[:, numbers.flatten()].T, w)
        return sums.view(rows.shape)

    def added_to(self, wide: Tensor, start: int = 0) -> Tensor:
        """A float32 copy of rows `start` and following of A, to which S is added in place; no graph sees it."""
        with torch.no_grad():
            for u, w in self._parts():
                wide.addmm_(u[:, start : start + len(wide)].T, w)
        return wide

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, (u, w) in enumerate(self._chunks):
            used = min(self.rank - number * self._rows, self._rows)
            yield u[:used], w[:used]


@dataclass
class VectorSteps:
    """A tensor that is no matrix, with its steps.

    Attributes:
        wide: its values in float32.
    """

    wide: Tensor


def factors_of(tensor: Tensor) -> MatrixFactors | None:
    """The steps that are kept beside a matrix; None where there are none."""
    steps = getattr(tensor, _NAME, None)
    return steps if isinstance(steps, MatrixFactors) else None


def with_factors_of(matrix: Tensor, stand_in: Tensor) -> Tensor:
    """The tensor `stand_in`, which stands for the matrix in a forward pass, with the matrix's factors."""
    factors = factors_of(matrix)
    if factors is not None:
        setattr(stand_in, _NAME, factors)
    return stand_in


def with_steps(p: Tensor) -> Tensor:
    """The values that a parameter has with its steps: itself, or others in float32."""
    steps = getattr(p, _NAME, None)
    if isinstance(steps, MatrixFactors):
        return steps.added_to(p.detach().to(torch.float32, copy=True))
    if isinstance(steps, VectorSteps):
        return steps.wide
    return p.detach()


def widened(p: Tensor) -> Tensor:
    """A 16-bit parameter in float32, with its steps; a wider one itself, as it then stands for what is moved."""
    if p.dtype.itemsize > 2:
        return p
    steps = getattr(p, _NAME, None)
    wide = p.to(torch.float32)
    if isinstance(steps, MatrixFactors):
        return steps.added_to(wide)
    if isinstance(steps, VectorSteps):
        # Autograd is to see p, where it differentiates that.
        return wide + (steps.wide - wide.detach()) if wide.requires_grad else steps.wide
    return wide


def merge(params: Iterable[Tensor]) -> None:
    """Add the steps to the weights, rounded once, in place; what keeps the steps takes no more of them.

    Parameters without steps stay as they are. A file that they are mapped from stays as it is, too: what is written to
    a private mapping is this process's alone.
    """
    for p in params:
        steps = getattr(p, _NAME, None)
        if isinstance(steps, MatrixFactors):
            rows = max(1, (1 << 22) // p.shape[1])
            for start in range(0, len(p), rows):
                part = p.detach()[start : start + rows]
                part.copy_(steps.added_to(part.to(torch.float32), start))
            steps.merged = True
        elif isinstance(steps, VectorSteps):
            p.detach().copy_(steps.wide)
        else:
            continue
        delattr(p, _NAME)


class Factors:
    """The steps of a 16-bit block as factors of their sum, from its present values on.

    They are an attribute of each parameter, where `smoothlab.llm.compute` finds them; the block is only read.

    >>> import torch
    >>> from smoothlab import Block, Directional, LowRank
    >>> from smoothlab.zeroth.factors import Factors, with_steps
    >>> x = Block("x", (torch.ones(4, 3, dtype=torch.bfloat16),))
    >>> factors = Factors(x, LowRank(1))
    >>> factors.descend(Directional(LowRank(1), (((0, 0), 1.0),)), lr=1e-4)
    >>> bool((x.params[0] == 1).all()), bool((with_steps(x.params[0]) != 1).any())
    (True, True)

    Args:
        block: the block.
        distribution: distribution of the directions.

    Raises:
        BadInput: the distribution is not of low rank.
    """

    KEYS = ("seeds", "numbers", "stream")
    """Names of the tensors of a state."""

    def __init__(self, block: Block, distribution: Distribution) -> None:
        if not isinstance(distribution, LowRank):
            raise BadInput(
                f"steps along {distribution.name} directions have no factors: use LowRank ones (--distribution "
                "lowrank), or masters in float32"
            )
        if not any(p.dim() == 2 for p in block.params):
            raise BadInput(
                f"block '{block.name}' has no matrix, whose steps would have factors: use masters in float32"
            )
        self._block, self._distribution = block, distribution
        self._rows = distribution.rank * max(1, ROWS // distribution.rank)  # no direction is in two chunks
        self.reset()

    @staticmethod
    def expected_bytes(block: Block, distribution: LowRank, directions: int) -> int:
        """Bytes of the factors of so many directions: 4 r (m + n) for each and each matrix, and up to a chunk more."""
        return 4 * distribution.rank * directions * sum(sum(p.shape) for p in block.params if p.dim() == 2)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors and float32 copies."""
        return sum(m.nbytes for m in self._matrices.values()) + sum(v.wide.nbytes for v in self._vectors.values())

    def reset(self) -> None:
        """Remove all steps."""
        self._moves: list[tuple[Seed, float]] = []
        self._starts: dict[Seed, int] = {}  # first column of the factors, by the seed of W
        self._matrices: dict[int, MatrixFactors] = {}
        self._vectors: dict[int, VectorSteps] = {}
        for i, p in enumerate(self._block.params):
            if p.dim() == 2 and p.numel():
                self._matrices[i] = MatrixFactors(p, self._rows)
            else:
                self._vectors[i] = VectorSteps(p.detach().to(torch.float32, copy=True))
            setattr(p, _NAME, self._matrices.get(i) or self._vectors[i])

    def descend(self, update: Any, lr: float, weight_decay: float = 0.0) -> None:
        """x <- x - lr u.

        Raises:
            BadInput: u is no sum of directions, is of another generator than this machine's, or decays weights; the
                steps were merged.
        """
        if weight_decay:
            raise BadInput(f"weight_decay = {weight_decay:g} with steps kept as factors: use 0, or masters in float32")
        if not isinstance(update, Directional) or update.anchor is not None:
            raise BadInput(
                "steps kept as factors are sums of low-rank directions, these are others: use variant plain, momentum, "
                "adaptive, spread or subspace without control variates, or masters in float32"
            )
        if lr == 0:
            return
        update.check_generator(self._block)
        self._add([(seed, -lr * c) for seed, c in update.terms], update)

    def state(self) -> dict[str, Tensor]:
        """Seeds [T, k] and numbers [T] of the T directions in the order of their steps, and the generator's name."""
        return {
            "seeds": torch.tensor([seed for seed, _ in self._moves], dtype=torch.int64),
            "numbers": torch.tensor([number for _, number in self._moves], dtype=torch.float64),
            "stream": torch.tensor(list(self._stream.encode()), dtype=torch.uint8),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the steps that `state` returned, to the bit, on a block with the same values before any step.

        Raises:
            BadInput: the seeds are of another generator than this machine's.
        """
        stream = bytes(state["stream"].tolist()).decode()
        if stream != self._stream and len(state["numbers"]):
            raise BadInput(
                f"steps that are kept as factors have seeds of generator {stream}, this is {self._stream}: go on where "
                "they were made, or begin anew with generator 'portable'"
            )
        self.reset()
        numbers = state["numbers"].tolist()
        self._add([(tuple(seed), number) for seed, number in zip(state["seeds"].tolist(), numbers, strict=True)])

    @property
    def _stream(self) -> str:
        return stream_name(self._block.params[0].device, self._distribution.generator)

    def _add(self, moves: Sequence[tuple[Seed, float]], update: Directional | None = None) -> None:
        rank = self._distribution.rank
        if any(factors.merged for factors in self._matrices.values()):
            raise BadInput("the steps were merged into the weights: make a new HybridSGD for more steps")
        with torch.no_grad():
            for seed, number in moves:
                stream = update.streams.get(seed) if update is not None else None
                stream = stream or self._distribution.kept_stream(self._block, seed)
                start = self._starts.setdefault(self._distribution.columns_seed(seed), rank * len(self._starts))
                for i, factors in self._matrices.items():
                    factors.add(start, *self._distribution.factors(stream, i), number * rank**-0.5)
                for i, vector in self._vectors.items():
                    vector.wide.add_(self._distribution.numbers(stream, i), alpha=number)
                self._moves.append((seed, number))
