"""A folder with a language model of random bfloat16 weights in a known shape, which is written layer by layer.

    python -m benchmarks.random_folder llama-2-7b out/llama-2-7b

makes a folder that `--model` takes: config.json, safetensors files of at most 500 MB and an index, and the tokenizer of
`micro`, whose tokens every shape has. Matrices are normal with standard deviation 0.02, norms 1 and biases 0. No more
than one file's tensors are in memory. A disk that is too small is refused before anything is written.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from smoothlab.errors import BadInput

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2-7b": (
        "LlamaConfig",
        {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
         "tie_word_embeddings": False},
    ),
    "llama-3.2-1b": (
        "LlamaConfig",
        {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
         "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True},
    ),
    "opt-1.3b": (
        "OPTConfig",
        {"vocab_size": 50272, "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
         "word_embed_proj_dim": 2048, "max_position_embeddings": 2048},
    ),
    "opt-125m": ("OPTConfig", {"word_embed_proj_dim": 768}),
    "smollm2-135m": (
        "LlamaConfig",
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "tiny": (
        "LlamaConfig",
        {"vocab_size": 8192, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
         "num_attention_heads": 4, "tie_word_embeddings": True},
    ),
}  # fmt: skip
"""Shapes of published models by name, and a tiny one for tests."""
FILE_BYTES = 500 * 10**6
SPARE = 1 << 30
"""Bytes that stay free on the disk."""


def config_of(shape: str, **changed: Any) -> Any:
    """The configuration of a shape, with some options changed."""
    import transformers

    kind, options = SHAPES[shape]
    special = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "dtype": "bfloat16"}
    return getattr(transformers, kind)(**(options | special | changed))


def tensors_of(config: Any) -> dict[str, Tensor]:
    """The model's parameters by name, shapes without memory; tied ones once."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return dict(AutoModelForCausalLM.from_config(config).named_parameters())


def make(shape: str, folder: Path, *, seed: int = 0, file_bytes: int = FILE_BYTES) -> int:
    """Write the folder; the bytes of the weights.

    Args:
        shape: name of SHAPES.
        folder: made where it is not there; one with a config.json is refused.
        seed: seed of the weights.
        file_bytes: largest file, but for one larger tensor.

    Raises:
        BadInput: the shape is unknown, the folder holds a model, or the disk is too small.
    """
    if shape not in SHAPES:
        raise BadInput(f"shape {shape} is unknown: use one of {', '.join(SHAPES)}")
    if (folder / "config.json").exists():
        raise BadInput(f"{folder} holds a model already: name another folder, or delete it")
    config = config_of(shape)
    tensors = tensors_of(config)
    size = 2 * sum(p.numel() for p in tensors.values())
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if size + SPARE > free_bytes:
        raise BadInput(
            f"{shape} takes {size / 2**30:.1f} GiB, {SPARE / 2**30:.0f} GiB should stay free, and {folder} has "
            f"{free_bytes / 2**30:.1f} GiB: make room, or name a folder on another disk"
        )
    generator, files, index = torch.Generator().manual_seed(seed), list(_files(tensors, file_bytes)), {}
    for number, names in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file({key: _values(key, tensors[key], generator) for key in names}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(names, name)
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    micro = resources.files("smoothlab.llm.micro")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(micro.joinpath(name).read_text())
    config.save_pretrained(folder)
    return size


def _files(tensors: dict[str, Tensor], limit: int) -> Iterator[list[str]]:
    """Names of the tensors of each file, in order."""
    names: list[str] = []
    size = 0
    for name, p in tensors.items():
        if names and size + 2 * p.numel() > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * p.numel()
    yield names


def _values(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if like.dim() == 1:
        return torch.full(like.shape, float("norm" in name and "bias" not in name), dtype=torch.bfloat16)
    return torch.empty(like.shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        size = make(args.shape, args.folder, seed=args.seed)
    except BadInput as error:
        print(f"random_folder: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{args.folder}: {size / 2**30:.2f} GiB of weights")


if __name__ == "__main__":
    main()
