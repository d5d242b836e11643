"""The model and the tokenizer of a GGUF file, by transformers' reader, and what that reader leaves to be put right.

The weights are de-quantized, and the model is an ordinary one afterwards: it trains, and saves as a plain folder of
transformers. Of what the reader does without a word, three things are mended here, found in version 5.23: the rows of
Llama's queries and keys stay in llama.cpp's order where the file leaves out the number of key heads; tensors that the
model has no parameter for are dropped; text is split as GPT-2 splits it where the file names another pre-tokenizer.
"""

import contextlib
import io
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smoothlab.errors import BadInput
from smoothlab.llm.gguf_files import ROPE_TENSORS, Header

SPLIT_AS_GPT_2 = ("gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jais", "trillion")
"""Pre-tokenizers of byte-level vocabularies that split text as GPT-2's does."""
SPLIT_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Those that first cut out each digit."""
WITH_START = ("llama3", "llama-v3", "llama-bpe", "tekken")
"""Those under which llama.cpp begins texts with the start token, and takes whole words from the vocabulary."""

SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""transformers' names of special tokens -> those in the metadata."""


OLDEST = (5, 23)
"""The first release of transformers whose tokenizers of GGUF files put the start token where the file says."""


def check_transformers(path: Path) -> None:
    """Refuse releases of transformers whose tokenizers misplace the start token of GGUF files, or fail.

    Raises:
        BadInput: transformers is older than OLDEST.
    """
    release = version("transformers")
    if tuple(int(number) for number in release.split(".")[:2]) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise BadInput(
            f"cannot load model '{path}': GGUF files need transformers {needed} or newer, and {release} is installed: "
            "pip install -U 'smoothlab[gguf]'"
        )


def weight_options(header: Header) -> dict[str, Any]:
    """Arguments of `from_pretrained` that read the file, all its weights de-quantized."""
    import transformers

    # Without it version 5.23 marks the model as a quantized one, which it refuses to save; where the package kernels is
    # installed, it keeps the weights of some architectures in their blocks, which cannot be trained.
    quantization = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {"gguf_file": str(header.path)}
    if quantization is not None:
        options["quantization_config"] = quantization(dequantize=True)
    return options


@contextlib.contextmanager
def without_bar(header: Header | None) -> Iterator[None]:
    """Hide the progress bar of transformers' GGUF reader, which obeys no setting; no change for other files."""
    if header is None:
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def finish(model: Any, header: Header, new: list[str], dtype: torch.dtype) -> str:
    """Make the model an ordinary one with all weights of the file.

    Args:
        model: as transformers read it; changed.
        header: of its file.
        new: names of the parameters that the file lacks, those of a classifier's head.
        dtype: of the weights.

    Returns:
        How the weights were stored and what is lost, for the reader.

    Raises:
        BadInput: a tensor of the file has no place in the model, or the order of its rows is not clear.
    """
    # The name of the folder would be read as that of a model by peft and transformers, which find none in it.
    model.config.name_or_path = ""
    _check_places(model, header, new)
    if header.architecture == "llama":
        _order_rows(model, header)
    return header.losses(str(dtype).removeprefix("torch."))


def _check_places(model: Any, header: Header, new: list[str]) -> None:
    """Refuse a file with tensors that the model has no parameter for: as many numbers must be in both."""
    import gguf

    body_only = model.get_output_embeddings() is None
    tensors = {name: tensor.elements for name, tensor in header.tensors.items() if name not in ROPE_TENSORS}
    if body_only:  # a classifier has no vocabulary head
        tensors.pop("output.weight", None)
    sizes = {id(p): p.numel() for name, p in model.named_parameters() if name not in new}
    if sum(tensors.values()) == sum(sizes.values()):
        return
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[header.architecture], model.config.num_hidden_layers)
    read_names = {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict()}
    unread = ", ".join([name for name in tensors if name not in read_names][:3])
    raise BadInput(
        f"cannot load model '{header.path}': its tensors hold {sum(tensors.values()):,d} numbers, transformers' "
        f"{model.config.model_type} has {sum(sizes.values()):,d} weights (no place for {unread or 'some'}); give the "
        "model's safetensors instead"
    )


def _order_rows(model: Any, header: Header) -> None:
    """Bring the rows of Llama's queries and keys into transformers' order where its reader did not.

    llama.cpp keeps the two halves of a rotated pair beside each other, transformers half a head apart. The reader
    changes the order only where the file states the number of key heads; here the first layer is held against it.
    """
    heads, key_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    layers = model.get_decoder().layers
    first = layers[0].self_attn.q_proj.weight
    stored = torch.from_numpy(header.values("blk.0.attn_q.weight")).to(first)
    if torch.equal(first, _interleaved(stored, heads)):
        return
    if not torch.equal(first, stored):
        raise BadInput(
            f"cannot load model '{header.path}': transformers reads other numbers from its tensor blk.0.attn_q.weight "
            "than gguf does; use the version of transformers in smoothlab's constraints.txt"
        )
    with torch.no_grad():
        for layer in layers:
            for projection, count in ((layer.self_attn.q_proj, heads), (layer.self_attn.k_proj, key_heads)):
                for p in projection.parameters():
                    p.copy_(_interleaved(p, count))


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows in transformers' order: of each head first all first halves of the rotated pairs, then all second ones."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape).contiguous()


def load_tokenizer(header: Header, config: Any) -> tuple[Any, list[str]]:
    """The tokenizer in tokenizer.json beside the file, else the file's own; and notes for the reader.

    Raises:
        BadInput: the file names a way to split text that is not known; a tokenizer.json beside it then helps.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = header.path.parent
    if (folder / "tokenizer.json").is_file():
        kind: Any = PreTrainedTokenizerFast
        if (folder / "tokenizer_config.json").is_file():
            kind = AutoTokenizer
        note = f"the tokenizer is that of tokenizer.json beside {header.path.name}"
        tokenizer = kind.from_pretrained(str(folder), config=config, trust_remote_code=False)
        for name, key in SPECIAL_TOKENS.items():  # which tokenizer.json does not tell
            number = header.metadata.get(f"tokenizer.ggml.{key}")
            if getattr(tokenizer, name) is None and number is not None:
                setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(number))
        return tokenizer, [note]
    options: dict[str, Any] = {}
    split = str(header.metadata.get("tokenizer.ggml.pre", ""))
    if split in WITH_START:
        options["add_bos_token"] = True  # unless the file says otherwise
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=str(header.path), **options)
    if header.metadata.get("tokenizer.ggml.model") == "gpt2":
        _split_words(tokenizer, split, header.path)
    elif header.metadata.get("tokenizer.ggml.add_space_prefix") is False:
        _without_first_space(tokenizer.backend_tokenizer)
    if len(tokenizer) > header.vocabulary:
        tokenizer = _without_additions(tokenizer, header.vocabulary)
    return tokenizer, []


def _split_words(tokenizer: Any, split: str, path: Path) -> None:
    """Let a byte-level tokenizer split text into words as its file says."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    # transformers has the splits of some pre-tokenizers in a table of its own, and takes GPT-2's for all others.
    by_gpt_2 = type(backend.pre_tokenizer).__name__ == "ByteLevel"
    if split in SPLIT_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif by_gpt_2 and split not in SPLIT_AS_GPT_2:
        raise BadInput(
            f"cannot load model '{path}': how its tokenizer splits text (tokenizer.ggml.pre = {split or 'not stated'}) "
            "is not known; put the model's tokenizer.json beside the file"
        )
    if split in WITH_START:
        backend.model.ignore_merges = True


def _without_additions(tokenizer: Any, count: int) -> Any:
    """The tokenizer without tokens that the file lacks: transformers adds GPT-2's <|endoftext|> to any vocabulary."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < count]
    special = {}
    for name in SPECIAL_TOKENS:
        number = getattr(tokenizer, f"{name}_id")
        if number is not None and number < count:
            special[name] = getattr(tokenizer, name)
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=tokenizer.chat_template, **special)


def _without_first_space(backend: Any) -> None:
    """Let a SentencePiece vocabulary begin texts without a space, as its file says."""
    from tokenizers import decoders, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    spaces = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
