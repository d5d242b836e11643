"""Fine-tuning of a language model by Algorithm 1: epochs by random reshuffling, at every step both oracles at (x, y).

The trajectory is a function of the configuration and the seed alone: minibatch `step`, the directions of step `step`
and its rates are the same whenever they are asked for, and nothing else is random. That is why a snapshot needs the
weights, the optimizer's state and a few counts to go on to the bit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, check_partition, fixed_loss, norm
from smoothlab.errors import BadInput
from smoothlab.llm import adalora, distributed
from smoothlab.llm.checkpoints import Snapshot, pack, unpack
from smoothlab.llm.train import reshuffled
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.estimators import NotFinite

Schedule = Literal["constant", "linear", "cosine"]
RISE = 2.0, 1.0
"""A mean training loss above 2 first + 1, first that of the first minibatch, has diverged."""


class Rates(NamedTuple):
    """Learning rates of x and y, and the step mu of the zeroth-order differences."""

    eta_x: float
    eta_y: float
    mu: float


class Diverged(BadInput):
    """The loss is not finite, or far above that of the first minibatch; says which rate to lower."""


@dataclass
class Tuning:
    """A model, its blocks and its data, standing before update `step`.

    Attributes:
        model: the language model, wrapped by a PEFT method or not; eval mode.
        blocks: what is trained, by name: "base" (x), "peft" (y).
        examples: minibatch for a list of example numbers.
        loss: mean loss of a minibatch.
        optimizer: makes HybridSGD for the blocks at given rates, with a seed log in a file, cut to its first steps.
        count: number of training examples.
        batch: minibatch size B, of all processes together.
        steps: length of the schedule.
        evaluations: of the loss in a step.
        schedule: factor of both rates: constant 1, linear 1 - t/T, cosine (1 + cos(pi t/T))/2.
        seed: seed of the reshuffling.
        parts: parts that a minibatch is computed in on a CPU, whatever the number of processes.
        logged: whether snapshots leave the base model out, which its seed log rebuilds from the start.
    """

    model: nn.Module
    blocks: dict[str, Block]
    examples: Callable[[Sequence[int]], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: Callable[[Mapping[str, Block], Rates, Path | None, int], HybridSGD]
    count: int
    batch: int
    steps: int
    evaluations: int = 1
    schedule: Schedule = "constant"
    seed: int = 0
    logged: bool = False
    parts: int = distributed.PARTS
    step: int = field(default=0, init=False)
    first: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.count:
            raise BadInput(f"--batch {self.batch} with {self.count} training examples: use 1 to {self.count}")
        processes = distributed.world_size()
        if self.batch % processes:
            raise BadInput(f"--batch {self.batch} with {processes} processes: use a multiple of {processes}")
        check_partition(self.blocks.values(), ((n, p) for n, p in self.model.named_parameters() if p.requires_grad))
        self._names = {id(p): name for name, p in self.model.named_parameters()}
        self._sizes = {name: _size(block) for name, block in self.blocks.items()}
        self._home: dict[str, Tensor] | None = None

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(next(iter(self.blocks.values())).params[0].device)

    def start(self, rates: Rates, log: Path | None = None, steps: int = 0) -> None:
        """Stand before step 0 with these rates, at the weights that the model was loaded with.

        Args:
            rates: of the run.
            log: seed log to write to.
            steps: how many steps of it stand, for `restore`.
        """
        if self._home is not None:
            self._take(self._home, self._named())
            adalora.restore(self.model, {})
        self.rates, self.step, self.first = rates, 0, None
        self._optimizer = self.optimizer(self.blocks, rates, log, steps)
        self._optimizer.peers = distributed.Peers() if distributed.world_size() > 1 else None
        self._lrs = [group["lr"] for group in self._optimizer.param_groups]

    def remember_start(self) -> None:
        """Keep a copy of the weights, so that `start` can be called again after steps."""
        self._home = {name: _copy(p) for name, p in self._named()}

    def factor(self, step: int) -> float:
        """What the rates of update `step` are multiplied with."""
        if self.schedule == "constant":
            return 1.0
        gone = step / self.steps
        return 1 - gone if self.schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2

    def update(self) -> float:
        """One step of Algorithm 1 on minibatch `step`; the loss before it.

        Raises:
            Diverged: the loss is not finite; the parameters stay as they were.
            BadInput: what the optimizer refuses: a frozen base, mu below rounding.
        """
        minibatch = reshuffled(self.count, self.batch, self.seed, self.step)
        closures = []
        for numbers in distributed.parts(minibatch, self.device, self.parts):
            part = partial(self.loss, self.model, self.examples(numbers))
            closures.append(fixed_loss(part, self.model, seed=(self.seed << 20) + self.step))
        for group, lr in zip(self._optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * self.factor(self.step)
        try:
            value = float(self._optimizer.step(closures))
        except NotFinite as error:
            raise self.diverged(error.value) from None
        except BadInput as error:
            if self.step == 0 or isinstance(error, Diverged | distributed.PeerLost):
                raise
            if isinstance(error.__context__, OSError):  # the log cannot be written
                raise
            raise Diverged(f"{error}; first of all {self._blamed()}") from None  # it went well before the weights moved
        self.first = value if self.first is None else self.first
        self.step += 1
        adalora.after_step(self.model, self.step, self.steps)
        return value

    def check(self, loss: float) -> None:
        """Refuse a mean loss over some steps that is far above the loss of the first minibatch.

        Raises:
            Diverged: it is, or is not finite.
        """
        factor, more = RISE
        if not math.isfinite(loss) or (self.first is not None and loss > factor * self.first + more):
            raise self.diverged(loss)

    def diverged(self, loss: float) -> Diverged:
        """What to say of such a loss; names the rate of the block whose weights have grown most."""
        if self.first is None:
            return Diverged(f"the loss is {loss:.3g} before training: the model is broken, or needs a wider --dtype")
        return Diverged(
            f"the loss is {loss:.3g} at step {self.step}, and was {self.first:.3g} at first: lower {self._blamed()}"
        )

    def _blamed(self) -> str:
        """The rate of the block whose weights have grown most, and by how much each has."""
        grown = {name: _size(block) / (self._sizes[name] or 1.0) for name, block in self.blocks.items()}
        worst = max(grown, key=lambda name: grown[name] if math.isfinite(grown[name]) else math.inf)
        option, rate = ("--eta-x", self.rates.eta_x) if worst == "base" else ("--eta-y", self.rates.eta_y)
        sizes = ", ".join(f"{name} {size:.4g}" for name, size in grown.items())
        return f"{option} ({rate:g}); size of the weights, times that at the start: {sizes}"

    def weights(self) -> dict[str, Tensor]:
        """A copy of what snapshots hold of the weights, on the CPU, by the parameters' names."""
        return {name: _copy(p) for name, p in self._held()}

    def stand_at(self, weights: Mapping[str, Tensor], log: Path | None = None, steps: int = 0) -> None:
        """Take such weights, and the base model's from `steps` steps of the seed log where snapshots leave it out.

        Raises:
            BadInput: they are of another model, PEFT method or method; or the log is.
        """
        self._take(weights, self._held())
        adalora.settle(self.model)
        if self.logged:
            assert log is not None and self._home is not None
            base = self.blocks["base"]
            self._take(self._home, [(self._names[id(p)], p) for p in base.params])
            self._optimizer.replay(log, until=steps)

    def snapshot(self) -> Snapshot:
        """Where the run stands, for `restore`; tensors are not copied."""
        tensors = {f"weights/{name}": p.detach() for name, p in self._held()}
        tensors |= {f"ranks/{name}": tensor for name, tensor in adalora.state(self.model).items()}
        state = {"step": self.step, "first": self.first}
        state["optimizer"] = pack(self._optimizer.state_dict(masters=not self.logged), tensors, "optimizer")
        return Snapshot(tensors, state)

    def restore(self, found: Snapshot, log: Path | None = None) -> None:
        """Go on, to the bit, from where `snapshot` was taken; `start` was called with the same rates."""
        self.stand_at(part(found, "weights"), log, found.state["step"])
        adalora.restore(self.model, part(found, "ranks"))
        self._optimizer.load_state_dict(unpack(found.state["optimizer"], found.tensors))
        self.step, self.first = found.state["step"], found.state["first"]

    def _take(self, weights: Mapping[str, Tensor], those: Sequence[tuple[str, Tensor]]) -> None:
        if any(name not in weights or weights[name].shape != p.shape for name, p in those):
            raise BadInput(
                "the checkpoint's weights are of another model or PEFT method than this run's: give the --model that "
                "it was made with, or name another --checkpoint folder"
            )
        with torch.no_grad():
            for name, p in those:
                p.copy_(weights[name])

    def _held(self) -> list[tuple[str, Tensor]]:
        """What snapshots hold: all that is trained, or all but the base model."""
        left_out = {id(p) for p in self.blocks["base"].params} if self.logged else set()
        return [(name, p) for name, p in self._named() if id(p) not in left_out]

    def _named(self) -> list[tuple[str, Tensor]]:
        return [(self._names[id(p)], p) for block in self.blocks.values() for p in block.params]


def part(found: Snapshot, name: str) -> dict[str, Tensor]:
    """The tensors of a snapshot whose names begin with name/, without it."""
    return {key.removeprefix(f"{name}/"): t for key, t in found.tensors.items() if key.startswith(f"{name}/")}


def _copy(p: Tensor) -> Tensor:
    return p.detach().to("cpu", copy=True)


def _size(block: Block) -> float:
    """Euclidean norm of the block's weights."""
    return math.sqrt(sum(norm(p.detach().reshape(-1)) ** 2 for p in block.params))
