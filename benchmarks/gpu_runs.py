"""Pieces of `benchmarks.gpu` that are training runs.

    pretrain   a language model of OPT-125M's shape, pre-trained for minutes
    d4-...     Appendix D.4's protocol beside estimated norms, some measuring points at a time
    table1-... one cell of Table 1 on SST-2, a run of `smoothlab finetune`

Runs of smoothlab (d4, table1) have record files of their own beside the benchmark's, and checkpoints, from which a
stopped one goes on.
"""

import copy
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import pretrain_micro, table1
from benchmarks.fig1 import RUNS
from benchmarks.gpu_pieces import SMALL, Bench, Row
from benchmarks.ngram import KneserNey
from benchmarks.random_folder import config_of
from benchmarks.real_runs import RATES
from smoothlab import records
from smoothlab.errors import BadInput
from smoothlab.experiments.finetune.experiment import Finetune
from smoothlab.experiments.smoothness import Smoothness
from smoothlab.llm.tasks import load_choices


def pretrain(bench: Bench) -> Iterator[Row]:
    """Loss on held-back text, beside a bigram model's; the model is in `bench.pretrained` then."""
    text, sizes = _text(bench), bench.sizes
    lines = [line for train, _ in text.values() for line in train]
    tokenizer = pretrain_micro.train_tokenizer(lines, sizes.vocabulary)
    train = [pretrain_micro.encode(tokenizer, part) for part, _ in text.values()]
    held_back = {name: pretrain_micro.encode(tokenizer, part) for name, (_, part) in text.items()}
    model = _untrained(bench)
    seconds = _seconds_of_a_step(model, train, sizes.batch)
    count = max(4, round(sizes.seconds / seconds))
    losses = list(pretrain_micro.trained(model, train, count, batch=sizes.batch, adam_lr=1e-3))
    partial = bench.folder / "pretrained.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    pretrain_micro.save(model, partial)
    shutil.rmtree(bench.pretrained, ignore_errors=True)
    partial.replace(bench.pretrained)
    shared: Row = {
        "low": None, "high": None, "target": None, "steps": count, "dim": sum(p.numel() for p in model.parameters()),
        "training_tokens": count * sizes.batch * pretrain_micro.LENGTH, "unit": "nats a token",
    }  # fmt: skip
    last = losses[-max(1, count // 20) :]
    yield {"what": "training loss, last twentieth of the steps", "value": statistics.mean(last), **shared}
    ngram = KneserNey(np.concatenate(train), 2, sizes.vocabulary)
    for name, tokens in held_back.items():
        part = tokens[: 400 * pretrain_micro.LENGTH + 1]
        yield {"what": f"loss on held-back {name}", "value": pretrain_micro.nats_per_token(model, part), **shared}
        yield {"what": f"bigram model's loss on held-back {name}", "value": ngram.nats_per_token(part), **shared}


def _text(bench: Bench) -> dict[str, tuple[list[str], list[str]]]:
    """Lines of each source as (training, held back)."""
    if bench.text is not None:
        return pretrain_micro.read_text(bench.text)
    if bench.size != "micro":
        raise BadInput("there is no text: name a folder with novels.txt.gz and movie_reviews.txt.gz by --text DIR")
    lines = [item.prompt for item in load_choices("builtin", sizes=(2000, 1, 1)).train]
    return {"builtin": (lines[:-300], lines[-300:])}


def _untrained(bench: Bench) -> Any:
    """A model of OPT-125M's shape in fp32, without dropout."""
    from transformers import OPTForCausalLM

    options: Row = SMALL["OPTConfig"] if bench.size == "micro" else {}
    options = options | {"vocab_size": bench.sizes.vocabulary, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
    torch.manual_seed(0)
    config = config_of("opt-125m", **options, dropout=0.0)
    config.dtype = torch.float32
    return OPTForCausalLM(config).float().to(bench.device)


def _seconds_of_a_step(model: nn.Module, train: list[np.ndarray], batch: int) -> float:
    """Seconds of a step of pre-training, on a copy: the schedule of the rates must know the number of steps."""
    spare: Any = copy.deepcopy(model)
    ends = []
    for _ in pretrain_micro.trained(spare, train, 12, batch=batch):
        ends.append(time.perf_counter())
    return (ends[-1] - ends[1]) / (len(ends) - 2)


class Paused(Exception):
    """The points of a slice are on record, and later points are not."""


@dataclass(frozen=True)
class Slice(Smoothness):
    """A run of `smoothlab smoothness` up to its measuring point number `most`; its records are those of such a run."""

    most: InitVar[int] = 0

    def __post_init__(self, most: int) -> None:
        object.__setattr__(self, "_most", most)

    def _points(self) -> list[int]:
        return super()._points()[: self._most]  # type: ignore[attr-defined]

    def rows(self, done: Sequence[Row]) -> Iterator[Row]:
        """The rows of these points.

        Raises:
            Paused: there are more, so that the record file must get no end line.
        """
        yield from super().rows(done)
        if len(self._points()) < len(super()._points()):
            raise Paused


def d4(bench: Bench, trained: str, number: int) -> Iterator[Row]:
    """Some measuring points of Appendix D.4's run: its norms over the estimated ones, and rounding floors over its own.

    Args:
        bench: where; on its pre-trained model if there is text to pre-train on, else on random weights.
        trained: full (all weights are trained, Fig. 1a) or lora (with a LoRA module, Fig. 1b).
        number: number of the slice, from 1.
    """
    sizes, size = bench.sizes, bench.size
    run = RUNS["fig1a_opt125m" if trained == "full" else "fig1b_opt125m"]
    weights = "random"
    changed: Row = {"data_dir": bench.data_dir, "device": bench.device, "points": sizes.points}
    if bench.data_dir is None:
        changed["data"] = "builtin"
    if bench.has_text:
        bench.check_pretrained()
        weights = "pretrained"
        changed["model"] = str(bench.pretrained)
    if size == "micro":
        changed |= {"steps": 4, "probes": 2, "precision": 0.5, "train": 64}
    name = f"d4-{trained}-{weights}"
    checkpoints = bench.folder / "checkpoints" / name
    options = {field.name: getattr(run, field.name) for field in fields(run)} | changed | {"checkpoint": checkpoints}
    try:
        bench.record(Slice(**options, most=number * sizes.slice), name)
        shutil.rmtree(checkpoints, ignore_errors=True)
    except Paused:
        pass
    rows = records.load(bench.folder / f"{name}.jsonl").to_dict("records")
    yield from _compared(rows, number, sizes.slice, weights)


def _compared(rows: list[Any], number: int, count: int, weights: str) -> Iterator[Row]:
    """Medians over the points of a slice, block by block."""
    points = sorted({row["step"] for row in rows})[(number - 1) * count : number * count]
    values: dict[tuple[str, int, str], Row] = {}
    for row in rows:
        if row["quantity"] == "frobenius" and row["block"] == row["wrt"]:
            values[row["block"], row["step"], row["protocol"]] = row
    for block in dict.fromkeys(block for block, _, _ in values):
        pairs = [(values[block, step, "paper"], values[block, step, "estimated"]) for step in points]
        shared: Row = {"unit": "times", "low": None, "high": None, "target": None, "model": weights}
        shared["dim"] = int(pairs[0][0]["dim"])
        ratios = {
            "printed, rescaled, over estimated norm": [
                paper["normalized"] / estimated["value"] for paper, estimated in pairs
            ],
            "rounding floor over printed norm": [paper["floor"] / paper["value"] for paper, _ in pairs],
        }
        for what, point_ratios in ratios.items():
            yield {
                "what": f"{what}: {block}, median of points",
                "value": statistics.median(point_ratios),
                "raw": point_ratios,
                **shared,
            }
        norms = [estimated["value"] for _, estimated in pairs]
        what, shared["unit"] = f"estimated norm: {block}, median of points", "norm"
        yield {"what": what, "value": statistics.median(norms), "raw": norms, **shared}


def cells(bench: Bench) -> dict[str, Finetune]:
    """Cells of Table 1 by name: SST-2, Adam's steps of the modules, rates as tried on a model of 135 million."""
    sizes = bench.sizes
    base = replace(
        table1.MICRO, model=str(bench.pretrained), device=bench.device, data_dir=bench.data_dir, optimizer="adam",
        steps=sizes.steps, eval_every=max(1, sizes.steps // 3),
    )  # fmt: skip
    rates = {name: RATES[name][:2] for name in ("zo", *table1.PEFT)}
    by_name = table1.cells(base, rates, ["sst2"], table1.SEEDS)
    if bench.data_dir is None:
        by_name = {name: replace(cell, data="builtin") for name, cell in by_name.items()}
    if bench.size == "micro":
        small = {"train": 32, "dev": 8, "test": 8, "batch": 4, "search": ()}
        by_name = {name: replace(cell, **small) for name, cell in by_name.items()}  # type: ignore[arg-type]
    return {name: cell for name, cell in by_name.items() if not sizes.cells or name.endswith(sizes.cells)}


def cell(bench: Bench, name: str) -> Iterator[Row]:
    """Test accuracy of one cell of Table 1."""
    bench.check_pretrained()
    checkpoints = bench.folder / "checkpoints" / name
    out = bench.record(replace(cells(bench)[name], checkpoint=checkpoints), f"table1/{name}")
    shutil.rmtree(checkpoints, ignore_errors=True)
    (test,) = (row for row in records.load(out).to_dict("records") if row["part"] == "test")
    shared: Row = {"unit": "share of test items", "target": None, "model": "pretrained"}
    yield {"what": f"test accuracy: {name}", **{key: test[key] for key in ("low", "high")}, **shared,
           "value": test["accuracy"]}  # fmt: skip
    yield {"what": f"larger class of the test items: {name}", "value": test["majority"], "low": None, "high": None,
           **shared}  # fmt: skip
