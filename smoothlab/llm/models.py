"""Models: `micro` in the package, local directories, hub names, and OPT-125M's shape with random weights."""

import contextlib
import difflib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from smoothlab.errors import BadInput

NAMES = ("micro", "random:opt-125m")


@dataclass
class LoadedModel:
    """A classifier with its tokenizer.

    Attributes:
        model: sequence classifier (transformers), eval mode.
        tokenizer: its tokenizer, padding on the right.
        name: as asked for.
        max_length: longest input in tokens; virtual tokens of prompt methods count too.
        notes: what a reader should know of how it was loaded.
    """

    model: Any
    tokenizer: Any
    name: str
    max_length: int
    notes: list[str] = field(default_factory=list)


def load_classifier(name: str, classes: int, *, seed: int, dtype: Any = None, device: str = "cpu") -> LoadedModel:
    """A sequence classifier with a new head, seeded; the global RNG is left as it was.

    Args:
        name: "micro", "random:opt-125m", a local directory, or a hub name (safetensors only, no remote code).
        classes: number of classes.
        seed: seed of the head (and of random weights).
        dtype: precision of the weights, torch.float32 by default.
        device: "cpu" or "cuda".

    Raises:
        BadInput: no such model, no safetensors, no device, or not enough memory; one line that names the fix.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    near = difflib.get_close_matches(name, NAMES, 1)
    if near and name not in NAMES and not Path(name).exists():
        raise BadInput(f"model '{name}' is unknown: did you mean {near[0]}? (a hub model of that name: owner/{name})")
    dtype = dtype or torch.float32
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    micro = str(resources.files("smoothlab.llm.micro"))
    place = micro if name in NAMES else name
    try:
        with _quiet(), torch.random.fork_rng():
            torch.manual_seed(seed)
            config = _opt_125m() if name == "random:opt-125m" else AutoConfig.from_pretrained(place)
            config.num_labels = classes
            check_memory(config, dtype, device, name)
            tokenizer = AutoTokenizer.from_pretrained(place)
            if name == "random:opt-125m":
                model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
            else:
                model = AutoModelForSequenceClassification.from_pretrained(
                    place, config=config, dtype=dtype, use_safetensors=True
                )
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        hint = ""
        if Path(name).is_dir():
            hint = "the directory needs config.json, a tokenizer and model.safetensors (no pickled weights); "
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"cannot load model '{name}': {hint}use micro, random:opt-125m, a local directory or a hub name ({reason})"
        ) from error
    notes = []
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"{name} has no padding token: its end-of-text token pads")
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"
    longest = int(getattr(model.config, "max_position_embeddings", 0) or tokenizer.model_max_length)
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        notes.append("attention: sdpa, on its MATH kernel where second derivatives are taken (equal up to rounding)")
    return LoadedModel(model.to(device).eval(), tokenizer, name, longest, notes)


def encode(loaded: LoadedModel, texts: Sequence[str], labels: Sequence[int], device: str) -> dict[str, Any]:
    """One padded minibatch: input_ids and attention_mask [B, length], labels [B].

    Raises:
        BadInput: a text is longer than the model allows; it is never cut silently.
    """
    import torch

    rows = [loaded.tokenizer(text)["input_ids"] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > loaded.max_length:
            raise BadInput(
                f"the sentence '{text[:40]}...' has {len(row)} tokens, {loaded.name} takes {loaded.max_length}: cut it"
            )
    batch = loaded.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    found = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": torch.tensor(labels)}
    return {key: value.to(device) for key, value in found.items()}


def parameter_count(config: Any) -> int:
    """Parameters of the model that a config describes, counted without allocating it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForSequenceClassification.from_config(config).parameters())


def check_memory(config: Any, dtype: Any, device: str, name: str) -> None:
    """Refuse a model whose weights, gradient, one perturbed copy and 20 probe vectors do not fit in free memory."""
    import psutil
    import torch

    width = torch.tensor([], dtype=dtype).element_size()
    needed = 24 * parameter_count(config) * width
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
    if needed > free:
        shapes = {"micro": 3.5e6, "opt-125m": 125e6, "opt-350m": 331e6, "opt-1.3b": 1.3e9, "opt-2.7b": 2.65e9}
        fits = [n for n, d in shapes.items() if 24 * d * width <= free]
        raise BadInput(
            f"{name} needs about {needed / 2**30:.1f} GiB to be measured and {free / 2**30:.1f} GiB are free: "
            + (f"{fits[-1]} would fit" if fits else "free some memory")
        )


def _opt_125m() -> Any:
    from transformers import OPTConfig

    return OPTConfig(word_embed_proj_dim=768)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report on new weights and its progress bars; errors are raised all the same."""
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
