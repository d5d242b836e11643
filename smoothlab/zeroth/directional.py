"""A zeroth-order gradient as what it is made of: a distribution, seeds, and one coefficient each.

It takes O(1) memory, is applied in place, and is materialized only where asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.shards import LocalEntries, local
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.rng import Mixture, Piece, Seed, Stream, Terms, add_scaled, stream_name
from smoothlab.zeroth.scaled import Known


@dataclass(frozen=True)
class Directional:
    """A gradient on one block: sum_j c_j z_j, plus `anchor`; z_j is the direction of `distribution` with seed j.

    >>> import torch
    >>> from smoothlab import Block, Directional, Rademacher
    >>> x = Block("x", (torch.zeros(3),))
    >>> Directional(Rademacher(), (((0,), 2.0),)).dense(x).abs()   # 2 z
    tensor([2., 2., 2.])

    Attributes:
        distribution: distribution of the directions.
        terms: (seed, coefficient) pairs, at least one.
        anchor: a gradient added as it is, flat [dim] or directional itself (control variates).
        stream: generator that the seeds are bound to, see `smoothlab.zeroth.rng.stream_name`.
        kept: directions still in memory by seed, which saves drawing them again; the estimator's next call empties it.
        streams: streams of directions by seed that keep what they have drawn, likewise.
    """

    distribution: Distribution
    terms: Terms
    anchor: "Directional | Tensor | None" = None
    stream: str = ""
    kept: dict[Seed, Tensor] = field(default_factory=dict, compare=False, repr=False)
    streams: dict[Seed, Stream] = field(default_factory=dict, compare=False, repr=False)

    def dense(self, block: Block) -> Tensor:
        """The gradient as a flat vector [dim] of the block's dtype (fp32 for 16-bit blocks).

        Raises:
            BadInput: the seeds are bound to another generator than this machine's.
        """
        self.check_generator(block)
        out = self._stream(block).numbers()
        for target, part in zip(block.split(out), self._anchors(block), strict=True):
            if part is not None:
                target += part
        return out

    def add_to(self, block: Block, alpha: float) -> None:
        """theta <- theta + alpha ghat on `block`, in place; the sum is made in working precision and rounded once.

        Of sharded parameters each process moves its own rows.

        Raises:
            BadInput: the seeds are bound to another generator than this machine's.
        """
        self.check_generator(block)
        # Views of the parameters' memory; those of parameters that are not contiguous are copies, see below.
        anchors, rows = self._anchors(block), [LocalEntries(p) for p in block.params]
        # The coefficient of a single direction joins alpha: one pass less over its numbers.
        single = len(self.terms) == 1 and self.anchor is None
        stream, scale = self._stream(block), alpha
        if single:
            seed, coefficient = self.terms[0]
            stream, scale = self.streams.get(seed) or self.distribution.stream(block, seed), alpha * coefficient

        def add(piece: Piece, numbers: Tensor) -> None:
            target, positions = rows[piece.tensor].overlap(piece.start, piece.stop)
            numbers, anchor = numbers[positions], anchors[piece.tensor]
            if anchor is not None:
                numbers = numbers + anchor[piece.start : piece.stop][positions]
            if target.dtype == numbers.dtype:
                add_scaled(target, numbers, scale, self.distribution.generator)
            else:
                wide = target.to(numbers.dtype)
                add_scaled(wide, numbers, scale, self.distribution.generator)
                target.copy_(wide)

        with torch.no_grad():
            if single and self.terms[0][0] in self.kept:
                for i, part in enumerate(block.split(self.kept[self.terms[0][0]])):
                    add(Piece(i, 0, 0, len(part)), part)
            else:
                pieces = []
                for piece in stream.pieces():  # those that other processes hold are not drawn
                    if len(rows[piece.tensor].overlap(piece.start, piece.stop)[0]):
                        pieces.append(piece)
                stream.map(add, pieces)
            for p, entries in zip(block.params, rows, strict=True):
                if not local(p).is_contiguous():  # `entries.flat` was a copy
                    local(p).copy_(entries.flat.view_as(local(p)))

    def check_generator(self, block: Block) -> None:
        """Refuse seeds whose directions can no longer be drawn on this machine.

        Raises:
            BadInput: they are bound to another generator, and not in memory.
        """
        own_stream = stream_name(block.params[0].device, self.distribution.generator)
        if self.stream not in ("", own_stream) and not self._in_memory:
            raise BadInput(
                f"the gradient's seeds are of generator {self.stream}, this is {own_stream}: its directions cannot be "
                "drawn here; go on where it was made"
            )

    @property
    def _in_memory(self) -> bool:
        return all(seed in self.kept for seed, _ in self.terms)

    def _stream(self, block: Block) -> Stream:
        if not self._in_memory:
            return Mixture(self.distribution, block, self.terms, self.streams)
        # `Known` counts its directions by seeds (j,).
        vectors = tuple(self.kept[seed] for seed, _ in self.terms)
        in_memory = Known(vectors, generator=self.distribution.generator)  # which decides how sums are rounded
        return Mixture(in_memory, block, tuple(((j,), c) for j, (_, c) in enumerate(self.terms)))

    def _anchors(self, block: Block) -> Sequence[Tensor | None]:
        """The anchor by parameters, flat."""
        if self.anchor is None:
            return [None] * len(block.params)
        flat = self.anchor.dense(block) if isinstance(self.anchor, Directional) else self.anchor
        return block.split(flat)
