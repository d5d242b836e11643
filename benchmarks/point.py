"""One measuring point, base + LoRA + cross block, with whichever version of smoothlab is first on the path.

`benchmarks.point_cost` starts it as a file, so that it runs with other versions too: nothing of this package is
imported, and smoothlab by names that both have. Prints a line of JSON a point.
"""

import argparse
import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TEXTS = (
    "A warm and funny film with two fine actors.", "Two hours of noise, and not one idea in them.",
    "The story is thin but the songs carry it.", "I left before the end and was not alone.",
    "It asks hard questions and trusts us with the answers.", "Flat jokes, flat faces, a flat ending.",
    "The last scene alone is worth the ticket.", "A sequel that nobody had asked for.",
)  # fmt: skip
"""Reviews, good and bad in turn."""
TEMPLATE, VERBALIZERS = "{} It was", (" great", " terrible")


def named(*names: str) -> Any:
    """The first module or member of that name that the version on the path has."""
    for name in names:
        module, _, member = name.partition(":")
        try:
            value = importlib.import_module(module)
        except ImportError:
            continue
        if not member:
            return value
        if hasattr(value, member):
            return getattr(value, member)
    raise SystemExit(f"this version of smoothlab has none of {', '.join(names)}")


def micro() -> tuple[Callable[[], Tensor], list[Any]]:
    """Loss and blocks of the model in the package, on random tokens."""
    from peft import LoraConfig, get_peft_model

    model = named("smoothlab.llm.models:load_classifier")("micro", 2, seed=0).model
    torch.manual_seed(0)  # of the version's own LoRA, rank and scale have changed
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])).eval()
    tokens = torch.randint(3, 4000, (8, 32), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 2

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(input_ids=tokens).logits, labels)

    return loss, split(model)


def split(model: nn.Module) -> list[Any]:
    """Blocks "base" and "peft" of the parameters that the loss reads."""
    make = named("smoothlab.blocks:Block")
    parts: dict[str, list[Tensor]] = {"base": [], "peft": []}
    for name, p in model.named_parameters():
        p.requires_grad_(True)
        if "lora_" in name:
            parts["peft"].append(p)
        else:
            parts["base"].append(p)
    return [make(name, tuple(params)) for name, params in parts.items()]


def language_model(folder: Path, batch: int, layers: int | None) -> tuple[nn.Module, Callable[[], Tensor], list[Any]]:
    """A causal language model with LoRA on its queries and values, its loss on a prompt task, and blocks."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    overrides = {}
    if layers is not None:
        overrides["num_hidden_layers"] = layers
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **overrides)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"])).eval()
    texts = tokenizer([TEMPLATE.format(text) for text in TEXTS[:batch]], padding=True, return_tensors="pt")
    last = texts["attention_mask"].sum(1) - 1
    options = torch.tensor([tokenizer(word)["input_ids"][0] for word in VERBALIZERS])
    labels = torch.arange(batch) % 2

    def loss() -> Tensor:
        logits = model(**texts).logits[torch.arange(batch), last]
        return nn.functional.cross_entropy(logits[:, options], labels)

    return model, loss, split(model)


def anonymous() -> int:
    """Resident bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def peak(result: dict[str, Any]) -> Iterator[None]:
    """Puts the largest resident memory while the context lasts into `result`, looked at every 10 ms."""
    ended = threading.Event()
    sizes = [anonymous()]

    def watch() -> None:
        while not ended.wait(0.01):
            sizes.append(anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        result["peak_bytes"] = max(sizes)


def estimates(loss: Callable[[], Tensor], blocks: list[Any], precision: float, seed: int) -> list[Any]:
    """Norms of both blocks and of their cross block."""
    hessian = named("smoothlab.hessian.exact:ExactHessian", "smoothlab.hessian:ExactHessian")(loss, blocks)
    options = {"cross": [("base", "peft")], "precision": precision, "seed": (seed,)}
    if hasattr(hessian, "norms"):
        return list(hessian.norms(**options))
    return list(named("smoothlab.norms:block_norms")(hessian, **options))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="micro", help="micro, or a folder with a causal language model")
    parser.add_argument("--batch", type=int, default=4, help="items of a folder's model, up to 8")
    parser.add_argument("--layers", type=int, help="the first layers of a folder's model only")
    parser.add_argument("--precision", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.model == "micro":
        loss, blocks = micro()
        estimates(loss, blocks, 0.3, 0)  # memory is taken before the clock runs
    else:
        _, loss, blocks = language_model(Path(args.model), args.batch, args.layers)
        loss()  # libraries take their own memory at the first call
    for seed in args.seeds:
        row: dict[str, Any] = {"seed": seed, "parameter_bytes": 4 * sum(block.dim for block in blocks)}
        started = time.process_time()
        with peak(row):
            results = estimates(loss, blocks, args.precision, seed)
        row["cpu_seconds"] = time.process_time() - started
        for e in results:
            row[f"{e.wrt}-{e.block} {e.quantity}"] = [e.value, e.low, e.high, e.hvps, e.flag]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
