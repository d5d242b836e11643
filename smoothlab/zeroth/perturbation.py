"""Perturbation: a block moved along a direction and back, its own weights never written.

Two ways, both bit-exact afterwards, also after an exception:
- a copy (the default): the parameters point at other memory that holds fl(theta + h z). Memory: one copy of the block.
- by layers: inside the forward call of each module its own parameters point at such a copy, and no longer than that.
  Memory: the largest module. Weights that are read outside their module's forward call would not be moved so:
  `check_layers` refuses them, and a parameter whose module is not called at all is an error.
Directions are drawn again for each pass, or kept (`keep`): one more copy of the block for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput
from smoothlab.shards import LocalEntries, any_sharded, summed
from smoothlab.zeroth.distribution import Distribution
from smoothlab.zeroth.gathered import Gathered
from smoothlab.zeroth.rng import Mixture, Piece, Seed, Stream, Terms, add_scaled

LEAST_FRACTION, ENOUGH_FRACTION = 0.5, 0.95  # of mu z that rounding must let through, and that makes a step sensible

Tensors = Mapping[int, tuple[Tensor, Tensor]]
"""Parameters by their number in the block: their own values, and the memory that moved ones are written to."""
Mover = Callable[[Tensors], None]


class Perturbation:
    """Moves one block along directions of a distribution, in memory that is taken once.

    Attributes:
        realized_fraction: <delta, z> / (h ||z||^2) of the first direction, delta = fl(theta + h z) - theta: what
            rounding let through; None before `measure_realized_fraction`.
        kept: the directions in memory by seed, working precision; empty without `keep`.
        streams: streams of the step's directions by seed, where these keep what they have drawn; else empty.
    """

    def __init__(
        self, block: Block, *, keep: bool = False, layers: nn.Module | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.block, self.device = block, block.params[0].device
        self.dtype = dtype or block.params[0].dtype  # of moved weights
        self._kind = (block.params[0].dtype, self.device)
        self.realized_fraction: float | None = None
        self.kept: dict[Seed, Tensor] = {}
        self.streams: dict[Seed, Stream] = {}
        self._keep, self._sizes = keep, block.sizes
        self._owners: dict[nn.Module, list[int]] = {}
        self._gathered: Gathered | None = None
        if layers is not None and any_sharded(block.params):
            self._gathered = Gathered(block, layers)
        elif layers is not None:
            self._owners = _owners(block, layers)
        self._moved: list[Tensor] = []
        self._spare: list[Tensor] = []
        self._busy = False

    @property
    def fits(self) -> bool:
        """Whether the block still has the dtype, device and sizes that memory was taken for."""
        p = self.block.params[0]
        return (p.dtype, p.device) == self._kind and self.block.sizes == self._sizes

    def forget(self) -> None:
        """Free the memory of kept directions for the next ones; whoever holds `kept` then finds it empty."""
        self._spare += self.kept.values()
        self.kept.clear()
        self.kept = {}  # not the old one: there, given directions of another step would pass for its own
        if self._gathered is not None:
            self._gathered.reshard()

    def release(self) -> None:
        """Free the copies; whoever holds `kept` keeps its directions."""
        self._moved, self._spare, self.kept = [], [], {}

    @contextmanager
    def exclusive_use(self) -> Iterator[None]:
        """Inside the context nobody else may move the block with this memory.

        Raises:
            BadInput: somebody does: a loss that calls the estimator that evaluates it.
        """
        if self._busy:
            raise BadInput(
                f"block '{self.block.name}' is being moved by this estimator: its loss must not call it again"
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    @contextmanager
    def along(self, distribution: Distribution, direction: Terms, h: float) -> Iterator[None]:
        """Inside the context the block stands at theta + delta = fl(theta + h z), z the sum of the directions."""
        move = self._mover(distribution, direction, h)
        if self._part_by_part:
            with self._by_parts(move):
                yield
            return
        if not self._moved:
            self._moved = [self._like(p) for p in self.block.params]
        homes = [p.data for p in self.block.params]
        move(dict(enumerate(zip(homes, self._moved, strict=True))))
        with standing_at(self.block, self._moved):
            yield

    @contextmanager
    def against(self, distribution: Distribution, direction: Terms, h: float) -> Iterator[None]:
        """Inside the context the block stands at fl(theta - delta), right after `along` of the same arguments.

        The step that rounding let through, mirrored: no direction is drawn again, and what differs from
        fl(theta - h z) is rounding. 16-bit blocks stand at fl(theta - h z): the spacing of their numbers doubles at
        powers of two, where many weights lie, and a mirrored step would be rounded once more on the coarser side.
        """
        if self.block.params[0].dtype.itemsize == 2:
            with self.along(distribution, direction, -h):
                yield
            return
        if self._part_by_part:
            # A layer's copy lives as long as its forward call, so that delta has to be made again.
            move = self._mover(distribution, direction, h)

            def mirrored(tensors: Tensors) -> None:
                move(tensors)
                for home, out in tensors.values():
                    _mirror(home, out)

            with self._by_parts(mirrored):
                yield
            return
        for p, out in zip(self.block.params, self._moved, strict=True):
            _mirror(p.data, out)
        with standing_at(self.block, self._moved):
            yield

    def check_layers(self, loss: Loss) -> None:
        """One evaluation with NaN in place of the weights, but inside the forward calls of their own modules.

        Takes no memory for the NaNs; does nothing where the block is moved by a copy. Of a sharded block it is watched
        instead which tensors are read.

        Raises:
            BadInput: the loss reads a weight of the block elsewhere, as `F.linear(h, embedding.weight)` does.
        """
        if self._gathered is not None:
            with torch.no_grad(), self._gathered.only_inside(), self._gathered.inside(lambda params: nullcontext()):
                loss()
            return
        numbers = range(len(self.block.params))
        if not self._owners or self._survives(loss, numbers):
            return
        # One by one, to name the first that is read elsewhere.
        shape = next((tuple(self.block.params[i].shape) for i in numbers if not self._survives(loss, [i])), "?")
        raise BadInput(
            f"block '{self.block.name}': its parameter of shape {shape} is read outside a forward call of its "
            "module (tied weights?), so it cannot be moved layer by layer: leave layers out, or the parameter out of "
            "the block"
        )

    def _survives(self, loss: Loss, numbers: Sequence[int]) -> bool:
        """Whether the loss is finite although these parameters are NaN outside of their modules."""
        values = [p.data for p in self.block.params]
        for i in numbers:
            # One NaN seen through strides of 0: a tensor of any shape that takes no memory.
            values[i] = torch.full((), torch.nan, dtype=values[i].dtype, device=self.device).expand(values[i].shape)

        def stay(tensors: Tensors) -> None:
            for home, out in tensors.values():
                out.copy_(home)

        with torch.no_grad(), self._by_layers(stay, values):
            return bool(torch.isfinite(loss()))

    def measure_realized_fraction(self, distribution: Distribution, direction: Terms, h: float) -> None:
        """Set `realized_fraction`.

        Raises:
            BadInput: less than half of the step survives rounding; says how much, and the smallest sensible step.
        """
        stream = stream_of(distribution, self.block, direction)
        fraction = self._fraction(stream, h)
        if fraction < LEAST_FRACTION:
            sensible = 2 * h  # the smallest of h 2^k that rounding lets through
            while self._fraction(stream, sensible) < ENOUGH_FRACTION and sensible < h * 2.0**60:
                sensible *= 2
            dtype = str(self.block.params[0].dtype).removeprefix("torch.")
            fix = f"use mu of at least {sensible:.1e}" if sensible < h * 2.0**60 else "use wider numbers"
            raise BadInput(
                f"mu = {h:g} on block '{self.block.name}' in {dtype}: rounding lets {100 * fraction:.0f} % of the step "
                f"through; {fix}, or keep the weights in a wider type"
            )
        self.realized_fraction = fraction

    def _fraction(self, stream: Stream, h: float) -> float:
        rows = [LocalEntries(p) for p in self.block.params]

        def products(piece: Piece, numbers: Tensor) -> tuple[float, float]:
            home, positions = rows[piece.tensor].overlap(piece.start, piece.stop)
            moved = torch.empty_like(home, dtype=self.dtype)
            shifted(home, numbers[positions], h, moved)
            z = numbers[positions].double()
            return float(torch.dot(moved.double() - home.double(), z)), float(torch.dot(z, z))

        realized, squared = summed(np.sum(stream.map(products), axis=0).tolist(), self.block.params)
        if not squared:  # a sparse direction on few entries may be 0, and then nothing is lost
            return 1.0
        return realized / (h * squared)

    def _mover(self, distribution: Distribution, direction: Terms, h: float) -> Mover:
        """A function that writes fl(home + h z) for some parameters."""
        stream, scale = stream_of(distribution, self.block, direction), h
        if len(direction) == 1:  # the weight joins h: a direction and its opposite are drawn once
            stream, scale = distribution.stream(self.block, direction[0][0]), h * direction[0][1]
        pieces: dict[int, list[Piece]] = {}  # of each parameter
        for piece in stream.pieces():
            pieces.setdefault(piece.tensor, []).append(piece)

        def move(tensors: Tensors) -> None:
            # Once for all pieces: where a parameter is not contiguous, its flat form is a copy.
            flats = {i: (home.reshape(-1), out.view(-1)) for i, (home, out) in tensors.items()}

            def write(piece: Piece, numbers: Tensor) -> None:
                home, out = flats[piece.tensor]
                shifted(home[piece.start : piece.stop], numbers, scale, out[piece.start : piece.stop])

            all_tensors = len(tensors) == len(self.block.params)
            if self._keep and all_tensors and len(direction) == 1 and direction[0][0] not in self.kept:
                z = self.kept[direction[0][0]] = self._memory()
                stream.map(write, out=z)  # moved while the numbers are still in cache
            elif self._keep:
                parts = self._kept_direction(distribution, direction).split(self._sizes)
                for i in tensors:
                    write(Piece(i, 0, 0, len(parts[i])), parts[i])
            else:
                stream.map(write, [piece for i in tensors for piece in pieces.get(i, ())])

        return move

    def _like(self, p: Tensor) -> Tensor:
        return torch.empty_like(p, dtype=self.dtype, requires_grad=False, memory_format=torch.contiguous_format)

    def _memory(self) -> Tensor:
        if self._spare:
            return self._spare.pop()
        dtype = torch.promote_types(torch.float32, self.block.params[0].dtype)
        return torch.empty(self.block.dim, dtype=dtype, device=self.device)

    def _kept_direction(self, distribution: Distribution, direction: Terms) -> Tensor:
        """The direction from memory, drawn into it where it is not there; a single one without its weight."""
        for seed, _ in direction:
            if seed not in self.kept:
                z = self.kept[seed] = self._memory()
                distribution.stream(self.block, seed).map(lambda piece, numbers: None, out=z)
        seed, weight = direction[0]
        if len(direction) == 1:
            return self.kept[seed]
        total = self.kept[seed] * weight
        for seed, weight in direction[1:]:
            add_scaled(total, self.kept[seed], weight, distribution.generator)
        return total

    @property
    def _part_by_part(self) -> bool:
        """Whether parts of the block are moved in forward calls, instead of all of it before."""
        return bool(self._owners) or self._gathered is not None

    def _by_parts(self, move: Mover) -> AbstractContextManager[None]:
        """Inside the context each layer, or what FSDP2 gathers for a module, is a moved copy in its forward call."""
        if self._gathered is None:
            return self._by_layers(move)

        def stand(params: Mapping[int, Tensor]) -> AbstractContextManager[None]:
            copies = {i: self._like(p) for i, p in params.items()}
            move({i: (p.data, copies[i]) for i, p in params.items()})
            if not params:
                return nullcontext()
            return standing_at(Block(self.block.name, tuple(params.values())), list(copies.values()))

        return self._gathered.inside(stand)

    @contextmanager
    def _by_layers(self, move: Mover, outside: Sequence[Tensor] | None = None) -> Iterator[None]:
        """`outside`: what parameters point at outside of their modules, if not at their own values."""
        home = [p.data for p in self.block.params]
        outside = home if outside is None else outside
        standing: set[int] = set()  # numbers of the parameters that are moved at this moment
        moved: set[int] = set()  # or have been
        # Parameters that a call has moved, last call last: a module may be called within its own forward call.
        calls: dict[nn.Module, list[Tensors]] = {module: [] for module in self._owners}

        def enter(module: nn.Module, args: Any) -> None:
            tensors: dict[int, tuple[Tensor, Tensor]] = {}
            for i in self._owners[module]:
                if i not in standing:  # a tied one may have been moved by another owner
                    tensors[i] = home[i], self._like(home[i])
            move(tensors)
            for i, (_, out) in tensors.items():
                self.block.params[i].data = out
            calls[module].append(tensors)
            standing.update(tensors)
            moved.update(tensors)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            for i in calls[module].pop():
                self.block.params[i].data = outside[i]
                standing.discard(i)

        with ExitStack() as stack:
            stack.enter_context(standing_at(self.block, outside))  # puts everything back, also after an exception
            for module in self._owners:
                # Before other hooks, as of modules that widen their weights: they are to see the moved ones.
                stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            yield
        # Outside of the stack: nothing may be left moved when this is raised.
        missed = set(range(len(home))) - moved
        if missed:
            shape = tuple(home[min(missed)].shape)
            raise BadInput(
                f"block '{self.block.name}': its parameter of shape {shape} is not used inside a forward call of its "
                "module, so it cannot be moved layer by layer: leave layers out, or the parameter out of the block"
            )


def stream_of(distribution: Distribution, block: Block, direction: Terms) -> Stream:
    """The numbers of a direction that is a weighted sum of the distribution's."""
    (seed, weight), *more_terms = direction
    if more_terms or weight != 1.0:
        return Mixture(distribution, block, direction)
    return distribution.stream(block, seed)


def shifted(home: Tensor, z: Tensor, h: float, out: Tensor) -> None:
    """Write fl(home + h z) to `out`, the sum in the precision of z."""
    with torch.no_grad():
        if out.dtype == z.dtype:  # 16-bit weights are widened first
            torch.add(home, z, alpha=h, out=out)
        else:
            out.copy_(home.to(z.dtype).add_(z, alpha=h))


def _mirror(home: Tensor, out: Tensor) -> None:
    """out = home - (out - home); the difference is exact where the step is shorter than half of the entry."""
    with torch.no_grad():
        out.lerp_(home, 2.0)


def _owners(block: Block, module: nn.Module) -> dict[nn.Module, list[int]]:
    """Modules that hold parameters of the block directly, with their numbers in it; a tied one has several owners."""
    numbers = {id(p): i for i, p in enumerate(block.params)}
    owners: dict[nn.Module, list[int]] = {}
    for m in module.modules():
        for p in m._parameters.values():
            if id(p) in numbers:
                owners.setdefault(m, []).append(numbers[id(p)])
    owned = set().union(*owners.values())
    if len(owned) < len(block.params):
        raise BadInput(
            f"block '{block.name}' holds parameters that are not the given module's: pass the module that the loss runs"
        )
    return owners
