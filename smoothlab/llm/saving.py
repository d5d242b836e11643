"""A trained model as others load it: the adapter by plain peft, the base model by plain transformers."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from smoothlab.errors import BadInput
from smoothlab.llm.snapshots import reason


def save(model: nn.Module, tokenizer: Any, folder: Path, *, base: bool) -> None:
    """Write folder/adapter where a PEFT method is attached, and folder/model with the tokenizer where `base` says so.

    `AutoModelForCausalLM.from_pretrained(folder/model)` is then the base model, without the adapter, and
    `PeftModel.from_pretrained(that, folder/adapter)` both together. A classifier's is
    `AutoModelForSequenceClassification`; its trained head is in both folders. The adapter is taken off the model.

    Raises:
        BadInput: the folder cannot be written.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging as chatter

    whole: Any = model
    bars = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()  # ours is for the training
    try:
        if hasattr(whole, "peft_config"):
            whole.save_pretrained(str(folder / "adapter"))
            prompts = whole.active_peft_config.is_prompt_learning
            bare = _unwrapped(whole.get_base_model())
            whole = bare if prompts or not base else whole.unload()
        if base:
            whole.save_pretrained(str(folder / "model"))
            tokenizer.save_pretrained(str(folder / "model"))
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"cannot write --save {folder}: {reason(error)}; make room, or name another folder: with --checkpoint the "
            "command then goes on from the best weights"
        ) from None
    finally:
        if bars:
            chatter.enable_progress_bar()


def make_room(folder: Path) -> None:
    """Make the folder for `save`, before the training that would be lost without.

    Raises:
        BadInput: it cannot be made or written.
    """
    try:
        for part in (folder / "adapter", folder / "model"):
            part.mkdir(parents=True, exist_ok=True)
            (part / ".room").touch()
            (part / ".room").unlink()
            with suppress(OSError):  # there are weights of an earlier run
                part.rmdir()
    except OSError as error:
        raise BadInput(f"cannot write --save {folder}: {error.strerror}; name another folder") from None


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model with its trained head in its own place; peft's `unload` fails at some heads, and at prompt methods."""
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    return model
