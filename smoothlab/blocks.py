"""Blocks of parameters and losses on one fixed minibatch: everything is measured through these two.

A synthetic objective and a 7B language model are the same kind of thing here: a `Loss`, which takes no argument and
returns the mean loss of one fixed minibatch at the current parameters, and `Block`s, which name groups of them
(x = "base" and y = "peft" in Eq. (1)). Vectors on a block are flat tensors [dim], in the order of its parameters.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput

Loss = Callable[[], Tensor]
"""The mean loss of ONE fixed minibatch at the current parameters: deterministic, no argument, a scalar."""

_RUN = 1 << 16  # entries summed in working precision before fp64 takes over; what is split so also stays in cache


@dataclass(frozen=True)
class Block:
    """A named group of parameters of one dtype on one device."""

    name: str
    params: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.params:
            raise BadInput(f"block '{self.name}' has no parameters: leave it out or widen its pattern")
        kinds = {(p.dtype, p.device) for p in self.params}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise BadInput(f"block '{self.name}' mixes {found}: split it, or convert the model to one dtype and device")

    @property
    def dim(self) -> int:
        """Number of scalar parameters d of the block."""
        return sum(p.numel() for p in self.params)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Parts of a flat vector [dim] in the shapes of the parameters, without copying."""
        sizes = [p.numel() for p in self.params]
        return [part.view(p.shape) for part, p in zip(flat.split(sizes), self.params, strict=True)]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """One flat vector from tensors in order."""
    return torch.cat([t.reshape(-1) for t in tensors])


def by_name(blocks: Iterable[Block]) -> dict[str, Block]:
    """Blocks by name.

    Raises:
        BadInput: two blocks of one name, or a parameter that requires no gradient.
    """
    named: dict[str, Block] = {}
    for block in blocks:
        if block.name in named:
            raise BadInput(f"two blocks are called '{block.name}': give each its own name")
        if any(not p.requires_grad for p in block.params):
            raise BadInput(f"block '{block.name}' has frozen parameters: set requires_grad_(True) to measure it")
        named[block.name] = block
    return named


def check_partition(blocks: Iterable[Block], parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Check that every named parameter lies in exactly one block and that no two share memory in part.

    Raises:
        BadInput: names the parameter and the blocks it is in, the parameter in none, or the two that share memory.
    """
    names = {id(p): name for name, p in parameters}
    owner: dict[int, str] = {}
    for block in blocks:
        for p in block.params:
            if id(p) in owner:
                raise BadInput(
                    f"parameter {names.get(id(p), tuple(p.shape))} is in blocks '{owner[id(p)]}' and '{block.name}': "
                    "make the patterns exclude each other"
                )
            if id(p) not in names:
                raise BadInput(
                    f"block '{block.name}' holds a parameter of shape {tuple(p.shape)} that is not the model's: make "
                    "the blocks after the model is complete"
                )
            owner[id(p)] = block.name
    for key, name in names.items():
        if key not in owner:
            raise BadInput(f"parameter {name} is in no block: add a pattern that matches it")
    memory = Counter(p.untyped_storage().data_ptr() for block in blocks for p in block.params if p.numel())
    for block in blocks:
        for p in block.params:
            if p.numel() and memory[p.untyped_storage().data_ptr()] > 1:
                raise BadInput(
                    f"parameter {names.get(id(p), tuple(p.shape))} shares its memory with another parameter: tie them "
                    "as one nn.Parameter, or give each its own memory with p.data = p.data.clone()"
                )


def dot(a: Tensor, b: Tensor) -> float:
    """<a, b> of flat vectors; runs of 2^16 entries in working precision, their sums in fp64.

    torch's own fp32 dot product is off by up to 1 % over 1e8 entries on a CPU.
    """
    if a.dtype.itemsize == 2:  # runs would overflow in fp16
        a, b = a.float(), b.float()
    runs = [torch.dot(x, y) for x, y in zip(a.split(_RUN), b.split(_RUN), strict=True)]
    return float(torch.stack(runs).double().sum())


def norm(a: Tensor) -> float:
    """Euclidean norm of a flat vector, summed as `dot` does."""
    return dot(a, a) ** 0.5


class Shift:
    """Moves a block along a vector by pointing its parameters at other memory: its own is never written.

    Costs one copy of the block. The parameters are the old ones to the bit afterwards, also after an exception.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.realized = 0.0
        self._moved = [
            torch.empty_like(p, requires_grad=False, memory_format=torch.contiguous_format) for p in block.params
        ]

    @contextmanager
    def along(self, v: Tensor, h: float) -> Iterator[None]:
        """Inside the context the block stands at fl(theta + h v).

        `realized` is then <delta, v> with delta = fl(theta + h v) - theta, the move that rounding let through.
        """
        home = [p.data for p in self.block.params]
        runs = []
        for place, moved, part in zip(home, self._moved, self.block.views(v), strict=True):
            for start, end, way in zip(*(t.reshape(-1).split(_RUN) for t in (place, moved, part)), strict=True):
                torch.add(start, way, alpha=h, out=end)
                runs.append(torch.dot(end - start, way))
        self.realized = float(torch.stack(runs).double().sum())
        try:
            for p, moved in zip(self.block.params, self._moved, strict=True):
                p.data = moved
            yield
        finally:
            for p, place in zip(self.block.params, home, strict=True):
                p.data = place


@contextmanager
def differentiable(blocks: Iterable[Block]) -> Iterator[None]:
    """Inside the context the blocks' parameters require gradients, also those that training keeps frozen."""
    frozen = [p for block in blocks for p in block.params if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def fixed_loss(compute: Loss, module: nn.Module, *, train: bool = False, seed: int = 0) -> Loss:
    """`compute` as a deterministic Loss that leaves the module's flags and buffers and all RNG states as they were.

    eval mode by default; with train=True dropout is on and its mask is the same at every call, fixed by `seed`.
    """

    def loss() -> Tensor:
        flags = [(m, m.training) for m in module.modules()]
        buffers = [(b, b.data) for b in module.buffers()] if train else []
        for buffer, kept in buffers:
            buffer.data = kept.clone()  # what compute() writes to, and autograd remembers, is not the module's own
        devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            try:
                module.train(train)
                torch.manual_seed(seed)
                return compute()
            finally:
                for buffer, kept in buffers:
                    buffer.data = kept
                for m, flag in flags:
                    m.training = flag

    return loss
