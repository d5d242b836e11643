"""Three small trained models of other kinds than `micro`: `python -m benchmarks.trained_models [--data-dir DIR]`.

A GELU encoder with a classifier, a ReLU OPT, and a Llama (SiLU) of other widths, all with `micro`'s tokenizer. Each has
random weights at first and is trained whole by `finetune --method fo-full` on SST-2, or without --data-dir on the
built-in sentences. Prints their test accuracies beside the larger class, which they must exceed, and leaves them in
out/trained/NAME/model, for `--model` and for `python -m benchmarks.advice trained`. What is there is left alone.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smoothlab import record_files, records
from smoothlab.experiments.finetune.experiment import Finetune

FOLDER = Path("out") / "trained"


@dataclass(frozen=True)
class Shape:
    """A model before training.

    Attributes:
        config: name of its configuration in transformers.
        auto: name of the class of transformers that makes it.
        options: of the configuration.
        eta_x: learning rate (Adam).
    """

    config: str
    auto: str
    options: Mapping[str, Any]
    eta_x: float = 1e-3


SHAPES = {
    "encoder": Shape(
        "BertConfig", "AutoModelForSequenceClassification",
        {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
         "hidden_act": "gelu", "max_position_embeddings": 128, "num_labels": 2},
    ),
    "opt": Shape(
        "OPTConfig", "AutoModelForCausalLM",
        {"hidden_size": 96, "word_embed_proj_dim": 96, "ffn_dim": 384, "num_hidden_layers": 2,
         "num_attention_heads": 4, "activation_function": "relu", "max_position_embeddings": 128},
    ),
    "llama": Shape(
        "LlamaConfig", "AutoModelForCausalLM",
        {"hidden_size": 80, "intermediate_size": 216, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128},
    ),
}  # fmt: skip


def write_random(name: str, folder: Path) -> None:
    """A folder with a model of random weights (seed 0) and `micro`'s tokenizer."""
    import transformers

    from smoothlab.llm.models import load_lm

    shape, tokenizer = SHAPES[name], load_lm("micro", seed=0).tokenizer
    config = getattr(transformers, shape.config)(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **shape.options,
    )  # fmt: skip
    torch.manual_seed(0)
    getattr(transformers, shape.auto).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(name: str, folder: Path, data_dir: Path | None, steps: int, items: int) -> dict[str, Any]:
    """Train a model from random weights, unless that was done: the row of its test.

    Args:
        name: in SHAPES.
        folder: gets random/, model/ and the record file run.jsonl.
        data_dir: folder with sst2/; None takes the built-in sentences.
        steps: training steps of batch 32.
        items: training items, at most.
    """
    if not (folder / "random").exists():
        write_random(name, folder / "random")
    experiment = Finetune(
        model=str(folder / "random"), data="builtin" if data_dir is None else "sst2", data_dir=data_dir,
        method="fo-full", eta_x=SHAPES[name].eta_x, batch=32, steps=steps, train=items, dev=500, test=1000,
        eval_every=max(1, steps // 8), patience=0, parts=1, save=folder,
    )  # fmt: skip
    out = folder / "run.jsonl"
    records.run(experiment, out, environment=records.environment(device="cpu", dtype="float32", threads=1))
    return next(row for row in record_files.read(out).rows if row["part"] == "test")


def main() -> int:
    """Command line; 1 where a model is not above the larger class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(SHAPES)} (default: all)")
    parser.add_argument("--data-dir", type=Path, help="folder with sst2/; without it the built-in sentences")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=500, help="few enough that the loss can still fall")
    parser.add_argument("--items", type=int, default=60_000, help="training items, at most")
    args = parser.parse_args()
    torch.set_num_threads(1)
    status = 0
    for name in args.names or SHAPES:
        row = train(name, args.folder / name, args.data_dir, args.steps, args.items)
        accuracy = f"{100 * row['accuracy']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        print(f"{name}: {accuracy} on test, larger class {100 * row['majority']:.1f} %; {args.folder / name / 'model'}")
        if row["low"] <= row["majority"]:
            print(f"{name} is not above the larger class: train it for more --steps", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
