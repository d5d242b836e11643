"""Pre-training of `micro`: `python -m benchmarks.pretrain_micro --text DIR --out DIR`.

Reads DIR/novels.txt.gz and DIR/movie_reviews.txt.gz (one paragraph or review a line), holds back the last two novels
and the last 60 reviews, trains a lower-casing byte-level BPE tokenizer and an OPT language model on the rest (Muon
for the matrices, AdamW for everything else, bf16 matrix products), compares it with Kneser-Ney bigram and trigram
models on the held-back text, and writes config.json, model.safetensors (fp16), tokenizer files and loss.jsonl.
"""

import argparse
import gzip
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from benchmarks.ngram import KneserNey
from smoothlab.errors import BadInput

LENGTH = 128  # tokens in a training window
BATCH = 16  # windows in a step


def read_text(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Lines of the two sources as (training, held back)."""
    with gzip.open(folder / "novels.txt.gz", "rt", encoding="utf-8") as file:
        novels = file.read().strip().split("\n\n")
    with gzip.open(folder / "movie_reviews.txt.gz", "rt", encoding="utf-8") as file:
        reviews = file.read().strip().split("\n")
    lines = [novel.split("\n") for novel in novels]
    train, held_back = [p for novel in lines[:-2] for p in novel], [p for novel in lines[-2:] for p in novel]
    return {"novels": (train, held_back), "reviews": (reviews[:-60], reviews[-60:])}


def train_tokenizer(lines: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on lower-cased text, with OPT's special tokens at OPT's places."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=256,
    )  # fmt: skip


def encode(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> np.ndarray:
    """One stream of token numbers; every line starts with </s>."""
    return np.concatenate([np.asarray(e.ids) for e in tokenizer.backend_tokenizer.encode_batch(lines)]).astype(np.int64)


def windows(streams: list[np.ndarray], steps: int, seed: int, batch: int = BATCH) -> Iterator[torch.Tensor]:
    """[batch, LENGTH + 1] windows, half of each batch from each stream, each stream's windows in shuffled passes."""
    rng = np.random.default_rng(seed)
    queues: list[list[int]] = [[] for _ in streams]
    for _ in range(steps):
        rows = []
        for stream, queue in zip(streams, queues, strict=True):
            for _ in range(batch // len(streams)):
                if not queue:
                    shift = int(rng.integers(LENGTH))
                    queue.extend(rng.permutation(np.arange(shift, len(stream) - LENGTH - 1, LENGTH)))
                start = queue.pop()
                rows.append(stream[start : start + LENGTH + 1])
        yield torch.from_numpy(np.stack(rows))


def nats_per_token(model: OPTForCausalLM, stream: np.ndarray) -> float:
    """Mean cross entropy over all tokens but the first of each window of LENGTH + 1."""
    count = (len(stream) - 1) // LENGTH
    total = 0.0
    model.eval()
    with torch.no_grad():
        for i in range(0, count, 64):
            rows = np.stack([stream[j * LENGTH : (j + 1) * LENGTH + 1] for j in range(i, min(i + 64, count))])
            batch = torch.from_numpy(rows).to(model.device)
            logits = model(batch[:, :-1]).logits.float()
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            )
    model.train()
    return total / (count * LENGTH)


def trained(
    model: OPTForCausalLM, streams: list[np.ndarray], steps: int, *, seed: int = 0, batch: int = BATCH,
    muon_lr: float = 0.02, adam_lr: float = 3e-3,
) -> Iterator[float]:  # fmt: skip
    """Train the model where it is; yields the loss of each step, in nats a token.

    Rates rise over 100 steps, stay, and fall to 0 on a line over the last 70 % of the steps.

    Raises:
        BadInput: the loss is not finite.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    vectors = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(vectors, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peaks = [muon_lr, adam_lr]
    for step, rows in enumerate(windows(streams, steps, seed, batch), start=1):
        scale = min(1.0, step / 100) * min(1.0, (steps - step + 1) / (0.7 * steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        tokens = rows.to(model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise BadInput(f"the loss is {value} at step {step}: lower --muon-lr or --adam-lr")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield value


def save(model: OPTForCausalLM, folder: Path) -> None:
    """Write the model in fp16, with the dropout of OPT, which fine-tuning in train mode sees; it then holds them."""
    model.config.dropout = 0.1
    model.half().save_pretrained(folder)
    model.float()


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with novels.txt.gz and movie_reviews.txt.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=6000, help="training steps of 16 x 128 tokens (default 6000)")
    parser.add_argument(
        "--activation", default="gelu", choices=["gelu", "relu"], help="gelu is shipped, relu is OPT's own"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--muon-lr", type=float, default=0.02, help="peak learning rate of the matrices")
    parser.add_argument("--adam-lr", type=float, default=3e-3, help="peak learning rate of everything else")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    text = read_text(args.text)
    tokenizer = train_tokenizer(text["novels"][0][::3] + text["reviews"][0], 4096)
    train = {name: encode(tokenizer, lines) for name, (lines, _) in text.items()}
    held_back = {name: encode(tokenizer, lines) for name, (_, lines) in text.items()}
    tokenizer.save_pretrained(args.out)

    config = OPTConfig(
        vocab_size=4096, hidden_size=192, word_embed_proj_dim=192, num_hidden_layers=6, num_attention_heads=6,
        ffn_dim=768, max_position_embeddings=256, activation_function=args.activation, dropout=0.0,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    started = time.time()
    with open(args.out / "loss.jsonl", "w") as log:
        running = 0.0
        losses = trained(
            model, list(train.values()), args.steps, seed=args.seed, muon_lr=args.muon_lr, adam_lr=args.adam_lr
        )
        for step, value in enumerate(losses, start=1):
            running += value
            if step % 50 == 0:
                row = {"step": step, "loss": running / 50, "seconds": round(time.time() - started, 1)}
                if step % 1000 == 0 or step == args.steps:
                    row |= {
                        f"held_back_{name}": nats_per_token(model, s[: 400 * LENGTH]) for name, s in held_back.items()
                    }
                print(json.dumps(row), file=log, flush=True)
                running = 0.0
        summary = {"tokens": args.steps * BATCH * LENGTH, "parameters": sum(p.numel() for p in model.parameters())}
        save(model, args.out)
        for name, stream in held_back.items():
            summary[f"model_{name}"] = nats_per_token(model, stream)  # of the fp16 weights that are shipped
        all_tokens = np.concatenate(list(train.values()))
        for order, label in ((2, "bigram"), (3, "trigram")):
            ngram = KneserNey(all_tokens, order, 4096)
            summary |= {f"{label}_{name}": ngram.nats_per_token(stream) for name, stream in held_back.items()}
        print(json.dumps(summary), file=log, flush=True)


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"pretrain_micro: error: {error}")
