"""The scoring head of a model: a language model's vocabulary head, or a classifier with one class a candidate.

A classifier's head is the one that its checkpoint has for as many classes, else a new one, seeded. Beside a PEFT module
it is trained by exact gradients and saved with it, as peft does (`modules_to_save`); so is a pooler that the checkpoint
lacks. Without a module the head is part of the base model x.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from smoothlab.blocks import Block
from smoothlab.errors import BadInput
from smoothlab.llm.adapters import attach, start_as_real_tokens
from smoothlab.llm.models import LoadedModel, classifier_reason_of_config, load_classifier, load_lm
from smoothlab.llm.partition import head_parameters, partition
from smoothlab.llm.tasks import GENERATIVE, Splits
from smoothlab.llm.validation import reads_left_to_right

Head = Literal["auto", "lm", "classifier"]
BY_PEFT = ("classifier", "score")
"""Endings of the names of modules that peft trains and saves with every classifier."""


def classifier_reason(head: Head, name: str) -> str | None:
    """Reason for which the model `name` is fine-tuned as a classifier; None where it is a language model.

    With "auto" it is a classifier where its config.json names a classifier's class, or where it is of a type that
    generates no text from left to right.
    """
    if head == "auto":
        return classifier_reason_of_config(name) or None
    if head == "classifier":
        return "--head classifier"
    return None


def load(
    name: str, splits: Splits, reason: str | None, *, seed: int, dtype: Any, device: str, measured: bool = False,
    copies: int | None = None,
) -> LoadedModel:  # fmt: skip
    """The language model, or a classifier of the task's candidates where `reason` (`classifier_reason`) is given."""
    if reason is None:
        return load_lm(name, seed=seed, dtype=dtype, device=device, measured=measured, copies=copies)
    if splits.kind in GENERATIVE:
        raise BadInput(
            f"{splits.name} holds completions or texts, which no classifier predicts: use --head lm and a causal "
            "language model, e.g. micro"
        )
    if splits.kind == "multiple choice":
        fix = "use --head lm"
        if reason != "--head classifier":  # the model's own files say so, and no option can change them
            fix = f"{name} is a classifier, as {reason}; use a causal language model, e.g. micro"
        raise BadInput(f"the candidates of {splits.name} differ from item to item and cannot be classes: {fix}")
    class_names = [candidate.strip() for candidate in splits.train[0].candidates]
    classes = len(class_names)
    loaded = load_classifier(name, classes, seed=seed, dtype=dtype, device=device, measured=measured, copies=copies)
    config = loaded.model.config
    if all(str(label).startswith("LABEL_") for label in config.id2label.values()):  # transformers' own names
        config.id2label = dict(enumerate(class_names))
        config.label2id = {word: k for k, word in enumerate(class_names)}
    if reason != "--head classifier":
        loaded.notes.insert(0, f"{name} is trained as a classifier of {classes} classes: {reason}")
    return loaded


def attached(
    loaded: LoadedModel,
    method: str,
    *,
    seed: int,
    measured: bool = False,
    rank: int | None = None,
    loss: Callable[[nn.Module], torch.Tensor] | None = None,
    **options: Any,
) -> nn.Module:
    """The model with the method's module to train; beside it peft keeps copies of a classifier's head to be trained.

    A prefix starts as keys and values of random tokens where the model reads from left to right; `loss` is that of
    `adapters.attach`.
    """
    modules = _trained_beside(loaded)
    if modules:
        options["modules_to_save"] = modules
    model = attach(loaded.model, method, seed=seed, measured=measured, rank=rank, loss=loss, **options)
    parts = partition(model)
    if method != "none" and "head" in parts:
        saved = _copies(model)
        # A head that peft does not save with the module would be lost with the adapter.
        if any(id(p) not in saved for p in parts["head"].params):
            raise BadInput(f"--peft {method} saves no classifier's head with its module: use another method")
        if method == "prefix" and reads_left_to_right(loaded.model.config):  # attach does it for language models
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                start_as_real_tokens(model)
    return model


def blocks(model: nn.Module, *, base: bool, module: bool) -> dict[str, Block]:
    """The trained blocks: "base" (x) and "peft" (y) as asked for, and a classifier's "head", part of x without a y."""
    parts = partition(model)
    x = parts["base"].params
    head: tuple[torch.Tensor, ...] = ()
    if "head" in parts:
        head = parts["head"].params
    if not module:
        return {"base": Block("base", x + head)}
    # A new pooler lies in the body, and is trained with the head.
    copies = _copies(model)
    result = {}
    if base:
        result["base"] = Block("base", tuple(p for p in x if id(p) not in copies))
    result["peft"] = parts["peft"]
    if head:
        result["head"] = Block("head", tuple(p for p in x if id(p) in copies) + head)
    return result


def _trained_beside(loaded: LoadedModel) -> list[str]:
    """Modules that peft trains and saves beside its own: heads of unusual names, and new ones in the body."""
    head_ids = head_parameters(loaded.model)
    modules: dict[str, None] = {}  # in order, without repetitions
    for name, p in loaded.model.named_parameters():
        parts = name.split(".")
        if id(p) in head_ids:
            modules[parts[0]] = None
        elif name in loaded.new and "pooler" in parts:
            modules[".".join(parts[: parts.index("pooler") + 1])] = None
    return [name for name in modules if not name.endswith(BY_PEFT)]


def _copies(model: nn.Module) -> set[int]:
    """Ids of the parameters that peft trains and saves beside those of its module."""
    from peft.utils.other import ModulesToSaveWrapper

    copies: set[int] = set()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
            copies.update(map(id, module.modules_to_save[module.active_adapters[0]].parameters()))
    return copies
