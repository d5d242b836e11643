"""Trainers with losses of their own on a tiny language model, and the same losses written out by hand."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

ROWS, BATCH, K = 20, 2, 4
WEIGHTS = torch.linspace(0.1, 3, 30)


def language_model() -> nn.Module:
    """A Llama of one layer with dropout in its attention, which eval mode turns off."""
    shape = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    transformers.set_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**shape, num_attention_heads=2, attention_dropout=0.3, initializer_range=0.3)
    )


def examples() -> list[dict[str, Tensor]]:
    """Token rows of which 0 to 6 labels are no targets: minibatches have different numbers of targets."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(ROWS):
        tokens = torch.randint(0, 30, (8,), generator=generator)
        labels = tokens.clone()
        labels[: i % 7] = -100
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def minibatch(number: int) -> dict[str, Tensor]:
    """Minibatch `number` of an epoch."""
    rows = examples()[number * BATCH : (number + 1) * BATCH]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


# ---------------------------------------------------------------------------- losses of a minibatch, written out


def log_probabilities(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """log p of all tokens at the places that are followed by a target, [places, 30], and these targets."""
    targets = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    return logits[targets != -100].log_softmax(-1), targets[targets != -100]


def mean_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logs, targets = log_probabilities(model, batch)
    return -logs[range(len(targets)), targets].mean()


def smoothed(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logs, targets = log_probabilities(model, batch)
    return -(0.7 * logs[range(len(targets)), targets] + 0.3 * logs.mean(-1)).mean()


def weighted(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logs, targets = log_probabilities(model, batch)
    return -(WEIGHTS[targets] * logs[range(len(targets)), targets]).sum() / WEIGHTS[targets].sum()


def entropic(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logs, targets = log_probabilities(model, batch)
    return -logs[range(len(targets)), targets].mean() + 0.5 * (logs.exp() * logs).sum(-1).mean()


# ---------------------------------------------------------------------------- Trainers with losses of their own


class Ordered(transformers.Trainer):
    """Trains on the rows in order."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class ClassWeights(Ordered):
    """As transformers' own documentation overrides the loss; it takes the labels out of the inputs."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits, targets, weight=WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class OtherSignature(ClassWeights):
    """Other names, no place for the count, and outputs beside the loss."""

    def compute_loss(self, net: Any, batch: Any, **options: Any) -> Any:  # type: ignore[override]
        return super().compute_loss(net, batch, return_outputs=True)

    def training_step(self, model: Any, inputs: Any, *_: Any) -> Any:
        model.train()
        loss, _ = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss / self.args.gradient_accumulation_steps)
        return loss.detach()


class DividedByHand(Ordered):
    """Divides by the number of minibatches itself, in one of the two ways that are in use."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs)
        share = self.args.gradient_accumulation_steps * self.current_gradient_accumulation_steps
        return loss / share**0.5


class Annealed(Ordered):
    """Counts its calls, keeps metrics and logs, as TRL's trainers do; the loss depends on the count.

    Its inputs are written to, and its noise comes from Python and NumPy.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts = {"calls": 0}
        self.metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.counts["calls"] += 1
        inputs["input_ids"].add_(1).remainder_(30)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss * self.counts["calls"] + 0.0 * (random.random() + np.random.rand())
        self.metrics["train" if self.model.training else "eval"]["loss"].append(float(loss.detach()))
        self.log({"own": float(loss.detach())})
        return (loss, outputs) if return_outputs else loss


class Gathers(Ordered):
    """Counts targets over all processes, as TRL's trainers do for their metrics."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.targets = self.accelerator.gather_for_metrics((inputs["labels"] != -100).sum()).sum()
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class TwiceAStep(Ordered):
    """Trains by two losses of each minibatch."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.compute_loss(model.train(), self._prepare_inputs(inputs))
        return super().training_step(model, inputs, num_items_in_batch)


def tokens_mean(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A loss function that cannot do without the count."""
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch


def with_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A loss function that takes a sum and a count, or a mean; the entropy's part is like it."""
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    logs = logits[targets != -100].log_softmax(-1)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none").sum() + 0.5 * (logs.exp() * logs).sum()
    return losses / (len(logs) if num_items_in_batch is None else num_items_in_batch)


def tuples(model: nn.Module) -> None:
    """Let the model return (loss, logits) instead of a ModelOutput."""
    forward = model.forward
    model.forward = lambda **inputs: forward(**inputs).to_tuple()  # type: ignore[method-assign]


def without_count(model: nn.Module) -> None:
    """Let the model take every keyword and ignore the count."""
    forward = model.forward
    model.forward = lambda num_items_in_batch=None, **inputs: forward(**inputs)  # type: ignore[method-assign]


def set_on_this_trainer(trainer: Any) -> None:
    """A loss that is set on one Trainer, not in a class."""
    trainer.compute_loss = MethodType(ClassWeights.compute_loss, trainer)


@dataclass(frozen=True)
class Case:
    """A Trainer that accumulates k minibatches, and the mean loss that it takes of each."""

    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = mean_loss
    trainer: type = Ordered
    k: int = K
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[[nn.Module], None] = lambda model: None
    prepare: Callable[[Any], None] = lambda trainer: None


CASES = {
    "the model's own": Case(),
    "class weights": Case(weighted, ClassWeights),
    "a function of the count": Case(options={"compute_loss_func": tokens_mean}),
    "in tuples": Case(model=tuples),
    "that ignores the count": Case(model=without_count),
    "smoothed": Case(smoothed, arguments={"label_smoothing_factor": 0.3}),
    "a function with or without the count": Case(entropic, options={"compute_loss_func": with_entropy}),
    "class weights on one Trainer": Case(weighted, prepare=set_on_this_trainer),
    "another signature": Case(weighted, OtherSignature),
    "divided by hand": Case(trainer=DividedByHand),
    "evaluated between": Case(k=1, arguments={"eval_strategy": "steps", "eval_steps": 1}),
    "counts of one process": Case(arguments={"average_tokens_across_devices": False}),
}


class Weights(transformers.TrainerCallback):
    """Copies of the model's weights before each update."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


def trained(folder: Path, case: Case, callbacks: Sequence[Any], steps: int = 2) -> Any:
    """The case's Trainer after its steps."""
    model = language_model()
    case.model(model)
    given = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH, gradient_accumulation_steps=case.k, max_steps=steps,
        learning_rate=0.1, remove_unused_columns=False, report_to=[], save_strategy="no", logging_strategy="no",
        use_cpu=True, disable_tqdm=True, **case.arguments,
    )  # fmt: skip
    rows = examples()
    trainer = case.trainer(
        model, given, train_dataset=rows, eval_dataset=rows[:3], callbacks=list(callbacks), **case.options
    )
    case.prepare(trainer)
    trainer.train()
    return trainer
