"""Blocks of parameters and losses on one fixed minibatch: everything is measured through these two.

A synthetic objective and a 7B language model are the same kind of thing here: a `Loss`, which takes no argument and
returns the mean loss of one fixed minibatch at the current parameters, and `Block`s, which name groups of them
(x = "base" and y = "peft" in Eq. (1)). Vectors on a block are flat tensors [dim], in the order of its parameters.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput
from smoothlab.shards import any_sharded, is_sharded, local

Loss = Callable[[], Tensor]
"""The mean loss of ONE fixed minibatch at the current parameters: deterministic, no argument, a scalar."""

T = TypeVar("T")

_RUN = 1 << 16  # entries summed in working precision before fp64 takes over


@dataclass(frozen=True)
class Block:
    """A named group of parameters of one dtype on one device.

    >>> import torch
    >>> from smoothlab import Block
    >>> Block("x", (torch.zeros(2, 3), torch.zeros(4))).dim
    10
    """

    name: str
    params: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.params:
            raise BadInput(f"block '{self.name}' has no parameters: leave it out or widen its pattern")
        kinds = sorted({f"{p.dtype} on {p.device}" for p in self.params})
        if len(kinds) > 1:
            listed = ", ".join(kinds)
            raise BadInput(f"block '{self.name}' mixes {listed}: split it, or convert it to one dtype and device")

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter."""
        return [p.numel() for p in self.params]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each parameter."""
        return tuple(tuple(p.shape) for p in self.params)

    @property
    def dim(self) -> int:
        """Number of scalar parameters d of the block."""
        return sum(self.sizes)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Parts of a flat vector [dim] in the shapes of the parameters, without copying."""
        return [part.view(p.shape) for part, p in zip(self.split(flat), self.params, strict=True)]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Parts of a flat vector [dim], one a parameter and flat themselves, without copying."""
        return list(flat.split(self.sizes))

    def copies(self) -> list[Tensor]:
        """Copies of the parameters' values."""
        return [p.detach().clone() for p in self.params]

    def offset(self, number: int) -> int:
        """Position of the first entry of parameter `number` in a flat vector."""
        return sum(self.sizes[:number])


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """One flat vector from tensors in order."""
    return torch.cat([t.reshape(-1) for t in tensors])


def by_name(blocks: Iterable[Block]) -> dict[str, Block]:
    """Blocks by name.

    Raises:
        BadInput: two blocks of one name, or a parameter that requires no gradient, has no memory, is sharded, is
            complex, or was made in inference mode.
    """
    named: dict[str, Block] = {}
    for block in blocks:
        if block.name in named:
            raise BadInput(f"two blocks are called '{block.name}': give each its own name")
        named[block.name] = block
        for p in block.params:
            if not p.requires_grad:
                raise BadInput(f"block '{block.name}' has frozen parameters: set requires_grad_(True) to measure it")
            if p.is_meta:
                raise BadInput(
                    f"block '{block.name}' has parameters without memory (device meta), as accelerate's offloading "
                    "leaves them: load the model without device_map and offloading, or leave the block out"
                )
            if is_sharded(p):
                raise BadInput(
                    f"block '{block.name}' has sharded parameters (DTensor), which cannot be measured: use a model "
                    "that is whole in each process, or leave the block out"
                )
            if p.is_complex():
                raise BadInput(
                    f"block '{block.name}' has complex parameters ({p.dtype}): hold real and imaginary parts as two "
                    "real parameters (torch.view_as_real), or leave the block out"
                )
            if p.is_inference():  # autograd cannot save such a tensor for a backward pass
                raise BadInput(
                    f"block '{block.name}' was made under torch.inference_mode(): load the model outside of it"
                )
    return named


def check_partition(blocks: Collection[Block], parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Check that every named parameter lies in exactly one block and that no two share memory in part.

    Raises:
        BadInput: names the parameter and the blocks it is in, the parameter in none, or the two that share memory.
    """
    # By identity: tensors compare entry by entry. A tied parameter has several names and is one parameter.
    names = {id(p): name for name, p in parameters}
    owner: dict[int, str] = {}
    memory: Counter[int] = Counter()
    for block in blocks:
        for p in block.params:
            if id(p) in owner:
                raise BadInput(
                    f"parameter {names[id(p)]} is in blocks '{owner[id(p)]}' and '{block.name}': make the patterns "
                    "exclude each other"
                )
            if id(p) not in names:
                raise BadInput(
                    f"block '{block.name}' holds a parameter of shape {tuple(p.shape)} that is not the model's: make "
                    "the blocks after the model is complete"
                )
            owner[id(p)] = block.name
            if local(p).numel():  # tensors without entries share the address 0
                memory[local(p).untyped_storage().data_ptr()] += 1
    for key, name in names.items():
        if key not in owner:
            raise BadInput(f"parameter {name} is in no block: add a pattern that matches it")
    for block in blocks:
        for p in block.params:
            if memory[local(p).untyped_storage().data_ptr()] > 1:
                raise BadInput(
                    f"parameter {names[id(p)]} shares its memory with another parameter: tie them as one "
                    "nn.Parameter, or give each its own memory with p.data = p.data.clone()"
                )


def dot(a: Tensor, b: Tensor) -> float:
    """<a, b> of flat vectors; runs of 2^16 entries in working precision, their sums in fp64.

    torch's own fp32 dot product is off by up to 1 % over 1e8 entries on a CPU.
    """
    wide = torch.promote_types(a.dtype, torch.float32)  # runs would overflow in fp16; the whole would take memory
    runs = [torch.dot(x.to(wide), y.to(wide)) for x, y in zip(a.split(_RUN), b.split(_RUN), strict=True)]
    return float(torch.stack(runs).double().sum())


def norm(a: Tensor) -> float:
    """Euclidean norm of a flat vector, summed as `dot` does."""
    return math.sqrt(dot(a, a))


@contextmanager
def standing_at(block: Block, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside the context the parameters point at `tensors`; their own memory is neither read nor written.

    Raises:
        BadInput: a parameter is sharded, and a model reads it from elsewhere.
    """
    if any_sharded(block.params):
        raise BadInput(
            f"block '{block.name}' has sharded parameters (DTensor), which cannot point at other values: use a model "
            "that is whole in each process"
        )
    home = [p.data for p in block.params]
    try:
        # Setting .data leaves the version of p as it is: autograd, and who watches for writes, see none.
        for p, tensor in zip(block.params, tensors, strict=True):
            p.data = tensor
        yield
    finally:
        for p, data in zip(block.params, home, strict=True):
            p.data = data


@contextmanager
def differentiable(blocks: Iterable[Block], required: bool = True) -> Iterator[None]:
    """Inside the context all parameters of the blocks require gradients, or none does, whatever training has chosen."""
    switched = [p for block in blocks for p in block.params if p.requires_grad != required]
    try:
        for p in switched:
            p.requires_grad_(required)
        yield
    finally:
        for p in switched:
            p.requires_grad_(not required)


@contextmanager
def only_differentiable(blocks: Collection[Block], among: Iterable[Block]) -> Iterator[None]:
    """Inside the context parameters of `blocks` require gradients, and others of `among` do not.

    A graph that leads to weights which nobody differentiates would hold activations, and copies of narrow weights.
    """
    chosen = {id(p) for block in blocks for p in block.params}
    frozen = []
    for block in among:
        params = tuple(p for p in block.params if id(p) not in chosen)
        if params:
            frozen.append(Block(block.name, params))
    with differentiable(blocks), differentiable(frozen, required=False):
        yield


@contextmanager
def python_rng(seed: int) -> Iterator[None]:
    """Inside the context the global generators of numpy and Python begin at the seed; afterwards they are as before."""
    states = np.random.get_state(), random.getstate()
    try:
        np.random.seed(seed % 2**32)  # numpy takes 32 bits
        random.seed(seed)
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


def fixed_loss(compute: Callable[[], T], module: nn.Module, *, train: bool = False, seed: int = 0) -> Callable[[], T]:
    """`compute` as a deterministic Loss that leaves the module's flags and buffers and all RNG states as they were.

    eval mode by default; with train=True dropout is on and its mask is the same at every call, fixed by `seed`. So is
    what is drawn from the generators of numpy and Python, as models for speech do that mask or leave out layers.

    >>> import torch
    >>> from smoothlab import fixed_loss
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Dropout())
    >>> loss = fixed_loss(lambda: net(torch.ones(8, 2)).mean(), net, train=True)
    >>> bool(loss() == loss())
    True
    """
    modules = list(module.modules())  # walking a transformer takes a quarter of a small one's forward pass
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}

    def loss() -> T:
        flags = [m.training for m in modules]
        changes = (not train) in flags
        buffers = []
        if train:  # in eval mode no module of torch writes to its buffers
            for buffer in module.buffers():
                buffers.append((buffer, buffer.data))
                buffer.data = buffer.data.clone()  # compute() writes to this one, and autograd remembers it
        with torch.random.fork_rng(devices=list(devices)), python_rng(seed):
            try:
                if changes:
                    module.train(train)  # as a module may have it: one that keeps its norms frozen overrides train()
                torch.manual_seed(seed)
                return compute()
            finally:
                for buffer, data in buffers:
                    buffer.data = data
                if changes:
                    for m, flag in zip(modules, flags, strict=True):
                        m.training = flag

    return loss
