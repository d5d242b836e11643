"""Perturbation: a block moved along a direction and back, its own weights never written.

Two ways, both bit-exact afterwards, also after an exception:
- a copy (the default): the parameters point at other memory that holds fl(theta + h z). Memory: one copy of the block.
- by layers: inside the forward call of each module its own parameters point at such a copy, and no longer than that.
  Memory: the largest module. Weights that are read outside their module's forward call would not be moved so:
  `check_layers` refuses them, and a parameter whose module is not called at all is an error.
Directions are drawn again for each pass, or kept (`keep`): one more copy of the block for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, standing_at
from smoothlab.errors import BadInput
from smoothlab.zeroth.distributions import Distribution
from smoothlab.zeroth.rng import Mixture, Piece, Seed, Stream, Terms

LEAST_FRACTION, ENOUGH_FRACTION = 0.5, 0.95  # of mu z that rounding must let through, and that makes a step sensible

Mover = Callable[[Mapping[int, tuple[Tensor, Tensor]]], None]


class Perturbation:
    """Moves one block along directions of a distribution, in memory that is taken once.

    Attributes:
        realized_fraction: <delta, z> / (h ||z||^2) of the first direction, delta = fl(theta + h z) - theta: what
            rounding let through; None before `measure_realized_fraction`.
        kept: the directions in memory by seed, working precision; empty without `keep`.
    """

    def __init__(self, block: Block, *, keep: bool = False, layers: nn.Module | None = None) -> None:
        self.block, self.device = block, block.params[0].device
        self._kind = (block.params[0].dtype, self.device)
        self.realized_fraction: float | None = None
        self.kept: dict[Seed, Tensor] = {}
        self._keep, self._sizes = keep, block.sizes
        self._owners = None if layers is None else _owners(block, layers)
        self._moved: list[Tensor] = []
        self._spare: list[Tensor] = []
        self._busy = False

    @property
    def fits(self) -> bool:
        """Whether the block still has the dtype, device and sizes that memory was taken for."""
        p = self.block.params[0]
        return (p.dtype, p.device) == self._kind and self.block.sizes == self._sizes

    def forget(self) -> None:
        """Leave the memory of kept directions to the next ones; who holds `kept` sees that they are gone for good."""
        self._spare += self.kept.values()
        self.kept.clear()
        self.kept = {}  # not the old one: there, given directions of another step would pass for its own

    def release(self) -> None:
        """Free the copies; who holds `kept` keeps its directions."""
        self._moved, self._spare, self.kept = [], [], {}

    @contextmanager
    def alone(self) -> Iterator[None]:
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
        if self._owners is not None:
            with self._by_layers(move, self._owners):
                yield
            return
        if not self._moved:
            self._moved = [_like(p) for p in self.block.params]
        move({i: (p.data, out) for i, (p, out) in enumerate(zip(self.block.params, self._moved, strict=True))})
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
        if self._owners is not None:
            move = self._mover(distribution, direction, h)

            def mirrored(places: Mapping[int, tuple[Tensor, Tensor]]) -> None:
                move(places)
                for home, out in places.values():
                    _mirror(home, out)

            with self._by_layers(mirrored, self._owners):
                yield
            return
        for p, out in zip(self.block.params, self._moved, strict=True):
            _mirror(p.data, out)
        with standing_at(self.block, self._moved):
            yield

    def check_layers(self, loss: Loss) -> None:
        """One evaluation with NaN in place of the weights, but inside the forward calls of their own modules.

        Takes no memory for the NaNs; does nothing where the block is moved by a copy.

        Raises:
            BadInput: the loss reads a weight of the block elsewhere, as `F.linear(h, embedding.weight)` does.
        """
        if self._owners is None or self._survives(loss, range(len(self.block.params))):
            return
        read = (tuple(p.shape) for i, p in enumerate(self.block.params) if not self._survives(loss, [i]))
        shape = next(read, "?")
        raise BadInput(
            f"block '{self.block.name}': its parameter of shape {shape} is read outside a forward call of its "
            "module (tied weights?), so it cannot be moved layer by layer: leave layers out, or the parameter out of "
            "the block"
        )

    def _survives(self, loss: Loss, numbers: Sequence[int]) -> bool:
        """Whether the loss is finite although these parameters are NaN outside of their modules."""
        assert self._owners is not None
        rest = [p.data for p in self.block.params]
        for i in numbers:
            rest[i] = torch.full((), torch.nan, dtype=rest[i].dtype, device=self.device).expand(rest[i].shape)

        def stay(places: Mapping[int, tuple[Tensor, Tensor]]) -> None:
            for home, out in places.values():
                out.copy_(home)

        with torch.no_grad(), self._by_layers(stay, self._owners, rest):
            return bool(torch.isfinite(loss()))

    def measure_realized_fraction(self, distribution: Distribution, direction: Terms, h: float) -> None:
        """Set `realized_fraction`.

        Raises:
            BadInput: less than half of the step survives rounding; says how much, and the smallest sensible step.
        """
        stream = stream_of(distribution, self.block, direction)
        fraction = self._fraction(stream, h)
        if fraction < LEAST_FRACTION:
            enough = 2 * h  # the smallest step of these that passes well
            while self._fraction(stream, enough) < ENOUGH_FRACTION and enough < h * 2.0**60:
                enough *= 2
            dtype = str(self.block.params[0].dtype).removeprefix("torch.")
            fix = f"use mu of at least {enough:.1e}" if enough < h * 2.0**60 else "use wider numbers"
            raise BadInput(
                f"mu = {h:g} on block '{self.block.name}' in {dtype}: rounding lets {100 * fraction:.0f} % of the step "
                f"through; {fix}, or keep the weights in a wider type"
            )
        self.realized_fraction = fraction

    def _fraction(self, stream: Stream, h: float) -> float:
        homes = [p.data.reshape(-1) for p in self.block.params]

        def products(piece: Piece, numbers: Tensor) -> tuple[float, float]:
            home = homes[piece.tensor][piece.start : piece.stop]
            moved = torch.empty_like(home)
            _shifted(home, numbers, h, moved)
            z = numbers.double()
            return float(torch.dot(moved.double() - home.double(), z)), float(torch.dot(z, z))

        realized, squared = np.sum(stream.each(products), axis=0).tolist()
        return realized / (h * squared) if squared else 1.0

    def _mover(self, distribution: Distribution, direction: Terms, h: float) -> Mover:
        """What writes fl(home + h z) for some parameters, given as number -> (home, out)."""
        stream, scale = stream_of(distribution, self.block, direction), h
        if len(direction) == 1:  # the weight joins h: a direction and its opposite are drawn once
            stream, scale = distribution.stream(self.block, direction[0][0]), h * direction[0][1]

        def move(places: Mapping[int, tuple[Tensor, Tensor]]) -> None:
            flats = {i: (home.reshape(-1), out.view(-1)) for i, (home, out) in places.items()}

            def write(piece: Piece, numbers: Tensor) -> None:
                home, out = flats[piece.tensor]
                _shifted(home[piece.start : piece.stop], numbers, scale, out[piece.start : piece.stop])

            whole = len(places) == len(self.block.params)
            if self._keep and whole and len(direction) == 1 and direction[0][0] not in self.kept:
                z = self.kept[direction[0][0]] = self._memory()
                stream.each(write, out=z)  # moved while the numbers are still in cache
            elif self._keep:
                for i, part in enumerate(self._known(distribution, direction).split(self._sizes)):
                    if i in flats:
                        _shifted(flats[i][0], part, scale, flats[i][1])
            else:
                stream.each(write, [piece for piece in stream.pieces() if piece.tensor in flats])

        return move

    def _memory(self) -> Tensor:
        if self._spare:
            return self._spare.pop()
        dtype = torch.promote_types(torch.float32, self.block.params[0].dtype)
        return torch.empty(self.block.dim, dtype=dtype, device=self.device)

    def _known(self, distribution: Distribution, direction: Terms) -> Tensor:
        """The direction from those in memory, which it joins; a single one without its weight."""
        for seed, _ in direction:
            if seed not in self.kept:
                z = self.kept[seed] = self._memory()
                distribution.stream(self.block, seed).each(lambda piece, numbers: None, out=z)
        if len(direction) == 1:
            return self.kept[direction[0][0]]
        seed, weight = direction[0]
        total = self.kept[seed] * weight
        for seed, weight in direction[1:]:
            total.add_(self.kept[seed], alpha=weight)
        return total

    @contextmanager
    def _by_layers(
        self, move: Mover, owners: Mapping[nn.Module, Sequence[int]], rest: Sequence[Tensor] | None = None
    ) -> Iterator[None]:
        """`rest`: what parameters point at outside of their modules, if not at home."""
        home = [p.data for p in self.block.params]
        rest = home if rest is None else rest
        standing: set[int] = set()  # numbers of the parameters that are moved at this moment
        moved: set[int] = set()  # or have been
        mine: dict[nn.Module, list[list[int]]] = {module: [] for module in owners}  # by calls, which may be nested

        def enter(module: nn.Module, args: Any) -> None:
            mine[module].append([i for i in owners[module] if i not in standing])  # tied ones may be moved already
            places = {i: (home[i], _like(home[i])) for i in mine[module][-1]}
            move(places)
            for i, (_, out) in places.items():
                self.block.params[i].data = out
            standing.update(places)
            moved.update(places)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            for i in mine[module].pop():
                self.block.params[i].data = rest[i]
                standing.discard(i)

        with ExitStack() as stack:
            stack.enter_context(standing_at(self.block, rest))  # puts everything back, also after an exception
            for module in owners:
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            yield
        missed = set(range(len(home))) - moved
        if missed:
            shape = tuple(home[min(missed)].shape)
            raise BadInput(
                f"block '{self.block.name}': its parameter of shape {shape} is not used inside a forward call of its "
                "module, so it cannot be moved layer by layer: leave layers out, or the parameter out of the block"
            )


def stream_of(distribution: Distribution, block: Block, direction: Terms) -> Stream:
    """The numbers of a direction that is a weighted sum of the distribution's."""
    if len(direction) == 1 and direction[0][1] == 1.0:
        return distribution.stream(block, direction[0][0])
    return Mixture(distribution, block, direction)


def _like(p: Tensor) -> Tensor:
    return torch.empty_like(p, requires_grad=False, memory_format=torch.contiguous_format)


def _shifted(home: Tensor, z: Tensor, h: float, out: Tensor) -> None:
    """out = fl(home + h z), the sum in the precision of z."""
    with torch.no_grad():
        if home.dtype == z.dtype:
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
    held = set().union(*owners.values())
    if len(held) < len(block.params):
        raise BadInput(
            f"block '{block.name}' holds parameters that are not the given module's: pass the module that the loss runs"
        )
    return owners
