"""A trained model as others load it: the adapter by plain peft, the base model by plain transformers.

peft takes the base model's name from adapter_config.json as it stands: a path in it counts from the working directory,
never from the adapter's folder, so that no relative path leads to ../model from everywhere. Where the base model was
trained too, adapter/ therefore holds its weights beside the module's (peft loads every weight whose name it knows) and
names the model that the run began with. That needs files of at least the run's precision, as weights are rounded to the
type that the base model is loaded in; else adapter/ names model/ where it was written (edit it where that is moved).
For transformers' own `from_pretrained`, the files of model/ are in adapter/ as well (as links, where possible).
"""

import copy
import json
import os
import shutil
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor, nn

from smoothlab.errors import BadInput
from smoothlab.llm import model_cards
from smoothlab.llm.caches import CACHED
from smoothlab.llm.checkpoints import PARTIAL, difference, reason, write_whole
from smoothlab.llm.partition import partition
from smoothlab.zeroth.factors import merge

RUN = "run.json"
"""File of a folder of weights that names their run."""
WEIGHTS = "adapter_model.safetensors"
CAUSAL = "AutoModelForCausalLM"
TASKS = {CAUSAL: "text-generation", "AutoModelForSequenceClassification": "text-classification"}
"""transformers' class -> the hub's name of its task."""
ROTATED = ("PSOFT",)
"""Types of peft that rotate singular vectors of the base model, which change when it is trained: they are saved as the
LoRA of the same rank that they amount to."""


def save(model: nn.Module, tokenizer: Any, folder: Path, *, base: bool, story: str = "") -> None:
    """Write folder/adapter where a PEFT method is attached, and folder/model with the tokenizer where `base` is set.

    `AutoModelForCausalLM.from_pretrained(folder/model)` is then the base model, without the adapter, and
    `PeftModel.from_pretrained(that, folder/adapter)` both together, as is
    `AutoPeftModelForCausalLM.from_pretrained(folder/adapter)`. A classifier's is `...ForSequenceClassification`; its
    trained head is in both folders. The adapter is taken off the model. The base model is written too where it has no
    name, or where the adapter's initialization may have changed it (PiSSA, OLoRA). Steps that are kept as factors
    (`smoothlab.zeroth.factors`) are merged into its weights.

    Args:
        model: as it was trained.
        tokenizer: its tokenizer.
        folder: made where it is not there.
        base: whether the base model was trained.
        story: of the model cards, in Markdown: what was trained, on which data, with which command and result.

    Raises:
        BadInput: the folder cannot be written.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging as chatter

    merge(model.parameters())
    bars = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()  # ours is for the training
    try:
        if hasattr(model, "peft_config"):
            _save_both(model, tokenizer, folder, base, story)
        else:
            _save_model(model, tokenizer, folder, "", story)
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"cannot write --save {folder}: {reason(error)}; make room, or name another folder: with --checkpoint the "
            "command then goes on from the best weights"
        ) from None
    finally:
        if bars:
            chatter.enable_progress_bar()


def add_base(model: Any, folder: Path) -> None:
    """Write the base model's weights beside the module's, into what the model's own `save_pretrained` wrote.

    Plain peft and transformers load both from there, onto the model that adapter_config.json names.

    Args:
        model: a PeftModel.
        folder: where `save_pretrained` wrote it.
    """
    from safetensors.torch import load_file

    # peft writes an adapter of another name than "default" to a folder of its own.
    target = folder if model.active_adapter == "default" else folder / model.active_adapter
    write_whole(target / WEIGHTS, load_file(target / WEIGHTS) | _base_weights(model), {"format": "pt"})
    shutil.rmtree(target / PARTIAL)


def make_room(folder: Path, run: str = "") -> str:
    """Make the folder for `save`, before the training that would be lost without.

    Returns:
        A note where the folder holds weights of an unknown run, which will be replaced; else "".

    Raises:
        BadInput: it cannot be made or written, or holds the weights of another run.
    """
    try:
        for part in (folder / "adapter", folder / "model"):
            part.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=part).close()  # a file tells whether one can be written, not the folder's permissions
            with suppress(OSError):  # there are weights of an earlier run
                part.rmdir()
        saved_run = _run_of(folder)
    except OSError as error:
        raise BadInput(f"cannot write --save {folder}: {error.strerror}; name another folder") from None
    if run and saved_run and saved_run != run:
        old, new = difference(saved_run, run)
        raise BadInput(
            f"--save {folder} holds the weights of another run ({old}, this one has {new}): name another folder, or "
            "delete it"
        )
    weights = [*folder.glob("adapter/*model*.safetensors"), *folder.glob("model/*model*.safetensors")]
    if saved_run or not weights:
        return ""
    return f"--save {folder} holds weights that do not say of which run they are: they will be replaced"


def claim(folder: Path, run: str) -> None:
    """Say in the folder of which run its weights are."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN).write_text(json.dumps({"run": run}) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write --save {folder}: {error.strerror}; name another folder") from None


def _run_of(folder: Path) -> str:
    """Run that the folder names as that of its weights; "" where it names none."""
    try:
        return str(json.loads((folder / RUN).read_text(encoding="utf-8"))["run"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):  # no such file, or another one of that name
        return ""


def _save_both(peft_model: Any, tokenizer: Any, folder: Path, base: bool, story: str) -> None:
    """Write an adapter, and its base model where that was trained."""
    config, origin, target = peft_model.active_peft_config, _origin(peft_model), folder / "adapter"
    # An adapter alone could not be loaded onto a model that has no name, or that peft changed when it attached.
    base = base or not origin or _named_start(config)
    kind, classes = _kind(peft_model), None
    weights: dict[str, Tensor] = {}
    if base:
        weights = _base_weights(peft_model)
    elif kind != CAUSAL:
        classes = peft_model.config.num_labels
    holds_weights = not base or _loads_as(origin, peft_model.config, weights.values())
    if holds_weights:
        _save_adapter(peft_model, target, origin, weights)
    else:
        _save_adapter(peft_model, target, os.path.abspath(folder / "model"), {})
    # The adapter first: below it is taken off the model.
    if base:
        _save_model(_without_adapter(peft_model), tokenizer, folder, str(config.peft_type.value).lower(), story, origin)
        _link(folder / "model", target)
    padded = kind == CAUSAL or not config.is_prompt_learning
    loading = model_cards.of_adapter(
        kind, base=base, holds_weights=holds_weights, base_folder=(folder / "model").absolute(), classes=classes,
        padded=padded, own_method=hasattr(config, "stored_type"),
        prefixed=kind != CAUSAL and config.peft_type in CACHED,
    )  # fmt: skip
    model_cards.write(target, library="peft", task=TASKS[kind], origin=origin, loading=loading, story=story)


def _save_model(model: Any, tokenizer: Any, folder: Path, module: str, story: str, origin: str | None = None) -> None:
    """Write a model without an adapter, and its tokenizer."""
    target, kind = folder / "model", _kind(model)
    model.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))
    if origin is None:
        origin = _origin(model)
    loading = model_cards.of_model(kind, module)
    model_cards.write(target, library="transformers", task=TASKS[kind], origin=origin, loading=loading, story=story)


def _kind(model: Any) -> str:
    """The class that others load the model with."""
    if model.get_output_embeddings() is not None:
        return CAUSAL
    return "AutoModelForSequenceClassification"


def _origin(model: Any) -> str:
    """Hub name or absolute folder of the model that the run began with; "" for one that was made up."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    if name and Path(name).is_dir():
        return os.path.abspath(name)
    return name


def _named_start(config: Any) -> bool:
    """Whether the module's initialization has a name, as those that change the base model's weights have."""
    return isinstance(getattr(config, "init_lora_weights", None), str)


def _loads_as(origin: str, config: Any, weights: Iterable[Tensor]) -> bool:
    """Whether a model is loaded by default in a type that holds these weights, with as many classes."""
    from transformers import AutoConfig

    if not origin:
        return False
    try:
        stored = AutoConfig.from_pretrained(origin)
    except (OSError, ValueError):  # the folder is gone, or the hub does not answer
        return False
    same_model = stored.model_type == config.model_type and stored.num_labels == config.num_labels
    states_dtype = isinstance(stored.dtype, torch.dtype)
    if not (same_model and states_dtype):
        return False
    return all(torch.promote_types(stored.dtype, w.dtype) == stored.dtype for w in weights)


def _save_adapter(peft_model: Any, target: Path, base: str, weights: dict[str, Tensor]) -> None:
    """Write the module as peft does, with the base model's name and, where they are given, its weights."""
    config, module = _module(peft_model, target)
    config.base_model_name_or_path = base
    config.save_pretrained(str(target))
    # In place of the file that peft wrote: with the base model's weights, and as a whole or not at all.
    write_whole(target / WEIGHTS, module | weights, {"format": "pt"})
    shutil.rmtree(target / PARTIAL)


def _module(peft_model: Any, target: Path) -> tuple[Any, dict[str, Tensor]]:
    """The module's config and weights, as plain peft loads them onto the trained base model."""
    from peft import LoraConfig, convert_to_lora
    from safetensors.torch import load_file

    peft_model.save_pretrained(str(target), save_embedding_layers=False)
    weights: dict[str, Tensor] = load_file(target / WEIGHTS)
    config = copy.copy(peft_model.active_peft_config)
    config.inference_mode = True
    if _named_start(config):  # peft would begin anew with the weights that are trained now, and change them again
        config.init_lora_weights = True
        config.loftq_config = {}
        config.eva_config = config.corda_config = config.lora_ga_config = None
    if config.peft_type in ROTATED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft uses names that transformers deprecates
            lora, pairs = convert_to_lora(peft_model, rank=int(config.r))
        heads = {name: tensor for name, tensor in weights.items() if "psoft_" not in name}
        pairs = {name: tensor for name, tensor in pairs.items() if ".lora_" in name}
        assert isinstance(lora, LoraConfig)
        lora.task_type, lora.inference_mode, lora.modules_to_save = config.task_type, True, config.modules_to_save
        return lora, heads | pairs
    return config, weights


def _base_weights(peft_model: Any) -> dict[str, Tensor]:
    """The base model's weights by the names that they have under the module; a tied one once."""
    base = {id(p) for p in partition(peft_model)["base"].params}
    return {name: p for name, p in peft_model.named_parameters() if id(p) in base and ".modules_to_save." not in name}


def _link(source: Path, target: Path) -> None:
    """Put the files of a model into a second folder too, as links where the file system has them, else as copies."""
    for path in (*source.glob("model*.safetensors*"), source / "config.json", source / "generation_config.json"):
        with suppress(FileNotFoundError):
            (target / path.name).unlink(missing_ok=True)
            try:
                os.link(path, target / path.name)
            except OSError:  # the file system has no links
                shutil.copyfile(path, target / path.name)


def _without_adapter(peft_model: Any) -> Any:
    """The base model alone, with its trained head in its own place."""
    from peft.utils.other import ModulesToSaveWrapper

    base = peft_model.get_base_model()
    # By hand, because peft's `unload` fails at some heads.
    for name, module in list(base.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            base.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    if peft_model.active_peft_config.is_prompt_learning or not hasattr(peft_model.base_model, "unload"):
        return base  # these methods have nothing to unload
    return peft_model.unload()
