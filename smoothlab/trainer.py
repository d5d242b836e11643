"""The one training loop: HybridSGD on any model or objective, with curvature measured at chosen steps of the run.

A trajectory is a function of the configuration and the seed alone: minibatch `step`, its dropout masks, the directions
of step `step` and its rates are the same whenever they are asked for, and nothing else is random. That is why a
checkpoint needs the weights, the optimizer's state and a few numbers to continue to the bit, and why measuring, which
only reads the weights, leaves the run as it would be without.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from smoothlab.blocks import Block, Loss, check_partition, fixed_loss, only_differentiable
from smoothlab.divergence import Diverged, Growth, before_training, has_risen
from smoothlab.errors import BadInput
from smoothlab.hessian.disagreements import WrongProducts
from smoothlab.hessian.gauss_newton import Outputs, joined
from smoothlab.hessian.penalties import penalty
from smoothlab.hessian.points import Points, rows_at
from smoothlab.hessian.trajectory import PathSmoothness, Row, has_kinks
from smoothlab.optim.hybrid import HybridSGD
from smoothlab.zeroth.closures import NotFinite
from smoothlab.zeroth.repetition import RepeatableLoss

Schedule = Literal["constant", "linear", "cosine"]


class Allocator(Protocol):
    """Changes a model after the optimizer's step, as AdaLoRA's allocation of ranks does."""

    def after_step(self, model: Any, step: int, total: int) -> None:
        """Act after update number `step`, counted from 1, of `total`."""

    def state(self, model: Any) -> dict[str, Tensor]:
        """All that the next call depends on beside the parameters."""

    def restore(self, model: Any, saved: Mapping[str, Tensor]) -> None:
        """Load what `state` returned; an empty mapping is the state before step 0."""

    def buffers(self, model: Any) -> dict[str, Tensor]:
        """Tensors that it changes beside the parameters, and that the loss depends on: part of the weights."""

    def settle(self, model: Any) -> None:
        """Update the model's own description after weights were copied in."""


@dataclass
class Trainer:
    """A training loop by HybridSGD, of any model or objective, with curvature measured at chosen steps.

    >>> import torch
    >>> from smoothlab import Block, HybridSGD, Points, Trainer
    >>> model = torch.nn.Linear(3, 1).double()
    >>> block = Block("all", tuple(model.parameters()))
    >>> optimizer = HybridSGD([{"params": block.params, "lr": 0.1, "name": "all"}])
    >>> batches = lambda step: [torch.ones(4, 3).double() * (step + 1)]
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> trainer = Trainer(model, {"all": block}, batches, loss, optimizer, measure=Points([0], [block], path=False))
    >>> [row["quantity"] for row in trainer.train(2)]
    ['frobenius', 'spectral', 'trace']

    Attributes:
        model: an nn.Module, in the mode it is trained in, or any object that `loss` is computed with.
        blocks: blocks that are trained; of an nn.Module they hold every parameter that requires a gradient.
        batches: equal parts of minibatch `step` (one, or several that are computed one after the other).
        loss: mean loss of a part, loss(model, part); a scalar.
        optimizer: HybridSGD over the blocks; its rates are those of the schedule's factor 1.
        measure: where curvature is measured; None measures nothing.
        steps: number of steps T of the schedule and of the run.
        schedule: factor of all rates at step t: constant 1, linear 1 - t/T, cosine (1 + cos(pi t/T))/2.
        seed: seed of dropout masks.
        dropout: compute the loss in train mode with masks fixed by seed and step, instead of eval mode.
        allocator: what changes the model after each step, see `Allocator`.
        start: weights at step 0 by parameter name; given where `log` is.
        log: seed log of block "base", which checkpoints leave out and rebuild from `start` and the log.
        on_step: called after each update with the number of updates and the loss before the last.
        repeated_loss: mean losses [count] of repetitions of a part, repeated_loss(model, part, count), for oracles that
            evaluate several in one forward pass (`ZerothOrder(parallel=k)`).
        kinks: whether the gradient of a measured block jumps, as that of ReLU networks does.
    """

    model: Any
    blocks: Mapping[str, Block]
    batches: Callable[[int], Sequence[Any]]
    loss: Callable[[Any, Any], Tensor]
    optimizer: HybridSGD
    measure: Points | None = None
    steps: int = 0
    schedule: Schedule = "constant"
    seed: int = 0
    dropout: bool = False
    allocator: Allocator | None = None
    start: Mapping[str, Tensor] | None = None
    log: Path | None = None
    on_step: Callable[[int, float], None] | None = None
    repeated_loss: Callable[[Any, Any, int], Tensor] | None = None
    step: int = field(default=0, init=False)
    first_loss: float | None = field(default=None, init=False)
    losses: list[float] = field(default_factory=list, init=False)
    kinks: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.schedule != "constant" and self.steps < 1:
            raise BadInput(f"a {self.schedule} schedule over {self.steps} steps: give the number of steps of the run")
        # By identity: blocks know no names of parameters, and tensors compare entry by entry.
        self._names: dict[int, str] = {}
        for block in self.blocks.values():
            for number, p in enumerate(block.params):
                self._names[id(p)] = f"{block.name}.{number}"
        if isinstance(self.model, nn.Module):
            parameters = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
            check_partition(self.blocks.values(), parameters)
            self._names = {id(p): name for name, p in parameters}
        self._rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        self._growth = Growth(self.blocks)
        self._measured = -1  # step of the last point, which a run that goes on does not measure again
        if self.measure is not None:
            # Finite differences have no right step across kinks, which random weights show as well as trained ones.
            with only_differentiable(self.measure.blocks, self.blocks.values()):
                for block in self.measure.blocks:
                    # A head acts behind the kinks of the model: its weights cross none.
                    if block.name != "head" and has_kinks(self.minibatch_loss(0), block):
                        self.kinks = True
                        break

    def minibatch_loss(self, step: int) -> Loss:
        """Mean loss of minibatch `step` at the current parameters, the function that update `step` descends."""
        parts = self._parts(step)
        if len(parts) == 1:
            return parts[0]
        return lambda: torch.stack([part() for part in parts]).mean()

    def factor(self, step: int) -> float:
        """The factor of all rates at update `step`."""
        if self.schedule == "constant":
            return 1.0
        progress = step / self.steps
        if self.schedule == "linear":
            return 1 - progress
        return (1 + math.cos(math.pi * progress)) / 2

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates by group, those of the schedule's factor 1; the next updates take what is set here."""
        return dict(self._rates)

    @rates.setter
    def rates(self, rates: Mapping[str, float]) -> None:
        self._rates = {**self._rates, **rates}

    def update(self) -> float:
        """One step of the optimizer on minibatch `step`; the loss before it.

        Raises:
            Diverged: the loss is not finite; the parameters stay as they were.
            BadInput: what the optimizer refuses: a frozen block, mu below rounding.
        """
        # From the step alone, not by a scheduler that counts its calls: a resumed run needs no state for its rates.
        for group in self.optimizer.param_groups:
            group["lr"] = self._rates[group["name"]] * self.factor(self.step)
        try:
            value = float(self.optimizer.step(self._parts(self.step)))
        except NotFinite as error:
            raise self.diverged(error.value) from None
        except BadInput as error:
            # A log that cannot be written, or a process that is gone, says nothing about the weights.
            outside = isinstance(error.__context__, OSError | RuntimeError)
            if self.step == 0 or isinstance(error, Diverged) or outside:
                raise
            raise Diverged(f"{error}; first of all {self._growth.suspect(self._rates)}") from None
        if self.first_loss is None:  # of the whole run: a resumed one has that of its first part
            self.first_loss = value
        self.losses.append(value)
        self.step += 1
        if self.allocator is not None:
            self.allocator.after_step(self.model, self.step, self.steps)
        if self.on_step is not None:
            self.on_step(self.step, value)
        return value

    def train(self, until: int) -> Iterator[Row]:
        """Train up to step `until`; yields the rows of the points before it, each as soon as it is measured."""
        while self.step < until:
            before = self.step
            if self.due():
                yield from self.point()
            if self.step == before:  # a point that measures path smoothness has made the update
                self.update()

    def due(self) -> bool:
        """Whether the current step is a point that is not measured yet."""
        return self.measure is not None and self.step in self.measure.steps and self.step != self._measured

    def point(self) -> Iterator[Row]:
        """Measure at the current parameters; yields the rows of each block as soon as they are there.

        Path smoothness needs the update of this step, which is made on the way; after the last step of the run it is
        made on trial and taken back.
        """
        points, step = self.measure, self.step
        assert points is not None
        number = step if points.minibatch == "step" else 0
        loss = self.minibatch_loss(number)
        penalty_field: Row = {}
        if isinstance(self.model, nn.Module):
            penalty_field = penalty(loss, self.model)
        outputs = None
        if points.outputs is not None:
            outputs = joined(self._outputs(number, points.outputs))
        measurements = rows_at(points, loss, outputs, seed=(points.seed, step), kinks=self.kinks)
        first, self._measured = self._measured < 0, step
        try:
            with only_differentiable(points.blocks, self.blocks.values()):
                for row in measurements:
                    yield {"step": step, **row, **penalty_field}
        except WrongProducts as error:
            if first:
                raise
            # Hours of training should not end because products fail at a later point.
            warnings.warn(f"step {step} is not measured: {error}", stacklevel=2)
            return
        if points.path:
            for row in self._path(points, loss):
                yield {"step": step, **row, **penalty_field}

    def _path(self, points: Points, loss: Loss) -> Iterator[Row]:
        """Rows of path smoothness along the update of this step, which is made."""
        with only_differentiable(points.blocks, self.blocks.values()):
            smoothness = PathSmoothness(loss, points.blocks)
        with self.on_trial() if self.step == self.steps else nullcontext():
            self.update()
            with only_differentiable(points.blocks, self.blocks.values()):
                yield from smoothness.rows()

    @contextmanager
    def on_trial(self, rates: Mapping[str, float] | None = None, *, number: int = 0, first: int = 0) -> Iterator[None]:
        """Inside the context the trainer may take steps; afterwards its state is as it was, to the bit.

        Args:
            rates: learning rates by block, in place of the run's.
            number: number of the trial: trials of different numbers draw different zeroth-order directions, trial 0
                those of the run.
            first: minibatches that are skipped, so that trials may see others than the run.
        """
        # A copy: the state holds the parameters themselves, which updates overwrite.
        saved_state = copy.deepcopy(self.state_dict()), self.on_step, self._rates, self.batches
        batches = self.batches
        self.on_step, self._rates = None, {**self._rates, **(rates or {})}
        self.batches = lambda step: batches(step + first)
        self.optimizer.seed += number << 20  # as far apart as the seeds of runs are, see `_fixed`
        try:
            yield
        finally:
            state, self.on_step, self._rates, self.batches = saved_state
            self.optimizer.zero_grad()
            self.load_state_dict(state)

    def check(self, loss: float) -> None:
        """Refuse a mean loss over some steps that is far above the loss of the first minibatch.

        Raises:
            Diverged: it is, or is not finite.
        """
        if has_risen(loss, self.first_loss):
            raise self.diverged(loss)

    def diverged(self, loss: float) -> Diverged:
        """The error for such a loss; names the rate of the block whose weights have grown most."""
        if self.first_loss is not None:
            return self._growth.diverged(loss, self.step, self.first_loss, self._rates)
        oracles = [group["oracle"] for group in self.optimizer.param_groups if group["oracle"] is not None]
        weights = {self._names[id(p)]: p for block in self.blocks.values() for p in block.params}
        return before_training(loss, self.minibatch_loss(self.step), oracles, weights)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that checkpoints hold, on the CPU, by the parameters' names."""
        weights = {name: p.detach().to("cpu", copy=True) for name, p in self._checkpointed().items()}
        if self.log is None:
            for k, factors in self.optimizer.factors.items():
                weights |= {f"factors.{k}.{name}": tensor for name, tensor in factors.state().items()}
        return weights

    def load_weights(self, weights: Mapping[str, Tensor], step: int, log: Path | None = None) -> None:
        """Copy in such weights, and rebuild those that a seed log stands for from its first `step` steps.

        Raises:
            BadInput: they are of another model, PEFT method or method; or the log is.
        """
        self._copy_in(weights, self._checkpointed())
        if self.allocator is not None:
            self.allocator.settle(self.model)
        for k, factors in self.optimizer.factors.items():
            state = {name: weights[f"factors.{k}.{name}"] for name in factors.KEYS if f"factors.{k}.{name}" in weights}
            if state:  # those of a checkpoint are in the optimizer's
                factors.load(state)
        if self.log is not None:
            assert self.start is not None
            if not self.optimizer.factors:  # these begin at the start by themselves
                self._copy_in(self.start, self._named(self.blocks["base"]))
            self.optimizer.replay(log or self.log, until=step)

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on; tensors are not copied."""
        return {
            "step": self.step,
            "first_loss": self.first_loss,
            "losses": list(self.losses),
            "measured": self._measured,
            "rates": self.rates,
            "weights": {name: p.detach() for name, p in self._checkpointed().items()},
            "allocator": {} if self.allocator is None else self.allocator.state(self.model),
            "optimizer": self.optimizer.state_dict(masters=self.log is None),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, to the bit, from where `state_dict` was called on a trainer of the same configuration."""
        self.load_weights(state["weights"], state["step"])
        if self.allocator is not None:
            self.allocator.restore(self.model, state["allocator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.first_loss = state["step"], state["first_loss"]
        self.losses, self._measured = list(state["losses"]), state["measured"]
        self.rates = state.get("rates", {})  # checkpoints of before 0.2 have none: rates stood still

    def _parts(self, step: int) -> list[Loss]:
        """The loss of each part of minibatch `step`."""
        losses: list[Loss] = []
        for part in self.batches(step):
            compute: Loss = partial(self.loss, self.model, part)
            if self.repeated_loss is None:
                losses.append(self._fixed(step)(compute))
            else:
                repeated = partial(self.repeated_loss, self.model, part)
                losses.append(RepeatableLoss(compute, repeated, self._fixed(step)))
        return losses

    def _outputs(self, step: int, function: Callable[[Any, Any], Outputs]) -> list[Callable[[], Outputs]]:
        """The outputs of each part of minibatch `step`."""
        return [self._fixed(step)(partial(function, self.model, part)) for part in self.batches(step)]

    def _fixed(self, step: int) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        """A wrapper by which a function of the model, such as a loss, returns the same at every call within a step."""
        if not isinstance(self.model, nn.Module):
            return lambda compute: compute
        # 2^20 steps a seed: runs of neighboring seeds share no mask.
        return partial(fixed_loss, module=self.model, train=self.dropout, seed=(self.seed << 20) + step)

    def _copy_in(self, weights: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> None:
        for name, p in named.items():
            if name not in weights or weights[name].shape != p.shape:
                raise BadInput(
                    "the checkpoint's weights are of another model or PEFT method than this run's: give the --model "
                    "that it was made with, or name another --checkpoint folder"
                )
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(weights[name])

    def _checkpointed(self) -> dict[str, Tensor]:
        """Weights that checkpoints hold: all that are trained, but for those that a log or factors stand for."""
        tensors: dict[str, Tensor] = {}
        factor_groups = [self.optimizer.param_groups[k]["name"] for k in self.optimizer.factors]
        if self.allocator is not None:
            tensors |= self.allocator.buffers(self.model)
        for name, block in self.blocks.items():
            if name not in factor_groups and (name != "base" or self.log is None):
                tensors |= self._named(block)
        return tensors

    def _named(self, block: Block) -> dict[str, Tensor]:
        return {self._names[id(p)]: p for p in block.params}


def reshuffled(count: int, batch: int, seed: int, step: int) -> list[int]:
    """Example numbers of minibatch `step`: each epoch is a fresh permutation, cut into whole minibatches."""
    epoch, number = divmod(step, count // batch)
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(count, generator=generator)
    return order[number * batch : (number + 1) * batch].tolist()
