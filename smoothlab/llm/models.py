"""Models: `micro` in the package, local directories, hub names, GGUF files, and OPT-125M's shape at random.

Weights that a folder's safetensors files hold in the asked number format are not copied on a CPU: they are these files,
mapped into memory. Mappings are private, so that what is written to weights never reaches a file.
"""

import contextlib
import difflib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from smoothlab.errors import BadInput, out_of_memory
from smoothlab.llm import gguf_files, gguf_loading, gguf_settings, hub
from smoothlab.llm.memory import TRAINED, VECTORS, check_device, check_memory
from smoothlab.llm.precision import fit_float64, switch_off_rescaling
from smoothlab.llm.validation import (  # fmt: skip
    UNLIMITED,
    check_causal,
    check_finite,
    check_tokenizer,
    check_vocabulary,
    check_weights,
    classifies,
    longest_input,
    new_weights,
    prepare,
)

NAMES = ("micro", "random:opt-125m")
_CHOICES = "micro, random:opt-125m, a local directory, a GGUF file or a hub name"


@dataclass
class LoadedModel:
    """A model with its tokenizer.

    Attributes:
        model: sequence classifier or causal language model (transformers), eval mode.
        tokenizer: its tokenizer, padding on the right for classifiers, on the left for language models.
        name: as asked for.
        max_length: longest input in tokens; virtual tokens of prompt methods count too.
        notes: what a reader should know of how it was loaded.
        new: names of the weights that its files lack: a head's, and a pooler's where they were of another model.
    """

    model: Any
    tokenizer: Any
    name: str
    max_length: int
    notes: list[str] = field(default_factory=list)
    new: tuple[str, ...] = ()


def load_classifier(
    name: str, classes: int, *, seed: int, dtype: Any = None, device: str = "cpu", measured: bool = True,
    copies: int | None = None,
) -> LoadedModel:  # fmt: skip
    """A sequence classifier with a new head, seeded; the global RNG is left as it was.

    A checkpoint that has a head for as many classes keeps it, with a note.

    Args:
        name: "micro", "random:opt-125m", a local directory, a GGUF file or a folder with one, or a hub name
            (safetensors or GGUF only, no remote code).
        classes: number of classes, at least 2.
        seed: seed of the head (and of random weights).
        dtype: precision of the weights, torch.float32 by default.
        device: "cpu", "cuda" or "cuda:N".
        measured: whether curvature is to be measured, which takes memory for many vectors; else it is trained alone.
        copies: copies of all weights that must fit in free memory; by default as many as `measured` says.

    Raises:
        BadInput: no such model, weights of another model, no tokenizer that fits them, no device, or not enough
            memory; one line that names the fix.
    """
    if classes < 2:
        raise BadInput(f"{classes} class(es) for model '{name}': a classifier needs at least 2")
    loaded = _load(name, classes, seed, dtype, device, copies or (VECTORS if measured else TRAINED))
    loaded.tokenizer.padding_side = "right"
    if measured and getattr(loaded.model.config, "_attn_implementation", None) == "sdpa":
        loaded.notes.append(
            "attention: torch's MATH kernel where curvature is measured, as faster ones have no second derivatives"
        )
    return loaded


def load_lm(
    name: str, *, seed: int, dtype: Any = None, device: str = "cpu", measured: bool = False, copies: int | None = None
) -> LoadedModel:
    """A causal language model with all its weights as they were saved; `micro` is one, its head tied to its embedding.

    Args:
        name: "micro", "random:opt-125m", a local directory, a GGUF file or a folder with one, or a hub name
            (safetensors or GGUF only, no remote code).
        seed: seed of random weights; the global RNG is left as it was.
        dtype: precision of the weights, torch.float32 by default.
        device: "cpu", "cuda" or "cuda:N".
        measured: whether curvature is to be measured, which takes memory for many vectors; else it is trained alone.
        copies: copies of all weights that must fit in free memory; by default as many as `measured` says.

    Raises:
        BadInput: as `load_classifier`, and where the model generates no text from left to right.
    """
    loaded = _load(name, None, seed, dtype, device, copies or (VECTORS if measured else TRAINED))
    loaded.tokenizer.padding_side = "left"
    return loaded


def classifier_reason_of_config(name: str) -> str:
    """Reason why a model is a classifier by its config.json alone, see `validation.classifies`; "" for language models.

    Raises:
        BadInput: no such model, or a configuration that cannot be read.
    """
    if name in NAMES:
        return ""
    from transformers import AutoConfig

    source, options, header = _source(name)
    if header is not None:
        options["gguf_file"] = str(header.path)
    with _quiet(), _reading("configuration", name):
        return classifies(AutoConfig.from_pretrained(source, **options))


def file_identity(name: str) -> dict[str, Any] | None:
    """Name, size, SHA-256 and quantization of a model's GGUF file; None where it has none.

    Raises:
        BadInput: there is no such file, or it cannot be read.
    """
    path = None
    if name not in NAMES:  # a folder of that name is not meant
        path = gguf_files.find(name)
    return None if path is None else gguf_files.identity(path)


def _load(name: str, classes: int | None, seed: int, dtype: Any, device: str, copies: int) -> LoadedModel:
    """A classifier of `classes`, or a causal language model where that is None; `copies` of it fit in memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    kind: Any = AutoModelForCausalLM if classes is None else AutoModelForSequenceClassification
    dtype = dtype or torch.float32
    check_device(device)  # before anything is downloaded
    source, options, header = _source(name)
    new: list[str] = []
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        with _reading("configuration", name):
            config, notes = _configuration(name, classes, source, options, header)
            check_memory(config, dtype, device, name, kind, copies)
        with _reading("tokenizer", name):
            if header is not None:
                tokenizer, tokenizer_notes = gguf_loading.load_tokenizer(header, config)
                notes += tokenizer_notes
            else:
                tokenizer = AutoTokenizer.from_pretrained(source, **options)
            notes += check_tokenizer(tokenizer, name)
        with _reading("weights", name):
            if name == "random:opt-125m":
                model = kind.from_config(config, dtype=dtype)
            else:  # mismatches are not raised but reported, and then refused outside the head
                if header is not None:
                    options |= gguf_loading.weight_options(header)
                with gguf_loading.without_bar(header):
                    model, report = kind.from_pretrained(
                        source, config=config, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True,
                        output_loading_info=True, **options,
                    )  # fmt: skip
                new = new_weights(model, report)
                notes += check_weights(model, report, name)
                if header is not None:
                    notes.append(gguf_loading.finish(model, header, new, dtype))
                check_finite(model, name)
    check_vocabulary(model, tokenizer, name)
    notes += fit_float64(model) + switch_off_rescaling(model)
    # transformers' classifiers find the last real token of a row by this number.
    model.config.pad_token_id = tokenizer.pad_token_id
    longest = longest_input(model, tokenizer)
    if longest == UNLIMITED:
        notes.append(f"{name} states no longest input: sentences of any length are taken")
    return LoadedModel(model.to(device).eval(), tokenizer, name, longest, notes, tuple(new))


def _configuration(
    name: str, classes: int | None, source: str, options: dict[str, Any], header: gguf_files.Header | None
) -> tuple[Any, list[str]]:
    """The configuration of a classifier of `classes`, or of a causal language model where that is None, and notes."""
    from transformers import AutoConfig

    notes: list[str] = []
    if name == "random:opt-125m":
        config = _opt_125m()
    elif header is not None:
        config = AutoConfig.from_pretrained(source, gguf_file=str(header.path), **options)
        notes += gguf_settings.settle(config, header)
    else:
        config = AutoConfig.from_pretrained(source, **options)
    if classes is None:
        check_causal(config, name)
    else:
        notes += prepare(config, classes, name)
    if getattr(config, "auto_map", None):
        notes.append(
            f"the custom code that config.json of {name} names (auto_map) was left out: the model is "
            f"transformers' own {config.model_type}"
        )
    return config, notes


def _source(name: str) -> tuple[str, dict[str, Any], gguf_files.Header | None]:
    """Location of a model's files, arguments for transformers to read them, and the header of a GGUF file.

    Where the hub does not answer, its cache is used.
    """
    options: dict[str, Any] = {"trust_remote_code": False}  # without it transformers asks on the terminal
    if name in NAMES:
        return str(resources.files("smoothlab.llm.micro")), options, None
    if (file := gguf_files.find(name)) is not None:
        gguf_loading.check_transformers(file)
        header = gguf_files.read(file)
        gguf_settings.check(header)
        return str(file.parent), options, header
    if Path(name).is_dir():
        return name, options, None
    matches = [] if "/" in name else difflib.get_close_matches(name.lower(), NAMES, 1)
    if matches and not Path(name).exists():
        raise BadInput(
            f"model '{name}' is unknown: did you mean {matches[0]}? (a hub model of that name: owner/{name})"
        )
    if not hub.is_name(name):
        kind = "a file" if Path(name).is_file() else "no directory, and cannot be a hub name"
        raise BadInput(f"cannot load model '{name}': it is {kind}; check the path, or use {_CHOICES}")
    return name if hub.reachable() else hub.cached(name), options, None


@contextlib.contextmanager
def _reading(part: str, name: str) -> Iterator[None]:
    """Turn errors that the libraries raise on bad files into one line; running out of memory is passed on."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BadInput) or out_of_memory(error):
            raise
        if "custom code" in str(error):
            raise BadInput(
                f"cannot load model '{name}': its {part} needs custom code, which smoothlab never runs: use a model of "
                "a type that transformers has"
            ) from error
        if words := hub.broke_off(error):
            raise BadInput(
                f"cannot load model '{name}': the download of its {part} broke off ({words}): try the same "
                "command again"
            ) from error
        reason = f"its {part} cannot be had ({type(error).__name__}: {' '.join(str(error).split())}"[:200] + ")"
        hint = f"use {_CHOICES}"
        if Path(name).is_dir():
            files = "config.json, a tokenizer and model.safetensors (no pickled weights), or one GGUF file"
            hint = f"the directory needs {files}"
        raise BadInput(f"cannot load model '{name}': {reason}; {hint}") from error


def _opt_125m() -> Any:
    from transformers import OPTConfig

    return OPTConfig(word_embed_proj_dim=768)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' report on new weights and its progress bars; errors are raised all the same."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.ERROR)
    chatter.set_verbosity(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        chatter.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            chatter.enable_progress_bar()
