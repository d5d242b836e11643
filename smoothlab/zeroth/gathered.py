"""Weights that FSDP2 shards (`torch.distributed.fsdp.fully_shard`), where they are whole: inside its modules' forward.

Before the forward pass of a module that `fully_shard` was called on, FSDP2 gathers the rows of all processes and puts
whole parameters in place of the sharded ones; after it, these are freed. A zeroth-order move that is made in the
forward pass is made with the whole ones, by every process from the same factors. What a process holds of a sharded
parameter is read by FSDP2 alone, and written by the update alone.

The parameters of the outermost module stay gathered after a forward pass without a backward pass (torch 2.13):
writes to their shards do not show before `reshard` is called, which is done here and after each update.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.shards import is_sharded
from smoothlab.zeroth.products import FACTS

Stand = Callable[[Mapping[int, Tensor]], AbstractContextManager[None]]
"""Lets parameters, by their number in the block, stand somewhere else inside a context."""
VALUES = ("data", "T", "mT", "H")
"""Attributes of a tensor that give its entries; others tell its shape, number format and the like."""


def reshard(module: nn.Module | None) -> None:
    """Free what FSDP2 has gathered of a module's parameters, so that its next forward pass gathers them anew."""
    for part in _units(module):
        part.reshard()


def check_gathers(name: str, oracle: object) -> None:
    """Refuse an estimator that sharded parameters cannot be moved by.

    Args:
        name: name of the block, or of the group.
        oracle: the estimator.

    Raises:
        BadInput: it does not know the module, runs several evaluations in one pass, or keeps whole directions.
    """
    if getattr(oracle, "layers", None) is None:
        raise BadInput(
            f"the parameters of '{name}' are sharded (DTensor): use ZerothOrder(layers=model), with the model that "
            "fully_shard was called on"
        )
    if getattr(oracle, "parallel", 1) > 1 or getattr(oracle, "keep", False):
        raise BadInput(
            f"the parameters of '{name}' are sharded (DTensor), which goes neither with parallel evaluations nor with "
            "directions that are kept: use parallel = 1 and keep = False"
        )


def check_stays(name: str, p: Tensor) -> None:
    """Refuse what FSDP2 had put in place of a sharded parameter, after `reshard`.

    Args:
        name: name of the block, or of the group.
        p: the parameter.

    Raises:
        BadInput: its memory is freed.
    """
    if p.numel() and not is_sharded(p) and not p.untyped_storage().size():
        raise BadInput(
            f"'{name}' has a parameter of shape {tuple(p.shape)} that FSDP2 had gathered for a forward pass, and has "
            "freed: call reshard() on the model, then take its parameters"
        )


class Gathered:
    """The parameters of a block inside the forward passes of the modules that FSDP2 gathers them for.

    Args:
        block: the block; some of its parameters are sharded.
        module: the module that the loss runs.

    Attributes:
        names: names of the module's parameters by id.

    Raises:
        BadInput: a parameter is not the module's, or is sharded by other means than FSDP2.
    """

    def __init__(self, block: Block, module: nn.Module) -> None:
        self._block = block
        reshard(module)  # else the outermost module may hold gathered parameters, which are others
        self.names = {id(p): name for name, p in module.named_parameters()}
        numbers = {id(p): i for i, p in enumerate(block.params)}
        self._whole = {i: p for i, p in enumerate(block.params) if not is_sharded(p)}
        # The holders of each number, by the module in whose forward pass it is gathered.
        self._holders: dict[Any, dict[int, tuple[nn.Module, str]]] = {unit: {} for unit in _units(module)}
        self._find(module, None, numbers)
        gathered = {i for holders in self._holders.values() for i in holders}
        for i, p in enumerate(block.params):
            check_stays(block.name, p)
            if i not in gathered and i not in self._whole:
                raise BadInput(
                    f"block '{block.name}' holds a sharded parameter (DTensor) of shape {tuple(p.shape)} that no FSDP2 "
                    "module of the given one gathers: pass layers=model, with the model that fully_shard was called on"
                )
        self._gathered: set[int] = set()  # ids of gathered parameters so far
        self._open: set[int] = set()  # those of them whose module's forward pass is under way

    def _find(self, module: nn.Module, unit: Any, numbers: Mapping[int, int]) -> None:
        if module in self._holders:
            unit = module
        for name, p in module._parameters.items():
            if p is not None and is_sharded(p) and id(p) in numbers and unit is not None:
                self._holders[unit].setdefault(numbers[id(p)], (module, name))  # a tie is gathered once
        for child in module.children():
            self._find(child, unit, numbers)

    def reshard(self) -> None:
        """Let the next forward pass gather the parameters anew."""
        for unit in self._holders:
            unit.reshard()

    @contextmanager
    def inside(self, stand: Stand) -> Iterator[None]:
        """Inside the context gathered parameters stand as `stand` has it, and those that are not sharded, too.

        Raises:
            BadInput: a parameter was never gathered.
        """
        opened: list[tuple[AbstractContextManager[None], set[int]]] = []  # forward passes under way are nested
        gathered: set[int] = set(self._whole)

        def enter(unit: nn.Module, args: Any) -> None:
            tensors = {i: getattr(holder, name) for i, (holder, name) in self._holders[unit].items()}
            for i, p in tensors.items():
                if p.dtype != self._block.params[i].dtype:
                    raise BadInput(
                        f"FSDP2 gathers {self._block.params[i].dtype} parameters of block '{self._block.name}' in "
                        f"{p.dtype}: leave mp_policy out"
                    )
            ids = set(map(id, tensors.values()))
            self._gathered |= ids
            self._open |= ids
            context = stand(tensors)
            context.__enter__()
            opened.append((context, ids))
            gathered.update(tensors)

        def leave(unit: nn.Module | None = None, args: Any = None, output: Any = None) -> None:
            context, ids = opened.pop()
            context.__exit__(None, None, None)
            self._open -= ids

        handles = []
        try:
            for unit in self._holders:
                # Behind FSDP2's own hook, which gathers, and before the one that frees.
                handles.append(unit.register_forward_pre_hook(enter))
                handles.append(unit.register_forward_hook(leave, prepend=True))
            with stand(self._whole):
                yield
        finally:
            while opened:  # the loss has raised an error
                leave()
            for handle in handles:
                handle.remove()
        missed = set(range(len(self._block.params))) - gathered
        if missed:
            shape = tuple(self._block.params[min(missed)].shape)
            raise BadInput(
                f"block '{self._block.name}': its parameter of shape {shape} is gathered in no forward pass of the "
                "loss: pass layers=model, with the model that the loss runs, or leave the parameter out of the block"
            )

    @contextmanager
    def only_inside(self) -> Iterator[None]:
        """Inside the context the block's sharded parameters may be read in forward passes alone.

        Raises:
            BadInput: a function of torch reads one elsewhere, where no move shows.
        """
        shards = {id(p) for p in self._block.params if is_sharded(p)}
        with _ForbiddenReads(
            lambda p: id(p) in shards or (id(p) in self._gathered and id(p) not in self._open), self._block
        ):
            yield


class _ForbiddenReads(TorchFunctionMode):
    """Refuses functions of torch that read forbidden tensors."""

    def __init__(self, forbidden: Callable[[Tensor], bool], block: Block) -> None:
        super().__init__()
        self._forbidden, self._block = forbidden, block

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", str(function))
        if name == "__get__":
            name = getattr(getattr(function, "__self__", None), "__name__", name)
        if name in FACTS or (name not in VALUES and getattr(function, "__name__", "") in ("__get__", "__set__")):
            return function(*args, **kwargs)
        for argument in [*args, *kwargs.values()]:
            values = argument if isinstance(argument, list | tuple) else [argument]
            for p in values:
                if isinstance(p, Tensor) and self._forbidden(p):
                    raise BadInput(
                        f"block '{self._block.name}': its sharded parameter of shape {tuple(p.shape)} is read by "
                        f"{name} outside of the forward passes that FSDP2 gathers it for: compute the loss from the "
                        "model's outputs alone"
                    )
        return function(*args, **kwargs)


def _units(module: nn.Module | None) -> list[Any]:
    """The modules that `fully_shard` was called on."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # importing takes two seconds; `fully_shard` has done it
    if module is None or fsdp is None:
        return []
    return [part for part in module.modules() if isinstance(part, fsdp.FSDPModule)]
