"""The loss that a `transformers.Trainer` takes of one minibatch, to be evaluated again and again.

What a Trainer minimizes is what its `compute_loss` returns: the model's own loss, a smoothed one, that of
`compute_loss_func`, or whatever a subclass computes. A call of it cannot simply be repeated. It divides by
num_items_in_batch, the number of targets in all k accumulated minibatches and all processes, so that the result is a
part of a mean; some subclasses divide by k themselves; and many count calls or keep metrics. Here it is called on a
stand-in: a Trainer with copies of the attributes, for which k = 1, the process is the only one, and num_items_in_batch
counts this minibatch alone. That is the loss by which the Trainer would train on this minibatch by itself.
"""

import copy
import functools
import inspect
import traceback
from collections import UserDict, deque
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from smoothlab.blocks import python_rng
from smoothlab.errors import BadInput

_CANONICAL = tuple(inspect.signature(Trainer.compute_loss).parameters)[1:]  # model, inputs, ..., num_items_in_batch
_DATA = {"train_dataset", "eval_dataset"}  # which no loss writes to


def running_trainer() -> Any:
    """The Trainer whose training loop is calling; transformers passes callbacks its parts, but not the Trainer."""
    for frame, _ in traceback.walk_stack(inspect.currentframe()):
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
    raise BadInput("SmoothnessCallback works in a transformers.Trainer alone: use SmoothnessHook in your own loop")


class LossWatch:
    """Takes the place of a Trainer's `compute_loss` and keeps its calls in the training steps listed in `steps`.

    Several callbacks of one Trainer share one watch; `of` makes it or finds it.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, self.original = trainer, trainer.compute_loss
        self.steps: set[int] = set()  # optimizer steps whose calls are kept
        self.calls: list[MinibatchLoss] = []  # kept since `forget`
        functools.update_wrapper(self, self.original)

    @staticmethod
    def of(trainer: Any) -> "LossWatch":
        """The Trainer's watch."""
        if not isinstance(vars(trainer).get("compute_loss"), LossWatch):
            trainer.compute_loss = LossWatch(trainer)
        watch: LossWatch = trainer.compute_loss
        return watch

    def remove(self) -> None:
        """Give the Trainer its own `compute_loss` back."""
        if vars(self._trainer).get("compute_loss") is self:
            del self._trainer.compute_loss
            if getattr(self._trainer, "compute_loss", None) != self.original:
                self._trainer.compute_loss = self.original  # one that was set on this Trainer alone

    def forget(self) -> None:
        """Drop the calls of minibatches that are over."""
        self.calls.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the Trainer's own `compute_loss` returns; the call is kept first, as it may change its arguments."""
        trainer = self._trainer
        # Without a graph too: a step may be of zeroth order alone.
        if trainer.model.training and trainer.state.global_step in self.steps:
            self.calls.append(MinibatchLoss(trainer, self.original, args, kwargs))
        return self.original(*args, **kwargs)


class Snapshot:
    """A Trainer's attributes at one moment, from which Trainers are made that stand in for it."""

    def __init__(self, trainer: Any) -> None:
        self._kind, self._state = type(trainer), _attributes(vars(trainer))
        self._state.pop("compute_loss", None)  # a watch, or bound to this Trainer

    def stand_in(self) -> Any:
        """A Trainer with fresh copies of the attributes, which logs nothing; the Trainer's own are left alone."""
        trainer = object.__new__(self._kind)
        vars(trainer).update(_attributes(self._state))
        trainer.args = copy.copy(trainer.args)
        trainer.state, trainer.control = copy.copy(trainer.state), copy.copy(trainer.control)
        trainer.log = _silent
        return trainer


class MinibatchLoss:
    """The loss of one call of a Trainer's `compute_loss`, as if its minibatch was trained on alone."""

    def __init__(
        self, trainer: Any, compute: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._kind, self._model, self._compute = type(trainer), trainer.model, compute
        self._snapshot = Snapshot(trainer)
        self._args, self._kwargs = copied(args), copied(kwargs)
        parameters = [
            p.name for p in inspect.signature(compute).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        # Behind what a subclass names, *args may take the rest of what a Trainer passes, in its order.
        self._names = parameters + list(_CANONICAL[len(parameters) :])
        # transformers' own losses are means where they get no count; others may not do without one.
        counts_alone = getattr(compute, "__func__", None) is Trainer.compute_loss and trainer.compute_loss_func is None
        self._counts = not counts_alone and self._argument("num_items_in_batch") is not None

    def __call__(self, minibatch: Mapping[str, Any] | None = None, seed: int = 0) -> Tensor:
        """The mean loss, on the call's own inputs or on a minibatch in their place.

        Random numbers of Python and NumPy are fixed by `seed`, and left as they were.
        """
        trainer = self._stand_in()
        if minibatch is None:
            inputs = self._argument(self._names[1])
        else:
            inputs = trainer._prepare_inputs(minibatch)
        values = {self._names[0]: self._model, self._names[1]: copied(inputs), "num_items_in_batch": None}
        if self._counts:
            values["num_items_in_batch"] = trainer.get_batch_samples(iter([inputs]), 1, trainer.args.device)[1]
        args = [values.get(name, value) for name, value in zip(self._names, copied(self._args), strict=False)]
        kwargs = {name: values.get(name, value) for name, value in copied(self._kwargs).items()}
        compute = self._compute
        # A bound method would write to the Trainer that is training.
        if isinstance(compute, MethodType) and isinstance(compute.__self__, self._kind):
            compute = MethodType(compute.__func__, trainer)
        with python_rng(seed), trainer.compute_loss_context_manager():
            loss = compute(*args, **kwargs)
        if isinstance(loss, tuple):  # (loss, outputs)
            loss = loss[0]
        value: Tensor = loss
        return value

    def _argument(self, name: str) -> Any:
        """An argument of the call, by position or name; None where it has none of this name."""
        return (dict(zip(self._names, self._args, strict=False)) | self._kwargs).get(name)

    def _stand_in(self) -> Any:
        """A Trainer with fresh copies of the attributes, without accumulation and other processes."""
        trainer = self._snapshot.stand_in()
        trainer.args.average_tokens_across_devices = False
        trainer.args.gradient_accumulation_steps = trainer.args._n_gpu = 1
        trainer.current_gradient_accumulation_steps = 1
        trainer.accelerator = _SingleProcess(trainer.accelerator)
        return trainer


class _SingleProcess:
    """An Accelerator of a single process: the others do not measure, and would never answer."""

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    gather_for_metrics = pad_across_processes = gather

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        if isinstance(tensor, Tensor):
            return tensor * scale
        return tensor


def _silent(*_: Any, **__: Any) -> None:
    """Log nothing: the values were logged when the Trainer itself computed the loss."""


def _attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of a Trainer's attributes, but for its data sets: they may be lists of millions of rows."""
    result = dict(values)
    for name in result.keys() - _DATA:
        result[name] = copied(result[name])
    return result


def copied(value: Any) -> Any:
    """A copy with containers and tensors of its own; other objects are shared."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    if isinstance(value, dict | UserDict):  # BatchEncoding is no dict
        new = copy.copy(value)
        for key in value:
            new[key] = copied(value[key])
        return new
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    if isinstance(value, set | deque):
        return copy.copy(value)
    return value
